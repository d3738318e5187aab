"Serves chapter 09: a run is a folder: checkpoints, log, samples, where it was trained, and what stops it."
import json
import math
import signal
import threading
import time
from pathlib import Path

import torch

from .. import __version__
from ..config import BOOKKEEPING, Config, differences, from_json, to_json
from ..core import Refused, atomic_write, grid_image
from ..data import Stream, open_source
from ..spectral_norm import unmoved
from ..train import GAN, attention_usage, average, draw, fit, fixed_noise, make_gan, sampler, true_norms
from .files import file_sha256
from .machine import environment

PARTS = ('G', 'D', 'opt_g', 'opt_d', 'ema')


class Diverged(RuntimeError):
    "A loss or a weight is no longer a finite number; the last good checkpoint is kept."


def save_checkpoint(
    gan:GAN,                  # what to save
    data:Stream,              # its place is saved too
    path,                     # file to write; replaced only when the new one is complete
)->Path:                      # the same path
    "Write one atomic checkpoint. Raises Diverged, and writes nothing, if a weight is not finite."
    for name, p in (*gan.G.named_parameters(), *gan.D.named_parameters()):
        if not p.isfinite().all(): raise Diverged(f'at step {gan.t} the weight {name} is not finite')
    state = {n: getattr(gan, n).state_dict() for n in PARTS if getattr(gan, n) is not None}
    state |= dict(config=to_json(gan.cfg), t=gan.t, rng=gan.rng.get_state(), data=data.state_dict(),
                  version=__version__)
    with atomic_write(path) as part: torch.save(state, part)
    return Path(path)


def read_checkpoint(
    path,                     # file to read
    device='cpu',             # where to put the tensors
)->dict:                      # what `save_checkpoint` wrote
    "Load a checkpoint without running any code from it. Raises Refused for a damaged or foreign file."
    try: state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError: raise Refused(f'{path}: there is no such checkpoint') from None
    except Exception as e:
        raise Refused(f'{path}: not a readable checkpoint, damaged or not ours ({type(e).__name__})') from None
    if not isinstance(state, dict) or not {'config', 't', 'G', 'D', 'rng'} <= set(state):
        raise Refused(f'{path}: not a checkpoint of this package')
    return state


def load_checkpoint(
    path,                     # what `save_checkpoint` wrote
    cfg:Config=None,          # None: as saved; else it must agree with the saved one but for BOOKKEEPING
    data:Stream=None,         # a stream to put in its place
    device='cpu',             # where to
)->GAN:                       # at the saved step
    "A GAN as it was. Raises Refused for a damaged file or a changed configuration, with the differences."
    state = read_checkpoint(path, device)
    saved = from_json(state['config'])
    changed = differences(saved, cfg or saved, ignore=BOOKKEEPING)
    if changed:
        words = '; '.join(f'{n} was {a!r}, now {b!r}' for n, (a, b) in changed.items())
        raise Refused(f'the configuration changed since the checkpoint: {words}')
    gan = make_gan(cfg or saved, device)
    for n in PARTS:
        if getattr(gan, n) is not None: getattr(gan, n).load_state_dict(state[n])
    gan.t = state['t']
    gan.rng.set_state(state['rng'].cpu())
    if data is not None: data.load_state_dict(state['data'])
    return gan


class Log:
    "Hook for every step: sums up; a line of JSON every `log_every` steps. Raises Diverged when a mean is not finite."
    def __init__(self,
        path,                     # log.jsonl
        data:Stream,              # for the time spent waiting
    ):
        self.path, self.data, self.sums, self.n = Path(path), data, {}, 0
        self.steps_t, self.wait = time.perf_counter(), data.wait_s

    def __call__(self, gan:GAN, log:dict):
        "Add one step; write a line when one is due."
        for k, v in log.items(): self.sums[k] = self.sums.get(k, 0.) + v
        self.n += 1
        if gan.t % gan.cfg.log_every and gan.t != gan.cfg.steps: return
        means, now = {k: (v / self.n).item() for k, v in self.sums.items()}, time.perf_counter()
        bad = [k for k, v in means.items() if not math.isfinite(v)]
        if bad: raise Diverged(f'at step {gan.t} {", ".join(bad)} is not a finite number')
        seconds, per_step = now - self.steps_t, gan.cfg.batch*gan.cfg.d_per_g
        line = dict(t=gan.t, images=gan.t*per_step, **means, images_per_s=self.n*per_step/seconds,
                    seconds_per_step=seconds/self.n, wait_share=(self.data.wait_s - self.wait)/seconds,
                    **self.look(gan))
        with self.path.open('a', encoding='utf-8') as f: f.write(json.dumps(line) + '\n')
        self.sums, self.n, self.steps_t, self.wait = {}, 0, time.perf_counter(), self.data.wait_s

    def look(self, gan:GAN)->dict:
        "What `attention_usage` finds, and the true norms when they are due."
        z, y = fixed_noise(gan.cfg, 4, 4)
        z, y = z.to(gan.device), y.to(gan.device)
        with unmoved(gan.G): x = draw(gan.G, z, y).to(gan.device)
        out = {}
        for name, net, args in (('G', gan.G, (z, y)), ('D', gan.D, (x, y))):
            if len(net.extra): out |= {f'usage_{name}': attention_usage(net, *args)}
            if gan.t % gan.cfg.sigma_every == 0 or gan.t == gan.cfg.steps:
                out |= dict(zip((f'norms_{name}', f'raw_{name}'), true_norms(net)))
        return out


