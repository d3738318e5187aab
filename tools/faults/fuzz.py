"""Feed readers with what nobody meant: `python -m tools.faults.fuzz --executions 1000000 --out results/faults`.

Each target takes bytes. It may take them for good, or refuse them in one sentence; any other exception, and any second
thought of longer than ten seconds, is a crash, and becomes a test. Inputs are good ones that are mutated: bits, bytes,
runs cut out or doubled, words that readers find hard, parts of another good one. With --by_coverage, atheris chooses
them by the branches that they reach (`pip install .[fuzz]`, Linux). Counts are added to those that are there, so that a
long campaign can be run in slices; a slice begins with the seed that the last one ended with. tests/test_fuzz.py lets
hypothesis make inputs for the same targets.
"""
import contextlib
import io
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse, store_true
from PIL import Image

from sagan_nb.config import PRESETS, from_json, override, to_json
from sagan_nb.core import Refused, printable
from sagan_nb.data import WORLDS
from sagan_nb.machinery.checkpoints import read_checkpoint, sealed
from sagan_nb.machinery.evaluate import stored_records
from sagan_nb.machinery.files import parse_json, read_arrays, read_lines, safetensors_bytes, sealed_json
from sagan_nb.machinery.guard import kept_best
from sagan_nb.machinery.jobs import read_result
from sagan_nb.machinery.listing import Listing, list_pictures
from sagan_nb.machinery.options import pick_classes, read_queries, slice_of
from sagan_nb.machinery.packed import open_packed
from sagan_nb.machinery.pictures import decode, share_of
from sagan_nb.machinery.runs import read_log
from sagan_nb.machinery.sources import toy_classes, twins_options, world_of
from sagan_nb.metrics import frechet_distance, inception_score, intra_fid, kernel_distance, prdc
from sagan_nb.ablation import TABLES

from .results import add_rows, read_results

HARD = [
    b'', b'0', b'-1', b'1e999', b'NaN', b'-Infinity', b'9'*400, b'9'*5000, b'['*3000, b'{"a":'*3000, b'null', b'true',
    b'""', b'"\\ud800"', b'\xff\xfe', b'\0', b'\r\n', b'\x1b[2J', b'../', b'\\', b':', b',', b'%', b'=', b'$',
    b'__class__', b'{}', b'%s', b'seal', b'sha256:', b'PK\3\4', b'PK\5\6', (2**31).to_bytes(8, 'little'), b'\xff'*8]
PATIENCE = 10             # seconds
ROOT = Path(__file__).resolve().parents[2]


class Slow(BaseException): "It takes longer than PATIENCE."


def world(text):
    spec = text.decode('utf-8', 'replace')
    if world_of(spec) not in WORLDS: raise Refused('no world')
    return twins_options(spec) if world_of(spec) == 'twins' else toy_classes(spec)


def words(text):
    "What a command line says, one after another."
    said, table1 = text.decode('utf-8', 'surrogateescape'), TABLES['table1']
    readers = (share_of, kept_best, lambda o: pick_classes(o, ['cat', 'dog', 'a, b']),
               lambda o: read_queries(o.split()),
               lambda o: slice_of(table1, o, '0'), lambda o: slice_of(table1, None, o))
    for read in readers:
        with contextlib.suppress(Refused): read(said)
    printable(said).encode()


