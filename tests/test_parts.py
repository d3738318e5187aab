"What a project of somebody else's does with the parts: interrupted, frozen, copied, loaded, called with rows that do not match."
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from sagan_nb.attention_maps import attention_maps
from sagan_nb.blocks import ConditionalBatchNorm2d, Conv2d, standing_statistics
from sagan_nb.config import at_scale, preset
from sagan_nb.core import Refused
from sagan_nb.distributed import in_parts
from sagan_nb.interop import load_weights
from sagan_nb.metrics import Stats, intra_fid, squared_mmd
from sagan_nb.networks import Discriminator, Generator
from sagan_nb.report import draw_z, walk_classes
from sagan_nb.self_attention import SelfAttention
from sagan_nb.spectral_norm import normalised, power_step, real_pass, sigma, spectral_norm
from sagan_nb.train import attention_usage, d_step, draw, frozen, g_step, make_gan
from sagan_nb.machinery.publish import save_pretrained

import released
from test_interop import SIZES, renamed


def small(**how): return Generator(res=32, width=2, n_classes=4, z_dim=8, attn_at=(16,), **how)


def rows(n, K=4): return torch.randn(n, 8), torch.arange(n) % K


def test_a_walk_between_classes_leaves_a_generator_with_normalised_tables_as_it_was():
    G = load_weights(renamed(released.planted('G', **SIZES[0]), 'studiogan', 2))
    z, y = torch.randn(2, G.z_dim), torch.tensor([0, 1])
    before = G(z, y)
    walk = walk_classes(G, [0, 1], steps=3, seed=5)
    assert torch.equal(G(z, y), before) and walk.shape == (1, 3, 3, G.res, G.res)
    assert torch.allclose(walk[0, -1], draw(G, draw_z(1, G.z_dim, 5), torch.tensor([1]))[0], atol=1e-5)       # its end is the class itself


def test_standing_statistics_that_are_interrupted_leave_no_trace():
    G = small()
    z, y = rows(4)
    before = copy.deepcopy(G.state_dict())
    with pytest.raises(Refused): standing_statistics(G, [(z, y), (z, y + 1)])
    assert not any(m.training for m in G.modules())
    assert all(torch.equal(t, before[k]) for k, t in G.state_dict().items())
    G.train()(z, y)
    assert not torch.equal(G.bn.mean, before['bn.mean'])


def test_weights_that_a_user_froze_stay_frozen():
    gan = make_gan(at_scale(preset('t1_none'), 'smoke'))
    gan.D.blocks[0].requires_grad_(False)
    held, free = copy.deepcopy(gan.D.blocks[0].state_dict()), copy.deepcopy(gan.D.blocks[1].state_dict())
    x = torch.rand(gan.cfg.batch, 3, gan.cfg.res, gan.cfg.res)*2 - 1
    y = torch.zeros(len(x), dtype=torch.long)
    for _ in range(2): g_step(gan, len(x)), d_step(gan, x, y)
    assert all(torch.equal(t, held[k]) for k, t in gan.D.blocks[0].state_dict().items() if k.endswith(('original', 'bias')))
    assert any(not torch.equal(t, free[k]) for k, t in gan.D.blocks[1].state_dict().items() if k.endswith('original'))
    with frozen(gan.D): assert not any(p.requires_grad for p in gan.D.parameters())


@pytest.mark.parametrize('call', [lambda G: draw(G.eval(), *[rows(9)[0], rows(4)[1]]), lambda G: in_parts(G, 4, rows(8)[0], rows(4)[1]),
                                  lambda G: attention_maps(G, rows(16)[0], rows(8)[1]), lambda G: draw(G.eval(), rows(4)[0], rows(9)[1])])
def test_rows_that_do_not_match_are_not_dropped(call):
    with pytest.raises(Refused, match='different lengths'): call(small())


