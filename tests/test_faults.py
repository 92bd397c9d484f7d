"""A seeded generator of faults: odd commands, names, files, models, weights, archives, caches, kills and full disks.

Each case runs in a fresh interpreter, with limits on its time and memory, and has one right outcome. Small in CI; `--runslow` makes it large.
`python tests/test_faults.py [--large] [KIND ...] nbs/explanations/faults.json` makes the table of the page on faults."""
import io, json, os, pickle, random, resource, shutil, signal, stat, struct, subprocess, sys, tarfile, tempfile, time, zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
import numpy as np
import pytest
from PIL import Image

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
SMALL = dict(commands=24, names=12, images=40, models=30, weights=12, archives=40, caches=12, kills=2, disks=6)
LARGE = dict(commands=195, names=120, images=330, models=200, weights=60, archives=300, caches=360, kills=90, disks=60)

@dataclass
class Case:
    "What happened to one fault"
    kind:str; name:str; outcome:str; right:bool; seconds:float=0.; said:str=''

# A fresh interpreter that measures its own peak memory: VmHWM, unlike ru_maxrss, begins at 0 with each program
_RUNNER = """
import json, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (12<<30, 12<<30))
note, code = sys.argv[1:3]
sys.argv[1:] = sys.argv[3:]
start, status = time.time(), 0
try: exec(compile(code, 'case', 'exec'), {'__name__': '__main__'})
except SystemExit as e: status = e.code or 0
finally:
    peak = next((int(o.split()[1])/1024 for o in open('/proc/self/status') if o.startswith('VmHWM')), 0) if os.path.exists('/proc/self/status') else 0
    open(note, 'w').write(json.dumps(dict(seconds=time.time()-start, mib=peak)))
sys.exit(status)
"""
MAIN = "from pets_nb.tools.cli import main; import sys; sys.exit(main(sys.argv[1:]))"

def fresh(code, *args, cwd=None, limit=120, stdin=None, **kwargs):
    "Run `code` in a new interpreter: status, stdout and stderr (bytes), seconds, peak in MiB"
    with tempfile.NamedTemporaryFile() as note:
        try: res = subprocess.run([sys.executable, '-c', _RUNNER, note.name, code, *args], cwd=cwd, capture_output=True, timeout=limit, input=stdin,
                                  env={**ENV, **kwargs.pop('env', {})}, **kwargs)
        except subprocess.TimeoutExpired: return None, b'', b'hangs', limit, 0
        found = json.loads(note.read() or b'{"seconds": 0, "mib": 0}')
    return res.returncode, res.stdout, res.stderr, found['seconds'], found['mib']

def one_line(err): return err.count(b'\n')==1 and b'Traceback' not in err and err.startswith(b'pets_nb')

# Commands: refused in one line that names the option, before anything heavy is imported, with nothing written

_ODD = dict(size='0 -1 31 1000000 1e3 nan x 0x40', bs='0 -1 1 1000000 2.5 inf', epochs='-1 1e2 1001 two nan', lr='0 -1 nan inf -inf 1e30 x 2', seed='-1 1.5 4294967296 x',
            workers='-1 65 100000 x', valid_pct='0 1 -0.1 1.5 nan inf 20%', precision='half fp16 8', split='thirds 0.2 train', data='~nouser /dev/null nowhere *',
            labels='nowhere.csv /dev/null', pattern='( \\d+ (a)(b) *', weights='nowhere.pth /dev/null', test='nowhere', resume='nowhere', turns='0 -1 x 1000',
            top='0 -1 1001 x', model='nowhere /dev/null')
_TAKES = dict(train='size bs epochs lr seed workers valid_pct precision split data labels pattern weights test resume', predict='top model',
              chapter='size bs seed workers precision data weights', benchmark='turns size data weights', audit='data', data='data labels pattern')

def commands(rng, n, work):
    pairs = [(c,o,v) for c,names in _TAKES.items() for o in names.split() for v in [*_ODD[o].split(), '', ' ']]
    for command,option,value in rng.sample(pairs, min(n, len(pairs))):
        flag,cwd = '--'+option.replace('_', '-'),Path(tempfile.mkdtemp(dir=work))
        args = [command, *(['a.jpg'] if command=='predict' else []), f'{flag}={value}']
        status,out,err,seconds,_ = fresh(MAIN, *args, cwd=cwd, limit=20)
        right = status==2 and one_line(err) and flag.encode() in err and not out and not list(cwd.iterdir())
        yield Case('commands', ' '.join(args), 'refused in one line' if right else f'status {status}', right, seconds, err.decode(errors='replace')[:300])

# Images: read by `predict`, `audit` and open_image; answered or refused, within a time and 1 GB above the network

def _photo(rng, size=(200,160)):
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 255, (*size[::-1], 3)).astype('uint8')
    return Image.fromarray(pixels).resize(size)

