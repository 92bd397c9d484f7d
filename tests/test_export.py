"Exports: the same answers without pets_nb, in ONNX Runtime, in PyTorch and in a browser."
import contextlib, functools, http.server, importlib.util, json, os, shutil, subprocess, sys, threading
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image

for needed in ('onnx', 'onnxruntime', 'onnxscript'): pytest.importorskip(needed, reason="needs pip install 'pets_nb[onnx]'")
import onnx, onnxruntime
import pets_nb.tools.export as export
from pets_nb.engine.bundle import Predictor, save_bundle
from pets_nb.engine.drawn import draw_pets
from pets_nb.engine.learner import pets_learner, quiet
from pets_nb.engine.loaders import pets_dls
from pets_nb.tools.export import export_bundle

BREEDS = ['Abyssinian', 'beagle', 'pug', 'samoyed', 'Persian', 'Siamese']

@pytest.fixture(scope='module')
def path(tmp_path_factory): return draw_pets(tmp_path_factory.mktemp('d')/'pets', n_per_breed=8, breeds=BREEDS, seed=3, traps=False)

@pytest.fixture(scope='module')
def learn(path):
    learn = pets_learner(pets_dls(path, size=64, bs=8, verbose=False), precision='float32', verbose=False)
    with quiet(learn): learn.fit_one_cycle(2, 3e-3)
    return learn

@pytest.fixture(scope='module')
def bundle(learn, tmp_path_factory): return save_bundle(learn, tmp_path_factory.mktemp('b')/'m')

@pytest.fixture(scope='module')
def file(bundle, tmp_path_factory): return export_bundle(bundle, 'onnx', tmp_path_factory.mktemp('o')/'m.onnx')

def expected(bundle, files):
    predictor = Predictor(bundle)
    x = np.stack([predictor._prepared(o) for o in files])
    return x,(predictor.logits(x)/predictor.about['temperature']).softmax(1).numpy()

def test_onnx_answers_as_predictor_for_any_batch(learn, bundle, file):
    x,p = expected(bundle, learn.dls.valid_ds.items)
    session = onnxruntime.InferenceSession(str(file))
    assert p.std(0).max() > 1e-3 # the images differ, so equality says something
    for n in (1, 3, len(x)): assert np.abs(session.run(None, {'pixels': x[:n]})[0]-p[:n]).max() < 1e-4

def test_metadata_says_how_to_prepare_images(learn, bundle, file):
    model,about = onnx.load(file),json.loads((bundle/'model.json').read_text())
    meta = {o.key: o.value for o in model.metadata_props}
    assert json.loads(meta['classes'])==list(learn.dls.vocab) and meta['size']=='64'
    assert float(meta['temperature'])==about['temperature'] and json.loads(meta['mean'])==about['mean']
    assert 'middle square' in meta['resize'] and 'uint8' in meta['input'] and meta['normalisation']=='inside the graph'
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert b'site-packages' not in file.read_bytes() and b'.py' not in file.read_bytes() # no traces of this machine

def test_torch_program_runs_without_pets_nb(learn, bundle, tmp_path):
    program = export_bundle(bundle, 'torch', tmp_path/'m.pt2')
    x,p = expected(bundle, learn.dls.valid_ds.items)
    np.save(tmp_path/'x.npy', x)
    code = ("import sys, numpy as np, torch; sys.modules['pets_nb'] = None; module = torch.export.load('m.pt2').module()\n"
            "x = torch.from_numpy(np.load('x.npy')); np.save('p.npy', torch.cat([module(x[:1])[0], module(x[1:])[0]]).numpy())")
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True, capture_output=True)
    assert np.abs(np.load(tmp_path/'p.npy')-p).max() < 1e-4

@pytest.mark.parametrize('kwargs,words', [(dict(to='tflite'), 'expected'), (dict(int8=True), '--test FOLDER'),
    (dict(to='torch', int8=True), 'not torch'), (dict(test='x'), '--int8')])
def test_refusals(bundle, tmp_path, kwargs, words):
    with pytest.raises(ValueError, match=words): export_bundle(bundle, out=tmp_path/'x', **kwargs)
    assert not list(tmp_path.iterdir())

