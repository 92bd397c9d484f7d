"What a folder of photographs can hold, and what the audit says of it."
import io, os, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from pets_nb.engine import audit as engine
from pets_nb.engine.audit import audit, _near_copies, _trailing
from pets_nb.engine.files import list_images, open_image
from test_files import eps, fresh, image, image_bytes, linux, png_of, posix

sample = Path(os.getenv('PETS_NB_SAMPLE') or Path(__file__).parents[2]/'shared'/'pets-sample'/'images')
real = Path(os.getenv('PETS_NB_128') or Path(__file__).parents[2]/'shared'/'pets-128')
breeds = ['Abyssinian','Egyptian_Mau','beagle','yorkshire_terrier']

@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('memory')
    monkeypatch.setenv('PETS_NB_CACHE', str(folder))
    return folder/'audit'

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'images').mkdir()
    for i,b in enumerate(b for b in breeds for _ in range(6)): (tmp_path/'images'/f'{b}_{i}.jpg').write_bytes(image_bytes(i))
    return tmp_path/'images'

def breed(o): return o.stem.rpartition('_')[0]

def problems(*args, **kwargs): return audit(*args, **kwargs).table.set_index('file').problems

# -- problems

@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=300).filter(lambda o: b'\xff\xd9' not in o), st.integers(1,50))
def test_trailing_bytes_are_counted(junk, seed):
    whole = image_bytes(seed, progressive=bool(seed%2))
    assert _trailing(io.BytesIO(whole)) == 0 and _trailing(io.BytesIO(whole+junk)) == len(junk)

def test_end_mark_in_a_thumbnail_is_not_the_end():
    whole = image_bytes(1, exif=b'Exif\0\0' + image_bytes(2))
    assert _trailing(io.BytesIO(whole)) == 0 and _trailing(io.BytesIO(whole + b'junk')) == 4
    assert _trailing(io.BytesIO(b'no end')) == 0

def test_trailing_bytes(tmp_path):
    (tmp_path/'a.jpg').write_bytes(image_bytes(1) + b'junk'*30)
    t = audit(tmp_path).table.iloc[0]
    assert (t.problems,t.decision,t.detail) == ('trailing bytes','kept','120 bytes after the end mark')

def test_duplicates_and_contradictions(folder):
    copy = (folder/'beagle_12.jpg').read_bytes()
    (folder/'beagle_900.jpg').write_bytes(copy)
    (folder/'beagle.copy.jpg').write_bytes(copy)                              # no label: must not displace the labelled one
    (folder/'beagle_901.jpg').write_bytes(image_bytes(13, comment=b'a note')) # the pixels of another file, other bytes
    (folder/'pug_1.jpg').write_bytes((folder/'Abyssinian_0.jpg').read_bytes())
    t = audit(folder, labels=breed).table.set_index('file')
    assert t.decision['beagle_12.jpg'] == 'kept' and t.problems['beagle_900.jpg'] == t.problems['beagle_901.jpg'] == 'duplicate'
    assert t.problems['beagle.copy.jpg'] == 'no label'
    assert t.problems['pug_1.jpg'] == t.problems['Abyssinian_0.jpg'] == 'contradicting labels'

def test_labels(folder):
    files = list_images(folder)
    assert list(audit(files, labels=[breed(o) for o in files]).table.label) == list(audit(folder, labels=breed).table.label)
    assert set(audit(folder).table.label) == {''} and not audit(folder).table.problems.any() # labels aren't checked unless given
    with pytest.raises(ValueError, match='23 labels for 24 files'): audit(files, labels=['a']*23)

def test_few_images_and_tiny(folder):
    (folder/'pug_1.jpg').write_bytes(image_bytes(99))
    (folder/'pug_2.jpg').write_bytes(image_bytes(98, size=(1,1)))
    t = audit(folder, labels=breed).table.set_index('file')
    assert t.problems['pug_1.jpg'] == 'few images' and t.decision['pug_1.jpg'] == 'kept'
    assert t.problems['pug_2.jpg'] == 'tiny' and t.decision['pug_2.jpg'] == 'left out'

def test_strays_and_misnamed(tmp_path):
    (tmp_path/'notes.txt').write_text('x')
    (tmp_path/'photo').write_bytes(image_bytes(1))
    (tmp_path/'photo.dat').write_bytes(image_bytes(2, 'PNG'))
    (tmp_path/'a.heic').write_bytes(b'\0\0\0\x18ftypheic'+bytes(50))
    (tmp_path/'b.jpg').write_bytes(b'\0\0\0\x18ftypheic'+bytes(50))
    (tmp_path/'pug.eps').write_bytes(eps)
    (tmp_path/'empty.jpg').write_bytes(b'')
    t = audit(tmp_path).table.set_index('file')
    assert dict(t.problems) == {'notes.txt':'not an image', 'photo':'misnamed image', 'photo.dat':'misnamed image', 'a.heic':'HEIC',
        'b.jpg':'HEIC', 'pug.eps':'not an image', 'empty.jpg':'undecodable'}
    assert t.detail['a.heic'] == t.detail['b.jpg'] and 'pillow-heif' in t.detail['b.jpg'] and t.detail['empty.jpg'] == 'the file is empty'

