"Bundles and predictions: faults and equality that are no lesson."
import hashlib, io, json, os, resource, struct, subprocess, sys
from pathlib import Path
import jsonschema, numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
import pets_nb.engine.bundle as bundle
from pets_nb.engine.bundle import BUNDLE_SCHEMA, Predictor, save_bundle
from pets_nb.engine.drawn import draw_pets
from pets_nb.engine.learner import pets_learner, quiet
from pets_nb.engine.loaders import Speed, pets_dls

@pytest.fixture(scope='module')
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp('d')/'pets'
    return draw_pets(folder, n_per_breed=8, breeds=['Abyssinian', 'pug', 'samoyed'], seed=3, traps=False)

@pytest.fixture(scope='module')
def learn(path):
    return pets_learner(pets_dls(path, size=64, bs=8, verbose=False), precision='float32', verbose=False)

@pytest.fixture
def saved(learn, tmp_path): return save_bundle(learn, tmp_path/'m')

@pytest.fixture(scope='module')
def predictor(learn, tmp_path_factory): return Predictor(save_bundle(learn, tmp_path_factory.mktemp('p')/'m'))

def change(folder, **kwargs):
    about = json.loads((folder/'model.json').read_text())
    (folder/'model.json').write_text(json.dumps(about | kwargs))

def probabilities(found, classes): return torch.tensor(
    [[next(o['probability'] for o in r['predictions'] if o['class']==c) for c in classes] for r in found])

# what is saved

def test_three_files_and_no_strays(learn, saved):
    assert {o.name for o in saved.iterdir()}=={'README.md', 'model.json', 'model.safetensors'}
    assert not list(saved.parent.glob('.*'))
    assert {o.stat().st_mode & 0o777 for o in saved.iterdir()}=={0o644} and saved.stat().st_mode & 0o777==0o755

def test_words_follow_the_schema(saved):
    about = json.loads((saved/'model.json').read_text())
    jsonschema.Draft202012Validator.check_schema(BUNDLE_SCHEMA)
    jsonschema.validate(about, BUNDLE_SCHEMA)
    assert about['data']['train']+about['data']['valid']==24 and about['data']['valid']==about['metrics']['n']
    assert len(about['data']['fingerprint'])==64
    assert about['library']['name']=='pets_nb' and about['metrics']['error_low'] <= about['metrics']['error']

def test_card(saved):
    card = (saved/'README.md').read_text()
    assert card.startswith('# small_network') and 'Abyssinian, pug, samoyed' in card and '95 % interval' in card

@pytest.mark.parametrize('change', [dict(size=0), dict(size=20_000), dict(std=[0, 1, 1]), dict(classes=['a', 'a']),
    dict(classes=['a', None]), dict(classes=['a']), dict(mean=[1, 2]), dict(size='64'), dict(size=True), dict(temperature=0),
    dict(arch='x; rm'), dict(format=3), dict(weights={}), dict(weights=dict(sha256='z')), dict(metrics=[]), dict(head='other')])
def test_words_against_the_schema_are_found(saved, change):
    about = json.loads((saved/'model.json').read_text()) | change
    faults = bundle._faults(about)
    assert faults and all(next(iter(change)) in o and len(o) < 120 for o in faults)

def test_existing_folders_are_left_alone(learn, saved):
    with pytest.raises(FileExistsError): save_bundle(learn, saved)
    empty = saved.parent/'empty'
    empty.mkdir()
    assert save_bundle(learn, empty)==empty

def test_nan_weights_are_not_saved(learn, tmp_path):
    weight = learn.model[1][-1].weight.data
    kept = weight[0,0].clone()
    weight[0,0] = float('nan')
    try:
        with pytest.raises(ValueError, match='NaN or infinite'): save_bundle(learn, tmp_path/'m')
    finally: weight[0,0] = kept
    assert not list(tmp_path.iterdir())

def test_a_full_disk_costs_nothing(learn, tmp_path, monkeypatch, capsys):
    real = bundle._write
    def full(folder, *args):
        if Path(folder)==tmp_path/'m': raise OSError(28, 'No space left on device')
        return real(folder, *args)
    monkeypatch.setattr(bundle, '_write', full)
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    done = save_bundle(learn, tmp_path/'m')
    assert 'No space left' in capsys.readouterr().err and Predictor(done).classes==list(learn.dls.vocab)
    monkeypatch.setattr(bundle, '_write', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='learner still has it'): save_bundle(learn, tmp_path/'n')

def test_a_kill_leaves_no_half_bundle(learn, tmp_path, monkeypatch):
    def dies(*args): raise KeyboardInterrupt
    monkeypatch.setattr(bundle, '_card', dies)
    with pytest.raises(KeyboardInterrupt): save_bundle(learn, tmp_path/'m')
    assert not list(tmp_path.iterdir())

