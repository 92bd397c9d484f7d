"Our cross-entropy against PyTorch's: values, gradients, extremes, dtypes, faults and a training run."
import builtins
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
import pets_nb.cross_entropy as ours
from pets_nb.cross_entropy import (binary_loss_from_logits, log_sum_exp, loss_from_log_probs, loss_from_logits,
    to_log_probs, to_probs)

inf,nan = float('inf'),float('nan')
pairs = [(to_probs, torch.softmax), (to_log_probs, torch.log_softmax), (log_sum_exp, torch.logsumexp)]
scales = [0., 1., 30., 1e4, 1e37]

def numbers(shape, seed, scale, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).clamp(-3, 3)*scale

def tolerance(dtype): return dict(rtol=1e-4, atol=1e-5) if dtype==torch.float32 else dict(rtol=1e-8, atol=1e-10)

def derivatives(f, x):
    "Value, gradient and second derivative of a weighted sum of `f(x)`"
    x = x.clone().requires_grad_()
    res = f(x)
    weights = torch.linspace(-1, 2, res.numel(), dtype=res.dtype).reshape(res.shape)
    grad, = torch.autograd.grad((res*weights).sum(), x, create_graph=True)
    second = torch.autograd.grad((grad*torch.linspace(1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)).sum(), x)[0] if grad.requires_grad else 0*x
    return res.detach(),grad.detach(),second

def same(f, reference, x):
    "Equal to rounding: a logarithm of a probability is a difference of logits, which are spaced by `eps` times their size"
    close,size = tolerance(x.dtype),x.detach().abs().max().item() if x.numel() else 0
    if size<1e6: close['atol'] = max(close['atol'], 2*torch.finfo(x.dtype).eps*size) # beyond, probabilities are exactly 0 or 1
    for a,b in zip(derivatives(f, x), derivatives(reference, x)): assert_close(a, b, equal_nan=True, **close)


def test_names_hide_nothing():
    import fastai.vision.all as fastai
    assert len(ours.__all__)<=6
    for name in ours.__all__: assert not any(hasattr(o, name) for o in (torch, F, fastai, builtins)), name

@settings(max_examples=150, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 2**31), scale=st.sampled_from(scales),
    dtype=st.sampled_from([torch.float64, torch.float32]))
def test_softmax_family(shape, seed, scale, dtype):
    x = numbers(shape, seed, scale, dtype)
    for dim in range(-len(shape), len(shape)):
        for f,reference in pairs: same(lambda o: f(o, dim), lambda o: reference(o, dim), x)

@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 6), c=st.integers(1, 9), seed=st.integers(0, 2**31), scale=st.sampled_from(scales),
    dtype=st.sampled_from([torch.float64, torch.float32]))
def test_cross_entropy(n, c, seed, scale, dtype):
    x,t = numbers((n,c), seed, scale, dtype),torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))
    same(lambda o: loss_from_logits(o, t), lambda o: F.cross_entropy(o, t), x)
    same(lambda o: loss_from_log_probs(o, t), lambda o: F.nll_loss(o, t), x)

@settings(max_examples=100, deadline=None)
@given(shape=st.lists(st.integers(1, 4), max_size=3), seed=st.integers(0, 2**31), scale=st.sampled_from(scales))
def test_binary(shape, seed, scale):
    x,y = numbers(shape, seed, scale, torch.float64),torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    same(lambda o: binary_loss_from_logits(o, y), lambda o: F.binary_cross_entropy_with_logits(o, y), x)

def test_second_derivatives_by_finite_differences():
    x,t = torch.randn(4, 5, dtype=torch.float64, requires_grad=True),torch.tensor([0, 4, 2, 2])
    y = torch.rand(4, 5, dtype=torch.float64)
    for f in (lambda o: loss_from_logits(o, t), lambda o: binary_loss_from_logits(o, y), to_probs, to_log_probs, log_sum_exp):
        assert gradcheck(f, (x,)) and gradgradcheck(f, (x,))

odd = torch.tensor([[-inf,-inf,-inf], [inf,1,0], [inf,inf,1], [-inf,1,2], [1,nan,0], [3e38,-3e38,0], [-3e38,-3e38,-3e38], [500,500,500]])

