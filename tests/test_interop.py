"The same weights give the same pictures in everybody's code: stored outputs of the others, float64 references, round trips, hostile files."
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import parity
import released
from sagan_nb import interop
from sagan_nb.config import preset
from sagan_nb.core import Refused, close
from sagan_nb.interop import load_weights
from sagan_nb.networks import Discriminator, Generator
from sagan_nb.spectral_norm import real_pass
from sagan_nb.train import fit, make_gan
from sagan_nb.machinery import door, peers, publish, recipe as recipe_room
from sagan_nb.machinery.publish import divided_weights, export_onnx, save_pretrained, to_biggan
from sagan_nb.machinery.recipe import recipe_of

ROOT = Path(__file__).parents[1]
BOUNDS = dict(images=1e-4, logits=1e-4, stages=1e-4, sigma=1e-5, weights=1e-5, attention=1e-5, gradients=1e-3, after=1e-5)
here = pytest.mark.skipif(not parity.CASES, reason='../shared/data/parity is not on this machine')


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv('IN_TEST', '1')


def noise(G, n=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, G.z_dim, generator=rng), torch.randint(max(G.n_classes, 1), (n,), generator=rng)


def nhwc(x): return x.detach().permute(0, 2, 3, 1)


# --- stored outputs of the others ---------------------------------------------------------------------------------------------------

@here
@pytest.mark.parametrize('row', parity.ROWS or [None], ids=lambda o: o and '-'.join(o))
def test_fixture(row):
    found = parity.measure(*row)
    bad = {k: v for k, v in found.items() if k in BOUNDS and not v <= BOUNDS[k]}
    assert not bad, f'{row}: {bad}'


@here
def test_the_table_is_complete():
    stored = json.loads((ROOT/'results'/'parity.json').read_text(encoding='utf-8'))
    assert [(o['case'], o['network'], o['mode']) for o in stored['rows']] == parity.ROWS
    assert all(v <= BOUNDS[k] for o in stored['rows'] for k, v in o.items() if k in BOUNDS)


@here
@pytest.mark.long
def test_write_the_table():
    commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    stored = parity.table()
    stored['env']['commit'] = commit or None
    (ROOT/'results'/'parity.json').write_text(json.dumps(stored, indent=1), encoding='utf-8')


@here
def test_a_batch_is_as_good_as_another():
    "One picture at a time, in evaluation."
    f = parity.Fixture('biggan-pytorch/attn64_w8', 'generator')
    net, z, y = f.load('eval'), torch.from_numpy(f.io['z']), torch.from_numpy(f.io['y'])
    close(torch.cat([net(z[i:i + 1], y[i:i + 1]) for i in range(len(z))]), f.io['images_eval'], rtol=0, atol=1e-4)


# --- the official equations in float64, without ../shared ---------------------------------------------------------------------------

SIZES = [dict(width=4, K=3, Z=6, blocks=3, at=2), dict(width=3, K=2, Z=5, blocks=3, at=1), dict(width=2, K=5, Z=9, blocks=4, at=3),
         dict(width=1, K=4, Z=4, blocks=5, at=2), dict(width=2, K=2, Z=3, blocks=3, at=0)]


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
def test_official_generator(size, train):
    size = dict(size, width=max(size['width'], 8)) if size['at'] > 2 else size
    p = released.planted('G', **size)
    G = load_weights({f'model/{k}:0': v for k, v in p.items()} | {'global_step': np.array(7), 'model/g_step:0': np.array(7), 'model/d_step:0': np.array(7), 'model/g_bn/gamma/Adam': np.zeros(3)}).train(train).double()
    assert (G.res, G.n_classes, G.z_dim) == (4 * 2**size['blocks'], size['K'], size['Z'])
    assert G.attn_at == ((4 * 2**size['at'],) if size['at'] else ())
    z, y = noise(G)
    z = z.double()
    expected, ref = released.generator(p, z.numpy(), y.numpy(), size['at'], train)
    close(nhwc(G(z, y)), expected, rtol=0, atol=1e-12)
    after = peers.convert(p | {k: v.astype(np.float32) for k, v in ref.after.items()})[1]
    for name, t in G.state_dict().items():
        if not name.endswith('.v'): close(t, after[name], rtol=1e-5, atol=1e-5)


def discriminators():
    yield dict(width=4, K=3, blocks=3, at=2), 32
    yield dict(width=3, K=2, blocks=4, at=3), 64
    yield dict(width=2, K=5, blocks=5, at=4), 128
    yield dict(K=3, at=1, channels=(8, 8, 8, 8), short=[True, True, False, False]), 32          # BigGAN-PyTorch and StudioGAN at 32
    yield dict(K=3, at=1, channels=(8, 16, 16, 24, 32), short=[True]*5), 64                      # the last one keeps its size
    yield dict(K=2, at=0, channels=(4, 8, 8, 8, 8, 16, 16), short=[True]*6 + [False]), 256


@pytest.mark.parametrize('size,res', [*discriminators()], ids=str)
def test_official_discriminator(size, res):
    if size.get('at', 0) > 2: size = dict(size, width=8)
    p = released.planted('D', **size)
    D = load_weights(p)
    assert (D.res, D.n_classes, len(D.blocks)) == (res, size['K'], len(size.get('channels', range(size.get('blocks', 0) + 1))))
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, res, res, 3)).astype(np.float32), np.array([0, size['K'] - 1])
    expected, ref = released.discriminator(p, x, y, size['at'])
    args = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)
    close(D(*args), expected[:, 0], rtol=1e-4, atol=1e-5)
    before = {k: v.clone() for k, v in D.state_dict().items()}
    D.train()(*args)
    assert all(torch.equal(before[k], v) for k, v in D.state_dict().items()), 'u moves on real pictures only'
    with real_pass(D): D(*args)
    after = peers.convert(p | {k: v.astype(np.float32) for k, v in ref.after.items()})[1]
    for name, t in D.state_dict().items():
        if name.endswith('.u'): close(t, after[name], rtol=1e-5, atol=1e-5)


