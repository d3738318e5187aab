"What the project ships: the archives hold the package alone, and the wheel works where the checkout is not in reach."
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import start
from sagan_nb.machinery import console

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ['settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE',
           'sagan_nb', 'tools', 'tests', 'nbs']


def run(*command, **kwargs):
    "What a command prints; its failure, with all it printed, where it fails."
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    assert done.returncode == 0, f'{command} ended with {done.returncode}:\n{done.stdout}'
    return done.stdout


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "The folder with sdist and wheel, built from a copy: no network, and no leftovers of earlier builds."
    copy = tmp_path_factory.mktemp('source')
    for name in SOURCES:
        if (ROOT/name).is_file(): shutil.copy(ROOT/name, copy)
        else: shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    run(sys.executable, '-m', 'build', '--no-isolation', copy)
    return copy/'dist'


@pytest.fixture(scope='module')
def clean(dist, tmp_path_factory):
    "Runs commands in an environment that holds the wheel; torch and the rest are lent by the present one."
    home = tmp_path_factory.mktemp('clean')
    venv.create(home/'env', with_pip=False)
    scripts = home/'env'/Path(start.BIN).name
    packages = Path(run(scripts/'python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    pip = [sys.executable, '-m', 'pip', '--python', scripts/'python']
    run(*pip, 'install', '--no-deps', '--no-index', *dist.glob('*.whl'))
    present = [*site.getsitepackages(), *map(sysconfig.get_path, ('purelib', 'platlib'))]
    # Their own .pth files are not read, so an editable checkout stays out.
    (packages/'present.pth').write_text('\n'.join(dict.fromkeys(present)))
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    return lambda name, *args: run(scripts/name, *args, cwd=home, env=env)


def test_archives_hold_the_package_alone(dist):
    wheel, sdist = next(dist.glob('*.whl')), next(dist.glob('*.tar.gz'))
    names = zipfile.ZipFile(wheel).namelist()
    assert {o.split('/')[0] for o in names if '.dist-info/' not in o} == {'sagan_nb'}
    assert any(o.endswith('LICENSE') for o in names)
    names = {o.name.partition('/')[2] for o in tarfile.open(sdist)}
    assert {'settings.ini', 'README.md', 'LICENSE', 'sagan_nb/core.py'} <= names
    assert not [o for o in names if o.split('/')[0] in ('tests', 'tools', 'nbs')]


def test_metadata(dist):
    run(sys.executable, '-m', 'twine', 'check', '--strict', *dist.iterdir())
    wheel = zipfile.ZipFile(next(dist.glob('*.whl')))
    text = wheel.read(next(o for o in wheel.namelist() if o.endswith('METADATA'))).decode()
    meta = Parser().parsestr(text)
    lines = (ROOT/'settings.ini').read_text(encoding='utf-8').splitlines()
    facts = {k.strip(): v.strip() for k, eq, v in (o.partition('=') for o in lines) if eq}
    assert (meta['Version'], meta['Requires-Python']) == (facts['version'], f'>={facts["min_python"]}')
    assert 'dev' in meta.get_all('Provides-Extra')
    for field, fact in (('Home-page', 'git_url'), ('Author-email', 'author_email')):     # no empty line, no dead link
        assert meta[field] == (facts[fact] or None)
    if not facts['git_url']: assert '](nbs/' not in text and '](LICENSE)' not in text


def test_wheel_is_what_runs(clean):
    where = clean('python', '-c', 'import sagan_nb.core, torch; print(sagan_nb.core.__file__)').strip()
    assert 'clean' in where and not Path(where).is_relative_to(ROOT), where


def test_commands_of_the_wheel(clean):
    for name in console.COMMANDS: assert 'usage' in clean(f'sagan_{name}', '--help')
    clean('sagan_train', 't1_attn_16', '--data', 'toy', '--scale', 'smoke', '--steps', '2', '--out', 'run')


@pytest.mark.skipif(not shutil.which('make'), reason='no make on this machine')
@pytest.mark.parametrize('fails', ['tools.mutate', 'nothing'])
def test_the_log_of_long_tests_is_whole_when_pages_are_made_from_it(fails, tmp_path):
    "And stays as it was where something fails."
    shutil.copy(ROOT/'Makefile', tmp_path)
    for folder in ('.venv/bin', 'results'): (tmp_path/folder).mkdir(parents=True)
    (tmp_path/'results'/'long.txt').write_text('before')
    python = tmp_path/'.venv'/'bin'/'python'
    python.write_text(f'#!/bin/sh\necho ran "$2"\n[ "$2" = tools.site.readme ] && cp results/long.txt seen.txt\n[ "$2" != {fails} ]\n')
    python.chmod(0o755)
    done = subprocess.run(['make', 'long'], cwd=tmp_path, capture_output=True, text=True)
    log = (tmp_path/'results'/'long.txt').read_text()
    if fails == 'nothing': assert done.returncode == 0 and 'ran tools.mutate' in (tmp_path/'seen.txt').read_text() == log
    else: assert done.returncode and log == 'before' and not (tmp_path/'seen.txt').exists()


def test_start_says_what_is_missing():
    assert start.complaint(sys.version_info) is None
    need = '.'.join(map(str, start.min_python()))
    for version in ((2, 7, 18), (3, 6, 15), (3, 9)):
        said = start.complaint(version)
        assert f'Python {need} or newer' in said and f'this is Python {version[0]}.{version[1]}' in said
        assert '\n' not in said
    assert 'no_such_module' in start.complaint(sys.version_info, ['no_such_module'])


def test_start_on_the_old_pythons_at_hand():
    tried = []
    for name in ('python2.7', *(f'python3.{i}' for i in range(6, 10))):
        exe = shutil.which(name)
        if not exe or subprocess.run([exe, '-c', ''], capture_output=True).returncode: continue     # not really there
        done = subprocess.run([exe, ROOT/'start.py'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 1 and done.stdout.count('\n') == 1 and 'or newer' in done.stdout, (name, done.stdout)
        tried.append(name)
    if not tried: pytest.skip('no old Python on this machine')


def test_out_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(start, 'HERE', str(tmp_path))
    assert start.out_folder([]) == start.out_folder(['--resume']) == ['--out', 'runs/toy']
    (tmp_path/'runs'/'toy').mkdir(parents=True)
    assert (start.out_folder([]), start.out_folder(['--resume'])) == (['--out', 'runs/toy-2'], ['--out', 'runs/toy'])
    assert start.out_folder(['--out', 'x']) == start.out_folder(['--out=x']) == []


def test_export_stage_finds_stale_modules(tmp_path, monkeypatch, capsys):
    from tools import test as stages
    for name in ('nbs', 'sagan_nb'): shutil.copytree(ROOT/name, tmp_path/name)
    shutil.copy(ROOT/'settings.ini', tmp_path)
    monkeypatch.setattr(stages, 'ROOT', tmp_path)
    core = tmp_path/'sagan_nb'/'core.py'
    (tmp_path/'sagan_nb'/'gone.py').write_text('# AUTOGENERATED! DO NOT EDIT!\n')
    core.write_text(core.read_text(encoding='utf-8') + '# by hand\n', encoding='utf-8')
    assert stages.export() == 1
    said = capsys.readouterr().out
    assert 'gone.py: has no notebook' in said and 'core.py: differs' in said


def test_all_notebooks_are_run_and_index_last(monkeypatch):
    from tools.run_nbs import everything
    monkeypatch.chdir(ROOT)
    assert [p.name for p in everything()] == [*sorted(p.name for p in (ROOT/'nbs').glob('[0-9]*.ipynb')), 'index.ipynb']


@pytest.mark.parametrize('args, more, folder, ends', [
    ([], ['--within', '3'], 'runs/toy-2', ['excerpt of runs/toy-2']), (['--steps', '99'], None, 'runs/toy-2', []), (['--resume', '--steps', '1300'], None, 'runs/toy', [])])
def test_only_the_bare_command_is_shortened(args, more, folder, ends, tmp_path, monkeypatch):
    "Bare: a new folder, a length that fits, an excerpt. With arguments: what they say, no excerpt."
    (tmp_path/'runs'/'toy').mkdir(parents=True)
    done = []
    monkeypatch.setattr(start, 'HERE', str(tmp_path))
    monkeypatch.setattr(start, 'complaint', lambda version: None)
    monkeypatch.setattr(start, 'install', lambda extra: 0)
    monkeypatch.setattr(start, 'call', lambda command: done.append(command) or 0)
    monkeypatch.setattr(start, 'excerpt', lambda run: done.append('excerpt of ' + run) or 0)
    assert start.main(args) == 0
    job = [] if '--resume' in args else start.MAIN_JOB                                 # which a run to go on with has of its own
    assert done == [[start.tool('sagan_train'), *job, '--out', folder, *(more or args)], *ends]


def test_the_first_command_ends_with_an_excerpt_of_table_1(tmp_path, monkeypatch, capfd):
    "At smoke scale, shortened: the run is adopted, the two others are trained beside it, and the command for the full table, which exists, is the last line."
    monkeypatch.setattr(start, 'HERE', str(tmp_path))
    monkeypatch.setattr(start, 'tool', lambda name: str(Path(sys.executable).parent/name))
    monkeypatch.setattr(start, 'EXCERPT', ['table1', '--data', 'toy', '--scale', 'smoke'])
    monkeypatch.setenv('SAGAN_NB_CACHE', str(tmp_path/'cache'))
    assert start.call([start.tool('sagan_train'), 't1_attn_16', '--data', 'toy', '--scale', 'smoke', '--steps', '3', '--out', 'runs/toy'],
                      dict(os.environ, OMP_NUM_THREADS='2')) == 0
    assert start.excerpt('runs/toy') == 0
    said = capfd.readouterr().out
    assert ' '.join(said.split()).count('No run shows a sign of collapse') == 1 and '%s' not in said         # one table, and no hole in a sentence
    shown = re.search(r'Look first at:\n  (.+)\n  (.+)\n', said).groups()
    assert shown[0] == 'runs/toy/report.html' and (tmp_path/shown[1]).exists()             # smoke scale writes no page
    rows = {p.name.split('-')[0]: json.loads(p.read_text())['env']['threads'] for p in (tmp_path/'runs'/'toy-table1').glob('*.json')}
    assert rows == dict(t1_attn_16=2, t1_none=1, t1_res_16=1)
    assert 'one seed: shows the machinery, decides nothing' in said and '] t1_attn_16' not in said
    last = said.strip().splitlines()[-1].strip()
    assert last.endswith(f'sagan_table" {start.FULL}')
    assert start.FULL in re.sub(' +', ' ', (ROOT/'docs'/'reproduce.md').read_text(encoding='utf-8'))
