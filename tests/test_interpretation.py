"""Faults, properties and memory of pets_nb.interpretation that are no lesson."""
import os, subprocess, sys
from pathlib import Path

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (ClassificationInterpretation, CrossEntropyLossFlat, ImageDataLoaders, Learner, Normalize, Resize, imagenet_stats,
                               set_seed)
from hypothesis import given, settings, strategies as st
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import nn

from pets_nb.interpretation import (GradCAM, Predictions, body_features, fit_linear_head, fit_temperature, folder_features, get_predictions, grad_cam,
    grad_cam_maps, order_by_likeness, out_of_fold, pair_counts, plant_wrong_labels, plot_pictures, stratified_folds, synthetic_predictions, wilson_interval)

breeds = [f'Cat_{c}' for c in 'abcdefghijkl'] + [f'dog_{c}' for c in 'abcdefghijklmnopqrstuvwxy']
colours = {'Cat_red': (220, 40, 40), 'Cat_green': (40, 200, 60), 'dog_blue': (40, 60, 220), 'dog_dark': (60, 60, 120)}


def draw(folder, n=12):
    "Noisy squares on grey: colour is the breed, dog_dark is rather like dog_blue"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        for i in range(n):
            im = rng.integers(90, 130, (60, 80, 3))
            y, x = rng.integers(0, 30), rng.integers(0, 50)
            im[y:y+30, x:x+30] = np.array(colour) + rng.integers(-30, 30, (30, 30, 3))
            Image.fromarray(im.clip(0, 255).astype(np.uint8)).save(folder/f'{name}_{i}.jpg')
    return folder


@pytest.fixture(scope='session')
def folder(tmp_path_factory): return draw(tmp_path_factory.mktemp('pictures')/'images')


@pytest.fixture(scope='session')
def learn(folder):
    set_seed(1, reproducible=True)
    dls = ImageDataLoaders.from_name_re(folder.parent, sorted(folder.glob('*.jpg')), r'(.+)_\d+\.jpg$', item_tfms=Resize(48), bs=8, seed=1, valid_pct=0.5,
                                        num_workers=0, batch_tfms=Normalize.from_stats(*imagenet_stats))
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(inplace=True))
    learn = Learner(dls, nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 3e-3)
    return learn


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def some(n=30, c=4, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=gen).softmax(1), torch.randint(0, c, (n,), generator=gen)


vocab4 = list(colours)


# What goes in

@pytest.mark.parametrize('change, error, words', [
    (dict(probs=torch.zeros(0, 4), targets=[]), ValueError, 'set is empty'),
    (dict(probs=torch.full((30,), .25)), ValueError, r'shape \(30,\)'),
    (dict(vocab=vocab4[:3]), ValueError, r'expected \(N, 3\)'),
    (dict(vocab=vocab4[:3] + ['Cat_red']), ValueError, 'twice: Cat_red'),
    (dict(targets=torch.zeros(29).long()), ValueError, r'\(29,\) for 30 predictions'),
    (dict(targets=torch.zeros(30)), TypeError, 'float32; expected integers'),
    (dict(targets=torch.zeros(30, dtype=torch.bool)), TypeError, 'bool; expected integers'),
    (dict(targets=torch.full((30,), 4)), ValueError, r'\(30 in all\).*expected 0 to 3'),
    (dict(targets=torch.full((30,), -1)), ValueError, 'out of range'),
    (dict(files=['a.jpg']), ValueError, '1 files for 30 predictions'),
    (dict(losses=torch.zeros(31)), ValueError, '31 losses for 30 predictions'),
])
def test_wrong_inputs(change, error, words):
    probs, targets = some()
    with pytest.raises(error, match=words): Predictions(**(dict(probs=probs, targets=targets, vocab=vocab4) | change))


@pytest.mark.parametrize('value, words', [(float('nan'), 'NaN or infinity in rows 7'), (float('inf'), 'NaN or infinity'), (-.1, 'Not probabilities in rows 7'),
                                          (.9999, 'Not probabilities'), (2., 'Not probabilities')])
