"The finder leaves no trace, agrees with fastai, and refuses curves that say nothing"
import copy, math, pickle, random, warnings
from types import SimpleNamespace
import pets_nb
from pets_nb.baseline import BFloat16, History, SeedEachFit
from pets_nb.lr_finder import *
from pets_nb.lr_finder import min_points
import numpy as np, pandas as pd, pytest, torch
import matplotlib.pyplot as plt
from torch import nn, Tensor
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, DataLoaders, L, Learner, Metric, OptimWrapper, RMSProp, SGD, accuracy, noop, ranger, set_seed, tensor
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import AvgSmoothLoss
from fastai.callback.schedule import minimum, slide, steep, valley
from hypothesis import given, settings, strategies as st

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.head = nn.Sequential(nn.Linear(6,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.3)),nn.Linear(8,3)
        self.register_buffer('calls', torch.zeros(1), persistent=False)
        self.n_calls = 0
    def forward(self, x):
        self.calls += 1
        self.n_calls += 1
        return self.head(self.body(x))

def groups(m): return [list(m.body[0].parameters()), list(m.body[1].parameters()), list(m.head.parameters())]

def data(n=40, bs=8):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=g)
    pairs = list(zip(x, (x[:,0]>0).long()+(x[:,1]>0).long()))
    return DataLoaders.from_dsets(pairs, pairs[:9], bs=bs, num_workers=0, device=torch.device('cpu'))