def test_other_suffixes_are_images(tmp_path):
    for o in ('a.tif','b.jfif','c.avif','d.JPEG','e.bmp'):
        try: image(ord(o[0])).save(tmp_path/o)
        except (KeyError, OSError): continue # a Pillow without AVIF
    assert not problems(tmp_path).any() and len(audit(tmp_path).usable) >= 4

def test_every_usable_image_loads(tmp_path):
    "Float, 12 and 16 bit, 32-bit integers: the audit runs the real conversion"
    for name,a in dict(float=np.random.rand(50,50).astype('f4'), wide=np.full((50,50), 1e9, 'f4'), int32=np.arange(2500).reshape(50,50).astype('i4')*1000,
            deep=np.arange(2500).reshape(50,50).astype('u2'), nan=np.full((50,50), np.nan, 'f4')).items(): Image.fromarray(a).save(tmp_path/f'{name}.tif')
    Image.fromarray(np.random.randint(0, 4096, (50,50)).astype('u2')).save(tmp_path/'twelve.png')
    t = audit(tmp_path).table.set_index('file')
    assert (t.decision.drop('nan.tif') == 'converted on load').all() and t.decision['nan.tif'] == 'left out' and 'finite' in t.detail['nan.tif']
    for o in audit(tmp_path).usable: assert open_image(o).mode == 'RGB'
    assert np.asarray(open_image(tmp_path/'twelve.png')).mean() > 100

def test_nearly_black(tmp_path):
    Image.fromarray(np.random.randint(0, 10, (64,64,3)).astype('u1')).save(tmp_path/'a.png')
    image(1).save(tmp_path/'b.png')
    assert list(problems(tmp_path)) == ['nearly black', '']

def test_huge_is_not_decoded(tmp_path):
    (tmp_path/'a.png').write_bytes(png_of(13_300, 13_300, 1, 0))
    with open(tmp_path/'b.jpg', 'wb') as f: f.truncate(6*10**9)
    assert list(problems(tmp_path)) == ['grey, huge','huge']

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_images_never_crash_and_usable_ones_open(tmp_path_factory, data):
    "Whatever the audit calls usable can be loaded"
    body = bytearray(image_bytes(1, data.draw(st.sampled_from(['JPEG','PNG','GIF','WEBP','TIFF'])), size=(60,40)))
    for _ in range(data.draw(st.integers(1,8))): body[data.draw(st.integers(0, len(body)-1))] = data.draw(st.integers(0,255))
    f = tmp_path_factory.mktemp('fuzz')/'beagle_1.jpg'
    f.write_bytes(body)
    for o in audit([f]).usable: assert open_image(o).mode == open_image(o, 16).mode == 'RGB'

@posix
def test_unreadable_entries(folder):
    (folder/'beagle_77.jpg').mkdir()            # a folder named like an image
    (folder/'beagle_78.jpg').symlink_to('gone') # a dangling link
    os.mkfifo(folder/'beagle_79.jpg')
    assert not {'beagle_77.jpg','beagle_78.jpg','beagle_79.jpg'} & set(audit(folder).table.file)
    t = audit([folder/'beagle_12.jpg', folder/'beagle_79.jpg', folder/'none.jpg', folder/('x'*300+'.jpg'), 'a\0b.jpg']).table
    assert list(t.problems) == ['']+['unreadable']*4

@pytest.mark.skipif(sys.platform == 'darwin' or os.name != 'posix', reason='names that are not UTF-8')
def test_odd_names(tmp_path):
    open(os.fsencode(tmp_path)+b'/pug_\xff_1.jpg', 'wb').write(image_bytes(1))
    (tmp_path/'<b>\x1b[31m$x_1$.jpg').write_bytes(b'x')
    for _ in range(2): # the second from memory
        report = audit(tmp_path)
        assert sorted(report.table.file) == [r'<b>\x1b[31m$x_1$.jpg', r'pug_\xff_1.jpg']
        report.table.to_csv(tmp_path/'.a.csv')
        assert open_image(report.usable[0]).size == (64,48)
        assert '&lt;b&gt;' in report._repr_html_() and '\x1b' not in report._repr_html_()
        report.plot().savefig(io.BytesIO())

