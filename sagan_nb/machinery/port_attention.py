"Serves chapter 13: which formula somebody's attention block computes, found by trying them on what its layers give."
from dataclasses import dataclass
from itertools import permutations, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFORMS, DEVIATES, UNSURE = 'as published', 'DEVIATES', 'not told'      # published: in the paper, or in its code


@dataclass(frozen=True)
class Finding:
    "One property of a port."
    what: str                 # for instance 'softmax'
    verdict: str              # CONFORMS, DEVIATES or UNSURE
    words: str                # a sentence


def tensor_like(
    out,                      # of a forward: a tensor, or a tuple with a map beside it
    x:Tensor,                 # its input
)->Tensor:                    # None where nothing has the input's shape
    "Pick the output that has the shape of the input."
    parts = out if isinstance(out, (tuple, list)) else [out]
    return next((t for t in parts if isinstance(t, Tensor) and t.shape == x.shape), None)


@dataclass
class Seen:
    "What the 1x1 layers of a block took and gave in one forward."
    x: Tensor                 # input of the block, (B, C, H, W)
    out: Tensor               # its output
    first: dict               # layers that read x: name -> output (B, c, H, W)
    last: dict                # layers that read something else: name -> (input, output)


def watch_layers(
    block:nn.Module,          # any module
    x:Tensor,                 # (B, C, H, W)
)->Seen:
    "Run a block once and keep what each of its innermost layers with a weight took and gave."
    calls, handles = {}, []
    for name, m in block.named_modules():
        if m is block or not any(True for _ in m.parameters()): continue
        def keep(m, i, o, name=name):
            maps = i and isinstance(i[0], Tensor) and isinstance(o, Tensor) and o.ndim in (3, 4)
            if maps and i[0].ndim == o.ndim:
                calls[name] = (i[0].detach().clone(), o.detach().clone())
        handles.append(m.register_forward_hook(keep))
    try:
        with torch.no_grad(): out = tensor_like(block(x.clone()), x)
    finally:
        for h in handles: h.remove()
    inner = {n: v for n, v in calls.items() if not any(o != n and o.startswith(f'{n}.') for o in calls)}
    def reads_x(i): return i.flatten(2).shape == x.flatten(2).shape and torch.allclose(i.flatten(2), x.flatten(2))
    def square(o):
        rows = o.ndim == 3 and o.shape[2] == x[0, 0].numel()
        return o.unflatten(2, x.shape[2:]) if rows else o
    first = {n: square(o) for n, (i, o) in inner.items() if reads_x(i)}
    return Seen(x, out, first, {n: v for n, v in inner.items() if n not in first})


POOLS = dict(none=lambda t: t, max=lambda t: F.max_pool2d(t, 2), avg=lambda t: F.avg_pool2d(t, 2))
SUMS = {'x + gamma o': lambda x, o, g: x + g*o, 'o + gamma x': lambda x, o, g: o + g*x, 'x + o': lambda x, o, g: x + o,
        'gamma o': lambda x, o, g: g*o, 'o': lambda x, o, g: o,
        'gamma o + (1 - gamma) x': lambda x, o, g: g*o + (1 - g)*x}


@dataclass(frozen=True)
class Formula:
    "One way to attend."
    axis: str                 # 'keys': the weights of each output sum to 1; 'queries': those of each key do
    scale: str                # scores are divided by the root of 'd', the query's width, or 'D', the value's; or 'none'
    pool: str                 # 'none', 'max' or 'avg', of key and value


def averages(
    q:Tensor,                 # (B, d, H, W)
    k:Tensor,                 # (B, d, H, W)
    v:Tensor,                 # (B, D, H, W)
    f:Formula,                # how
)->Tensor:                    # (B, D, N)
    "Attend by a formula."
    Q, K, V = (t.flatten(2) for t in (q, POOLS[f.pool](k), POOLS[f.pool](v)))
    s = Q.mT @ K
    s = s / dict(none=1, d=Q.shape[1], D=V.shape[1])[f.scale]**.5
    return V @ s.softmax(-1 if f.axis == 'keys' else -2).mT