def _encoded(rng):
    fmt,kw = rng.choice([('JPEG',dict(quality=70)), ('JPEG',dict(progressive=True)), ('PNG',{}), ('GIF',{}), ('WEBP',{}), ('TIFF',{}), ('BMP',{})])
    data = io.BytesIO()
    _photo(rng).save(data, fmt, **kw)
    return bytearray(data.getvalue()),{'JPEG':'.jpg','TIFF':'.tif'}.get(fmt, f'.{fmt.lower()}')

def _cut(rng, b): return b[:rng.randrange(len(b))]
def _flip(rng, b):
    for _ in range(rng.choice([1, 10, 200])): b[rng.randrange(len(b))] ^= 1<<rng.randrange(8)
    return b
def _zero(rng, b): i = rng.randrange(len(b)); b[i:i+rng.randrange(1, 2000)] = bytes(rng.randrange(1, 500)); return b
def _tail(rng, b): return b+rng.randbytes(rng.randrange(1, 10**5))
def _head(rng, b): return bytearray(rng.randbytes(rng.randrange(1, 30)))+b
def _shuffle(rng, b): i,j = sorted(rng.sample(range(len(b)), 2)); b[i:j] = b[i:j][::-1]; return b
_MUTATIONS = [_cut, _flip, _zero, _tail, _head, _shuffle]

def _png(w, h, data=b''):
    import zlib
    chunk = lambda k,d: struct.pack('>I', len(d))+k+d+struct.pack('>I', zlib.crc32(k+d))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))+chunk(b'IDAT', data)+chunk(b'IEND', b'')