def test_wrong_probabilities(value, words):
    probs, targets = some()
    probs[7] = torch.tensor([.25]*4)
    probs[7, 2] = value
    with pytest.raises(ValueError, match=words): Predictions(probs, targets, vocab4)


def test_all_offenders_are_counted():
    probs, targets = some(40)
    probs[::2] *= 3
    with pytest.raises(ValueError, match=r'rows 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, \.\.\. \(20 in all\)'): Predictions(probs, targets, vocab4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    probs, targets = some(200)
    p = Predictions(probs.to(dtype), targets.int(), vocab4)
    assert p.probs.dtype == torch.float32 and p.targets.dtype == torch.int64
    assert torch.equal(p.predicted, probs.to(dtype).argmax(1))


def test_plain_lists_and_numpy():
    probs, targets = some()
    a, b = Predictions(probs.tolist(), targets.tolist(), vocab4), Predictions(probs.double().numpy(), targets.numpy(), np.array(vocab4))
    assert torch.allclose(a.probs, b.probs) and a.most_confused() == b.most_confused() and a.vocab == b.vocab
    assert torch.allclose(a.losses, nn.functional.nll_loss(probs.log(), targets, reduction='none'), atol=1e-6)


def test_a_probability_of_zero_has_a_finite_loss():
    p = Predictions([[0., 1.], [1., 0.]], [0, 0], ['a', 'b'])
    assert torch.isfinite(p.losses).all() and p.losses[0] > 80 and p.losses[1] == 0
    assert p.scaled(2.).probs.isfinite().all()


def test_input_is_not_changed():
    probs, targets = some()
    kept = probs.clone()
    p = Predictions(probs, targets, vocab4)
    p.confusion(); p.label_errors(); p.scaled(3.); p.top_losses(3); p.reliability(); p.most_confused()
    assert torch.equal(probs, kept) and torch.equal(p.probs, kept)


def test_subsets():
    p = Predictions(*some(), vocab4, [f'{i}.jpg' for i in range(30)])
    mask = p.targets == 1
    assert p[mask].files == [p.files[i] for i in mask.nonzero().flatten().tolist()] and len(p[3]) == 1 and len(p[-3:]) == 3
    assert torch.equal(p[mask.numpy()].losses, p.losses[mask])
    with pytest.raises(ValueError, match='empty'): p[[]]


# Equal to the references

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(2, 9), st.integers(0, 10**6), st.booleans())
def test_tables_equal_scikit_learn(n, c, seed, skewed):
    probs, targets = some(n, c, seed)
    if skewed: targets = targets % 2
    p = Predictions(probs, targets, [f'b{i}' for i in range(c)])
    assert (p.confusion_counts() == confusion_matrix(p.targets, p.predicted, labels=range(c))).all()
    t = p.per_breed().table
    assert not t.isna().any().any()
    for name, value in zip(('precision', 'recall', 'f1', 'support'), precision_recall_fscore_support(p.targets, p.predicted, labels=range(c), zero_division=0)):
        np.testing.assert_allclose(t[name], value, atol=1e-12)
    for name in ('precision', 'recall', 'f1'):
        assert (t[f'{name}_low'] <= t[name] + 1e-12).all() and (t[name] <= t[f'{name}_high'] + 1e-12).all() and t[f'{name}_high'].le(1).all()
    assert p.reliability().table.pictures.sum() == n and 0 <= p.reliability().ece <= 1
    assert len(p.label_errors()) == n and sorted(p.label_errors().table.index) == list(range(n))


def fastai_most_confused(cm, vocab, min_val):
    "fastai's method on a matrix of our own"
    class Reference(ClassificationInterpretation):
        def __init__(self): self.vocab = vocab
        def confusion_matrix(self): return cm.copy()
    return Reference().most_confused(min_val)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(2, 7), st.integers(0, 10**6), st.integers(1, 4))
