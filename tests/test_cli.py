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
    code = "import sys; from pets_nb.tools.cli import main; print(main(sys.argv[1:]), [o for o in ('torch','fastai','pandas','matplotlib') if o in sys.modules])"
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
    for o in ('error_rate', 'Validation: error', 'interval', 'always answering', 'worst classes', 'most confused', 'To try next', 'pets_nb predict'): assert o in out, o
    assert (work/'result/report.txt').read_text() in out
    words = json.loads((work/'result/model/model.json').read_text())
    assert words['classes']==BREEDS
    assert min(Image.open(work/'result/predictions.png').size)>300 and min(Image.open(work/'result/confusion.png').size)>300
    assert len((work/'result/history.csv').read_text().splitlines())==4

def test_a_log_has_a_line_for_each_epoch(work):
    lines = (work/'stderr').read_text().splitlines()
    assert [o.split()[0] for o in lines if o.split()[0] in ('epoch', '0', '1', '2')]==['epoch', '0', '1', '2'] and len(lines)<=5

def test_the_printed_command_repeats_the_run_in_a_terminal(work):
    "The same errors; and on a terminal a bar with the time that remains, above it a table with one head"
    pty = pytest.importorskip('pty')
    line = next(o for o in (work/'stdout').read_text().splitlines() if o.startswith('To repeat it'))
    words = shlex.split(line.partition(': ')[2])
    assert words[0]=='pets_nb'
    ours,theirs = pty.openpty()
    p = subprocess.Popen([*COMMAND, *words[1:], '--out', 'again'], cwd=work, stdout=subprocess.DEVNULL, stderr=theirs, env={**ENV, 'TERM': 'xterm', 'COLUMNS': '100'})
    os.close(theirs)
    text = b''
    while True:
        try: chunk = os.read(ours, 4096)
        except OSError: break
        if not chunk: break
        text += chunk
    assert p.wait(60)==0
    errors = lambda o: [row.split(',')[:4] for row in (work/o/'history.csv').read_text().splitlines()]
    assert errors('again')==errors('result')
    assert text.count(b'train loss')==1 and b'Training' in text and b'0:00:0' in text

def test_results_are_never_overwritten(work, pets, capsys, monkeypatch):
    before = {o: o.stat().st_mtime_ns for o in (work/'result').rglob('*')}
    monkeypatch.chdir(work)
    out,err = call(capsys, 'train', '--data', pets, '--size', 32, '--epochs', 0, '--workers', 0, '--out', 'result', status=2)
    assert 'is there already' in err and '--resume result' in err and err.count('\n')==1
    assert {o: o.stat().st_mtime_ns for o in (work/'result').rglob('*')}==before

def test_a_finished_run_is_reported(work, capsys):
    assert call(capsys, 'train', '--resume', work/'result')==((work/'result/report.txt').read_text(), '')

def test_a_killed_run_goes_on(work):
    "kill -9 after the first epoch of the same run; `--resume` in a new process ends where the unbroken run ended"
    argv = json.loads((work/'result/settings.json').read_text())['argv']
    p = subprocess.Popen([*COMMAND, *argv, '--out', 'killed'], cwd=work, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENV)
    for line in p.stderr:
        if line.split()[:1]==['1']: break
    p.kill(); p.wait(60)
    assert not (work/'killed/model').exists() and list((work/'killed/checkpoints').iterdir())
    res = run('train', '--resume', 'killed', cwd=work)
    assert 'Validation: error' in res.stdout and (work/'killed/model/model.json').is_file() and not (work/'killed/checkpoints').exists()
    table = lambda o: [row.split(',')[:5] for row in (work/o/'history.csv').read_text().splitlines()]
    assert table('killed')==table('result') and len(table('killed'))==4

def test_resume_refuses_what_is_no_run(capsys, tmp_path):
    assert 'has no run to resume' in call(capsys, 'train', '--resume', tmp_path, status=2)[1]
    (tmp_path/'settings.json').write_text('{"argv": ["train", "--size"')
    err = call(capsys, 'train', '--resume', tmp_path, status=2)[1]
    assert "settings.json can't be read" in err and err.count('\n')==1

