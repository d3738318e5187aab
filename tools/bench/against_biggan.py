"""BigGAN-PyTorch beside ours: its SAGAN script's networks, and its own training function, with its average of G.

`git clone https://github.com/ajbrock/BigGAN-PyTorch FOLDER`, then
`sagan_bench --nets 32,128 --brief --no_sampling --against tools/bench/against_biggan.py:FOLDER`.
Accumulation is 1, so that an update sees the batch once. Its networks have as many weights as ours.
"""
import io
import sys
from contextlib import redirect_stdout
from types import ModuleType

import torch

from peers import check_weights


def make_step(res, batch, n_classes, folder):
    "One update of D and one of G, as its train.py makes them."
    sys.path.insert(0, folder)
    sys.modules.setdefault('h5py', ModuleType('h5py'))                   # only its data sets need it
    import BigGAN, train_fns, utils                                       # noqa: E401
    listed = BigGAN.D_arch

    def once(*args):                                    # at 32 it lists 16 four times: attention after each block
        found = listed(*args)
        found[32]['resolution'] = [16, 8, 8, 8]
        return found
    BigGAN.D_arch = once
    own = dict(resolution=res, n_classes=n_classes, SN_eps=1e-8, adam_eps=1e-8)
    width, at = (32, '16') if res == 32 else (64, '64')
    g = own | dict(G_ch=width, G_attn=at, G_shared=False, BN_eps=1e-5, G_init='xavier', G_lr=1e-4)
    with redirect_stdout(io.StringIO()):
        G = BigGAN.Generator(**g)
        D = BigGAN.Discriminator(D_ch=width, D_attn=at, D_init='xavier', D_lr=4e-4, **own)
        mean = BigGAN.Generator(**g, skip_init=True, no_optim=True)
        average = utils.ema(G, mean, .9999, 2000)
    check_weights(res, G, D)
    config = dict(batch_size=batch, num_D_steps=1, num_D_accumulations=1, num_G_accumulations=1, toggle_grads=True,
                  split_D=False, D_ortho=0., G_ortho=0., ema=True)
    z, y = utils.prepare_z_y(batch, G.dim_z, n_classes, device='cpu')
    state = dict(itr=3000)                                                # the average has begun
    update = train_fns.GAN_training_function(G, D, BigGAN.G_D(G, D), z, y, average, state, config)
    real = torch.randn(batch, 3, res, res).tanh(), torch.arange(batch) % n_classes
    return lambda: update(*real)
