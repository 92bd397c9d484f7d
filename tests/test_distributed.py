"Several processes: features are shared out by shard, and training refuses."
import subprocess, sys, tarfile
import pytest
from pets_nb.engine.drawn import draw_pets
from pets_nb.tools.cli import main

def test_train_refuses_several_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert main(['train', '--data', 'drawn']) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and 'train runs as one process' in said[0]
    assert not any(tmp_path.iterdir())

SCRIPT = """
import os, sys
from pets_nb.engine.streams import shard_features
from pets_nb.engine.learner import pets_learner
from pets_nb.engine.loaders import pets_dls
dls = pets_dls(sys.argv[1], size=64, bs=4, verbose=False, device='cpu')
learn = pets_learner(dls, 'small_network', precision='float32', verbose=False)
n = shard_features(learn, sys.argv[2], sys.argv[3])
open(f"{sys.argv[3]}.rank{os.environ['RANK']}", 'w').write(str(n))
"""

def test_torchrun_shares_the_shards(tmp_path):
    pytest.importorskip('pyarrow')
    from pets_nb.engine.streams import load_features
    pets = draw_pets(tmp_path/'drawn', 6, ['pug', 'Bombay', 'Persian'], traps=False, n_workers=1, progress=False)
    files,shards,out = sorted(pets.glob('images/*.jpg')),tmp_path/'shards',tmp_path/'features'
    shards.mkdir()
    for i in range(3):
        with tarfile.open(shards/f'{i}.tar', 'w') as tar:
            for o in files[i::3]:
                (tmp_path/'label').write_text(o.stem.rpartition('_')[0])
                tar.add(o, o.name)
                tar.add(tmp_path/'label', f'{o.stem}.cls')
    (tmp_path/'go.py').write_text(SCRIPT)
    run = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', tmp_path/'go.py', pets, shards, out]
    done = subprocess.run([*map(str, run)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = [int((tmp_path/f'features.rank{r}').read_text()) for r in range(2)]
    assert counts == [len(files[0::3]) + len(files[2::3]), len(files[1::3])]
    x,y,classes = load_features(out)
    assert len(x) == len(files) and classes == ['Bombay', 'Persian', 'pug']
