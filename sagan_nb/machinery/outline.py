"Serves chapter 00: what an object says of itself, at `help(...)` and at `print(...)`."
import inspect

from fastcore.docments import docments
from torch import nn


def documented(
    cls: type,                # its `__init__` has a comment beside each parameter
) -> type:                    # the same
    "Append the parameters of a class and their meaning to its docstring, so that `help` shows them."
    found = docments(cls.__init__, full=True)
    lines = ['', '', 'Parameters:']
    for name, o in found.items():
        if name in ('self', 'return'): continue
        default = '' if o.default is inspect.Parameter.empty else f' = {o.default!r}'
        lines.append(f'    {name}{default}: {o.docment or ""}')
    cls.__doc__ = (cls.__doc__ or '') + '\n'.join(lines)          # python -OO leaves it out
    cls.__init__.__doc__ = f'Make a {cls.__name__}.'              # else torch\'s, which says nothing of it
    return cls


def leaves(
    net: nn.Module,           # any network
) -> dict:                    # name -> module, in order; lists and dicts of modules are opened
    "List the parts of a network as its own code names them."
    out = {}
    for name, child in net.named_children():
        if not isinstance(child, nn.ModuleDict | nn.ModuleList): out[name] = child
        else: out |= {f'{name}.{key}': part for key, part in child.named_children()}
    return out


def widths(
    part: nn.Module,          # one part of a network
) -> str:                     # 'in -> out'; '' where it has neither a convolution nor a linear layer nor a table
    "Say how many channels go in and come out."
    kinds = nn.Conv2d, nn.Linear, nn.Embedding
    ends = ('in_channels', 'out_channels'), ('in_features', 'out_features'), ('num_embeddings', 'embedding_dim')
    found = [tuple(getattr(m, name) for name in names) for m in part.modules()
             for kind, names in zip(kinds, ends) if isinstance(m, kind)]
    return f'{found[0][0]} -> {found[-1][1]}' if found else ''


def outline(
    net: nn.Module,           # any network
    head: str,                # its first line
) -> str:                     # a line for each part
    "Describe a network on one screen: its parts, their widths and weights, and which have spectral norm."
    normed = {id(m) for m in net.modules() if hasattr(m, 'parametrizations')}
    rows = []
    for name, part in leaves(net).items():
        kind = type(part).__name__.removeprefix('Parametrized')
        word = 'spectral norm' if any(id(m) in normed for m in part.modules()) else ''
        rows.append((name, kind, widths(part), word, f'{sum(p.numel() for p in part.parameters()):,}'))
    wide = [max(map(len, column)) for column in zip(*rows)]
    pad = [str.ljust, str.ljust, str.rjust, str.ljust, str.rjust]
    lines = ['  '.join(f(text, w) for f, text, w in zip(pad, row, wide)) for row in rows]
    total = sum(p.numel() for p in net.parameters())
    return '\n'.join([f'{head}, {total:,} weights', *(f'  {line}' for line in lines)])
