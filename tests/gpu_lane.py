"""What only a GPU can show, in one run of a few minutes; `python tests/gpu_lane.py OUT --data FOLDER --weights50 FILE` writes OUT/gpu.json.

Each part is measured on its own and noted as soon as it is done, so that a fault in one costs none of the others."""
import argparse, contextlib, io, json, os, subprocess, sys, time, traceback
from pathlib import Path
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import torch
from fastai.metrics import error_rate
from pets_nb.engine.files import write_json
from pets_nb.engine.learner import get_logits, pets_learner, quiet
from pets_nb.engine.loaders import Speed, pets_dls
from pets_nb.engine.sources import find_images
from pets_nb.tools.experiments import _machine

def silent(f, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()): return f(*args, **kwargs)

def sync(): torch.cuda.synchronize() if torch.cuda.is_available() else None

def rate(dl, seconds=4.):
    "Images a second of a loader, after its first batch"
    n,start = 0,None
    for x,*_ in dl:
        if start is None: sync(); start = time.perf_counter(); continue
        n += len(x)
        if time.perf_counter()-start>seconds: break
    sync()
    return round(n/(time.perf_counter()-start), 1)

class Lane:
    def __init__(self, a):
        self.a,self.device = a,'cuda' if torch.cuda.is_available() else 'cpu'
        self.images = silent(find_images, a.data)
        self.res = dict(machine=_machine(), parts={})

    def note(self, name, f):
        start = time.perf_counter()
        try: found = f()
        except Exception as e: found = dict(fault=f'{type(e).__name__}: {e}'[:500], trace=traceback.format_exc()[-1500:])
        self.res['parts'][name] = dict(found, took=round(time.perf_counter()-start, 1))
        write_json(self.a.out/'gpu.json', self.res)
        print(name, json.dumps({k: v for k,v in self.res['parts'][name].items() if k!='trace'}), flush=True)

    def dls(self, size=None, bs=64, **speed):
        return silent(pets_dls, self.images, size=size or self.a.size, bs=bs, split='official' if self.a.official else 'random', speed=Speed(**speed), device=self.device, verbose=False)

    def tests(self):
        files = [str(o) for o in sorted((ROOT/'tests').glob('test_*.py')) if 'cuda' in o.read_text(encoding='utf-8')]
        r = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'pytest', '-m', 'cuda', '-q', '-p', 'no:cacheprovider', '--disable-warnings', *files], cwd=ROOT, capture_output=True, text=True, timeout=90)
        return dict(status=r.returncode, tail=r.stdout[-1500:])

    def loaders(self):
        "Images a second of each way to read"
        ways = dict(chapter=dict(fast=False), workers=dict(), device=dict(on_device=True), memory=dict(cache='memory'))
        res = {}
        for name,speed in ways.items():
            try:
                dls = self.dls(**speed)
                if name=='memory':
                    for _ in dls.train: pass
                res[name] = rate(dls.train)
            except Exception as e: res[name] = f'{type(e).__name__}: {e}'[:300]
        return res

    def same_pixels(self):
        "The batches of the device's decoder against those of the processor"
        a,b = (next(iter(self.dls(on_device=o).valid))[0].float().cpu() for o in (True, False))
        mse = ((a-b)**2).mean((1,2,3))
        return dict(psnr=round((10*torch.log10(1/mse)).min().item(), 1), images=len(a))

    def epoch(self, arch, weights, bs, precision, size):
        "One epoch of training all of the network, twice: images a second, error, peak memory"
        dls = self.dls(size, bs, on_device=True)
        learn = pets_learner(dls, arch, weights=weights or 'none', precision=precision, verbose=False)
        learn.unfreeze()
        with quiet(learn): learn.fit_one_cycle(1, slice(1e-5, 1e-3))
        torch.cuda.reset_peak_memory_stats() if self.device=='cuda' else None
        sync(); start = time.perf_counter(); n = 0
        model,opt = learn.model.train(),learn.opt
        batch = next(iter(dls.train))
        half = {'bfloat16': torch.bfloat16, 'float16': torch.float16}.get(precision)
        for _ in range(2 if self.device=='cpu' else 20): # the network alone, on one batch
            with torch.autocast(self.device, half, enabled=half is not None): loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward(); opt.step(); opt.zero_grad(); n += len(batch[0])
        sync()
        step = round(n/(time.perf_counter()-start), 1)
        with quiet(learn): learn.fit_one_cycle(1, slice(1e-5, 1e-3))
        row = learn.history.rows[-1]
        memory = torch.cuda.max_memory_allocated()/2**30 if self.device=='cuda' else None
        return dict(seconds=[round(o['seconds'], 2) for o in learn.history.rows], network_alone=step, error=round(row['error_rate'], 4), train=len(dls.train_ds), valid=len(dls.valid_ds),
                    gib=memory and round(memory, 2))

    def run(self):
        a = self.a
        self.note('tests', self.tests)
        self.note('loaders', self.loaders)
        self.note('same pixels', self.same_pixels)
        cases = [('float32',64), ('bfloat16',64), ('bfloat16',512), ('float32',512), ('float16',64), ('float16',512)] if self.device=='cuda' else [('float32',64)]
        for precision,bs in cases:
            if time.perf_counter()>a.until: break
            self.note(f'resnet50, batches of {bs}, {precision}', lambda: self.epoch('resnet50', a.weights50, bs, precision, a.size))

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('out', type=Path); p.add_argument('--data'); p.add_argument('--weights50')
    p.add_argument('--size', type=int, default=224); p.add_argument('--official', action='store_true'); p.add_argument('--limit', type=float, default=500.)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    a.until = time.perf_counter()+a.limit
    Lane(a).run()

if __name__=='__main__': main()
