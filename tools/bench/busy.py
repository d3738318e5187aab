"""What a step costs where other programs keep cores busy:
`python -m tools.bench.busy [--net small] [--rounds 7] [--out FILE]`.

Writes results/speed/busy.json, which chapter 14 reads: seconds of a step of small networks by all threads, by half of
them, and by one, beside no other program and beside one that computes without a pause. For an idle machine of two cores
or more.
"""
import argparse
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from sagan_nb.core import Refused
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.machine import keep_memory, machine_facts
from sagan_nb.speed import NETS, VARIANTS, Step, in_turns, timing_table, usable_variants

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def beside(others:int):
    "So many programs that count, each in a session of its own, as a browser beside a terminal, while the block lasts."
    while_we_live = f'import os\nwhile os.getppid() == {os.getpid()}: pass'
    counting = [subprocess.Popen([sys.executable, '-c', while_we_live], start_new_session=True) for _ in range(others)]
    try: yield counting
    finally:
        for o in counting: o.kill()
        for o in counting: o.wait()


def by_threads(step, counts)->dict:
    "A callable for each number of threads; all make an update of the same networks."
    def by(n):
        def run():
            torch.set_num_threads(n)
            step()
        return run
    return {str(n): by(n) for n in counts}


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--net', default='small', choices=NETS)
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--note', default='')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'speed'/'busy.json')
    o = p.parse_args(argv)
    keep_memory()
    facts, n = dict(made_by='python -m tools.bench.busy', note=o.note, **machine_facts()), torch.get_num_threads()
    if n < 2: raise Refused('one thread waits for no other: this needs two')
    found, counts = {}, sorted({n, n // 2, 1}, reverse=True)
    for name in usable_variants('cpu', ['all, fp32', 'all, bf16']):
        step, found[name] = Step(NETS[o.net], VARIANTS[name]), {}
        for others in (0, 1):
            with beside(others): taken = in_turns(by_threads(step, counts), o.rounds)
            rows = found[name][str(others)] = timing_table(taken, NETS[o.net].batch, str(n))
            print(name, f'beside {others}:', {k: round(r['seconds'], 3) for k, r in rows.items()}, flush=True)
    torch.set_num_threads(n)
    text = json.dumps(facts | dict(net=o.net, rows=found), indent=1)
    with atomic_write(o.out) as part: part.write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__': main()