# --- other names and sizes: official weights, renamed here ----------------------------------------------------------------------------

def renamed(p, peer, at):
    "Official variables as another implementation would have them; written from their sources, not from our loader."
    out, G = {}, 'g_bn/gamma' in p
    blocks = ['g_block%d' % i for i in range(1, 9)] if G else ['d_optimized_block1', *('d_block%d' % i for i in range(2, 9))]
    blocks = [b for b in blocks if any(k.startswith(b + '/') for k in p)]

    def layer(ours, theirs, grid=False):
        if f'{ours}/u' not in p: return
        W = next(p[f'{ours}/{k}'] for k in ('w', 'Matrix', 'embedding_map') if f'{ours}/{k}' in p).astype(np.float64)
        W, u = (W.transpose(3, 2, 0, 1) if W.ndim == 4 else W if 'embedding' in ours else W.T), p[f'{ours}/u'][0].astype(np.float64)
        b = p.get(f'{ours}/biases', p.get(f'{ours}/bias'))
        if grid:
            order = np.arange(len(W)).reshape(16, -1).T.ravel()
            W, u, b = W[order], u[order], b[order]
        m = W.reshape(len(W), -1)
        v = m.T @ u / np.linalg.norm(m.T @ u)
        if peer == 'biggan': out.update({f'{theirs}.weight': W, f'{theirs}.u0': u[None], f'{theirs}.sv0': np.ones(1)})
        else: out.update({f'{theirs}.weight_orig': W, f'{theirs}.weight_u': m @ v / np.linalg.norm(m @ v), f'{theirs}.weight_v': v})
        if b is not None: out[f'{theirs}.bias'] = b

    def norm(ours, theirs):
        t = {k: p[f'{ours}/{k}'].astype(np.float64) for k in ('gamma', 'beta')}
        for k in ('mean', 'var'): out[theirs + dict(biggan=f'.stored_{k}', studiogan=f'.bn.running_{k}', mmgeneration=f'.norm.running_{k}')[peer]] = p[f'{ours}/{k}'].ravel()
        names = dict(biggan=('.gain', '.bias'), studiogan=('.gain', '.bias'), mmgeneration=('.weight_embedding', '.bias_embedding'))[peer]
        if peer != 'studiogan': return out.update({f'{theirs}{names[0]}.weight': t['gamma'] - 1, f'{theirs}{names[1]}.weight': t['beta']})
        out[f'{theirs}.bn.num_batches_tracked'] = np.array(3)
        for name, T in zip(names, (t['gamma'].T - 1, t['beta'].T)):
            U, S, V = np.linalg.svd(T)
            out.update({f'{theirs}{name}.weight_orig': T * 3, f'{theirs}{name}.weight_u': U[:, 0], f'{theirs}{name}.weight_v': V[0]})
    conv = dict(biggan=('conv1', 'conv2', 'conv_sc'), studiogan=('conv2d1', 'conv2d2', 'conv2d0'), mmgeneration=('conv_1.conv', 'conv_2.conv', 'shortcut.conv'))[peer]
    attn = dict(biggan=('theta', 'phi', 'g', 'o', 'gamma'), studiogan=('conv1x1_theta', 'conv1x1_phi', 'conv1x1_g', 'conv1x1_attn', 'sigma'),
                mmgeneration=('theta.conv', 'phi.conv', 'g.conv', 'o.conv', 'gamma'))[peer]
    j = 0
    for i, b in enumerate(blocks, 1):
        theirs = {'biggan': f'blocks.{i - 1}.0', 'studiogan': f'blocks.{j}.0', 'mmgeneration': f'conv_blocks.{j}'}[peer]
        if peer == 'mmgeneration' and not G and i == 1: theirs = 'from_rgb'
        else: j += 1
        for ours, name in zip((1, 2, 3), conv): layer(f'{b}/{"snconv" if G else "sn_conv"}{ours}', f'{theirs}.{name}')
        if G:
            for k in (1, 2): norm(f'{b}/cbn_{k - 1}', f'{theirs}.{"norm_" if peer == "mmgeneration" else "bn"}{k}')
        if i == at:
            theirs = {'biggan': f'blocks.{i - 1}.1', 'studiogan': f'blocks.{j}.0', 'mmgeneration': f'conv_blocks.{j}'}[peer]
            j += 1
            for ours, name in zip(('theta', 'phi', 'g', 'attn'), attn): layer(f'{"gd"[not G]}_non_local/sn_conv_{ours}', f'{theirs}.{name}')
            out[f'{theirs}.{attn[4]}'] = p[f'{"gd"[not G]}_non_local/sigma_ratio'].reshape((1,) if peer == 'studiogan' else ())
    if not G:
        for ours, name in zip(('d_sn_linear', 'd_embedding'), dict(biggan=('linear', 'embed'), studiogan=('linear1', 'embedding'), mmgeneration=('decision', 'proj_y'))[peer]): layer(ours, name)
        return out
    first, bn, last = dict(biggan=('linear', 'output_layer.0', 'output_layer.2'), studiogan=('linear0', 'bn4', 'conv2d5'),
                           mmgeneration=('noise2feat', 'to_rgb.bn', 'to_rgb.conv'))[peer]
    layer('g_snh0', first, grid=True)
    layer('g_snconv_last', last)
    names = ('gain', 'bias', 'stored_mean', 'stored_var') if peer == 'biggan' else ('weight', 'bias', 'running_mean', 'running_var')
    out.update({f'{bn}.{n}': p[f'g_bn/{k}'] for n, k in zip(names, ('gamma', 'beta', 'moving_mean', 'moving_variance'))})
    return out


