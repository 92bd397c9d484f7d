"Equality of `pets_nb.cross_entropy` with `torch.nn.functional`: PyTorch's own samples, random arguments, extremes, faults, dtypes and costs."
import copy, pickle, sys, types, unittest, warnings
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
import pets_nb.cross_entropy as ours

inf,nan = float('inf'),float('nan')
half = (torch.float16, torch.bfloat16)
names = {'nn.functional.cross_entropy':ours.cross_entropy, 'nn.functional.nll_loss':ours.nll_loss, 'softmax':ours.softmax,
    'nn.functional.binary_cross_entropy_with_logits':ours.binary_cross_entropy_with_logits, 'log_softmax':ours.log_softmax,
    'logsumexp':ours.logsumexp, 'sigmoid':ours.sigmoid}

@pytest.fixture(scope='module', autouse=True)
def custom_function_at_all_sizes():
    "Small batches are handed to PyTorch's kernel; here they must not be, or PyTorch would be compared with itself."
    small,ours._small = ours._small,0
    yield
    ours._small = small

def internals(module):
    "One of PyTorch's internal test modules; they import `expecttest`, of which nothing here is needed."
    if 'expecttest' not in sys.modules:
        try: import expecttest
        except ImportError: sys.modules['expecttest'] = types.SimpleNamespace(TestCase=unittest.TestCase, assert_expected_inline=None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return pytest.importorskip(f'torch.testing._internal.{module}', exc_type=ImportError)

def samples(dtypes):
    for op in internals('common_methods_invocations').op_db:
        if op.name not in names: continue
        for dtype in sorted(op.dtypes, key=str):
            if dtypes(dtype): yield from ((op, dtype, s) for s in op.sample_inputs('cpu', dtype, requires_grad=dtype.is_floating_point))

def differentiable(s): return [o for o in (s.input, *s.args) if isinstance(o, torch.Tensor) and o.requires_grad]
def fixed(s): return [o for o in s.args if not (isinstance(o, torch.Tensor) and o.requires_grad)]

def outcome(f, args, kwargs):
    "The result's shape, dtype and values, or the type of the exception."
    try: res = f(*args, **kwargs)
    except Exception as e: return type(e)
    return res

def same(f, reference, *args, **kwargs):
    a,b = outcome(f, args, kwargs),outcome(reference, args, kwargs)
    if isinstance(b, type): assert a is b, (a, b)
    else: assert_close(a, b, equal_nan=True)
    return a


# PyTorch's own samples
def test_opinfo_values_and_gradients():
    n = 0
    for op,dtype,s in samples(lambda o: o not in half):
        res,expected = names[op.name](s.input, *s.args, **s.kwargs),op.op(s.input, *s.args, **s.kwargs)
        assert_close(res, expected, equal_nan=True)
        n += 1
        if not (dtype.is_floating_point and expected.requires_grad): continue
        ins,g = differentiable(s),torch.randn_like(expected)
        first,again = (torch.autograd.grad(res, ins, g, retain_graph=True) for _ in range(2))
        assert_close(first, torch.autograd.grad(expected, ins, g), equal_nan=True)
        assert_close(first, again, rtol=0, atol=0, equal_nan=True)
    assert n>400

def double(x): return x.detach().double().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

def test_opinfo_half_precision_is_never_worse_than_torch():
    "Each value and gradient lies within one rounding of the fp64 truth, or as near to it as PyTorch's."
    n = 0
    for op,dtype,s in samples(lambda o: o in half):
        def run(f, args, kwargs):
            res = f(*args, **kwargs)
            ins = [o for o in args if isinstance(o, torch.Tensor) and o.requires_grad]
            g = torch.linspace(.5, 1.5, max(1, res.numel()))[:res.numel()].reshape(res.shape).to(res.dtype)
            return res.detach(),*torch.autograd.grad(res, ins, g)
        args,kwargs = (s.input, *s.args),s.kwargs
        truth = run(op.op, [double(o) for o in args], {k:double(o) for k,o in kwargs.items() if k!='dtype'})
        for a,b,c in zip(run(names[op.name], args, kwargs), run(op.op, args, kwargs), truth):
            assert a.dtype==b.dtype and a.shape==b.shape
            if not a.numel(): continue
            off_a,off_b = ((o.double()-c).abs().nan_to_num().max() for o in (a,b))
            size = c.abs().nan_to_num().max().clamp(min=.01)
            assert off_a <= 1.1*off_b + 2*torch.finfo(dtype).eps*size, (op.name, s.summary())
            n += 1
    assert n>400

def test_opinfo_second_derivatives_and_forward_mode():
    for op,dtype,s in samples(lambda o: o==torch.float64):
        f = lambda *ins: names[op.name](*ins, *fixed(s), **s.kwargs)
        ins = tuple(differentiable(s))
        assert gradcheck(f, ins, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(f, ins)

def test_moduleinfo():
    "PyTorch's samples for nn.CrossEntropyLoss, with its reference functions, gradients, pickling and deep copies."
    info, = (o for o in internals('common_modules').module_db if o.module_cls is torch.nn.CrossEntropyLoss)
    n = 0
    for o in info.module_inputs_func(info, device='cpu', dtype=torch.float64, requires_grad=True, training=True):
        loss = ours.CrossEntropyLoss(*o.constructor_input.args, **o.constructor_input.kwargs)
        theirs = torch.nn.CrossEntropyLoss(*o.constructor_input.args, **o.constructor_input.kwargs)
        args = o.forward_input.args
        res,expected = loss(*args),theirs(*args)
        assert_close(res, expected)
        assert_close(o.reference_fn(loss, *(a.detach() for a in args)), res.detach())
        g = torch.randn_like(res)
        assert_close(torch.autograd.grad(res, args[0], g), torch.autograd.grad(expected, args[0], g))
        for same in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)): assert_close(same(*args), res)
        assert loss.state_dict().keys()==theirs.state_dict().keys()
        n += 1
    assert n>50

