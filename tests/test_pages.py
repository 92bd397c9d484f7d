"The pages in a browser: on a screen and on a telephone, in light and in dark."
import contextlib, functools, http.server, os, shutil, subprocess, sys, threading
from pathlib import Path
import pytest

for needed in ('nbdev', 'nbformat', 'yaml', 'pypandoc', 'playwright.sync_api', 'axe_playwright_python'): pytest.importorskip(needed, reason='the checks of the pages need the extra dev')
from docs_site import NBS, ROOT, TRIED, notebooks, pages, processed, quarto, rendered
if not NBS.is_dir(): pytest.skip('needs the checkout', allow_module_level=True)
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

# The first is for machines that do not let a root user's browser make its own sandbox, the others keep it from asking the network for what no page asks
FLAGS = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage']
SCREENS = dict(screen=(1400,900), telephone=(390,844))
LESSONS = [o.name for o in notebooks() if o.parent==NBS and o.name[0].isdigit()]
RULES = ['image-alt', 'svg-img-alt', 'role-img-alt', 'link-name', 'document-title', 'html-has-lang', 'duplicate-id-aria', 'frame-title', 'empty-heading', 'list', 'table-fake-caption', 'scrollable-region-focusable']

def chromium(): return os.environ.get('PETS_NB_CHROMIUM') or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@contextlib.contextmanager
def served(folder):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield f'http://127.0.0.1:{server.server_port}'
        finally: server.shutdown()

@pytest.fixture(scope='module')
def browser():
    if chromium() is None:
        why = 'no Chromium on PATH: apt-get install chromium, or name one in PETS_NB_CHROMIUM'
        pytest.fail(why) if os.environ.get('PETS_NB_BROWSER')=='1' else pytest.skip(why)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()

# What of the page reaches beyond the screen's right edge, and is in no box that scrolls or hides
WIDER = '''() => {
  const width = document.documentElement.clientWidth, inBox = e => {
    for (let o = e.parentElement; o && o !== document.body; o = o.parentElement)
      if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(o).overflowX) && o.getBoundingClientRect().right <= width + 1) return true
    return false }
  const found = [...document.querySelectorAll('main *')].filter(e => { const r = e.getBoundingClientRect(); return r.width && r.right > width + 1 && !inBox(e) })
  const page = document.documentElement.scrollWidth > width + 1 ? [`the page: ${document.documentElement.scrollWidth} px`] : []
  return page.concat(found.slice(0, 5).map(e => `${e.tagName.toLowerCase()} to ${Math.round(e.getBoundingClientRect().right)} px: ${e.textContent.trim().slice(0, 60)}`)) }'''
# Outputs that are cut: a line is longer than its box
CUT = '''() => [...document.querySelectorAll('main .cell-output pre, main .cell-output pre code')]
  .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1).slice(0, 5).map(e => e.textContent.trim().slice(0, 60))'''
# What stands right under the title and its description
CROWDED = '''() => { const o = document.querySelector('#title-block-header'), n = [...document.querySelectorAll('#title-block-header ~ *')].find(e => getComputedStyle(e).position !== 'absolute')
  return o && n.getBoundingClientRect().top - o.getBoundingClientRect().bottom < 8 ? [n.textContent.trim().slice(0, 60)] : [] }'''
# Height of the page and lower edge of the first figure
EXTENT = '''() => { const first = [...document.querySelectorAll('main img, main svg, main video')].find(o => o.getBoundingClientRect().height > 60)
  return [document.documentElement.scrollHeight, first && Math.round(first.getBoundingClientRect().bottom + scrollY)] }'''
LOADED = "() => Promise.all([...document.images].map(o => { o.loading = 'eager'; return o.decode().catch(() => {}) }))"
UNLOADED = "() => [...document.images].filter(o => !o.complete || !o.naturalWidth).map(o => o.currentSrc.slice(0, 100))"
# All texts that have less contrast to the nearest ground behind them than 4.5 to 1; unlike axe this knows nothing of pictures behind a text, but is quick
FAINT = '''() => {
  const parts = s => { const v = s.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v }
  const bright = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b }
  const over = (top, low) => [0, 1, 2].map(i => top[i] * top[3] + low[i] * (1 - top[3]))
  const ground = e => { if (!e) return [255, 255, 255]
    const c = parts(getComputedStyle(e).backgroundColor); return c[3] === 1 ? c.slice(0, 3) : over(c, ground(e.parentElement)) }
  const faint = [...document.querySelectorAll('main *')].filter(e => !e.closest('svg, math') && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length).filter(e => {
    const low = ground(e), pair = [bright(low), bright(over(parts(getComputedStyle(e).color), low))].sort((a, b) => a - b)
    return (pair[1] + .05) / (pair[0] + .05) < 4.5 })
  return faint.slice(0, 5).map(e => `${e.tagName.toLowerCase()}: ${e.textContent.trim().slice(0, 60)}: ${getComputedStyle(e).color}`) }'''
