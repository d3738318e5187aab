"Serves chapter 09: a checkpoint is one file that is whole or refused; which ones a run keeps, and which is its newest."
import copy
import hashlib
import io
import math
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..config import BOOKKEEPING, Config, differences, from_json, to_json
from ..core import Refused
from ..data import Stream
from ..train import GAN, make_gan, networks, sampler
from .atomic import atomic_write
from .files import CacheWarning, check_members, must_be_file, must_be_utf8, refusing
from .group import differences_between, digests, text_of_first
from .machine import out_of_memory
from .recipe import MALFORMED, NoDraws

PARTS = ('G', 'D', 'opt_g', 'opt_d', 'ema')
DIGITS = 64               # of a SHA-256 in hexadecimal


class Diverged(RuntimeError):
    "A loss, a weight or a statistic is no longer a finite number; the last good checkpoint is kept."


def every_tensor(
    state,                    # a tensor, or nested dicts of tensors and other values
    name:str='',              # where it was found
):                            # yields (name, tensor)
    "Find every tensor of a state, named by the keys that lead to it."
    if isinstance(state, Tensor): yield name, state
    if not isinstance(state, Mapping): return
    for key, value in state.items():
        yield from every_tensor(value, f'{name}.{key}' if name else str(key))


def check_finite(
    gan:GAN,                  # at which step
    state:dict,               # what is about to be saved
)->dict:                      # the same
    "Raise Diverged for a weight, a statistic or a moment of Adam that is not finite, by its name."
    for name, v in every_tensor(state):
        if v.is_floating_point() and not v.isfinite().all(): raise Diverged(f'at step {gan.t} {name} is not finite')
    return state


def check_alike(
    gan:GAN,                  # on this rank
):
    "Compare the ranks to the last bit. Raises Diverged, on every rank, where their numbers differ or are not finite."
    if gan.ranks.world == 1: return
    state = {n: getattr(gan, n).state_dict() for n in PARTS if getattr(gan, n) is not None}
    words = differences_between(digests(every_tensor(state)))
    if words: raise Diverged(f'at step {gan.t} the ranks do not have the same numbers: {words}')
    check_finite(gan, state)                              # after it: alike on every rank, so none waits for another


def not_finite(
    gan:GAN,                  # whose weights, statistics and gradients
)->list:                      # names, G before D, as they lie in the networks
    "Name what holds NaN or infinity."
    found = []
    for name, net in (('G', gan.G), ('D', gan.D)):
        grads = {f'gradient of {name}.{k}': p.grad for k, p in net.named_parameters() if p.grad is not None}
        state = {f'{name}.{k}': v for k, v in net.state_dict().items() if v.is_floating_point()}
        found += [k for k, v in (state | grads).items() if not v.isfinite().all()]
    return found


def say_not_finite(
    gan:GAN,                  # whose
)->str:                       # for the middle of a sentence; '' where all is finite
    "Say in which layer NaN or infinity is, and in how many more."
    found = not_finite(gan)
    more = f' and {len(found) - 1} more' if len(found) > 1 else ''
    return f' (so is {found[0]}{more})' if found else ' (weights and gradients are)'


def buffers(
    net:nn.Module,            # a network
)->dict:                      # name -> tensor
    "Pick what a network's state holds besides its weights: u and v of spectral norm, batch statistics."
    weights = dict(net.named_parameters())
    return {name: v for name, v in net.state_dict().items() if name not in weights}


def canonical(
    state,                    # nested dicts, lists and tuples
):                            # the same values
    "Rebuild every container, with one object for equal strings: equal states are then pickled to equal bytes."
    if isinstance(state, Mapping): return {canonical(k): canonical(v) for k, v in state.items()}
    if isinstance(state, (list, tuple)): return type(state)(map(canonical, state))
    return sys.intern(state) if type(state) is str else state


