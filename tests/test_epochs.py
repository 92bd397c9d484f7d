"Epochs: runs killed at random moments, damaged checkpoints, runs of other settings, and the arithmetic of comparisons against scipy."
import itertools, os, random, subprocess, sys
from contextlib import contextmanager
import numpy as np, pandas as pd, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import stats
from torch import nn
import pets_nb
from pets_nb import epochs as ep, transfer_learning as tl
from pets_nb.baseline import BFloat16, History, SeedEachFit
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

quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
rates = st.floats(0, 1)

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
    learn = Learner(dls, model, CrossEntropyLossFlat(), metrics=error_rate, cbs=[SeedEachFit(seed), History(), *cbs], splitter=lambda m: L(m.children()).map(params), **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda row: None
    return learn

def same(a, b):
    a,b = a.model.state_dict(),b.model.state_dict()
    return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def records(learn): return learn.history.table.drop(columns='seconds').values.tolist()

fits = dict(
    one_cycle=lambda learn: learn.fit_one_cycle(3, 1e-2), constant=lambda learn: learn.fit(3, 1e-2), flat_cos=lambda learn: learn.fit_flat_cos(3, 1e-2),
    fine_tune=lambda learn: learn.fine_tune(2), ours=lambda learn: tl.fine_tune(learn, 2), three=lambda learn: [learn.fit(1, 1e-2), learn.fit_one_cycle(1, 1e-2), learn.fit(1, 1e-3)])

def interrupted(make, fit, folder, cuts, **kwargs):
    "Train with an interruption after each of `cuts` steps, then to the end"
    for cut in [*cuts, None]:
        learn = make()
        with ep.resumable(learn, folder, verbose=False, **kwargs), power_cut(learn, cut):
            try: fit(learn)
            except Stop: continue
        return learn

@pytest.mark.parametrize('name', fits)
@settings(quick, max_examples=6)
@given(cuts=st.lists(st.integers(1, 12), max_size=3))
def test_any_interruptions_change_nothing(tmp_path_factory, name, cuts):
    resumed = interrupted(toy_learner, fits[name], tmp_path_factory.mktemp('run'), cuts)
    after = ep.random_state(resumed.dls)
    whole = toy_learner()
    fits[name](whole)
    assert same(resumed, whole) and records(resumed)==records(whole)
    uninterrupted = ep.random_state(whole.dls)
    assert torch.equal(after.pop('torch'), uninterrupted.pop('torch')) and after==uninterrupted

def test_the_comparison_can_fail():
    a,b = toy_learner(seed=1),toy_learner(seed=2)
    a.fit(1, 1e-2); b.fit(1, 1e-2)
    assert not same(a, b)

@pytest.mark.parametrize('make', [
    pytest.param(lambda: toy_learner(num_workers=2), id='workers'), pytest.param(lambda: toy_learner(cbs=[BFloat16()]), id='bfloat16'),
    pytest.param(lambda: toy_learner(opt_func=SGD), id='sgd'), pytest.param(lambda: toy_learner(cbs=[EarlyStoppingCallback(patience=2)]), id='early stopping')])
def test_interruptions_of_other_learners(tmp_path, make, capsys):
    resumed,whole = interrupted(make, fits['one_cycle'], tmp_path, [3, 6]),make()
    fits['one_cycle'](whole)
    assert same(resumed, whole) and records(resumed)==records(whole)

def test_without_a_seeded_learner(tmp_path):
    "The first checkpoint is from before the first epoch, so that a random head survives an early interruption"
    def unseeded():
        learn = toy_learner(seed=random.SystemRandom().randrange(10**6))
        learn.remove_cb(SeedEachFit)
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
    for cut in (5, 9, 13):
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
    assert '_do_fit' not in vars(learn) and not any(isinstance(o, ep.Checkpoints) for o in learn.cbs)

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
    seed=(dict(seed=2), fits['one_cycle'], 'callback seed_each_fit, seed: 1 in the checkpoint, 2 now'),
    pictures=(dict(n=26), fits['one_cycle'], 'training, pictures: 16 in the checkpoint, 20 now'),
    batch=(dict(bs=8), fits['one_cycle'], 'training, batch size: 4 in the checkpoint, 8 now'),
    network=(dict(hidden=7), fits['one_cycle'], 'weights, 0.0.weight'),
    optimizer=(dict(opt_func=SGD), fits['one_cycle'], 'optimizer'),
    callback=(dict(cbs=[EarlyStoppingCallback(patience=2)]), fits['one_cycle'], 'callback early_stopping'),
    precision=(dict(cbs=[BFloat16()]), fits['one_cycle'], 'callback b_float16'),
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
    (tmp_path/'.000001.checkpoint.4711.part').write_bytes(b'half')
    (tmp_path/'mine.txt').write_text('not a checkpoint')
    interrupted(toy_learner, fits['one_cycle'], tmp_path, [5, 2])
    assert sorted(o.name for o in tmp_path.iterdir())==['000002.checkpoint','000003.checkpoint','mine.txt']

# --- damaged files

state = {'a': torch.arange(5.), 'b': [1, 'two', None, True, {'c': 3.5}]}

@quick
@given(at=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(tmp_path_factory, at, bit):
    path = ep.write_checkpoint(tmp_path_factory.mktemp('bit')/'x', state)
    data = bytearray(path.read_bytes())
    data[int(at*len(data))] ^= 1<<bit
    path.write_bytes(data)
    with pytest.raises(ValueError, match='not a checkpoint|damaged'): ep.read_checkpoint(path)

@quick
@given(share=st.floats(0, 0.999999))
def test_a_cut_file_is_noticed(tmp_path_factory, share):
    path = ep.write_checkpoint(tmp_path_factory.mktemp('cut')/'x', state)
    path.write_bytes(path.read_bytes()[:int(share*path.stat().st_size)])
    with pytest.raises(ValueError, match='not a checkpoint|damaged'): ep.read_checkpoint(path)

class Evil:
    def __reduce__(self): return os.system, ('touch pwned',)

def test_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ep.write_checkpoint(tmp_path/'000000.checkpoint', {'x': Evil()})
    with pytest.raises(Exception, match='[Ww]eights'): ep.read_checkpoint(path)
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

# --- kill -9

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch, pets_nb
from pets_nb.drawn import draw_pets, breed_traits
from pets_nb import epochs as ep, transfer_learning as tl
from pets_nb.baseline import pets_learner
work,n_kills = Path(sys.argv[1]),int(sys.argv[2])
path = draw_pets(work/'pets', n_per_breed=6, breeds=list(breed_traits.index[:4]), n_workers=1, progress=False)/'images'
pictures = tl.load_pictures(path, side=48)

def train(folder, end, before=None):
    "In a child of this process, which has done no computing yet: train, write down the final weights"
    pid = os.fork()
    if pid: return pid
    try:
        if before: before()
        dls = tl.memory_dls(pictures, size=32, bs=8, seed=1)
        learn = tl._quiet(pets_learner(dls, seed=1, precision='auto', verbose=False))
        if folder is None: learn.fine_tune(5)
        else:
            with ep.resumable(learn, folder): learn.fine_tune(5)
        torch.save(dict(weights=learn.model.state_dict(), errors=learn.history.table.drop(columns='seconds').values.tolist()), end)
        os._exit(0)
    except BaseException:
        import traceback; traceback.print_exc()
    os._exit(1)

def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

start = time.perf_counter()
assert ended(train(None, work/'whole.pt'))==0
seconds = time.perf_counter()-start
print('uninterrupted', round(seconds, 2))

def left(folder): return sorted(o.name for o in (work/folder).glob('*')) if (work/folder).exists() else 'nothing yet'

seed = int.from_bytes(os.urandom(4), 'big')
rng = random.Random(seed)
print('seed of the moments', seed)
for i in range(n_kills):
    pid = train(work/'run', work/'run.pt')
    moment = rng.uniform(0.02, 0.35)*seconds
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    print('killed after', round(moment, 2), 'exit', ended(pid), left('run'))

def dies(function, nth):
    "Kill this process at the n-th call"
    calls = []
    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls)==nth: os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

def at_sync(): ep.os.fsync = dies(os.fsync, 3)
def at_replace(): ep.os.replace = dies(os.replace, 2)
def at_unlink(): Path.unlink = dies(Path.unlink, 4)
for where in (at_sync, at_replace, at_unlink): print(where.__name__, 'exit', ended(train(work/'other', work/'other.pt', where)), left('other'))

whole = torch.load(work/'whole.pt', weights_only=True)
for name in ('run','other'):
    assert ended(train(work/name, work/f'{name}.pt'))==0
    end = torch.load(work/f'{name}.pt', weights_only=True)
    assert end['weights'].keys()==whole['weights'].keys() and all(torch.equal(end['weights'][k], whole['weights'][k]) for k in whole['weights']), 'other weights'
    assert end['errors']==whole['errors'], 'other records'
    assert left(name)==['000005.checkpoint', '000006.checkpoint'], left(name)
print('the same to the last bit')
"""

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork and kill')
def test_killed_at_random_moments(tmp_path):
    script = tmp_path/'killed.py'
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, script, tmp_path, '5'], capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'})
    said = done.stdout+done.stderr
    assert done.returncode==0 and 'the same to the last bit' in done.stdout, said
    assert done.stdout.count('killed after')==5 and done.stdout.count('exit -9')>=6, said # 5 at random moments, of which one or two may come too late, and 3 while writing

# --- curves

@quick
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), c=st.integers(2, 9), scale=st.floats(0, 30))
def test_parts_of_the_loss(seed, n, c, scale):
    g = torch.Generator().manual_seed(seed)
    logits,targets = scale*torch.randn(n, c, generator=g),torch.randint(c, (n,), generator=g)
    res = ep.decompose_loss(logits, targets)
    right = [i for i in range(n) if logits[i].argmax()==targets[i]]
    nll = [-logits[i].double().log_softmax(0)[targets[i]].item() for i in range(n)]
    assert res['error']==pytest.approx(1-len(right)/n, abs=1e-6)
    assert res['loss']==pytest.approx(np.mean(nll), rel=1e-4, abs=1e-5)
    assert res['loss_right']==pytest.approx(sum(nll[i] for i in right)/n, rel=1e-4, abs=1e-5)
    assert res['loss_right']+res['loss_wrong']==pytest.approx(res['loss'], rel=1e-4, abs=1e-5)
    assert np.isnan(res['confidence_right'])==(not right)
    if right: assert res['confidence_right']==pytest.approx(np.mean([logits[i].softmax(0).max().item() for i in right]), rel=1e-4)

def test_looking_leaves_no_trace_even_after_an_error():
    learn = toy_learner()
    learn.model.train(); learn.model[0][1].eval()
    before,modes = ep.random_state(learn.dls),[m.training for m in learn.model.modules()]
    with pytest.raises(Stop), ep.no_trace(learn):
        learn.model.eval(); list(learn.dls.train); random.random(); np.random.rand(); torch.rand(2)
        raise Stop
    after = ep.random_state(learn.dls)
    assert torch.equal(before.pop('torch'), after.pop('torch')) and before==after
    assert [m.training for m in learn.model.modules()]==modes and torch.is_grad_enabled()

def test_curves_with_and_without(tmp_path):
    a,b = toy_learner(),toy_learner()
    a.add_cb(ep.Curves(train=a.dls.train, valid=a.dls.valid))
    a.fit_one_cycle(3, 1e-2); b.fit_one_cycle(3, 1e-2)
    assert same(a, b)
    assert a.curves.table.query("set=='valid'").error.tolist()==pytest.approx(b.history.table.error_rate.tolist())
    n = len(a.curves.rows)
    a.validate(); a.get_preds()
    assert len(a.curves.rows)==n
    with ep.resumable(a, tmp_path, verbose=False): a.fit(1, 1e-3)
    assert a.curves.table.epoch.max()==4

def test_sets_that_are_empty():
    pictures = tl.PictureArray(torch.zeros(4,3,8,8, dtype=torch.uint8), list('abab'))
    with pytest.raises(ValueError, match='sets of 3, 0, 1'): ep.three_way_dls(pictures, [0,1,2], [3], size=8)
    with pytest.raises(ValueError, match='sets of 2, 1, 0'): ep.three_way_dls(pictures, [0,1,2], [], valid_pct=0.4, size=8)

class Planned(Callback):
    "Puts planned numbers where the recorder keeps the validation loss"
    order = 51
    def __init__(self, losses): self.losses = losses
    def after_epoch(self): self.recorder.values[-1][1] = self.losses[self.epoch]

@quick
@given(losses=st.lists(st.sampled_from([0.1,0.2,0.3,0.4,0.5]), min_size=1, max_size=8), patience=st.integers(1, 4))
def test_stop_epoch_is_fastais(losses, patience):
    learn = toy_learner(n=12, cbs=[Planned(losses), EarlyStoppingCallback(patience=patience)])
    learn.fit(len(losses), 0.)
    assert ep.stop_epoch(losses, patience)==len(learn.history.rows)

# --- comparisons

def tables(min_recipes=2):
    return st.integers(min_recipes, 5).flatmap(lambda r: st.integers(2, 8).flatmap(lambda k: st.lists(
        st.lists(st.integers(0, 1000).map(lambda o: o/1000), min_size=r, max_size=r), min_size=k, max_size=k)))

@quick
@given(tables())
def test_compare_is_scipys(rows):
    table = pd.DataFrame(rows, columns=[f'r{i}' for i in range(len(rows[0]))])
    res = ep.compare(table, n=100)
    for name in table.columns[1:]:
        d = table[name]-table['r0']
        row = res.table.loc[name]
        assert row.difference==pytest.approx(100*d.mean(), abs=1e-9)
        if d.max()-d.min()<1e-12:
            assert np.isnan(row.p) and row.verdict==('cannot tell' if abs(d.iloc[0])>1e-12 else 'inside the noise')
            continue
        theirs = stats.ttest_rel(table[name], table['r0'])
        assert row.p==pytest.approx(theirs.pvalue, abs=1e-9) and ep.paired_t(table[name], table['r0'])==pytest.approx(theirs.statistic)
        interval = theirs.confidence_interval()
        assert [row.low,row.high]==pytest.approx([100*interval.low, 100*interval.high], abs=1e-6)
        assert row.p<=row['p adjusted']+1e-12 and (row.verdict=='more than noise')==(row['p adjusted']<0.05)
    assert res.table['binomial s.e.'].tolist()==pytest.approx([100*(p*(1-p)/100)**0.5 for p in table.mean()])

@quick
@given(tables(), st.randoms())
def test_the_order_of_seeds_does_not_matter(rows, rng):
    columns = [f'r{i}' for i in range(len(rows[0]))]
    runs = {c: {s: row[i] for s,row in enumerate(rows)} for i,c in enumerate(columns)}
    mixed = {c: dict(rng.sample(list(o.items()), len(o))) for c,o in runs.items()}
    long = pd.DataFrame([dict(recipe=c, seed=s, error=e) for c,o in runs.items() for s,e in o.items()])
    expected = ep.compare(runs).table.drop(columns='verdict')
    for other in (mixed, pd.DataFrame(runs), long): pd.testing.assert_frame_equal(ep.compare(other).table.drop(columns='verdict'), expected)

@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(ps):
    "By its definition: a hypothesis is rejected at alpha exactly if the step-down procedure rejects it"
    adjusted = ep.holm(ps)
    for alpha in (0.01, 0.05, 0.2, 0.5):
        rejected,m = set(),len(ps)
        for i,j in enumerate(sorted(range(m), key=lambda j: ps[j])):
            if ps[j]*(m-i)>=alpha: break
            rejected.add(j)
        assert {j for j in range(m) if adjusted[j]<alpha}==rejected

def test_comparison_faults():
    good = {1: 0.1, 2: 0.2, 3: 0.15}
    for runs,words in (({'a': good}, r'1 recipe \(a\)'), ({'a': {1: 0.1}, 'b': {1: 0.2}}, r'one seed \(1\)'), ({'a': good, 'b': {1: 0.1, 2: 0.1}}, 'b, seed 3'),
                       ({'a': [0.1,0.2], 'b': [0.1,0.2,0.3]}, 'a, seed 2'), ({'a': good, 'b': {**good, 2: float('nan')}}, 'b, seed 2: nan'),
                       ({'a': good, 'b': {**good, 2: 1.5}}, 'divide percent by 100'), ({'a': good, 'b': {**good, 2: -0.1}}, 'b, seed 2: -0.1'),
                       (pd.DataFrame({'a': [0.1,0.2], 'b': [0.1,0.3]}, index=[1,1]), 'twice')):
        with pytest.raises(ValueError, match=words): ep.compare(runs)
    with pytest.raises(ValueError, match='alpha is 5'): ep.compare({'a': good, 'b': good}, alpha=5)
    with pytest.raises(ValueError, match='n is 0'): ep.compare({'a': good, 'b': good}, n=0)

def test_all_offenders_are_counted():
    many = {i: 2. for i in range(30)}
    with pytest.raises(ValueError, match='but 60 are not') as e: ep.compare({'a': many, 'b': many})
    assert str(e.value).count('seed')==10

def test_comparison_is_shown():
    res = ep.compare({'a': [0.1,0.2,0.3], 'b<': [0.2,0.3,0.35]}, n=50)
    assert 'b&lt;' in res._repr_html_() and '3 seeds on 50 pictures' in repr(res) and 'nan' not in repr(res).lower()
    import matplotlib; matplotlib.use('agg')
    assert [o.get_text() for o in res.plot().get_yticklabels()]==['b<']
