"Your Local GAN under our names: equal to its equations in NumPy, from variables in the names and layout of its source."
import numpy as np
import pytest
import torch

import released
from released import Net, planted
from sagan_nb.core import Refused
from sagan_nb.interop import load_weights
from sagan_nb.machinery.local import LocalAttention, local_masks
from sagan_nb.machinery.publish import save_pretrained
from sagan_nb.machinery.recipe import recipe_of, restore_network
from sagan_nb.machinery.ylg import U


def unit(t): return t / np.sqrt((t**2).sum())


def patterns(side):
    "The masks of ylg/masks.py by its definitions, cell by cell, in the order of ylg/ops.py: (8, queries, keys)."
    rows, stride = side//2, int(np.sqrt((side//2)**2))
    n, cell_of = rows*rows, {}
    for distance in range(2*rows - 1):
        for i in range(rows):
            if 0 <= distance - i < rows: cell_of[len(cell_of)] = i*rows + distance - i
    pairs = [[], [], [], []]
    for row in range(n):
        for col in range(row - row % stride, row + 1):
            pairs[0].append((col, row))
            pairs[2].append((row, col))
        pairs[1] += [(row, row), *((row, col - stride + 1) for col in range(n) if col % stride == stride - 1)]
        pairs[3] += [(row, row), *((row, col) for col in range(n) if col % stride == stride - 1)]
    out = np.zeros((8, 4*n, n), bool)
    for head, own in enumerate(pairs[:2]*2 + pairs[2:]*2):
        for a, b in own:
            for quarter in range(4): out[head, cell_of[a] + quarter*n, cell_of[b]] = True
    return out


