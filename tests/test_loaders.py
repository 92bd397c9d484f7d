"Data loaders: the same batches whoever reads them; faults, the cache and its damage, decoding on the device"
import contextlib, io, json, multiprocessing, os, pickle, random, signal, subprocess, sys, time, warnings
from pathlib import Path
import numpy as np, pytest, torch, torchvision.io
from PIL import Image
from fastai.data.core import TfmdDL
from fastai.data.transforms import RandomSplitter
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import error_rate
from fastai.torch_core import set_seed
from fastai.vision.augment import Brightness
from fastai.vision.core import PILImage, TensorImage
import fastai.callback.all
from pets_nb.engine import loaders
from pets_nb.engine.files import ImageError, open_image
from pets_nb.engine.loaders import FastDL, PixelCache, Speed, pets_dls
from pets_nb.engine.pipeline import OneWarp
from pets_nb.engine.sources import ImageSet, find_images
from fastcore.foundation import L
from test_pipeline import KINDS, image, psnr, smooth

@pytest.fixture
def pets(tmp_path):
    folder = tmp_path/'pets'; folder.mkdir()
    for k,breed in enumerate(('pug', 'Bengal', 'beagle')):
        for i in range(10): smooth(60 + i, 40 + 2*i, k*10 + i).save(folder/f'{breed}_{i}.jpg')
    return folder

def images_of(folder):
    "The images of a flat folder without an audit"
    files = L(sorted(Path(folder).iterdir()))
    return ImageSet(files, [o.name.rsplit('_', 1)[0] for o in files], Path(folder), 'names')

def quiet(data, workers=0, cache=None, on_device=False, fast=True, **kwargs):
    out = io.StringIO()
    if getattr(data, 'name', None) == 'pets': data = images_of(data)
    with contextlib.redirect_stdout(out):
        speed = Speed(workers=workers, cache=cache, on_device=on_device, fast=fast)
        dls = pets_dls(data, **dict(dict(size=16, bs=8, speed=speed, device='cpu'), **kwargs))
    return dls, out.getvalue()

def epoch(dl): return [tuple(o.clone() for o in b) for b in dl]
def same(a, b): return len(a) == len(b) and all((x == y).all() for p,q in zip(a, b) for x,y in zip(p, q))
def net(size=16, n=3): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*size*size, n))

# ---------------------------------------------------------------- batches
def test_the_same_batches_whatever_the_workers(pets):
    runs = []
    for n in (0, 1, 2):
        set_seed(5); dls,_ = quiet(pets, n)
        runs.append((epoch(dls.train), epoch(dls.train), epoch(dls.valid)))
    for other in runs[1:]: assert all(same(a, b) for a,b in zip(runs[0], other))
    assert not same(runs[0][0], runs[0][1]) and len(runs[0][0]) == 3 and len(runs[0][2]) == 1

@pytest.mark.parametrize('n', [0, 1])
def test_torchs_random_numbers_are_left_alone(pets, n):
    "Otherwise a second training with the same seed would differ from the first, whose workers had to be started"
    set_seed(5); dls,_ = quiet(pets, n)
    torch.manual_seed(1); expected = torch.rand(3)
    for _ in range(2):
        torch.manual_seed(1); epoch(dls.train); epoch(dls.valid)
        assert (torch.rand(3) == expected).all()

def test_making_loaders_sets_no_seed(pets):
    def after(seed):
        torch.manual_seed(seed); quiet(pets)
        return torch.rand(3)
    assert (after(5) != after(6)).all()

def test_batches_are_floats_channels_last_not_normalised(pets):
    dls,_ = quiet(pets)
    x,y = dls.one_batch()
    assert isinstance(x, TensorImage) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert [dls.vocab[o] for o in dls.valid.one_batch()[1]] == [o.name.split('_')[0] for o in dls.valid_ds.items]

@pytest.mark.parametrize('n,bs,expected', [(127, 64, [64, 63]), (100, None, [20]*5), (127, None, [26, 26, 25, 25, 25]),
                                           (320, None, [64]*5), (400, None, [58] + [57]*6), (21, None, [5, 4, 4, 4, 4]), (6, None, [2]*3)])
