"Names, images and files: what is opened, what is refused, and what a killed writer leaves behind."
import io, json, os, signal, socket, stat, struct, subprocess, sys, threading, time, warnings, zlib
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from pets_nb.engine import files
from pets_nb.engine.files import (IMAGE_SUFFIXES, ImageError, atomic_path, config_folder, list_images, open_image, shown, write_json)

posix = pytest.mark.skipif(os.name != 'posix', reason='FIFOs, devices and permissions are tried on POSIX')
not_root = pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid()==0, reason='root may read everything')

def image(seed=0, size=(64,48), mode='RGB'):
    "A smooth image that compresses well and differs with the seed"
    im = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4,4,3), dtype=np.uint8))
    return im.resize(size, Image.Resampling.BICUBIC).convert(mode)

def image_bytes(seed=0, format='JPEG', mode='RGB', size=(64,48), **kwargs):
    f = io.BytesIO()
    image(seed, size, mode).save(f, format=format, **kwargs)
    return f.getvalue()

def fresh(code, timeout=60, **env):
    "Run `code` in a fresh interpreter; returns what it printed and its peak memory in MB"
    code += "\nimport re; print('\\npeak', re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=timeout, env=os.environ | env)
    assert not p.returncode, p.stderr
    out,peak = p.stdout.rsplit('peak', 1)
    return out.strip(), int(peak)//1024

def png_of(w, h, depth=8, colour=2):
    "A PNG whose header says `w` x `h`, and whose pixels are all zero"
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
    line = bytes(1 + (w*depth*{0:1, 2:3, 6:4}[colour] + 7)//8)
    pack,body = zlib.compressobj(6), b''
    for _ in range(h): body += pack.compress(line)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0)) + chunk(b'IDAT', body+pack.flush()) + chunk(b'IEND', b'')

# -- names

def test_list_images(tmp_path):
    for o in ('b/2.JPG','b/10.tif','b/.hidden/1.jpg','b/._1.jpg','a b/é.avif','1.jfif','notes.txt','b/x.mat'):
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).write_bytes(b'x')
    rel = lambda **kw: [o.relative_to(tmp_path).as_posix() for o in list_images(tmp_path, **kw)]
    assert rel() == ['1.jfif','a b/é.avif','b/10.tif','b/2.JPG'] and rel(recurse=False) == ['1.jfif']
    assert list_images(tmp_path) == sorted(list_images(tmp_path))

def test_list_images_refuses(tmp_path):
    (tmp_path/'a.jpg').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match='no folder'): list_images(tmp_path/'none')
    with pytest.raises(FileNotFoundError): list_images('~no_such_user_of_pets_nb/x')
    with pytest.raises(NotADirectoryError, match='is a file'): list_images(tmp_path/'a.jpg')

@posix
def test_only_regular_files_are_listed(tmp_path):
    (tmp_path/'a.jpg').write_bytes(image_bytes())
    (tmp_path/'folder.jpg').mkdir()
    os.mkfifo(tmp_path/'fifo.jpg')
    (tmp_path/'gone.jpg').symlink_to('nowhere')
    (tmp_path/'loop.jpg').symlink_to('loop.jpg')
    (tmp_path/'zero.jpg').symlink_to('/dev/zero')
    (tmp_path/'link.jpg').symlink_to('a.jpg')
    assert [o.name for o in list_images(tmp_path)] == ['a.jpg','link.jpg']

@posix
def test_links_to_folders_are_followed_and_loops_are_not(tmp_path):
    (tmp_path/'real/pug').mkdir(parents=True)
    (tmp_path/'real/pug/1.jpg').write_bytes(b'x')
    (tmp_path/'real/pug/up').symlink_to(tmp_path/'real')
    (tmp_path/'data').mkdir()
    (tmp_path/'data/pug').symlink_to(tmp_path/'real/pug')
    assert [o.relative_to(tmp_path/'data').as_posix() for o in list_images(tmp_path/'data')] == ['pug/1.jpg']
    assert [o.relative_to(tmp_path/'real').as_posix() for o in list_images(tmp_path/'real')] == ['pug/1.jpg']

