"""One command for a GPU: `python -m tools.bench.gpu --minutes 9 --out DIR --data FILE.zip:train`.

Parts, in order of worth: `check` (does everything run there, and compute what a CPU does), `speed` (steps of the
released code's 128 pixel networks), `table` (three rows of Table 1, three seeds, each in a process of its own if the
device holds them), `profile` (what is left). A part has a process and a time of its own; its file in DIR is whole after
every line added to it, so whatever stops the part costs only what it was at. No network is needed, and nothing but
torch, torchvision, what tools/bench/carry.py carries, and the repository. `--smoke --device cpu` goes through all of it
without a GPU.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch.autograd import DeviceType

from sagan_nb.config import at_scale, preset
from sagan_nb.data import Toy
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.jobs import collect, features_of
from sagan_nb.machinery.machine import machine_facts, pick_device
from sagan_nb.machinery.options import rows_of, time_update
from sagan_nb.machinery.packs import pack
from sagan_nb.machinery.runs import Log, Stopped
from sagan_nb.machinery.sending import stream_of
from sagan_nb.speed import NETS, VARIANTS, Step, conv_rate, in_turns, rounding, timing_table, usable_variants
from sagan_nb.train import average, fit, make_gan
from tools import golden
from tools.bench import bench_left_out as left_out

ROOT = Path(__file__).resolve().parents[2]
SHARES = dict(check=.16, speed=.28, table=.5, profile=.06)   # of the time; what a part leaves is for those after it
ROWS = 't1_none', 't1_attn_32', 't1_res_32'
SEEDS = 0, 1, 2
WAITS = ('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize', 'aten::_local_scalar_dense',
         'aten::nonzero')


class Page:
    "The file of a part, written anew with every note, and the time that is left for it."
    def __init__(self, o):
        self.path, self.end = o.out/f'{o.part}.json', time.monotonic() + o.seconds
        self.notes = dict(made_by='python -m tools.bench.gpu', part=o.part, smoke=o.smoke, **machine_facts(o.device))

    def note(self, **notes):
        self.notes |= notes
        with atomic_write(self.path) as part: part.write_text(json.dumps(self.notes, indent=1) + '\n', encoding='utf-8')

    def row(self, table, name, f):
        "Add what f returns to a table, or why it failed; once the time is over, add nothing."
        if self.left() < 0: return
        try: value = f()
        except Exception as e: value = dict(failed=f'{type(e).__name__}: {e}'[:2000])
        self.note(**{table: self.notes.get(table, {}) | {name: value}})
        print(f'{self.path.stem}: {table}, {name}: {json.dumps(value)[:150]}', flush=True)

    def left(self): return self.end - time.monotonic()


# 1. Does everything run there?

def run_tests(o, seconds):
    "What pytest says of each test marked `cuda`, as far as it came, and how its output ends."
    env = os.environ | dict(SAGAN_NB_TEST_DEVICE=o.device, PYTEST_DISABLE_PLUGIN_AUTOLOAD='1', PYTHONUNBUFFERED='1',
                            IN_TEST='1')
    words = [sys.executable, '-m', 'pytest', '-m', 'cuda', 'tests/test_cuda.py', '-v', '--tb=short',
             '-p', 'no:cacheprovider']
    if o.smoke: words += ['-k', 'folds or moves_alike']
    with tempfile.TemporaryFile('w+') as log:
        try: subprocess.run(words, cwd=ROOT, env=env, timeout=seconds, stdout=log, stderr=subprocess.STDOUT)
        except subprocess.TimeoutExpired: print(f'pytest took longer than {seconds:.0f} s', file=log)
        log.seek(0)
        text = log.read()
    found = dict(re.findall(r'(?m)^tests/test_cuda\.py::(.+?) (PASSED|FAILED|ERROR|SKIPPED)', text))
    return dict(outcomes=found, tail=text.splitlines()[-80:])


def traced(name, device):
    "A golden trace, beside the one stored, which a CPU computed."
    began, stored = time.monotonic(), json.loads(golden.FILE.read_text(encoding='utf-8'))['traces'][name]
    found = golden.trace(name, device=device)
    pairs = [[torch.tensor(o[key], dtype=torch.float64) for o in (found, stored)] for key in ('losses', 'images')]
    off = max((a - b).abs().max().item() for a, b in pairs)
    same = all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in pairs)
    return dict(off=off, same=same, seconds=time.monotonic() - began)


def check(page, o):
    "The tests, then the traces, then the first losses in the formats of real runs."
    page.row('pytest', 'cuda', lambda: run_tests(o, .6*page.left()))
    for name in ['none'] if o.smoke else golden.ROWS: page.row('traces', name, lambda: traced(name, o.device))
    stored = json.loads(golden.FILE.read_text(encoding='utf-8'))['first']
    for p in usable_variants(o.device, [f'all, {p}' for p in ('fp32', 'tf32', 'bf16')]):
        p, kind = VARIANTS[p].precision, 'bf16' if 'bf16' in p else 'fp32'
        def first(): return dict(found=golden.first_losses(kind, o.device), cpu=stored[kind])
        with rounding(p): page.row('first', p, first)


# 2. How fast are the official networks?

def cases(o):
    "What is timed, in order of worth: pairs (name, how to measure it)."
    tops = (4, 2) if o.smoke else (256, 64)
    nets = [(form, at) for form in ('released', 'paper') for at in ((16,) if o.smoke else (32, 64))]
    def case(batch, form, at, name, words='', mode=None, **change):
        net = replace(NETS['small' if o.smoke else 'paper'], batch=batch, attn_at=(at,), form=form)
        said = ', '.join(filter(None, (f'batch {batch}', f'{form} at {at}', name, words or mode)))
        return said, lambda: timed_step(net, replace(VARIANTS[name], **change), o, mode)
    best = usable_variants(o.device, ['all, bf16', 'all, fp32'])[0]
    rest = usable_variants(o.device, ['all, tf32', 'all, fp32', 'plain'])
    yield from (case(tops[0], *net, best) for net in nets)
    yield from (case(tops[0], *nets[0], name) for name in rest if name != best)
    yield case(tops[1], *nets[0], best)
    if not o.smoke: yield from (case(tops[0], *nets[0], best, mode=mode) for mode in MODES)
    yield from (case(tops[1], *nets[0], name) for name in rest if name != best)
    if o.smoke: return
    yield case(tops[0], *nets[0], 'plain', 'in bfloat16', precision='bf16')
    yield from (case(tops[1], *nets[0], best, mode=mode) for mode in MODES)
    yield from (case(tops[1], *net, best) for net in nets[1:])
    yield from (case(tops[0], *nets[0], best, words, **change) for words, change in left_out.ALONE.items())


MODES = {'compiled': None, 'CUDA graphs': 'reduce-overhead'}


def timed_step(net, v, o, mode=None):
    "Seconds of a step, from bursts of steps without a wait between them, and the peak of memory."
    cuda = 'cuda' in o.device
    if cuda: torch.cuda.reset_peak_memory_stats()
    try:
        with rounding(v.precision):
            if mode: step, compile_seconds = left_out.compiled(net, v, o.device, MODES[mode])
            else: step, compile_seconds = Step(net, v, o.device), None
            once = in_turns(dict(step=step), 1, warm=1)['step'][0][0]
            burst = max(1, min(10, int(.5/once)))
            taken = in_turns(dict(step=lambda: [step() for _ in range(burst)]), 1 if o.smoke else 3, warm=0)
        row = timing_table({'step': [(s/burst, cpu/burst) for s, cpu in taken['step']]}, net.batch, base='step')['step']
        kept = {k: row[k] for k in ('seconds', 'fastest', 'cpu_seconds', 'pictures_per_s')}
        return dict(kept, steps_per_s=1/row['seconds'], burst=burst, compile_seconds=compile_seconds,
                    peak_bytes=torch.cuda.max_memory_allocated() if cuda else None, net=asdict(net), variant=asdict(v))
    finally:
        step = None
        if cuda: left_out.forget({})


def speed(page, o):
    "The best rate of a convolution, and steps per second, which can be held against it."
    for name in usable_variants(o.device, ['all, bf16', 'all, tf32', 'all, fp32']):
        p = VARIANTS[name].precision
        page.row('operations_per_s', p, lambda: conv_rate(p, o.device, .01 if o.smoke else .1))
    for name, measure in cases(o): page.row('steps', name, measure)


# 3. Three rows of Table 1.

def table_words(o, data, folder):
    "What all processes of the table have in common."
    rows, scale, seeds = (('t1_none', 't1_attn_16'), 'smoke', SEEDS[:2]) if o.smoke else (ROWS, 'gpu', SEEDS)
    given = dict(data=str(data), scale=scale, only=','.join(rows), out=str(folder/'table1'), device=o.device)
    return given, seeds


PACE = 'import sys; from tools.bench import gpu; print(gpu.pace(*sys.argv[1:]))'
TABLE = 'import sys; from sagan_nb.machinery import cli; sys.argv[0] = "sagan_table"; cli.sagan_table()'


def start(code, several, *words):
    "One of several processes beside this one; threads of all of them together would hold each other up."
    env = os.environ | dict(OMP_NUM_THREADS=str(max(1, torch.get_num_threads() // several)))
    out = subprocess.PIPE if code == PACE else None
    return subprocess.Popen([sys.executable, '-c', code, *words], stdout=out, text=True, env=env)


def pace(data, scale, row, device, seconds):
    "Seconds of an update of a row of the table, in this process."
    source, found, _ = rows_of('table1', [row], data, scale, (), device)
    return time_update(found[row], source, pick_device(device), float(seconds))


def groups(o, given, seeds):
    """Seeds for each process: one if the device holds as many at once, else one process for all of them; with seconds
    of an update."""
    words = given['data'], given['scale'], given['only'].split(',')[-1], o.device, '.1' if o.smoke else '5'
    for found in ([[s] for s in seeds], [list(seeds)]):
        running = [start(PACE, len(found), *words) for _ in found]
        said = [p.communicate()[0] for p in running]
        if not any(p.returncode for p in running): return found, max(float(text.splitlines()[-1]) for text in said)
    raise RuntimeError('not even one process could train')


def finish(running, page, spare, look=lambda: None):
    """Wait for processes until little time is left, and look now and then; then ask what still runs to save and end, as
    a scheduler would, and kill what does not."""
    while any(p.poll() is None for p in running) and page.left() > spare:
        time.sleep(.5)
        look()
    for p in running: p.terminate()
    for p in running:
        try: p.wait(max(1., page.left() - spare/2))
        except subprocess.TimeoutExpired: p.kill()
    return [p.wait() for p in running]


def short(result):
    "What a page says of a run; all of it is in the zip."
    of_run = 'row', 'seed', 'name', 'status', 'seconds_per_step', 'wait_share', 'evaluation_seconds'
    of_record = 'metric', 'value', 'n_fake', 'n_real', 'features'
    return dict({k: result[k] for k in of_run}, steps=result['config']['steps'],
                records=[{k: r.get(k) for k in of_record} for r in result['records']])


def keep_table(folder, path, page):
    "Put a folder of results into a zip, without its runs, and on the page, if there is something new."
    runs, text = [short(r) for r in collect(folder)], folder/'table1.md'
    found = dict(runs=runs, table=text.read_text(encoding='utf-8') if text.exists() else '')
    if found.items() <= page.notes.items() or not found['runs']: return
    files = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.relative_to(folder).parts[0] != 'runs'
             and not p.name.startswith('.') and p.suffix != '.part']            # others are writing there
    with atomic_write(path) as part, zipfile.ZipFile(part, 'w', zipfile.ZIP_DEFLATED) as z:
        for p in files: z.write(p, p.relative_to(folder))
    page.note(**found)


def table(page, o):
    """As many updates for each row and seed as fit into 60 % of what is left; the rest is for measuring. A run that
    has ended is kept at once."""
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        if o.data: pack(o.data, 32 if o.smoke else 64, folder/'pictures.pack')
        given, seeds = table_words(o, folder/'pictures.pack' if o.data else 'toy', folder)
        rows = given['only'].split(',')
        source = rows_of('table1', rows, given['data'], given['scale'], (), o.device)[0]
        facts = features_of('domain', source, given['out'], pick_device(o.device)).facts
        found, each = groups(o, given, seeds)
        steps = 4 if o.smoke else max(100, int(.6*page.left()/(len(rows)*len(found[0])*each))//100*100)
        page.note(data=o.data or 'toy', images=len(source), classifier=facts, seconds_per_update=each,
                  processes=len(found), steps=steps)
        minutes = max(.1, .8*page.left()/60)
        words = [w for k, v in given.items() for w in (f'--{k}', v)]
        words += ['--minutes', f'{minutes:.2f}', '--set', f'steps={steps}']
        if o.smoke: words += ['width=2', 'standing=16', 'batch=4']
        running = [start(TABLE, len(found), 'table1', *words, '--seeds', ','.join(map(str, own))) for own in found]
        keep = partial(keep_table, Path(given['out']), o.out/'table1.zip', page)
        page.note(exit_codes=finish(running, page, 8, keep))
        keep()


# 4. What is left?

def profiled_training(o):
    """Updates of a run with its hooks, between two lines of its log: how often the device is waited for, and how long
    it is busy."""
    row, scale, n = ('t1_attn_16', 'smoke', 2) if o.smoke else ('t1_attn_32', 'gpu', 8)
    cfg = replace(at_scale(preset(row), scale), n_classes=20, log_every=10**6, steps=10**6)
    gan, source = make_gan(cfg, pick_device(o.device)), Toy(cfg.res, 20, n=1000)
    cuda = 'cuda' in o.device
    def updates(k):
        last = gan.t + k
        def stop(gan, log):
            if gan.t == last: raise Stopped
        with suppress(Stopped): fit(gan, data, [(1, average), (1, log), (1, stop)])
        if cuda: torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as d, closing(stream_of(cfg, source, gan.ranks, o.device)) as data:
        log = Log(Path(d)/'log.jsonl', data)
        updates(3)
        began = time.perf_counter()
        with torch.profiler.profile(activities=left_out.activities(cuda)) as p: updates(n)
        seconds = (time.perf_counter() - began)/n
    rows = p.key_averages()
    counts = {e.key: e.count for e in rows}
    kernels = [e for e in rows if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    busy = sum(e.self_device_time_total for e in kernels)/1e6/n       # rows of the CPU have their kernels' time again
    return dict(updates=n, seconds_per_update=seconds, busy_seconds_per_update=busy if cuda else None,
                waits={k: counts.get(k, 0) for k in WAITS})


def profile(page, o):
    "Where the time of the fastest eager step goes; what a run waits for."
    name = usable_variants(o.device, ['all, bf16', 'all, fp32'])[0]
    net = replace(NETS['small'], batch=4) if o.smoke else replace(NETS['paper'], attn_at=(32,))
    def text():
        step = Step(net, VARIANTS[name], o.device)
        step(), step()
        return left_out.profile(step).splitlines()
    page.row('profiles', name, text)
    page.row('profiles', 'a run', lambda: profiled_training(o))


# All of it.

PARTS = dict(check=check, speed=speed, table=table, profile=profile)


def run_part(name, seconds, o):
    "Let a part run in a process of its own, and end it with all its children when its time is over."
    words = ['--part', name, '--seconds', f'{.95*seconds:.1f}', '--out', o.out, '--device', o.device]
    if o.smoke: words += ['--smoke']
    if o.data: words += ['--data', o.data]
    began, text = time.monotonic(), 'whole'
    with open(o.out/'log.txt', 'a', encoding='utf-8') as log:
        child = subprocess.Popen([sys.executable, '-m', 'tools.bench.gpu', *map(str, words)], stdout=log,
                                 stderr=subprocess.STDOUT, env=os.environ | dict(IN_TEST='1'), start_new_session=True)
        try:
            if code := child.wait(seconds): text = f'ended with exit code {code}'
        except subprocess.TimeoutExpired: text = 'stopped when its time was over'
        finally:
            with suppress(ProcessLookupError): os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return dict(ended=text, seconds=round(time.monotonic() - began, 1), given=round(seconds, 1))


def run_all(o):
    "Run the parts one after another, and write down how each ended."
    end, done, names = time.monotonic() + 60*o.minutes, {}, list(SHARES)
    o.out.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        seconds = SHARES[name]/sum(SHARES[n] for n in names[i:])*(end - time.monotonic())
        done[name] = run_part(name, seconds, o)
        text = json.dumps(dict(minutes=o.minutes, smoke=o.smoke, parts=done), indent=1)
        with atomic_write(o.out/'run.json') as part: part.write_text(text + '\n')
        print(f'{name}: {done[name]["ended"]}, {done[name]["seconds"]} s', flush=True)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=9, help='for all parts together')
    p.add_argument('--out', type=Path, required=True, help='folder to fill')
    p.add_argument('--data', help='images for the table: a zip or a folder (FILE.zip:train for a folder in a zip)')
    p.add_argument('--device', default='cuda')
    p.add_argument('--smoke', action='store_true', help='everything small: a rehearsal')
    p.add_argument('--part', choices=PARTS, help='one part alone, in this process')
    p.add_argument('--seconds', type=float, default=60, help='for --part')
    o = p.parse_args(argv)
    o.out = o.out.absolute()
    if not (o.smoke or o.data): p.error('say with --data which images the table is to be made of')
    if o.part: PARTS[o.part](Page(o), o)
    else: run_all(o)


if __name__ == '__main__': main()