def sealed(
    state:dict,               # what a checkpoint holds
)->bytes:                     # its file
    "Make a checkpoint: torch's zip archive, whose comment is the SHA-256 of all bytes before it."
    buffer = io.BytesIO()
    torch.save(canonical(state), buffer)
    buffer.seek(-2, os.SEEK_END)                             # an archive ends with the length of its comment
    buffer.write(DIGITS.to_bytes(2, 'little'))
    buffer.write(hashlib.sha256(buffer.getvalue()).hexdigest().encode())
    return buffer.getvalue()


def check_seal(
    path,                     # a checkpoint
)->bool:                      # False: written by an earlier version, without a hash
    "Compare a checkpoint with the hash it carries. Raises Refused where there is none, or they differ."
    path, h = must_be_file(path), hashlib.sha256()
    try: left = path.stat().st_size - DIGITS
    except FileNotFoundError: raise Refused(f'{path}: there is no such checkpoint') from None
    with open(path, 'rb') as f:
        f.seek(max(left + DIGITS - 22, 0))
        end = f.read()
        if end.startswith(b'PK\5\6') and end.endswith(b'\0\0'): return False     # the end of an archive without comment
        f.seek(0)
        while left > 0 and (block := f.read(min(left, 1 << 20))):
            h.update(block)
            left -= len(block)
        if f.read() == h.hexdigest().encode(): return True
    raise Refused(f'{path}: not a readable checkpoint: it is damaged, it holds other bytes than were written')


def save_checkpoint(
    gan:GAN,                  # what to save
    data:Stream,              # its place is saved too
    path,                     # file to write; replaced only when the new one is complete
    G:nn.Module=None,         # the generator to sample from at this step, if it is at hand; None: made here
)->Path:                      # the same path
    "Write one atomic checkpoint. Raises Diverged, and writes nothing, if a number in it is not finite."
    state = {n: getattr(gan, n).state_dict() for n in PARTS if getattr(gan, n) is not None}
    check_finite(gan, state)
    state['sampling'] = check_finite(gan, buffers(sampler(gan) if G is None else G))
    state |= dict(config=to_json(gan.cfg), t=gan.t, rng=gan.rng.get_state(), data=data.state_dict(),
                  version=__version__)
    with atomic_write(path) as part: part.write_bytes(sealed(state))
    return Path(path)


def read_checkpoint(
    path,                     # file to read
    lazily:bool=False,        # map it into memory: only tensors that are used are read
)->dict:                      # what `save_checkpoint` wrote, on the CPU
    "Load a checkpoint without running any code from it. Raises Refused for a damaged or foreign file."
    sealed_as_written = check_seal(path)
    with refusing(f'{path}: not a readable checkpoint, damaged or not ours'):
        if not sealed_as_written: check_members(path)
        state = torch.load(path, map_location='cpu', weights_only=True, mmap=lazily)
    if not isinstance(state, dict) or not {'config', 't', 'G', 'D', 'rng'} <= set(state):
        raise Refused(f'{path}: not a checkpoint of this package')
    return state


@contextmanager
def as_ours(
    what,                     # a checkpoint, for the message
):
    "Raise Refused where a checkpoint holds something else than one of this package does."
    try: yield
    except Refused: raise
    except MALFORMED as e:
        if out_of_memory(e): raise
        raise Refused(f'{what}: not a checkpoint of this package ({type(e).__name__})') from None


def check_weights(
    cfg:Config,               # settings that came with them
    states:dict,              # 'G' or 'D' -> name -> tensor
):
    """Compare weights with settings before memory is taken for a network. Raises Refused, naming a tensor that does not
    fit or holds NaN."""
    with torch.device('meta'), NoDraws(): shapes = {part: net.state_dict() for part, net in zip('GD', networks(cfg))}
    for part, state in states.items():
        if strange := shapes[part].keys() ^ state.keys():
            raise Refused(f'not a checkpoint of this package: {part} has other tensors ({min(strange)})')
        for name, t in state.items():
            if not isinstance(t, torch.Tensor) or t.layout != torch.strided or t.shape != shapes[part][name].shape:
                raise Refused(f'not a checkpoint of this package: {part}.{name} does not fit its settings')
            if t.is_floating_point() and not t.sum().isfinite() and not t.isfinite().all():
                raise Refused(f'{part}.{name} holds numbers that are not finite')


