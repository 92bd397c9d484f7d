"Faults that a download and an archive can have; the server is on 127.0.0.1."
import hashlib, http.server, io, os, shutil, subprocess, sys, tarfile, threading, time
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from pets_nb.engine.download import _extract, download, get_oxford, has_oxford
from pets_nb.engine.files import _locked, list_images

breeds = ['Abyssinian','Egyptian_Mau','beagle','yorkshire_terrier']

def image_bytes(seed=0):
    "A smooth JPEG that compresses well and differs with the seed"
    f = io.BytesIO()
    im = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4,4,3), dtype=np.uint8))
    im.resize((64,48), Image.Resampling.BICUBIC).save(f, format='JPEG')
    return f.getvalue()

def make_archive(extra=(), n=6):
    "A gzipped tar with the structure of the real one; `extra` holds (TarInfo, bytes) that are added in the middle"
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w:gz') as tar:
        def add(info, body):
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        names = [f'{b}_{i}' for b in breeds for i in range(n)]
        for i,o in enumerate(names): add(tarfile.TarInfo(f'oxford-iiit-pet/images/{o}.jpg'), image_bytes(i))
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
        if s.ignore_range or (s.etag and self.headers.get('If-Range', s.etag) != s.etag): asked = None
        start = int(asked[6:-1]) if asked else 0
        if start >= len(s.body): return self.answer(416, b'', {'Content-Range':f'bytes */{len(s.body)}'})
        body = s.body[start:]
        if fault == 'wrong range': start += 1
        headers = {'Content-Range':f'bytes {start}-{len(s.body)-1}/{len(s.body)}'} if asked else {}
        self.answer(206 if headers else 200, body, headers, fault)

    def answer(self, status, body, headers, fault=''):
        self.send_response(status)
        if self.server.etag: self.send_header('ETag', self.server.etag)
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
        self.http.body,self.http.faults,self.http.log,self.http.ignore_range = body,[],[],False
        self.http.etag,self.http.release = '"v1"',threading.Event()
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
    args = dict(data_dir=tmp_path, url=server.url, size=len(body), md5=head_md5(body), n_images=n_archive, backoff=.01, timeout=5, progress=False)
    return get_oxford(**(args | kwargs))

def names(folder): return sorted(o.name for o in folder.iterdir() if not o.name.endswith('.lock'))

def assert_whole(images): assert len(list_images(images)) == n_archive

# -- download

def test_plain(server, tmp_path):
    images = fetch(server, tmp_path)
    assert_whole(images)
    assert images == tmp_path/'oxford-iiit-pet'/'images'
    assert not list(tmp_path.glob('*.part')) and not list(tmp_path.glob('.*.part'))

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
    ['drop'] + ['no answer']*4 + ['drop']])
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
    code = f"from pets_nb.engine.download import download; download({server.url!r}, {str(tmp_path/'a.tgz')!r}, size={len(archive)}, progress=False)"
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
    with pytest.raises(ValueError, match='is damaged.*oxford-iiit-pet.tgz.damaged'): fetch(server, tmp_path, md5=None)
    assert names(tmp_path) == ['oxford-iiit-pet.tgz.damaged']
    server.http.body = archive
    assert_whole(fetch(server, tmp_path))

def test_changed_file_is_not_mixed_with_a_part_of_the_old_one(server, tmp_path):
    "Same length, other bytes, another ETag between two attempts"
    old,new = bytes(500_000), os.urandom(500_000)
    server.http.body,server.http.faults = old,['drop','drop at once','drop at once']
    with pytest.raises(ConnectionError): download(server.url, tmp_path/'a.bin', retries=1, backoff=.01, progress=False)
    assert (tmp_path/'a.bin.part').stat().st_size
    server.http.body,server.http.etag,server.http.faults = new,'"v2"',[]
    assert download(server.url, tmp_path/'a.bin', backoff=.01, progress=False).read_bytes() == new
    assert names(tmp_path) == ['a.bin']

@pytest.mark.parametrize('etag', ['', 'W/"weak"'])
def test_servers_without_a_strong_etag(server, tmp_path, etag):
    server.http.etag,server.http.faults = etag,['drop']
    assert_whole(fetch(server, tmp_path))
    assert server.log[1][0].startswith('bytes=')

def test_file_with_the_wrong_bytes_is_set_aside(server, tmp_path, archive, capsys):
    (tmp_path/'oxford-iiit-pet.tgz').write_bytes(archive[::-1])
    assert_whole(fetch(server, tmp_path))
    assert (tmp_path/'oxford-iiit-pet.tgz.damaged').read_bytes() == archive[::-1]
    assert 'MD5' in capsys.readouterr().out

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
    assert len(server.log) == 1

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
    with pytest.raises(ValueError, match='unsafe'): _extract(inside/'pets.tgz', inside/'pets')
    assert {o for o in tmp_path.rglob('*')} == before
    assert not Path('/tmp/evil_of_pets_nb.txt').exists()