@linux
def test_memory_has_a_bound(tmp_path):
    large = png_of(10_000, 10_000)
    for i in range(2): (tmp_path/f'{i}.png').write_bytes(large)
    with open(tmp_path/'sparse.jpg', 'wb') as f: f.write(image_bytes(1)); f.truncate(6*10**9)
    out,peak = fresh(f'from pets_nb.engine.audit import audit\nprint(list(audit({str(tmp_path)!r}, n_workers=4).table.problems))')
    assert 'huge' in out and peak < 1000, f'{peak} MB'

# -- the report

def test_layouts_of_folders(folder, tmp_path):
    (tmp_path/'annotations').mkdir()
    (tmp_path/'annotations/trainval.txt').write_text('x')
    assert list(audit(tmp_path).table.file) == list(audit(folder).table.file) # Oxford's archive: only its images
    (tmp_path/'classes/pug').mkdir(parents=True)
    (tmp_path/'classes/beagle').mkdir()
    for o in ('pug','beagle'): (tmp_path/'classes'/o/'1.jpg').write_bytes(image_bytes(len(o)))
    assert list(audit(tmp_path/'classes').table.file) == list(audit(list_images(tmp_path/'classes')).table.file) == ['beagle/1.jpg','pug/1.jpg']

def test_refuses(tmp_path):
    with pytest.raises(ValueError, match='no files'): audit([])
    with pytest.raises(ValueError, match='no files'): audit(tmp_path)
    with pytest.raises(FileNotFoundError): audit(tmp_path/'none')

def test_every_rule_has_a_decision():
    assert {o[0] for o in engine._RULES.values()} == set(engine._ORDER)

def test_result_is_the_same_with_any_number_of_workers(folder, monkeypatch):
    monkeypatch.setenv('PETS_NB_CACHE', os.devnull)
    assert audit(folder, n_workers=1).table.equals(audit(folder, n_workers=4).table)

def test_plot_and_repr(folder):
    assert 'Audit of 24 files: 24 kept' in repr(audit(folder)) and not len(audit(folder).summary)
    audit(folder).plot() # nothing to show is no crash
    (folder/'beagle_77.jpg').write_bytes(b'nothing')
    report = audit(folder)
    assert any('beagle_77.jpg' in ax.get_title('center') for ax in report.plot().axes)
    assert report.summary.loc['undecodable'].to_dict() == dict(decision='left out', files=1, examples='beagle_77.jpg', reason=engine._RULES['undecodable'][1])
    assert len(report.usable) == 24 and list(report.offenders.file) == ['beagle_77.jpg']

# -- memory

def count_looks(monkeypatch):
    looked,plain = [],engine._look
    monkeypatch.setattr(engine, '_look', lambda o: looked.append(o.name) or plain(o))
    return looked

def test_files_are_remembered_until_they_change(folder, monkeypatch):
    first,looked = audit(folder),count_looks(monkeypatch)
    assert audit(folder).table.equals(first.table) and not looked
    (folder/'beagle_12.jpg').write_bytes(b'changed')
    os.utime(folder/'beagle_13.jpg', ns=(1,1))
    (folder/'new.jpg').write_bytes(image_bytes(77))
    audit(folder)
    assert sorted(looked) == ['beagle_12.jpg','beagle_13.jpg','new.jpg']

def test_another_pillow_looks_again(folder, monkeypatch):
    audit(folder)
    looked = count_looks(monkeypatch)
    monkeypatch.setattr(engine, '_VERSION', 'another')
    audit(folder)
    assert len(looked) == 24

@pytest.mark.parametrize('body', [b'', b'nonsense'*1000, b'{"1 2 pug_1.jpg": {"form', b'null', b'[]', b'\xff\xfe\x00'])
def test_damaged_memory_counts_as_empty(folder, memory, monkeypatch, body):
    first = audit(folder)
    file, = memory.iterdir()
    whole = file.read_bytes()
    file.write_bytes(body)
    looked = count_looks(monkeypatch)
    assert audit(folder).table.equals(first.table) and len(looked) == 24
    assert file.read_bytes() == whole

def test_an_interrupted_audit_remembers_what_it_saw(folder, monkeypatch):
    plain,left = engine._look,[20]
    def look(path):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
        return plain(path)
    with monkeypatch.context() as m:
        m.setattr(engine, '_look', look)
        with pytest.raises(KeyboardInterrupt): audit(folder, n_workers=1)
    looked = count_looks(monkeypatch)
    audit(folder)
    assert 0 < len(looked) < 24

