"""JupyterLab opens every notebook and runs it from top to bottom, as a reader would: the server of this environment, its Run menu, in a browser.

Everything is a copy: nothing here changes. Without an address, and without a setting of anybody's.
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p.name for p in (ROOT/'nbs').glob('*.ipynb'))
IDLE = 'text=/ipykernel. . Idle/'                                                                          # in the bar at the foot
pytestmark = pytest.mark.long


@pytest.fixture
def lab(tmp_path, context):
    "Opens a notebook of a copy of the book in JupyterLab: (its page, its file)."
    for name in ('nbs', 'results', 'docs'): shutil.copytree(ROOT/name, tmp_path/'book'/name)
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    keep = {k: v for k, v in os.environ.items() if k not in ('MPLBACKEND', 'IN_TEST')}                # a reader sets neither
    path = os.pathsep.join(filter(None, (str(ROOT), keep.get('PYTHONPATH'))))
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0',
               '--IdentityProvider.token=', f'--ServerApp.root_dir={tmp_path/"book"}']
    server = subprocess.Popen(command, cwd=tmp_path, env=keep | dict(HOME=str(tmp_path), PYTHONPATH=path),
                              stdout=open(tmp_path/'lab.txt', 'w'), stderr=subprocess.STDOUT)
    page = context.browser.new_context(viewport=dict(width=1400, height=1000)).new_page()

    def opened(name):
        while server.poll() is None:
            try: socket.create_connection(('127.0.0.1', port)).close(); break
            except OSError: time.sleep(.2)
        page.goto(f'http://127.0.0.1:{port}/lab/tree/nbs/{name}')
        page.wait_for_selector(IDLE, timeout=120_000)
        return page, tmp_path/'book'/'nbs'/name
    yield opened
    page.context.close()
    server.terminate()
    server.wait(60)


def run_all(page, file, limit=1200):
    "Restart the kernel, run all cells, save: (code cells that have not run, errors in what is shown)."
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:has-text("Restart Kernel and Run All Cells")')
    page.click('.jp-Dialog button:has-text("Restart")')
    began, unrun, errors = time.perf_counter(), ['all'], []
    while unrun and not errors and time.perf_counter() - began < limit:
        page.keyboard.press('Control+s')
        page.wait_for_timeout(1000)
        try: nb = json.loads(file.read_text(encoding='utf-8'))
        except json.JSONDecodeError: continue                                                            # just being written
        cells = [c for c in nb['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).strip()]
        unrun = [''.join(c['source'])[:60] for c in cells if c['execution_count'] is None]
        errors = [o['evalue'] for c in cells for o in c['outputs'] if o['output_type'] == 'error']
    return unrun, errors


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_reader_runs_it(lab, name):
    page, file = lab(name)
    assert run_all(page, file) == ([], [])
    page.wait_for_selector(IDLE)


def test_planted_fault(lab, tmp_path):
    "A cell that fails is seen, and so are those behind it, which did not run."
    nb = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))
    code = next(c for c in nb['cells'] if c['cell_type'] == 'code')
    nb['cells'] += [code | dict(source=o, id=f'planted{i}', outputs=[]) for i, o in enumerate(('1/0', 'print("behind")'))]
    (tmp_path/'book'/'nbs'/'planted.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    unrun, errors = run_all(*lab('planted.ipynb'))
    assert unrun == ['print("behind")'] and errors == ['division by zero']
