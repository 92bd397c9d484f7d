"The fast pipeline against the chapter's: the same draws, the same pictures; any file; workers, cache and their faults"
import contextlib, io, json, multiprocessing, os, pickle, random, subprocess, sys, threading, time, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from pets_nb import fast_pipeline
from pets_nb.data import open_picture
from pets_nb.drawn import draw_pet
from pets_nb.fast_pipeline import *
from pets_nb.maps import psnr, resample
from pets_nb.presizing import FixedSplitter, pets_block, pets_dls
import fastai.callback.all
from fastai.data.transforms import Normalize
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
from fastai.vision import augment
from fastai.vision.augment import Brightness, Contrast, Flip, RandomResizedCropGPU, Resize, Rotate, Warp, Zoom, aug_transforms, setup_aug_tfms
from fastai.vision.core import PILImage, TensorImage

# ---------------------------------------------------------------- the draws
N = 3000

@pytest.fixture(scope='module')
def theirs():
    "Parameters drawn by fastai's own transforms, those of the chapter"
    set_seed(1)
    x = torch.zeros(1, 1, 460, 460).expand(N, 3, 460, 460)
    affine,light,crop = aug_transforms(size=224, min_scale=0.75)
    small = x[..., :2, :2]
    flip,rotate,zoom = (f(small) for f in affine.aff_fs)
    warp, = affine.coord_fs
    warp.before_call(small)
    for f in light.fs: f.before_call(small)
    brightness,contrast = (f.change for f in light.fs)
    windows,places = [],[]
    for _ in range(N):
        crop.before_call(x, 0)
        windows.append((*crop.tl, crop.cp_size[0]))
        resize = Resize(460)
        resize.before_call(None, 0)
        places.append(resize.pcts)
    (top,left,side),(px,py) = torch.tensor(windows).T,torch.tensor(places).T
    share = 1 - zoom[:, 0, 0]
    moved = share.abs() > 1e-4
    return dict(flip=flip[:, 0, 0] < 0, degrees=torch.rad2deg(torch.atan2(rotate[:, 0, 1], rotate[:, 0, 0])), zoom=1/zoom[:, 0, 0],
                zoom_x=((zoom[:, 0, 2]/share + 1)/2)[moved], zoom_y=((zoom[:, 1, 2]/share + 1)/2)[moved],
                warp_x=-1 - warp.targ_pts[:, 0, 1], warp_y=-1 - warp.targ_pts[:, 0, 0], brightness=brightness, contrast=contrast,
                crop_left=left/459, crop_top=top/459, crop_side=(side - 1)/459, resize_x=px, resize_y=py)

@pytest.fixture(scope='module')
def ours(): return draw_chapter(N, torch.Generator().manual_seed(2))

parameters = ['flip', 'degrees', 'zoom', 'zoom_x', 'zoom_y', 'warp_x', 'warp_y', 'brightness', 'contrast', 'crop_left', 'crop_top', 'crop_side', 'resize_x', 'resize_y']

@pytest.mark.parametrize('name', parameters)
def test_draws_are_distributed_as_fastais(theirs, ours, name):
    a,b = (torch.as_tensor(o[name]).float().numpy().round(5) for o in (theirs, ours))
    assert len(a) > 2000 and ks_2samp(a, b).pvalue > 0.001
    assert a.std() > 0

def test_ks_would_notice(theirs):
    "The test above can fail: a slightly different range is found out"
    other = draw_chapter(N, torch.Generator().manual_seed(2), min_scale=0.7)
    assert ks_2samp(theirs['crop_side'].numpy(), other['crop_side'].numpy()).pvalue < 1e-6
    assert ks_2samp(theirs['brightness'].numpy(), draw_light(N, torch.Generator().manual_seed(2), max_lighting=0.25)['brightness'].numpy()).pvalue < 1e-3

