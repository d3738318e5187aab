"One command for a GPU (tools/bench/gpu.py), rehearsed on a CPU as if on a machine that has little more than torch; and its parts."
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from argparse import Namespace
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from commands import as_folders
from sagan_nb.config import NUMERICS
from sagan_nb.data import Toy
from tools.bench import carry, gpu
from tools.site import readme

ROOT = Path(__file__).resolve().parents[1]
HIDE = '''
import sys
from importlib.machinery import PathFinder

class Hide(PathFinder):
    "Finds all but the packages that are not on the other machine."
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition('.')[0] in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hide
'''


def bare(folder, copied, there):
    "PYTHONPATH of a machine that has torch, torchvision and what must be there, with their own needs; what is carried comes first."
    plain = lambda name: re.sub(r'[-_.]+', '-', name).lower()
    kept = {*carry.closure([*carry.THERE, *there], '3.12'), *map(plain, copied)}
    hidden = sorted(top for top, dists in packages_distributions().items() if not {*map(plain, dists)} & {*kept, 'sagan-nb'})
    (folder/'hide').mkdir()
    (folder/'hide'/'sitecustomize.py').write_text(HIDE.format(hidden=hidden), encoding='utf-8')
    return hidden, os.pathsep.join(map(str, (folder/'hide', folder/'carry'/'site', ROOT)))


