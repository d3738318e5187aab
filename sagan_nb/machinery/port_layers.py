"Serves chapter 13: what somebody's spectral norm and losses do, measured from outside."
import copy
import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .port_attention import CONFORMS, DEVIATES, UNSURE, Finding, state_of


def matrix_of(
    layer:nn.Module,          # linear, 24 inputs, however it is wrapped
)->Tensor:                    # (outputs, inputs)
    "Read the weight that a layer computes with off its outputs."
    return (layer(torch.eye(24)) - layer(torch.zeros(24, 24))).t()


def raw_weight(
    layer:nn.Module,          # wrapped
)->tuple:                     # name and parameter with two axes
    "Find the weight that is trained."
    return next((n, p) for n, p in layer.named_parameters() if p.ndim == 2 and p.requires_grad)


def norm_after(
    layer:nn.Module,          # wrapped, linear, 24 inputs
    forwards:int,             # in training mode
)->float:
    "Measure the largest singular value after some training forwards; 1 is what spectral norm promises."
    layer = copy.deepcopy(layer).train()
    with torch.no_grad():
        for _ in range(forwards): layer(torch.randn(2, 24))
        return torch.linalg.svdvals(matrix_of(layer.eval()))[0].item()


def gradient_rule(
    layer:nn.Module,          # wrapped, settled
)->str:                       # 'sigma moves', 'sigma constant' or 'other'
    "Compare the gradient of the raw weight with those of W/sigma(W) and of W/constant."
    layer, G = copy.deepcopy(layer).train(), torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _ in range(200): layer(torch.zeros(1, 24))
    layer.eval()
    name, W = raw_weight(layer)
    layer.zero_grad()
    (matrix_of(layer)*G).sum().backward()
    got, W = W.grad, W.detach()
    u, s, v = torch.linalg.svd(W)
    full = (G - (G*W).sum()/s[0]*torch.outer(u[:, 0], v[0])) / s[0]
    rules = {'sigma moves': full, 'sigma constant': G / s[0]}
    if got is None: return 'other'
    off = {k: ((got - g).norm() / g.norm()).item() for k, g in rules.items()}
    best = min(off, key=off.get)
    return best if off[best] < .02 else 'other'


def epsilon_of(
    wrap,                     # layer -> normalised layer
)->float:                     # None: below 1e-20
    "Find where a small weight is no longer normalised: near the epsilon of the power step."
    torch.manual_seed(0)
    base = nn.Linear(24, 16, bias=False).weight.detach().clone()
    for power in range(2, 21):
        plain = nn.Linear(24, 16, bias=False)
        with torch.no_grad(): plain.weight.copy_(base * 10.**-power / torch.linalg.svdvals(base)[0])
        if not .5 < norm_after(wrap(plain), 30) < 2: return 10.**(1 - power)
    return None


GRADIENT = {'sigma moves': (CONFORMS, 'through W / sigma(W)'),
            'sigma constant': (DEVIATES, 'the second term is missing: sigma counts as a constant'),
            'other': (DEVIATES, 'neither that of W / sigma(W) nor that of W / constant')}


def check_norm(
    wrap,                     # layer -> normalised layer, such as torch.nn.utils.parametrizations.spectral_norm
)->list:                      # Findings
    "Certify a spectral norm on a small linear layer."
    torch.manual_seed(0)
    layer = wrap(nn.Linear(24, 16))
    settled, first = norm_after(layer, 200), norm_after(layer, 0)
    ok = abs(settled - 1) < .02
    words = f'{settled:.3f} after 200 training forwards' + ('' if ok else ', should be 1')
    out = [Finding('norm', CONFORMS if ok else DEVIATES, words)]
    late = first > 3 or first < 1/3
    words = f'norm {first:.3g} before any training forward'
    out.append(Finding('first evaluation', DEVIATES if late else CONFORMS, words))
    gradient = Finding('gradient', *GRADIENT[gradient_rule(layer)])
    return [*out, moves(layer), reading(layer), gradient, epsilon_finding(epsilon_of(wrap))]


def changed(
    layer:nn.Module,          # any
    was:dict,                 # from `state_of`
)->bool:
    "Did anything change?"
    return any(not torch.equal(v, was[k]) for k, v in layer.state_dict().items())


