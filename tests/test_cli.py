"The `pets_nb` command as a user meets it: a process, its output and its exit status."
import argparse, json, os, re, shlex, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
from PIL import Image
from pets_nb.tools import cli

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'default'}
COMMAND = [sys.executable, '-m', 'pets_nb']
BREEDS = ['Abyssinian', 'Persian', 'pug', 'samoyed']

def run(*args, cwd, ok=(0,), stdin=None, **env):
    "The command in a new process"
    res = subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, capture_output=True, text=True, input=stdin, timeout=300,
                         env={**ENV, 'PYTHONWARNINGS': '', **env})
    assert res.returncode in ok, res.stdout+res.stderr
    assert 'Traceback' not in res.stderr and '\r' not in res.stdout+res.stderr
    return res

def call(capsys, *args, status=0):
    "The command in this process: what it printed"
    res = cli.main([*map(str, args)])
    out,err = capsys.readouterr()
    assert res==status, out+err
    return out,err

@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    from pets_nb.engine.drawn import draw_pets
    folder = tmp_path_factory.mktemp('drawn')/'pets'
    draw_pets(folder, n_per_breed=12, breeds=BREEDS, seed=1, traps=True)
    return folder

@pytest.fixture(scope='module')
def work(tmp_path_factory, pets):
    "A folder with one run in it, `result`"
    folder = tmp_path_factory.mktemp('work')
    res = run('train', '--data', pets, '--size', 64, '--bs', 16, '--epochs', 2, '--out', 'result', cwd=folder)
    (folder/'stdout').write_text(res.stdout); (folder/'stderr').write_text(res.stderr)
    return folder

# Options

BAD = [('--size', 0), ('--size', 31), ('--size', 1000000), ('--size', '1e3'), ('--bs', 0), ('--bs', -1), ('--bs', 10**9), ('--epochs', -1), ('--epochs', 1.5),
       ('--lr', 0), ('--lr', -1), ('--lr', 'nan'), ('--lr', 'inf'), ('--lr', 1e30), ('--lr', ''), ('--seed', -1), ('--seed', 2**32), ('--workers', -1),
       ('--workers', 100000), ('--valid-pct', 0), ('--valid-pct', 1), ('--valid-pct', 'nan'), ('--data', '~nouser'), ('--data', ''), ('--data', 'nowhere'),
       ('--out', ''), ('--weights', 'gone.safetensors'), ('--weights', ''), ('--labels', 'gone.csv'), ('--pattern', r'\d+'), ('--pattern', '(a)(b)'),
       ('--pattern', '('), ('--split', 'thirds'), ('--precision', 'float8'), ('--test', 'nowhere'), ('--resume', 'nowhere'), ('--arch', '')]

@pytest.mark.parametrize('option,value', BAD, ids=lambda o: str(o))
def test_each_option_has_a_range(capsys, option, value):
    "One line that names the option, before anything heavy is imported (see test_nothing_heavy)"
    out,err = call(capsys, 'train', f'{option}={value}', status=2)
    assert option in err and err.count('\n')==1 and out==''

@pytest.mark.parametrize('args,words', [
    (['fly'], 'fly'), (['train', '--wings', '2'], '--wings'), ([], 'COMMAND'), (['train', '--pdb'], '--pdb'), (['train', '--xtra', 'a'], '--xtra'),
    (['predict', 'a.jpg', '--top', '0'], '--top'), (['predict', 'a.jpg', '--top', '-1'], '--top'), (['predict'], 'IMAGE'),
    (['predict', 'a.jpg', '--model', 'nowhere'], '--model'), (['benchmark', '--turns', '0'], '--turns'), (['chapter', '--out', ''], '--out'),
    (['audit', '--csv', ''], '--csv'), (['train', '--epoch', '2'], '--epoch')])
def test_wrong_words_are_one_line(capsys, args, words):
    out,err = call(capsys, *args, status=2)
    assert words in err and err.count('\n')==1 and out==''