def refuse_changes(
    saved:Config,             # of a run
    cfg:Config,               # with which it is to go on
):
    "Raise Refused, with the differences, for settings that changed; those of bookkeeping may."
    moved = ('data',) if saved.data_id and saved.data_id == cfg.data_id else ()       # the same images elsewhere
    changed = differences(saved, cfg, ignore=(*BOOKKEEPING, *moved))
    words = '; '.join(f'{n} was {a!r}, now {b!r}' for n, (a, b) in changed.items())
    if changed: raise Refused(f'the configuration changed since the checkpoint: {words}')


def restore(
    state:dict,               # from `read_checkpoint`
    cfg:Config=None,          # None: as saved; else it must agree with the saved one but for BOOKKEEPING
    data:Stream=None,         # a stream to put in its place
    device='cpu',             # where to
)->GAN:                       # at the saved step
    "Build networks and optimisers as they were saved. Raises Refused for a changed configuration."
    with as_ours('this checkpoint'):
        saved = from_json(state['config'])
        if cfg: refuse_changes(saved, cfg)
        check_weights(saved, {part: state[part] for part in 'GD'})
    gan = make_gan(cfg or saved, device)
    with as_ours('this checkpoint'):
        for n in PARTS:
            if getattr(gan, n) is not None: getattr(gan, n).load_state_dict(state[n])
        if type(state['t']) is not int or state['t'] < 0: raise ValueError('no step')
        gan.t = state['t']
        gan.rng.set_state(state['rng'])
        if data is not None: data.load_state_dict(state['data'])
        if not 0 <= getattr(data, 't', 0) < 2**48: raise ValueError('no place among the images')
    return gan


def load_checkpoint(
    path,                     # what `save_checkpoint` wrote
    cfg:Config=None,          # see `restore`
    data:Stream=None,         # see `restore`
    device='cpu',             # where to
)->GAN:                       # at the saved step
    "Open a checkpoint to train on. Raises Refused for a damaged file or a changed configuration, with the differences."
    return restore(read_checkpoint(path), cfg, data, device)


def step_of(path:Path)->int:
    "The step in the name of a checkpoint."
    return int(path.stem.rpartition('_')[2])


def checkpoints_of(
    out,                      # a run folder
    kind:str='step',          # step, or best: those that a guard keeps
)->list:                      # paths, by step
    "List the checkpoints of a run, whole or damaged."
    found = Path(out).glob(f'checkpoints/{kind}_[0-9]*.pt')
    numbered = [p for p in found if p.stem.removeprefix(f'{kind}_').isdecimal()]                 # not 'step_4 (1).pt'
    return sorted(numbered, key=step_of)


def newest(
    out,                      # a run folder
    read,                     # what is done with a checkpoint; Refused for a damaged one
    until:float=math.inf,     # leave out later steps
)->tuple:                     # path, what `read` returned
    "Read the newest checkpoint that is whole, and warn of newer ones. Raises Refused if there is none."
    must_be_utf8(out)
    found, damaged = [p for p in checkpoints_of(out) if step_of(p) <= until], []
    for path in reversed(found):
        try: value = read(path)
        except Refused as e:
            damaged.append(str(e))
            continue
        for words in damaged: warnings.warn(f'{words}; {path.name} is used', CacheWarning, stacklevel=3)
        return path, value
    if found: raise Refused(f'{out}: none of its {len(found)} checkpoints is whole: {"; ".join(damaged)}')
    raise Refused(f'{out}: no run to go on with here (no checkpoints)')


def newest_checkpoint(
    out,                      # a run folder
)->Path:                      # the checkpoint with the highest step that is whole
    "Find the newest checkpoint of a run; damaged ones are passed over with a warning. Raises Refused if there is none."
    return newest(out, check_seal)[0]


