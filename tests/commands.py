"Commands as a user runs them: in this process, or in one of their own."
import subprocess
import sys

import pytest
import torch
from PIL import Image

from sagan_nb.core import Refused
from sagan_nb.machinery import cli, machine


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


def as_folders(source, folder):
    "Write the pictures of a source as PNG files, a folder for each class."
    for i, (picture, k) in enumerate(zip(*source.batch(torch.arange(len(source))))):
        (folder/f'{int(k)}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder/f'{int(k)}'/f'{i}.png')


def needs_compiler():
    "Skips a test where `torch.compile` cannot work, by the check of the commands themselves."
    try: machine.pick_device('cpu', compiled=True)
    except Refused: pytest.skip('no C++ compiler on this machine')