def test_moduleinfo_errors():
    info, = (o for o in internals('common_modules').module_db if o.module_cls is torch.nn.CrossEntropyLoss)
    for o in info.module_error_inputs_func(info, device='cpu', dtype=torch.float32, requires_grad=False, training=True):
        loss = ours.CrossEntropyLoss(*o.module_error_input.constructor_input.args, **o.module_error_input.constructor_input.kwargs)
        with pytest.raises(o.error_type, match=o.error_regex): loss(*o.module_error_input.forward_input.args)


# random shapes and arguments
@st.composite
def calls(draw, probabilities=st.booleans()):
    rank,n,c = draw(st.integers(1, 5)),draw(st.integers(0, 5)),draw(st.integers(1, 7))
    more = draw(st.lists(st.integers(0 if rank<5 else 1, 4), min_size=max(0, rank-2), max_size=max(0, rank-2)))
    shape = (c,) if rank==1 else (n,c,*more)
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kwargs = dict(reduction=draw(st.sampled_from(['none','mean','sum'])))
    # a sum of losses near the limit overflows or not with the order of its terms: there only single losses are compared
    scale = draw(st.sampled_from([0., 1., 30., 1e4, torch.finfo(dtype).max/(4 if kwargs['reduction']=='none' else 1e6)]))
    x = torch.randn(shape, generator=rng, dtype=dtype).clamp(-3.9, 3.9)*scale
    if draw(st.booleans()) and x.numel(): x.view(-1)[torch.randint(x.numel(), (2,), generator=rng)] = -inf
    if draw(st.booleans()): kwargs['weight'] = torch.rand(c, generator=rng, dtype=dtype)*draw(st.sampled_from([0., 1., 5.]))
    if draw(st.booleans()): kwargs['label_smoothing'] = draw(st.floats(0, 1))
    if draw(probabilities): return x,torch.rand(shape, generator=rng, dtype=dtype),kwargs
    t = torch.randint(c, () if rank==1 else (n,*more), generator=rng)
    if draw(st.booleans()):
        kwargs['ignore_index'] = draw(st.sampled_from([-100, -1, 0, c-1]))
        t = torch.where(torch.rand(t.shape, generator=rng)<draw(st.sampled_from([.3, 1.])), kwargs['ignore_index'], t)
    return x,t,kwargs

