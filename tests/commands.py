"Commands as a user runs them: in this process, or in one of their own."
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from sagan_nb.core import Refused
from sagan_nb.data import Toy
from sagan_nb.machinery import cli, machine
from sagan_nb.machinery.checkpoints import every_tensor, read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SHELL = 'import sys; from sagan_nb.machinery import console; del sys.argv[0]; getattr(console, sys.argv[0])()'


def shell(monkeypatch, capsys, command, *args):
    "Run a command as a shell would, in this process: (exit code, stdout, stderr)."
    monkeypatch.setattr(sys, 'argv', [command, *map(str, args)])
    try:
        getattr(cli, command)()
        code = 0
    except SystemExit as e: code = e.code
    return (code, *capsys.readouterr())


def spawn(*args, stderr=subprocess.STDOUT):
    "The real thing: a process of its own."
    command = 'import sys; from sagan_nb.machinery import cli; sys.argv[0] = sys.argv.pop(1); getattr(cli, sys.argv[0])()'
    return subprocess.Popen([sys.executable, '-c', command, *map(str, args)], stdout=subprocess.PIPE, stderr=stderr, text=True)


def words(*args):
    "What starts a command by the door of a console: with its progress, where `environment` does not say IN_TEST."
    return [sys.executable, '-c', SHELL, *map(str, args)]


def environment(**more):
    "Variables of a user's terminal: nothing of the tests in them."
    keep = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'COLUMNS', 'LINES')}
    return keep | dict(PYTHONPATH=str(ROOT), TERM='xterm', **more)


def other_bits(a, b):
    "Names of what two checkpoints do not hold alike, to the last bit and in the same layout."
    a, b = map(read_checkpoint, (a, b))
    values = [k for k in ('t', 'data') if a[k] != b[k]]
    a, b = (dict(every_tensor(o)) for o in (a, b))
    assert a.keys() == b.keys() and len(a) > 100
    return values + [k for k in a if not torch.equal(a[k], b[k]) or a[k].stride() != b[k].stride()]


def as_folders(source, folder):
    "Write the pictures of a source as PNG files, a folder for each class."
    for i, (picture, k) in enumerate(zip(*source.batch(torch.arange(len(source))))):
        (folder/f'{int(k)}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder/f'{int(k)}'/f'{i}.png')


def needs_compiler():
    "Skips a test where `torch.compile` cannot work, by the check of the commands themselves."
    try: machine.pick_device('cpu', compiled=True)
    except Refused: pytest.skip('no C++ compiler on this machine')


@contextmanager
def zoo_with_a_run(folder):
    "Put pictures of three classes into folder/zoo, and a smoke run on them into folder/run; within it, folder/cache is the cache."
    with pytest.MonkeyPatch.context() as m:
        m.setenv('SAGAN_NB_CACHE', str(folder/'cache'))
        m.setenv('IN_TEST', '1')
        as_folders(Toy(32, 3, n=90), folder/'zoo')
        cli.sagan_train('t1_attn_16', data=str(folder/'zoo'), scale='smoke', out=str(folder/'run'))
        yield folder
