"Features, heads and fine-tuning from a fitted head: what is no lesson."
import time
import pytest, torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from pets_nb.engine.drawn import draw_pets
from pets_nb.engine.features import _choose_l2, _folds, fit_head, get_features, head_first
from pets_nb.engine.learner import get_logits, pets_learner, quiet
from pets_nb.engine.loaders import pets_dls

def blobs(n=400, d=30, c=5, seed=0, spread=1.):
    "Features of `c` overlapping classes"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n)%c
    return torch.randn(c, d, generator=g)[y]*spread + torch.randn(n, d, generator=g), y

@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    folder = tmp_path_factory.mktemp('d')/'pets'
    path = draw_pets(folder, n_per_breed=8, breeds=['Abyssinian', 'pug', 'samoyed'], seed=3, traps=False)
    return pets_dls(path, size=64, bs=8, verbose=False, speed=None)

def learner(dls, arch='small_network', weights='default', **kwargs):
    return pets_learner(dls, arch, weights, verbose=False, precision='float32', **kwargs)

def error(learn):
    logits,y = get_logits(learn)
    return (logits.argmax(1)!=y).float().mean().item()

@pytest.mark.parametrize('l2', [1., 0.03, 1e-3])
def test_as_scikit_learn(l2):
    x,y = blobs()
    x = x*torch.linspace(0.01, 100, 30) + 7 # scales of very different size
    z = (x-x.mean(0))/x.std(0)
    theirs = LogisticRegression(C=1/(l2*len(y)), tol=1e-8, max_iter=5000).fit(z.double(), y)
    ours = fit_head(x, y, l2)(x).softmax(1).detach().numpy()
    assert abs(ours-theirs.predict_proba(z.double())).max() < 1e-3

def test_penalty_is_chosen_on_the_training_set_and_fits_the_noise():
    "Noisier features ask for a larger penalty"
    chosen = [fit_head(*blobs(spread=o)).l2 for o in (0.1, 1.)]
    assert chosen[0] > chosen[1]

def test_folds_are_even_and_repeatable():
    y = torch.tensor([0]*10+[1]*5+[2])
    fold = _folds(y, 5)
    assert sorted(fold[:10].tolist())==[0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and sorted(fold[10:15].tolist())==[0, 1, 2, 3, 4]
    assert torch.equal(fold, _folds(y, 5))

def test_constant_features_and_classes_with_one_image():
    x,y = blobs(60)
    x[:,3] = 2.5
    y[-1] = 5
    head = fit_head(x, y)
    assert head.weight.isfinite().all() and head.out_features==6 and head(x).argmax(1)[-1]==5

def test_what_cannot_be_fitted_is_refused():
    x,y = blobs(60)
    with pytest.raises(ValueError, match='at least two classes'): fit_head(x, y*0)
    x[4,4] = float('nan')
    with pytest.raises(ValueError, match='features of 1 images'): fit_head(x, y)

def test_7000_by_1280_takes_seconds():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(7000)%37
    x = torch.randn(37, 1280, generator=g)[y]*0.3 + torch.randn(7000, 1280, generator=g)
    start = time.process_time()
    fit_head(x, y)
    assert time.process_time()-start < 120 # CPU time; about 20 s alone on the machine

def test_features_leave_the_learner_alone(dls):
    learn = learner(dls)
    before,head,rng = get_logits(learn)[0],learn.model[1],torch.get_rng_state()
    x,y = get_features(learn)
    assert x.shape[0]==len(dls.train_ds)==len(y) and x.dtype==torch.float32
    assert learn.model[1] is head and torch.equal(before, get_logits(learn)[0])
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(x, get_features(learn)[0]), 'the training images were augmented'

def test_features_of_files_have_no_targets(dls):
    learn = learner(dls)
    x,y = get_features(learn, list(dls.valid_ds.items[:3]), mirror=False)
    assert y is None and torch.allclose(learn.model[1][-1](x), get_logits(learn)[0][:3], atol=1e-4)

def test_mirror_averages_both_images(dls):
    learn = learner(dls)
    files = list(dls.valid_ds.items[:4])
    both,one = (get_features(learn, files, mirror=o)[0] for o in (True, False))
    class Flip(nn.Module):
        def __init__(self, body): super().__init__(); self.body = body
        def forward(self, x): return self.body(x.flip(-1))
    learn.model[0] = Flip(learn.model[0])
    assert torch.allclose(both, (one + get_features(learn, files, mirror=False)[0])/2, atol=1e-4)

def test_mirror_stays_with_the_model(dls, tmp_path):
    from pets_nb.engine.bundle import Predictor, save_bundle
    learn = learner(dls)
    with quiet(learn): head_first(learn, mirror=True)
    x,_ = get_features(learn, dls.valid, mirror=True)
    logits,_ = get_logits(learn)
    assert torch.allclose(learn.model[1][-1](x), logits, atol=1e-4)
    images = next(iter(dls.valid))[0]
    assert torch.allclose(learn.model.eval()(images), learn.model(images.flip(-1)), atol=1e-4)
    learn.model.train()
    assert learn.model.mirror and not torch.allclose(learn.model(images), learn.model(images.flip(-1)), atol=1e-4)
    model = Predictor(save_bundle(learn, tmp_path/'model')).model
    assert model.mirror and torch.allclose(model(images), learn.model.eval()(images), atol=1e-4)

def test_fast_and_better_than_a_random_head(dls):
    learn = learner(dls)
    before = error(learn)
    head_first(learn)
    assert learn.history.table.error_rate.tolist()==[pytest.approx(error(learn))]
    assert error(learn) <= before

@pytest.mark.parametrize('arch', ['small_network', 'resnet18', 'mobilenet_v3_small', 'densenet121', 'efficientnet_lite0'])
def test_every_kind_of_architecture(dls, arch):
    learn = learner(dls, arch, 'none')
    x,y = get_features(learn, dls.valid, mirror=False)
    assert torch.allclose(learn.model[1][-1](x), get_logits(learn)[0], atol=1e-3)
    head_first(learn)
    assert len(learn.history.rows)==1

def test_never_ends_worse_than_the_head(dls, capsys):
    learn = learner(dls)
    with learn.no_bar(), learn.no_logging(): head_first(learn, epochs=1, lr=0.3)
    rows = learn.history.table.error_rate
    assert error(learn) <= rows.iloc[0]
    if rows.iloc[-1] > rows.iloc[0]: assert 'put back' in capsys.readouterr().out

def test_statistics_of_batch_normalisation_stay(dls):
    learn = learner(dls)
    kept = {k: v.clone() for k,v in learn.model.state_dict().items() if 'running' in k}
    with quiet(learn): head_first(learn, epochs=1, lr=1e-5)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in kept.items())

def test_two_linear_layers_are_refused(dls):
    with pytest.raises(ValueError, match="head='linear'"): head_first(learner(dls, head='fastai'))
