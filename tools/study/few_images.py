"""What to expect of 100, 1,000 and 10,000 images, with and without augmentation:
results/few_images/README.md is the design.

    python -m tools.study.few_images TRAIN.zip TEST.zip --seeds 0,1,2

TRAIN and TEST are folders or zips with a folder for each class. A run that has its result is skipped, and one that was
stopped goes on, so the same command can be repeated after any interruption, and several processes share the runs.
"""
import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sagan_nb.ablation import Plan
from sagan_nb.config import NUMERICS, at_scale, differences, preset
from sagan_nb.core import Refused, from_uint8, grid_image, to_uint8
from sagan_nb.data import open_source
from sagan_nb.metrics import squared_distances
from sagan_nb.train import draw
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.checkpoints import Diverged
from sagan_nb.machinery.curve import SIZES, Curve
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.evaluate import evaluate
from sagan_nb.machinery.features import domain
from sagan_nb.machinery.files import content_hash, read_json, write_json
from sagan_nb.machinery.machine import keep_memory
from sagan_nb.machinery.pictures import Pictures
from sagan_nb.machinery.probe import auc
from sagan_nb.machinery.runs import StopOnSignal, Stopped, machines, read_log, run_lock, stop_at, train

OUT = Path(__file__).resolve().parents[2]/'results'/'few_images'
IMAGES, AUGMENT = (100, 1000, 10_000), ('none', 'diffaug')
ROWS = tuple(f'{n} {augment}' for n in IMAGES for augment in AUGMENT)
CLAIM = 'with {:,} images, augmentation brings the images nearer to held-out ones'
FEW = Plan('Few images', ROWS, ROWS[0], tuple((f'{n} diffaug', f'{n} none', CLAIM.format(n)) for n in IMAGES),
           kinds=('distance',), holm=True, seeds=(0, 1, 2))
QUERIES = 2000                # generated images that are looked up, and images that D judges
HELD_OUT = 'held-out images of CIFAR-10 (JPEG)'