def numbers(data):
    "Features of a size and with values that the bytes say, to every metric."
    a = np.frombuffer(data[:len(data) // 4 * 4], np.float32)
    d = 1 + (data[0] if data else 0) % 5
    x = torch.from_numpy(a[:len(a) // d * d].copy()).view(-1, d)[:40]
    y = torch.arange(len(x)) % 3
    measures = (lambda: frechet_distance(x, x.flip(0)), lambda: inception_score(x), lambda: kernel_distance(x, x, 2, 5),
                lambda: prdc(x, x), lambda: intra_fid(x, y, x, y))
    for measure in measures:
        with contextlib.suppress(Refused), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            measure()


def picture(data):
    got = decode(Listing('', [], [], [], lambda name: data), 'x', 32)
    assert isinstance(got, str) or got.shape == (3, 32, 32)


def from_file(read, name):
    "A target that reads a file."
    def target(data, folder):
        path = folder/name
        path.write_bytes(data)
        return read(path)
    return target


def in_memory(read):
    "A target that takes bytes."
    return lambda data, folder: read(data)


def pairs(text): return override(PRESETS['paper'], text.decode('utf-8', 'surrogateescape').split(' '))


TARGETS = {
    'settings, JSON': in_memory(lambda o: from_json(o.decode('utf-8', 'surrogateescape'))),
    'settings, key=value': in_memory(pairs),
    'words of a command line': in_memory(words),
    'names of worlds': in_memory(world),
    'JSON with a hash': in_memory(parse_json),
    'metrics': in_memory(numbers),
    'picture': in_memory(picture),
    'log': from_file(read_log, 'log.jsonl'),
    'lines': from_file(read_lines, 'a.jsonl'),
    'records': from_file(lambda p: stored_records(p, 'delete it'), 'metrics.json'),
    'result': from_file(read_result, 'a.json'),
    'pack.json': from_file(lambda p: open_packed(p.parent), 'pack.json'),
    'zip': from_file(lambda p: list_pictures(str(p), True), 'a.zip'),
    'checkpoint': from_file(read_checkpoint, 'step_0000001.pt'),
    'safetensors': from_file(read_arrays, 'a.safetensors'),
    'npz': from_file(read_arrays, 'a.npz'),
    'pth': from_file(read_arrays, 'a.pth')}
SLOW = {'checkpoint', 'safetensors', 'npz', 'pth', 'zip', 'picture', 'metrics'}    # a twentieth of the executions


def image_bytes(kind):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def saved(write):
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def zipped(out):
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
        for name in ('a/0.png', './b/1.png', 'c\\2.png', 'notes.txt'): z.writestr(name, b'x')


def json_seeds():
    "Good inputs of what reads JSON."
    line = sealed_json(dict(t=3, loss_d=1.5, usage_G={'8': dict(gamma=.5, ratio=.1, entropy=2., distance=3.)}))
    record = sealed_json(dict(metric='score', value=1.5, splits=1, seed=0))
    result = sealed_json(dict(row='t1_none', seed=0, scale='smoke', name='a', status='finished', numerics=2, env={},
                              config={}, parameters={}, records=[], curve=[], collapse=[]))
    about = sealed_json(dict(format='sagan_nb pack', version=2, n=2, res=4, classes=['a', 'b'], counts=[1, 1],
                             fingerprint='f', unreadable={}, found={}, chunks=[dict(n=2, sha256='0'*64)]))
    line, records, result, about = (json.dumps(o).encode() for o in (line, [record], result, about))
    lines = line + b'\n' + line + b'\n{"t": 4'
    return {'settings, JSON': [to_json(PRESETS['t1_attn_32']).encode()], 'JSON with a hash': [line, about],
            'log': [lines], 'lines': [lines], 'records': [records], 'result': [result], 'pack.json': [about]}


def seeds():
    "Good inputs of each target."
    tensors = dict(w=torch.ones(2, 3), b=torch.zeros(3))
    arrays = {k: v.numpy() for k, v in tensors.items()}
    state = dict(config='{}', t=1, G=tensors, D=tensors, rng=torch.zeros(4))
    return json_seeds() | {
        'settings, key=value': [b'res=64 attn_at=8,16 lr_g=1e-4', b'block=none flip=true'],
        'words of a command line': [b'5%', b'best:3', b'cat,dog', b'12,40 20,8', b't1_none', b'0,1,2'],
        'names of worlds': [b'toy:3', b'twins:detail=3,apart=1.2,same=0', b'pairs'],
        'metrics': [np.random.default_rng(0).normal(size=60).astype(np.float32).tobytes()],
        'picture': [image_bytes(k) for k in ('PNG', 'JPEG', 'GIF', 'BMP', 'WEBP', 'TIFF')],
        'zip': [saved(zipped)],
        'checkpoint': [sealed(state), saved(lambda o: torch.save(state, o))],
        'safetensors': [safetensors_bytes(tensors, dict(sagan_nb='{}'))],
        'npz': [saved(lambda o: np.savez(o, **arrays))],
        'pth': [saved(lambda o: torch.save(tensors, o))]}


def mutate(data, rng, others):
    "Change bytes in one to four ways."
    b = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(b) + 1)
        way, n = rng.randrange(6), rng.choice((1, 1, 2, 4, 16, 64))
        if way == 0 and at < len(b): b[at] ^= 1 << rng.randrange(8)
        elif way == 1: b[at:at + n] = rng.randbytes(n)
        elif way == 2: del b[at:at + n]
        elif way == 3: b[at:at] = b[at:at + n]
        elif way == 4: b[at:at + rng.choice((0, n))] = rng.choice(HARD)
        else: b[at:] = rng.choice(others)[rng.randrange(len(b) + 1):]
    return bytes(b)


def attempt(target, data, folder):
    "None where it was taken or refused; else what happened, in words."
    def slow(*args): raise Slow
    before = signal.signal(signal.SIGALRM, slow)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try: target(data, folder)
    except Refused as e: return None if type(e) is Refused else f'{type(e).__name__}: {e}'
    except ValueError as e:
        if target is TARGETS['JSON with a hash']: return None        # whoever calls it says which file
        return f'{type(e).__name__}: {str(e)[:200]}'
    except Slow: return f'longer than {PATIENCE} s'
    except BaseException as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        return f'{type(e).__name__} at {Path(last.filename).name}:{last.name}: {str(e)[:200]}'
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def campaign(name, executions, seed, folder):
    "Run one target so often: crashes, as words -> input in hexadecimal."
    rng, good, found = random.Random(f'{name} {seed}'), seeds()[name], {}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(executions):
            data = mutate(rng.choice(good), rng, good)
            if words := attempt(TARGETS[name], data, folder):
                found.setdefault(words.split(': ')[0], (words, data[:20_000].hex()))
    return found


def guided(name, executions, seed, folder):
    """The same under atheris, which stops at the first crash: crashes, executions made, branches that good inputs
    reach, branches reached at the end."""
    corpus, words, artifact = folder/'corpus', folder/'words', folder/'crash'
    corpus.mkdir()
    for i, data in enumerate(seeds()[name]): (corpus/str(i)).write_bytes(data)
    escaped = [''.join(f'\\x{b:02x}' for b in word) for word in HARD if 0 < len(word) <= 64]
    words.write_text(''.join(f'"{o}"\n' for o in escaped))
    flags = (f'-runs={executions} -seed={seed + 1} -dict={words} -exact_artifact_path={artifact} -rss_limit_mb=0 '
             '-handle_alrm=0 -timeout=0 -print_final_stats=1').split()
    said = subprocess.run([sys.executable, '-m', 'tools.faults.guided', name, folder, *flags, corpus], cwd=ROOT,
                          capture_output=True, text=True, errors='replace')
    everything = said.stderr + said.stdout
    made = re.search(r'number_of_executed_units: (\d+)', everything)
    reached = [int(n) for n in re.findall(r'cov: (\d+)', everything)]
    if not made or not reached: raise SystemExit(f'{name}: atheris did not run\n{everything[-2000:]}')
    found = {}
    if said.returncode:
        raised = [o for o in everything.splitlines() if o.startswith('AssertionError: ')]
        what = raised[0].removeprefix('AssertionError: ') if raised else f'exit code {said.returncode}'
        found[what.split(': ')[0]] = what, artifact.read_bytes()[:20_000].hex() if artifact.exists() else ''
    return found, int(made[1]), reached[0], reached[-1]


@call_parse
def main(
    executions:int=20_000,    # of all targets together; slow ones get a twentieth of what others get
    out:str=None,             # folder for fuzz.json, whose counts are added to; nothing is written without
    only:str=None,            # targets whose name begins so
    by_coverage:store_true=False,      # let atheris choose the inputs by the branches that they reach
):
    "Feed, and count. Ends with 1 where anything crashed."
    names = [n for n in TARGETS if not only or n.startswith(only)]
    how = 'chosen by coverage' if by_coverage else 'good inputs, mutated'
    weight = {n: .05 if n in SLOW else 1 for n in names}
    share = executions / sum(weight.values())
    path, began, rows = Path(out or '.')/'fuzz.json', time.time(), []
    known = read_results(path)['rows'] if out else []
    before = {o['fault']: o['tries'] for o in known if o['how'] == how}
    for name in names:
        n, more = max(1, round(share*weight[name])), {}
        with tempfile.TemporaryDirectory(dir='/dev/shm' if Path('/dev/shm').is_dir() else None) as d:
            if by_coverage:
                crashes, n, first, last = guided(name, n, before.get(name, 0), Path(d))
                more['branches'] = [first, last]
            else: crashes = campaign(name, n, before.get(name, 0), Path(d))
        for words, data in crashes.values(): print(f'{name}: {words}\n  {data[:400]}', flush=True)
        wrong = [words for words, _ in crashes.values()]
        rows.append(dict(fault=name, how=how, tries=n, wrong=wrong, found=[*crashes], **more))
        print(f'{name}: {n:,} more, {n + before.get(name, 0):,} in all', *more.values(), flush=True)
    if out: add_rows(path, rows, time.time() - began)
    print(f'{sum(o["tries"] for o in rows):,} executions in {time.time() - began:.0f} s')
    raise SystemExit(any(o['wrong'] for o in rows))


if __name__ == '__main__': main()
