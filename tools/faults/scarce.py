"""Take away what a program needs and see that it says so, loses nothing, and goes on afterwards:
`python -m tools.faults.scarce --tries 100 --out results/faults`.

A full disk, a quota, a read-only folder and a disk that fails are injected at an operation chosen by chance; a small
file system that is full or read-only, file handles, the size of files and memory are limits of the real system; and the
clock is set back at every look.
"""
import errno
import os
import random
import re
import resource
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from fastcore.script import call_parse

from sagan_nb.machinery.options import fault_line

from .crash import Harness, differences, forked
from .layer import Layer
from .results import add_rows, tries_so_far
from .works import WORKS, check_whole, outcome, small

INJECTED = {'the disk is full': errno.ENOSPC, 'the quota is used up': errno.EDQUOT,
            'the folder is read-only': errno.EROFS, 'the disk fails': errno.EIO}
SAFE = 'checkpoint', 'no run', 'no file that was there is lost'     # one of these is said where training is stopped


@contextmanager
def limit(what, value):
    "A limit on this process, for good: only children use it."
    resource.setrlimit(what, (value, resource.getrlimit(what)[1]))
    yield


def handles(spare):
    "As many files as are open now, and so many."
    free = os.dup(1)                              # the smallest number that is not taken
    os.close(free)
    return limit(resource.RLIMIT_NOFILE, free + spare)


def memory():
    "As much memory as is in use now, and 8 MiB."
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    return limit(resource.RLIMIT_AS, used + (8 << 20))


@contextmanager
def clock_back():
    "Each look at the clock sees an hour less than the one before."
    before, seen = time.time, [time.time()]
    def back():
        seen[0] -= 3600
        return seen[0]
    time.time = back
    try: yield
    finally: time.time = before


FEW = 'few file handles, or none'
LIMITS = {FEW: handles, 'files may hold 20,000 bytes': lambda: limit(resource.RLIMIT_FSIZE, 20_000),
          'memory is limited': memory, 'the clock goes back': clock_back}


@contextmanager
def mounted(folder, size):
    "A file system of so many bytes. Raises PermissionError where none may be made."
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder], capture_output=True)
    if done.returncode: raise PermissionError('no file system may be mounted here')
    try: yield folder
    finally: subprocess.run(['umount', folder], check=True)


