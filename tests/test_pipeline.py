"The one-warp pipeline against fastai: the same distributions, the same images; any file; threads and damage"
import threading, time, warnings
from contextlib import contextmanager
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from fastai.torch_core import set_seed
from fastai.vision.augment import (Brightness, Contrast, Flip, RandomResizedCropGPU, Resize, Rotate, Warp, Zoom,
    aug_transforms, setup_aug_tfms)
from fastai.vision.core import PILImage, TensorImage
from pets_nb.engine import pipeline
from pets_nb.engine.drawn import draw_pet
from pets_nb.engine.files import ImageError, open_image
from pets_nb.engine.pipeline import OneWarp, augmentation_matrix, sample_augmentations, warp_image

def generator(seed): return torch.Generator().manual_seed(seed)

# ---------------------------------------------------------------- the sampled parameters
N = 2000

@pytest.fixture(scope='module')
def theirs():
    "Parameters sampled by fastai's own transforms, those of the chapter"
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
    return dict(flip=flip[:, 0, 0] < 0, degrees=torch.rad2deg(torch.atan2(rotate[:, 0, 1], rotate[:, 0, 0])),
        zoom=1/zoom[:, 0, 0], zoom_x=((zoom[:, 0, 2]/share + 1)/2)[moved], zoom_y=((zoom[:, 1, 2]/share + 1)/2)[moved],
        warp_x=-1 - warp.targ_pts[:, 0, 1], warp_y=-1 - warp.targ_pts[:, 0, 0], brightness=brightness, contrast=contrast,
        crop_left=left, crop_top=top, crop_side=side, resize_x=px, resize_y=py)

@pytest.fixture(scope='module')
def ours(): return sample_augmentations(N, generator(2))

NAMES = ['resize_x', 'resize_y', 'flip', 'degrees', 'zoom', 'zoom_x', 'zoom_y', 'warp_x', 'warp_y', 'crop_left', 'crop_top',
         'crop_side', 'brightness', 'contrast']

@pytest.mark.parametrize('name', NAMES)
def test_parameters_are_distributed_as_fastais(theirs, ours, name):
    a,b = (torch.as_tensor(o[name]).float().numpy().round(5) for o in (theirs, ours))
    assert len(a) > 1300 and ks_2samp(a, b).pvalue > 0.001
    assert a.std() > 0

def test_ks_would_notice(theirs):
    other = sample_augmentations(N, generator(2), min_scale=0.7, max_lighting=0.25)
    for name in ('crop_side', 'brightness'): assert ks_2samp(theirs[name].numpy(), other[name].numpy()).pvalue < 1e-3

def test_parameters_are_independent(ours):
    assert list(ours) != [] and set(ours) == set(NAMES)
    r = torch.corrcoef(torch.stack([ours[o].float() for o in NAMES])) - torch.eye(len(NAMES))
    crop = [NAMES.index(o) for o in ('crop_left', 'crop_top', 'crop_side')]
    for i in crop:
        for j in crop: r[i, j] = 0 # a larger window has less room
    assert r.abs().max() < 0.1

def test_ranges_and_probabilities(ours):
    assert ours['degrees'].abs().max() <= 10 and 1 <= ours['zoom'].min() and ours['zoom'].max() <= 1.1
    for name,neutral in dict(degrees=0, zoom=1, warp_x=0, warp_y=0, brightness=0.5, contrast=1).items():
        assert abs((ours[name] == neutral).float().mean() - 0.25) < 0.04
    assert (ours['crop_left'] + ours['crop_side']).max() <= 460 and ours['crop_top'].min() >= 0
    area = (ours['crop_side']/460)**2
    assert area.min() > 0.745 and area.max() <= 1 and abs(area.mean() - 0.875) < 0.01

def test_parameters_repeat_and_leave_torch_alone():
    torch.manual_seed(3); state = torch.get_rng_state()
    a,b,c = (sample_augmentations(5, generator(s)) for s in (1, 1, 2))
    assert all((a[o] == b[o]).all() for o in a) and any((a[o] != c[o]).any() for o in a)
    assert (torch.get_rng_state() == state).all()
    whole = sample_augmentations(5, generator(1), size=64, min_scale=1.)
    assert (whole['crop_side'] == 131).all() and (whole['crop_left'] == 0).all()