def test_most_confused_equals_fastai_with_ties(n, c, seed, min_val):
    p = Predictions(*some(n, c, seed), [f'b{i}' for i in range(c)])
    ours = p.most_confused(min_val)
    assert list(ours) == fastai_most_confused(p.confusion_counts(), p.vocab, min_val)
    assert list(ours.table.columns) == ['true', 'predicted', 'pictures'] and len(ours.table) == len(ours)


def test_equals_fastai_on_a_learner(learn):
    p = get_predictions(learn)
    with learn.no_bar(), learn.no_logging():
        ref = ClassificationInterpretation.from_learner(learn)
        assert (p.confusion_counts() == ref.confusion_matrix()).all()
        assert p.most_confused() == ref.most_confused() and p.most_confused(2) == ref.most_confused(2)
    losses, idxs = ref.top_losses(5)
    torch.testing.assert_close(torch.tensor(p.top_losses(5).table.loss.values), losses.as_subclass(torch.Tensor), atol=1e-5, rtol=1e-5)
    assert p.files == list(learn.dls.valid_ds.items)
    assert [p.vocab[i] for i in p.targets] == [f.name.rsplit('_', 1)[0] for f in p.files]


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from([.5, .9, .95, .99]))
def test_wilson_equals_scipy(k, extra, level):
    n = k + extra
    low, high = wilson_interval(k, n, level)
    if n == 0: assert (low, high) == (0, 1)
    else: np.testing.assert_allclose((low, high), binomtest(k, n).proportion_ci(level, 'wilson'), atol=1e-12)


def test_wilson_refuses():
    with pytest.raises(ValueError, match='successes outside'): wilson_interval([1, 9], [5, 5])
    with pytest.raises(ValueError, match='level'): wilson_interval(1, 5, 95)


# From a Learner

def test_files_and_loaders(learn, folder):
    files = sorted(folder.glob('*.jpg'))[:7]
    p = get_predictions(learn, files)
    assert p.files == files and torch.allclose(p[2].probs, get_predictions(learn, files[2:3]).probs, atol=1e-6)
    train = get_predictions(learn, 0)
    assert train.files == list(learn.dls.train_ds.items)
    assert torch.allclose(get_predictions(learn, learn.dls.train).probs, train.probs, atol=1e-6)
    with pytest.raises(ValueError, match='no number 5'): get_predictions(learn, 5)
    with pytest.raises(ValueError, match='list of files is empty'): get_predictions(learn, [])


def test_empty_validation_set(learn, folder):
    dls = ImageDataLoaders.from_name_re(folder.parent, sorted(folder.glob('*.jpg'))[:8], r'(.+)_\d+\.jpg$', item_tfms=Resize(48), bs=4, valid_pct=0, num_workers=0)
    empty = Learner(dls, learn.model, loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match='set is empty'): get_predictions(empty)


def test_loss_without_softmax_is_refused_and_repaired(learn):
    bare = Learner(learn.dls, learn.model, loss_func=nn.functional.cross_entropy)
    with pytest.raises(ValueError, match='softmax'): get_predictions(bare)
    p = get_predictions(bare, act=lambda x: x.softmax(-1))
    assert torch.allclose(p.probs, get_predictions(learn).probs, atol=1e-6)


def test_views_do_not_run_the_model_again(learn):
    p, calls = get_predictions(learn), []
    hook = learn.model.register_forward_hook(lambda *a: calls.append(1))
    p.confusion(); p.most_confused(); p.top_losses(3).plot(); p.per_breed(); p.reliability(); p.label_errors(); p.pair('Cat_red', 'dog_blue').plot()
    hook.remove()
    assert not calls


# Saved

def test_saved_and_loaded(tmp_path):
    p = Predictions(*some(), vocab4, [None] + [f'sub/{i} ä.jpg' for i in range(29)], torch.rand(30))
    q = Predictions.load(p.save(tmp_path/'p.safetensors'))
    for name in ('probs', 'targets', 'losses'): assert torch.equal(getattr(p, name), getattr(q, name))
    assert q.files == p.files and q.vocab == p.vocab and os.listdir(tmp_path) == ['p.safetensors']
    assert Predictions.load(tmp_path/'p.safetensors', folder=tmp_path).files[1] == tmp_path/'0 ä.jpg'