def test_everything_is_rehearsed_on_a_bare_machine(tmp_path):
    copied, there, _ = carry.pack(tmp_path/'carry')
    hidden, path = bare(tmp_path, copied, there)
    assert {'fastcore', 'rich', 'pytest'} <= {*copied} and {'nbdev', 'hypothesis', 'playwright'} <= {*hidden} and 'torch' not in hidden
    env = {k: v for k, v in os.environ.items() if k != 'SAGAN_NB_CACHE'} | dict(PYTHONPATH=path, SAGAN_NB_CACHE=str(tmp_path/'cache'))
    asked = 'import fastcore, rich, sys\nprint(fastcore.__file__, rich.__file__)\nimport nbdev'
    said = subprocess.run([sys.executable, '-c', asked], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert said.stdout.count(str(tmp_path/'carry'/'site')) == 2 and "No module named 'nbdev'" in said.stderr
    out, before = tmp_path/'out', resource.getrusage(resource.RUSAGE_CHILDREN)
    as_folders(Toy(32, 4, n=80), tmp_path/'photos')
    words = '--smoke --device cpu --minutes 20 --data photos --out'.split()
    done = subprocess.run([sys.executable, '-m', 'tools.bench.gpu', *words, str(out)], cwd=tmp_path, env=env, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f'processor seconds: {after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.0f}')
    log = (out/'log.txt').read_text(encoding='utf-8')
    assert done.returncode == 0, done.stderr + log
    parts = json.loads((out/'run.json').read_text())['parts']
    assert {n: o['ended'] for n, o in parts.items()} == dict.fromkeys(gpu.SHARES, 'whole'), log
    check, speed, table, profile = (json.loads((out/f'{n}.json').read_text()) for n in gpu.SHARES)
    outcomes = check['pytest']['cuda']['outcomes']
    assert [*outcomes.values()] == ['PASSED']*5, check['pytest']['cuda']['tail']
    assert check['traces']['none']['same'] and all(len(o['found']) == 2 for o in check['first'].values())
    assert len(speed['steps']) >= 5 and all(o['steps_per_s'] > 0 for o in speed['steps'].values()), speed['steps']
    assert {o['net']['form'] for o in speed['steps'].values()} == {'released', 'paper'} and all(o > 1e8 for o in speed['operations_per_s'].values())
    assert [(o['row'], o['seed'], o['status']) for o in table['runs']] == [(row, s, 'finished') for row in ('t1_attn_16', 't1_none') for s in (0, 1)]
    assert table['processes'] == 2 and table['exit_codes'] == [0, 0] and 't1_none' in table['table'] and '| 2 |' in table['table']
    with zipfile.ZipFile(out/'table1.zip') as z: names = z.namelist()
    assert 'table1.md' in names and any(n.startswith('features/') for n in names) and sum(n.endswith(f'-v{NUMERICS}.json') for n in names) == 4
    assert {*profile['profiles']['a run']['waits']} == {*gpu.WAITS}, profile
    page = readme.gpu(out)
    assert '5 of 5 tests passed; 1 of 1 traces' in page and ' on 80 images of photos: 4 runs of t1_attn_16, t1_none, 4 updates each' in page and 'a rehearsal.' in page and 'Not whole' not in page
    assert len([*out.iterdir()]) <= 8 and all(p.stat().st_size < 16*2**20 for p in out.iterdir())


NO_GPU = r"Nothing was run on a GPU|No GPU has been timed|Anything on a GPU \| \*\*Not run|not measured; estimated above|4,000 steps\) \| not measured|not measured yet"


def test_pages_say_that_no_gpu_was_used_as_long_as_it_is_true():
    "Whoever commits results/gpu finds here what to rewrite."
    pages = {p.name: p.read_text(encoding='utf-8') for p in (ROOT/'README.md', *(ROOT/'docs').glob('*.md'), *(ROOT/'nbs').glob('*.ipynb'))}
    said = {name: sorted({m[0] for m in re.finditer(NO_GPU, text)}) for name, text in pages.items() if re.search(NO_GPU, text)}
    if (ROOT/'results'/'gpu'/'run.json').exists(): assert not said
    else: assert {*said} == {'README.md', 'index.ipynb', 'reproduce.md', 'reproduced.md', '07_config.ipynb'} and len(said['reproduce.md']) == 3


def test_what_a_gpu_found_is_told_part_by_part(tmp_path):
    "A part that is missing is left out; one that ended early is named."
    assert readme.gpu(tmp_path) == 'Nobody has run it on a GPU yet.'
    ended = dict(check='whole', speed='stopped when its time was over')
    (tmp_path/'run.json').write_text(json.dumps(dict(minutes=9, smoke=False, parts={k: dict(ended=v) for k, v in ended.items()})))
    (tmp_path/'speed.json').write_text(json.dumps(dict(device_name='H200', torch='2.11', commit='abcdef012', steps=dict(a=dict(failed='no room'), b=dict(steps_per_s=10.)))))
    page = readme.gpu(tmp_path)
    assert page.startswith('On H200, torch 2.11, commit abcdef0, 9 minutes.') and '10 steps a second (b): a million in 28 hours' in page
    assert 'Not whole: speed stopped when its time was over.' in page and 'tests passed' not in page


def options(out, **own): return Namespace(**dict(out=out, device='cpu', smoke=True, part='speed', seconds=60., data=None, minutes=1.) | own)


def test_a_part_that_takes_too_long_is_stopped(tmp_path):
    "With all its children; the file that it had begun is whole."
    ended = gpu.run_part('speed', .3, options(tmp_path))                      # less than importing torch takes
    assert ended['ended'] == 'stopped when its time was over' and ended['seconds'] < 30
    assert gpu.run_part('check', 60, options(tmp_path, device='no such device'))['ended'] == 'ended with exit code 1'
    assert 'no such device' in (tmp_path/'log.txt').read_text()


def test_what_fails_costs_only_itself(tmp_path):
    page = gpu.Page(options(tmp_path))
    def fails(): raise RuntimeError('CUDA out of memory')
    for name, f in dict(a=lambda: 1, b=fails, c=lambda: 3).items():
        page.row('steps', name, f)
        assert name in json.loads((tmp_path/'speed.json').read_text())['steps']           # saved before the next
    page.end = 0.
    page.row('steps', 'd', fails)
    found = json.loads((tmp_path/'speed.json').read_text())
    assert found['steps'] == dict(a=1, b=dict(failed='RuntimeError: CUDA out of memory'), c=3) and found['part'] == 'speed' and 'torch' in found


def test_what_is_timed_on_a_gpu(monkeypatch):
    "Names are unique, the figure that matters most comes first, and every network and variant can be built."
    monkeypatch.setattr(gpu, 'usable_variants', lambda device, names: list(names))
    asked = []
    monkeypatch.setattr(gpu, 'timed_step', lambda net, v, o, mode=None: asked.append((net, v, mode)))
    found = [*gpu.cases(options(None, smoke=False, device='cuda'))]
    for _, measure in found: measure()
    assert len({name for name, _ in found}) == len(found) == len({*map(repr, asked)}) and found[0][0] == 'batch 256, released at 32, all, bf16'
    at = lambda words: next(i for i, (name, _) in enumerate(found) if name.endswith(words))
    assert at('batch 64, released at 32, all, bf16') < at('compiled') < at('CUDA graphs') < at('plain, in bfloat16') < at('without folds')
    nets, variants, modes = zip(*asked)
    assert {(o.batch, o.form, o.attn_at) for o in nets} >= {(b, f, (m,)) for b in (256, 64) for f in ('released', 'paper') for m in (32, 64)}
    assert {v.precision for v in variants} == {'fp32', 'tf32', 'bf16'} and {*modes} == {None, 'compiled', 'CUDA graphs'}
    assert all(o.res == 128 and o.n_classes == 1000 for o in nets)


def test_processes_that_are_not_done_in_time_are_stopped(tmp_path):
    page = gpu.Page(options(tmp_path, seconds=0.))
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(600)"
    running = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE) for code in ('', deaf)]
    running[0].wait(), running[1].stdout.readline()
    assert gpu.finish(running, page, 8) == [0, -9]


