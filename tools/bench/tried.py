"""Time two whole steps and a convolution that were built and left out:
`python -m tools.bench.tried [--rounds 7] [--out FILE]`.

Writes results/speed/tried.json, which chapter 14 reads: for each of two sizes and two number formats, processor seconds
of `all` divided by those of the trial, in turns, memory kept on both sides; and, in float32 and forward alone, those of
torch's convolution divided by those of Winograd's products. For Linux with glibc. Raises Refused elsewhere.
"""
import argparse
import contextlib
import json
import os
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from sagan_nb.blocks import conv_by_matmul, conv_then_pool, tiny
from sagan_nb.core import Refused
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.machine import keep_memory, machine_facts
from sagan_nb.machinery.narrow import along_rows
from sagan_nb.speed import NETS, VARIANTS, Step, in_turns, rounding, timing_table, usable_variants

from .started import Side, updates_in_turns

ROOT = Path(__file__).resolve().parents[2]


class TwoSigmas(torch.autograd.Function):
    "u^T W v for two pairs of constant u and v."
    @staticmethod
    def forward(ctx, W, u, v, u2, v2):
        ctx.save_for_backward(u, v, u2, v2)
        return torch.stack([u @ (W @ v), u2 @ (W @ v2)])

    @staticmethod
    def backward(ctx, grad):
        u, v, u2, v2 = ctx.saved_tensors
        return torch.outer(u*grad[0], v).addr_(u2*grad[1], v2), None, None, None, None


class DividedHalves(torch.autograd.Function):
    "A map, its first half divided by one sigma and its second by another, and a bias added."
    @staticmethod
    def forward(ctx, y, sigmas, bias):
        ctx.save_for_backward(y, sigmas)
        row, out = along_rows(bias.to(y.dtype)[None, :, None, None], y), torch.empty_like(y)
        for o, half, s in zip(out.chunk(2), y.chunk(2), sigmas.tolist()): torch.add(row, half, alpha=1/s, out=o)
        return out

    @staticmethod
    def backward(ctx, grad):
        y, sigmas = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_y, of_sigmas = torch.empty_like(grad), []
        for o, half, g, s in zip(of_y.chunk(2), y.chunk(2), grad.chunk(2), sigmas.tolist()):
            torch.mul(g, 1/s, out=o)
            of_sigmas.append(-(g*half).sum(dtype=torch.float32) / s**2)
        return of_y, torch.stack(of_sigmas), grad.sum((0, 2, 3)).to(sigmas.dtype)


def conv_of_halves(conv, x:Tensor)->Tensor:
    """A normalised convolution of two batches in one, each divided by the sigma of its own power step. Its pre-hook
    has made the first step."""
    sn, w = conv.parametrizations.weight[0], conv.parametrizations.weight.original
    W = w.permute(sn.order(w)).flatten(1)
    with torch.autocast('cpu', enabled=False):
        first = sn.vectors(W.detach(), w)
        sn.advance(w)
        sigmas = TwoSigmas.apply(W, *first, *sn.vectors(W.detach(), w))
    if tiny(x, w, conv.resample): y = conv_by_matmul(x, w, None, conv.resample)
    elif conv.resample == 'down': y = conv_then_pool(x, w, None, conv.fold)
    else: y = F.conv2d(x, w, padding=conv.padding)
    return DividedHalves.apply(y, sigmas, conv.bias)


def by_halves(whole, x:Tensor)->Tensor:
    "What a function of a batch makes of each half, joined."
    return torch.cat([whole(half) for half in x.chunk(2)])


class Together(Step):
    """D sees real and generated pictures in one batch, each with the sigma of its own power step: the same function as
    two passes."""
    def judged(self):
        D = self.D
        with self.low(), contextlib.ExitStack() as patches:
            with torch.no_grad(): x = torch.cat([self.x, self.G(self.noise(), self.y)])
            convs = [c for b in D.blocks for c in (b.conv1, b.conv2, b.short) if hasattr(c, 'parametrizations')]
            own = {c: partial(conv_of_halves, c) for c in convs}
            own |= {b: partial(by_halves, b.forward) for b in D.extra.values()}
            for module, forward in own.items(): patches.enter_context(mock.patch.object(module, 'forward', forward))
            return [(D.linear(h)[:, 0] + (D.embed(self.y)*h).sum(1)).float() for h in D.features(x).chunk(2)]