def _planted(folder):
    "Files that must never be answered, by name"
    import zlib
    (folder/'page.jpg').write_text('<!DOCTYPE html><html>404</html>')
    (folder/'empty.png').write_bytes(b'')
    (folder/'eps.jpg').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n0 0 100 100 rectfill\nshowpage\n')
    (folder/'strip.png').write_bytes(_png(1, 178956970))
    (folder/'bomb.png').write_bytes(_png(13300, 13300, zlib.compress(bytes(3*13300*13300//40))))
    (folder/'huge.png').write_bytes(_png(2**31-1, 2**31-1))
    (folder/'zip.jpg').write_bytes(b'PK\x03\x04'+bytes(1000))
    with open(folder/'sparse.jpg', 'wb') as f: f.truncate(6<<30)
    (folder/'dir.jpg').mkdir()
    os.mkfifo(folder/'fifo.jpg')
    os.symlink('/dev/zero', folder/'device.jpg')
    os.symlink('loop.jpg', folder/'loop.jpg')
    os.symlink('nowhere', folder/'dangling.jpg')
    return sorted(o.name for o in folder.iterdir())

def _images(rng, n, folder):
    folder.mkdir()
    bad = _planted(folder)
    _photo(rng).save(folder/'good.jpg')
    for i in range(n):
        data,suffix = _encoded(rng)
        (folder/f'{i}{suffix}').write_bytes(rng.choice(_MUTATIONS)(rng, data))
    return bad

_LOAD = """
import json, sys, time
from pathlib import Path
from pets_nb.engine.files import ImageError, open_image
for name in sys.stdin.read().splitlines():
    start = time.time()
    try: size,why = open_image(name, short=64).size, ''
    except ImageError as e: why = str(e)
    print(json.dumps([name, why, time.time()-start]))
"""
_AUDIT = """
import json, sys
from pets_nb.engine.audit import audit
found = audit(sys.stdin.read().splitlines())
keep = set(map(str, found.usable))
for p in found.paths: print(json.dumps([str(p), '' if str(p) in keep else 'left out', 0]))
"""
_PREDICT = """
import json, sys
from pets_nb.tools.cli import main
main(['predict', '-', '--json', '--model', sys.argv[1]])
"""

def _program(folder):
    "A folder with a `gs` that leaves a mark when it is started"
    folder.mkdir()
    (folder/'gs').write_text(f'#!/bin/sh\ntouch {folder}/started\n')
    (folder/'gs').chmod(0o755)
    return folder

def _check_images(kind, found, names, bad, seconds, mib, extra, allowed):
    "Cases from the reading of images: every file has an answer or a reason, none of the planted ones an answer"
    for name in names:
        if name not in found: yield Case(kind, name, 'no answer and no reason', False); continue
        why,each = found[name]
        good = '\n' not in why and len(why)<500 and (bool(why) if name in bad else not why if name=='good.jpg' else True)
        yield Case(kind, name, 'refused in one line' if why else 'read', good, each, why)
    yield Case(kind, 'memory', f'{mib:.0f} MiB at most', extra<1024, seconds, f'{extra:.0f} MiB above the network')
    yield Case(kind, 'external program', 'not started', not allowed, seconds)

def images(rng, n, work, model=None):
    folder,tools = work/'images',_program(work/'tools')
    bad = _images(rng, n, folder)
    names = sorted(o.name for o in folder.iterdir())
    stdin = '\n'.join(str(folder/o) for o in names).encode()
    env = dict(PATH=f"{tools}:{os.environ['PATH']}", PETS_NB_CACHE=str(work/'memory'))
    for kind,code in (('images: open_image', _LOAD), ('images: audit', _AUDIT)):
        base = fresh(code, stdin=str(folder/'good.jpg').encode(), env=env)[4]
        status,out,err,seconds,mib = fresh(code, stdin=stdin, env=env, limit=300)
        rows = [json.loads(o) for o in out.decode().splitlines() if o.startswith('[')]
        found = {Path(name).name: (why,s) for name,why,s in rows}
        if status!=0: yield Case(kind, 'process', f'status {status}', False, seconds, err.decode(errors='replace')[-500:])
        yield from _check_images(kind, found, names, bad, seconds, mib, mib-base, (tools/'started').exists())
    if model is None: return
    base = fresh(_PREDICT, model, stdin=str(folder/'good.jpg').encode(), env=env)[4]
    status,out,err,seconds,mib = fresh(_PREDICT, model, stdin=stdin, env=env, limit=300)
    found = dict(predictions=[], errors={}) if status is None else json.loads(out)
    found = {Path(k).name: (why,0.) for k,why in [*((o['file'],'') for o in found['predictions']), *found['errors'].items()]}
    found |= {o: (why,0.) for o in bad for why,_ in list(found.values()) if f'{o}: ' in why} # an empty folder is named in its reason
    yield from _check_images('images: predict', found, names, bad, seconds, mib, mib-base, (tools/'started').exists())

# Names: whatever a file is called, the others are answered

_NAMES = ['x'*300+'.jpg', 'y/'*2500+'z.jpg', 'no.jpg', 'tab\t.jpg', '\x1b[2J.jpg', '\u202egpj.exe', 'e\u0301.jpg', '😀.jpg', 'CON', ' lead.jpg', 'trail .jpg', "quo'te\".jpg", '$(touch x).jpg',
          '-rf.jpg', '*.jpg', '[a].jpg', '%s.jpg', '..', '.', '~', '/dev/zero', '/dev/stdin', '/proc/self/mem', '\\\\server\\share.jpg', 'http://example.org/a.jpg']

def names(rng, n, work, model):
    folder = work/'names'
    folder.mkdir()
    good = folder/'good.jpg'
    _photo(rng).save(good)
    tried = [os.fsencode(o) for o in _NAMES]
    while len(tried)<n: tried.append(b'a'+bytes(rng.choice([*range(1,10), 11, 12, *range(14,256)]) for _ in range(rng.randrange(4, 60))))
    tried = [o for o in dict.fromkeys(tried) if o.strip() and b'\r' not in o][:max(n, len(_NAMES))]
    for o in tried[:n//3]: # some of them are there, too
        try: shutil.copy(os.fsencode(good), os.path.join(os.fsencode(folder), os.path.basename(o) or b'x'))
        except OSError: pass
    status,out,err,seconds,_ = fresh(MAIN, 'predict', '-', '--json', '--model', model, cwd=folder, stdin=b'\n'.join([*tried, b'good.jpg']), limit=120)
    found = dict(predictions=[], errors={}) if status is None else json.loads(out)
    lines = err.decode(errors='replace').splitlines()
    answered = [o['file'] for o in found['predictions']]
    yield Case('names', 'good.jpg', 'answered', 'good.jpg' in answered, seconds)
    from pets_nb.engine.files import shown
    for o in tried:
        name = shown(o)
        why = next((v for k,v in found['errors'].items() if k==name), '')
        inside = os.path.isdir(os.path.join(os.fsencode(folder), o))
        right = bool(why) != (name in answered) or inside
        yield Case('names', name[:60], 'answered' if name in answered else 'refused in one line', right and '\n' not in why and status in (0,2), seconds, why)
    yield Case('names', 'terminal', 'control characters escaped', not any(ord(c)<32 for line in lines for c in line), seconds)

# Models and weights: refused in one line, or the same answers as before

_LOOP = """
import json, resource, sys, time
from pathlib import Path
def hwm(): return next(int(o.split()[1])/1024 for o in open('/proc/self/status') if o.startswith('VmHWM'))
def peak(reset=False):
    if reset: open('/proc/self/clear_refs', 'w').write('5')
    return hwm()
"""
_MODELS = _LOOP + """
from pets_nb.engine.bundle import Predictor
photo = sys.argv[1]
first = None
for name in sys.stdin.read().splitlines():
    start,before,why,same = time.time(), peak(True), '', False
    try:
        found = Predictor(name).predict(photo)
        answers = [o.get('predictions') for o in found]
        first = first or answers
        same = answers==first
    except (ValueError, OSError) as e: why = f'{type(e).__name__}: {e}'
    except Exception as e: why = f'FAULT {type(e).__name__}: {e}'
    print(json.dumps([name, why, same, time.time()-start, peak()-before]), flush=True)
"""

_WRONG = [None, [], {}, '', 'x', 0, -1, 20000, 1e308, float('nan'), True, [None], ['a','a'], [1,2,3], 'resnet152', [0,0,0], [1e9]*3, {'a': 1}]

def _hostile_json(rng, about):
    "model.json with one thing wrong, and what it is"
    about,kind = json.loads(json.dumps(about)),rng.randrange(6)
    keys = ['format','arch','head','classes','size','item_size','resampling','mean','std','temperature','weights']
    key = rng.choice(keys)
    if kind==0: del about[key]; return json.dumps(about),f'no {key}'
    if kind==1: text = json.dumps(about); return text[:rng.randrange(len(text)-1)],'cut'
    if kind==2: return json.dumps(rng.choice([o for o in _WRONG if not isinstance(o, dict)])),'no object'
    if kind==3:
        about['classes'] = rng.choice([about['classes']*2, about['classes'][:-1], [f'c{i}' for i in range(90_000)], [*about['classes'][:-1], None], [*about['classes'][:-1], '']])
        return json.dumps(about),'other classes'
    value = rng.choice([o for o in _WRONG if o!=about[key] and not (o is True and about[key]==1)])
    about[key] = value
    return json.dumps(about),f'{key} = {value!r}'[:60]

def _hostile_weights(rng, data):
    "The bytes of a safetensors file with one fault, and what it is"
    data,kind = bytearray(data),rng.choice(['flip','cut','tail','header','swap','zeros'])
    if kind=='flip': data[rng.randrange(len(data))] ^= 1<<rng.randrange(8)
    if kind=='cut': data = data[:rng.randrange(len(data))]
    if kind=='tail': data += rng.randbytes(rng.randrange(1, 1000))
    if kind=='header': data[:8] = struct.pack('<Q', rng.choice([0, 1, 2**40, 2**63, len(data)]))
    if kind=='swap': i,j = sorted(rng.sample(range(len(data)//2, len(data)), 2)); data[i:j] = data[i:j][::-1] if data[i:j]!=data[i:j][::-1] else b''
    if kind=='zeros': i = rng.randrange(len(data)//2, len(data)-64); data[i:i+64] = b'\x7f'*64
    return bytes(data),kind

def models(rng, n, work, model):
    about,weights = json.loads((Path(model)/'model.json').read_text()),(Path(model)/'model.safetensors').read_bytes()
    _photo(rng).save(work/'photo.jpg')
    tried = {str(model): 'as saved'}
    for i in range(n):
        folder = work/f'm{i}'
        folder.mkdir()
        text,data,what = json.dumps(about),weights,''
        if rng.random()<.5: text,what = _hostile_json(rng, about)
        else: data,what = _hostile_weights(rng, weights)
        (folder/'model.json').write_text(text); (folder/'model.safetensors').write_bytes(data)
        tried[str(folder)] = what
    status,out,err,seconds,_ = fresh(_MODELS, str(work/'photo.jpg'), stdin='\n'.join(tried).encode(), limit=600)
    rows = {o[0]: o[1:] for o in map(json.loads, out.decode().splitlines())}
    for name,what in tried.items():
        if name not in rows: yield Case('models', what, f'process ended: {status}', False, seconds, err.decode(errors='replace')[-300:]); continue
        why,same,each,mib = rows[name]
        right = same if what=='as saved' else bool(why) and not why.startswith('FAULT') and '\n' not in why and each<20 and mib<500
        yield Case('models', what, 'answers' if same else 'refused in one line', right, each, why)
    for o in work.glob('m*'): shutil.rmtree(o) if o.is_dir() else None

_PLANT = """
import os, pickle, sys, torch, warnings, zipfile
warnings.filterwarnings('ignore')
folder = sys.argv[1]
def save(name, o): torch.save(o, os.path.join(folder, name))
class Code:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return (os.system, (f'touch {self.mark}',))
mark = os.path.join(folder, 'started')
save('code.pth', {'a': Code(mark)})
open(os.path.join(folder, 'pickle.pth'), 'wb').write(pickle.dumps(Code(mark), protocol=2))
w = torch.randn(4, 4)
save('numbers.pth', {0: w, 1: w}); save('list.pth', [w]); save('tensor.pth', w); save('empty.pth', {}); save('text.pth', {'a': 'b'})
save('meta.pth', {'a': torch.empty(4, device='meta')}); save('sparse.pth', {'a': w.to_sparse()}); save('expanded.pth', {'a': torch.zeros(1).expand(10**9)})
save('quantised.pth', {'a': torch.quantize_per_tensor(w, .1, 0, torch.qint8)}); save('nan.pth', {'a': w*float('nan')}); save('int.pth', {'a': w.long().int()})
save('bool.pth', {'a': w>0}); save('complex.pth', {'a': w+0j}); save('model.pth', torch.nn.Linear(2, 2)); save('nested.pth', {'a': {'b': w}})
save('inf.pth', {'a': w/0})
z = zipfile.ZipFile(os.path.join(folder, 'bomb.pth'), 'w', zipfile.ZIP_DEFLATED)
z.writestr('archive/data.pkl', bytes(3*10**8)); z.writestr('archive/version', '3'); z.close()
for name,data in dict(html=b'<!DOCTYPE html>', none=b'', zip=b'PK\\x03\\x04', noise=os.urandom(1000)).items(): open(os.path.join(folder, name+'.pth'), 'wb').write(data)
"""
_WEIGHTS = _LOOP + """
from pets_nb.engine.networks import network, read_weights
for name in sys.stdin.read().splitlines():
    start,before,why = time.time(), peak(True), ''
    try: network('small_network', 3, weights=name)
    except (ValueError, OSError) as e: why = f'{type(e).__name__}: {e}'
    except Exception as e: why = f'FAULT {type(e).__name__}: {e}'
    print(json.dumps([name, why, time.time()-start, peak()-before]), flush=True)
"""

def weights(rng, n, work, model):
    folder = work/'weights'
    folder.mkdir()
    status,_,err,*_ = fresh(_PLANT, str(folder))
    assert status==0, err
    good = (Path(model)/'model.safetensors').read_bytes()
    for i in range(10*n):
        if len(list(folder.iterdir()))>=n: break
        data,what = _hostile_weights(rng, good)
        if what in ('cut', 'header', 'tail'): (folder/f'{i}-{what}.safetensors').write_bytes(data)
    files = sorted(folder.iterdir())
    status,out,err,seconds,_ = fresh(_WEIGHTS, stdin='\n'.join(map(str, files)).encode(), limit=300)
    rows = {o[0]: o[1:] for o in map(json.loads, out.decode().splitlines())}
    for o in files:
        why,each,mib = rows.get(str(o), ('', 0., 0.))
        right = bool(why) and not why.startswith('FAULT') and '\n' not in why and 'weights_only=False' not in why and mib<700
        yield Case('weights', o.name, 'refused in one line' if why else f'accepted, or ended ({status})', right, each, why)
    yield Case('weights', 'planted code', 'not run', not (folder/'started').exists(), seconds)

# Archives: extracted whole, or refused with nothing written anywhere

_ARCHIVES = _LOOP + """
from pets_nb.engine.download import _extract
for line in sys.stdin.read().splitlines():
    name,dest = json.loads(line)
    start,before,why = time.time(), peak(True), ''
    try: _extract(Path(name), Path(dest))
    except (ValueError, OSError) as e: why = f'{type(e).__name__}: {e}'
    except Exception as e: why = f'FAULT {type(e).__name__}: {e}'
    print(json.dumps([name, why, time.time()-start, peak()-before]), flush=True)
"""
_EVIL = ['../out', '/tmp/pets_nb_out', 'a/../../out', '..\\out', 'C:\\out', '\\out', 'link', 'hard', 'device', 'fifo', 'far']

def _archive(rng, path):
    "Write one; returns the fault that it has, '' for none"
    kind = 'bomb' if path.stem=='0' else rng.choice(['', 'evil', 'evil', 'cut', 'flip', 'noise', 'tar'])
    with tarfile.open(path, 'w') if kind=='tar' else tarfile.open(path, 'w:gz') as tar:
        def add(name, data=b'', **kwargs):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for k,v in kwargs.items(): setattr(info, k, v)
            tar.addfile(info, io.BytesIO(data))
        for i in range(rng.randrange(1, 6)): add(f'set/images/a_{i}.jpg', rng.randbytes(500))
        if kind=='evil':
            name = rng.choice(_EVIL)
            how = dict(link=dict(type=tarfile.SYMTYPE, linkname='/etc/passwd'), hard=dict(type=tarfile.LNKTYPE, linkname='../../x'), device=dict(type=tarfile.CHRTYPE),
                       fifo=dict(type=tarfile.FIFOTYPE), far=dict(type=tarfile.SYMTYPE, linkname='../'*9)).get(name, {})
            add(f'set/{name}' if how else name, b'' if how else b'x', **how)
        if kind=='bomb': add('set/zeros', bytes(16*10**8))
    data = bytearray(Path(path).read_bytes())
    if kind=='cut': data = data[:rng.randrange(1, len(data))]
    if kind=='flip': data[rng.randrange(10, len(data))] ^= 1<<rng.randrange(8)
    if kind=='noise': data = rng.randbytes(400)
    Path(path).write_bytes(data)
    return kind

def archives(rng, n, work):
    folder = work/'archives'
    folder.mkdir()
    kinds = {str(folder/f'{i}.tgz'): _archive(rng, folder/f'{i}.tgz') for i in range(n)}
    lines = [json.dumps([o, f'{work}/dest/{i}']) for i,o in enumerate(kinds)]
    (work/'dest').mkdir()
    status,out,err,seconds,_ = fresh(_ARCHIVES, stdin='\n'.join(lines).encode(), limit=600)
    rows = {o[0]: o[1:] for o in map(json.loads, out.decode().splitlines())}
    for i,(name,kind) in enumerate(kinds.items()):
        why,each,mib = rows.get(name, (f'FAULT {err[-200:]}', 0., 0.))
        there = (work/'dest'/str(i)).exists()
        right = there!=bool(why) and 'FAULT' not in why and '\n' not in why and mib<300 and (not why if kind=='' else bool(why) if kind!='flip' else True)
        yield Case('archives', kind or 'sound', 'extracted' if there else 'refused in one line', right, each, why)
    left = [o.name for o in [*(work/'dest').iterdir(), *work.iterdir()] if o.name.startswith('.') or o.name=='out']
    yield Case('archives', 'strays', 'nothing left behind', not left and not Path('/tmp/pets_nb_out').exists(), seconds, ' '.join(left))

# Caches of pixels: the right pixels, whatever happened to the files

_CACHES = _LOOP + """
import shutil, random
import numpy as np
from pets_nb.engine.loaders import PixelCache
from pets_nb.engine.files import list_images
folder,n,seed = Path(sys.argv[1]),int(sys.argv[2]),int(sys.argv[3])
rng,files,where = random.Random(seed),list_images(folder),folder.parent/'cache'
pixels = lambda c: [c.get(o) for o in files]
first = pixels(PixelCache(files, 64, where))
kept = folder.parent/'kept'
shutil.copytree(where, kept)
for i in range(n):
    shutil.rmtree(where); shutil.copytree(kept, where)
    file = rng.choice(sorted(o for o in where.iterdir() if o.suffix in ('.npy','.json')))
    data,kind = bytearray(file.read_bytes()),rng.choice(['flip','cut','zeros','gone','empty','part','tail'])
    if kind=='flip': data[rng.randrange(len(data))] ^= 1<<rng.randrange(8)
    if kind=='cut': data = data[:rng.randrange(len(data))]
    if kind=='zeros': j = rng.randrange(len(data)); data[j:j+99] = bytes(len(data[j:j+99]))
    if kind=='empty': data = b''
    if kind=='tail': data += b'x'*rng.randrange(1, 99)
    file.write_bytes(data)
    if kind=='gone': file.unlink()
    if kind=='part': Path(f"{file.with_suffix('.npy')}.part").write_bytes(b'x')
    start,why = time.time(),''
    try:
        now = pixels(PixelCache(files, 64, where))
        same = all(b is None or (np.array_equal(a[0], b[0]) and a[1]==b[1]) for a,b in zip(first, now))
    except Exception as e: same,why = False,f'{type(e).__name__}: {e}'
    strays = [o.name for o in where.iterdir() if o.name.endswith('.part')]
    print('CASE', json.dumps([f'{kind} {file.suffix[1:]}', same and not strays, why or ' '.join(strays), time.time()-start]), flush=True)
"""

def caches(rng, n, work):
    folder = work/'pixels'
    folder.mkdir()
    for i in range(5): _photo(rng).save(folder/f'a_{i}.jpg')
    status,out,err,seconds,_ = fresh(_CACHES, str(folder), str(n), str(rng.getrandbits(30)), limit=600)
    rows = [json.loads(o[5:]) for o in out.decode().splitlines() if o.startswith('CASE')]
    for name,same,why,each in rows: yield Case('caches', name, 'the same pixels', same, each, why)
    if len(rows)<n: yield Case('caches', 'process', f'ended: {status}', False, seconds, err.decode(errors='replace')[-300:])

# Kills: at any moment; afterwards nothing half looks whole, and the same command ends well

_DRAW = "from pets_nb.engine.drawn import draw_pets; import sys; draw_pets(sys.argv[1], n_per_breed=int(sys.argv[2]), breeds=['Abyssinian', 'Persian', 'pug', 'samoyed'], seed=1)"
_WRITE = """
from pets_nb.engine.files import write_json
import sys, time
for i in range(10**6): write_json(sys.argv[1], dict(i=i, numbers=list(range(20000))))
"""

def _children(pid):
    found = []
    for o in Path('/proc').glob('[0-9]*/stat'):
        try: fields = o.read_text().rpartition(')')[2].split()
        except OSError: continue
        if int(fields[1])==pid: found.append(int(o.parent.name))
    return found

def _lives(pid):
    "Is this process there, and not just waiting for its parent to collect it?"
    try: return ') Z' not in Path(f'/proc/{pid}/stat').read_text()
    except OSError: return False

def _kill(rng, args, cwd, number, longest):
    "Start a command, kill it after a while; the seconds it ran, and its children that still live"
    p = subprocess.Popen([sys.executable, *args], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a background shell hands down an ignored SIGINT
    wait = rng.uniform(0.2, longest)
    try: p.wait(wait)
    except subprocess.TimeoutExpired: pass
    children = _children(p.pid)
    p.send_signal(number)
    p.wait(60)
    deadline = time.time()+10
    while time.time()<deadline and any(map(_lives, children)): time.sleep(.1)
    return wait,[*filter(_lives, children)]

def _strays(folder): return [str(o.relative_to(folder)) for o in folder.rglob('*') if o.name.endswith(('.part', '.tmp')) or 'unfinished' in o.name]

def kills(rng, n, work):
    pets = work/'pets'
    status,_,err,seconds,_ = fresh(_DRAW, str(pets), '6', limit=300)
    assert status==0, err
    drawing = max(1., seconds)
    train = ['-m', 'pets_nb', 'train', '--data', str(pets), '--size', '32', '--epochs', '2', '--workers', '0', '--out']
    longest = 1.
    for i in range(n):
        kind = 'train' if i%9==0 else 'draw' if i%3==1 else 'write'
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        here = work/f'kill{i}'
        here.mkdir()
        if kind=='write':
            wait,orphans = _kill(rng, ['-c', _WRITE, 'x.json'], here, number, 2)
            right = not (here/'x.json').exists() or bool(json.loads((here/'x.json').read_text())['numbers'])
            status,_,err,*_ = fresh("from pets_nb.engine.files import write_json; write_json('x.json', 1)", cwd=here)
        elif kind=='draw':
            wait,orphans = _kill(rng, ['-c', _DRAW, 'pets', '3'], here, number, drawing*1.5)
            right = True
            status,_,err,*_ = fresh(_DRAW, 'pets', '3', cwd=here, limit=300)
            right = status!=0 or len(list((here/'pets'/'images').glob('*.*')))>=12
        else:
            wait,orphans = _kill(rng, [*train, 'run'], here, number, longest)
            right = not (here/'run/report.txt').exists() or (here/'run/model/model.json').exists()
            again = ['train', '--resume', 'run'] if (here/'run').exists() else [*train[2:], 'run']
            status,_,err,seconds,_ = fresh(MAIN, *again, cwd=here, limit=300)
            longest = max(longest, seconds)
            right = right and (here/'run/report.txt').exists() and not (here/'run/checkpoints').exists()
        left = _strays(here)
        right = right and status==0 and not orphans and not left
        yield Case(f'kills: {kind}', f'{kind}, {signal.Signals(number).name} after {wait:.1f} s', 'ends well the next time', right, wait,
                   f'{left} {orphans} {status} {err.decode(errors="replace")[-200:]}' if not right else '')
        shutil.rmtree(here)

# Disks: a limit on the size of files stands in for a full disk; /dev/full is one

_LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[1])
sys.argv[1:] = sys.argv[2:]
def full(): resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
"""
_DISKS = dict(
    json="from pets_nb.engine.files import write_json\nfull()\nwrite_json('x.json', list(range(10**5)))",
    draw="from pets_nb.engine.drawn import draw_pets\nfull()\ndraw_pets('pets', n_per_breed=2, breeds=['pug', 'Persian'])",
    cache="from pets_nb.engine.loaders import PixelCache\nfrom pets_nb.engine.files import list_images\nfull()\nPixelCache(list_images(sys.argv[1]), 64, 'cache')",
    csv="from pets_nb.tools.cli import main\nimport pandas\nfull()\nsys.exit(main(['audit', '--data', sys.argv[1], '--csv', 'x.csv']))",
    train="from pets_nb.tools.cli import main\nimport fastai.vision.all\nfull()\nsys.exit(main(['train', '--data', sys.argv[1], '--size', '32', '--epochs', '0', '--out', 'run']))")

def disks(rng, n, work):
    pets = work/'pets'
    status,_,err,*_ = fresh(_DRAW, str(pets), '6', limit=300)
    assert status==0, err
    for i in range(n):
        kind = list(_DISKS)[i%len(_DISKS)]
        limit = rng.choice([0, 100, 300] if kind=='csv' else [0, 100, 1000, 2000]) # the table has some 1,500 bytes
        here = work/f'disk{i}'
        here.mkdir()
        env = dict(PETS_NB_CACHE=str(here/'memory'), MPLCONFIGDIR=str(here/'mpl'), TMPDIR=str(here), FASTAI_HOME=str(here/'fastai'))
        status,out,err,seconds,_ = fresh(_LIMITED+_DISKS[kind], str(limit), str(pets), cwd=here, env=env, limit=120)
        half = [o for o in (here/'x.json', here/'run/model/model.json', here/'run/report.txt', here/'pets') if o.exists()]
        half += [o for o in here.glob('cache/*.json')]
        last = err.decode(errors='replace').strip().splitlines()[-1:] or ['']
        said = 'Traceback' not in err.decode(errors='replace') if kind in ('csv','train') else 'OSError' in last[0]
        right = status!=0 and said and not half and not _strays(here)
        yield Case('disks', f'{kind}, files of at most {limit} bytes', 'an error, nothing half', right, seconds, f'{last[0][:200]} {half} {_strays(here)}' if not right else '')
        shutil.rmtree(here)

# The table

KINDS = dict(commands=commands, names=names, images=images, models=models, weights=weights, archives=archives, caches=caches, kills=kills, disks=disks)

def make_model(folder):
    "A small trained model, by the command"
    status,_,err,*_ = fresh(_DRAW, str(folder/'pets'), '6', limit=300)
    assert status==0, err
    status,_,err,*_ = fresh(MAIN, 'train', '--data', str(folder/'pets'), '--size', '32', '--epochs', '0', '--out', str(folder/'run'), limit=300)
    assert status==0, err
    return folder/'run'/'model'

def cases(kind, n, seed, model):
    "The cases of one kind"
    with tempfile.TemporaryDirectory() as work:
        own = dict(model=model) if kind in ('names', 'images', 'models', 'weights') else {}
        return list(KINDS[kind](random.Random(f'{kind} {seed}'), n, Path(work), **own))

def table(found):
    "What was tried, how often, and what happened: rows of kind, outcome, cases, wrong"
    rows = {}
    for o in found:
        outcome = 'within the limit' if 'MiB' in o.outcome else o.outcome
        row = rows.setdefault((o.kind, outcome), dict(kind=o.kind, outcome=outcome, cases=0, wrong=0))
        row['cases'] += 1
        row['wrong'] += not o.right
    return list(rows.values())

def record(file, kinds, how_many, seed=0):
    "Run these kinds, and replace their rows in a JSON file"
    file = Path(file)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        for kind in kinds:
            found = cases(kind, how_many[kind], seed, model)
            old = json.loads(file.read_text()) if file.exists() else dict(rows=[], wrong=[])
            for k,new in dict(rows=table(found), wrong=[asdict(o) for o in found if not o.right]).items():
                old[k] = [o for o in old[k] if o['kind'].partition(':')[0]!=kind] + new
            print(kind, len(found), 'cases,', sum(not o.right for o in found), 'wrong', flush=True)
            file.write_text(json.dumps(old, indent=1)+'\n')

@pytest.fixture(scope='module')
def model(tmp_path_factory): return str(make_model(tmp_path_factory.mktemp('faults')))

@pytest.mark.parametrize('kind', KINDS)
def test_faults(kind, model, request):
    how_many = LARGE if request.config.getoption('--runslow', default=False) else SMALL
    found = cases(kind, how_many[kind], 0, model)
    wrong = [o for o in found if not o.right]
    assert len(found)>=how_many[kind] and not wrong, '\n'.join(map(str, wrong[:20]))

@pytest.mark.parametrize('module', ['pets_nb', 'pets_nb.tools.cli'])
def test_a_module_that_holds_the_command_runs_it(module):
    res = subprocess.run([sys.executable, '-m', module, 'train', '--lr', '0'], capture_output=True, env=ENV, timeout=60)
    assert res.returncode==2 and one_line(res.stderr) and b'--lr' in res.stderr and not res.stdout

def test_the_audit_of_a_phones_folder_names_pillow_heif(tmp_path):
    for name in ('IMG_1.HEIC', 'IMG_2.jpg'): (tmp_path/name).write_bytes(b'\0\0\0\x18ftypheic'+bytes(50))
    status,out,err,*_ = fresh(MAIN, 'audit', '--data', str(tmp_path), env=dict(PETS_NB_CACHE=str(tmp_path/'memory')))
    assert status==1 and b'pillow-heif' in out and b'IMG_1.HEIC' in out and b'nor its content' not in out, err

if __name__=='__main__':
    chosen = [o for o in sys.argv[1:] if o in KINDS] or list(KINDS)
    file = next((o for o in sys.argv[1:] if o.endswith('.json')), 'faults.json')
    record(file, chosen, LARGE if '--large' in sys.argv else SMALL)
