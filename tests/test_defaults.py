"Every public name, called with nothing but its required arguments."
import importlib, pkgutil, tempfile
from pathlib import Path
from types import SimpleNamespace
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from torch import nn
from fastai.basics import Learner
import pets_nb
from pets_nb import cross_entropy as ce, epochs, interpretation, labels, lr_finder, many_machines as mm, presizing, transfer_learning as tl, trust
from pets_nb.engine import audit as au, bundle, checkpoints, download as dl, drawn, features, files, learner, loaders, networks, pipeline, sources, stats, streams
from pets_nb.tools import chapter, cli, experiments, export

# Needs an address, downloads 812 MB, or trains for minutes: test_download.py, test_benchmarks.py and test_experiments.py call them, with a server on 127.0.0.1 and small settings
ELSEWHERE = {'download', 'get_oxford', 'run_benchmark', 'run_chapter'}

def names():
    "Public functions and classes by name, each from the module that defines it"
    found = {}
    for o in pkgutil.walk_packages(pets_nb.__path__, 'pets_nb.'):
        if o.name.endswith(('__main__', '_modidx', '.all', 'tools.app')): continue
        module = importlib.import_module(o.name)
        found |= {k: v for k in getattr(module, '__all__', []) if callable(v := getattr(module, k)) and v.__module__==module.__name__}
    return {k: o for k,o in found.items() if k not in ELSEWHERE}

webdataset = pytest.importorskip('webdataset')

@pytest.fixture(scope='module')
def at(tmp_path_factory):
    "What the calls need: drawn pets, loaders, a learner, logits, a saved model, shards"
    o,work = SimpleNamespace(),tmp_path_factory.mktemp('defaults')
    patch = pytest.MonkeyPatch()
    patch.chdir(work)
    patch.setattr('sys.argv', ['pets_nb'])
    o.work,o.pets = work,drawn.draw_pets(work/'pets', n_per_breed=3, breeds=['pug', 'Bengal', 'beagle'])
    o.image = sorted(o.pets.rglob('*.jpg'))[0]
    o.images = sources.find_images(o.pets, verbose=False)
    o.dls = loaders.pets_dls(o.images, bs=3, verbose=False)
    o.make = lambda *a: learner.pets_learner(o.dls, verbose=False)
    o.logits,o.y = learner.get_logits(o.make())
    o.p = o.logits.softmax(1)
    bundle.save_bundle(o.make(), 'model')
    (work/'shards').mkdir()
    with webdataset.TarWriter(str(work/'shards/a.tar')) as tar:
        for i,p in enumerate(sorted(o.pets.rglob('*.jpg'))): tar.write({'__key__': f'{i}', 'jpg': p.read_bytes(), 'cls': labels.breed_of(p.name)})
    o.shard = work/'shards/a.tar'
    yield o
    patch.undo()

def within(manager, *args):
    with manager(*args) as res: return res

def written(o):
    with files.atomic_path(o.work/'a') as part: part.write_text('x')
    return (o.work/'a').read_text()

def trained(callback):
    def call(o):
        learn = Learner(o.dls, networks.network('small_network', 3))
        with learner.quiet(learn): learn.fit(1, cbs=callback())
        return learn
    return call

def shards(o):
    learn = streams.shards_learner(o.work/'shards', 'small_network')
    out = tempfile.mkdtemp(dir=o.work)
    assert streams.shard_features(learn, o.work/'shards', out)==9
    return streams.load_features(out)

def records(o):
    experiments.run_experiment('e', {'a': lambda seed: .1, 'b': lambda seed: .2})
    return experiments.read_records('e')

