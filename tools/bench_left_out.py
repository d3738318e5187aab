"""What was tried and left out, with its figure: `python -m tools.bench_left_out [--rounds 5] [--net 32] [--compile]`.

Writes results/speed/left_out.json, which chapter 14 reads. Compilation takes minutes.
"""
import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sagan_nb.losses import hinge_d, hinge_g
from sagan_nb.speed import FAST, NETS, Step, fast_bf16, here, in_turns, table
from sagan_nb.spectral_norm import normalised
from sagan_nb.train import frozen

ROOT = Path(__file__).resolve().parents[1]


class OnePass(Step):
    "D sees real and generated pictures in one batch. Under spectral norm u then moves once, not twice: not the same function."
    def losses(self):
        noise = lambda: torch.randn(len(self.y), 128)
        with self.precision():
            with torch.no_grad(): fake = self.G(noise(), self.y)
            real, fake = self.D(torch.cat([self.x, fake]), self.y.repeat(2)).float().chunk(2)
        loss_d = hinge_d(real, fake)
        self.opt_d.zero_grad(); loss_d.backward(); self.opt_d.step()
        with frozen(self.D), self.precision(): loss_g = hinge_g(self.D(self.G(noise(), self.y), self.y).float())
        self.opt_g.zero_grad(); loss_g.backward(); self.opt_g.step()
        return loss_d.detach(), loss_g.detach()


def power_steps(step):
    "All power steps of one update of D and one of G: what batching them could save at most."
    layers = {n: list(normalised(n)) for n in (step.G, step.D)}
    def run():
        for n, times in ((step.G, 2), (step.D, 3)):
            for _ in range(times):
                for _, sn, weight in layers[n]: sn.advance(weight)
    return run


ALONE = {'without own spectral norm': dict(sn='torch'), 'kernel for box': dict(fold='kernel'), 'without folds': dict(fold='none'),
         'without fused attention': dict(fused_attention=False), 'without fused Adam': dict(fused_adam=False),
         'D not frozen': dict(frozen=False), 'without channels last': dict(channels_last=False)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--net', default='32')
    p.add_argument('--compile', action='store_true')
    p.add_argument('--note', default='')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'speed'/'left_out.json')
    o = p.parse_args()
    net, out = NETS[o.net], dict(made_by='python -m tools.bench_left_out', note=o.note, **here(), net=asdict(NETS[o.net]))
    for precision in ('fp32', 'bf16') if fast_bf16() else ('fp32',):
        v = replace(FAST, precision=precision)
        steps = {'all': Step(net, v), "D's pictures in one pass": OnePass(net, v)}
        steps['power steps alone'] = power_steps(steps['all'])
        if o.compile:
            from torch._inductor import config
            config.force_disable_caches = True                          # as on a machine that never compiled this
            steps['compiled'] = Step(net, replace(v, compiled=True))
            start = time.perf_counter()
            steps['compiled'](), steps['compiled']()
            out[f'compile_seconds_{precision}'] = time.perf_counter() - start
        seconds = in_turns(steps, o.rounds)
        out[precision] = table(seconds, net.batch, base='all')
        del steps
        for names in (list(ALONE)[:4], list(ALONE)[4:]):
            steps = {'all': Step(net, v), **{n: Step(net, replace(v, **ALONE[n])) for n in names}}
            out[f'one_missing_{precision}'] = out.get(f'one_missing_{precision}', {}) | {
                n: r for n, r in table(in_turns(steps, o.rounds), net.batch, base='all').items() if n != 'all'}
        out[f'power_share_{precision}'] = statistics.median(a[1] / b[1] for a, b in zip(seconds['power steps alone'], seconds['all']))
        print(precision, json.dumps({k: round(r['ratio_of_cpu'], 3) for k, r in (out[precision] | out[f'one_missing_{precision}']).items()}), flush=True)
    o.out.parent.mkdir(parents=True, exist_ok=True)
    o.out.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
