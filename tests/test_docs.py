"The documentation as it will be published, without a browser: processed by nbdev, rendered, and every link, picture and description in it."
import ast, html, importlib, inspect, os, re, textwrap
from dataclasses import is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pytest

for needed in ('nbdev', 'nbformat', 'yaml', 'pypandoc'): pytest.importorskip(needed, reason='the checks of the pages need the extra dev')
import docs_site
from docs_site import BLOB, COLAB, NBS, ROOT, SITE, address, cells, frontmatter, notebooks, pages, processed, rendered, settings
if not NBS.is_dir(): pytest.skip('needs the checkout', allow_module_level=True)

MODULES = sorted('.'.join(o.relative_to(ROOT/'pets_nb').with_suffix('').parts) for o in (ROOT/'pets_nb').rglob('[a-z]*.py') if o.stem!='all')

def name_of(path): return path.relative_to(NBS).as_posix()
def code_cells(path): return [(i,c) for i,c in enumerate(cells(path)) if c.cell_type=='code']
def parsed(code): return ast.parse(re.sub(r'^\s*[%!].*$', 'pass', code, flags=re.M)).body
def check(offenders): assert not offenders, f'{len(offenders)} found:\n'+'\n'.join(map(str, offenders))

class Page(HTMLParser):
    "The ids, links and pictures of a page"
    def __init__(self, file):
        super().__init__()
        self.ids,self.links,self.images = set(),[],[]
        self.feed(Path(file).read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.ids.add(attrs['id'])
        if tag=='a' and 'name' in attrs: self.ids.add(attrs['name'])
        if tag=='a' and 'href' in attrs: self.links.append(attrs['href'])
        if tag in ('img','link','script','source','video'): self.links += [attrs[o] for o in ('src','href') if o in attrs]
        if tag=='img': self.images.append(attrs)

@pytest.fixture(scope='module')
def site(): return {o: Page(rendered()/o) for o in pages()}

def test_every_notebook_becomes_a_page():
    assert sorted(o.relative_to(processed()).as_posix() for o in pages().values())==[name_of(o) for o in notebooks()]
    check([a for a in pages() if not (rendered()/a).exists()])

def test_titles_and_descriptions_differ():
    for key in ('title', 'description'):
        found = [frontmatter(o).get(key) for o in pages().values()]
        assert all(found) and len(set(found))==len(found), (key, found)

def broken(link, page, site):
    "Why a link of `page` leads nowhere, or None"
    if link.startswith(('data:', 'mailto:')): return None
    if link.startswith(SITE): link = '/'*(page.count('/')>0)+link[len(SITE):].lstrip('/') or 'index.html'; page = 'index.html'
    if link.startswith((BLOB, BLOB.replace('/blob/', '/tree/'))):
        path,_,line = link.split('/main/', 1)[1].partition('#L')
        if not (ROOT/unquote(path)).exists(): return 'no such file in the repository'
        if line and int(line) > len((ROOT/path).read_text(encoding='utf-8').splitlines()): return 'the file has fewer lines'
        return None
    if link.startswith('https://colab.'): return None if link.startswith(COLAB) and (NBS/link[len(COLAB):]).exists() else 'no such notebook'
    parts = urlsplit(link)
    if parts.scheme: return None if parts.scheme in ('https', 'javascript') else 'not https'
    target = (Path(page).parent/unquote(parts.path).lstrip('/')).as_posix() if parts.path else page
    target = Path('/'+target).resolve().as_posix()[1:]
    if target in {'try', *(f'try/{o}.png' for o in docs_site.TRIED)}: return None # the stand-in hasn't got them; test_pages.py makes them and looks
    if not (rendered()/target).exists(): return 'no such page or file'
    private = parts.fragment.startswith('_') # nbdev links a name like `_fetch` to its page, which has no heading for it
    if parts.fragment and target in site and unquote(parts.fragment) not in site[target].ids and not private: return 'no such anchor'

def test_links_and_anchors(site): check([f'{pages()[o].name}: {link}: {why}' for o,page in site.items() for link in page.links if (why := broken(link, o, site))])

def test_the_check_of_links_can_fail(site):
    page = next(iter(site))
    for link in ('nowhere.html', '#nowhere', f'{page}#nowhere', f'{SITE}/nowhere.html', f'{SITE}/{page}#nowhere', BLOB+'nowhere.py',
                 BLOB+'settings.ini#L9999', COLAB+'nowhere.ipynb', 'http://example.com', 'figures/nowhere.png', SITE+'/try/cup.png'): assert broken(link, page, site), link
    for link in (page, f'{SITE}/{page}', BLOB+'settings.ini#L1', COLAB+'index.ipynb', 'https://example.com'): assert not broken(link, page, site), link

def test_links_between_notebooks_name_the_notebook():
    "A link to 04_cross_entropy.ipynb leads somewhere in Jupyter, on GitHub and on the site; one to cross_entropy.html only on the site"
    check([f'{name_of(o)}: {link}' for o in notebooks() for c in cells(o) if c.cell_type=='markdown' for link in re.findall(r'\]\((?!https?:)([^)#\s]+\.html[^)]*)\)', c.source)])

def test_the_title_cell_holds_only_the_title():
    "nbdev makes front matter of the whole first cell: what else stood in it would be on no page"
    check([name_of(o) for o in notebooks() if not re.fullmatch(r'# \S.*\n\n?> \S.*', cells(o)[0].source.strip())])

def test_colab_links(site):
    check([address for address,o in pages().items() if o.stem!='index' and COLAB+o.relative_to(processed()).as_posix() not in site[address].links])

def test_the_colab_link_comes_first():
    "It stands above everything that the page shows"
    hidden = {'default_exp','export','exporti','hide'}
    before = lambda o: [c for c in cells(o)[1:next(i for i,c in enumerate(cells(o)) if COLAB in c.source)] if not hidden & set(c.options)]
    check([name_of(o) for o in notebooks() if o.stem!='index' and before(o)])

def test_every_picture_is_described(site):
    check([f'{pages()[o].name}: {image.get("src", "")[:80]}' for o,page in site.items() for image in page.images if len((image.get('alt') or '').strip())<15])
    kinds = [(o,i,t) for o in notebooks() for i,c in code_cells(o) for out in c.get('outputs', []) for t in out.get('data', {}) if t.startswith(('image/', 'video/'))]
    check([f'{name_of(o)} cell {i}: Quarto does not show {t}, write it as <img> in an HTML output' for o,i,t in kinds if t not in docs_site.IMAGE_TYPES])

def test_no_header_cell_is_empty():
    check([o for o in pages() if re.search(r'<th\b[^>]*>\s*</th>', (rendered()/o).read_text(encoding='utf-8'))])

def test_imports_have_their_own_cells():
    "The docs build executes a cell that imports, and nothing else that is not exported"
    is_import = lambda n: isinstance(n, (ast.Import, ast.ImportFrom))
    check([f'{name_of(o)} cell {i}' for o in notebooks() for i,c in code_cells(o) if not {'export','exports','exporti'} & set(c.options) and c.options.get('eval') is not False
           and any(map(is_import, tree := parsed(c.code))) and not all(map(is_import, tree))])

def test_size_of_notebooks(): check([f'{name_of(o)}: {o.stat().st_size} bytes' for o in notebooks() if o.stat().st_size>1_000_000])

def test_outputs_hold_no_path_and_no_warning():
    local = re.compile(r'(?<![\w.~])/(?:root|home|tmp|work|Users|content)/\w|[A-Z]:\\\\?Users|site-packages|\w+Warning:|Traceback')
    texts = lambda c: [''.join(v) for out in c.get('outputs', []) for v in [out.get('text', '')]+[v for k,v in out.get('data', {}).items() if k.startswith('text/')]]
    check([f'{name_of(o)} cell {i}: {m[0]}' for o in notebooks() for i,c in code_cells(o) for t in texts(c) if (m := local.search(t))])

def symbols():
    for module in map(importlib.import_module, (f'pets_nb.{o}' for o in MODULES)):
        for name in module.__all__:
            if getattr(obj := getattr(module, name), '__module__', None)==module.__name__ and (inspect.isfunction(obj) or inspect.isclass(obj)): yield module,name,obj

def undocumented(obj):
    "What is missing in the documentation of a function or class"
    from fastcore.docments import docments
    doc = inspect.getdoc(obj) if not inspect.isclass(obj) else obj.__dict__.get('__doc__') or getattr(obj.__dict__.get('__init__'), '__doc__', None)
    if not (doc or '').strip(): yield 'docstring'
    elif '\n' in doc.strip(): yield 'one-line docstring'
    fn = obj if not inspect.isclass(obj) or is_dataclass(obj) else obj.__dict__.get('__init__')
    if fn is None: return
    found = docments(fn, full=True, args_kwargs=True)
    yield from (f'docment of {k}' for k,v in found.items() if k not in ('self','cls','return') and not v.get('docment'))
    if not inspect.isclass(obj) and gives(fn) and not (found.get('return') or {}).get('docment'): yield 'docment of the return'

def gives(fn):
    "Does a function return or yield something? What a function inside it does is not counted, nor the yield of a context manager"
    def own(nodes):
        for n in nodes:
            if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Lambda)): continue
            yield n
            yield from own(ast.iter_child_nodes(n))
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(fn)))).body[0]
    kinds = (ast.Return,) if any('contextmanager' in ast.unparse(o) for o in tree.decorator_list) else (ast.Return, ast.Yield, ast.YieldFrom)
    return any(isinstance(n, kinds) and n.value is not None for n in own(tree.body))

