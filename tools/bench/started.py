"""Another implementation and ours, each in a process of its own:
`python -m tools.bench.started ADAPTER.py:FOLDER --out FILE [--net 128] [--rounds 6]`.

So each has the allocator with which people start it: the other implementation that of the system, ours the one that
`sagan_train` asks for, which keeps its memory (`keep_memory`). With `--kept` both keep it. The processes make one
update each in turns, in an order that is turned round every time, and wait in between. At 128 pixels ours is timed
eager, as `sagan_train` is, and compiled.
"""
import argparse
import json
import multiprocessing
import os
import time
from contextlib import suppress

from sagan_nb.core import Refused
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.bench import callable_from, try_step
from sagan_nb.machinery.machine import keep_memory, machine_facts
from sagan_nb.speed import NETS, VARIANTS, Step, timing_table, usable_variants


def serve(pipe, name, net, against, keep):
    "For each message, make one update and send the seconds and the processor seconds that it took."
    if keep and not keep_memory(): raise Refused('glibc alone can be told to keep memory')
    net = NETS[net]
    step = try_step(callable_from(against), net) if name == 'against' else Step(net, VARIANTS[name])
    with suppress(EOFError):                              # the end of the process that asks
        while pipe.recv():
            start, cpu = time.perf_counter(), time.process_time()
            step()
            pipe.send((time.perf_counter() - start, time.process_time() - cpu))


class Side:
    "One side, in its process. Call it for one update. Raises RuntimeError, with its name, if it died."
    def __init__(self, name, net, against, keep):
        new = multiprocessing.get_context('spawn')
        self.name, (self.pipe, other) = name, new.Pipe()
        self.process = new.Process(target=serve, args=(other, name, net, against, keep), daemon=True)
        self.process.start()
        other.close()                                     # or its death would be a silence

    def __call__(self):
        try:
            self.pipe.send(True)
            return self.pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError(f'{self.name}: its process died; what it said is above') from None


def updates_in_turns(sides:dict, rounds:int)->dict:
    "name -> (seconds, processor seconds) of each update; every other round in the opposite order."
    taken = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[::-1 if i % 2 else 1]: taken[name].append(sides[name]())
        print(f'round {i + 1} of {rounds}: ' + ', '.join(f'{n} {t[-1][0]:.2f} s' for n, t in taken.items()), flush=True)
    return taken


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('against', help='Python file with make_step, see sagan_bench --against')
    parser.add_argument('--out', required=True)
    parser.add_argument('--net', default='128', choices=NETS)
    parser.add_argument('--rounds', type=int, default=6)
    parser.add_argument('--kept', action='store_true', help='the other implementation keeps its memory, too')
    parser.add_argument('--note', default='')
    o = parser.parse_args(argv)
    asked = [k for k in os.environ if k.startswith('MALLOC_') or k == 'SAGAN_KEEP_MEMORY']
    for k in asked: del os.environ[k]                     # a process reads them when it starts
    callable_from(o.against)                              # refuses before anything is started
    net, sides, first = NETS[o.net], {}, {}
    large = ('all, fp32, compiled', 'all, bf16, compiled') if net.res >= 128 else ()
    for name in ('against', *usable_variants('cpu', ['all, fp32', 'all, bf16', *large])):
        sides[name] = Side(name, o.net, o.against, o.kept or name != 'against')
        first[name] = sides[name]()[0]                    # alone: it may compile
        print(f'{name}: the first update took {first[name]:.1f} s', flush=True)
        for _ in range(2): sides[name]()
    rows = timing_table(updates_in_turns(sides, o.rounds), net.batch, 'against')
    for name, row in rows.items(): row.update(first_seconds=first[name], keeps_memory=o.kept or name != 'against')
    adapter, nets = os.path.basename(o.against.split(':')[0]), {o.net: dict(res=net.res, batch=net.batch, rows=rows)}
    facts = machine_facts() | dict(made_by='python -m tools.bench.started', note=o.note, against=adapter)
    text = json.dumps(facts | dict(nets=nets), indent=1)
    with atomic_write(o.out) as part: part.write_text(text + '\n', encoding='utf-8')
    print(f'written to {o.out}')


if __name__ == '__main__': main()
