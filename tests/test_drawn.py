"Drawn pets: what is no lesson. Same pixels in every process, sizes, lists, traps, and a drawing that is killed."
import io, json, os, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFile
from pets_nb.drawn import (ContactSheet, breed_traits, draw_pet, draw_pets, invented_traits, planted_traps, trait_distance)

BREEDS = ['Birman', 'beagle', 'pug', 'Sphynx']

def pixels(folder): return {p.name: p.read_bytes() for p in sorted((folder/'images').iterdir())}

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return draw_pets(tmp_path_factory.mktemp('drawn')/'pets', 6, BREEDS, damage=True, n_workers=1, progress=False)

def test_importing_is_light():
    code = 'import sys, pets_nb.drawn; print([m for m in ("torch", "fastai", "torchvision", "scipy", "sklearn") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

def test_table():
    assert len(breed_traits) == 37 and breed_traits.index.is_unique and not breed_traits.isna().any().any()
    assert Counter(breed_traits.species) == dict(cat=12, dog=25)
    assert all((s == 'cat') == b[0].isupper() for b,s in breed_traits.species.items())

@given(breed=st.sampled_from(list(breed_traits.index)), seed=st.integers(0, 2**63), w=st.integers(32, 300), h=st.integers(32, 300))
@settings(max_examples=25, deadline=None)
def test_any_size_and_seed(breed, seed, w, h):
    im = draw_pet(breed, seed, (w, h))
    assert im.size == (w, h) and im.mode == 'RGB'
    assert np.asarray(im).std() > 4

@pytest.mark.parametrize('pose', ['portrait', 'sitting', 'lying', 'standing'])
@pytest.mark.parametrize('pattern', sorted({*breed_traits.pattern, 'brindle'}))
def test_every_pattern_in_every_pose(pattern, pose):
    row = breed_traits.loc['beagle'].copy()
    row['pattern'] = pattern
    assert draw_pet(row, 1, (120, 90), pose).size == (120, 90)

def test_a_row_and_its_name_give_the_same():
    assert draw_pet('pug', 5, (100, 80)).tobytes() == draw_pet(breed_traits.loc['pug'], 5, (100, 80)).tobytes()

def test_unknown_breed_is_named():
    with pytest.raises(KeyError, match='poodle'): draw_pet('poodle')

def test_larger_than_the_textures(): assert draw_pet('samoyed', 3, (1000, 800)).size == (1000, 800)

def test_too_small_is_refused():
    with pytest.raises(ValueError, match='at least 16'): draw_pet('pug', 1, (400, 8))

def test_unknown_pose_is_named():
    with pytest.raises(ValueError, match='flying'): draw_pet('pug', pose='flying')

def test_workers_order_and_company_change_nothing(tmp_path):
    a = draw_pets(tmp_path/'a', 2, ['pug', 'Birman'], n_workers=1, traps=False, progress=False)
    b = draw_pets(tmp_path/'b', 3, ['Birman', 'beagle', 'pug'], n_workers=3, traps=False, progress=False)
    a, b = pixels(a), pixels(b)
    assert all(b[name] == content for name,content in a.items()) and len(b) == 9

def test_another_process_draws_the_same():
    code = 'import hashlib; from pets_nb.drawn import draw_pet; print(hashlib.sha256(draw_pet("keeshond", 9, (150, 110)).tobytes()).hexdigest())'
    env = dict(os.environ, PYTHONHASHSEED='17')
    import hashlib
    theirs = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env).stdout.strip()
    assert theirs == hashlib.sha256(draw_pet('keeshond', 9, (150, 110)).tobytes()).hexdigest()

def test_seed_changes_the_pictures(tmp_path):
    a, b = (pixels(draw_pets(tmp_path/str(s), 1, ['pug'], seed=s, traps=False, n_workers=1, progress=False)) for s in (1, 2))
    assert a['pug_1.jpg'] != b['pug_1.jpg']

