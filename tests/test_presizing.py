"Maps and resampling against fastai and by properties, pictures of every kind, and the data loaders' faults"
import contextlib, io, multiprocessing, pickle, random, subprocess, sys, warnings
from pathlib import Path
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from fastai.data.transforms import RandomSplitter
from fastai.vision import augment
from fastai.vision.core import PILImage, TensorImage
from pets_nb import presizing
from pets_nb.presizing import *
from pets_nb.maps import _matrices

corners = torch.tensor([[-1., -1], [1, -1], [1, 1], [-1, 1]])
share = st.floats(0, 1, width=32)

@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 9), st.sampled_from([1., 0.75, 0.3]))
def test_composed_is_one_after_the_other(seed, n, min_scale):
    d = draw_augmentations(n, torch.Generator().manual_seed(seed), min_scale=min_scale)
    points = torch.rand(7, 2, generator=torch.Generator().manual_seed(seed))*2 - 1
    out = torch.stack([points]*n)
    for m in (crop_matrix(d['crop_left'], d['crop_top'], d['crop_side']), zoom_matrix(d['zoom'], d['zoom_x'], d['zoom_y']),
              rotate_matrix(d['degrees']), flip_matrix(d['flip']), warp_matrix(d['warp_x'], d['warp_y'])):
        out = torch.cat([map_points(m[i:i+1], out[i]) for i in range(n)])
    torch.testing.assert_close(map_points(augmentation_matrix(d), points), out, atol=1e-4, rtol=1e-4)

@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_draws_are_those_of_fastai(seed, n):
    x = torch.rand(n, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(seed)
    tfm, = augment.aug_transforms(max_lighting=0., size=16)
    theirs = tfm(TensorImage(x.clone()), split_idx=0).as_subclass(torch.Tensor)
    torch.manual_seed(seed)
    ours = resample(x, augmentation_matrix(draw_augmentations(n, min_scale=1)), 16, align_corners=True)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)