def compare(f, reference, x, t, kwargs):
    tol = dict(rtol=1e-4, atol=1e-5) if x.dtype==torch.float32 else dict(rtol=1e-8, atol=1e-10)
    results = []
    for fn in (f, reference):
        xi = x.clone().requires_grad_()
        res = fn(xi, t, **kwargs)
        g = torch.linspace(-1, 2, max(1, res.numel()), dtype=res.dtype)[:res.numel()].reshape(res.shape)
        grad, = torch.autograd.grad(res, xi, g, create_graph=True)
        plain, = torch.autograd.grad(fn(xi, t, **kwargs), xi, g)
        second, = torch.autograd.grad((grad*torch.linspace(1, 2, max(1, x.numel()), dtype=x.dtype)[:x.numel()].reshape(x.shape)).sum(), xi,
            allow_unused=True) if grad.requires_grad else (None,)
        results.append((res.detach(), grad.detach(), plain, torch.zeros_like(x) if second is None else second))
    for name,a,b in zip(('value','gradient with graph','gradient','second derivative'), *results):
        if name=='second derivative' and not (x.abs()<1e3).all(): continue
        assert_close(a, b, equal_nan=True, msg=lambda m: f'{name}: {m}', **tol)

@settings(max_examples=150, deadline=None)
@given(calls())
def test_cross_entropy_equals_torch(call): compare(ours.cross_entropy, F.cross_entropy, *call)

@settings(max_examples=60, deadline=None)
@given(calls(probabilities=st.just(False)))
def test_nll_loss_equals_torch(call):
    x,t,kwargs = call
    kwargs.pop('label_smoothing', None)
    compare(ours.nll_loss, F.nll_loss, x, t, kwargs)

@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 2**31), reduction=st.sampled_from(['none','mean','sum']),
    scale=st.sampled_from([0., 1., 50., 1e4, 1e37]), weighted=st.booleans(), positive=st.booleans())
def test_binary_equals_torch(shape, seed, reduction, scale, weighted, positive):
    rng = torch.Generator().manual_seed(seed)
    x,y = torch.randn(shape, generator=rng).clamp(-9, 9)*scale,torch.rand(shape, generator=rng)
    kwargs = dict(reduction=reduction)
    if weighted: kwargs['weight'] = torch.rand(shape, generator=rng)
    if positive: kwargs['pos_weight'] = torch.rand(shape[-1:], generator=rng)*3
    compare(ours.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, x, y, kwargs)

@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 2**31), scale=st.sampled_from([1., 80., 1e4, 1e38]),
    dtype=st.sampled_from([torch.float64, torch.float32]))
def test_softmax_family_equals_torch(shape, seed, scale, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).clamp(-3, 3)*scale
    for dim in range(-len(shape), len(shape)):
        for name in ('softmax','log_softmax','logsumexp'): assert_close(getattr(ours, name)(x, dim), getattr(torch, name)(x, dim))
    assert_close(ours.sigmoid(x), torch.sigmoid(x))


# extremes
odd = torch.tensor([[-inf,-inf,-inf], [inf,1,0], [inf,inf,1], [-inf,1,2], [1,nan,0], [3e38,-3e38,0], [-3e38,-3e38,-3e38]])

@pytest.mark.parametrize('reduction', ['none','mean','sum'])
def test_infinities_and_nans(reduction):
    for t in range(3): 
        for row in odd:
            results = []
            for f in (ours.cross_entropy, F.cross_entropy):
                x = row[None].clone().requires_grad_()
                loss = f(x, torch.tensor([t]), reduction=reduction)
                results.append((loss.detach(), torch.autograd.grad(loss.sum(), x)[0]))
            assert_close(*results, equal_nan=True)
    for name in ('softmax','log_softmax','logsumexp'): assert_close(getattr(ours, name)(odd, 1), getattr(torch, name)(odd, 1), equal_nan=True)

