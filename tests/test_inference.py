"Saving, loading and predicting: faults that are no lesson."
import json, subprocess, sys
from pathlib import Path
import pytest, torch
from PIL import Image
from pets_nb.baseline import load_weights, pets_learner, read_weights
from pets_nb.drawn import draw_pets
from pets_nb.inference import BreedClassifier, save_model
from pets_nb.presizing import pets_dls
from pets_nb.small_network import small_network
from safetensors.torch import save_file

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    path = draw_pets(tmp_path_factory.mktemp('d')/'pets', n_per_breed=6, breeds=['Abyssinian', 'pug', 'samoyed'], seed=3, traps=False)
    return pets_learner(pets_dls(path/'images', size=64, bs=8, num_workers=0), seed=1)

def test_same_probabilities_after_a_round_trip(learn, tmp_path):
    save_model(learn, tmp_path/'m')
    files = [Path(o) for o in learn.dls.valid_ds.items]
    with learn.no_bar(): expected,_ = learn.get_preds(dl=learn.dls.test_dl(files))
    found = BreedClassifier.load(tmp_path/'m').predict(files, top=3)
    for file,p in zip(files, expected):
        for o in found.to_dict()['predictions'][str(file)]: assert o['probability']==pytest.approx(p[learn.dls.vocab.o2i[o['breed']]].item(), abs=1e-4)

def test_no_pickle_in_the_saved_model(learn, tmp_path):
    folder = save_model(learn, tmp_path/'m')
    assert {o.name for o in folder.iterdir()}=={'model.json', 'model.safetensors'}
    json.loads((folder/'model.json').read_text())
    assert not list(tmp_path.glob('.*')), 'temporary folder left behind'

def test_failed_save_leaves_nothing(learn, tmp_path, monkeypatch):
    import pets_nb.inference as inference
    monkeypatch.setattr(inference, 'save_file', lambda *a, **k: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): save_model(learn, tmp_path/'m')
    assert not list(tmp_path.iterdir())

def test_unknown_format_is_refused(learn, tmp_path):
    folder = save_model(learn, tmp_path/'m')
    words = json.loads((folder/'model.json').read_text()); words['format'] = 99
    (folder/'model.json').write_text(json.dumps(words))
    with pytest.raises(ValueError, match='format 99'): BreedClassifier.load(folder)

def test_weights_files(tmp_path):
    state = small_network(n_out=5).state_dict()
    torch.save(state, tmp_path/'a.pth')
    save_file({k: v.half() if v.is_floating_point() else v for k,v in state.items()}, tmp_path/'a.safetensors')
    for name in ('a.pth', 'a.safetensors'):
        read = read_weights(tmp_path/name)
        assert all(v.dtype!=torch.float16 for v in read.values())
        load_weights(small_network(), tmp_path/name)
    torch.save({'model': state}, tmp_path/'b.pth')
    load_weights(small_network(), tmp_path/'b.pth')

def test_weights_file_that_is_a_program_is_refused(tmp_path):
    torch.save(small_network(), tmp_path/'whole.pth')
    with pytest.raises(ValueError, match='state dict'): read_weights(tmp_path/'whole.pth')
    (tmp_path/'junk.safetensors').write_bytes(b'junk')
    with pytest.raises(ValueError, match='junk.safetensors'): read_weights(tmp_path/'junk.safetensors')
    with pytest.raises(FileNotFoundError, match='gone'): read_weights(tmp_path/'gone.pth')

def test_misfit_weights_list_all(tmp_path):
    state = small_network().state_dict()
    state.pop('0.0.weight'); state['extra.weight'] = torch.zeros(1); state['1.0.weight'] = torch.zeros(2,2,3,3)
    torch.save(state, tmp_path/'a.pth')
    with pytest.raises(ValueError) as e: load_weights(small_network(), tmp_path/'a.pth')
    assert all(o in str(e.value) for o in ('0.0.weight', 'extra.weight', '1.0.weight'))

def test_seed_makes_whole_runs_equal(tmp_path):
    "Two processes with the same seed end with the same weights"
    path = draw_pets(tmp_path/'pets', n_per_breed=5, breeds=['Abyssinian', 'pug'], seed=3, traps=False)
    code = f"""
import sys, torch, hashlib
from pets_nb.baseline import pets_learner
from pets_nb.presizing import pets_dls
if __name__=='__main__':
    torch.rand(int(sys.argv[1]))
    learn = pets_learner(pets_dls({str(path/'images')!r}, size=48, bs=4, num_workers=2), seed=5)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    print(hashlib.md5(b''.join(v.float().numpy().tobytes() for v in learn.model.state_dict().values())).hexdigest())
"""
    (tmp_path/'run.py').write_text(code)
    out = {subprocess.run([sys.executable, tmp_path/'run.py', n], capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1] for n in ('1', '7')}
    assert len(out)==1
