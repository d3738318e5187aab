"Serves chapter 11: networks set by hand, whose attention is known: every location looks at its mirror image."
import math

import torch
from torch import Tensor, nn

from ..networks import Discriminator, Generator
from ..self_attention import SelfAttention

MIRROR = 8.                   # scale of keys and queries in the planted networks; the scores have its square


def doubled(
    n:int,                    # columns (and rows) before
)->tuple[Tensor,Tensor]:      # weight (4n, 2n, 3, 3), bias (4n): one-hot column and row codes after upsampling by 2
    "The 3x3 convolution that tells left from right and upper from lower half of each location."
    w = torch.zeros(2, n, 2, 2, n, 3, 3)                     # out: axis, place, half; in: axis, place; kernel
    for c in range(n):
        for half, (near, far) in enumerate(((1, 2), (0, 1))):
            w[0, c, half, 0, c, 1, [near, far]] = 1.         # columns: own and right, left and own
            w[1, c, half, 1, c, [near, far], 1] = 1.         # rows: own and below, above and own
    return w.reshape(4*n, 2*n, 3, 3), torch.full((4*n,), -1.)


@torch.no_grad()
def plant(
    block:SelfAttention,      # reduction 1, without spectral norm
    mirror:Tensor,            # what turns a location's code into that of its mirror image, (C, C)
    scale:float,              # of keys and queries
):
    "Make each location of this layer attend to its mirror image, with gamma 0.3."
    same = torch.eye(block.channels)
    for conv, w in ((block.f, same*scale), (block.g, mirror*scale), (block.h, same), (block.v, same)):
        if isinstance(conv, nn.Conv2d): conv.weight.copy_(w[:conv.out_channels, :conv.in_channels, None, None])
    block.gamma.fill_(.3)


@torch.no_grad()
def mirror_generator(
    form:str='released',      # attention form
)->Generator:                 # 32 px, 3 classes, attention at 16; in evaluation mode
    "A generator set by hand: at the 16x16 map each location attends to its mirror image in the picture."
    G = Generator(32, n_classes=3, z_dim=4, attn_at=(16,), form=form, reduction=1, sn=False, channels=(8, 16, 32, 4))
    for p in G.parameters(): p.zero_()
    for m, n in (('8', 4), ('16', 8)):
        for p, value in zip(G.blocks[m].conv1.parameters(), doubled(n)): p.copy_(value)
    for m, up in G.blocks.items():                           # the second convolution hands on what the first made
        up.conv2.weight[:, :, 1, 1] = torch.eye(up.conv2.out_channels)
        for t in (up.bn1.gain, up.bn2.gain): t.fill_(1.)
    code = torch.zeros(8, 4, 4)
    for c in range(4): code[c, :, c] = code[4 + c, c] = 1.
    G.linear.bias.copy_(code.flatten())
    flip = torch.eye(32)
    flip[:16, :16] = torch.eye(16).flip(0)                   # columns exchanged, rows kept
    plant(G.extra['16'], flip, MIRROR)
    rng = torch.Generator().manual_seed(0)
    G.blocks['32'].bn1.gain.copy_(torch.rand(3, 32, generator=rng))          # class: colours of rows and columns
    G.blocks['32'].conv1.weight[:, :, 1, 1] = torch.rand(4, 32, generator=rng)
    G.bn.gain.fill_(1.)
    G.conv.weight[:, :3, 1, 1] = torch.eye(3)*2
    G.conv.bias.fill_(-1.8)
    return G.eval()


@torch.no_grad()
def mirror_discriminator(
    form:str='released',      # attention form
)->Discriminator:             # 32 px, 3 classes, attention at 16; in evaluation mode
    "A discriminator set by hand: on `mirror_picture` each location attends to its mirror image."
    D = Discriminator(32, n_classes=3, attn_at=(16,), form=form, reduction=1, sn=False, channels=(8,)*4)
    for p in (*D.blocks[0].conv1.parameters(), *D.blocks[0].conv2.parameters()): p.zero_()
    D.blocks[0].short.weight.copy_(torch.eye(8)[:, :3, None, None])
    D.blocks[0].short.bias.zero_()
    plant(D.extra['16'], torch.diag(torch.tensor([-1.] + [1.]*7)), 100.)
    return D.eval()


def mirror_picture(
    cells:int=16,             # cells per side; a power of 2, at most 16
)->Tensor:                    # in [-1, 1], (1, 3, 32, 32)
    "A picture whose cells have different colours, and whose mirror images have mirror colours."
    n = cells*cells // 2
    at = torch.arange(n) + .5
    red, turn = .2 + .8*at/n, at*math.pi*(3 - 5**.5)                     # evenly on part of a sphere (golden angle)
    around = (1 - red**2).sqrt()
    left = torch.stack([red, around*turn.cos(), around*turn.sin()]).reshape(3, cells, cells // 2)
    right = left.flip(-1) * torch.tensor([-1., 1., 1.])[:, None, None]
    return torch.cat([left, right], -1)[None].repeat_interleave(32 // cells, 2).repeat_interleave(32 // cells, 3)
