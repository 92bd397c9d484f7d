"Faults that a download, an archive and a folder of pictures can have."
import hashlib, http.server, io, json, os, shutil, subprocess, sys, tarfile, threading, time, warnings
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from pets_nb import data
from pets_nb.data import (audit, audit_rules, choose_source, download, extract, get_oxford, get_pets, get_pictures, has_oxford, jpeg_end,
    official_split, open_picture, to_rgb, usable_pictures)

sample = Path(os.getenv('PETS_NB_SAMPLE') or Path(__file__).parents[2]/'shared'/'pets-sample')
breeds = ['Abyssinian','Egyptian_Mau','beagle','yorkshire_terrier']

def picture(seed=0, size=(64,48), mode='RGB'):
    "A smooth picture that compresses well and differs with the seed"
    im = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4,4,3), dtype=np.uint8))
    return im.resize(size, Image.Resampling.BICUBIC).convert(mode)

def picture_bytes(seed=0, format='JPEG', mode='RGB', size=(64,48), **kwargs):
    f = io.BytesIO()
    picture(seed, size, mode).save(f, format=format, **kwargs)
    return f.getvalue()

def make_archive(extra=(), n=6):
    "A gzipped tar with the structure of the real one; `extra` holds (TarInfo, bytes) that are added in the middle"
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w:gz') as tar:
        def add(info, body):
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        names = [f'{b}_{i}' for b in breeds for i in range(n)]
        for i,o in enumerate(names): add(tarfile.TarInfo(f'oxford-iiit-pet/images/{o}.jpg'), picture_bytes(i))
        for info,body in extra: add(info, body)
        for o,part in (('trainval',names[::2]), ('test',names[1::2])):
            add(tarfile.TarInfo(f'oxford-iiit-pet/annotations/{o}.txt'), '\n'.join(f'{p} 1 1 1' for p in part).encode())
        add(tarfile.TarInfo('oxford-iiit-pet/padding.bin'), np.random.default_rng(0).bytes(300_000))
    return f.getvalue()

