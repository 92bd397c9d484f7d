"Several processes: one model trained by two, features shared out, one of them killed. Batch norm is frozen where runs are compared, and images are not augmented"
import json, os, subprocess, sys, tarfile, time
import numpy as np, pytest
from pets_nb.engine.drawn import draw_pets
from pets_nb.engine.loaders import pets_dls
from pets_nb.many_machines import Distributed

@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pets')/'drawn'
    return draw_pets(folder, 12, ['pug', 'Bombay', 'Persian'], traps=False, n_workers=1, progress=False)

def launched(*args): return [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *map(str, args)]
def alone(*args): return [sys.executable, *map(str, args)]
def start(command, **kwargs):
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)

def run(command, **kwargs):
    p = start(command, **kwargs)
    out,err = p.communicate(timeout=150)
    return p.returncode, out, err

SAME = """
import contextlib, io, json, sys
from pathlib import Path
from fastai.callback.core import Callback
from fastai.torch_core import num_distrib, rank_distrib
from pets_nb.engine.features import _KeepNorm, get_features, head_first
from pets_nb.engine.learner import pets_learner
from pets_nb.engine.loaders import FastDL, pets_dls
from pets_nb.many_machines import Distributed, process_group
read = []
class Losses(Callback):
    order,losses = 60,[]
    def after_batch(self):
        if self.training: self.losses.append(self.loss.item())
plan = FastDL._plan
def noted(dl):
    res = plan(dl)
    read.append([len(dl.dataset), sum([o for o,_ in res], [])])
    return res
with process_group(), contextlib.redirect_stdout(io.StringIO()):
    dls = pets_dls(sys.argv[1], size=64, bs=9, augment=False, device='cpu')
    losses = Losses()
    learn = pets_learner(dls, 'small_network', precision='float32', verbose=False, cbs=losses)
    if num_distrib() > 1: learn.add_cb(Distributed())
    x,y = get_features(learn)
    FastDL._plan = noted
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-3, cbs=_KeepNorm())
        FastDL._plan = plan
        preds = learn.get_preds()[0]
        head_first(learn, 1, 1e-4)
rows = learn.history.table[['train_loss', 'valid_loss', 'error_rate']].values.tolist()
Path(f'{sys.argv[2]}.{rank_distrib()}').write_text(json.dumps(dict(
    read=read, losses=losses.losses, rows=rows, x=x.tolist(), y=y.tolist(), preds=preds.tolist())))
"""

def test_two_processes_train_the_same_model(pets, tmp_path):
    "Same total batch, same losses at each step (to 1e-4); every image once; validation without duplicates"
    (tmp_path/'same.py').write_text(SAME)
    for name,command in (('one', alone), ('two', launched)):
        code,_,err = run(command(tmp_path/'same.py', pets, tmp_path/name))
        assert code == 0, err[-2000:]
    one,a,b = (json.loads((tmp_path/o).read_text()) for o in ('one.0', 'two.0', 'two.1'))
    assert len(one['losses']) > 8
    for two in (a, b):
        for k in ('losses', 'rows', 'x', 'preds'): np.testing.assert_allclose(two[k], one[k], rtol=1e-4, atol=1e-4)
        assert two['y'] == one['y']
    for (n,all_),(_,mine),(_,others) in zip(one['read'], a['read'], b['read']):
        assert sorted(mine + others) == sorted(all_) == [*range(n)] and mine and others

def train(pets, *more): return '-m', 'pets_nb', 'train', '--data', pets, '--arch', 'small_network', '--size', 64, '--bs', 10, '--precision', 'float32', *more

def test_an_error_is_said_once_and_ends_all(pets, tmp_path):
    (tmp_path/'there').mkdir()
    (tmp_path/'there/file').touch()
    code,out,err = run(launched(*train(pets, '--out', tmp_path/'there')), cwd=tmp_path)
    assert code != 0 and err.count('is there already') == 1

def test_a_killed_process_ends_the_run_which_resumes(pets, tmp_path):
    "And the first process alone prints and writes"
    psutil = pytest.importorskip('psutil')
    p = start(launched(*train(pets, '--epochs', 15, '--out', tmp_path/'run')), cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path/'run/checkpoints/000002.checkpoint').exists():
        assert p.poll() is None and time.monotonic() < deadline, p.communicate()[1][-2000:]
        time.sleep(0.05)
    victim, = [o for o in psutil.Process(p.pid).children() if o.environ().get('RANK') == '1']
    victim.kill()
    out,err = p.communicate(timeout=60)
    assert p.returncode != 0 and err.count('to resume') == 1 and 'fault of pets_nb' not in err
    code,out,err = run(launched('-m', 'pets_nb', 'train', '--resume', tmp_path/'run'), cwd=tmp_path)
    assert code == 0 and 'goes on after epoch' in out, err[-2000:]
    assert len((tmp_path/'run/history.csv').read_text().splitlines()) == 1 + 16
    for o in ('images of 3 classes, labels from', 'training,', 'Validation: error', 'Saved in'): assert out.count(o) == 1, o
    assert err.count('epoch  train loss') == 1
    assert {o.name for o in (tmp_path/'run').iterdir()} >= {'model', 'report.txt', 'history.csv', 'settings.json'}
    assert not (tmp_path/'run/checkpoints').exists()

@pytest.mark.parametrize('world,bs,fault', [(5, 4, 'is too small for 5 processes'), (3, 4, None)])
def test_a_batch_has_an_image_for_each_process(pets, monkeypatch, world, bs, fault):
    monkeypatch.setenv('WORLD_SIZE', str(world))
    dls = pets_dls(pets, size=64, bs=bs, verbose=False, device='cpu')
    cb = Distributed()
    cb.learn = type('Learn', (), dict(dls=dls, metrics=[]))()
    if not fault: return cb.check()
    with pytest.raises(ValueError, match=fault): cb.check()

FEATURES = """
import os, sys
from pets_nb.engine.streams import shard_features
from pets_nb.engine.learner import pets_learner
from pets_nb.engine.loaders import pets_dls
dls = pets_dls(sys.argv[1], size=64, bs=4, verbose=False, device='cpu')
learn = pets_learner(dls, 'small_network', precision='float32', verbose=False)
n = shard_features(learn, sys.argv[2], sys.argv[3])
open(f"{sys.argv[3]}.rank{os.environ['RANK']}", 'w').write(str(n))
"""

def test_torchrun_shares_the_shards(pets, tmp_path):
    pytest.importorskip('pyarrow')
    from pets_nb.engine.streams import load_features
    files,shards,out = sorted(pets.glob('images/*.jpg')),tmp_path/'shards',tmp_path/'features'
    shards.mkdir()
    for i in range(3):
        with tarfile.open(shards/f'{i}.tar', 'w') as tar:
            for o in files[i::3]:
                (tmp_path/'label').write_text(o.stem.rpartition('_')[0])
                tar.add(o, o.name)
                tar.add(tmp_path/'label', f'{o.stem}.cls')
    (tmp_path/'go.py').write_text(FEATURES)
    code,_,err = run(launched(tmp_path/'go.py', pets, shards, out))
    assert code == 0, err[-2000:]
    counts = [int((tmp_path/f'features.rank{r}').read_text()) for r in range(2)]
    assert counts == [len(files[0::3]) + len(files[2::3]), len(files[1::3])]
    x,y,classes = load_features(out)
    assert len(x) == len(files) and classes == ['Bombay', 'Persian', 'pug']