def test_existing_output_is_left_alone(bundle, tmp_path):
    (tmp_path/'x').write_text('mine')
    with pytest.raises(FileExistsError, match='already'): export_bundle(bundle, out=tmp_path/'x')
    assert (tmp_path/'x').read_text()=='mine'

def test_missing_packages_are_named(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(export, 'find_spec', lambda o: None if o=='onnx' else importlib.util.find_spec(o))
    with pytest.raises(ImportError, match=r"^onnx not installed: pip install 'pets_nb\[onnx\]'"): export_bundle(bundle, out=tmp_path/'x')

def test_a_wrong_model_is_never_written(bundle, tmp_path, monkeypatch):
    real = export._run_onnx
    monkeypatch.setattr(export, '_run_onnx', lambda file: lambda x: [o+1e-3 for o in real(file)(x)])
    with pytest.raises(ValueError, match='differ'): export_bundle(bundle, out=tmp_path/'x')
    assert not list(tmp_path.iterdir())

def test_int8_is_measured_on_images_that_did_not_set_its_ranges(bundle, file, path, tmp_path, capsys):
    small = export_bundle(bundle, out=tmp_path/'s.onnx', int8=True, test=path)
    out = capsys.readouterr().out
    assert 'on 44 test images' in out and small.stat().st_size < file.stat().st_size/2 # 48, less 4 for the ranges
    assert sorted(o.name for o in tmp_path.iterdir())==['s.onnx']

# the page

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@contextlib.contextmanager
def served(folder):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield f'http://127.0.0.1:{server.server_port}'
        finally: server.shutdown()

def chromium(): return os.environ.get('PETS_NB_CHROMIUM') or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

@pytest.fixture(scope='module')
def folder(bundle, tmp_path_factory):
    try: return export_bundle(bundle, 'web', tmp_path_factory.mktemp('w')/'page')
    except ConnectionError as e: pytest.skip(f'onnxruntime-web is not in the cache, and npm cannot be reached: {e}')

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_web_page(learn, bundle, folder, tmp_path, scheme):
    api = pytest.importorskip('playwright.sync_api', reason='needs the extra dev')
    if chromium() is None: pytest.skip('no Chromium on PATH')
    pet = tmp_path/'pet.png' # without loss, so that the decoders agree
    Image.open(learn.dls.valid_ds.items[0]).convert('RGB').save(pet)
    (tmp_path/'notes.jpg').write_text('not an image')
    _,p = expected(bundle, [pet])
    with served(folder) as url, api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])
        page = browser.new_page(color_scheme=scheme, viewport=dict(width=1100, height=720))
        asked,faults = [],[]
        page.on('request', lambda o: asked.append(o.url))
        page.on('pageerror', lambda o: faults.append(str(o)))
        page.on('console', lambda o: faults.append(o.text) if o.type=='error' else None)
        page.goto(url)
        page.wait_for_selector('#choose:enabled', timeout=60_000)
        page.set_input_files('#file', pet)
        page.wait_for_selector('#answers li', timeout=60_000)
        found = page.eval_on_selector_all('#answers li', 'a => a.map(o => [o.dataset.class, +o.dataset.probability])')
        given = dict(zip(learn.dls.vocab, p[0]))
        assert len(found)==5 and [o for _,o in found]==sorted((o for _,o in found), reverse=True)
        assert all(abs(given[k]-v) < 1e-3 for k,v in found)
        if shots := os.environ.get('PETS_NB_SHOTS'): page.screenshot(path=f'{shots}/{scheme}.png')
        page.set_input_files('#file', tmp_path/'notes.jpg')
        page.wait_for_selector('#status.bad')
        assert 'notes.jpg' in page.inner_text('#status') and 'be read as an image' in page.inner_text('#status')
        assert not page.query_selector('#answers li')
        if shots: page.screenshot(path=f'{shots}/{scheme}-bad.png')
        assert asked and all(o.startswith((url, 'blob:', 'data:')) for o in asked) and not faults
        browser.close()
