"Serves chapter 09: a run is a folder: checkpoints, log, samples, where it was trained, and what stops it."
import json
import math
import os
import re
import signal
import threading
import time
import warnings
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from ..config import Config, differences, from_json, to_json
from ..core import Refused
from ..data import Stream, open_source
from ..distributed import Ranks
from ..spectral_norm import unmoved
from ..train import GAN, attention_usage, average, draw, fit, fixed_noise, make_gan, sampler, true_norms
from .atomic import atomic_write
from .checkpoints import (Diverged, Keeper, SamplerOfStep, checkpoints_of, newest_checkpoint, read_checkpoint,
                          read_newest, refuse_changes, restore, say_not_finite)
from .files import (CacheWarning, append_line, content_hash, file_sha256, must_be_file, must_be_utf8, read_json,
                    read_lines, write_json)
from .group import agree, place, text_of_first
from .machine import environment, out_of_memory, short_of_memory
from .sending import stream_of
from .sources import first_of_each, write_rows
from .terminal import printable


class Log:
    "Hook for every step: sums up; a line of JSON every `log_every` steps. Raises Diverged when a mean is not finite."
    def __init__(self,
        path,                     # log.jsonl
        data:Stream,              # for the time spent waiting
    ):
        self.path, self.data, self.sums, self.fine, self.n = Path(path), data, {}, {}, 0
        self.steps_t, self.wait = time.perf_counter(), data.wait_s

    def __call__(self, gan:GAN, log:dict):
        "Add one step; write a line when one is due."
        for k, v in log.items():
            self.sums[k] = self.sums.get(k, 0.) + v
            self.fine[k] = self.fine.get(k, self.n) + self.sums[k].isfinite()     # counts good steps
        self.n += 1
        if gan.t % gan.cfg.log_every and gan.t != gan.cfg.steps: return
        means, now = {k: gan.ranks.mean(v / self.n).item() for k, v in self.sums.items()}, time.perf_counter()
        if bad := ', '.join(k for k, v in means.items() if not math.isfinite(v)):
            raise Diverged(f'at step {self.first_bad(gan)} {bad} is not a finite number{say_not_finite(gan)}')
        seconds, per_step = now - self.steps_t, gan.cfg.batch*gan.cfg.d_per_g
        line = dict(t=gan.t, images=gan.t*per_step, **means, images_per_s=self.n*per_step/seconds,
                    seconds_per_step=seconds/self.n, wait_share=(self.data.wait_s - self.wait)/seconds)
        if gan.ranks.first: append_line(self.path, line | self.look(gan))
        self.sums, self.fine, self.n, self.steps_t, self.wait = {}, {}, 0, time.perf_counter(), self.data.wait_s

    def first_bad(self, gan:GAN)->int:
        "Find the first step since the last line whose sum is not finite; where only another rank saw it, the last."
        return min(gan.t, gan.t - self.n + 1 + min(int(o) for o in self.fine.values()))

    def already(self, gan:GAN)->str:
        "Say what was not finite before this step, as part of a sentence, or ''. A checkpoint may come before a line."
        first = self.first_bad(gan) if self.fine else gan.t
        names = [k for k, o in self.fine.items() if gan.t - self.n + 1 + int(o) == first]
        return f' ({", ".join(names)} from step {first} on)' if first < gan.t else ''

    def look(self, gan:GAN)->dict:
        "What `attention_usage` finds, and the true norms when they are due."
        z, y = fixed_noise(gan.cfg, 4, 4)
        z, y = z.to(gan.device), y.to(gan.device)
        with unmoved(gan.G): x = draw(gan.G, z, y).to(gan.device)
        out = {}
        for name, net, args in (('G', gan.G, (z, y)), ('D', gan.D, (x, y))):
            if len(net.extra): out |= {f'usage_{name}': attention_usage(net, *args)}
            if gan.t % gan.cfg.sigma_every == 0 or gan.t == gan.cfg.steps:
                norms, raw = true_norms(net)
                if not all(map(math.isfinite, raw.values())): continue            # the next loss is no number
                out |= {f'norms_{name}': norms, f'raw_{name}': raw}
        return out


def by_name(
    usage:dict,               # of a log: map size -> numbers by name, or, until NUMERICS 2, in this order
)->dict:                      # map size -> numbers by name
    "Names for the numbers of `attention_usage` in old logs."
    names = 'gamma', 'ratio', 'entropy', 'distance'
    return {size: dict(zip(names, v)) if isinstance(v, list) else v for size, v in usage.items()}


