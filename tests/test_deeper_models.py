"Deeper models: counts, decisions and scalers for any machine and any gradients, half precision beside fastai's callbacks, memory."
import copy, subprocess, sys, types
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
import pets_nb
from pets_nb import deeper_models as dm
from pets_nb.baseline import BFloat16, pets_learner
from pets_nb.drawn import draw_pets
from pets_nb.presizing import pets_dls
import torchvision
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, load_learner
from fastai.optimizer import SGD, Adam
from fastai.torch_core import set_seed

quick = settings(max_examples=50, deadline=None)
formats = st.builds(dm.Formats, device=st.sampled_from(['cuda','cpu','mps','xpu']), name=st.just('the machine'), bfloat16=st.booleans(), float16=st.booleans())

def toy_learner(precision=None, seed=0, bs=8, n=4, opt_func=Adam, cbs=None, scale=1., **kwargs):
    "A learner of two convolutions without batch normalisation, on random pictures"
    set_seed(seed)
    model = nn.Sequential(nn.Conv2d(3,8,3,stride=2), nn.ReLU(), nn.Conv2d(8,8,3,stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,5))
    x,y = scale*torch.randn(8*n,3,16,16),torch.randint(5, (8*n,))
    pairs = list(zip(x, y))
    dls = DataLoaders(*(DataLoader(o, bs=bs, num_workers=0) for o in (pairs, pairs[:bs])), device='cpu')
    learn = Learner(dls, model, nn.CrossEntropyLoss(), opt_func=opt_func, cbs=cbs)
    return learn if precision is None else learn.to_mixed(precision, emulate=True, verbose=False, **kwargs)

def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn

def weights(learn): return torch.cat([o.detach().flatten() for o in learn.model.parameters()])
def autocast_is_off(): return not torch.is_autocast_enabled('cpu')

# what networks cost

@pytest.mark.parametrize('arch', ['alexnet','vgg11','vgg16_bn','squeezenet1_1','densenet121','googlenet','inception_v3','shufflenet_v2_x1_0','mobilenet_v2','mnasnet1_0',
    'resnet34','resnet152','wide_resnet50_2','efficientnet_b0','efficientnet_v2_s','regnet_y_400mf','convnext_small','vit_b_32','swin_t'])
@pytest.mark.filterwarnings('ignore')
def test_multiply_adds_are_those_that_torchvision_publishes(arch):
    weights = list(torchvision.models.get_model_weights(arch))[0]
    size = weights.transforms().crop_size[0]
    assert dm.operations(dm.build_network(arch), (3,size,size))/1e9==pytest.approx(weights.meta['_ops'], rel=0.01, abs=2e-3)

@quick
@given(groups=st.sampled_from([1,2,4]), kernel=st.integers(1,3), stride=st.integers(1,2), side=st.integers(4,9), dilation=st.integers(1,2))
def test_hooks_count_what_pytorch_counts(groups, kernel, stride, side, dilation):
    with torch.device('meta'):
        net = nn.Sequential(nn.Conv2d(4,8,kernel,stride,groups=groups,dilation=dilation,padding=2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32,3))
    assert dm.multiply_adds(net, (4,side,side)).sum()==dm.operations(net, (4,side,side))

def test_layers_used_twice_are_counted_twice_and_modes_are_put_back():
    layer = nn.Linear(4,4)
    net = nn.Sequential(layer, nn.Dropout(), layer).train()
    net[1].eval()
    assert dm.multiply_adds(net, (4,)).sum()==2*16
    assert net.training and not net[1].training and not layer._forward_hooks

def test_activation_bytes_are_the_same_with_and_without_content():
    for arch in ('resnet18','small_network'):
        assert dm.activation_bytes(dm.build_network(arch), (3,48,48), 3)==dm.activation_bytes(dm.build_network(arch, 'cpu'), (3,48,48), 3)

