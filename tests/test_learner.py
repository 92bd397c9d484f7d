"The learner: put back to the last bit, seeded, stopped at NaN, half precision closed on every exit, loaders of any kind."
import math, os, platform, random, subprocess, sys
import numpy as np, pytest, torch
from torch import nn, Tensor
from fastai.basics import Adam, Callback, CancelFitException, CrossEntropyLossFlat, DataLoaders, L, Learner, Metric, OptimWrapper, RMSProp, SGD, accuracy, noop, ranger, set_seed
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.all import Normalize
from fastai.vision.all import ImageDataLoaders, Resize, imagenet_stats, vision_learner
from pets_nb.engine import learner as lr
from pets_nb.engine.drawn import breed_traits, draw_pets
from pets_nb.engine.learner import *
from pets_nb.engine.loaders import Speed, pets_dls
from pets_nb.engine.networks import small_network

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

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def autocast_is_off(): return (torch.ones(2,2)@torch.ones(2,2)).dtype==torch.float32 and not torch.is_autocast_enabled('cpu')

# --- restored

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
        learner=[(k, raw(v)) for k,v in vars(learn).items() if k not in ('opt','model','cbs','dls')], cbs=[(id(c), raw(dict(vars(c)))) for c in learn.cbs])

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
def find(learn):
    with restored(learn), quiet(learn): learn.lr_find(show_plot=False, num_it=30, suggest_funcs=None)

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
def test_restored(opt_func, tmp_path):
    learn = make(opt_func=opt_func, path=tmp_path)
    before = fingerprint(learn)
    with restored(learn): learn.fit(2, 1e-2)
    assert_same(before, fingerprint(learn))
    find(learn)
    assert_same(before, fingerprint(learn))

@pytest.mark.parametrize('event', ['before_batch','after_pred','after_loss','before_backward','after_backward','before_step','after_step','after_batch'])
@pytest.mark.parametrize('f,error', [(stop, KeyboardInterrupt), (fail, RuntimeError)])
@pytest.mark.parametrize('step', [0, 7])
def test_restored_after_interruption(event, f, error, step, tmp_path):
    learn = make(cbs=[At(event, step, f)], path=tmp_path)
    before = fingerprint(learn)
    with pytest.raises(error): find(learn)
    assert_same(before, fingerprint(learn))
    assert not hasattr(learn, 'lr_finder')

def test_restored_when_interrupted_while_restoring(monkeypatch):
    learn,calls = make(),[]
    before,put = fingerprint(learn),lr._set_random_state
    def once(*args):
        calls.append(1)
        if len(calls)==1: raise KeyboardInterrupt
        put(*args)
    monkeypatch.setattr(lr, '_set_random_state', once)
    with pytest.raises(KeyboardInterrupt), restored(learn): learn.fit(1, 1e-2)
    assert len(calls)==2
    assert_same(before, fingerprint(learn))

def test_new_learner_has_no_optimizer_afterwards():
    learn = make(fit=0)
    before = fingerprint(learn)
    with restored(learn): learn.fit(1, 1e-2)
    assert learn.opt is None
    assert_same(before, fingerprint(learn))

def test_other_kinds_of_state():
    learn = make()
    learn.model.spare = nn.Parameter(torch.zeros(3).expand(2,3)) # overlapping memory
    learn.gen,learn.arr = torch.Generator().manual_seed(1),np.arange(3.)
    learn.loop = [learn] # a cycle
    state = learn.gen.get_state()
    with restored(learn):
        torch.rand(1, generator=learn.gen); learn.arr[0] = 7; learn.loop.append(1); learn.model.head = nn.Linear(1,1); learn.new = 1
        learn.model.body[0].weight.data = torch.zeros(2)
        learn.model.body.register_forward_hook(lambda *a: None)
        learn.model.half()
    assert torch.equal(learn.gen.get_state(), state) and learn.arr[0]==0 and learn.loop==[learn] and not hasattr(learn, 'new')
    assert learn.model.head.out_features==3 and learn.model.body[0].weight.shape==(8,6) and not learn.model.body._forward_hooks
    assert {p.dtype for p in learn.model.parameters()}=={torch.float32}

