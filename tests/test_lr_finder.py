"The finder leaves no trace, agrees with fastai's, and refuses curves that say nothing"
import builtins, math, pickle, random, subprocess, sys, warnings
from types import SimpleNamespace
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, DataLoaders, Learner, OptimWrapper, SGD, accuracy, noop, set_seed, tensor
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import minimum, slide, steep, valley
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import AvgSmoothLoss
from hypothesis import given, settings, strategies as st
from torch import nn
import pets_nb.lr_finder as ours
from pets_nb.engine.learner import History, Mixed
from pets_nb.lr_finder import RateCurve, RateSweep, map_rates, sweep_rates

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.head = nn.Sequential(nn.Linear(6,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.3)),nn.Linear(8,3)
    def forward(self, x): return self.head(self.body(x))

def groups(m): return [list(m.body[0].parameters()), list(m.body[1].parameters()), list(m.head.parameters())]

def data(n=40, bs=8):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(x, (x[:,0]>0).long()+(x[:,1]>0).long()))
    return DataLoaders.from_dsets(pairs, pairs[:9], bs=bs, num_workers=0, device=torch.device('cpu'))

def make(seed=0, cbs=(), n=40, bs=8, opt_func=Adam, fit=1, **kwargs):
    set_seed(seed)
    learn = Learner(data(n, bs), Net(), CrossEntropyLossFlat(), opt_func=opt_func, splitter=groups, cbs=[History(), *cbs], metrics=accuracy, **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    if fit:
        learn.freeze(); learn.fit(fit, slice(1e-3, 1e-2)); learn.freeze_to(-2)
    return learn

def bits(o):
    if isinstance(o, torch.Tensor): return o.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if o.numel() else b''
    if isinstance(o, dict): return {k: bits(v) for k,v in o.items()}
    if isinstance(o, (list, tuple)): return [bits(v) for v in o]
    return o

def fingerprint(learn):
    "What training depends on; `restored` itself is tested with the engine"
    opt = learn.opt
    return dict(model=bits(learn.model.state_dict()), grads=[bits(p.grad) for p in learn.model.parameters()], needs=[p.requires_grad for p in learn.model.parameters()],
        ids=[id(p) for p in learn.model.parameters()], opt=id(opt), hypers=str(getattr(opt, 'hypers', None)), state=bits(opt.state_dict()) if opt else None,
        random=[random.getstate(), np.random.get_state()[1].tolist(), bits(torch.get_rng_state())], loaders=[o.rng.getstate() for o in learn.dls.loaders],
        history=str(learn.history.rows), recorder=str(vars(learn.recorder).get('values')), cbs=[id(o) for o in learn.cbs],
        autocast=[torch.is_autocast_enabled(d) for d in ('cpu','cuda')])

class At(Callback):
    "Do something at a batch of a sweep"
    run_valid,order = False,70
    def __init__(self, event, step, f): self.at,self.step,self.f = event,step,f
    def __call__(self, name):
        if name==self.at and self.learn.training and hasattr(self.learn, 'lr_finder') and self.learn.train_iter-(name=='after_batch')==self.step: self.f(self.learn)

def stop(learn): raise KeyboardInterrupt
def fail(learn): raise RuntimeError('a broken batch')
def poison(learn): learn.loss_grad *= math.nan; learn.loss *= math.nan


# the library's own rules
def test_names_hide_nothing():
    import fastai.vision.all as fastai
    assert len(ours.__all__)<=6 and not set(ours.__all__) & {'lr_find','minimum','steep','valley','slide'}
    for name in ours.__all__: assert not any(hasattr(o, name) for o in (torch, nn, fastai, builtins)), name

def test_every_public_function_with_its_defaults():
    learn = make(fit=0)
    curve = sweep_rates(learn)
    assert isinstance(curve, RateCurve) and repr(curve) and curve.plot()
    learn.fit(1, cbs=RateSweep())
    table = map_rates(lambda seed: make(seed, fit=0), [1e-3])
    assert len(table)==3
    plt.close('all')

def test_in_a_plain_script(tmp_path):
    "With defaults, with fastai's progress bar in place, outside a notebook"
    script = '''
import torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner
from pets_nb.lr_finder import sweep_rates
pairs = [(torch.randn(4), torch.tensor(i%2)) for i in range(40)]
learn = Learner(DataLoaders.from_dsets(pairs, pairs, bs=8, device='cpu'), torch.nn.Linear(4,2), CrossEntropyLossFlat())
print(sweep_rates(learn))
'''
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode==0, run.stderr
    assert 'batches (' in run.stdout and len(run.stdout.splitlines())==2 and not list(tmp_path.iterdir())


# nothing is left behind
def torch_adamw(params, **kwargs): return OptimWrapper(params, torch.optim.AdamW, **kwargs)

@pytest.mark.parametrize('opt_func', [Adam, SGD, torch_adamw], ids=lambda f: f.__name__)
def test_restored(opt_func):
    learn = make(opt_func=opt_func)
    before = fingerprint(learn)
    assert len(sweep_rates(learn).history)>20
    assert fingerprint(learn)==before

@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'before_backward', 'after_backward', 'after_step', 'after_batch'])
@pytest.mark.parametrize('f,error', [(stop, KeyboardInterrupt), (fail, RuntimeError)])
def test_restored_after_interruption(event, f, error):
    learn = make(cbs=[At(event, 7, f)])
    before = fingerprint(learn)
    with pytest.raises(error): sweep_rates(learn)
    assert fingerprint(learn)==before and not hasattr(learn, 'lr_finder')

