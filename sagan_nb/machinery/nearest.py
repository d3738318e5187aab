"""Serves chapter 10: which of many rows are near each other, by products in float32, at twice the speed of float64.

What the rounding of float32 could decide is asked again in float64, so every answer is float64's.
"""
import math

import torch
from torch import Tensor

from .machine import exact_products
from .terminal import progress

BEYOND = 8                     # candidates for the neighbours of a row, beyond those that are wanted


class Cloud:
    "Rows, centred, in float32 if their lengths fit it, and their squared lengths."
    def __init__(self,
        x:Tensor,                 # features, (n, d)
        centre:Tensor,            # a point among them, float64, (d)
        chunk:int,                # rows at a time
    ):
        self.x, self.centre, parts = x, centre, x.split(chunk)
        self.size = torch.cat([(p.double() - centre).square().sum(1) for p in parts])
        fits = exact_products() and 1e-20 < self.size.max() < 1e30
        self.low = torch.cat([(p.double() - centre).to(torch.float32 if fits else torch.float64) for p in parts])
        self.error = (x.shape[1] + 16)*torch.finfo(self.low.dtype).eps/2  # of `rough`, in units of both squared lengths


def rough(
    a:Cloud,                  # rows
    b:Cloud,                  # others, with the same centre
    i:slice,                  # which of a
    j:slice,                  # which of b
)->Tensor:                    # squared distances with some error, (len(i), len(j))
    "Compute a block of squared distances by one matrix product."
    y = b.low[j]
    return torch.addmm(b.size[j].to(y.dtype), a.low[i].to(y.dtype), y.T, alpha=-2).add_(a.size[i, None].to(y.dtype))


def by_product(
    a:Cloud,                  # rows
    b:Cloud,                  # others, with the same centre
    i,                        # which of a: a slice, or indices
    j:slice,                  # which of b
)->Tensor:                    # squared distances, float64
    "Compute a block of squared distances in float64."
    x, y = a.x[i].double() - a.centre, b.x[j].double() - a.centre
    return torch.addmm(b.size[j], x, y.T, alpha=-2).add_(a.size[i, None]).clamp_min_(0)


def of_pairs(
    x:Tensor,                 # rows, (n, d)
    y:Tensor,                 # others, (m, d)
    i:Tensor,                 # a row for each pair, (p)
    j:Tensor,                 # its other row, (p)
)->Tensor:                    # squared distances, float64, (p)
    "Compute single squared distances from the differences."
    few = max(1, 2**22 // x.shape[1])
    return torch.cat([(x[p].double() - y[q].double()).square().sum(1) for p, q in zip(i.split(few), j.split(few))])


def offer(
    best:Tensor,              # smallest distances of some rows so far, (r, k); changed in place, as `who` is
    who:Tensor,               # to which rows, (r, k)
    block:Tensor,             # distances to more rows, (r, m)
    first:int,                # number of the first of those
):
    "Keep the nearest."
    found, at = block.topk(min(best.shape[1], block.shape[1]), 1, largest=False, sorted=False)
    found, at = torch.cat([best, found.to(best.dtype)], 1), torch.cat([who, at + first], 1)
    kept, place = found.topk(best.shape[1], 1, largest=False, sorted=False)
    best.copy_(kept)
    who.copy_(at.gather(1, place))


def candidates(
    a:Cloud,                  # rows
    keep:int,                 # how many for each row
    chunk:int,                # rows at a time
)->tuple[Tensor,Tensor]:      # their rough distances, and which rows they are, (n, keep) each
    "Find the rows that seem nearest to each row, itself left out. Every block serves the rows on both of its sides."
    n = len(a.x)
    best = torch.full((n, keep), math.inf, dtype=a.low.dtype, device=a.low.device)
    who = torch.zeros(n, keep, dtype=torch.int64, device=a.low.device)
    for s in progress(range(0, n, chunk), 'looking for neighbours', least=5):
        for t in range(s, n, chunk):
            i, j = slice(s, s + chunk), slice(t, t + chunk)
            block = rough(a, a, i, j)
            if s == t: block.fill_diagonal_(math.inf)
            else: offer(best[j], who[j], block.T.contiguous(), s)
            offer(best[i], who[i], block, t)
    return best, who


def nearest(
    a:Cloud,                  # rows
    most:int,                 # neighbours of each
    chunk:int,                # rows at a time
)->Tensor:                    # squared distances of each row to its neighbours, nearest first, float64, (n, most)
    "Compute how far the nearest rows are, a row itself not counted."
    n, keep = len(a.x), min(len(a.x) - 1, most + BEYOND)
    best, who = candidates(a, keep, chunk)
    rows = torch.arange(n, device=who.device).repeat_interleave(keep)
    found = of_pairs(a.x, a.x, rows, who.flatten()).view(n, keep).sort(1).values[:, :most]
    beyond = best.amax(1).double() - a.error*(a.size + a.size.max())             # nobody who is no candidate is nearer
    unsure = (beyond <= found[:, -1]).nonzero()[:, 0] if keep < n - 1 else who.new_empty(0)
    for part in unsure.split(max(1, chunk // 8)):
        far = by_product(a, a, part, slice(None))
        far[torch.arange(len(part), device=part.device), part] = math.inf
        found[part] = far.topk(most, 1, largest=False).values.sort(1).values
    return found


class Reach:
    "One block of distances between two clouds, compared with limits."
    def __init__(self,
        a:Cloud,                  # rows
        b:Cloud,                  # others, with the same centre
        i:slice,                  # which of a
        j:slice,                  # which of b
    ):
        self.all, self.block = (a, b, i, j), rough(a, b, i, j)
        self.error = max(a.error, b.error)*(a.size[i].max() + b.size[j].max()).item()

    def within(self,
        limits:Tensor,            # squared, float64, (len(i), 1) or (1, len(j))
    )->Tensor:                    # bool, (len(i), len(j))
        "Tell which distances are at most the limit."
        def low(t): return t.to(self.block.dtype)
        sure, possible = self.block <= low(limits - self.error), self.block <= low(limits + self.error)
        i, j = (sure != possible).nonzero(as_tuple=True)
        if len(i): sure[i, j] = self.exact(i, j) <= limits.expand(sure.shape)[i, j]
        return sure

    def exact(self,
        i:Tensor,                 # rows of the block, (p)
        j:Tensor,                 # its columns, (p)
    )->Tensor:                    # squared distances, float64, (p)
        "Compute some distances of the block in float64; where they are many, all."
        a, b, rows, columns = self.all
        if len(i) > self.block.numel() // 100: return by_product(*self.all)[i, j]
        return of_pairs(a.x[rows], b.x[columns], i, j)