PEERS = ('biggan', 'studiogan', 'mmgeneration')


@pytest.mark.parametrize('peer', PEERS)
@pytest.mark.parametrize('size', [SIZES[0], dict(width=8, K=5, Z=9, blocks=4, at=4), dict(width=4, K=2, Z=7, blocks=5, at=4)], ids=str)
def test_other_names_generator(peer, size):
    p = released.planted('G', **size)
    if peer == 'studiogan':                                         # its tables have spectral norm 1
        for k in [k for k in p if 'cbn' in k and k.endswith(('gamma', 'beta'))]:
            one = float(k.endswith('gamma'))
            p[k] = ((p[k] - one) / np.linalg.norm(p[k] - one, 2) + one).astype(np.float32)
    arrays = renamed(p, peer, size['at'])
    if peer == 'mmgeneration': arrays = {f'generator.{k}': v*0 for k, v in arrays.items()} | {f'module.generator_ema.{k}': v for k, v in arrays.items()}
    G = load_weights(arrays, bn=dict(eps=1e-5))
    assert (G.res, G.n_classes, G.z_dim, G.attn_at) == (4 * 2**size['blocks'], size['K'], size['Z'], (4 * 2**size['at'],))
    z, y = noise(G)
    close(nhwc(G(z, y)), released.generator(p, z.numpy(), y.numpy(), size['at'])[0], rtol=0, atol=2e-5)
    assert {*G.report.used} | {*G.report.unused} == {*arrays}
    if peer == 'mmgeneration': assert 'never run on real weights' in str(G.report) and 'another network' in str(G.report)


@pytest.mark.parametrize('peer,size', [(peer, size) for peer in PEERS for size in (
    dict(width=8, K=3, blocks=3, at=2), dict(K=3, at=2, channels=(8, 8, 8, 8), short=[True, True, False, False]),
    dict(K=2, at=1, channels=(8, 16, 16, 24, 32), short=[True]*5)) if peer != 'mmgeneration' or size.get('short') != [True]*5], ids=str)
def test_other_names_discriminator(peer, size):
    p = released.planted('D', **size)
    D = load_weights(renamed(p, peer, size['at']), inplace=False)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, D.res, D.res, 3)).astype(np.float32), np.array([0, 1])
    close(D(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)), released.discriminator(p, x, y, size['at'])[0][:, 0], rtol=1e-4, atol=1e-5)


def test_thin_blocks():
    "BigGAN-PyTorch's D_wide=False: the first convolution of a block keeps the channels of its input."
    p, rng = released.planted('D', width=8, blocks=3, at=2), np.random.default_rng(1)
    for i, (a, b) in enumerate(((8, 16), (16, 32), (32, 32)), 2):
        p[f'd_block{i}/sn_conv1/w'], p[f'd_block{i}/sn_conv2/w'] = (rng.normal(size=(3, 3, a, c)).astype(np.float32) for c in (a, b))
        p[f'd_block{i}/sn_conv1/u'], p[f'd_block{i}/sn_conv1/biases'] = (rng.normal(size=s).astype(np.float32) for s in ((1, a), a))
    x, y = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32), np.array([0, 1])
    expected = released.discriminator(p, x, y, 2)[0][:, 0]
    for arrays in (p, renamed(p, 'biggan', 2)):
        D = load_weights(arrays)
        close(D(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)), expected, rtol=1e-4, atol=1e-5)
        assert recipe_of(from_roundtrip(D)) == recipe_of(D) and recipe_of(D)['inner'] == [8, 8, 16, 32]


def test_files_of_all_kinds(tmp_path):
    arrays = {k: np.asarray(v, np.float32) for k, v in renamed(released.planted('G', **SIZES[0]), 'biggan', 2).items()}
    tensors, (z, y) = {k: torch.from_numpy(v) for k, v in arrays.items()}, noise(G := load_weights(arrays))
    np.savez(tmp_path/'a.npz', **arrays)
    torch.save(tensors, tmp_path/'a.pth')
    torch.save(dict(state_dict=tensors, meta=dict(epoch=3)), tmp_path/'b.pt')
    for weights in (tmp_path/'a.npz', np.load(tmp_path/'a.npz'), str(tmp_path/'a.pth'), tmp_path/'b.pt', tensors):
        assert torch.equal(load_weights(weights)(z, y), G(z, y))
    (tmp_path/'model.ckpt-7.index').write_bytes(b'')
    try: import tensorflow as _                                     # noqa: F401
    except ImportError:
        with pytest.raises(Refused, match='needs tensorflow'): load_weights(tmp_path/'model.ckpt-7')


def test_attention_on_every_block():
    "BigGAN-PyTorch at 32 pixels: the map of 8 occurs three times in D, and each gets its own."
    p = renamed(released.planted('D', K=3, at=3, channels=(8, 8, 8, 8), short=[True, True, False, False]), 'biggan', 3)
    for i in (0, 1, 3): p |= {k.replace('blocks.2.1', f'blocks.{i}.1'): v for k, v in p.items() if k.startswith('blocks.2.1')}
    D = load_weights(p)
    assert len(D.extra) == 4 and sorted(D.places) == [0, 1, 2, 3]
    assert recipe_of(from_roundtrip(D)) == recipe_of(D)


