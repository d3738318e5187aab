"""Serves chapter 01: the same calls with less Python around them. In narrow networks that is what an update costs.

A compiler, a trace and `torch.func` get what they can look into.
"""
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

PROXY = torch._C._TorchDispatchModeKey.PROXY


def by_make_fx()->bool:
    "Tell whether `make_fx` writes this call down as a graph. A compiler, which uses it too, is asked for below."
    return not torch.compiler.is_compiling() and torch._C._get_dispatch_mode(PROXY) is not None


def traced()->bool:
    "Tell whether this call is written down as a graph: by a compiler, a trace or `make_fx`."
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or by_make_fx()


def transformed()->bool:
    "Tell whether `torch.func` or forward mode is around this call. A compiler looks after both by itself."
    if torch.compiler.is_compiling(): return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def forward_mode()->bool:
    "Tell whether derivatives come along with values, as in `torch.func.jvp`. Autograd functions give gradients alone."
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def as_usual()->bool:
    "Tell whether tensors are computed with at once: no graph, no `torch.func`, no forward mode around this call."
    return not (traced() or transformed())


def batched(
    t:Tensor,                     # any
)->bool:                          # True in `torch.func.vmap` and for gradients along many directions at once
    "Tell whether this is one of many that a loop of torch's goes through together."
    return torch._C._functorch.is_batchedtensor(t) or torch._C._functorch.is_legacy_batchedtensor(t)


def fill(
    to:Tensor,                    # a buffer
    value:Tensor,                 # what it becomes
):
    "Copy. `torch.func` takes `out`, but no `copy_`, for a tensor from outside; for a batch of them it takes `copy_`."
    if transformed() and not batched(to): torch.detach_copy(value, out=to)
    else: to.copy_(value)


class AutocastOff:
    "Context in which an autocast that is on is off. `torch.autocast` also looks after settings that stay as they are."
    def __init__(self,
        kind:str,                 # type of device
    ):
        self.kind = kind

    def __enter__(self): torch.set_autocast_enabled(self.kind, False)

    def __exit__(self, *_): torch.set_autocast_enabled(self.kind, True)


CASTING = {kind for kind in ('cpu', 'cuda', 'mps', 'xpu')     # asked once: the compiler of torch 2.6 cannot ask
           if torch.amp.is_autocast_available(kind)}


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