DEPTH = dict(usage=2, norms=1, raw=1, loss=0, d=0, seconds=0, wait=0, images=0, distance=0,
             diversity=0)      # by the first word of a name: names above a number


def numbers(
    value,                    # read from a log
    depth:int,                # of names above a number
)->bool:
    "Whether it is numbers, and as deep as that."
    if depth: return isinstance(value, dict) and value != {} and all(numbers(v, depth - 1) for v in value.values())
    return type(value) in (int, float)


def run_of(
    path:Path,                # a checkpoint
)->Path:                      # None: it lies elsewhere, and what is beside it is not its own
    "Find the run folder of a checkpoint."
    return path.parent.parent if path.parent.name == 'checkpoints' else None


def class_names(
    run,                      # run folder, or None
    n:int,                    # number of classes
)->list:                      # n names, printable
    "Read the names of a run's classes; without data.json, their numbers. Raises Refused where it is damaged."
    remedy, by_number = 'delete it, and classes are called by their numbers', [str(k) for k in range(n)]
    if run is None or not (path := Path(run)/'data.json').exists(): return by_number
    names = read_json(path, remedy).get('classes')
    if isinstance(names, list) and len(names) == n: return [*map(printable, names)]
    raise Refused(f'{path} is damaged (it does not name {n} classes): {remedy}')


def read_log(
    path,                     # log.jsonl, curve.jsonl
    until:int=None,           # leave out later steps
)->list:                      # one dict per line, by step
    """Read a log, which is only ever added to. Lines that a resumed run made anew count as they are there last, and a
    line that a crash cut off is left out. Raises Refused for a line that is damaged."""
    found = []
    for line in read_lines(path):
        if type(line.get('t')) is not int: raise Refused(f'{path} is no log: a line of it has no step')
        while found and found[-1]['t'] >= line['t']: found.pop()
        for key in {'usage_G', 'usage_D'} & line.keys():
            if isinstance(line[key], dict): line[key] = by_name(line[key])
        for key, value in line.items():
            depth = DEPTH.get(key.split('_')[0])
            if depth is not None and not numbers(value, depth):
                raise Refused(f'{path} is damaged: {printable(key)} of step {line["t"]} is not what a log holds there')
        found.append(line)
    return [o for o in found if until is None or o['t'] <= until]


def with_numbers(
    log:list,                 # from `read_log`
    *names:str,               # what is needed of it
)->list:                      # lines
    "The lines that have all of these: one that a stranger wrote may lack any."
    return [o for o in log if {*names} <= o.keys()]


class Sampler:
    "Hook: draw the fixed noise, one row per class."
    def __init__(self,
        out,                      # run folder
        sample=sampler,           # makes the generator to sample from
    ):
        self.folder, self.sample = Path(out)/'samples', sample

    def __call__(self, gan:GAN, log:dict=None)->Path:
        "Write samples/step_XXXXXXX.png, on rank 0 alone."
        if not gan.ranks.first: return None
        z, y = fixed_noise(gan.cfg)
        return write_rows(self.folder/f'step_{gan.t:07}.png', draw(self.sample(gan), z, y))


def refuse_links(
    run,                      # run folder
):
    "Raise Refused for a link inside a run folder: what is written there would land elsewhere."
    folders = [Path(run), Path(run)/'checkpoints', Path(run)/'samples']
    for path in (o for folder in folders if folder.is_dir() for o in folder.iterdir()):
        if path.is_symlink(): raise Refused(f'{path} is a link, and a run writes into its own folder alone: '
                                            'put what it leads to in its place')


BUSY = 'another process is at it'


class InUse(Refused):
    "Another process holds the lock on a run folder."


LEASE = 120               # seconds for which a file server may keep the lock of a machine that is gone


@contextmanager
def run_lock(
    run,                      # run folder; made if it is not there
):
    "Hold an exclusive lock on a run folder; a process that dies lets go of it. Raises InUse where another holds it."
    from filelock import FileLock, Timeout
    Path(run).mkdir(parents=True, exist_ok=True)
    refuse_links(run)
    wait = LEASE if place()[1] > 1 else 0
    lock = FileLock(Path(run).resolve()/'.lock', timeout=wait, is_singleton=True)     # one thread may hold it twice
    try: lock.acquire()
    except Timeout: raise InUse(f'{run}: {BUSY}') from None
    try: yield
    finally: lock.release()


BEGAN = 'init.json'                # in a run folder: what it began with, see `FineTune`


