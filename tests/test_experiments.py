"Records of experiments: kills, damaged files, several processes, learners; the chapter's runs."
import json, os, signal, subprocess, sys, textwrap, time
import numpy as np, pandas as pd, pytest
from pets_nb.engine.stats import compare
from pets_nb.tools.experiments import _chosen, _data, _machine, _pack, _unpack, read_records, run_experiment

def test_right_answers_survive(tmp_path):
    for n in (1, 7, 8, 3669):
        right = np.random.default_rng(n).random(n)<0.8
        run_experiment(f'n{n}', {'a': lambda s: dict(right=right), 'b': lambda s: dict(right=~right)}, (1,2), folder=tmp_path, verbose=False)
        table = read_records(f'n{n}', tmp_path)
        assert (np.stack(table[table.recipe=='a'].right)==right).all()
        assert table.error[0]==pytest.approx(1-right.mean()) and table.n_test[0]==n
    assert compare(read_records('n3669', tmp_path)).n==3669

@pytest.mark.parametrize('text', ['', '{', '[]', '{"runs": 3}', 'null'])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text):
    (tmp_path/'x.json').write_text(text)
    with pytest.raises(ValueError, match='no file of records'): run_experiment('x', {'a': lambda s: .1}, folder=tmp_path)
    assert (tmp_path/'x.json').read_text()==text

@pytest.mark.parametrize('name', ['', 'a/b', '../a', 'a b'])
def test_names(tmp_path, name):
    with pytest.raises(ValueError): read_records(name, tmp_path)

def test_errors_are_rates(tmp_path):
    with pytest.raises(ValueError, match='not between'): run_experiment('x', {'a': lambda s: 12.}, folder=tmp_path)
    with pytest.raises(ValueError, match='not between'): run_experiment('x', {'a': lambda s: float('nan')}, folder=tmp_path)
    assert not (tmp_path/'x.json').exists()

def test_other_settings_are_refused(tmp_path):
    run_experiment('x', {'a': lambda s: .1}, (1,), settings=dict(size=112), folder=tmp_path, verbose=False)
    with pytest.raises(ValueError, match='other settings'): run_experiment('x', {'a': lambda s: .1}, (2,), settings=dict(size=224), folder=tmp_path)

def test_no_path_of_this_machine_in_a_record(tmp_path):
    from fastcore.foundation import L
    from pets_nb.engine.sources import ImageSet
    folder = tmp_path/'pets-x'/'images'
    folder.mkdir(parents=True)
    files = [folder/f'pug_{i}.jpg' for i in range(3)]
    for o in files: o.write_bytes(b'x')
    images = ImageSet(L(files), ['pug']*3, folder, 'names')
    data = _data(images)
    assert data['name']=='pets-x' and data['images']==3
    files[0].write_bytes(b'xy')
    assert _data(images)['fingerprint']!=data['fingerprint']
    run_experiment('x', {'a': lambda s: .1}, (1,), data=images, folder=tmp_path, verbose=False)
    assert str(tmp_path) not in (tmp_path/'x.json').read_text() and _machine()['pets_nb']

code = textwrap.dedent("""
    import sys, time
    from pets_nb.tools.experiments import run_experiment
    def slow(seed): time.sleep(float(sys.argv[2])); return seed/100
    run_experiment('x', {'a': slow, 'b': slow}, [int(o) for o in sys.argv[3:]], folder=sys.argv[1])
""")
def start(folder, wait, *seeds):
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, str(folder), str(wait), *map(str, seeds)], stdout=subprocess.PIPE, text=True)

def test_killed_at_any_moment_and_finished_by_the_next(tmp_path):
    p = start(tmp_path, .3, *range(1, 9))
    p.stdout.readline()
    for o in range(2): p.stdout.readline()
    p.send_signal(signal.SIGKILL); p.wait()
    n = len(json.loads((tmp_path/'x.json').read_text())['runs'])
    assert 3<=n<=16
    p = start(tmp_path, 0, *range(1, 9))
    out,_ = p.communicate(timeout=60)
    assert p.returncode==0 and len(out.splitlines())==16-n and len(read_records('x', tmp_path))==16

