"""The official equations in NumPy and float64, from variables under their own names and in their own layout (NHWC). Shares no line with the package.

Written from the equations of brain-research/self-attention-gan (commit ad9612e): one power step per forward from the stored u (eps added to the norm),
conditional batch norm with biased statistics, max-pooled keys and values, sum pooling, projection head.
"""
import numpy as np


class Net:
    "Variables `p` (any scope prefix removed), and in `after` those that a forward changes."
    def __init__(self, p): self.p, self.after, self.stages = {k: np.asarray(v, np.float64) for k, v in p.items()}, {}, {}

    def sn(self, name, key='w'):
        "The weight divided by its sigma; plain where there is no u."
        w, u = self.p[f'{name}/{key}'], self.p.get(f'{name}/u')
        if u is None: return w
        m = (w.T if key == 'embedding_map' else w).reshape(-1, u.size)
        unit = lambda t: t / (np.sqrt((t**2).sum()) + 1e-12)
        v = unit(u @ m.T)
        self.after[f'{name}/u'] = u = unit(v @ m)
        return w / (v @ m @ u.T).item()

    def conv(self, x, name):
        w = self.sn(name)
        k = w.shape[0]
        xp = np.pad(x, ((0, 0), (k//2, k//2), (k//2, k//2), (0, 0)))
        B, H, W, _ = x.shape
        out = sum(xp[:, i:i + H, j:j + W] @ w[i, j] for i in range(k) for j in range(k))
        return out + self.p.get(f'{name}/biases', 0.)

    def norm(self, x, name, y, train):
        last = y is None
        mean, var, decay = (('moving_mean', 'moving_variance', .9999) if last else ('mean', 'var', .999))
        gamma, beta = (self.p[f'{name}/{k}'] if last else self.p[f'{name}/{k}'][y][:, None, None] for k in ('gamma', 'beta'))
        m, s = self.p[f'{name}/{mean}'], self.p[f'{name}/{var}']
        if train:
            m, s, n = x.mean((0, 1, 2)), x.var((0, 1, 2)), x[..., 0].size
            for k, new in ((mean, m), (var, s*n/(n - 1) if last else s)):
                old = self.p[f'{name}/{k}']
                self.after[f'{name}/{k}'] = decay*old + (1 - decay)*new.reshape(old.shape)
        return (x - m) / np.sqrt(s + (1.001e-5 if last else 1e-5)) * gamma + beta

    def attention(self, x, name):
        B, H, W, C = x.shape
        pool = lambda t: t.reshape(B, H//2, 2, W//2, 2, -1).max((2, 4)).reshape(B, H*W//4, -1)
        theta, phi, g = (self.conv(x, f'{name}/sn_conv_{n}') for n in ('theta', 'phi', 'g'))
        s = theta.reshape(B, H*W, -1) @ pool(phi).swapaxes(1, 2)
        beta = np.exp(s - s.max(-1, keepdims=True))
        o = beta / beta.sum(-1, keepdims=True) @ pool(g)
        return x + self.p[f'{name}/sigma_ratio'] * self.conv(o.reshape(B, H, W, -1), f'{name}/sn_conv_attn')

    def stage(self, name, x):
        self.stages[name] = x
        return x


def relu(t): return np.maximum(t, 0)


def up(t): return t.repeat(2, 1).repeat(2, 2)


def down(t): return t.reshape(len(t), t.shape[1]//2, 2, t.shape[2]//2, 2, -1).mean((2, 4))


def generator(p, z, y, at=0, train=False):
    "`at`: number of the block (from 1) that attention follows; 0: none. Returns (pictures, Net)."
    n = Net(p)
    first, c1, c2, c3, last = ('g_snh0', 'snconv1', 'snconv2', 'snconv3', 'g_snconv_last')
    if 'g_h0/Matrix' in p: first, c1, c2, c3, last = ('g_h0', 'conv1', 'conv2', 'conv3', 'g_conv_last')
    x = (np.asarray(z, np.float64) @ n.sn(first, 'Matrix') + n.p[f'{first}/bias']).reshape(len(z), 4, 4, -1)
    for i in range(1, 1 + sum(k.endswith('cbn_0/gamma') for k in p)):
        b = f'g_block{i}'
        h = n.conv(up(relu(n.norm(x, f'{b}/cbn_0', y, train))), f'{b}/{c1}')
        h = n.conv(relu(n.norm(h, f'{b}/cbn_1', y, train)), f'{b}/{c2}')
        x = n.stage(b, n.conv(up(x), f'{b}/{c3}') + h)
        if i == at: x = n.stage('g_non_local', n.attention(x, 'g_non_local'))
    return np.tanh(n.conv(relu(n.norm(x, 'g_bn', None, train)), last)), n


def discriminator(p, x, y, at=0):
    "`at`: number of the block (from 1) that attention follows. Returns (logits (B, 1), Net)."
    n, x = Net(p), np.asarray(x, np.float64)
    blocks = ['d_optimized_block1', *(f'd_block{i}' for i in range(2, 99) if f'd_block{i}/sn_conv1/w' in p)]
    for i, b in enumerate(blocks, 1):
        h = n.conv(relu(n.conv(x if i == 1 else relu(x), f'{b}/sn_conv1')), f'{b}/sn_conv2')
        if i == 1: x = down(h) + n.conv(down(x), f'{b}/sn_conv3')
        elif i < len(blocks) and f'{b}/sn_conv3/w' in p: x = down(h) + down(n.conv(x, f'{b}/sn_conv3'))
        else: x = h + (n.conv(x, f'{b}/sn_conv3') if f'{b}/sn_conv3/w' in p else x)
        n.stage(b, x)
        if i == at: x = n.stage('d_non_local', n.attention(x, 'd_non_local'))
    h = relu(x).sum((1, 2))
    logit = h @ n.sn('d_sn_linear', 'Matrix') + n.p['d_sn_linear/bias']
    return logit + (n.sn('d_embedding', 'embedding_map')[y] * h).sum(1, keepdims=True), n


def planted(kind, width=4, K=3, Z=6, blocks=3, at=2, seed=0, channels=None, short=None):
    "Random variables of a network, all away from their initial values: what the code makes at `width`, with fewer blocks."
    rng, p = np.random.default_rng(seed), {}
    f32 = lambda t: np.asarray(t, np.float32)

    def sn(name, *shape, key='w', bias='biases', rows=None):
        p[f'{name}/{key}'] = f32(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])))
        u = rng.normal(size=(1, rows or shape[-1]))
        p[f'{name}/u'] = f32(u / np.linalg.norm(u))
        if bias: p[f'{name}/{bias}'] = f32(rng.normal(size=shape[-1]) * .1)

    def norm(name, K, shape, C, names):
        values = (rng.uniform(.5, 1.5, (*K, C)), rng.normal(size=(*K, C)) * .2, rng.normal(size=(*shape, C)) * .2, rng.uniform(.5, 1.5, (*shape, C)))
        p.update(zip((f'{name}/{n}' for n in names), map(f32, values)))

    def attention(name, c):
        for n, a, b in (('theta', c, c//8), ('phi', c, c//8), ('g', c, c//2), ('attn', c//2, c)): sn(f'{name}/sn_conv_{n}', 1, 1, a, b, bias=None)
        p[f'{name}/sigma_ratio'] = f32(.7)
    if kind == 'G':
        C = [16*width, *(width * 2**(blocks - i) for i in range(1, blocks + 1))]
        sn('g_snh0', Z, 16*C[0], key='Matrix', bias='bias')
        for i, (a, b) in enumerate(zip(C, C[1:]), 1):
            for n, c in (('cbn_0', a), ('cbn_1', b)): norm(f'g_block{i}/{n}', (K,), (1, 1, 1), c, ('gamma', 'beta', 'mean', 'var'))
            for n, k, c in (('snconv1', 3, a), ('snconv2', 3, b), ('snconv3', 1, a)): sn(f'g_block{i}/{n}', k, k, c, b)
        if at: attention('g_non_local', C[at])
        norm('g_bn', (), (), C[-1], ('gamma', 'beta', 'moving_mean', 'moving_variance'))
        sn('g_snconv_last', 3, 3, C[-1], 3)
        return p
    C = [3, *(channels or [*(width * 2**i for i in range(blocks)), width * 2**(blocks - 1)])]     # `blocks` that halve, and one that does not
    short = short or [True]*blocks + [False]                                                     # which shortcuts have weights
    for i, (a, b) in enumerate(zip(C, C[1:]), 1):
        block = 'd_optimized_block1' if i == 1 else f'd_block{i}'
        for n, k, c in (('sn_conv1', 3, a), ('sn_conv2', 3, b), ('sn_conv3', 1, a)):
            if n != 'sn_conv3' or short[i - 1]: sn(f'{block}/{n}', k, k, c, b)
    if at: attention('d_non_local', C[at])
    sn('d_sn_linear', C[-1], 1, key='Matrix', bias='bias')
    sn('d_embedding', K, C[-1], key='embedding_map', bias=None, rows=K)
    return p
