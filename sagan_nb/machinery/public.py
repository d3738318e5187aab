"Serves chapter 13: one table of the public weights that are here: what was published, and is attention used?"
import torch
from torch import Tensor

from ..attention_maps import silenced
from ..core import Refused
from ..networks import Generator
from ..train import attention_usage
from .catalogue import CATALOGUE, place_of
from .door import open_run
from .terminal import text_table

COLUMNS = ('weights', 'what', 'published', 'by', 'gamma', 'adds', 'bits', 'pixels', 'lost without')


@torch.no_grad()
def change_without(
    G:Generator,              # in evaluation mode
    z:Tensor,                 # noise, (B, Z)
    y:Tensor,                 # labels, (B,)
)->float:                     # 0..1
    "Measure how much pictures change when attention is silenced: mean absolute difference, half the range of a pixel."
    whole = G(z, y)
    with silenced(G): return (G(z, y) - whole).abs().mean().item() / 2


def use_of_weights(
    name:str,                 # a key of CATALOGUE, whose file is here
    n:int=16,                 # pictures
)->list:                      # cells: gamma, share added, entropy, distance, what is lost
    "Say whether a public generator uses its attention. Raises Refused where its file is not what was published."
    G, rng = open_run(name).G, torch.Generator().manual_seed(0)
    z, y = torch.randn(n, G.z_dim, generator=rng), torch.randint(max(G.n_classes, 1), (n,), generator=rng)
    used = [o for o in attention_usage(G, z, y).values() if 'entropy' in o]
    if not used: return ['-']*5
    o = used[-1]
    numbers = f'{o["gamma"]:+.3f} {o["ratio"]:.1%} {o["entropy"]:.2f} {o["distance"]:.0f} {change_without(G, z, y):.1%}'
    return numbers.split()


def public_table()->str:      # for a terminal
    "Open the public weights in the cache and print what is known of them; the others are listed with their addresses."
    rows, missing = [], []
    for name, p in CATALOGUE.items():
        if not p.url: missing.append(f'{name}: {p.note}')
        elif not place_of(name).exists(): missing.append(f'{name}: {p.what}; {p.score}; sagan_sample {name} downloads it')
        else:
            try: rows.append([name, p.what, p.score, p.by, *use_of_weights(name)])
            except Refused as e: missing.append(f'{name}: {e}')
    table = [text_table(list(COLUMNS), rows)] if rows else ['No public weights are in the cache.']
    note = 'Scores are as published, each by its own protocol; sagan_eval NAME --data PICTURES --protocol all measures.'
    return '\n'.join([*table, note, *missing])