def test_no_image_is_left_out_and_an_epoch_has_five_steps(tmp_path, n, bs, expected):
    files = [tmp_path/f'{b}_{i}.jpg' for b in ('a', 'b') for i in range(n//2 + 1)]
    small = io.BytesIO(); image(8, 8).save(small, 'JPEG')
    for o in files: o.write_bytes(small.getvalue())
    images = images_of(tmp_path)
    images.split = lambda *args, **kwargs: ([*range(n)], [n])
    dls,_ = quiet(images, bs=bs, size=8)
    assert sorted(len(y) for _,y in dls.train) == sorted(expected)
    seen = [b for b in dls.train._plan()]
    assert sorted(i for idxs,_ in seen for i in idxs) == [*range(n)]

def test_sizes_follow_the_data(pets, tmp_path):
    assert quiet(pets, size=None)[0].one_batch()[0].shape[-1] == 192
    big = tmp_path/'big'; big.mkdir()
    for i,breed in enumerate('aabb'): smooth(400, 300, i).save(big/f'{breed}_{i}.jpg')
    assert quiet(images_of(big), size=None)[0].one_batch()[0].shape[-1] == 224
    images = images_of(pets); images.drawn = True
    assert quiet(images, size=None)[0].one_batch()[0].shape[-1] == 80

def test_one_line_says_what_was_chosen(pets, monkeypatch):
    dls,said = quiet(pets, size=112, bs=4)
    line, = said.strip().splitlines()
    for o in ('24 training, 6 validation', '3 classes', 'random split (seed 42)', 'batches of 4 at 112 px', ', cpu'): assert o in line
    assert list(dls.vocab) == ['Bengal', 'beagle', 'pug'] and len(dls.images) == 30
    assert quiet(dls.images, verbose=False)[1] == ''
    assert '; 2 workers, cpu' in quiet(pets, 2)[1] and '; 1 worker, cpu' in quiet(pets, 1)[1]
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)
    assert '; 1 thread, cpu' in quiet(pets)[1]

def test_further_transforms_of_the_batch(pets):
    dls,_ = quiet(pets); plain,_ = quiet(pets)
    dls.train.after_batch.add(Brightness(p=1., draw=0.9))
    set_seed(1); a = dls.train.new(shuffle=False).one_batch()[0].mean()
    set_seed(1); b = plain.train.new(shuffle=False).one_batch()[0].mean()
    assert a > b + 0.2

def test_without_augmentation_every_epoch_is_equal(pets):
    dls,_ = quiet(pets, augment=False)
    dl = dls.train.new(shuffle=False)
    assert same(epoch(dl), epoch(dl))
    slow,_ = quiet(pets, augment=False, fast=False)
    assert same(epoch(slow.train.new(shuffle=False, drop_last=False)), epoch(dl.new(shuffle=False)))

# ---------------------------------------------------------------- workers
@pytest.fixture
def children():
    "Worker processes started since the test began"
    FastDL._open.clear()
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before

def test_a_loop_that_is_left_early_and_loops_in_loops(pets):
    set_seed(1); dls,_ = quiet(pets, 2)
    for b in dls.train: break
    assert len(epoch(dls.train)) == 3
    pairs = [(a, b) for a in dls.valid for b in dls.valid]
    assert len(pairs) == 1 and (pairs[0][0][0] == pairs[0][1][0]).all()
    n = 0
    for a in dls.train:
        for b in dls.train: n += 1
    assert n == 9 and len(epoch(dls.train)) == 3

def test_the_workers_stay_and_older_ones_go(pets, children):
    a,_ = quiet(pets, 1)
    epoch(a.train); first = children()
    epoch(a.train)
    assert len(first) == 1 and children() == first
    for _ in range(3):
        other,_ = quiet(pets, 1)
        epoch(other.train); epoch(other.valid)
    assert len(children()) <= 2 and len(epoch(a.train)) == 3

def test_a_broken_file_stops_the_loop_and_is_named(pets):
    dls,_ = quiet(pets, 1)
    dls.valid_ds.items[0].write_bytes(b'gone')
    with pytest.raises(ValueError, match=dls.valid_ds.items[0].name): epoch(dls.valid)
    image().save(dls.valid_ds.items[0])
    assert len(epoch(dls.valid)) == 1

def test_a_killed_worker_is_an_error_and_the_next_epoch_works(pets, children):
    dls,_ = quiet(pets, 1)
    epoch(dls.train)
    worker, = children()
    worker.kill(); worker.join()
    with pytest.raises(RuntimeError): epoch(dls.train)
    assert len(epoch(dls.train)) == 3

def test_how_many_workers(monkeypatch):
    cpu,cuda = torch.device('cpu'),torch.device('cuda')
    assert Speed().workers_for(cpu) == 0 and Speed(workers=3).workers_for(cpu) == 3
    assert 1 <= Speed().workers_for(cuda) == Speed(fast=False).workers_for(cpu) <= 8
    monkeypatch.setitem(multiprocessing.current_process()._config, 'daemon', True) # which may start none
    assert Speed().workers_for(cuda) == 0

# ---------------------------------------------------------------- with fastai
def test_learner_trains_predicts_shows_and_is_exported(pets, tmp_path):
    set_seed(1); dls,_ = quiet(pets, 1)
    learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(), metrics=error_rate, path=tmp_path)
    file = dls.valid_ds.items[0]
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 0.01)
        preds,targets = learn.get_preds()
        assert [dls.vocab[o] for o in targets] == [o.name.split('_')[0] for o in dls.valid_ds.items]
        torch.testing.assert_close(preds, learn.get_preds(dl=dls.test_dl(list(dls.valid_ds.items)))[0])
        for source in (file, str(file), open_image(file), np.array(open_image(file)), file.read_bytes()):
            torch.testing.assert_close(learn.predict(source)[2], preds[0], atol=1e-4, rtol=0)
        learn.show_results()
        learn.export(tmp_path/'l.pkl')
    other = load_learner(tmp_path/'l.pkl')
    with other.no_bar(): torch.testing.assert_close(other.predict(file)[2], preds[0], atol=1e-5, rtol=0)

