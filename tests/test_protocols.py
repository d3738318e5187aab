"Scores by other people's protocols, and of pictures without a generator of ours."
import inspect
import json
import math
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from commands import as_folders, shell
from sagan_nb.core import Refused, from_uint8
from sagan_nb.data import Toy, open_source
from sagan_nb.metrics import frechet_distance
from sagan_nb.machinery import cli, features as features_module, options, protocols
from sagan_nb.machinery.arrays import find_arrays
from sagan_nb.machinery.dino import Dino
from sagan_nb.machinery.evaluate import evaluate
from sagan_nb.machinery.features import CLIP, INCEPTION_LAYERS, ClipNet, Features, open_features
from sagan_nb.machinery.files import file_sha256
from sagan_nb.machinery.protocols import (PROTOCOLS, ByteInception, CleanInception, TorchInception, features_by, TorchvisionInception, by_pillow, by_pillow_in_bytes, by_protocol_table,
                                          by_protocols, by_torch, compare, departures, measure_by, open_pair, size_of,
                                          torchvision_inception)
from test_metrics import Replay, Small, random_inception

pytestmark = pytest.mark.filterwarnings('ignore:.*the covariance has rank')


@pytest.fixture
def real(): return Toy(n=60)


@pytest.fixture
def fake(): return Toy(n=60, seed=1)


@pytest.fixture
def nets(monkeypatch):
    "Small networks in place of the Inceptions; which one a protocol asked for."
    asked = []
    def small(net, paths, device='cpu'):
        asked.append(net.__name__)
        return Features(Small(), 'small', 'none', published=True)
    monkeypatch.setattr(protocols, 'features_by', small)
    return asked


def test_resizes_against_other_libraries():
    x = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cubic = F.interpolate(x.float(), (299, 299), mode='bicubic', antialias=True).clip(0, 255)
    assert (by_pillow(x)*128 + 128 - cubic).abs().max() < 1e-3
    mild = x//4 + 96                                                             # bytes are clipped between the two axes
    cubic = F.interpolate(mild.float(), (299, 299), mode='bicubic', antialias=True)
    assert .3 < (by_pillow_in_bytes(mild)*128 + 128 - cubic).abs().max() < 1.5    # rounded twice
    linear = [np.asarray(Image.fromarray(c.numpy().astype(np.float32)).resize((299, 299), Image.BILINEAR)) for c in x[1]]
    assert np.abs((by_torch(x)[1].numpy() + 1)*127.5 - np.stack(linear)).max() < 1e-3
    assert (by_torch(x) - by_pillow(x)).abs().max() > .1                         # other metrics


def test_torchvisions_network_is_called_as_biggan_does():
    torch.manual_seed(0)
    from torchvision.models import inception_v3
    theirs = inception_v3(weights=None, init_weights=False, transform_input=False).eval()
    ours, x = TorchvisionInception(theirs.state_dict()).eval(), torch.rand(2, 3, 64, 64)*2 - 1
    mean, std = (torch.tensor(v)[:, None, None] for v in ((.485, .456, .406), (.229, .224, .225)))
    with torch.no_grad():
        wanted = theirs(F.interpolate(((x + 1)/2 - mean)/std, (299, 299), mode='bilinear', align_corners=True))
        pooled, logits = ours(x)
    assert pooled.shape == (2, 2048) and torch.allclose(logits, wanted, atol=1e-4)


@pytest.mark.parametrize('name, net, score_net, splits, rounding, n_real', [
    ('tf2018', 'InceptionNet', 'InceptionNet', 1, False, 50), ('biggan', 'TorchvisionInception', 'TorchvisionInception', 10, False, 60),
    ('studiogan', 'TorchInception', 'TorchInception', 1, True, 60), ('mmgen', 'InceptionNet', 'ByteInception', 10, True, 60),
    ('clean', 'CleanInception', None, 0, True, 60)])
