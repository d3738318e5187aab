"Serves chapter 16: the pictures that commands draw, sample or look at."
import math

import torch
from torch import Tensor

from ..attention_maps import attention_maps
from ..config import NUMERICS
from ..core import Refused, from_uint8
from ..data import open_source
from ..networks import Discriminator
from ..report import beside_real, draw_z, walk_classes, walk_z
from ..train import draw
from .door import Model, open_run
from .features import domain
from .options import pick_classes
from .runs import pictures_of
from .sources import describe


def open_to_draw(
    run,                      # run folder, or a checkpoint
    device:torch.device,      # where to
)->Model:
    "Open a model; on a CPU G has channels last, which is faster and, to rounding, the same."
    model = open_run(run, device)
    if device.type == 'cpu': model.G.to(memory_format=torch.channels_last)
    return model


def shown_classes(
    wanted:list,              # all classes of a model
    kind:str,                 # as of `sample_rows`
    n:int,                    # pictures in all
    steps:int,                # pictures along a walk
)->list:                      # the first of them: of a thousand, one picture would be of a thousand rows
    "Take no more rows than there are to be pictures, or ten; a walk between classes visits all."
    if kind == 'classes': return wanted
    rows = n // steps if kind == 'z' else n
    return wanted[:max(10, rows)]


def sample_rows(
    model:Model,              # from `open_run`
    kind:str,                 # 'grid', or 'z', 'classes': walks
    wanted:list,              # classes
    n:int,                    # pictures in all, rounded up to whole rows
    steps:int,                # pictures along a walk
    how:dict,                 # seed, truncation
)->Tensor:                    # (rows, columns, 3, res, res)
    "Pictures in rows: a class each; or for a walk between classes, a z each."
    G = model.G
    if kind == 'classes': return walk_classes(G, wanted, steps, rows=math.ceil(n / steps), **how)
    if kind == 'z': return walk_z(G, wanted, steps, rows=math.ceil(n / steps / len(wanted)), **how)
    z = draw_z(math.ceil(n / len(wanted)), G.z_dim, **how)
    y = torch.tensor(wanted).repeat_interleave(len(z))
    return draw(G, z.repeat(len(wanted), 1), y).unflatten(0, (len(wanted), -1))


def neighbours_of(
    model:Model,              # from `open_run`
    wanted:list,              # classes
    n:int,                    # pictures in all, eight in a row
    how:dict,                 # seed, truncation
    data:str,                 # real pictures; None: those of the run
)->tuple:                     # (rows, 8, 3, res, res), a sentence
    "Generated pictures and the seven nearest real ones. Raises Refused without data, and where they do not fit."
    source, z = pictures_of(model.cfg, data), draw_z(math.ceil(n / 8), model.cfg.z_dim, **how)
    y = torch.tensor([wanted[i % len(wanted)] for i in range(len(z))])
    return beside_real(draw(model.G, z, y), source, domain(source, device=next(model.G.parameters()).device))


def row_names(
    kind:str,                 # as in sagan_sample
    n:int,                    # rows
    names:list,               # of the classes that were asked for; empty without classes
    classes:list,             # names of all classes
)->list:                      # a name for each row; empty for a walk between classes, and without classes
    "Name the rows of samples by their classes."
    if kind == 'timelapse': return classes[:n]
    if not names or kind == 'classes': return []
    if kind == 'neighbours': return [names[i % len(names)] for i in range(n)]
    return [name for name in names for _ in range(n // len(names))]


def real_pictures(
    D:Discriminator,          # who will judge them
    data:str,                 # where they are
    n:int,                    # how many, spread over the classes
    classes:str=None,         # names or numbers separated by commas
    seed:int=0,               # of the choice
)->tuple:                     # pictures (n, 3, res, res), labels (n,), class names
    "Real pictures for D. Raises Refused without data, and where they do not fit."
    if not data: raise Refused('the discriminator looks at real pictures: say where they are with --data')
    K = 0 if D.head == 'none' else D.n_classes
    source = open_source(data, res=D.res, unlabelled=not K, n_classes=K or None)
    labels = source.labels
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    piles = [order[labels[order] == k] for k in pick_classes(classes, source.classes)]
    rows = torch.cat([pile[i:i + 1] for i in range(n) for pile in piles])[:n]
    x, y = source.batch(rows)
    return from_uint8(x), y, list(source.classes)


def maps_of_run(
    run:str,                  # as in sagan_attention
    part:str,                 # 'G' or 'D'
    n:int,                    # pictures
    classes:str,              # as in sagan_attention
    data:str,                 # real pictures for D
    seed:int,                 # of the pictures
    device,                   # where to
)->tuple:                     # AttentionMaps, a name for each picture
    "Pictures of G, or real ones before D, and what attention did with them."
    if part == 'D':
        model = open_run(run, device, part='D')
        x, y, names = real_pictures(model.D, data or model.cfg.data, n, classes, seed)
        check_names(model, names, run, data or model.cfg.data)
        return attention_maps(model.D, x, y), [names[k] for k in y] if names else []
    model = open_run(run, device)
    wanted = pick_classes(classes, model.classes)
    z = torch.randn(n, model.cfg.z_dim, generator=torch.Generator().manual_seed(seed))
    y = torch.tensor([wanted[i % len(wanted)] for i in range(n)])
    return attention_maps(model.G, z, y), [model.classes[k] for k in y] if model.classes else []


def has_class_names(
    model:Model,              # from `open_run`
)->bool:                      # False: classes are known by their numbers only
    "Does the model know the names of its classes?"
    return list(model.classes) != [str(k) for k in range(len(model.classes))]


def check_names(
    model:Model,              # from `open_run`
    names:list,               # of the classes of real pictures; [] without classes
    run:str,                  # for messages
    spec:str,                 # for messages
):
    "Raise Refused where the pictures have other classes than those the model knows by name, or another order of them."
    if names and has_class_names(model) and list(names) != list(model.classes):
        raise Refused(f'{run} was trained on the classes {model.classes}, {spec} has {list(names)}')


def open_measured(
    run:str,                  # as in sagan_eval
    data:str,                 # real pictures; None: those it was trained on
    device,                   # where to
)->tuple:                     # generator, real pictures, what a record says of the generator
    "Open a generator and its real pictures. Raises Refused where they do not fit, or nobody says where they are."
    model = open_run(run, device)
    if not (spec := data or model.cfg.data): raise Refused(f'{run} does not say on what it was trained: say --data')
    source = pictures_of(model.cfg, data)
    print(describe(source))
    check_names(model, source.classes, run, spec)
    return model.G, source, dict(model.about, numerics=NUMERICS)
