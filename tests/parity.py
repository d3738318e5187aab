"How far our networks are from the stored inputs and outputs of the others (../shared/data/parity); used by test_interop.py."
import json
import platform
import re
from pathlib import Path

import numpy as np
import torch

from sagan_nb.interop import load_weights
from sagan_nb.self_attention import attention_map
from sagan_nb.spectral_norm import SpectralNorm, real_pass
from sagan_nb.machinery.peers import convert

DATA = Path(__file__).parents[2]/'shared'/'data'/'parity'
CASES = sorted(p.parent.relative_to(DATA).as_posix() for p in DATA.glob('*/*/meta.json')) if DATA.exists() else []
MODES = {('official-tf', 'generator'): ('eval', 'train'), ('official-tf', 'discriminator'): ('no_ops', 'update'),
         ('biggan-pytorch', 'generator'): ('eval', 'train'), ('biggan-pytorch', 'discriminator'): ('eval', 'train'),
         ('studiogan', 'generator'): ('eval', 'train'),
         ('studiogan', 'discriminator'): ('eval', 'train', 'eval_relu_out_of_place', 'train_relu_out_of_place')}
ROWS = [(c, n, m) for c in CASES for n in ('generator', 'discriminator') for m in MODES[c.split('/')[0], n]]


class Fixture:
    "One network of one case."
    def __init__(self, case, network):
        read = lambda what: {k: v for k, v in np.load(DATA/case/f'{network}.{what}.npz', allow_pickle=False).items()}
        self.network, self.weights, self.io = network, read('weights'), read('io')
        self.tf = case.startswith('official')

    def load(self, mode):
        "Our network, in this mode."
        net = load_weights(self.weights, inplace=False if 'out_of_place' in mode else None)
        return net.train(mode.startswith(('train', 'update')))

    def picture(self, x):
        "NCHW."
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if self.tf else x))

    def ours(self, changed, zero=False):
        "Their tensors under our names in our layout, float64; `zero`: as a linear map (gradients)."
        f64 = lambda d: {k: v.astype(np.float64) if v.dtype.kind == 'f' else v for k, v in d.items()}
        _, state, report = convert(f64(self.weights | changed))
        base = convert(f64(self.weights | {k: np.zeros_like(v) for k, v in changed.items()}))[1] if zero else {}
        return {report.used[k]: state[report.used[k]] - base.get(report.used[k], 0) for k in changed if k in report.used}


