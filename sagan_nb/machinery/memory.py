"Serves chapter 08: what a backward keeps in memory, from shapes alone."
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept_storages(
    *nets:nn.Module,          # networks whose weights do not count
):                            # a dict that fills with the storages, each once
    "Gather what calls within it keep for their backward, beside weights."
    weights, kept = {p.untyped_storage()._cdata for net in nets for p in net.parameters()}, {}
    def keep(t):
        at = t.untyped_storage()
        if at._cdata not in weights: kept[at._cdata] = at
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): yield kept


def kept_by(
    net:nn.Module,            # a network; on the device 'meta' it costs neither memory nor time
    *args,                    # its input
)->int:                       # bytes
    "Count what one call of a network keeps for its backward, beside weights."
    with kept_storages(net) as kept: net(*args)
    return sum(o.nbytes() for o in kept.values())