# what is loaded

def test_same_probabilities_as_the_learner(learn, predictor):
    files = list(learn.dls.valid_ds.items)
    with quiet(learn): expected,_ = learn.get_preds()
    found = predictor.predict(files, top=None, calibrated=False, bs=4)
    assert (probabilities(found, learn.dls.vocab)-expected).abs().max() < 1e-4

@pytest.mark.parametrize('arch', ['resnet18', 'efficientnet_lite0', 'mobilenet_v3_small', 'swin_t'])
def test_other_architectures(path, tmp_path, arch):
    learn = pets_learner(pets_dls(path, size=64, bs=8, verbose=False), arch, 'none', precision='float32', verbose=False)
    found = Predictor(save_bundle(learn, tmp_path/'m')).predict(list(learn.dls.valid_ds.items), None, calibrated=False)
    with quiet(learn): expected,_ = learn.get_preds()
    assert (probabilities(found, learn.dls.vocab)-expected).abs().max() < 1e-4

def test_the_chapters_transforms_and_head(path, tmp_path):
    dls = pets_dls(path, size=64, bs=8, verbose=False, speed=Speed(fast=False))
    learn = pets_learner(dls, precision='float32', verbose=False, head='fastai')
    saved = save_bundle(learn, tmp_path/'m')
    assert json.loads((saved/'model.json').read_text())['resampling']=='fastai'
    found = Predictor(saved).predict(list(dls.valid_ds.items), None, calibrated=False)
    with quiet(learn): expected,_ = learn.get_preds()
    assert (probabilities(found, dls.vocab)-expected).abs().max() < 1e-2 # bytes between the two resizes