DARK = "() => { document.body.classList.add('quarto-dark'); document.body.classList.remove('quarto-light') }"

# Mark three texts of each look (tag, colour, ground, size, weight): axe takes seconds to measure the contrast of all texts, of which most look alike
SAMPLE = '''() => { const seen = {}
  for (const e of document.querySelectorAll('main *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue
    let g = e
    while (g && getComputedStyle(g).backgroundColor === 'rgba(0, 0, 0, 0)') g = g.parentElement
    const s = getComputedStyle(e), look = [e.tagName, s.color, g && getComputedStyle(g).backgroundColor, s.fontSize, s.fontWeight, s.opacity].join()
    seen[look] = (seen[look] || 0) + 1
    if (seen[look] <= 3) e.setAttribute('data-sample', '') } }'''

def violations(page):
    def run(rules, context): return Axe().run(page, context=context, options=dict(runOnly=dict(type='rule', values=rules), resultTypes=['violations'], preload=False)).response['violations']
    page.evaluate(SAMPLE)
    found = run(RULES, 'main') + run(['color-contrast'], dict(include=[['[data-sample]']]))
    return [f"{o['id']}: {n['html'][:100]} {n['any'][0]['message'] if n['any'] else ''}" for o in found for n in o['nodes'][:3]]

def faults(browser, url):
    "Everything wrong with a page"
    found = []
    page = browser.new_page()
    page.on('console', lambda o: found.append(f'console: {o.text}') if o.type in ('error','warning') else None)
    page.on('pageerror', lambda o: found.append(f'script: {o}'))
    page.on('requestfailed', lambda o: found.append(f'not fetched: {o.url}'))
    page.on('request', lambda o: None if o.url.startswith(('http://127.0.0.1', 'data:', 'blob:')) else found.append(f'asks the network: {o.url}'))
    page.goto(url)
    page.evaluate("() => document.querySelectorAll('details').forEach(o => o.open = true)") # what is folded is checked too
    page.evaluate(LOADED)
    found += [f'picture not loaded: {o}' for o in page.evaluate(UNLOADED)]
    for name,(width,height) in SCREENS.items():
        page.set_viewport_size(dict(width=width, height=height))
        found += [f'wider than the {name}: {o}' for o in page.evaluate(WIDER)]
        found += [f'output cut on the {name}: {o}' for o in page.evaluate(CUT)]
        found += [f'too near to the title on the {name}: {o}' for o in page.evaluate(CROWDED)]
        found += [f'on the {name}: {o}' for o in violations(page)]
    found += [f'too faint: {o}' for o in page.evaluate(FAINT)]
    if page.evaluate('() => !!window.quartoToggleColorScheme'): page.evaluate('() => window.quartoToggleColorScheme()')
    else: page.evaluate(DARK) # the stand-in's dark theme is a class, Quarto's another style sheet
    page.wait_for_function("() => document.body.classList.contains('quarto-dark')")
    for name,(width,height) in SCREENS.items():
        page.set_viewport_size(dict(width=width, height=height))
        found += [f'in the dark theme on the {name}: {o}' for o in violations(page)]
    found += [f'too faint in the dark theme: {o}' for o in page.evaluate(FAINT)]
    page.close()
    return found

@pytest.fixture(scope='module')
def site():
    with served(rendered()) as url: yield {path.relative_to(processed()).as_posix(): f'{url}/{address}' for address,path in pages().items()}

@pytest.mark.parametrize('notebook', [o.relative_to(NBS).as_posix() for o in notebooks()])
def test_page(browser, site, notebook):
    found = faults(browser, site[notebook])
    assert not found, f'{len(found)} found:\n'+'\n'.join(found)

@pytest.mark.parametrize('notebook', LESSONS)
def test_a_lesson_is_short_and_begins_with_its_figure(browser, site, notebook):
    "At most 15 screens of 1400 x 900 pixels; the whole first figure, where there is one, is on the first"
    page = browser.new_page(viewport=dict(width=1400, height=900))
    page.goto(site[notebook])
    page.evaluate(LOADED)
    height,figure = page.evaluate(EXTENT)
    page.close()
    assert height<=15*900 and (figure or 0)<=900, f'{height/900:.1f} screens, the first figure ends at {figure} px'

@pytest.mark.parametrize('notebook', ('04_cross_entropy.ipynb', '06_lr_finder.ipynb', '07_transfer_learning.ipynb'))
def test_interactive_figures(browser, site, notebook):
    "An arrow key on the first control changes the figure"
    page = browser.new_page()
    page.goto(site[notebook])
    figure = page.locator('.interactive').first
    control = figure.locator('input, select, button, [tabindex="0"]').first
    before = figure.inner_html()
    control.focus()
    page.keyboard.press('ArrowRight')
    assert figure.inner_html()!=before
    page.close()