FORMULAS = [Formula(*o) for o in product(('keys', 'queries'), ('none', 'd', 'D'), ('none', 'max', 'avg'))]


def near(
    a:Tensor,                 # any shape
    b:Tensor,                 # another
)->bool:
    "Are two tensors equal to rounding?"
    return a.shape == b.shape and (a - b).abs().max() <= 1e-4 * b.abs().max().clamp_min(1e-3)


def explain(
    seen:Seen,                # of a block
    gamma:float,              # its gain
)->tuple:                     # (Formula, sum, names of query, key, value), or None
    "Find the formula that gives the block's output from what its layers gave."
    x, out = seen.x.flatten(2), seen.out.flatten(2)
    final = next(iter(seen.last.values())) if len(seen.last) == 1 else None
    sized = [(a, b, c) for a, b, c in permutations(seen.first, 3) if seen.first[a].shape[1] == seen.first[b].shape[1]]
    for names in sized:
        for f in FORMULAS:
            o = averages(*(seen.first[n] for n in names), f)
            if final and not near(o, final[0].flatten(2)): continue
            o = final[1].flatten(2) if final else o
            if o.shape != out.shape: continue
            for how, total in SUMS.items():
                if near(total(x, o, gamma), out): return f, how, names
    return None


def state_of(
    layer:nn.Module,          # any
)->dict:                      # name -> copy
    "Copy all that a layer holds."
    return {k: v.clone() for k, v in layer.state_dict().items()}


def gains_of(
    block:nn.Module,          # any module
)->dict:                      # name -> parameter with one element
    "Find what may be gamma."
    return {n: p for n, p in block.named_parameters() if p.numel() == 1}


SOFTMAX = dict(keys=(CONFORMS, 'over the keys: the weights of each output location sum to 1'),
               queries=(DEVIATES, 'over the queries (the wrong axis): the weights of each output do not sum to 1'))
SCALE = dict(none=(CONFORMS, 'none'),
             d=(DEVIATES, 'scores are divided by sqrt(d), d the width of the query: 1/sqrt(d) is not in the paper'),
             D=(DEVIATES, 'scores are divided by sqrt(d), d the width of the value: 1/sqrt(d) is not in the paper'))
POOLING = dict(none=(CONFORMS, 'none, as in the paper; the released code takes the maximum of 2x2'),
               max=(CONFORMS, 'maximum of 2x2 on keys and values, as in the released code; the paper names none'),
               avg=(DEVIATES, 'mean of 2x2 on keys and values; the released code takes the maximum'))


