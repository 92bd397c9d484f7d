"""A seeded generator of faults: odd commands, names, files, models, weights, archives, caches, kills and full disks.

Each case runs in a fresh interpreter, with limits on its time and memory, and has one right outcome. Small in CI; `--runslow` makes it large.
`python tests/test_faults.py [--large]` prints the table of nbs/explanations/faults.ipynb."""
import io, json, os, pickle, random, resource, shutil, signal, stat, struct, subprocess, sys, tarfile, tempfile, time, zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
import numpy as np
import pytest
from PIL import Image

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
SMALL = dict(commands=24, names=12, images=40, models=30, weights=12, archives=40, caches=12, kills=2, disks=6)
LARGE = dict(commands=200, names=120, images=330, models=200, weights=60, archives=300, caches=360, kills=90, disks=60)

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

# Images: read by `predict`, `audit` and load_image; answered or refused, within a time and 1 GB above the network

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
from pets_nb.engine.files import ImageError, load_image
for name in sys.stdin.read().splitlines():
    start = time.time()
    try: size,why = load_image(name, short=64).size, ''
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
    for kind,code in (('images: load_image', _LOAD), ('images: audit', _AUDIT)):
        base = fresh(code, stdin=str(folder/'good.jpg').encode(), env=env)[4]
        status,out,err,seconds,mib = fresh(code, stdin=stdin, env=env, limit=300)
        rows = [json.loads(o) for o in out.decode().splitlines() if o.startswith('[')]
        found = {Path(name).name: (why,s) for name,why,s in rows}
        if status!=0: yield Case(kind, 'process', f'status {status}', False, seconds, err.decode(errors='replace')[-500:])
        yield from _check_images(kind, found, names, bad, seconds, mib, mib-base, (tools/'started').exists())
    if model is None: return
    base = fresh(_PREDICT, model, stdin=str(folder/'good.jpg').encode(), env=env)[4]
    status,out,err,seconds,mib = fresh(_PREDICT, model, stdin=stdin, env=env, limit=300)
    found = {} if status is None else json.loads(out)
    found = {Path(k).name: ('' if k in found['predictions'] else found['errors'][k], 0.) for k in [*found['predictions'], *found['errors']]}
    yield from _check_images('images: predict', found, names, bad, seconds, mib, mib-base, (tools/'started').exists())
