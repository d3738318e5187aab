"""JupyterLab opens every notebook and runs it from top to bottom, as a reader would: the server of this environment, its Run menu, in a browser.

Everything is a copy: nothing here changes. Without an address, and without a setting of anybody's.
"""
import json
import shutil
import time
from pathlib import Path

import pytest
from browser import IDLE

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p.name for p in (ROOT/'nbs').glob('*.ipynb'))
pytestmark = pytest.mark.long


@pytest.fixture
def book(tmp_path):
    "A copy of the book, where `lab` looks for it: its notebooks."
    for name in ('nbs', 'results', 'docs'): shutil.copytree(ROOT/name, tmp_path/'book'/name)
    shutil.copy(ROOT/'settings.ini', tmp_path)                   # where Jupyter is started, as at the root of the repository
    return tmp_path/'book'/'nbs'


def saved(page, file):
    "Save, and read: (code cells that have not run, errors in what is shown), or None while the file is being written."
    page.keyboard.press('Control+s')
    page.wait_for_timeout(1000)
    try: nb = json.loads(file.read_text(encoding='utf-8'))
    except json.JSONDecodeError: return None
    cells = [c for c in nb['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).strip()]
    return ([''.join(c['source'])[:60] for c in cells if c['execution_count'] is None],
            [o['evalue'] for c in cells for o in c['outputs'] if o['output_type'] == 'error'])


def run_all(page, file, limit=1200):
    "Restart the kernel and run all cells: what was `saved` when all had run, or one had failed, twice the same."
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:has-text("Restart Kernel and Run All Cells")')
    page.click('.jp-Dialog button:has-text("Restart")')
    end, last, now = time.perf_counter() + limit, None, saved(page, file)
    while not now or now != last or (now[0] and not now[1]):                  # an error is shown before its cell counts as run
        assert time.perf_counter() < end, now
        last, now = now, saved(page, file)
    return now


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_reader_runs_it(book, lab, name):
    page = lab(f'nbs/{name}')
    assert run_all(page, book/name) == ([], [])
    page.wait_for_selector(IDLE)


def test_planted_fault(book, lab):
    "A cell that fails is seen, and so are those behind it, which did not run."
    nb = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))
    code = next(c for c in nb['cells'] if c['cell_type'] == 'code')
    nb['cells'] += [code | dict(source=o, id=f'planted{i}', outputs=[]) for i, o in enumerate(('1/0', 'print("behind")'))]
    (book/'planted.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    unrun, errors = run_all(lab('nbs/planted.ipynb'), book/'planted.ipynb')
    assert unrun == ['print("behind")'] and errors == ['division by zero']


def saved_again(page, file):
    "Save the notebook that is open: its file's new bytes, once they are all there."
    before = file.stat().st_mtime_ns
    while file.stat().st_mtime_ns == before:                # a key that comes too early is lost
        page.keyboard.press('Control+s')
        page.wait_for_timeout(1000)
    while (now := file.read_bytes()) != (page.wait_for_timeout(500), file.read_bytes())[1]: pass
    return now


@pytest.fixture(params=[True, False], ids=['with the hooks of nbdev', 'as it comes'])
def hooks(request, tmp_path):
    "Whether Jupyter has the hook that `nbdev_install_hooks` writes. To be asked for before `lab`, which starts it."
    from nbdev.clean import _pre_save_hook_src
    (tmp_path/'.jupyter').mkdir()
    if request.param: (tmp_path/'.jupyter'/'jupyter_server_config.py').write_text(_pre_save_hook_src)
    return request.param


def test_open_and_save_changes_nothing(book, hooks, lab):
    """With the hook, not a byte. Without it, only what nbdev_clean cannot keep: how Jupyter calls the kernel, and which Python it found."""
    for name in NOTEBOOKS if hooks else NOTEBOOKS[:1]:
        stored = (book/name).read_bytes()
        now = saved_again(lab(f'nbs/{name}'), book/name)
        if not hooks:
            assert now != stored
            nb, before = json.loads(now), json.loads(stored)
            assert nb['metadata'].pop('language_info')['name'] == 'python'
            nb['metadata']['kernelspec']['display_name'] = before['metadata']['kernelspec']['display_name']
            now, stored = nb, before
        assert now == stored, name