def check_free(out:Path):
    "Raise Refused where a new run would overwrite something. What a killed process was about to write is nothing."
    must_be_utf8(out)
    there = out.is_dir() and [p for p in out.iterdir() if p.name not in ('.lock', BEGAN) and p.suffix != '.part']
    if there or (out.exists() and not out.is_dir()):
        raise Refused(f'{out} is there already: choose another --out, or go on with --resume')


HALF_WRITTEN = re.compile(r'^(?!metrics\.).*\.\d+\.part$')      # a name of `atomic_write`


def fill_folder(
    out:Path,                 # run folder
    source,                   # the pictures
    device,                   # where it is trained
):
    "Make what every run folder has besides its settings; leave what is there."
    for d in (out/'checkpoints', out/'samples'): d.mkdir(exist_ok=True)
    facts = dict(spec=source.spec, fingerprint=source.fingerprint, pictures=len(source), classes=list(source.classes),
                 counts=list(source.counts), unreadable=source.unreadable, **source.found)
    for name, value in (('env', environment(device)), ('data', facts)):
        if not (path := out/f'{name}.json').exists(): write_json(path, value)
    if not (out/'real.png').exists(): write_rows(out/'real.png', first_of_each(source))
    for folder in (out, out/'checkpoints', out/'samples'):   # of a killed process; metrics belong to sagan_eval
        for left in folder.glob('*.part'):
            if HALF_WRITTEN.search(left.name) and left.is_file(): left.unlink(missing_ok=True)


def stored_settings(
    out:Path,                 # run folder
)->Config:                    # of config.json
    "Read the settings that a run was begun with. Raises Refused where they are not there or damaged."
    path = out/'config.json'
    if not path.exists(): raise Refused(f'{out}: no run to go on with here (no config.json)')
    rest = 'delete it, and the checkpoint says them' if checkpoints_of(out) else 'begin the run anew, in another --out'
    try: return from_json(json.dumps(read_json(path, rest)))
    except Refused as e: raise Refused(f'{path}: {e}' if str(path) not in str(e) else str(e)) from None


def settings_of(
    out:Path,                 # run folder
)->Config:                    # of its newest checkpoint; of config.json where there is none
    "Read the settings to go on with; a config.json that says otherwise is named. Raises Refused where it is damaged."
    if not checkpoints_of(out): return stored_settings(out)
    stored = stored_settings(out) if (out/'config.json').exists() else None
    path, state = read_newest(out, lazily=True)
    saved = from_json(state['config'])
    if stored and (changed := differences(saved, stored)):
        words = '; '.join(f'{n} is {a!r} there, {b!r} here' for n, (a, b) in changed.items())
        warnings.warn(f'{out}/config.json is not as {path.name}, which counts: {words}', CacheWarning, stacklevel=2)
    return saved


def state_to_go_on_from(
    out:Path,                 # run folder, which all ranks see
    world:int,                # number of ranks
)->dict:                      # None where no checkpoint was written yet
    "Read the newest checkpoint; several ranks read the one that rank 0 finds."
    if world == 1: return read_newest(out)[1] if checkpoints_of(out) else None
    name = text_of_first(lambda: newest_checkpoint(out).name if checkpoints_of(out) else '')
    return read_checkpoint(out/'checkpoints'/name) if name else None


def go_on(
    cfg:Config,               # settings; those of bookkeeping may differ from the run's
    out:Path,                 # run folder
    stream:Stream,            # is put in its place
    device,                   # where to
)->GAN:                       # at the newest checkpoint that is whole, or at step 0 where none was written yet
    "Open a run to train on. Raises Refused for changed settings, and where it is further already."
    if state := state_to_go_on_from(out, Ranks().world):
        gan = restore(state, cfg, stream, device)
        if gan.ranks.world > 1:
            facts = dict(t=gan.t, data=stream.state_dict())
            agree(dict(checkpoint=content_hash(dict(rng=gan.rng.get_state()), facts)))
    else:
        refuse_changes(stored_settings(out), cfg)
        gan = make_gan(cfg, device)
    if cfg.steps < gan.t: raise Refused(f'{out} is at step {gan.t} already; ask for more --steps than that')
    return gan


def agree_on(
    cfg:Config,               # this rank's
):
    "Raise Refused, on every rank, where they have other settings, images, code or torch. The images may lie elsewhere."
    agree({name: value for name, value in json.loads(to_json(cfg)).items() if name != 'data'})