def make(seed=0, cbs=(), n=40, bs=8, opt_func=Adam, fit=1, **kwargs):
    set_seed(seed)
    learn = Learner(data(n, bs), Net(), CrossEntropyLossFlat(), opt_func=opt_func, splitter=groups, cbs=[History(), *cbs], metrics=accuracy, **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    if fit:
        learn.freeze(); learn.fit(fit, slice(1e-3, 1e-2)); learn.freeze_to(-2)
        learn.model.body[3].eval()
    return learn

def find(learn, **kwargs): return lr_find(learn, progress=False, **kwargs)

def raw(o):
    "Any state as something that can be compared exactly"
    if isinstance(o, torch.nn.Parameter): return ('parameter', o.requires_grad, raw(o.grad), raw(o.data))
    if isinstance(o, Tensor): return (str(o.dtype), tuple(o.shape), o.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if o.numel() else b'')
    if isinstance(o, np.ndarray): return o.tobytes()
    if isinstance(o, dict): return [(raw(k) if not isinstance(k, Tensor) else id(k), raw(v)) for k,v in o.items()]
    if isinstance(o, (list, tuple, L)): return [raw(v) for v in o]
    if isinstance(o, random.Random): return (id(o), o.getstate())
    if isinstance(o, (Metric, torch.amp.GradScaler)): return [(k, raw(v)) for k,v in vars(o).items()]
    return o if isinstance(o, (int, float, str, bytes, bool, type(None))) else id(o)

def opts_of(learn):
    opt = learn.opt
    while opt is not None:
        yield opt
        opt = vars(opt).get('opt')

def fingerprint(learn):
    "Everything that training depends on"
    m = learn.model
    return dict(
        tensors=[(n, raw(p)) for n,p in [*m.named_parameters(), *m.named_buffers()]], identities=[id(p) for p in m.parameters()],
        modes=[o.training for o in m.modules()], plain=m.n_calls, hooks=[len(o._forward_hooks) for o in m.modules()],
        opts=[(id(o), raw({k:v for k,v in vars(o).items() if k in ('state','hypers','frozen_idx','param_groups','count','slow_weights')})) for o in opts_of(learn)],
        rng=[random.getstate(), raw(np.random.get_state()), raw(torch.get_rng_state())], loaders=[raw(dl.rng) for dl in learn.dls.loaders],
        learner=[(k, raw(v)) for k,v in vars(learn).items() if k not in ('opt','model','cbs','dls')], cbs=[(id(c), raw({k:v for k,v in vars(c).items()})) for c in learn.cbs],
        autocast=[torch.is_autocast_enabled(d) for d in ('cpu','cuda')])

def assert_same(a, b):
    for k in a: assert a[k]==b[k], f"{k} changed"

class At(Callback):
    "Do something at a batch"
    run_valid,order = False,70
    def __init__(self, event, step, f): self.at,self.step,self.f = event,step,f
    def __call__(self, name):
        if name==self.at and self.learn.training and self.learn.train_iter-(name=='after_batch')==self.step and hasattr(self.learn, 'lr_finder'): self.f(self.learn)

def stop(learn): raise KeyboardInterrupt
def fail(learn): raise RuntimeError('a broken batch')
def poison(learn): learn.loss_grad *= math.nan; learn.loss *= math.nan

def test_fingerprint_sees_changes():
    learn = make()
    a = fingerprint(learn)
    assert_same(a, fingerprint(learn))
    torch.rand(1)
    with pytest.raises(AssertionError, match='rng'): assert_same(a, fingerprint(learn))
    b = fingerprint(learn)
    with torch.no_grad(): learn.model.head.bias[0] = -learn.model.head.bias[0]
    with pytest.raises(AssertionError, match='tensors'): assert_same(b, fingerprint(learn))

def torch_sgd(params, **kwargs): return OptimWrapper(params, torch.optim.SGD, momentum=.9, **kwargs)
def torch_adamw(params, **kwargs): return OptimWrapper(params, torch.optim.AdamW, **kwargs)

@pytest.mark.parametrize('opt_func', [Adam, SGD, RMSProp, ranger, torch_sgd, torch_adamw], ids=lambda f: f.__name__)
def test_restored(opt_func):
    learn = make(opt_func=opt_func)
    before = fingerprint(learn)
    assert len(find(learn).history)>20
    assert_same(before, fingerprint(learn))

events = ['before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward', 'before_step', 'after_step', 'after_batch']
@pytest.mark.parametrize('event', events)
@pytest.mark.parametrize('f,error', [(stop, KeyboardInterrupt), (fail, RuntimeError)])
@pytest.mark.parametrize('step', [0, 7])
def test_restored_after_interruption(event, f, error, step):
    learn = make(cbs=[At(event, step, f)])
    before = fingerprint(learn)
    with pytest.raises(error): find(learn)
    assert_same(before, fingerprint(learn))
    assert not hasattr(learn, 'lr_finder')

def test_restored_after_nan():
    learn = make(cbs=[At('before_backward', 30, poison)])
    before = fingerprint(learn)
    result = find(learn)
    assert 'nan' in result.stopped and len(result.history)==31 and result.history.loss[:30].notna().all()
    assert_same(before, fingerprint(learn))

def test_restored_when_data_raise():
    learn = make()
    learn.dls.train.dataset[5] = (torch.full((7,), 1.), torch.tensor(0)) # cannot be collated
    before = fingerprint(learn)
    with pytest.raises(RuntimeError): find(learn)
    assert_same(before, fingerprint(learn))

def test_restored_when_interrupted_while_restoring(monkeypatch):
    import pets_nb.lr_finder as module
    learn,calls = make(),[]
    before,keep = fingerprint(learn),module._keep_random
    def once():
        back = keep()
        def f():
            calls.append(1)
            if len(calls)==1: raise KeyboardInterrupt
            back()
        return f
    monkeypatch.setattr(module, '_keep_random', once)
    with pytest.raises(KeyboardInterrupt): find(learn)
    assert len(calls)==2
    assert_same(before, fingerprint(learn))

def test_new_learner_has_no_optimizer_afterwards():
    learn = make(fit=0)
    before = fingerprint(learn)
    find(learn)
    assert learn.opt is None
    assert_same(before, fingerprint(learn))

def test_other_kinds_of_state():
    learn = make()
    learn.model.spare = nn.Parameter(torch.zeros(3).expand(2,3)) # overlapping memory
    learn.gen,learn.arr = torch.Generator().manual_seed(1),np.arange(3.)
    learn.loop = [learn] # a cycle
    state = learn.gen.get_state()
    with preserved(learn):
        torch.rand(1, generator=learn.gen); learn.arr[0] = 7; learn.loop.append(1); learn.model.head = nn.Linear(1,1); learn.new = 1
        learn.model.body[0].weight.data = torch.zeros(2)
        learn.model.body.register_forward_hook(lambda *a: None)
        learn.model.half()
    assert torch.equal(learn.gen.get_state(), state) and learn.arr[0]==0 and learn.loop==[learn] and not hasattr(learn, 'new')
    assert learn.model.head.out_features==3 and learn.model.body[0].weight.shape==(8,6) and not learn.model.body._forward_hooks
    assert {p.dtype for p in learn.model.parameters()}=={torch.float32}

@pytest.mark.parametrize('frozen', [True, False])
def test_training_goes_on_as_if_nothing_had_happened(frozen):
    weights = []
    for look in (False, True):
        learn = make()
        if look: find(learn)
        learn.freeze() if frozen else learn.unfreeze()
        learn.fit_one_cycle(2, slice(1e-4, 1e-2))
        weights.append(raw(learn.model.state_dict())+raw(learn.opt.state_dict()))
    assert weights[0]==weights[1]

@pytest.mark.parametrize('n,bs,frozen', [(40,8,True), (40,8,False), (17,8,False), (8,8,True)])
def test_same_history_as_fastai(n, bs, frozen):
    learn = make(n=n, bs=bs)
    learn.freeze() if frozen else learn.unfreeze()
    result = find(learn, seed=3)
    set_seed(sweep_seed(3)); learn.dls.train.rng = random.Random(sweep_seed(3))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.lr_find(show_plot=False, suggest_funcs=None)
    assert result.history.lr.tolist()==learn.recorder.lrs
    assert result.history.smooth_loss.tolist()==[o.item() for o in learn.recorder.losses]

def test_plain_loop_is_the_same():
    learn = make(fit=0)
    result = find(learn)
    learn.create_opt(); learn.opt.set_hypers(lr=learn.lr)
    set_seed(sweep_seed(42)); learn.dls.train.rng = random.Random(sweep_seed(42))
    loop = sweep_rates(learn.model, learn.dls.train, learn.loss_func, learn.opt)
    pd.testing.assert_frame_equal(loop.history, result.history)
    assert loop.stopped==result.stopped

def test_plain_loop_with_torch():
    set_seed(0)
    model,x = nn.Linear(4,2),torch.randn(30,4)
    opt = torch.optim.SGD([{'params': [model.weight]}, {'params': [model.bias]}], lr=1.)
    loop = sweep_rates(model, [(x, (x[:,0]>0).long())], nn.functional.cross_entropy, opt, start_lr=[1e-6,1e-5], end_lr=[1,10], num_it=12)
    assert len(loop.rows)==12
    np.testing.assert_allclose([g['lr'] for g in opt.param_groups], [exponential_rate(1e-6, 1, 11/12), exponential_rate(1e-5, 10, 11/12)])
    assert loop.history.lr.iloc[-1]==opt.param_groups[1]['lr']

def test_each_group_its_rate():
    seen,learn = [],make()
    learn.add_cb(At('after_step', 5, lambda o: seen.append([h['lr'] for h in o.opt.hypers])))
    find(learn); find(learn, start_lr=[1e-9,1e-8,1e-7], end_lr=[.1,1,10])
    assert len(set(seen[0]))==1
    np.testing.assert_allclose(np.divide(seen[1], seen[1][0]), [1,10,100])
    with pytest.raises(AssertionError, match='parameter groups'): find(learn, start_lr=[1e-9,1e-8])

@pytest.mark.parametrize('rate', [0, -1e-3, math.nan, math.inf, [1e-3,0], [[1e-3]]])
@pytest.mark.parametrize('name', ['start_lr', 'end_lr'])
def test_bad_rates(name, rate):
    with pytest.raises(ValueError, match=f'{name} is'): RateSweep(**{name: rate})

def test_bad_arguments():
    with pytest.raises(ValueError, match='at least 1 step'): RateSweep(num_it=0)
    with pytest.raises(ValueError, match='no full batch of 64'): find(make(n=9, bs=64, fit=0))
    with pytest.raises(ValueError, match='no batch'): sweep_rates(nn.Linear(1,1), [], None, torch.optim.SGD([torch.zeros(1)]))
    with pytest.raises(ValueError, match='smooth_loss'): LRFinderResult(pd.DataFrame({'lr': [1.], 'loss': [1.]}))

@pytest.mark.parametrize('n', [1, 5, 6, 99, 100])
def test_number_of_steps(n):
    result = find(make(), num_it=n, stop_div=False)
    assert len(result.history)==n and result.stopped==f'all {n} steps were made'

class CPUAutocast(Callback):
    order,run_valid = 10,False
    def before_batch(self): self.context = torch.autocast('cpu', torch.bfloat16); self.context.__enter__()
    def after_loss(self): self.context.__exit__(None, None, None)

class Scaled(Callback):
    "Gradient scaling that outlives a fit"
    order = 10
    def __init__(self): self.scaler = torch.amp.GradScaler('cpu', init_scale=2.**10, growth_interval=3)
    def before_backward(self): self.learn.loss_grad = self.scaler.scale(self.loss_grad)
    def before_step(self): self.scaler.unscale_(self)
    def after_step(self): self.scaler.step(self); self.scaler.update()
    def step(self, *args, **kwargs): pass
    @property
    def param_groups(self): return self.opt.param_groups

@pytest.mark.parametrize('event', [None, 'after_pred', 'after_step'])
@pytest.mark.parametrize('cb', [CPUAutocast, BFloat16, Scaled])
def test_half_precision(cb, event):
    learn = make(cbs=[cb(), At(event, 4, stop)])
    before = fingerprint(learn)
    if event:
        with pytest.raises(KeyboardInterrupt): find(learn)
    else: assert find(learn).history.loss.dtype==float
    assert_same(before, fingerprint(learn))
    learn.fit(1)

def test_bf16_sees_another_loss():
    full,half = find(make()),find(make(cbs=[CPUAutocast()], fit=1))
    assert not np.array_equal(full.history.loss[:20], half.history.loss[:20])
    np.testing.assert_allclose(full.history.loss[:3], half.history.loss[:3], rtol=.2)

@pytest.mark.parametrize('cb', [lambda: GradientClip(.1), lambda: GradientAccumulation(16), SeedEachFit])
def test_with_other_callbacks(cb):
    learn = make(cbs=[cb()])
    before = fingerprint(learn)
    find(learn)
    assert_same(before, fingerprint(learn))

def test_nothing_is_written_or_logged(tmp_path):
    learn = make(path=tmp_path)
    learn.logger = lambda *a: pytest.fail('logged')
    find(learn)
    assert not list(tmp_path.iterdir()) and len(learn.history.rows)==1

rules = dict(minimum=(suggest_minimum, minimum), steep=(suggest_steep, steep), valley=(suggest_valley, valley), slide=(suggest_slide, slide))
losses = st.lists(st.floats(-1e3, 1e3, width=32), min_size=16, max_size=120)

@settings(max_examples=200, deadline=None)
@given(losses)
def test_rules_equal_fastais(values):
    y,x = torch.tensor(values),torch.logspace(-7, 1, len(values))
    for ours,theirs in rules.values(): assert ours(x, y)==theirs(x, y, len(y))[0]

def history_of(values, num_it=None):
    sweep = RateSweep(num_it=num_it or len(values))
    for o in values:
        if sweep.add(o): break
    return sweep.history

fall = np.r_[np.full(30, 3.6), np.linspace(3.6, 2, 40), np.linspace(2, 12, 30)]
@pytest.mark.parametrize('values,num_it', [(fall, 100), (fall[:88], 100), (np.r_[fall[:85], np.full(15, np.nan)], 100), (np.r_[fall[:97], np.full(3, np.nan)], 100), (np.r_[fall, fall[::-1]], 200)])
def test_result_equals_fastais_on_the_same_history(values, num_it):
    "fastai's own lines from `Learner.lr_find`, on the whole history, NaN and all"
    sweep,smoothed = RateSweep(num_it=num_it),AvgSmoothLoss()
    lrs,smooth = [],[]
    for i,o in enumerate(values):
        smoothed.accumulate(SimpleNamespace(loss=torch.tensor(o, dtype=torch.float32)))
        lrs.append(1e-7*(10/1e-7)**(i/num_it)); smooth.append(smoothed.value)
        if smooth[-1]>4*min([s for s in smooth if not s.isnan()]): break
    x,y = tensor(lrs[num_it//10:-5]),tensor(smooth[num_it//10:-5])
    bad = torch.nonzero(torch.isnan(y.view(-1)))
    if len(bad): x,y = x[:min(bad)],y[:min(bad)]
    result = LRFinderResult(history_of(values, num_it), num_it)
    assert result.suggestions.lr.to_dict()=={k: theirs(x, y, num_it)[0] for k,(_,theirs) in rules.items()}
    assert [getattr(result, k) for k in rules]==result.suggestions.lr.tolist()

silent = {'1': [3.], '5': [3,2.9,2.8,2.9,3], '20': fall[::5], 'all nan': [math.nan]*100, 'early nan': [*fall[:20], math.nan], 'inf': [math.inf]*9, 'constant': [3.]*100,
          'zero': [0.]*100, 'falls': np.linspace(4,2,100), 'rises': np.linspace(2,4,100)}
@pytest.mark.parametrize('name', silent)
def test_no_number(name):
    result = LRFinderResult(history_of(silent[name], max(100, len(silent[name])) if 'nan' in name else None), 100 if 'nan' in name else None)
    assert result.problem and result.confidence=='none' and not len(result.suggestions)
    for rule in rules:
        with pytest.raises(ValueError, match='no suggestion, because'): getattr(result, rule)
    assert 'No suggestion' in repr(result) and result.problem in result._repr_html_()
    result.plot()
    with pytest.raises(ValueError): result.plot_rules()
    plt.close('all')

@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32-1), st.floats(.01, 2), st.floats(10, 50))
def test_noise_gives_rarely_a_number(seed, sd, level):
    values = np.random.default_rng(seed).normal(level, sd, 100)
    z = np.divide(*fall_of(history_of(values), 10, 95))
    assert z<7

@pytest.mark.parametrize('kind', ['normal', 'skewed', 'correlated'])
def test_chance_gives_a_number_in_less_than_three_of_a_hundred(kind):
    rng = np.random.default_rng(0)
    def losses():
        if kind=='skewed': return rng.lognormal(0, .5, 100)
        x = 3+rng.normal(0, .5, 100)
        if kind=='correlated':
            for k in range(1, 100): x[k] += .3*(x[k-1]-3)
        return x
    results = [LRFinderResult(history_of(losses())) for _ in range(300)]
    assert sum(o.problem is None for o in results)<9
    assert not any(o.confidence=='good' for o in results)

def test_a_real_fall_gives_a_number():
    "The other side: a fall well above the noise must not be refused"
    rng = np.random.default_rng(0)
    results = [LRFinderResult(history_of(fall+rng.normal(0, .2, 100))) for _ in range(50)]
    assert all(o.problem is None for o in results)

def test_seed_of_a_sweep_is_not_that_of_a_training():
    "The first fit of a learner with seed 3 and a sweep with seed 3 see other batches"
    class Order(Callback):
        run_valid = False
        def before_fit(self): self.seen = []
        def before_batch(self): self.seen.append(self.xb[0].clone())
    learn,order = make(cbs=[SeedEachFit(3), Order()], fit=0),None
    learn.fit(1)
    order = learn.order.seen
    kept = []
    learn.order.before_batch = lambda: kept.append(learn.xb[0].clone())
    find(learn, seed=3, num_it=5)
    assert not torch.equal(torch.stack(order), torch.stack(kept[:5]))
    first = list(kept); kept.clear()
    find(learn, seed=3, num_it=5)
    assert torch.equal(torch.stack(first), torch.stack(kept))
    assert sweep_seed(3)==sweep_seed(3)!=sweep_seed(4) and min(sweep_seed(o) for o in range(100))>10_000

@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.floats(width=32), st.just(math.nan)), min_size=1, max_size=110))
def test_any_history_gives_a_number_or_a_message(values):
    result = LRFinderResult(history_of(values), 100)
    assert repr(result) and result._repr_html_()
    if result.problem is None: assert (result.suggestions.lr>0).all() and len(result.curve[0])>=min_points

