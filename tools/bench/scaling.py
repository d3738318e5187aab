"""Throughput of two ranks of one core each against one rank of one core, in paired rounds, on a quiet machine:
`python -m tools.bench.scaling [--rounds 5] [--steps 10] [--batch 64] [--out results/scaling.json]`."""
import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

from sagan_nb.machinery.crew import Crew
from sagan_nb.machinery.machine import machine_facts

NETS = 'the 32 px benchmark of chapter 14: channels=(128,)*4'


def nets_of_the_bench(cfg):
    from sagan_nb.networks import Discriminator, Generator
    wide = dict(res=32, n_classes=10, attn_at=(), sn=True, channels=(128,)*4)
    return Generator(**wide), Discriminator(**wide, down=(True, True, False, False))


def seconds(steps, batch, cores):
    "Time some updates of D and G on this rank, which stays on one core; the first two, which are slower, do not count."
    import torch
    from sagan_nb import train
    from sagan_nb.config import PRESETS, at_scale
    os.sched_setaffinity(0, {cores[int(os.environ['RANK'])]})
    train.networks = nets_of_the_bench
    cfg = replace(at_scale(PRESETS['t1_none'], 'laptop'), n_classes=10, batch=batch, standing=0, ema=0.,
                  precision='fp32')
    gan = train.make_gan(cfg)
    x, y = torch.rand(batch, 3, 32, 32)*2 - 1, torch.arange(batch) % 10
    x, y = gan.place(gan.ranks.mine(x)), gan.ranks.mine(y)
    for step in range(steps + 2):
        if step == 2:
            gan.ranks.any(False)                              # all begin together
            began = time.perf_counter()
        train.d_step(gan, x, y), train.g_step(gan, len(x))
    gan.ranks.any(False)
    return (time.perf_counter() - began) / steps


def measure(rounds, steps, batch):
    "Pairs of images per second: one rank, two ranks."
    from tools.bench.scaling import seconds as work           # by its name, which other processes can import
    found, cores = [], sorted(os.sched_getaffinity(0))
    if len(cores) < 2: raise SystemExit('scaling: needs two cores')
    with Crew(1) as one, Crew(2) as two:
        for i in range(rounds):
            order = 1 if i % 2 else -1                        # who goes first, in turns
            pair = [batch / max(crew(work, steps, batch, cores)) for crew in (one, two)[::order]]
            found.append(pair[::order])
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name, value in dict(rounds=5, steps=10, batch=64).items(): p.add_argument(f'--{name}', type=int, default=value)
    p.add_argument('--out', type=Path)
    o = p.parse_args()
    machine = machine_facts()                                # with its load before it works
    pairs = measure(o.rounds, o.steps, o.batch)
    ratio = [b/a for a, b in pairs]
    result = dict(nets=NETS, batch=o.batch, pairs=pairs, ratio=statistics.median(ratio), machine=machine)
    print(f'two ranks make {result["ratio"]:.2f} times the images of one '
          f'({min(ratio):.2f} to {max(ratio):.2f}, {o.rounds} rounds)')
    if o.out: o.out.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
