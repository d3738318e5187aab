"Serves chapter 14: the bench: variants in turns, their memory, another implementation beside them, the table."
import gc
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..core import Refused
from ..self_attention import SelfAttention
from ..speed import (ENDS, FLOOR, NETS, PLAIN, VARIANTS, Net, Step, Variant, bench_networks, conv_rate, in_turns,
                     rounding, step_operations, timing_table, usable_variants)
from .machine import machine_facts
from .memory import kept_storages
from .publish import divided_weights
from .terminal import text_table


def callable_from(
    path:str,                     # a Python file with `make_step(res, batch, n_classes)`, on a device of its choice
):                                # that function; it returns a callable that makes one update of D and one of G
    "Read what `--against` times; FOLDER of FILE:FOLDER is handed on as `folder`. Raises Refused for a file without it."
    file, folder = (path, '') if Path(path).is_file() else re.fullmatch(r'(?:(.+\.py):)?(.*)', str(path)).groups('')
    if not Path(file).is_file(): raise Refused(f'{path}: there is no such file')
    if folder and not Path(folder).is_dir(): raise Refused(f'{folder}: there is no such folder')
    spec = importlib.util.spec_from_file_location('against', file)
    module = sys.modules['against'] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(file).parent))                   # as where it is run: it finds its neighbours
    try: spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        raise Refused(f'{path}: cannot be run as Python ({type(e).__name__}: {e})') from e
    if not callable(getattr(module, 'make_step', None)):
        raise Refused(f'{path}: needs a function make_step(res, batch, n_classes) that returns a callable')
    return partial(module.make_step, folder=folder) if folder else module.make_step


def try_step(
    make_step,                    # from `callable_from`
    net:Net,                      # sizes
):                                # its step, called once
    "Make one step of another implementation, before anything is timed. Raises Refused if it fails."
    try:
        step = make_step(net.res, net.batch, net.n_classes)
        step()
    except (Exception, SystemExit) as e: raise Refused(f'--against: its step fails ({type(e).__name__}: {e})') from e
    return step


def peak_bytes(
    net:Net,                      # sizes
    v:Variant,                    # how
    device='cpu',                 # where
)->int:                           # bytes: of the process on a CPU (torch included), of tensors on a GPU
    "Measure the peak memory of two steps, in a process for them alone."
    code = ('import sys, json, resource, torch\nfrom sagan_nb.speed import Net, Step, Variant\n'
            'net, v, device, threads = json.loads(sys.argv[1])\ntorch.set_num_threads(threads)\n'
            'step = Step(Net(**net), Variant(**v), device)\nstep(); step()\n'
            'try: cpu = int([o for o in open("/proc/self/status") if "VmHWM" in o][0].split()[1])*1024\n'
            'except OSError:\n'
            '    unit = 1 if sys.platform == "darwin" else 1024\n'
            '    cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*unit\n'
            'print(torch.cuda.max_memory_allocated(device) if "cuda" in device else cpu)')
    args = json.dumps([asdict(net), asdict(v), str(device), torch.get_num_threads()])
    gc.collect()
    torch.cuda.empty_cache()                      # on a GPU the other process needs the room
    out = subprocess.run([sys.executable, '-c', code, args], capture_output=True, text=True, check=True)
    return int(out.stdout)


def kept_bytes(
    net:Net,                      # sizes
    v:Variant,                    # how, in fp32; spectral norm is left out
)->dict:                          # 'D', 'G': bytes
    "Count what the step of each network keeps for its backward pass, beside weights: from shapes, without memory."
    step, kept = Step(net, replace(v, sn='none', fused_adam=False), 'meta'), {}
    with kept_storages(step.G, step.D) as maps:
        def end(name):
            kept[name] = sum(o.nbytes() for o in maps.values())
            maps.clear()
        step.opt_d.step, step.opt_g.step = (lambda: end('D')), (lambda: end('G'))
        step.losses()
    return kept


def peak_of(
    work:Callable,                # without arguments
)->int:                           # bytes at the peak, beyond what was there before
    "Measure the peak memory of some work on the CPU, from the profiler's record of every allocation."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof: work()
    now = peak = 0
    for e in prof.profiler.kineto_results.events():
        if e.name() != '[memory]': continue
        now += e.nbytes()
        peak = max(peak, now)
    return peak


def attention_bytes(
    form:str='paper',             # attention form
    fused:bool=True,              # the kernel that never stores the map, or the explicit softmax
    side:int=64,                  # pixels per side of the map
    channels:int=128,             # C
    batch:int=8,                  # pictures
)->int:                           # bytes at the peak of one forward and backward, beyond input and weights
    "Measure the peak memory of one attention layer on the CPU."
    block, x = SelfAttention(channels, form, fast=fused), torch.randn(batch, channels, side, side, requires_grad=True)
    return peak_of(lambda: block(x).sum().backward())


