"Serves chapter 13: what somebody's generator or discriminator does, measured from outside."
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .port_attention import CONFORMS, DEVIATES, UNSURE, Finding, at_rest, state_of


def run(
    net:nn.Module,            # a network
    *inputs,                  # its inputs, the labels last
)->Tensor:                    # its first output
    "Call a network with labels, or without where it takes none."
    try: out = net(*inputs)
    except TypeError: out = net(*inputs[:-1])
    return out[0] if isinstance(out, (tuple, list)) else out


def overwritten(
    net:nn.Module,            # a network
    *inputs,                  # its inputs
)->list:                      # names of blocks, outermost first
    "Find blocks that change their own input while they run: an in-place activation before a shortcut."
    found, before, handles = [], {}, []
    for name, m in net.named_modules():
        if not name or not [*m.children()] or isinstance(m, (nn.Sequential, nn.ModuleList)): continue
        def keep(m, i, name=name):
            if i and isinstance(i[0], Tensor): before[name] = i[0].detach(), i[0].detach().clone()
        def look(m, i, o, name=name):
            if name in before and not torch.equal(*before[name]): found.append(name)
        handles += [m.register_forward_pre_hook(keep), m.register_forward_hook(look)]
    try:
        with torch.no_grad(): run(net, *inputs)
    finally:
        for h in handles: h.remove()
    return sorted(found)


def moved(
    net:nn.Module,            # a network
    *inputs,                  # its inputs
)->list:                      # names of what changed
    "List what a forward in evaluation mode changes."
    was = state_of(net.eval())
    with torch.no_grad(): run(net, *inputs)
    return [k for k, v in net.state_dict().items() if not torch.equal(v, was[k])]


def common(
    net:nn.Module,            # a network
    *inputs,                  # its inputs
)->list:                      # Findings
    "Check what holds for both networks."
    names, blocks = moved(net, *inputs), overwritten(net.train(), *inputs)
    net.eval()
    out = [at_rest(names)]
    if blocks:
        words = f'{blocks[0]} overwrites its input: its shortcut sees a rectified map'
        out.append(Finding('in-place ReLU', DEVIATES, words))
    else: out.append(Finding('in-place ReLU', CONFORMS, 'no block overwrites its input'))
    return out


VARIANCES = 'running_var', 'var', 'stored_var'        # torch, this package, BigGAN-PyTorch


def has_variance(
    m:nn.Module,              # any layer
)->bool:
    "Does it keep a moving variance, as batch norm does?"
    return any(isinstance(getattr(m, n, None), Tensor) for n in VARIANCES)


def batch_norms(
    net:nn.Module,            # a generator
)->Finding:
    "Read epsilons of batch norm where they can be read."
    norms = [m for m in net.modules() if has_variance(m) or isinstance(m, nn.modules.batchnorm._BatchNorm)]
    found = {m.eps for m in norms if isinstance(getattr(m, 'eps', None), float)}
    if not found: return Finding('batch norm', UNSURE, 'no epsilon can be read')
    far = [e for e in found if not .9e-5 < e < 1.1e-5]
    words = f'epsilon {", ".join(f"{e:g}" for e in sorted(found))}'
    if far: return Finding('batch norm', DEVIATES, f'{words}; the released code has 1e-5')
    return Finding('batch norm', CONFORMS, words)


def watch_variance(
    m:nn.Module,              # a batch norm with moving statistics
    told:dict,                # values of a channel -> rule, filled at each forward
)->list:                      # handles of the hooks
    "Compare how far each channel's moving variance goes with the batch's variance, biased and unbiased."
    name, before = next(n for n in VARIANCES if isinstance(getattr(m, n, None), Tensor)), []
    def keep(m, i): before.append(getattr(m, name).clone())
    def look(m, i, o):
        was, now, x, n = before.pop(), getattr(m, name), i[0].detach(), i[0][:, 0].numel()
        biased = x.var([d for d in range(x.ndim) if d != 1], correction=0)
        spread = [((now - was)/(v - was)).std() for v in (biased, biased*n/(n - 1))]
        told[n] = 'biased' if spread[0] < spread[1] else 'unbiased'
    return [m.register_forward_pre_hook(keep), m.register_forward_hook(look)]