@pytest.mark.parametrize('args,words', [
    (('--arch', 'resnet19'), 'resnet18'), (('--arch', 'fasterrcnn_resnet50_fpn'), 'classif'), (('--split', 'official', '--labels', 'folders'), 'class'),
    (('--split', 'given'), 'split'), (('--pattern', r'^(\d+)'), 'Abyssinian_1.jpg'), (('--labels', 'one.csv'), 'gone.jpg')])
def test_wrong_input_is_one_line(work, pets, capsys, monkeypatch, args, words):
    monkeypatch.chdir(work)
    (work/'one.csv').write_text('file,label\npug_1.jpg,pug\ngone.jpg,pug\n')
    out,err = call(capsys, 'train', '--data', pets, *args, '--out', 'never', status=2)
    assert words in err and 'Traceback' not in err and err.count('\n')==1
    assert not (work/'never').exists()

# Layouts of people's folders

def pics(folder, names, seed=0):
    "Small images under these names; the classes differ in colour"
    import numpy as np
    rng = np.random.default_rng(seed)
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        colour = np.array([sum(map(ord, Path(name).parent.name or name.rpartition('_')[0])) * k % 200 for k in (1, 3, 7)])
        Image.fromarray((colour + rng.integers(0, 50, (40, 50, 3))).astype('uint8')).save(folder/name, 'JPEG')
    return folder

QUICK = ('--arch', 'small_network', '--size', '32', '--epochs', '0', '--workers', '0')

@pytest.mark.parametrize('layout', ['folders', 'parts', 'csv', 'pattern', 'names'])
def test_layouts(tmp_path, capsys, monkeypatch, layout):
    monkeypatch.chdir(tmp_path)
    names,extra,d = ['고양이', 'пёс два', 'Été'],(),tmp_path/'d'
    if layout=='folders': pics(d, [f'{o}/IMG 000{i}.JPG' for o in names for i in range(10)])
    if layout=='parts': pics(d, [f'{p}/{o}/{i}.jpg' for p,n in (('train',8),('valid',3),('test',4)) for o in names for i in range(n)])
    if layout=='names': pics(d, [f'{o}_{i}.jpg' for o in names for i in range(10)])
    if layout=='pattern': pics(d, [f'{i}-{o}.jpg' for o in names for i in range(10)]); extra = ('--pattern', r'^\d+-(.+)\.jpg$')
    if layout=='csv':
        pics(d, [f'{n}{i}.jpg' for n in range(3) for i in range(10)])
        rows = [f'{n}{i}.jpg;{o};{"valid" if i>7 else "train"}' for n,o in enumerate(names) for i in range(10)]
        (tmp_path/'labels.csv').write_text('\ufefffile;label;split\n'+'\n'.join(rows)+'\n', encoding='utf-8'); extra = ('--labels', 'labels.csv')
    out,err = call(capsys, 'train', '--data', d, *QUICK, *extra, '--out', 'run')
    about = json.loads((tmp_path/'run/model/model.json').read_text(encoding='utf-8'))
    assert about['classes']==sorted(names)
    assert f"({'9 images' if layout=='parts' else '6 images' })".replace('(', '') in out
    assert ('Test: error' in out and 'of 12 images' in out)==(layout=='parts')
    assert 'Glyph' not in err

def test_held_back_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pics(tmp_path/'d', [f'{o}/{i}.jpg' for o in 'ab' for i in range(8)])
    pics(tmp_path/'t', [f'{o}/{i}.jpg' for o in 'ab' for i in range(5)], seed=1)
    out,_ = call(capsys, 'train', '--data', 'd', '--test', 't', *QUICK, '--out', 'run')
    assert 'Test (t): error' in out and 'of 10 images' in out
    pics(tmp_path/'t', ['c/1.jpg'])
    out,err = call(capsys, 'train', '--data', 'd', '--test', 't', *QUICK, '--out', 'never', status=2)
    assert '1 class to test on' in err and ': c' in err and not (tmp_path/'never').exists()

