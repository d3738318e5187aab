"""The oldest versions that settings.ini allows, in an environment of their own, and the tests in it: `python -m tools.faults.oldest FOLDER` (long: it downloads torch).

Each requirement with a lower bound is installed at it, by pip; what has none is as pip finds it. FOLDER keeps the environment, so that a second call only tests.
"""
import re
import subprocess
import venv
from configparser import ConfigParser
from pathlib import Path

from fastcore.script import call_parse

ROOT = Path(__file__).resolve().parents[2]
TESTED = 'tests/test_train.py', 'tests/test_data.py', 'tests/test_metrics.py', 'tests/test_faults.py', 'tests/test_hostile.py', 'tests/test_interop.py'


def requirements():
    "What the package needs, as settings.ini says."
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']['requirements'].split()


def oldest(requirement):
    "torch>=2.6 becomes torch==2.6.*: the lowest that is allowed, with its mends."
    name, low = re.match(r'([\w.-]+)(?:>=([\d.]+))?', requirement).groups()
    return f'{name}=={low}.*' if low and low.count('.') < 2 else f'{name}=={low}' if low else name


@call_parse
def main(
    folder:str,               # of the environment
    tests:str=' '.join(TESTED),      # what is run in it
):
    "Install the oldest versions and run the tests. Ends with their exit code."
    python = Path(folder)/'bin'/'python'
    if not python.exists():
        venv.create(folder, with_pip=True)
        wanted = [*map(oldest, requirements()), 'pytest', 'hypothesis', 'nbformat']
        subprocess.run([python, '-m', 'pip', 'install', '-q', *wanted], check=True)
        subprocess.run([python, '-m', 'pip', 'install', '-q', '--no-deps', '-e', ROOT], check=True)
    raise SystemExit(subprocess.run([python, '-m', 'pytest', '-q', *tests.split()], cwd=ROOT).returncode)


if __name__ == '__main__': main()
