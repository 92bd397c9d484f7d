"The page of `pets_nb app` in a browser, as two users see it."
import os, shutil, socket, subprocess, sys
from pathlib import Path
import pytest

pytest.importorskip('gradio', reason="needs pip install 'pets_nb[app]'")
api = pytest.importorskip('playwright.sync_api', reason='needs the extra dev')
from pets_nb.engine.bundle import save_bundle
from pets_nb.engine.drawn import draw_pets
from pets_nb.engine.learner import pets_learner, quiet
from pets_nb.engine.loaders import pets_dls

def chromium(): return os.environ.get('PETS_NB_CHROMIUM') or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

APP = [sys.executable, '-m', 'pets_nb', 'app']

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    path = draw_pets(tmp_path_factory.mktemp('d')/'pets', n_per_breed=8, breeds=['Abyssinian', 'beagle', 'pug', 'samoyed', 'Persian', 'Siamese'], seed=3, traps=False)
    learn = pets_learner(pets_dls(path, size=64, bs=8, verbose=False), precision='float32', verbose=False)
    with quiet(learn): learn.fit_one_cycle(1, 3e-3)
    return learn

@pytest.fixture(scope='module')
def bundle(learn, tmp_path_factory): return save_bundle(learn, tmp_path_factory.mktemp('b')/'m')

@pytest.fixture(scope='module')
def url(bundle, tmp_path_factory):
    "The page; ending it by Ctrl-C is quiet and leaves no uploads"
    tmp = tmp_path_factory.mktemp('t')
    app = subprocess.Popen([*APP, '--model', bundle, '--port', '0'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'TMPDIR': str(tmp)})
    line = app.stdout.readline()
    assert line, app.stderr.read()
    yield line.split()[0]
    app.send_signal(2)
    assert app.wait(20)==130
    assert app.stderr.read().strip()=='pets_nb: interrupted' and not list(tmp.glob('pets_nb-app-*'))

@pytest.fixture(scope='module')
def browser():
    if chromium() is None: pytest.skip('no Chromium on PATH')
    with api.sync_playwright() as play: yield play.chromium.launch(executable_path=chromium(), args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])

def opened(browser, url, **kwargs):
    page = browser.new_page(**kwargs)
    page.asked = []
    page.on('request', lambda o: page.asked.append(o.url))
    page.goto(url)
    page.wait_for_selector('input[type=file]', state='attached', timeout=30_000)
    return page

def upload(page, files): page.set_input_files('input[type=file] >> nth=0', files)
def answered(page): page.wait_for_selector('[data-testid=label-output-value]', timeout=30_000)

def test_two_users_upload_and_are_answered(browser, url, learn):
    pages = [opened(browser, url, color_scheme=o) for o in ('light', 'dark')]
    files = [str(o) for o in learn.dls.valid_ds.items[:2]]
    for page,file in zip(pages, files): upload(page, file)
    for page in pages:
        answered(page)
        assert page.locator('[data-testid$=-confidence-set], .confidence-set').count()==5
        assert page.locator('img').count() >= 2
        assert page.asked and all(o.startswith((url, 'blob:', 'data:')) for o in page.asked)
        if shots := os.environ.get('PETS_NB_SHOTS'): page.screenshot(path=f'{shots}/app{pages.index(page)}.png', full_page=True)
        page.close()

def test_garbage_gives_a_message_and_the_page_lives_on(browser, url, learn, tmp_path):
    (tmp_path/'notes.jpg').write_text('not an image')
    (tmp_path/'empty.jpg').touch()
    with (tmp_path/'big.jpg').open('wb') as f: f.truncate(21_000_000)
    for name,words in dict(notes='not an image', empty='empty', big='(?i)size|MB|bytes').items():
        page = opened(browser, url)
        upload(page, tmp_path/f'{name}.jpg')
        page.wait_for_selector(f'text=/{words.removeprefix("(?i)")}/i', timeout=20_000)
        page.close()
    page = opened(browser, url)
    upload(page, str(learn.dls.valid_ds.items[0]))
    answered(page)
    page.close()

def test_many_images_become_a_csv(url, learn, tmp_path):
    from gradio_client import Client, handle_file
    (tmp_path/'notes.jpg').write_text('not an image')
    files = [*map(str, learn.dls.valid_ds.items[:3]), str(tmp_path/'notes.jpg')]
    _,csv = Client(url, verbose=False).predict([handle_file(o) for o in files], api_name='/many')
    lines = Path(csv).read_text().splitlines()
    assert len(lines)==5 and lines[0]=='file,class,probability,known,error' and 'not an image' in lines[4]

def test_a_taken_port_is_one_line(bundle):
    with socket.create_server(('127.0.0.1', 0)) as s:
        done = subprocess.run([*APP, '--model', bundle, '--port', str(s.getsockname()[1])], capture_output=True, text=True)
    assert done.returncode==2 and len(done.stderr.splitlines())==1 and 'choose another with --port' in done.stderr