def test_colours():
    p = released.planted('G', **SIZES[0])
    z, y = noise(G := load_weights(p))
    close(load_weights(p, bgr=True)(z, y), G(z, y).flip(1), rtol=0, atol=1e-6)
    d = released.planted('D', blocks=3, at=0)
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    close(load_weights(d, bgr=True)(x.flip(1), y), load_weights(d)(x, y), rtol=1e-5, atol=1e-5)


# --- what cannot be read --------------------------------------------------------------------------------------------------------------

HACKED = Path(tempfile.gettempdir())/'sagan_nb_was_hacked'

class Evil:
    def __reduce__(self): return os.system, (f'touch {HACKED}',)


def biggan(): return renamed(released.planted('G', **SIZES[0]), 'biggan', 2)


def without(d, part): return {k: v for k, v in d.items() if part not in k}


@pytest.mark.parametrize('weights,words', [
    (lambda: {'conv1.weight': np.zeros((64, 3, 7, 7)), 'fc.bias': np.zeros(10)}, 'not a SAGAN'),
    (lambda: {'main.0.weight': np.zeros((100, 512, 4, 4)), 'main.1.bias': np.zeros(512)}, 'not a SAGAN'),
    (lambda: {}, 'names begin with nothing'),
    (lambda: biggan() | {'shared.weight': np.zeros((3, 8))}, 'BigGAN with a shared class embedding'),
    (lambda: biggan() | {'blocks.0.0.conv3.weight': np.zeros((3, 8))}, 'blocks.0.0.conv3.weight has no place'),
    (lambda: without(biggan(), 'blocks.1.0.conv2.weight'), 'blocks.1.0.conv2.weight is missing'),
    (lambda: without(biggan(), 'bn1.stored_var'), 'missing'),
    (lambda: biggan() | {'blocks.1.0.conv1.weight': np.zeros((5, 5, 3, 3))}, 'has shape'),
    (lambda: biggan() | {'linear.bias': np.full(1024, np.inf)}, 'linear.bias holds numbers that are not finite'),
    (lambda: biggan() | {'linear.bias': np.array([Evil()])}, 'linear.bias is not an array of numbers'),
    (lambda: biggan() | {'linear.bias': np.arange(1024)}, 'not weights'),
    (lambda: 'no/such/file.npz', 'there is no such file'),
    (lambda: str(ROOT/'setup.py'), 'not a known kind of file')], ids=lambda o: o if isinstance(o, str) else 'weights')
def test_refused(weights, words):
    with pytest.raises(Refused, match=re.escape(words)): load_weights(weights())


def test_wrong_source():
    with pytest.raises(Refused, match='there is no source'): load_weights(biggan(), source='stylegan')
    with pytest.raises(Refused, match='of studiogan'): load_weights(biggan(), source='studiogan')


def test_every_missing_tensor_is_noticed():
    for p in (released.planted('G', **SIZES[0]), released.planted('D', blocks=3), renamed(released.planted('D', blocks=3), 'studiogan', 2)):
        for name in p:
            with pytest.raises(Refused): print(load_weights(without(p, name)).report, name)


@pytest.mark.parametrize('kind', ['pt', 'pth', 'npz', 'safetensors', 'ckpt', 'torch_zip'])
def test_hostile_files(tmp_path, kind):
    file = tmp_path/f'evil.{"pt" if kind == "torch_zip" else kind}'
    if kind in ('pt', 'pth', 'ckpt'): file.write_bytes(pickle.dumps({'state_dict': Evil()}))
    if kind == 'torch_zip': torch.save({'linear.bias': Evil()}, file)
    if kind == 'npz': np.savez(file, **{'linear.bias': np.array([Evil()], dtype=object)})
    if kind == 'safetensors': file.write_bytes(b'\xff'*7 + b'\x7f' + b'{"a":1}')
    with pytest.raises(Refused, match='damaged or hostile'): load_weights(file)
    assert not HACKED.exists(), 'code of the file ran'


def test_truncated_and_foreign_safetensors(tmp_path):
    from safetensors.torch import save_file
    file = save_pretrained(load_weights(biggan()), tmp_path/'a.safetensors')
    (tmp_path/'b.safetensors').write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Refused, match='damaged'): Generator.from_pretrained(tmp_path/'b.safetensors')
    for at in (-1, -5000):                                                       # one bit of a weight
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        (tmp_path/'e.safetensors').write_bytes(content)
        with pytest.raises(Refused, match='the file is damaged'): Generator.from_pretrained(tmp_path/'e.safetensors')
        with pytest.raises(Refused, match='the file is damaged'): load_weights(tmp_path/'e.safetensors')
    save_file({'x': torch.zeros(1)}, tmp_path/'c.safetensors')
    for opens in (Generator.from_pretrained, load_weights):
        with pytest.raises(Refused, match='not a SAGAN'): opens(tmp_path/'c.safetensors')
    save_file({'x': torch.zeros(1)}, tmp_path/'d.safetensors', {'sagan_nb': '{"recipe": {"kind": "Generator", "res": 32}}'})
    with pytest.raises(Refused, match='recipe'): load_weights(tmp_path/'d.safetensors')
    save_file({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in biggan().items()}, tmp_path/'peer.safetensors')
    assert load_weights(tmp_path/'peer.safetensors').report.source == 'biggan'


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    net, write = load_weights(biggan()), Path.write_bytes
    before = save_pretrained(net, tmp_path/'a.safetensors').read_bytes()

    def full(self, data):
        write(self, data[:1000])
        raise OSError(28, 'No space left on device', str(self))
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match='No space'): save_pretrained(net, tmp_path/'a.safetensors')
    assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors'] and (tmp_path/'a.safetensors').read_bytes() == before