class Draw:
    "Sampling: G alone, in evaluation mode. Call it."
    def __init__(self,
        net:Net,                      # sizes; its batch is drawn at once
        v:Variant,                    # how; own spectral norm divides once, before sampling (chapter 13)
        device='cpu',                 # where to
    ):
        G, self.v, self.device = bench_networks(net, v, device)[0].eval(), v, torch.device(device)
        if v.sn == 'own':
            layout = torch.channels_last if v.channels_last else torch.contiguous_format
            G = divided_weights(G).to(device, memory_format=layout)
        self.G, self.y = G, (torch.arange(net.batch) % net.n_classes).to(device)

    def __call__(self)->Tensor:       # pictures, (B, 3, res, res)
        "Draw one batch."
        low, z = self.v.precision == 'bf16', torch.randn(len(self.y), 128).to(self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=low)
        with torch.inference_mode(), rounding(self.v.precision), autocast: return self.G(z, self.y)


def bench(
    name:str,                     # one of NETS
    rounds:int=5,                 # timed calls of each variant
    names=None,                   # which of VARIANTS; None: those that are `usable_variants`
    against=None,                 # `make_step` of another implementation, see `callable_from`
    device='cpu',                 # where
    together:int=4,               # variants that stand ready at a time, beside plain: each holds two networks
)->dict:                          # rates, operations, and a row for each variant
    "Time the variants in turns with plain. Raises Refused for an unknown name."
    if name not in NETS: raise Refused(f'there is no net {name!r}; choose from {", ".join(NETS)}')
    net, rates, rows = NETS[name], {}, {}
    rest, floor = [n for n in names or usable_variants(device) if n != 'plain'], step_operations(net, FLOOR) * net.batch
    other = {} if against is None else {'against': try_step(against, net)}
    rest += [*other]
    for group in [rest[i:i + together] for i in range(0, len(rest), together)] or [[]]:
        steps = {n: other.get(n) or Step(net, VARIANTS[n], device) for n in ('plain', *group)}
        rows |= timing_table(in_turns(steps, rounds), net.batch) | {k: v for k, v in rows.items() if k == 'plain'}
        for p in {VARIANTS[n].precision for n in steps if n in VARIANTS}:
            rates[p] = max(rates.get(p, 0.), conv_rate(p, device))
        steps.clear()
    for n, r in rows.items():
        if n not in VARIANTS: continue
        at_best = floor / rates[VARIANTS[n].precision]
        r['share'] = at_best / r['seconds']
        if torch.device(device).type == 'cpu': r['share_of_cpu'] = at_best / r['cpu_seconds'] * torch.get_num_threads()
    return dict(asdict(net), rounds=rounds, operations_per_s=rates, floor_operations=floor,
                plain_operations=step_operations(net, PLAIN) * net.batch, rows=rows)


def bench_drawing(
    rounds:int,                   # timed calls of each
    device,                       # where
)->dict:                          # a row for plain, for all in fp32 and in bf16
    "Time sampling at 128 pixels in turns."
    net = replace(NETS['128'], batch=16)
    draws = {n: Draw(net, VARIANTS[n], device) for n in usable_variants(device, ENDS)}
    return dict(asdict(net), rounds=rounds, rows=timing_table(in_turns(draws, rounds), net.batch))


def bench_all(
    nets=('32', '128'),           # of NETS
    rounds:int=5,                 # timed calls of each variant
    names=None,                   # which of VARIANTS; None: those that are `usable_variants`
    against=None,                 # `make_step` of another implementation
    device='cpu',                 # where
    drawing:bool=True,            # time sampling, too
    note:str='',                  # what else should be known, for instance who shared the machine
    save=lambda out: None,        # is called with what is there after each net
)->dict:                          # as it is written to JSON
    "Run the whole bench and print each net when it is done."
    out = dict(made_by='sagan_bench', note=note, **machine_facts(device), nets={})
    for name in nets:
        result = out['nets'][name] = bench(name, rounds, names, against, device)
        for n, r in result['rows'].items():
            if n not in ENDS: continue
            try: r['peak_bytes'] = peak_bytes(NETS[name], VARIANTS[n], device)
            except subprocess.CalledProcessError as e: r['no_peak'] = (e.stderr.strip().splitlines() or [str(e)])[-1]
        print(f'\n{result["res"]} px, batch {result["batch"]}\n{show_table(result["rows"])}', flush=True)
        save(out)
    if drawing:
        out['drawing'] = bench_drawing(rounds, device)
        print(f'\nsampling, 128 px, batch {out["drawing"]["batch"]}\n{show_table(out["drawing"]["rows"])}')
        save(out)
    return out


def show_table(
    rows:dict,                    # from `bench` or `bench_drawing`
)->str:                           # to print
    "Show the table as text."
    head = ['variant', 'seconds', 'processor', 'pictures/s', 'against plain', 'processor', 'share of floor', 'peak']
    lines = []
    for n, r in rows.items():
        share = ', '.join(f'{r[k]:.0%}' for k in ('share', 'share_of_cpu') if k in r)
        peak = f'{r["peak_bytes"]/2**30:.2f} GiB' if 'peak_bytes' in r else r.get('no_peak', '')
        lines.append([n, f'{r["seconds"]:.3f}', f'{r["cpu_seconds"]:.3f}', f'{r["pictures_per_s"]:.1f}',
                      f'{r["ratio"]:.2f}x', f'{r["ratio_of_cpu"]:.2f}x', share, peak])
    return text_table(head, lines)
