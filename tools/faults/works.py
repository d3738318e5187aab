"""What is disturbed: training, resuming, packing, evaluation, rows of a table, publishing; each at the smallest size
that has all its parts.

A work that is called again on the same folder goes on where it was stopped. Two ways to one end leave equal `outcome`s.
"""
import contextlib
import io
import json
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from sagan_nb.config import PRESETS, at_scale, from_json
from sagan_nb.data import open_source
from sagan_nb.machinery import curve, files, jobs, packs, pictures
from sagan_nb.machinery.checkpoints import checkpoints_of, read_checkpoint
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.evaluate import evaluate, save_records
from sagan_nb.machinery.features import Classifier, Features
from sagan_nb.machinery.files import CacheWarning, read_cache, read_lines, read_safetensors
from sagan_nb.machinery.jobs import Job, run_rows
from sagan_nb.machinery.packed import open_packed
from sagan_nb.machinery.publish import save_pretrained
from sagan_nb.machinery.runs import read_log, train

CFG = replace(at_scale(PRESETS['t1_attn_16'], 'smoke'), width=1, attn_at=(8,), steps=6, ema=.9, ema_start=1,
              standing=16, batch=4, checkpoint_every=2, sample_every=3, log_every=1, sigma_every=100)
CHUNK = 16                # pictures written together, so that a small pack has several


def pictures_in(folder):
    "A folder of small pictures of noise."
    rng = np.random.default_rng(0)
    for k in 'abcd':
        (folder/k).mkdir(parents=True)
        for i in range(15):
            Image.fromarray(rng.integers(0, 256, (34, 36, 3), dtype=np.uint8)).save(folder/k/f'{i:02}.png')
    return folder


def settings(source, **own):
    "Of a run on these pictures."
    return replace(CFG, data=source.spec, data_id=source.fingerprint, n_classes=len(source.classes), **own)


class Place:
    "What all works share: pictures, a run that is half done and one that is finished, a network that measures."
    def __init__(self, folder):
        self.folder = Path(folder)
        if not (self.folder/'pictures').exists(): pictures_in(self.folder/'pictures')
        self.source = open_source(self.folder/'pictures', 32)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Classifier(32, 4)
        self.features = Features(net, 'untrained', facts=dict(accuracy=.25, held_out=8, task='classes'))

    def prepare(self):
        "Make the runs that others begin with."
        for name, steps in (('half', 3), ('finished', 6)):
            train(settings(self.source, steps=steps), self.source, self.folder/name)
        return self


def train_run(place, folder):
    run = folder/'run'
    train(settings(place.source), place.source, run, resume=(run/'config.json').exists())


def resume_run(place, folder):
    if not (folder/'run'/'config.json').exists(): shutil.copytree(place.folder/'half', folder/'run')
    train(settings(place.source), place.source, folder/'run', resume=True)


def pack_pictures(place, folder):
    packs.pack(place.folder/'pictures', 32, folder/'pictures.pack')


def measure_run(place, folder):
    model = open_run(place.folder/'finished')
    records = evaluate(model.G, place.source, ('distance', 'intra', 'kid'), place.features, n_fake=40,
                       cache=folder/'cache', about=model.about)
    save_records(folder/'metrics.json', records)


def run_table(place, folder):
    rows, out = dict(t1_attn_16={}, t1_none=dict(block='none', attn_at=())), folder/'table'
    asked = [Job(settings(place.source, preset=row, steps=4, sample_every=4, **own)) for row, own in rows.items()]
    failed = run_rows(asked, place.source, out, out/'runs', say=lambda *args, **kw: None)
    if failed: raise RuntimeError(str(failed))


def publish_run(place, folder):
    save_pretrained(place.folder/'finished', folder/'published')


@dataclass
class Work:
    "Something that takes a while and writes files."
    do: callable                     # (place, folder), again and again until it is done
    starts: str = ''                 # a folder of the place that it begins with, copied to `run`


WORKS = dict(training=Work(train_run), resuming=Work(resume_run, 'half'), packing=Work(pack_pictures),
             evaluation=Work(measure_run), table=Work(run_table), publishing=Work(publish_run))


