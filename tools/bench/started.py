"""Another implementation and ours, each as people start it: `python -m tools.bench.started ADAPTER.py:FOLDER --out FILE [--net 128] [--rounds 5]`.

Each side is a process of its own, so each has its own allocator: the other implementation that of the system, ours the one
that `sagan_train` asks for, which keeps its memory (`keep_memory`). With `--kept` both keep it. The processes make one update
each in turns, and wait in between. At 128 pixels ours is timed eager and compiled; `sagan_train` compiles where that pays.
"""
import argparse
import json
import multiprocessing
import time

import torch

from sagan_nb.core import Refused
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.bench import callable_from, try_step
from sagan_nb.machinery.machine import keep_memory, machine_facts
from sagan_nb.speed import NETS, VARIANTS, Step, timing_table, usable_variants


def serve(pipe, name, net, against, keep):
    "For each message, make one update and send the seconds and the processor seconds that it took."
    if keep and not keep_memory(): raise Refused('this system has no allocator that can be told to keep memory')
    net = NETS[net]
    step = try_step(callable_from(against), net) if name == 'against' else Step(net, VARIANTS[name])
    while pipe.recv():
        start, cpu = time.perf_counter(), time.process_time()
        step()
        pipe.send((time.perf_counter() - start, time.process_time() - cpu))


class Side:
    "One side, in its process. Call it for one update."
    def __init__(self, *args):
        new = multiprocessing.get_context('spawn')
        self.pipe, other = new.Pipe()
        self.process = new.Process(target=serve, args=(other, *args), daemon=True)
        self.process.start()
        other.close()                                     # so that a side that dies is an error here, and no waiting

    def __call__(self):
        self.pipe.send(True)
        return self.pipe.recv()

    def end(self):
        self.pipe.send(False)
        self.process.join()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('against', help='Python file with make_step, see sagan_bench --against')
    parser.add_argument('--out', required=True)
    parser.add_argument('--net', default='128', choices=NETS)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--kept', action='store_true', help='the other implementation keeps its memory, too')
    parser.add_argument('--note', default='')
    o = parser.parse_args(argv)
    callable_from(o.against)                              # refuses before anything is started
    large = ('all, fp32, compiled', 'all, bf16, compiled')*(NETS[o.net].res >= 128)
    names = usable_variants('cpu', ['all, fp32', 'all, bf16', *large])
    sides, taken = {}, {}
    for name in ('against', *names):
        sides[name] = Side(name, o.net, o.against, o.kept or name != 'against')
        taken[name], first = [], sides[name]()            # alone: it may compile
        print(f'{name}: the first update took {first[0]:.1f} s', flush=True)
        sides[name]()
    for i in range(o.rounds):
        for name, side in sides.items(): taken[name].append(side())
        print(f'round {i + 1} of {o.rounds}: ' + ', '.join(f'{n} {t[-1][0]:.2f} s' for n, t in taken.items()), flush=True)
    for side in sides.values(): side.end()
    rows = timing_table(taken, NETS[o.net].batch, 'against')
    facts = machine_facts() | dict(made_by='tools.bench.started', note=o.note, kept=o.kept, threads=torch.get_num_threads())
    with atomic_write(o.out) as part: part.write_text(json.dumps(facts | dict(nets={o.net: dict(rows=rows)}), indent=1) + '\n', encoding='utf-8')
    print(f'written to {o.out}')


if __name__ == '__main__': main()