def test_all_unsafe_entries_are_listed(tmp_path):
    (tmp_path/'pets.tgz').write_bytes(make_archive([(info(f'../evil_{i}.txt'), b'') for i in range(12)]))
    with pytest.raises(ValueError, match=r'12 of its entries.*evil_0.txt.*evil_9.txt.*\.\.\. \(12 in all\)'): _extract(tmp_path/'pets.tgz', tmp_path/'pets')

@pytest.mark.parametrize('cut', [4, 100, 100_000])
def test_cut_archive_leaves_nothing_but_itself(tmp_path, archive, cut):
    (tmp_path/'pets.tgz').write_bytes(archive[:-cut])
    with pytest.raises(ValueError, match='is damaged'): _extract(tmp_path/'pets.tgz', tmp_path/'pets')
    assert os.listdir(tmp_path) == ['pets.tgz'] # the caller's archive is never deleted

def test_bomb_is_refused(tmp_path):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w:gz') as tar:
        entry = tarfile.TarInfo('images/pug_1.jpg')
        entry.size = 1_200_000_000
        tar.fileobj.write(entry.tobuf() + bytes(2**20)) # says 1.2 GB, of which a megabyte is there
    (tmp_path/'pets.tgz').write_bytes(f.getvalue())
    with pytest.raises(ValueError, match='100 times'): _extract(tmp_path/'pets.tgz', tmp_path/'pets')

def test_killed_extraction_is_not_taken_for_a_whole_one(server, tmp_path):
    "Killed with SIGKILL in the middle of writing: no folder of that name, and the next call makes it whole"
    code = f'''
import os, signal, tarfile
from pets_nb.engine.download import get_oxford
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
    left = list(tmp_path.glob('.oxford-iiit-pet-*.part'))
    assert left and any(left[0].rglob('*.jpg'))
    assert not has_oxford(tmp_path, server.url, n_archive)
    assert_whole(fetch(server, tmp_path))
    assert not list(tmp_path.glob('.oxford-iiit-pet-*.part'))
    assert len(server.log) == 1

def test_half_a_folder_is_completed(server, tmp_path):
    (tmp_path/'oxford-iiit-pet/images').mkdir(parents=True)
    (tmp_path/'oxford-iiit-pet/images/beagle_1.jpg').write_bytes(b'mine')
    assert_whole(fetch(server, tmp_path))
    assert (tmp_path/'oxford-iiit-pet/images/beagle_1.jpg').read_bytes() == b'mine'

def test_one_image_missing(server, tmp_path, capsys):
    "It comes back from the archive, at the first call, and no second copy of the folder is made"
    images = fetch(server, tmp_path)
    whole = (images/'beagle_1.jpg').read_bytes()
    (images/'beagle_1.jpg').unlink()
    before = {o for o in tmp_path.iterdir()}
    for _ in range(3): assert fetch(server, tmp_path) == images
    assert (images/'beagle_1.jpg').read_bytes() == whole
    assert {o for o in tmp_path.iterdir()} == before and len(server.log) == 1
    assert capsys.readouterr().out.count('holds 23 of 24 images') == 1

def test_archive_with_too_few_images_is_an_error(server, tmp_path):
    with pytest.raises(ValueError, match='24 images instead of 7,390'): fetch(server, tmp_path, n_images=7390)

def test_python_without_filters_is_told(tmp_path, archive, monkeypatch):
    (tmp_path/'pets.tgz').write_bytes(archive)
    monkeypatch.delattr(tarfile, 'data_filter')
    with pytest.raises(RuntimeError, match='PEP 706'): _extract(tmp_path/'pets.tgz', tmp_path/'pets')

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

# -- places and locks

def test_waiting_says_what_it_waits_for(server, tmp_path):
    code = f"from pets_nb.engine.download import get_oxford; get_oxford({str(tmp_path)!r}, {server.url!r}, None, None, {n_archive}, progress=False)"
    with _locked(tmp_path/'.oxford-iiit-pet.lock', 'this test'):
        p = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True)
        assert 'another call of get_oxford' in p.stderr.readline()
    assert p.wait(60) == 0
    p.stderr.close()

def test_folder_can_be_read_by_others(server, tmp_path):
    images = fetch(server, tmp_path)
    for o in (images.parent, images, images/'beagle_1.jpg', tmp_path/'oxford-iiit-pet.tgz'): assert o.stat().st_mode & 0o044 == 0o044

def test_import_is_light():
    code = "import sys, pets_nb.engine.download; print([o for o in ('torch','fastai','pandas','matplotlib','rich') if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
