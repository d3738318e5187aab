"Serves chapter 12: a small curve on the way: distance, diversity, signs of collapse, and the last good checkpoint."
import math
import os
import shutil
import warnings
from pathlib import Path

import torch

from ..ablation import collapse
from ..config import Config
from ..core import Refused, from_uint8
from ..data import diversity
from ..metrics import frechet_distance
from ..train import GAN, draw, fixed_noise, sampler
from .atomic import atomic_write
from .checkpoints import check_finite, checkpoints_of, newest_checkpoint, read_newest, restore
from .evaluate import fake_table, real_table
from .features import Features, open_features
from .files import append_line
from .runs import read_log, with_numbers

SIZES = dict(smoke=(200, 500), laptop=(5000, 10_000), gpu=(10_000, 50_000), paper=(50_000, None))   # n fake, n real


class Curve:
    "Hook: Fréchet distance at a small size, diversity of a fixed batch, agreement and collapse, in curve.jsonl."
    points = 8                # how often it looks in a run
    wide = 1000               # pictures from which mutual information is taken
    def __init__(self,
        run,                      # run folder
        source,                   # the real pictures
        cfg:Config,               # of the run
        device='cpu',             # where to
        features='domain',        # see `evaluate`
        every:int=None,           # steps between two looks; None: `points` looks in all
    ):
        self.run, self.n = Path(run), max(SIZES[cfg.scale][0] // 10, 50)
        self.path, self.steps = self.run/'curve.jsonl', cfg.steps
        self.every = every or max(cfg.steps // self.points, 1)
        self.device = device
        self.features = features if isinstance(features, Features) else open_features(features, source, device=device)
        self.real = real_table(source, self.features, 4*self.n).stats()
        self.rule = source.long_range      # of pictures drawn by code
        rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:self.n]
        x, y = source.batch(rows)
        self.real_diversity = diversity(from_uint8(x), y) or math.inf      # unknown where classes have one picture

    def __call__(self, gan:GAN, log:dict=None)->dict:    # the line
        "Look."
        G, (z, y) = sampler(gan), fixed_noise(gan.cfg)
        check_finite(gan, G.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')              # more features than pictures: a curve compares at equal n
            distance = frechet_distance(fake_table(G, self.features, self.n).stats(), self.real)
        line = dict(t=gan.t, distance=distance, diversity=diversity(draw(G, z, y), y), n_fake=self.n,
                    n_real=self.real.n, n_diversity=len(y))
        if self.rule:
            y = torch.arange(self.wide) % max(gan.cfg.n_classes, 1)
            z = torch.randn(self.wide, gan.cfg.z_dim, generator=torch.Generator().manual_seed(5))
            line |= dict(mi=self.rule(draw(G, z, y), y)['mi'], n_mi=len(y))
        self.note_collapse(line)
        append_line(self.path, line)
        return line

    def catch_up(self):
        "Look at the newest checkpoint, if the run was stopped between saving it and looking at it."
        if not checkpoints_of(self.run): return
        gan = restore(read_newest(self.run)[1], device=self.device)
        if self.missed(gan.t): self(gan)

    def missed(self, t:int)->bool:
        "Was it to look at this step, and did not?"
        due = t and (t % self.every == 0 or t == self.steps)
        return bool(due) and t not in {o['t'] for o in read_log(self.path)}

    def note_collapse(self, line:dict):                      # what is about to be written
        "Note signs of collapse in the line; without any, keep the newest checkpoint as the last good one."
        before, log = read_log(self.path, line['t'] - 1), read_log(self.run/'log.jsonl', line['t'])
        looks = with_numbers([*before, line], 'diversity')
        signs = collapse(with_numbers(log, 'loss_d'), looks, self.real_diversity, self.steps)
        if signs: line['collapse'] = signs
        if any('collapse' in o for o in before): return
        if signs: print('\nsign of collapse:', '; '.join(f'{o["sign"]} at step {o["t"]}, {o["words"]}' for o in signs))
        else: keep_good(self.run)


def keep_good(
    run,                      # run folder
):
    "Name the newest checkpoint, if there is one, checkpoints/good.pt, too."
    try: path = newest_checkpoint(run)
    except Refused: return
    give_name(path, 'good.pt')


def give_name(
    path:Path,                # a checkpoint
    name:str,                 # what else it is to be called
):
    "Let a checkpoint have another name beside it, at no cost where there are links."
    with atomic_write(path.with_name(name)) as part:
        part.unlink(missing_ok=True)                          # of a process that was killed here, and had this number
        try: os.link(path, part)
        except (OSError, NotImplementedError, AttributeError): shutil.copy2(path, part)     # where there are no links