def test_infinities_and_nans():
    for f,reference in pairs: assert_close(f(odd, 1), reference(odd, 1), equal_nan=True)
    for t in range(3):
        for row in odd: same(lambda o: loss_from_logits(o, torch.tensor([t])), lambda o: F.cross_entropy(o, torch.tensor([t])), row[None])

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    "Computed in the dtype of the logits, so within a few of its roundings, at its limits too"
    top = torch.finfo(dtype).max
    x = torch.tensor([[top,-top,0], [top,top,top], [1,2,3], [-1,0,.5]], dtype=dtype)
    for f,reference in pairs:
        assert f(x, 1).dtype==dtype
        assert_close(f(x, 1), reference(x, 1), rtol=4*torch.finfo(dtype).eps, atol=4*torch.finfo(dtype).eps)

def test_binary_at_its_limits():
    x = torch.tensor([-inf, -3e38, -1e4, 0, 1e4, 3e38, inf])
    for y in (torch.zeros(7), torch.ones(7), torch.full((7,), .5)):
        for a,b in zip(x, y): assert_close(binary_loss_from_logits(a, b), F.binary_cross_entropy_with_logits(a, b), equal_nan=True)

def test_offenders_are_listed():
    with pytest.raises(IndexError, match=r'15 of 20 targets are not in 0\.\.4: targets\[5\] = 5.*targets\[14\] = 14 and 5 more'):
        loss_from_logits(torch.zeros(20, 5), torch.arange(20))
    with pytest.raises(IndexError, match=r'targets\[1\] = -100$'): loss_from_log_probs(torch.zeros(2, 5), torch.tensor([1,-100]))

@pytest.mark.parametrize('targets', [torch.tensor([0.,1.]), torch.tensor([[0],[1]]), torch.tensor(1)])
def test_other_targets_are_errors(targets):
    with pytest.raises((RuntimeError, IndexError, TypeError)): loss_from_logits(torch.zeros(2, 5), targets)

def test_empty_batch(): assert loss_from_logits(torch.empty(0, 3), torch.empty(0, dtype=torch.long)).isnan()

def test_memory_layouts():
    x,t = torch.randn(6, 5),torch.randint(5, (6,))
    for o in (x.t().contiguous().t(), x[::2].repeat_interleave(2, 0)[::1], x.flip(0).flip(0)):
        assert_close(loss_from_logits(o, t), F.cross_entropy(o, t))

def test_functional_transforms():
    x,t = torch.randn(4, 6, 5),torch.randint(5, (6,))
    f = lambda o: loss_from_log_probs(to_log_probs(o), t)
    assert_close(torch.func.vmap(torch.func.grad(f))(x), torch.func.vmap(torch.func.grad(lambda o: F.cross_entropy(o, t)))(x))

def test_fastai_tensors():
    from fastai.torch_core import TensorBase, TensorCategory
    x,t = torch.randn(6, 5),torch.randint(5, (6,))
    assert_close(torch.as_tensor(loss_from_logits(TensorBase(x), TensorCategory(t))).as_subclass(torch.Tensor), F.cross_entropy(x, t))

def test_learner_trains_the_same():
    from fastai.basics import DataLoader, DataLoaders, Learner, SGD, set_seed
    from fastai.losses import CrossEntropyLossFlat
    x = torch.randn(96, 10, generator=torch.Generator().manual_seed(0))
    items = list(zip(x, x[:,:4].argmax(1)))
    def run(loss_func):
        set_seed(42)
        dls = DataLoaders(DataLoader(items, bs=16, shuffle=True, num_workers=0), DataLoader(items, bs=16, num_workers=0))
        learn = Learner(dls, torch.nn.Linear(10, 4), loss_func=loss_func, opt_func=SGD)
        with learn.no_bar(), learn.no_logging(): learn.fit(3, 0.1)
        return torch.stack(learn.recorder.losses)
    assert_close(run(loss_from_logits), run(CrossEntropyLossFlat()), rtol=1e-6, atol=1e-6)

def test_published_numbers():
    "The six images of fastbook's chapter 5, with its seed"
    acts,targ = torch.randn((6,2), generator=torch.Generator().manual_seed(42))*2,torch.tensor([0,1,0,1,1,0])
    assert_close(to_probs(acts)[:,0], torch.tensor([0.6025,0.5021,0.1332,0.9966,0.5959,0.3661]), rtol=0, atol=5e-5)
    assert_close(loss_from_logits(acts, targ), torch.tensor(1.8045), rtol=0, atol=5e-5)