def size_of(folder):
    "Bytes that its files and folders take, in whole pages."
    return sum(-(-p.stat().st_size // 4096)*4096 for p in [folder, *folder.rglob('*')])


def remount(folder, options): subprocess.run(['mount', '-o', f'remount,{options}', folder], check=True)


class Scarcity(Harness):
    "Lets each work meet each fault."
    def disturb(self, name, folder, within):
        "Do a work within a fault: exit code, what it said in one line, or its traceback."
        said = self.folder/'said.txt'
        said.unlink(missing_ok=True)
        def work():
            with small(self.place):
                with within():
                    try: WORKS[name].do(self.place, folder)
                    except BaseException as e:
                        line = fault_line(e) or (str(e) if name == 'table' else '')
                        if not line: raise
                        words = line
                    else: return
            lift()
            said.write_text(words)
            os._exit(3)
        code = forked(work, self.log)
        return code, said.read_text() if said.exists() else ''

    def judge(self, name, folder, code, line):
        "What is wrong after a fault, and after the work was done again without it."
        wrong = [] if code in (0, 3) else [f'ended with {code}: {self.log.read_text()[-3000:]}']
        if code == 3 and (len(line) < 10 or '\n' in line or len(line) > 600): wrong.append(f'said: {line!r}')
        if code == 3 and name in ('training', 'resuming') and not any(o in line for o in SAFE):
            wrong.append(f'does not say what is safe: {line}')
        wrong += check_whole(folder)
        try: self.must(lambda: WORKS[name].do(self.place, folder))
        except RuntimeError as e: return [*wrong, f'it does not go on: {e}']
        return wrong + differences(outcome(folder), self.ends[name])

    def within(self, fault, folder, at, spare):
        "What makes a work meet a fault, when it is called in its process."
        if fault == FEW: return partial(handles, spare)
        if fault in LIMITS: return LIMITS[fault]
        return lambda: Layer(folder, at, INJECTED[fault], lasts=self.rng.random() < .7).on()

    def trial(self, name, fault):
        "One work, one fault: how it ended, what is wrong."
        if name not in self.ends: self.undisturbed(name)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self.begin(name, folder)
        at = self.rng.randrange(1, self.operations[name] + 1)
        spare = self.rng.randrange(12)
        code, line = self.disturb(name, folder, self.within(fault, folder, at, spare))
        wrong = self.judge(name, folder, code, line)
        if not wrong: shutil.rmtree(folder)
        where = f'{spare} spare' if fault == FEW else f'at {at}'
        return line, [f'{where}: {o}' for o in wrong]

    def small_disk(self, name):
        """A real file system that holds only half of what the work writes; then it is read-only; then all is well.
        Raises PermissionError."""
        if name not in self.ends: self.undisturbed(name)
        need = size_of(self.folder/f'{name}-whole')
        with mounted(self.folder/f'disk-{self.rng.random()}', 16*need + (1 << 20)) as folder:
            self.begin(name, folder)
            there = size_of(folder)
            remount(folder, f'size={there + (need - there)//2}')
            code, line = self.disturb(name, folder, nullcontext)
            remount(folder, 'ro')
            again, _ = self.disturb(name, folder, nullcontext)
            remount(folder, f'rw,size={16*need + (1 << 20)}')
            wrong = self.judge(name, folder, code, line)
            if again not in (0, 3): wrong.append(f'read-only: ended with {again}: {self.log.read_text()[-3000:]}')
            return line, wrong


def lift():
    "Take this process's limits away again, as far as its own last word needs it."
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS):
        _, most = resource.getrlimit(what)
        resource.setrlimit(what, (most, most))


HOW = 'injected at an operation chosen by chance', 'limit of the system'
SMALL_DISK = 'a small disk', 'a file system that holds half of what is written, then is read-only'


def note_row(rows, show, name, fault, how, line, wrong):
    "Add one try to the row of its fault, and print what went wrong."
    row = rows.setdefault(fault, dict(fault=fault, how=how, tries=0, wrong=[], said=[]))
    row['tries'], row['wrong'] = row['tries'] + 1, row['wrong'] + [f'{name}: {o}' for o in wrong]
    if line and len(row['said']) < 3: row['said'].append(f'{name}: {re.sub(r"/tmp[^ ]*?/tmp[^/]*", "...", line)}')
    if show and line: print(f'{fault}, {name}: {line}')
    for o in wrong: print(f'{fault}, {name}: {o}', flush=True)


@call_parse
def main(
    tries:int=24,             # about so many
    seed:int=None,               # of the points (default: as many as were tried before)
    out:str=None,             # folder for scarce.json, to which is added; nothing is written without
    only:str=None,            # one work
    show:bool=False,          # print every line that was said
):
    "Take away, check, go on, compare. Ends with 1 where anything was lost."
    names, rows, began = [only] if only else [*WORKS], {}, time.time()
    note = partial(note_row, rows, show)
    if seed is None: seed = tries_so_far(Path(out)/'scarce.json') if out else 0
    with tempfile.TemporaryDirectory() as d:
        harness, rng = Scarcity(d, seed), random.Random(seed)
        pairs = [(fault, name) for fault in (*INJECTED, *LIMITS) for name in names]
        rng.shuffle(pairs)
        for fault, name in (pairs[i % len(pairs)] for i in range(tries)):
            note(name, fault, HOW[fault in LIMITS], *harness.trial(name, fault))
        try:
            for name in names[:max(1, tries // 8)]: note(name, *SMALL_DISK, *harness.small_disk(name))
        except PermissionError as e: print(f'not tried: a small disk ({e})')
    times = sum(o['tries'] for o in rows.values())
    print(f'{times} times something was taken from {", ".join(names)} in {time.time() - began:.0f} s')
    if out: add_rows(Path(out)/'scarce.json', [*rows.values()], time.time() - began)
    raise SystemExit(any(o['wrong'] for o in rows.values()))


if __name__ == '__main__': main()
