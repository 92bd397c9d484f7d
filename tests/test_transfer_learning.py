"Transfer learning: schedules and weights against fastai for random settings, heads and cuts of many architectures, records that survive faults."
import json, os
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
import pets_nb
from pets_nb import transfer_learning as tl
from pets_nb.baseline import BFloat16
from pets_nb.small_network import small_network
import torchvision
from fastai.callback.schedule import combined_cos, ParamScheduler
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import Adam
from fastai.torch_core import params, set_seed
from fastai.vision import learner as fastai_vision
from fastcore.foundation import L

quick = settings(max_examples=25, deadline=None)
shares = st.floats(0.01, 0.99)
rates = st.floats(1e-7, 1.)

def toy_learner(n_groups=3, n_batches=5, seed=0):
    "A learner of some small linear layers, one for each group"
    set_seed(seed)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4,4), nn.BatchNorm1d(4)) for _ in range(n_groups)))
    batches = [(torch.randn(8,4), torch.randn(8,4)) for _ in range(n_batches)]
    class Batches(list):
        device = torch.device('cpu')
    dls = DataLoaders(Batches(batches), Batches(batches[:1]), device='cpu')
    learn = Learner(dls, model, nn.MSELoss(), cbs=tl.RateRecorder(), splitter=lambda m: L(m.children()).map(params))
    return tl._quiet(learn)

def same(a, b): return all(torch.equal(x, y) for x,y in zip(a.model.state_dict().values(), b.model.state_dict().values()))

@quick
@given(pct=shares, start=rates, middle=rates, end=rates, pos=st.floats(0, 0.999999))
def test_one_cycle_is_fastais(pct, start, middle, end, pos):
    assert tl.one_cycle(pos, start, middle, end, pct)==combined_cos(pct, start, middle, end)(pos)

@quick
@given(epochs=st.integers(1, 3), n_batches=st.integers(1, 7), n_groups=st.integers(1, 4), pct=shares, div=st.floats(1, 100), div_final=st.floats(1, 1e6),
       rate=st.one_of(rates, rates.map(slice), st.tuples(rates, rates).map(lambda o: slice(*o))))
def test_fit_one_cycle_is_fastais(epochs, n_batches, n_groups, pct, div, div_final, rate):
    ours,theirs = toy_learner(n_groups, n_batches),toy_learner(n_groups, n_batches)
    tl.fit_one_cycle(ours, epochs, rate, div=div, div_final=div_final, pct_start=pct)
    theirs.fit_one_cycle(epochs, rate, div=div, div_final=div_final, pct_start=pct)
    assert len(ours.rate_recorder.rows)==epochs*n_batches
    assert ours.rate_recorder.rows==theirs.rate_recorder.rows
    planned = tl.cycle_table(epochs, n_batches, tl.spread_rates(rate, n_groups), div=div, div_final=div_final, pct_start=pct)
    assert planned.values.tolist()==ours.rate_recorder.rows
    assert same(ours, theirs)

@quick
@given(epochs=st.integers(1, 3), freeze_epochs=st.integers(1, 2), n_groups=st.integers(2, 5), base_lr=rates, lr_mult=st.floats(1, 1e4), pct=shares, div=st.floats(1, 50))
def test_fine_tune_is_fastais(epochs, freeze_epochs, n_groups, base_lr, lr_mult, pct, div):
    ours,theirs = toy_learner(n_groups),toy_learner(n_groups)
    args = dict(base_lr=base_lr, freeze_epochs=freeze_epochs, lr_mult=lr_mult, pct_start=pct, div=div)
    tl.fine_tune(ours, epochs, **args)
    theirs.fine_tune(epochs, **args)
    assert ours.rate_recorder.rows==theirs.rate_recorder.rows and same(ours, theirs)

def test_another_schedule_is_noticed():
    "The comparison above can fail"
    ours,theirs = toy_learner(),toy_learner()
    tl.fit_one_cycle(ours, 2, 1e-3, pct_start=0.25)
    theirs.fit_one_cycle(2, 1e-3, pct_start=0.26)
    assert ours.rate_recorder.rows!=theirs.rate_recorder.rows and not same(ours, theirs)