images,matrix = torch.rand(2,3,8,8),torch.eye(3)
curve = lambda o: lr_finder.sweep_rates(o.make())
CALLS = dict(
    to_probs=lambda o: ce.to_probs(o.logits), log_sum_exp=lambda o: ce.log_sum_exp(o.logits), to_log_probs=lambda o: ce.to_log_probs(o.logits),
    loss_from_log_probs=lambda o: ce.loss_from_log_probs(ce.to_log_probs(o.logits), o.y), loss_from_logits=lambda o: ce.loss_from_logits(o.logits, o.y),
    binary_loss_from_logits=lambda o: ce.binary_loss_from_logits(o.logits[:,0], (o.y==0).float()),
    Audit=lambda o: au.Audit(au.audit(o.pets).table, au.audit(o.pets).paths), audit=lambda o: au.audit(o.pets),
    save_bundle=lambda o: bundle.save_bundle(o.make(), 'other'), Predictor=lambda o: bundle.Predictor('model').predict(o.image),
    resumable=lambda o: within(checkpoints.resumable, o.make(), 'ck') or True, 
    has_oxford=lambda o: dl.has_oxford() in (True, False), draw_pet=lambda o: drawn.draw_pet('pug'), invented_traits=lambda o: drawn.invented_traits(),
    draw_pets=lambda o: drawn.draw_pets('all'), get_drawn=lambda o: drawn.get_drawn(),
    get_features=lambda o: features.get_features(o.make()), LinearHead=lambda o: features.LinearHead(4, 3)(torch.ones(1,4)),
    fit_head=lambda o: features.fit_head(*features.get_features(o.make())), head_first=lambda o: features.head_first(o.make()),
    shown=lambda o: files.shown('a\nb'), list_images=lambda o: files.list_images(o.pets), ImageError=lambda o: files.ImageError('empty'),
    open_image=lambda o: files.open_image(o.image), atomic_path=written,
    write_json=lambda o: files.write_json(o.work/'a.json', [1]) or True, config_folder=lambda o: files.config_folder(),
    History=trained(learner.History), Mixed=trained(learner.Mixed), bf16_is_fast=lambda o: learner.bf16_is_fast('cpu') in (True, False),
    pets_learner=lambda o: learner.pets_learner(o.dls), restored=lambda o: within(learner.restored, o.make()) or True,
    quiet=lambda o: within(learner.quiet, o.make()) or True, get_logits=lambda o: learner.get_logits(o.make()),
    partial_fine_tune=lambda o: learner.partial_fine_tune(o.make(), 1) or True,
    FastDL=lambda o: loaders.FastDL(o.dls.train_ds), PixelCache=lambda o: loaders.PixelCache(o.images.files), Speed=lambda o: loaders.Speed(),
    pets_dls=lambda o: loaders.pets_dls(), small_network=lambda o: networks.small_network(),
    PetsModel=lambda o: networks.PetsModel(nn.Conv2d(3,4,1), nn.Flatten())(torch.rand(1,3,32,32)), read_weights=lambda o: networks.read_weights('model/model.safetensors'),
    architectures=lambda o: networks.architectures(), network=lambda o: networks.network('small_network', 3),
    sample_augmentations=lambda o: pipeline.sample_augmentations(2), augmentation_matrix=lambda o: pipeline.augmentation_matrix(pipeline.sample_augmentations(2)),
    warp_image=lambda o: pipeline.warp_image(np.zeros((9,9,3), np.uint8), np.eye(3), 8), OneWarp=lambda o: pipeline.OneWarp(),
    get_pets=lambda o: sources.get_pets(), ImageSet=lambda o: sources.ImageSet(o.images.files, o.images.labels, o.pets, 'names'),
    species=lambda o: sources.species('pug'), find_images=lambda o: sources.find_images(),
    standard_error=lambda o: stats.standard_error(.1, 100), wilson=lambda o: stats.wilson(1, 10), compare=lambda o: stats.compare(records(o)),
    Comparison=lambda o: stats.compare(records(o)).plot(), read_shard=lambda o: list(streams.read_shard(o.shard)), shard_features=shards,
    load_features=shards, shards_learner=lambda o: streams.shards_learner(o.work/'shards'),
    loss_parts=lambda o: epochs.loss_parts(o.logits, o.y), stop_epoch=lambda o: epochs.stop_epoch([.3,.2,.3,.3]),
    confused_pairs=lambda o: interpretation.confused_pairs(o.y, 1-o.y.clamp(max=1), list(o.dls.vocab)),
    plot_confusion=lambda o: interpretation.plot_confusion(o.y, o.y, list(o.dls.vocab)) or True, breed_of=lambda o: labels.breed_of('pug_1.jpg'),
    RateSweep=trained(lr_finder.RateSweep), sweep_rates=curve, RateCurve=lambda o: lr_finder.RateCurve(curve(o).history),
    map_rates=lambda o: lr_finder.map_rates(o.make, [1e-3]), process_group=lambda o: within(mm.process_group) or True, Distributed=lambda o: mm.Distributed(),
    two_ways=lambda o: presizing.two_ways(o.image), sample_at=lambda o: presizing.sample_at(images, matrix, 8), psnr=lambda o: presizing.psnr(images, images.flip(-1)),
    main=lambda o: cli.main() in (0, 2), run_experiment=records, read_records=records, chapter_table=lambda o: chapter.chapter_table('chapter-112', RECORDS),
    export_bundle=lambda o: export.export_bundle('model'), one_cycle_value=lambda o: tl.one_cycle_value(.5, 1., 2., 0.), group_rates=lambda o: tl.group_rates(slice(1e-6,1e-4), 3),
    plain_fine_tune=lambda o: tl.plain_fine_tune(o.make(), 1) or True, calibration_error=lambda o: trust.calibration_error(o.logits, o.y),
    fit_temperature=lambda o: trust.fit_temperature(o.logits, o.y), class_map=lambda o: trust.class_map(torch.rand(1,4,3,3), torch.rand(4)))
RECORDS = Path(__file__).parents[1]/'nbs/explanations/experiments'

def test_no_public_name_is_left_out():
    assert set(CALLS)==set(names())

@pytest.mark.parametrize('name', sorted(CALLS))
def test_with_its_defaults(name, at):
    assert CALLS[name](at) is not None
    plt.close('all')
