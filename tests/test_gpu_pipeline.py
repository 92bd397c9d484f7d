"Decoding on the device: tested on the processor, whose operations are the same; what needs a GPU is marked"
import pickle, random
import numpy as np, pytest, torch, torchvision.io
from pets_nb.baseline import pets_learner
from pets_nb.fast_pipeline import OneReading
from pets_nb.gpu_pipeline import DeviceReading, device_decoding_error, packed, reading_class, unpacked
from pets_nb.maps import psnr
from test_fast_pipeline import epoch, kinds, pets, quiet, same, smooth

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('size', [(500, 375), (60, 81), (1700, 1200)])
def test_any_kind_is_as_on_the_processor(tmp_path, kind, size):
    file = tmp_path/'pug_1.jpg'
    kinds[kind](file, smooth(*size))
    ours,theirs = DeviceReading(48),OneReading(48)
    for random_,least in ((True, 32), (False, 40)):
        a,b = ours.arrive(ours.fetch([file, str(file)], random_, 1), 'cpu'),theirs.batch([file, str(file)], random_, 1)
        assert a.shape == b.shape == (2, 3, 48, 48) and a.dtype == torch.uint8 and a.is_contiguous(memory_format=torch.channels_last)
        assert psnr(a/255, b/255).min() > least, (kind, size, random_)

def test_only_ordinary_files_go_to_the_decoder(tmp_path):
    sent = {}
    for kind,save in kinds.items():
        file = tmp_path/f'{kind}.jpg'
        save(file, smooth(100, 80))
        sent[kind] = len(DeviceReading(48).fetch([file], False)[1][0])
    assert {o for o,n in sent.items() if n == 1} == {'jpeg', 'progressive', 'trailing', 'exif1'}
    file = tmp_path/'large.jpg'
    smooth(2000, 1500).save(file)
    assert len(DeviceReading(48).fetch([file])[1][0]) == 3

def test_packing_gives_back_what_was_packed():
    parts = [np.arange(n, dtype=np.uint8).reshape(shape) for n,shape in ((12, (2, 2, 3)), (5, (5,)), (1, (1,)))]
    flat,shapes = packed(parts)
    assert flat.dtype == torch.uint8 and all((a.numpy() == b).all() for a,b in zip(unpacked(flat, shapes), parts))

def test_unreadable_files_are_named(tmp_path):
    file = tmp_path/'pug_1.jpg'
    file.write_bytes(b'no picture at all')
    with pytest.raises(ValueError, match='pug_1.jpg'): DeviceReading(32).fetch([file])

def on_device(*args, **kwargs): return quiet(*args, **dict(dict(on_device=True), **kwargs))

def test_the_choice_is_printed_and_works(pets, monkeypatch):
    dls,said = on_device(pets)
    assert 'Decoding: on cpu' in said and isinstance(dls.train.reading, DeviceReading)
    monkeypatch.setattr(torchvision.io, 'decode_jpeg', None)
    dls,said = on_device(pets)
    assert 'in the workers, because cpu cannot decode' in said and type(dls.train.reading) is OneReading
    assert 'Decoding' not in on_device(pets, on_device=False)[1]

def test_a_torchvision_without_a_decoder_is_a_reason(monkeypatch):
    monkeypatch.delattr(torchvision.io, 'encode_jpeg')
    assert 'AttributeError' in device_decoding_error('cpu') and reading_class(True, 'cpu') is OneReading

def test_on_device_does_not_go_with_a_cache_or_without_the_fast_pipeline(pets, tmp_path):
    with pytest.raises(ValueError, match='cache'): on_device(pets, cache=tmp_path/'cache')
    with pytest.raises(ValueError, match='fast'): on_device(pets, fast=False)

@pytest.mark.parametrize('n', [1, 2])
def test_the_same_batches_whatever_the_workers(pets, n):
    def epochs(n):
        torch.manual_seed(5); dls,_ = on_device(pets, num_workers=n)
        dls.train.rng = random.Random(3)
        return epoch(dls.train) + epoch(dls.train) + epoch(dls.valid)
    assert same(epochs(0), epochs(n))

def test_a_learner_trains_predicts_and_is_exported(pets, tmp_path):
    dls,_ = on_device(pets, size=32)
    learn = pets_learner(dls, verbose=False)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    file = sorted(pets.iterdir())[0]
    with learn.no_bar(): before = learn.predict(file)[2]
    assert len(before) == 3
    assert type(pickle.loads(pickle.dumps(dls.train.reading))) is DeviceReading

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_on_a_gpu(pets):
    dls,said = on_device(pets, device='cuda')
    x,_ = dls.one_batch()
    assert x.device.type == 'cuda' and 'Decoding' in said
    a = DeviceReading(32); files = sorted(pets.iterdir())[:8]
    assert psnr(a.arrive(a.fetch(files, False), 'cuda').cpu()/255, a.arrive(a.fetch(files, False), 'cpu')/255).min() > 30