def test_bundles(nets, real, fake, monkeypatch, name, net, score_net, splits, rounding, n_real):
    "What each protocol asks for; the numbers are those of `evaluate` with the same settings."
    if name == 'tf2018': monkeypatch.setitem(PROTOCOLS, name, replace(PROTOCOLS[name], n_real=50))
    G = Replay(fake.batch(range(60))[0]).eval()
    found = measure_by(name, G, real, n_fake=60, cache=None)
    assert sorted(nets) == sorted({net, score_net or net}) and len(found) == 2
    distance = next(o for o in found if o['metric'] == 'FID')
    assert (distance['n_real'], distance['pictures'].startswith('rounded')) == (n_real, rounding)
    wanted = evaluate(G, real, ['distance'], Features(Small(), 'small'), 60, n_real, rounding=rounding, cache=None)[0]
    assert distance['value'] == pytest.approx(wanted['value']) and distance['protocol'] == name
    scores = [o for o in found if o['metric'] == 'IS']
    assert [o['splits'] for o in scores] == [splits]*bool(splits) and bool(scores) != any(o['metric'] == 'KID' for o in found)
    assert '60 generated pictures in place of 50,000' in distance['departures'] and 'real pictures of the protocol: ' in distance['departures'][0]


def test_standing_statistics_are_a_departure(real):
    said = departures(PROTOCOLS['tf2018'], 50_000, real, dict(batch_norm='standing statistics over 2000'))
    assert any('in place of moving averages' in o for o in said)
    assert not any('batch norm' in o for o in departures(PROTOCOLS['biggan'], 50_000, real, dict(batch_norm='standing statistics')))


def test_pictures_depart_from_a_protocol_of_drawn_floats(nets, real, fake):
    of = {name: measure_by(name, fake, real, cache=None)[0]['departures'] for name in ('tf2018', 'studiogan')}
    assert [any('bytes in place of floats' in o for o in said) for said in of.values()] == [True, False]
    assert all(any('labels as in the pictures' in o for o in said) for said in of.values())


def test_all_protocols_print_one_table(nets, real, fake, capsys, monkeypatch):
    before = protocols.features_by
    def without_torchvision(net, *args):
        if net is TorchvisionInception: raise Refused('no weights here')
        return before(net, *args)
    monkeypatch.setattr(protocols, 'features_by', without_torchvision)
    records = by_protocols('all', fake, real)
    text = by_protocol_table(records)
    assert 'not measured by biggan: no weights here' in capsys.readouterr().out
    assert all(name in text for name in ('tf2018', 'studiogan', 'mmgen', 'clean', 'FID', 'IS', 'KID')) and 'biggan' not in text
    monkeypatch.setattr(protocols, 'features_by', Mock(side_effect=Refused('no weights here')))
    with pytest.raises(Refused, match='no weights here'): by_protocols('all', fake, real)
    with pytest.raises(Refused, match='there is no protocol'): measure_by('tf2019', fake, real)


def test_real_networks_open_offline(tmp_path, monkeypatch, fake):
    "The real loading code on random weights under the real names; the resizes differ."
    path, x = random_inception(tmp_path/'w.pth', monkeypatch), fake.batch([0])[0]
    opened = features_by(CleanInception, dict(inception=path))
    assert opened.resize == 'Pillow bicubic to 299, floats' and not opened.published
    (h, logits), wanted = opened(x), opened.net
    for name in INCEPTION_LAYERS: x = getattr(wanted.net, name)(by_pillow(x) if name == INCEPTION_LAYERS[0] else x)
    assert torch.equal(h, x.flatten(1)) and torch.equal(logits, h @ wanted.net.fc.weight.T)
    studio, picture = features_by(TorchInception, dict(inception=path)), fake.batch([0])[0]     # adds the bias
    h, logits = studio(picture)
    assert torch.allclose(logits, h @ studio.net.net.fc.weight.T + studio.net.net.fc.bias) and studio.net.net.fc.bias.abs().min() > 0
    made = [net.prepare(fake.batch([0])[0]) for net in (TorchInception, CleanInception, ByteInception)]
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(made) for b in made[:i])
    with pytest.raises(Refused, match='no such file'): torchvision_inception(tmp_path/'none.pth')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', Mock(side_effect=OSError('offline')))
    with pytest.raises(Refused, match='(?s)cannot download.*offline.*put it at'): torchvision_inception()