def test_a_run_that_has_ended_is_kept_at_once(tmp_path):
    "What a kill costs is the run that was at work."
    results = sorted((ROOT/'results'/'twins_at_8').glob('t1_none-s4[45]-*.json'))
    made = tmp_path/'table1'
    made.mkdir()
    page, path, seen = gpu.Page(options(tmp_path, part='table', seconds=100.)), tmp_path/'table1.zip', []
    def look():
        gpu.keep_table(made, path, page)
        if path.exists(): seen.append((len(json.loads((tmp_path/'table.json').read_text())['runs']), len(zipfile.ZipFile(path).namelist())))
        if len(seen) < 2: (made/results[len(seen)].name).write_bytes(results[len(seen)].read_bytes())
    running = [subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3)'])]
    assert gpu.finish(running, page, 8, look) == [0] and seen[0] == (1, 1) and seen[-1] == (2, 2)


def test_seeds_that_do_not_fit_at_once_follow_each_other(monkeypatch):
    "One of three processes has no memory: one process takes all seeds, and its own pace counts."
    class Said:
        def __init__(self, code, text): self.returncode, self.text = code, text
        def communicate(self): return self.text, None
    def answers(*said):
        queue = iter(said)
        monkeypatch.setattr(gpu, 'start', lambda *words: Said(*next(queue)))
        return gpu.groups(options(None), dict(data='toy', scale='smoke', only='t1_none,t1_attn_16'), (0, 1, 2))
    assert answers((0, 'twins\n.25\n'), (0, '.5\n'), (0, '.25\n')) == ([[0], [1], [2]], .5)
    assert answers((0, '.5\n'), (1, ''), (0, '.5\n'), (0, '.125\n')) == ([[0, 1, 2]], .125)
    with pytest.raises(RuntimeError, match='not even one'): answers(*[(1, '')]*4)


def test_images_are_carried_as_many_of_each_class_as_there_is_room_for(tmp_path):
    path = tmp_path/'photos.zip'
    with zipfile.ZipFile(path, 'w') as z:
        for k, n in dict(a=3, b=5, c=1).items():
            for i in range(n): z.writestr(f'train/{k}/{i}.png', bytes(10_000))
        z.writestr('val/a/0.png', bytes(10_000))
    for room, kept in ((10**6, 9), (62_000, 6), (32_000, 3)):
        assert carry.take(path, 'train', tmp_path/'new.zip', room) == (kept, 9) and (tmp_path/'new.zip').stat().st_size <= room
        with zipfile.ZipFile(tmp_path/'new.zip') as z: names = z.namelist()
        assert len(names) == kept and len({n.split('/')[1] for n in names}) == 3 and all(n.startswith('train/') for n in names)
    with pytest.raises(ValueError, match="no file in 'test'"): carry.take(path, 'test', tmp_path/'new.zip', 10**6)
    with pytest.raises(ValueError, match='no room for an image'): carry.take(path, 'train', tmp_path/'new.zip', 1000)
    assert carry.pack(tmp_path/'carry', f'{path}:train')[2] == (9, 9) and (tmp_path/'carry'/'photos.zip').exists()
    assert carry.pack(tmp_path/'carry', path)[2] == (10, 10)


def test_what_cannot_be_carried_is_refused(tmp_path, monkeypatch):
    (tmp_path/'mine').mkdir()
    with pytest.raises(ValueError, match='holds something else'): carry.pack(tmp_path/'mine')
    with pytest.raises(ValueError, match='1 may travel'): carry.pack(tmp_path/'new', most=1)
    assert carry.compiled('torch') and not carry.compiled('fastcore')