def test_bad_settings_are_named():
    learn = toy_learner()
    with pytest.raises(ValueError, match='pct_start is 1.5'): tl.fit_one_cycle(learn, 1, 1e-3, pct_start=1.5)
    with pytest.raises(ValueError, match='2 rates for 3'): tl.fit_one_cycle(learn, 1, [1e-3,1e-4])
    with pytest.raises(ValueError, match='gives no rates'): tl.spread_rates(slice(1e-3, None), 3)
    with pytest.raises(ValueError, match='has 3 groups'): tl.freeze_to(learn, -4)

@pytest.mark.parametrize('train_bn', [True, False])
@pytest.mark.parametrize('n', [-1, 0, 1, 2])
def test_freeze_is_fastais(n, train_bn):
    ours,theirs = toy_learner(),toy_learner()
    theirs.train_bn = train_bn
    tl.freeze_to(ours, n, train_bn=train_bn)
    theirs.freeze_to(n)
    assert [p.requires_grad for p in ours.model.parameters()]==[p.requires_grad for p in theirs.model.parameters()]
    assert ours.opt.frozen_idx==theirs.opt.frozen_idx

def test_frozen_again_does_not_decay():
    learn = toy_learner()
    tl.fit_one_cycle(learn, 1, 1e-2)
    tl.freeze_to(learn, -1)
    before = tl.snapshot(learn.model)
    tl.fit_one_cycle(learn, 1, 1e-2, wd=0.5)
    after = learn.model.state_dict()
    assert torch.equal(before['0.0.weight'], after['0.0.weight']) and not torch.equal(before['2.0.weight'], after['2.0.weight'])

@pytest.mark.parametrize('name', ['resnet18','resnet50','vgg11_bn','alexnet','squeezenet1_0'])
def test_cut_is_fastais(name):
    arch = getattr(torchvision.models, name)
    with torch.device('meta'): net = arch()
    for n in (None, fastai_vision.model_meta[arch]['cut']):
        assert list(tl.cut(net, n).state_dict())==list(fastai_vision.create_body(net, cut=n).state_dict())

def test_cut_of_a_nested_network_is_loud():
    "All of DenseNet's pooling is inside its first child: fastai's rule leaves an empty body and says nothing"
    with torch.device('meta'): net = torchvision.models.densenet121()
    assert len(fastai_vision.create_body(net))==0
    with pytest.raises(ValueError, match='leaves nothing of the 2 children of DenseNet'): tl.cut(net)
    assert list(tl.cut(net, -1).state_dict())==list(fastai_vision.create_body(net, cut=-1).state_dict())

def test_cut_faults():
    with pytest.raises(ValueError, match='no pooling layer in Sequential'): tl.cut(nn.Sequential(nn.Linear(2,2)))
    with pytest.raises(ValueError, match='leaves nothing'): tl.cut(nn.Sequential(nn.MaxPool2d(2), nn.Linear(2,2)))