@pytest.mark.parametrize('frozen', [True, False])
def test_training_goes_on_as_if_nothing_had_happened(frozen, tmp_path):
    ends = []
    for look in (False, True):
        learn = make(path=tmp_path)
        if look: find(learn)
        learn.freeze() if frozen else learn.unfreeze()
        learn.fit_one_cycle(2, slice(1e-4, 1e-2))
        ends.append(raw(learn.model.state_dict())+raw(learn.opt.state_dict()))
    assert ends[0]==ends[1]

def test_quiet(capsys):
    learn = make(fit=0)
    learn.add_cb(ProgressCallback()); learn.logger = print
    class Talk(Callback):
        def after_epoch(self): print('hello')
    with quiet(learn): learn.fit(1, cbs=Talk())
    out = capsys.readouterr()
    assert out.out=='' and out.err=='' and hasattr(learn, 'progress') and learn.logger is not noop

# --- half precision

def half(precision, seed=0, bs=8, cbs=(), **kwargs):
    learn = make(seed, fit=0, bs=bs, cbs=[Mixed(precision, emulate=True), *cbs], **kwargs)
    learn.model.body[3].p = 0.
    return learn

class Raise(Callback):
    order = 5
    def __init__(self, event, error): self.at,self.error = event,error
    def __call__(self, name):
        if name==self.at and self.learn.training: raise self.error

@pytest.mark.parametrize('event', ['before_batch','after_pred','after_loss','before_backward','after_step','after_batch'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, CancelFitException, torch.OutOfMemoryError, RuntimeError])
def test_half_precision_is_closed_on_every_exit(event, error):
    learn = half('bfloat16', cbs=[Raise(event, error)])
    try: learn.fit(1, 1e-2)
    except (KeyboardInterrupt, RuntimeError): pass
    assert autocast_is_off()

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_half_precision_is_closed_when_the_network_fails(error):
    learn = half('bfloat16')
    forward = learn.model.head.forward
    def broken(x): raise error
    learn.model.head.forward = broken
    with pytest.raises(error): learn.fit(1)
    assert autocast_is_off() and 'forward' not in vars(learn.model)
    learn.model.head.forward = forward
    before = weights(learn)
    learn.fit(1, 0.1)
    assert autocast_is_off() and not torch.equal(before, weights(learn))

@pytest.mark.parametrize('precision', ['bfloat16','float16'])
def test_half_precision_trains_like_float32(precision):
    start = weights(half('float32'))
    ends = []
    for o in ('float32', precision):
        learn = half(o, opt_func=SGD)
        learn.fit(3, 0.1)
        ends.append(weights(learn))
    assert 0<(ends[1]-ends[0]).norm()<0.05*(ends[0]-start).norm() and ends[1].dtype==torch.float32

def test_every_batch_sees_new_weights():
    "Autocast that stays open caches the 16-bit weights of the first step"
    seen = []
    class Seen(Callback):
        def after_pred(self): seen.append(self.pred.detach().clone())
    learn = half('bfloat16', cbs=[Seen()])
    learn.dls.train.shuffle = False
    learn.fit(2, 0.1)
    assert not torch.allclose(seen[0], seen[7])

def test_an_overflow_skips_the_step_and_halves_the_scale():
    class Explode(Callback):
        def after_loss(self):
            if self.training and self.iter==1: self.learn.loss_grad = self.loss_grad*float('inf')
    class Before(Callback):
        order = 5
        def before_fit(self): self.seen = []
        def before_batch(self):
            if self.training: self.seen.append(weights(self.learn))
    learn = half('float16', cbs=[Explode(), Before()])
    learn.fit(1, 1e-2)
    assert [torch.equal(a, b) for a,b in zip(learn.before.seen, learn.before.seen[1:])]==[False,True,False,False]
    assert learn.mixed.scaler.get_scale()==2.**15 and weights(learn).isfinite().all()

@pytest.mark.parametrize('precision', ['float32','bfloat16','float16'])
def test_accumulation_and_clipping_work_on_unscaled_gradients(precision):
    def train(bs, *cbs):
        learn = half(precision, bs=bs, n=32, opt_func=SGD, cbs=[GradientClip(0.05), *cbs])
        learn.model.body[1] = nn.Identity()
        learn.dls.train.shuffle = False
        learn.fit(2, 1.)
        return weights(learn)
    first = half(precision, bs=16, n=32, opt_func=SGD)
    first.model.body[1] = nn.Identity()
    whole,parts,start = train(16),train(8, GradientAccumulation(16)),weights(first)
    moved = whole-start
    assert 0.05<moved.norm()<=4*0.05*1.001
    assert (parts-whole).norm()<(1e-4 if precision=='float32' else 0.05)*moved.norm()

