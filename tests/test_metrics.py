"Metrics against torch-fidelity's own code, planted mistakes, random small cases, and what needs files and faults."
import json
import math
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from commands import as_folders, spawn
from sagan_nb import metrics
from sagan_nb.config import NUMERICS
from sagan_nb.core import Refused, from_uint8
from sagan_nb.data import Toy, open_source
from sagan_nb.metrics import (Stats, between_roots, covariance_root, frechet_distance, inception_score, intra_distances,
                              intra_fid, kernel_distance, prdc, squared_mmd)
from sagan_nb.networks import Generator
from sagan_nb.spectral_norm import normalised, settle
from sagan_nb.machinery import cli, evaluate as evaluate_room, features as features_room, files, nearest as near
from sagan_nb.machinery.evaluate import as_table, evaluate, fake_table, one_line, real_table, save_records
from sagan_nb.machinery.features import Features, domain, inception, inception_file, tf1_resize, weights_hash
from sagan_nb.machinery.files import file_sha256, read_cache, write_cache
from sagan_nb.machinery.pictures import Pictures, WithoutLabels

pytestmark = pytest.mark.filterwarnings('ignore:.*the covariance has rank')
D = torch.float64


@pytest.fixture(autouse=True)
def one_thread():
    "Thousands of tiny matrices: threads that wait for each other on a busy machine cost more than they bring."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference(module):
    "A module of torch-fidelity, the oracle; it is an optional extra."
    return pytest.importorskip(f'torch_fidelity.{module}', reason='torch-fidelity is not installed (extra fid)', exc_type=ImportError)


def features(n, d, seed, shift=0., rank=None):
    "Correlated, rectified, of unequal scales: rather like a network's."
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank or d, d, generator=torch.Generator().manual_seed(99), dtype=D) * torch.logspace(-1, 1, d, dtype=D)
    return (torch.randn(n, rank or d, generator=rng, dtype=D) @ mix / math.sqrt(d) + shift).relu() + .05


# Equal to torch-fidelity, on the same float64 features.

@pytest.mark.parametrize('n, m, d', [(2000, 3000, 256), (700, 5000, 512), (600, 700, 64)])
def test_distance_is_torch_fidelitys_at_full_rank(n, m, d):
    fid = reference('metric_fid')
    a, b = features(n, d, 0), features(m, d, 1, .3)
    for x, y in ((a, b), (b, a)):
        theirs = fid.fid_statistics_to_metric(*map(fid.fid_features_to_statistics, (x, y)), False)[fid.KEY_METRIC_FID]
        assert frechet_distance(x, y) == pytest.approx(theirs, rel=1e-6)
        assert frechet_distance(Stats.of(x), Stats.of(y)) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize('n, m, d', [(50, 1300, 512), (50, 50, 512), (511, 513, 512), (2, 2, 16), (2, 400, 128)])
def test_distance_is_torch_fidelitys_below_full_rank(n, m, d):
    fid = reference('metric_fid')
    a, b = features(n, d, 0), features(m, d, 1, .3)
    theirs = fid.fid_statistics_to_metric(*map(fid.fid_features_to_statistics, (a, b)), False)[fid.KEY_METRIC_FID]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-5)
    assert frechet_distance(Stats.of(a), Stats.of(b)) == pytest.approx(theirs, rel=1e-5)


def test_distance_with_features_that_never_move():
    fid = reference('metric_fid')
    a, b = features(400, 64, 0), features(500, 64, 1, .3)
    for x in (a, b): x[:, ::5] = 0                          # dead features: no Cholesky factor
    a[:, 1] = a[:, 2]
    theirs = fid.fid_statistics_to_metric(*map(fid.fid_features_to_statistics, (a, b)), False)[fid.KEY_METRIC_FID]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize('splits', [1, 3, 10])