def test_one_door(run, tmp_path):
    "A run opens by its folder, the folder of its checkpoints, a checkpoint, also copied out of it, and as a published file; each by either name."
    newest = sorted((run/'checkpoints').glob('*.pt'))[-1]
    want = door.open_run(run)
    published = save_pretrained(run, tmp_path/'g.safetensors')
    for path in (Path(shutil.copy(newest, tmp_path/'copied.pt')), run/'checkpoints', newest, published):
        got = door.open_run(path)
        for G in (got.G, Generator.from_pretrained(path)):
            assert type(G) is Generator and not G.training and all(torch.equal(G.state_dict()[k], v) for k, v in want.G.state_dict().items())
        assert len(got.classes) == 4 and got.step == (0 if path == published else 4)
        if path != published: assert got.cfg == want.cfg
    assert want.classes[0] == got.classes[0] == '0_disc' and want.about['step'] == 4 and want.about['checkpoint'] == newest.name
    D = door.open_run(tmp_path/'copied.pt', part='D').D
    assert type(D) is Discriminator and not D.training and torch.equal(D.linear.bias, want.D.linear.bias)
    with pytest.raises(Refused, match="this is a Generator, and part 'D' was asked for"): door.open_run(published, part='D')
    with pytest.raises(Refused, match="this is a Generator, and part 'D' was asked for"): print(got.D)
    (tmp_path/'cut.pt').write_bytes(newest.read_bytes()[:5000])
    with pytest.raises(Refused, match='damaged'): door.open_run(tmp_path/'cut.pt')
    os.makedirs(tmp_path/'empty')
    with pytest.raises(Refused, match='no checkpoints'): door.open_run(tmp_path/'empty')
    for path in (run, newest):
        with pytest.raises(Refused, match='open_run'): load_weights(path)


def test_opening_to_draw_builds_no_optimiser_and_draws_nothing(run, monkeypatch):
    chapter = sys.modules['sagan_nb.train']
    for room, name in ((torch.optim.Adam, '__init__'), (chapter, 'standing_statistics'), (chapter, 'make_gan'), (door, 'file_sha256')):
        monkeypatch.setattr(room, name, lambda *args, name=name, **kw: pytest.fail(f'{name} was called'))
    before = torch.get_rng_state()
    assert not door.open_run(run).G.training and torch.equal(torch.get_rng_state(), before)


def test_a_tensorflow_checkpoint(tmp_path, monkeypatch):
    "Through a stand-in for TensorFlow's reader: the real one has not been run here."
    arrays = {k: np.asarray(v) for k, v in released.planted('G', **SIZES[0]).items()}
    asked = []
    reader = SimpleNamespace(get_variable_to_shape_map=lambda: {k: v.shape for k, v in arrays.items()}, get_tensor=arrays.get)
    stub = SimpleNamespace(train=SimpleNamespace(load_checkpoint=lambda path: asked.append(path) or reader))
    monkeypatch.setitem(sys.modules, 'tensorflow', stub)
    (tmp_path/'model.ckpt-7.index').write_bytes(b'')
    want = load_weights(arrays).state_dict()
    for path in (tmp_path/'model.ckpt-7', tmp_path/'model.ckpt-7.index'):
        net = load_weights(path)
        assert net.report.source == 'official' and all(torch.equal(v, want[k]) for k, v in net.state_dict().items())
    assert asked == [str(tmp_path/'model.ckpt-7')]*2
    monkeypatch.setitem(sys.modules, 'tensorflow', None)
    with pytest.raises(Refused, match='needs tensorflow'): load_weights(tmp_path/'model.ckpt-7')


def test_prefixes_of_wrappers_are_taken_off(tmp_path):
    "torch.compile and DataParallel, alone and in one another."
    net = load_weights(biggan())
    for prefix in ('module.', '_orig_mod.', 'module._orig_mod.'):
        torch.save({prefix + k: v for k, v in to_biggan(net).items()}, tmp_path/'w.pth')
        assert torch.equal(load_weights(tmp_path/'w.pth').linear.bias, net.linear.bias)


def test_a_network_in_float64_stays_so(tmp_path):
    net = Generator(res=32, width=4, n_classes=3, attn_at=(16,), z_dim=5).double()
    with torch.no_grad():
        for p in net.parameters(): p.add_(1e-10)
    again = Generator.from_pretrained(save_pretrained(net, tmp_path/'d.safetensors'))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


def test_half_precision_is_for_the_file_alone(tmp_path):
    "Half the bytes, the same images but for rounding, computed in float32; what float16 cannot hold is refused."
    torch.manual_seed(0)
    net = Generator(res=32, width=8, n_classes=3, attn_at=(16,), z_dim=5).eval()
    whole, half = (save_pretrained(net, tmp_path/f'{o}.safetensors', half=o) for o in (False, True))
    again = Generator.from_pretrained(half)
    assert whole.stat().st_size > 1.7*half.stat().st_size and again.linear.bias.dtype == torch.float32
    z, y = torch.randn(6, 5), torch.arange(6) % 3
    with torch.no_grad(): a, b = net(z, y), again(z, y)
    assert 0 < (a - b).abs().max() < .02
    with torch.no_grad(): net.linear.bias[0] = 1e6
    with pytest.raises(Refused, match='linear.bias holds numbers that float16 cannot'): save_pretrained(net, half, half=True)


def test_class_names_are_published(tmp_path):
    net = Generator(res=32, width=2, n_classes=3, attn_at=(), z_dim=5)
    path = save_pretrained(net, tmp_path/'a.safetensors', classes=['cat', 'do\x1b[2Jg', 'a, b'])
    assert door.open_run(path).classes == ['cat', 'do\\x1b[2Jg', 'a, b']
    assert door.open_run(save_pretrained(net, path)).classes == ['0', '1', '2']
    for wrong in (['cat'], [1, 2, 3], 'abc', {'a': 1}):
        with pytest.raises(Refused, match='class names .* do not fit'): door.open_run(save_pretrained(net, path, classes=wrong))