def test_validation_and_prediction_without_a_fit():
    learn = half('bfloat16')
    loss,(preds,_) = learn.validate()[0],learn.get_preds()
    assert preds.dtype==torch.float32 and math.isfinite(loss) and autocast_is_off()

def test_what_devices_compute_in(monkeypatch):
    for flag in ('_is_avx512_bf16_supported','_is_amx_tile_supported','_is_amx_fp16_supported'): monkeypatch.setattr(torch.cpu, flag, lambda: False, raising=False)
    assert not bf16_is_fast('cpu') and not bf16_is_fast('mps') and lr._choose_dtype('cpu')==torch.float32
    with pytest.raises(ValueError, match='cpu does not compute in bfloat16, only in float32'): make(fit=0).to_mixed('bfloat16')
    with pytest.raises(ValueError, match="precision is 'int8'"): make(fit=0).to_mixed('int8')
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: True)
    for wins in (True,False): # with the instructions, but slower by them
        monkeypatch.setattr(lr, '_bf16_wins', lambda: wins)
        assert bf16_is_fast('cpu')==wins and lr._choose_dtype('cpu')==(torch.bfloat16 if wins else torch.float32)
        assert lr._choose_dtype('cpu', 'bfloat16')==torch.bfloat16

@pytest.mark.parametrize('capability,dtype', [((6,1),torch.float32), ((7,5),torch.float16), ((8,0),torch.bfloat16)])
def test_what_gpus_compute_in(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: capability[0]>=8)
    assert lr._choose_dtype('cuda')==dtype

def test_one_callback_for_half_precision_at_a_time():
    learn = make(fit=0).to_mixed('float32').to_mixed('bfloat16', emulate=True)
    assert [o.precision for o in learn.cbs if isinstance(o, Mixed)]==['bfloat16']
    learn.to_fp16()
    with pytest.raises(ValueError, match='exclude each other'): learn.fit(1)
    assert not any(type(o).__name__=='MixedPrecision' for o in learn.to_mixed('float32').cbs)

def test_a_learner_that_wakes_up_on_another_device_chooses_again():
    learn = make(fit=0).to_mixed()
    learn.mixed.device,learn.mixed.dtype = torch.device('cuda'),torch.float16
    learn.validate()
    assert learn.mixed.device.type=='cpu' and learn.mixed.dtype==lr._choose_dtype('cpu')

# --- NaN

@pytest.mark.parametrize('rate', [float('nan'), float('inf'), 1e30])
def test_training_stops_at_nan(rate):
    learn = make(fit=0, cbs=[lr._NonFinite()])
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match='the weights of the start are back') as e: learn.fit(3, rate)
    assert '\n' not in str(e.value) and all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

def test_the_last_good_epoch_is_kept():
    class Spoil(Callback):
        def before_batch(self):
            if self.training and self.epoch==2: self.opt.set_hyper('lr', float('inf'))
    learn = make(fit=0, cbs=[lr._NonFinite(), Spoil()])
    with pytest.raises(FloatingPointError, match='epoch 3.*weights of epoch 2 are back'): learn.fit(4, 1e-3)
    other = make(fit=0)
    other.fit(2, 1e-3)
    assert torch.equal(weights(learn), weights(other)) and len(learn.history.rows)==2
    learn.remove_cb(Spoil)
    learn.fit(1, 1e-3)
    assert weights(learn).isfinite().all()

# --- pets_learner

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('l')/'pets'
    draw_pets(folder, n_per_breed=8, breeds=['Abyssinian','pug','samoyed'], seed=3, traps=False, n_workers=1, progress=False)
    return folder/'images'

@pytest.fixture
def dls(folder): return pets_dls(folder, size=48, bs=6, verbose=False)

def new(dls, **kwargs): return pets_learner(dls, 'small_network', precision='float32', verbose=False, **kwargs)
def figures(learn): return learn.history.table[['frozen','train_loss','valid_loss','error_rate']].values.tolist()

def test_the_same_seed_gives_the_same_numbers(dls):
    runs = []
    for seed in (1, 1, 2):
        learn = new(dls, seed=seed)
        dls.train.one_batch(); torch.rand(3); random.random()
        with quiet(learn): learn.fine_tune(1)
        runs.append((figures(learn), weights(learn)))
    assert runs[0][0]==runs[1][0] and torch.equal(runs[0][1], runs[1][1]) and runs[0][0]!=runs[2][0]
    assert not torch.backends.cudnn.deterministic and torch.backends.cudnn.benchmark is False