@pytest.mark.parametrize('scale', [1., 5., 300.])
def test_score_is_torch_fidelitys(splits, scale):
    isc = reference('metric_isc')
    logits = torch.randn(1003, 20, generator=torch.Generator().manual_seed(0), dtype=D) * scale
    theirs = isc.isc_features_to_metric(logits, splits, True, 2020)
    mean, std = inception_score(logits, splits)
    assert mean == pytest.approx(theirs[isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert std == pytest.approx(theirs[isc.KEY_METRIC_ISC_STD], rel=1e-6, abs=1e-12)
    ordered = isc.isc_features_to_metric(logits, splits, False, 2020)[isc.KEY_METRIC_ISC_MEAN]
    assert inception_score(logits, splits, shuffle=False)[0] == pytest.approx(ordered, rel=1e-6)


def test_kernel_distance_is_torch_fidelitys():
    kid = reference('metric_kid')
    a, b = features(700, 128, 0), features(900, 128, 1, .1)
    theirs = kid.kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=300, verbose=False)
    mean, std = kernel_distance(a, b, subsets=20, size=300)
    assert mean == pytest.approx(theirs[kid.KEY_METRIC_KID_MEAN], abs=1e-8, rel=0)
    assert std == pytest.approx(theirs[kid.KEY_METRIC_KID_STD], abs=1e-8, rel=0)


@pytest.mark.parametrize('k', [1, 3, 5])
def test_precision_and_recall_are_torch_fidelitys(k):
    prc = reference('metric_prc')
    a, b = features(700, 16, 0)*.7, features(900, 16, 1, .2)
    theirs = prc.prc_features_to_metric(a, b, prc_neighborhood=k, verbose=False)
    ours = prdc(a, b, k=k, chunk=256)
    assert ours['precision'] == pytest.approx(theirs[prc.KEY_METRIC_PRECISION], abs=1e-6)        # theirs is a float32 mean
    assert ours['recall'] == pytest.approx(theirs[prc.KEY_METRIC_RECALL], abs=1e-6)
    assert 0 < ours['precision'] != ours['recall'] > 0


# Planted mistakes: each one moves the number by far more than the bounds above.

def test_planted_mistakes_are_seen():
    a, b = features(60, 24, 0)*.6, features(300, 24, 1, .2)
    value, (m1, A), (m2, B) = frechet_distance(a, b), covariance_root(a), covariance_root(b)
    population = between_roots(m1, A * (59 / 60)**.5, m2, B * (299 / 300)**.5)
    off = lambda x: abs(x / value - 1)
    assert off(between_roots(m1, A, m2, B)) < 1e-12
    assert off(population) > 1e-4                                               # covariance divided by n
    assert off((m1 - m2).square().sum() + (A.norm() - B.norm())**2) > 1e-2     # no cross matrix
    assert off((m1 - m2).square().sum() + A.norm()**2 + B.norm()**2 - 2*(A.T @ A @ B.T @ B).trace()**.5) > 1e-2   # root of the trace
    assert prdc(a, b)['precision'] != prdc(b, a)['precision']                   # real and fake swapped
    sorted_by_class = torch.eye(10, dtype=D).repeat_interleave(30, 0) * 20
    assert inception_score(sorted_by_class, 10)[0] > 5 > inception_score(sorted_by_class, 10, shuffle=False)[0]      # unshuffled
    logits, bias = torch.randn(500, 10, generator=torch.Generator().manual_seed(0), dtype=D), torch.linspace(-2, 2, 10, dtype=D)
    assert abs(inception_score(logits + bias)[0] / inception_score(logits)[0] - 1) > 1e-2                  # with bias
    kernel = lambda x, y: (x @ y.T / 24 + 1)**3
    biased = kernel(a, a).mean() + kernel(b, b).mean() - 2*kernel(a, b).mean()
    assert abs(biased - squared_mmd(a, b)) > 1e-3                               # the diagonal counted


def test_intra_distance_lists_what_it_leaves_out():
    x, y = features(40, 6, 0), torch.arange(40) % 4
    other = torch.cat([y[:-1], torch.tensor([7])])
    mean, values = intra_fid(x, y, x, other)
    assert set(values) == {0, 1, 2, 3} and values.left_out == {7: '1 real picture, 0 generated pictures'}
    assert mean == pytest.approx(sum(values.values()) / 4)
    assert intra_fid(x[:4], y[:4], x[:4], y[:4])[0] is None
    assert intra_fid(x, y, x, y)[0] < 1e-12
    assert intra_fid(x, y, x, y.roll(1))[0] > 1e-3                              # unmatched labels
    streamed = intra_distances((k, x[y == k], x[other == k]) for k in range(4))
    assert streamed[0] == pytest.approx(mean)
    with pytest.raises(Refused, match='40 rows of features, but 39 labels'): intra_fid(x, y[1:], x, y)


def test_too_few_rows_are_refused_and_low_rank_is_said():
    x = features(10, 6, 0)
    for f in (lambda: frechet_distance(x[:1], x), lambda: frechet_distance(x, Stats.of(x[:1])), lambda: inception_score(x[:3], 4),
              lambda: kernel_distance(x, x, size=11), lambda: prdc(x[:5], x), lambda: frechet_distance(x.fill_diagonal_(math.nan), x)):
        with pytest.raises(Refused): f()
    x = features(10, 6, 0)
    for f, words in ((lambda: frechet_distance(x.numpy(), x), 'must be a torch tensor, got ndarray'), (lambda: prdc(x, x, k=0), 'counted from 1'),
                     (lambda: Stats.of(x.numpy()), 'got ndarray'), (lambda: frechet_distance(Stats.of(x.double()*1e160), x), 'too large'),
                     *((lambda f=f: f(x.double()*1e200, x.double()), 'too large') for f in (frechet_distance, prdc, lambda a, b: kernel_distance(a, b, size=5)))):
        with pytest.raises(Refused, match=words): f()
    x = features(10, 12, 0)
    with pytest.warns(UserWarning, match='10 pictures, 12 features: the covariance has rank 9 at most'): frechet_distance(x, x)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        frechet_distance(features(13, 12, 0), features(14, 12, 1))


# Features.

class Small(nn.Module):
    "A network that costs nothing; counts its calls."
    def __init__(self, seed=0):
        super().__init__()
        self.linear = nn.Linear(12, 5)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(seed))
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        h = nn.functional.adaptive_avg_pool2d((from_uint8(x) if x.dtype == torch.uint8 else x), 2).flatten(1)
        return h, self.linear(h)


class Replay(nn.Module):
    "A generator that knows real pictures; the same z gives the same picture."
    def __init__(self, pictures, n_classes=4, seed=0):
        super().__init__()
        self.gain, self.pictures = nn.Parameter(torch.tensor(float(seed))), pictures
        self.z_dim, self.n_classes, self.res = 8, n_classes, pictures.shape[-1]

    def forward(self, z, y): return from_uint8(self.pictures[(z[:, 0].abs()*1e6).long() % len(self.pictures)])


@pytest.fixture(scope='module')
def toy(): return Toy(n=240)


@pytest.fixture
def small(): return Features(Small(), 'small')


@pytest.fixture
def G(toy): return Replay(Toy(seed=1).batch(torch.arange(500))[0]).eval()


def test_resize_is_torch_fidelitys_bit_for_bit():
    theirs = reference('interpolate_compat_tensorflow').interpolate_bilinear_2d_like_tensorflow1x
    for h, w in ((32, 32), (128, 128), (300, 500), (17, 400)):
        x = torch.randint(256, (2, 3, h, w), generator=torch.Generator().manual_seed(h)).float()
        assert torch.equal(tf1_resize(x, 299), theirs(x, size=(299, 299), align_corners=False))
    antialiased = nn.functional.interpolate(x, size=(299, 299), mode='bilinear', antialias=True)
    assert (tf1_resize(x, 299) - antialiased).abs().mean() > 1                  # another metric