def check_source(
    cfg:Config,               # settings of a run
    source,                   # its images
):
    "Raise Refused where the images are not those of the settings. 0 classes, or no fingerprint, ask for none."
    for name, has, asked in (('res', source.res, cfg.res), ('n_classes', len(source.classes), cfg.n_classes),
                             ('data_id', source.fingerprint, cfg.data_id)):
        if asked and has != asked: raise Refused(f'the images ({source.spec}) have {name} {has}, the settings {asked}')


@contextmanager
def start_run(
    cfg:Config,               # settings of the run, or of the run to go on with
    source,                   # the pictures
    out,                      # run folder
    resume:bool=False,        # go on from the newest checkpoint
    device='cpu',             # where to
    note=None,                # called before a new run has settings
):                            # yields (GAN, Stream), ready for `fit`, while the folder is locked
    "Make a run folder, or open the one that is there. Raises Refused for a folder in use, or a changed configuration."
    out, ranks = Path(out), Ranks()
    agree_on(cfg)
    if not resume:
        if ranks.first: check_free(out)
        gan = make_gan(cfg, device)                          # before anything is written: it may refuse
    elif ranks.first: settings_of(out)                       # there, and whole
    check_source(cfg, source)
    stream = stream_of(cfg, source, ranks, device)
    with run_lock(out) if ranks.first else nullcontext(), closing(stream):
        if resume: gan = go_on(cfg, out, stream, device)
        elif ranks.first:
            check_free(out)
            (out/BEGAN).unlink(missing_ok=True)              # of a start that was killed
            if note: note()
            with atomic_write(out/'config.json') as part: part.write_text(to_json(cfg), encoding='utf-8')
        if ranks.first: fill_folder(out, source, device)
        yield gan, stream


def train(
    cfg:Config,               # settings; data_id and n_classes as the source has them
    source,                   # the pictures
    out,                      # run folder
    resume:bool=False,        # go on from the newest checkpoint
    device='cpu',             # where to
    hooks=(),                 # more hooks, such as an evaluation
    prepare=None,             # called with the GAN before the first step, such as `FineTune`
)->GAN:                       # at the last step
    "One run from start, or from where it stopped, to its last step, with log, samples and checkpoints."
    with start_run(cfg, source, out, resume, device, getattr(prepare, 'note', None)) as (gan, stream):
        if prepare: prepare(gan)
        sample = SamplerOfStep()
        keep, log = Keeper(out, stream, sample), Log(Path(out)/'log.jsonl', stream)
        if gan.t == cfg.steps and gan.ranks.first: keep.write_settings(gan)
        own = [(1, average), (1, log), (cfg.sample_every, Sampler(out, sample)),
               (cfg.checkpoint_every, keep)]                 # last: what a killed run has not done, it does again
        try:
            try: return fit(gan, stream, [*own, *hooks])
            except Stopped:
                keep(gan)
                raise
        except Diverged as e: raise Diverged(f'{e}{log.already(gan)}; {keep.last_good()}') from None
        except OSError as e: raise OSError(e.errno, f'{e.strerror or e}; {keep.last_good()}', e.filename) from e
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e): raise
            raise MemoryError(f'{short_of_memory(e)}; {keep.last_good()}') from e


class Stopped(Exception):
    "Raised by a hook to end a run between two steps; `train` saves before it passes on."


class Requeue(Stopped):
    "Stopped by a scheduler: the same command with --resume goes on."


ENV_LOST = 'delete it: records then do not say on what the run was trained'


def about_run(
    cfg:Config,               # its settings
    step:int,                 # updates of G
    path:Path,                # its checkpoint
)->dict:                      # JSON values
    "What a record says of the generator of a run."
    run, known = run_of(path), {}
    if run and (run/'env.json').exists(): known = read_json(run/'env.json', ENV_LOST)
    norm = f'standing statistics over {cfg.standing}' if cfg.standing else 'moving averages'
    return dict(preset=cfg.preset, scale=cfg.scale, train_seed=cfg.seed, step=step, ema=bool(cfg.ema), batch_norm=norm,
                checkpoint=path.name, checkpoint_sha256=file_sha256(path), trained_commit=known.get('commit'),
                device=known.get('device_name'))


def machines(
    run,                      # run folder
)->list:                      # as of `environment`: where it began, then each other one that went on with it
    "On what a run was trained; {} where that is lost."
    path = Path(run)/'env.json'
    return [read_json(path, ENV_LOST) if path.exists() else {}, *read_lines(Path(run)/'machines.jsonl')]