def test_timm_is_used_where_it_is_installed(monkeypatch):
    timm = types.SimpleNamespace(list_models=lambda: ['tinynet'], create_model=lambda name: nn.Linear(3,3), __version__='1.0')
    monkeypatch.setitem(sys.modules, 'timm', timm)
    assert isinstance(dm.build_network('tinynet'), nn.Linear)
    with pytest.raises(ValueError, match="timm 1.0 has no 'tinynets'"): dm.build_network('tinynets')

# decisions

@quick
@given(formats=formats, request=st.sampled_from(['auto','float32','bfloat16','float16']), emulate=st.booleans())
def test_a_request_is_served_or_refused(formats, request, emulate):
    if request in ('bfloat16','float16') and request not in formats.native and not emulate:
        with pytest.raises(ValueError, match=f"the machine does not compute in {request}.*precision='auto'"): dm.choose_precision(formats, request)
        return
    choice = dm.choose_precision(formats, request, emulate)
    name = str(choice.dtype).split('.')[1]
    assert choice.scaled==(name=='float16') and 'the machine' in choice.why
    if request!='auto': assert name==request
    elif formats.native: assert name in formats.native
    else: assert name=='float32'

def test_an_unknown_request_is_refused():
    with pytest.raises(ValueError, match="'half'; expected 'auto'"): toy_learner().to_mixed('half')

@pytest.mark.parametrize('capability,native', [((9,0), ['bfloat16','float16']), ((8,0), ['bfloat16','float16']), ((7,5), ['float16']), ((6,1), [])])
def test_what_a_gpu_computes_in(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: 'a GPU')
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation or capability>=(8,0))
    found = dm.native_formats('cuda')
    assert found.native==native and '.'.join(map(str, capability)) in found.name

def test_what_other_devices_compute_in(monkeypatch):
    assert dm.native_formats('mps').native==['float16']
    assert dm.native_formats('meta').native==[]
    for flag in ('_is_avx512_bf16_supported','_is_amx_tile_supported','_is_amx_fp16_supported'): monkeypatch.setattr(torch.cpu, flag, lambda: False, raising=False)
    assert dm.native_formats('cpu').native==[] and 'without bfloat16' in dm.native_formats('cpu').name
    with pytest.raises(ValueError, match='does not compute in bfloat16'): toy_learner().to_mixed('bfloat16')
    assert fit(toy_learner().to_mixed(verbose=False), 1).mixed.dtype==torch.float32
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: True)
    assert dm.native_formats('cpu').native==['bfloat16']

def test_the_choice_is_printed_once(capsys):
    learn = toy_learner().to_mixed()
    fit(learn, 1); fit(learn, 1)
    assert capsys.readouterr().out.count('Precision: ')==1

# the scaler

@quick
@given(kinds=st.lists(st.sampled_from([1.,-0.5,1e-3,3.,float('inf'),float('-inf'),float('nan')]), max_size=40), interval=st.integers(1,5),
       growth=st.sampled_from([2.,4.,1.5]), backoff=st.sampled_from([0.5,0.25]), start=st.sampled_from([1.,2.**16,2.**125]))
def test_scaler_is_torchs(kinds, interval, growth, backoff, start):
    def run(make, step):
        weight = nn.Parameter(torch.ones(2))
        opt,scaler,rows = torch.optim.SGD([weight], lr=0.125),make(),[]
        for g in kinds:
            weight.grad = torch.tensor([g, 1.])*scale_of(scaler)
            step(scaler, opt, weight)
            rows.append((scale_of(scaler), *weight.tolist()))
        return rows
    def scale_of(scaler): return scaler.get_scale() if hasattr(scaler, 'get_scale') else scaler.factor
    def torchs(scaler, opt, weight): scaler.scale(torch.zeros(())); scaler.step(opt); scaler.update()
    def ours(scaler, opt, weight):
        finite = scaler.unscale([weight])
        scaler.update(finite)
        if finite: opt.step()
    kw = dict(growth=growth, backoff=backoff, interval=interval)
    expected = run(lambda: torch.amp.GradScaler('cpu', init_scale=start, growth_factor=growth, backoff_factor=backoff, growth_interval=interval), torchs)
    np.testing.assert_allclose(run(lambda: dm.LossScaler(start, **kw), ours), expected, rtol=1e-6 if growth==1.5 else 0)