def random_inception(path, monkeypatch):
    "A file with fixed random weights under the names of the real one."
    fe = reference('feature_extractor_inceptionv3')
    torch.save({}, path)
    with monkeypatch.context() as m, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        m.setattr(fe.FeatureExtractorInceptionV3, 'load_state_dict', lambda self, state: None)
        net = fe.FeatureExtractorInceptionV3('inception', ['2048'], feature_extractor_weights_path=str(path))
        for o in net.modules():
            if isinstance(o, nn.Conv2d): nn.init.kaiming_normal_(o.weight)
        nn.init.normal_(net.fc.weight, std=.02), nn.init.normal_(net.fc.bias)
    torch.save(net.state_dict(), path)
    return path


def real_pictures(tmp_path, n=12):
    "A folder with some of CIFAR-10 (JPEG), four classes."
    found = Path(__file__).resolve().parents[2]/'shared/data/cifar10-test.zip'
    if not found.exists(): pytest.skip(f'{found.name} is not on this machine')
    with zipfile.ZipFile(found) as z:
        for k in ('airplane', 'cat', 'frog', 'ship'):
            for name in sorted(o for o in z.namelist() if f'/{k}/' in o and o.endswith('.jpg'))[:n // 4]:
                (tmp_path/k).mkdir(parents=True, exist_ok=True)
                (tmp_path/k/Path(name).name).write_bytes(z.read(name))
    return tmp_path


def test_whole_pipeline_is_torch_fidelitys(tmp_path, monkeypatch):
    fidelity = reference('metrics')
    path, folder = random_inception(tmp_path/'w.pth', monkeypatch), real_pictures(tmp_path/'real')
    features = inception(path, sha256=file_sha256(path))
    assert not features.published and features.name != 'inception'
    source = open_source(folder, res=32)
    real, fake = source.batch(torch.arange(12))[0], Toy(seed=3).batch(torch.arange(10))[0]

    class InOrder(Replay):
        at = 0
        def forward(self, z, y):
            self.at += len(z)
            return from_uint8(self.pictures[self.at - len(z):self.at])
    with monkeypatch.context() as m:
        for way, (a, b) in dict(fake_real=(fake, real), real_fake=(real, fake)).items():
            b_source = Pictures(b.numpy(), torch.zeros(len(b)), ['only'], 'pictures', way, {})
            ours = evaluate(InOrder(a, 1).eval(), b_source, ('score', 'distance', 'kid', 'prdc'), Features(features.net, 'inception', 'TF1', True),
                            n_fake=len(a), cache=None)
            data = [type('Data', (torch.utils.data.Dataset,), dict(__len__=lambda self, x=x: len(x), __getitem__=lambda self, i, x=x: x[i]))() for x in (a, b)]
            theirs = fidelity.calculate_metrics_one_feature_extractor(
                input1=data[0], input2=data[1], feature_extractor='inception-v3-compat', feature_layer_prc='2048', feature_extractor_weights_path=str(path),
                isc=True, isc_splits=1, fid=True, kid=True, prc=True, kid_subset_size=10, kid_subsets=100, cuda=False, cache=False, verbose=False, save_cpu_ram=True)
            found = {(o['metric'], o.get('splits')): o['value'] for o in ours}
            for name, key in {('IS', 1): 'inception_score_mean', ('FID', None): 'frechet_inception_distance', ('KID', None): 'kernel_inception_distance_mean',
                              ('precision', None): 'precision', ('recall', None): 'recall'}.items():
                assert found[name] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), (way, name)
            assert found['FID', None] > 0 and 1 < found['IS', 1] < 1008


def test_inception_weights_are_checked_before_they_are_read(tmp_path, monkeypatch):
    with pytest.raises(Refused, match='(?s)there is no such file.*weights-inception-2015-12-05-6726825d.pth.*sha256 6726825d0af5.*put it at'):
        inception(tmp_path/'none.pth')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', Mock(side_effect=OSError('offline')))
    with pytest.raises(Refused, match='cannot download.*offline.*put it at .*hub'): inception_file()
    other = tmp_path/'other.pth'
    other.write_bytes(b'not it')
    with monkeypatch.context() as m:
        m.setattr(torch, 'load', lambda *a, **k: pytest.fail('read before it was checked'))
        with pytest.raises(Refused, match='not the file that is needed'): inception(other)

    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path/'harm',)
    torch.save(dict(evil=Evil()), other)
    with pytest.raises(Refused, match='more than weights'): inception(other, sha256=file_sha256(other))
    assert not (tmp_path/'harm').exists()


def test_domain_classifier_is_kept_by_content(tmp_path, toy, monkeypatch):
    monkeypatch.setenv('SAGAN_NB_CACHE', str(tmp_path/'common'))
    a = domain(toy, tmp_path)
    file, = tmp_path.glob('classifier-*')
    with monkeypatch.context() as m:
        m.setattr(features_room, 'train_classifier', lambda *args: pytest.fail('trained again'))
        for folder in (tmp_path, tmp_path/'another', 'default'): assert domain(toy, folder).hash == a.hash and domain(toy, folder).facts == a.facts
        assert (tmp_path/'another'/file.name).read_bytes() == (tmp_path/'common'/file.name).read_bytes() == file.read_bytes()
    assert a.facts['held_out'] == 24 and 0 <= a.facts['accuracy'] <= 1
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1                                            # one bit
    file.write_bytes(raw)
    with pytest.warns(UserWarning, match='is damaged: making it again'): b = domain(toy, tmp_path)
    assert b.hash == a.hash == domain(toy, tmp_path).hash   # the same training, and a whole file
    turned = WithoutLabels(toy)
    c = domain(turned, None)
    assert c.facts['task'] == 'quarter turns' and c(turned.batch([0, 1])[0])[1].shape == (2, 4)


# Evaluation.

def count(features): return features.net.seen


