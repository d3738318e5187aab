"""A layer between Python and the disk: the k-th operation below a folder fails, or ends the process half way.

An operation is what a program does to files: open one to write, write, sync, rename, link, remove, make a folder.
`kill` is SIGKILL, in the middle of a write after half of its bytes. `power` is that, and what was not synced is lost:
names are as they were, contents are cut off. Any other fault is an error of the system, such as ENOSPC.
"""
import errno
import io
import os
import random
import signal
from contextlib import contextmanager
from pathlib import Path

CALLS = 'fsync', 'replace', 'rename', 'link', 'unlink', 'mkdir'      # of `os`; with open and write all that is counted
GROWING = {'open', 'write', 'fsync', 'link', 'mkdir'}                # what a full disk refuses
REAL = {name: getattr(os, name) for name in CALLS}
OPEN = io.open


class Layer:
    "Counts operations below a folder; what happens at one of them is `fault`, and from it on where it `lasts`."
    def __init__(self,
        root,                     # only files below it count
        at:int=0,                 # the operation at which it happens, from 1; 0: never
        fault='kill',             # kill, power, or an errno
        lasts:bool=True,          # of an errno: is every later operation refused, too?
        seed:int=0,               # of what a power cut leaves
    ):
        self.root, self.at, self.fault, self.lasts = os.path.realpath(root), at, fault, lasts
        self.n, self.rng, self.names = 0, random.Random(seed), []
        self.unsynced = {}        # path -> bytes that are on the disk
        self.renamed = []         # (name, what it held before or None)

    def below(self, path)->bool:
        "Is it a path, and one of ours?"
        if isinstance(path, int) or path is None: return False
        return os.path.realpath(os.fspath(path)).startswith(self.root + os.sep)

    def tick(self, name:str, path, half=None):
        "Count one operation, and do what is to be done at it. Raises OSError for an errno."
        self.n += 1
        self.names.append(name)
        if not self.at or self.n < self.at: return
        if isinstance(self.fault, int):
            refused = self.fault not in (errno.ENOSPC, errno.EDQUOT) or name in GROWING
            now = self.lasts or self.n == self.at
            if refused and now: raise OSError(self.fault, os.strerror(self.fault), str(path))
            return
        if half: half()
        if self.fault == 'power': self.cut()
        os.kill(os.getpid(), signal.SIGKILL)

    def cut(self):
        "Undo what a disk may lose when the power goes: renames whose folder, and contents whose file was not synced."
        for name, before in reversed(self.renamed):
            if self.rng.random() < .5: break                              # renames reach the disk in their order
            if before is None: REAL['unlink'](name)
            else: Path(name).write_bytes(before)
        for path, safe in self.unsynced.items():
            if not os.path.exists(path): continue
            size = os.path.getsize(path)
            os.truncate(path, self.rng.randint(min(safe, size), size))

    def call(self, name:str):
        "One of CALLS, counted."
        def counted(*args, **kwargs):
            path = self.synced(args[0]) if name == 'fsync' else args[0]
            if not self.below(path): return REAL[name](*args, **kwargs)
            self.tick(name, path)
            if name in ('replace', 'rename'): self.note_rename(*args[:2])
            return REAL[name](*args, **kwargs)
        return counted

    def synced(self, fd:int):
        "The path of an open file that is about to be synced."
        try: path = os.readlink(f'/proc/self/fd/{fd}')
        except OSError: return None
        self.unsynced.pop(path, None)
        if os.path.isdir(path): self.renamed = [o for o in self.renamed if os.path.dirname(o[0]) != path]
        return path

    def note_rename(self, old, new):
        "Keep what a name held before; a file takes its unsynced content along."
        old, new = os.path.realpath(old), os.path.realpath(new)
        if old in self.unsynced: self.unsynced[new] = self.unsynced.pop(old)
        if os.path.isdir(old): return
        before = Path(new).read_bytes() if os.path.exists(new) else None
        self.renamed.append((new, before))

    def open(self, file, mode='r', buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        "As the built-in one; what is opened to be written below the folder is counted."
        if not set(mode) & set('wax+') or not self.below(file):
            return OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self.tick('open', file)
        raw = Counted(file, mode.replace('b', '').replace('t', ''), closefd, opener)
        raw.layer, raw.path = self, os.path.realpath(os.fspath(file))
        held = io.BufferedRandom(raw) if '+' in mode else io.BufferedWriter(raw)
        return held if 'b' in mode else io.TextIOWrapper(held, encoding, errors, newline)

    @contextmanager
    def on(self):
        "Put it between Python and the disk."
        import builtins
        for name in CALLS: setattr(os, name, self.call(name))
        builtins.open = io.open = self.open
        try: yield self
        finally:
            for name in CALLS: setattr(os, name, REAL[name])
            builtins.open = io.open = OPEN


class Counted(io.FileIO):
    "A file whose writes are counted."
    layer = path = None

    def write(self, data):
        "Write, unless the layer has it otherwise."
        whole = super().write
        self.layer.unsynced.setdefault(self.path, os.fstat(self.fileno()).st_size)
        self.layer.tick('write', self.path, lambda: whole(bytes(data)[:len(data)//2]))
        return whole(data)