def by_name(
    usage:dict,               # of a log: map size -> numbers by name, or, until NUMERICS 2, in this order
)->dict:                      # map size -> numbers by name
    "Names for the numbers of `attention_usage` in old logs."
    names = 'gamma', 'ratio', 'entropy', 'distance'
    return {size: v if isinstance(v, dict) else dict(zip(names, v)) for size, v in usage.items()}


def read_log(
    path,                     # log.jsonl
    until:int=None,           # leave out later steps
)->list:                      # one dict per line
    "The log as a list, attention's numbers by name also where they are old. A last line cut off by a crash is left out."
    lines = []
    for text in Path(path).read_text(encoding='utf-8').splitlines():
        try: lines.append(json.loads(text))
        except json.JSONDecodeError: break
        for key in {'usage_G', 'usage_D'} & lines[-1].keys(): lines[-1][key] = by_name(lines[-1][key])
    return [o for o in lines if until is None or o['t'] <= until]


def newest_checkpoint(
    out,                      # a run folder
)->Path:                      # the checkpoint with the highest step
    "The newest checkpoint of a run. Raises Refused if there is none."
    found = sorted(Path(out).glob('checkpoints/step_*.pt'))
    if not found: raise Refused(f'{out}: no run to go on with here (no checkpoints)')
    return found[-1]


class Keeper:
    "Hook: write a checkpoint, keep the newest two, and remove what a killed process left half written."
    def __init__(self,
        out,                      # run folder
        data:Stream,              # its place is saved
    ):
        self.folder, self.data = Path(out)/'checkpoints', data

    def __call__(self, gan:GAN, log:dict=None)->Path:
        "Write checkpoints/step_XXXXXXX.pt."
        path = save_checkpoint(gan, self.data, self.folder/f'step_{gan.t:07}.pt')
        left = self.folder.glob('step_*.pt.*.part')
        for old in (*sorted(self.folder.glob('step_*.pt'))[:-2], *left): old.unlink()
        return path


class Sampler:
    "Hook: draw the fixed noise, one row per class."
    def __init__(self,
        out,                      # run folder
    ):
        self.folder = Path(out)/'samples'

    def __call__(self, gan:GAN, log:dict=None)->Path:
        "Write samples/step_XXXXXXX.png."
        from PIL import Image
        z, y = fixed_noise(gan.cfg)
        path = self.folder/f'step_{gan.t:07}.png'
        Image.fromarray(grid_image(draw(sampler(gan), z, y), 12).permute(1, 2, 0).numpy()).save(path)
        return path


