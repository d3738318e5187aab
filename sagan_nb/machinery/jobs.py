"Serves chapter 12: a row and a seed: its name, its run, the lock on it, and its result file."
import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..ablation import Plan, collapse
from ..config import BOOKKEEPING, NUMERICS, Config, at_scale, override, preset, to_json
from ..core import Refused
from ..train import networks
from .atomic import atomic_write
from .checkpoints import Diverged
from .curve import SIZES, Curve
from .door import open_run
from .evaluate import evaluate, is_record, run_scores
from .features import Features, open_features
from .files import read_json, sweep, write_json
from .runs import (BUSY, InUse, NoteMachine, Stopped, kept_samples, machines, numbers, read_log, run_lock, sample_files,
                   settings_of, train, with_numbers)

UNNAMED = 'data', 'preset', 'scale', *BOOKKEEPING              # settings that are no part of a run's name
PAPER = json.loads(to_json(Config()))


@dataclass(frozen=True)
class Job:
    "One row, one seed."
    cfg:Config                # complete: scale, classes, data_id
    features:str = 'domain'   # what it is measured with, see `evaluate`

    @property
    def settings(self)->str:                             # JSON
        "The settings that determine the result, where they differ from those of `paper`."
        own = {k: v for k, v in json.loads(to_json(self.cfg)).items() if k not in UNNAMED}
        own = {k: v for k, v in own.items() if v != PAPER[k]}
        asked = dict(steps=self.cfg.steps, row=self.cfg.preset, sizes=SIZES[self.cfg.scale], features=self.features)
        return json.dumps(own | asked, sort_keys=True)

    @property
    def stem(self)->str:                                 # row, seed and a hash of settings
        "The part of the name that the version of the numbers leaves alone."
        return f'{self.cfg.preset}-s{self.cfg.seed}-{hashlib.sha256(self.settings.encode()).hexdigest()[:8]}'

    @property
    def name(self)->str:                                 # of the run folder and the result file
        "Row, seed, settings, version of the numbers."
        return f'{self.stem}-v{NUMERICS}'


def setting_name(pair:str)->str:
    "The name of the setting in key=value."
    return pair.split('=')[0].strip()


ELSEWHERE = dict(seed='--seeds', scale='--scale', preset='--only', data='--data', data_id='--data', n_classes='--data')


def refuse_pair(
    base,                     # a Config for each row of a table
    name:str,                 # a setting that is wanted to be the same in all of them
):
    "Raise Refused for a setting that has an option of its own, and for one that tells the rows apart."
    if name in ELSEWHERE: raise Refused(f'{name} is not for --set: say {ELSEWHERE[name]}')
    if name == 'attn_at':                                # for all that have a block, if no two become equal
        rows = {replace(o, preset='') for o in base if o.block != 'none'}
        apart = len({replace(o, attn_at=()) for o in rows}) < len(rows)
    else: apart = len({getattr(o, name, None) for o in base}) > 1
    if apart: raise Refused(f'{name} is what tells the rows of this table apart: it cannot be set for all of them')


def row_configs(
    plan:Plan,                # which table
    source,                   # pictures, from `open_source`
    scale:str='laptop',       # see chapter 07
    pairs=(),                 # key=value texts, for all rows alike
    fast_bf16:bool=False,     # does this machine compute bfloat16 in hardware?
)->tuple[dict,dict]:          # row -> Config with seed 0; row -> why it does not apply
    "The settings of each row. Raises Refused for a pair that would change what tells rows apart."
    K, found, skipped = len(source.classes), {}, {}
    def off(cfg): return {name: 0 for name in plan.switches if not getattr(cfg, name)}
    base = [replace(at_scale(preset(row), scale, fast_bf16), **off(preset(row))) for row in plan.rows]
    for pair in pairs: refuse_pair(base, setting_name(pair))
    for row, cfg in zip(plan.rows, base):
        cfg = replace(cfg, res=source.res, data=source.spec, data_id=source.fingerprint, n_classes=K,
                      head=cfg.head if K else 'none')
        cfg = override(cfg, [o for o in pairs if cfg.block != 'none' or setting_name(o) != 'attn_at'])
        twin = next((o for o, c in found.items() if replace(c, preset=row) == cfg), None)
        if not K and preset(row).head == 'acgan': skipped[row] = 'the pictures have no classes'
        elif twin: skipped[row] = f'the same settings as {twin} at this scale'
        else:
            try:
                with torch.device('meta'): networks(cfg)
                found[row] = cfg
            except Refused as e: skipped[row] = str(e)
    return found, skipped