def test_draws_are_independent(ours):
    x = torch.stack([ours[o].float() for o in parameters])
    r = torch.corrcoef(x) - torch.eye(len(x))
    crop = [parameters.index(o) for o in ('crop_left', 'crop_top', 'crop_side')]
    for i in crop:
        for j in crop: r[i, j] = 0 # a larger window has less room to lie in
    assert r.abs().max() < 0.08

def test_all_draws_repeat():
    a,b,c = (draw_chapter(5, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert all((a[o] == b[o]).all() for o in a) and any((a[o] != c[o]).any() for o in a)

@settings(deadline=None, max_examples=30)
@given(st.floats(0.4, 0.6), st.floats(0.8, 1.25))
def test_light_is_fastais(brightness, contrast):
    "Every value of a pixel, within rounding"
    x = TensorImage((torch.arange(256)/255).view(1, 1, 16, 16).expand(1, 3, -1, -1).clone())
    light, = setup_aug_tfms([Brightness(p=1., draw=[brightness]), Contrast(p=1., draw=[contrast])])
    light.before_call(x, 0)
    theirs = light.encodes(x)[0, 0].flatten()*255
    ours = light_tables(torch.tensor([brightness]), torch.tensor([contrast]))[0]
    assert (theirs - ours).abs().max() <= 0.501

def test_no_light_changes_nothing():
    assert (light_tables(torch.tensor([0.5]), torch.tensor([1.]))[0] == torch.arange(256)).all()

# ---------------------------------------------------------------- the pictures
def chapter_picture(im, d, i, size, item_size):
    "Picture `im` by fastai's own transforms, made to use the draws `d`"
    def g(name): return [d[name][i].item()]
    resize = Resize(item_size); resize.pcts = (*g('resize_x'), *g('resize_y'))
    x = TensorImage(torch.from_numpy(np.array(resize.encodes(PILImage(im)))).permute(2, 0, 1)[None]).float()/255
    affine,light = setup_aug_tfms([Flip(p=1., draw=g('flip')), Warp(p=1., draw_x=g('warp_x'), draw_y=g('warp_y')), Rotate(p=1., draw=g('degrees')),
                                   Zoom(p=1., draw=g('zoom'), draw_x=g('zoom_x'), draw_y=g('zoom_y')), Brightness(p=1., draw=g('brightness')), Contrast(p=1., draw=g('contrast'))])
    for tfm in (affine, light): tfm.before_call(x, 0)
    crop = RandomResizedCropGPU(size, min_scale=0.75, ratio=(1, 1))
    left,top,side = (round(d[f'crop_{o}'][i].item()*(item_size - 1)) for o in ('left', 'top', 'side'))
    crop.tl,crop.cp_size = (top, left),(side + 1, side + 1)
    return crop._encode(light.encodes(affine.encodes(x)), 'bilinear').as_subclass(torch.Tensor)

def smooth(w, h, seed=0):
    "A picture of slow waves, whose reading hardly depends on the filter"
    p = np.random.default_rng(seed).uniform(0, 6, 6)
    y,x = np.mgrid[:h, :w]/max(w, h)
    return Image.fromarray(np.stack([127 + 110*np.sin(5*x + p[c])*np.cos(4*y + p[c + 3]) for c in range(3)], -1).round().astype(np.uint8))

@pytest.mark.parametrize('w,h,size', [(500, 375, 224), (375, 500, 112), (300, 300, 96), (120, 80, 64), (1000, 650, 80)])
def test_same_parameters_same_picture(w, h, size):
    reading = OneReading(size)
    d = draw_chapter(12, torch.Generator().manual_seed(w), reading.item_size)
    im = smooth(w, h)
    out = np.empty((12, size, size, 3), np.uint8)
    reading.read([im]*12, d, out)
    for i in range(12):
        theirs = chapter_picture(im, d, i, size, reading.item_size)[0].permute(1, 2, 0).numpy()*255
        difference = np.abs(theirs - out[i])
        assert difference.mean() < 1.5 and np.percentile(difference, 99) < 6

def test_drawn_pets_are_visibly_the_same():
    reading = OneReading(112)
    ims = [draw_pet(breed, seed, size=(320, 240)) for seed,breed in enumerate(('Bengal', 'pug', 'Sphynx', 'beagle'))]
    d = draw_chapter(4, torch.Generator().manual_seed(3), reading.item_size)
    out = np.empty((4, 112, 112, 3), np.uint8)
    reading.read(ims, d, out)
    x = torch.from_numpy(out).permute(0, 3, 1, 2)/255
    theirs = torch.cat([chapter_picture(im, d, i, 112, reading.item_size) for i,im in enumerate(ims)])
    assert psnr(x, theirs).min() > 27
    assert psnr(x.roll(1, 0), theirs).max() < 20

def test_validation_is_the_same_square():
    im = smooth(500, 333)
    theirs = np.array(PILImage(im).convert('RGB').crop((83, 0, 416, 333)).resize((96, 96), Image.BILINEAR)).astype(int)
    ours = OneReading(96).batch([im], random=False)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(theirs - ours).max() <= 2

def test_predictions_of_a_network_are_nearly_equal(pets):
    "The shipped network on validation pictures, by the chapter's loaders and the fast ones"
    from pets_nb.baseline import pets_learner
    fast,slow = [quiet(pets, size=64, fast=o)[0] for o in (True, False)]
    learn = pets_learner(slow, verbose=False)
    with learn.no_bar(), learn.no_logging():
        a = learn.get_preds(dl=slow.valid)[0]
        fast.add_tfms([o for o in slow.after_batch.fs if isinstance(o, Normalize)], 'after_batch')
        b = learn.get_preds(dl=fast.valid)[0]
    assert (a - b).abs().mean() < 0.05 and (a - b).abs().max() < 0.25

@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 60), st.integers(2, 60), st.integers(1, 40))
def test_reader_is_bilinear(seed, w, h, size):
    "Against grid_sample, inside of the picture"
    g = torch.Generator().manual_seed(seed)
    px = np.array(smooth(w, h, seed).convert('RGBA'))
    m = torch.eye(3, dtype=torch.float64) + 0.2*(torch.rand(3, 3, generator=g, dtype=torch.float64) - 0.5)
    m[2, 2] = 1; m[:2] *= 0.6
    ours = PackedReader(size)(px, m.numpy())
    theirs = resample(torch.from_numpy(px[..., :3].copy()).permute(2, 0, 1)[None].float(), m[None].float(), size, 'border')[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() < 0.51 + 2*np.abs(np.diff(px[..., :3].astype(int), axis=0)).max(initial=0)/16 + 2*np.abs(np.diff(px[..., :3].astype(int), axis=1)).max(initial=0)/16

@given(st.integers(0, 255), st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_a_plain_picture_stays_plain(value, w, h):
    px = np.full((h, w, 4), value, np.uint8)
    assert (PackedReader(9)(px, np.array([[0.5, 0.1, 2.3], [-0.2, 3, 0], [0.1, 0.1, 1]])) == value).all()

def test_reads_no_further_than_the_window():
    "What lies beside the square is not seen: it is reflected, as in the chapter"
    px = np.zeros((40, 80, 4), np.uint8); px[:, :40] = 200
    out = PackedReader(32)(px, np.diag([1.5, 1.5, 1]), (0, 0, 40, 40), edge=39/40)
    assert (out == 200).all()

# ---------------------------------------------------------------- any file
def picture(w=60, h=40, k=0):
    x,y = np.meshgrid(np.linspace(0, 255, w), np.linspace(0, 255, h))
    return Image.fromarray(np.stack([x, y, (255 - x + k*7) % 256], -1).astype(np.uint8))

def turned(o):
    def save(p, im):
        exif = Image.Exif(); exif[0x0112] = o
        im.save(p, 'JPEG', exif=exif, quality=95)
    return save

kinds = dict(png=lambda p, im: im.save(p, 'PNG'), gif=lambda p, im: im.convert('P').save(p, 'GIF'), webp=lambda p, im: im.save(p, 'WEBP', lossless=True),
             cmyk=lambda p, im: im.convert('CMYK').save(p, 'JPEG'), grey=lambda p, im: im.convert('L').save(p, 'JPEG'), rgba=lambda p, im: im.convert('RGBA').save(p, 'PNG'),
             palette=lambda p, im: im.quantize(32).save(p, 'PNG'), jpeg=lambda p, im: im.save(p, 'JPEG'), progressive=lambda p, im: im.save(p, 'JPEG', progressive=True),
             sixteen=lambda p, im: Image.fromarray(np.array(im.convert('L')).astype(np.uint16)*257).save(p, 'PNG'), bmp=lambda p, im: im.save(p, 'BMP'),
             trailing=lambda p, im: (im.save(p, 'JPEG'), p.open('ab').write(b'junk'*9)), **{f'exif{o}': turned(o) for o in range(1, 9)})

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('size', [(60, 40), (41, 90), (1, 1), (3, 200)])
def test_any_kind_is_as_pillow_opens_it(tmp_path, kind, size):
    file = tmp_path/'pug_1.jpg'
    kinds[kind](file, picture(*size))
    pixels,(w,h) = open_pixels(file)
    expected = open_picture(file)
    assert (w, h) == expected.size and (pixels[..., :3] == np.array(expected)).all()
    reading = OneReading(24)
    for random_ in (True, False):
        out = reading.batch([file, str(file), expected], random_, 1)
        assert out.shape == (3, 3, 24, 24) and out.dtype == torch.uint8
    assert (out[0] == out[2]).all()

@pytest.mark.parametrize('kind', ['jpeg', 'cmyk', 'grey', 'exif6', 'exif3', 'png'])
def test_huge_pictures_are_decoded_small(tmp_path, kind):
    file = tmp_path/'pug_1.jpg'
    kinds[kind](file, smooth(1601, 1203))
    pixels,(w,h) = open_pixels(file, short=100)
    full = open_picture(file)
    assert (w, h) == full.size and min(pixels.shape[:2]) >= 100 and (pixels.shape[0] > pixels.shape[1]) == (full.height > full.width)
    assert (min(pixels.shape[:2]) < 300) == (kind != 'png')
    small = np.array(full.resize(pixels.shape[1::-1], Image.BOX)).astype(int)
    assert np.abs(small - pixels[..., :3]).mean() < 3

def test_a_drafted_picture_gives_the_same_batch(tmp_path):
    file = tmp_path/'pug_1.jpg'
    smooth(1700, 1211).save(file, quality=97)
    reading = OneReading(64)
    full = open_picture(file)
    for random_ in (True, False):
        a,b = reading.batch([file, full], random_, 5).float()[[0]],reading.batch([full], random_, 5).float()
        d = draw_chapter(1, torch.Generator().manual_seed(5), reading.item_size)
        outs = [np.empty((1, 64, 64, 3), np.uint8) for _ in range(2)]
        reading.read([file], d, outs[0]); reading.read([full], d, outs[1])
        assert np.abs(outs[0].astype(int) - outs[1]).mean() < 1.5

def test_unreadable_files_are_named(tmp_path):
    file = tmp_path/'pug_1.jpg'
    file.write_bytes(b'no picture at all')
    for o in (file, str(file)):
        with pytest.raises(ValueError, match='pug_1.jpg'): open_pixels(o)
    picture(400, 300).save(file); file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(ValueError, match='pug_1.jpg'): open_pixels(file)
    with pytest.raises(FileNotFoundError, match='missing'): open_pixels(tmp_path/'missing.jpg')

# ---------------------------------------------------------------- the loaders
@pytest.fixture
def pets(tmp_path):
    folder = tmp_path/'pets'; folder.mkdir()
    for k,breed in enumerate(('pug', 'Bengal', 'beagle')):
        for i in range(10): smooth(60 + i, 40 + 2*i, k*10 + i).save(folder/f'{breed}_{i}.jpg')
    return folder

def quiet(*args, **kwargs):
    out = io.StringIO()
    with contextlib.redirect_stdout(out): dls = pets_dls(*args, **dict(dict(size=16, bs=8, num_workers=0, device='cpu'), **kwargs))
    return dls, out.getvalue()

def epoch(dl): return [tuple(o.clone() for o in b) for b in dl]
def same(a, b): return len(a) == len(b) and all((x == y).all() for p,q in zip(a, b) for x,y in zip(p, q))

def test_the_same_batches_whatever_the_workers(pets):
    runs = []
    for n in (0, 1, 2):
        set_seed(5); dls,_ = quiet(pets, num_workers=n)
        runs.append((epoch(dls.train), epoch(dls.train), epoch(dls.valid)))
    for other in runs[1:]: assert all(same(a, b) for a,b in zip(runs[0], other))
    assert not same(runs[0][0], runs[0][1]) and len(runs[0][0]) == 3 and len(runs[0][2]) == 1

@pytest.mark.parametrize('n', [0, 1])
def test_torchs_random_numbers_are_left_alone(pets, n):
    "Otherwise a second training with the same seed would differ from the first, whose workers had to be started"
    set_seed(5); dls,_ = quiet(pets, num_workers=n)
    torch.manual_seed(1); expected = torch.rand(3)
    for _ in range(2):
        torch.manual_seed(1); epoch(dls.train); epoch(dls.valid)
        assert (torch.rand(3) == expected).all()

def test_bytes_become_floats_channels_last(pets):
    dls,_ = quiet(pets)
    x,y = dls.one_batch()
    assert isinstance(x, TensorImage) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1 and x.is_contiguous(memory_format=torch.channels_last)
    assert [dls.vocab[o] for o in dls.valid.one_batch()[1]] == [o.name.split('_')[0] for o in dls.valid_ds.items]

def test_normalising_at_once_is_normalising(pets):
    dls,_ = quiet(pets)
    norm = Normalize.from_stats([0.4, 0.5, 0.6], [0.2, 0.3, 0.1], cuda=False)
    raw = dls.valid.one_batch()[0]
    dls.add_tfms([norm], 'after_batch')
    x = dls.valid.one_batch()[0]
    torch.testing.assert_close(x.as_subclass(torch.Tensor), norm(raw).as_subclass(torch.Tensor), atol=1e-5, rtol=0)
    assert isinstance(x, TensorImage) and x.is_contiguous(memory_format=torch.channels_last)
    seen = dls.valid.decode((x, torch.zeros(len(x)).long()))[0]
    assert (seen.float() - raw*255).abs().max() < 1.01

def test_further_transforms_of_the_batch_run_after(pets):
    dls,_ = quiet(pets, fast=True, batch_tfms=[Brightness(p=1., draw=0.9)])
    plain,_ = quiet(pets)
    dls.add_tfms([Normalize.from_stats([0.5]*3, [0.5]*3, cuda=False)], 'after_batch'); plain.add_tfms([Normalize.from_stats([0.5]*3, [0.5]*3, cuda=False)], 'after_batch')
    set_seed(1); a = dls.train.new(shuffle=False).one_batch()[0].mean()
    set_seed(1); b = plain.train.new(shuffle=False).one_batch()[0].mean()
    assert a > b + 0.3

def test_a_loop_that_is_left_early_and_loops_in_loops(pets):
    set_seed(1); dls,_ = quiet(pets, num_workers=2)
    for b in dls.train: break
    assert len(epoch(dls.train)) == 3
    pairs = [(a, b) for a in dls.valid for b in dls.valid]
    assert len(pairs) == 1 and (pairs[0][0][0] == pairs[0][1][0]).all()
    n = 0
    for a in dls.train:
        for b in dls.train: n += 1
    assert n == 9 and len(epoch(dls.train)) == 3

def test_the_workers_stay_and_older_ones_go(pets):
    def children(): return {o.pid for o in multiprocessing.active_children()}
    before = children()
    a,_ = quiet(pets, num_workers=1)
    epoch(a.train); first = children() - before
    epoch(a.train)
    assert len(first) == 1 and children() - before == first
    others = [quiet(pets, num_workers=1)[0] for _ in range(4)]
    for o in others: epoch(o.train); epoch(o.valid)
    assert len(children() - before) <= 2
    assert len(epoch(a.train)) == 3

def test_a_broken_file_stops_the_loop_and_is_named(pets):
    dls,_ = quiet(pets, num_workers=1)
    dls.valid_ds.items[0].write_bytes(b'gone')
    with pytest.raises(ValueError, match=dls.valid_ds.items[0].name): epoch(dls.valid)
    picture().save(dls.valid_ds.items[0])
    assert len(epoch(dls.valid)) == 1

def test_a_killed_worker_is_an_error_and_the_next_epoch_works(pets):
    dls,_ = quiet(pets, num_workers=1)
    before = set(multiprocessing.active_children())
    epoch(dls.train)
    worker, = set(multiprocessing.active_children()) - before
    worker.kill(); worker.join()
    with pytest.raises(RuntimeError): epoch(dls.train)
    assert len(epoch(dls.train)) == 3

def test_learner_trains_predicts_and_is_exported(pets, tmp_path):
    set_seed(1); dls,_ = quiet(pets, num_workers=1)
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*16*16, 3)), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 0.01)
        preds,targets = learn.get_preds()
        assert [dls.vocab[o] for o in targets] == [o.name.split('_')[0] for o in dls.valid_ds.items]
        again = learn.get_preds(dl=dls.test_dl(list(dls.valid_ds.items)))[0]
        torch.testing.assert_close(preds, again)
        for source in (dls.valid_ds.items[0], str(dls.valid_ds.items[0]), PILImage(open_picture(dls.valid_ds.items[0])), np.array(open_picture(dls.valid_ds.items[0]))):
            torch.testing.assert_close(learn.predict(source)[2], preds[0], atol=1e-5, rtol=0)
        learn.export(tmp_path/'l.pkl')
    other = load_learner(tmp_path/'l.pkl')
    with other.no_bar(): torch.testing.assert_close(other.predict(dls.valid_ds.items[0])[2], preds[0], atol=1e-5, rtol=0)

