"""What a trained generator loses when its attention is taken away or bent:
`python -m tools.study.mechanism RUN... [--out FILE]`.

Each RUN is the folder of a run on images drawn by code, with attention or with its residual control. The same noise is
drawn as trained, with the block silenced, and with the map of G's attention replaced; the number is the bits that
distant parts share, and their joint bits.
"""
import argparse
import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

from sagan_nb import self_attention
from sagan_nb.attention_maps import attention_layers, silenced
from sagan_nb.core import from_uint8, to_uint8
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.machine import machine_facts
from sagan_nb.machinery.runs import pictures_of
from sagan_nb.train import draw

softmax_map = self_attention.softmax_map


def distances(locations, keys, res):
    "Pixels between the centres of queries and keys on square maps of an image, (N, M)."
    centres = []
    for n in (locations, keys):
        side = round(n**.5)
        centres.append(torch.cartesian_prod(*[(torch.arange(side) + .5)*res/side]*2))
    return torch.cdist(*centres)


def even(q, k): return torch.full((len(q), q.shape[1], k.shape[1]), 1/k.shape[1])


def of_another_image(q, k): return softmax_map(q, k).roll(1, 0)


def shuffled(q, k):
    at = torch.randperm(q.shape[1], generator=torch.Generator().manual_seed(0))
    return softmax_map(q, k)[:, at]


def within(r, res, far=False):
    "The map with all keys further than r pixels left out, or those nearer, and the rest scaled up."
    def made(q, k):
        out = distances(q.shape[1], k.shape[1], res) > r
        return (q @ k.mT).masked_fill(~out if far else out, -torch.inf).softmax(-1)
    return made


@contextmanager
def mapped(G, make):
    "Within it, G's attention takes its map from make(q, k)."
    blocks = [*attention_layers(G).values()]
    were = [b.fast for b in blocks]
    for b in blocks: b.fast = False
    try:
        with patch.object(self_attention, 'softmax_map', make): yield
    finally:
        for b, fast in zip(blocks, were): b.fast = fast


def ways(G, res):
    "What is done to the block: words -> context manager."
    if not any(isinstance(b, self_attention.SelfAttention) for b in G.extra.values()):
        return {'as trained': nullcontext(), 'silenced (gamma = 0)': silenced(G, G.extra.values())}
    near = {f'only within {r} px': mapped(G, within(r, res)) for r in (4, 8, 16)}
    far = {f'only beyond {r} px': mapped(G, within(r, res, far=True)) for r in (8, 16)}
    return {'as trained': mapped(G, softmax_map), 'silenced (gamma = 0)': silenced(G, G.extra.values()),
            'even map': mapped(G, even), 'locations shuffled': mapped(G, shuffled),
            'map of another image': mapped(G, of_another_image), **near, **far}


def measure(run, n):
    "Bits under each way, for one run."
    model = open_run(run)
    G, cfg, source = model.G, model.cfg, pictures_of(model.cfg)
    z = torch.randn(n, cfg.z_dim, generator=torch.Generator().manual_seed(0))
    y, found = torch.zeros(n, dtype=torch.long), {}
    for words, way in ways(G, cfg.res).items():
        with way: x = draw(G, z, y)
        bits = source.long_range(from_uint8(to_uint8(x)), y)
        found[words] = {k: v for k, v in bits.items() if k in ('mi', 'joint', 'spread')}
        print(f'{Path(run).name}: {words:22} {bits["mi"]:6.2f} bits, {bits["joint"]:6.2f} joint', flush=True)
    use = {name: block.gamma.item() for name, block in G.extra.items()}
    return dict(run=Path(run).name, seed=cfg.seed, preset=cfg.preset, data=cfg.data, step=model.step, gamma=use, n=n,
                found=found, env=machine_facts())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('runs', nargs='+')
    p.add_argument('--n', type=int, default=5000)
    p.add_argument('--out', type=Path, default=Path('results/twins/mechanism.json'))
    o = p.parse_args()
    found = json.loads(o.out.read_text())['runs'] if o.out.exists() else []          # goes on where it was stopped
    for run in o.runs:
        if any((old['run'], old['n']) == (Path(run).name, o.n) for old in found):
            print(f'{Path(run).name} is there already')
            continue
        found.append(measure(run, o.n))
        with atomic_write(o.out) as part: part.write_text(json.dumps(dict(runs=found), indent=1) + '\n')


if __name__ == '__main__': main()