def test_other_files_are_refused(tmp_path):
    save_file(dict(a=torch.zeros(3)), tmp_path/'other.safetensors')
    with pytest.raises(ValueError, match='holds no predictions'): Predictions.load(tmp_path/'other.safetensors')
    with pytest.raises(FileNotFoundError): Predictions.load(tmp_path/'none.safetensors')


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    p, path = Predictions(*some(), vocab4), tmp_path/'p.safetensors'
    before = p.save(path).read_bytes()
    def fail(tensors, part, metadata=None): Path(part).write_bytes(b'half'); raise OSError('disk full')
    monkeypatch.setattr('pets_nb.interpretation.save_file', fail)
    with pytest.raises(OSError, match='disk full'): Predictions(*some(seed=1), vocab4).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['p.safetensors']


# Views

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 10**6))
def test_order_is_a_permutation_and_groups_stay_together(n_cats, n_dogs, seed):
    n = n_cats + n_dogs
    alike = np.random.default_rng(seed).random((n, n)) * (seed % 3 > 0)
    groups = np.random.default_rng(seed).permutation(['cat']*n_cats + ['dog']*n_dogs)
    order = order_by_likeness((alike + alike.T)/2, groups)
    assert sorted(order) == list(range(n)) and list(groups[order]) == sorted(groups)


def test_confusable_pairs_are_neighbours():
    pairs = [('Cat_a', 'Cat_k'), ('Cat_c', 'Cat_g'), ('dog_b', 'dog_y'), ('dog_d', 'dog_m')]
    for seed in range(3):
        c = synthetic_predictions(breeds, 1480, pairs, seed=seed).confusion()
        assert all(abs(c.vocab.index(a) - c.vocab.index(b)) == 1 for a, b in pairs)
        assert c.blocks == [12]


def test_confusion_order_of_ones_own():
    p = synthetic_predictions(breeds, 370)
    c = p.confusion(order=breeds[::-1], group=None)
    assert (c.counts == p.confusion_counts()[::-1, ::-1]).all() and list(c.table.index) == breeds[::-1]
    with pytest.raises(ValueError, match='36 of the 37'): p.confusion(order=breeds[:-1])
    with pytest.raises(ValueError, match='did you mean'): p.confusion(order=breeds[:-1] + ['dog_yy'])


@pytest.mark.parametrize('c', [2, 3, 37])
def test_plots_of_right_and_wrong_models(c):
    names = breeds[-c:]
    for probs in (torch.eye(c)*.9 + .1/c, torch.eye(c).roll(1, 0)*.9 + .1/c):
        p = Predictions(probs, torch.arange(c), names)
        ax = p.confusion().plot()
        assert len(ax.texts) == int(p.wrong.sum())
        p.per_breed().plot('recall'); p.reliability().plot()
        repr(p.confusion()), p.per_breed()._repr_html_(), repr(p.label_errors())


def test_breed_without_pictures():
    probs, targets = some(60, 5)
    p = Predictions(probs, targets.clamp_max(3), vocab4 + ['dog_absent'])
    t = p.per_breed().table.loc['dog_absent']
    assert t.support == 0 and t.recall == 0 and (t.recall_low, t.recall_high) == (0, 1)
    assert not p.label_errors().table[['p_label', 'p_suggested']].isna().any().any()
    assert not np.isnan(p.likeness()).any() and len(p.confusion().table) == 5
    assert p.pair('dog_absent', 'Cat_red').table.pictures['dog_absent'] == 0