@pytest.mark.parametrize('dtype', half)
def test_half_precision_at_its_limits(dtype):
    top = torch.finfo(dtype).max
    x = torch.tensor([[top,-top,0], [top,top,top], [-top,-inf,-top], [1,2,3]], dtype=dtype)
    for t in range(3):
        target = torch.full((4,), t)
        assert_close(ours.cross_entropy(x, target, reduction='none'), F.cross_entropy(x, target, reduction='none'), equal_nan=True)

def test_all_ignored_has_no_gradient():
    for kwargs in ({}, dict(weight=torch.ones(4)), dict(label_smoothing=.1)):
        x = torch.randn(3, 4, requires_grad=True)
        loss = ours.cross_entropy(x, torch.full((3,), -100), **kwargs)
        loss.backward()
        assert loss.isnan() and x.grad.eq(0).all()


# faults
x35,t3 = torch.linspace(-1, 1, 15).reshape(3, 5),torch.tensor([0, 1, 4])
p35 = x35.softmax(1)
faults = {
    'above': (x35, torch.tensor([0,5,9])), 'below': (x35, torch.tensor([0,-1,2])), 'batch': (x35, t3[:2]), 'int32': (x35, t3.int()),
    'bool': (x35, t3.bool()), 'float index': (x35, t3.float()), 'byte': (x35, t3.byte()), 'integer activations': (x35.long(), t3),
    'integer probabilities': (x35, x35.long()), 'probabilities of another shape': (x35, p35[:,:4]), 'no dimension': (x35[0,0], t3[0]),
    'no dimension, probability': (x35[0,0], x35[0,0]), 'one sample': (x35[0], t3[0]), 'one sample above': (x35[0], torch.tensor(7)),
    'one sample, two targets': (x35[0], t3[:2]), 'one sample, one target': (x35[0], t3[:1]), 'size': (torch.ones(2,3,4), torch.zeros(2,5).long()),
    'size 2d': (torch.ones(2,3,4,5), torch.zeros(2,4,6).long()), 'rank 2d': (torch.ones(2,3,4,5), torch.zeros(2,4).long()),
    'size 3d': (torch.ones(2,3,4,5,6), torch.zeros(2,4,5,7).long()), 'column': (x35, t3[:,None]), 'no target dimension': (x35, t3[0]),
    'few weights': (x35, t3, torch.ones(4)), 'matrix of weights': (x35, t3, torch.ones(5,1)), 'double weights': (x35, t3, torch.ones(5).double()),
    'integer weights': (x35, t3, torch.ones(5).long()), 'few weights, probabilities': (x35, p35, torch.ones(4)), 'double probabilities': (x35, p35.double()),
    'half probabilities': (x35, p35.half()), 'no class': (torch.ones(3,0), t3), 'no class, no sample': (torch.ones(0,0), t3[:0]),
    'no class, probabilities': (torch.ones(3,0), torch.ones(3,0)), 'nothing inside': (torch.ones(2,5,0), torch.zeros(2,0).long()),
    'list': ([[1.]], t3), 'list of targets': (x35, [0,1,2]), 'None': (x35, None), 'list of weights': (x35, t3, [1]*5), 'complex': (x35.cfloat(), t3)}
settings_ = {'reduction': dict(reduction='avg'), 'no reduction': dict(reduction=None), 'fractional ignore_index': dict(ignore_index=1.5),
    'true ignore_index': dict(ignore_index=True), 'deprecated sum': dict(size_average=False), 'deprecated none': dict(reduce=False)}
smoothing = {'too smooth': dict(label_smoothing=1.5), 'negative': dict(label_smoothing=-.5), 'text': dict(label_smoothing='a'), 'one': dict(label_smoothing=1)}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('f,reference', [(ours.cross_entropy, F.cross_entropy), (ours.nll_loss, F.nll_loss)], ids=['cross_entropy','nll_loss'])
def test_same_exceptions(f, reference):
    for args in faults.values(): same(f, reference, *args)
    for kwargs in settings_.values(): same(f, reference, x35, t3, **kwargs)
    if f is ours.nll_loss: return
    for kwargs in smoothing.values():
        for target in (t3, p35): same(f, reference, x35, target, **kwargs)
    same(f, reference, x35, p35, ignore_index=2)
    same(f, reference, x35, torch.tensor([0,1,7]), label_smoothing=.1)
    same(f, reference, x35, torch.arange(4), label_smoothing=1.2)

