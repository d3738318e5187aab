"""Time what was tried and left out, and `all` with one change taken out:
`python -m tools.bench.bench_left_out [--rounds 5] [--net 32] [--compile] [--brief] [--device cuda]`.

Writes results/speed/left_out.json, which chapter 14 reads, or `--out FILE`, and beside it a profile of what remains
(`.txt`). Compilation takes minutes. On a GPU also: CUDA graphs, and attention in paper form. A compilation that fails
is written down with its reason.
"""
import argparse
import gc
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from sagan_nb.blocks import ConditionalBatchNorm2d
from sagan_nb.self_attention import SelfAttention
from sagan_nb.spectral_norm import normalised
from sagan_nb.speed import NETS, VARIANTS, Step, in_turns, rounding, timing_table, usable_variants
from sagan_nb.machinery.bench import Draw
from sagan_nb.machinery.machine import machine_facts

ROOT = Path(__file__).resolve().parents[2]


class OnePass(Step):
    """D sees real and generated pictures in one batch. Under spectral norm u then moves once, not twice: not the same
    function."""
    def judged(self):
        with self.low():
            with torch.no_grad(): fake = self.G(self.noise(), self.y)
            return self.D(torch.cat([self.x, fake]), self.y.repeat(2)).float().chunk(2)


class WithoutReLU(Step):
    "No ReLU: what a better place for one could save at most. Not the same function."
    def losses(self):
        with mock.patch.object(F, 'relu', lambda x: x): return super().losses()


class Bare(WithoutReLU):
    "No batch norm, no gain, no ReLU: what one pass for all of them could save at most. Not the same function."
    def losses(self):
        with mock.patch.object(ConditionalBatchNorm2d, 'forward', lambda bn, x, y=None: x): return super().losses()


TRIALS = {"D's pictures in one pass": OnePass, 'norm, gain and ReLU for nothing': Bare, 'ReLU for nothing': WithoutReLU,
          'all, once more': Step}                                               # the last: what noise does