def test_public_names_are_documented():
    check([f'{m.__name__}.{n}: no {", no ".join(missing)}' for m,n,obj in symbols() if (missing := list(undocumented(obj)))])

def test_public_names_appear_in_a_lesson():
    lessons = '\n'.join(c.source for o in notebooks() for c in cells(o) if c.cell_type=='markdown' or c.cell_type=='code' and not {'export','exports','exporti'} & set(c.options))
    words = set(re.findall(r'\w+', lessons))
    check([f'{m.__name__}.{n}' for m,n,_ in symbols() if n not in words])

def test_public_names_have_an_anchor(site):
    "nbdev links each name to its page; the page has a heading for it"
    from pets_nb._modidx import d
    places = {f'{m.__name__}.{n}': d['syms'][m.__name__][f'{m.__name__}.{n}'][0] for m,n,_ in symbols()}
    check([f'{name}: {place}' for name,place in places.items()
           if place.partition('#')[0] not in site or place.partition('#')[2] not in site[place.partition('#')[0]].ids])

def test_no_api_stands_twice():
    "Open on a page is the signature of a name alone; its source is folded"
    from pets_nb._modidx import d
    def shown(page): return html.unescape(re.sub('<[^>]+>', '', re.sub(r'<details(?! open).*?</details>', '', (rendered()/page).read_text(encoding='utf-8'), flags=re.S)))
    places = {f'{m.__name__}.{n}': d['syms'][m.__name__][f'{m.__name__}.{n}'][0].partition('#')[0] for m,n,_ in symbols()}
    texts = {o: shown(o) for o in set(places.values())}
    counts = {(page,name): len(re.findall(rf'^\s*(?:def|class) {name.rpartition(".")[2]}\b', texts[page], re.M)) for name,page in places.items()}
    check([f'{o}: {n} times' for o,n in counts.items() if n>1])

