"The figures of the pages: those stored in the notebooks; and in a browser the interactive ones, their numbers beside PyTorch's and fastai's, and the controls with the keyboard."
import base64, io, math, re
import pytest

for needed in ('playwright.sync_api',): pytest.importorskip(needed, reason='the checks of the pages need the extra dev')
pytest.importorskip('nbdev', reason='the checks of the pages need the extra dev')
pytest.importorskip('axe_playwright_python', reason='the checks of the pages need the extra dev')
import torch
from PIL import Image
from torch.nn import functional as F
from docs_site import cells, notebooks
from test_pages import NBS, browser, served

KINDS = dict(softmax='04_cross_entropy', finder='06_lr_finder', onecycle='07_transfer_learning')

def figures(path):
    "Cell number, options, type, content and display metadata of each figure stored in a notebook"
    for i,c in enumerate(cells(path)):
        for o in c.get('outputs', []):
            for kind in ('image/svg+xml', 'image/png', 'image/jpeg'):
                if kind in o.get('data', {}):
                    yield i,c.options,kind,o.data[kind],o.metadata.get(kind, {})
                    break

def faults(path, column=700):
    "What is wrong with the stored figures: they should be explained, fill the text column, and have two pixels for each one shown"
    for i,options,kind,content,shown in figures(path):
        where = f'{path.name} cell {i}'
        if len(options.get('fig-cap', ''))<30: yield f'{where}: no caption'
        if len(options.get('fig-alt', ''))<15: yield f'{where}: no description for those who don\'t see it'
        if kind=='image/svg+xml': continue
        width = Image.open(io.BytesIO(base64.b64decode(content))).width
        if width<2*column: yield f'{where}: {width} pixels wide'
        if kind=='image/png' and 2*shown.get('width', width)>width: yield f'{where}: shown at {shown.get("width", width)} of {width} pixels'

@pytest.mark.parametrize('notebook', [o.relative_to(NBS).as_posix() for o in notebooks() if o.relative_to(NBS).parts[0] not in ('engine','tools')])
def test_stored_figures(notebook):
    found = [*faults(NBS/notebook)]
    assert not found, '\n'.join(found)

def test_the_check_of_stored_figures_can_fail(tmp_path):
    import nbformat
    buffer = io.BytesIO()
    Image.new('RGB', (1520,8)).save(buffer, 'PNG')
    png = base64.b64encode(buffer.getvalue()).decode()
    def stored(source, **metadata):
        output = nbformat.v4.new_output('display_data', {'image/png': png}, metadata={'image/png': metadata} if metadata else {})
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, outputs=[output])]), tmp_path/f'{len(source)}.ipynb')
        return [o.split(': ', 1)[1] for o in faults(tmp_path/f'{len(source)}.ipynb')]
    said = '#| fig-cap: "The error of each network, in percent"\n#| fig-alt: "Three falling lines"\n'
    assert stored(said+'a', width=760, height=4)==[]
    assert stored('ab', width=760, height=4)==['no caption', "no description for those who don't see it"]
    assert stored(said+'abc')==['shown at 1520 of 1520 pixels']
    assert [*faults(tmp_path/f'{len(said+"a")}.ipynb', column=800)][0].endswith('1520 pixels wide')