@pytest.mark.filterwarnings('ignore')
def test_same_exceptions_binary():
    a,b = torch.rand(2, 3),torch.rand(2, 3)
    for args in ((a, b[:1]), (a, b.long()), (a.long(), b), (a, b.double()), (a.double(), b), (a, b, torch.rand(4)),
        (a, b, [1.]), (a, b, torch.rand(2,2,3)), (a[:0], b[:0])):
        same(ours.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, *args)
    same(ours.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, a, b, pos_weight=torch.rand(4))

@pytest.mark.filterwarnings('ignore')
def test_same_exceptions_softmax():
    for name in ('softmax','log_softmax'):
        f,reference = getattr(ours, name),getattr(F, name)
        for args in ((x35, 2), (x35, -3), (x35, (0,1)), (x35.long(), 1), (x35, None), (x35[0,0], 0), (x35[:0], 1), (x35[:,:0], 1), (x35[:,:0], 0)):
            same(f, reference, *args)
        same(f, reference, x35.long(), 1, dtype=torch.float32)

def test_offenders_are_listed():
    t = torch.arange(20)
    with pytest.raises(IndexError, match=r'15 of 20 targets.*target\[5\] = 5.*target\[14\] = 14, and 5 more'): ours.cross_entropy(torch.zeros(20, 5), t)


# autograd, transforms, subclasses
def test_backward_twice_and_accumulated():
    x,t = torch.randn(6, 5, requires_grad=True),torch.randint(5, (6,))
    loss = ours.cross_entropy(x, t)
    for _ in range(3): loss.backward(retain_graph=True)
    expected, = torch.autograd.grad(F.cross_entropy(x, t), x)
    assert_close(x.grad, 3*expected)

def test_blocks_equal_the_whole():
    x,t = torch.randn(700, 1000),torch.randint(1000, (700,))
    assert x.numel()>4*ours._block
    for dtype in (torch.float32, torch.bfloat16):
        a,b = (x.to(dtype, copy=True).requires_grad_() for _ in range(2))
        for f,o in ((ours.cross_entropy, a), (F.cross_entropy, b)): (f(o, t)*3).backward()
        double_x = x.to(dtype).double().requires_grad_()
        truth, = torch.autograd.grad(F.cross_entropy(double_x, t)*3, double_x)
        assert (a.grad-truth).abs().max() <= 1.1*(b.grad-truth).abs().max()+torch.finfo(dtype).eps/700

def test_small_batches_take_the_fused_kernel(monkeypatch):
    x,t = torch.randn(64, 37, requires_grad=True),torch.randint(37, (64,))
    assert type(ours.cross_entropy(x, t).grad_fn).__name__=='_CrossEntropyBackward'
    monkeypatch.setattr(ours, '_small', x.numel())
    fused = ours.cross_entropy(x, t)
    assert type(fused.grad_fn).__name__=='NllLossBackward0'
    assert_close(fused, ours._CrossEntropy.apply(x, t, 'mean'))
    for kwargs in (dict(reduction='none'), dict(reduction='sum'), dict(ignore_index=-1)):
        assert_close(ours.cross_entropy(x, t, **kwargs), F.cross_entropy(x, t, **kwargs), rtol=0, atol=0)
    t[[3,5]] = torch.tensor([37,-2])
    with pytest.raises(IndexError, match=r'2 of 64 targets.*target\[3\] = 37, target\[5\] = -2'): ours.cross_entropy(x, t)

def test_functional_transforms():
    x,t = torch.randn(4, 6, 5),torch.randint(5, (4, 6))
    assert_close(torch.func.vmap(ours.cross_entropy)(x, t), torch.func.vmap(F.cross_entropy)(x, t))
    assert_close(torch.func.vmap(torch.func.grad(ours.cross_entropy))(x, t), torch.func.vmap(torch.func.grad(F.cross_entropy))(x, t))
    assert_close(torch.func.hessian(ours.cross_entropy)(x[0], t[0]), torch.func.hessian(F.cross_entropy)(x[0], t[0]))