@quick
@given(nf=st.integers(1, 40), n_out=st.integers(1, 40), hidden=st.integers(1, 60), p=st.floats(0, 0.9))
def test_head_is_fastais(nf, n_out, hidden, p):
    set_seed(1); ours = tl.create_head(nf, n_out, hidden, p)
    set_seed(1); theirs = fastai_vision.create_head(nf, n_out, lin_ftrs=[hidden], ps=max(p, 1e-6))
    assert all(torch.equal(a, b) for a,b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    x = torch.randn(4,nf,3,5)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert ours(x).shape==(4,n_out)

def test_head_gradients():
    set_seed(1); ours = tl.create_head(8, 3)
    set_seed(1); theirs = fastai_vision.create_head(8, 3)
    x = torch.randn(4,8,3,3)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    for head,o in zip((ours,theirs), xs): head.eval()(o).square().sum().backward()
    assert torch.equal(xs[0].grad, xs[1].grad)

def test_replace_head_keeps_the_mode_and_the_weights():
    net = small_network().eval()
    new = tl.replace_head(net, 5)
    assert not new[0].training and new(torch.zeros(2,3,64,64)).shape==(2,5)
    assert new[0][0][0].weight is net[0][0].weight

def test_layer_activations_leaves_no_hooks():
    body = tl.cut(small_network()).train()
    def fail(*_): raise RuntimeError('stop')
    handle = body[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='stop'): tl.layer_activations(body, torch.zeros(2,3,32,32))
    handle.remove()
    assert body.training and not any(m._forward_hooks for m in body)

def test_readout_finds_what_is_there():
    y = torch.arange(60)%3
    x = torch.randn(60,8, generator=torch.Generator().manual_seed(0))
    x[:,:3] += 4*nn.functional.one_hot(y).float()
    assert (tl.linear_readout(x[:40], y[:40], x[40:])==y[40:]).float().mean()>0.9

def test_movement():
    learn = toy_learner(2)
    learn.create_opt()
    before = tl.snapshot(learn.model)
    with torch.no_grad(): learn.model[1][0].weight.mul_(1.5)
    assert tl.movement(learn, before).tolist()==pytest.approx([0, 0.5])

def test_picture_array_faults():
    with pytest.raises(ValueError, match='2 pictures and 1 breeds'): tl.PictureArray(torch.zeros(2,3,4,4, dtype=torch.uint8), ['pug'])

def test_memory_dls_augments_only_training():
    pixels = torch.randint(0, 256, (20,3,16,16), dtype=torch.uint8)
    pictures = tl.PictureArray(pixels, ['a','b']*10)
    dls = tl.memory_dls(pictures, size=16, bs=16, device='cpu')
    valid = lambda: dls.valid.one_batch()[0]
    assert torch.equal(valid(), valid())
    assert not torch.equal(dls.train.new(shuffle=False).one_batch()[0], dls.train.new(shuffle=False).one_batch()[0])
    x,y = dls.valid.one_batch()
    assert torch.allclose(x[0].float()*255, pixels[dls.valid.items[0]].float(), atol=1.)

# The chapter's runs

@pytest.fixture(scope='module')
def few(tmp_path_factory):
    from pets_nb.drawn import draw_pets
    return draw_pets(tmp_path_factory.mktemp('few'), n_per_breed=5, breeds=['Abyssinian','Bengal','beagle'], progress=False, traps=False)

args = dict(size=32, bs=8, weights='none', workers=0, verbose=False)

def test_chapter_resumes(few, tmp_path, monkeypatch):
    real,calls = tl._run,[]
    def stopped(name, *rest):
        calls.append(name)
        if len(calls)==2: raise KeyboardInterrupt
        real(name, *rest)
    monkeypatch.setattr(tl, '_run', stopped)
    with pytest.raises(KeyboardInterrupt): tl.run_chapter(str(few), tmp_path, runs='rate-too-high,two-epochs', **args)
    assert [o.name for o in tmp_path.iterdir()]==['rate-too-high-seed42.json']
    table = tl.run_chapter(str(few), tmp_path, runs='rate-too-high, two-epochs', **args)
    assert calls==['rate-too-high','two-epochs','two-epochs']
    assert table.loc['two-epochs',('ours','seeds')]==1 and table.loc['six-epochs',('ours','seeds')]==0
    record = json.loads((tmp_path/'two-epochs-seed42.json').read_text())
    assert [o['frozen'] for o in record['history']]==[True,False,False]
    assert record['machine']['torch']==torch.__version__.split('+')[0] or record['machine']['torch']==torch.__version__
    assert record['settings']['seed']==42 and record['train']+record['valid']==15
    assert table.loc['two-epochs',('ours','final %')]==round(100*record['history'][-1]['error_rate'], 2)
    assert str(few) not in (tmp_path/'two-epochs-seed42.json').read_text()

def test_chapter_repeats_itself(few, tmp_path):
    for o in 'ab': tl.run_chapter(str(few), tmp_path/o, runs='two-epochs', **args)
    a,b = (json.loads((tmp_path/o/'two-epochs-seed42.json').read_text())['history'] for o in 'ab')
    assert [r['valid_loss'] for r in a]==[r['valid_loss'] for r in b]

def test_broken_record_is_done_again(few, tmp_path, capsys):
    file = tmp_path/'two-epochs-seed42.json'
    file.write_text('{"settings": ')
    tl.run_chapter(str(few), tmp_path, runs='two-epochs', **args)
    assert 'not a complete record' in capsys.readouterr().out
    assert len(json.loads(file.read_text())['history'])==3

def test_other_settings_are_refused(few, tmp_path):
    tl.run_chapter(str(few), tmp_path, runs='two-epochs', **args)
    with pytest.raises(ValueError, match="bs: 8, now 4"): tl.run_chapter(str(few), tmp_path, runs='two-epochs', **{**args, 'bs': 4})
    with pytest.raises(ValueError, match="bs: 8, elsewhere 4"): tl.run_chapter(str(few), tmp_path, runs='two-epochs', seed=43, **{**args, 'bs': 4})
    with pytest.raises(ValueError, match="weights: 'none', now 'small_network.safetensors, sha256"):
        tl.run_chapter(str(few), tmp_path, runs='two-epochs', **{**args, 'weights': 'default'})
    assert len(tl.run_chapter(str(few), tmp_path, runs='two-epochs', seed=43, **args))==len(tl.CHAPTER_RUNS)
    assert tl.chapter_table(tmp_path).loc['two-epochs',('ours','seeds')]==2

def test_other_pictures_are_refused(few, tmp_path):
    import shutil
    from PIL import Image
    pets = Path(shutil.copytree(few, tmp_path/'pets'))
    tl.run_chapter(str(pets), tmp_path/'runs', runs='rate-too-high', **args)
    file = pets/'images'/'beagle_1.jpg'
    Image.open(file).convert('RGB').resize((90,90)).save(file)
    with pytest.raises(ValueError, match="files: '.*', now '"): tl.run_chapter(str(pets), tmp_path/'runs', runs='rate-too-high', **args)

def test_recipes_resume(tmp_path):
    pictures = tl.PictureArray(torch.randint(0, 256, (20,3,16,16), dtype=torch.uint8), ['a','b']*10)
    done = []
    def recipe(name, fail=False):
        def run(new):
            if fail: raise KeyboardInterrupt
            learn = new(weights=None)
            tl.fit_one_cycle(learn, 1, 1e-3)
            learn.notes = dict(steps=learn.train_iter)
            done.append(name)
            return learn
        return run
    args = dict(seeds=(1,), size=32, bs=8, records=tmp_path)
    with pytest.raises(KeyboardInterrupt): tl.try_recipes(pictures, dict(a=recipe('a'), b=recipe('b', True)), **args)
    table = tl.try_recipes(pictures, dict(a=recipe('a'), b=recipe('b')), **args)
    assert done==['a','b'] and table.steps.tolist()==[2,2] and table.error.between(0, 1).all()
    tl.try_recipes(pictures, dict(a=recipe('a')), **{**args, 'bs': 4})
    tl.try_recipes(pictures, dict(a=recipe('a')), about=dict(epochs=2), **args)
    assert done==['a','b','a','a']
    fresh = tl.try_recipes(pictures, dict(a=recipe('a'), b=recipe('b')), **{**args, 'records': None})
    assert fresh[['error','valid_loss']].equals(table[['error','valid_loss']])
    assert len(tl.summarize(fresh))==2

def test_chapter_faults(few, tmp_path):
    with pytest.raises(ValueError, match='no such run: three-epochs'): tl.run_chapter(str(few), tmp_path, runs='three-epochs', **args)
    with pytest.raises(ValueError, match="no such run: , x;"): tl.run_chapter(str(few), tmp_path, runs='two-epochs,,x', **args)
    with pytest.raises(ValueError, match="precision is 'int8'"): tl.run_chapter(str(few), tmp_path, precision='int8', **args)
    with pytest.raises(FileNotFoundError): tl.run_chapter(str(few), tmp_path, runs='two-epochs', **{**args, 'weights': str(tmp_path/'none.safetensors')})

def test_precision_bfloat16_sees_the_new_weights():
    "Autocast around a whole training would go on with the first step's weights"
    def final_loss(cbs):
        learn = toy_learner(n_batches=10)
        learn.add_cbs(cbs)
        tl.fit_one_cycle(learn, 6, 1e-2)
        return learn.recorder.values[-1][0]
    full,half = final_loss([]),final_loss([BFloat16()])
    with torch.autocast('cpu', torch.bfloat16, cache_enabled=True): stale = final_loss([])
    assert stale > full and abs(half-full) < 0.1*(stale-full)

@pytest.mark.skipif(not os.getenv('PETS_NB_WEIGHTS'), reason='needs a file of resnet18 weights, PETS_NB_WEIGHTS')
def test_real_weights_fit():
    from pets_nb.baseline import load_weights
    net = load_weights(torchvision.models.resnet18(), os.environ['PETS_NB_WEIGHTS'])
    assert tl.replace_head(net, 37).eval()(torch.zeros(1,3,64,64)).shape==(1,37)
