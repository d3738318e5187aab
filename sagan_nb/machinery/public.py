"Serves chapter 13: one table of the public weights that are here: scores by one protocol, and is attention used?"
from functools import cache

import torch
from torch import Tensor

from ..attention_maps import silenced
from ..core import Refused, choose
from ..data import open_source
from ..networks import Generator
from ..train import attention_usage
from .catalogue import CATALOGUE, place_of
from .curve import SIZES
from .door import open_run
from .evaluate import evaluate, protocol_of
from .terminal import text_table

COLUMNS = ('weights', 'what', 'published', 'by', 'score', 'distance', 'without', 'gamma', 'adds', 'bits', 'pixels',
           'changes')
COLUMN_WORDS = """score, distance: measured here, by one protocol. without: the distance with attention silenced.
gamma, and how much attention adds to what passes through; bits of its entropy; how many pixels it looks away.
changes: how much a pixel changes where attention is silenced."""
AS_PUBLISHED = """Scores are as published, each by its own protocol. To measure all by one:
  sagan_table public --data PICTURES --features inception --scale paper
Several sets of pictures are separated by commas; each generator takes the one that fits."""


@torch.no_grad()
def change_without(
    G:Generator,              # in evaluation mode
    z:Tensor,                 # noise, (B, Z)
    y:Tensor,                 # labels, (B,)
)->float:                     # 0..1
    "Measure how much pictures change when attention is silenced: mean absolute difference, half the range of a pixel."
    whole = G(z, y)
    with silenced(G, G.extra.values()): return (G(z, y) - whole).abs().mean().item() / 2


def use_of_attention(
    G:Generator,              # in evaluation mode
    n:int=16,                 # pictures
)->list:                      # cells: gamma, share added, entropy, distance, what is lost
    "Say whether a generator uses its attention, by its last block."
    if not G.extra: return ['-']*5
    rng, device = torch.Generator().manual_seed(0), next(G.parameters()).device
    z, y = torch.randn(n, G.z_dim, generator=rng), torch.randint(max(G.n_classes, 1), (n,), generator=rng)
    z, y = z.to(device), y.to(device)
    *_, o = attention_usage(G, z, y).values()
    looks = [f'{o["entropy"]:.2f}', f'{o["distance"]:.0f}'] if 'entropy' in o else ['-', '-']
    return [f'{o["gamma"]:+.3f}', f'{o["ratio"]:.1%}', *looks, f'{change_without(G, z, y):.1%}']


@cache
def pictures_that_fit(
    specs:str,                # pictures, separated by commas
    res:int,                  # pixels per side
    n_classes:int,            # K; 0: without labels
):                            # the first source that has so many classes
    "Open the pictures for a generator. Raises Refused, with each reason, where none fits."
    why = []
    for spec in specs.split(','):
        try: return open_source(spec, res, unlabelled=not n_classes, n_classes=n_classes or None)
        except Refused as e: why.append(str(e))
    raise Refused('; '.join(why))


def scores_of(
    G:Generator,              # in evaluation mode
    about:dict,               # what a record says of it
    data:str,                 # as of `pictures_that_fit`
    scale:str,                # a key of SIZES: how many pictures
    features:str,             # see `evaluate`
)->tuple[list,str]:           # cells: score, distance, distance without attention; the protocol
    "Measure a generator, and again with its attention silenced. Raises Refused where the pictures do not fit."
    source = pictures_that_fit(data, G.res, G.n_classes)
    how = dict(zip(('n_fake', 'n_real'), SIZES[scale]), features=features, about=about)
    score, *_, distance = evaluate(G, source, ('score', 'distance'), **how)
    with silenced(G, G.extra.values()): without = evaluate(G, source, ('distance',), **how)[0]
    def show(o): return f'{o["value"]:.4g}' if isinstance(o['value'], float) else '-'
    names = f'score is {score["metric"]}, distance {distance["metric"]}'
    return [*map(show, (score, distance, without))], f'{names}, on {source.spec}: {protocol_of(distance)}'


def row_of_weights(
    name:str,                 # a key of CATALOGUE, whose file is here
    data:str,                 # as of `public_table`
    scale:str,                # as of `public_table`
    features:str,             # as of `public_table`
    device,                   # where to
)->tuple[list,str]:           # cells; how the scores came about, or why there are none
    "Open public weights and say all that is known of them. Raises Refused where the file is not what was published."
    p, model, scores, how = CATALOGUE[name], open_run(name, device), ['-']*3, ''
    if data:
        try: scores, how = scores_of(model.G, model.about, data, scale, features)
        except Refused as e: how = f'{name} is not measured: {e}'
    return [name, p.what, p.score, p.by, *scores, *use_of_attention(model.G)], how


def how_to_get(
    name:str,                 # a key of CATALOGUE
)->str:                       # one line
    "Say what weights that are not here are, and how to get them."
    p = CATALOGUE[name]
    how = f'sagan_sample {name} downloads it' if p.url else ''
    known = '; '.join(filter(None, (p.what, p.score, p.note, how)))
    return f'{name}: {known}'


def public_table(
    data:str='',              # pictures to measure with, separated by commas; '': measure nothing
    scale:str='laptop',       # a key of SIZES: how many pictures
    features:str='domain',    # see `evaluate`
    device='cpu',             # where to
)->str:                       # for a terminal
    "Open the public weights in the cache and say what is known of them; the others are listed with their addresses."
    choose(scale, SIZES, 'scale')
    rows, missing, hows = [], [], []
    for name, p in CATALOGUE.items():
        if not p.url or not place_of(name).exists(): missing.append(how_to_get(name))
        else:
            try: row, how = row_of_weights(name, data, scale, features, device)
            except Refused as e: missing.append(f'{name}: {e}')
            else:
                rows.append(row)
                hows.append(how)
    if not rows: return '\n'.join(['No public weights are in the cache.', *missing])
    said = dict.fromkeys(filter(None, hows))
    hint = [] if data else [AS_PUBLISHED]
    return '\n'.join([text_table(list(COLUMNS), rows), COLUMN_WORDS, *said, *hint, *missing])
