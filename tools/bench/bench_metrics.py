"""Fréchet distances beside `scipy.linalg.sqrtm`, PRDC and KID, on made-up features:
`python -m tools.bench.bench_metrics [--classes 1000] [--rows 50000] [--out FILE]`.

Takes about seven minutes on two cores. Writes results/metrics_speed.json, which chapter 10 reads.
"""
import argparse
import functools
import json
import os
import platform
import subprocess
import time
import warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '2')

import numpy as np
import scipy
import torch
from scipy.linalg import sqrtm

from sagan_nb.metrics import Stats, frechet_distance, intra_distances, kernel_distance, prdc, squared_mmd
from sagan_nb.machinery.machine import keep_memory

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def mix(width):
    "What correlates the columns, (64, width)."
    return torch.randn(64, width, generator=torch.Generator().manual_seed(0)) / 8


def features(n, width, seed):
    "Correlated, rectified float32 rows, as a network gives them."
    rng = torch.Generator().manual_seed(seed)
    own, common = torch.randn(n, width, generator=rng), torch.randn(n, 64, generator=rng)
    return (own + common @ mix(width) + .1*(seed % 7)).relu_()


def by_sqrtm(a, b):
    "The same distance from means and covariances, through the root of the product."
    S, T = a.covariance.numpy(), b.covariance.numpy()
    trace = np.trace(sqrtm(S @ T)).real
    return ((a.mean - b.mean)**2).sum().item() + np.trace(S) + np.trace(T) - 2*trace


def timed(f, *args):
    "Seconds, and what f gives."
    began = time.perf_counter()
    out = f(*args)
    return time.perf_counter() - began, out


def one_distance(width, n):
    "Two full-rank statistics."
    a, b = (Stats.of(features(n, width, seed)) for seed in (1, 2))
    frechet_distance(a, b)                                       # warm
    ours, sqrtms = [timed(frechet_distance, a, b) for _ in range(3)], [timed(by_sqrtm, a, b) for _ in range(2)]
    seconds, theirs = sorted(s for s, _ in ours)[1], min(s for s, _ in sqrtms)
    return dict(width=width, n=[n, n], seconds=seconds, sqrtm_seconds=theirs, times_faster=theirs / seconds,
                relative_difference=abs(ours[0][1] / sqrtms[0][1] - 1), how='median of 3 against the faster of 2')


def intra(width, n_classes, n_fake, n_real, sample):
    "Class by class; only the metric is timed. sqrtm on a few classes, multiplied up."
    made = 0.
    def pair(k): return (features(n_fake, width, 2*k), features(n_real, width, 2*k + 1))

    def groups():
        nonlocal made
        for k in range(n_classes):
            seconds, (fake, real) = timed(pair, k)
            made += seconds
            yield k, fake, real
    total, (mean, values) = timed(intra_distances, groups())
    seconds, worst = 0., 0.
    for k in range(sample):
        stats = timed(lambda: [Stats.of(x) for x in pair(k)])
        root = timed(by_sqrtm, *stats[1])
        seconds, worst = seconds + stats[0] + root[0], max(worst, abs(values[k] / root[1] - 1))
    ours, theirs = total - made, seconds / sample * n_classes
    return dict(width=width, classes=n_classes, n_fake=n_fake, n_real=n_real, seconds=ours,
                seconds_per_class=ours / n_classes, mean=mean,
                sqrtm_classes_measured=sample, sqrtm_seconds_per_class=seconds / sample,
                sqrtm_seconds_extrapolated=theirs, times_faster=theirs / ours, relative_difference=worst,
                how=f'sqrtm measured on {sample} classes and multiplied up to {n_classes}')


def neighbours(width, n, subsets=100):
    """PRDC and KID of n rows against n, in seconds of all processors: their time on that many quiet cores is this
    divided by their number."""
    fake, real = features(n, width, 1), features(n, width, 2)
    measures = dict(prdc=prdc, kid=functools.partial(kernel_distance, subsets=subsets), whole_kid=squared_mmd)
    out = dict(width=width, n=[n, n], subsets=subsets, values={})
    for name, measure in measures.items():
        cpu, wall = time.process_time(), time.perf_counter()
        out['values'][name] = measure(fake, real)
        out[f'{name}_cpu_seconds'], out[f'{name}_seconds'] = time.process_time() - cpu, time.perf_counter() - wall
    return dict(out, how='whole_kid: of all rows at once, without subsets. '
                         'PRDC and whole_kid grow with the square of the rows, KID with its subsets')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--classes', type=int, default=1000)
    p.add_argument('--width', type=int, default=2048)
    p.add_argument('--sample', type=int, default=2, help='classes that sqrtm is measured on')
    p.add_argument('--rows', type=int, default=50_000, help='generated and real images for PRDC and KID')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'metrics_speed.json')
    o = p.parse_args()
    torch.set_num_threads(2)
    keep_memory()                                                # as sagan_eval does
    warnings.simplefilter('ignore')
    git = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    machine = dict(cpu=platform.processor() or platform.machine(), capability=torch.backends.cpu.get_cpu_capability(),
                   cores=os.cpu_count(), torch=torch.__version__, scipy=scipy.__version__, numpy=np.__version__)
    out = dict(made_by='python -m tools.bench.bench_metrics', date=time.strftime('%Y-%m-%d'), commit=git or None,
               threads=2, dtype='float64; PRDC sifts pairs in float32 first',
               features='made up: correlated, rectified, float32 rows', **machine)
    out['distance'] = one_distance(o.width, 3*o.width)
    print(json.dumps(out['distance'], indent=1), flush=True)
    out['intra'] = intra(o.width, o.classes, 50, 1300, o.sample)
    print(json.dumps(out['intra'], indent=1), flush=True)
    out['neighbours'] = neighbours(o.width, o.rows)
    print(json.dumps(out['neighbours'], indent=1), flush=True)
    o.out.parent.mkdir(parents=True, exist_ok=True)
    o.out.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