@posix
def test_unreadable_folder_does_not_cost_the_others(tmp_path, monkeypatch):
    for o in 'ab': (tmp_path/o).mkdir(); (tmp_path/o/'1.jpg').write_bytes(b'x')
    plain = os.scandir
    def scandir(path):
        if str(path).endswith('/a'): raise PermissionError(13, 'Permission denied')
        return plain(path)
    monkeypatch.setattr(files.os, 'scandir', scandir)
    with pytest.warns(UserWarning, match='a: Permission denied'): assert [o.parent.name for o in list_images(tmp_path)] == ['b']

@pytest.mark.skipif(sys.platform == 'darwin' or os.name != 'posix', reason='names that are not UTF-8')
def test_names_that_are_not_utf8(tmp_path):
    name = os.fsencode(tmp_path) + b'/beagle_\xff_1.jpg'
    open(name, 'wb').write(image_bytes())
    file, = list_images(tmp_path)
    assert open_image(file).size == (64,48)
    assert shown(file).endswith('/beagle_\\xff_1.jpg') and shown(file).encode()

def test_shown():
    assert shown('a\x1b[31m\r\nb') == r'a\x1b[31m\x0d\x0ab'
    assert shown('pug\u202egpj.exe') == r'pug\u202egpj.exe'
    assert shown('한국어 é 👩‍🚀.jpg') == '한국어 é 👩‍🚀.jpg'
    assert shown(b'\xff') == r'\xff' and shown(Path('a/b')) == os.path.join('a','b')

@settings(max_examples=50, deadline=None)
@given(st.text())
def test_shown_can_always_be_printed(text):
    shown(text).encode('utf-8')
    assert not set(shown(text)) & set('\n\r\x1b\x00')

# -- images: what is refused

def refused(source, **kw):
    with pytest.raises(ImageError) as e: open_image(source, **kw)
    assert '\n' not in str(e.value) and str(e.value)
    return str(e.value), e.value.kind

def test_unreadable_names(tmp_path):
    assert refused(tmp_path/'none.jpg') == ('No such file or directory', 'unreadable')
    assert refused(tmp_path/('x'*300)) [1] == 'unreadable'
    assert refused('a\0b.jpg')[1] == 'unreadable'
    assert refused(tmp_path) == ('a folder', 'unreadable')

@posix
def test_nothing_hangs_and_no_device_is_opened(tmp_path):
    os.mkfifo(tmp_path/'f.jpg')
    (tmp_path/'zero.jpg').symlink_to('/dev/zero')
    (tmp_path/'tty.jpg').symlink_to('/dev/tty')
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path/'s.jpg'))
    code = f'''
from pets_nb.engine.files import *
for o in ('f','zero','tty','s'):
    try: open_image({str(tmp_path)!r} + f'/{{o}}.jpg')
    except ImageError as e: print(o, e)
'''
    out,_ = fresh(code, timeout=30)
    sock.close()
    assert out.count('not a regular file') == 4

eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n'

@posix
def test_no_program_is_started(tmp_path):
    "An EPS named like a JPEG would make Pillow call `gs` from PATH"
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin/gs').write_text(f'#!/bin/sh\ntouch {tmp_path}/started\n')
    (tmp_path/'bin/gs').chmod(0o755)
    for o in ('pug_1.jpg','pug_2.eps'): (tmp_path/o).write_bytes(eps)
    code = f'''
from pets_nb.engine.files import *
for o in ('pug_1.jpg','pug_2.eps'):
    try: open_image({str(tmp_path)!r} + '/' + o)
    except ImageError as e: print(e)
'''
    out,_ = fresh(code, PATH=f'{tmp_path}/bin:{os.environ["PATH"]}')
    assert out.count('not an image') == 2 and not (tmp_path/'started').exists()

@pytest.mark.parametrize('fmt', ['PPM','TGA','PCX','ICO','SGI','DDS','JPEG2000'])
def test_formats_that_are_not_named_are_refused(fmt):
    try: body = image_bytes(format=fmt)
    except Exception: pytest.skip(f'Pillow has no {fmt} here')
    assert refused(body)[1] == 'undecodable'

