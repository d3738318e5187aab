"""Serves chapter 13: the networks of Your Local GAN, and of TF-GAN's SAGAN, from which it is made, under the released
code's names. Read in ylg at f41c818 and in TF-GAN at 4a5d92e; never run on their weights."""
import re

from torch import Tensor
from torch.nn.functional import normalize

from ..core import Refused

U = 'spectral_norm_u'
YLG_WEIGHTS = (                   # how a weight's name ends; in the released code; is it divided where sigma < 1?
    (r'/(dense)/kernel$', '/Matrix', False), (r'/(\w+)/kernel$', '/w', False), (r'/(weights)$', '/w', True),
    (r'/(embedding_map)$', '/embedding_map', False))
BATCH_NORM = dict(eps=1e-3, momentum=1e-3)
YLG_NOTES = ['spectral norm is folded into the weights: divided by sigma where that is above 1, in attention always',
         'names and order from the source of ylg and TF-GAN: never run on their weights']


def is_ylg(
    arrays:dict,                  # name -> array
)->bool:
    "Are these the names of Your Local GAN or TF-GAN?"
    return any(name.endswith(U) for name in arrays)


def divided(
    w:Tensor,                     # a weight whose last axis is the output
    u:Tensor,                     # as stored, (all other axes, 1)
    equal:bool,                   # divide in any case; else only where sigma is above 1
    name:str,                     # of the weight
)->Tensor:
    "Divide a weight by sigma as their evaluation does: a step from u. Raises Refused where u does not fit."
    W = w.flatten(0, -2)
    if u.shape != (len(W), 1): raise Refused(f'ylg: u of {name} has shape {tuple(u.shape)}, not {(len(W), 1)}')
    v = normalize(W.mT @ u, dim=0)
    sigma = (normalize(W @ v, dim=0).mT @ W @ v).squeeze()
    return w / (sigma if equal else sigma.clamp_min(1))


def released_name(
    name:str,                     # theirs, without what is above the network
)->tuple[str,object]:             # the released code's; of a weight under spectral norm: equal, else None
    "Translate a name."
    moved = name.replace('_ops/', '_non_local/')
    for pattern, tail, equal in YLG_WEIGHTS:
        if re.search(pattern, moved): return re.sub(pattern, tail, moved), equal
    return re.sub(r'/\w*conv\w*/bias$', '/biases', moved.replace('/dense/bias', '/bias')), None


def released_arrays(
    arrays:dict,                  # name -> tensor, of one network
)->tuple[dict,dict]:              # under the released code's names, divided; that name -> their names
    "Translate a network. Raises Refused for a weight without its u."
    out, origin, us = {}, {}, {k: v for k, v in arrays.items() if k.endswith(U)}
    for name, t in arrays.items():
        if name in us: continue
        ours, equal = released_name(name)
        origin[ours] = [name]
        if equal is not None:
            table = ours.endswith('/embedding_map')          # turned before it is divided; u is a scope further up
            scope = name.rpartition('/')[0] if table else name
            u = next((k for k in us if k.partition('/spectral_normalize')[0].endswith(scope)), None)
            if u is None: raise Refused(f'ylg: {name} has no {U}')
            origin[ours] = [name, u]
            t = divided(t.mT, us[u], equal, name).mT if table else divided(t, us[u], equal, name)
        out[ours] = t
    return out, origin


def local_recipe(
    recipe:dict,                  # as the released code's would be
    source:str,                   # 'ylg' or 'tfgan'
)->dict:
    "Say what computes otherwise: epsilon, no spectral norm any more, the block on a map."
    own = dict(late_u=False)
    if 'bn' in recipe: own |= dict(bn=BATCH_NORM, bn_last=BATCH_NORM)
    if source == 'ylg': own['extra'] = {k: dict(block='local', at=o['at']) for k, o in recipe['extra'].items()}
    return recipe | own


def notes_of(
    source:str,                   # 'ylg' or 'tfgan'
)->list:
    "List what a user should know."
    if source != 'ylg': return [*YLG_NOTES]
    other = "attention is sparse, in eight heads; TF-GAN has the same names for full attention: source='tfgan'"
    return [*YLG_NOTES, other]