# --- there and back -------------------------------------------------------------------------------------------------------------------

def randomise(net, seed=0):
    "Nothing at its initial value."
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters(): p.add_(torch.randn(p.shape, generator=rng) * .3)
        for n, b in net.named_buffers():
            if n.endswith(('mean', 'var')): b.add_(torch.rand(b.shape, generator=rng))
    return net.eval()


def from_roundtrip(net):
    with tempfile.TemporaryDirectory() as folder: return type(net).from_pretrained(save_pretrained(net, f'{folder}/x.safetensors'))


SMALL = dict(res=32, width=4, n_classes=3, attn_at=(16,))
NETS = {
    'G-paper': lambda: Generator(**SMALL, z_dim=5, form='paper'),
    'G-v1': lambda: Generator(**SMALL, z_dim=5, form='v1'),
    'G-released': lambda: Generator(**SMALL, z_dim=5, form='released'),
    'G-residual': lambda: Generator(**SMALL, z_dim=5, block='residual', form='paper'),
    'G-residual3x3': lambda: Generator(**SMALL, z_dim=5, block='residual3x3', form='paper'),
    'G-k2': lambda: Generator(**SMALL, z_dim=5, form='paper', reduction=2),
    'G-unconditional': lambda: Generator(**SMALL | dict(n_classes=0, attn_at=(8, 16)), z_dim=5, sn=False),
    'G-64': lambda: Generator(res=64, width=2, n_classes=2, z_dim=4, attn_at=(8,), sn=dict(eval_sigma='stored', eps=1e-6), bn=dict(ghost=2)),
    'G-official': lambda: load_weights(released.planted('G', **SIZES[0]), bn=dict(eps=1e-5)),
    'G-studiogan': lambda: load_weights(renamed(released.planted('G', **SIZES[0]), 'studiogan', 2)),
    'D': lambda: Discriminator(**SMALL),
    'D-none': lambda: Discriminator(**SMALL | dict(attn_at=()), head='none', sn=False),
    'D-acgan': lambda: Discriminator(**SMALL, head='acgan', block='residual'),
    'D-bench': lambda: Discriminator(res=32, n_classes=3, channels=(16,)*4, down=(True, True, False, False), attn_at=(16,)),
    'D-studiogan': lambda: load_weights(renamed(released.planted('D', width=8, blocks=3), 'studiogan', 2)),
}


@pytest.mark.parametrize('name', NETS)
def test_safetensors_is_bit_exact(name):
    net = randomise(NETS[name]())
    again = from_roundtrip(net)
    assert recipe_of(again) == recipe_of(net) and not again.training
    a, b = net.state_dict(), again.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    args = noise(net, 4) if isinstance(net, Generator) else (torch.rand(2, 3, net.res, net.res), torch.tensor([0, 0]))
    for mode in (False, True):
        x, y = (n.train(mode)(*args) for n in (net, again))
        assert all(torch.equal(p, q) for p, q in zip(x if isinstance(x, tuple) else [x], y if isinstance(y, tuple) else [y]))
    close(*(n.eval()(*args)[0] for n in (divided_weights(net), net)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['G-released', 'G-official', 'D', 'D-bench'])
def test_biggan_is_bit_exact(name):
    net = randomise(NETS[name]())
    with torch.no_grad():
        if isinstance(net, Generator): net.blocks['8'].bn1.gain[0, :3] = torch.tensor([.1, -.3, 0.])
    arrays = to_biggan(net)
    again = load_weights(arrays)
    assert again.report.source == 'biggan'
    a, b = net.state_dict(), again.state_dict()
    assert a.keys() == b.keys() and {k for k in a if not torch.equal(a[k], b[k])} <= {k for k in a if k.endswith('.v')}
    args = noise(net) if isinstance(net, Generator) else (torch.rand(2, 3, net.res, net.res), torch.tensor([0, 2]))
    assert torch.equal(net(*args), again(*args))


@pytest.mark.parametrize('name', [o for o in NETS if o not in ('G-64', 'G-official', 'G-studiogan', 'D-studiogan')])
def test_own_names_without_a_recipe(name):
    net = NETS[name]().eval()
    again = load_weights(net.state_dict())
    args = noise(net) if isinstance(net, Generator) else (torch.rand(2, 3, net.res, net.res), torch.tensor([0, 0]))
    x, y = net(*args), again(*args)
    assert all(torch.equal(p, q) for p, q in zip(x if isinstance(x, tuple) else [x], y if isinstance(y, tuple) else [y]))


@pytest.mark.parametrize('name, words', [('G-paper', 'map block'), ('G-studiogan', 'class tables'), ('D-acgan', 'map block'), ('D-studiogan', 'rectified')])
def test_biggan_refuses_what_it_cannot_say(name, words):
    with pytest.raises(Refused, match=words): to_biggan(NETS[name]())


# --- publishing -----------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run folder of four steps."
    from sagan_nb.config import at_scale
    from sagan_nb.data import open_source
    from sagan_nb.machinery.runs import train
    cfg = replace(at_scale(preset('t1_attn_16'), 'smoke'), ema=.9)
    source = open_source('toy', res=cfg.res)
    cfg, out = replace(cfg, n_classes=len(source.classes), data_id=source.fingerprint), tmp_path_factory.mktemp('run')/'toy'
    train(cfg, source, out)
    return out


@pytest.mark.parametrize('path', sorted((ROOT/'results').glob('*/t1_*.safetensors')), ids=lambda path: path.stem)
def test_the_code_on_the_card_of_a_published_file_runs(path):
    "As it stands in the file: what it imports must be there today."
    with safe_open(path, 'pt') as f: card = f.metadata()['model_card']
    code, = re.findall('```python\n(.*?)```', card, re.S)
    exec(code, dict(PATH=str(path)))


def test_publish_a_run(run, tmp_path):
    from sagan_nb.machinery.checkpoints import load_checkpoint, newest_checkpoint
    from sagan_nb.train import sampler
    expected = sampler(load_checkpoint(newest_checkpoint(run)))
    args = noise(expected)
    assert torch.equal(door.open_run(run).G(*args), expected(*args))
    file = publish.export(run, 'safetensors', tmp_path/'out')
    assert torch.equal(Generator.from_pretrained(tmp_path/'out')(*args), expected(*args))
    assert torch.equal(load_weights(tmp_path/'out')(*args), expected(*args))
    assert file.name == 'model.safetensors' and 't1_attn_16, step 4' in (tmp_path/'out'/'README.md').read_text()
    with pytest.raises(Refused, match='choose'): publish.export(run, 'keras')
    with pytest.raises(Refused, match='no run'): door.open_run(tmp_path)


def test_published_needs_no_trainer_and_two_seconds(tmp_path):
    "Seconds of the processor: other programs may share the machine."
    G = Generator(res=128, width=64, n_classes=1000, attn_at=(32,))
    file = save_pretrained(G, tmp_path/'g.safetensors')
    code = f'''import sys, torch, time
start = time.process_time()
from sagan_nb.networks import Generator
G = Generator.from_pretrained({str(file)!r})
seconds = time.process_time() - start
assert not {{'sagan_nb.train', 'sagan_nb.data', 'nbdev', 'matplotlib', 'IPython'}} & {{*sys.modules}}, sorted(sys.modules)
print(seconds)'''
    times = [float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout) for _ in range(2)]
    assert min(times) < 2, times