def open_run(
    cfg:Config,               # settings of the run, or of the run to go on with
    source,                   # the pictures
    out,                      # run folder
    resume:bool=False,        # go on from the newest checkpoint
    device='cpu',             # where to
)->tuple[GAN,Stream]:         # ready for `fit`
    "Make a run folder, or open the one that is there. Raises Refused for a folder in use, or a changed configuration."
    out, stream = Path(out), Stream(source, cfg.batch, cfg.seed, flip=cfg.flip)
    if resume:
        gan = load_checkpoint(newest_checkpoint(out), cfg, stream, device)
        if cfg.steps < gan.t: raise Refused(f'{out} is at step {gan.t} already; ask for more --steps than that')
        lines = read_log(out/'log.jsonl', gan.t)                     # what came after the checkpoint is done again
        (out/'log.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in lines), encoding='utf-8')
    else:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise Refused(f'{out} is there already: choose another --out, or go on with --resume')
        gan = make_gan(cfg, device)                                  # before anything is written: it may refuse
        for d in (out/'checkpoints', out/'samples'): d.mkdir(parents=True, exist_ok=True)
        facts = dict(spec=source.spec, fingerprint=source.fingerprint, pictures=len(source),
                     classes=list(source.classes), counts=list(source.counts))
        for name, value in (('env', environment(device)), ('data', facts)):
            (out/f'{name}.json').write_text(json.dumps(value, indent=1), encoding='utf-8')
    (out/'config.json').write_text(to_json(gan.cfg), encoding='utf-8')
    return gan, stream


def train(
    cfg:Config,               # settings; data_id and n_classes as the source has them
    source,                   # the pictures, from `open_source`
    out,                      # run folder
    resume:bool=False,        # go on from the newest checkpoint
    device='cpu',             # where to
    hooks=(),                 # more hooks, such as an evaluation
)->GAN:                       # at the last step
    "One run from start, or from where it stopped, to its last step, with log, samples and checkpoints."
    gan, stream = open_run(cfg, source, out, resume, device)
    keep, cfg = Keeper(out, stream), gan.cfg
    own = [(1, average), (1, Log(Path(out)/'log.jsonl', stream)), (cfg.sample_every, Sampler(out)),
           (cfg.checkpoint_every, keep)]
    try: return fit(gan, stream, [*own, *hooks])
    except Stopped:
        keep(gan)
        raise
    except Diverged as e:
        good = sorted(keep.folder.glob('step_*.pt'))
        last = f'the last good checkpoint is {good[-1]}' if good else 'no checkpoint was written yet'
        raise Diverged(f'{e}; {last}') from None
    finally: stream.close()


class Stopped(Exception):
    "Raised by a hook to end a run between two steps; `train` saves before it passes on."


def about_run(
    gan:GAN,                  # what was trained
    path:Path,                # its checkpoint, in its run folder
)->dict:                      # JSON values
    "What a record says of the generator of a run."
    cfg, env, known = gan.cfg, path.parent.parent/'env.json', {}
    if env.exists(): known = json.loads(env.read_text(encoding='utf-8'))
    norm = f'standing statistics over {cfg.standing}' if cfg.standing else 'moving averages'
    return dict(preset=cfg.preset, scale=cfg.scale, train_seed=cfg.seed, step=gan.t, ema=bool(gan.ema), batch_norm=norm,
                checkpoint=path.name, checkpoint_sha256=file_sha256(path), trained_commit=known.get('commit'),
                device=known.get('device_name'))


def machines(
    run,                      # run folder
)->list:                      # as of `environment`: where it began, then each other one that went on with it
    "On what a run was trained."
    later = Path(run)/'machines.jsonl'
    lines = later.read_text(encoding='utf-8').splitlines() if later.exists() else []
    return [json.loads((Path(run)/'env.json').read_text(encoding='utf-8')), *map(json.loads, lines)]


class NoteMachine:
    "Hook for a run that is gone on with: after its first step, add where, if that is not where it was."
    def __init__(self,
        run,                      # run folder
        device,                   # where
    ):
        self.run, self.device, self.noted = Path(run), device, False

    def __call__(self, gan:GAN, log:dict):
        if self.noted: return
        self.noted, here = True, environment(self.device)
        if here == machines(self.run)[-1]: return
        with (self.run/'machines.jsonl').open('a', encoding='utf-8') as f: f.write(json.dumps(here) + '\n')


def stop_at(
    end:float,                # time.time() at which to stop
    then_say:str='',          # what else to say then
):                            # a hook
    "End a slice of a long table between two steps."
    words = f'the time of this slice is over; all is saved. {then_say}'.rstrip()
    def check(gan:GAN, log:dict):
        if time.time() > end and gan.t < gan.cfg.steps: raise Stopped(words)
    return check


def kept_samples(
    run,                      # run folder
)->dict:                      # step -> grid, uint8 (3, H, W)
    "The grids that a run kept. Raises Refused where there is none."
    import numpy as np
    from PIL import Image
    files = sorted((Path(run)/'samples').glob('step_*.png'))
    if not files: raise Refused(f'{run}: this run kept no samples')
    read = lambda p: torch.from_numpy(np.array(Image.open(p).convert('RGB'))).permute(2, 0, 1)
    return {int(p.stem.removeprefix('step_')): read(p) for p in files}


def pictures_of(
    cfg:Config,               # of a run
    data:str=None,            # where its pictures are now; None: where they were
):                            # a source
    "The real pictures of a run. Raises Refused where they are not there, or do not fit."
    return open_source(data or cfg.data, res=cfg.res, unlabelled=not cfg.n_classes, n_classes=cfg.n_classes or None)


class StopOnSignal:
    "Hook that ends the run after the step in which SIGINT or SIGTERM came; the next such signal acts as usual."
    def __init__(self,
        message:str,              # what to say when the run has been saved
    ):
        self.message, self.asked = message, False
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, self.ask)

    def ask(self, number, frame):
        "Note the wish; restore what signals do."
        self.asked = True
        print('\nstopping after this step; once more to stop at once', flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def __call__(self, gan:GAN, log:dict):
        "Raise Stopped if it was asked for."
        if self.asked and gan.t < gan.cfg.steps: raise Stopped(f'stopped at step {gan.t} and saved. {self.message}')