def test_spawned_workers(tmp_path):
    script = tmp_path/'script.py'
    script.write_text('import multiprocessing, sys\nfrom pets_nb.drawn import draw_pets\n'
        'if __name__ == "__main__":\n    multiprocessing.set_start_method("spawn")\n    draw_pets(sys.argv[1], 2, ["pug"], traps=False, n_workers=2, progress=False)\n')
    subprocess.run([sys.executable, script, tmp_path/'spawned'], check=True)
    assert pixels(tmp_path/'spawned') == pixels(draw_pets(tmp_path/'here', 2, ['pug'], traps=False, n_workers=1, progress=False))

def test_sizes_and_orientations(tmp_path):
    d = draw_pets(tmp_path/'d', 12, ['pug'], traps=False, n_workers=2, progress=False)
    sizes = np.array([Image.open(p).size for p in (d/'images').iterdir()])
    assert sizes.min() >= 200 and sizes.max() <= 700
    assert (sizes[:,0] > sizes[:,1]).any() and (sizes[:,0] < sizes[:,1]).any() and len(set(map(tuple, sizes))) > 5

def test_lists(folder):
    read = lambda n: [l.split() for l in (folder/'annotations'/f'{n}.txt').read_text().splitlines() if not l.startswith('#')]
    rows, train, test = read('list'), read('trainval'), read('test')
    assert (folder/'annotations/list.txt').read_text().startswith('#')
    assert sorted(train + test) == sorted(rows) and len(rows) == 24
    order = sorted(breed_traits.index, key=str.lower)
    for name, class_id, species, _ in rows:
        breed = name.rsplit('_', 1)[0]
        assert order[int(class_id) - 1] == breed and species == ('1' if breed[0].isupper() else '2')
        assert (folder/'images'/f'{name}.jpg').exists()
    assert {b: int(i) for n,_,_,i in rows for b in [n.rsplit('_', 1)[0]]} == dict(beagle=4, Birman=3, pug=18, Sphynx=12)
    assert Counter(n.rsplit('_', 1)[0] for n,*_ in train) == {b: 3 for b in BREEDS}

def test_traps_are_what_they_say(folder):
    planted, images = planted_traps(folder), folder/'images'
    kinds = {k: [Image.open(images/n) for n in planted[k]] for k in ('gif', 'png', 'trailing_bytes', 'cmyk', 'sixteen_bit', 'exif_rotated')}
    assert [(i.format, i.mode) for i in kinds['gif']] == [('GIF', 'P')]
    assert [(i.format, i.mode) for i in kinds['png']] == [('PNG', 'RGBA')]*3
    assert all(not (images/n).read_bytes().endswith(b'\xff\xd9') and (images/n).read_bytes().startswith(b'\xff\xd8') for n in planted['trailing_bytes'])
    assert len(planted['trailing_bytes']) == 2 and len(planted['stray']) == 3
    assert kinds['cmyk'][0].mode == 'CMYK' and kinds['sixteen_bit'][0].mode.startswith('I;16') and kinds['exif_rotated'][0].getexif()[0x0112] == 6

def test_an_audit_of_the_content_finds_exactly_the_planted_ones(folder):
    found, seen = set(), {}
    for p in sorted((folder/'images').iterdir()):
        content = p.read_bytes()
        if not (content.startswith(b'\xff\xd8') and content.endswith(b'\xff\xd9')): found.add(p.name)
        elif Image.open(p).mode != 'RGB' or Image.open(p).getexif() or not p.stem.rpartition('_')[2].isdigit(): found.add(p.name)
        elif content in seen: found.add(max(p.name, seen[content], key=lambda n: int(n.rsplit('_')[-1].split('.')[0])))
        seen.setdefault(content, p.name)
    assert found == {n for names in planted_traps(folder).values() for n in names}

def test_truncated_is_truncated(folder):
    with pytest.raises(OSError): Image.open(folder/'images'/planted_traps(folder)['truncated'][0]).load()

def test_no_traps_no_damage(tmp_path):
    d = draw_pets(tmp_path/'clean', 2, ['pug', 'Bengal'], traps=False, n_workers=1, progress=False)
    assert planted_traps(d) == {} and all((i.format, i.mode) == ('JPEG', 'RGB') for i in map(Image.open, (d/'images').iterdir()))

