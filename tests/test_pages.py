"""Every block of code on the pages in docs/ is run, in order, and prints what the page says it prints.

Blocks marked `sh` and `python` are run; a block `text` behind one is its output, with `...` for what may differ. Commands that take hours
are marked `{code-block} sh`: of these, the words and the settings are checked, as the command itself checks them.
"""
import contextlib
import doctest
import io
import os
import re
import shlex
import stat
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from sagan_nb.machinery import cli, options

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_CODE = {'chapters', 'few_images', 'glossary', 'paper_vs_code', 'references', 'reproduced', 'survives'}     # tables and words; commands, at most
PAGES = sorted((ROOT/'docs').glob('*.md'))
BLOCK = re.compile(r'^ *```(\{code-block\} )?(\w+)\n(.*?)^ *```$', re.M | re.S)


def blocks(text):
    "(kind, code, what it prints or None) of each block of a page."
    found = [*BLOCK.finditer(text)]
    for m, after in zip(found, [*found[1:], None]):
        told = after is not None and after[2] == 'text' and not text[m.end():after.start()].strip()
        if m[2] != 'text': yield (m[1] or '') + m[2], m[3], after[3] if told else None


def same(want, got):
    return doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
    "Classifiers are trained once for all pages."
    return tmp_path_factory.mktemp('cache')


@pytest.fixture
def place(tmp_path, monkeypatch, cache):
    "An empty folder with the commands in reach, as in a fresh environment."
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    (tmp_path/'bin').mkdir()
    for name, module, to in re.findall(r'(\w+)=(\S+):(\w+)', config['DEFAULT']['console_scripts']):
        path = tmp_path/'bin'/name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "import sys; sys.argv[0] = {name!r}; from {module} import {to}; {to}()" "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    for k, v in dict(PATH=f'{tmp_path/"bin"}{os.pathsep}{os.environ["PATH"]}', PYTHONPATH=str(ROOT), IN_TEST='1', MPLBACKEND='agg',
                     SAGAN_NB_CACHE=str(cache)).items(): monkeypatch.setenv(k, v)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_sh(code, names):
    done = subprocess.run(['bash', '-euc', code], capture_output=True, text=True)
    assert done.returncode == 0, f'{code}\n{done.stdout}\n{done.stderr}'
    return done.stdout


def run_python(code, names):
    out = io.StringIO()
    with contextlib.redirect_stdout(out): exec(compile(code, '<page>', 'exec'), names)
    return out.getvalue()


def parse(code, names):
    "The commands of a block that is not run: their words, presets and settings must exist."
    from fastcore.script import anno_parser
    for line in code.replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        if not words or not words[0].startswith('sagan_'): continue
        command = getattr(cli, words[0]).__wrapped__
        given = vars(anno_parser(command).parse_args(words[1:]))
        if words[0] == 'sagan_train' and not given['resume']:
            options.run_settings(given['preset'], given['data'], given['scale'], given['out'], given['set'] or (), False, given['unlabelled'])
    return ''


RUN = {'sh': run_sh, 'python': run_python, '{code-block} sh': parse, 'bibtex': lambda code, names: ''}


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_code_of_a_page_runs(path, place):
    names, n = {'__name__': 'page'}, 0
    for kind, code, want in blocks(path.read_text(encoding='utf-8')):
        got = RUN[kind](code, names)
        n += 1
        if want is not None: assert same(want, got), f'{path.name}: after\n{code}\nthe page says\n{want}\nand this came\n{got}'
    assert n or path.stem in WITHOUT_CODE, f'{path.name} has no code'


def test_harness_sees_faults(place):
    assert [*blocks('```sh\na\n```\n\n```text\nb\n```\nc\n```python\nd\n```\n```{code-block} sh\ne\n```\n')] == [
        ('sh', 'a\n', 'b\n'), ('python', 'd\n', None), ('{code-block} sh', 'e\n', None)]
    assert same('a ...\n', 'a b\n') and not same('a\n', 'b\n')
    with pytest.raises(AssertionError): run_sh('sagan_train no_such_row', {})
    with pytest.raises(cli.Refused, match='no preset'): parse('sagan_train t1_attn_61 --scale paper', {})
    with pytest.raises(SystemExit): parse('sagan_sample runs/x --number 3', {})
    assert run_sh('sagan_pack --help', {}).startswith('usage: sagan_pack')


def test_drawings_are_current():
    done = subprocess.run([sys.executable, '-m', 'tools.site.drawings', '--check'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_check_stops_the_build():
    from tools.site import pages
    assert pages.check('test_pages.test_harness_sees_faults').endswith('(test_pages.md#test-pages-test-harness-sees-faults)')
    for name in ('test_pages.test_not_there', 'no_file.test_x', '02: no such line', '99: x'):
        with pytest.raises(pages.Missing): pages.check(name)
    assert '#check-02-' in pages.check('02: assert torch.equal(block(x), x)')
    with pytest.raises(pages.Missing): pages.check('02: self.gamma = nn.Parameter')                       # exported: no check