def test_everything_that_fastai_makes_from_loaders(pets):
    dls,_ = quiet(pets)
    x = dls.show_batch(show=False, unique=True)[0]
    assert x.shape[0] == 8 and (x[0] != x[1]).any()
    dls.show_batch(max_n=2)
    assert len(epoch(dls.new())) == 3 and len(epoch(dls.train.new(bs=4))) == 6
    test = dls.test_dl(list(dls.valid_ds.items)[:3], with_labels=True)
    assert [dls.vocab[o] for o in test.one_batch()[1]] == [o.name.split('_')[0] for o in dls.valid_ds.items[:3]]
    assert len(dls.test_dl(list(dls.valid_ds.items)).one_batch()) == 1
    assert dls.images and len(dls.valid) == 1
    image().save(pets/'new_1.jpg')
    with pytest.raises(ValueError, match='is not in the set'):
        dls.test_dl([pets/'new_1.jpg'], with_labels=True).one_batch()

def test_items_one_by_one_too(pets):
    dls,_ = quiet(pets)
    x,y = dls.train.do_item(0)
    assert x.shape == (3, 16, 16) and x.dtype == torch.uint8
    dls.valid.before_iter()
    assert (dls.valid.do_item(0)[0] == dls.valid.one_batch()[0][0].mul(255).round()).all()

def test_labels_are_remembered_with_their_dataset(pets):
    few,many = (pets_dls(pets, 32, bs=8, valid_pct=o, speed=Speed(workers=0), verbose=False).valid for o in (.3, .7))
    expected,others = ([int(y) for _,y in o.dataset][:few.n] for o in (few, many))
    assert expected!=others
    def labels(): return [int(y) for b in few for y in b[1]]
    for _ in range(2): assert labels()==expected
    few.dataset = many.dataset # fastai's loaders let you replace it
    assert labels()==others

def test_loaders_pickle(pets):
    dls,_ = quiet(pets, 1)
    epoch(dls.train)
    other = pickle.loads(pickle.dumps(dls))
    assert same(epoch(other.valid), epoch(dls.valid))

def test_odd_contents_in_a_batch(pets):
    for i,kind in enumerate(KINDS): KINDS[kind](pets/f'pug_{100+i}.jpg', smooth(90 + i, 80 - i, i))
    dls,_ = quiet(pets)
    for x,y in dls.train: assert x.shape[1:] == (3, 16, 16) and torch.isfinite(x).all()

