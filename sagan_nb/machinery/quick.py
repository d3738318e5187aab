"""Serves chapter 01: the same calls with less Python around them. In narrow networks that is what an update costs.

A compiler, a trace and `torch.func` get what they can look into.
"""
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor


def as_usual()->bool:
    "Tell whether tensors are computed with at once: no compiler, no trace, no `torch.func` around this call."
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())


class AutocastOff:
    "Context in which an autocast that is on is off. `torch.autocast` also looks after settings that stay as they are."
    def __init__(self,
        kind:str,                 # type of device
    ):
        self.kind = kind

    def __enter__(self): torch.set_autocast_enabled(self.kind, False)

    def __exit__(self, *_): torch.set_autocast_enabled(self.kind, True)


CASTING = {kind for kind in ('cpu', 'cuda', 'mps', 'xpu') if torch.amp.is_autocast_available(kind)}      # asked once: the compiler of torch 2.6 cannot ask


def without_autocast(
    kind:str,                     # type of device
):                                # a context manager
    "Switch autocast off where it is on."
    if kind not in CASTING: return nullcontext()
    if not as_usual(): return torch.autocast(kind, enabled=False)
    return AutocastOff(kind) if torch.is_autocast_enabled(kind) else nullcontext()


@cache
def in_one_piece(
    function:type,                # an autograd function with `forward` and `setup_context`
)->type:                          # the same, for autograd alone
    "Join the two: where they are apart, torch reads the signature of `forward` again at every call."
    def forward(ctx, *args):
        out = function.forward(*args)
        function.setup_context(ctx, args, out)
        return out
    own = dict(forward=staticmethod(forward), backward=staticmethod(function.backward))
    return type(function.__name__, (torch.autograd.Function,), own)


def apply(
    function:type,                # an autograd function with `forward` and `setup_context`
    *args,                        # as of its `forward`
):                                # what its `forward` returns
    "Apply an autograd function."
    return (in_one_piece(function) if as_usual() else function).apply(*args)


def versions(
    *tensors:Tensor,              # that autograd knows
):                                # equal as long as they are the same tensors, and not written to
    "Say which tensors these are, and how often they were written to."
    return tuple((t.data_ptr(), t.dtype, None if t.is_inference() else t._version) for t in tensors)
