"The documentation's pages for test_docs.py and test_pages.py: nbdev's processing always, then Quarto where it is installed and else pandoc, which Quarto itself is built on."
import atexit, base64, functools, html, os, re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
NBS = ROOT/'nbs'
sys.path.insert(0, str(ROOT/'.ci'))
from complete import complete, summary

settings = ConfigParser(delimiters=['='])
settings.read(ROOT/'settings.ini', encoding='utf-8')
settings = settings['DEFAULT']
SITE = settings['doc_host']+settings['doc_baseurl']
BLOB = f"{settings['git_url']}/blob/main/"
COLAB = f"https://colab.research.google.com/github/{settings['user']}/{settings['repo']}/blob/main/nbs/"
TRIED = ('pug', 'Siamese', 'shiba_inu') # the pets beside the page that .ci/try writes; test_pages.py gives them to it
IMAGE_TYPES = {'image/svg+xml':'svg', 'image/png':'png', 'image/jpeg':'jpg'} # those that Quarto shows; a GIF it does not

def notebooks(): return sorted(o for o in NBS.rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(NBS).parts))

@functools.cache
def workdir():
    path = Path(tempfile.mkdtemp(prefix='pets_nb-docs-'))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path

def quarto(): return shutil.which('quarto')

@functools.cache
def processed():
    "The notebooks as nbdev hands them to Quarto, made in a copy of the project; calls `proc_nbs` and not `nbdev-proc-nbs`, which would install Quarto where it can"
    copy = workdir()/'project'
    skip = shutil.ignore_patterns('.ipynb_checkpoints', '__pycache__', '*.safetensors', 'nbdev.yml')
    for folder in ('nbs', 'pets_nb'): shutil.copytree(ROOT/folder, copy/folder, ignore=skip)
    for file in ('pyproject.toml', 'settings.ini', 'README.md'): shutil.copy(ROOT/file, copy)
    shutil.copytree(ROOT/'.ci', copy/'.ci')
    code = 'from nbdev.quarto import refresh_quarto_yml; from nbdev.serve import proc_nbs; refresh_quarto_yml(); proc_nbs(n_workers=0)'
    result = subprocess.run([sys.executable, '-c', code], cwd=copy, capture_output=True, text=True, env=os.environ|{'OMP_NUM_THREADS':'1'})
    assert result.returncode==0, result.stderr[-4000:]
    return copy/'_proc'

@functools.cache
def cells(path):
    import nbformat
    nb = nbformat.v4.reads_json(path.read_text(encoding='utf-8')) # without validating: nbdev's own metadata is not quite valid
    for c in nb.cells: c.options,c.code = options(c) if c.cell_type=='code' else ({}, c.source)
    return nb.cells

def options(cell):
    "A code cell's `#|` lines as a dictionary, and the code below them"
    import yaml
    lines = cell.source.split('\n')
    n = next((i for i,o in enumerate(lines) if not re.match(r'\s*#\s*\|', o)), len(lines))
    found = {}
    for line in lines[:n]:
        key,_,value = re.sub(r'^\s*#\s*\|\s*', '', line).strip().partition(' ')
        found[key.rstrip(':')] = yaml.safe_load(value) if value.strip() else True
    return found, '\n'.join(lines[n:]).strip('\n')

def frontmatter(path):
    import yaml
    cell = cells(path)[0]
    return yaml.safe_load(cell.source.strip().strip('-')) if cell.cell_type=='raw' else {}

def address(page):
    "Where the site has the page of the processed notebook `page`, relative to its root"
    return (page.parent/frontmatter(page).get('output-file', page.with_suffix('.html').name)).relative_to(processed()).as_posix()

def pages(): return {address(o): o for o in sorted(processed().rglob('*.ipynb'))}

def fenced(text, kind=''):
    ticks = '`'*max(3, 1+max(map(len, re.findall('`+', text)), default=0))
    return f'\n{ticks}{kind}\n{text}\n{ticks}\n'

def output_markdown(output, alt, caption, folder, stem):
    if output.output_type=='stream': return fenced(output.text.rstrip())
    if output.output_type=='error': return fenced(f'{output.ename}: {output.evalue}')
    data = output.data
    if 'text/html' in data: return fenced(data['text/html'], '{=html}')
    if 'text/markdown' in data: return f"\n{data['text/markdown']}\n"
    for kind,suffix in IMAGE_TYPES.items():
        if kind not in data: continue
        content = data[kind].encode() if suffix=='svg' else base64.b64decode(data[kind])
        (folder/'figures').mkdir(exist_ok=True)
        (folder/'figures'/f'{stem}.{suffix}').write_bytes(content)
        described = '' if alt is None else f' alt="{html.escape(alt)}"'
        shown = f'<p><img src="figures/{stem}.{suffix}"{described}></p>'
        return fenced(f'<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>' if caption else shown, '{=html}')
    return fenced(data['text/plain']) if 'text/plain' in data else ''