def widths_inside(
    seen:Seen,                # of a block
    names:tuple,              # of query, key and value
)->Finding:
    "Tell the form by the channels inside."
    C, d, D = seen.x.shape[1], seen.first[names[0]].shape[1], seen.first[names[2]].shape[1]
    known = {(C//8, C//8, True): 'the paper', (C//8, C//2, True): 'the released code',
             (C//8, C, False): 'the first arXiv version'}
    whose = known.get((d, D, bool(seen.last)))
    inside = f'query and key {d}, value {D} of {C} channels, {"then" if seen.last else "without"} a last 1x1 layer'
    return Finding('widths', CONFORMS if whose else DEVIATES, f'{inside}: {whose or "nobody of the authors"}')


def mixing(
    how:str,                  # a key of SUMS
    start:float,              # gamma of a new block; None without one
)->Finding:
    "Judge how the result joins the input."
    missing = f'missing: the block is {how}; the paper learns a gain that starts at 0'
    if start is None: return Finding('gamma', DEVIATES, missing)
    if how != 'x + gamma o': return Finding('gamma', DEVIATES, f'the block is {how} in place of x + gamma o')
    if start: return Finding('gamma', DEVIATES, f'starts at {start:g} in place of 0')
    return Finding('gamma', CONFORMS, 'x + gamma o, gamma learned from 0')


def check_attention(
    block:nn.Module,          # (B, C, H, W) -> the same, perhaps with a map beside it
    channels:int,             # C
)->list:                      # Findings
    "Certify an attention block. Its gains are set to 0.7 while it runs, and put back."
    block, gains = block.eval(), gains_of(block)
    starts = {n: p.item() for n, p in gains.items()}
    x = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in gains.values(): p.fill_(.7)
    try:
        was, kept = state_of(block), x.clone()
        with torch.no_grad(): block(kept)
        out = side_effects(block, x, kept, was)
        seen = watch_layers(block, x)
        if seen.out is None: return [*out, Finding('shape', DEVIATES, 'no output has the shape of the input')]
        found = explain(seen, .7)
        out += [oblong(block, channels)]
    finally:
        with torch.no_grad():
            for n, p in gains.items(): p.fill_(starts[n])
    if not found:
        layers = len(seen.first) + len(seen.last)
        words = f'none that I know gives its output from its {layers} layers'
        if layers not in (3, 4): words += '; I know three or four 1x1 layers'
        return [Finding('formula', UNSURE, words), *out]
    f, how, names = found
    told = Finding('softmax', *SOFTMAX[f.axis]), Finding('scale', *SCALE[f.scale]), Finding('pooling', *POOLING[f.pool])
    mixed = mixing(how, next(iter(starts.values()), None))
    return [*told, mixed, widths_inside(seen, names), normed(block, [*seen.first, *seen.last]), *out]


VECTORS = 'weight_u', 'weight_bar', '._u', '.u', '.u0'         # what spectral norm keeps, in torch, here, in other code


def at_rest(
    moved:list,               # names of what a forward in evaluation mode changed
)->Finding:
    "Judge what moves where nothing should."
    if not moved: return Finding('evaluation', CONFORMS, 'a forward changes nothing')
    vectors = [n for n in moved if n.endswith(('u', 'u0', 'v'))]
    words = f'a forward in evaluation mode changes {(vectors or moved)[0]}'
    if len(moved) > 1: words += f' and {len(moved) - 1} more'
    if vectors:
        words += (': u moves (as in the released generator), '
                  'so an image depends on how often the network was called')
    return Finding('evaluation', DEVIATES, words)


def side_effects(
    block:nn.Module,          # in evaluation mode
    x:Tensor,                 # what it was given
    kept:Tensor,              # the same tensor after the forward
    was:dict,                 # its state before
)->list:                      # Findings
    "Tell what a forward in evaluation changed."
    out = [at_rest([k for k, v in block.state_dict().items() if not torch.equal(v, was[k])])]
    if not torch.equal(x, kept):
        out.append(Finding('in place', DEVIATES, 'the block overwrites its input, which a shortcut may still need'))
    return out


def oblong(
    block:nn.Module,          # in evaluation mode
    channels:int,             # C
)->Finding:
    "Try a map that is not square."
    x = torch.randn(1, channels, 4, 8)
    try:
        with torch.no_grad(): fits = tensor_like(block(x), x) is not None
    except Exception: fits = False
    if fits: return Finding('not square', CONFORMS, 'works')
    return Finding('not square', DEVIATES, 'a map of 4x8 fails')


def normed(
    block:nn.Module,          # any module
    layers:list,              # names of its 1x1 layers
)->Finding:
    "Is there spectral norm on the 1x1 layers?"
    kept = [*dict(block.named_parameters()), *dict(block.named_buffers())]
    def own(k, o):
        wrapped = '.' in o and k.rpartition('.')[0] == o.rpartition('.')[0]
        return wrapped or k.startswith(f'{o}.')
    there = [any(own(k, o) and k.endswith(VECTORS) for k in kept) for o in layers]
    if all(there): return Finding('spectral norm', CONFORMS, 'on its layers, as in the released code')
    words = f'on {sum(there)} of its {len(there)} layers' if any(there) else 'none on its layers'
    return Finding('spectral norm', DEVIATES, f'{words}; the released code has it on all')