def test_what_it_is_instead():
    assert refused(b'') == ('the file is empty', 'undecodable')
    assert 'web page' in refused(b'\n<!DOCTYPE html><html>Log in</html>')[0]
    assert 'pillow-heif' in refused(b'\0\0\0\x18ftypheic' + bytes(50))[0]
    assert 'not an image' in refused(b'plain text')[0]

@pytest.mark.parametrize('format', ['JPEG','PNG','GIF','WEBP','BMP','TIFF'])
@pytest.mark.parametrize('share', [.02,.3,.6,.9])
def test_truncated_files(format, share):
    body = image_bytes(1, format, size=(300,200))
    if format == 'TIFF' and share > .8: return # its directory may lie at the end, and is then missing
    assert refused(body[:int(len(body)*share)])[1] in ('truncated','undecodable')

@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_never_crash(body, jpeg):
    try: assert open_image((b'\xff\xd8\xff\xe0' if jpeg else b'') + body).mode == 'RGB'
    except ImageError as e: assert '\n' not in str(e)

@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_images_never_crash(data):
    body = bytearray(image_bytes(1, data.draw(st.sampled_from(['JPEG','PNG','GIF','WEBP','TIFF','BMP'])), size=(60,40)))
    for _ in range(data.draw(st.integers(1,8))): body[data.draw(st.integers(0, len(body)-1))] = data.draw(st.integers(0,255))
    try: assert open_image(bytes(body), short=data.draw(st.sampled_from([0,10]))).mode == 'RGB'
    except ImageError as e: assert '\n' not in str(e)

# -- images: memory

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='peak memory is read from /proc')

@linux
def test_memory_has_a_bound(tmp_path):
    "What took 8.3 GB: large PNGs, a line of 178,956,970 pixels, a sparse file of 6 GB; four threads at once"
    large = png_of(10_000, 10_000)
    for o in 'abc': (tmp_path/f'large_{o}.png').write_bytes(large)
    (tmp_path/'too_large.png').write_bytes(png_of(13_300, 13_300, colour=0))
    (tmp_path/'line.png').write_bytes(b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + (ihdr := b'IHDR' + struct.pack('>IIBBBBB', 1, 178_956_970, 8, 2, 0, 0, 0))
        + struct.pack('>I', zlib.crc32(ihdr)) + struct.pack('>I', 0) + b'IDAT' + struct.pack('>I', zlib.crc32(b'IDAT')))
    for name,head in dict(sparse=image_bytes(1), webp=image_bytes(1, 'WEBP'), zeros=b'').items():
        with open(tmp_path/f'{name}.jpg', 'wb') as f: f.write(head); f.truncate(6*10**9)
    code = f'''
from concurrent.futures import ThreadPoolExecutor
from pets_nb.engine.files import *
def size(o):
    try: return f'{{open_image(o, 224).size}}'
    except ImageError as e: return str(e)
files = list_images({str(tmp_path)!r})
with ThreadPoolExecutor(4) as pool:
    for f,o in zip(files, pool.map(size, files)): print(f.name, o)
'''
    out,peak = fresh(code, timeout=100)
    assert peak < 1000, f'{peak} MB'
    assert out.count('(') == 3 and 'too_large.png 13,300 x 13,300 pixels; the limit is 108,000,000' in out
    assert 'line.png a strip of 1 x 178,956,970 pixels' in out and out.count('a file of 6.0 GB') == 3

@linux
def test_large_jpeg_is_decoded_reduced(tmp_path):
    Image.new('L', (12_000,10_000), 99).save(tmp_path/'a.jpg')
    Image.new('L', (12_000,10_000), 99).save(tmp_path/'b.jpg', progressive=True)
    code = f'''
from pets_nb.engine.files import *
print(open_image({str(tmp_path/'a.jpg')!r}, 224).size)
try: open_image({str(tmp_path/'b.jpg')!r}, 224)
except ImageError as e: print(e)
try: open_image({str(tmp_path/'a.jpg')!r})
except ImageError as e: print(e)
'''
    out,peak = fresh(code)
    assert out.startswith('(1500, 1250)') and out.count('the limit is') == 2 # a progressive JPEG is held whole
    assert peak < 300

