"Serves chapter 13: the generator of nnabla-examples under our names; read in its models.py, never run on its weights."
import torch

from ..core import Refused
from ..spectral_norm import unit

MARK = 'singular-vector'          # their name for u


def is_nnabla(
    arrays:dict,                  # name -> array
)->bool:
    "Are these names nnabla's?"
    return any(k.endswith(MARK) for k in arrays) and any(k.startswith('generator/sn_affine/') for k in arrays)


class Renaming:
    "Tensors on their way from nnabla's names to ours. Raises Refused for one that is missing."
    def __init__(self,
        arrays:dict,              # name -> tensor, of one generator
    ):
        self.arrays, self.state, self.used = arrays, {}, {}

    def put(self, ours:str, theirs:str, move=lambda t: t):
        "Move one tensor."
        name = f'generator/{theirs}'
        if name not in self.arrays: raise Refused(f'nnabla: {name} is missing (here it would be {ours})')
        self.state[ours], self.used[name] = move(self.arrays[name]).contiguous(), ours

    def layer(self, ours:str, theirs:str, bias:bool=True, move=lambda t: t):
        "Move a layer with its u; v follows from both."
        w = f'{ours}.parametrizations.weight'
        self.put(f'{w}.original', f'{theirs}/W', move)
        self.put(f'{w}.0.u', f'{theirs}/{MARK}', torch.flatten)
        self.state[f'{w}.0.v'] = unit(self.state[f'{w}.original'].flatten(1).t() @ self.state[f'{w}.0.u'])
        if bias: self.put(f'{ours}.bias', f'{theirs}/b')

    def norm(self, ours:str, theirs:str, tables:str=''):
        "Move a batch norm; `tables`: what follows the name of a table of classes."
        for name, other in (('gain', 'gamma'), ('offset', 'beta')):
            move = (lambda t: t) if tables else (lambda t: t.reshape(1, -1))
            self.put(f'{ours}.{name}', f'{theirs}/{other}{tables}', move)
        for name in ('mean', 'var'): self.put(f'{ours}.{name}', f'{theirs}/{name}', torch.flatten)


def under_our_names(
    arrays:dict,                  # name -> tensor, of a whole file
)->tuple:                         # tensors under our names, their name -> ours, their name -> why it is left out
    "Rename nnabla's generator. Raises Refused for one that is not whole."
    r, left = Renaming(arrays), {k: 'of another network in the file' for k in arrays if not k.startswith('generator/')}
    r.layer('linear', 'sn_affine', move=torch.t)
    n = 0
    while f'generator/block-{n + 1}/conv1/sn_conv/W' in arrays:
        theirs, ours = f'block-{n + 1}', f'blocks.{8 << n}'
        for i in (1, 2):
            r.norm(f'{ours}.bn{i}', f'{theirs}/conv{i}/ccbn', '/embed/W')
            r.layer(f'{ours}.conv{i}', f'{theirs}/conv{i}/sn_conv')
        r.layer(f'{ours}.short', f'{theirs}/shortcut/sn_conv')
        n += 1
    if 'generator/attn/gamma' in arrays: r = attention_of(r, n)
    r.norm('bn', 'bn')
    r.layer('conv', 'sn_conv')
    over = [k for k in arrays if k.startswith('generator/') and k not in r.used]
    if over: raise Refused(f'nnabla: {over[0]} has no place in a SAGAN generator')
    return r.state, r.used, left


def attention_of(
    r:Renaming,                   # with its blocks
    n:int,                        # how many
)->Renaming:                      # the same
    "Move the attention, to the first map with as many channels: the names do not say where it sits."
    C = r.arrays['generator/attn/f/sn_conv/W'].shape[1] if 'generator/attn/f/sn_conv/W' in r.arrays else None
    width = lambda i: r.state[f'blocks.{8 << i}.conv2.parametrizations.weight.original'].shape[0]
    at = next((8 << i for i in range(n) if width(i) == C), None)
    if at is None: raise Refused(f'nnabla: its attention has {C} channels, which no block has')
    for name in 'fgh': r.layer(f'extra.{at}.{name}', f'attn/{name}/sn_conv', bias=False)
    r.put(f'extra.{at}.gamma', 'attn/gamma', lambda t: t.reshape(()))
    return r