def test_result_can_be_stored():
    result = LRFinderResult(history_of(fall), 100)
    again = pickle.loads(pickle.dumps(result))
    assert again.valley==result.valley and copy.copy(result).slide==result.slide
    with pytest.raises(AttributeError): result.vally

def test_pictures():
    result = find(make(fit=0))
    result = LRFinderResult(history_of(fall), 100)
    ax = result.plot(title='x')
    assert ax.get_xscale()=='log' and ax.get_title(loc='left')+ax.get_title()
    assert len(result.plot_rules().flat)==4
    plt.close('all')

def test_rise():
    result = LRFinderResult(history_of(fall), 100)
    x,y = result.curve
    assert y[x<=result.rise][-1]<=1.1*y.min() and (y[x>result.rise]>1.1*y.min()).all()
    assert LRFinderResult(history_of(np.linspace(4,2,100))).rise is None and LRFinderResult(history_of([3.])).rise is None
    rises = LRFinderResult(history_of(np.r_[np.full(50, 1.), np.linspace(1, 4, 50)]))
    assert rises.problem and rises.rise and 'the loss rises from' in repr(rises)

def test_map_leaves_learners_and_interpolates():
    learn = make()
    before = fingerprint(learn)
    found = lr_map(lambda seed: learn, [1e-6, 1e-2], seeds=[0,1], fit=lambda o, lr: o.fit(1, lr))
    assert_same(before, fingerprint(learn))
    assert len(found.table)==4 and found.table.error.between(0, 1).all() and found.best in (1e-6, 1e-2)
    assert found.table[found.table.seed==0].error.tolist()==found.table[found.table.seed==1].error.tolist() # same learner, same random state
    m = found.summary['mean']
    np.testing.assert_allclose(found.error_at(1e-4), m.mean())
    result = LRFinderResult(history_of(fall), 100)
    assert [*found.judge(result).index]==[*rules, 'a tenth of rise'] and (found.judge(result)['points above the best']>=0).all()
    found.plot(result); found.plot()
    plt.close('all')