def off(a, b, relative=True):
    "Largest difference, relative to the largest expected value."
    a, b = (torch.as_tensor(t).detach().double() for t in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    return ((a - b).abs().max() / (b.abs().max().clamp_min(1e-12) if relative else 1)).item()


def run(f, net, mode):
    "One forward as in the fixture; (output, stage outputs)."
    stages, y = {}, torch.from_numpy(f.io['y'])
    for name, m in net.named_modules():
        if re.fullmatch(r'linear|blocks\.\w+|extra\.\w+', name): m.register_forward_hook(lambda m, i, o, name=name: stages.update({name: o}))
    args = (torch.from_numpy(f.io['z']) if f.network == 'generator' else f.picture(f.io['image']), y)
    if mode != 'update': return net(*args), stages
    with real_pass(net): return net(*args), stages


def module_of(net, theirs):
    "Our module for one of their modules."
    used = next(v for k, v in net.report.used.items() if k.split('/', 1)[-1].startswith(theirs + '/') or k.startswith((theirs + '.', theirs + '/')))
    return re.match(r'(blocks|extra)\.\w+|\w+', used)[0]


def stages_off(f, net, stages, mode):
    prefix, worst = 'stage/' if f'stage_{mode}' not in {k.split('/')[0] for k in f.io} else f'stage_{mode}/', []
    for key in (k for k in f.io if k.startswith(prefix)):
        theirs, what = key[len(prefix):].rsplit('/', 1)
        x = stages[module_of(net, theirs)]
        x = x.unflatten(1, (-1, 4, 4)) if x.ndim == 2 else x
        worst.append(off(x.mean((2, 3)) if what == 'mean' else x.square().mean((2, 3)).sqrt(), f.io[key]))
    return max(worst)


def sigmas_off(f, net, mode):
    "(sigmas, effective weights) of a network that has not run yet."
    short, (sig, eff) = mode.split('_relu')[0], ([], [])
    norms = {n: (m, net.get_parameter(n.rsplit('.', 1)[0] + '.original')) for n, m in net.named_modules() if isinstance(m, SpectralNorm)}
    for m, W in norms.values():
        if m.moves(): m.advance(W)
    raw = lambda theirs: next(k for k in (theirs, *(f'{theirs}{e}' for e in ('/w', '/Matrix', '/embedding_map', '.weight', '.weight_orig'))) if k in f.weights)
    for key, expected in f.io.items():
        kind, _, theirs = key.partition('/')
        if kind not in ('sigma', 'effective_weight', f'sigma_{short}', f'effective_weight_{short}'): continue
        name = net.report.used[raw(theirs)]
        m, W = norms[name.replace('.original', '.0')]
        if kind.startswith('sigma'): sig.append(off(m.sigma(W), expected.reshape(())))
        else: eff.append(off(m(W), f.ours({raw(theirs): expected}, zero=True)[name]))
    return max(sig, default=None), max(eff, default=None)


def attention_off(f, mode):
    "The attention layer alone, on a map that is not square."
    x, expected = f.picture(f.io['attention_input']), f.picture(f.io['attention_output'])
    def block(fast):
        own = [*f.load(mode).eval().extra.values()][0]               # each of its own: the released code moves u at every call
        own.fast = fast
        return own
    return max(*(off(block(fast)(x), expected) for fast in (True, False)), off(attention_map(block(True), x), f.io['attention_probs']))


def gradients_off(f, net, out, mode):
    "Gradients of the sum of the output."
    prefix = next((p for p in (f'grad_{mode}/', 'grad/') if any(k.startswith(p) for k in f.io)), None)
    if prefix is None or mode.startswith('eval') or mode == 'no_ops': return None
    theirs = {k[len(prefix):]: v for k, v in f.io.items() if k.startswith(prefix)}
    out.sum().backward()
    return max(off(net.get_parameter(name).grad, g) for name, g in f.ours(theirs, zero=True).items())


def after_off(f, net, mode):
    "What one forward changed: power vectors and batch statistics; and that nothing else did."
    prefix = f'after_{mode}/'
    changed = f.ours({k[len(prefix):]: v for k, v in f.io.items() if k.startswith(prefix)})
    state, before = net.state_dict(), f.load(mode).state_dict()
    for name in state:
        still = name in changed or name.endswith('.v') or torch.equal(state[name], before[name])
        assert still or mode.endswith('place') or off(state[name], before[name]) < 1e-6, f'{name} changed'
    return max((off(state[name], t.reshape(state[name].shape)) for name, t in changed.items()), default=None)


def measure(case, network, mode):
    "One row of the table: largest differences."
    f = Fixture(case, network)
    net, row = f.load(mode), dict(case=case, network=network, mode=mode)
    out, stages = run(f, net, mode)
    if network == 'generator': row['images'] = off(out, f.picture(f.io[f'images_{mode}']), relative=False)
    else: row['logits'] = off(out, f.io['logits' if 'logits' in f.io else f'logits_{mode}'].ravel())
    row['stages'] = stages_off(f, net, stages, mode)
    row['gradients'] = gradients_off(f, net, out, mode)
    row['after'] = after_off(f, net, mode)
    row['sigma'], row['weights'] = sigmas_off(f, f.load(mode), mode)
    if 'attention_input' in f.io and mode in ('eval', 'no_ops'): row['attention'] = attention_off(f, mode)
    return {k: v for k, v in row.items() if v is not None}


def table():
    "All rows, with what they were measured on."
    meta = {c: json.loads((DATA/c/'meta.json').read_text(encoding='utf-8')) for c in CASES}
    return dict(rows=[measure(*o) for o in ROWS], peers={o['peer']: f"commit {o['commit']}, {o['framework']}" for o in meta.values()},
                protocol='largest difference over all stored values of a kind; images absolute, the rest relative to the largest stored value; float32',
                env=dict(torch=torch.__version__, numpy=np.__version__, device=platform.processor() or platform.machine(), threads=torch.get_num_threads()))