def test_large_images_pass():
    f = io.BytesIO()
    Image.new('1', (12_000,9_000)).save(f, 'PNG')
    assert open_image(f.getvalue()).size == (12_000,9_000)
    assert open_image(f.getvalue(), 100).size == (12_000,9_000) # no reduction of bits

@pytest.mark.parametrize('size,short,expected', [((800,600),0,(800,600)), ((800,600),300,(400,300)), ((800,600),301,(800,600)),
    ((800,600),150,(200,150)), ((800,600),75,(100,75)), ((800,600),10,(100,75)), ((60,80),100,(60,80))])
def test_reduced_jpeg_keeps_the_shorter_side(size, short, expected):
    assert open_image(image_bytes(1, size=size), short).size == expected
    assert open_image(image_bytes(1, 'PNG', size=size), short).size == size

# -- images: what comes out

@pytest.mark.parametrize('mode', ['1','L','LA','P','PA','RGB','RGBA','CMYK','YCbCr','HSV','I;16','I','F'])
def test_every_mode_becomes_rgb(mode):
    im = Image.fromarray(np.full((3,5), 32768, np.uint16)) if mode=='I;16' else image(1, (5,3)).convert(mode)
    assert (out := open_image(im)).mode == 'RGB' and out.size == (5,3)

@pytest.mark.parametrize('dtype,values,expected', [(np.uint16, [0,65535,32768], [0,255,128]), (np.uint16, [0,4095,2048], [0,255,128]),
    (np.uint16, [0,200,100], [0,200,100]), (np.int32, [0,70_000,35_000], [0,255,128]), (np.int32, [-100,100,0], [0,255,128]),
    (np.float32, [0,1,.5], [0,255,128]), (np.float32, [0,255,100], [0,255,100]), (np.float32, [-2,2,0], [0,255,128]),
    (np.float32, [np.nan,1000,0], [0,65,0]), (np.float32, [np.inf,1e6,0], [255,255,0])])
def test_more_than_eight_bits_are_scaled_by_the_range(dtype, values, expected, tmp_path):
    a = np.array([values], dtype)
    if dtype == np.float32 and values[1] == 1000: expected = [0, round(1000/1023*255), 0]
    assert np.allclose(np.asarray(open_image(a))[0,:,0], expected, atol=1)
    if np.isfinite(a).all():
        Image.fromarray(a).save(tmp_path/'a.tif')
        assert np.array_equal(open_image(tmp_path/'a.tif'), open_image(a))

def test_nothing_finite():
    assert 'finite' in refused(np.full((2,2), np.nan, np.float32))[0]

@settings(max_examples=50, deadline=None)
@given(st.integers(0,255), st.integers(0,255))
def test_alpha_is_laid_on_white(v, alpha):
    for im in (Image.new('LA', (1,1), (v,alpha)), Image.new('RGBA', (1,1), (v,v,v,alpha))):
        assert all(abs(o - (v*alpha + 255*(255-alpha))/255) <= 1.01 for o in open_image(im).getpixel((0,0)))

@pytest.mark.parametrize('orientation', range(1,9))
@pytest.mark.parametrize('name', ['a.png','a.webp'])
def test_exif_is_applied_once(tmp_path, orientation, name):
    im,exif = image(3),Image.Exif()
    exif[0x0112] = orientation
    im.save(tmp_path/name, exif=exif, **({'lossless':True} if name=='a.webp' else {}))
    got,plain = open_image(tmp_path/name),np.asarray(im)
    expected = {1:plain, 2:plain[:,::-1], 3:plain[::-1,::-1], 4:plain[::-1], 5:plain.swapaxes(0,1), 6:np.rot90(plain,-1),
        7:plain[::-1,::-1].swapaxes(0,1), 8:np.rot90(plain)}[orientation]
    assert np.array_equal(got, expected) and np.array_equal(open_image(got), expected)

