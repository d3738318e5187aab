"What torch's tools make of a network - `torch.func`, forward mode, graphs, checkpoints - works with ours as with torch's own layers."
import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from sagan_nb.core import close
from sagan_nb.networks import Discriminator
from sagan_nb.self_attention import SelfAttention
from sagan_nb.spectral_norm import normalised, settle, spectral_norm

pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning', 'ignore:.*get_attr Node:UserWarning',
                                        'ignore::torch.jit.TracerWarning')
ONE = torch.tensor(1., dtype=torch.float64)
Y = torch.tensor([0, 2, 1])


def dual(f, x, d):
    with forward_ad.dual_level(): return forward_ad.unpack_dual(f(forward_ad.make_dual(x, d))).tangent


def many(f, x):
    "An ordinary forward, and its backward along two directions by vmap."
    x = x.clone().requires_grad_()
    out = f(x)
    return vmap(lambda g: torch.autograd.grad(out, x, g)[0].flatten())(torch.stack([0*ONE, ONE]))


def along(f, x, d): return lambda s: f(x + (s - 1)*d)


# f -> its first derivative along d, at x
FIRST = {'grad': lambda f, x, d: (grad(f)(x)*d).sum(),
         'vjp': lambda f, x, d: (vjp(f, x)[1](ONE)[0]*d).sum(),
         'jacrev': lambda f, x, d: (jacrev(f)(x)*d).sum(),
         'jvp': lambda f, x, d: jvp(f, (x,), (d,))[1],
         'jacfwd': lambda f, x, d: jacfwd(along(f, x, d))(ONE),
         'linearize': lambda f, x, d: linearize(f, x)[1](d),
         'forward_ad': dual,
         'vectorize': lambda f, x, d: (torch.autograd.functional.jacobian(f, x, vectorize=True)*d).sum(),
         'many at once': lambda f, x, d: many(f, x)[1] @ d.flatten(),
         'make_fx': lambda f, x, d: (make_fx(grad(f))(x)(x)*d).sum()}
# its second
SECOND = {'grad of grad': lambda f, x, d: grad(grad(along(f, x, d)))(ONE),
          'jvp of grad': lambda f, x, d: (jvp(grad(f), (x,), (d,))[1]*d).sum(),
          'grad of jvp': lambda f, x, d: (grad(lambda x: jvp(f, (x,), (d,))[1])(x)*d).sum(),
          'hessian': lambda f, x, d: hessian(along(f, x, d))(ONE)}
WAYS = FIRST | SECOND


def expected(f, x, d):
    "Both derivatives by two ordinary backwards."
    x = x.clone().requires_grad_()
    one, = torch.autograd.grad(f(x), x, create_graph=True)
    two, = torch.autograd.grad((one*d).sum(), x)
    return (one*d).sum().detach(), (two*d).sum()


def moved(net): return {name: b for name, b in net.named_buffers() if name.endswith(('.u', '.v'))}


def trained(net, train):
    "In double precision, with attention that counts."
    for m in net.modules():
        if isinstance(m, SelfAttention): nn.init.constant_(m.gamma, .7)
    return net.double().train(train)


def with_torchs_norm(net):
    "The same network with torch's spectral norm and an explicit softmax; the same function, as u and v have converged."
    found = [(name, sn.u, sn.v, w) for name, sn, w in normalised(net)]
    for name, u, v, w in found:
        layer = net.get_submodule(name)
        parametrize.remove_parametrizations(layer, 'weight')
        layer.weight = nn.Parameter(w.detach().clone())
        theirs = parametrizations.spectral_norm(layer).parametrizations.weight[0]
        theirs._u, theirs._v = u.clone(), v.clone()
    for m in net.modules():
        if isinstance(m, SelfAttention): m.fast = False
    return net


def critic(train):
    torch.manual_seed(0)
    layers = (spectral_norm(nn.Conv2d(3, 8, 3, padding=1)), nn.Tanh(), SelfAttention(8, reduction=4), nn.Tanh(), nn.Flatten(),
              spectral_norm(nn.Linear(8*16, 1)))
    return settle(trained(nn.Sequential(*layers), train), 300), torch.randn(3, 3, 4, 4, dtype=torch.float64)


def judge(train):
    torch.manual_seed(0)
    net = trained(Discriminator(res=32, width=2, n_classes=3, attn_at=(16,), reduction=2), train)
    return net, torch.randn(3, 3, 32, 32, dtype=torch.float64)


def of_pictures(net, x, *y): return (lambda x: net(x, *y).square().sum()), x