def test_the_step_by_step_way_is_the_chapters(pets):
    dls,_ = quiet(pets, fast=False, size=32)
    assert type(dls.train) is TfmdDL and [type(o).__name__ for o in dls.train.after_item.fs] == ['Resize', 'ToTensor']
    assert dls.train.after_item.fs[0].size == (66, 66)
    assert [type(o).__name__ for o in dls.train.after_batch.fs] == ['IntToFloatTensor', 'Flip', 'RandomResizedCropGPU', 'Brightness']
    assert 0 <= dls.one_batch()[0].min() and dls.one_batch()[0].max() <= 1 and repr(dls.train.after_item)

def test_predictions_of_a_network_are_nearly_equal(pets):
    fast,slow = (quiet(pets, size=64, fast=o)[0] for o in (True, False))
    set_seed(0)
    learn = Learner(slow, torch.nn.Sequential(net(64), torch.nn.Softmax(1)), loss_func=torch.nn.NLLLoss())
    with learn.no_bar(): a,b = (learn.get_preds(dl=o.valid)[0] for o in (slow, fast))
    assert (a - b).abs().max() < 0.02

# ---------------------------------------------------------------- splits and faults
def test_splits(pets):
    files = find_images(pets, verbose=False)
    dls,_ = quiet(files, split='chapter')
    theirs = RandomSplitter(0.2, seed=42)(files.files)
    assert list(dls.valid_ds.items) == list(files.files[theirs[1]])
    assert quiet(files, seed=1)[0].valid_ds.items != quiet(files, seed=2)[0].valid_ds.items
    for kwargs in (dict(split='x'), dict(valid_pct=0), dict(valid_pct=1)):
        with pytest.raises(ValueError): quiet(files, **kwargs)
    with pytest.raises(FileNotFoundError): quiet(files, split='official')

def test_a_third_loader_for_a_test_part(tmp_path):
    for part in ('training', 'valid', 'test'):
        for breed in ('pug', 'boxer'):
            (tmp_path/part/breed).mkdir(parents=True)
            for i in range(6): smooth(90, 80, i + 10*len(part) + 100*len(breed)).save(tmp_path/part/breed/f'{i}.jpg')
    for split in ('given', 'random'):
        dls,said = quiet(tmp_path, split=split)
        assert len(dls.loaders) == 3 and {o.parts[-3] for o in dls[2].items} == {'test'} and '12 test' in said
        assert len(dls.train_ds) + len(dls.valid_ds) == 24 and same(epoch(dls[2]), epoch(dls[2]))

def test_faults_are_refused_before_anything_is_read(tmp_path):
    for kwargs in (dict(size=0), dict(size=-3), dict(size=10**6), dict(bs=0), dict(bs=2.5), dict(speed=Speed(workers=-1)), dict(speed=Speed(workers=100000))):
        with pytest.raises(ValueError, match='expected'): pets_dls(tmp_path/'nowhere', **kwargs)
    with pytest.raises(ValueError, match='fast=True'): Speed(cache='memory', fast=False)
    with pytest.raises(ValueError, match='fast=True'): Speed(on_device=True, fast=False)
    with pytest.raises(ValueError, match='not both'): Speed(on_device=True, cache=True)
    with pytest.raises(FileNotFoundError): quiet(tmp_path/'nowhere')

# ---------------------------------------------------------------- the cache
def cached(files, folder, size=16, **kwargs):
    out = io.StringIO()
    with contextlib.redirect_stdout(out): cache = PixelCache(files, size, folder, **kwargs)
    return cache, out.getvalue()

@pytest.mark.parametrize('where', ['memory', 'disk'])
def test_cached_is_uncached(pets, tmp_path, where):
    where = tmp_path/'cache' if where == 'disk' else where
    runs = []
    for cache,workers in ((None, 0), (where, 0), (where, 0), (where, 2)):
        set_seed(5); dls,said = quiet(pets, workers, cache)
        runs.append((epoch(dls.train), epoch(dls.valid)))
    assert all(same(a, b) for other in runs[1:] for a,b in zip(runs[0], other)) and 'Cache' not in said
    for o in pets.iterdir(): o.unlink()
    assert same(epoch(dls.valid), runs[0][1]) # from the cache indeed
    image().save(pets/'new_1.jpg')
    assert dls.test_dl([pets/'new_1.jpg']).one_batch()[0].shape == (1, 3, 16, 16)