def test_scaler_without_gradients(): assert dm.LossScaler().unscale([nn.Parameter(torch.ones(1))])

# half precision in a learner

def test_an_overflow_skips_the_step_and_halves_the_scale():
    class Explode(Callback):
        def after_loss(self):
            if self.training and self.iter==1: self.learn.loss_grad = self.loss_grad*float('inf')
    class Before(Callback):
        order = 5
        def before_fit(self): self.seen = []
        def before_batch(self):
            if self.training: self.seen.append(weights(self.learn))
    learn = fit(toy_learner('float16', cbs=[Explode(), Before()]), 1, 1e-2)
    same = [torch.equal(a, b) for a,b in zip(learn.before.seen, learn.before.seen[1:])]
    assert same==[False,True,False]
    assert (learn.mixed.scaler.n_skipped, learn.mixed.scaler.factor)==(1, 2.**15)
    assert weights(learn).isfinite().all()

@pytest.mark.parametrize('precision', ['float32','bfloat16','float16'])
def test_accumulation_and_clipping_work_on_unscaled_gradients(precision):
    clip = lambda: GradientClip(0.05)
    whole = fit(toy_learner(precision, bs=16, opt_func=SGD, cbs=[clip()]), 2, 1.)
    parts = fit(toy_learner(precision, bs=8, opt_func=SGD, cbs=[clip(), GradientAccumulation(16)]), 2, 1.)
    start = weights(toy_learner())
    moved = weights(whole)-start
    assert moved.norm() <= 4*0.05*1.001 and moved.norm() > 0.05
    assert (weights(parts)-weights(whole)).norm() < (1e-4 if precision=='float32' else 0.05)*moved.norm()
    if precision=='float16': assert parts.mixed.scaler.n_skipped==0

@pytest.mark.parametrize('precision', ['bfloat16','float16'])
def test_half_precision_trains_like_float32(precision):
    full,half = (fit(toy_learner(o, opt_func=SGD), 3, 0.1) for o in ('float32', precision))
    moved = weights(full)-weights(toy_learner())
    assert (weights(half)-weights(full)).norm() < 0.05*moved.norm()
    assert weights(half).dtype==torch.float32 and autocast_is_off()

def test_float32_with_channels_last_is_plain_float32():
    a,b = fit(toy_learner(), 2, 1e-2),fit(toy_learner('float32', channels_last=True), 2, 1e-2)
    assert b.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(weights(a), weights(b), atol=1e-5)

def test_an_interrupted_batch_leaves_nothing_open_for_the_next_fit():
    learn = toy_learner('bfloat16', opt_func=SGD)
    forward = learn.model[2].forward
    def interrupt(x): raise KeyboardInterrupt
    learn.model[2].forward = interrupt
    with pytest.raises(KeyboardInterrupt): fit(learn, 1)
    learn.model[2].forward = forward
    before = weights(learn)
    fit(learn, 1, 0.1)
    assert autocast_is_off() and not torch.equal(before, weights(learn))

def test_validation_and_prediction_without_a_fit():
    learn = toy_learner('bfloat16')
    with learn.no_bar(), learn.no_logging():
        loss = learn.validate()[0]
        preds,_ = learn.get_preds()
    assert preds.dtype==torch.float32 and np.isfinite(loss) and autocast_is_off()

def test_a_learner_that_wakes_up_on_another_device_chooses_again():
    learn = toy_learner().to_mixed(verbose=False)
    learn.mixed.device,learn.mixed.dtype,learn.mixed.choice = torch.device('cuda'),torch.float16,dm.PrecisionChoice(torch.float16, True, 'on a GPU')
    with learn.no_bar(), learn.no_logging(): learn.validate()
    assert learn.mixed.device.type=='cpu' and learn.mixed.choice==dm.choose_precision(dm.native_formats('cpu'))