@pytest.mark.skipif(not quarto(), reason='Quarto is not installed: the stand-in has no search and follows no system setting')
def test_search_and_colour_scheme(browser, site):
    page = browser.new_page(viewport=dict(width=1400, height=900), color_scheme='dark')
    page.goto(site['index.ipynb'])
    assert page.evaluate("() => document.body.classList.contains('quarto-dark')")
    for words,wanted in (('heatmap', 'Trust'), ('CUDA memory', 'Deeper models')):
        page.goto(site['index.ipynb'])
        page.locator('#quarto-search').click()
        page.locator('.aa-Input').fill(words)
        page.locator('.aa-Item', has_text=wanted).first.wait_for(timeout=20_000)
    page.close()

@pytest.mark.skipif(not quarto(), reason='Quarto is not installed: the stand-in has none of what stands around a page')
@pytest.mark.parametrize('notebook', ('index.ipynb', '04_cross_entropy.ipynb', 'engine/08_learner.ipynb'))
@pytest.mark.parametrize('scheme', ('light', 'dark'))
def test_the_whole_page_with_its_navigation(browser, site, notebook, scheme):
    "Nothing that axe calls serious or critical, bars and search included"
    found = []
    for name,(width,height) in SCREENS.items():
        page = browser.new_page(viewport=dict(width=width, height=height), color_scheme=scheme)
        page.goto(site[notebook])
        all_found = Axe().run(page, options=dict(resultTypes=['violations'], preload=False)).response['violations']
        found += [f"on the {name}: {o['id']}: {n['html'][:100]}" for o in all_found if o['impact'] in ('serious','critical') for n in o['nodes'][:3]]
        page.close()
    assert not found, '\n'.join(found)

@pytest.fixture(scope='module')
def try_page(tmp_path_factory):
    "The page on which visitors try the shipped network: the site's own, and else one by .ci/try whose network has its head alone trained"
    if (built := rendered()/'try').is_dir(): return built
    for needed in ('onnx', 'onnxruntime', 'onnxscript'): pytest.importorskip(needed, reason="needs pip install 'pets_nb[onnx]'")
    from pets_nb.tools.export import _runtime
    try: _runtime()
    except ConnectionError as e: pytest.skip(f'onnxruntime-web is not in the cache, and npm cannot be reached: {e}')
    folder = tmp_path_factory.mktemp('site')/'try'
    env = os.environ | {'PATH': f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", 'OMP_NUM_THREADS': '1'}
    result = subprocess.run(['bash', ROOT/'.ci'/'try', folder, '--epochs', '0'], capture_output=True, text=True, env=env)
    assert result.returncode==0, (result.stdout+result.stderr)[-4000:]
    return folder

DROP = '''async name => {
  const dataTransfer = new DataTransfer()
  dataTransfer.items.add(new File([await (await fetch(name)).blob()], name, {type: 'image/png'}))
  document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {dataTransfer, bubbles: true, cancelable: true})) }'''

def test_try_it_here(browser, try_page):
    "Each drawn pet that is dropped on the page gets its breed, and nothing is asked of another server"
    page,asked,wrong = browser.new_page(),[],[]
    page.on('request', lambda o: asked.append(o.url))
    page.on('pageerror', lambda o: wrong.append(str(o)))
    page.on('console', lambda o: wrong.append(o.text) if o.type=='error' else None)
    with served(try_page.parent) as url:
        page.goto(f'{url}/try/')
        page.wait_for_selector('#choose:enabled', timeout=60_000)
        for breed in TRIED:
            page.evaluate(DROP, f'{breed}.png')
            page.wait_for_selector(f'#answers li:first-child[data-class="{breed}"]', timeout=30_000)
        assert len(asked)>=6 and all(o.startswith((url, 'blob:', 'data:')) for o in asked) and not wrong, (asked, wrong)
    page.close()

def test_the_checks_can_fail(browser, tmp_path):
    (tmp_path/'bad.html').write_text(f'''<!DOCTYPE html><html lang="en"><head><title>Bad</title><link rel="icon" href="data:,"></head><body><main><div id="title-block-header">Bad</div>
      <p style="margin:0;color:#aaa;background:#fff">faint</p><img src="none.png"><p style="color:#bbb;background:#ccc">fainter</p><div style="width:2000px">wide</div><div class="cell-output"><pre style="overflow:auto">{"long"*200}</pre></div><script>console.error('broken'); nothing()</script></main></body></html>''')
    with served(tmp_path) as url: found = '\n'.join(faults(browser, f'{url}/bad.html'))
    for o in ('color-contrast', 'too faint: p', 'image-alt', 'wider than the screen: div', 'wider than the telephone: div', 'picture not loaded', 'console: broken', 'script:', 'output cut on the telephone', 'too faint in the dark theme: p', 'too near to the title on the telephone: faint'): assert o in found, (o, found)