class NoteMachine:
    "Hook for a run that is gone on with: after its first step, add where, if that is not where it was."
    def __init__(self,
        run,                      # run folder
        device,                   # where
    ):
        self.run, self.device, self.noted = Path(run), device, False

    def __call__(self, gan:GAN, log:dict):
        if self.noted or not gan.ranks.first: return
        self.noted, here = True, environment(self.device)
        if here != machines(self.run)[-1]: append_line(self.run/'machines.jsonl', here)


def stop_at(
    end:float,                # time.monotonic() at which to stop: a clock that is set back changes nothing
    then_say:str='',          # what else to say then
):                            # a hook
    "End a slice of a long table between two steps."
    words = f'the time of this slice is over; all is saved. {then_say}'.rstrip()
    def check(gan:GAN, log:dict):
        if gan.ranks.any(time.monotonic() > end) and gan.t < gan.cfg.steps: raise Stopped(words)
    return check


def sample_files(
    run,                      # run folder
)->dict:                      # step -> file, in order. Empty where it kept none
    "List the grids that a run kept."
    files = [p for p in (Path(run)/'samples').glob('step_*.png') if re.fullmatch(r'step_\d+', p.stem)]
    return dict(sorted((int(p.stem.removeprefix('step_')), p) for p in files))


def evenly(
    items,                    # in order
    most:int,                 # how many to take
)->list:                      # first and last among them
    "Take some of many, evenly spaced."
    items = list(items)
    n = min(most, len(items))
    return [items[round(i*(len(items) - 1)/max(1, n - 1))] for i in range(n)]


def kept_samples(
    run,                      # run folder
    most:int=None,            # read so many at most, evenly spaced
    steps=None,               # read those of these steps
)->dict:                      # step -> grid, uint8 (3, H, W)
    "The grids that a run kept. Raises Refused where there is none, or one is damaged."
    import numpy as np
    from PIL import Image
    from .pictures import check_png
    files = sample_files(run)
    if not files: raise Refused(f'{run}: this run kept no samples')
    def read(path):
        must_be_file(path)
        try:
            check_png(path.read_bytes())
            return torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1)
        except Exception as e:
            if out_of_memory(e): raise
            raise Refused(f'{path} is damaged ({printable(e)[:120]}): delete it') from None
    return {t: read(files[t]) for t in evenly(files if steps is None else steps, most or len(files))}


def pictures_of(
    cfg:Config,               # of a run
    data:str=None,            # where its pictures are now; None: where they were
):                            # a source
    "The real pictures of a run. Raises Refused where they are not there, do not fit, or, unless named, have changed."
    if not (data or cfg.data): raise Refused('say with --data where the real pictures are')
    source = open_source(data or cfg.data, res=cfg.res, unlabelled=not cfg.n_classes, n_classes=cfg.n_classes or None)
    if data or not cfg.data_id or source.fingerprint == cfg.data_id: return source
    raise Refused(f'{cfg.data} holds other pictures than the run was trained on (fingerprint {source.fingerprint}, '
                  f'then {cfg.data_id}): to take them as they are, name them with --data')


class StopOnSignal:
    """Hook that ends the run after the step in which SIGINT, SIGTERM or SIGUSR1 came to any rank; the next such signal
    acts as usual, unless torchrun passes them on, which does so twice."""
    signals = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1') if hasattr(signal, name)]
    def __init__(self,
        message:str,              # what to say when the run has been saved
    ):
        self.message, self.asked = message, None
        if threading.current_thread() is threading.main_thread():
            for s in self.signals: signal.signal(s, self.ask)

    def ask(self, number, frame):
        "Note the wish; restore what signals do."
        first, self.asked = self.asked is None, number
        if first:
            with suppress(OSError, RuntimeError):                     # nobody may read it
                print('\nstopping after this step; once more to stop at once', flush=True)
        if 'TORCHELASTIC_RUN_ID' not in os.environ: self.end(self.signals)

    def end(self, signals=(signal.SIGINT,)):     # those that act as usual again
        "Let Ctrl-C end what is left: nothing has to be saved any more. A scheduler's signals are notes nobody reads."
        if threading.current_thread() is not threading.main_thread(): return
        for s in signals: signal.signal(s, signal.default_int_handler if s == signal.SIGINT else signal.SIG_DFL)

    def __call__(self, gan:GAN, log:dict):
        "Raise Stopped if it was asked for."
        if not gan.ranks.any(self.asked is not None) or gan.t == gan.cfg.steps: return
        again = self.asked not in (None, signal.SIGINT)       # a scheduler wants the machine, no user ended the run
        raise (Requeue if again else Stopped)(f'stopped at step {gan.t} and saved. {self.message}')