@pytest.mark.parametrize('ghost, refused', [(0, True), (3, True), (2, False), (4, False)])
def test_a_batch_norm_of_the_whole_batch_does_not_come_in_parts(ghost, refused):
    G = small(bn=dict(ghost=ghost), bn_last=dict(ghost=ghost))
    twin, (z, y) = copy.deepcopy(G), rows(12)
    if refused:
        with pytest.raises(Refused, match='ghost'): in_parts(G, 4, z, y)
        assert all(torch.equal(a, b) for a, b in zip(G.state_dict().values(), twin.state_dict().values()))       # u has not moved
        torch.testing.assert_close(in_parts(G.eval(), 4, z, y), twin.eval()(z, y))
    else: torch.testing.assert_close(in_parts(G, 4, z, y), twin(z, y))


def test_labels_of_a_batch_norm():
    bn = ConditionalBatchNorm2d(8, 5)
    for x, y in ((torch.randn(4, 8, 8, 8), torch.arange(4)[:, None]), (torch.randn(1, 8, 4, 4), torch.arange(3))):
        for mode in (True, False):
            with pytest.raises(Refused, match='one for each image'): bn.train(mode)(x, y)
    with pytest.raises(Refused, match='empty batch'): bn.train()(torch.randn(0, 8, 4, 4), torch.arange(0))
    assert bn.eval()(torch.randn(0, 8, 4, 4), torch.arange(0)).shape == (0, 8, 4, 4)


def test_a_norm_that_was_taken_off_and_put_on_again_moves_u_once():
    layer = spectral_norm(nn.Linear(60, 50))
    parametrize.remove_parametrizations(layer, 'weight')
    sn = spectral_norm(layer).parametrizations.weight[0]
    once = power_step(layer.parametrizations.weight.original.detach(), sn.u)[0]
    layer(torch.randn(1, 60))
    torch.testing.assert_close(sn.u, once)


def test_axes_of_a_spectral_norm():
    a, b = (spectral_norm(nn.Linear(6, 5), dim=dim) for dim in (-1, 1))
    for layer in (a, b): layer.load_state_dict(b.state_dict())
    x = torch.randn(2, 6)
    assert torch.equal(a(x), b(x)) and len(a.parametrizations.weight[0].u) == 6
    for dim in (2, -3):
        with pytest.raises(Refused, match='axis'): spectral_norm(nn.Linear(6, 5), dim=dim)


def test_a_weight_that_is_set_is_divided():
    W = torch.randn(5, 6)
    layer, theirs = spectral_norm(nn.Linear(6, 5), steps=50), nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5), n_power_iterations=50)
    layer.weight = theirs.weight = W
    x, W = torch.randn(1, 6), W.clone()
    for _ in range(50):                                               # read before any forward: |W^T u|, no product with the v of another weight
        layer.weight = torch.randn(5, 6)
        torch.testing.assert_close(sigma(layer), (layer.parametrizations.weight.original.T @ layer.parametrizations.weight[0].u).norm())
    layer.weight = W
    layer(x), theirs(x)
    assert torch.equal(layer.parametrizations.weight.original, W)
    torch.testing.assert_close(layer.weight, theirs.weight)
    G = load_weights(renamed(released.planted('G', **SIZES[0]), 'studiogan', 2))
    bn = next(iter(G.blocks.values())).bn1
    bn.gain = bn.gain.detach()*0 + 1.5                                # a gain of StudioGAN: 1 + table / sigma
    assert torch.equal(bn.parametrizations.gain.original, torch.full_like(bn.gain, .5))


@pytest.mark.parametrize('assign', [False, True])
def test_what_is_read_after_loading_follows_from_the_u_that_was_stored(assign):
    a, b = (spectral_norm(nn.Linear(60, 50), detach=False) for _ in range(2))
    for _ in range(300): a(torch.randn(1, 60))
    b(torch.randn(1, 60))
    with torch.device('meta'): bare = spectral_norm(nn.Linear(60, 50), detach=False)
    for other in (b, bare)[:1 + assign]:
        other.load_state_dict(a.state_dict(), assign=assign)
        torch.testing.assert_close(sigma(other), sigma(a), rtol=1e-3, atol=0)
        other(torch.randn(1, 60))


