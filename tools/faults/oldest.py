"""The oldest versions that settings.ini allows, in an environment of their own, and the tests in it:
`python -m tools.faults.oldest --folder FOLDER` (long: it downloads torch).

Each requirement is installed at its lower bound, by pip. FOLDER keeps the environment: a second call only tests.
"""
import re
import subprocess
import tempfile
import time
import venv
from pathlib import Path
from xml.etree import ElementTree

from fastcore.script import call_parse

from tools import settings

from .results import add_rows

ROOT = Path(__file__).resolve().parents[2]
TESTED = [f'tests/test_{o}.py' for o in ('train', 'transforms', 'data', 'metrics', 'faults', 'hostile', 'interop')]


def requirements():
    "What the package needs, as settings.ini says."
    return settings()['requirements'].split()


def oldest(requirement):
    "torch>=2.6 becomes torch==2.6.*: the lowest that is allowed, with its mends."
    name, low = re.match(r'([\w.-]+)(?:>=([\d.]+))?', requirement).groups()
    if not low: return name
    return f'{name}=={low}.*' if low.count('.') < 2 else f'{name}=={low}'


def install(folder):
    "Make the environment, if it is not there: its Python."
    python, whole = Path(folder)/'bin'/'python', Path(folder)/'installed'
    if not whole.exists():
        venv.create(folder, with_pip=True)
        wanted = [*map(oldest, requirements()), 'torch-fidelity>=0.4,<0.5', 'tqdm', 'pytest', 'hypothesis', 'nbformat']
        subprocess.run([python, '-m', 'pip', 'install', '-q', *wanted], check=True)
        subprocess.run([python, '-m', 'pip', 'install', '-q', '--no-deps', '-e', ROOT], check=True)
        whole.touch()
    return python


def ended(cases, *ways):
    "Names of the test cases that ended in one of these ways."
    return [f'{o.get("classname")}.{o.get("name")}' for o in cases if any(o.find(way) is not None for way in ways)]


@call_parse
def main(
    folder:str=str(ROOT/'.venv'/'oldest'),     # of the environment
    tests:str=' '.join(TESTED),      # what is run in it
    out:str=None,             # folder for oldest.json; nothing is written without
):
    "Install the oldest versions and run the tests. Ends with their exit code."
    python, began = install(folder), time.time()
    with tempfile.TemporaryDirectory() as d:
        words = [python, '-m', 'pytest', '-q', f'--junitxml={d}/a.xml', *tests.split()]
        code = subprocess.run(words, cwd=ROOT).returncode
        cases = [*ElementTree.parse(f'{d}/a.xml').iter('testcase')]
    wrong, skipped = ended(cases, 'failure', 'error'), ended(cases, 'skipped')
    row = dict(fault='the oldest versions that are allowed', how=', '.join(requirements()),
               tries=len(cases) - len(skipped), wrong=wrong, said=[f'{len(skipped)} tests skipped'])
    if out: add_rows(Path(out)/'oldest.json', [row], time.time() - began)
    raise SystemExit(code)


if __name__ == '__main__': main()
