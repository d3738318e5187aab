"""Golden traces: what `NUMERICS` promises.
`python -m tools.golden` writes them all anew, `python -m tools.golden NAME ...` these alone.

A trace is the losses of 20 updates and two numbers of the images drawn after them. It is computed in float64, where
rounding stays below 1e-9 for that long: so it survives another processor and another torch, and moves when the
algorithm does. Half-way the run is saved and opened again. The number formats of real runs are held by their first
losses.
"""
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from sagan_nb.config import NUMERICS, at_scale, preset
from sagan_nb.core import from_uint8
from sagan_nb.data import Stream, Toy
from sagan_nb.train import average, d_step, draw, fit, fixed_noise, g_step, make_gan, sampler
from sagan_nb.machinery.checkpoints import load_checkpoint, save_checkpoint
from sagan_nb.machinery.sending import send

FILE = Path(__file__).parents[1]/'tests'/'golden'/f'numerics_{NUMERICS}.json'
STEPS = 20
SMOKE = dict(n_classes=4, steps=STEPS, standing=0)
ROWS = {                                      # trace -> (preset, what else is set)
    'paper': ('t1_attn_16', {}),
    'v1': ('t1_attn_16', dict(form='v1')),
    'released form': ('t1_attn_16', dict(form='released')),
    'none': ('t1_none', {}),
    'residual': ('t1_res_16', {}),
    'residual3x3': ('t1_res3x3_16', {}),
    'reduction 2, both maps': ('t1_attn_16', dict(reduction=2, attn_at=(8, 16))),
    'released': ('released', dict(attn_at=(16,))),
    'best_known': ('best_known', dict(attn_at=(16,), ema_start=2, bn_ghost=4, width=8)),
    'SN in D alone': ('f3_sn_d', {}),
    'AC-GAN, five steps of D': ('t2_acgan', dict(width=2)),
    'laptop': ('t1_attn_16', dict(lr_factor=4., ema=.9, ema_start=2, standing=16, channels_last=True)),
}


def config(name):
    "The settings of a trace."
    row, own = ROWS[name]
    return replace(at_scale(preset(row), 'smoke'), **SMOKE | own)


class Double(Stream):
    "Batches in the default number format."
    def make(self, t):
        x, y = super().make(t)
        return x.to(torch.get_default_dtype()), y


def trace(name, fold='box', device='cpu'):
    "Losses of 20 updates in float64, saved and opened again after 10; mean and deviation of four images."
    cfg = replace(config(name), fold=fold)
    before, losses = torch.get_default_dtype(), []
    torch.set_default_dtype(torch.float64)
    try:
        gan, data = make_gan(replace(cfg, steps=STEPS // 2), device), Double(Toy(cfg.res), cfg.batch, cfg.seed)
        def note(gan, log): return losses.append([log['loss_d'].item(), log['loss_g'].item()])
        hooks = [(1, average), (1, note)]
        fit(gan, data, hooks)
        with tempfile.TemporaryDirectory() as folder:
            path = save_checkpoint(gan, data, Path(folder)/'half.pt')
            other = Double(Toy(cfg.res), cfg.batch, cfg.seed)
            gan = load_checkpoint(path, cfg, other, device)
        fit(gan, other, hooks)
        x = draw(sampler(gan), *fixed_noise(cfg, columns=1))
        data.close(), other.close()
    finally: torch.set_default_dtype(before)
    return dict(losses=losses, images=[x.mean().item(), x.std().item()])


def first_losses(precision, device='cpu'):
    "The losses of the first update in a number format of real runs."
    cfg = replace(config('laptop'), precision=precision)
    gan = make_gan(cfg, device)
    x, y = Toy(cfg.res).batch(range(cfg.batch))
    loss_d = d_step(gan, gan.place(from_uint8(x)), send(y, gan.device))['loss_d'].item()
    return [loss_d, g_step(gan, cfg.batch)['loss_g'].item()]


def main(names):
    os.environ['IN_TEST'] = '1'                          # no progress bars
    strange = [o for o in names if o not in ROWS]
    if strange: sys.exit(f'no trace {strange[0]!r}; there are: {", ".join(ROWS)}')
    if names and not FILE.exists(): sys.exit(f'{FILE.name} is not there yet: name no trace, and all are written')
    if names: out = json.loads(FILE.read_text(encoding='utf-8'))
    else: out = dict(numerics=NUMERICS, traces={}, first={p: first_losses(p) for p in ('fp32', 'bf16')})
    found = out['traces'] | {name: trace(name) for name in names or ROWS}
    out['traces'] = {name: found[name] for name in ROWS if name in found}
    FILE.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main(sys.argv[1:])