def test_nothing_heavy():
    "The help and a refused option come without PyTorch, fastai, pandas or matplotlib"
    code = "import sys; from pets_nb.tools.cli import main; print(main(sys.argv[1:]), [o for o in ('torch','fastai','pandas','matplotlib','PIL') if o in sys.modules])"
    for args,status in ((['--help'], 0), (['train', '--help'], 0), (['train', '--size', '0'], 2), (['--version'], 0)):
        res = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, env=ENV)
        assert res.stdout.splitlines()[-1]==f'{status} []', res

def test_help_names_every_option(capsys):
    for name,(_,options,_) in cli._COMMANDS.items():
        out,_ = call(capsys, name, '--help')
        for o in options.split(): assert ('IMAGE' if o=='images' else f"--{o.replace('_', '-')}") in out

# Runs have folders of their own

def test_claims_are_exclusive(tmp_path, monkeypatch):
    "Threads that claim at the same moment get folders of their own"
    from concurrent.futures import ThreadPoolExecutor
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(16) as pool: got = list(pool.map(lambda i: cli._claim(None, dict(i=i)), range(16)))
    assert len(set(got))==16
    assert sorted(json.loads((o/'settings.json').read_text())['i'] for o in got)==list(range(16))
    (tmp_path/'empty').mkdir()
    assert cli._claim('empty', {})==Path('empty')
    with pytest.raises(FileExistsError, match='--resume empty'): cli._claim('empty', {})
    (tmp_path/'file').write_text('')
    with pytest.raises(FileExistsError): cli._claim('file', {})

def test_full_disk_is_noticed_before(tmp_path, monkeypatch):
    with pytest.raises(OSError, match='GB'): cli._claim(tmp_path/'a'/'b', {}, need=2**62)
    assert not (tmp_path/'a').exists()

def test_the_arguments_of_a_run_repeat_it(tmp_path):
    a = cli._parser().parse_args(['train', '--data', str(tmp_path), '--epochs', '0', '--seed', '0', '--pattern=-(.+)', '--cache', '--out', 'x', '--debug'])
    again = cli._parser().parse_args(cli._argv(a))
    assert {**vars(again), 'out': 'x', 'debug': True}==vars(a)

# Train

def test_train_keeps_its_results(work):
    out,err = (work/'stdout').read_text(),(work/'stderr').read_text()
    assert {'model', 'history.csv', 'predictions.png', 'confusion.png', 'report.txt', 'settings.json'}=={o.name for o in (work/'result').iterdir()}
    for o in ('error_rate', 'Validation: error', 'interval', 'Always answering', 'Worst classes', 'Most confused', 'To try next', 'pets_nb predict'): assert o in out, o
    assert (work/'result/report.txt').read_text() in out
    words = json.loads((work/'result/model/model.json').read_text())
    assert words['classes']==BREEDS
    assert min(Image.open(work/'result/predictions.png').size)>300 and min(Image.open(work/'result/confusion.png').size)>300
    assert len((work/'result/history.csv').read_text().splitlines())==4

def test_a_log_has_a_line_for_each_epoch(work):
    lines = [o for o in (work/'stderr').read_text().splitlines() if o.startswith('epoch')]
    assert len(lines)==3 and all('error rate' in o and 'valid loss' in o for o in lines)
    assert '%' not in (work/'stdout').read_text().split('Validation')[0]

def test_the_printed_command_repeats_the_run(work):
    line = next(o for o in (work/'stdout').read_text().splitlines() if o.startswith('To repeat it'))
    words = shlex.split(line.partition(': ')[2])
    assert words[0]=='pets_nb'
    run(*words[1:], '--out', 'again', cwd=work)
    assert (work/'again/history.csv').read_text().splitlines()[-1].split(',')[:4]==(work/'result/history.csv').read_text().splitlines()[-1].split(',')[:4]
