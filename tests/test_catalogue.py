"Public weights by name, from a server of this machine; nnabla's names and HDF5."
import http.server
import sys
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import released
from commands import shell
from sagan_nb.attention_maps import silenced
from sagan_nb.core import Refused
from sagan_nb.data import Toy
from sagan_nb.interop import load_weights
from sagan_nb.machinery.catalogue import CATALOGUE, is_weights_name, place_of, weights_of
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.evaluate import evaluate
from sagan_nb.machinery.files import file_sha256
from sagan_nb.machinery.public import change_without, public_table
from sagan_nb.machinery.recipe import shape_net
from sagan_nb.networks import Generator
from sagan_nb.spectral_norm import settle
from test_interop import renamed


@pytest.fixture
def served(tmp_path, monkeypatch):
    "A file of small random weights under mmgeneration's names, in place of mmgen:imagenet; counts downloads."
    monkeypatch.setenv('SAGAN_NB_CACHE', str(tmp_path/'cache'))
    folder, asked = tmp_path/'served', []
    folder.mkdir()
    arrays = {f'generator_ema.{k}': torch.from_numpy(v) for k, v in renamed(released.planted('G', width=4, K=3, Z=6, blocks=3, at=2), 'mmgeneration', 2).items()}
    torch.save(dict(state_dict=arrays), folder/'w.pth')
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args): super().__init__(*args, directory=str(folder))
        def log_message(self, *args): asked.append(args[0])
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = replace(CATALOGUE['mmgen:imagenet'], url=f'http://127.0.0.1:{server.server_port}/w.pth', sha256=file_sha256(folder/'w.pth')[:8])
    monkeypatch.setitem(CATALOGUE, 'mmgen:imagenet', entry)
    yield asked, arrays
    server.shutdown()


def test_download_check_open(served):
    asked, arrays = served
    G, z, y = load_weights('mmgen:imagenet'), torch.randn(2, 6), torch.tensor([0, 2])
    by_hand = load_weights(arrays, bgr=True)                                     # blue first, turned by the name alone
    assert torch.equal(G(z, y), by_hand(z, y)) and not torch.equal(G(z, y), load_weights(arrays)(z, y))
    assert torch.equal(open_run('mmgen:imagenet').G(z, y), G(z, y)) and len(asked) == 1
    place = place_of('mmgen:imagenet')
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(Refused, match='not the published file.*remove it'): load_weights('mmgen:imagenet')


def test_what_no_tensor_says_is_known_by_the_name(served, monkeypatch):
    "Of mmgeneration all are blue first, CIFAR too; of StudioGAN's shortcuts those of D see a rectified map."
    blue = {name for name, p in CATALOGUE.items() if p.bgr}
    assert blue == {name for name in CATALOGUE if name.startswith('mmgen:')} and len(blue) == 6
    assert {name for name, p in CATALOGUE.items() if p.inplace} == {'mmgen:cifar10-inplace', 'studiogan:imagenet', 'studiogan:cifar10'}
    _, arrays = served
    D = {f'discriminator.{k}': torch.from_numpy(v) for k, v in renamed(released.planted('D', width=4, K=3, blocks=3, at=2), 'mmgeneration', 2).items()}
    monkeypatch.setattr('sagan_nb.interop.weights_of', lambda name: arrays | D)
    monkeypatch.setitem(CATALOGUE, 'mmgen:imagenet', replace(CATALOGUE['mmgen:imagenet'], inplace=True))
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    judge = lambda *args, **how: load_weights(*args, part='D', **how)(x, y)
    assert torch.equal(judge('mmgen:imagenet'), judge(arrays | D, bgr=True, inplace=True))
    assert torch.equal(judge('mmgen:imagenet', inplace=False), judge(arrays | D, bgr=True)) and not torch.equal(judge('mmgen:imagenet'), judge('mmgen:imagenet', inplace=False))


def test_other_content_and_no_network(served, monkeypatch):
    monkeypatch.setitem(CATALOGUE, 'mmgen:imagenet', replace(CATALOGUE['mmgen:imagenet'], sha256='00000000'))
    with pytest.raises(Refused, match='(?s)cannot download.*invalid hash.*put it at'): weights_of('mmgen:imagenet')
    monkeypatch.setitem(CATALOGUE, 'mmgen:imagenet', replace(CATALOGUE['mmgen:imagenet'], url='http://127.0.0.1:9/w.pth'))
    with pytest.raises(Refused, match='(?s)cannot download.*get http://127.0.0.1:9/w.pth'): weights_of('mmgen:imagenet')
    with pytest.raises(Refused, match='no public weights are known'): load_weights('official:imagenet')
    with pytest.raises(Refused, match='there is no set of weights'): load_weights('mmgen:nothing')


def test_names():
    assert is_weights_name('studiogan:imagenet') and not any(map(is_weights_name, ('runs/first', 'C:weights', {}, 'mmgen')))
    for name, p in CATALOGUE.items():
        assert bool(p.url) == bool(p.read_at) and (p.url or p.note), name
        if 'openmmlab' in p.url: assert len(p.sha256) == 8 and p.url.endswith(f'-{p.sha256}.pth')