def casts(step):
    """The weights of one update of D and one of G as bfloat16, cast for every call, and their gradients cast back: what
    keeping a cast could save at most."""
    def weights(net): return [m.weight.detach() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    layers = [(weights(step.G), 2, 1), (weights(step.D), 3, 2)]     # calls forward; calls back that reach the weights
    def run():
        for own, there, back in layers:
            for w in own:
                for _ in range(there): low = w.to(torch.bfloat16)
                for _ in range(back): low.float()
    return run


def power_steps(step):
    "All power steps of one update of D and one of G: what batching them could save at most."
    layers = {n: list(normalised(n)) for n in (step.G, step.D)}
    def run():
        for n, times in ((step.G, 2), (step.D, 3)):
            for _ in range(times):
                for _, sn, weight in layers[n]: sn.advance(weight)
    return run


ALONE = {
    'without own spectral norm': dict(sn='torch'), 'kernel for box': dict(fold='kernel'),
    'without folds': dict(fold='none'), 'without fused attention': dict(fused_attention=False),
    'without fused Adam': dict(fused_adam=False), 'D not frozen': dict(frozen=False),
    'without channels last': dict(channels_last=False)}


def compiled(net, v, device, mode=None):
    "A compiled step after its first calls, and how long they took. `mode='reduce-overhead'` replays CUDA graphs."
    from torch._inductor import config
    config.force_disable_caches = True                         # as on a machine that never compiled this
    step = Step(net, v, device)
    step.G.compile(mode=mode), step.D.compile(mode=mode)
    def run():
        torch.compiler.cudagraph_mark_step_begin()             # G's pictures outlive D's first call
        step()
    start = time.perf_counter()
    run(), run()
    if step.device.type == 'cuda': torch.cuda.synchronize()
    took = time.perf_counter() - start
    run(), run()                                               # graphs are replayed: a fault shows here
    return run, took


def attention_in_paper_form(net, device):
    """On a GPU: seconds and peak of one layer, forward and backward, at 64x64 and the net's batch, or why there are
    none."""
    torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
    block = SelfAttention(128, 'paper').to(device)
    x = torch.randn(net.batch, 128, 64, 64, device=device, requires_grad=True)
    try: pairs = in_turns({'layer': lambda: block(x).sum().backward()}, 3)['layer']
    except torch.OutOfMemoryError as e: return dict(batch=net.batch, failed=str(e))
    seconds = statistics.median(s for s, _ in pairs)
    return dict(batch=net.batch, seconds=seconds, peak_bytes=torch.cuda.max_memory_allocated())


def activities(on_gpu):
    "What a profile looks at."
    kinds = torch.profiler.ProfilerActivity
    return [kinds.CPU, kinds.CUDA] if on_gpu else [kinds.CPU]


def profile(step):
    "Where the time of a step goes, as text."
    kind = step.device.type                                                     # cpu or cuda
    with torch.profiler.profile(activities=activities(kind == 'cuda')) as p: step(), step()
    return p.key_averages().table(sort_by=f'self_{kind}_time_total', row_limit=25, max_name_column_width=60)


def drawing_profile(name, device):
    "Where the time of sampling goes, as text."
    with rounding(VARIANTS[name].precision):
        draw = Draw(replace(NETS['128'], batch=16), VARIANTS[name], device)
        draw()
        return f'{name}, sampling 16 images of 128 px\n{profile(draw)}'


def forget(steps):
    "Give back what steps hold, compiled code and graphs included."
    steps.clear()
    torch._dynamo.reset(), gc.collect(), torch.cuda.empty_cache()


def measure(net, v, o):
    "One precision: (what the JSON holds of it, profile)."
    steps, out, p = {name: kind(net, v, o.device) for name, kind in dict(all=Step, **TRIALS).items()}, {}, v.precision
    parts = dict(power=power_steps(steps['all']))
    if p == 'bf16': parts['cast'] = casts(steps['all'])
    steps |= {f'{name} alone': run for name, run in parts.items()}
    modes = {'compiled': ('compile_seconds', None), 'CUDA graphs': ('graph_seconds', 'reduce-overhead')}
    if 'cuda' not in o.device: del modes['CUDA graphs']
    for name, (key, mode) in modes.items() if o.compile else ():
        try: steps[name], out[f'{key}_{p}'] = compiled(net, v, o.device, mode)
        except Exception as e: out[f'{key}_{p}'] = f'failed: {type(e).__name__}: {e}'
    seconds, where = in_turns(steps, o.rounds), profile(steps['all'])
    out[p], out[f'one_missing_{p}'] = timing_table(seconds, net.batch, base='all'), {}
    clock = 0 if 'cuda' in o.device else 1                     # a processor that waits for a GPU counts, too
    for name in parts:
        pairs = zip(seconds[f'{name} alone'], seconds['all'])
        out[f'{name}_share_{p}'] = statistics.median(part[clock] / whole[clock] for part, whole in pairs)
    forget(steps)
    for names in () if o.brief else (list(ALONE)[:4], list(ALONE)[4:]):
        steps = {'all': Step(net, v, o.device), **{n: Step(net, replace(v, **ALONE[n]), o.device) for n in names}}
        found = timing_table(in_turns(steps, o.rounds), net.batch, base='all')
        out[f'one_missing_{p}'] |= {n: r for n, r in found.items() if n != 'all'}
        forget(steps)
    rows = out[p] | out[f'one_missing_{p}']
    ratios = {name: [round(r[k], 3) for k in ('ratio', 'ratio_of_cpu')] for name, r in rows.items()}
    print(p, json.dumps(ratios), flush=True)
    return out, where


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--net', default='32', choices=NETS)
    p.add_argument('--compile', action='store_true')
    p.add_argument('--brief', action='store_true', help='without the rows that lack one change')
    p.add_argument('--device', default='cpu')
    p.add_argument('--note', default='')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'speed'/'left_out.json')
    o = p.parse_args()
    net = NETS[o.net]
    if torch.device(o.device).index is not None: torch.cuda.set_device(o.device)
    out = dict(made_by='python -m tools.bench.bench_left_out', note=o.note, **machine_facts(o.device), net=asdict(net))
    texts = []
    o.out.parent.mkdir(parents=True, exist_ok=True)
    for name in usable_variants(o.device, ['all, fp32', 'all, tf32', 'all, bf16']):
        v = VARIANTS[name]
        with rounding(v.precision): found, where = measure(net, v, o)
        out |= found
        texts.append(f'{name}, {o.net}\n{where}')
        if o.net == '128': texts.append(drawing_profile(name, o.device))
        o.out.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')
        o.out.with_suffix('.txt').write_text('\n'.join(texts), encoding='utf-8')
    if 'cuda' in o.device:
        out['attention_in_paper_form'] = attention_in_paper_form(net, o.device)
        o.out.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
