"""Train for a while and watch what grows: `python -m tools.faults.soak --minutes 30 --out results/faults`.

Resident memory (with the allocator that keeps its memory, as the commands have it), open handles, the time of a step
and the log of a run at the smallest size, looked at every 200 steps by a hook. After a warm-up of a fifth, memory may
grow by 1 MiB in 1,000 steps, handles by none, the time of a step by a fifth (as processor time, in medians of the first
and the last third), and the log by its lines alone.
"""
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from fastcore.script import call_parse

from sagan_nb.machinery.machine import keep_memory
from sagan_nb.machinery.runs import stop_at, Stopped, train

from .results import add_rows
from .works import Place, settings, small

EVERY, SIGMAS = 200, 1000 # steps between looks, and between lines with singular values
LEAST = 30                # looks that a verdict needs


def resident():
    "Bytes of memory that this process has now."
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


class Watch:
    "Hook: note what grows."
    def __init__(self, run): self.run, self.seen = run, []

    def __call__(self, gan, log):
        handles, log = len(os.listdir('/proc/self/fd')), (self.run/'log.jsonl').stat().st_size
        self.seen.append(dict(t=gan.t, memory=resident(), handles=handles, cpu=time.process_time(), log=log))


def verdicts(seen, how=''):
    "Rows: what was watched, how it went (MiB at the end, too), what is wrong."
    late = seen[len(seen)//5:]
    t, memory = (np.array([o[k] for o in late], float) for k in ('t', 'memory'))
    slope = np.polyfit(t, memory, 1)[0] * 1000 / 2**20
    paces = np.diff([o['cpu'] for o in late]) / np.diff(t)
    third = len(paces) // 3
    slower = np.median(paces[-third:]) / np.median(paces[:third])
    whole = late[::SIGMAS//EVERY]                               # a line with singular values in each
    lines = np.diff([o['log'] for o in whole]) / np.diff([o['t'] for o in whole])
    first, last = late[0]['handles'], late[-1]['handles']
    found = {'memory': (f'{slope:+.2f} MiB in 1,000 steps, {memory[-1]/2**20:,.0f} MiB at the end', slope < 1),
             'handles': (f'{first} to {last}', last <= first),
             'time of a step': (f'{slower:.2f} times that of the beginning', slower < 1.2),
             'log': (f'{lines.min():.0f} to {lines.max():.0f} bytes a step', lines.max() < 1.3*lines.min() + 1)}
    about = dict(how=f'{seen[-1]["t"]:,} steps{how}', tries=len(seen))
    return [dict(fault=f'a long run: {name}', **about, said=[words], wrong=[] if good else [words])
            for name, (words, good) in found.items()]


@call_parse
def main(
    minutes:float=30,         # to train
    out:str=None,             # folder for soak.json; nothing is written without
):
    "Train and watch. Ends with 1 where something grows."
    began = time.time()
    how = ', freed memory kept' if keep_memory() else ''
    with tempfile.TemporaryDirectory() as d:
        place, run = Place(d), Path(d)/'run'
        cfg = replace(settings(place.source), steps=10**7, checkpoint_every=1000, sample_every=1000, log_every=50,
                      sigma_every=SIGMAS)
        watch = Watch(run)
        with small(place), suppress(Stopped):
            train(cfg, place.source, run, hooks=[(EVERY, watch), (10, stop_at(time.monotonic() + 60*minutes))])
    if len(watch.seen) < LEAST: raise SystemExit(f'{len(watch.seen)} looks show nothing: train for longer')
    rows = verdicts(watch.seen, how)
    for o in rows:
        verdict = ' WRONG' if o['wrong'] else ''
        print(f'{o["fault"]}: {o["said"][0]}, {o["how"]}{verdict}')
    if out: add_rows(Path(out)/'soak.json', rows, time.time() - began)
    raise SystemExit(any(o['wrong'] for o in rows))


if __name__ == '__main__': main()