def variance_rule(
    net:nn.Module,            # a generator
    *inputs,                  # its inputs
)->Finding:
    "Is the moving variance that of the batch, or its unbiased estimate? Told by the layer with the fewest values."
    told = {}
    norms = [m for m in net.modules() if has_variance(m)]
    handles = [h for m in norms for h in watch_variance(m, told)]
    try:
        with torch.no_grad(): run(net.train(), *inputs)
    finally:
        for h in handles: h.remove()
        net.eval()
    if not told: return Finding('moving variance', UNSURE, 'there is none')
    if told[min(told)] == 'biased': return Finding('moving variance', CONFORMS, 'that of the batch, biased')
    return Finding('moving variance', DEVIATES, 'unbiased, as torch has it; the released code takes that of the batch')


def check_generator(
    net:nn.Module,            # (z, y) -> pictures
    z_dim:int,                # Z
    n_classes:int,            # K
)->list:                      # Findings
    "Certify a generator."
    torch.manual_seed(0)
    z, y = torch.randn(4, z_dim), torch.arange(4) % max(n_classes, 1)
    with torch.no_grad(): x, other = run(net.eval(), z, y), run(net, z, (y + 1) % max(n_classes, 1))
    words = f'pictures {tuple(x.shape[1:])} in {x.min():.2f}..{x.max():.2f}'
    out = [Finding('range', CONFORMS if x.abs().max() <= 1 else DEVIATES, words)]
    if n_classes > 1:
        tables = [n for n, p in net.named_parameters() if p.ndim == 2 and n_classes in p.shape]
        verdict, said = DEVIATES, 'another class gives the same picture'
        if tables: verdict, said = UNSURE, f'{said}, as long as all rows are equal'
        if not torch.equal(x, other): verdict, said = CONFORMS, 'another class gives another picture'
        words = f'{len(tables)} with a row or column for each class; {said}'
        out.append(Finding('class tables', verdict, words))
    return [*out, batch_norms(net), variance_rule(net, z, y), *common(net, z, y)]


def pooling_rule(
    net:nn.Module,            # a discriminator
    *inputs,                  # its inputs
)->str:                       # rule, or None
    "How does the last map become a vector? Compared with sum and mean, rectified or not."
    maps, vector = [], []
    def keep(m, i, o):
        if isinstance(o, Tensor) and o.ndim == 4: maps.append(o.detach().clone())
        first = i[0] if i and isinstance(i[0], Tensor) else None
        if isinstance(m, nn.Linear) and first is not None and first.ndim == 2: vector.append(first.detach())
    handles = [m.register_forward_hook(keep) for m in net.modules()]
    try:
        with torch.no_grad(): run(net, *inputs)
    finally:
        for h in handles: h.remove()
    if not maps or not vector: return None
    x, v = maps[-1], vector[0]
    rules = {'sum': F.relu(x).sum((2, 3)), 'mean': F.relu(x).mean((2, 3)), 'sum, not rectified': x.sum((2, 3)),
             'mean, not rectified': x.mean((2, 3))}
    def fits(r): return r.shape == v.shape and torch.allclose(r, v, rtol=1e-4, atol=1e-5)
    return next((n for n, r in rules.items() if fits(r)), None)


def check_discriminator(
    net:nn.Module,            # (pictures, y) -> logits
    res:int,                  # pixels per side
    n_classes:int,            # K
)->list:                      # Findings
    "Certify a discriminator."
    torch.manual_seed(0)
    x, y = torch.rand(4, 3, res, res)*2 - 1, torch.arange(4) % max(n_classes, 1)
    rule = pooling_rule(net.eval(), x, y)
    known = {None: (UNSURE, 'cannot be told'), 'sum': (CONFORMS, 'sum over the last map')}
    other = DEVIATES, f'{rule}; the released code has the sum of the rectified map'
    out = [Finding('pooling', *known.get(rule, other))]
    if n_classes > 1:
        with torch.no_grad(): used = not torch.equal(run(net, x, y), run(net, x, (y + 1) % n_classes))
        words = 'another class gives another logit' if used else 'the class does not matter'
        out.append(Finding('class tables', CONFORMS if used else DEVIATES, words))
    return [*out, *common(net, x, y)]
