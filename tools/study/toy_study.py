"""How hard should the toy pictures be? The no-attention row alone, on seeds from 100 on:
`python -m tools.study.toy_study VARIANT SEED STEPS`.

A design answers the paper's question only if convolution alone neither solves its long-range rule early nor never. This
trains the row `t1_none` at laptop scale on a variant of the toy pictures and writes what it measured, eight times, to
`results/toy_study/`. Seeds below 100 belong to the tables, and no row with attention is trained here: the difficulty is
tuned, not the verdict.
"""
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from sagan_nb.config import NUMERICS, at_scale, preset
from sagan_nb.core import from_uint8
from sagan_nb.data import Pairs, Toy, diversity
from sagan_nb.train import draw, sampler
from sagan_nb.machinery.machine import environment, fast_bf16
from sagan_nb.machinery.runs import train

OUT = Path(__file__).resolve().parents[2]/'results'/'toy_study'


class Near(Toy):
    "The two parts close to the middle line: a shorter way for convolutions."
    def draw_factors(self):
        f, r = super().draw_factors(), torch.rand(self.n, 2, generator=torch.Generator().manual_seed(self.seed + 7))
        size = f['size'] * .8
        return f | dict(size=size, x=(size + .02 + .08*r) * torch.tensor([-1., 1.]))


class Apart(Pairs):
    "Pairs at a distance of its own: how far the edge of each part is from the middle lines."
    def gap(self, size, free): return size + .02 + .08*free
    def draw_factors(self):
        f = super().draw_factors()
        free = torch.rand(self.n, 2, 4, generator=torch.Generator().manual_seed(self.seed + 7))
        x, y = self.gap(f['size'], free[:, 0]), self.gap(f['size'], free[:, 1])
        return f | dict(x=x * torch.tensor([-1., 1., -1., 1.]), y=y * torch.tensor([-1., 1., 1., -1.]))


class PairsNear(Apart):
    "Pairs with all four parts close to the centre: a short way between partners."


class PairsFar(Apart):
    "Pairs with all four parts at the border: a long way between partners."
    def gap(self, size, free): return .94 - size - .08*free


VARIANTS = dict(now=(Toy, 32), near=(Near, 32), pairs=(Pairs, 32), pairs_near=(PairsNear, 32), pairs_far=(PairsFar, 32),
                pairs_64=(Pairs, 64))


def measure(source, x, y):
    "Mutual information in bits, agreement and its chance level, diversity."
    found = source.long_range(x, y)
    return {k: found[k] for k in ('mi', 'agreement', 'chance')} | dict(diversity=diversity(x, y))


def main(variant, seed, steps):
    assert seed >= 100, 'seeds below 100 belong to the tables'
    kind, res = VARIANTS[variant]
    source = kind(res, 4)
    source.fingerprint = f'{source.fingerprint} {variant}'
    cfg = replace(at_scale(preset('t1_none'), 'laptop', fast_bf16()), seed=seed, steps=steps, n_classes=4, res=res,
                  data_id=source.fingerprint, sample_every=steps, checkpoint_every=steps)
    pictures, labels = source.batch(torch.arange(3000))
    curve, began, folder = [], time.time(), Path(tempfile.mkdtemp())
    z, y = torch.randn(2000, cfg.z_dim, generator=torch.Generator().manual_seed(5)), torch.arange(2000) % 4
    def look(gan, log): return curve.append(dict(t=gan.t, **measure(source, draw(sampler(gan), z, y), y)))
    train(cfg, source, folder/'run', hooks=[(max(steps // 8, 1), look)])
    shutil.rmtree(folder)
    OUT.mkdir(exist_ok=True)
    result = dict(variant=variant, words=kind.__doc__, row='t1_none', seed=seed, steps=steps, res=res, width=cfg.width,
                  precision=cfg.precision, numerics=NUMERICS, env=environment('cpu'), n_fake=2000,
                  real=measure(source, from_uint8(pictures), labels), curve=curve, seconds=round(time.time() - began))
    (OUT/f'{variant}-s{seed}-{steps}.json').write_text(json.dumps(result, indent=1))


if __name__ == '__main__': main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