@settings(deadline=None)
@given(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
def test_warp_is_fastais(x, y):
    warp = augment._WarpCoord(p=1., draw_x=[x], draw_y=[y])
    pts = torch.rand(1, 5, 2, generator=torch.Generator().manual_seed(0))*2 - 1
    warp.before_call(torch.zeros(1, 3, 4, 4))
    torch.testing.assert_close(map_points(warp_matrix([x], [y]), pts[0]), warp(pts.clone()), atol=1e-4, rtol=1e-4)

@settings(deadline=None)
@given(st.lists(st.floats(-0.3, 0.3), min_size=8, max_size=8))
def test_homography_hits_its_points(moves):
    to = corners + torch.tensor(moves).view(4, 2)
    torch.testing.assert_close(map_points(homography(corners[None], to[None]), corners)[0], to, atol=1e-4, rtol=1e-4)

@settings(deadline=None)
@given(share, share, st.floats(0.0625, 1, width=32), st.floats(0.0625, 1, width=32))
def test_crop_corners(left, top, width, height):
    left,top = left*(1 - width),top*(1 - height)
    found = (map_points(crop_matrix([left], top, width, height), corners)[0] + 1)/2
    torch.testing.assert_close(found, torch.tensor([[left, top], [left+width, top], [left+width, top+height], [left, top+height]]), atol=1e-5, rtol=1e-4)

def test_rotation_turns_clockwise():
    x = torch.zeros(1, 1, 9, 9); x[0, 0, 0, 4] = 1
    assert resample(x, rotate_matrix([90.]), 9, 'zeros')[0, 0, 4, 8] > 0.99

def test_draw_ranges_and_probabilities():
    d = draw_augmentations(4000, torch.Generator().manual_seed(1))
    assert d['degrees'].abs().max() <= 10 and 1 <= d['zoom'].min() and d['zoom'].max() <= 1.1 and d['warp_x'].abs().max() <= 0.2
    for name,neutral in dict(degrees=0, zoom=1, warp_x=0, warp_y=0).items(): assert abs((d[name] == neutral).float().mean() - 0.25) < 0.03
    assert abs(d['flip'].mean() - 0.5) < 0.03
    area = d['crop_side']**2
    assert 0.75 <= area.min() and area.max() <= 1 and abs(area.mean() - 0.875) < 0.01
    assert (d['crop_left'] + d['crop_side']).max() <= 1 + 1e-6 and d['crop_top'].min() >= 0

def test_resample_uint8_and_one_source():
    x = torch.randint(0, 256, (1, 3, 12, 16), dtype=torch.uint8)
    out = resample(x, torch.eye(3).expand(5, 3, 3), 8)
    assert out.dtype == torch.uint8 and out.shape == (5, 3, 8, 8) and (out[0] == out[4]).all()
    torch.testing.assert_close(out.float(), resample(x.float(), torch.eye(3).expand(5, 3, 3), 8), atol=0.51, rtol=0)

@pytest.mark.parametrize('pad_mode,outside', [('zeros', 0.), ('border', 1.), ('reflection', 1.)])
def test_padding(pad_mode, outside):
    out = resample(torch.ones(1, 1, 8, 8), crop_matrix([-1.], -1., 3.), 9, pad_mode)
    assert out[0, 0, 0, 0] == outside and out[0, 0, 4, 4] == 1

def test_samples_average():
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(resample(x, torch.eye(3)[None], 8, samples=4), torch.nn.functional.avg_pool2d(x, 4), atol=1e-5, rtol=0)

@settings(deadline=None)
@given(st.integers(5, 500), st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_random_split_is_fastais(n, seed, valid_pct):
    theirs = RandomSplitter(valid_pct, seed)(range(n))
    torch.manual_seed(3); state = torch.get_rng_state()
    assert random_split(n, valid_pct, seed) == tuple(map(list, theirs))
    assert (torch.get_rng_state() == state).all()

def picture(w=60, h=40, k=0):
    "A picture of its own for each `k`"
    x,y = np.meshgrid(np.linspace(0, 255, w), np.linspace(0, 255, h))
    return Image.fromarray(np.stack([x, y, (255 - x + k*7) % 256], -1).astype(np.uint8))

@pytest.fixture
def pets(tmp_path):
    for k,breed in enumerate(('pug', 'Bengal', 'beagle')):
        for i in range(10): picture(60 + i, 40 + 2*i, 1 + k).save(tmp_path/f'{breed}_{i}.jpg')
    return tmp_path

def quiet(*args, **kwargs):
    out = io.StringIO()
    with contextlib.redirect_stdout(out): dls = pets_dls(*args, **dict(dict(size=16, num_workers=0, device='cpu'), **kwargs))
    return dls, out.getvalue()

def as_png(p): picture().save(p, 'PNG')
def as_gif(p): picture().convert('P').save(p, 'GIF')
def as_cmyk(p): picture().convert('CMYK').save(p, 'JPEG')
def as_grey(p): picture().convert('L').save(p, 'JPEG')
def as_rgba(p): picture().convert('RGBA').save(p, 'PNG')
def as_16bit(p): Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60)*20).save(p, 'PNG')
def as_turned(p):
    exif = Image.Exif(); exif[0x0112] = 6
    picture(40, 60).save(p, 'JPEG', exif=exif)

@pytest.mark.parametrize('save', [as_png, as_gif, as_cmyk, as_grey, as_rgba, as_16bit, as_turned])
def test_any_content_named_jpg(tmp_path, save):
    save(tmp_path/'pug_1.jpg')
    im = create_picture(tmp_path/'pug_1.jpg')
    assert isinstance(im, PILImage) and im.mode == 'RGB' and im.size == (60, 40)
    assert create_picture(str(tmp_path/'pug_1.jpg')).size == im.size

def test_odd_contents_in_a_batch(pets):
    for i,save in enumerate([as_png, as_gif, as_cmyk, as_grey, as_rgba, as_16bit, as_turned]): save(pets/f'pug_{100+i}.jpg')
    dls,_ = quiet(files=sorted(pets.iterdir()), bs=8)
    for x,y in dls.train: assert x.shape == (8, 3, 16, 16) and torch.isfinite(x).all()

def test_create_picture_from_memory(tmp_path):
    picture().save(tmp_path/'a.png')
    for source in (picture(), np.array(picture()), (tmp_path/'a.png').read_bytes()): assert create_picture(source).size == (60, 40)
    with pytest.raises(FileNotFoundError, match='missing.jpg'): create_picture('missing.jpg')

