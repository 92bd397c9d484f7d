"Layouts, labels and splits: what is no lesson. Odd names, bad input, and fastai's own splitter."
import os, subprocess, sys, unicodedata, warnings
from collections import Counter
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from pets_nb.engine.drawn import draw_pets
from pets_nb.engine.sources import ImageSet, find_images, get_pets, species, _arrange, _quotas, _stratified, _together

NFC, NFD = (lambda s: unicodedata.normalize('NFC', s)), (lambda s: unicodedata.normalize('NFD', s))

@pytest.fixture(autouse=True)
def own_memory(tmp_path, monkeypatch): monkeypatch.setenv('PETS_NB_CACHE', str(tmp_path/'cache'))

def pics(folder, names, size=40):
    for i,name in enumerate(names):
        path = Path(folder)/name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng([i, len(name)]).integers(0, 255, (size, size, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path, 'JPEG')
    return Path(folder)

def named(*breeds, n=3): return [f'{b}_{i}.jpg' for b in breeds for i in range(n)]
def quiet(*args, **kwargs): return find_images(*args, verbose=False, **kwargs)
def labels(images): return dict(zip(images.files.attrgot('name'), images.labels))

def refused(kind, *words, **kwargs):
    "The message of a refusal: one line that holds all words"
    with pytest.raises(kind) as e: quiet(**kwargs)
    said = str(e.value)
    assert '\n' not in said and all(o in said for o in words), said
    return said

# -- which folder

def test_importing_is_light():
    code = ('import sys, pets_nb.engine.sources; '
            'print([m for m in ("torch", "fastai", "scipy", "sklearn", "matplotlib") if m in sys.modules])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

def test_a_path_and_its_images_folder(tmp_path, capsys):
    root = pics(tmp_path, [f'images/{o}' for o in named('a', 'b')])
    assert get_pets(root) == get_pets(str(root/'images')) == root/'images'
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all(o.startswith('Images: ') and o.endswith('/images') for o in said)

def test_an_images_folder_without_images_is_none(tmp_path):
    (tmp_path/'images').mkdir()
    assert get_pets(pics(tmp_path, named('a', 'b'))) == tmp_path

def test_none_follows_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PETS_NB_DATA', str(pics(tmp_path, named('a', 'b'))))
    assert get_pets() == tmp_path and 'PETS_NB_DATA' in capsys.readouterr().out

@pytest.mark.parametrize('on_disk', [True, False])
def test_none_never_downloads(on_disk, tmp_path, monkeypatch, capsys):
    import pets_nb.engine.sources as sources
    monkeypatch.delenv('PETS_NB_DATA', raising=False)
    monkeypatch.setattr(sources, 'has_oxford', lambda: on_disk)
    monkeypatch.setattr(sources, 'get_oxford', lambda: pics(tmp_path/'oxford', named('a')))
    monkeypatch.setattr(sources, 'get_drawn', lambda: pics(tmp_path/'drawn', named('a')))
    assert get_pets().name == ('oxford' if on_disk else 'drawn')
    assert ('812 MB' in capsys.readouterr().out) != on_disk

def test_no_such_folder(tmp_path):
    for source in (tmp_path/'nothing', '~nouser/x', tmp_path/'bad\x1bname'):
        assert '\x1b' not in refused(FileNotFoundError, 'No folder', "'drawn'", source=source)
    (tmp_path/'a.txt').touch()
    refused(NotADirectoryError, 'a.txt', source=tmp_path/'a.txt')

def test_no_images_says_what_is_there(tmp_path):
    for name in ('a.heic', 'b.heic', 'c.txt'): (tmp_path/name).touch()
    refused(FileNotFoundError, '2 .heic', '1 .txt', 'pillow-heif', '.jpg', source=tmp_path)
    refused(FileNotFoundError, 'no files', source=(tmp_path/'empty').mkdir() or tmp_path/'empty')

# -- names

def test_names(tmp_path, capsys):
    images = find_images(pics(tmp_path, named('great_pyrenees', 'Maine Coon')))
    assert (images.layout, images.classes) == ('names', ['Maine Coon', 'great_pyrenees']) and len(images) == 6
    assert images.counts.to_dict() == {'Maine Coon': 3, 'great_pyrenees': 3} and images.root == tmp_path
    said = capsys.readouterr().out
    assert '6 images of 2 classes' in said and sum('.jpg' in o for o in said.splitlines()) == 5

@pytest.mark.parametrize('name', ['beagle_1.jpg', 'Bengal_7.JPG', 'a_b_12.jpeg', 'x_1_2.png', 'Épagneul_3.webp', '고양이_4.tif'])
def test_every_suffix(tmp_path, name):
    from pets_nb.engine.sources import _from_names
    assert _from_names([Path('/a b/c_3.jpg')/name]) == [name.rpartition('_')[0]]

def test_the_dot_is_a_dot(tmp_path):
    from pets_nb.engine.sources import _from_names
    for name in ('pug_1fjpg', 'pug_.jpg', 'pug1.jpg', '_1.jpg', 'pug_1.jpg.txt', 'pug_1.jpg\n'):
        with pytest.raises(ValueError): _from_names([Path(name)])

text = st.text(st.characters(blacklist_characters='/\\', blacklist_categories=('Cs', 'Cc', 'Zl', 'Zp')), max_size=12)

@settings(max_examples=300, deadline=None)
@given(text | st.sampled_from(['beagle', 'Maine_Coon', 'a_1', '_']), st.sampled_from(['_', '', '__']), st.sampled_from(['1', '007', 'x', '']))
def test_same_as_fastai_where_both_work(a, b, c):
    from fastai.data.transforms import RegexLabeller
    from pets_nb.engine.sources import _from_names
    name = f'{a}{b}{c}.jpg'
    try: ours = _from_names([Path(name)])[0]
    except ValueError: return
    assert ours == NFC(RegexLabeller(r'(.+)_\d+\.jpg$')(NFC(name))).strip()

def test_some_names_without_a_label(tmp_path):
    pics(tmp_path, named('pug', 'boxer') + [f'photo{i}.jpg' for i in range(12)])
    said = refused(ValueError, '12 of 18', "'photo0.jpg'", '(12 in all)', source=tmp_path)
    assert "'photo9.jpg'" not in said or said.count('photo') == 10

def test_no_name_has_a_label(tmp_path):
    refused(ValueError, 'None of 4', "'a.jpg', 'b.jpg', 'c.jpg'", 'CSV', source=pics(tmp_path, ['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg']))

@pytest.mark.parametrize('pattern, words', [(r'\w+', '0 groups'), (r'(\w)(\d)', '2 groups'), ('(', 'does not compile'), ('^(zzz)', 'None of 6')])
def test_patterns_refused(tmp_path, pattern, words): refused(ValueError, words, source=pics(tmp_path, named('a', 'b')), pattern=pattern)

def test_own_pattern(tmp_path):
    images = quiet(pics(tmp_path, ['1-pug.jpg', '2-pug.jpg', '3-boxer.jpg', '4-boxer.jpg']), pattern=r'-(\w+)\.')
    assert images.classes == ['boxer', 'pug'] and images.layout == 'names'
    refused(ValueError, "can't be combined", source=tmp_path, labels='folders', pattern='(x)')

def test_a_pattern_reads_names_in_folders_too(tmp_path):
    images = quiet(pics(tmp_path, [f'{d}/{i}-{b}.jpg' for d in 'xy' for i in '12' for b in ('pug', 'boxer')]), pattern=r'-(\w+)\.')
    assert images.classes == ['boxer', 'pug']

# -- names in any script, and their twins

def test_unicode_forms_and_spaces_are_one_class(tmp_path):
    pics(tmp_path, [f'{NFC("Épagneul")}/1.jpg', f'{NFD("Épagneul")}/2.jpg', 'Épagneul /3.jpg', '시바견/1.jpg', '시바견/2.jpg'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        images = quiet(tmp_path)
    assert images.counts.to_dict() == {NFC('Épagneul'): 3, NFC('시바견'): 2}

def test_twins_are_listed(tmp_path):
    pics(tmp_path, named('Pug', 'pug', 'great_pyrenees', 'great pyrenees', 'boxer'))
    with pytest.warns(UserWarning, match="differ only in case or form.*Pug / pug"): images = quiet(tmp_path)
    assert len(images.classes) == 5

def test_windows_separators(tmp_path):
    images = quiet(pics(tmp_path, ['train\\pug\\1.jpg', 'train\\boxer\\2.jpg', 'val\\pug\\3.jpg', 'val\\boxer\\4.jpg']))
    assert images.layout == 'folders' and images.classes == ['boxer', 'pug'] and Counter(images.parts) == dict(train=2, valid=2)
    images = quiet(pics(tmp_path/'flat', ['images\\pug_1.jpg', 'images\\pug_2.jpg', 'images\\boxer_1.jpg', 'images\\boxer_2.jpg']))
    assert (images.layout, images.classes) == ('names', ['boxer', 'pug'])

def test_dates_that_became_classes(tmp_path):
    phone = pics(tmp_path/'a', [f'IMG_2024050{d}_100{i}.jpg' for d in (1, 2) for i in (1, 2)])
    with pytest.warns(UserWarning, match='end in digits.*IMG_20240501.*pattern'): quiet(phone)
    refused(ValueError, 'one image', 'end in digits', source=pics(tmp_path/'b', [f'IMG_2024050{d}_1.jpg' for d in (1, 2, 3)]))

def test_numbered_folders_are_fine(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert quiet(pics(tmp_path, [f'{d}/{i}.jpg' for d in '0123' for i in '12'])).classes == list('0123')

def test_a_name_that_is_not_utf8(tmp_path):
    pics(tmp_path, named('pug', 'boxer'))
    bad = os.fsencode(tmp_path) + b'/caf\xe9_1.jpg'
    try: Path(os.fsdecode(bad)).write_bytes((tmp_path/'pug_0.jpg').read_bytes())
    except OSError: pytest.skip('the file system takes UTF-8 only')
    refused(ValueError, r'caf\xe9_1.jpg', source=tmp_path)

def test_control_characters_are_escaped(tmp_path):
    assert '\x1b' not in refused(ValueError, r'\x1b', source=pics(tmp_path, named('pug', 'boxer') + ['\x1b[31m_1.jpg']))

# -- folders

@pytest.mark.parametrize('above', ['', 'x/', 'images/', 'x/images/', 'data/archive/'])
def test_class_folders_at_any_depth(tmp_path, above):
    images = quiet(pics(tmp_path, [f'{above}{b}/{i}.jpg' for b in ('pug', 'great pyrenees') for i in '12']))
    assert (images.layout, images.classes, images.parts) == ('folders', ['great pyrenees', 'pug'], None)

@pytest.mark.parametrize('above', ['', 'x/', 'images/'])
@pytest.mark.parametrize('held', ['valid', 'val', 'Validation', 'test'])
def test_parts_in_folders(tmp_path, above, held):
    images = quiet(pics(tmp_path, [f'{above}{p}/{b}/10.jpg' for p in ('train', held) for b in ('pug', 'boxer')]))
    train,valid = images.split('given')
    assert [images.files[i].parts[-3] for i in train] == ['train']*2 and [images.files[i].parts[-3] for i in valid] == [held]*2

def test_three_parts(tmp_path):
    images = quiet(pics(tmp_path, [f'{p}/{b}/{i}.jpg' for p in ('train', 'valid', 'test') for b in ('pug', 'boxer') for i in '123']))
    assert Counter(images.parts) == dict(train=6, valid=6, test=6) and '6 test' in repr(images)
    for how in ('random', 'chapter'):
        train,valid = images.split(how)
        assert {images.parts[i] for i in train + valid} == {'train', 'valid'} and len(train + valid) == 12

def test_parts_with_named_files(tmp_path):
    images = quiet(pics(tmp_path, [f'{p}/{o}' for p in ('train', 'valid') for o in named('pug', 'boxer')]))
    assert images.layout == 'names' and Counter(images.parts) == dict(train=6, valid=6)

def test_only_a_train_folder(tmp_path):
    assert quiet(pics(tmp_path, [f'train/{b}/{i}.jpg' for b in ('pug', 'boxer') for i in '12'])).parts is None

def test_a_class_called_train(tmp_path):
    images = quiet(pics(tmp_path, [f'{b}/{i}.jpg' for b in ('train', 'bus', 'car') for i in '12']))
    assert images.classes == ['bus', 'car', 'train'] and images.parts is None

def test_one_folder_of_named_files(tmp_path):
    assert quiet(pics(tmp_path, [f'photos/{o}' for o in named('pug', 'boxer')])).classes == ['boxer', 'pug']

def test_class_folders_win_over_the_names_in_them(tmp_path):
    images = quiet(pics(tmp_path, [f'{b}/IMG_{i}.jpg' for b in ('pug', 'boxer') for i in '12']))
    assert images.classes == ['boxer', 'pug']

def test_flat_files_beside_class_folders(tmp_path):
    pics(tmp_path, ['pug/1.jpg', 'pug/2.jpg', 'boxer/1.jpg', 'boxer/2.jpg', 'beagle_1.jpg', 'beagle_2.jpg'])
    refused(ValueError, '2 of 6', 'beside', "'beagle_1.jpg'", source=tmp_path)
    refused(ValueError, 'beside', source=tmp_path, labels='folders')

def test_folders_in_folders(tmp_path):
    pics(tmp_path, [f'{s}/{b}/{i}.jpg' for s,b in (('cats', 'Birman'), ('dogs', 'pug'), ('dogs', 'boxer')) for i in '12'])
    refused(ValueError, 'inside others', "'cats/Birman'", "labels='folders'", source=tmp_path)
    assert quiet(tmp_path, labels='folders').classes == ['Birman', 'boxer', 'pug']

def test_parts_inside_the_classes(tmp_path):
    refused(ValueError, 'train/<class>/', source=pics(tmp_path, [f'{b}/{p}/1.jpg' for b in ('pug', 'boxer') for p in ('train', 'valid')]))

# -- CSV

def table(folder, text, name='labels.csv', encoding='utf-8', n=4):
    pics(folder, [f'{o}.jpg' for o in 'abcdefgh'[:n]])
    (folder/name).write_bytes(text.encode(encoding))
    return folder

ok = 'file,label\na.jpg,pug\nb.jpg,pug\nc.jpg,boxer\nd.jpg,boxer\n'

@pytest.mark.parametrize('text', [ok, '\ufeff' + ok, ok.replace(',', ';'), ok.replace(',', '\t'), ok.replace('\n', '\r\n'), ok.replace(',', ', '),
    ok.replace('file,label', 'Filename,Breed'), ok.replace('.jpg', ''), ok.replace('a.jpg', '.\\a.jpg'), 'n' + ok.replace('\n', '\n1,').replace('file', ',file')[:-2],
    ok.replace('b.jpg,pug', '"b.jpg","pug "'), ok + '\n\n'])
def test_tables(tmp_path, text):
    images = quiet(table(tmp_path, text))
    assert images.layout == 'csv' and labels(images) == {'a.jpg': 'pug', 'b.jpg': 'pug', 'c.jpg': 'boxer', 'd.jpg': 'boxer'}

def test_a_table_beside_the_images_folder(tmp_path):
    table(tmp_path/'images', '')
    (tmp_path/'images/labels.csv').unlink()
    (tmp_path/'t.csv').write_text(ok)
    assert quiet(tmp_path, labels='t.csv').layout == quiet(tmp_path).layout == 'csv'
    (tmp_path/'t.csv').write_text(ok.replace('a.jpg', 'images/a.jpg'))
    assert quiet(tmp_path, labels=tmp_path/'t.csv').labels == ['pug', 'pug', 'boxer', 'boxer']

def test_a_split_column(tmp_path):
    text = 'file,label,split\na.jpg,pug,train\nb.jpg,pug,Val\nc.jpg,boxer,train\nd.jpg,boxer,valid\n'
    assert quiet(table(tmp_path/'a', text)).split('given') == ([0, 2], [1, 3])
    text = 'fname,label,is_valid\na.jpg,pug,False\nb.jpg,pug,True\nc.jpg,boxer,False\nd.jpg,boxer,True\n'
    assert quiet(table(tmp_path/'b', text)).split('given') == ([0, 2], [1, 3])

def test_nfd_entries_find_nfc_files(tmp_path):
    pics(tmp_path, [f'{NFC("é")}{i}.jpg' for i in range(4)])
    (tmp_path/'t.csv').write_text('file,label\n' + ''.join(f'{NFD("é")}{i}.jpg,{"ab"[i%2]}\n' for i in range(4)))
    assert quiet(tmp_path).labels == ['a', 'b']*2

@pytest.mark.parametrize('text, words', [
    (ok.replace('label', 'colour'), ['no column for the label', "'file', 'colour'", 'breed']),
    (ok.replace('file', 'x'), ['no column for the file']),
    (ok + 'x.jpg,pug\ny.jpg,pug\n', ["2 images missing ('x.jpg', 'y.jpg')"]),
    (ok + 'a.jpg,boxer\n', ["listed before ('a.jpg', 'a.jpg')"]),
    (ok.replace('b.jpg,pug', 'b.jpg,'), ["1 row without a label ('b.jpg')"]),
    ('file,label,split\na.jpg,pug,train\nb.jpg,pug,later\n', ["unknown part ('b.jpg')"]),
    (ok + 'x.jpg,pug\na.jpg,pug\n', ['1 image missing', 'listed before']),
    (ok + 'e.jpg,pug,dog\n', ['more or fewer', "'6'"]),
    ('file,label\n', ['0 rows']), ('', ['no column'])])
def test_tables_refused(tmp_path, text, words): refused(ValueError, 'labels.csv', *words, source=table(tmp_path, text), labels='labels.csv')

def test_a_table_in_another_encoding(tmp_path):
    refused(ValueError, 'CSV UTF-8', source=table(tmp_path, ok.replace('pug', 'épagneul'), encoding='cp1252'), labels='labels.csv')

def test_a_table_and_another_layout(tmp_path):
    pics(tmp_path, named('pug', 'boxer'))
    (tmp_path/'labels.csv').write_text('file,label\n' + ''.join(f'{o},x\n' for o in named('pug', 'boxer')))
    refused(ValueError, "labels='names'", "labels='labels.csv'", source=tmp_path)
    assert quiet(tmp_path, labels='names').classes == ['boxer', 'pug']

def test_other_tables_are_no_matter(tmp_path):
    pics(tmp_path, named('pug', 'boxer'))
    (tmp_path/'history.csv').write_text('epoch,loss\n1,2\n')
    (tmp_path/'binary.csv').write_bytes(os.urandom(300))
    assert quiet(tmp_path).layout == 'names'

def test_no_such_table(tmp_path):
    refused(FileNotFoundError, "'folders'", 'x.csv', source=pics(tmp_path, named('pug', 'boxer')), labels='x.csv')

def test_a_function(tmp_path):
    pics(tmp_path, ['1 pug.jpg', '2 pug.jpg', '3 boxer.jpg', '4 boxer.jpg'])
    images = quiet(tmp_path, labels=lambda p: p.stem.split()[1])
    assert images.layout == 'function' and images.classes == ['boxer', 'pug']
    refused(ValueError, '1 of 4', "'4 boxer.jpg'", source=tmp_path, labels=lambda p: 'a' if p.stem[0] < '4' else None)

# -- what can't be trained on

def test_one_class(tmp_path):
    refused(ValueError, 'one class', "'pug'", source=pics(tmp_path/'a', named('pug')))
    refused(ValueError, 'one class', "'pug'", source=pics(tmp_path/'b', ['pug/a.jpg', 'pug/b.jpg']))
    assert quiet(tmp_path/'a', training=False).classes == ['pug']

def test_a_class_with_one_image(tmp_path):
    pics(tmp_path, named('pug', 'boxer') + ['beagle_1.jpg', 'Birman_1.jpg'])
    refused(ValueError, '2 of 4 classes', "'Birman', 'beagle'", source=tmp_path)
    assert quiet(tmp_path, training=False).counts['beagle'] == 1

def test_heic_photographs_are_named(tmp_path, capsys):
    pics(tmp_path, named('pug', 'beagle'))
    (tmp_path/'IMG_1.HEIC').write_bytes(b'ftypheic')
    assert len(find_images(tmp_path)) == 6
    assert "Left out 1 HEIC photograph ('IMG_1.HEIC'): convert them to JPEG" in capsys.readouterr().out

def test_unusable_files_are_left_out(tmp_path, capsys):
    pics(tmp_path, named('pug', 'boxer'))
    (tmp_path/'pug_9.jpg').write_text('<html>')
    images = find_images(tmp_path)
    assert len(images) == 6 and "Left out 1 of 7 images: 1 undecodable ('pug_9.jpg')" in capsys.readouterr().out

def test_nothing_usable(tmp_path):
    for name in named('pug', 'boxer'): (tmp_path/name).touch()
    refused(ValueError, 'Left out 6 of 6', source=tmp_path)

def test_pipes_and_hidden_files_are_no_images(tmp_path):
    pics(tmp_path, named('pug', 'boxer') + ['.hidden/x.jpg', '._pug_1.jpg'])
    os.mkfifo(tmp_path/'pug_7.jpg')
    assert len(quiet(tmp_path)) == 6

# -- splits

def make(counts, parts=None, drawn=True):
    labels = [k for k,n in counts.items() for _ in range(n)]
    from fastcore.foundation import L
    return ImageSet(L(Path(f'/x/{i}.jpg') for i in range(len(labels))), labels, Path('/x'), 'names', parts, drawn)

@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.floats(.01, .99), st.integers(0, 99))
def test_stratified(counts, pct, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    held = _stratified(labels, pct, seed)
    n = np.bincount(labels[held], minlength=len(counts))
    assert all((k == 0) if c == 1 else 1 <= k < c for k,c in zip(n, counts))
    assert all(abs(k - pct*c) <= 1 for k,c in zip(n, counts))
    assert (held == _stratified(labels, pct, seed)).all()

def test_the_quotas_add_up():
    assert _quotas(np.array([199, 200, 201]*12), .2).sum() == round(.2*7200)

def test_a_stratified_split_has_every_class_on_both_sides():
    images = make(dict(a=2, b=3, c=50, d=17))
    for seed in range(20):
        train,valid = images.split(seed=seed)
        assert sorted(train + valid) == list(range(72)) and all({images.labels[i] for i in o} == set('abcd') for o in (train, valid))
    assert images.split(seed=1) == images.split(seed=1) != images.split(seed=2)

def test_the_chapters_split_is_fastais():
    import torch
    from fastai.data.transforms import RandomSplitter
    images = make(dict(a=40, b=61))
    state = torch.random.get_rng_state()
    ours = images.split('chapter', .3, seed=7)
    assert torch.equal(state, torch.random.get_rng_state())
    theirs = RandomSplitter(.3, seed=7)(list(images.files))
    assert [list(o) for o in theirs] == [list(o) for o in ours]

@pytest.mark.parametrize('kwargs, words', [(dict(valid_pct=0), 'valid_pct'), (dict(valid_pct=1), 'valid_pct'), (dict(valid_pct=-.1), 'valid_pct'),
    (dict(valid_pct=float('nan')), 'valid_pct'), (dict(how='folds'), "'folds'"), (dict(how='given'), 'train and valid')])
def test_splits_refused(kwargs, words):
    with pytest.raises(ValueError, match=words): make(dict(a=5, b=5)).split(**kwargs)

def test_an_empty_side_is_refused():
    with pytest.raises(ValueError, match='each needs one'): make(dict(a=1, b=1, c=1)).split()
    with pytest.raises(ValueError, match='each needs one'): make(dict(a=2, b=2)).split('chapter', .1)

def test_a_class_only_in_the_validation_set_is_warned_of():
    parts = ['train']*3 + ['valid']*4
    with pytest.warns(UserWarning, match="1 class without a training image: 'b'"): make(dict(a=4, b=3), parts).split('given')

def write_lists(folder, train, test):
    (folder/'annotations').mkdir(exist_ok=True)
    for name,names in (('trainval', train), ('test', test)):
        (folder/'annotations'/f'{name}.txt').write_text('# name\n' + '\n'.join(f'{o} 1 1 1' for o in names) + '\n\n')

def test_the_official_split(tmp_path, capsys):
    images = quiet(pics(tmp_path, [f'images/{o}' for o in named('pug', 'boxer', n=4)]))
    stems = [o.stem for o in images.files]
    write_lists(tmp_path, stems[::2] + ['gone_1'], stems[1:-1:2])
    train,valid = images.split('official')
    assert [stems[i] for i in train] == stems[::2] and [stems[i] for i in valid] == stems[1:-1:2]
    said = capsys.readouterr().out
    assert "1 listed, but not here: 'gone_1'" in said and f"in neither list: '{stems[-1]}'" in said

def test_the_official_split_refuses(tmp_path):
    images = quiet(pics(tmp_path, [f'images/{o}' for o in named('pug', 'boxer')]))
    with pytest.raises(FileNotFoundError, match='trainval.txt and test.txt'): images.split('official')
    write_lists(tmp_path, ['pug_1', 'pug_2'], ['pug_1'])
    with pytest.raises(ValueError, match="both lists: 'pug_1'"): images.split('official')
    write_lists(tmp_path, ['x_1'], ['x_2'])
    with pytest.raises(ValueError, match='each needs one'): images.split('official')

def test_drawn_pets_have_lists(tmp_path):
    images = quiet(draw_pets(tmp_path/'d', 4, ['pug', 'Birman'], n_workers=1, progress=False))
    assert images.drawn and images.root == tmp_path/'d/images' and [len(o) for o in images.split('official')] == [4, 4]

# -- near copies

@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from('abc'), min_size=6, max_size=40), st.integers(0, 99), st.data())
def test_copies_never_empty_a_class(labels, seed, data):
    labels = np.array(labels, object)
    order = data.draw(st.permutations(range(len(labels))))
    groups = [list(order[:2]), list(order[2:5])]
    held = _stratified(labels, .3, seed)
    moved = _together(held, labels, groups)
    for c in set(labels): assert set(moved[labels == c]) == set(held[labels == c])
    others = list(order[5:])
    assert (moved[others] == held[others]).all()

def test_copies_stay_together(tmp_path):
    folder = pics(tmp_path, named('pug', 'boxer', n=10), size=120)
    for b in ('pug', 'boxer'):
        smooth = Image.fromarray(np.random.default_rng(len(b)).integers(0, 255, (5, 5, 3)).astype(np.uint8)).resize((300, 300), 3)
        smooth.save(folder/f'{b}_20.jpg', quality=95)
        smooth.resize((150, 150)).save(folder/f'{b}_21.jpg', quality=70)
    images = quiet(folder)
    for seed in range(8):
        _,valid = images.split(seed=seed)
        held = {images.files[i].name for i in valid}
        for b in ('pug', 'boxer'): assert (f'{b}_20.jpg' in held) == (f'{b}_21.jpg' in held)

# -- species

@pytest.mark.parametrize('name, kind', [('Birman', 'cat'), ('pug', 'dog'), ('Great Pyrenees', 'dog'), ('Labrador', ''), ('고양이', ''), ('', ''), ('Maine_Coon', 'cat')])
def test_species(name, kind): assert species(name) == kind

def test_7349_photographs():
    folder = Path(os.getenv('PETS_NB_128') or Path(__file__).parents[2]/'shared/pets-128')
    if not folder.is_dir(): pytest.skip('needs the 7,349 photographs')
    files = sorted((folder/'images').iterdir())
    from pets_nb.engine.sources import _from_names
    counts = Counter(_from_names(files))
    assert len(files) == 7349 and len(counts) == 37 and all(species(o) for o in counts)