def spread_order(labels, K):
    """An order of images in which every beginning has all classes alike, by a fixed draw: 10 images of 10 classes are
    one of each."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    piles = [shuffled[labels[shuffled] == k] for k in range(K)]
    return torch.stack([p[:min(map(len, piles))] for p in piles], 1).flatten()


def chosen(source, rows, name):
    "Some images of a source, as a source."
    made_of = content_hash(dict(rows=rows), dict(of=source.fingerprint))[:16]
    return Pictures(source.batch(rows)[0].numpy(), source.labels[rows], source.classes, name, made_of, {})


def features_of(judge, source, n=None):
    "Features of the first n images, all by default."
    rows = torch.arange(len(source) if n is None else min(n, len(source)))
    return torch.cat([judge(source.batch(part)[0])[0] for part in rows.split(200)])


def nearest(x, y):
    "Squared distance of each row of x to its nearest row of y, and which that is."
    found = [squared_distances(part, y, y[:1000].double().mean(0)).min(1) for part in x.split(500)]
    return torch.cat([o.values for o in found]), torch.cat([o.indices for o in found])


def copied_share(x, own, held):
    """Share of rows of x that are nearer to a row of `own` than 99 in 100 rows of `held` are. One in a hundred where x
    has as little to do with `own` as `held` has; 1 where every row is a copy."""
    return (nearest(x, own)[0] < nearest(held, own)[0].quantile(.01)).double().mean().item()


def looked_up(G, judge, source, n):
    """Features of n generated images and of all training images; and the first of each class over the training image
    nearest to it, as a picture."""
    from PIL import Image
    x = draw(G, torch.randn(n, G.z_dim, generator=torch.Generator().manual_seed(7)), torch.arange(n) % G.n_classes)
    own = features_of(judge, source)
    made = torch.cat([judge(to_uint8(part))[0] for part in x.split(200)])
    beside = from_uint8(source.batch(nearest(made[:G.n_classes], own)[1])[0])
    grid = grid_image(torch.cat([x[:G.n_classes], beside]), G.n_classes).permute(1, 2, 0).numpy()
    return made, own, Image.fromarray(grid)


def settings(source, images, augment, seed, scale, steps):
    "The settings of a run: the row of the main job at its scale, in float32, which every machine computes alike."
    cfg = at_scale(preset('t1_attn_16'), scale)
    return replace(cfg, res=source.res, data=f'{images} of CIFAR-10 (JPEG)', data_id=source.fingerprint,
                   n_classes=len(source.classes), augment=augment, seed=seed, steps=steps or cfg.steps,
                   precision='fp32')


def changed(cfg):
    "Settings that a run has otherwise than its preset."
    return {k: here for k, (_, here) in differences(preset(cfg.preset), cfg).items()}


class Study:
    "What all runs share: the images, the held-out ones, and the classifier that measures, which has seen neither."
    def __init__(self, train_spec, test_spec, out, runs, scale, steps, most=max(IMAGES)):
        "Open both; most: at most so many images are for training, the others are the classifier's."
        self.out, self.runs, self.scale, self.steps = Path(out), Path(runs), scale, steps
        self.whole, test = open_source(train_spec, 32), open_source(test_spec, 32)
        if self.whole.classes != test.classes:
            raise Refused(f'{train_spec} and {test_spec} do not have the same classes')
        self.order = spread_order(self.whole.labels, len(self.whole.classes))
        if len(self.order) < 2*most:
            raise Refused(f'{train_spec}: {most:,} images to train on and as many for the classifier are needed, '
                          f'there are {len(self.order):,}')
        self.held = chosen(test, spread_order(test.labels, len(test.classes)), HELD_OUT)
        self.rest = chosen(self.whole, self.order[most:], 'other training images of CIFAR-10 (JPEG)')
        self.judge = domain(self.rest, self.out/'features')
        self.held_features = features_of(self.judge, self.held)

    def name(self, images, augment, seed):
        return f'{images}-{augment}-s{seed}-{self.scale}-{self.steps}-v{NUMERICS}'

    def run(self, images, augment, seed, hooks=()):
        "Train, measure and write one result; what is there already is left."
        if images > max(IMAGES): raise Refused(f'at most {max(IMAGES):,} images: the others are the classifier\'s')
        name = self.name(images, augment, seed)
        path, run = self.out/f'{name}.json', self.runs/name
        source = chosen(self.whole, self.order[:images], f'{images} of CIFAR-10 (JPEG)')
        cfg = settings(source, images, augment, seed, self.scale, self.steps)
        with run_lock(run):
            if path.exists(): return
            curve = Curve(run, self.held, cfg, features=self.judge)
            resume = (run/'config.json').exists()
            if resume: curve.catch_up()
            train(cfg, source, run, resume, hooks=[(curve.every, curve), *hooks])
            result, strip = self.measure(run, source, cfg)
            with atomic_write(path.with_suffix('.png')) as part: strip.save(part, format='PNG', optimize=True)
            about = dict(row=f'{images} {augment}', images=images, augment=augment, seed=seed, name=name)
            write_json(path, result | about)

    def measure(self, run, source, cfg):
        "The result of a trained run, and its images over the nearest ones it was trained on."
        model, (n_fake, n_real) = open_run(run), SIZES[self.scale]
        about = dict(model.about, numerics=NUMERICS)
        records = evaluate(model.G, self.held, ('distance', 'kid', 'prdc', 'diversity'), self.judge, n_fake, n_real,
                           cache=None, about=about)
        copies, strip = self.copies(model.G, source)
        pace = np.median([o['seconds_per_step'] for o in read_log(run/'log.jsonl')])
        result = dict(scale=self.scale, steps=cfg.steps, numerics=NUMERICS, env=machines(run)[0], records=records,
                      curve=read_log(run/'curve.jsonl'), copies=copies, settings=changed(cfg),
                      known=self.known(model.D, source), seconds_per_step=float(pace))
        return result, strip

    def copies(self, G, source):
        "How many images copy a training image, generated and real ones; and the first of each class, as a picture."
        n = min(QUERIES, SIZES[self.scale][0])
        made, own, picture = looked_up(G, self.judge, source, n)
        others = features_of(self.judge, self.rest, n)
        generated, real = (copied_share(x, own, self.held_features) for x in (made, others))
        return dict(generated=generated, real=real), picture

    def known(self, D, source):
        "Share of pairs in which D scores a training image above a held-out one: half where it learnt none by heart."
        def scores(o):
            x, y = o.batch(torch.arange(min(QUERIES, len(o))))
            parts = zip(from_uint8(x).split(250), y.split(250))
            with torch.no_grad(): return torch.cat([D(a, b) for a, b in parts]).numpy()
        return auc(scores(source), scores(self.held))


def collect_few(out, scale='laptop'):
    "Results of one scale, of the length that most of them have."
    files = sorted(Path(out).glob(f'*-s*-{scale}-*-v*.json'))
    found = [read_json(p, 'delete it, and run the study again') for p in files]
    lengths = [(o['steps'], o['numerics']) for o in found]
    return [o for o in found if (o['steps'], o['numerics']) == max(lengths, key=lengths.count)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('train', help='images to train on')
    p.add_argument('test', help='images that are held out')
    p.add_argument('--images', default=','.join(map(str, IMAGES)))
    p.add_argument('--augment', default=','.join(AUGMENT))
    p.add_argument('--seeds', default=','.join(map(str, FEW.seeds)))
    p.add_argument('--scale', default='laptop')
    p.add_argument('--steps', type=int, default=2000)
    p.add_argument('--minutes', type=float, default=0, help='stop after so long, saved; the same command goes on')
    p.add_argument('--out', type=Path, default=OUT)
    p.add_argument('--runs', type=Path, default=Path('runs/few_images'))
    o = p.parse_args()
    keep_memory()
    sizes, seeds = ([int(v) for v in text.split(',')] for text in (o.images, o.seeds))
    try: study = Study(o.train, o.test, o.out, o.runs, o.scale, o.steps)
    except Refused as e: p.error(str(e))
    hooks = [(1, StopOnSignal('The same command goes on.'))]
    if o.minutes: hooks.append((1, stop_at(time.monotonic() + 60*o.minutes, 'The same command goes on.')))
    for seed in seeds:                                       # seed by seed, so that an early end leaves pairs
        for images in sizes:
            for augment in o.augment.split(','):
                print(f'{images:,} images, {augment}, seed {seed}', flush=True)
                try: study.run(images, augment, seed, hooks)
                except Stopped as e: return print(e)
                except (Refused, Diverged) as e: print(f'no result: {e}', flush=True)


if __name__ == '__main__': main()