def test_part_that_is_not_there(run, tmp_path):
    D = door.open_run(run).D
    file = save_pretrained(D, tmp_path/'d.safetensors')
    with pytest.raises(Refused, match="this is a Discriminator, and part 'G'"): load_weights(file, part='G')


@pytest.mark.filterwarnings('ignore')
def test_onnx(run, tmp_path):
    pytest.importorskip('onnxruntime', reason='the extra `export` is not installed')
    pytest.importorskip('onnxscript', reason='the extra `export` is not installed')
    assert export_onnx(door.open_run(run).G, tmp_path/'g.onnx') < 1e-4
    assert export_onnx(load_weights(released.planted('G', **SIZES[0])), tmp_path/'o.onnx') < 1e-4
    assert publish.export(run, 'onnx', tmp_path/'r.onnx').stat().st_size > 1000


# --- training: three steps of the released recipe, from the equations, in float64 ---------------------------------------------------------

class Plain:
    "G and D as equations on dicts of float64 tensors: `w` trainable, `b` not (power vectors, moving statistics)."
    def __init__(self, net):
        self.w = {k: v.detach().double().clone().requires_grad_() for k, v in net.named_parameters()}
        self.b = {k: v.detach().double().clone() for k, v in net.named_buffers()}
        self.m, self.v, self.t = {k: 0. for k in self.w}, {k: 0. for k in self.w}, 0

    def weight(self, name, move):
        "W / sigma after one power step from u, gradient through the step; u is stored if `move`."
        W, u = self.w[f'{name}.parametrizations.weight.original'], self.b[f'{name}.parametrizations.weight.0.u']
        M = W.flatten(1)
        v = M.t() @ u / ((M.t() @ u).square().sum().sqrt() + 1e-12)
        u = M @ v / ((M @ v).square().sum().sqrt() + 1e-12)
        if move: self.b[f'{name}.parametrizations.weight.0.u'] = u.detach().clone()
        return W / (u @ M @ v)

    def conv(self, x, name, move, bias=True):
        W = self.weight(name, move)
        return F.conv2d(x, W, self.w[f'{name}.bias'] if bias else None, padding=W.shape[-1] // 2)

    def norm(self, x, name, y, momentum, last):
        "Two towers, each by its own statistics; the moving ones take the mean over towers."
        out, stats = [], []
        for part in x.chunk(2):
            m, s, n = part.mean((0, 2, 3)), part.var((0, 2, 3), correction=0), part[:, 0].numel()
            out.append((part - m[:, None, None]) / (s[:, None, None] + 1e-5).sqrt())
            stats.append((m.detach(), s.detach() * (n/(n - 1) if last else 1)))
        for k, new in zip(('mean', 'var'), zip(*stats)): self.b[f'{name}.{k}'] = (1 - momentum)*self.b[f'{name}.{k}'] + momentum*sum(new)/2
        y = y*0 if last else y
        return torch.cat(out) * self.w[f'{name}.gain'][y][..., None, None] + self.w[f'{name}.offset'][y][..., None, None]

    def attention(self, x, name, move):
        B, C, H, W = x.shape
        f, g, h = (self.conv(x, f'{name}.{k}', move, bias=False) for k in 'fgh')
        f, h = (F.max_pool2d(t, 2).flatten(2) for t in (f, h))
        beta = torch.softmax(g.flatten(2).transpose(1, 2) @ f, -1)
        return x + self.w[f'{name}.gamma'] * self.conv((h @ beta.transpose(1, 2)).unflatten(2, (H, W)), f'{name}.v', move, bias=False)

    def draw(self, z, y):
        x = (z @ self.weight('linear', True).t() + self.w['linear.bias']).unflatten(1, (-1, 4, 4))
        double = lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for m in (8, 16, 32):
            h = self.conv(double(self.norm(x, f'blocks.{m}.bn1', y, 1e-3, False).relu()), f'blocks.{m}.conv1', True)
            h = self.conv(self.norm(h, f'blocks.{m}.bn2', y, 1e-3, False).relu(), f'blocks.{m}.conv2', True)
            x = self.conv(double(x), f'blocks.{m}.short', True) + h
            if m == 16: x = self.attention(x, 'extra.16', True)
        return self.conv(self.norm(x, 'bn', y, 1e-4, True).relu(), 'conv', True).tanh()

    def judge(self, x, y, move):
        for i in range(4):
            h = self.conv(x if i == 0 else x.relu(), f'blocks.{i}.conv1', move)
            h = self.conv(h.relu(), f'blocks.{i}.conv2', move)
            if i == 0: x = F.avg_pool2d(h, 2) + self.conv(F.avg_pool2d(x, 2), 'blocks.0.short', move)
            elif i < 3: x = F.avg_pool2d(h + self.conv(x, f'blocks.{i}.short', move), 2)
            else: x = x + h
            if i == 0: x = self.attention(x, 'extra.16', move)
        h = x.relu().sum((2, 3))
        return (h @ self.weight('linear', move).t() + self.w['linear.bias'])[:, 0] + (self.weight('embed', move)[y]*h).sum(1)

    def adam(self, loss, lr, hat, b2=.999):
        "Adam with beta1 = 0; `hat`: epsilon where TensorFlow adds it."
        self.t += 1
        for (k, p), g in zip(self.w.items(), torch.autograd.grad(loss, list(self.w.values()))):
            self.m[k], self.v[k] = g, b2*self.v[k] + (1 - b2)*g**2
            root = (1 - b2**self.t)**.5
            step = lr*root*g / (self.v[k].sqrt() + 1e-8) if hat else lr*g / (self.v[k].sqrt()/root + 1e-8)
            self.w[k] = (p - step).detach().requires_grad_()


@pytest.mark.parametrize('hat', [True, False], ids=['epsilon-hat', 'torch'])
def test_three_steps_of_the_released_recipe(hat):
    cfg = replace(preset('released'), res=32, width=4, n_classes=3, z_dim=6, attn_at=(16,), batch=4, steps=3, bn_ghost=2, seed=5)
    assert cfg.adam_eps_rule == 'tensorflow'
    if not hat: cfg = replace(cfg, adam_eps_rule='torch')
    assert (cfg.order, cfg.beta1, cfg.beta2, cfg.d_per_g, cfg.sn_update_g, cfg.sn_update_d, cfg.sn_detach) == ('g_then_d', 0, .999, 1, 'always', 'real', False)
    gan, rng = make_gan(cfg), torch.Generator().manual_seed(5)
    randomise(gan.G).train(), randomise(gan.D, 1).train()
    G, D = Plain(gan.G), Plain(gan.D)
    gan.G.double(), gan.D.double()
    noise = gan.noise
    gan.noise = lambda n: (lambda z, y: (z.double(), y))(*noise(n))
    reals = [(torch.rand(4, 3, 32, 32, generator=rng, dtype=torch.float64)*2 - 1, torch.randint(3, (4,), generator=rng)) for _ in range(3)]
    losses, seed = [], torch.Generator().manual_seed(cfg.seed)
    fit(gan, iter(reals), [(1, lambda gan, log: losses.append((log['loss_g'].item(), log['loss_d'].item())))])
    fresh = lambda: (torch.randn(4, 6, generator=seed).double(), torch.randint(3, (4,), generator=seed))
    for t, (x, y) in enumerate(reals):
        z, y_fake = fresh()
        loss_g = -D.judge(G.draw(z, y_fake), y_fake, move=False).mean()
        G.adam(loss_g, 1e-4, hat)
        z, y_fake = fresh()
        fake = G.draw(z, y_fake).detach()
        loss_d = (1 - D.judge(x, y, move=True)).relu().mean() + (1 + D.judge(fake, y_fake, move=False)).relu().mean()
        D.adam(loss_d, 4e-4, hat)
        close(torch.tensor(losses[t]), torch.stack([loss_g, loss_d]), rtol=1e-6, atol=1e-6)
    for ours, ref in ((gan.G, G), (gan.D, D)):
        for k, p in ours.named_parameters(): close(p, ref.w[k], rtol=1e-6, atol=1e-7)
        for k, b in ours.named_buffers():
            if k.endswith(('.u', 'mean', 'var')): close(b, ref.b[k], rtol=1e-6, atol=1e-7)


def test_a_shape_that_lies_costs_no_memory(tmp_path):
    import resource
    G = Generator(res=32, width=4, n_classes=3, attn_at=(16,))
    state, recipe = G.state_dict(), recipe_of(G)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide = dict(recipe, channels=[4_000_000]*4, n_classes=4_000_000)
    big = dict(state, extra=torch.empty(4_000_000, device='meta'))                          # an axis that would allow it
    for r, words in ((wide, 'has shape'), (dict(recipe, bn=dict(eps='x')), 'eps'), (dict(recipe, sn=dict(steps=10**9)), 'steps'), (dict(recipe, channels=[0]*4), 'not one of ours')):
        with pytest.raises(Refused, match=words): recipe_room.restore_network(r, big if r is wide else state)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200*1024
    for text in ('{"recipe": null}', '{"recipe": []}', '{"recipe": "x"}'):
        with pytest.raises(Refused): interop.read_published(state, dict(sagan_nb=text))
