"Serves chapter 12: what the rows of a table would take, before any is trained: hours, memory, disk, network and money."
from dataclasses import replace

import torch

from ..config import Config
from ..core import Refused
from ..distributed import Ranks
from ..train import networks
from .checkpoints import disk_price
from .memory import kept_by
from .terminal import text_table

GIVEN = dict(step=None, gpus=1, price=None)      # seconds of an update, GPUs of a row, price of one for an hour
ANCHORS = '''What others report of one row of this size, for comparison:
  TF-GAN's example: 1M steps in about 26 h on 128 TPU-v2 cores; 1.8M steps in 27 days on 8 V100
  nnabla-examples: 9 days on 4 V100
  StudioGAN: 10.8 days'''
REPORTED = ((1e6, 9*24*4), (1.8e6, 27*24*8))     # nnabla's and TF-GAN's: updates, hours of a V100


def reported_hours()->tuple:      # fewest, most
    "Hours of a V100 that one row of Table 1 takes, by what others report of a million updates."
    hours = [taken*1e6/steps for steps, taken in REPORTED]
    return min(hours), max(hours)


def given_for_plan(
    pairs,                    # key=value texts
)->dict:                      # as GIVEN, numbers
    "Read what a plan is told. Raises Refused for what is no such number."
    found, known = dict(GIVEN), ', '.join(f'{o}=NUMBER' for o in GIVEN)
    for pair in pairs:
        name, _, text = pair.partition('=')
        if name not in GIVEN: raise Refused(f'a plan is told {known}; got {pair!r}')
        try: found[name] = int(text) if name == 'gpus' else float(text)
        except ValueError: raise Refused(f'{name} must be a number, got {text!r}') from None
        if not found[name] > 0: raise Refused(f'{name} must be greater than 0, got {text}')
    return found


def kept_for_backward(
    cfg:Config,               # settings
    n:int,                    # images at once
)->dict:                      # 'D': bytes of one call of D, 'G': of one call of G
    """Count what a network keeps for its backward beside weights, in float32: from shapes, without memory. Attention is
    left out: its fused kernel stores no map."""
    with torch.device('meta'):
        G, D = networks(replace(cfg, attn_at=(), block='none', sn_g=False, sn_d=False, bn_ghost=0, micro=0))
        x, z, y = torch.empty(n, 3, cfg.res, cfg.res), torch.empty(n, cfg.z_dim), torch.zeros(n, dtype=torch.int64)
        return dict(D=kept_by(D, x.requires_grad_(), y), G=kept_by(G, z, y))


def how_many_weights(
    cfg:Config,               # settings
)->dict:                      # 'G', 'D': how many weights
    "Count the weights of both networks."
    with torch.device('meta'): nets = dict(zip('GD', networks(cfg)))
    return {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}


def memory_of(
    cfg:Config,               # settings
    gpus:int,                 # ranks that share a batch
)->int:                       # bytes on each
    "Estimate the most that training keeps: weights, gradients, Adam's moments, the average, images, maps for backward."
    share, n = cfg.batch // gpus, how_many_weights(cfg)
    at_once = min(cfg.micro or share, share)
    kept = kept_for_backward(cfg, at_once)
    in_parts = at_once < share
    maps = max(kept.values()) if in_parts else max(2*kept['D'], kept['D'] + kept['G'])      # two calls of D; D after G
    if cfg.precision == 'bf16': maps //= 2
    images = 4 * share*3*cfg.res**2                            # real, generated, and their gradients
    numbers = 4*(n['G'] + n['D'])
    if cfg.ema: numbers += n['G']
    if gpus > 1: numbers += max(n.values())
    return 4*(numbers + images) + maps


def sent_of(
    cfg:Config,               # settings
    gpus:int,                 # ranks that share a batch
)->float:                     # bytes that each rank sends for one update of G
    "Count the gradients that a ring of ranks passes on; statistics of batch norm are small beside them."
    n = how_many_weights(cfg)
    return 4*(n['G'] + n['D']*cfg.d_per_g) * 2*(gpus - 1)/gpus


def plan_of(
    found:dict,               # row -> Config
    seeds:int,                # runs of each row
    step:dict,                # row -> seconds of an update
    gpus:int=1,               # ranks of a run
    price:float=None,         # of a GPU for an hour; None: no cost
)->str:                       # to print
    "Say what every row takes, and all of them. Raises Refused if the GPUs do not divide a batch."
    rows, total = [], [0., 0.]
    for row, cfg in found.items():
        Ranks(0, gpus).share(cfg.batch, cfg.bn_ghost)
        seconds, (kept, size) = step[row], disk_price(cfg)
        hours = seeds * cfg.steps*seconds / 3600
        total[0], total[1] = total[0] + hours*gpus, total[1] + seeds*kept*size
        memory, sent = memory_of(cfg, gpus)/1e9, sent_of(cfg, gpus)/seconds/1e6
        rows.append([row, f'{cfg.steps:,}', f'{seconds:.3g}', str(gpus), f'{hours:,.1f}', f'{memory:.1f}',
                     f'{seeds*kept*size/1e9:.1f}', f'{cfg.batch*cfg.d_per_g/seconds:,.0f}',
                     f'{sent:,.0f}' if gpus > 1 else '-',
                     '-' if price is None else f'{hours*gpus*price:,.0f}'])
    head = 'row', 'updates', 's/update', 'GPUs', 'hours', 'GB/GPU', 'GB disk', 'read/s', 'MB/s sent', 'cost'
    money = '' if price is None else f', cost {total[0]*price:,.0f}'
    words = (f'in all {total[0]:,.1f} GPU hours{money}, {total[1]/1e9:.1f} GB of checkpoints; {seeds} of each row; '
             'read/s: images of the data for one run. Evaluation is not counted.')
    return f'{text_table(head, rows)}\n\n{words}\n'