@contextlib.contextmanager
def small(place):
    "Chunks, samples and sizes as small as the works."
    sizes = dict(smoke=(40, 40))
    own = ((pictures, 'CHUNK', CHUNK), (jobs, 'SIZES', sizes), (curve, 'SIZES', sizes),
           (jobs, 'features_of', lambda *args: place.features), (jobs.Curve, 'points', 2), (files, 'STALE', 0))
    with contextlib.ExitStack() as patches, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        for o, name, value in own: patches.enter_context(mock.patch.object(o, name, value))
        warnings.simplefilter('ignore')
        yield


# what is there afterwards

CLOCK = ('images_per_s', 'seconds_per_step', 'wait_share', 'seconds', 'evaluation_seconds', 'env', 'went_on', 'version',
         'trained_commit', 'checkpoint_sha256', 'device', 'seal')


def timeless(value):
    "JSON values without what the clock and the machine have to say."
    if isinstance(value, dict): return {k: timeless(v) for k, v in value.items() if k not in CLOCK}
    return [*map(timeless, value)] if isinstance(value, list) else value


def of_run(run):
    "What must be equal in two runs that end alike."
    log = [timeless(o) for o in read_log(run/'log.jsonl')]
    own = {p.name: files.file_sha256(p) for p in (checkpoints_of(run)[-1], *sorted((run/'samples').glob('*.png')))}
    looks = read_log(run/'curve.jsonl') if (run/'curve.jsonl').exists() else []
    return own | dict(log=log, curve=[timeless(o) for o in looks], config=(run/'config.json').read_text(),
                      data=(run/'data.json').read_text())


def outcome(folder):
    "What must be equal in two folders that end alike, by name."
    found = {}
    for path in sorted(folder.rglob('*')):
        name = path.relative_to(folder).as_posix()
        read, hashed = path.match('table/*.json'), path.match('table/*.png') or path.suffix == '.safetensors'
        if path.name == 'config.json': found[name] = of_run(path.parent)
        if path.name == 'pack.json': found |= {f'{name}:{p.name}': files.file_sha256(p) for p in path.parent.iterdir()}
        if path.name == 'metrics.json' or read: found[name] = timeless(json.loads(path.read_text()))
        if path.name == 'README.md' or hashed: found[name] = files.file_sha256(path)
        if unfinished(path): found[f'{path.parent.name}/*.part'] = 'left over'
    return found


def unfinished(path): return path.suffix == '.part' or path.name.endswith('.part.log')


def is_true(value):
    if not value: raise ValueError('it is not whole')


def check_arrays(path):
    "Raise where a cache or published weights are not whole."
    is_true(read_cache(path) if 'cache' in path.parts else 'sagan_nb_sha256' in read_safetensors(path)[1])


CHECKS = {                # name or ending -> raises where a file is not whole
    '.pt': read_checkpoint, '.jsonl': read_lines, '.safetensors': check_arrays,
    'config.json': lambda p: from_json(p.read_text()), 'pack.json': lambda p: open_packed(p.parent, whole=True),
    '.json': lambda p: json.loads(p.read_text()), '.png': lambda p: Image.open(p).load(),
    'README.md': lambda p: is_true(p.read_text().startswith('# '))}


def check_file(path):
    "Raise where a file under a final name is not whole."
    check = CHECKS.get(path.name) or CHECKS.get(path.suffix)
    if check: check(path)


FREED = 5                 # seconds: a child of the killed process that is about to become git holds its lock so long


def check_whole(folder):
    "List what is wrong with a folder in which a process was killed: files that are not whole, locks that are held."
    wrong = []
    for path in sorted(folder.rglob('*')):
        below_part = any(p.endswith('.part') for p in path.relative_to(folder).parts)
        if not path.is_file() or below_part or unfinished(path): continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('error', CacheWarning)
                if not path.name.endswith('.lock'): check_file(path)
                else:
                    with FileLock(path, timeout=FREED): pass
        except Timeout: wrong.append(f'{path.relative_to(folder)}: the lock is held')
        except Exception as e: wrong.append(f'{path.relative_to(folder)}: {type(e).__name__}: {str(e)[:200]}')
    return wrong
