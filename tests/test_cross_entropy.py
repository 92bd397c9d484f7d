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

@pytest.mark.slow
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
        assert_close(o.reference_fn(loss, *args), res)
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
    scale = draw(st.sampled_from([0., 1., 30., 1e4, torch.finfo(dtype).max/4]))
    x = torch.randn(shape, generator=rng, dtype=dtype).clamp(-3.9, 3.9)*scale
    if draw(st.booleans()) and x.numel(): x.view(-1)[torch.randint(x.numel(), (2,), generator=rng)] = -inf
    kwargs = dict(reduction=draw(st.sampled_from(['none','mean','sum'])))
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