class LocalNet(Net):
    "As `Net`, with the norms at most 1, u on the other side, epsilon 1e-3, and the sparse block."
    full = False
    def sn(self, name, key='w'):
        w, u = self.p[f'{name}/{key}'], self.p[f'{name}/u']
        m = (w.T if key == 'embedding_map' else w).reshape(-1, w.shape[0] if key == 'embedding_map' else w.shape[-1])
        v = unit(m.T @ u)
        sigma = (unit(m @ v).T @ m @ v).item()
        return w / (sigma if 'non_local' in name else max(1., sigma))

    def norm(self, x, name, y, train):
        mean, var = ('moving_mean', 'moving_variance') if y is None else ('mean', 'var')
        gamma, beta = (self.p[f'{name}/{k}'] if y is None else self.p[f'{name}/{k}'][y][:, None, None] for k in ('gamma', 'beta'))
        return (x - self.p[f'{name}/{mean}']) / np.sqrt(self.p[f'{name}/{var}'] + 1e-3) * gamma + beta

    def attention(self, x, name):
        if self.full: return super().attention(x, name)
        B, H, W, C = x.shape
        pool = lambda t: t.reshape(B, H//2, 2, W//2, 2, -1).max((2, 4))
        theta, phi, g = (self.conv(x, f'{name}/sn_conv_{n}') for n in ('theta', 'phi', 'g'))
        theta, phi, g = (t.reshape(B, -1, 8, t.shape[-1]//8) for t in (theta, pool(phi), pool(g)))
        o = np.zeros((B, H*W, C//16, 8))                                      # the head is the last axis
        for head, mask in enumerate(patterns(H)):
            s = theta[:, :, head] @ phi[:, :, head].swapaxes(1, 2) - 1000*~mask
            beta = np.exp(s - s.max(-1, keepdims=True))
            o[..., head] = beta / beta.sum(-1, keepdims=True) @ g[:, :, head]
        return x + self.p[f'{name}/sigma_ratio'] * self.conv(o.reshape(B, H, W, C//2), f'{name}/sn_conv_attn')


def with_other_u(p, seed=1):
    "The released code's variables with u on the other side, and some weights whose norm is below 1."
    rng, out = np.random.default_rng(seed), dict(p)
    for name in [k[:-2] for k in p if k.endswith('/u')]:
        w = next(p[f'{name}/{k}'] for k in ('w', 'Matrix', 'embedding_map') if f'{name}/{k}' in p)
        n = w.shape[1] if name == 'd_embedding' else w.size // w.shape[-1]
        out[f'{name}/u'] = rng.normal(size=(n, 1)).astype(np.float32)
        if name.endswith('conv3'): out[f'{name}/w'] = w*np.float32(.2)
    return out


def under_their_names(p, above, doubled):
    "Names of a TensorFlow checkpoint of theirs; whether a scope within a custom getter begins anew was not to be found out."
    out = {}
    for k, t in p.items():
        scope, _, last = k.rpartition('/')
        name = scope.rpartition('/')[2]
        scope = scope.replace('_non_local', '_ops')
        inner = f'{scope}/dense' if f'{k.rpartition("/")[0]}/Matrix' in p else scope if 'ops' in scope or 'embedding' in scope else f'{scope}/{name}'
        weight = {'embedding': scope, 'ops': f'{inner}/weights'}.get(next((o for o in ('embedding', 'ops') if o in scope), ''), f'{inner}/kernel')
        if last == 'u': to = f'{above}{inner}/{above*doubled}'*doubled + f'{"" if doubled else above}{weight}/spectral_normalize/spectral_norm/{U}'
        elif last in ('w', 'Matrix'): to = above + weight
        elif last in ('bias', 'biases'): to = f'{above}{inner}/bias'
        else: to = f'{above}{scope}/' + dict(mean='moving_mean', var='moving_variance').get(last, last)
        if last in ('gamma', 'beta') and t.ndim == 2: t = t[:, None, None]   # (K, 1, 1, C)
        out[to] = t.reshape(-1) if last in ('mean', 'var') else t
    return out | {'global_step': np.array(7), f'{above}x/Adam': np.zeros(3, np.float32)}


@pytest.fixture
def theirs(monkeypatch): monkeypatch.setattr(released, 'Net', LocalNet)


@pytest.mark.parametrize('doubled', [True, False])
@pytest.mark.parametrize('source', ['auto', 'tfgan'])
def test_generator(theirs, monkeypatch, tmp_path, doubled, source):
    monkeypatch.setattr(LocalNet, 'full', source == 'tfgan')
    p = with_other_u(planted('G', width=32, K=3, Z=6, blocks=3, at=2))
    arrays = under_their_names(p, 'Generator/generator/', doubled)
    rng, y = np.random.default_rng(0), np.array([0, 2])
    z = rng.normal(size=(2, 6)).astype(np.float32)
    G, want = load_weights(arrays, source), released.generator(p, z, y, at=2)[0]
    assert isinstance(G.extra['16'], LocalAttention) == (source == 'auto')
    assert np.abs(G(torch.from_numpy(z), torch.from_numpy(y)).detach().permute(0, 2, 3, 1).numpy() - want).max() < 1e-4
    assert {*G.report.used} | {*G.report.unused} == {*arrays} and 'never run on their weights' in str(G.report)
    if source == 'auto':
        save_pretrained(G, tmp_path/'g.safetensors')
        back = load_weights(tmp_path/'g.safetensors')
        assert torch.equal(back(torch.from_numpy(z), torch.from_numpy(y)), G(torch.from_numpy(z), torch.from_numpy(y)))
    again = restore_network(recipe_of(G), G.state_dict())
    assert torch.equal(again(torch.from_numpy(z), torch.from_numpy(y)), G(torch.from_numpy(z), torch.from_numpy(y)))


def test_discriminator(theirs):
    p = with_other_u(planted('D', width=32, K=3, blocks=3, at=2))
    arrays = under_their_names(p, 'Discriminator/discriminator/', True)
    x, y = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32), np.array([0, 2])
    D, want = load_weights(arrays), released.discriminator(p, x, y, at=2)[0][:, 0]
    got = D(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)).detach().numpy()
    assert np.abs(got - want).max() < 1e-4*np.abs(want).max() and isinstance(D.extra['8'], LocalAttention)
    both = arrays | under_their_names(with_other_u(planted('G', width=32, K=3, Z=6, at=2)), 'Generator/generator/', True)
    assert np.abs(load_weights(both, part='D')(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)).detach().numpy() - got).max() == 0


@pytest.mark.parametrize('side', [4, 8, 32])
def test_masks_are_those_of_the_source(side):
    assert np.array_equal(local_masks(side).numpy(), patterns(side)) and local_masks(side).any(-1).all()


def test_what_does_not_fit_is_refused():
    arrays = under_their_names(with_other_u(planted('G', width=32, K=3, Z=6, at=2)), 'Generator/generator/', False)
    some = next(k for k in arrays if k.endswith('g_snh0/dense/kernel'))
    u = next(k for k in arrays if k.endswith(U) and 'g_snh0' in k)
    without = lambda *names: {k: v for k, v in arrays.items() if k not in names}
    with pytest.raises(Refused, match=f'g_snh0/dense/kernel has no {U}'): load_weights(without(u))
    with pytest.raises(Refused, match='u of g_snh0/dense/kernel has shape'): load_weights(arrays | {u: np.zeros((3, 1), np.float32)})
    with pytest.raises(Refused, match='ylg:'): load_weights(without(some, u))
    with pytest.raises(Refused, match='those of ylg and tfgan, not of biggan'): load_weights(arrays, 'biggan')
    with pytest.raises(Refused, match='multiple of 64'): LocalAttention(96)