def read_newest(
    out,                      # a run folder
    lazily:bool=False,        # as of `read_checkpoint`
    until:float=math.inf,     # leave out later steps
)->tuple:                     # path, what is in it
    "Read the newest checkpoint of a run; damaged ones are passed over with a warning. Raises Refused if there is none."
    return newest(out, lambda path: read_checkpoint(path, lazily), until)


def log_spaced(
    steps:int,                # of the whole run
)->list:                      # 10 numbers
    "1, 2, 4, ... 512 thousandths of a run: after each of them one checkpoint stays."
    return [steps * 2**k / 1000 for k in range(10)]


def worth_keeping(
    found,                    # steps that have a checkpoint
    steps:int,                # of the whole run
)->set:                       # those of them that stay
    "Choose the newest two, and the first at or after each thousandth of `log_spaced`."
    first = {min((t for t in found if t >= mark), default=None) for mark in log_spaced(steps)}
    return {*sorted(found)[-2:]} | (first - {None})


def disk_price(
    cfg:Config,               # of a run
    look_every:int=0,         # steps between two looks; 0: none
    best:int=0,               # how many looks are kept by their distance
)->tuple:                     # how many checkpoints it ends with, at most; bytes of each (about)
    """Estimate the disk that a run needs for its checkpoints. A second name of one takes nothing: good.pt, a best look
    that is kept anyway."""
    every, last = cfg.checkpoint_every, cfg.steps
    kept = {min(math.ceil(mark / every)*every, last) for mark in log_spaced(last)} | {last, (last - 1)//every*every}
    looks = {*range(look_every, last, look_every), last} if look_every else set()
    with torch.device('meta'): G, D = networks(cfg)
    def size(net): return sum(v.nbytes for v in net.state_dict().values())
    each = size(G)*(3 + bool(cfg.ema)) + 3*size(D)           # weights, two moments of Adam, the average
    return len(kept - {0}) + min(best, len(looks - kept)), each


class SamplerOfStep:
    "The generator to sample from, made once for all hooks of a step."
    def __init__(self): self.t, self.G = None, None

    def __call__(self, gan:GAN)->nn.Module:      # as from `sampler`
        "Copy the one of this step, or make it."
        if self.t != gan.t: self.t, self.G = gan.t, sampler(gan)
        return copy.deepcopy(self.G)


class Keeper:
    "Hook: write a checkpoint and the settings it was made with; keep the newest two, and some spaced in log time."
    def __init__(self,
        out,                      # run folder
        data:Stream,              # its place is saved
        sample=sampler,           # makes the generator to sample from
    ):
        self.out, self.data, self.sample = Path(out), data, sample

    def __call__(self, gan:GAN, log:dict=None):
        "Let rank 0 write checkpoints/step_XXXXXXX.pt. Raises Diverged on every rank, whichever saw what is not finite."
        check_alike(gan)
        def save(): return self.save(gan)
        if words := text_of_first(save) if gan.ranks.world > 1 else save(): raise Diverged(words)

    def save(self, gan:GAN)->str:            # what is not finite; '' where it is written
        "Write a checkpoint. A later one is damaged, or it had been gone on with: it goes, too."
        try: save_checkpoint(gan, self.data, self.out/'checkpoints'/f'step_{gan.t:07}.pt', self.sample(gan))
        except Diverged as e: return str(e)
        self.write_settings(gan)
        found = {step_of(p): p for p in checkpoints_of(self.out)}
        stay = worth_keeping([t for t in found if t <= gan.t], gan.cfg.steps)
        for t in found.keys() - stay:
            with suppress(OSError): found[t].unlink()                # somebody may be looking at it
        return ''

    def write_settings(self, gan:GAN):
        "Write config.json. A run that was killed between its last checkpoint and this does it when it is gone on with."
        with atomic_write(self.out/'config.json') as part: part.write_text(to_json(gan.cfg), encoding='utf-8')

    def last_good(self)->str:
        "Say which checkpoint a run that failed can go on from."
        found = checkpoints_of(self.out)
        return f'the last good checkpoint is {found[-1]}' if found else 'no checkpoint was written yet'