def test_private_names_are_not_shown():
    def headings(page): return [re.sub('<[^>]+>', '', o) for o in re.findall(r'<h3[^>]*>(.*?)</h3>', page, re.S)]
    found = {o: (rendered()/o).read_text(encoding='utf-8') for o in pages()}
    check([f'{o}: {name}' for o,page in found.items() for name in headings(page) if re.search(r'(^|\.)_', name)])
    check([f'{o}: a type as __main__ has it' for o,page in found.items() if '__main__.' in re.sub('<[^>]+>', '', page)])

def config():
    import yaml
    return [yaml.safe_load(o.read_text(encoding='utf-8')) for o in (ROOT/'_quarto.yml', NBS/'sidebar.yml')]

def hrefs(contents):
    for o in contents:
        if isinstance(o, str): yield o
        else: yield from hrefs(o['contents']) if 'contents' in o else [o['href']]

def test_sidebar_has_every_notebook_once():
    listed = [o for o in hrefs(config()[1]['website']['sidebar']['contents']) if o.endswith('.ipynb')]
    assert sorted(listed)==[name_of(o) for o in notebooks()]
    chapter = [o for o in listed if re.match(r'\d', o)]
    assert chapter==sorted(chapter), 'the chapter is listed in its order, a lettered notebook after its number'

