"Every skip is printed, and one that is not in allowed_skips.txt fails the run."
import atexit
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# Before torch is imported; child processes inherit it.
os.environ.setdefault('OMP_NUM_THREADS', str(min(2, os.cpu_count() or 1)))
os.environ.setdefault('MPLBACKEND', 'agg')
if 'SAGAN_NB_CACHE' not in os.environ:                                          # nobody's own cache is read or filled
    os.environ['SAGAN_NB_CACHE'] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ['SAGAN_NB_CACHE'], ignore_errors=True)

from browser import context, lab, tab  # noqa: E402, F401  fixtures

HERE = Path(__file__).parent
skips, ran = {}, set()                                                          # id -> reason; files with a test that ran


@pytest.fixture(autouse=True)
def signals():
    "What signals do after a test is what they did before: a run of this process takes them over."
    before = {s: signal.getsignal(s) for s in signal.Signals if s.name in ('SIGINT', 'SIGTERM', 'SIGUSR1')}          # Windows has no SIGUSR1
    yield
    for s, what in before.items(): signal.signal(s, what)


@pytest.fixture(scope='session')
def run(tmp_path_factory):
    "A finished smoke run, for tests that only read it."
    from commands import spawn
    out = tmp_path_factory.mktemp('run')/'toy'
    process = spawn('sagan_train', 't1_attn_16', '--scale', 'smoke', '--out', out)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    return out


def allowed(test, reason, lines=None):
    "True where a line of allowed_skips.txt covers this test and this reason."
    for line in (HERE/'allowed_skips.txt').read_text(encoding='utf-8').splitlines() if lines is None else lines:
        if not line.strip() or line.startswith('#'): continue
        pattern, words = map(str.strip, line.split('|'))
        if re.fullmatch(re.escape(pattern).replace(r'\*', '.*'), test) and words in reason: return True
    return False


def note(report):
    "An expected failure is a skip, too."
    if not report.skipped: return
    if hasattr(report, 'wasxfail'): skips[report.nodeid] = f'expected to fail {report.wasxfail}'
    else: skips[report.nodeid] = report.longrepr[-1].removeprefix('Skipped: ')


def pytest_runtest_logreport(report):                                           # in xdist's controller too, which collects nothing itself
    ran.add(Path(report.nodeid.partition('::')[0]).name)
    note(report)


def pytest_collectreport(report): note(report)


def unrun_cells():
    "Cells that nbdev_test leaves out: by a flag of settings.ini or by `eval: false`."
    from test_house import NOTEBOOKS, directives
    for path, nb in NOTEBOOKS.items():
        for cell in nb['cells']:
            for name in {'slow', 'cuda', 'eval', 'skip_exec'} & directives(cell).keys():
                yield f'nbs/{path.name}::{name}', f'cell {cell["id"]} is not run by nbdev_test'


def pytest_sessionfinish(session):
    if 'test_house.py' in ran: skips.update(unrun_cells())
    if session.exitstatus == 0 and any(not allowed(*o) for o in skips.items()): session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    "The closing line."
    for test, reason in sorted(skips.items()):
        verdict = 'allowed' if allowed(test, reason) else 'NOT ALLOWED'
        terminalreporter.write_line(f'SKIP ({verdict}) {test}: {reason}')
    bad = sum(not allowed(*o) for o in skips.items())
    terminalreporter.write_line(f'{len(skips)} skipped, {bad} of them not allowed (tests/allowed_skips.txt)')