# two sets of pictures

def test_pictures_against_pictures(real, fake, tmp_path):
    "Folders, an .npz and a pack of the same pictures give the same numbers as a generator that draws them."
    as_folders(real, tmp_path/'real'), as_folders(fake, tmp_path/'fake')
    x, y = fake.batch(range(60))
    np.savez(tmp_path/'fake.npz', x.permute(0, 2, 3, 1).numpy(), y.numpy())
    np.savez(tmp_path/'first.npz', x=x.numpy(), y=y.numpy())
    small, values = Features(Small(), 'small'), []
    for spec in ('fake', 'fake.npz', 'first.npz'):
        a, b = open_pair(str(tmp_path/'real'), str(tmp_path/spec))
        assert a.res == 32 and len(b) == 60
        found = compare(b, a, ('score', 'distance', 'intra', 'kid', 'prdc', 'diversity'), small, cache=None)
        values.append({(o['metric'], o.get('splits')): o['value'] for o in found if not isinstance(o['value'], str)})
    wanted = frechet_distance(small(x)[0], small(real.batch(range(60))[0])[0])
    assert all(v[('Fréchet classifier distance', None)] == pytest.approx(wanted, rel=1e-3) for v in values)
    for v in values[1:]: assert v == pytest.approx(values[0], rel=.02)         # splits are drawn in other orders
    assert ('intra distance', None) in values[0] and values[0]['precision', None] > 0


def test_other_classes_sizes_and_layouts(real, fake, tmp_path):
    as_folders(real, tmp_path/'real'), as_folders(Toy(n=60, n_classes=3), tmp_path/'three')
    a, b = open_pair(str(tmp_path/'real'), str(tmp_path/'three'))
    record = [o for o in compare(b, a, ['intra', 'distance'], Features(Small(), 'small'), cache=None) if 'intra' in o['metric']][0]
    assert record['value'] == 'n/a' and 'different classes' in record['reason']
    flat = tmp_path/'flat'
    flat.mkdir()
    for i, p in enumerate((tmp_path/'real').rglob('*.png')): (flat/f'{i}.png').write_bytes(p.read_bytes())
    assert [s.classes for s in open_pair(str(tmp_path/'real'), str(flat))] == [[], []]
    assert size_of(str(flat)) == 32 and open_pair(str(tmp_path/'real'), str(flat), res=16)[0].res == 16
    with pytest.raises(Refused, match='px and'): compare(Toy(16, n=30), real, ['distance'], Features(Small(), 'small'))
    with pytest.raises(Refused, match='no metric'): compare(fake, real, ['fid'])
    with pytest.raises(Refused, match='no file or folder'): open_pair(str(tmp_path/'real'), str(tmp_path/'none'))