def test_loads_quickly_and_without_fastai(saved, path):
    code = f"""
import sys, time
import torch, torchvision # not ours
start = time.process_time()
from pets_nb.engine.bundle import Predictor
p = Predictor({str(saved)!r})
found = p.predict({str(path)!r}, top=1)
print(time.process_time()-start, len(found), 'fastai' in sys.modules)
"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert out[1:]==['24', 'False'] and float(out[0]) < 5

@pytest.mark.parametrize('words', ['', 'null', '[]', '{}', '{"format": 99}', '[' * 5000, '{"format": 2, "size": NaN}'])
def test_damaged_words_are_refused_in_one_line(saved, words):
    (saved/'model.json').write_text(words)
    with pytest.raises(ValueError) as e: Predictor(saved)
    assert '\n' not in str(e.value) and len(str(e.value)) < 700

def test_a_huge_network_is_refused_before_it_is_built(saved):
    change(saved, classes=[f'c{i}' for i in range(100_001)])
    with pytest.raises(ValueError, match='maxItems 100000'): Predictor(saved)
    change(saved, classes=[f'c{i}' for i in range(90_000)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="don't fit"): Predictor(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before < 200_000 # kB

@pytest.mark.parametrize('where', [0.3, 0.6, 0.99])
def test_flipped_bits_are_found(saved, where):
    data = bytearray((saved/'model.safetensors').read_bytes())
    data[int(where*len(data))] ^= 4
    (saved/'model.safetensors').write_bytes(data)
    with pytest.raises(ValueError, match='checksum'): Predictor(saved)

def resave(folder, edit):
    "Change the weights and the checksum with them"
    state = load_file(folder/'model.safetensors')
    edit(state)
    save_file(state, folder/'model.safetensors')
    change(folder, weights=dict(sha256=hashlib.sha256((folder/'model.safetensors').read_bytes()).hexdigest()))

@pytest.mark.parametrize('dtype', [torch.int32, torch.bool, torch.complex64])
def test_weights_of_another_type_are_refused(saved, dtype):
    def edit(state): state['1.2.weight'] = state['1.2.weight'].to(dtype)
    resave(saved, edit)
    with pytest.raises(ValueError, match="1.2.weight|damaged"): Predictor(saved)

def test_nan_weights_are_refused(saved):
    def edit(state): state['1.2.weight'][0,0] = float('inf')
    resave(saved, edit)
    with pytest.raises(ValueError, match='NaN or infinite'): Predictor(saved)

@pytest.mark.parametrize('damage', ['short', 'header', 'empty'])
def test_half_weights_are_refused(saved, damage):
    data = (saved/'model.safetensors').read_bytes()
    new = dict(short=data[:len(data)//2], header=struct.pack('<Q', 2**40)+data[8:], empty=b'')[damage]
    (saved/'model.safetensors').write_bytes(new)
    with pytest.raises(ValueError, match='damaged'): Predictor(saved)

def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match='model.json and model.safetensors'): Predictor(tmp_path/'none')
    (saved/'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='model.safetensors not found'): Predictor(saved)

def test_answers_of_nan_are_refused(learn, predictor, monkeypatch):
    monkeypatch.setattr(predictor, 'logits', lambda x: torch.full((len(x), 3), float('nan')))
    found = predictor.predict(learn.dls.valid_ds.items[0])
    assert len(found)==0 and 'NaN' in found[0]['error']

# what is asked

def test_all_kinds_of_items_give_one_answer(learn, predictor):
    file = Path(learn.dls.valid_ds.items[0])
    image = Image.open(file).convert('RGB')
    found = predictor.predict([file, str(file), file.read_bytes(), image, np.array(image)], top=1)
    assert len({r['predictions'][0]['class'] for r in found})==1
    p = [r['predictions'][0]['probability'] for r in found]
    assert max(p)-min(p) < 0.02 # the decoders differ by a level or two
    assert [r['file'] for r in found]==[str(file), str(file), 'image 2', 'image 3', 'image 4']

def test_folders_generators_and_order(learn, predictor, path):
    files = [str(o) for o in learn.dls.valid_ds.items]
    assert [r['file'] for r in predictor.predict((o for o in files), bs=2)]==files
    assert len(predictor.predict(path))==24
    assert len(predictor.predict([path, files[0]]))==25
    assert len(predictor.predict(np.zeros((3, 70, 70, 3), np.uint8)))==3

def test_bad_items_are_reported_beside_good_ones(learn, predictor, tmp_path):
    good = Path(learn.dls.valid_ds.items[0])
    (tmp_path/'html.jpg').write_text('<html>')
    (tmp_path/'half.jpg').write_bytes(good.read_bytes()[:300])
    (tmp_path/'none').mkdir()
    os.mkfifo(tmp_path/'pipe.jpg')
    Image.new('RGB', (1, 1)).save(tmp_path/'dot.png')
    bad = [tmp_path/'gone.jpg', tmp_path/'html.jpg', tmp_path/'half.jpg', tmp_path/'none', tmp_path/'pipe.jpg', tmp_path/'dot.png',
           'x'*300+'.jpg', b'junk', None, 3.5, os.fsdecode(b'\xff\x1b[31m.jpg')]
    items = [o for pair in zip([good]*len(bad), bad) for o in pair]
    found = predictor.predict(items, top=1)
    assert len(found)==len(bad) and len(found.results)==2*len(bad)
    for r in list(found)[1::2]: assert r['error'] and '\n' not in r['error'] and '\x1b' not in r['file']
    assert str(found) and found._repr_html_() and json.dumps(found.to_dict())
    assert '<html' not in predictor.predict([b'<script>', '<b>.jpg'])._repr_html_().replace('<table', '')

def test_unreadable_folder(predictor, tmp_path):
    (tmp_path/'shut').mkdir(0o000)
    found = predictor.predict(tmp_path/'shut')
    assert len(found)==0 and len(found.errors)==1

def test_nothing_to_do(predictor):
    assert predictor.predict([]).table.empty
    for kwargs in (dict(top=0), dict(top=-1), dict(bs=0)):
        with pytest.raises(ValueError, match='at least 1'): predictor.predict([], **kwargs)

def test_memory_does_not_grow_with_the_images(predictor, saved, tmp_path):
    "Eight images of 100 million pixels each, one after the other"
    im = Image.new('L', (10_000, 10_000))
    for i in range(8): im.save(tmp_path/f'{i}.png')
    code = f"""
import resource
from pets_nb.engine.bundle import Predictor
p = Predictor({str(saved)!r})
p.predict({str(tmp_path/'0.png')!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = p.predict([{str(tmp_path)!r} + f'/{{i}}.png' for i in range(8)])
print(len(found), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1e6)
"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert out[0]=='8' and float(out[1]) < 0.5 # GB

# calibration and none of these

def test_temperature_is_recovered():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5000, 5, generator=g)
    y = torch.multinomial(logits.softmax(1), 1, generator=g)[:,0]
    assert bundle._temperature(logits*3, y)==pytest.approx(3, rel=0.1)

def test_false_alarms_are_as_stated():
    "On new images of known classes the rate is the stated one"
    g = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(200):
        old,new = torch.randn(99, 5, generator=g),torch.randn(500, 5, generator=g)
        about = bundle._none_of_these(old)['none_of_these']
        rates.append((new.logsumexp(1) < about['threshold']).float().mean().item())
    assert about['false_alarms']==0.05 and np.mean(rates)==pytest.approx(0.05, abs=0.005)
    assert bundle._none_of_these(torch.randn(10, 5))=={}

def test_none_of_these_is_reported(saved, learn):
    change(saved, none_of_these=dict(threshold=1e5, false_alarms=0.05, n=100))
    found = Predictor(saved).predict(learn.dls.valid_ds.items[0])
    assert not found[0]['known'] and not found.table.known.any()
