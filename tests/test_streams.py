"Shards of images, and the features made from them."
import io, json, tarfile, tracemalloc
import pytest, torch
pytest.importorskip('pyarrow')
import pyarrow.parquet as pq
from pets_nb.engine.streams import load_features, read_shard, shard_features
from pets_nb.engine.drawn import draw_pets
from pets_nb.engine.learner import pets_learner
from pets_nb.engine.loaders import pets_dls
from pets_nb.engine.bundle import Predictor
from pets_nb.tools.cli import main

def add(tar, name, data):
    o = tarfile.TarInfo(name)
    o.size = len(data)
    tar.addfile(o, io.BytesIO(data))

def write_tar(path, rows):
    with tarfile.open(path, 'w') as tar:
        for key,data,label in rows:
            add(tar, f'{key}.jpg', data)
            if label is not None: add(tar, f'{key}.cls', label.encode())

@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    folder = draw_pets(tmp_path_factory.mktemp('pets')/'drawn', 6, ['pug', 'Bombay', 'Persian'], traps=False, n_workers=1, progress=False)
    torch.manual_seed(0)
    dls = pets_dls(folder, size=64, bs=4, verbose=False, device='cpu')
    files = sorted(folder.glob('images/*.jpg'))
    rows = [(o.stem, o.read_bytes(), o.stem.rpartition('_')[0]) for o in files]
    return pets_learner(dls, 'small_network', precision='float32', verbose=False), rows

@pytest.fixture
def shards(pets, tmp_path):
    folder = tmp_path/'shards'
    folder.mkdir()
    for i in range(3): write_tar(folder/f'{i}.tar', pets[1][i::3])
    return folder

def test_tar_gives_back_what_went_in(pets, tmp_path):
    write_tar(tmp_path/'a.tar', pets[1])
    assert list(read_shard(tmp_path/'a.tar')) == pets[1]

def test_tar_without_labels(pets, tmp_path):
    rows = [(k, d, None) for k,d,_ in pets[1]]
    write_tar(tmp_path/'a.tar', rows)
    assert list(read_shard(tmp_path/'a.tar')) == rows

def test_cut_tar_is_an_error(pets, tmp_path):
    write_tar(tmp_path/'a.tar', pets[1])
    data = (tmp_path/'a.tar').read_bytes()
    (tmp_path/'a.tar').write_bytes(data[:len(data)//2 - 300])
    with pytest.raises(ValueError, match='a.tar is not a complete tar file'): list(read_shard(tmp_path/'a.tar'))

def test_tar_cut_between_two_files_is_an_error_too(pets, tmp_path):
    write_tar(tmp_path/'a.tar', pets[1])
    with tarfile.open(tmp_path/'a.tar') as tar: end = tar.getmembers()[4].offset
    (tmp_path/'a.tar').write_bytes((tmp_path/'a.tar').read_bytes()[:end])
    with pytest.raises(ValueError, match='its end is missing'): list(read_shard(tmp_path/'a.tar'))

def test_what_datasets_writes(pets, tmp_path):
    datasets = pytest.importorskip('datasets')
    names = sorted({o[2] for o in pets[1]})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = dict(image=[dict(bytes=o[1], path=None) for o in pets[1]], label=[names.index(o[2]) for o in pets[1]])
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path/'a.parquet'))
    assert [o[1:] for o in read_shard(tmp_path/'a.parquet')] == [o[1:] for o in pets[1]]

def test_what_webdataset_writes(pets, tmp_path):
    wds = pytest.importorskip('webdataset')
    with wds.TarWriter(str(tmp_path/'a.tar')) as f:
        for key,data,label in pets[1]: f.write({'__key__': key, 'jpg': data, 'txt': label})
    assert list(read_shard(tmp_path/'a.tar')) == pets[1]

def test_memory_does_not_grow_with_the_shard(tmp_path):
    def peak(n):
        write_tar(tmp_path/'a.tar', [(f'{i:06d}', bytes(20_000), 'cat') for i in range(n)])
        tracemalloc.start()
        assert sum(1 for _ in read_shard(tmp_path/'a.tar')) == n
        _,most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most
    peak(10)
    assert peak(2000) < peak(200) + 100_000

def test_two_processes_share_the_shards_without_overlap(pets, shards, tmp_path):
    learn,rows = pets
    counts = [shard_features(learn, shards, tmp_path/'f', rank=r, world=2) for r in (0, 1)]
    assert sum(counts) == len(rows) and min(counts) > 0
    keys = [o for f in (tmp_path/'f').glob('*.parquet') for o in pq.read_table(f)['key'].to_pylist()]
    assert sorted(keys) == sorted(o[0] for o in rows)

def test_rank_comes_from_the_launcher(pets, shards, tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '3')
    assert shard_features(pets[0], shards, tmp_path/'f') == len(pets[1][1::3])
    assert [o.name for o in (tmp_path/'f').iterdir()] == ['1.tar.parquet']

def test_only_missing_shards_are_done_again(pets, shards, tmp_path):
    shard_features(pets[0], shards, tmp_path/'f')
    before = load_features(tmp_path/'f')
    (tmp_path/'f/1.tar.parquet').unlink()
    kept = (tmp_path/'f/0.tar.parquet').stat().st_mtime_ns
    assert shard_features(pets[0], shards, tmp_path/'f') == len(pets[1][1::3])
    assert (tmp_path/'f/0.tar.parquet').stat().st_mtime_ns == kept
    assert torch.equal(load_features(tmp_path/'f')[0], before[0])

