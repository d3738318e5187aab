"""Serves chapter 09: how noise, labels and images reach a GPU while it computes.

Images are made ahead by a thread. Noise is drawn when it is asked for: what was launched before still runs then."""
import torch
from torch import Tensor

from ..config import Config
from ..data import Stream
from ..distributed import Ranks
from .pictures import take_batch


def pinned(
    t:Tensor,                 # on the CPU
)->Tensor:                    # the same values
    "Copy to memory that a GPU reads by itself, where there is one."
    return t.pin_memory() if torch.cuda.is_available() else t


def send(
    t:Tensor,                 # on the CPU; elsewhere it is only moved
    device:torch.device,      # where to
)->Tensor:                    # the same values
    "Copy to a device. Neither a CUDA device nor this process waits for it: the copy leaves from pinned memory."
    if t.device.type != 'cpu' or device.type in ('cpu', 'mps'): return t.to(device)
    return pinned(t).to(device, non_blocking=True)


class Bytes(Stream):
    "The same batches with images as bytes, uint8, for a GPU that makes numbers of them itself (`GAN.place`)."
    def make(self, t:int)->tuple:          # x uint8 (b, 3, res, res), y int64 (b,); pinned where there is a GPU
        "Make our slice of batch t: a pure function of t."
        index, mirrored = self.order.take(t)
        x, y = take_batch(self.source, index)
        if self.flip: x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        return pinned(x), pinned(y)


def stream_of(
    cfg:Config,               # settings of the run
    source,                   # the images
    ranks:Ranks,              # which share of them is ours
    device,                   # where they go: a CPU gets numbers, made ahead by the stream's thread
)->Stream:
    "Make the batches of a run."
    kind = Bytes if torch.device(device).type == 'cuda' else Stream
    return kind(source, cfg.batch, cfg.seed, ranks.rank, ranks.world, flip=cfg.flip)