def test_records_say_how_they_were_made(toy, small, G):
    records = evaluate(G, toy, evaluate_room.METRICS, small, n_fake=200, n_real=100, cache=None, about=dict(step=7, ema=True, batch_norm='moving averages'))
    for o in records:
        assert {'metric', 'value', 'features', 'features_hash', 'resize', 'n_fake', 'n_real', 'seed', 'labels', 'generator', 'data', 'data_id', 'pictures',
                'version', 'step', 'ema', 'batch_norm'} <= set(o) or o['features'] == 'pixels'
        assert not {'FID', 'IS', 'KID', 'intra-FID'} & {o['metric']}
        assert o['value'] == 'n/a' or math.isfinite(o['value'])
    by = {(o['metric'], o.get('splits')): o for o in records}
    assert by['intra distance', None]['n_real'] == 100 and by['intra distance', None]['labels'] == 'balanced' and len(by['intra distance', None]['per_class']) == 4
    assert by['classifier score', 10]['spread'] > 0 and by['Fréchet classifier distance', None]['n_real'] == 100
    assert {'long_range_mi', 'precision', 'coverage', 'density', 'recall'} <= {o['metric'] for o in records}
    json.dumps(records)
    assert 'classifier score' in one_line(records) and '200 generated against 100 real' in as_table(records)
    published = Features(small.net, 'inception', published=True)
    assert [o['metric'] for o in evaluate(G, toy, ('score', 'distance', 'intra', 'kid'), published, 100, cache=None)] == ['IS', 'IS', 'FID', 'intra-FID', 'KID']


def test_what_cannot_be_computed_is_na_with_a_reason(small, G):
    bare = WithoutLabels(Toy(n=60))
    unlabelled = Replay(G.pictures, 0).eval()
    records = {o['metric']: o for o in evaluate(unlabelled, bare, ('score', 'intra', 'distance'), small, 40, cache=None)}
    assert records['intra distance']['value'] == 'n/a' == records['classifier score']['value'] and 'no classes' in records['intra distance']['reason']
    assert 'no classes' in as_table([*records.values()]) and 'n/a' in one_line([*records.values()])
    lone = Toy(n=4)                                         # one picture of each class
    o, = evaluate(G, lone, ('intra',), small, 40, cache=None)
    assert o['value'] == 'n/a' and len(o['left_out']) == 4 and 'no class has two real' in o['reason']
    for bad, words in ((dict(metrics=('fid',)), 'no metric'), (dict(n_fake=1), 'at least 2')):
        with pytest.raises(Refused, match=words): evaluate(G, Toy(n=60), **dict(metrics=('distance',), features=small, cache=None) | bad)
    with pytest.raises(Refused, match='32 px and 4 classes, but'): evaluate(G, Toy(n=60, n_classes=5), features=small, cache=None)
    with pytest.raises(Refused, match='training mode'): evaluate(Replay(G.pictures).train(), Toy(n=60), features=small, cache=None)


def test_batch_and_shard_size_change_nothing(toy, small, G):
    whole = fake_table(G, small, 130)
    for batch, shard in ((1, 1000), (7, 20), (64, 64)):
        parts = fake_table(G, small, 130, batch=batch, shard=shard)
        for what in ('features', 'logits'): torch.testing.assert_close(parts.rows(what), whole.rows(what), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts.rows('features', 19, 61), whole.rows('features')[19:61], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts.stats().covariance, whole.stats().covariance, rtol=1e-5, atol=1e-7)
    assert whole.y.bincount().min() < 130 // 4 < whole.y.bincount().max()         # uniform, not balanced
    assert fake_table(G, small, 130, labels='balanced').y.bincount().tolist() == [33, 32, 33, 32]


def test_ranks_that_share_the_work_change_nothing(tmp_path, small, G):
    "Each of three makes every third shard, as a process of its own would, and gathers its own statistics."
    whole, ranks = fake_table(G, small, 130), []
    for rank in range(3):
        share, own = fake_table(G, small, 130, shard=20, folder=tmp_path), Stats(12)
        for i in range(rank, len(share), 3): own.add(share[i]['features'])
        ranks.append(own)
    made = count(small)
    together = fake_table(G, small, 130, shard=20, folder=tmp_path).complete()
    torch.testing.assert_close(together.rows('logits'), whole.rows('logits'), rtol=1e-5, atol=1e-5)
    merged, all_rows = ranks[2].merge(ranks[0]).merge(ranks[1]), whole.stats()
    assert merged.n == 130 and frechet_distance(merged, all_rows) < 1e-9
    torch.testing.assert_close(merged.covariance, all_rows.covariance, rtol=1e-5, atol=1e-7)
    assert count(small) == made + 130                       # `whole`, when it was asked; nothing that a rank had made


def test_finished_features_are_not_made_again(tmp_path, toy, small, G, monkeypatch):
    run = lambda **kw: evaluate(G, toy, ('score', 'distance', 'intra'), small, **dict(n_fake=90, n_real=100, cache=tmp_path) | kw)
    compute, done = evaluate_room.Table.compute, []

    def stop_at_third(self, i):
        if len(done) == 2: raise KeyboardInterrupt
        done.append(i)
        return compute(self, i)
    with monkeypatch.context() as m:
        m.setattr(evaluate_room.Table, 'compute', stop_at_third)
        with pytest.raises(KeyboardInterrupt): run()
    before = count(small)
    first = run()
    made = count(small) - before
    assert made < 90 + 100 + 88 and made > 0           # the two finished shards were kept
    before = count(small)
    assert run() == first and count(small) == before         # nothing is made twice
    for other in (dict(seed=1), dict(rounding=False), dict(n_fake=91)):
        run(**other)
        assert count(small) > before, other                  # another protocol never reuses them
        before = count(small)
    changed = Pictures(toy.batch(torch.arange(240))[0].numpy(), torch.arange(240) % 4, toy.classes, toy.spec, 'other', {})
    evaluate(G, changed, ('distance',), small, n_fake=90, n_real=100, cache=tmp_path)
    assert count(small) == before + 100                      # other real pictures, the same fakes
    with torch.no_grad(): G.gain += 1
    evaluate(G, changed, ('distance',), small, n_fake=90, n_real=100, cache=tmp_path)
    assert count(small) == before + 190                      # another generator
    for activation in (nn.ReLU(), nn.LeakyReLU(.1), nn.LeakyReLU(.2)):        # of torch's: equal weights, another generator
        G.activation, before = activation, count(small)
        evaluate(G, changed, ('distance',), small, n_fake=90, n_real=100, cache=tmp_path)
        assert count(small) == before + 90


