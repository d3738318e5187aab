"""Serves chapter 02: attention on a CPU in tiles that stay in the processor's cache, and its gradient.

The chapter has the formulas. In here, queries, keys and values are (B, width, locations): N queries, M keys. v' is a
value with a one appended.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 2**17                                  # weights in a tile: 512 KiB in float32


def by_columns(*rows:Tensor)->list[Tensor]:   # (B, locations, width) each -> (B, width, locations)
    "One column per location, in float32 at least."
    return [t.mT.to(torch.promote_types(t.dtype, torch.float32)).contiguous() for t in rows]


def with_ones(t:Tensor)->Tensor:              # (B, width, locations) -> (B, width + 1, locations)
    "Append a row of ones."
    return F.pad(t, (0, 0, 0, 1), value=1.)


def products(a:Tensor, b:Tensor)->Tensor:     # (B, x, locations), (B, y, locations) -> (B, x*y, locations)
    "Multiply every row of a by every row of b."
    return (a[:, :, None]*b[:, None]).flatten(1, 2)


def tile_sizes(n:int)->tuple[int,int]:        # images, and columns of each
    "How many columns of n weights make a tile: at least 16, however long."
    width = max(16, min(64, TILE // n))
    return max(1, TILE // (n*width)), width


def weighted_sums(
    a:Tensor,                 # (B, R, d)
    b:Tensor,                 # (B, d, S)
    w:Tensor,                 # (B, widths, R)
)->Tensor:                    # sum over r of w[:, r] * 2^(a[r] b[:, s]), (B, widths, S)
    "Add up weights that are made a tile at a time and never stored."
    images, width = tile_sizes(a.shape[1])
    parts = zip(*(t.split(images) for t in (a, b, w)))
    return torch.cat([torch.cat([torch.bmm(w, torch.bmm(a, s).exp2_()) for s in b.split(width, 2)], 2)
                      for a, b, w in parts])


def offsets(
    k:Tensor,                 # keys with mean 0, (B, d, M)
    asked:Tensor,             # queries, (B, d, N)
)->tuple[Tensor,bool]:        # (B, 1, N); are all scores small?
    "What to subtract from each query's scores so that 2^score neither overflows nor vanishes: often 0."
    most = (k.square().sum(1).amax(1)[:, None, None] * asked.square().sum(1, keepdim=True)).sqrt()
    if (most < 130).all(): return (most - 30).clamp_min(0), True
    width = max(1, TILE // max(1, len(k)*k.shape[2]))
    return torch.cat([(k.mT @ part).amax(1, keepdim=True) for part in asked.split(width, 2)], 2), False


def quotient(sums:Tensor)->Tensor:            # (B, D + 1, d + 1 or 1, N) -> (B, D, N)
    "Divide the sums of values by the sum of ones."
    return sums[:, :-1, -1] / sums[:, -1:, -1]


def tiled_attention(
    q:Tensor,                 # queries, (B, N, d)
    k:Tensor,                 # keys, (B, M, d)
    value:Tensor,             # values, (B, M, D)
    moments:bool=False,       # where scores are small, add up products of value and key as well, for the gradient
)->tuple[Tensor,Tensor,Tensor]:       # o (B, N, D), sums (B, D + 1, d + 1 or 1, N), offsets (B, 1, N)
    "Compute softmax(q k^T) value without storing beta, and what its gradient needs."
    q, k, v = by_columns(q, k, value)
    k, asked = k - k.mean(2, keepdim=True), q/math.log(2)                                   # 2^(asked k) = e^(q k)
    (shift, small), held = offsets(k, asked), with_ones(v)
    if moments and small: held = products(held, with_ones(k))
    sums = weighted_sums(with_ones(k).mT.contiguous(), torch.cat([asked, -shift], 1), held)
    sums = sums.unflatten(1, (v.shape[1] + 1, -1))
    return quotient(sums).mT.to(value.dtype), sums, shift


def gradients_by_moments(
    q:Tensor, k:Tensor, v:Tensor,
    g:Tensor,                 # g', the arriving gradient with a row for v's one, divided by the sum of weights
    asked:Tensor,             # rows whose products with k and a one are the scores, (B, N, d + 1)
    sums:Tensor,              # of products of v' and k', (B, D + 1, d + 1, N)
)->tuple[Tensor,Tensor,Tensor]:       # gradients for q, k and v
    "Compute gradients as sums over queries of products of g and q."
    dq = (g[:, :, None]*sums[:, :, :-1]).sum(1)
    sums = weighted_sums(asked, with_ones(k), products(g, with_ones(q))).unflatten(1, (v.shape[1] + 1, -1))
    return dq, (with_ones(v)[:, :, None]*sums[:, :, :-1]).sum(1), sums[:, :-1, -1]


def gradients_by_tiles(q:Tensor, k:Tensor, v:Tensor, g:Tensor, asked:Tensor)->list[Tensor]:
    "Compute the same, making the gradient of the scores a tile at a time."
    images, width = tile_sizes(q.shape[2])
    parts, found = (q, with_ones(k), with_ones(v), g, g.mT.contiguous(), asked), []
    for q, k, v, g, rows, asked in zip(*(t.split(images) for t in parts)):
        dq, dk, dv = 0, [], []
        for keys, values in zip(k.split(width, 2), v.split(width, 2)):
            p = torch.bmm(asked, keys).exp2_()                          # (images, N, width)
            ds = torch.bmm(rows, values).mul_(p)
            dq = dq + torch.bmm(keys[:, :-1], ds.mT)
            dk.append(torch.bmm(q, ds))
            dv.append(torch.bmm(g[:, :-1], p))
        found.append((dq, torch.cat(dk, 2), torch.cat(dv, 2)))
    return [torch.cat(t) for t in zip(*found)]


def tiled_gradients(
    q:Tensor, k:Tensor, value:Tensor,         # as `tiled_attention` had them
    sums:Tensor, shift:Tensor,                # what it returned
    g:Tensor,                                 # arriving gradient, (B, N, D)
)->tuple[Tensor,Tensor,Tensor]:               # gradients shaped like q, k and value
    "Compute the gradients of `tiled_attention`."
    types = [t.dtype for t in (q, k, value)]
    q, k, v, g = by_columns(q, k, value, g)
    k = k - k.mean(2, keepdim=True)
    g = torch.cat([g, -(g*quotient(sums)).sum(1, keepdim=True)], 1) / sums[:, -1:, -1]
    asked = torch.cat([q/math.log(2), -shift], 1).mT.contiguous()
    if sums.shape[2] > 1: found = gradients_by_moments(q, k, v, g, asked, sums)
    else: found = gradients_by_tiles(q, k, v, g, asked)
    return tuple(t.mT.to(kind) for t, kind in zip(found, types))
