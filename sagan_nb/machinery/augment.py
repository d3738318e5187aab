"Serves chapter 09: differentiable augmentation, for few images, of all that D sees (Zhao et al., 2020)."
import torch
from torch import Tensor

from .sending import send

NUMBERS = 7                   # random numbers for each image: brightness, saturation, contrast, shift (2), hole (2)


def recolour(
    x:Tensor,                 # images, (B, 3, H, W)
    u:Tensor,                 # uniform in 0..1, (B, 3)
)->Tensor:                    # the same shape
    "Change brightness by up to 0.5, saturation by 0 to 2, contrast by 0.5 to 1.5."
    brightness, saturation, contrast = (v[:, None, None, None] for v in u.unbind(1))
    x = x + (brightness - .5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey)*(2*saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean)*(contrast + .5) + mean


def whole(
    u:Tensor,                 # uniform in 0..1, (B,)
    low:int,                  # the least
    high:int,                 # the most
)->Tensor:                    # int64, (B, 1)
    "Turn uniform numbers into whole ones, evenly."
    return (low + (u*(high - low + 1)).floor().clamp(max=high - low)).long()[:, None]


def shifted(
    x:Tensor,                 # images, (B, 3, H, W)
    u:Tensor,                 # uniform in 0..1, (B, 2): down and right
)->Tensor:                    # the same shape
    "Move each image by up to an eighth of its side; what comes in is 0."
    B, _, H, W = x.shape
    rows = torch.arange(H, device=x.device) - whole(u[:, 0], -round(H/8), round(H/8))
    columns = torch.arange(W, device=x.device) - whole(u[:, 1], -round(W/8), round(W/8))
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None]
    each = torch.arange(B, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[each, rows.clamp(0, H - 1)[:, :, None], columns.clamp(0, W - 1)[:, None]]
    return (moved*inside[..., None]).permute(0, 3, 1, 2)


def cut_out(
    x:Tensor,                 # images, (B, 3, H, W)
    u:Tensor,                 # uniform in 0..1, (B, 2): row and column of the hole
)->Tensor:                    # the same shape
    "Set a square of half the side to 0; its centre may lie anywhere, so part of it may lie outside."
    def hits(n, v):
        first = whole(v, 0, n) - n//4
        at = torch.arange(n, device=x.device)
        return (at >= first) & (at < first + n//2)
    return x*~(hits(x.shape[2], u[:, 0])[:, None, :, None] & hits(x.shape[3], u[:, 1])[:, None, None, :])


def augment_images(
    x:Tensor,                 # images in [-1, 1], (B, 3, H, W)
    u:Tensor,                 # uniform in 0..1, (B, NUMBERS)
)->Tensor:                    # the same shape; values may lie outside of [-1, 1]
    "Change colours, shift, cut a hole; gradients flow through."
    return cut_out(shifted(recolour(x, u[:, :3]), u[:, 3:5]), u[:, 5:])


def as_judged(
    gan,                      # its settings, its random numbers, its ranks
    x:Tensor,                 # images of this rank, (B, 3, res, res)
)->Tensor:                    # what D is to see
    "Augment images where the settings ask for it, by numbers of the run's own generator: a resumed run draws the same."
    if gan.cfg.augment == 'none': return x
    u = torch.rand(len(x)*gan.ranks.world, NUMBERS, generator=gan.rng)
    return augment_images(x, send(gan.ranks.mine(u), x.device))