@pytest.fixture(scope='module')
def page(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp('figures')
    (folder/'figures.js').write_text((NBS/'assets/figures.js').read_text(encoding='utf-8'), encoding='utf-8')
    (folder/'styles.css').write_text((NBS/'styles.css').read_text(encoding='utf-8'), encoding='utf-8')
    boxes = ''.join(f'<div data-figure="{o}"></div>' for o in KINDS)
    (folder/'index.html').write_text(f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Figures</title><link rel="icon" href="data:,"><link rel="stylesheet" href="styles.css">'
        f'</head><body><main>{boxes}</main><script src="figures.js"></script></body></html>', encoding='utf-8')
    with served(folder) as url:
        page = browser.new_page(viewport=dict(width=390, height=844))
        page.found = []
        page.on('pageerror', lambda o: page.found.append(str(o)))
        page.on('request', lambda o: page.found.append(o.url) if not o.url.startswith((url, 'data:')) else None)
        page.goto(url)
        yield page
        page.close()

def test_softmax_loss_and_gradient(page):
    for logits in ([1.,.5,-1.], [-5.,5.,5.], [1000.,1001.,0.]):
        a = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
        loss = F.cross_entropy(a, torch.tensor([0]))
        loss.backward()
        p,l,g = page.evaluate('a => [petsFigures.softmax(a), petsFigures.crossEntropy(a, 0), petsFigures.gradient(a, 0)]', logits)
        assert p==pytest.approx(a.softmax(1)[0].tolist(), abs=1e-12) and l==pytest.approx(loss.item(), abs=1e-9) and g==pytest.approx(a.grad[0].tolist(), abs=1e-12)

@pytest.mark.parametrize('centre,depth,noise', [(-3,2,.3), (-5,3,0), (-1,1,2), (-2,0,1), (-4,.5,.7)])
def test_finder_rules(page, centre, depth, noise):
    from fastai.callback import schedule
    js = '''o => { const [lrs, l] = petsFigures.sweep(100, ...o), v = petsFigures.smooth(l)
        return [lrs, l, v, Object.fromEntries(['minimum', 'steep', 'valley', 'slide'].map(k => [k, petsFigures[k](lrs, v)]))] }'''
    lrs,raw,v,found = page.evaluate(js, [centre, depth, noise])
    mean,smooth = 0,[]
    for i,o in enumerate(raw, 1): mean = .98*mean + .02*o; smooth.append(mean/(1-.98**i))
    assert v==pytest.approx(smooth, rel=1e-12)
    lrs,v = torch.tensor(lrs, dtype=torch.float64),torch.tensor(v, dtype=torch.float64)
    assert found==pytest.approx({k: float(getattr(schedule, k)(lrs, v, 100)[0]) for k in found}, rel=1e-9)

def test_one_cycle_and_groups(page):
    from fastai.callback.schedule import SchedCos, combine_scheds
    import numpy as np
    for pct in (.05, .25, .6):
        sched = combine_scheds([pct, 1-pct], [SchedCos(2e-3/25, 2e-3), SchedCos(2e-3, 2e-8)])
        for pos in (0, .03, .2, .5, .99): assert page.evaluate('o => petsFigures.oneCycle(...o)', [pos, 2e-3/25, 2e-3, 2e-8, pct])==pytest.approx(float(sched(pos)), rel=1e-5), (pct, pos)
    assert page.evaluate('() => petsFigures.groupRates(1e-6, 1e-4, 3)')==pytest.approx(np.geomspace(1e-6, 1e-4, 3).tolist())

def test_the_keyboard_moves_what_is_shown(page):
    for kind in KINDS:
        box = page.locator(f'[data-figure={kind}]')
        assert box.locator('input').count()==box.locator('label').count()>=3
        for i in range(box.locator('input').count()):
            before = box.locator('[aria-live]').inner_text(), box.locator('output').nth(i).inner_text()
            box.locator('input').nth(i).focus()
            for _ in range(4): page.keyboard.press('ArrowLeft')
            after = box.locator('[aria-live]').inner_text(), box.locator('output').nth(i).inner_text()
            assert before[0]!=after[0] and before[1]!=after[1], (kind, i)
    said = page.locator('[data-figure=softmax] [aria-live]').inner_text()
    assert f'{-math.log(torch.tensor([.6,.1,-1.4]).softmax(0)[0]):.2f}' in said, said
    assert page.evaluate('document.documentElement.scrollWidth')<=390 and page.found==[]

# How tall the smallest text of a figure is on the screen, and which of its texts overlap or leave its box
TEXTS = '''o => {
  const texts = [...o.querySelectorAll('svg text')], box = o.getBoundingClientRect(), shown = texts.map(e => e.getBoundingClientRect())
  const scale = o.querySelector('svg').getScreenCTM().a, found = []
  texts.forEach((e, i) => {
    if (shown[i].left < box.left || shown[i].right > box.right) found.push(`${e.textContent} leaves the box`)
    texts.slice(0, i).forEach((f, j) => { const a = shown[i], b = shown[j], h = (a.bottom - a.top) / 4 // the letters are less tall than their line
      if (a.left < b.right && b.left < a.right && a.top + h < b.bottom - h && b.top + h < a.bottom - h) found.push(`${e.textContent} on ${f.textContent}`) }) })
  return [Math.min(...texts.map(e => parseFloat(getComputedStyle(e).fontSize) * scale)), found] }'''

@pytest.mark.parametrize('kind', KINDS)
def test_text_is_large_enough_on_a_telephone(page, kind):
    page.add_style_tag(content='body { margin: 0 } main { padding: 0 24px }') # Quarto's margins at 390 px
    box = page.locator(f'[data-figure={kind}]')
    for at in (None, 'ArrowLeft', 'ArrowRight'):
        if at: box.locator('input').first.focus(); [page.keyboard.press(at) for _ in range(8)]
        size,found = box.evaluate(TEXTS)
        assert size>=12 and not found, (size, found)

@pytest.mark.parametrize('kind', KINDS)
def test_the_lesson_has_its_figure(kind):
    text = (NBS/f'{KINDS[kind]}.ipynb').read_text(encoding='utf-8')
    assert f'data-figure=\\"{kind}\\"' in text and 'assets/figures.js' in text
