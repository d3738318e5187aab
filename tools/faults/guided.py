"""One target of tools/faults/fuzz.py under atheris, a process of its own, because libFuzzer ends its own:
`python -m tools.faults.fuzz --by_coverage` starts it.

Its words: the target, a folder for files, flags of libFuzzer. Coverage counts branches of the package and the targets.
"""
import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=['sagan_nb', 'tools.faults.fuzz']):
    from tools.faults.fuzz import TARGETS, attempt

name, folder, *flags = sys.argv[1:]


def one(data):
    if words := attempt(TARGETS[name], data, Path(folder)): raise AssertionError(words)


sys.stdout = open(os.devnull, 'w')
atheris.Setup([sys.argv[0], *flags], one)
atheris.Fuzz()
