"BreedLabeller against fastai's RegexLabeller on random names, and pickled across programs"
import pickle, subprocess, sys
from pathlib import Path, PureWindowsPath
import pytest
from hypothesis import given, settings, strategies as st
from pets_nb.labels import BreedLabeller, MatchTable, breed_pattern, picture_suffixes, species
from fastai.data.transforms import RegexLabeller

labeller = BreedLabeller()
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
    ours, theirs = attempt(labeller, name), attempt(chapter, name)
    if ours is not None and theirs is not None: assert ours == theirs

@settings(max_examples=1000, deadline=None)
@given(near)
def test_refuses_only_what_is_no_line_of_its_own(name):
    "On .jpg names we refuse what the strict pattern accepts only because of a line break"
    if attempt(strict, name) is not None and '\n' not in name: assert labeller(name) == strict(name)

@settings(deadline=None)
@given(st.from_regex(r'[A-Za-z][A-Za-z_]{0,20}', fullmatch=True), st.integers(0, 10**9), st.sampled_from(picture_suffixes), st.booleans(),
       st.sampled_from(['', 'images/', '/a b/c_3.jpg/', 'C:\\pets\\', '..\\images/']))
def test_reads_back_what_was_written(breed, n, suffix, upper, folder):
    suffix = suffix.upper() if upper else suffix
    assert labeller(f'{folder}{breed}_{n}.{suffix}') == breed

@given(st.lists(st.sampled_from(['beagle_1.jpg', 'x.jpg', 'y', 'Bengal_2.png']), max_size=40))
def test_batch_agrees_with_single(names):
    bad = [o for o in names if labeller.parse(o) is None]
    if not bad: assert list(labeller.labels_of(names)) == [labeller(o) for o in names]
    else:
        with pytest.raises(ValueError, match=f'^{len(bad)} of {len(names)} '): labeller.labels_of(names)

def test_error_lists_first_ten():
    names = [f'picture{i}' for i in range(23)]
    with pytest.raises(ValueError) as e: labeller.labels_of(names)
    assert all(repr(o) in str(e.value) for o in names[:10]) and repr(names[10]) not in str(e.value) and '23 of 23' in str(e.value)

def test_paths():
    assert labeller(Path('a')/'pug_1.jpg') == 'pug'
    assert labeller(PureWindowsPath(r'C:\a\pug_1.jpg')) == 'pug'
    with pytest.raises(ValueError): labeller('pug_1.jpg/')

def test_suffixes_are_literal():
    only = BreedLabeller(('jp.g',))
    assert only('pug_1.jp.g') == 'pug' and only.parse('pug_1.jpxg') is None and only.parse('pug_1.jpg') is None
    assert breed_pattern(('png',)).fullmatch('a_1.png') and not breed_pattern(('png',)).fullmatch('a_1.jpg')

@pytest.mark.parametrize('breed', ['', '1pug', '_x', ' Pug'])
def test_species_refuses(breed):
    with pytest.raises(ValueError, match='capital'): species(breed)

def test_check_counts():
    table = labeller.check(['pug_1.jpg', 'pug_2.jpg', 'Bengal_1.jpg'])
    assert table.pictures.to_dict() == {'Bengal': 1, 'pug': 2} and table.species.to_dict() == {'Bengal': 'cat', 'pug': 'dog'}
    assert len(labeller.check([])) == 0

def test_pickle_across_programs(tmp_path):
    "Written by a script that runs as __main__, read by another program, both without the other's names"
    script = tmp_path/'write.py'
    script.write_text('import pickle, sys\nfrom pets_nb.labels import BreedLabeller\nfrom pets_nb.labels import *\n'
                      'class Other: pass\npickle.dump(BreedLabeller(("jpg",)), open(sys.argv[1], "wb"))\n')
    subprocess.run([sys.executable, script, tmp_path/'l.pkl'], check=True)
    read = 'import pickle, sys; print(pickle.load(open(sys.argv[1], "rb"))("a/great_pyrenees_1.jpg"))'
    out = subprocess.run([sys.executable, '-c', read, tmp_path/'l.pkl'], check=True, capture_output=True, text=True).stdout
    assert out.strip() == 'great_pyrenees'

def test_spawned_workers(tmp_path):
    "A new interpreter started by a script's __main__, as worker processes are on Windows and macOS"
    script = tmp_path/'main.py'
    script.write_text('import multiprocessing as mp\nfrom pets_nb.labels import BreedLabeller\n'
                      'if __name__ == "__main__":\n    with mp.get_context("spawn").Pool(1) as p: print(p.map(BreedLabeller(), ["pug_1.jpg", "Maine_Coon_2.png"]))\n')
    out = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True, timeout=120).stdout
    assert out.strip() == "['pug', 'Maine_Coon']"

def test_match_table_escapes_html():
    shown = MatchTable('(b)', ['<b>&'])._repr_html_()
    assert '&lt;' in shown and '<b>' not in shown.replace('<thead>', '') and '&amp;' in shown
    assert 'no match' in MatchTable('z', ['a'])._repr_html_()

def test_pickles_inside_a_transform():
    from fasttransform import Transform
    assert pickle.loads(pickle.dumps(Transform(labeller)))('a/pug_1.jpg') == 'pug'

def test_pickle_keeps_suffixes(): assert pickle.loads(pickle.dumps(BreedLabeller(('png',)))).parse('a_1.jpg') is None