def test_damaged_and_full(tmp_path, toy, small, G, monkeypatch):
    table = lambda: real_table(toy, small, 100, folder=tmp_path, shard=50).complete()
    good = table().rows('features')
    for file, harm in zip(sorted(tmp_path.glob('real-*/0*')), (lambda b: b[:len(b) // 2], lambda b: b[:-3] + bytes([b[-3] ^ 8]) + b[-2:])):
        file.write_bytes(harm(file.read_bytes()))
    with pytest.warns(UserWarning, match='is damaged'): assert torch.equal(table().rows('features'), good)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(table().rows('features'), good)  # repaired
    path = tmp_path/'one.safetensors'
    assert write_cache(path, dict(a=torch.ones(3)), dict(old=True))
    def full(self, data):
        with open(self, 'wb') as f: f.write(data[:10])
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(Path, 'write_bytes', full)
        with pytest.warns(UserWarning, match='No space left'): assert not write_cache(path, dict(a=torch.zeros(3)))
        assert read_cache(path)[1] == dict(old=True) and list(tmp_path.glob('*.part')) == []
        shutil.rmtree(next(tmp_path.glob('real-*')))
        with pytest.warns(UserWarning, match='No space left'): assert torch.equal(table().rows('features'), good)       # goes on without


def test_bad_pictures_are_listed(tmp_path, capsys, small):
    toy = Toy(n=60)
    as_folders(toy, tmp_path)
    (tmp_path/'1'/'broken.png').write_bytes(b'\x89PNG, but no')
    source = open_source(tmp_path, res=32, max_bad=.1)
    assert 'broken.png' in capsys.readouterr().out
    o, = evaluate(Replay(toy.batch(torch.arange(60))[0]).eval(), source, ('distance',), small, 30, cache=None)
    assert o['unreadable'] == 1 and o['n_real'] == 60 and math.isfinite(o['value'])


def test_what_a_layer_holds_for_speed_is_not_hashed():
    "Spectral norm keeps copies of u and v: with the same weights and buffers, the same hash."
    one, other = (Generator(res=32, width=4, n_classes=4, attn_at=(16,)) for _ in range(2))
    settle(one, 1)
    other.load_state_dict(one.state_dict())
    assert any(sn.fresh for _, sn, _ in normalised(one)) and weights_hash(one) == weights_hash(other)


def test_warnings_become_notes_but_for_those_of_torch_about_itself():
    def metric():
        warnings.warn('few pictures', stacklevel=1)
        warnings.warn('Please use the new API settings to control TF32 behavior', stacklevel=1)
        return [('FID', 1., {})]
    assert evaluate_room.collect_warnings(metric) == [('FID', 1., dict(notes=['few pictures']))]


def test_records_are_kept_without_doubles(tmp_path):
    path = tmp_path/'metrics.json'
    one = dict(metric='FID', value=3., features_hash='a', n_fake=10, n_real=10, seed=0, step=1)
    save_records(path, [one])
    save_records(path, [dict(one, value=4.), dict(one, step=2)])
    assert [o['value'] for o in json.loads(path.read_text())] == [4., 3.]
    save_records(path, [dict(one, protocol='tf2018', value=4.)])                 # a number by name stays beside an equal one without
    assert [o.get('protocol') for o in save_records(path, [one])] == [None, 'tf2018', None]
    for damaged in ('torn{', '{"a": 1}', '[1]'):
        path.write_text(damaged)
        with pytest.warns(UserWarning, match='held no records'): assert save_records(path, [one]) == [one]
        assert (tmp_path/'metrics.json.bad').read_text() == damaged


def test_fifty_thousand_fit_into_memory(monkeypatch):
    "Measured at a tenth in each direction: the memory of a pass is a few blocks, whatever n is; within a set, a block serves both of its sides."
    rows, blocks, rough = torch.rand(5000, 64, generator=torch.Generator().manual_seed(0)), [], near.rough
    def watched(*args):
        blocks.append(rough(*args).shape)
        return rough(*args)
    monkeypatch.setattr(near, 'rough', watched)
    prdc(rows, rows.flip(0).clone(), chunk=1024)
    assert max(a*b for a, b in blocks) <= 1024**2 and len(blocks) == 25 + 2*15


def prdc_in_float64(fake, real, k=3, k_density=5):
    "Whole matrices of distances, as chapter 10 writes them."
    centre = real.double().mean(0)
    slack = lambda x: 1e-12*(x.double() - centre).square().sum(1)
    def radius(x, k): return metrics.squared_distances(x, x, centre).fill_diagonal_(math.inf).sort(1).values[:, k - 1] + slack(x)
    d2 = metrics.squared_distances(fake, real, centre)
    hits, reached = d2 <= radius(real, k), d2 <= radius(real, k_density)
    return dict(precision=hits.any(1).double().mean().item(), recall=(d2 <= radius(fake, k)[:, None]).any(0).double().mean().item(),
                density=reached.sum().item() / (k_density*len(fake)), coverage=reached.any(0).double().mean().item())


def lattice(n, seed):
    "Points of a lattice that no binary number hits: most distances are ties, to rounding."
    return torch.randint(0, 3, (n, 6), generator=torch.Generator().manual_seed(seed)) * .1 + .3


CLOUDS = {'features': lambda: (features(700, 64, 0).float()*.8, features(900, 64, 1, .1).float()), 'ties': lambda: (lattice(300, 0), lattice(400, 1)),
          'far from zero': lambda: (features(300, 16, 0).float() + 1000, features(400, 16, 1).float() + 1000),
          'collapsed': lambda: (features(3, 16, 0).float().repeat(100, 1), features(400, 16, 1).float()),
          'one far away': lambda: (torch.cat([features(300, 16, 0).float(), torch.full((1, 16), 1e7)]), features(400, 16, 1).float()),
          'tiny': lambda: (features(200, 16, 0).float()*1e-18, features(200, 16, 1).float()*1e-18), 'huge': lambda: (features(200, 16, 0)*1e25, features(200, 16, 1)*1e25),
          'constant': lambda: (torch.ones(50, 4), torch.ones(60, 4)), 'few': lambda: (features(7, 5, 0).float(), features(9, 5, 1).float())}


@pytest.mark.parametrize('name', CLOUDS)
@pytest.mark.parametrize('k, k_density', [(3, 5), (4, 1)])
def test_products_in_float32_decide_as_float64(name, k, k_density):
    fake, real = CLOUDS[name]()
    wanted = prdc_in_float64(fake, real, k, k_density)
    for chunk in (64, 2048): assert prdc(fake, real, k, k_density, chunk) == pytest.approx(wanted, abs=1e-12), chunk


def test_float32_alone_would_decide_otherwise(monkeypatch):
    "Without its second pass, at ties; and with too few candidates for a neighbour, which are looked for again."
    fake, real = CLOUDS['ties']()
    wanted = prdc_in_float64(fake, real)
    monkeypatch.setattr(near, 'BEYOND', 0)
    assert prdc(fake, real, chunk=64) == pytest.approx(wanted, abs=1e-12)
    right = near.Cloud.__init__
    def careless(self, *args):
        right(self, *args)
        self.error = 0.
    monkeypatch.setattr(near.Cloud, '__init__', careless)
    assert prdc(fake, real, chunk=64) != pytest.approx(wanted, abs=1e-12)


def test_a_user_who_wants_coarse_products_gets_exact_neighbours():
    "torch.set_float32_matmul_precision lets torch round the inputs of products; then float64 computes them."
    x, before = CLOUDS['features']()[1], torch.get_float32_matmul_precision()
    assert near.Cloud(x, x[0].double(), 64).low.dtype == torch.float32
    torch.set_float32_matmul_precision('medium')
    try: assert near.Cloud(x, x[0].double(), 64).low.dtype == torch.float64
    finally: torch.set_float32_matmul_precision(before)


def test_a_block_across_the_diagonal_counts_twice():
    "Whatever the chunk: the sum over pairs of a set with itself, of which half is computed."
    x = features(700, 12, 0)
    whole = (x @ x.T / 12 + 1).pow(3).sum().item()
    for chunk in (64, 699, 2048): assert metrics.polynomial_sum(x, x, chunk) == pytest.approx(whole, rel=1e-12) == metrics.polynomial_sum(x, x.clone(), chunk)


@pytest.mark.long
def test_fifty_thousand_of_width_2048_fit_into_four_gib():
    code = ("import resource, torch\nfrom sagan_nb.metrics import prdc\nx, y = (torch.rand(50_000, 2048, generator=torch.Generator().manual_seed(s)) for s in (0, 1))\n"
            "print(prdc(x, y), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    print(f'precision, recall, density, coverage of noise against noise, and the peak of the whole process in GiB: {out}')
    assert float(out.split()[-1]) < 4


def test_what_is_no_covariance_is_refused():
    rng = torch.Generator().manual_seed(0)
    S = torch.randn(5, 5, generator=rng).double()
    for bad, words in ((S, 'not symmetric'), (S + S.T - 9*torch.eye(5), 'negative eigenvalue'), ((S @ S.T)[:4, :4], 'a mean of 5')):
        with pytest.raises(Refused, match=words): Stats.from_moments(torch.zeros(5), bad, 10)
    assert Stats.from_moments(torch.zeros(5), S @ S.T, 10).n == 10
    with pytest.raises(Refused, match='of 5 pictures has rank 4 at most'): Stats.from_moments(torch.zeros(5), S @ S.T, 5)
    assert Stats.from_moments(np.zeros(5), (S[:, :4] @ S[:, :4].T).numpy(), 5).n == 5


def test_bytes_do_not_wrap_around_when_resized():
    x = torch.tensor([[250, 4], [4, 250]], dtype=torch.uint8)[None, None]
    assert torch.equal(features_room.tf1_resize(x, 7), features_room.tf1_resize(x.float(), 7))


def test_what_a_few_pictures_cannot_say(toy, small, G):
    "A metric that needs more pictures costs no other one, and a spread that means nothing is not printed."
    records = evaluate(G, toy, ('diversity', 'prdc', 'kid'), small, n_fake=4, n_real=4, cache=None)
    found = {o['metric']: o for o in records}
    assert found['precision and recall']['value'] == 'n/a' and '6 pictures' in found['precision and recall']['reason']
    kid = found['kernel classifier distance']
    assert 'spread' not in kid and kid['subsets'] == 1 and 'without a spread' in kid['notes'][0] and 'diversity' in found


SAVE = '''
import sys
from sagan_nb.machinery.evaluate import save_records
for i in range(40): save_records(sys.argv[1], [dict(metric=f"{sys.argv[2]}-{i}", value=1.)])
'''


def test_processes_add_to_one_file(tmp_path):
    children = [subprocess.Popen([sys.executable, '-c', SAVE, str(tmp_path/'metrics.json'), name]) for name in 'abc']
    assert [c.wait() for c in children] == [0, 0, 0]
    assert len({o['metric'] for o in json.loads((tmp_path/'metrics.json').read_text())}) == 120


def test_a_damaged_cache_is_no_note_on_a_number(toy, small, G, tmp_path):
    how = dict(metrics=('distance',), features=small, n_fake=40, n_real=40, cache=tmp_path)
    first = evaluate(G, toy, **how)
    for path in tmp_path.glob('*/*.safetensors'): path.write_bytes(b'x')
    with pytest.warns(files.CacheWarning, match='is damaged'): again = evaluate(G, toy, **how)
    assert again == first


# The command.

EVAL = '--metrics', 'score,distance,intra,prdc,diversity,long_range', '--n_real', 1500


def test_eval_killed_goes_on_where_it_stopped_and_two_share_a_cache(run, tmp_path, monkeypatch):
    monkeypatch.setenv('SAGAN_NB_CACHE', str(tmp_path/'cache'))
    shards = lambda: {p: p.stat().st_mtime_ns for p in (tmp_path/'cache').glob('*/0*.safetensors')}
    args = 'sagan_eval', run, *EVAL, '--n_fake', 2000, '--out'
    first = spawn(*args, tmp_path/'a.json')
    while first.poll() is None and not shards(): time.sleep(.02)
    first.kill()
    first.communicate()
    before = shards()
    assert 0 < len(before) and not (tmp_path/'a.json').exists()
    second = spawn(*args, tmp_path/'a.json', stderr=subprocess.PIPE)
    out, err = second.communicate()
    assert second.returncode == 0, err
    after = shards()
    assert {p: after[p] for p in before} == before and len(after) > len(before)             # nothing finished was made again
    for name in ('classifier score', 'Fréchet classifier distance', 'intra distance', 'precision', 'diversity', 'long_range_mi', '2000 generated against 1500 real'):
        assert name in out, name
    records = json.loads((tmp_path/'a.json').read_text())
    newest = run/'checkpoints'/records[0]['checkpoint']
    assert all(o['checkpoint_sha256'] == file_sha256(newest) and o['step'] == 4 and o['train_seed'] == 0 and o['trained_commit'] for o in records)
    for table in (tmp_path/'cache').glob('*/'): shutil.rmtree(table)                       # all but the classifier
    both = {name: spawn(*args, tmp_path/name) for name in ('b.json', 'c.json')}              # at once, over one cache
    for name, process in both.items():
        process.communicate()
        assert process.returncode == 0 and json.loads((tmp_path/name).read_text()) == records      # in one go, the same
    assert not list((tmp_path/'cache').rglob('*.part'))


@pytest.mark.parametrize('args, words', [
    (['--metrics', 'score,fid'], "no metric 'fid'; choose from score"), (['--features', 'vgg'], "no features 'vgg'"),
    (['--features', 'inception:nowhere.pth'], 'nowhere.pth: there is no such file'), (['--data', 'nowhere'], 'no file or folder'),
    (['--data', 'toy:5'], '4 are asked for'), (['--n_fake', 1], 'at least 2 pictures'), (['--metrics', ''], "no metric ''"),
    (['--device', 'tpu'], 'say auto, cpu or cuda'), (['--out', 'no/where.json'], 'no such folder'), (['--seed', -1], 'seed must lie')])
def test_eval_refuses_in_one_line(run, args, words, monkeypatch, capsys):
    before = (run/'metrics.json').read_bytes()
    monkeypatch.setattr(sys, 'argv', ['sagan_eval', str(run), *map(str, args)])
    with pytest.raises(SystemExit) as e: cli.sagan_eval()
    err = capsys.readouterr().err
    assert e.value.code == 1 and words in err and err.count('\n') == 1 and (run/'metrics.json').read_bytes() == before


def test_eval_of_published_weights_needs_pictures(run, tmp_path, monkeypatch, capsys):
    published = tmp_path/'toy.safetensors'
    cli.sagan_export(str(run), out=str(published))
    with pytest.raises(Refused, match='say --data'): cli.sagan_eval(str(published))
    cli.sagan_eval(str(published), data='toy', metrics='diversity', n_fake=100, n_real=100)
    o, = json.loads((tmp_path/'metrics.json').read_text())
    assert o['metric'] == 'diversity' and o['checkpoint_sha256'] == file_sha256(published)
    own = json.loads((run/'metrics.json').read_text())                         # what the run itself ended with
    assert {r['numerics'] for r in [o, *own]} == {NUMERICS} and {r['train_seed'] for r in own} == {0}


def test_classes_left_out_are_named_on_the_screen(run, tmp_path, capsys):
    few = dict(metric='intra distance', left_out={'ship': '1 real picture'})
    many = dict(metric='intra-FID', left_out={f'c{k}': '0 real pictures' for k in range(12)})
    assert evaluate_room.left_out([dict(metric='FID'), dict(few, left_out={})]) == ''
    assert evaluate_room.left_out([dict(metric='FID'), few]) == '\nintra distance without ship (1 real picture)'
    assert 'c9 (0 real pictures) and 2 more' in evaluate_room.left_out([many]) and 'c10' not in cli.left_out([many])
    o, = cli.sagan_eval(str(run), metrics='intra', n_fake=100, n_real=5, out=str(tmp_path/'e.json'))
    assert o['left_out'] and f"intra distance without {next(iter(o['left_out']))} (" in capsys.readouterr().out


def test_a_run_on_too_few_pictures_still_ends_well(tmp_path, capsys):
    from PIL import Image
    for k, name in enumerate(('a', 'a', 'b', 'b', 'b')):
        (tmp_path/'zoo'/name).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 40), (50*k, 0, 99)).save(tmp_path/'zoo'/name/f'{k}.png')
    cli.sagan_train('t1_attn_16', data=str(tmp_path/'zoo'), scale='smoke', out=str(tmp_path/'run'))
    out = capsys.readouterr().out
    assert out.index('this run will not be measured') < out.index('not measured:') and '5 pictures: too few for a classifier' in out and 'Try next' in out


def test_a_pack_changed_in_place_is_not_taken_for_itself(tmp_path, small):
    from sagan_nb.machinery.packs import pack
    as_folders(Toy(n=60), tmp_path/'zoo')
    pack(tmp_path/'zoo', 32, tmp_path/'zoo.pack')
    take = lambda: real_table(open_source(tmp_path/'zoo.pack'), small, 60, folder=tmp_path/'cache').complete().rows('features')
    first, again = take(), take()
    raw = bytearray((tmp_path/'zoo.pack'/'images.npy').read_bytes())
    raw[3000:90000] = bytes(87000)
    (tmp_path/'zoo.pack'/'images.npy').write_bytes(raw)
    assert torch.equal(first, again)
    with pytest.raises(Refused, match='images 0 to 59 are not those that were packed'): take()


def test_what_a_second_reader_found(tmp_path, toy, small, run, capsys):
    torch.manual_seed(0)
    G = Generator(res=32, width=4, n_classes=4, attn_at=(16,), sn=dict(update='always')).eval()
    other = Generator(res=32, width=4, n_classes=4, attn_at=(16,), sn=dict(update='always'), bn=dict(eps=.5)).eval()
    other.load_state_dict(G.state_dict())
    assert weights_hash(G) != weights_hash(other)                               # equal tensors, another function: another key
    values = [[o['value'] for o in evaluate(G, toy, m, small, 60, 100, cache=None, batch=b)] for m, b in
              ((('distance', 'intra'), 100), (('distance', 'intra'), 20), (('intra', 'distance'), 100))]
    assert values[0] == pytest.approx(values[1], rel=1e-3) and values[0] == pytest.approx(values[2][::-1], rel=1e-6)     # u held still
    a, b = ([dict(metric='FID', value=v, features_hash='a', n_fake=10, n_real=10, seed=0, step=1, data_id=v)] for v in 'xy')
    assert len(save_records(tmp_path/'m.json', a)) == 1 and len(save_records(tmp_path/'m.json', b)) == 2
    far, near = torch.randn(250, 8, dtype=D) + 100, torch.randn(300, 8, dtype=D)
    near[0] = 1e7
    found = prdc(near, far)
    assert found['precision'] == found['density'] == found['coverage'] == 0                  # one far point does not blow up every ball
    for f in (lambda: inception_score(near, 0), lambda: kernel_distance(near, far, 0, 10), lambda: kernel_distance(near, far, 3, 1),
              lambda: fake_table(small.net, small, 10, labels='unifrom'), lambda: prdc(near, far[:, :5]), lambda: kernel_distance(near, far[:, :5], 3, 9), lambda: evaluate(G, toy, (), small)):
        with pytest.raises(Refused): f()
    cli.sagan_eval(str(run), metrics='diversity,score', n_fake=100, n_real=100, out=str(tmp_path/'e.json'))
    out = capsys.readouterr().out
    assert 'diversity: pixels; 100 generated' in out and 'classifier score: classifier of toy:4' in out


def test_weights_hash_sees_values_and_names():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    assert weights_hash(a) == weights_hash(b)
    with torch.no_grad(): b.bias[0] += 1e-7
    assert weights_hash(a) != weights_hash(b) != weights_hash(nn.Sequential(a))


# Random small cases.

@st.composite
def pairs(draw):
    "Two small clouds of one width: any rank, repeated rows, dead and huge and tiny features, far from the origin or not."
    d, sizes = draw(st.integers(1, 6)), draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    rng = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    kind, scale, far = draw(st.sampled_from(['normal', 'grid', 'flat', 'same', 'rectified'])), draw(st.sampled_from([1e-6, 1., 1e4])), draw(st.sampled_from([0., 1., 1e3]))
    def cloud(n):
        x = rng.randn(n, d)
        if kind == 'grid': x = x.round()
        if kind == 'flat': x = x[:, :1] * rng.randn(1, d)
        if kind == 'same': x = np.repeat(x[:1], n, 0)
        if kind == 'rectified': x = x.clip(0)
        return torch.from_numpy((x + far) * scale)
    turn = torch.linalg.qr(torch.from_numpy(rng.randn(d, d))).Q
    return cloud(sizes[0]), cloud(sizes[1]), turn, torch.from_numpy(rng.permutation(sizes[0]))


def check_pair(case):
    "What holds for every pair of clouds."
    a, b, turn, order = case
    size = sum(x.var(0).sum().item() for x in (a, b)) + (a.mean(0) - b.mean(0)).square().sum().item()
    bound = 1e-7 * size + 1e-13 * max(a.square().max(), b.square().max()).item()
    for x, y in ((a, b), (Stats.of(a), Stats.of(b)), (a, Stats.of(b))):
        value = frechet_distance(x, y)
        assert math.isfinite(value) and value >= -bound
        assert abs(value - frechet_distance(y, x)) <= bound
        assert abs(value - frechet_distance(a, b)) <= bound                     # features or statistics
    assert abs(frechet_distance(a, a)) <= bound and abs(frechet_distance(Stats.of(a), Stats.of(a))) <= bound
    assert abs(frechet_distance(a[order], b) - frechet_distance(a, b)) <= bound
    assert abs(frechet_distance(a @ turn, b @ turn) - frechet_distance(a, b)) <= bound
    mean, std = inception_score(a, 2)
    assert 1 - 1e-9 <= mean <= a.shape[1] + 1e-9 and std >= 0
    assert inception_score(a[order])[0] == pytest.approx(inception_score(a)[0], rel=1e-9)


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(pairs())
def test_random_small_cases(case): check_pair(case)


@pytest.mark.long
@settings(max_examples=10_000, deadline=None, derandomize=True, database=None)
@given(pairs())
def test_ten_thousand_random_small_cases(case): check_pair(case)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 1000), st.sampled_from([0., 1e3, 1e6]))
def test_any_split_of_the_rows_gives_the_same_statistics(cuts, seed, far):
    x = torch.randn(sum(cuts), 4, generator=torch.Generator().manual_seed(seed), dtype=D) + far
    whole, parts, pieces = Stats.of(x), Stats(4), Stats(4)
    for p in x.split(cuts): parts.merge(Stats.of(p)), pieces.add(p)
    for s in (parts, pieces):
        assert s.n == len(x)
        torch.testing.assert_close(s.mean, whole.mean, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(s.scatter, whole.scatter, rtol=1e-9, atol=1e-9*max(1, far*1e-3))