def test_table_of_public_weights(served, monkeypatch, capsys):
    "A small stand-in in the cache: without pictures what was published, with pictures scores by one protocol."
    assert 'No public weights are in the cache' in public_table()
    weights_of('mmgen:imagenet')
    monkeypatch.setenv('COLUMNS', '140')                   # a table, whatever the numbers of random weights are
    code, out, _ = shell(monkeypatch, capsys, 'sagan_table', 'public')
    line = next(o for o in out.splitlines() if 'mmgen:imagenet ' in o)
    assert code == 0 and '%' in line and 'studiogan:imagenet' in out and 'To measure all by one' in out and 'without' not in out.split('\n')[0]
    G = load_weights('mmgen:imagenet')
    assert change_without(G, torch.randn(3, 6), torch.tensor([0, 1, 2])) > 0


def test_public_weights_are_measured_by_one_protocol(served, monkeypatch, capsys):
    weights_of('mmgen:imagenet')
    monkeypatch.setenv('COLUMNS', '200')
    code, out, _ = shell(monkeypatch, capsys, 'sagan_table', 'public', '--data', 'toy:5,toy:3', '--scale', 'smoke')
    records = evaluate(open_run('mmgen:imagenet').G, Toy(32, 3), ('score', 'distance'), n_fake=200, n_real=500)
    value = {o['metric']: f'{o["value"]:.4g}' for o in records if o.get('splits', 1) == 1}
    line = next(o for o in out.splitlines() if 'mmgen:imagenet ' in o)
    assert code == 0 and {'score', 'distance', 'without', 'gamma'} <= {*out.split('\n')[0].split()} and {*value.values()} <= {*line.split()}, out
    assert '200 generated against 500 real' in out and 'on toy:3' in out
    G = open_run('mmgen:imagenet').G
    with silenced(G): without = evaluate(G, Toy(32, 3), ('distance',), n_fake=200, n_real=500)[0]['value']
    assert f'{without:.4g}' in line.split() and f'{without:.4g}' not in value.values()
    code, out, _ = shell(monkeypatch, capsys, 'sagan_table', 'public', '--data', 'toy:5', '--scale', 'smoke')
    assert code == 0 and 'mmgen:imagenet is not measured: toy:5 has 5 classes, but 3 are asked for' in out and '%' in out
    code, _, said = shell(monkeypatch, capsys, 'sagan_table', 'public', '--scale', 'huge')
    assert code == 1 and 'huge' in said and len(said.strip().splitlines()) == 1


def keep(t): return t.detach().numpy()


def put_layer(out, net, m, name, turn=False, vector='u'):
    "Note a layer of `net` with spectral norm under nnabla's names."
    w = m.parametrizations.weight
    out[f'{net}/{name}/W'] = keep(w.original.t() if turn else w.original)
    out[f'{net}/{name}/singular-vector'] = keep(getattr(w[0], vector))
    if getattr(m, 'bias', None) is not None: out[f'{net}/{name}/b'] = keep(m.bias)


def under_nnablas_names(G):
    "The inverse of what is tested, with the shapes that nnabla's models.py gives."
    out = {}
    layer = partial(put_layer, out, 'generator')
    def norm(m, name, table=True):
        for theirs, t in (('gamma', m.gain), ('beta', m.offset)):
            out[f'generator/{name}/{theirs}' + '/embed/W'*table] = keep(t if table else t.reshape(1, -1, 1, 1))
        for theirs, t in (('mean', m.mean), ('var', m.var)): out[f'generator/{name}/{theirs}'] = keep(t.reshape(1, -1, 1, 1))
    layer(G.linear, 'sn_affine', turn=True)
    for i, block in enumerate(G.blocks.values(), 1):
        for j in (1, 2):
            norm(getattr(block, f'bn{j}'), f'block-{i}/conv{j}/ccbn')
            layer(getattr(block, f'conv{j}'), f'block-{i}/conv{j}/sn_conv')
        layer(block.short, f'block-{i}/shortcut/sn_conv')
    attention = next(iter(G.extra.values()))
    for name in 'fgh': layer(getattr(attention, name), f'attn/{name}/sn_conv')
    out['generator/attn/gamma'] = keep(attention.gamma.reshape(1, 1, 1, 1))
    norm(G.bn, 'bn', table=False)
    layer(G.conv, 'sn_conv')
    return out | {'discriminator/sn_affine/W': np.zeros((4, 1), np.float32)}


@pytest.fixture(scope='module')
def nnabla():
    torch.manual_seed(0)
    G = settle(Generator(res=64, n_classes=5, z_dim=7, channels=(64, 64, 32, 16, 8), attn_at=(32,), form='v1')).eval()
    with torch.no_grad():
        for p in G.parameters(): p.add_(.1*torch.randn_like(p))
        for name, b in G.named_buffers():
            if name.endswith(('mean', 'var')): b.add_(torch.rand_like(b))
    return settle(G), under_nnablas_names(G)