def of_parameters(net, x, *y):
    "A function of all parameters in one vector."
    names, held = zip(*((name, p.detach()) for name, p in net.named_parameters()))
    def f(flat):
        parts = flat.split([p.numel() for p in held])
        return functional_call(net, {n: t.view(p.shape) for n, t, p in zip(names, parts, held)}, (x, *y)).square().sum()
    return f, torch.cat([p.flatten() for p in held])


both = pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
of = pytest.mark.parametrize('of', [of_pictures, of_parameters])


@both
@of
@pytest.mark.parametrize('way', WAYS)
def test_derivatives_are_those_of_torchs_own_layers(way, of, train):
    net, x = critic(train)
    said, at = of(with_torchs_norm(critic(train)[0]), x)
    d = torch.randn_like(at)
    close(WAYS[way](of(net, x)[0], at, d), expected(said, at, d)[way in SECOND], rtol=1e-6, atol=1e-6)


@both
@of
@pytest.mark.parametrize('way', WAYS)
def test_derivatives_of_a_discriminator_and_how_often_u_moves(way, of, train):
    net, x = judge(train)
    ordinary, before = copy.deepcopy(net), {k: v.clone() for k, v in moved(net).items()}
    (said, at), (f, _) = of(ordinary, x, Y), of(net, x, Y)
    d = torch.randn_like(at)
    found, want = WAYS[way](f, at, d), expected(said, at, d)[way in SECOND]
    if (way, train) != ('linearize', True): close(found, want, rtol=1e-9, atol=1e-9)        # the derivative of a second forward
    for name, u in moved(net).items():
        assert not u.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(u)
        close(u, before[name] if way == 'make_fx' else moved(ordinary)[name], rtol=1e-12, atol=1e-12)
    if way != 'make_fx': close(net(x, Y), ordinary(x, Y), rtol=1e-12, atol=1e-12)               # and it goes on as usual


@both
def test_gradients_of_single_pictures(train):
    net, x = judge(train)
    ordinary, p = copy.deepcopy(net), {k: v.detach() for k, v in net.named_parameters()}
    one = lambda p, x, y: functional_call(net, p, (x[None], y[None])).sum()
    found = vmap(grad(one), (None, 0, 0))(p, x, Y)
    want = torch.autograd.functional.jacobian(lambda *p: functional_call(ordinary, dict(zip(found, p)), (x, Y)), tuple(p.values()))
    for a, b in zip(found.values(), want): close(a, b, rtol=1e-9, atol=1e-9)
    for name, b in moved(net).items(): close(b, moved(ordinary)[name], rtol=1e-12, atol=1e-12)


@both
def test_several_networks_at_once(train):
    nets, x = [judge(train)[0] for _ in range(2)], judge(train)[1]
    for p in nets[1].parameters(): nn.init.normal_(p, std=.3)
    p, b = stack_module_state(nets)
    found = vmap(lambda p, b: functional_call(nets[0], (p, b), (x, Y)))(p, b)
    for i, net in enumerate(nets):
        close(found[i], net(x, Y), rtol=1e-9, atol=1e-9)
        for name, u in moved(net).items(): close(b[name][i], u, rtol=1e-12, atol=1e-12)


def test_a_power_step_with_gradient():
    "`detach=False`: the gradient goes through the step."
    torch.manual_seed(0)
    net = spectral_norm(nn.Linear(4, 3), detach=False).double()
    ordinary, x = copy.deepcopy(net), torch.randn(2, 4, dtype=torch.float64)
    (f, at), (said, _) = of_parameters(net, x), of_parameters(ordinary, x)
    d = torch.randn_like(at)
    for way in ('grad', 'jvp', 'jvp of grad'): close(WAYS[way](f, at, d), expected(said, at, d)[way in SECOND])


def test_a_trace_takes_any_batch():
    net, x = judge(False)
    traced = torch.jit.trace(net, (x, Y))
    for n in (1, 3): close(traced(x[:n], Y[:n]), net(x[:n], Y[:n]), rtol=1e-9, atol=1e-9)


@both
@pytest.mark.parametrize('reentrant', [False, True])
def test_a_checkpoint_moves_u_once(train, reentrant):
    net, x = judge(train)
    ordinary, x = copy.deepcopy(net), x.requires_grad_()
    for o in (checkpoint(net, x, Y, use_reentrant=reentrant), ordinary(x, Y)): o.sum().backward()
    for a, b in zip(net.parameters(), ordinary.parameters()): assert torch.equal(a.grad, b.grad)
    for name, u in moved(net).items(): assert torch.equal(u, moved(ordinary)[name])