def test_broken_exif_does_not_cost_the_image():
    assert open_image(image_bytes(1, exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x05garbage')).mode == 'RGB'

def test_sources_give_the_same(tmp_path):
    (tmp_path/'a.jpg').write_bytes(body := image_bytes(1))
    ims = [open_image(o) for o in (tmp_path/'a.jpg', str(tmp_path/'a.jpg'), os.fsencode(tmp_path/'a.jpg').decode(), body, bytearray(body), Image.open(io.BytesIO(body)))]
    ims.append(open_image(np.asarray(ims[0])))
    assert all(np.array_equal(o, ims[0]) for o in ims)
    assert open_image(np.zeros((4,5,1), np.uint8)).size == (5,4) and open_image(np.zeros((4,5,4), np.uint8)).size == (5,4)
    assert refused(np.zeros((0,5), np.uint8)) and refused(np.zeros(5, np.uint8)) and refused(object()) and refused(None)

def test_every_suffix_loads(tmp_path):
    for o in IMAGE_SUFFIXES:
        try: image(1).save(tmp_path/f'a{o}')
        except (KeyError, OSError): continue # a Pillow without AVIF
        assert open_image(tmp_path/f'a{o}').size == (64,48)

# -- writing

def test_atomic_path_leaves_the_old_one(tmp_path, monkeypatch):
    file = write_json(tmp_path/'a.json', dict(a=1))
    def fail(*_): raise OSError('disk full')
    monkeypatch.setattr(files.os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'): write_json(file, dict(a=2))
    assert json.loads(file.read_text()) == dict(a=1) and os.listdir(tmp_path) == ['a.json']

@posix
@pytest.mark.parametrize('mask,file_mode,folder_mode', [(0o022,0o644,0o755), (0o077,0o600,0o700), (0o002,0o664,0o775)])
def test_permissions_are_those_of_any_new_file(tmp_path, mask, file_mode, folder_mode):
    old = os.umask(mask)
    try:
        with atomic_path(tmp_path/'a') as part: part.write_text('x'); part.chmod(0o600) # as libraries that make private files do
        with atomic_path(tmp_path/'b') as part: part.mkdir(mode=0o700); (part/'x').write_text('x')
    finally: os.umask(old)
    assert [stat.S_IMODE((tmp_path/o).stat().st_mode) for o in 'ab'] == [file_mode,folder_mode]

def test_long_and_odd_names(tmp_path):
    for name in ('x'*255, 'a[1]*?.json', '.hidden', 'é'*100):
        with atomic_path(tmp_path/name) as part: part.write_text('x')
        assert (tmp_path/name).read_text() == 'x'
    assert len(os.listdir(tmp_path)) == 4

@posix
def test_link_stays_a_link(tmp_path):
    (tmp_path/'real.json').write_text('{}')
    (tmp_path/'a.json').symlink_to('real.json')
    write_json(tmp_path/'a.json', [1])
    assert (tmp_path/'a.json').is_symlink() and json.loads((tmp_path/'real.json').read_text()) == [1]

@posix
def test_strays_of_killed_writers_are_removed(tmp_path):
    "A file and a folder, each killed while it was written; another writer that still runs keeps its part"
    code = f'''
import os, signal, sys
from pets_nb.engine.files import atomic_path
with atomic_path({str(tmp_path)!r} + '/' + sys.argv[1]) as part:
    if sys.argv[1] == 'folder': part.mkdir(); part = part/'x'
    part.write_text('half')
    print('here', flush=True)
    if sys.argv[2] == 'kill': os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
'''
    for name in ('file','folder'): assert subprocess.run([sys.executable, '-c', code, name, 'kill'], capture_output=True).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    alive = subprocess.Popen([sys.executable, '-c', code, 'file', 'wait'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    alive.stdout.readline()
    with atomic_path(tmp_path/'file') as part: part.write_text('mine')
    with atomic_path(tmp_path/'folder') as part: part.mkdir()
    assert len(os.listdir(tmp_path)) == 3
    alive.communicate()
    assert sorted(os.listdir(tmp_path)) == ['file','folder'] and (tmp_path/'file').read_text() == 'half'

def test_old_strays_of_other_machines_are_removed(tmp_path):
    with atomic_path(tmp_path/'a') as part: part.write_text('x')
    stray = tmp_path/f"{part.name.rsplit('.', 4)[0]}.0123abcd.1.00000000.part"
    stray.write_text('x')
    with atomic_path(tmp_path/'a') as part: part.write_text('y')
    assert stray.exists() # it may still be written
    os.utime(stray, (time.time()-100_000,)*2)
    with atomic_path(tmp_path/'a') as part: part.write_text('y')
    assert os.listdir(tmp_path) == ['a']

@given(st.recursive(st.one_of(st.none(), st.floats(), st.integers(), st.text()), lambda o: st.lists(o) | st.dictionaries(st.text(), o), max_leaves=8))
@settings(max_examples=30, deadline=None)
def test_write_json_makes_valid_json(tmp_path_factory, value):
    file = write_json(tmp_path_factory.mktemp('j')/'a.json', dict(data=value))
    json.loads(file.read_text(), parse_constant=lambda o: pytest.fail(f'{o} is no JSON'))

def test_write_json_takes_numbers_of_numpy_and_paths(tmp_path):
    file = write_json(tmp_path/'a.json', {1:np.float32(.5), 'b':np.array([[1,2]]), 'c':(Path('x'),np.nan), 'd':np.bool_(True)})
    assert json.loads(file.read_text()) == {'1':.5, 'b':[[1,2]], 'c':['x',None], 'd':True}
    with pytest.raises(TypeError): write_json(file, dict(a=object()))
    with pytest.raises(FileNotFoundError): write_json(tmp_path/'none'/'a.json', 1)

def test_space_and_locks(tmp_path, capsys):
    files._need_space(tmp_path, 1, 'A byte')
    with pytest.raises(OSError, match='The archive needs 1000000.0 GB, and .* GB are free'): files._need_space(tmp_path, 10**15, 'The archive')
    with files._locked(tmp_path/'l', 'a'):
        t = threading.Thread(target=lambda: files._locked(tmp_path/'l', 'drawing pets').__enter__())
        t.start()
        time.sleep(2.6)
    t.join(10)
    assert not t.is_alive() and 'Waiting for another process: drawing pets' in capsys.readouterr().err

# -- places

def test_config_folder_is_fastais(tmp_path, monkeypatch):
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    assert config_folder() == tmp_path/'data' and config_folder('model') == tmp_path/'models' and config_folder('archive') == tmp_path/'archive'
    assert not os.listdir(tmp_path) # nothing is written
    (tmp_path/'config.ini').write_text('[DEFAULT]\ndata = /elsewhere\narchive = a%b\n')
    assert config_folder() == Path('/elsewhere') and config_folder('archive') == tmp_path/'a%b' and config_folder('model') == tmp_path/'models'

@pytest.mark.parametrize('body', [b'', b'data = data', b'\xff\xfe', b'[DEFAULT\n', b'[other]\na = 1\n'])
def test_damaged_config_is_said_and_done_without(tmp_path, monkeypatch, capsys, body):
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    (tmp_path/'config.ini').write_bytes(body)
    assert config_folder() == tmp_path/'data'
    err = capsys.readouterr().err
    assert 'config.ini is not used' in err and err.count('\n') == 1

@posix
def test_no_home(tmp_path):
    "Neither HOME nor an entry in passwd"
    code = '''
import os, pwd
os.environ.pop('HOME', None); os.environ.pop('FASTAI_HOME', None); os.environ['TMPDIR'] = %r
def none(*_): raise KeyError
pwd.getpwuid = none
from pets_nb.engine.files import config_folder
print(config_folder())''' % str(tmp_path)
    assert Path(fresh(code)[0]).parent.parent == tmp_path

def test_import_is_light():
    code = "import sys, pets_nb.engine.files; print([o for o in ('torch','fastai','pandas','matplotlib','requests') if o in sys.modules])"
    assert fresh(code)[0] == '[]'

@posix
def test_a_fork_while_a_big_image_is_decoded():
    "The child must not wait for a thread that it doesn't have"
    code = '''
import io, os
from PIL import Image
from pets_nb.engine import files
f = io.BytesIO()
Image.new('1', (4000,3000)).save(f, 'PNG')
with files._big_lock:
    if not (pid := os.fork()):
        files.open_image(f.getvalue())
        os._exit(0)
    print(os.waitpid(pid, 0)[1])'''
    assert fresh(code, timeout=30)[0] == '0'