def test_one_line_says_what_was_chosen(dls, capsys):
    learn = pets_learner(dls, 'small_network', precision='float32')
    out = capsys.readouterr().out
    assert out.count('\n')==1 and all(o in out for o in ('small_network','drawn animals','3 classes','seed 42','cpu','float32'))
    assert learn.opt.frozen_idx==2 and [o['lr'] for o in learn.opt.hypers]

def test_the_architecture_follows_the_data(dls, monkeypatch, tmp_path):
    monkeypatch.setattr(dls.images, 'drawn', True)
    assert lr._choose_arch(dls, 'default')[0]=='small_network'
    monkeypatch.setattr(dls.images, 'drawn', False)
    monkeypatch.setattr(lr, '_lite_file', lambda: tmp_path)
    assert lr._choose_arch(dls, 'default')[0]=='efficientnet_lite0'
    monkeypatch.setattr(lr, '_lite_file', lambda: None)
    assert lr._choose_arch(dls, 'default')[0]=='resnet18'==lr._choose_arch(dls, tmp_path/'w.pth')[0]
    (tmp_path/'model.json').write_text('{"arch": "vgg11"}')
    assert lr._choose_arch(dls, tmp_path/'model.safetensors')[0]=='vgg11'
    def fail(*args, **kwargs): raise OSError('no route')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    with pytest.raises(ConnectionError, match='offline'): pets_learner(dls)

def test_any_loader_of_the_same_images_gives_the_same_answers(folder, dls):
    "Normalisation belongs to the model: other loaders, sizes and lists of files are right by themselves"
    learn = new(dls)
    with quiet(learn): learn.fine_tune(1)
    expected,targets = get_logits(learn)
    listed,_ = get_logits(learn, learn.dls.test_dl(list(dls.valid.items)))
    assert torch.allclose(listed, expected, atol=1e-5)
    other = pets_dls(folder, size=48, bs=6, verbose=False)
    normed = pets_dls(folder, size=48, bs=6, verbose=False)
    normed.add_tfms([Normalize.from_stats(*imagenet_stats, cuda=False)], 'after_batch')
    for o in (other, normed):
        assert torch.allclose(get_logits(learn, o.valid)[0], expected, atol=1e-4)
        with learn.no_bar(): preds,_ = learn.get_preds(dl=o.valid)
        assert torch.allclose(preds, expected.softmax(1), atol=1e-4)
    assert torch.allclose(torch.cat([learn.model.eval()(x) for x,_ in other.valid]), expected, atol=1e-5)

def test_vision_learner_on_the_same_loaders_changes_nothing(folder):
    dls = pets_dls(folder, size=48, bs=6, verbose=False)
    a = new(dls)
    with quiet(a): a.fit(1)
    b = new(dls)
    vision_learner(dls, small_network)
    with quiet(b): b.fit(1)
    assert np.allclose(figures(a), figures(b), atol=1e-4)

def test_loaders_of_fastai(folder):
    dls = ImageDataLoaders.from_name_re(folder, sorted(folder.glob('*.jpg')), r'(.+)_\d+.jpg$', item_tfms=Resize(48), bs=6, num_workers=0)
    learn = pets_learner(dls, 'small_network', verbose=False)
    with quiet(learn): learn.fine_tune(1)
    assert len(learn.history.rows)==2 and get_logits(learn)[0].shape[1]==3

def test_weights_of_a_bundle_go_on_training(dls, tmp_path):
    from pets_nb.engine.bundle import save_bundle
    learn = new(dls)
    with quiet(learn): learn.fine_tune(1)
    save_bundle(learn, tmp_path/'model')
    again = pets_learner(dls, weights=tmp_path/'model'/'model.safetensors', precision='float32', verbose=False)
    assert again.model.arch=='small_network' and torch.allclose(get_logits(again)[0], get_logits(learn)[0], atol=1e-5)