def test_default_sizes_and_line(pets):
    dls,said = quiet(pets, size=112, bs=4)
    assert '30 pictures of 3 breeds' in said and '24 train, 6 validation' in said and '230 px' in said and '112 px' in said and 'threads' in said
    assert dls.one_batch()[0].shape == (4, 3, 112, 112) and list(dls.vocab) == ['Bengal', 'beagle', 'pug']
    assert len(said.strip().splitlines()) <= 2

def test_small_training_set_still_gives_a_batch(pets):
    dls,_ = quiet(pets, bs=64)
    assert len(dls.train) == 1 and dls.one_batch()[0].shape[0] == 24

def test_validation_is_the_same_whatever_the_order(pets):
    files = sorted(pets.iterdir())
    a = quiet(files=files)[0].valid_ds.items
    random.Random(1).shuffle(files)
    assert quiet(files=list(map(str, files)))[0].valid_ds.items == a
    assert quiet(files=files, seed=1)[0].valid_ds.items != a

def test_global_torch_state_is_not_reset(pets):
    "fastai draws for a first batch, but nothing sets the seed: what comes after still depends on what was before"
    def drawn_after(seed):
        torch.manual_seed(seed); quiet(pets)
        return torch.rand(3)
    assert (drawn_after(5) != drawn_after(6)).all()

def test_labels_match_files(pets):
    dls,_ = quiet(pets)
    for f,(_,y) in zip(dls.valid_ds.items, dls.valid_ds): assert f.name.startswith(dls.vocab[y] + '_')

def test_faults(pets):
    with pytest.raises(ValueError, match='path nor files'): quiet()
    with pytest.raises(ValueError, match='empty'): quiet(files=[])
    with pytest.raises(ValueError, match='one breed, pug'): quiet(files=sorted(pets.glob('pug*')))
    with pytest.raises(ValueError, match="1 of 31 file names hold no breed: 'holiday.jpg'"): quiet(files=[*pets.iterdir(), pets/'holiday.jpg'])
    with pytest.raises(ValueError, match='both need at least one'): quiet(pets, valid_pct=0.01)
    with pytest.raises(ValueError, match="'random' or 'official'"): quiet(pets, split='x')
    with pytest.raises(FileNotFoundError, match='trainval.txt'): quiet(pets, split='official')
    with pytest.raises(FileNotFoundError): quiet(pets/'nowhere')

def test_breed_in_validation_only_warns_and_names_it(pets):
    files = sorted(pets.iterdir())
    lost = next(seed for seed in range(1000) if len(files) in random_split(len(files) + 1, seed=seed)[1])
    picture().save(pets/'zebra_1.jpg')
    with pytest.warns(UserWarning, match='1 breeds have pictures in the validation set only.*zebra'): dls,_ = quiet(pets, seed=lost)
    assert 'zebra' in dls.vocab
    for x,y in dls.valid: assert y.max() <= 3

def test_no_warning_otherwise(pets):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        quiet(pets)

def test_official_split(tmp_path):
    images,notes = tmp_path/'images',tmp_path/'annotations'
    images.mkdir(); notes.mkdir()
    names = [f'{breed}_{i}' for breed in ('pug', 'Bengal') for i in range(4)]
    for k,name in enumerate(names): picture(k=k).save(images/f'{name}.jpg')
    for file,part in (('trainval', names[::2]), ('test', names[1::2])): (notes/f'{file}.txt').write_text(''.join(f'{o} 1 1 1\n' for o in part))
    dls,_ = quiet(images, split='official')
    assert {o.stem for o in dls.train_ds.items} == set(names[::2]) and {o.stem for o in dls.valid_ds.items} == set(names[1::2])

def _workers_here(queue): queue.put(default_workers())
def test_no_workers_in_a_daemon():
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    p = context.Process(target=_workers_here, args=(queue,), daemon=True); p.start()
    assert queue.get(timeout=120) == 0
    p.join()
    assert 1 <= default_workers() <= 8 and default_workers(1) == 1

