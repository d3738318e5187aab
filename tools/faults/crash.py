"""Kill real processes anywhere, again and again, and see that nothing is lost:
`python -m tools.faults.crash --kills 200 --out results/faults`.

Each child is forked from this process, which has imported everything and started nothing. It is killed at an operation
on a file that is chosen by chance (in the middle of a write, by SIGKILL, or as if the power went), or after a delay
that is; then everything under a final name must be whole and every lock free, and the same call must end with the same
bits as one that was never disturbed.
"""
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from fastcore.script import call_parse

from .layer import Layer
from .results import add_rows, tries_so_far
from .works import WORKS, Place, check_whole, outcome, small

WAYS = 'kill', 'power', 'delay'


def forked(do, log, delay=None):
    "Exit code of a child that does this; -9: it was killed, by itself or after the delay."
    if not (pid := os.fork()):
        code = 1
        try:
            do()
            code = 0
        except BaseException: Path(log).write_text(traceback.format_exc())
        finally: os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def differences(end, wanted, where=''):
    "Where two outcomes differ."
    if not (isinstance(end, dict) and isinstance(wanted, dict)):
        return [] if end == wanted else [f'{where} differs from an undisturbed one']
    found = [f'{where}/{k} is {"missing" if k in wanted else "left over"}' for k in sorted(end.keys() ^ wanted.keys())]
    for k in sorted(end.keys() & wanted.keys()): found += differences(end[k], wanted[k], f'{where}/{k}')
    return found


class Harness:
    "Kills one work after another and compares its end."
    def __init__(self, folder, seed=0):
        self.folder, self.rng, self.place = Path(folder), random.Random(seed), Place(folder)
        self.log = self.folder/'child.txt'
        self.must(self.place.prepare)
        self.ends, self.operations, self.seconds = {}, {}, {}

    def must(self, do):
        "Do it in a child, undisturbed. Raises RuntimeError where it fails."
        known = set(sys.modules)
        def quiet():
            with small(self.place): do()
            self.log.write_text('\n'.join(set(sys.modules) - known))
        if code := forked(quiet, self.log): raise RuntimeError(f'exit code {code}: {self.log.read_text()}')
        for name in self.log.read_text().split():                    # later children need not import them again
            with suppress(ImportError): importlib.import_module(name)

    def undisturbed(self, name):
        "What a work ends with, and of how many operations it is made."
        folder, counted = self.folder/f'{name}-whole', self.folder/f'{name}.txt'
        folder.mkdir()
        self.begin(name, folder)
        def count():
            with Layer(folder).on() as layer: WORKS[name].do(self.place, folder)
            counted.write_text(str(layer.n))
        began = time.perf_counter()
        self.must(count)
        self.seconds[name], self.operations[name] = time.perf_counter() - began, int(counted.read_text())
        self.ends[name] = outcome(folder)
        assert self.ends[name] and not check_whole(folder), check_whole(folder)

    def begin(self, name, folder):
        if WORKS[name].starts: shutil.copytree(self.folder/WORKS[name].starts, folder/'run')

    def kill_once(self, name, folder, way):
        "Disturb a work once; whether it was killed, and what is wrong afterwards."
        at = self.rng.randrange(1, self.operations[name] + 1)
        fault, seed = ('power' if way == 'power' else 'kill'), self.rng.random()
        layer = Layer(folder, 0 if way == 'delay' else at, fault, seed=seed)
        def disturbed():
            with small(self.place), layer.on(): WORKS[name].do(self.place, folder)
        delay = self.rng.random()*self.seconds[name] if way == 'delay' else None
        code = forked(disturbed, self.log, delay)
        wrong = check_whole(folder)
        if code not in (0, -signal.SIGKILL): wrong.append(f'ended with {code}: {self.log.read_text()}')
        return code == -signal.SIGKILL, [f'{way} at {at}: {o}' for o in wrong]

    def trial(self, name, way):
        "Kill a work, perhaps again when it goes on, and let it end. Returns the number of kills and what went wrong."
        if name not in self.ends: self.undisturbed(name)
        folder, kills, wrong = Path(tempfile.mkdtemp(dir=self.folder)), 0, []
        self.begin(name, folder)
        for _ in range(self.rng.choice((1, 1, 2))):
            killed, found = self.kill_once(name, folder, way)
            kills, wrong = kills + killed, wrong + found
        try: self.must(lambda: WORKS[name].do(self.place, folder))
        except RuntimeError as e: return kills, [*wrong, f'it does not go on: {e}']
        end, wanted = outcome(folder), self.ends[name]
        wrong += differences(end, wanted)
        if not wrong: shutil.rmtree(folder)
        return kills, wrong


@call_parse
def main(
    kills:int=20,             # at least so many, shared by all works
    seed:int=None,               # of the points (default: as many as were tried before)
    out:str=None,             # folder for crash.json, to which is added; nothing is written without
    only:str=None,            # one work
):
    "Kill, check, go on, compare. Ends with 1 where anything was lost."
    names, rows, began = [only] if only else [*WORKS], {}, time.time()
    if seed is None: seed = tries_so_far(Path(out)/'crash.json') if out else 0
    with tempfile.TemporaryDirectory() as d:
        harness, turn = Harness(d, seed), 0
        while sum(o['tries'] for o in rows.values()) < kills:
            name, way = names[turn % len(names)], WAYS[turn // len(names) % len(WAYS)]
            n, wrong = harness.trial(name, way)
            row = rows.setdefault((name, way), dict(fault=f'{name} is killed', how=way, tries=0, wrong=[]))
            row['tries'], row['wrong'], turn = row['tries'] + n, row['wrong'] + wrong, turn + 1
            for o in wrong: print(f'{name}: {o}', flush=True)
    print(f'{sum(o["tries"] for o in rows.values())} kills of {", ".join(names)} in {time.time() - began:.0f} s')
    if out: add_rows(Path(out)/'crash.json', [*rows.values()], time.time() - began)
    raise SystemExit(any(o['wrong'] for o in rows.values()))


if __name__ == '__main__': main()