def page_markdown(path, folder, links):
    "The Markdown that Quarto would make of a processed notebook, its blocks nested as Quarto nests them"
    meta = frontmatter(path)
    parts = [f":::: {{#title-block-header}}\n# {meta['title']}\n\n::: {{.description}}\n{meta.get('description', '')}\n:::\n::::\n" if 'title' in meta else '']
    for i,cell in enumerate(cells(path)):
        if cell.cell_type=='markdown': parts.append(cell.source)
        elif cell.cell_type=='code':
            opt,code = cell.options,cell.code
            if opt.get('include') is False: continue
            asis,inner = opt.get('output')=='asis',[]
            if code and opt.get('echo') is not False:
                shown,fold = fenced(code, '{.python .cell-code}'),opt.get('code-fold')
                head = summary(code) if fold=='show' else opt.get('code-summary', 'Code')
                inner.append(f"<details><summary>{head}</summary>\n{shown}\n</details>" if fold in (True, 'show') else shown)
            alts = opt.get('fig-alt')
            for j,o in enumerate(cell.get('outputs', []) if opt.get('output') is not False else []):
                alt = alts[j] if isinstance(alts, list) and j<len(alts) else None if isinstance(alts, list) else alts
                shown = output_markdown(o, alt, opt.get('fig-cap'), folder, f'{path.stem}-{i}-{j}')
                inner.append(shown if asis else f'::: {{.cell-output}}\n{shown}\n:::')
            if asis: inner = [f'::::: {{.cell-output .cell-output-display .cell-output-markdown}}\n{o}\n:::::' for o in inner]
            if inner: parts.append('\n'.join([':::::: {.cell}', *inner, '::::::']))
    return re.sub(r'\]\(([\w./-]+\.ipynb)(#[\w.-]*)?\)', lambda m: f"]({links.get(m[1], m[1])}{m[2] or ''})", '\n\n'.join(parts))

SHELL = '''<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<link rel="icon" href="{up}assets/favicon.png"><style>{shell}</style><link rel="stylesheet" href="{up}styles.css"></head>
<body class="quarto-light"><header><a href="{up}index.html">pets_nb</a></header><main class="content">{body}</main>{after}</body></html>'''

# What of Quarto's themes cosmo and darkly matters here: measures, the colours of text, links, code and grounds.
SHELL_CSS = '''
* { box-sizing: border-box } html { font-size: 17px } body { margin: 0; font: 1rem/1.5 "Source Sans 3", sans-serif; background: #fff; color: #373a3c }
header { background: #00588a; padding: .8em 1em } header a { color: #fff } main { max-width: 820px; margin: 0 auto; padding: 0 14px }
a { color: #00588a } code, pre { font: .875em monospace; background: #f3f4f6 } :not(pre) > code { color: #6b1a99 } pre { padding: .5em } pre code { font-size: 1em; background: none; white-space: pre }
blockquote { margin: 0 0 1em; padding-left: 1em; border-left: 4px solid #ccc } table { border-collapse: collapse }
body.quarto-dark { background: #222; color: #fff } .quarto-dark a { color: #56b4e9 } .quarto-dark pre, .quarto-dark :not(pre) > code { background: #2f2f2f } .quarto-dark pre code { color: #eee }
.quarto-dark :not(pre) > code { color: #e2a9f3 }'''

def render_with_pandoc(site):
    import pypandoc, yaml
    sources = pages()
    after = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['format']['html']['include-after-body']['text']
    links = {o.relative_to(processed()).as_posix(): a for a,o in sources.items()}
    for file in processed().rglob('*'):
        if file.is_file() and file.suffix!='.ipynb' and not file.name.startswith('.'):
            (site/file.relative_to(processed())).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, site/file.relative_to(processed()))
    for page,path in sources.items():
        folder = (site/page).parent
        folder.mkdir(parents=True, exist_ok=True)
        here = {os.path.relpath(processed()/name, path.parent): os.path.relpath(site/target, folder) for name,target in links.items()}
        command = [pypandoc.get_pandoc_path(), '-f', 'markdown', '-t', 'html', '--mathml', '--wrap=none', '--syntax-highlighting=none', f'--lua-filter={NBS/"shown.lua"}']
        result = subprocess.run(command, input=page_markdown(path, folder, here), capture_output=True, encoding='utf-8')
        assert result.returncode==0 and not result.stderr, f'{path.name}: {result.stderr}'
        up = '../'*page.count('/')
        (site/page).write_text(SHELL.format(title=html.escape(frontmatter(path).get('title', page)), up=up, shell=SHELL_CSS, after=after, body=complete(result.stdout)), encoding='utf-8')

@functools.cache
def rendered():
    "The folder of the site; PETS_NB_SITE names one that .ci/site has built"
    if built := os.environ.get('PETS_NB_SITE'): return Path(built).resolve()
    site = workdir()/'site'
    if quarto():
        env = os.environ | {'PATH': f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", 'OMP_NUM_THREADS': '1'}
        result = subprocess.run(['bash', '.ci/site'], cwd=processed().parent, capture_output=True, text=True, env=env)
        assert result.returncode==0, (result.stdout+result.stderr)[-4000:]
        return processed().parent/'_docs'
    site.mkdir()
    render_with_pandoc(site)
    return site
