"The `pets_nb` command as a user meets it: a process, its output and its exit status."
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest
from PIL import Image

PETS_NB = Path(sys.executable).parent/'pets_nb'

def run(*args, cwd, ok=(0,), **env):
    res = subprocess.run([PETS_NB, *map(str, args)], cwd=cwd, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', **env})
    assert res.returncode in ok, res.stdout+res.stderr
    return res

@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    from pets_nb.drawn import draw_pets, breed_traits
    return draw_pets(tmp_path_factory.mktemp('drawn')/'pets', n_per_breed=12, breeds=['Abyssinian', 'Persian', 'pug', 'samoyed'], seed=1, traps=True)

@pytest.fixture(scope='module')
def work(tmp_path_factory, pets):
    folder = tmp_path_factory.mktemp('work')
    res = run('train', '--data', pets, '--size', 64, '--bs', 16, '--epochs', 2, '--out', 'result', cwd=folder)
    (folder/'train.log').write_text(res.stdout)
    return folder

def test_train_keeps_its_results(work):
    log = (work/'train.log').read_text()
    assert {'model', 'history.csv', 'predictions.png'} == {o.name for o in (work/'result').iterdir()}
    assert 'error_rate' in log and 'Most confused' in log and 'shipped with pets_nb' in log and 'Next:' in log
    words = json.loads((work/'result/model/model.json').read_text())
    assert words['breeds']==['Abyssinian', 'Persian', 'pug', 'samoyed'] and words['seed']==42 and len(words['history'])==3
    assert max(Image.open(work/'result/predictions.png').size) > 300

def test_train_partially_and_on_the_device(work, pets):
    log = run('train', '--data', pets, '--size', 48, '--bs', 16, '--epochs', 1, '--partial', '--on-device', '--workers', 0, '--out', 'partial', cwd=work).stdout
    assert 'Decoding: on' in log and 'Most confused' in log and (work/'partial/model/model.safetensors').is_file()

def test_train_writes_over_nothing(work, pets):
    res = run('train', '--data', pets, '--out', 'result', cwd=work, ok=(2,))
    assert 'is there already' in res.stderr and 'Traceback' not in res.stderr

@pytest.mark.parametrize('args,words', [
    (('--data', 'nowhere'), 'nowhere'),
    (('--arch', 'resnet19'), 'resnet18'),
    (('--weights', 'none.safetensors'), 'none.safetensors'),
    (('--partial', '--weights', 'none'), '--partial'),
    (('--split', 'thirds'), 'thirds')])
def test_wrong_input_is_one_line(work, pets, args, words):
    args = args if '--data' in args else ('--data', pets, *args)
    res = run('train', *args, '--out', 'never', cwd=work, ok=(2,))
    assert words in res.stderr and 'Traceback' not in res.stderr
    assert not (work/'never').exists()

def test_unknown_command_and_option(work):
    for args in (['fly'], ['train', '--wings', '2'], []):
        assert 'usage:' in run(*args, cwd=work, ok=(2,)).stderr

@pytest.fixture(scope='module')
def odd(tmp_path_factory, pets):
    "A folder of files that a classifier meets in real life, all showing the same pet"
    d = tmp_path_factory.mktemp('odd')
    src = Image.open(pets/'images'/'pug_1.jpg').convert('RGB')
    src.save(d/'plain.jpg', quality=95)
    src.convert('CMYK').save(d/'cmyk.jpg', quality=95)
    src.save(d/'anim.gif', save_all=True, append_images=[src.rotate(90)])
    import numpy as np
    Image.fromarray((np.asarray(src.convert('L')).astype('uint16')*257)).save(d/'sixteen.png')
    turned = src.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif(); exif[0x0112] = 6
    turned.save(d/'exif.jpg', exif=exif, quality=95)
    src.resize((12000, 9000)).save(d/'huge.jpg', quality=50)
    Image.new('RGB', (1,1)).save(d/'dot.png')
    (d/'text.jpg').write_text('hello')
    (d/'cut.jpg').write_bytes((d/'plain.jpg').read_bytes()[:3000])
    (d/'folder').mkdir()
    return d

def test_predict_answers_or_names_each(work, odd):
    files = ['plain.jpg', 'cmyk.jpg', 'anim.gif', 'sixteen.png', 'exif.jpg', 'huge.jpg', 'dot.png', 'text.jpg', 'cut.jpg', 'folder', 'gone.jpg']
    res = run('predict', *(odd/o for o in files), '--model', 'result', '--json', cwd=work, ok=(2,))
    found = json.loads(res.stdout)
    answers = {Path(k).name: v for k,v in found['predictions'].items()}
    errors = {Path(k).name: v for k,v in found['errors'].items()}
    assert set(answers)=={'plain.jpg', 'cmyk.jpg', 'anim.gif', 'sixteen.png', 'exif.jpg', 'huge.jpg'}
    assert set(errors)=={'dot.png', 'text.jpg', 'cut.jpg', 'folder', 'gone.jpg'}
    for name in errors: assert name in res.stderr
    for v in answers.values():
        assert len(v)==4 and [o['probability'] for o in v]==sorted((o['probability'] for o in v), reverse=True)
        assert sum(o['probability'] for o in v)==pytest.approx(1, abs=1e-4)
    first = {o['breed']: o['probability'] for o in answers['plain.jpg']}
    for same in ('cmyk.jpg', 'exif.jpg', 'anim.gif'):
        for o in answers[same]: assert o['probability']==pytest.approx(first[o['breed']], abs=0.25), same

def test_predict_table_and_newest_model(work, pets, odd):
    res = run('predict', odd/'plain.jpg', '--top', 2, '--model', 'result', cwd=work)
    assert len(res.stdout.strip().splitlines())==4
    assert 'pets_nb train' in run('predict', odd/'plain.jpg', cwd=work, ok=(2,)).stderr

def test_predict_refuses_a_damaged_model(work, odd, tmp_path):
    import shutil
    shutil.copytree(work/'result', tmp_path/'bad')
    weights = tmp_path/'bad/model/model.safetensors'
    weights.write_bytes(weights.read_bytes()[:5000])
    res = run('predict', odd/'plain.jpg', '--model', tmp_path/'bad', cwd=work, ok=(2,))
    assert 'damaged' in res.stderr and 'Traceback' not in res.stderr

def test_data_and_audit(work, pets):
    res = run('data', '--data', pets, cwd=work)
    assert '4 breeds (2 cats, 2 dogs)' in res.stdout
    (pets/'images'/'pug_999.jpg').write_text('no picture')
    try:
        res = run('audit', '--data', pets, '--csv', 'audit.csv', cwd=work, ok=(1,))
        assert 'pug_999.jpg' in res.stdout and (work/'audit.csv').stat().st_size > 100
    finally: (pets/'images'/'pug_999.jpg').unlink()

def test_interrupt_is_no_traceback(work, pets):
    p = subprocess.Popen([PETS_NB, 'train', '--data', str(pets), '--epochs', '500', '--out', 'stopped'], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a background shell hands down an ignored SIGINT
    deadline = time.time()+120
    while not (work/'stopped').exists() and time.time()<deadline: time.sleep(0.2)
    time.sleep(2)
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=60)
    assert p.returncode==130 and 'interrupted' in err

# The chapter's runs

CHAPTER = ('--size', 32, '--bs', 16, '--weights', 'none', '--workers', 0, '--out', 'records')

def records(folder): return {o.name: o.stat().st_mtime_ns for o in (folder/'records').glob('*.json')}

def test_chapter_killed_and_resumed(work, pets):
    "Killed in the middle of its second run, it goes on with that run and keeps the first"
    wanted = ('chapter', '--data', pets, '--runs', 'two-epochs,slice-12', *CHAPTER)
    p = subprocess.Popen([PETS_NB, *map(str, wanted)], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'})
    for line in p.stdout:
        if line.startswith('slice-12, epoch 1 '): break
    else: pytest.fail('the second run never began')
    p.kill()
    p.wait(timeout=60)
    first = records(work)
    assert list(first)==['two-epochs-seed42.json']
    res = run('chapter', '--data', pets, '--runs', 'two-epochs,rate-too-high', *CHAPTER, cwd=work)
    assert 'Already finished in records: two-epochs' in res.stdout and 'rate-too-high, epoch 2' in res.stdout and 'two-epochs, epoch' not in res.stdout
    second = records(work)
    assert set(second)=={'two-epochs-seed42.json', 'rate-too-high-seed42.json'} and second['two-epochs-seed42.json']==first['two-epochs-seed42.json']
    row = next(o for o in res.stdout.splitlines() if o.startswith('two-epochs '))
    record = json.loads((work/'records/two-epochs-seed42.json').read_text())
    assert '8.05' in row and f"{100*record['history'][-1]['error_rate']:.2f}" in row
    assert {'settings', 'machine', 'history', 'seconds', 'device'} <= set(record) and record['settings']['seed']==42 and record['machine']['torch']

def test_chapter_refuses_what_it_cannot_mix(work, pets):
    res = run('chapter', '--data', pets, '--runs', 'two-epochs', *CHAPTER[2:], '--size', 48, cwd=work, ok=(2,))
    assert 'size: 32, now 48' in res.stderr and 'choose another folder, or delete the file' in res.stderr and 'Traceback' not in res.stderr
    res = run('chapter', '--data', pets, '--runs', 'two-epoch', *CHAPTER, cwd=work, ok=(2,))
    assert 'no such run: two-epoch;' in res.stderr and 'slice-12' in res.stderr