@pytest.mark.parametrize('names,words', [
    ([], 'o images'), ([f'pug_{i}.jpg' for i in range(9)], 'one class'), (['a_1.jpg', 'a_2.jpg', 'b_1.jpg'], 'b'),
    ([f'a/{i}.jpg' for i in range(5)]+[f'b/{i}.jpg' for i in range(5)]+['loose_1.jpg'], 'loose_1.jpg'), (['holiday.jpg', 'a_1.jpg', 'a_2.jpg', 'b_1.jpg', 'b_2.jpg'], 'holiday.jpg')])
def test_folders_that_cannot_be_learned(tmp_path, capsys, monkeypatch, names, words):
    monkeypatch.chdir(tmp_path)
    pics(tmp_path/'d', names); (tmp_path/'d').mkdir(exist_ok=True)
    out,err = call(capsys, 'train', '--data', 'd', '--out', 'never', status=2)
    assert words in err and err.count('\n')==1 and not (tmp_path/'never').exists()

# Predict

@pytest.fixture(scope='module')
def odd(tmp_path_factory, pets):
    "A folder of files that a classifier meets in real life, all showing the same pet"
    import numpy as np
    d = tmp_path_factory.mktemp('odd')
    src = Image.open(pets/'images'/'pug_1.jpg').convert('RGB')
    src.save(d/'plain.jpg', quality=95)
    src.convert('CMYK').save(d/'cmyk.jpg', quality=95)
    src.save(d/'anim.gif', save_all=True, append_images=[src.rotate(90)])
    Image.fromarray((np.asarray(src.convert('L')).astype('uint16')*257)).save(d/'sixteen.png')
    exif = Image.Exif(); exif[0x0112] = 6
    src.transpose(Image.Transpose.ROTATE_90).save(d/'exif.jpg', exif=exif, quality=95)
    src.resize((12000, 9000)).save(d/'huge.jpg', quality=50)
    Image.new('RGB', (1,1)).save(d/'dot.png')
    (d/'text.jpg').write_text('hello')
    (d/'cut.jpg').write_bytes((d/'plain.jpg').read_bytes()[:3000])
    (d/'folder').mkdir()
    return d

def test_predict_answers_or_names_each(work, odd, capsys):
    files = ['plain.jpg', 'cmyk.jpg', 'anim.gif', 'sixteen.png', 'exif.jpg', 'huge.jpg', 'dot.png', 'text.jpg', 'cut.jpg', 'folder', 'gone.jpg']
    out,err = call(capsys, 'predict', *(odd/o for o in files), '--model', work/'result', '--json', status=2)
    found = json.loads(out)
    answers = {Path(o['file']).name: o['predictions'] for o in found['predictions']}
    assert set(answers)=={'plain.jpg', 'cmyk.jpg', 'anim.gif', 'sixteen.png', 'exif.jpg', 'huge.jpg'} and len(found['errors'])==5
    for name in ('dot.png', 'text.jpg', 'cut.jpg', 'folder', 'gone.jpg'): assert name in err
    for v in answers.values():
        assert len(v)==4 and [o['probability'] for o in v]==sorted((o['probability'] for o in v), reverse=True)
        assert sum(o['probability'] for o in v)==pytest.approx(1, abs=1e-4)
    first = {o['class']: o['probability'] for o in answers['plain.jpg']}
    for same in ('cmyk.jpg', 'exif.jpg', 'anim.gif'):
        for o in answers[same]: assert o['probability']==pytest.approx(first[o['class']], abs=0.25), same

def test_images_are_named_in_any_way(work, odd, capsys):
    "Files, folders, patterns, and names on stdin; one bad name costs no other answer"
    only = lambda out: [Path(o['file']).name for o in json.loads(out)['predictions']]
    good,model = ['anim.gif', 'cmyk.jpg', 'exif.jpg', 'huge.jpg', 'plain.jpg', 'sixteen.png'],('--model', work/'result')
    assert only(call(capsys, 'predict', odd, *model, '--json', status=2)[0])==good
    assert only(call(capsys, 'predict', f'{odd}/*m*.jpg', odd/'plain.jpg', *model, '--json')[0])==['cmyk.jpg', 'plain.jpg']
    names = os.fsencode(f"{odd/'plain.jpg'}\n\n{'x'*300}.jpg\n")+b'b\xffd.jpg\n\x1b[31m.jpg\n'
    res = subprocess.run([*COMMAND, 'predict', '-', '--model', 'result', '--top', '2', '--csv', 'answers.csv'], cwd=work, input=names, capture_output=True, env=ENV)
    assert res.returncode==2 and res.stdout.decode().count('plain.jpg')==2 and len(res.stdout.splitlines())==2
    assert len(res.stderr.splitlines())==3 and rb'b\xffd.jpg' in res.stderr and b'\x1b' not in res.stderr
    assert len((work/'answers.csv').read_text().splitlines())==3