def test_pair(learn):
    p = get_predictions(learn)
    view = p.pair('dog_blue', 'dog_dark', n=2)
    counts = pd.DataFrame(p.confusion_counts(), p.vocab, p.vocab)
    assert view.table.taken_for_the_other['dog_blue'] == counts.loc['dog_blue', 'dog_dark']
    assert (view.table.right + view.table.taken_for_the_other + view.table.other_errors == view.table.pictures).all()
    assert all(len(row) == 4 for row in view.examples)
    for f, title in (o for row in view.examples for o in row[:2] if o[1]): assert f.name.startswith('dog_blue') and title.startswith('dog blue')
    with pytest.raises(ValueError, match='two breeds'): p.pair('dog_blue', 'dog_blue')
    with pytest.raises(ValueError, match='did you mean dog_blue'): p.pair('dog_bleu', 'Cat_red')


def test_label_errors_tell_small_probabilities_apart():
    "A label at 0.005 % is more suspicious than one at 5 %, and a rounded zero is no infinity"
    p = Predictions([[.05, .95, 0.], [.00005, .6, .39995], [.4, .6, 0.], [1., 0., 0.], [0., .5, .5]], [0, 0, 0, 0, 0], ['a', 'b', 'c'])
    assert p.label_errors().table.index.tolist() == [4, 1, 0, 2, 3]
    assert np.isfinite(p.label_errors().table.log_ratio).all() and p.label_errors(2).table.index.tolist() == [4, 1]


def test_missing_pictures_are_named(tmp_path):
    p = Predictions(*some(), vocab4, [tmp_path/f'{i}.jpg' for i in range(30)])
    with pytest.raises(FileNotFoundError, match='4 of 4 pictures cannot be shown'): p.top_losses(4).plot()
    with pytest.raises(FileNotFoundError, match='give `files`'): Predictions(*some(), vocab4).top_losses(4).plot()


def test_odd_pictures_can_be_shown(tmp_path):
    Image.new('P', (30, 500)).save(tmp_path/'a.gif')
    Image.new('RGBA', (300, 20)).save(tmp_path/'b.png')
    (tmp_path/'a.gif').rename(tmp_path/'a.jpg')
    assert len(plot_pictures([tmp_path/'a.jpg', tmp_path/'b.png', None], ['a', 'b', None])) == 3


def test_top_losses_ends():
    p = Predictions(*some(), vocab4)
    assert len(p.top_losses(100)) == 30
    assert p.top_losses(1, largest=False).table.loss.iloc[0] == pytest.approx(p.losses.min().item())


def test_most_confused_refuses_zero():
    with pytest.raises(ValueError, match='at least 1'): Predictions(*some(), vocab4).most_confused(0)


# Calibration

def test_ece_against_a_direct_loop():
    p = synthetic_predictions(breeds, 1480, sharpness=2)
    conf, right, ece = p.confidence.double().numpy(), ~p.wrong.numpy(), 0
    for i in range(15):
        here = (conf > i/15) & (conf <= (i + 1)/15)
        if here.any(): ece += here.mean() * abs(right[here].mean() - conf[here].mean())
    assert p.reliability().ece == pytest.approx(ece, abs=1e-9)


@pytest.mark.parametrize('true', [0.5, 1., 2.5])
def test_temperature_is_recovered(true):
    p = synthetic_predictions(breeds, 3700, sharpness=true)
    t = fit_temperature(p.probs, p.targets)
    assert t == pytest.approx(true, rel=0.06)
    best = min(np.linspace(.8, 1.2, 41)*t, key=lambda o: p.scaled(float(o)).mean_loss)
    assert best == pytest.approx(t, rel=1e-3)
    assert torch.equal(p.scaled(t).predicted, p.predicted)


def test_no_temperature():
    with pytest.raises(ValueError, match='are right'): fit_temperature(torch.eye(4)*.8 + .05, torch.arange(4))
    with pytest.raises(ValueError, match='check the labels'): fit_temperature(torch.eye(4)*.8 + .05, torch.tensor([1, 2, 3, 0]))
    with pytest.raises(ValueError, match='above 0'): Predictions(*some(), vocab4).scaled(0)
    with pytest.raises(ValueError, match='two halves'): Predictions(*some(1), vocab4).temperature_scaling()