def test_arrays_that_are_none(tmp_path):
    path = tmp_path/'a.npz'
    for held, words in ((dict(a=np.zeros(3)), 'it holds a float64'), (dict(arr_0=np.zeros((2, 8, 8, 3))), 'expected uint8'),
                        (dict(arr_0=np.zeros((2, 8, 8, 3), np.uint8), arr_1=np.array([0.5, 1])), 'labels must be'),
                        (dict(arr_0=np.zeros((2, 8, 8, 3), np.uint8), arr_1=np.array([0, 2]), classes=['a', 'b']), 'classes must be different names'),
                        (dict(arr_0=np.zeros((2, 8, 8, 3), np.uint8), arr_1=np.array([0, 1]), classes=['a', 'a']), 'classes must be different names'),
                        (dict(arr_0=np.zeros((0, 8, 8, 3), np.uint8)), 'expected uint8')):
        np.savez(path, **held)
        with pytest.raises(Refused, match=words): find_arrays(path)
    path.write_bytes(b'not a zip')
    with pytest.raises(Refused, match='not readable'): open_source(path, 32)
    np.savez(path, np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(Refused, match='--unlabelled'): open_source(path, 8)
    assert len(open_source(path, 8, unlabelled=True)) == 4


def clip_state(width=64, layers=2, patch=8, side=4, dim=32):
    "Random weights under OpenAI's names, far smaller than theirs."
    rng = torch.Generator().manual_seed(0)
    r = lambda *shape: torch.randn(*shape, generator=rng)*.1
    state = {'visual.class_embedding': r(width), 'visual.positional_embedding': r(side**2 + 1, width), 'visual.proj': r(width, dim),
             'visual.conv1.weight': r(width, 3, patch, patch), 'text_projection': r(dim, dim), 'logit_scale': r(1)[0]}
    for n in ('ln_pre', 'ln_post', *(f'transformer.resblocks.{i}.ln_{j}' for i in range(layers) for j in (1, 2))):
        state |= {f'visual.{n}.weight': 1 + r(width), f'visual.{n}.bias': r(width)}
    for i in range(layers):
        b = f'visual.transformer.resblocks.{i}'
        state |= {f'{b}.attn.in_proj_weight': r(3*width, width), f'{b}.attn.in_proj_bias': r(3*width),
                  f'{b}.attn.out_proj.weight': r(width, width), f'{b}.attn.out_proj.bias': r(width),
                  f'{b}.mlp.c_fc.weight': r(4*width, width), f'{b}.mlp.c_fc.bias': r(4*width),
                  f'{b}.mlp.c_proj.weight': r(width, 4*width), f'{b}.mlp.c_proj.bias': r(width)}
    return state


class Holder(nn.Module):
    "Tensors under dotted names, as the published archive has them."
    def forward(self, x): return x


def hold(state):
    top = Holder()
    for name, t in state.items():
        *path, last = name.split('.')
        at = top
        for p in path:
            if not hasattr(at, p): at.add_module(p, Holder())
            at = getattr(at, p)
        at.register_buffer(last, t)
    return top


def test_clip_is_torch_fidelitys(tmp_path, fake, real):
    port = pytest.importorskip('torch_fidelity.feature_extractor_clip')
    state = {k: t.half().float() for k, t in clip_state().items()}
    torch.save(state, tmp_path/'clip.pth')
    torch.jit.script(hold(state)).save(str(tmp_path/'clip.pt'))
    theirs = port.FeatureExtractorCLIP(CLIP, ['clip'], feature_extractor_weights_path=str(tmp_path/'clip.pt'))
    features, x = open_features(f'clip:{tmp_path}/clip.pth', fake), fake.batch(range(4))[0]
    assert features.name == 'CLIP with other weights' and not features.published
    h, logits = features(x)
    assert torch.allclose(h, theirs(x)[0], atol=1e-5) and logits.shape == (4, 0)
    assert torch.allclose(features(from_uint8(x))[0], h, atol=1e-4)
    found = compare(fake, real, ['score', 'distance'], features, cache=None)
    assert found[0]['value'] == 'n/a' and 'no classes' in found[0]['reason'] and found[1]['value'] > 0
    (tmp_path/'bad.pth').write_bytes(b'x')
    with pytest.raises(Refused, match='neither the published CLIP'): open_features(f'clip:{tmp_path}/bad.pth', fake)
    with pytest.raises(Refused, match='no such file'): open_features(f'clip:{tmp_path}/none.pth', fake)
    with pytest.raises(KeyError): ClipNet({})


def dino_state(width=128, layers=2, side=5, registers=False):
    "Random weights under the names of DINOv2's published files, far smaller than theirs."
    rng = torch.Generator().manual_seed(0)
    r = lambda *shape: torch.randn(*shape, generator=rng)*.1
    state = {'cls_token': r(1, 1, width), 'pos_embed': r(1, side**2 + 1, width), 'mask_token': r(1, width),
             'patch_embed.proj.weight': r(width, 3, 14, 14), 'patch_embed.proj.bias': r(width), 'norm.weight': 1 + r(width), 'norm.bias': r(width)}
    for b in (f'blocks.{i}' for i in range(layers)):
        for n in ('norm1', 'norm2'): state |= {f'{b}.{n}.weight': 1 + r(width), f'{b}.{n}.bias': r(width)}
        for n, (o, i) in {'attn.qkv': (3*width, width), 'attn.proj': (width, width), 'mlp.fc1': (4*width, width), 'mlp.fc2': (width, 4*width)}.items():
            state |= {f'{b}.{n}.weight': r(o, i), f'{b}.{n}.bias': r(o)}
        state |= {f'{b}.ls1.gamma': 1 + r(width), f'{b}.ls2.gamma': 1 + r(width)}
    return state | ({'register_tokens': r(1, 4, width)} if registers else {})


def keys(t):                                                                     # the cubic kernel with a = -3/4
    t = abs(t)
    return (1.25*t - 2.25)*t*t + 1 if t <= 1 else -.75*(((t - 5)*t + 8)*t - 4) if t < 2 else 0.


def spread_places(table, side):
    "The table of places on another grid, number by number: centres at (i + 1/2) of `side` and a tenth."
    own = round((table.shape[1] - 1)**.5)
    W = torch.zeros(side, own)
    for i in range(side):
        at = (i + .5)*own/(side + .1) - .5
        for j in range(math.floor(at) - 1, math.floor(at) + 3): W[i, min(max(j, 0), own - 1)] += keys(at - j)
    grid = torch.einsum('iy,jx,yxc->ijc', W, W, table[0, 1:].reshape(own, own, -1))
    return torch.cat([table[:, :1], grid.reshape(1, side*side, -1)], 1)


def by_torchs_layers(state, x):
    "DINOv2 of torch's encoder layers: the scales are multiplied into the weights before them."
    width = state['norm.bias'].shape[0]
    x = F.conv2d(x, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], 14).flatten(2).mT
    x = torch.cat([state['cls_token'].expand(len(x), -1, -1), x], 1) + spread_places(state['pos_embed'], 16)
    for i in range(sum(name.endswith('norm1.bias') for name in state)):
        b = {k.removeprefix(f'blocks.{i}.'): v for k, v in state.items() if k.startswith(f'blocks.{i}.')}
        layer = nn.TransformerEncoderLayer(width, width//64, 4*width, 0., F.gelu, 1e-6, batch_first=True, norm_first=True)
        own = {f'{n}.{k}': b[f'{n}.{k}'] for n in ('norm1', 'norm2') for k in ('weight', 'bias')}
        for k, s1, s2 in (('weight', b['ls1.gamma'][:, None], b['ls2.gamma'][:, None]), ('bias', b['ls1.gamma'], b['ls2.gamma'])):
            own |= {f'self_attn.in_proj_{k}': b[f'attn.qkv.{k}'], f'self_attn.out_proj.{k}': s1*b[f'attn.proj.{k}'],
                    f'linear1.{k}': b[f'mlp.fc1.{k}'], f'linear2.{k}': s2*b[f'mlp.fc2.{k}']}
        layer.load_state_dict(own)
        x = layer(x)
    return F.layer_norm(x, (width,), state['norm.weight'], state['norm.bias'], 1e-6)[:, 0]


def test_dinov2_is_what_its_names_say(tmp_path, fake, real, monkeypatch):
    "Against torch's own encoder layers, and behind torch-fidelity's own resize, where its hub hands out this network."
    state = dino_state()
    torch.save(state, tmp_path/'dino.pth')
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): assert torch.allclose(Dino(state)(x), by_torchs_layers(state, x), atol=1e-4)
    features, x = open_features(f'dinov2:{tmp_path}/dino.pth', fake), fake.batch(range(4))[0]
    h, logits = features(x)
    assert features.name == 'DINOv2 with other weights' and not features.published and logits.shape == (4, 0) and h.std(0).mean() > 0
    assert torch.allclose(features(from_uint8(x))[0], h, atol=1e-4) and features.facts['file_sha256'] == file_sha256(tmp_path/'dino.pth')
    port = pytest.importorskip('torch_fidelity.feature_extractor_dinov2')
    monkeypatch.setattr(torch.hub, 'load', lambda repo, name: Dino(state).eval())
    assert torch.allclose(port.FeatureExtractorDinoV2('dinov2-vit-b-14', ['dinov2'])(x)[0], h, atol=1e-4)
    found = compare(fake, real, ['score', 'distance'], features, cache=None)
    assert found[0]['value'] == 'n/a' and found[1]['value'] > 0 and found[1]['features_hash'] == features.hash and 'bilinear to 224' in found[1]['resize']


