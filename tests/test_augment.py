"Differentiable augmentation against a plain reference, image by image; off it changes nothing; resumed it draws the same."
from dataclasses import replace

import pytest
import torch

from sagan_nb.config import PRESETS, at_scale, preset
from sagan_nb.data import Toy
from sagan_nb.machinery.augment import NUMBERS, as_judged, augment_images, cut_out, recolour, shifted, whole
from sagan_nb.machinery.runs import train
from sagan_nb.train import g_step, make_gan


def plainly(image, u):
    "One image (3, H, W) with its seven numbers."
    x, (b, s, c, down, right, row, column) = image + (u[0] - .5), u.tolist()
    grey = (x[0] + x[1] + x[2])/3
    x = torch.stack([grey + (o - grey)*2*s for o in x])
    x = x.mean() + (x - x.mean())*(c + .5)
    _, H, W = x.shape
    dy, dx = (-(n//8) + min(int(v*(2*(n//8) + 1)), 2*(n//8)) for v, n in ((down, H), (right, W)))
    moved = torch.zeros_like(x)
    for r in range(H):
        for k in range(W):
            if 0 <= r - dy < H and 0 <= k - dx < W: moved[:, r, k] = x[:, r - dy, k - dx]
    top, left = (min(int(v*(n + 1)), n) - n//4 for v, n in ((row, H), (column, W)))
    moved[:, max(top, 0):max(top + H//2, 0), max(left, 0):max(left + W//2, 0)] = 0
    return moved


def test_equals_the_plain_reference():
    rng = torch.Generator().manual_seed(0)
    x, u = torch.rand(12, 3, 16, 24, generator=rng)*2 - 1, torch.rand(12, NUMBERS, generator=rng)
    u[0], u[1] = 0., 1 - 1e-7
    assert torch.allclose(augment_images(x, u), torch.stack([plainly(*o) for o in zip(x, u)]), atol=1e-5)


def test_gradients_flow():
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: augment_images(v, torch.rand(3, NUMBERS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))), x)


def test_every_part_is_in_its_range():
    u, n = torch.rand(20_000, generator=torch.Generator().manual_seed(0)), 4
    assert sorted(set(whole(u, -n, n).flatten().tolist())) == [*range(-n, n + 1)]
    x = torch.ones(64, 3, 16, 16)
    half = torch.full((64, 2), .5)
    assert torch.equal(shifted(x, half), x)                                       # the middle: no shift
    assert (cut_out(x, half) == 0).float().mean() == .25 and torch.allclose(recolour(x*.3, torch.full((64, 3), .5)), x*.3)


def smoke(**more):
    toy = Toy(n=24)
    return toy, replace(at_scale(preset('t1_attn_16'), 'smoke'), n_classes=4, data='toy', data_id=toy.fingerprint, standing=0, steps=2, **more)


def test_off_in_every_row_and_then_without_a_trace():
    assert all(c.augment == 'none' for c in PRESETS.values())
    gan = make_gan(smoke()[1])
    x, state = torch.rand(2, 3, 32, 32), gan.rng.get_state()
    assert as_judged(gan, x) is x and torch.equal(state, gan.rng.get_state())


def test_generated_images_are_augmented_for_g_too():
    plain, changed = make_gan(smoke()[1]), make_gan(smoke(augment='diffaug')[1])
    seen = []
    changed.D.register_forward_pre_hook(lambda m, i: seen.append(i[0].detach()))
    g_step(plain, 4), g_step(changed, 4)
    assert (seen[0] == 0).float().mean() > .1                                     # holes
    assert not torch.equal(plain.G.linear.bias, changed.G.linear.bias)


@pytest.mark.filterwarnings('ignore')
def test_a_resumed_run_draws_the_same(tmp_path):
    toy, cfg = smoke(augment='diffaug')
    once = train(cfg, toy, tmp_path/'once')
    train(replace(cfg, steps=1), toy, tmp_path/'twice')
    twice = train(cfg, toy, tmp_path/'twice', resume=True)
    assert all(torch.equal(a, b) for a, b in zip(once.D.state_dict().values(), twice.D.state_dict().values()))
