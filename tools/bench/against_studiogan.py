"""PyTorch-StudioGAN beside ours: its SAGAN networks, spectral norm and freezing, in a step put together from its two
train functions.

`git clone https://github.com/POSTECH-CVLab/PyTorch-StudioGAN FOLDER`, then
`sagan_bench --nets 32,128 --brief --no_sampling --against tools/bench/against_studiogan.py:FOLDER`.
Its worker was read and is not run: real and generated images go through D in two passes, D has one update, G is not
averaged. At 32 pixels its D has twice its width, so that both networks have 128 channels. Its networks have as many
weights as ours.
"""
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import packaging.version
import torch

from peers import check_weights


def make_step(res, batch, n_classes, folder):
    "One update of D and one of G."
    sys.path.insert(0, str(Path(folder)/'src'))
    for name in ('seaborn', 'pkg_resources'):                                # for its figures; for the line below
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules['pkg_resources'].parse_version = packaging.version.parse
    import utils.losses as losses
    import utils.misc as misc
    import utils.ops as ops
    from models import resnet
    layers = {f'{net}_{kind}': getattr(ops, f'sn{kind}') for net in 'gd' for kind in ('conv2d', 'linear')}
    relus = {f'{net}_act_fn': torch.nn.ReLU(inplace=True) for net in 'gd'}
    tools = SimpleNamespace(g_bn=ops.ConditionalBatchNorm2d, d_embedding=ops.sn_embedding, **relus, **layers)
    model = SimpleNamespace(info_type='N/A', g_info_injection='N/A')
    g_width, d_width, g_at, d_at = (32, 64, [2], [1]) if res == 32 else (64, 64, [4], [1])
    last = n_classes, 'ortho', 'N/A', False, tools, model
    G = resnet.Generator(128, 'N/A', res, g_width, True, g_at, 'cBN', *last)
    D = resnet.Discriminator(res, d_width, True, True, d_at, 'PD', 'W/O', 'N/A', False, *last)
    check_weights(res, G, D)
    def adam(net, lr): return torch.optim.Adam(net.parameters(), lr, (0., .999), eps=1e-6)
    opt_g, opt_d = adam(G, 1e-4), adam(D, 4e-4)
    real = torch.randn(batch, 3, res, res).tanh(), torch.arange(batch) % n_classes

    def fake():
        y = torch.randint(n_classes, (batch,))
        return G(torch.randn(batch, 128), y), y

    def step():
        misc.toggle_grad(G, False), misc.toggle_grad(D, True)
        opt_d.zero_grad()
        x, y = fake()
        losses.d_hinge(D(*real)['adv_output'], D(x.detach(), y)['adv_output'], False).backward()
        opt_d.step()
        misc.toggle_grad(D, False), misc.toggle_grad(G, True)
        opt_g.zero_grad()
        losses.g_hinge(D(*fake())['adv_output'], False).backward()
        opt_g.step()
    return step