def test_two_processes_add_to_one_file(tmp_path):
    ps = [start(tmp_path, .02, *seeds) for seeds in (range(1, 8), range(8, 15))]
    assert [o.wait(timeout=90) for o in ps]==[0, 0]
    table = read_records('x', tmp_path)
    assert len(table)==28 and not table.duplicated(['recipe','seed']).any() and not list(tmp_path.glob('*.lock'))

def test_a_learner_is_recorded_with_its_test_set(tmp_path):
    import torch
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    x = torch.randn(24, 5)
    pairs = [(o, int(o[0]>0)) for o in x]
    dls = DataLoaders.from_dsets(pairs[:12], pairs[12:18], pairs[18:], bs=4, device='cpu')
    learn = Learner(dls, torch.nn.Linear(5, 2), CrossEntropyLossFlat())
    run_experiment('x', {'a': lambda s: learn}, (1,), folder=tmp_path, verbose=False)
    row = read_records('x', tmp_path).iloc[0]
    expected = [(learn.model(o).argmax().item()==y) for o,y in pairs[18:]]
    assert list(row.right)==expected and row.n_test==6 and row.n_train==12

def test_the_chapters_runs_are_those_of_the_book():
    from pets_nb.tools.chapter import _PUBLISHED, _RUNS, run_chapter
    assert list(_RUNS)==list(_PUBLISHED.index)==_chosen(_RUNS, _RUNS, 'run')
    assert _chosen('slice-12, two-epochs,slice-12', _RUNS, 'run')==['slice-12','two-epochs']
    with pytest.raises(ValueError, match='no run x, y; there are two-epochs'): run_chapter(runs='x,y,two-epochs')

def test_the_calls_reach_the_learner():
    from pets_nb.tools.chapter import _RUNS
    class Spy:
        def __init__(self): self.calls = []
        def __getattr__(self, name): return lambda *args, **kwargs: self.calls.append((name, args, kwargs))
    spy = Spy()
    for o in _RUNS: _RUNS[o][1](spy)
    assert spy.calls[0]==('fine_tune', (2,), {}) and spy.calls[1]==('fine_tune', (1,), dict(base_lr=.1)) and spy.calls[4]==('unfreeze', (), {})
    assert spy.calls[8]==('fit_one_cycle', (12,), dict(lr_max=slice(1e-6,1e-4))) and spy.calls[9]==('fine_tune', (6,), dict(freeze_epochs=3))

def test_the_table_of_recorded_runs(tmp_path):
    from pets_nb.tools.chapter import _RUNS, chapter_table
    history = [dict(frozen=f, error_rate=e, seconds=s) for f,e,s in ((True,.2,3.), (False,.1,4.), (False,.15,6.))]
    for seed in (1,2): run_experiment('chapter', {_RUNS[o][0]: lambda s: dict(error=.15, history=history) for o in ('slice-12','two-epochs')}, (seed,), folder=tmp_path, verbose=False)
    table = chapter_table('chapter', tmp_path)
    assert list(table.index)==['two-epochs','slice-12'] and table.ours.loc['two-epochs'].tolist()==[20., 15., 0., 10., 2., 5.]
    assert table.published.final.tolist()==[8.05, 5.41]

def test_records_are_fetched_where_the_book_is_not_at_hand(tmp_path, monkeypatch):
    "On Colab only the package is installed: the records come from the repository, once"
    from pets_nb.tools import experiments
    calls = []
    def fetched(url, dest, **kwargs):
        calls.append(url)
        dest.parent.mkdir(parents=True, exist_ok=True)
        dest.write_text('{"runs": [{"recipe": "a", "seed": 1, "error": 0.25}]}')
        return dest
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, 'download', fetched)
    monkeypatch.setattr(experiments, 'config_folder', lambda kind: tmp_path/'data')
    assert experiments.read_records('chapter-112').error.tolist() == [0.25]
    assert calls == ['https://raw.githubusercontent.com/pets-nb/pets_nb/main/nbs/explanations/experiments/chapter-112.json']
