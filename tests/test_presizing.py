"The lesson's maps against fastai and by their properties"
import math
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from pets_nb.engine.drawn import draw_pet
from pets_nb.engine.pipeline import augmentation_matrix, sample_augmentations
from pets_nb.presizing import psnr, sample_at, two_ways

def rotation(degrees):
    c,s = math.cos(math.radians(degrees)),math.sin(math.radians(degrees))
    return torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]])

def test_identity_keeps_the_image():
    x = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(sample_at(x, torch.eye(3), 9), x)
    assert sample_at(x, torch.eye(3), 5).shape == (2, 3, 5, 5)

def test_rotation_is_clockwise():
    x = torch.zeros(1, 1, 9, 9); x[0, 0, 0, 4] = 1
    assert sample_at(x, rotation(90.), 9, 'zeros')[0, 0, 4, 8] > 0.99

@pytest.mark.parametrize('pad_mode,outside', [('zeros', 0.), ('border', 1.), ('reflection', 1.)])
def test_padding(pad_mode, outside):
    out = sample_at(torch.ones(1, 1, 8, 8), torch.diag(torch.tensor([3., 3, 1])), 9, pad_mode)
    assert out[0, 0, 0, 0] == outside and out[0, 0, 4, 4] == 1

@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31))
def test_the_engines_matrix_goes_to_the_same_places(seed):
    "Read from a ramp whose two channels hold their own coordinates, the engine's map from edge to edge"
    size,item_size = 32,64
    p = sample_augmentations(1, torch.Generator().manual_seed(seed), size, item_size)
    edges = augmentation_matrix(p, size, item_size)[0]
    inner,outer = item_size/(item_size - 1),(size - 1)/size
    m = (torch.diag(torch.tensor([inner, inner, 1.]).double()) @ edges @ torch.diag(torch.tensor([outer, outer, 1.]).double())).float()
    ramp = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, item_size)]*2, indexing='xy'))[None]
    found = sample_at(ramp, m, size, 'border')
    at = torch.linspace(-1, 1, size)
    x,y = torch.meshgrid(at, at, indexing='xy')
    places = torch.stack([x, y, torch.ones_like(x)], -1) @ m.T
    places = (places[..., :2]/places[..., 2:]).permute(2, 0, 1)[None].clamp(-1, 1)
    torch.testing.assert_close(found, places, atol=1e-4, rtol=1e-4)

def test_psnr():
    x = torch.rand(3, 3, 8, 8)
    off = x + torch.tensor([0.1, 0.01, 1.])[:, None, None, None]
    torch.testing.assert_close(psnr(off, x), torch.tensor([20., 40., 0.]), atol=1e-2, rtol=0)
    assert torch.isinf(psnr(x, x)).all()

def test_presized_is_sharper(tmp_path):
    im = draw_pet('pug', 1, size=(320, 240))
    presized,stepwise = two_ways(im, 96)
    assert presized.shape == stepwise.shape == (1, 3, 96, 96) and 0 <= presized.min() and presized.max() <= 1
    def sharpness(x): return x.diff(dim=-1).pow(2).mean() + x.diff(dim=-2).pow(2).mean()
    assert sharpness(presized) > 1.3*sharpness(stepwise)
    im.save(tmp_path/'pug_1.png')
    torch.testing.assert_close(two_ways(tmp_path/'pug_1.png', 96)[0], presized)
    assert two_ways(im, 64, 100)[0].shape == (1, 3, 64, 64)