# Label errors

@pytest.mark.parametrize('seed', range(3))
def test_planted_label_errors_are_found(seed):
    p = synthetic_predictions(breeds, 3700, [('Cat_a', 'Cat_k'), ('dog_b', 'dog_y')], seed=seed)
    labels, planted = plant_wrong_labels(p.targets, 37, .03, seed)
    assert planted.sum() == 111 and (labels[planted] != p.targets[planted]).all() and (labels[~planted] == p.targets[~planted]).all()
    errors = Predictions(p.probs, labels, breeds).label_errors()
    first = errors.table.index[:round(.05*3700)]
    assert planted[first].sum() >= .8*111
    assert (errors.table.log_ratio.diff().dropna() <= 0).all()
    marked = errors.table.index[errors.table.confident]
    assert planted[marked].sum() >= .8*111 and errors.n_confident == len(marked)


# Grad-CAM

def test_grad_cam_leaves_the_model_as_it_was(learn, folder):
    body = learn.model[0]
    for p in body.parameters(): p.requires_grad_(False)
    learn.model.train(); body[1].eval()
    state = {k: v.clone() for k, v in learn.model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in learn.model.parameters()]
    cam = grad_cam(learn, sorted(folder.glob('*.jpg'))[0], 'Cat_red')
    assert cam.maps.shape[0] == 1 and cam.maps.min() >= 0 and cam.maps.max() <= 1
    assert learn.model.training and body[0].training and not body[1].training
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in state.items())
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(grads, (p.grad for p in learn.model.parameters())))
    assert not any(m._forward_hooks for m in learn.model.modules())


def test_grad_cam_finds_the_square():
    "A layer that passes on the red channel only: the heat must lie where the picture is red"
    model = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)))
    model[0].weight.data = torch.tensor([1., 0, 0])[None, :, None, None]
    model[1][2].weight.data = torch.tensor([[1.], [-1.]])
    x = torch.zeros(1, 3, 16, 16)
    x[:, 0, 4:8, 10:14] = 1
    x[:, 2] = 1
    cam = grad_cam(model, x, 0)
    assert torch.equal(cam.maps, x[:, 0]) and grad_cam(model, x, 1).maps.sum() == 0
    assert isinstance(cam, GradCAM) and len(cam.plot()) == 1


@pytest.mark.parametrize('layer', ['0.0', '0.2', '0.4', '0'])
def test_grad_cam_equals_two_plain_hooks(learn, layer):
    "The textbook's way, with retain_grad on a model all of whose weights want gradients"
    model, x = learn.model.eval(), torch.randn(2, 3, 48, 48)
    kept = {}
    def hook(m, i, out):
        kept['a'] = out if out.requires_grad else out.requires_grad_()
        kept['a'].retain_grad()
        kept['value'] = out.detach().clone()
        return out.clone()
    h = model.get_submodule(layer).register_forward_hook(hook)
    model.zero_grad(); model(x)[:, 1].sum().backward(); h.remove()
    expected = (kept['a'].grad.mean((2, 3), keepdim=True)*kept['value']).sum(1).relu()
    torch.testing.assert_close(grad_cam_maps(model, x, 1, layer)[0], expected)
    model.zero_grad(set_to_none=True)


def test_grad_cam_refuses(learn, folder):
    x = torch.rand(1, 3, 48, 48)
    with pytest.raises(ValueError, match='needs maps of shape'): grad_cam(learn.model, x, layer='1.2')
    with pytest.raises(ValueError, match="no layer '0.9'"): grad_cam(learn.model, x, layer='0.9')
    class Plain(nn.Module):
        def forward(self, x): return x.mean((2, 3))
    with pytest.raises(ValueError, match='say which layer'): grad_cam(Plain(), x)
    with pytest.raises(ValueError, match='did you mean'): grad_cam(learn, sorted(folder.glob('*.jpg'))[0], 'Cat_rod')
    with pytest.raises(ValueError, match='expected float'): grad_cam(learn.model, (x*255).byte())
    with pytest.raises(ValueError, match='No pictures'): grad_cam(learn, [])
    assert not any(m._forward_hooks for m in learn.model.modules())


