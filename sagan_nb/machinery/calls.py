"Serves chapter 03: what a block and a network may be called with."
import torch
from torch import Tensor

from ..core import Refused
from .quick import as_usual


def check_lengths(
    *parts,                   # tensors, B rows each
):
    "Raise Refused for inputs that are not equally long: taken a piece at a time, rows would be lost."
    if len({len(t) for t in parts}) > 1:
        raise Refused(f'inputs of different lengths: {", ".join(str(len(t)) for t in parts)} rows')


def check_label_count(
    y: Tensor,                # labels
    images: Tensor,           # what they belong to
):
    "Raise Refused unless there is one label for each image."
    if torch.jit.is_tracing() or torch.compiler.is_compiling(): return         # sizes are not there yet
    if y.shape != (len(images),):
        raise Refused(f'labels have the shape ({len(images)},), one for each image; got {tuple(y.shape)}')


def check_classes(
    y,                        # what was given as labels
    images: Tensor,           # the batch that they belong to, or its noise
    n_classes: int,           # K, 1 or more
):
    "Raise Refused for labels that are no classes. Values are read on the CPU alone: a GPU would have to wait."
    if torch.jit.is_tracing() or torch.compiler.is_compiling(): return         # neither size nor values are there yet
    n = len(images)
    want = f'labels are one whole number for each of {n} images, each in 0..{n_classes - 1}'
    if y is None: raise Refused(f'labels are needed: {want}')
    if not isinstance(y, Tensor): raise Refused(f'{want}; got {type(y).__name__}. torch.tensor(...) makes them')
    if y.dtype not in (torch.int64, torch.int32): raise Refused(f'{want}; got {y.dtype}. y.long() makes them int64')
    if y.shape != (n,): raise Refused(f'{want}; got the shape {tuple(y.shape)}')
    if type(y) is not Tensor or y.device.type != 'cpu' or not n or not as_usual(): return    # fake, on a GPU, or empty
    if not 0 <= y.min() <= y.max() < n_classes:
        raise Refused(f'{want}; got {y[(y < 0) | (y >= n_classes)][0].item()}')
