"Serves chapter 13: networks of nnabla-examples under our names; read in its models.py, never run on its weights."
import torch

from ..core import Refused
from ..spectral_norm import unit

MARK = 'singular-vector'          # their name for u
NNABLA_NETS = dict(G='generator', D='discriminator')


def is_nnabla(
    arrays:dict,                  # name -> array
)->bool:
    "Are these names nnabla's?"
    starts = tuple(f'{net}/sn_affine/' for net in NNABLA_NETS.values())
    return any(k.endswith(MARK) for k in arrays) and any(k.startswith(starts) for k in arrays)


class Renaming:
    "Tensors on their way from nnabla's names to ours. Raises Refused for one that is missing."
    def __init__(self,
        arrays:dict,              # name -> tensor
        net:str,                  # a value of NNABLA_NETS
    ):
        self.arrays, self.net, self.state, self.used = arrays, net, {}, {}

    def has(self, theirs:str)->bool:
        "Is this tensor there?"
        return f'{self.net}/{theirs}' in self.arrays

    def put(self, ours:str, theirs:str, move=lambda t: t):
        "Move one tensor."
        name = f'{self.net}/{theirs}'
        if name not in self.arrays: raise Refused(f'nnabla: {name} is missing (here it would be {ours})')
        self.state[ours], self.used[name] = move(self.arrays[name]).contiguous(), ours

    def layer(self, ours:str, theirs:str, bias:bool=True, move=lambda t: t):
        "Move a layer with its u; v follows from both."
        w = f'{ours}.parametrizations.weight'
        self.put(f'{w}.original', f'{theirs}/W', move)
        self.put(f'{w}.0.u', f'{theirs}/{MARK}', torch.flatten)
        self.state[f'{w}.0.v'] = unit(self.state[f'{w}.original'].flatten(1).t() @ self.state[f'{w}.0.u'])
        if bias: self.put(f'{ours}.bias', f'{theirs}/b')

    def embedding(self, ours:str, theirs:str):
        "Move D's table of classes; their u has a number for each channel, which is our v."
        w = f'{ours}.parametrizations.weight'
        self.put(f'{w}.original', f'{theirs}/W')
        self.put(f'{w}.0.v', f'{theirs}/{MARK}', torch.flatten)
        self.state[f'{w}.0.u'] = unit(self.state[f'{w}.original'] @ self.state[f'{w}.0.v'])

    def norm(self, ours:str, theirs:str, tables:str=''):
        "Move a batch norm; `tables`: what follows the name of a table of classes."
        for name, other in (('gain', 'gamma'), ('offset', 'beta')):
            move = (lambda t: t) if tables else (lambda t: t.reshape(1, -1))
            self.put(f'{ours}.{name}', f'{theirs}/{other}{tables}', move)
        for name in ('mean', 'var'): self.put(f'{ours}.{name}', f'{theirs}/{name}', torch.flatten)


def under_our_names(
    arrays:dict,                  # name -> tensor, of a whole file
    part:str=None,                # 'G' or 'D'; None: G where it is there
)->tuple:                         # tensors under our names, their name -> ours, their name -> why it is left out, kind
    "Rename a network of nnabla's. Raises Refused for one that is not whole."
    there = [p for p, net in NNABLA_NETS.items() if any(k.startswith(f'{net}/') for k in arrays)]
    part = part if part in there else there[0]
    r = Renaming(arrays, NNABLA_NETS[part])
    left = {k: 'of another network in the file' for k in arrays if not k.startswith(f'{r.net}/')}
    (rename_g if part == 'G' else rename_d)(r)
    over = [k for k in arrays if k not in left and k not in r.used]
    if over: raise Refused(f'nnabla: {over[0]} has no place in a SAGAN {r.net}')
    return r.state, r.used, left, r.net.capitalize()


def rename_g(r:Renaming):
    "Rename a generator."
    r.layer('linear', 'sn_affine', move=torch.t)
    n = 0
    while r.has(f'block-{n + 1}/conv1/sn_conv/W'):
        theirs, ours = f'block-{n + 1}', f'blocks.{8 << n}'
        for i in (1, 2):
            r.norm(f'{ours}.bn{i}', f'{theirs}/conv{i}/ccbn', '/embed/W')
            r.layer(f'{ours}.conv{i}', f'{theirs}/conv{i}/sn_conv')
        r.layer(f'{ours}.short', f'{theirs}/shortcut/sn_conv')
        n += 1
    rename_attention(r, {f'{8 << i}': f'{8 << i}' for i in range(n)})
    r.norm('bn', 'bn')
    r.layer('conv', 'sn_conv')


def rename_d(r:Renaming):
    "Rename a discriminator; its last block has no shortcut and keeps the size of the map, which is 4."
    n = 0
    while r.has(f'block-{n + 1}/conv1/sn_conv/W'):
        for i in (1, 2): r.layer(f'blocks.{n}.conv{i}', f'block-{n + 1}/conv{i}/sn_conv')
        if r.has(f'block-{n + 1}/shortcut/sn_conv/W'): r.layer(f'blocks.{n}.short', f'block-{n + 1}/shortcut/sn_conv')
        n += 1
    if n < 2: raise Refused('nnabla: fewer than two residual blocks')
    rename_attention(r, {f'{i}': f'{4 << (n - 2 - i)}' for i in range(n - 1)})
    r.layer('linear', 'sn_affine', move=torch.t)
    if r.has('projection/embed/W'): r.embedding('embed', 'projection/embed')


def rename_attention(
    r:Renaming,                   # with its blocks
    places:dict,                  # number of a block -> size of the map after it
):
    "Move the attention, if there is one, to the first map with as many channels: the names do not say where it sits."
    if not r.has('attn/gamma'): return
    C = r.arrays[f'{r.net}/attn/f/sn_conv/W'].shape[1] if r.has('attn/f/sn_conv/W') else None
    def width(block): return r.state[f'blocks.{block}.conv2.parametrizations.weight.original'].shape[0]
    at = next((side for block, side in places.items() if width(block) == C), None)
    if at is None: raise Refused(f'nnabla: its attention has {C} channels, which no block has')
    for name in 'fgh': r.layer(f'extra.{at}.{name}', f'attn/{name}/sn_conv', bias=False)
    r.put(f'extra.{at}.gamma', 'attn/gamma', lambda t: t.reshape(()))