def by_winograd(x:Tensor, w:Tensor)->Tensor:
    """A 3x3 convolution that keeps the map's size, an even one, as 16 matrix products on tiles of 2x2: 4
    multiplications for 9 (Lavin and Gray, 2016)."""
    def tiles(x, dim):
        a, b, c, d = x.unfold(dim, 4, 2).unbind(-1)
        return torch.stack([a - c, b + c, c - b, b - d])
    def kernel(w, dim):
        a, b, c = w.unbind(dim)
        return torch.stack([a, (a + b + c)/2, (a - b + c)/2, c])
    def outputs(m, dim):
        a, b, c, d = m.unbind(0)
        return torch.stack([a + b + c, b - c - d], dim)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))                # (B, H + 2, W + 2, C)
    v = tiles(tiles(x, 1), 3)                                           # (4, 4, B, H/2, W/2, C), across first
    u = kernel(kernel(w, 2), -1)                                        # (4, 4, C', C)
    m = torch.bmm(v.flatten(0, 1).flatten(1, 3), u.flatten(0, 1).transpose(1, 2)).view(*v.shape[:5], len(w))
    out = outputs(outputs(m, 4), 2)                                     # (B, H/2, 2, W/2, 2, C')
    return out.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


SHAPES = [*((32, 128, size) for size in (32, 16, 8)),                     # batch, channels, map: of one of the two nets
          *((8, 64*128//size, size) for size in (128, 64, 32, 16, 8))]    # and of the other


def winograd(rounds:int, shapes)->list:
    """For each shape: torch's convolution against Winograd's products, and the largest difference as a share of the
    largest output."""
    rows = []
    for batch, c, size in shapes:
        x, w = (torch.randn(shape).contiguous(memory_format=torch.channels_last)
                for shape in ((batch, c, size, size), (c, c, 3, 3)))
        ways = dict(plain=partial(F.conv2d, x, w, padding=1), winograd=partial(by_winograd, x, w))
        with torch.no_grad():
            plain = ways['plain']()
            apart = (ways['winograd']() - plain).abs().max() / plain.abs().max()
            found = timing_table(in_turns(ways, rounds), batch)
        rows.append(dict(found['winograd'], batch=batch, channels=c, size=size, apart=apart.item()))
    return rows


def huge_mib(process)->int:
    "MiB of a process's memory that lie in pages of 2 MiB."
    lines = Path(f'/proc/{process.pid}/smaps_rollup').read_text().splitlines()
    return next(int(o.split()[1]) for o in lines if o.startswith('AnonHugePages')) // 1024


def huge_pages(net:str, name:str, rounds:int)->dict:
    "Two processes, one of which asks for pages of 2 MiB for large tensors; how many each got is written down."
    sides = {'all': Side(name, net, None, True)}
    with mock.patch.dict(os.environ, THP_MEM_ALLOC_ENABLE='1'):                       # torch reads it at its start
        sides['huge pages'] = Side(name, net, None, True)
    for side in sides.values():
        for _ in range(2): side()
    found = timing_table(updates_in_turns(sides, rounds), NETS[net].batch, 'all')['huge pages']
    found |= dict(huge_mib=huge_mib(sides['huge pages'].process), base_huge_mib=huge_mib(sides['all'].process))
    for side in sides.values():
        side.pipe.close()                                     # which ends its process
        side.process.join()
    return found


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--nets', nargs='*', default=['32', '128'], choices=NETS)
    p.add_argument('--shapes', type=int, default=len(SHAPES), help='for so many of the shapes')
    p.add_argument('--note', default='')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'speed'/'tried.json')
    o = p.parse_args(argv)
    facts = dict(made_by='python -m tools.bench.tried', note=o.note, **machine_facts())
    if not keep_memory(): raise Refused('glibc alone can be told to keep memory')
    nets, kinds = {net: {} for net in o.nets}, dict(all=Step, together=Together)
    for net, rows in nets.items():
        for name in usable_variants('cpu', ['all, fp32', 'all, bf16']):
            with rounding(VARIANTS[name].precision):
                steps = {what: kind(NETS[net], VARIANTS[name]) for what, kind in kinds.items()}
                found = timing_table(in_turns(steps, o.rounds, warm=2), NETS[net].batch, 'all')['together']
            steps.clear()
            rows[name] = {"D's two passes together": found, 'huge pages': huge_pages(net, name, o.rounds)}
            print(net, name, {k: round(r['ratio_of_cpu'], 3) for k, r in rows[name].items()}, flush=True)
    facts |= dict(nets=nets, winograd=winograd(o.rounds, SHAPES[:o.shapes]))
    with atomic_write(o.out) as part: part.write_text(json.dumps(facts, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