def test_what_is_in_the_folder(pets, tmp_path):
    cache,said = cached(sorted(pets.iterdir()), tmp_path/'cache')
    assert '30 images' in said and '30 images' in repr(cache) and cached(sorted(pets.iterdir()), tmp_path/'cache')[1] == ''
    assert sorted(o.suffix for o in (tmp_path/'cache').iterdir() if not o.name.startswith('.')) == ['.json', '.npy']
    assert np.load(cache.file).dtype == np.uint8
    other = pickle.loads(pickle.dumps(cache))
    assert (other.get(pets/'pug_3.jpg')[0] == cache.get(pets/'pug_3.jpg')[0]).all() and len(other) == 30
    assert len(pickle.loads(pickle.dumps(PixelCache(sorted(pets.iterdir()), 16)))) == 0

@pytest.mark.parametrize('damage', ['json', 'cut', 'empty', 'header', 'no json'])
def test_a_damaged_file_is_built_again(pets, tmp_path, damage):
    files = sorted(pets.iterdir())
    cache,_ = cached(files, tmp_path)
    good,index = cache.file.read_bytes(),cache.file.with_suffix('.json')
    if damage == 'json': index.write_text(index.read_text()[:-9])
    elif damage == 'no json': index.unlink()
    else: cache.file.write_bytes(dict(cut=good[:-50], empty=b'', header=b'x' + good[1:])[damage])
    cache,said = cached(files, tmp_path)
    assert 'built in' in said and cache.file.read_bytes() == good

def test_a_damaged_image_is_read_from_its_file(pets, tmp_path, capsys):
    files = sorted(pets.iterdir())
    cache,_ = cached(files, tmp_path)
    good = OneWarp(16, cache=cache).batch(files, seed=1)
    bad = bytearray(cache.file.read_bytes()); bad[-100] ^= 1
    cache.file.write_bytes(bad)
    cache,_ = cached(files, tmp_path)
    assert torch.equal(OneWarp(16, cache=cache).batch(files, seed=1), good)
    assert 'pug_9.jpg is damaged' in capsys.readouterr().err and len(cache) == 29

def test_a_changed_image_is_noticed(pets, tmp_path):
    files = sorted(pets.iterdir())
    old = cached(files, tmp_path)[0].get(files[3])[0].copy()
    smooth(64, 64, 99).save(files[3])
    cache,said = cached(files, tmp_path)
    assert files[3].name in said and '1 image changed' in said and (cache.get(files[3])[0][:4, :4] != old[:4, :4]).any()

def test_limits_say_what_to_do_and_the_least_used_goes(pets, tmp_path, monkeypatch):
    files = sorted(pets.iterdir())
    first,_ = cached(files, tmp_path)
    with pytest.raises(OSError, match='no cache'): cached(files[:9], tmp_path, limit=1000)
    assert [*tmp_path.glob('*.npy*')] == [first.file]
    second,_ = cached(files[:28], tmp_path)
    os.utime(second.file, (1, 1))
    third,said = cached(files[:29], tmp_path, limit=int(2.5*first.file.stat().st_size))
    assert 'least recently used' in said and first.file.exists() and third.file.exists() and not second.file.exists()
    assert len({first.file, second.file, third.file, cached(files, tmp_path, size=20)[0].file}) == 4
    monkeypatch.setattr(loaders.shutil, 'disk_usage', lambda o: type('', (), dict(free=1000)))
    with pytest.raises(OSError, match='the disk has left'): cached(files[:20], tmp_path)