def test_grad_cam_takes_pil_images_and_shows_the_picture(learn, folder):
    f = sorted(folder.glob('*.jpg'))[0]
    a, b = grad_cam(learn, [f, f]), grad_cam(learn, Image.open(f).convert('RGB'))
    torch.testing.assert_close(a.maps[:1], b.maps)
    assert 0 <= a.pictures.min() and .3 < a.pictures.max() <= 1 and a.pictures.mean() > .2
    assert a.table.file.tolist() == [f.name]*2


# Out of fold

@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_folds_are_stratified(n_folds, seed):
    targets = torch.arange(60) % 5
    folds = stratified_folds(targets, n_folds, seed)
    per = torch.stack([(targets[folds == i]).bincount(minlength=5) for i in range(n_folds)])
    assert per.sum() == 60 and (per.amax(0) - per.amin(0)).max() <= 1


def test_each_picture_is_predicted_by_a_head_that_has_not_seen_it():
    x, targets, seen = torch.arange(40.)[:, None], torch.arange(40) % 4, []
    def fit(xs, ys, c):
        def head(q):
            seen.append((set(xs[:, 0].tolist()), set(q[:, 0].tolist())))
            return torch.zeros(len(q), c)
        return head
    out_of_fold(x, targets, vocab4, fit=fit)
    assert len(seen) == 5 and all(not a & b for a, b in seen) and set.union(*(b for _, b in seen)) == set(range(40))
    with pytest.raises(ValueError, match='folds for 40'): out_of_fold(x, targets, vocab4, n_folds=41)


def test_linear_head_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 6, generator=gen)*3 + 1, torch.arange(120) % 4
    x[:, 0] += y
    z = (x - x.mean(0))/x.std(0)
    ref = LogisticRegression(C=1/(.001*120), max_iter=2000, tol=1e-10).fit(z, y).predict_proba(z)
    np.testing.assert_allclose(fit_linear_head(x, y, 4)(x).softmax(1), ref, atol=2e-3)


def test_out_of_fold_of_a_folder(learn, folder):
    features = folder_features(learn.model[0], folder.glob('*.jpg'), size=48)
    runs = [out_of_fold(*features, seed=seed) for seed in (0, 1)]
    assert [len(r) for r in runs] == [48, 48] and runs[0].error < .5
    t = pair_counts(runs)
    assert [p.name.rsplit('_', 1)[0] for p in runs[0].files] == [runs[0].vocab[i] for i in runs[0].targets]
    assert len(t) == 6 and t.together.sum() == pytest.approx(np.mean([r.wrong.sum() for r in runs])) and t.together.is_monotonic_decreasing
    one = body_features(learn.model[0], [runs[0].files[5]], 48)
    torch.testing.assert_close(one, body_features(learn.model[0], runs[0].files[:10], 48, bs=3)[5:6])


# Memory

program = '''
import os, resource, sys, threading
os.environ["OMP_NUM_THREADS"] = "1"
import matplotlib; matplotlib.use("Agg")
from pets_nb.interpretation import synthetic_predictions
names = ["Cat_%d" % i for i in range(12)] + ["dog_%d" % i for i in range(25)]
def views(p):
    p.confusion().plot(), p.most_confused(), p.top_losses(50), p.per_breed().plot(), p.reliability().plot(), p.label_errors(), p.temperature_scaling()
    p.pair("Cat_0", "Cat_1")
views(synthetic_predictions(names, 2000))
p = synthetic_predictions(names, 100_000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
views(p)
print((peak() - before)/1024, p.probs.nbytes/2**20)
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='needs the resource module')
def test_memory_of_100_000_predictions():
    out = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    grown, size = map(float, out.stdout.split()[-2:])
    assert grown < 25*size, f'{grown:.0f} MB for {size:.0f} MB of probabilities'