def moves(
    layer:nn.Module,          # wrapped
)->Finding:
    "Does u move in training, and only there?"
    layer, x, found = copy.deepcopy(layer), torch.randn(2, 24), {}
    for mode in (True, False):
        was = state_of(layer.train(mode))
        with torch.no_grad(): layer(x)
        found[mode] = changed(layer, was)
    if found[False]:
        return Finding('u', DEVIATES, 'moves in evaluation, too (as in the released generator): '
                                      'the same input gives other outputs')
    if not found[True]: return Finding('u', DEVIATES, 'never moves: sigma is that of the first weights')
    return Finding('u', CONFORMS, 'moves in training alone')


def reading(
    layer:nn.Module,          # wrapped
)->Finding:
    "Does looking at the weight in training mode change anything?"
    layer = copy.deepcopy(layer).train()
    was = state_of(layer)
    inner = next((m for m in layer.modules() if hasattr(m, 'weight')), None)
    if inner is None: return Finding('reading', UNSURE, 'there is no attribute `weight` to read')
    with torch.no_grad(): inner.weight
    if changed(layer, was): return Finding('reading', DEVIATES, 'reading the weight in training mode moves u')
    return Finding('reading', CONFORMS, 'reading the weight changes nothing')


def epsilon_finding(
    eps:float,                # from `epsilon_of`
)->Finding:
    "Judge an epsilon."
    if eps is None or eps < 1e-9: return Finding('epsilon', CONFORMS, f'about {eps or 1e-20:.0e} or less')
    words = f'about {eps:.0e}; the released code has 1e-12: weights near it are not normalised'
    return Finding('epsilon', DEVIATES, words)


# losses

D_LOSSES = {
    'the hinge loss': lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(),
    'the hinge loss with its sign flipped, or real and fake exchanged':
        lambda r, f: F.relu(1 + r).mean() + F.relu(1 - f).mean(),
    'the hinge loss, halved': lambda r, f: (F.relu(1 - r).mean() + F.relu(1 + f).mean())/2,
    'the hinge loss, summed over the batch': lambda r, f: F.relu(1 - r).sum() + F.relu(1 + f).sum(),
    'a Wasserstein loss': lambda r, f: f.mean() - r.mean(),
    'the logistic loss': lambda r, f: F.softplus(-r).mean() + F.softplus(f).mean()}
G_LOSSES = {
    'minus the mean logit': lambda f: -f.mean(),
    'the mean logit: G is rewarded for fakes that look fake': lambda f: f.mean(),
    'a hinge of its own': lambda f: F.relu(1 - f).mean(), 'the logistic loss': lambda f: F.softplus(-f).mean(),
    'minus the sum of logits': lambda f: -f.sum()}


def names_fake_first(
    loss,                     # any function
)->bool:
    "Does it take the logits of fakes before those of real images, by the names of its arguments?"
    try: names = [o.lower() for o in inspect.signature(loss).parameters]
    except (TypeError, ValueError): return False
    return len(names) > 1 and 'fake' in names[0] and 'real' in names[1]


def check_loss(
    loss,                     # (real logits, fake logits) -> scalar or pair, or (fake logits) -> scalar
    inputs:int,               # 2: of D; 1: of G
)->list:                      # one Finding
    "Certify a loss by its values."
    known, right = (D_LOSSES, 'the hinge loss') if inputs == 2 else (G_LOSSES, 'minus the mean logit')
    draws = [3*torch.randn(inputs, 7, generator=torch.Generator().manual_seed(s)) for s in range(4)]
    order = -1 if names_fake_first(loss) else 1                  # as BigGAN-PyTorch has it
    def value(*logits):
        out = loss(*logits[::order])
        return sum(out) if isinstance(out, (tuple, list)) else out
    got = [torch.as_tensor(value(*d)).detach().float() for d in draws]
    def close(g, v): return g.ndim == 0 and torch.isclose(g, v, rtol=1e-4)
    names = [n for n, f in known.items() if all(close(g, f(*d)) for g, d in zip(got, draws))]
    if right in names: return [Finding('loss', CONFORMS, right)]
    if names: return [Finding('loss', DEVIATES, f'{names[0]}; the paper has {right}')]
    return [Finding('loss', UNSURE, f'none that I know; the paper has {right}')]