def test_stops_at_nan():
    learn = make(cbs=[At('before_backward', 30, poison)])
    before = fingerprint(learn)
    curve = sweep_rates(learn)
    assert 'nan' in curve.stopped and len(curve.history)==31 and curve.history.loss[:30].notna().all()
    assert fingerprint(learn)==before

def test_new_learner_has_no_optimizer_afterwards():
    learn = make(fit=0)
    sweep_rates(learn)
    assert learn.opt is None

@pytest.mark.parametrize('frozen', [True, False])
def test_training_goes_on_as_if_nothing_had_happened(frozen):
    weights = []
    for look in (False, True):
        learn = make()
        if look: sweep_rates(learn)
        learn.freeze() if frozen else learn.unfreeze()
        learn.fit_one_cycle(2, slice(1e-4, 1e-2))
        weights.append(bits(learn.model.state_dict()))
    assert weights[0]==weights[1]

def test_nothing_is_written_or_logged(tmp_path):
    learn = make(path=tmp_path)
    learn.logger = lambda *a: pytest.fail('logged')
    sweep_rates(learn)
    assert not list(tmp_path.iterdir()) and len(learn.history.rows)==1

@pytest.mark.parametrize('event', [None, 'after_pred', 'after_step'])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_half_precision(precision, event):
    learn = make(cbs=[Mixed(precision, emulate=True), At(event, 4, stop)])
    before = fingerprint(learn)
    if event:
        with pytest.raises(KeyboardInterrupt): sweep_rates(learn)
    else: assert sweep_rates(learn).history.loss.dtype==float
    assert fingerprint(learn)==before
    learn.fit(1)

def test_half_precision_sees_another_loss():
    full,half = (sweep_rates(make(cbs=cbs)) for cbs in ([], [Mixed('bfloat16', emulate=True)]))
    assert full.history.loss[:20].tolist()!=half.history.loss[:20].tolist()
    np.testing.assert_allclose(full.history.loss[:3], half.history.loss[:3], rtol=.2)

@pytest.mark.parametrize('cb', [lambda: GradientClip(.1), lambda: GradientAccumulation(16)])
def test_with_other_callbacks(cb):
    learn = make(cbs=[cb()])
    before = fingerprint(learn)
    sweep_rates(learn)
    assert fingerprint(learn)==before