@settings(deadline=None, max_examples=20)
@given(st.floats(0.4, 0.6), st.floats(0.8, 1.25))
def test_lighting_is_fastais(brightness, contrast):
    x = TensorImage((torch.arange(256)/255).view(1, 1, 16, 16).expand(1, 3, -1, -1).clone())
    light, = setup_aug_tfms([Brightness(p=1., draw=[brightness]), Contrast(p=1., draw=[contrast])])
    light.before_call(x, 0)
    theirs = light.encodes(x)[0, 0].flatten()*255
    ours = pipeline._lighting_tables(torch.tensor([brightness]), torch.tensor([contrast]))[0]
    assert np.abs(theirs.numpy() - ours).max() <= 0.501

def test_no_change_of_lighting_changes_nothing():
    assert (pipeline._lighting_tables(torch.tensor([0.5]), torch.tensor([1.]))[0] == np.arange(256)).all()

# ---------------------------------------------------------------- the images
def chapter_image(im, p, i, size, item_size):
    "Image `im` by fastai's own transforms with the parameters `p`, shape (size, size, 3), from 0 to 255"
    def g(name): return [p[name][i].item()]
    resize = Resize(item_size); resize.pcts = (*g('resize_x'), *g('resize_y'))
    x = TensorImage(torch.from_numpy(np.array(resize.encodes(PILImage(im)))).permute(2, 0, 1)[None]).float()/255
    affine,light = setup_aug_tfms([Flip(p=1., draw=g('flip')), Warp(p=1., draw_x=g('warp_x'), draw_y=g('warp_y')),
        Rotate(p=1., draw=g('degrees')), Zoom(p=1., draw=g('zoom'), draw_x=g('zoom_x'), draw_y=g('zoom_y')),
        Brightness(p=1., draw=g('brightness')), Contrast(p=1., draw=g('contrast'))])
    for tfm in (affine, light): tfm.before_call(x, 0)
    crop = RandomResizedCropGPU(size, min_scale=0.75, ratio=(1, 1))
    left,top,side = (int(p[f'crop_{o}'][i]) for o in ('left', 'top', 'side'))
    crop.tl,crop.cp_size = (top, left),(side, side)
    out = crop._encode(light.encodes(affine.encodes(x)), 'bilinear')
    return out.as_subclass(torch.Tensor)[0].permute(1, 2, 0).numpy()*255

def augmented(ims, p, size):
    out = np.empty((len(ims), size, size, 3), np.uint8)
    OneWarp(size).augmented(ims, p, out)
    return out

def smooth(w, h, seed=0):
    "An image of slow waves, which hardly depends on the filter"
    p = np.random.default_rng(seed).uniform(0, 6, 6)
    y,x = np.mgrid[:h, :w]/max(w, h)
    waves = [127 + 110*np.sin(5*x + p[c])*np.cos(4*y + p[c + 3]) for c in range(3)]
    return Image.fromarray(np.stack(waves, -1).round().astype(np.uint8))

def psnr(a, b): return -10*np.log10(max(((np.asarray(a, float) - b)**2).mean(), 1e-9)/255**2)

@pytest.mark.parametrize('w,h,size', [(500, 375, 224), (375, 500, 112), (300, 300, 96), (120, 80, 64), (1000, 650, 80)])
def test_same_parameters_same_image(w, h, size):
    item_size = pipeline._item_size(size)
    p,im = sample_augmentations(8, generator(w), size),smooth(w, h)
    for i,ours in enumerate(augmented([im]*8, p, size)):
        difference = np.abs(chapter_image(im, p, i, size, item_size) - ours)
        assert difference.mean() < 1.5 and np.percentile(difference, 99) < 6

PETS = ('Bengal', 'pug', 'Sphynx', 'beagle')

def test_drawn_pets_are_visibly_the_same():
    ims = [draw_pet(breed, seed, size=(320, 240)) for seed,breed in enumerate(PETS)]
    p = sample_augmentations(4, generator(3), 112)
    theirs = [chapter_image(im, p, i, 112, 230) for i,im in enumerate(ims)]
    ours = augmented(ims, p, 112)
    assert min(map(psnr, ours, theirs)) > 27 and max(map(psnr, np.roll(ours, 1, 0), theirs)) < 20