def test_nnablas_generator(nnabla):
    G, arrays = nnabla
    made, z, y = load_weights(arrays), torch.randn(3, 7), torch.tensor([0, 4, 2])
    assert torch.allclose(made(z, y), G(z, y), atol=1e-5) and made.attn_at == (32,)
    assert made.report.source == 'nnabla' and 'never run on real weights' in str(made.report)
    assert {*made.report.used} | {*made.report.unused} == {*arrays}
    shapes = {k: v.shape for k, v in arrays.items()}
    assert shapes['generator/sn_affine/W'] == (7, 64*16) and shapes['generator/block-2/conv1/ccbn/gamma/embed/W'] == (5, 64)
    for name in ('generator/sn_affine/b', 'generator/attn/gamma', 'generator/bn/var', 'generator/block-3/shortcut/sn_conv/W'):
        with pytest.raises(Refused): load_weights({k: v for k, v in arrays.items() if k != name})
    with pytest.raises(Refused, match='no place'): load_weights(arrays | {'generator/more/W': np.zeros(3, np.float32)})


def test_nnablas_discriminator(nnabla):
    "With the shapes of its models.py: the first convolution of a block that doubles the channels has as many as it gets."
    torch.manual_seed(1)
    attention = dict(block='attention', form='v1', reduction=8, at=1)
    D = shape_net(dict(kind='Discriminator', res=32, n_classes=5, head='projection', channels=[8, 16, 32, 32], down=[True]*3 + [False], sn=True,
                       inner=[8, 8, 16, 32], extra={'8': attention})).eval()
    with torch.no_grad():
        for p in D.parameters(): p.add_(.1*torch.randn_like(p))
    settle(D)
    arrays = discriminator_under_nnablas_names(D)
    shapes = {k: v.shape for k, v in arrays.items()}
    assert shapes['discriminator/block-2/conv1/sn_conv/W'] == (8, 8, 3, 3) and shapes['discriminator/projection/embed/singular-vector'] == (32,)
    x, y = torch.randn(3, 3, 32, 32), torch.tensor([0, 4, 2])
    made = load_weights(arrays)
    assert torch.allclose(made(x, y), D(x, y), atol=1e-4) and type(made).__name__ == 'Discriminator' and [*made.extra] == ['8']
    both = arrays | {k: v for k, v in nnabla[1].items() if k.startswith('generator/')}
    assert torch.equal(load_weights(both, part='D')(x, y), made(x, y)) and type(load_weights(both)).__name__ == 'Generator'
    with pytest.raises(Refused, match='Generator, and part'): load_weights({k: v for k, v in both.items() if k[0] == 'g'}, part='D')
    for name in ('discriminator/sn_affine/b', 'discriminator/block-4/conv2/sn_conv/W', 'discriminator/projection/embed/singular-vector'):
        with pytest.raises(Refused): load_weights({k: v for k, v in arrays.items() if k != name})


def discriminator_under_nnablas_names(D):
    "The inverse of what is tested; their u of the table of classes has a number for each channel."
    out = {}
    layer = partial(put_layer, out, 'discriminator')
    for i, block in enumerate(D.blocks, 1):
        for j in (1, 2): layer(getattr(block, f'conv{j}'), f'block-{i}/conv{j}/sn_conv')
        if isinstance(block.short, torch.nn.Conv2d): layer(block.short, f'block-{i}/shortcut/sn_conv')
    attention = D.extra['8']
    for name in 'fgh': layer(getattr(attention, name), f'attn/{name}/sn_conv')
    out['discriminator/attn/gamma'] = keep(attention.gamma.reshape(1, 1, 1, 1))
    layer(D.linear, 'sn_affine', turn=True)
    layer(D.embed, 'projection/embed', vector='v')
    return out


def test_hdf5(nnabla, tmp_path):
    h5py = pytest.importorskip('h5py', reason='h5py is not installed')
    G, arrays = nnabla
    with h5py.File(tmp_path/'params.h5', 'w') as f:
        for k, v in arrays.items(): f.create_dataset(k, data=v)
    z, y = torch.randn(2, 7), torch.tensor([1, 3])
    assert torch.allclose(load_weights(tmp_path/'params.h5')(z, y), G(z, y), atol=1e-5)
    with h5py.File(tmp_path/'bomb.h5', 'w') as f: f.create_dataset('linear.weight', (1 << 28,), 'float32', compression='gzip')
    with pytest.raises(Refused, match='would unpack to 1,024 MiB'): load_weights(tmp_path/'bomb.h5')
    (tmp_path/'bad.h5').write_bytes(b'no hdf5')
    with pytest.raises(Refused, match='damaged or hostile'): load_weights(tmp_path/'bad.h5')


def test_hdf5_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    (tmp_path/'a.h5').write_bytes(b'x')
    with pytest.raises(Refused, match='pip install h5py'): load_weights(tmp_path/'a.h5')
