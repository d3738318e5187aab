"""Choose, measure and publish a generator of real images: results/cifar10/README.md is the design.

    python -m tools.study.generator runs/cifar10 TRAIN.zip TEST.zip

Of the checkpoints that the run kept, the one with the smallest KID against the held-out images is published, with its
scores, its curve and its pictures. While training goes on the same command may be repeated; `of` in the result says how
long the run is to be.
"""
from dataclasses import replace
from pathlib import Path

import torch
from fastcore.script import call_parse
from PIL import Image

from sagan_nb.attention_maps import silenced
from sagan_nb.config import NUMERICS
from sagan_nb.core import Refused, grid_image
from sagan_nb.data import open_source
from sagan_nb.train import draw
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.checkpoints import checkpoints_of
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.evaluate import evaluate
from sagan_nb.machinery.features import domain
from sagan_nb.machinery.files import cache_folder, file_sha256, write_json
from sagan_nb.machinery.machine import keep_memory
from sagan_nb.machinery.publish import save_pretrained
from sagan_nb.machinery.runs import machines, read_log

from .few_images import HELD_OUT, changed, chosen

OUT = Path(__file__).resolve().parents[2]/'results'/'cifar10'
TRAINED_ON, NAME = 'training images of CIFAR-10 (JPEG)', 't1_attn_16-cifar10'
METRICS = 'kid', 'distance', 'prdc', 'diversity'
SEED, COLUMNS = 0, 12                     # of the pictures; draws of z of each class


def kept(run):
    "What may be published: the best by the curve, and the newest."
    folder = Path(run)/'checkpoints'
    return [*sorted(folder.glob('best_*.pt')), checkpoints_of(run)[-1]]


def renamed(spec, res, name):
    "Images under a name of their own: a record names no path."
    source = open_source(spec, res)
    return chosen(source, torch.arange(len(source)), name)


def noise(G, n=COLUMNS):
    "One row for each class, the same z in each column."
    z = torch.randn(n, G.z_dim, generator=torch.Generator().manual_seed(SEED))
    K = max(G.n_classes, 1)
    return z.repeat(K, 1), torch.arange(K).repeat_interleave(n)


def pictures(G, n=COLUMNS):
    "Generated images, and below them the same with attention silenced."
    z, y = noise(G, n)
    whole = draw(G, z, y)
    with silenced(G): without = draw(G, z, y)
    return tuple(Image.fromarray(grid_image(x, n).permute(1, 2, 0).numpy()) for x in (whole, without))


class Choice:
    "Held-out images, the classifier that measures, and what was measured with them."
    def __init__(self, train, test, res, n_fake=10_000):
        self.test, self.n = renamed(test, res, HELD_OUT), n_fake
        self.judge = domain(renamed(train, res, TRAINED_ON), cache_folder())

    def scores(self, G, about, metrics=METRICS):
        "Records of a generator."
        return evaluate(G, self.test, metrics, self.judge, self.n, len(self.test), cache=None, about=about)

    def candidates(self, run):
        "Step, path and KID of each kept checkpoint, smallest KID first."
        found = {}
        for path in kept(run):
            model = open_run(path)
            if model.step in found: continue
            kid = self.scores(model.G, model.about, ('kid',))[0]['value']
            found[model.step] = dict(step=model.step, path=path, kid=kid)
            print(f'step {model.step:,}: KID {kid:.4f}', flush=True)
        return sorted(found.values(), key=lambda o: o['kid'])


def about_it(model, of):
    "For the card: what it is, and what it is not."
    length = f'{model.step:,} updates of G' + (f' (the run is to have {of:,})' if model.step < of else '')
    return (f'Draws images like those of CIFAR-10 (its JPEG copy; ten classes), 32x32. Row `{model.cfg.preset}` of '
            f'Table 1 at width 16, averaged weights, {length} on one core; weights rounded to float16. Of the '
            'checkpoints kept, the one with the smallest kernel distance to held-out images. Its images are small and '
            'mostly not convincing; it is here to be looked into. CIFAR-10 has no stated licence; its images were '
            'collected for research.')


@call_parse
def main(
    run:str,                  # run folder
    train:str,                # the images it was trained on
    test:str,                 # held-out images
    out:str=str(OUT),         # folder for the generator and all that is said of it
    n:int=10_000,             # generated images for each score
):
    "Choose, measure, publish."
    keep_memory()
    out, newest = Path(out), open_run(run)
    if not newest.cfg.n_classes: raise Refused('a generator with classes is asked for')
    of = max(newest.cfg.steps, newest.step)
    choice = Choice(train, test, newest.cfg.res, n)
    all_of_them = choice.candidates(run)
    best = open_run(all_of_them[0]['path'])
    best.cfg = replace(best.cfg, data='CIFAR-10 (JPEG)')
    file = save_pretrained(best.G, out/f'{NAME}.safetensors', about_it(best, of), half=True, classes=best.classes)
    model = open_run(file)                    # what is measured and shown is what is published: half precision
    about = dict(best.about, checkpoint=file.name, checkpoint_sha256=file_sha256(file), numerics=NUMERICS)
    records = choice.scores(model.G, about)
    with silenced(model.G): without = choice.scores(model.G, dict(about, attention='silenced'))
    for name, picture in zip(('samples', 'silenced'), pictures(model.G)):
        with atomic_write(out/f'{name}.png') as part: picture.save(part, format='PNG', optimize=True)
    last = next((o for o in reversed(read_log(Path(run)/'log.jsonl')) if 'usage_G' in o), {})
    usage = {k: last[k] for k in ('usage_G', 'usage_D') if k in last}
    candidates = [dict(step=o['step'], kid=o['kid']) for o in all_of_them]
    write_json(out/'generator.json', dict(
        row=best.cfg.preset, scale=best.cfg.scale, step=best.step, of=of, file=file.name, bytes=file.stat().st_size,
        candidates=candidates, records=records, silenced=without, curve=read_log(Path(run)/'curve.jsonl'),
        settings=changed(best.cfg), usage=usage, env=machines(run)[0], classes=best.classes))
    for o, b in zip(records, without): print(f'{o["metric"]}: {o["value"]:.4g}, silenced {b["value"]:.4g}')
    print(f'{file}: {file.stat().st_size / 1e6:.1f} MB, of step {best.step:,}')
