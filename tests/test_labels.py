"breed_of against fastai's RegexLabeller on random names, and pickled across programs"
import itertools, pickle, subprocess, sys
from pathlib import Path, PureWindowsPath
import pytest
from hypothesis import given, settings, strategies as st
from fastai.data.transforms import RegexLabeller
from pets_nb.engine.files import IMAGE_SUFFIXES
from pets_nb.labels import breed_of

chapter = RegexLabeller(r'(.+)_\d+.jpg$')
strict = RegexLabeller(r'(.+)_\d+\.jpg$')

# No separator: those split a path, and a name has none.
text = st.text(st.characters(blacklist_characters='/\\', blacklist_categories=('Cs',)), max_size=12)
near = st.builds('{}{}{}{}'.format, text | st.sampled_from(['beagle', 'Maine_Coon', 'a_1', '_']), st.sampled_from(['_', '', '__']),
                 st.sampled_from(['1', '007', '٣', 'x', '']), st.sampled_from(['.jpg', '.JPG', 'fjpg', '.jpg\n', '.jpeg', '.png', '.txt', '']))

def attempt(f, name):
    try: return f(name)
    except (AssertionError, ValueError): return None

@settings(max_examples=1000, deadline=None)
@given(text | near)
def test_same_as_fastai_where_both_work(name):
    ours, theirs = attempt(breed_of, name), attempt(chapter, name)
    if ours is not None and theirs is not None: assert ours == theirs

@settings(max_examples=1000, deadline=None)
@given(near)
def test_refuses_only_what_is_no_line_of_its_own(name):
    "On .jpg names we refuse what the strict pattern accepts only because of a line break"
    if attempt(strict, name) is not None and '\n' not in name: assert breed_of(name) == strict(name)

def test_what_only_the_chapter_accepts():
    tried = [''.join(o) for o in itertools.product(['pug', 'Maine_Coon', 'pug_2', '_', '', 'a.b', 'é '], ['_1', '_0099', '_', '7', ''],
                                                   ['.jpg', 'fjpg', '.JPG', '.png', '.jpg.part', '.jpg\n', ''])]
    only = [o for o in tried if attempt(chapter, o) and not attempt(breed_of, o)]
    assert only and all(o.endswith(('fjpg', '.jpg\n')) for o in only)

@settings(deadline=None)
@given(st.from_regex(r'[A-Za-z][A-Za-z_]{0,20}', fullmatch=True), st.integers(0, 10**9), st.sampled_from(IMAGE_SUFFIXES), st.booleans(),
       st.sampled_from(['', 'images/', '/a b/c_3.jpg/', 'C:\\pets\\', '..\\images/']))
def test_reads_back_what_was_written(breed, n, suffix, upper, folder):
    assert breed_of(f'{folder}{breed}_{n}{suffix.upper() if upper else suffix}') == breed

def test_paths():
    assert breed_of(Path('a')/'pug_1.jpg') == breed_of(PureWindowsPath(r'C:\a\pug_1.jpg')) == 'pug'
    with pytest.raises(ValueError): breed_of('pug_1.jpg/')

@pytest.mark.parametrize('name', ['IMG_2041.HEIC', 'beagle.jpg', 'beagle_123fjpg', 'notes.txt', '_1.jpg', 'pug_1.jpg.part', 'pug_1xjpg', 'a\x1b[31m.jpg'])
def test_refused(name):
    with pytest.raises(ValueError, match='holds no breed') as e: breed_of(name)
    assert '\n' not in str(e.value) and '\x1b' not in str(e.value)

def test_pickle_across_programs(tmp_path):
    "Written by a script that runs as __main__, read by another program"
    script = tmp_path/'write.py'
    script.write_text('import pickle, sys\nfrom pets_nb.labels import *\npickle.dump(breed_of, open(sys.argv[1], "wb"))\n')
    subprocess.run([sys.executable, script, tmp_path/'l.pkl'], check=True)
    read = 'import pickle, sys; print(pickle.load(open(sys.argv[1], "rb"))("a/great_pyrenees_1.jpg"))'
    out = subprocess.run([sys.executable, '-c', read, tmp_path/'l.pkl'], check=True, capture_output=True, text=True).stdout
    assert out.strip() == 'great_pyrenees'

def test_spawned_workers(tmp_path):
    "A new interpreter started by a script's __main__, as worker processes are on Windows and macOS"
    script = tmp_path/'main.py'
    script.write_text('import multiprocessing as mp\nfrom pets_nb.labels import breed_of\n'
                      'if __name__ == "__main__":\n    with mp.get_context("spawn").Pool(1) as p: print(p.map(breed_of, ["pug_1.jpg", "Maine_Coon_2.png"]))\n')
    out = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True, timeout=120).stdout
    assert out.strip() == "['pug', 'Maine_Coon']"

def test_pickles_inside_a_transform():
    from fasttransform import Transform
    assert pickle.loads(pickle.dumps(Transform(breed_of)))('a/pug_1.jpg') == 'pug'

def test_importing_is_light():
    code = 'import sys, pets_nb.labels; print([m for m in ("torch", "fastai", "pandas") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
