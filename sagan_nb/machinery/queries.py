"Serves chapter 11: which pixels to ask: by hand, on a grid, or for contrast."
import math

import torch
import torch.nn.functional as F

from ..core import Refused


def grid_queries(
    res:int,                  # pixels per side
    n:int=3,                  # how many
)->list:                      # (row, column) of pixels
    "Points spread evenly over rows, the fuller rows first: 3 makes a triangle, 4 a square, 5 three above two."
    per_row = math.ceil(math.sqrt(n))
    counts = [min(per_row, n - a) for a in range(0, n, per_row)]
    def middle(i, of): return int((i + .5)*res/of)
    return [(middle(r, len(counts)), middle(c, m)) for r, m in enumerate(counts) for c in range(m)]


def contrast_queries(
    o,                        # `LayerMaps` of the layer
    i:int,                    # picture
    n:int=3,                  # how many, at most the locations of the map
    steps:int=10,             # rounds of k-means
)->list:                      # (row, column) of pixels, the most concentrated first
    "Locations that stand for different patterns of attention, and lie apart in the picture."
    beta = o.beta(i).float()
    rows, chosen = beta.sqrt(), [torch.special.entr(beta).sum(1).argmin().item()]
    at = torch.cartesian_prod(*map(torch.arange, o.shape))
    gap = max(1, min(o.shape) // (2*math.ceil(math.sqrt(n))))            # squares of this half side: n always fit
    def close_to(some): return ((at[:, None] - at[some]).abs().amax(-1) < gap).any(1)
    while len(chosen) < n:
        overlap = (rows @ rows[chosen].T).amax(1)
        chosen.append(overlap.masked_fill(close_to(chosen), math.inf).argmin().item())
    centres = rows[chosen]
    for _ in range(steps):
        kind = (rows @ centres.T).argmax(1)
        means = [rows[kind == c].mean(0) if (kind == c).any() else centres[c] for c in range(n)]
        centres = F.normalize(torch.stack(means), dim=1)
    kind, typical = (rows @ centres.T).argmax(1), {}
    for c in kind.bincount(minlength=n).argsort(stable=True).tolist():   # small kinds first: they have less choice
        fit = rows @ centres[c] - (kind != c).float()                    # of another kind only where it must be
        typical[c] = fit.masked_fill(close_to([*typical.values()]), -math.inf).argmax().item()
    return [o.pixel(typical[c]) for c in range(n)]


def find_queries(
    o,                        # `LayerMaps` of the layer
    i:int,                    # picture
    queries='auto',           # 'auto' (for contrast), 'grid', or a list of (row, column) of pixels
    n:int=3,                  # how many, for 'auto' and 'grid'
)->list:                      # (row, column) of pixels
    "Queries as asked for. Raises Refused for one outside the picture, and for more than there are locations."
    if not isinstance(queries, str):
        for query in queries: o.location(query)
        return [tuple(query) for query in queries]
    if queries not in ('auto', 'grid'): raise Refused(f'queries are auto, grid or ROW,COLUMN; got {queries!r}')
    if not 1 <= n <= len(o.q[0]): raise Refused(f'the number of queries must lie in 1..{len(o.q[0])}, got {n}')
    return grid_queries(o.res, n) if queries == 'grid' else contrast_queries(o, i, n)
