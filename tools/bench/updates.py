"""Whole updates of `sagan_train` from several checkouts, in turns, in processor seconds of one thread:
`python -m tools.bench.updates OLD . [--data toy] [--set KEY=VALUE ...] [--rounds 6] [--updates 8] [--out FILE]`.

A checkout is a folder; the first one is what the others are compared with. Name it twice to see what chance does. With
`+keep` behind its name, glibc keeps freed memory there, as `sagan_train` has it; without, it does not.
With `--profile FILE` nothing is compared: it writes where the time of an update goes, in this checkout and with memory
kept.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from sagan_nb.machinery.machine import machine_facts


def train_by(hook, row, data, keep, *pairs):
    "Train by the hooks of a checkout, and by this one after every update."
    from dataclasses import replace

    from sagan_nb.config import at_scale, override, preset
    from sagan_nb.data import open_source
    from sagan_nb.machinery.machine import fast_bf16
    from sagan_nb.machinery.runs import train
    if keep == 'keep':
        from sagan_nb.machinery.machine import keep_memory
        assert keep_memory()
    cfg = override(at_scale(preset(row), 'laptop', fast_bf16()), pairs)
    source = open_source(data, res=cfg.res)
    cfg = replace(cfg, data=data, data_id=source.fingerprint, n_classes=len(source.classes), steps=10**6,
                  checkpoint_every=10**6, sample_every=10**6)
    with tempfile.TemporaryDirectory() as folder: train(cfg, source, Path(folder)/'run', hooks=[(1, hook)])


def serve(argv):
    "For each line read, make so many updates and print their processor seconds."
    left, began = 0, 0.

    def tick(gan, log):
        nonlocal left, began
        left -= 1
        if left > 0: return
        if began: print(time.process_time() - began, flush=True)
        left, began = int(sys.stdin.readline() or os._exit(0)), time.process_time()
    train_by(tick, *argv)


def profile(o):
    "Where the time of whole updates goes, as text: operators by their own time, and how much of the whole is theirs."
    import torch

    from sagan_nb.machinery.runs import Stopped
    torch.set_num_threads(1)
    p, times = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]), []
    def tick(gan, log):
        if gan.t == 3: p.start()
        if gan.t in (3, 3 + o.updates): times.append(time.perf_counter())
        if gan.t < 3 + o.updates: return
        p.stop()
        raise Stopped
    with suppress(Stopped): train_by(tick, o.row, o.data, 'keep', *o.set)
    found, taken = p.key_averages(), times[1] - times[0]
    own = sum(e.self_cpu_time_total for e in found)/1e6
    about = (f'{o.row}, {o.data}, {" ".join(o.set)}: {o.updates} updates, {taken/o.updates:.3f} s each by the clock, '
             f'{own/taken:.0%} of it in operators')
    return f'{about}\n{found.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60)}\n'


def start(name, o):
    "A process that trains by the code of a checkout."
    folder, _, keep = name.partition('+')
    env = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}
    env |= dict(PYTHONPATH=str(Path(folder).absolute()), OMP_NUM_THREADS='1', IN_TEST='1')
    args = [sys.executable, str(Path(__file__).absolute()), '--serve', o.row, o.data, keep or 'no', *o.set]
    return subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=folder)


def update(process, n):
    "Let it make n updates, and return their processor seconds."
    process.stdin.write(f'{n}\n')
    process.stdin.flush()
    return float(process.stdout.readline())


def peak(process):
    "Bytes of memory that a process has had at most."
    lines = Path(f'/proc/{process.pid}/status').read_text().splitlines()
    return next(int(o.split()[1])*1024 for o in lines if o.startswith('VmHWM'))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('checkouts', nargs='*')
    p.add_argument('--row', default='t1_attn_16')
    p.add_argument('--data', default='toy')
    p.add_argument('--set', nargs='*', default=[])
    p.add_argument('--out', type=Path)
    p.add_argument('--profile', type=Path)
    for name, n in dict(rounds=6, updates=8).items(): p.add_argument(f'--{name}', type=int, default=n)
    o = p.parse_args()
    if o.profile: return o.profile.write_text(profile(o), encoding='utf-8')
    if not o.checkouts: p.error('name checkouts')
    running = [start(name, o) for name in o.checkouts]
    try:
        for process in running: update(process, 3)
        taken = [[update(process, o.updates)/o.updates for process in running] for _ in range(o.rounds)]
        peaks = [peak(process) for process in running]
    finally:
        for process in running: process.kill()
    rows = [dict(checkout=name, cpu_seconds=statistics.median(own), rounds=own, peak_bytes=most,
                 ratio=statistics.median(r[0]/r[i] for r in taken), fastest=min(r[0] for r in taken)/min(own))
            for i, (name, most, own) in enumerate(zip(o.checkouts, peaks, zip(*taken)))]
    for r in rows:
        print(f'{r["checkout"]:30} {r["cpu_seconds"]:.3f} s, {r["ratio"]:.2f} times the updates '
              f'(by the fastest {r["fastest"]:.2f}), {r["peak_bytes"]/2**20:.0f} MiB')
    if not o.out: return
    result = dict(row=o.row, data=o.data, set=o.set, updates=o.updates, rows=rows, **machine_facts())
    o.out.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': serve(sys.argv[2:]) if sys.argv[1:2] == ['--serve'] else main()