def test_dinov2_refusals(tmp_path, fake, monkeypatch):
    torch.save(dino_state(registers=True), tmp_path/'registers.pth')
    torch.save({'a': torch.zeros(1)}, tmp_path/'other.pth')
    (tmp_path/'bad.pth').write_bytes(b'x')
    for name in ('registers', 'other', 'bad'):
        with pytest.raises(Refused, match='no DINOv2 of size S, B or L'): open_features(f'dinov2:{tmp_path}/{name}.pth', fake)
    for place in (tmp_path/'none.pth', tmp_path):
        with pytest.raises(Refused, match='no such file; get https://dl.fbaipublicfiles'): open_features(f'dinov2:{place}', fake)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(features_module, 'DINO_URL', 'http://127.0.0.1:9/dinov2_vit{0}14_pretrain.pth')
    with pytest.raises(Refused, match='(?s)cannot download the weights of DINOv2.*put it at.*dinov2_vitb14_pretrain.pth'): open_features('dinov2', fake)
    with pytest.raises(Refused, match='choose domain, inception, clip, dinov2'): open_features('dino', fake)


def test_the_command_on_two_sets(tmp_path, monkeypatch, capsys, real, fake, nets):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(protocols, 'open_features', lambda *a: Features(Small(), 'small'))
    as_folders(real, tmp_path/'real'), as_folders(fake, tmp_path/'fake')
    code, out, _ = shell(monkeypatch, capsys, 'sagan_eval', 'real', 'fake', '--metrics', 'distance,prdc')
    kept = json.loads((tmp_path/'fake-metrics.json').read_text())
    assert code == 0 and 'Fréchet classifier distance' in out and {o['generated'] for o in kept} == {'fake'}
    code, _, err = shell(monkeypatch, capsys, 'sagan_eval', 'real', 'fake', '--protocol', 'mine')
    assert code == 1 and 'there is no protocol' in err
    code, out, _ = shell(monkeypatch, capsys, 'sagan_eval', 'real', 'fake', '--protocol', 'clean', '--seed', 3, '--out', 'clean.json')
    assert code == 0 and 'KID' in out and {o['seed'] for o in json.loads((tmp_path/'clean.json').read_text())} == {3}
    assert shell(monkeypatch, capsys, 'sagan_eval', 'real', 'nowhere')[0] == 1
    for words, why in ((['--labels', 'data'], '--labels: two sets of pictures have it'), (['--n_fake', 9], '--n_fake: two sets of pictures have it'),
                       (['--protocol', 'clean', '--metrics', 'prdc'], '--metrics: a protocol says it'),
                       (['--protocol', 'clean', '--floats'], '--floats: a protocol says it')):
        code, _, err = shell(monkeypatch, capsys, 'sagan_eval', 'real', 'fake', *words)
        assert code == 1 and f'leave out {why}' in err
    defaults = {k: o.default for k, o in inspect.signature(cli.sagan_eval).parameters.items()}
    assert all(defaults[k] == v for k, v in options.EVAL.items()) and all(o is None for k, o in defaults.items() if k in ('n_fake', 'n_real', 'data', 'res'))
    code, _, err = shell(monkeypatch, capsys, 'sagan_eval', 'fake-run', '--res', 32)
    assert code == 1 and 'leave out --res: it is for two sets of pictures' in err
    if not torch.cuda.is_available():                                         # the device is asked for, not passed over
        code, _, err = shell(monkeypatch, capsys, 'sagan_eval', 'real', 'fake', '--device', 'cuda')
        assert code == 1 and 'there is no CUDA device here' in err
    seen = []
    monkeypatch.setattr(protocols, 'open_features', lambda *a: seen.append(a[-1]) or Features(Small(), 'small'))
    compare(open_source('fake', 32), open_source('real', 32), ['distance'], cache=None, device='meta')
    assert seen == ['meta']