# the sweep
@pytest.mark.parametrize('n,bs,frozen', [(40,8,True), (40,8,False), (17,8,False), (8,8,True)])
def test_same_history_as_fastai(n, bs, frozen):
    learn = make(n=n, bs=bs)
    learn.freeze() if frozen else learn.unfreeze()
    curve = sweep_rates(learn, seed=None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.lr_find(show_plot=False, suggest_funcs=None)
    assert curve.history.lr.tolist()==learn.recorder.lrs
    assert curve.history.smooth_loss.tolist()==[o.item() for o in learn.recorder.losses]

def test_a_seed_repeats_the_curve_and_is_not_that_of_a_training():
    class Order(Callback):
        run_valid = False
        def before_fit(self): self.seen = []
        def before_batch(self): self.seen.append(self.xb[0].clone())
        def after_batch(self): kept.append(self.seen[-1])
    kept,learn = [],make(cbs=[Order()], fit=0)
    set_seed(3); learn.dls.train.rng = random.Random(3)
    learn.fit(1)
    trained = torch.stack(kept[:5]); kept.clear()
    a = sweep_rates(learn, num_it=5, seed=3)
    assert not torch.equal(trained, torch.stack(kept[:5]))
    b,c = sweep_rates(learn, num_it=5, seed=3),sweep_rates(learn, num_it=5, seed=4)
    assert a.history.equals(b.history) and not a.history.equals(c.history)

def test_each_group_its_rate():
    seen,learn = [],make()
    learn.add_cb(At('after_step', 5, lambda o: seen.append([h['lr'] for h in o.opt.hypers])))
    sweep_rates(learn); sweep_rates(learn, start_lr=[1e-9,1e-8,1e-7], end_lr=[.1,1,10])
    assert len(set(seen[0]))==1
    np.testing.assert_allclose(np.divide(seen[1], seen[1][0]), [1,10,100])
    with pytest.raises(AssertionError, match='parameter groups'): sweep_rates(learn, start_lr=[1e-9,1e-8])

@pytest.mark.parametrize('rate', [0, -1e-3, math.nan, math.inf, [1e-3,0], [[1e-3]]])
@pytest.mark.parametrize('name', ['start_lr', 'end_lr'])
def test_bad_rates(name, rate):
    with pytest.raises(ValueError, match=name): sweep_rates(make(fit=0), **{name: rate})

def test_bad_arguments():
    with pytest.raises(ValueError, match='num_it=0'): sweep_rates(make(fit=0), num_it=0)
    with pytest.raises(ValueError, match='no batch of 64'): sweep_rates(make(n=9, bs=64, fit=0))
    with pytest.raises(ValueError, match='no smooth_loss'): RateCurve(pd.DataFrame({'lr': [1.], 'loss': [1.]}))
    with pytest.raises(ValueError, match='no rows'): RateCurve(pd.DataFrame(columns=['lr','loss','smooth_loss']))

@pytest.mark.parametrize('n', [1, 5, 6, 99, 100])
def test_number_of_batches(n):
    curve = sweep_rates(make(), num_it=n, stop_div=False)
    assert len(curve.history)==n and curve.stopped==f'all {n} batches used'


# the rules
fastais = dict(minimum=minimum, steep=steep, valley=valley, slide=slide)

@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=16, max_size=120))
def test_rules_equal_fastais(values):
    y,x = torch.tensor(values),torch.logspace(-7, 1, len(values))
    for name,f in ours._rules.items(): assert f(x, y)==fastais[name](x, y, len(y))[0]

def history_of(values, num_it=None):
    "What a sweep notes that sees these losses"
    sweep = RateSweep(num_it=num_it or len(values))
    sweep.learn = SimpleNamespace(opt=SimpleNamespace(set_hyper=lambda *a: None))
    for o in values:
        sweep.learn.loss = torch.tensor(float(o))
        sweep.before_batch()
        try: sweep.after_batch()
        except Exception: break
    return pd.DataFrame(sweep.rows, columns=['lr','loss','smooth_loss'])

fall = np.r_[np.full(30, 3.6), np.linspace(3.6, 2, 40), np.linspace(2, 12, 30)]

@pytest.mark.parametrize('values,num_it', [(fall, 100), (fall[:88], 100), (np.r_[fall[:85], np.full(15, np.nan)], 100),
    (np.r_[fall[:97], np.full(3, np.nan)], 100), (np.r_[fall, fall[::-1]], 200)])
