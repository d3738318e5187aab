"A headless Chromium for all tests that look at a page."
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ('chromium', 'chromium-headless-shell', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
FLAGS = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']


def chromium():
    "The browser of this machine, or None."
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get('CHROMIUM'), *NAMES)))), None)


@pytest.fixture(scope='session')
def context():
    "A browser without a network."
    if not chromium(): pytest.skip('no Chromium on this machine')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=FLAGS)
        new = browser.new_context(viewport=dict(width=1400, height=1000), reduced_motion='reduce', offline=True)
        new.set_default_timeout(30_000)
        yield new
        browser.close()


class Tab:
    "One tab, and what went wrong in it."
    def __init__(self, context):
        self.faults, self.page = [], context.new_page()
        self.ask = self.page.evaluate
        self.page.on('console', lambda m: m.type in ('error', 'warning') and self.faults.append(f'console: {m.text}'))
        self.page.on('pageerror', lambda e: self.faults.append(f'script: {e}'))
        self.page.on('request', lambda r: re.match('file:|data:', r.url) or self.faults.append(f'network: {r.url}'))
        self.page.on('requestfailed', lambda r: r.failure == 'net::ERR_ABORTED' or self.faults.append(f'not loaded: {r.url}'))    # aborted: the page was left

    def open(self, path, query='', width=1400, height=1000, dark=False):
        "Load a page and wait until its formulas are set."
        del self.faults[:]
        self.page.set_viewport_size(dict(width=width, height=height))
        self.page.emulate_media(color_scheme='dark' if dark else 'light')
        self.page.goto(path.resolve().as_uri() + query)
        self.ask('() => window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 0) : 0')
        return self


@pytest.fixture
def tab(context):
    new = Tab(context)
    yield new
    new.page.close()


IDLE = 'text=/ipykernel. . Idle/'                                                                          # in the bar at the foot of JupyterLab


@pytest.fixture
def lab(tmp_path, context):
    "Opens a notebook of the folder `book` in JupyterLab: its page. The server is this environment's, with nobody's settings."
    (tmp_path/'book').mkdir(exist_ok=True)
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
        assert server.poll() is None, (tmp_path/'lab.txt').read_text()
        page.goto(f'http://127.0.0.1:{port}/lab/tree/{name}')
        page.wait_for_selector(IDLE, timeout=120_000)
        return page
    yield opened
    page.context.close()
    server.terminate()
    server.wait(60)