def test_one_callback_for_half_precision_at_a_time():
    learn = toy_learner(cbs=BFloat16()).to_mixed('float32', verbose=False).to_mixed('bfloat16', emulate=True, verbose=False)
    assert [type(o).__name__ for o in learn.cbs if isinstance(o, BFloat16)]==['Mixed']
    with pytest.raises(ValueError, match='BFloat16 beside Mixed'): fit(learn, 1, cbs=BFloat16())

@pytest.mark.parametrize('precision', ['bfloat16','float16'])
def test_save_and_load_resume_exactly(precision, tmp_path):
    learn = fit(toy_learner(precision), 1, 1e-2)
    learn.save(tmp_path/'half')
    again = toy_learner(precision, seed=1)
    again.dls = learn.dls
    again.load(tmp_path/'half')
    assert torch.equal(weights(fit(learn, 1, 1e-2)), weights(fit(again, 1, 1e-2)))

def test_checkpoints_resume_with_the_scale(tmp_path):
    epochs = pytest.importorskip('pets_nb.epochs')
    stops = [2]
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch in stops: raise RuntimeError('stopped')
    def learner(): return toy_learner('float16', scale=1e3, cbs=Stop())
    with pytest.raises(RuntimeError, match='stopped'):
        with epochs.resumable(first := learner(), tmp_path/'run', verbose=False): fit(first, 4, 1e-2)
    stops.clear()
    whole,again = fit(learner(), 4, 1e-2),learner()
    with epochs.resumable(again, tmp_path/'run', verbose=False): fit(again, 4, 1e-2)
    assert torch.equal(weights(whole), weights(again))
    assert vars(again.mixed.scaler)==vars(whole.mixed.scaler)

@pytest.mark.parametrize('precision', ['bfloat16','float16'])
def test_our_lr_finder_puts_everything_back(precision):
    finder = pytest.importorskip('pets_nb.lr_finder')
    learn = toy_learner(precision)
    before = weights(learn)
    with learn.no_bar(), learn.no_logging(): finder.lr_find(learn, num_it=12, progress=False)
    assert torch.equal(before, weights(learn)) and autocast_is_off()

@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    path = draw_pets(tmp_path_factory.mktemp('d')/'pets', n_per_breed=6, breeds=['Abyssinian', 'pug', 'samoyed'], seed=3, traps=False)
    return pets_dls(path/'images', size=48, bs=8, num_workers=0)

def test_export_and_saved_models_carry_no_trace_of_half_precision(pets, tmp_path):
    from pets_nb.inference import BreedClassifier, save_model
    learn = pets_learner(pets, seed=1, verbose=False).to_mixed('bfloat16', emulate=True, verbose=False)
    fit(learn, 1, 1e-3)
    files = list(learn.dls.valid_ds.items)
    with learn.no_bar(): expected,_ = learn.get_preds(dl=learn.dls.test_dl(files))
    learn.export(tmp_path/'learner.pkl')
    loaded = load_learner(tmp_path/'learner.pkl')
    with loaded.no_bar(): preds,_ = loaded.get_preds(dl=loaded.dls.test_dl(files))
    assert torch.allclose(preds, expected, atol=1e-6)
    save_model(learn, tmp_path/'m')
    found = BreedClassifier.load(tmp_path/'m').predict(files, top=3).to_dict()['predictions']
    for file,p in zip(files, expected):
        for o in found[str(file)]: assert o['probability']==pytest.approx(p[learn.dls.vocab.o2i[o['breed']]].item(), abs=0.03)

def test_networks_of_volumes_and_tables_are_left_alone():
    model = nn.Sequential(nn.Conv3d(1,2,2), nn.Flatten(), nn.Linear(2,2))
    dm._channels_last(model)
    assert dm._in_channels_last(torch.zeros(2,3)).shape==(2,3) and dm._in_channels_last('a')=='a'

# memory

@quick
@given(fitting=st.integers(2,3000), limit=st.integers(2,2000))
def test_the_largest_batch_is_found_with_few_tries(fitting, limit):
    tries = []
    def fits(bs): tries.append(bs); return bs<=fitting
    assert dm.largest_that_fits(fits, limit)==min(fitting, limit)
    assert max(tries) <= limit and len(tries)==len(set(tries)) <= 24