def test_writes_go_to_the_current_folder_and_not_to_the_data(dls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = new(dls)
    learn.save('a'); learn.load('a'); learn.export('b.pkl')
    with quiet(learn): learn.lr_find(show_plot=False, num_it=12)
    assert sorted(o.name for o in tmp_path.iterdir())==['a.pth','b.pkl']
    monkeypatch.setattr(os, 'access', lambda *args: False)
    assert lr._writable_path()!=lr.Path('.')

def test_fastais_finder_with_its_defaults(dls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = new(dls)
    before = weights(learn)
    with restored(learn), quiet(learn): learn.lr_find(show_plot=False)
    assert torch.equal(before, weights(learn))

def test_small_images_are_refused(folder):
    dls = pets_dls(folder, size=32, bs=6, verbose=False)
    new(dls).validate
    with pytest.raises(ValueError, match='at least 32'): get_logits(new(dls), [(torch.rand(2, 3, 28, 28), torch.tensor([0,1]))])

def test_export_and_load(dls, tmp_path):
    from fastai.learner import load_learner
    learn = new(dls)
    learn.path = tmp_path
    learn.export('x.pkl')
    loaded = load_learner(tmp_path/'x.pkl')
    with loaded.no_bar(): pred = loaded.predict(dls.valid.items[0])[2]
    assert torch.allclose(pred, get_logits(learn)[0][0].softmax(0), atol=1e-5)

def test_get_logits_leaves_no_trace(dls):
    learn = new(dls)
    learn.model[0][0].eval()
    state,modes = lr._random_state(dls),[m.training for m in learn.model.modules()]
    logits,targets = get_logits(learn)
    after = lr._random_state(dls)
    assert torch.equal(state.pop('torch'), after.pop('torch')) and state==after
    assert [m.training for m in learn.model.modules()]==modes and logits.dtype==torch.float32 and type(logits) is Tensor
    assert get_logits(learn, [(torch.rand(2, 3, 48, 48),)])[1] is None

def test_partial_fine_tuning_leaves_the_lower_body_alone(dls):
    learn = new(dls, head='fastai')
    lower,upper = {k: v.clone() for k,v in learn.model[0][:5].state_dict().items()},learn.model[0][7][0].convpath[0][0].weight.clone()
    with quiet(learn): partial_fine_tune(learn, 1)
    assert all(torch.equal(v, lower[k]) for k,v in learn.model[0][:5].state_dict().items())
    assert not torch.equal(upper, learn.model[0][7][0].convpath[0][0].weight)
    assert learn.history.table.frozen.tolist()==[True, True]
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())

def test_random_weights_are_not_frozen(dls): assert new(dls, weights='none').opt is None

def test_history_ignores_what_only_looks(dls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = new(dls)
    with quiet(learn):
        learn.fit(1); learn.validate(); learn.get_preds(); learn.lr_find(show_plot=False, num_it=8)
    assert len(learn.history.rows)==1 and list(learn.history.table.columns)==['frozen','train_loss','valid_loss','error_rate','highest lr','seconds']

def test_another_vocabulary_is_refused(folder, dls, tmp_path):
    draw_pets(tmp_path/'p', n_per_breed=6, breeds=['Abyssinian','pug','beagle'], seed=3, traps=False, n_workers=1, progress=False)
    other,learn = pets_dls(tmp_path/'p'/'images', size=48, bs=6, verbose=False),new(dls)
    for act in (lambda: get_logits(learn, other.valid), lambda: learn.get_preds(dl=other.valid), lambda: learn.validate(dl=other.valid)):
        with pytest.raises(ValueError, match='differ in beagle, samoyed'), learn.no_bar(): act()
    learn.dls = other
    with pytest.raises(ValueError, match='differ in'), quiet(learn): learn.fit(1)

def test_progressive_resizing(folder, dls):
    "Other loaders of the same images may take the place of the first"
    learn = new(dls)
    with quiet(learn): learn.fit(1)
    learn.dls = pets_dls(folder, size=64, bs=6, verbose=False)
    with quiet(learn): learn.fit(1)
    assert len(learn.history.rows)==2

@pytest.mark.skipif(platform.libc_ver()[0]!='glibc', reason='needs glibc')
def test_large_blocks_are_kept():
    "In a fresh process, a batch of 40 MB that replaces another one costs few page faults"
    code = """if 1:
        import resource, torch
        from pets_nb.engine.learner import _reuse_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(5): torch.ones(10**7)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt-before
        first = faults()
        _reuse_memory(); faults()
        print(first, faults())"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=True).stdout
    before,after = map(int, out.split())
    assert after < 10 < before
