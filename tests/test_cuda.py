"What a GPU must do: run by `pytest -m cuda` (the default run skips it where there is none)."
import numpy as np, pytest, torch
from PIL import Image
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')]

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root,rng = tmp_path_factory.mktemp('pets'),np.random.default_rng(0)
    for breed,color in (('pug',(200,80,60)), ('Birman',(60,90,200)), ('beagle',(70,190,80))):
        for i in range(12):
            low = rng.normal(color, 25, (5,6,3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(low).resize((160+i, 120), Image.Resampling.BICUBIC).save(root/f'{breed}_{i}.jpg', quality=92)
    return root

def loaders(folder, **speed):
    from pets_nb.engine.loaders import Speed, pets_dls
    return pets_dls(folder, size=64, bs=8, speed=Speed(**speed), device='cuda', verbose=False)

def learner(folder, precision='float32', **kw):
    from pets_nb.engine.learner import pets_learner
    return pets_learner(loaders(folder, workers=0), 'small_network', precision=precision, verbose=False, **kw)

def test_the_device_decodes_what_the_processor_does(folder, capsys):
    a,b = (next(iter(loaders(folder, on_device=o, workers=0).valid))[0].float().cpu() for o in (True, False))
    assert a.shape==b.shape and (10*torch.log10(1/((a-b)**2).mean((1,2,3)))).min()>28

@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16'])
def test_training_in_every_precision(folder, precision):
    from pets_nb.engine.learner import quiet
    learn = learner(folder, precision)
    with quiet(learn): learn.fine_tune(2)
    assert all(o.isfinite().all() for o in learn.model.state_dict().values()) and np.isfinite(learn.history.table.valid_loss).all()
    assert not torch.is_autocast_enabled('cuda') and (torch.ones(2,2, device='cuda')@torch.ones(2,2, device='cuda')).dtype==torch.float32

def test_an_interrupted_step_leaves_no_autocast(folder):
    from fastai.callback.core import Callback
    from pets_nb.engine.learner import quiet
    class Stop(Callback):
        def after_pred(self): raise KeyboardInterrupt
    learn = learner(folder, 'bfloat16')
    with pytest.raises(KeyboardInterrupt), quiet(learn): learn.fit(1, cbs=Stop())
    assert not torch.is_autocast_enabled('cuda') and (torch.ones(2,2, device='cuda')@torch.ones(2,2, device='cuda')).dtype==torch.float32

def test_restored_puts_everything_back(folder):
    from pets_nb.engine.learner import quiet, restored
    learn = learner(folder)
    with quiet(learn): learn.fit_one_cycle(1, 1e-3)
    before,state = {k: v.clone() for k,v in learn.model.state_dict().items()},torch.cuda.get_rng_state()
    with restored(learn), quiet(learn): learn.fit_one_cycle(1, 1e-1)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()) and torch.equal(state, torch.cuda.get_rng_state())

def test_features_first(folder):
    from pets_nb.engine.features import head_first
    from pets_nb.engine.learner import quiet
    learn = learner(folder, 'bfloat16')
    with quiet(learn): head_first(learn, 1)
    assert len(learn.history.rows)>=2 and learn.history.rows[0]['error_rate']<0.5

def test_a_bundle_answers_as_the_learner_on_the_gpu(folder, tmp_path):
    from pets_nb.engine.bundle import Predictor, save_bundle
    from pets_nb.engine.learner import get_logits
    learn = learner(folder)
    z,_ = get_logits(learn)
    x = next(iter(learn.dls.valid))[0]
    pixels = (x.permute(0,2,3,1)*255).round().to(torch.uint8).cpu().numpy()
    bundle = save_bundle(learn, tmp_path/'bundle')
    for device in ('cuda','cpu'): assert torch.allclose(Predictor(bundle, device).logits(pixels).softmax(1), z[:len(x)].softmax(1), atol=2e-3)

def test_a_resumed_run_ends_with_the_same_weights(folder, tmp_path):
    from pets_nb.engine.checkpoints import resumable
    from pets_nb.engine.learner import quiet
    whole = learner(folder)
    with quiet(whole), resumable(whole, tmp_path/'whole'): whole.fit_one_cycle(2, 1e-3)
    again = learner(folder)
    with quiet(again), resumable(again, tmp_path/'whole'): again.fit_one_cycle(2, 1e-3)
    assert all(torch.equal(v, again.model.state_dict()[k]) for k,v in whole.model.state_dict().items())