def test_other_folders_are_remembered_too(folder, tmp_path, monkeypatch):
    (tmp_path/'more').mkdir()
    (tmp_path/'more/pug_1.jpg').write_bytes(image_bytes(50))
    audit(list_images(tmp_path))
    looked = count_looks(monkeypatch)
    assert len(audit(folder).usable) == 24 and len(audit(tmp_path).usable) == 25 and not looked

@posix
@pytest.mark.parametrize('place', ['/proc/none', '/dev/null'])
def test_no_place_for_the_memory(folder, monkeypatch, place):
    monkeypatch.setenv('PETS_NB_CACHE', place)
    assert len(audit(folder).usable) == 24

def test_no_home(folder):
    code = f'''
import os, pwd
for o in ('HOME','PETS_NB_CACHE','XDG_CACHE_HOME'): os.environ.pop(o, None)
def none(*_): raise KeyError
pwd.getpwuid = none
os.chdir({str(folder.parent)!r})
from pets_nb.engine.audit import audit
print(audit('images'))'''
    assert '24 kept' in fresh(code)[0] and os.listdir(folder.parent) == ['images']

def test_several_processes_at_once(folder):
    "Four processes start together on an empty memory"
    code = f"from pets_nb.engine.audit import audit; print(len(audit({str(folder)!r}).usable))"
    ps = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [o.communicate(timeout=60) for o in ps] == [('24\n','')]*4

@pytest.mark.skipif(not real.is_dir(), reason='the 7,349 photographs are not here')
def test_thousands_of_known_files(monkeypatch):
    monkeypatch.setattr(engine, '_look', lambda o: dict(format='JPEG', mode='RGB', width=171, height=128, found={}, pixels=o.name,
        look=np.random.default_rng(abs(hash(o.name))).bytes(16).hex()))
    audit(real)
    start = time.process_time()
    assert len(audit(real).usable) == 7349
    assert time.process_time()-start < 1

# -- copies

def photo(seed, size=(500,375)):
    "Smooth, with some detail, as a photograph is"
    rng = np.random.default_rng(seed)
    a = sum(np.asarray(Image.fromarray(rng.normal(0, 1, (n,n)).astype('f4')).resize(size, Image.Resampling.BICUBIC))*(40/n**.5) for n in (3,6,12,24))
    return Image.fromarray((128+a*2).clip(0,255).astype('u1')).convert('RGB')

def test_near_copies(tmp_path):
    "Saved again at a low quality, halved, made darker; other images are left alone"
    for i in range(40): photo(i).save(tmp_path/f'{i:02d}.jpg', quality=95)
    photo(3).save(tmp_path/'a.jpg', quality=30)
    photo(3).resize((250,188)).save(tmp_path/'b.png')
    photo(5).point(lambda v: v*.7).save(tmp_path/'c.webp')
    files = list_images(tmp_path)
    groups = [[files[i].name for i in o] for o in _near_copies(files)]
    assert groups == [['03.jpg','a.jpg','b.png'], ['05.jpg','c.webp']]
    t = audit(tmp_path).table.set_index('file')
    assert t.detail['a.jpg'] == t.detail['b.png'] == 'almost the same as 03.jpg' and (t.decision == 'kept').all()
    assert (t.problems != '').sum() == 3
    assert _near_copies([]) == [] and _near_copies(files[:3]) == []

def test_close_pairs_are_all_found():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (300,16), dtype=np.uint8)
    for i in range(100): # neighbours at 0 to 9 bits
        a[i+100] = a[i] ^ np.packbits(rng.permutation(np.arange(128) < i%10))
    found = {tuple(sorted(o)) for o in engine._close_pairs(a)}
    assert found == {(i,i+100) for i in range(100) if i%10 <= 7}

# -- real photographs

@pytest.mark.skipif(not (sample.parent/'odd').is_dir(), reason='the sample of real photographs is not here')
def test_real_files_that_are_not_jpeg():
    t = audit(sample.parent/'odd').table.set_index('file')
    assert (t.format['Abyssinian_34.jpg'], t['mode']['Abyssinian_34.jpg']) == ('GIF','P')
    assert (t.format['Abyssinian_5.jpg'], t['mode']['Abyssinian_5.jpg']) == ('PNG','RGBA')
    assert t.problems.str.contains('other format').all() and (t.decision == 'converted on load').all()
    assert {open_image(o).mode for o in list_images(sample.parent/'odd')} == {'RGB'}

@pytest.mark.skipif(not sample.is_dir(), reason='the sample of real photographs is not here')
def test_real_photographs_are_usable():
    report = audit(sample)
    assert report.usable == list_images(sample) and not report.table.problems.str.contains('near').any()