def test_curve_equals_fastais_on_the_same_history(values, num_it):
    "fastai's own lines from `Learner.lr_find`, on the whole history, NaN and all"
    smoothed,lrs,smooth = AvgSmoothLoss(),[],[]
    for i,o in enumerate(values):
        smoothed.accumulate(SimpleNamespace(loss=torch.tensor(o, dtype=torch.float32)))
        lrs.append(1e-7*(10/1e-7)**(i/num_it)); smooth.append(smoothed.value)
        if smooth[-1]>4*min([s for s in smooth if not s.isnan()]): break
    x,y = tensor(lrs[num_it//10:-5]),tensor(smooth[num_it//10:-5])
    bad = torch.nonzero(torch.isnan(y.view(-1)))
    if len(bad): x,y = x[:min(bad)],y[:min(bad)]
    curve = RateCurve(history_of(values, num_it), num_it)
    assert curve.suggestions.to_dict()=={k: f(x, y, num_it)[0] for k,f in fastais.items()}

silent = {'1': [3.], '5': [3,2.9,2.8,2.9,3], '20': fall[::5], 'all nan': [math.nan]*100, 'early nan': [*fall[:20], math.nan], 'inf': [math.inf]*9,
    'constant': [3.]*100, 'zero': [0.]*100, 'falls': np.linspace(4,2,100), 'rises': np.linspace(2,4,100)}

@pytest.mark.parametrize('name', silent)
def test_no_number(name):
    curve = RateCurve(history_of(silent[name], max(100, len(silent[name])) if 'nan' in name else None), 100 if 'nan' in name else None)
    assert curve.problem and 'No suggestion' in repr(curve)
    with pytest.raises(ValueError, match='no suggestion, because'): curve.suggestions
    curve.plot()
    plt.close('all')

@pytest.mark.parametrize('kind', ['normal', 'skewed', 'correlated'])
def test_chance_gives_a_number_in_less_than_three_of_a_hundred(kind):
    rng = np.random.default_rng(0)
    def losses():
        if kind=='skewed': return rng.lognormal(0, .5, 100)
        x = 3+rng.normal(0, .5, 100)
        if kind=='correlated':
            for k in range(1, 100): x[k] += .3*(x[k-1]-3)
        return x
    assert sum(RateCurve(history_of(losses())).problem is None for _ in range(300))<9

def test_a_real_fall_gives_a_number():
    rng = np.random.default_rng(0)
    assert all(RateCurve(history_of(fall+rng.normal(0, .2, 100))).problem is None for _ in range(50))

@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.floats(width=32), st.just(math.nan)), min_size=1, max_size=110))
def test_any_history_gives_a_number_or_a_message(values):
    curve = RateCurve(history_of(values), 100)
    assert repr(curve)
    if curve.problem is None: assert (curve.suggestions>0).all() and len(curve.lrs)>=25

def test_curve_can_be_stored():
    curve = RateCurve(history_of(fall), 100)
    assert pickle.loads(pickle.dumps(curve)).suggestions.equals(curve.suggestions)

def test_rise():
    curve = RateCurve(history_of(fall), 100)
    x,y = curve.lrs,curve.losses
    assert y[x<=curve.rise][-1]<=1.1*y.min() and (y[x>curve.rise]>1.1*y.min()).all()
    assert RateCurve(history_of(np.linspace(4,2,100))).rise is None and RateCurve(history_of([3.])).rise is None
    rises = RateCurve(history_of(np.r_[np.full(50, 1.), np.linspace(1, 4, 50)]))
    assert rises.problem and rises.rise and 'the loss rises from' in repr(rises)

def test_map_leaves_learners_as_they_are():
    learn = make()
    before = fingerprint(learn)
    table = map_rates(lambda seed: learn, [1e-6, 1e-2], seeds=[0,1], fit=lambda o, lr: o.fit(1, lr))
    assert fingerprint(learn)==before
    assert len(table)==4 and table.error.between(0, 1).all() and set(table.columns)=={'lr','seed','loss','error'}
    assert table[table.seed==0].error.tolist()==table[table.seed==1].error.tolist() # same learner, same random state