def test_the_newest_run_answers(work, odd, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = call(capsys, 'predict', odd/'plain.jpg', status=2)[1]
    assert 'pets_nb train' in err and err.count('\n')==1
    for i,name in enumerate(['baseline', 'seed_9', 'seed_10', '2020-01-01_000000']):
        shutil.copytree(work/'result/model', tmp_path/'pets_nb_runs'/name/'model')
        os.utime(tmp_path/'pets_nb_runs'/name/'model/model.json', (10**9+i, 10**9+i))
    assert json.loads(call(capsys, 'predict', odd/'plain.jpg', '--json')[0])['model']=='pets_nb_runs/2020-01-01_000000/model'

def test_predict_needs_no_fastai(work, odd):
    code = "import sys; from pets_nb.tools.cli import main; s = main(sys.argv[1:]); print(s, [o for o in ('fastai','pandas','matplotlib') if o in sys.modules])"
    res = subprocess.run([sys.executable, '-c', code, 'predict', odd/'plain.jpg', '--model', 'result'], cwd=work, capture_output=True, text=True, env=ENV)
    assert res.stdout.splitlines()[-1]=='0 []', res

def test_predict_refuses_a_damaged_model(work, odd, tmp_path, capsys):
    shutil.copytree(work/'result', tmp_path/'bad')
    weights = tmp_path/'bad/model/model.safetensors'
    weights.write_bytes(weights.read_bytes()[:5000])
    err = call(capsys, 'predict', odd/'plain.jpg', '--model', tmp_path/'bad', status=2)[1]
    assert 'no usable model' in err and err.count('\n')==1

# Data and audit

def test_data_and_audit(work, pets, capsys):
    out,_ = call(capsys, 'data', '--data', pets)
    assert '4 classes' in out and re.search(r'pug +1\d', out)
    call(capsys, 'audit', '--data', pets)
    (pets/'images'/'pug_999.jpg').write_text('no image')
    try:
        out,_ = call(capsys, 'audit', '--data', pets, '--csv', work/'audit.csv', status=1)
        assert 'pug_999.jpg' in out and (work/'audit.csv').stat().st_size>100
    finally: (pets/'images'/'pug_999.jpg').unlink()

def test_caches_are_shown_and_removed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    folder = tmp_path/'data'/'pets_nb-cache'
    folder.mkdir(parents=True)
    for o in ('npy', 'json'): (folder/f'{"0"*16}.{o}').write_bytes(bytes(2**20))
    assert '1 caches' in call(capsys, 'data', '--cache')[0]
    assert 'removed' in call(capsys, 'data', '--clear-cache')[0] and not list(folder.iterdir())

def test_the_report_is_told_before_the_figures_and_kept_after_them(work, pets, capsys, monkeypatch):
    from pets_nb.tools import cli
    def full(*args): raise OSError('no space left')
    monkeypatch.setattr(cli, '_draw', full)
    monkeypatch.chdir(work)
    status = cli.main(['train', '--data', str(pets), *QUICK, '--out', 'no-figures'])
    said = capsys.readouterr()
    assert status==2 and 'Validation: error' in said.out and 'no space left' in said.err
    assert (work/'no-figures/model/model.json').exists() and not (work/'no-figures/report.txt').exists()

def test_an_image_that_has_vanished_is_left_out_of_the_figure(tmp_path, pets):
    import matplotlib.pyplot as plt
    from pets_nb.tools.cli import _draw_samples
    (tmp_path/'pug_1.jpg').write_bytes(b'no image any more')
    fig,axs = plt.subplots(1, 2)
    _draw_samples(axs, [tmp_path/'pug_1.jpg', sorted(pets.rglob('*.jpg'))[0]], [('pug','pug'),('a','b')], [.9,.8])
    assert [len(o.images) for o in axs]==[1,0]
    plt.close(fig)

def test_a_second_process_is_silent_and_gives_the_output_back(capsys, monkeypatch):
    from pets_nb.tools import cli
    monkeypatch.setattr(cli, '_RANK', 1)
    before = sys.stdout,sys.stderr
    assert cli.main(['predict', 'x.jpg', '--model', 'none'])==2
    assert (sys.stdout,sys.stderr)==before and capsys.readouterr()==('','')

# How a command ends

@pytest.mark.parametrize('number,status,when', [(signal.SIGINT, 130, 'imports'), (signal.SIGTERM, 143, 'training')])
@pytest.mark.skipif(not os.path.exists('/proc/self/maps'), reason='needs /proc')
def test_a_signal_ends_it_in_a_line(work, pets, number, status, when):
    out = f'stopped-{when}-{status}'
    p = subprocess.Popen([*COMMAND, 'train', '--data', str(pets), '--size', '64', '--epochs', '500', '--workers', '2', '--out', out], cwd=work,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a background shell hands down an ignored SIGINT
    if when=='imports':
        while 'libtorch_cpu' not in Path(f'/proc/{p.pid}/maps').read_text(): time.sleep(.01)
    else:
        for line in p.stderr:
            if line.split()[:1]==['1']: break
    p.send_signal(number)
    _,err = p.communicate(timeout=60)
    assert p.returncode==status and 'interrupted' in err and 'Traceback' not in err
    if when=='training': assert f'--resume {out}' in err

def test_a_signal_before_the_first_import_ends_it_in_a_line(tmp_path):
    code = ('import builtins, os, signal; from pets_nb.__main__ import main; real = builtins.__import__\n'
            'def stopped(name, *args, **kwargs):\n'
            '    if name=="pets_nb.tools.cli": os.kill(os.getpid(), signal.SIGINT)\n'
            '    return real(name, *args, **kwargs)\n'
            'builtins.__import__ = stopped; main()')
    res = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert (res.returncode,res.stderr)==(130,'pets_nb: interrupted\n')

def test_a_closed_pipe_is_quiet(work, pets):
    command = ' '.join(map(shlex.quote, [*COMMAND, 'audit', '--data', str(pets)]))
    res = subprocess.run(['bash', '-c', f'{command} | head -1; echo ${{PIPESTATUS[0]}}'], cwd=work, capture_output=True, text=True, env=ENV)
    assert res.stdout.splitlines()[-1] in ('0', '141') and res.stderr==''
    if not os.path.exists('/dev/full'): return
    res = subprocess.run(['bash', '-c', f'{command} > /dev/full'], cwd=work, capture_output=True, text=True, env=ENV)
    assert res.returncode==2 and res.stderr.count('\n')==1 and 'space' in res.stderr

def test_a_terminal_that_cannot_show_every_letter(tmp_path):
    pics(tmp_path/'d', [f'{o}/{i}.jpg' for o in ('고양이', 'б') for i in range(5)])
    res = subprocess.run([*COMMAND, 'train', '--data', 'd', *QUICK, '--out', 'run'], cwd=tmp_path, capture_output=True, env={**ENV, 'PYTHONIOENCODING': 'cp1252'})
    assert res.returncode==0 and b'Validation: error' in res.stdout and b'Traceback' not in res.stderr

def test_a_fault_of_ours_is_one_line(capsys, monkeypatch):
    def broken(*args): raise RuntimeError('broken\nmore')
    monkeypatch.setitem(cli._COMMANDS, 'data', (broken, 'data', {}))
    out,err = call(capsys, 'data', status=3)
    assert 'RuntimeError: broken more' in err and '--debug' in err and err.count('\n')==1
    with pytest.raises(RuntimeError): cli.main(['data', '--debug'])