n_archive = len(breeds)*6

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        s = self.server
        fault = s.faults.pop(0) if s.faults else ''
        asked = self.headers.get('Range')
        s.log.append((asked, fault))
        if isinstance(fault, int): return self.send_error(fault)
        if fault == 'no answer':
            self.close_connection = True
            return
        start = int(asked[6:-1]) if asked and not s.ignore_range else 0
        if start >= len(s.body): return self.answer(416, b'', {'Content-Range':f'bytes */{len(s.body)}'})
        body = s.body[start:]
        if fault == 'wrong range': start += 1
        headers = {'Content-Range':f'bytes {start}-{len(s.body)-1}/{len(s.body)}'} if asked and not s.ignore_range else {}
        self.answer(206 if headers else 200, body, headers, fault)

    def answer(self, status, body, headers, fault=''):
        self.send_response(status)
        for k,v in headers.items(): self.send_header(k, v)
        if fault != 'no length': self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        try:
            if fault == 'drop': self.wfile.write(body[:len(body)//2])
            elif fault == 'drop at once': pass
            elif fault == 'stall':
                self.wfile.write(body[:len(body)//2])
                self.wfile.flush()
                self.server.release.wait(20)
            elif fault == 'slow':
                for i in range(0, len(body), -(-len(body)//8)):
                    self.wfile.write(body[i:i+(-(-len(body)//8))])
                    self.wfile.flush()
                    time.sleep(.05)
            else: self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError): pass
        self.close_connection = True

class Server:
    "A server on 127.0.0.1 that serves `body`; `faults` holds what goes wrong with the next requests"
    def __init__(self, body):
        self.http = http.server.ThreadingHTTPServer(('127.0.0.1',0), Handler)
        self.http.body,self.http.faults,self.http.log,self.http.ignore_range,self.http.release = body,[],[],False,threading.Event()
        threading.Thread(target=self.http.serve_forever, args=(.02,), daemon=True).start()
        self.url = f'http://127.0.0.1:{self.http.server_port}/oxford-iiit-pet.tgz'
    @property
    def log(self): return self.http.log
    def close(self):
        self.http.release.set()
        self.http.shutdown()
        self.http.server_close()

@pytest.fixture(scope='module')
def archive(): return make_archive()

@pytest.fixture
def server(archive):
    s = Server(archive)
    yield s
    s.close()

def head_md5(b): return hashlib.md5(b[:2**20]).hexdigest()

def fetch(server, tmp_path, **kwargs):
    "get_oxford from the test server"
    body = server.http.body
    args = dict(data_dir=tmp_path, url=server.url, size=len(body), md5=head_md5(body), n_pictures=n_archive, backoff=.01, timeout=5, progress=False)
    return get_oxford(**(args | kwargs))

def assert_whole(images): assert len(get_pictures(images)) == n_archive

# -- download

def test_plain(server, tmp_path):
    images = fetch(server, tmp_path)
    assert_whole(images)
    assert images == tmp_path/'oxford-iiit-pet'/'images'
    assert not list(tmp_path.glob('*.part')) and not list(tmp_path.glob('.*extracting'))

def test_second_call_asks_for_nothing(server, tmp_path):
    first = fetch(server, tmp_path)
    asked = len(server.log)
    assert fetch(server, tmp_path) == first
    assert len(server.log) == asked == 1

def test_offline_with_data_on_disk(server, tmp_path):
    first = fetch(server, tmp_path)
    server.close()
    assert fetch(server, tmp_path) == first

def test_offline_with_archive_on_disk(server, tmp_path):
    images = fetch(server, tmp_path)
    shutil.rmtree(images.parent)
    server.close()
    assert_whole(fetch(server, tmp_path))

def test_offline_without_data_says_what_to_do(server, tmp_path):
    server.close()
    with pytest.raises(ConnectionError, match='drawn'): fetch(server, tmp_path, retries=1)

@pytest.mark.parametrize('faults', [['drop'], ['drop','drop','drop'], ['drop at once','drop'], ['slow'], [500,503,''], ['drop',502,'drop'], ['no length'],
    ['drop'] + ['no answer']*8 + ['drop']])
def test_passing_faults_are_survived(server, tmp_path, faults):
    server.http.faults = list(faults)
    assert_whole(fetch(server, tmp_path))

def test_resume_asks_for_the_rest_only(server, tmp_path, archive):
    server.http.faults = ['drop']
    fetch(server, tmp_path)
    start = int(server.log[1][0][6:-1])
    assert len(archive)//2 - 2**15 < start <= len(archive)//2

def test_stall_counts_as_drop(server, tmp_path):
    server.http.faults = ['stall']
    assert_whole(fetch(server, tmp_path, timeout=.4))
    assert len(server.log) == 2

def test_server_without_range(server, tmp_path, archive):
    server.http.ignore_range,server.http.faults = True,['drop']
    images = fetch(server, tmp_path)
    assert_whole(images)
    assert (tmp_path/'oxford-iiit-pet.tgz').read_bytes() == archive
    assert server.log[1][0].startswith('bytes=')

def test_answer_for_another_range_is_refused(server, tmp_path):
    server.http.faults = ['drop','wrong range']
    with pytest.raises(ValueError, match='was asked for the bytes from'): fetch(server, tmp_path)
    assert list(tmp_path.glob('*.part'))

def test_interrupted_bytes_are_kept_and_used_by_the_next_call(server, tmp_path, archive):
    server.http.faults = ['drop'] + ['drop at once']*20
    with pytest.raises(ConnectionError, match='kept in oxford-iiit-pet.tgz.part'): fetch(server, tmp_path, retries=2)
    kept = (tmp_path/'oxford-iiit-pet.tgz.part').read_bytes()
    assert kept and archive.startswith(kept)
    server.http.faults,server.http.log = [],[]
    assert_whole(fetch(server, tmp_path))
    assert [o[0] for o in server.http.log] == [f'bytes={len(kept)}-']

def test_killed_download_goes_on(server, tmp_path, archive):
    "A process killed in the middle (SIGKILL) leaves a part that the next call uses"
    server.http.faults = ['stall']
    code = f"from pets_nb.data import download; download({server.url!r}, {str(tmp_path/'a.tgz')!r}, size={len(archive)}, progress=False)"
    p = subprocess.Popen([sys.executable, '-c', code])
    part = tmp_path/'a.tgz.part'
    for _ in range(300):
        if part.exists() and part.stat().st_size: break
        time.sleep(.1)
    time.sleep(.2)
    p.kill()
    p.wait()
    assert not (tmp_path/'a.tgz').exists()
    kept = part.stat().st_size
    assert 0 < kept < len(archive)
    download(server.url, tmp_path/'a.tgz', size=len(archive), md5=head_md5(archive), progress=False)
    assert (tmp_path/'a.tgz').read_bytes() == archive
    assert server.log[-1][0] == f'bytes={kept}-'

def test_404_is_not_repeated(server, tmp_path):
    server.http.faults = [404]
    with pytest.raises(FileNotFoundError, match='404'): fetch(server, tmp_path)
    assert len(server.log) == 1

def test_lasting_500_ends(server, tmp_path):
    server.http.faults = [500]*50
    with pytest.raises(ConnectionError, match='500'): fetch(server, tmp_path, retries=2)
    assert len(server.log) < 10

def test_wrong_bytes_are_named_and_removed(server, tmp_path, archive):
    server.http.body = bytes(reversed(archive))
    with pytest.raises(ValueError, match='Wrong bytes.*MD5'): fetch(server, tmp_path, size=len(archive), md5=head_md5(archive))
    assert not list(tmp_path.glob('*.tgz*part')) and not list(tmp_path.glob('*.tgz'))
    server.http.body = archive
    assert_whole(fetch(server, tmp_path))

def test_another_length_is_refused_before_a_byte_is_written(server, tmp_path, archive):
    (tmp_path/'oxford-iiit-pet.tgz.part').write_bytes(archive[:1000])
    server.http.body = b'<html>Please log in</html>'*1000
    with pytest.raises(ValueError, match='instead of'): fetch(server, tmp_path, size=len(archive), md5=head_md5(archive))
    assert (tmp_path/'oxford-iiit-pet.tgz.part').read_bytes() == archive[:1000]

def test_damage_behind_the_checked_megabyte_is_found(server, tmp_path, archive):
    "The published MD5 covers the first megabyte; gzip's CRC covers the rest"
    broken = bytearray(archive)
    broken[-40_000] ^= 0xff
    server.http.body = bytes(broken)
    with pytest.raises(ValueError, match='is damaged'): fetch(server, tmp_path, md5=None)
    assert not (tmp_path/'oxford-iiit-pet').exists() and not (tmp_path/'oxford-iiit-pet.tgz').exists()
    server.http.body = archive
    assert_whole(fetch(server, tmp_path))

def test_short_archive_of_another_tool_is_completed(server, tmp_path, archive):
    (tmp_path/'oxford-iiit-pet.tgz').write_bytes(archive[:5000])
    assert_whole(fetch(server, tmp_path))
    assert server.log[0][0] == 'bytes=5000-'

def test_too_long_part_starts_again(server, tmp_path, archive):
    (tmp_path/'oxford-iiit-pet.tgz.part').write_bytes(archive + b'more')
    assert_whole(fetch(server, tmp_path))

def test_complete_part_is_not_fetched_again(server, tmp_path, archive):
    (tmp_path/'oxford-iiit-pet.tgz.part').write_bytes(archive)
    assert_whole(fetch(server, tmp_path))
    assert not server.log

def test_unknown_length(server, tmp_path, archive):
    server.http.faults = ['drop']
    assert download(server.url, tmp_path/'a.tgz', backoff=.01, progress=False).read_bytes() == archive

def test_part_of_another_file_is_named(server, tmp_path, archive):
    (tmp_path/'a.tgz.part').write_bytes(archive + b'more')
    with pytest.raises(ValueError, match='belongs to another file'): download(server.url, tmp_path/'a.tgz', progress=False)
    assert (tmp_path/'a.tgz.part').exists()

def test_full_disk_is_said_first(server, tmp_path):
    with pytest.raises(OSError, match='GB are free'): fetch(server, tmp_path, size=10**15)
    assert not server.log

def test_progress_bar(server, tmp_path, capfd, archive):
    server.http.faults = ['drop']
    fetch(server, tmp_path, progress=True)
    assert (tmp_path/'oxford-iiit-pet.tgz').read_bytes() == archive

def test_two_at_once_download_once(server, tmp_path):
    res,threads = [],[]
    for _ in range(3): threads.append(threading.Thread(target=lambda: res.append(fetch(server, tmp_path))))
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(res) == 3
    if data.fcntl: assert len(server.log) == 1

# -- extraction

def info(name, kind=tarfile.REGTYPE, link=''):
    o = tarfile.TarInfo(name)
    o.type,o.linkname = kind,link
    return o

bad_entries = {'parent':info('../evil.txt'), 'deep parent':info('oxford-iiit-pet/../../evil.txt'), 'absolute':info('/tmp/evil_of_pets_nb.txt'),
    'drive':info('C:/evil.txt'), 'backslash':info('..\\evil.txt'), 'symlink':info('oxford-iiit-pet/evil', tarfile.SYMTYPE, '/etc'),
    'inner symlink':info('oxford-iiit-pet/evil', tarfile.SYMTYPE, 'images'), 'hard link':info('oxford-iiit-pet/evil', tarfile.LNKTYPE, '../../x'),
    'character device':info('oxford-iiit-pet/evil', tarfile.CHRTYPE), 'block device':info('oxford-iiit-pet/evil', tarfile.BLKTYPE),
    'fifo':info('oxford-iiit-pet/evil', tarfile.FIFOTYPE)}

@pytest.mark.parametrize('kind', bad_entries)
def test_unsafe_entries_are_refused(tmp_path, kind):
    entry = bad_entries[kind]
    inside = tmp_path/'a'/'b'
    inside.mkdir(parents=True)
    (inside/'pets.tgz').write_bytes(make_archive([(entry, b'' if entry.type!=tarfile.REGTYPE else b'evil')]))
    before = {o for o in tmp_path.rglob('*')}
    with pytest.raises(ValueError, match='unsafe'): extract(inside/'pets.tgz', inside/'pets')
    assert {o for o in tmp_path.rglob('*')} == before
    assert not Path('/tmp/evil_of_pets_nb.txt').exists()

def test_all_unsafe_entries_are_listed(tmp_path):
    (tmp_path/'pets.tgz').write_bytes(make_archive([(info(f'../evil_{i}.txt'), b'') for i in range(12)]))
    with pytest.raises(ValueError, match=r'12 of its entries.*evil_0.txt.*evil_9.txt.*\.\.\.'): extract(tmp_path/'pets.tgz', tmp_path/'pets')

@pytest.mark.parametrize('cut', [4, 100, 100_000])
def test_cut_archive_leaves_nothing(tmp_path, archive, cut):
    (tmp_path/'pets.tgz').write_bytes(archive[:-cut])
    with pytest.raises(ValueError, match='is damaged'): extract(tmp_path/'pets.tgz', tmp_path/'pets')
    assert list(tmp_path.iterdir()) == []

def test_killed_extraction_is_not_taken_for_a_whole_one(server, tmp_path):
    "Killed with SIGKILL in the middle of writing: no folder of that name, and the next call makes it whole"
    code = f'''
import os, signal, tarfile
from pets_nb.data import get_oxford
n, plain = 0, tarfile.TarFile.extract
def slow(self, *args, **kwargs):
    global n
    n += 1
    if n == 10: os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *args, **kwargs)
tarfile.TarFile.extract = slow
get_oxford({str(tmp_path)!r}, {server.url!r}, {len(server.http.body)}, None, {n_archive}, progress=False)
'''
    assert subprocess.run([sys.executable, '-c', code]).returncode not in (0,1)
    left = list(tmp_path.glob('.oxford-iiit-pet.*.extracting'))
    assert left and any(left[0].rglob('*.jpg'))
    assert not has_oxford(tmp_path, server.url, n_archive)
    assert_whole(fetch(server, tmp_path))
    assert not list(tmp_path.glob('.oxford-iiit-pet.*.extracting'))
    assert len(server.log) == 1

def test_half_a_folder_is_set_aside_not_lost(server, tmp_path):
    (tmp_path/'oxford-iiit-pet/images').mkdir(parents=True)
    (tmp_path/'oxford-iiit-pet/images/beagle_1.jpg').write_bytes(b'mine')
    assert_whole(fetch(server, tmp_path))
    assert (tmp_path/'oxford-iiit-pet.incomplete/images/beagle_1.jpg').read_bytes() == b'mine'

def test_archive_with_too_few_pictures_is_an_error(server, tmp_path):
    with pytest.raises(ValueError, match='instead of 7390'): fetch(server, tmp_path, n_pictures=7390)

def test_python_without_filters_is_told(tmp_path, archive, monkeypatch):
    (tmp_path/'pets.tgz').write_bytes(archive)
    monkeypatch.delattr(tarfile, 'data_filter')
    with pytest.raises(RuntimeError, match='PEP 706'): extract(tmp_path/'pets.tgz', tmp_path/'pets')

def test_fastai_finds_our_copy_and_we_find_fastais(server, tmp_path, monkeypatch):
    external = pytest.importorskip('fastai.data.external')
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    external.fastai_cfg.cache_clear()
    try:
        images = fetch(server, None)
        asked = len(server.log)
        assert external.untar_data(server.url) == images.parent
        shutil.rmtree(images.parent)
        assert external.untar_data(server.url) == images.parent
        assert fetch(server, None) == images
        assert len(server.log) == asked
    finally: external.fastai_cfg.cache_clear()

# -- sources

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'images').mkdir()
    for i,b in enumerate(b for b in breeds for _ in range(6)): (tmp_path/'images'/f'{b}_{i}.jpg').write_bytes(picture_bytes(i))
    return tmp_path/'images'

def test_sources(folder, monkeypatch, capsys):
    assert get_pets(folder) == get_pets(folder.parent) == get_pets(str(folder)) == folder
    assert 'as asked' in capsys.readouterr().out
    monkeypatch.setenv('PETS_NB_DATA', str(folder))
    assert get_pets() == folder
    assert 'PETS_NB_DATA' in capsys.readouterr().out

def test_default_source(server, tmp_path, monkeypatch):
    import torch
    monkeypatch.delenv('PETS_NB_DATA', raising=False)
    gpu = False
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda *a: gpu)
    assert choose_source(data_dir=tmp_path)[0] == 'drawn'
    gpu = True
    source,why = choose_source(data_dir=tmp_path)
    assert source == 'oxford' and 'GPU' in why
    gpu = False
    monkeypatch.setattr(data, 'has_oxford', lambda *a: True)
    source,why = choose_source(data_dir=tmp_path)
    assert source == 'oxford' and 'on disk' in why

def test_bad_paths(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match='no folder'): get_pets(tmp_path/'none')
    with pytest.raises(NotADirectoryError, match='is a file'): get_pets(folder/'beagle_12.jpg')
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='looked for'): get_pets(tmp_path/'empty')
    (tmp_path/'sorted/beagle').mkdir(parents=True)
    shutil.copy(folder/'beagle_12.jpg', tmp_path/'sorted/beagle/1.jpg')
    with pytest.raises(FileNotFoundError, match='one level deeper'): get_pets(tmp_path/'sorted')

def test_import_needs_no_torch():
    code = "import sys, pets_nb.data; print([o for o in ('torch','fastai','matplotlib','fastprogress') if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'

# -- the official lists

def write_lists(folder, train, test):
    (folder.parent/'annotations').mkdir(exist_ok=True)
    for k,v in dict(trainval=train, test=test).items(): (folder.parent/'annotations'/f'{k}.txt').write_text('# a comment\n' + ''.join(f'{o} 1 1 1\n' for o in v))

def test_official_split(folder, capsys):
    files = get_pictures(folder)
    stems = [o.stem for o in files]
    write_lists(folder, stems[::2] + ['gone_1'], stems[1:-1:2])
    train,valid = official_split(files)
    assert [files[i].stem for i in train] == stems[::2] and [files[i].stem for i in valid] == stems[1:-1:2]
    said = capsys.readouterr().out
    assert 'not among the files, 1: gone_1' in said and f'in neither list, 1: {stems[-1]}' in said

def test_official_split_refuses(folder):
    files = get_pictures(folder)
    with pytest.raises(FileNotFoundError, match='trainval.txt and test.txt'): official_split(files)
    write_lists(folder, [files[0].stem], [files[0].stem])
    with pytest.raises(ValueError, match='both lists'): official_split(files)
    write_lists(folder, ['x_1'], ['x_2'])
    with pytest.raises(ValueError, match='A part is empty'): official_split(files)
    with pytest.raises(ValueError, match='no files'): official_split([])

# -- opening pictures

modes = ['1','L','LA','P','PA','RGB','RGBA','CMYK','YCbCr','HSV','I;16','I']

@pytest.mark.parametrize('mode', modes)
def test_every_mode_becomes_rgb(mode):
    im = Image.fromarray(np.full((3,5), 32768, np.uint16)) if mode=='I;16' else picture(1, (5,3)).convert(mode)
    out = to_rgb(im)
    assert out.mode == 'RGB' and out.size == (5,3)

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 65535))
def test_sixteen_bits_are_scaled(v):
    for im in (Image.fromarray(np.full((1,1), v, np.uint16)), Image.fromarray(np.full((1,1), v, np.int32))):
        assert to_rgb(im).getpixel((0,0)) == (round(v/257),)*3

@settings(max_examples=50, deadline=None)
@given(st.integers(0,255), st.integers(0,255))
def test_alpha_is_laid_on_white(v, alpha):
    for im in (Image.new('LA', (1,1), (v,alpha)), Image.new('RGBA', (1,1), (v,v,v,alpha))):
        got = to_rgb(im).getpixel((0,0))
        assert all(abs(o - (v*alpha + 255*(255-alpha))/255) <= 1.01 for o in got)

@pytest.mark.parametrize('orientation', range(1,9))
def test_exif_is_applied(tmp_path, orientation):
    im,exif = picture(3),Image.Exif()
    exif[0x0112] = orientation
    im.save(tmp_path/'beagle_1.png', exif=exif)
    got,plain = np.asarray(open_picture(tmp_path/'beagle_1.png')),np.asarray(im)
    expected = {1:plain, 2:plain[:,::-1], 3:plain[::-1,::-1], 4:plain[::-1], 5:plain.swapaxes(0,1), 6:np.rot90(plain,-1),
        7:plain[::-1,::-1].swapaxes(0,1), 8:np.rot90(plain)}[orientation]
    assert np.array_equal(got, expected)

def test_broken_exif_does_not_cost_the_picture(tmp_path):
    (tmp_path/'beagle_1.jpg').write_bytes(picture_bytes(1, exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x05garbage'))
    assert open_picture(tmp_path/'beagle_1.jpg').mode == 'RGB'
    assert len(audit([tmp_path/'beagle_1.jpg']).usable) == 1

def test_large_pictures(tmp_path):
    Image.new('1', (12_000,9_000)).save(tmp_path/'beagle_1.png')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert open_picture(tmp_path/'beagle_1.png').size == (12_000,9_000)
        with pytest.raises(ValueError, match='12,000 x 9,000'): open_picture(tmp_path/'beagle_1.png', max_pixels=10**6)
    Image.new('1', (20_000,20_000)).save(tmp_path/'beagle_2.png')
    with pytest.raises(ValueError, match='beagle_2.png'): open_picture(tmp_path/'beagle_2.png')
    assert list(audit(tmp_path).table.problems) == ['huge']*2 # neither is decoded

@pytest.mark.parametrize('format', ['JPEG','PNG','GIF','WEBP','BMP'])
@pytest.mark.parametrize('share', [.02,.3,.6,.9])
def test_truncated_files_are_named(tmp_path, format, share):
    body = picture_bytes(1, format, size=(300,200))
    f = tmp_path/'beagle_1.jpg'
    f.write_bytes(body[:int(len(body)*share)])
    with pytest.raises(ValueError, match='beagle_1.jpg'): open_picture(f)
    report = audit([f])
    assert not len(report.usable)
    assert {'truncated','undecodable'} & set(report.table.problems[0].split(', '))

def test_open_refuses(tmp_path):
    with pytest.raises(FileNotFoundError): open_picture(tmp_path/'none.jpg')
    with pytest.raises(IsADirectoryError): open_picture(tmp_path)
    (tmp_path/'text.jpg').write_text('not a picture')
    with pytest.raises(ValueError, match='text.jpg.*not a picture'): open_picture(tmp_path/'text.jpg')

@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_never_crash(tmp_path_factory, body, jpeg):
    f = tmp_path_factory.mktemp('fuzz')/'beagle_1.jpg'
    f.write_bytes((b'\xff\xd8\xff\xe0' if jpeg else b'') + body)
    try: open_picture(f)
    except ValueError as e: assert 'beagle_1.jpg' in str(e)
    assert len(audit([f], n_workers=0).table) == 1

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_pictures_never_crash_and_usable_ones_open(tmp_path_factory, data):
    "Whatever the audit calls usable can be opened"
    body = bytearray(picture_bytes(1, data.draw(st.sampled_from(['JPEG','PNG','GIF','WEBP'])), size=(60,40)))
    for _ in range(data.draw(st.integers(1,8))): body[data.draw(st.integers(0, len(body)-1))] = data.draw(st.integers(0,255))
    f = tmp_path_factory.mktemp('fuzz')/'beagle_1.jpg'
    f.write_bytes(body)
    for o in audit([f], n_workers=0).usable: assert open_picture(o).mode == 'RGB'

# -- audit

@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=300), st.integers(1,50))
def test_trailing_bytes_are_counted(junk, seed):
    whole = picture_bytes(seed, progressive=bool(seed%2))
    assert jpeg_end(whole) == len(whole)
    assert jpeg_end(whole+junk) == len(whole)

def test_end_mark_in_a_thumbnail_is_not_the_end():
    whole = picture_bytes(1, exif=b'Exif\0\0' + picture_bytes(2))
    assert jpeg_end(whole) == len(whole)

def test_duplicates_and_contradictions(folder):
    copy = (folder/'beagle_12.jpg').read_bytes()
    (folder/'beagle_900.jpg').write_bytes(copy)
    (folder/'beagle.copy.jpg').write_bytes(copy)                      # no label: must not displace the labelled one
    (folder/'beagle_901.jpg').write_bytes(picture_bytes(13, comment=b'a note')) # the pixels of another file, other bytes
    (folder/'pug_1.jpg').write_bytes((folder/'Abyssinian_0.jpg').read_bytes())
    t = audit(folder).table.set_index('file')
    assert t.decision['beagle_12.jpg'] == 'kept' and t.problems['beagle_900.jpg'] == t.problems['beagle_901.jpg'] == 'duplicate'
    assert t.problems['beagle.copy.jpg'] == 'no label'
    assert t.problems['pug_1.jpg'] == t.problems['Abyssinian_0.jpg'] == 'contradicting labels'

def test_few_pictures_and_tiny(folder):
    (folder/'pug_1.jpg').write_bytes(picture_bytes(99))
    (folder/'pug_2.jpg').write_bytes(picture_bytes(98, size=(1,1)))
    t = audit(folder, min_per_breed=3).table.set_index('file')
    assert t.problems['pug_1.jpg'] == 'few pictures' and t.decision['pug_1.jpg'] == 'kept'
    assert t.problems['pug_2.jpg'] == 'tiny' and t.decision['pug_2.jpg'] == 'left out'

def test_unreadable_entries(folder):
    (folder/'beagle_77.jpg').mkdir()            # a folder named like a picture
    (folder/'beagle_78.jpg').symlink_to('gone') # a dangling link
    assert not {'beagle_77.jpg','beagle_78.jpg'} & set(get_pictures(folder).attrgot('name'))
    assert not {'beagle_77.jpg','beagle_78.jpg'} & set(audit(folder).table.file)

def test_usable_pictures(folder, capsys):
    (folder/'beagle_77.jpg').write_bytes(b'nothing')
    res = usable_pictures(folder)
    said = capsys.readouterr().out
    assert len(res) == n_archive and 'undecodable (beagle_77.jpg)' in said and said.count('\n') == 1
    with pytest.raises(ValueError, match='list of files is empty'): audit([])

def test_every_rule_has_a_decision():
    assert set(audit_rules.decision) == {'left out','converted on load','kept'} and audit_rules.index.is_unique

def test_result_is_the_same_with_any_number_of_workers(folder):
    assert audit(folder, n_workers=0).table.equals(audit(folder, n_workers=4).table)

def test_plot(folder):
    (folder/'beagle_77.jpg').write_bytes(b'nothing')
    fig = audit(folder).plot()
    assert any('beagle_77.jpg' in ax.get_title('center') for ax in fig.axes)
    (folder/'beagle_77.jpg').unlink()
    audit(folder).plot() # nothing to show is no crash

@pytest.mark.skipif(not (sample/'odd').is_dir(), reason='the sample of real photographs is not here')
def test_real_files_that_are_not_jpeg():
    t = audit(sample/'odd').table.set_index('file')
    assert (t.format['Abyssinian_34.jpg'], t['mode']['Abyssinian_34.jpg']) == ('GIF','P')
    assert (t.format['Abyssinian_5.jpg'], t['mode']['Abyssinian_5.jpg']) == ('PNG','RGBA')
    assert t.problems.str.contains('other format').all() and (t.decision == 'converted on load').all()
    assert {open_picture(o).mode for o in get_pictures(sample/'odd')} == {'RGB'}

@pytest.mark.skipif(not (sample/'images').is_dir(), reason='the sample of real photographs is not here')
def test_real_photographs_are_usable():
    files = get_pictures(sample)
    assert audit(sample).usable == files


# Files that are whole or absent

def test_whole_file_leaves_the_old_one(tmp_path, monkeypatch):
    file = data.write_json(tmp_path/'a.json', dict(a=1))
    def fail(*_): raise OSError('disk full')
    monkeypatch.setattr(data.os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'): data.write_json(file, dict(a=2))
    assert json.loads(file.read_text())==dict(a=1) and os.listdir(tmp_path)==['a.json']

@given(st.recursive(st.one_of(st.none(), st.floats(), st.integers(), st.text()), lambda o: st.lists(o) | st.dictionaries(st.text(), o), max_leaves=8))
@settings(max_examples=30, deadline=None)
def test_write_json_makes_valid_json(tmp_path_factory, value):
    file = data.write_json(tmp_path_factory.mktemp('j')/'a.json', dict(data=value))
    json.loads(file.read_text(), parse_constant=lambda o: pytest.fail(f'{o} is no JSON'))
