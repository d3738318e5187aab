"""Serves chapter 03: passes over maps, of few channels on a CPU with channels last, and in bfloat16 on a GPU.

On a CPU torch's loops run over the channels of one position: four or sixteen numbers, and then the next loop begins.
"""
import torch.nn.functional as F
from torch import Tensor

from .quick import transformed, without_autocast

NARROW = 32                   # channels; measured: from 64 on torch's own passes are as fast


def is_narrow(
    x:Tensor,                 # map, (B, C, H, W)
)->bool:                      # on a CPU, channels last, few of them
    "Tell whether loops over channels would be short."
    return x.device.type == 'cpu' and 1 < x.shape[1] <= NARROW and x.stride(1) == 1


def box_means(
    x:Tensor,                 # map, (B, C, H, W)
    zeros:int,                # width of a border of zeros: 0 or 1
)->Tensor:                    # (B, C, H - 1, W - 1), or H + 1 and W + 1 with zeros
    "Compute 2x2 means in steps of 1, as sums of whole rows."
    if not is_narrow(x) or transformed(): return F.avg_pool2d(x, 2, stride=1, padding=zeros)
    if zeros: x = F.pad(x, (1, 1, 1, 1))
    x = x[:, :, :-1] + x[:, :, 1:]
    return (x[..., :-1] + x[..., 1:]).mul_(.25)


def along_rows(
    t:Tensor,                 # a number for each channel, (B or 1, C, 1, 1)
    x:Tensor,                 # the map that they belong to, (B, C, H, W)
)->Tensor:                    # (B or 1, C, 1, W) for a narrow map, else t
    "Write the numbers out along a row, so that one loop covers it."
    if not is_narrow(x): return t
    return t.permute(0, 2, 3, 1).expand(-1, -1, x.shape[3], -1).contiguous().permute(0, 3, 1, 2)


def upsampled(
    x:Tensor,                     # map, (B, C, H, W)
)->Tensor:                        # (B, C, 2H, 2W)
    "Double a map by nearest neighbour, in its own number format: CUDA's autocast would make it float32."
    with without_autocast(x.device.type): return F.interpolate(x, scale_factor=2, mode='nearest')