@pytest.mark.parametrize('size', [80, 112, 160, 224])
def test_as_near_to_the_ideal_as_the_chapter(size):
    "The ideal samples the scene, twice as large as its file, at 4 x 4 places for each output pixel"
    item_size = pipeline._item_size(size)
    p = sample_augmentations(4, generator(size), size) | dict(brightness=torch.full((4,), 0.5), contrast=torch.ones(4))
    matrices,found = augmentation_matrix(p, size).numpy(),[]
    for i,breed in enumerate(PETS):
        scene = draw_pet(breed, i, size=(1000, 750))
        im = scene.reduce(2)
        square,_ = pipeline._square(np.array(scene), 1, p['resize_x'][i].item(), p['resize_y'][i].item())
        ideal = np.array(Image.fromarray(warp_image(square, matrices[i], 4*size)).reduce(4))
        found.append((psnr(chapter_image(im, p, i, size, item_size), ideal), psnr(augmented([im]*4, p, size)[i], ideal)))
    chapter,ours = np.mean(found, 0)
    assert ours > chapter - 2 and ours > 28, found

def test_validation_is_the_same_square():
    im = smooth(500, 333)
    theirs = np.array(im.crop((83, 0, 416, 333)).resize((96, 96), Image.BILINEAR)).astype(int)
    ours = OneWarp(96).batch([im], random=False)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(theirs - ours).max() <= 2

@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(2, 60), st.integers(2, 60), st.integers(1, 40))
def test_warp_is_bilinear(seed, w, h, size):
    "Against grid_sample, inside of the image"
    px,g = np.array(smooth(w, h, seed)),generator(seed)
    m = torch.eye(3, dtype=torch.float64) + 0.2*(torch.rand(3, 3, generator=g, dtype=torch.float64) - 0.5)
    m[2, 2] = 1; m[:2] *= 0.6
    at = (2*torch.arange(size) + 1)/size - 1
    places = torch.stack([*torch.meshgrid(at, at, indexing='xy'), torch.ones(size, size)], -1).double() @ m.T
    x = torch.from_numpy(px).permute(2, 0, 1)[None].double()
    theirs = torch.nn.functional.grid_sample(x, (places[..., :2]/places[..., 2:])[None], padding_mode='border', align_corners=False)
    steps = sum(np.abs(np.diff(px.astype(int), axis=a)).max(initial=0) for a in (0, 1))
    assert np.abs(warp_image(px, m.numpy(), size) - theirs[0].permute(1, 2, 0).numpy()).max() < 1.01 + steps/16

@given(st.integers(0, 255), st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=10)
def test_a_plain_image_stays_plain(value, w, h):
    px = np.full((h, w, 3), value, np.uint8)
    assert (warp_image(px, np.array([[0.5, 0.1, 2.3], [-0.2, 3, 0], [0.1, 0.1, 1]]), 9) == value).all()

def test_reads_no_further_than_the_square():
    "What lies beside the square is not seen: it is reflected, as in the chapter"
    px = np.zeros((40, 80, 3), np.uint8); px[:, :40] = 200
    assert (warp_image(pipeline._square(px, x=0.)[0], np.diag([1.5, 1.5, 1]), 32) == 200).all()

# ---------------------------------------------------------------- any file
def image(w=60, h=40, k=0):
    x,y = np.meshgrid(np.linspace(0, 255, w), np.linspace(0, 255, h))
    return Image.fromarray(np.stack([x, y, (255 - x + k*7) % 256], -1).astype(np.uint8))

def turned(o):
    def save(p, im):
        exif = Image.Exif(); exif[0x0112] = o
        im.save(p, 'JPEG', exif=exif, quality=95)
    return save