def test_show_batch_one_picture_many_times(pets):
    dls,_ = quiet(pets)
    x = dls.show_batch(show=False, unique=True)[0]
    assert x.shape[0] == 8 and (x[0] != x[1]).any()

@contextlib.contextmanager
def computing_with(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try: yield
    finally: torch.set_num_threads(before)

@pytest.mark.parametrize('random', [True, False])
@pytest.mark.parametrize('size', [16, 50])
def test_threads_change_nothing(pets, random, size):
    files,reading,batches = sorted(pets.iterdir()),OneReading(size),[]
    for n in (1, 2, 7):
        with computing_with(n): batches.append(reading.batch(files, random, seed=4))
    assert all(torch.equal(batches[0], o) for o in batches[1:])

def test_as_many_threads_as_pytorch_computes_with(pets, monkeypatch):
    seen,files = set(),sorted(pets.iterdir())
    def square(self, source): seen.add(threading.get_ident()); time.sleep(0.02); return np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(OneReading, 'square', square)
    for n in (1, 3):
        seen.clear()
        with computing_with(n): OneReading(8).batch(files, random=False)
        assert len(seen) == n and (threading.get_ident() in seen) == (n == 1)

def test_threads_leave_the_filters_of_warnings_alone(pets, tmp_path):
    with computing_with(4), warnings.catch_warnings():
        warnings.simplefilter('error')
        before = list(warnings.filters)
        for seed in range(5): OneReading(16).batch(sorted(pets.iterdir()), seed=seed)
        for i in range(5): fast_pipeline.build_cache(OneReading(16), sorted(pets.iterdir()), tmp_path/f'{i}.pixels', threads=4)
        assert warnings.filters == before

def test_a_broken_file_is_named_by_threads_too(pets):
    (pets/'pug_3.jpg').write_bytes(b'gone')
    with computing_with(3), pytest.raises(ValueError, match='pug_3.jpg'): OneReading(16).batch(sorted(pets.iterdir()))

def test_items_by_the_readable_way_too(pets):
    dls,_ = quiet(pets)
    x,y = dls.train.do_item(0)
    assert x.shape == (3, 16, 16) and x.dtype == torch.uint8
    x,y = dls.valid.do_item(0)
    dls.valid.before_iter()
    assert (dls.valid.do_item(0)[0] == dls.valid.one_batch()[0][0].mul(255).round()).all()

def test_loaders_pickle(pets):
    dls,_ = quiet(pets, num_workers=1)
    epoch(dls.train)
    other = pickle.loads(pickle.dumps(dls))
    assert same(epoch(other.valid), epoch(dls.valid))

def test_which_way_is_the_default(pets):
    assert isinstance(quiet(pets)[0].train, FastDL) and 'one reading' in quiet(pets)[1]
    for kwargs in (dict(fast=False), dict(batch_tfms=[]), dict(item_tfms=[])): assert not isinstance(quiet(pets, **kwargs)[0].train, FastDL)
    with pytest.raises(ValueError, match='item_tfms'): quiet(pets, fast=True, item_tfms=Resize(20))
    with pytest.raises(ValueError, match='fast=True'): quiet(pets, fast=False, cache=True)

# ---------------------------------------------------------------- the cache
def test_cached_is_uncached(pets, tmp_path):
    runs = []
    for cache in (False, tmp_path/'cache', tmp_path/'cache'):
        set_seed(5); dls,said = quiet(pets, cache=cache)
        runs.append((epoch(dls.train), epoch(dls.valid)))
    assert all(same(a, b) for other in runs[1:] for a,b in zip(runs[0], other)) and 'Cache: 30' not in said
    set_seed(5); dls,_ = quiet(pets, cache=tmp_path/'cache', num_workers=2)
    assert same(epoch(dls.train), runs[0][0])

def test_cache_is_really_read(pets, tmp_path):
    dls,_ = quiet(pets, cache=tmp_path/'cache')
    with_files = epoch(dls.valid)
    for o in pets.iterdir(): o.unlink()
    assert same(epoch(dls.valid), with_files)

def test_other_pictures_pass_by_the_cache(pets, tmp_path):
    dls,_ = quiet(pets, cache=tmp_path/'cache')
    picture().save(tmp_path/'new_1.jpg')
    assert dls.test_dl([tmp_path/'new_1.jpg', dls.valid_ds.items[0]]).one_batch()[0].shape == (2, 3, 16, 16)

def cached(files, folder, size=16, **kwargs):
    out = io.StringIO()
    with contextlib.redirect_stdout(out): cache = open_cache(OneReading(size), files, folder, **kwargs)
    return cache, out.getvalue()

@pytest.mark.parametrize('damage', ['pixel', 'words', 'end', 'cut', 'empty'])
def test_damage_is_found_and_mended(pets, tmp_path, damage):
    files = sorted(pets.iterdir())
    cache,said = cached(files, tmp_path)
    good = cache.file.read_bytes()
    assert 'presized for 16 px' in said and cached(files, tmp_path)[1] == ''
    bad = bytearray(good)
    if damage == 'pixel': bad[1000] ^= 1
    elif damage == 'words': bad[-100] ^= 1
    elif damage == 'end': bad[-1] ^= 1
    elif damage == 'cut': bad = bad[:-50]
    else: bad = b''
    cache.file.write_bytes(bad)
    cache,said = cached(files, tmp_path)
    assert 'building it again' in said and cache.file.read_bytes() == good

def test_a_changed_picture_is_noticed(pets, tmp_path):
    files = sorted(pets.iterdir())
    cache,_ = cached(files, tmp_path)
    smooth(64, 64, 99).save(files[3])
    again,said = cached(files, tmp_path)
    assert files[3].name in said and '1 pictures changed' in said and (again.whole(files[3])[0][:4, :4] != cache.whole(files[3])[0][:4, :4]).any()

def test_settings_have_caches_of_their_own(pets, tmp_path):
    files = sorted(pets.iterdir())
    names = {cached(files, tmp_path)[0].file, cached(files, tmp_path, size=20)[0].file, cached(files[:20], tmp_path)[0].file}
    assert len(names) == 3 and sorted(cache_table(tmp_path).pictures) == [20, 30, 30]
    freed = clear_cache(tmp_path)
    assert freed > 0 and len(cache_table(tmp_path)) == 0 and not list(tmp_path.glob('*.pixels'))

def test_limits_say_what_to_do(pets, tmp_path, monkeypatch):
    files = sorted(pets.iterdir())
    with pytest.raises(OSError, match='cache=False'): cached(files, tmp_path, max_bytes=1000)
    first,_ = cached(files, tmp_path)
    size = first.file.stat().st_size
    second,said = cached(files[:29], tmp_path, max_bytes=int(1.5*size))
    assert 'unused for longest' in said and not first.file.exists() and second.file.exists()
    monkeypatch.setattr(fast_pipeline.shutil, 'disk_usage', lambda o: type('', (), dict(free=1000)))
    with pytest.raises(OSError, match='clear_cache'): cached(files, tmp_path)
    assert not list(tmp_path.glob('.*'))

def test_an_interrupted_build_leaves_nothing(pets, tmp_path, monkeypatch):
    files = sorted(pets.iterdir())
    calls = []
    def stop(*args):
        calls.append(1)
        if len(calls) > 5: raise KeyboardInterrupt
        return open_pixels(*args)
    monkeypatch.setattr(fast_pipeline, 'open_pixels', stop)
    with pytest.raises(KeyboardInterrupt): cached(files, tmp_path)
    assert not list(tmp_path.glob('*.pixels')) and not list(tmp_path.glob('.*.part'))
    monkeypatch.undo()
    assert len(cached(files, tmp_path)[0]) == 30

def test_a_file_that_cannot_be_read_is_named(pets, tmp_path):
    files = sorted(pets.iterdir())
    files[7].write_bytes(files[7].read_bytes()[:400])
    with pytest.raises(ValueError, match=files[7].name): cached(files, tmp_path)

def _build_here(pets, folder, queue):
    queue.put(cached(sorted(Path(pets).iterdir()), folder)[1])

def test_several_processes_build_once(pets, tmp_path):
    context = multiprocessing.get_context('fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn')
    queue = context.Queue()
    ps = [context.Process(target=_build_here, args=(str(pets), str(tmp_path/'cache'), queue)) for _ in range(3)]
    for p in ps: p.start()
    said = [queue.get(timeout=120) for _ in ps]
    for p in ps: p.join()
    assert sorted(bool(o) for o in said) == [False, False, True] and len(list((tmp_path/'cache').glob('*.pixels'))) == 1

def test_table_and_repr_tell(pets, tmp_path):
    cache,_ = cached(sorted(pets.iterdir()), tmp_path)
    row = cache_table(tmp_path).iloc[0]
    assert row.pictures == 30 and row['size'] == 16 and row.state == 'whole' and '30 pictures' in repr(cache)
    cache.file.write_bytes(b'x')
    assert cache_table(tmp_path).iloc[0].state != 'whole'
    assert pickle.loads(pickle.dumps(cache)).start == cache.start

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system does not fork')
def test_a_forked_copy_of_a_loader_leaves_the_workers_alone(pets):
    dls,_ = quiet(pets, num_workers=1)
    epoch(dls.train)
    end,_,loader = dls.train._loader[1:]
    workers = loader._iterator._workers
    reader,writer = os.pipe()
    if not (pid := os.fork()):
        os.dup2(writer, 2) # what the child would complain about
        loader._iterator.__del__(); end()
        os._exit(0)
    os.close(writer)
    assert os.waitpid(pid, 0)[1] == 0 and os.read(reader, 1000) == b'' and all(o.is_alive() for o in workers)
    assert len(epoch(dls.train)) == 3
    end()
    assert not any(o.is_alive() for o in workers)