def test_an_interrupted_build_leaves_nothing(pets, tmp_path, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(loaders.os, 'fsync', stop)
    with pytest.raises(KeyboardInterrupt): cached(sorted(pets.iterdir()), tmp_path/'cache')
    assert not [o for o in (tmp_path/'cache').iterdir() if o.name != '.lock']
    monkeypatch.undo()
    files = sorted(pets.iterdir())
    files[7].write_bytes(files[7].read_bytes()[:400])
    with pytest.raises(ImageError, match=files[7].name): cached(files, tmp_path)

KILLED = '''if True:
    import os, signal, sys
    from pathlib import Path
    from pets_nb.engine import loaders
    loaders.os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
    loaders.PixelCache(sorted(Path(sys.argv[1]).iterdir()), 16, sys.argv[2])
'''
BUILD = '''if True:
    import sys
    from pathlib import Path
    from pets_nb.engine.loaders import PixelCache
    PixelCache(sorted(Path(sys.argv[1]).iterdir()), 16, sys.argv[2])
'''
def start(script, *args):
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', script, *map(str, args)], stdout=subprocess.PIPE, text=True)

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_kill_9_leaves_nothing_that_stays(pets, tmp_path):
    folder = tmp_path/'cache'
    p = start(KILLED, pets, folder); p.wait(120)
    assert p.returncode == -signal.SIGKILL and list(folder.glob('*.part'))
    _,said = cached(sorted(pets.iterdir()), folder)
    assert 'built in' in said and sorted(o.suffix for o in folder.iterdir() if o.name != '.lock') == ['.json', '.npy']

def test_several_processes_build_once(pets, tmp_path):
    ps = [start(BUILD, pets, tmp_path/'cache') for _ in range(2)]
    said = [p.communicate(timeout=180)[0] for p in ps]
    assert [p.returncode for p in ps] == [0, 0] and sorted('built in' in o for o in said) == [False, True]

# ---------------------------------------------------------------- decoding on the device
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [(300, 225), (60, 81)])
def test_any_kind_is_as_without_the_device(tmp_path, kind, size):
    file = tmp_path/'pug_1.jpg'
    KINDS[kind](file, smooth(*size))
    ours,theirs = loaders._DeviceWarp(48),OneWarp(48)
    for random_,least in ((True, 30), (False, 34)):
        a,b = ours.arrive(ours.fetch([file, str(file)], random_, 1), 'cpu'),theirs.batch([file, str(file)], random_, 1)
        assert a.shape == b.shape == (2, 3, 48, 48) and a.dtype == torch.uint8 and a.is_contiguous(memory_format=torch.channels_last)
        assert min(map(psnr, a.numpy(), b.numpy())) > least, (kind, size, random_)

def test_only_ordinary_files_go_to_the_decoder(tmp_path):
    sent = {}
    for kind,save in KINDS.items():
        save(tmp_path/f'{kind}.jpg', smooth(100, 80))
        sent[kind] = len(loaders._DeviceWarp(48).fetch([tmp_path/f'{kind}.jpg'], False)[1][0])
    assert {o for o,n in sent.items() if n == 1} == {'jpeg', 'progressive', 'grey', 'exif1'}
    smooth(900, 700).save(tmp_path/'large.jpg')
    ours,theirs = loaders._DeviceWarp(48),OneWarp(48).batch([tmp_path/'large.jpg'], True, 1)
    sent = ours.fetch([tmp_path/'large.jpg'], True, 1)
    assert len(sent[1][0]) == 3 and psnr(ours.arrive(sent, 'cpu').numpy(), theirs.numpy()) > 30
    (tmp_path/'broken.jpg').write_bytes(b'no image')
    with pytest.raises(ImageError, match='broken.jpg'): loaders._DeviceWarp(32).fetch([tmp_path/'broken.jpg'])

def test_the_device_is_used_where_it_can_decode(pets, monkeypatch):
    dls,_ = quiet(pets, on_device=True)
    assert type(dls.train.warp) is loaders._DeviceWarp and type(pickle.loads(pickle.dumps(dls.train.warp))) is loaders._DeviceWarp
    monkeypatch.setattr(torchvision.io, 'decode_jpeg', None)
    dls,said = quiet(pets, on_device=True)
    assert "by the workers: cpu can't" in said and type(dls.train.warp) is OneWarp

@pytest.mark.parametrize('n', [1, 2])
def test_the_same_batches_from_the_device(pets, n):
    def epochs(n):
        torch.manual_seed(5); dls,_ = quiet(pets, n, on_device=True)
        dls.train.rng = random.Random(3)
        return epoch(dls.train) + epoch(dls.train) + epoch(dls.valid)
    assert same(epochs(0), epochs(n))

@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_on_a_gpu(pets):
    dls,said = quiet(pets, on_device=True, device='cuda')
    assert dls.one_batch()[0].device.type == 'cuda'
    a,files = loaders._DeviceWarp(32),sorted(pets.iterdir())[:8]
    x,y = (a.arrive(a.fetch(files, False), o).cpu().numpy() for o in ('cuda', 'cpu'))
    assert min(map(psnr, x, y)) > 30