def measure(
    run,                      # run folder
    source,                   # the real pictures
    device='cpu',             # where to
    features='domain',        # see `evaluate`; here and below, a Features object will do
    sizes:tuple=None,         # generated and real pictures; None: SIZES of its scale
    ranks=None,               # see `evaluate`
)->list:                      # records
    """The metrics that every run ends with, of its newest checkpoint; of unrounded images at paper scale, as the
    released evaluator."""
    model = open_run(run, device)
    metrics = ['score', 'distance', 'intra', 'diversity']
    if source.long_range is not None: metrics.append('long_range')
    n_fake, n_real = sizes or SIZES[model.cfg.scale]
    about, rounding = dict(model.about, numerics=NUMERICS), model.cfg.scale != 'paper'
    return evaluate(model.G, source, metrics, features, n_fake, n_real, rounding=rounding, about=about, ranks=ranks)


def timed_curve(
    log:list,                 # from `read_log`
    curve:list,               # from curve.jsonl
)->list:                      # the curve, each line with `seconds`
    "Give updates times the median seconds per update: pauses and evaluation do not count, sustained load does."
    pace = np.median([o['seconds_per_step'] for o in log]) if log else math.nan
    return [dict(o, seconds=round(float(o['t']*pace), 3)) for o in curve]


def sample_strip(
    run,                      # run folder, with samples
)->tuple:                     # a PIL image; the steps of its grids
    "Four draws of z at four steps, evenly over the run, side by side (Figure 4), from the same noise."
    from PIL import Image
    there = sample_files(run)
    wanted = np.linspace(0, max(there), 5)[1:]
    steps = sorted({min(there, key=lambda t: abs(t - w)) for w in wanted})
    kept = kept_samples(run, steps=steps)
    grids = [kept[t].permute(1, 2, 0).numpy() for t in steps]
    cut = [g[:, :g.shape[1] // 3] for g in grids]
    gap = np.full((cut[0].shape[0], 6, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([p for c in cut for p in (c, gap)][:-1], 1)), steps


def result_of(
    job:Job,                  # what was asked for
    run,                      # its run folder, trained
    records:list,             # from `measure`
    status:str,               # 'finished', or why it ended earlier
    took:float=None,          # seconds of the measuring
)->dict:                      # JSON values
    "Everything that a table needs from a run."
    run, (G, D) = Path(run), networks(job.cfg)
    log = with_numbers(read_log(run/'log.jsonl'), 'loss_d', 'seconds_per_step', 'wait_share')
    curve = timed_curve(log, with_numbers(read_log(run/'curve.jsonl'), 'distance', 'diversity'))
    real = next((o['real'] for o in records if o['metric'] == 'diversity'), 0) or math.inf
    env, *went_on = machines(run)
    def count(net): return sum(p.numel() for p in net.parameters())
    return dict(row=job.cfg.preset, seed=job.cfg.seed, scale=job.cfg.scale, name=job.name, status=status,
                numerics=NUMERICS, env=env, went_on=went_on, config=json.loads(to_json(job.cfg)),
                parameters=dict(G=count(G), D=count(D)), records=records, curve=curve,
                seconds_per_step=float(np.median([o['seconds_per_step'] for o in log])) if log else None,
                wait_share=float(np.mean([o['wait_share'] for o in log])) if log else None, evaluation_seconds=took,
                collapse=collapse(log, curve, real, job.cfg.steps))


def features_of(
    spec:str,                 # as of `open_features`
    source,                   # the real pictures
    out,                      # folder of results
    device='cpu',             # where to
)->Features:
    "What a folder of results is measured by: a classifier is kept in it, so that later runs, elsewhere, have the same."
    from filelock import FileLock
    folder = Path(out)/'features'
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder/'.lock'): return open_features(spec, source, folder, device)


def run_job(
    job:Job,                  # what to train
    source,                   # the pictures
    out,                      # folder of results
    runs,                     # folder of run folders
    device='cpu',             # where to
    hooks=(),                 # more hooks, such as one that raises Stopped
)->dict:                      # the result, as written
    "Train, measure, and write one JSON and one picture."
    run, out, status = Path(runs)/job.name, Path(out), 'finished'
    resume = (run/'config.json').exists()                # else nothing was begun
    features = features_of(job.features, source, out, device)
    curve = Curve(run, source, job.cfg, device, features)
    noted = [(1, NoteMachine(run, device))] if resume else []
    try:
        if resume: curve.catch_up()
        train(job.cfg, source, run, resume, device, [*noted, (curve.every, curve), *hooks])
    except Diverged as e: status = f'diverged: {e}'
    began = time.time()
    try: records = measure(run, source, device, features)
    except Diverged as e: status, records = f'diverged: {e}', []
    except Refused:
        if status == 'finished': raise
        records = []                                     # it diverged before its first checkpoint
    return write_result(job, run, records, status, out, round(time.time() - began, 1))


def write_result(
    job:Job,                  # what was trained
    run,                      # its run folder
    records:list,             # from `measure`
    status:str,               # as of `result_of`
    out,                      # folder of results
    took:float=None,          # seconds of the measuring
)->dict:                      # the result, as written
    "Write what a table needs of a run: one picture, one JSON."
    run, out, result = Path(run), Path(out), result_of(job, run, records, status, took)
    out.mkdir(parents=True, exist_ok=True)
    sweep(out, f'{job.name}.*')
    if sample_files(run):
        picture, result['samples_at'] = sample_strip(run)
        with atomic_write(out/f'{job.name}.png') as part: picture.save(part, format='PNG', optimize=True)
    write_json(out/f'{job.name}.json', result)
    for path in (out/'replaced').glob(f'{job.stem}-*'): path.unlink()
    return result


def adopt(
    run,                      # folder of a run that `sagan_train` has finished
    jobs:list,                # what a table asks for
    source,                   # the pictures
    out,                      # folder of results
    device='cpu',             # where to measure it
)->dict:                      # the result, as written
    "Use a finished run as one of the table's jobs, and measure it. Raises Refused if its settings match no job."
    run = Path(run)
    if not (run/'metrics.json').exists(): raise Refused(f'{run}: no finished run with its metrics here')
    cfg, there = settings_of(run), run_scores(run)
    job = next((j for j in jobs if j.stem == Job(cfg, j.features).stem), None)
    if not job: raise Refused(f'{run}: its settings are none of those that the table asks for')
    if not any(o.get('step') == cfg.steps and o.get('numerics') == NUMERICS for o in there):
        raise Refused(f'{run} was not measured at its last step, or with another version of the numbers')
    if any(o.get('numerics', NUMERICS) != NUMERICS for o in machines(run)):           # older ones do not say
        raise Refused(f'{run} was trained, in part at least, with another version of the numbers')
    features, began = features_of(job.features, source, out, device), time.time()
    records = measure(run, source, device, features)
    if records[0]['step'] != cfg.steps: raise Refused(f'{run} is not at its last step')
    return write_result(job, run, records, 'finished', out, round(time.time() - began, 1))


def stored_result(
    job:Job,                  # what is asked for
    out,                      # folder of results
)->Path:                      # its file, or None
    "The result of a job, if there is one by this version of the numbers."
    own = Path(out)/f'{job.name}.json'
    return own if own.exists() else None


def empty_folder(
    run,                      # run folder, locked
):
    "Remove all that is in a run folder but its lock."
    for path in Path(run).iterdir():
        if path.is_dir(): shutil.rmtree(path)
        elif path.name != '.lock': path.unlink()


def set_aside(
    jobs:list,                # those that are to be done anew
    out,                      # folder of results
    runs,                     # folder of run folders
):
    "Make room: run folders go, results wait in `replaced` until there are new ones. Raises Refused if one is in use."
    def found(folder): return [p for job in jobs for p in Path(folder).glob(f'{job.stem}-*')]
    with contextlib.ExitStack() as held:
        for path in {Path(runs)/job.name for job in jobs} | {*found(runs)}: held.enter_context(run_lock(path))
        for path in found(runs): empty_folder(path)
        for path in found(out):
            (Path(out)/'replaced').mkdir(exist_ok=True)
            os.replace(path, Path(out)/'replaced'/path.name)


def run_row(
    job:Job,                  # what is missing
    out,                      # folder of results
    runs,                     # folder of run folders
    source, device, hooks,    # as of `run_job`
)->str:                       # why there is no result; '' where there is one
    "Train and measure a row, unless another process has done so, or is at it."
    try:
        with run_lock(Path(runs)/job.name):
            if not stored_result(job, out): run_job(job, source, out, runs, device, hooks)
    except Stopped: raise
    except InUse: return '' if stored_result(job, out) else BUSY
    except Exception as e: return str(e) if isinstance(e, Refused) else f'{type(e).__name__}: {e}'
    return ''


def run_rows(
    jobs:list,                # what the table needs
    source,                   # the pictures
    out,                      # folder of results
    runs='runs/tables',       # folder of run folders
    device='cpu',             # where to
    hooks=(),                 # (1, hook) pairs for every run
    say=print,                # where progress goes
)->dict:                      # job name -> why it failed, or BUSY
    """Train and measure what is missing; what another process was at is looked at again in the end. Failures are
    returned, so that one row costs no other; Stopped carries them."""
    missing, failed, took = [j for j in jobs if not stored_result(j, out)], {}, []
    todo, done = [*missing], len(jobs) - len(missing) + 1
    for i, job in enumerate(todo):
        left = f', about {np.mean(took)*(len(todo) - i)/60:.0f} min left' if took else ''
        say(f'[{done + missing.index(job)}/{len(jobs)}] {job.cfg.preset}, seed {job.cfg.seed}{left}', flush=True)
        began = time.time()
        if other := [p.parent for p in Path(runs).glob(f'{job.stem}-*/config.json') if p.parent.name != job.name]:
            say(f'{other[0]} has other numbers: this begins anew', flush=True)
        first = failed.pop(job.name, None) is None
        try: why = run_row(job, out, runs, source, device, hooks)
        except Stopped as e:
            e.failed = failed
            raise
        if why: failed[job.name] = why
        if why == BUSY: say(f'{job.name}: {why}', flush=True)
        elif why: say(f'{job.name} failed: {why}', flush=True, file=sys.stderr)     # of a rank without stdout, too
        if why == BUSY and first and i + 1 < len(todo): todo.append(job)           # other rows take their time
        else: took.append(time.time() - began)
    return failed


def stem_of(result:dict)->str:
    "The part of a result's name that the version of the numbers leaves alone, as of `Job.stem`."
    return result['name'].rsplit('-', 1)[0]


RESULT = dict(row=str, seed=int, scale=str, name=str, status=str, numerics=int, env=dict, config=dict, parameters=dict,
              records=list, curve=list, collapse=list)                       # what must be there
ENTRIES = dict(                                  # what each of a list must hold
    records=lambda o: (is_record(o) and isinstance(o.get('features'), str) and numbers(o.get('real', 0), 0)
                       and (o['value'] == 'n/a' or numbers(o['value'], 0))),
    curve=lambda o: type(o.get('t')) is int and all(numbers(o.get(k, 0), 0) for k in ('mi', 'seconds'))
                    and all(numbers(o.get(k), 0) for k in ('distance', 'diversity')),
    collapse=lambda o: type(o.get('t')) is int and isinstance(o.get('sign'), str),
    went_on=lambda o: True)


def wrong_entries(
    result:dict,              # with all of RESULT
)->list:                      # keys of ENTRIES, and others
    "Name the parts of a result that hold something else than a table reads there."
    lists = {k: result.get(k, []) for k in ENTRIES}
    wrong = [k for k, own in lists.items()
             if not isinstance(own, list) or not all(isinstance(o, dict) and ENTRIES[k](o) for o in own)]
    if wrong: return wrong
    if len({'mi' in o for o in result['curve']}) > 1: wrong.append('curve')
    if not all(numbers(n, 0) for n in result['parameters'].values()): wrong.append('parameters')
    if not isinstance(result.get('samples_at', []), list): wrong.append('samples_at')
    known = {k: result[k] for k in ('seconds_per_step', 'wait_share') if result.get(k) is not None}
    return wrong + [k for k, v in known.items() if not numbers(v, 0)]


def read_result(
    path:Path,                # a result file
)->dict:                      # as of `result_of`
    "Read a result. Raises Refused where it is damaged, or lacks what a table needs."
    remedy = 'delete it, and it is made anew'
    found = read_json(path, remedy)
    if lacks := [k for k, kind in RESULT.items() if not isinstance(found.get(k), kind)]:
        raise Refused(f'{path} is damaged or no result ({lacks[0]} is not there): {remedy}')
    if wrong := wrong_entries(found):
        raise Refused(f'{path} is damaged ({wrong[0]} is not what a result holds): {remedy}')
    return found


def collect(
    out,                      # folder of results
    rows=None,                # presets; None: all
    numerics:int=None,        # version of the numbers; None: the newest that is there
)->list:                      # results, sorted by row and seed
    "Read the results that are there, of one version of the numbers."
    found = [read_result(path) for path in sorted(Path(out).glob('*-s*-*-v*.json'))]
    wanted = numerics or max((o['numerics'] for o in found), default=0)
    same = [o for o in found if o['numerics'] == wanted and (rows is None or o['row'] in rows)]
    return sorted(same, key=lambda o: (o['row'], o['seed']))


def asked_for(
    results:list,             # runs of any settings
    found:dict,               # row -> Config, from `row_configs`
    features:str='domain',    # as of `Job`
)->tuple[list,list]:          # runs by these settings, of any seed; the others
    "Tell the runs of a table from others in its folder."
    def stem(o): return Job(replace(found[o['row']], seed=o['seed']), features).stem
    same = [o['row'] in found and stem(o) == stem_of(o) for o in results]
    return tuple([o for o, s in zip(results, same) if s == which] for which in (True, False))