def test_a_real_pass_inside_another_does_not_end_it():
    layer = spectral_norm(nn.Linear(4, 3), update='real')
    sn = next(normalised(nn.Sequential(layer)))[1]
    with real_pass(layer):
        with real_pass(layer): pass
        assert sn.moves()
    assert not sn.moves()


class Mine(Generator): pass


def with_other_epsilon():
    G = small()
    G.blocks['16'].bn2.eps = .1
    return G


def with_a_subclass():
    class Mine(SelfAttention): pass
    G = small()
    G.extra['16'].__class__ = Mine
    return G


def without_one_norm():
    G = small()
    parametrize.remove_parametrizations(G.conv, 'weight')
    return G


@pytest.mark.parametrize('made, words', [(lambda: Mine(res=32, width=2, attn_at=()), 'Mine is no Generator'),
                                         (with_other_epsilon, r'^blocks\.16\.bn2: its options'), (without_one_norm, '^conv.* and here is nothing'), (with_a_subclass, r'^extra\.16: .* and here is Mine')])
def test_what_a_file_could_not_bring_back_is_not_published(made, words, tmp_path):
    with pytest.raises(Refused, match=words): save_pretrained(made(), tmp_path/'G.safetensors')
    assert not list(tmp_path.iterdir())


def test_a_compiled_network_is_published_as_itself(tmp_path):
    G = small().eval()
    again = Generator.from_pretrained(save_pretrained(torch.compile(G, backend='eager'), tmp_path/'G.safetensors'))
    z, y = rows(2)
    assert torch.equal(again(z, y), G(z, y))


def test_averages_and_nested_state_dicts(tmp_path):
    G, D = small(), Discriminator(res=32, width=2, n_classes=4, attn_at=(16,))
    again, (z, y) = load_weights(AveragedModel(G).state_dict()), rows(2)
    torch.testing.assert_close(again(z, y), G.eval()(z, y))
    torch.save(dict(netG=G.state_dict(), netD=D.state_dict()), tmp_path/'both.pt')
    with pytest.raises(Refused, match=r'netG, netD has names of its own.*netG'): load_weights(tmp_path/'both.pt', part='G')


def test_metrics_of_too_little():
    x = torch.randn(1, 4)
    with pytest.raises(Refused, match='2 rows'): squared_mmd(x, torch.randn(5, 4))
    with pytest.raises(Refused): intra_fid(torch.randn(5), torch.zeros(5), torch.randn(5), torch.zeros(5))
    assert not Stats(4).add(torch.randn(8, 4, requires_grad=True)).mean.requires_grad


def test_a_kernel_without_a_middle():
    with pytest.raises(Refused, match='odd'): Conv2d(3, 4, 2, resample='up')


class Excite(nn.Module):
    "A block of somebody's, without a gamma."
    def forward(self, x): return x*1.5


def test_a_block_of_ones_own_is_seen_on_every_map_that_is_there():
    D = Discriminator(res=32, width=2, n_classes=4, attn_at=()).eval()
    x, y = torch.randn(2, 3, 32, 32), torch.arange(2)
    for size in ('16', '8', '4'):
        before = D(x, y)
        D.extra[size] = Excite()
        assert not torch.equal(D(x, y), before), size
    assert {name: set(o) for name, o in attention_usage(D, x, y).items()} == {size: {'ratio'} for size in ('16', '8', '4')}


@pytest.mark.parametrize('part', ['G', 'D'])
def test_a_block_of_ones_own_is_not_published(part, tmp_path):
    net = dict(G=Generator, D=Discriminator)[part](res=32, width=2, n_classes=4, attn_at=())
    net.extra['5'] = Excite()
    with pytest.raises(Refused, match='no map 5'): save_pretrained(net, tmp_path/'net.safetensors')
    del net.extra['5']
    net.extra['16'] = Excite()
    with pytest.raises(Refused, match='Excite is no block of ours'): save_pretrained(net, tmp_path/'net.safetensors')
    assert not list(tmp_path.iterdir())
