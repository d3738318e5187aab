"Serves chapter 08: what a backward keeps in memory, from shapes alone."
import torch
from torch import nn


def kept_by(
    net:nn.Module,            # a network; on the device 'meta' it costs neither memory nor time
    *args,                    # its input
)->int:                       # bytes
    "Count what one call of a network keeps for its backward, beside weights."
    weights, kept = {p.untyped_storage()._cdata for p in net.parameters()}, {}
    def keep(t):
        at = t.untyped_storage()
        if at._cdata not in weights: kept[at._cdata] = at
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): net(*args)
    return sum(o.nbytes() for o in kept.values())
