"Checkpoints: runs killed at random moments and resumed in new processes, damaged files, runs of other settings."
import errno, itertools, os, random, signal, subprocess, sys, time
from contextlib import contextmanager
import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from pets_nb.engine import checkpoints as ep
from pets_nb.engine.learner import History, Mixed, _Start, _random_state
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import error_rate
from fastai.optimizer import OptimWrapper, SGD
from fastai.torch_core import params, set_seed
from fastcore.foundation import L

quick = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

class Stop(Exception): pass

@contextmanager
def power_cut(learn, step):
    "Raise an error at the `step`-th training batch, counted over all fits"
    steps = itertools.count(1)
    def cut(*args):
        if learn.model.training and next(steps)==step: raise Stop('power cut')
    hook = learn.model.register_forward_pre_hook(cut)
    try: yield
    finally: hook.remove()

def toy_learner(seed=1, n=22, bs=4, num_workers=0, hidden=6, cbs=(), **kwargs):
    "A small network with dropout and batch normalisation on shuffled data"
    set_seed(seed)
    data = torch.randn(n, 5, generator=torch.Generator().manual_seed(7))
    pairs = [(x, int(x[0]>0)) for x in data]
    dls = DataLoaders.from_dsets(pairs[:-6], pairs[-6:], bs=bs, num_workers=num_workers, device='cpu')
    model = nn.Sequential(nn.Sequential(nn.Linear(5,hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.3)), nn.Linear(hidden,2))
    learn = Learner(dls, model, CrossEntropyLossFlat(), metrics=error_rate, cbs=[_Start(seed), History(), *cbs], splitter=lambda m: L(m.children()).map(params), **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda row: None
    return learn

def same(a, b):
    a,b = a.model.state_dict(),b.model.state_dict()
    return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def records(learn): return learn.history.table.drop(columns='seconds').values.tolist()

fits = dict(
    one_cycle=lambda learn: learn.fit_one_cycle(3, 1e-2), constant=lambda learn: learn.fit(3, 1e-2), flat_cos=lambda learn: learn.fit_flat_cos(3, 1e-2),
    fine_tune=lambda learn: learn.fine_tune(2), three=lambda learn: [learn.fit(1, 1e-2), learn.fit_one_cycle(1, 1e-2), learn.fit(1, 1e-3)])

def interrupted(make, fit, folder, cuts, **kwargs):
    "Train with an interruption after each of `cuts` steps, then to the end"
    for cut in [*cuts, None]:
        learn = make()
        with ep.resumable(learn, folder, verbose=False, **kwargs), power_cut(learn, cut):
            try: fit(learn)
            except Stop: continue
        return learn

@pytest.mark.parametrize('name', fits)
@settings(quick, max_examples=2)
@given(cuts=st.lists(st.integers(1, 12), max_size=2))
def test_any_interruptions_change_nothing(tmp_path_factory, name, cuts):
    resumed = interrupted(toy_learner, fits[name], tmp_path_factory.mktemp('run'), cuts)
    after = _random_state(resumed.dls)
    whole = toy_learner()
    fits[name](whole)
    assert same(resumed, whole) and records(resumed)==records(whole)
    uninterrupted = _random_state(whole.dls)
    assert torch.equal(after.pop('torch'), uninterrupted.pop('torch')) and after==uninterrupted

def test_the_comparison_can_fail():
    a,b = toy_learner(seed=1),toy_learner(seed=2)
    a.fit(1, 1e-2); b.fit(1, 1e-2)
    assert not same(a, b)

@pytest.mark.parametrize('make', [
    pytest.param(lambda: toy_learner(num_workers=2), id='workers'), pytest.param(lambda: toy_learner(cbs=[Mixed('bfloat16', emulate=True)]), id='bfloat16'),
    pytest.param(lambda: toy_learner(opt_func=SGD), id='sgd'), pytest.param(lambda: toy_learner(cbs=[EarlyStoppingCallback(patience=2)]), id='early stopping')])
def test_interruptions_of_other_learners(tmp_path, make, capsys):
    resumed,whole = interrupted(make, fits['one_cycle'], tmp_path, [3, 6]),make()
    fits['one_cycle'](whole)
    assert same(resumed, whole) and records(resumed)==records(whole)

def test_without_a_seeded_learner(tmp_path):
    "The first checkpoint is from before the first epoch, so that a random head survives an early interruption"
    def unseeded():
        learn = toy_learner(seed=random.SystemRandom().randrange(10**6))
        learn.remove_cb(_Start)
        return learn
    learn = unseeded()
    with pytest.raises(Stop), ep.resumable(learn, tmp_path, verbose=False), power_cut(learn, 1): learn.fit(2, 1e-2)
    ends = []
    for _ in range(2):
        for file in sorted(tmp_path.glob('*.checkpoint'))[1:]: file.unlink()
        learn = unseeded()
        with ep.resumable(learn, tmp_path, verbose=False, keep=5): learn.fit(2, 1e-2)
        ends.append(learn)
    assert same(*ends)

def test_early_stopping_remembers(tmp_path, capsys):
    "The epochs without improvement are counted across an interruption, and a fit that was stopped stays stopped"
    def make(): return toy_learner(cbs=[EarlyStoppingCallback(monitor='error_rate', patience=3)])
    def fit(learn): learn.fit(9, 0.)
    whole = make(); fit(whole)
    assert len(whole.history.rows)==4
    for cut in (5, 13):
        folder = tmp_path/str(cut)
        resumed = interrupted(make, fit, folder, [cut])
        assert records(resumed)==records(whole)
        again = interrupted(make, fit, folder, [])
        assert same(again, whole) and records(again)==records(whole)

def test_what_only_looks_writes_nothing(tmp_path):
    learn = toy_learner()
    with ep.resumable(learn, tmp_path, verbose=False) as cb:
        learn.fit(1, 1e-2)
        before = {o.name: o.read_bytes() for o in cb.files}
        learn.validate(); learn.get_preds()
        with learn.no_bar(): learn.lr_find(num_it=5, show_plot=False)
        assert {o.name: o.read_bytes() for o in cb.files}==before
    assert '_do_fit' not in vars(learn) and not any(isinstance(o, ep._Checkpoints) for o in learn.cbs)

def test_progress_bar_and_words(tmp_path, capsys):
    learn = toy_learner()
    learn.add_cb(ProgressCallback())
    with pytest.raises(Stop), ep.resumable(learn, tmp_path), power_cut(learn, 7): learn.fit(3, 1e-2)
    assert 'goes on' not in capsys.readouterr().out
    learn = toy_learner()
    learn.add_cb(ProgressCallback())
    with ep.resumable(learn, tmp_path): learn.fit(3, 1e-2)
    assert 'fit number 1 goes on after epoch 1 of 3' in capsys.readouterr().out
    learn = toy_learner()
    with ep.resumable(learn, tmp_path): learn.fit(3, 1e-2)
    assert 'fit number 1 is finished' in capsys.readouterr().out

changes = dict(
    epochs=(dict(), lambda o: o.fit_one_cycle(4, 1e-2), 'epochs: 3 in the checkpoint, 4 now'),
    rate=(dict(), lambda o: o.fit_one_cycle(3, 2e-2), 'callback param_scheduler, lr'),
    turn=(dict(), lambda o: o.fit_one_cycle(3, 1e-2, pct_start=0.3), 'callback param_scheduler, mom'),
    schedule=(dict(), lambda o: o.fit(3, 1e-2), 'callback param_scheduler'),
    decay=(dict(), lambda o: o.fit_one_cycle(3, 1e-2, wd=0.3), r'wd: \[0.01, 0.01\] in the checkpoint, \[0.3, 0.3\] now'),
    seed=(dict(seed=2), fits['one_cycle'], 'callback seeding, seed: 1 in the checkpoint, 2 now'),
    images=(dict(n=26), fits['one_cycle'], 'training, images: 16 in the checkpoint, 20 now'),
    batch=(dict(bs=8), fits['one_cycle'], 'training, batch size: 4 in the checkpoint, 8 now'),
    network=(dict(hidden=7), fits['one_cycle'], 'weights, 0.0.weight'),
    optimizer=(dict(opt_func=SGD), fits['one_cycle'], 'optimizer'),
    callback=(dict(cbs=[EarlyStoppingCallback(patience=2)]), fits['one_cycle'], 'callback early_stopping'),
    precision=(dict(cbs=[Mixed('bfloat16', emulate=True)]), fits['one_cycle'], 'callback mixed'),
    frozen=(dict(), lambda o: [o.freeze(), o.fit_one_cycle(3, 1e-2)], 'trained weights'),
)
@pytest.mark.parametrize('name', changes)
def test_another_run_is_refused(tmp_path, name):
    kwargs,fit,words = changes[name]
    interrupted(toy_learner, fits['one_cycle'], tmp_path, [5])
    before = {o.name: o.read_bytes() for o in tmp_path.iterdir()}
    learn = toy_learner(**kwargs)
    with pytest.raises(ValueError, match='(?s)holds checkpoints of another run.*'+words), ep.resumable(learn, tmp_path): fit(learn)
    assert {o.name: o.read_bytes() for o in tmp_path.iterdir()}==before

def test_settings_that_the_learner_does_not_show(tmp_path):
    interrupted(toy_learner, fits['constant'], tmp_path, [5], settings=dict(data='drawn'))
    learn = toy_learner()
    with pytest.raises(ValueError, match="data: 'drawn' in the checkpoint, 'oxford' now"), ep.resumable(learn, tmp_path, settings=dict(data='oxford')): fits['constant'](learn)

def test_fewer_fits_than_before_are_refused(tmp_path):
    interrupted(toy_learner, fits['three'], tmp_path, [])
    learn = toy_learner()
    with pytest.raises(ValueError, match='from fit number 3, but only 1 were called'), ep.resumable(learn, tmp_path): learn.fit(1, 1e-2)

def test_two_contexts_are_refused(tmp_path):
    learn = toy_learner()
    with ep.resumable(learn, tmp_path/'a'):
        with pytest.raises(ValueError, match='already'), ep.resumable(learn, tmp_path/'b'): pass
    with pytest.raises(ValueError, match='keep is 0'), ep.resumable(learn, tmp_path/'c', keep=0): pass

def test_a_pytorch_optimizer_is_refused(tmp_path):
    learn = toy_learner(opt_func=lambda ps, lr: OptimWrapper(ps, torch.optim.AdamW, lr=lr))
    with pytest.raises(TypeError, match='OptimWrapper'), ep.resumable(learn, tmp_path): learn.fit(1, 1e-2)

def test_two_are_kept_and_left_overs_removed(tmp_path):
    with ep.atomic_path(tmp_path/'000007.checkpoint') as part: part.write_bytes(b'half'); name = part.name
    (tmp_path/'000007.checkpoint').rename(tmp_path/name)
    (tmp_path/'mine.txt').write_text('not a checkpoint')
    interrupted(toy_learner, fits['one_cycle'], tmp_path, [5, 2])
    assert sorted(o.name for o in tmp_path.iterdir())==['000002.checkpoint','000003.checkpoint','mine.txt']

# --- damaged files

state = {'a': torch.arange(5.), 'b': [1, 'two', None, True, {'c': 3.5}]}

@quick
@given(at=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(tmp_path_factory, at, bit):
    path = ep._write(tmp_path_factory.mktemp('bit')/'x', state)
    data = bytearray(path.read_bytes())
    data[int(at*len(data))] ^= 1<<bit
    path.write_bytes(data)
    with pytest.raises(ValueError, match='not a checkpoint|damaged'): ep._read(path)

@quick
@given(share=st.floats(0, 0.999999))
def test_a_cut_file_is_noticed(tmp_path_factory, share):
    path = ep._write(tmp_path_factory.mktemp('cut')/'x', state)
    path.write_bytes(path.read_bytes()[:int(share*path.stat().st_size)])
    with pytest.raises(ValueError, match='not a checkpoint|damaged'): ep._read(path)

class Evil:
    def __reduce__(self): return os.system, ('touch pwned',)

def test_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ep._write(tmp_path/'000000.checkpoint', {'x': Evil()})
    with pytest.raises(Exception, match='more than weights, numbers and text'): ep._read(path)
    assert not (tmp_path/'pwned').exists()

@pytest.mark.parametrize('damage', ['empty','half','text','gone bits'])
def test_the_checkpoint_before_is_used(tmp_path, capsys, damage):
    learn = toy_learner()
    with pytest.raises(Stop), ep.resumable(learn, tmp_path), power_cut(learn, 10): fits['one_cycle'](learn)
    newest = sorted(tmp_path.glob('*.checkpoint'))[-1]
    data = newest.read_bytes()
    newest.write_bytes(dict(empty=b'', half=data[:len(data)//2], text=b'hello', **{'gone bits': data[:-300]+bytes(300)})[damage])
    resumed,whole = toy_learner(),toy_learner()
    with ep.resumable(resumed, tmp_path): fits['one_cycle'](resumed)
    said = capsys.readouterr().out
    assert '000002.checkpoint cannot be read' in said and '000001.checkpoint: fit number 1 goes on after epoch 1' in said
    fits['one_cycle'](whole)
    assert same(resumed, whole)

def test_nothing_readable_is_an_error(tmp_path, capsys):
    interrupted(toy_learner, fits['one_cycle'], tmp_path, [])
    for file in tmp_path.iterdir(): file.write_bytes(b'')
    with pytest.raises(ValueError, match='none of the 2 checkpoints'), ep.resumable(toy_learner(), tmp_path): pass

# --- within an epoch

def often(learn, fit, folder, cuts):
    for cut in [*cuts, None]:
        o = learn()
        with ep.resumable(o, folder, verbose=False, seconds=0), power_cut(o, cut):
            try: fit(o)
            except Stop: continue
        return o

@pytest.mark.parametrize('make', [toy_learner, lambda: toy_learner(cbs=[Mixed('bfloat16', emulate=True)])], ids=['float32','bfloat16'])
@settings(quick, max_examples=2)
@given(cuts=st.lists(st.integers(1, 12), max_size=2))
def test_an_interruption_within_an_epoch_changes_nothing(tmp_path_factory, make, cuts):
    resumed,whole = often(make, fits['one_cycle'], tmp_path_factory.mktemp('run'), cuts),make()
    fits['one_cycle'](whole)
    columns = ['frozen','valid_loss','error_rate','highest lr']
    assert same(resumed, whole)
    assert resumed.history.table[columns].values.tolist()==whole.history.table[columns].values.tolist()

def test_each_image_once_an_epoch(tmp_path):
    seen = []
    class Seen(Callback):
        def after_batch(self):
            if self.training: seen.extend(self.xb[0][:,0].tolist())
    def make(): return toy_learner(n=22, cbs=[Seen()])
    often(make, lambda o: o.fit(1, 1e-2), tmp_path, [3])
    assert len(seen)==16 and len(set(seen))==16

# --- a full disk

def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch, capsys):
    def full(path, state): raise OSError(errno.ENOSPC, 'No space left on device')
    learn,whole = toy_learner(),toy_learner()
    with ep.resumable(learn, tmp_path):
        class Fill(Callback):
            def after_train(self): monkeypatch.setattr(ep, '_write', full)
        learn.add_cb(Fill)
        learn.fit_one_cycle(3, 1e-2)
    whole.fit_one_cycle(3, 1e-2)
    assert capsys.readouterr().out.count('training goes on')==1 and same(learn, whole)
    with pytest.raises(OSError, match='No space'), ep.resumable(toy_learner(), tmp_path/'new') as cb: cb.learn.fit(1)

# --- words

def test_settings_are_words_and_values():
    def f(x, lr): pass
    a,b = (ep.partial(f, torch.nn.Module, lr=0.1) for _ in range(2))
    assert ep._words(a)==ep._words(b) and '0x' not in ep._words(a) and 'lr=0.1' in ep._words(a)
    assert '0x' not in str(ep._fit_settings(started()))

def started():
    learn = toy_learner()
    learn.fit(1, 1e-3)
    return learn

# --- kill -9, each run a new process

RUN = """
import sys, torch
from pathlib import Path
from pets_nb.engine.drawn import breed_traits, draw_pets
from pets_nb.engine.loaders import pets_dls
from pets_nb.engine.learner import pets_learner, quiet
from pets_nb.engine.checkpoints import resumable
work,name,seconds = Path(sys.argv[1]),sys.argv[2],float(sys.argv[3])
dls = pets_dls(work/'pets'/'images', size=32, bs=6, seed=1, verbose=False)
learn = pets_learner(dls, 'small_network', seed=1, verbose=False)
with learn.no_bar(), learn.no_logging():
    with resumable(learn, work/name, seconds=seconds): learn.fine_tune(5)
torch.save(dict(weights=learn.model.state_dict(), errors=learn.history.table[['frozen','valid_loss','error_rate']].values.tolist()), work/f'{name}.pt')
"""

@pytest.fixture(scope='module')
def work(tmp_path_factory):
    from pets_nb.engine.drawn import breed_traits, draw_pets
    work = tmp_path_factory.mktemp('killed')
    draw_pets(work/'pets', n_per_breed=12, breeds=list(breed_traits.index[:4]), n_workers=1, progress=False)
    (work/'run.py').write_text(RUN)
    return work

def start(work, name, seconds):
    return subprocess.Popen([sys.executable, str(work/'run.py'), str(work), name, str(seconds)], env={**os.environ, 'OMP_NUM_THREADS': '1'})

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs kill -9')
def test_killed_and_resumed_in_a_new_process(work):
    assert start(work, 'whole', 60).wait(240)==0
    def reached(n): return any(int(o.name[:6])>=n and o.name.count('.')==2 for o in (work/'run').glob('*.checkpoint'))
    for n in (1, 3):
        process = start(work, 'run', 0)
        while process.poll() is None and not reached(n): time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait()==-signal.SIGKILL
    assert start(work, 'run', 0).wait(240)==0
    whole,run = (torch.load(work/f'{o}.pt', weights_only=True) for o in ('whole','run'))
    assert all(torch.equal(run['weights'][k], v) for k,v in whole['weights'].items())
    assert run['errors']==whole['errors']
    assert len(list((work/'run').glob('*.checkpoint')))==2
