"""Another implementation beside ours: torch-mimicry's SAGAN at 32 pixels, its own networks and its own training steps.

`pip install --no-deps torch-mimicry`, then
`sagan_bench --nets 32 --brief --no_sampling --against tools/bench/against_mimicry.py`.
Its networks have as many weights as ours. Its steps keep the graph of G in D's step, and D's gradients in G's.
"""
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import torch

from peers import check_weights


def networks():
    "Its networks, without the rest of the package, which wants TensorFlow and more."
    if 'torch_mimicry' not in sys.modules:
        spec = importlib.util.find_spec('torch_mimicry')
        if spec is None: raise ModuleNotFoundError('torch-mimicry is not installed')
        sys.modules['torch_mimicry'] = root = ModuleType('torch_mimicry')
        root.__path__ = list(spec.submodule_search_locations)
    from torch_mimicry.nets.sagan.sagan_32 import SAGANDiscriminator32, SAGANGenerator32
    return SAGANGenerator32, SAGANDiscriminator32


def make_step(res, batch, n_classes):
    "One update of D and one of G, as its trainer makes them."
    if res != 32: raise ValueError('its network of 128 pixels has another shape than ours')
    G, D = (net(n_classes, **width) for net, width in zip(networks(), (dict(ngf=128), dict(ndf=128))))
    check_weights(res, G, D)
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), lr, (0., .9)) for net, lr in ((G, 1e-4), (D, 4e-4)))
    real = torch.randn(batch, 3, res, res).tanh(), torch.arange(batch) % n_classes
    log = SimpleNamespace(add_metric=lambda *args, **kw: None)

    def step():
        D.train_step(real, G, opt_d, log_data=log, device='cpu')
        G.train_step(real, D, opt_g, log_data=log, device='cpu')
    return step
