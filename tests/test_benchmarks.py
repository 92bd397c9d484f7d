"Benchmarks: turns and ratios, what is refused before anything is measured, memory of a whole tree, small sets and large ones."
import json, os, sys, time
import numpy as np, pytest
from PIL import Image
from pets_nb.tools import benchmarks as b

@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    root,rng = tmp_path_factory.mktemp('pets'),np.random.default_rng(0)
    for breed in ('pug','Birman'):
        for i in range(6): Image.fromarray(rng.integers(0, 255, (40,50,3), np.uint8)).save(root/f'{breed}_{i}.jpg')
    return root

def test_sides_take_turns():
    order = []
    rows = b._alternate({k: lambda turn, k=k: order.append((turn,k)) for k in 'xyz'}, 3)
    assert order==[(0,'x'),(0,'y'),(0,'z'),(1,'z'),(1,'y'),(1,'x'),(2,'x'),(2,'y'),(2,'z')] and len(rows)==9

def test_ratios_are_medians_within_the_turns():
    rows = [dict(turn=t, side=k, seconds=s, error=.1) for t,(x,y) in enumerate([(1,.5), (10,2), (3,1)]) for k,s in (('a',x),('b',y))]
    t = b._summary(rows, 'a')
    assert t['times faster'].tolist()==[1, 3] and (t.lowest['b'],t.highest['b'])==(2, 5) and t.seconds['b']==1 and t.error['b']==.1
    many = [dict(o, images=100 if o['side']=='a' else 200) for o in rows]
    assert b._summary(many, 'a')['times faster']['b']==6

@pytest.mark.parametrize('text', ['', '{', '[]', '{}', '{"rows": []}', 'null'])
def test_a_foreign_record_is_refused_before_anything_is_measured(pets, tmp_path, text, monkeypatch):
    (tmp_path/'input-resnet18-64.json').write_text(text)
    monkeypatch.setitem(b._WHAT, 'input', lambda *a: pytest.fail('measured'))
    with pytest.raises(ValueError, match='no record of a benchmark'): b.run_benchmark('input', pets, tmp_path, size=64)

def test_a_record_is_found_again_and_other_settings_are_refused(pets, tmp_path, monkeypatch, capsys):
    def sides(s, args):
        "Nothing"
        return dict(a=lambda turn: dict(error=.2), b=lambda turn: dict(error=.1))
    monkeypatch.setitem(b._WHAT, 'input', sides)
    first = b.run_benchmark('input', pets, tmp_path, size=64, turns=2)['input']
    monkeypatch.setitem(b._WHAT, 'input', lambda *a: pytest.fail('measured again'))
    b._WHAT['input'].__doc__ = 'Nothing'
    assert b.run_benchmark('input', pets, tmp_path, size=64, turns=2)['input'].equals(first)
    with pytest.raises(ValueError, match='other settings'): b.run_benchmark('input', pets, tmp_path, size=64, turns=3)
    record = json.loads((tmp_path/'input-resnet18-64.json').read_text())
    assert str(pets.parent) not in json.dumps(record) and record['about']['data']['images']==12 and len(record['rows'])==4

def test_unknown_names(pets):
    with pytest.raises(ValueError, match='there are input, cache'): b.run_benchmark('input,speed', pets)

def test_a_small_set_has_batches(pets):
    s = b._Setting(pets, 'resnet18', 'none', 64, workers=0)
    assert s.bs==2 and len(s.train)+len(s.valid)==12
    for side in b._input(s, None).values(): assert side(0)['images']>0

@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='needs Linux')
def test_memory_counts_the_children_and_shared_pages_once():
    hold = "b = bytearray(80_000_000); b[::4096] = b'x'*len(b[::4096]); "
    alone = b._peak([sys.executable, '-c', hold+'import time; time.sleep(.3)'], '')/1e6
    fork = hold+"import os,time\nfor _ in range(3):\n  if os.fork()==0: time.sleep(.5); os._exit(0)\ntime.sleep(.5)"
    shared = b._peak([sys.executable, '-c', fork], '')/1e6
    own = hold+f"import subprocess,sys; ps=[subprocess.Popen([sys.executable,'-c',{hold+'import time; time.sleep(.6)'!r}]) for _ in range(2)]; [o.wait() for o in ps]"
    three = b._peak([sys.executable, '-c', own], '')/1e6
    assert 80<alone<120 and shared<alone+40 and three>230

def test_a_failed_process_says_why():
    with pytest.raises(RuntimeError, match='ZeroDivisionError'): b._peak([sys.executable, '-c', '1/0'], '')

def test_seven_thousand_files_fit(pets, monkeypatch):
    "Nothing but the folder goes to the process that is measured"
    seen = {}
    monkeypatch.setattr(b, '_peak', lambda command, text: seen.update(command=command, text=text) or 0)
    b._memory_side([str(pets), 'resnet18', 'none', 64, 64, 0], 'our', 0)
    assert sum(map(len, seen['command']))<1000 and len(seen['text'])<1000