def test_a_failing_shard_leaves_no_file(pets, shards, tmp_path):
    data = (shards/'1.tar').read_bytes()
    (shards/'1.tar').write_bytes(data[:len(data)//2 - 300])
    with pytest.raises(ValueError, match='1.tar'): shard_features(pets[0], shards, tmp_path/'f')
    assert [o.name for o in (tmp_path/'f').iterdir()] == ['0.tar.parquet']

def test_features_of_another_network_are_refused(pets, shards, tmp_path):
    learn,_ = pets
    shard_features(learn, shards, tmp_path/'f')
    weight = next(learn.model[0].parameters())
    old = weight.detach().clone()
    try:
        with torch.no_grad(): weight += 1
        with pytest.raises(ValueError, match='another network'): shard_features(learn, shards, tmp_path/'f')
    finally:
        with torch.no_grad(): weight.copy_(old)

def test_a_broken_image_is_named_and_left_out(pets, tmp_path, capsys):
    folder = tmp_path/'s'
    folder.mkdir()
    write_tar(folder/'a.tar', [*pets[1][:5], ('broken', b'no image', 'pug')])
    assert shard_features(pets[0], folder, tmp_path/'f') == 5
    assert "a.tar: 1 image can't be read: 'broken'" in capsys.readouterr().err

def test_folder_without_shards(pets, tmp_path):
    with pytest.raises(FileNotFoundError, match='has no shards'): shard_features(pets[0], tmp_path, tmp_path/'f')

def test_keys_are_unique(pets, tmp_path):
    rows,folder = pets[1],tmp_path/'s'
    folder.mkdir()
    write_tar(folder/'a.tar', [*rows[:3], rows[0]])
    with pytest.raises(ValueError, match=r'a.tar has 1 key more than once'): shard_features(pets[0], folder, tmp_path/'f')
    with tarfile.open(folder/'a.tar', 'w') as tar:
        for name in ('x.jpg', 'x.png'): add(tar, name, rows[0][1])
    with pytest.raises(ValueError, match='two images with the key x'): list(read_shard(folder/'a.tar'))

def test_damaged_parquet_is_one_line(tmp_path):
    (tmp_path/'a.parquet').write_bytes(b'PAR1' + bytes(200))
    with pytest.raises(ValueError, match='a.parquet is not a complete parquet file'): list(read_shard(tmp_path/'a.parquet'))

def train(*args):
    return main(['train', '--arch', 'small_network', '--precision', 'float32', *map(str, args)])

def test_train_on_shards(pets, shards, tmp_path, monkeypatch, capsys):
    "Files are read from the tar alone; the bundle's error is that of the images held back; a finished run repeats its report"
    monkeypatch.chdir(tmp_path)
    assert train('--data', shards, '--out', 'run', '--size', 64, '--valid-pct', 0.3) == 0
    said = capsys.readouterr().out
    about = json.loads((tmp_path/'run/model/model.json').read_text())
    assert 'Held back: error' in said and about['classes'] == ['Bombay', 'Persian', 'pug'] and about['mirror'] is True
    n = about['metrics']['n']
    assert about['data']['valid'] == n and about['data']['train'] == len(pets[1]) - n and n >= 3
    assert not list(tmp_path.rglob('*.jpg')) and len(list((tmp_path/'run/features').iterdir())) == 3
    assert len(Predictor(tmp_path/'run/model').predict([o[1] for o in pets[1]])) == len(pets[1])
    assert main(['train', '--resume', 'run']) == 0 and 'Held back: error' in capsys.readouterr().out

def test_shards_named_after_their_part_are_the_split(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path/'s'
    folder.mkdir()
    for name,rows in (('train-0', pets[1][::2]), ('test-0', pets[1][1::2])): write_tar(folder/f'{name}.tar', rows)
    assert train('--data', folder, '--out', 'run', '--size', 64) == 0
    assert json.loads((tmp_path/'run/model/model.json').read_text())['data']['valid'] == len(pets[1][1::2])

@pytest.mark.parametrize('more,fault', [(['--epochs', 2], 'leave out --epochs'), (['--cache', '--split', 'official'], 'leave out --split, --cache')])
def test_what_shards_do_not_take(shards, tmp_path, monkeypatch, capsys, more, fault):
    monkeypatch.chdir(tmp_path)
    assert train('--data', shards, *more) == 2
    line, = [o for o in capsys.readouterr().err.splitlines() if o.startswith('pets_nb:')]
    assert fault in line

@pytest.mark.parametrize('damage,fault', [('cut', 'not a complete tar'), ('labels', 'has no label'), ('twice', 'more than once')])
def test_faults_of_shards_are_one_line(pets, tmp_path, monkeypatch, capsys, damage, fault):
    monkeypatch.chdir(tmp_path)
    folder,rows = tmp_path/'s',pets[1]
    folder.mkdir()
    write_tar(folder/'a.tar', dict(cut=rows, labels=[(k, d, None) for k,d,_ in rows], twice=[*rows, rows[0]])[damage])
    if damage == 'cut': (folder/'a.tar').write_bytes((folder/'a.tar').read_bytes()[:9000])
    assert train('--data', folder, '--size', 64) == 2
    line, = [o for o in capsys.readouterr().err.splitlines() if o.startswith('pets_nb:')]
    assert fault in line