def test_one_picture_has_room_for_few_traps(tmp_path):
    d = draw_pets(tmp_path/'tiny', 1, ['pug'], n_workers=1, progress=False, damage=True)
    assert (d/'images/pug_1.jpg').exists() and sum(map(len, planted_traps(d).values())) == 1 + 3 + 8

def test_same_again_draws_nothing(folder):
    before = {p: p.stat().st_mtime_ns for p in (folder/'images').iterdir()}
    assert draw_pets(folder, 6, BREEDS, damage=True) == folder
    assert before == {p: p.stat().st_mtime_ns for p in (folder/'images').iterdir()}

def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/photo.txt').write_text('keep me')
    with pytest.raises(FileExistsError, match='something else'): draw_pets(tmp_path/'mine', 1, ['pug'])
    assert (tmp_path/'mine/photo.txt').read_text() == 'keep me'

def test_empty_folder_is_filled(tmp_path):
    (tmp_path/'empty').mkdir()
    assert len(pixels(draw_pets(tmp_path/'empty', 1, ['pug'], traps=False, n_workers=1, progress=False))) == 1

@pytest.mark.parametrize('wrong', [dict(breeds=['pug', 'poodle']), dict(breeds=[]), dict(n_per_breed=0)])
def test_wrong_questions(tmp_path, wrong):
    with pytest.raises(ValueError): draw_pets(tmp_path/'x', progress=False, **wrong)
    assert not list(tmp_path.iterdir())

def test_a_killed_drawing_leaves_no_folder(tmp_path):
    code = f'from pets_nb.drawn import draw_pets; draw_pets({str(tmp_path/"pets")!r}, 200, n_workers=1, progress=False)'
    p = subprocess.Popen([sys.executable, '-c', code])
    for _ in range(300):
        if any(tmp_path.glob('.pets-unfinished-*/images/*.jpg')): break
        time.sleep(.1)
    p.send_signal(signal.SIGKILL); p.wait()
    assert not (tmp_path/'pets').exists() and list(tmp_path.glob('.pets-unfinished-*'))
    assert len(pixels(draw_pets(tmp_path/'pets', 1, ['pug'], traps=False, n_workers=1, progress=False))) == 1

def test_an_error_leaves_nothing(tmp_path):
    bad = breed_traits.copy(); bad.loc['pug', 'base'] = 'nonsense'
    with pytest.raises(ValueError): draw_pets(tmp_path/'x', 1, ['pug'], traits=bad, n_workers=1, progress=False)
    assert not list(tmp_path.iterdir())

@given(seed=st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_invented_breeds(seed):
    rows = invented_traits(4, seed)
    pd.testing.assert_frame_equal(rows, invented_traits(4, seed))
    assert list(rows.columns) == list(breed_traits.columns) and rows.index.is_unique and not set(rows.index) & set(breed_traits.index)
    assert all((s == 'cat') == b[0].isupper() for b,s in rows.species.items())
    assert all(draw_pet(r, 1, (60, 50)).size == (60, 50) for _,r in rows.iterrows())

def test_invented_breeds_as_a_folder(tmp_path):
    rows = invented_traits(3, 1)
    d = draw_pets(tmp_path/'other', 2, traits=rows, traps=False, n_workers=1, progress=False)
    assert {p.name for p in (d/'images').iterdir()} == {f'{b}_{n}.jpg' for b in rows.index for n in (1, 2)}

def test_trait_distance():
    a, b = breed_traits.loc['pug'], breed_traits.loc['Siamese']
    assert trait_distance(a, a) == 0 and trait_distance(a, b) == trait_distance(b, a) > 0

def test_contact_sheet():
    sheet = ContactSheet([draw_pet('pug', s, (60, 50)) for s in range(5)], list('abcde'), 3, 300)
    im = Image.open(io.BytesIO(sheet._repr_jpeg_()))
    assert im.format == 'JPEG' and im.width == 300 and '5 pictures' in repr(sheet)