def test_second_derivatives_by_finite_differences():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0, 4, 2, -100])
    for kwargs in ({}, dict(weight=torch.rand(5, dtype=torch.float64)), dict(label_smoothing=.2), dict(reduction='none')):
        f = lambda x: ours.cross_entropy(x, t, **kwargs)
        assert gradcheck(f, (x,)) and gradgradcheck(f, (x,))

@pytest.mark.parametrize('dtype', half)
def test_autocast(dtype):
    x,t = torch.randn(4, 5, dtype=dtype),torch.randint(5, (4,))
    with torch.autocast('cpu', dtype=dtype):
        for args,kwargs in (((x, t), {}), ((x, x.softmax(1)), {}), ((x, t), dict(label_smoothing=.1)), ((x, t), dict(weight=torch.ones(5, dtype=dtype)))):
            same(ours.cross_entropy, F.cross_entropy, *args, **kwargs)
        same(ours.nll_loss, F.nll_loss, x, t)
        same(ours.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, x, x.sigmoid())
        assert ours.cross_entropy(x, t).dtype==torch.float32 and ours.softmax(x, 1).dtype==F.softmax(x, 1).dtype

def test_memory_layouts():
    x,t = torch.randn(2, 3, 4, 5),torch.randint(3, (2, 4, 5))
    for o in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3), x.expand(2, 3, 4, 5)):
        assert_close(ours.cross_entropy(o, t), F.cross_entropy(x, t))

def test_peak_memory():
    def peak(f):
        x,t = torch.randn(2048, 1000, requires_grad=True),torch.randint(1000, (2048,))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof: f(x, t).backward()
        events = sorted((o.start_ns(), o.nbytes()) for o in prof.profiler.kineto_results.events() if o.name()=='[memory]')
        return max(np.cumsum([o for _,o in events]))
    assert peak(ours.cross_entropy) <= 1.5*peak(F.cross_entropy)


# fastai
def test_fastai_tensors_and_axis():
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import TensorBase, TensorCategory, TensorImage
    x,t = torch.randn(2, 3, 4, 5),torch.randint(3, (2, 4, 5))
    for cls in (TensorBase, TensorImage):
        for axis in (None, 1): assert_close(ours.CrossEntropyLoss(axis=axis)(cls(x), TensorCategory(t)), F.cross_entropy(x, t))
    assert isinstance(ours.cross_entropy(TensorBase(x), TensorBase(t)), TensorBase)
    loss,fastais = ours.CrossEntropyLoss(axis=1),CrossEntropyLossFlat(axis=1)
    assert_close(loss.activation(x), fastais.activation(x))
    assert loss.decodes(x).equal(fastais.decodes(x))

@pytest.mark.parametrize('axis', [None, -1])
def test_learner_runs_the_same(axis):
    from fastai.basics import DataLoader, DataLoaders, Learner, SGD, set_seed
    from fastai.callback import progress
    from fastai.losses import CrossEntropyLossFlat
    x = torch.randn(96, 10, generator=torch.Generator().manual_seed(0))
    items = list(zip(x, x[:,:4].argmax(1)))
    def run(loss_func):
        set_seed(42)
        dls = DataLoaders(DataLoader(items, bs=16, shuffle=True, num_workers=0), DataLoader(items, bs=16, num_workers=0))
        learn = Learner(dls, torch.nn.Linear(10, 4), loss_func=loss_func, opt_func=SGD)
        with learn.no_bar(), learn.no_logging(): learn.fit(3, 0.1)
        return torch.stack(learn.recorder.losses),learn
    (a,learn),(b,reference) = run(ours.CrossEntropyLoss(axis=axis)),run(CrossEntropyLossFlat())
    assert_close(a, b, rtol=1e-6, atol=1e-6)
    with learn.no_bar(), reference.no_bar():
        for mine,theirs in zip(learn.get_preds(with_decoded=True, with_loss=True), reference.get_preds(with_decoded=True, with_loss=True)):
            assert_close(mine.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor), rtol=1e-5, atol=1e-5)
