"N ranks, or a batch in parts, give what one rank gives with the whole batch; and each trap of that has a test which finds it."
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from sagan_nb import blocks, distributed, train
from sagan_nb.config import at_scale, preset
from sagan_nb.core import Refused
from sagan_nb.data import Toy
from sagan_nb.machinery.crew import Crew
from sagan_nb.spectral_norm import SpectralNorm
from tools.golden import Double

STEPS = 20
CASES = {                                     # name -> (preset, what else is set); batch of 8
    'paper, batch statistics of all': ('t1_attn_16', dict(ema=.9, ema_start=2)),
    'v1, chunks of 2': ('t1_attn_16', dict(form='v1', bn_ghost=2)),
    'released, with its epsilon': ('released', dict(attn_at=(16,), adam_eps=1e-3)),
    'released, chunks one after another': ('released', dict(attn_at=(16,), bn_ghost=2, bn_ghost_update='sequential')),
    'best_known': ('best_known', dict(attn_at=(16,), bn_ghost=2, ema=.9, ema_start=2)),
    'AC-GAN, five steps of D': ('t2_acgan', dict(ema=.9)),
}


def config(name, **own):
    row, given = CASES[name]
    return replace(at_scale(preset(row), 'smoke'), **dict(n_classes=4, width=2, steps=STEPS, standing=0) | given | own)


def flat(gan):
    "All numbers of a GAN: weights, u, statistics, the average, Adam's moments."
    found = {f'{n}.{k}': v for n in ('G', 'D', 'ema') if getattr(gan, n) for k, v in getattr(gan, n).state_dict().items()}
    for n in ('opt_g', 'opt_d'):
        found |= {f'{n}.{i}.{k}': v for i, s in getattr(gan, n).state_dict()['state'].items() for k, v in s.items()}
    return found


def updates(cfg, trap=None):
    "Train on this rank's share, in float64: losses over all ranks, and all numbers at the end."
    torch.set_default_dtype(torch.float64)
    losses, undo = [], pytest.MonkeyPatch()
    try:
        if trap: TRAPS[trap](undo)
        gan = train.make_gan(cfg)
        note = lambda gan, log: losses.append([gan.ranks.mean(log[k]).item() for k in ('loss_d', 'loss_g')])
        source = Toy(cfg.res, n=50)
        with closing(Double(source, cfg.batch, cfg.seed, gan.ranks.rank, gan.ranks.world)) as data:
            train.fit(gan, data, [(1, train.average), (1, note)])
    finally:
        undo.undo()
        torch.set_default_dtype(torch.float32)
    return dict(losses=torch.tensor(losses), **flat(gan))


def check(ranks, whole):
    "The ranks agree to the last bit; with one rank they agree to rounding."
    first, *others = ranks
    assert all(set(o) == set(first) == set(whole) for o in others) and len(first) > 50
    assert [k for k in first for o in others if not torch.equal(first[k], o[k])] == []
    for k in whole: torch.testing.assert_close(first[k], whole[k], rtol=1e-6, atol=1e-9, msg=lambda m: f'{k}: {m}')


@pytest.fixture(scope='module')
def crew():
    with Crew(4) as made: yield made


@pytest.fixture(scope='module')
def alone():
    "What one rank computes, once for each case."
    found = {}
    def get(cfg):
        if cfg not in found: found[cfg] = updates(cfg)
        return found[cfg]
    return get


@pytest.mark.parametrize('world, name', [(world, name) for world in (4, 2) for name in CASES])
def test_ranks_together_are_one(crew, alone, world, name):
    cfg = config(name)
    if len(crew.pools) != world: crew.regroup(world)
    check(crew(updates, cfg), alone(cfg))


# The traps: each takes one of the cures away, on the ranks alone.

def trap(f):
    TRAPS[f.__name__] = f
    return f


TRAPS = {}


def only_alone(right, wrong):
    "A method that is wrong on several ranks, and right on one."
    return lambda self, *args: (wrong if distributed.Ranks().world > 1 else right)(self, *args)


@trap
def gradients_are_not_averaged(patch): patch.setattr(distributed.Ranks, 'average', lambda self, net: None)


@trap
def gradients_of_one_network_alone_are_averaged(patch):
    right = distributed.Ranks.average
    patch.setattr(distributed.Ranks, 'average', lambda self, net: isinstance(net, train.Discriminator) and right(self, net))


@trap
def every_rank_begins_with_its_own_weights_and_u(patch):
    right = distributed.Ranks.connect
    def wrong(self, net):
        if self.rank: [t.copy_(torch.randn(t.shape)) for t in net.state_dict().values()]
        return right(distributed.Ranks(0, 1), net)
    patch.setattr(distributed.Ranks, 'connect', wrong)


@trap
def u_alone_is_not_sent(patch):
    right = distributed.Ranks.connect
    def wrong(self, net):
        right(self, net)
        if self.rank: [m.u.copy_(torch.randn(m.u.shape)) for m in net.modules() if isinstance(m, SpectralNorm)]
        return net
    patch.setattr(distributed.Ranks, 'connect', wrong)


@trap
def batch_statistics_are_those_of_each_rank(patch):
    patch.setattr(distributed.Ranks, 'gather', lambda self, x: x)


@trap
def batch_statistics_have_no_gradient(patch):
    right = distributed.Ranks.gather
    patch.setattr(distributed.Ranks, 'gather', lambda self, x: right(self, x.detach()))


@trap
def rank_0_alone_keeps_the_average(patch):
    right = train.average
    patch.setattr(train, 'average', lambda gan, log=None: gan.ranks.first and right(gan, log))


@trap
def every_rank_draws_its_own_rows_from_the_same_seed(patch):
    patch.setattr(distributed.Ranks, 'mine', lambda self, x: x[:len(x) // self.world])


@pytest.mark.parametrize('name', TRAPS)
def test_a_trap_is_found(crew, alone, name):
    cfg = config('paper, batch statistics of all', steps=4)
    if len(crew.pools) != 2: crew.regroup(2)
    check(crew(updates, cfg), alone(cfg))
    with pytest.raises(AssertionError): check(crew(updates, cfg, name), alone(cfg))


def test_moving_statistics_of_chunks_are_those_of_all_ranks(crew, alone):
    cfg = config('best_known', steps=2)
    check(crew(updates, cfg), alone(cfg))
    with pytest.raises(AssertionError): check(crew(updates, cfg, 'batch_statistics_are_those_of_each_rank'), alone(cfg))


def test_two_forwards_before_one_backward(monkeypatch):
    "u moves between them: the first must keep the u it was computed with."
    cfg = config('paper, batch statistics of all', steps=1)
    updates(cfg)
    monkeypatch.setattr(SpectralNorm, 'vectors', lambda self, W, weight: (self.u, self.reorder(self.v, weight)))
    with pytest.raises(RuntimeError, match='inplace'): updates(cfg)
