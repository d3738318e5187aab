"Serves chapter 13: training that begins with somebody's weights, for other classes, with parts of D held."
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from ..config import FIELDS, Config
from ..core import Refused
from ..train import GAN, networks
from .checkpoints import checkpoints_of
from .door import open_run
from .files import read_json, write_json
from .lists import typed_text
from .recipe import map_options
from .runs import BEGAN

CLASS_ROWS = '.gain', '.offset'       # of class-conditional batch norm: a row for each class


def blocks_held(
    text:str,                     # d:3, or None
)->int:                           # the first so many blocks of D
    "Read --freeze. Raises Refused for anything but d:N."
    part, _, n = (text or 'd:0').lower().partition(':')
    if part == 'd' and n.isdecimal(): return int(n)
    raise Refused(f'--freeze takes d:N, the first N blocks of D; got {text}')


def shape_of(
    net:nn.Module,                # Generator or Discriminator
)->dict:                          # fields of Config
    "Read off a network the settings that make one of its shape."
    block = next(iter(net.extra.values()), None)
    known = dict(res=net.res, attn_at=tuple(net.attn_at), width=max(net.widths) // 16)
    if hasattr(net, 'z_dim'): known['z_dim'] = net.z_dim
    if block is None: return dict(known, block='none', attn_at=())
    return known | {k: v for k, v in map_options(block).items() if k in FIELDS}


@torch.no_grad()
def take_over(
    net:nn.Module,                # a new network, changed in place
    old:nn.Module,                # whose weights it takes
)->list:                          # names of tensors that were made anew
    "Copy tensors of the same name and shape; rows of new classes are the mean of the old. Raises Refused otherwise."
    theirs, anew = old.state_dict(), []
    for name, t in net.state_dict().items():
        other = theirs.get(name)
        if other is not None and other.shape == t.shape: t.copy_(other)
        elif name.endswith(CLASS_ROWS) and other is not None and other.shape[1:] == t.shape[1:]:
            t.copy_(other.mean(0, keepdim=True).expand_as(t))
            anew.append(name)
        elif name.startswith(('embed.', 'classify.')): anew.append(name)
        else:
            had = 'none' if other is None else tuple(other.shape)
            raise Refused(f'{name} has shape {tuple(t.shape)} here and {had} in the weights: '
                          f'they fit {", ".join(f"{k}={v}" for k, v in shape_of(old).items())}')
    return anew


def begin_with(
    net:nn.Module,                # of a GAN, new
    model,                        # from `open_run`
    part:str,                     # 'G' or 'D'
)->str:                           # a sentence
    "Give a network somebody's weights, and say what became of them."
    try: old = getattr(model, part)
    except Refused as e: return f'{part} starts anew: {e}'
    anew = take_over(net, old)
    tables = f'; made anew for other classes: {len(anew)} tensors' if anew else ''
    return f'{part} starts from {type(old).__name__} of {model.cfg.preset}{tables}'


@dataclass
class FineTune:
    "What a run begins with, and what it holds. Called with the GAN before the first step."
    init: str                     # what `open_run` takes; '' for none
    held: int                     # the first so many blocks of D stay as they are
    out: Path                     # run folder

    @cached_property
    def model(self): return open_run(self.init)

    def settings(self, cfg:Config, given:set)->Config:      # names that a user set
        "Take the shape of the weights for all that nobody set."
        if not self.init: return cfg
        shape = shape_of(self.model.G)
        if shape['block'] == 'none' != cfg.block and 'attn_at' in given and cfg.attn_at:
            raise Refused(f'{self.init} has no block on a map: leave attn_at away, or train from scratch')
        made = replace(cfg, **{k: v for k, v in shape.items() if k not in given})
        other = [k for k in ('block', 'attn_at') if getattr(made, k) != getattr(cfg, k)]
        words = ', '.join(f'{k}={typed_text(getattr(made, k))}' for k in other)
        if other: print(f'{cfg.preset} has {words} here: a network has the parts of the weights it begins with')
        return made

    def note(self):
        "Write it down, before the run has settings: what fails later is done again by --resume."
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out/BEGAN, dict(init=self.init, held=self.held))

    def check(self, D:nn.Module):
        "Raise Refused for more blocks to hold than there are."
        if self.held > len(D.blocks): raise Refused(f'--freeze d:{self.held}: D has {len(D.blocks)} blocks')

    def fits(self, cfg:Config):                             # complete, with the classes of the images
        "Raise Refused for weights of another shape, on networks without memory: before there is a run folder."
        with torch.device('meta'): nets = networks(cfg)
        if not self.init: return
        for part, net in zip('GD', nets): begin_with(net, self.model, part)

    def __call__(self, gan:GAN):
        "Take the weights over where nothing was trained yet, and hold what is to be held."
        self.check(gan.D)
        if gan.ranks.first and not (self.out/BEGAN).exists(): self.note()
        if self.init and not gan.t:
            for part in 'GD':
                print(begin_with(getattr(gan, part), self.model, part))
                gan.ranks.connect(getattr(gan, part))                # what rank 0 has read
            del self.model                                           # its memory
            if gan.ema is not None: gan.ema.load_state_dict(gan.G.state_dict())
        for block in list(gan.D.blocks)[:self.held]:
            for p in block.parameters(): p.register_hook(torch.zeros_like)


def check_networks(
    cfg:Config,                   # settings; classes may be unknown yet
    tuning:FineTune,              # or None
):
    "Raise Refused for sizes and places that networks do not have, on networks without memory."
    with torch.device('meta'): D = networks(cfg)[1]
    if tuning: tuning.check(D)


def tuning_of(
    init:str,                     # as in sagan_train
    freeze:str,                   # as in sagan_train
    out:str,                      # run folder
    resume:bool,                  # then the run says what it began with
    asked:bool=None,              # did a user ask to resume, and not torchrun? None: as resume
)->FineTune:                      # None for a run from scratch
    "What to begin with. Raises Refused for a resumed run that is told something else."
    saved, held = Path(out)/BEGAN, blocks_held(freeze)
    asked = resume if asked is None else asked
    if asked and (init or freeze):
        raise Refused('--init and --freeze are for a new run: a resumed one keeps its own')
    if resume and saved.exists():
        known = read_json(saved, 'it says what the run began with')
        began = FineTune(str(known.get('init', '')), int(known.get('held', 0)), Path(out))
        if (init or freeze) and (began.init, began.held) != (init or '', held):
            raise Refused(f'{out} began with other weights: choose another --out')
        return began
    if resume and (init or held) and checkpoints_of(out):
        raise Refused(f'{out} began without --init: choose another --out')
    return FineTune(init or '', held, Path(out)) if init or held else None