def test_lessons_have_one_number_and_name():
    "In the sidebar, which Quarto's links to the previous and next page repeat, and on the first page"
    titles = {name_of(o): frontmatter(processed()/name_of(o))['title'] for o in notebooks() if re.match(r'\d\d_', name_of(o))}
    wanted = {o: f'{int(o[:2])} · {title}' for o,title in titles.items()}
    def named(contents):
        for o in contents:
            if 'contents' in o: yield from named(o['contents'])
            elif 'text' in o: yield o['href'],o['text']
    groups = config()[1]['website']['sidebar']['contents']
    assert dict(named(groups))==wanted
    assert [o['section'][:3] for o in groups if 'section' in o]==['1 ·', '2 ·', '3 ·', '4 ·', 'Ref']
    first = '\n'.join(c.source for c in cells(NBS/'index.ipynb') if c.cell_type=='markdown')
    assert {o[2]: f'{o[0]} · {o[1]}' for o in re.findall(r'^\| (\d+) · \[(.+?)\]\((.+?)\)', first, re.M)}==wanted

def test_llms_txt_has_every_page():
    text = (NBS/'llms.txt').read_text(encoding='utf-8')
    assert sorted(re.findall(rf'\]\({SITE}/(.+?)\): \S', text))==sorted(pages()), 'run .ci/readme'

def test_configuration_of_the_site():
    from PIL import Image
    quarto = config()[0]
    web,html = quarto['website'],quarto['format']['html']
    check([o for o in hrefs(web['navbar']['left']) if not (NBS/o).exists()])
    for theme in ('light', 'dark'): assert (NBS/html['theme'][theme][1]).read_text().startswith('/*-- scss:defaults --*/')
    assert (NBS/html['css']).exists() and html['html-math-method']=='mathml' and web['page-navigation'] and set(web['repo-actions'])=={'source','issue'}
    assert web['repo-subdir']==NBS.name
    for o in ('open-graph', 'twitter-card'):
        card = NBS/web[o]['image']
        assert Image.open(card).size==(1200,630) and card.stat().st_size<150_000 and web[o]['image-alt']
    assert Image.open(NBS/web['favicon']).size==(64,64)

@pytest.mark.skipif(not docs_site.quarto(), reason='Quarto is not installed: the pages were made with pandoc')
def test_what_quarto_adds():
    text = (rendered()/'data.html').read_text(encoding='utf-8')
    for o in ('og:image', 'twitter:card', 'rel="icon"', 'nav-page-next', 'quarto-color-scheme-toggle', 'toc-action', 'quarto-search'): assert o in text, o
    assert (rendered()/'search.json').exists() and (rendered()/'llms.txt').exists()

@pytest.mark.skipif(not docs_site.quarto(), reason='Quarto is not installed: the pages were made with pandoc')
def test_navigation_of_quarto():
    "Each page leads to the next in the sidebar, the last to none; it alone is marked as current, and has a title of its own and its contents twice"
    order = [address(processed()/o) for o in hrefs(config()[1]['website']['sidebar']['contents'])]
    texts = {o: (rendered()/o).read_text(encoding='utf-8') for o in order}
    def targets(page, pattern): return [os.path.normpath(os.path.join(os.path.dirname(page), o)) for o in re.findall(pattern, texts[page])]
    after = [targets(o, r'nav-page-next">\s*<a href="([^"]*)"') for o in order]
    assert after==[[o] for o in order[1:]]+[[]]
    check([o for o in order if targets(o, r'href="([^"]*)" class="sidebar-item-text sidebar-link active"')!=[o]])
    check([f'{o}: {current}' for o in order for current in targets(o, r'<a class="nav-link active" href="([^"]*)"') if current!=o])
    titles = [re.search('<title>(.*?)</title>', o)[1] for o in texts.values()]
    assert len(set(titles))==len(order), titles
    check([o for o in order if 'id="toc-title"' in texts[o] and 'class="contents"' not in texts[o]])
