"Serves chapter 13: opening what was trained, here or elsewhere."
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config import Config
from ..core import Refused
from ..interop import checkpoint_of, load_weights
from ..networks import Discriminator, Generator
from ..spectral_norm import settle
from ..train import sampler
from .files import file_sha256
from .runs import about_run, class_names, load_checkpoint


@dataclass
class Model:
    "A generator ready to draw, and what it needs to be talked about."
    G:Generator               # in evaluation mode: averaged weights, settled u, batch statistics ready
    cfg:Config                # its settings
    classes:list              # names, sorted; [] without classes
    step:int                  # updates of G
    about:dict = field(default_factory=dict)   # what a record says of it: preset, step, ema, checkpoint, ...


def open_weights(
    path,                     # a file that `load_weights` reads
    device='cpu',             # where to
)->Model:                     # ready to draw; classes are known by their numbers
    "Open a generator from weights that are no checkpoint of a run. Raises Refused for what is no SAGAN generator."
    G = load_weights(path, part='G').to(device)
    cfg = replace(Config(), preset=G.report.source, res=G.res, n_classes=G.n_classes, z_dim=G.z_dim,
                  head='projection' if G.n_classes else 'none')
    about = dict(preset=cfg.preset, batch_norm='as published', checkpoint=Path(path).name)
    if Path(path).is_file(): about['checkpoint_sha256'] = file_sha256(path)
    return Model(G, cfg, [str(k) for k in range(G.n_classes)], 0, about)


def open_model(
    run,                      # a run folder, one of its checkpoints, or anybody's SAGAN weights (chapter 13)
    device='cpu',             # where to
)->Model:                     # ready to draw
    "Open what was trained, here or elsewhere. Raises Refused for a folder without a run and for files of another kind."
    run = Path(run)
    if not run.exists(): raise Refused(f'{run}: there is no such run or file')
    path = checkpoint_of(run)
    if not path: return open_weights(run, device)
    gan = load_checkpoint(path, device=device)
    names = class_names(path.parent.parent, gan.cfg.n_classes)
    return Model(sampler(gan), gan.cfg, names, gan.t, about_run(gan, path))


def open_judge(
    run,                      # a run folder, one of its checkpoints, or anybody's SAGAN weights
    device='cpu',             # where to
)->tuple[Discriminator,str]:   # D in evaluation mode, its data
    "Open a discriminator. Raises Refused where there is none; without a run, the data is ''."
    run = Path(run)
    if not run.exists(): raise Refused(f'{run}: there is no such run or file')
    if path := checkpoint_of(run):
        gan = load_checkpoint(path, device=device)
        return settle(gan.D).eval(), gan.cfg.data
    D = load_weights(run, part='D').to(device)
    if not isinstance(D, Discriminator): raise Refused(f'{run}: there is no discriminator in it')
    return D, ''