def test_a_processor_that_trains_reads_on_threads(pets):
    for kwargs,workers,words in ((dict(), 0, f'{torch.get_num_threads()} threads'), (dict(fast=False), default_workers(), f'{default_workers()} workers'), (dict(num_workers=1), 1, '1 workers')):
        dls,said = quiet(pets, **{'num_workers': None, **kwargs})
        assert dls.train.fake_l.num_workers == workers and words in said

def test_a_gpu_is_fed_by_workers():
    "Seen from the rule, since there may be no GPU"
    assert presizing._workers_for(None, True, torch.device('cuda')) == presizing._workers_for(None, False, torch.device('cpu')) == default_workers()

def test_workers_give_the_same_validation_batch(pets):
    a,b = (quiet(pets, num_workers=n)[0].valid.one_batch() for n in (0, 2))
    assert (a[0] == b[0]).all() and (a[1] == b[1]).all()

def test_everything_in_the_loaders_pickles(pets):
    dls,_ = quiet(pets)
    assert pickle.loads(pickle.dumps(dls.valid_ds))[0][1] == dls.valid_ds[0][1]

def test_exported_learner_loads_elsewhere(pets, tmp_path):
    script = '''if True:
    import sys
    from fastai.vision.all import Learner, nn, CrossEntropyLossFlat
    from pets_nb.presizing import pets_dls
    dls = pets_dls(sys.argv[1], size=16, num_workers=0, device='cpu')
    Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 3)), loss_func=CrossEntropyLossFlat(), path='.').export(sys.argv[2])
    '''
    subprocess.run([sys.executable, '-c', script, pets, tmp_path/'l.pkl'], check=True, capture_output=True)
    read = "import sys; from fastai.learner import load_learner; print(load_learner(sys.argv[1]).predict(sys.argv[2])[0] in ('pug', 'Bengal', 'beagle'))"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', read, tmp_path/'l.pkl', pets/'pug_1.jpg'], check=True, capture_output=True, text=True).stdout
    assert out.strip().endswith('True')

def test_psnr_and_gradient_energy():
    x = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(psnr(x + torch.tensor([0.1, 0.01, 1.])[:, None, None, None], x), torch.tensor([20., 40., 0.]), atol=1e-2, rtol=0)
    step = torch.zeros(1, 1, 4, 4); step[..., 2:] = 1
    assert gradient_energy(step).item() == pytest.approx(1/3)
    assert torch.isinf(psnr(x, x)).all()

def squares(n=4, size=(40, 30)): return [Image.new('RGB', size, (60*k, 0, 200)) for k in range(n)]

def test_animation_keeps_frames_and_times():
    film = Animation(squares(), 'Animation: a "red" square', seconds=0.2, rest=3)
    moving,still = Image.open(io.BytesIO(film.moving)),Image.open(io.BytesIO(film.still))
    assert (moving.n_frames, moving.size, still.n_frames) == (4, (40, 30), 1)
    shown = []
    for k in range(4):
        moving.seek(k); moving.load()
        shown.append((moving.info['duration'], moving.convert('RGB').getpixel((5, 5))))
    assert shown == [(200, (0, 0, 200)), (200, (60, 0, 200)), (200, (120, 0, 200)), (3000, (180, 0, 200))]
    assert still.convert('RGB').getpixel((5, 5)) == (180, 0, 200)

def test_animation_in_a_page():
    film = Animation(squares(), 'Animation: a "red" square', seconds=[1, 2, 3, 4])
    page = film._repr_html_()
    assert film.seconds == [1, 2, 3, 5] and 'width="40"' in page and 'alt="Animation: a &quot;red&quot; square"' in page
    assert 'media="(prefers-reduced-motion: reduce)"' in page and page.count('data:image/webp;base64,') == 2
    assert repr(film).startswith('Animation of 4 frames, 11 s')

def test_animation_closes_its_figures():
    def figure(k): fig = plt.figure(figsize=(1, 1), dpi=40); fig.text(0.1, 0.1, str(k)); return fig
    film = Animation((figure(k) for k in range(3)), 'Animation: 0, 1, 2')
    assert not plt.get_fignums() and Image.open(io.BytesIO(film.moving)).size == (40, 40)

@pytest.mark.parametrize('frames', [[], squares(2) + squares(1, (20, 20))])
def test_animation_faults(frames):
    with pytest.raises(ValueError, match='one size'): Animation(frames, 'Animation: nothing')