KINDS = dict(png=lambda p, im: im.save(p, 'PNG'), gif=lambda p, im: im.convert('P').save(p, 'GIF'),
    webp=lambda p, im: im.save(p, 'WEBP', lossless=True), cmyk=lambda p, im: im.convert('CMYK').save(p, 'JPEG'),
    grey=lambda p, im: im.convert('L').save(p, 'JPEG'), rgba=lambda p, im: im.convert('RGBA').save(p, 'PNG'),
    palette=lambda p, im: im.quantize(32).save(p, 'PNG'), jpeg=lambda p, im: im.save(p, 'JPEG'),
    progressive=lambda p, im: im.save(p, 'JPEG', progressive=True), bmp=lambda p, im: im.save(p, 'BMP'),
    sixteen=lambda p, im: Image.fromarray(np.array(im.convert('L')).astype(np.uint16)*257).save(p, 'PNG'),
    trailing=lambda p, im: (im.save(p, 'JPEG'), p.open('ab').write(b'junk'*9)), avif=lambda p, im: im.save(p, 'AVIF'),
    **{f'exif{o}': turned(o) for o in range(1, 9)})

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [(60, 40), (41, 90), (2, 2), (3, 200)])
def test_any_kind_is_as_load_image_opens_it(tmp_path, kind, size):
    file = tmp_path/'pug_1.jpg'
    KINDS[kind](file, image(*size))
    expected = open_image(file)
    difference = pipeline._decode(file)[0].astype(int) - np.array(expected)
    assert np.abs(difference).max() <= 2
    for random in (True, False):
        out = OneWarp(24).batch([file, str(file), expected], random, 1)
        assert out.shape == (3, 3, 24, 24) and out.dtype == torch.uint8
    assert (out[0].int() - out[2]).abs().max() <= 3

@pytest.mark.parametrize('kind', ['jpeg', 'cmyk', 'grey', 'exif6', 'exif3', 'png'])
def test_large_images_are_decoded_small(tmp_path, kind):
    file = tmp_path/'pug_1.jpg'
    KINDS[kind](file, smooth(1601, 1203))
    (pixels,_),full = pipeline._decode(file, short=100),open_image(file)
    assert min(pixels.shape[:2]) >= 100 and (pixels.shape[0] > pixels.shape[1]) == (full.height > full.width)
    assert (min(pixels.shape[:2]) < 300) == (kind != 'png')
    small = np.array(full.resize(pixels.shape[1::-1], Image.BOX)).astype(int)
    assert np.abs(small - pixels).mean() < 3

def test_a_reduced_image_gives_the_same_batch(tmp_path):
    file = tmp_path/'pug_1.jpg'
    smooth(1700, 1211).save(file, quality=97)
    p = sample_augmentations(1, generator(5), 64)
    a,b = (augmented([o], p, 64)[0].astype(int) for o in (file, open_image(file)))
    assert np.abs(a - b).mean() < 1.5

def test_unreadable_files_are_named(tmp_path):
    file = tmp_path/'pug_1.jpg'
    file.write_bytes(b'no image at all')
    for o in (file, str(file)):
        with pytest.raises(ImageError, match='pug_1.jpg'): pipeline._decode(o)
    image(400, 300).save(file); file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(ImageError, match='pug_1.jpg.*truncated'): pipeline._decode(file)
    with pytest.raises(ImageError, match='missing.jpg'): pipeline._decode(tmp_path/'missing.jpg')

# ---------------------------------------------------------------- threads
@contextmanager
def computing_with(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try: yield
    finally: torch.set_num_threads(before)

@pytest.fixture
def files(tmp_path):
    for i in range(10): smooth(60 + i, 40 + 2*i, i).save(tmp_path/f'pug_{i}.jpg')
    return sorted(tmp_path.iterdir())

@pytest.mark.parametrize('random', [True, False])
@pytest.mark.parametrize('size', [16, 50])
def test_threads_change_nothing(files, random, size):
    batches = []
    for n in (1, 2, 7):
        with computing_with(n): batches.append(OneWarp(size).batch(files, random, seed=4))
    assert all(torch.equal(batches[0], o) for o in batches[1:])

def test_as_many_threads_as_pytorch_computes_with(files, monkeypatch):
    seen = set()
    def middle(self, source): seen.add(threading.get_ident()); time.sleep(0.02); return np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(OneWarp, 'middle', middle)
    for n in (1, 3):
        seen.clear()
        with computing_with(n): OneWarp(8).batch(files, random=False)
        assert len(seen) == n and (threading.get_ident() in seen) == (n == 1)

def test_threads_leave_warnings_and_opencv_alone(files):
    before = pipeline.cv2.getNumThreads()
    with computing_with(4), warnings.catch_warnings():
        warnings.simplefilter('error')
        filters = list(warnings.filters)
        for seed in range(5): OneWarp(16).batch(files, seed=seed)
        assert warnings.filters == filters and pipeline.cv2.getNumThreads() == before

def test_a_broken_file_is_named_by_threads_too(files):
    files[3].write_bytes(b'gone')
    with computing_with(3), pytest.raises(ImageError, match='pug_3.jpg'): OneWarp(16).batch(files)
