"Serves chapter 13: the sparse attention of Your Local GAN (Daras et al., 2020), so that its weights can be opened."
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Refused
from ..spectral_norm import make_layer

LOCAL_HEADS = 8               # two for each of the four patterns


def diagonal_order(
    side:int,                 # cells in a row of a square grid
)->Tensor:                    # row-major numbers of the cells, int64, (side*side,)
    "List cells by row + column, and by row where that is equal."
    return torch.tensor(sorted(range(side*side), key=lambda c: (c // side + c % side, c // side)))


@lru_cache(maxsize=8)
def local_masks(
    side:int,                 # pixels per side of the map of queries, even
)->Tensor:                    # which keys a query may look at: bool, (8, side*side, side*side/4)
    """Make the four patterns, for eight heads. In the order of `diagonal_order`, keys come in stretches: a query looks
    to the end of its stretch or back to its beginning, and, in the other two patterns, at the first or last of each
    stretch."""
    n, stride = (side // 2)**2, side // 2
    i, j = torch.arange(n)[:, None], torch.arange(n)
    together, same = i // stride == j // stride, i == j
    first, last = j % stride == 0, j % stride == stride - 1
    onward, back = (together & (j >= i), first | same), (together & (j <= i), last | same)
    cells = diagonal_order(side // 2)
    masks = torch.zeros(LOCAL_HEADS, n, n, dtype=torch.bool)
    masks[:, cells[:, None], cells] = torch.stack([*onward*2, *back*2])
    return masks.repeat(1, 4, 1)                # row-major: each quarter of the queries has the pattern of the keys


class LocalAttention(nn.Module):
    "x + gamma * o, as the released form, but with eight heads of which each may look at some keys only."
    def __init__(self,
        channels:int,         # C; keys and queries have C/8 over all heads, values C/2
        sn=True,              # spectral norm, as of `make_layer`
    ):
        super().__init__()
        least = 8*LOCAL_HEADS
        if channels % least: raise Refused(f'local attention needs a multiple of {least} channels, got {channels}')
        narrow, value = channels // 8, channels // 2
        def conv(a, b): return make_layer(nn.Conv2d(a, b, 1, bias=False), sn)
        self.f, self.g = conv(channels, narrow), conv(channels, narrow)
        self.h, self.v = conv(channels, value), conv(value, channels)
        self.gamma = nn.Parameter(torch.zeros(()))

    def rows(self, x:Tensor)->tuple[Tensor,Tensor,Tensor]:   # three of (B, 8, locations, width)
        "Return queries, keys and values; the heads share the channels."
        def split(t): return t.unflatten(1, (LOCAL_HEADS, -1)).flatten(3).mT
        return split(self.g(x)), split(F.max_pool2d(self.f(x), 2)), split(F.max_pool2d(self.h(x), 2))

    def weights(self, q:Tensor, k:Tensor, side:int)->Tensor: # (B, 8, N, M)
        "Compute the softmax over the keys that a head may see."
        hidden = ~local_masks(side).to(q.device)
        return (q @ k.mT - 1000.*hidden).softmax(-1)

    def forward(self, x:Tensor)->Tensor:        # (B, C, H, H), the same
        "x + gamma * o; the channels of o take the heads in turn."
        q, k, value = self.rows(x)
        o = self.weights(q, k, x.shape[-1]) @ value
        return x + self.gamma*self.v(o.permute(0, 3, 1, 2).flatten(1, 2).unflatten(2, x.shape[2:]))
