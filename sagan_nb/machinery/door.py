"Serves chapter 13: the one door back: whatever was trained, here or elsewhere, becomes a generator ready to draw."
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from ..config import Config, from_json
from ..core import Refused
from ..interop import load_weights
from ..networks import Discriminator, Generator
from ..spectral_norm import settle
from .catalogue import CATALOGUE, Public, is_weights_name, weights_of
from .files import CacheWarning, file_sha256, need_handles
from .hub import from_hub, is_repo
from .peers import Report
from .recipe import NoDraws


@dataclass(repr=False)
class Model:
    "A trained model. Each network is built when it is first asked for."
    cfg:Config                # its settings
    classes:list              # names, sorted; [] without classes
    step:int                  # updates of G; 0 where nobody says
    build:Callable            # 'G' or 'D' -> network
    tell:Callable             # -> what a record says of it

    def __repr__(self)->str:
        "One line; printing `G` or `D` says what they are made of."
        return f'{self.cfg.preset} at step {self.step:,}: {self.cfg.res}x{self.cfg.res}, {len(self.classes)} classes'

    @cached_property
    def G(self)->Generator:
        "The generator, ready to draw: averaged weights, settled u, batch statistics for sampling, evaluation mode."
        return self.build('G')

    @cached_property
    def D(self)->Discriminator:
        "The discriminator, in evaluation mode, u settled."
        return self.build('D')

    @cached_property
    def about(self)->dict:
        "What a record says of it: preset, step, ema, the checkpoint and its hash."
        return self.tell()


def open_weights(
    path,                     # a file that `load_weights` reads
    device,                   # where to
    part:str,                 # 'G' or 'D': which of them says how large they are
    bgr:bool=False,           # pictures have blue first
    inplace:bool=None,        # as in `load_weights`
)->Model:
    "Open weights that are no checkpoint of a run. Raises Refused for what is no network of a SAGAN."
    try: first = load_weights(path, part=part, bgr=bgr, inplace=inplace).to(device)
    except Refused as e: raise Refused(str(e) if path.name in str(e) else f'{path}: {e}') from None
    K = first.n_classes
    usual = 'projection' if K else 'none'
    head = first.head if part == 'D' else usual
    cfg = replace(Config(), preset=first.report.source, data='', res=first.res, n_classes=K, head=head)
    if part == 'G': cfg = replace(cfg, z_dim=first.z_dim)
    def tell():
        known = dict(checkpoint_sha256=file_sha256(path)) if path.is_file() else {}
        return dict(preset=cfg.preset, batch_norm='as published', checkpoint=path.name, **known)
    def build(p): return first if p == part else load_weights(path, part=p, bgr=bgr, inplace=inplace).to(device)
    return Model(cfg, first.report.classes or [str(k) for k in range(K)], 0, build, tell)


def sampling_weights(
    state:dict,               # of a checkpoint
    path:Path,                # where it lies
)->dict:                      # the state of the generator to sample from
    "Put the averaged weights and the statistics for sampling together; an older checkpoint has them drawn anew."
    if 'sampling' in state: return state.get('ema', state['G']) | state['sampling']
    from ..train import sampler
    from .checkpoints import restore
    warnings.warn(f'{path.name} is of an earlier version, without the batch statistics for sampling: they are made '
                  'anew, each time it is opened', CacheWarning, stacklevel=4)
    return sampler(restore(state)).state_dict()


def open_checkpoint(
    path:Path,                # where it lies
    state:dict,               # from `read_checkpoint`
    device,                   # where to
)->Model:
    "Open a checkpoint for drawing and looking: no optimiser is built, and nothing is drawn."
    from ..train import layout, networks
    from .checkpoints import as_ours, check_weights
    from .runs import about_run, class_names, run_of
    with as_ours(path):
        cfg, step = from_json(state['config']), int(state['t'])
        states = dict(G=sampling_weights(state, path), D=state['D'])
        try: check_weights(cfg, {part: dict(o) for part, o in states.items()})
        except Refused as e: raise Refused(f'{path}: {e}') from None
    def build(part:str)->nn.Module:
        with NoDraws(): net = dict(zip('GD', networks(cfg)))[part]
        net.load_state_dict(states[part])
        net.report = Report('sagan_nb', type(net).__name__, {k: k for k in net.state_dict()},
                            notes=[f'{cfg.preset}, step {step}'])
        net = net.to(device, memory_format=layout(cfg)).eval()
        return settle(net) if part == 'D' else net
    return Model(cfg, class_names(run_of(path), cfg.n_classes), step, build, lambda: about_run(cfg, step, path))


def is_checkpoint(
    path:Path,                # any file
)->bool:
    "Tell a checkpoint of ours from other weights; a damaged one, which its reader refuses, by where it lies."
    if path.suffix != '.pt' or not path.is_file(): return False
    need_handles(path)
    try: state = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception: return path.parent.name == 'checkpoints'
    return isinstance(state, Mapping) and {'config', 'G', 'D', 't'} <= state.keys()


def open_run(
    path,                     # a run folder, a checkpoint, a published file or folder, anybody's weights, a public name
    device='cpu',             # where to
    part:str='G',             # the network that must be there: 'G' or 'D'
)->Model:                     # with G ready to draw; D is built when it is asked for
    "Open what was trained, here or elsewhere. Raises Refused for a folder without a run and for files of another kind."
    public = CATALOGUE.get(str(path), Public('', ''))
    if is_repo(path): path = from_hub(path)
    path = Path(weights_of(path) if is_weights_name(path) else path)
    if part not in ('G', 'D'): raise Refused(f"part is {part!r}; choose 'G' or 'D'")
    index = Path(f'{path}.index')                                # TensorFlow's: the name is that of several files
    if not path.exists() and not index.exists(): raise Refused(f'{path}: there is no such run or file')
    if path.is_dir() and not (path/'model.safetensors').exists():
        from .checkpoints import read_newest
        run = path.parent if path.name == 'checkpoints' else path
        model = open_checkpoint(*read_newest(run, lazily=True), device)
    elif is_checkpoint(path):
        from .checkpoints import read_checkpoint
        model = open_checkpoint(path, read_checkpoint(path, lazily=True), device)
    else: model = open_weights(path, device, part, public.bgr, public.inplace)
    getattr(model, part)
    return model