def test_only_running_out_of_memory_means_that_it_does_not_fit():
    class Broken(nn.Linear):
        def forward(self, x): raise RuntimeError('shapes do not match')
    model = Broken(2,2)
    with pytest.raises(RuntimeError, match='shapes do not match'): dm.try_step(model, torch.optim.SGD(model.parameters(), lr=0.1), (2,), 4)

@quick
@given(bs=st.integers(1,200), effective=st.integers(1,300))
def test_accumulation_divides_the_wanted_batch(bs, effective):
    found,cbs = dm.BatchFit(bs, '').accumulate(effective)
    assert found<=bs and effective%found==0 and bool(cbs)==(found<effective)
    assert not cbs or cbs[0].n_acc==effective

def test_fitting_leaves_the_network_as_it_was():
    model = torchvision.models.mobilenet_v3_small().eval()
    before = copy.deepcopy(model.state_dict())
    found = dm.fit_batch_size(model, (3,64,64), free=2**30)
    assert 2 <= found.bs < 1024 and int(found)==found.bs
    assert not model.training and all(o.grad is None for o in model.parameters())
    assert all(torch.equal(a, b) for a,b in zip(before.values(), model.state_dict().values()))
    assert dm.fit_batch_size(model, (3,64,64), free=2**30, limit=7).bs==7
    assert dm.fit_batch_size(model, (3,64,64), free=2**30, margin=0.8).bs < found.bs
    with pytest.raises(ValueError, match='give shape'): dm.fit_batch_size(model)

def test_a_batch_found_by_trying():
    class SmallMemory(nn.Linear):
        def forward(self, x):
            if len(x)>100: raise torch.OutOfMemoryError('CUDA out of memory (pretended)')
            return super().forward(x)
    found = dm.fit_batch_size(SmallMemory(4,2), (4,), tries=True)
    assert found.bs==95 and 'up to 100' in found.how
    assert dm.fit_batch_size(SmallMemory(4,2), (4,), tries=True, margin=0).bs==100

def test_a_learner_knows_its_shape_and_format():
    full,half = toy_learner(),toy_learner('bfloat16')
    a,b = (dm.fit_batch_size(o, free=2**20, limit=10**6) for o in (full, half))
    assert a.bs < b.bs

def test_free_memory_of_this_machine():
    if sys.platform!='linux': pytest.skip('reads /proc')
    assert 2**26 < dm.free_memory() < 2**50

measure = r'''
import re, sys, torch, torchvision
from torch import nn
from contextlib import nullcontext
arch,size,bs,half = sys.argv[1],int(sys.argv[2]),int(sys.argv[3]),sys.argv[4]=='half'
def peak(): return int(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1])*1024
def steps(model, size, bs):
    opt = torch.optim.Adam(model.parameters())
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16, enabled=half, cache_enabled=False): out = model(torch.randn(bs, 3, size, size))
        out.float().mean().backward()
        opt.step(); opt.zero_grad()
steps(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), 32, 2)
model = getattr(torchvision.models, arch)()
before = peak()
steps(model, size, bs)
print(peak()-before)
'''

@pytest.mark.skipif(sys.platform!='linux', reason='reads the peak of a process as Linux states it')
@pytest.mark.parametrize('arch,size,bs,half', [('resnet50',96,12,''), ('resnet34',96,32,'half'), ('mobilenet_v3_large',96,32,'')])
def test_estimated_memory_is_within_a_quarter_of_the_measured(arch, size, bs, half):
    if half and not dm.native_formats('cpu').bfloat16: pytest.skip('emulation keeps copies of its own')
    out = subprocess.run([sys.executable, '-c', measure, arch, str(size), str(bs), half], capture_output=True, text=True, check=True)
    estimate = dm.step_memory(getattr(torchvision.models, arch)(), (3,size,size), torch.bfloat16 if half else torch.float32).total(bs)
    assert estimate==pytest.approx(int(out.stdout), rel=0.25)
