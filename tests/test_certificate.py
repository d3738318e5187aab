"Certificates of ports: ours pass, and twelve faults that tools/mutate.py plants are named in words."
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from commands import shell
from sagan_nb.core import Refused
from sagan_nb.losses import hinge_d, hinge_g
from sagan_nb.machinery.certificate import (build, certificate, certify, deviations, find_object, guess_kind, read_args)
from sagan_nb.machinery.port_attention import CONFORMS, DEVIATES, UNSURE, explain, watch_layers
from sagan_nb.networks import Discriminator, Generator
from sagan_nb.self_attention import SelfAttention
from sagan_nb.spectral_norm import spectral_norm
from tools.mutate import MUTATIONS

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = {'01': 'spectral_norm', '02': 'self_attention', '03': 'blocks', '04': 'networks', '05': 'losses'}


def planted(what, monkeypatch, folder, *more):
    "Modules of the package with a fault of tools/mutate.py in one of them; `more` are imported anew on top of it."
    old, new, chapter = next((o, n, c) for name, c, o, n, _ in MUTATIONS if name == what)
    out = None
    for name in (CHAPTERS[chapter], *more):
        text = (ROOT/'sagan_nb'/f'{name}.py').read_text(encoding='utf-8')
        if out is None:
            assert text.count(old) == 1, what
            text = text.replace(old, new)
        text = text.replace("'sagan_nb::power_steps'", f"'sagan_planted::n{abs(hash(what))}'")       # an operator has one name
        path = folder/f'{name}.py'                                                               # a class is read off its file
        path.write_text(text, encoding='utf-8')
        module = types.ModuleType(f'sagan_nb.{name}')
        module.__package__, module.__file__ = 'sagan_nb', str(path)
        monkeypatch.setitem(sys.modules, f'sagan_nb.{name}', module)
        exec(compile(text, path, 'exec'), module.__dict__)
        out = module
    return out


def named(found): return {f.what: f.words for f in found if f.verdict == DEVIATES}


@pytest.mark.parametrize('form', ['paper', 'v1', 'released'])
@pytest.mark.parametrize('fast', [True, False])
def test_our_attention_passes(form, fast):
    found = certify(SelfAttention(64, form, fast=fast), 'attention')
    assert {f.verdict for f in found} == {CONFORMS} and len(found) == 8
    words = next(f.words for f in found if f.what == 'widths')
    assert words.endswith({'paper': 'the paper', 'v1': 'the first arXiv version', 'released': 'the released code'}[form])


@pytest.mark.parametrize('what, fast, property', [
    ('softmax over the wrong axis', False, 'softmax'), ('gamma dropped', True, 'gamma'), ('fused attention scaled by 1/sqrt(d)', True, 'scale')])
def test_planted_faults_of_attention(monkeypatch, tmp_path, what, fast, property):
    room = planted(what, monkeypatch, tmp_path)
    if what.startswith('fused'): monkeypatch.setattr(room, 'attend', room.fused_attention)      # what a GPU or a compiler takes
    assert [*named(certify(room.SelfAttention(64, 'released', fast=fast), 'attention'))] == [property]


class Port(nn.Module):
    "A block in the way of the ports, with room for faults."
    def __init__(self, C=64, **fault):
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(C, o, 1) for o in (C//8, C//8, C))
        self.gamma, self.fault = nn.Parameter(torch.full((1,), fault.get('start', 0.))), fault

    def forward(self, x):
        if self.fault.get('in_place'): x = x.relu_()
        pool = self.fault.get('pool', lambda t: t)
        s = self.q(x).flatten(2).mT @ pool(self.k(x)).flatten(2)
        o = (pool(self.v(x)).flatten(2) @ s.softmax(-1).mT).view_as(x)
        if self.fault.get('square'): o = o.view(len(x), -1, x.shape[2], x.shape[2])
        return self.fault.get('sum', lambda x, o, g: x + g*o)(x, o, self.gamma), s


@pytest.mark.parametrize('fault, property, words', [
    (dict(pool=lambda t: F.avg_pool2d(t, 2)), 'pooling', 'mean of 2x2'), (dict(start=1.), 'gamma', 'starts at 1'),
    (dict(sum=lambda x, o, g: o + g*x), 'gamma', 'o + gamma x'), (dict(sum=lambda x, o, g: g*o), 'gamma', 'gamma o in place'),
    (dict(square=True), 'not square', '4x8 fails'), (dict(in_place=True), 'in place', 'overwrites its input')])
def test_other_faults_of_attention(fault, property, words):
    block = Port(**fault)
    if fault.get('in_place'): block = nn.Sequential(nn.Identity(), block)[1]
    found = named(certify(block, 'attention'))
    assert words in found[property] and {'spectral norm', property} >= {*found} - {'formula'}


def test_a_block_of_another_kind_is_not_told():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(64, 64, 3, padding=1)
        def forward(self, x): return x + self.conv(x)
    found = certify(Other(), 'attention')
    assert found[0].verdict == UNSURE and 'none that I know' in found[0].words
    block = SelfAttention(16, fast=False).eval()
    assert explain(watch_layers(block, torch.randn(1, 16, 8, 8)), 0.)[0] is not None


def test_gains_are_put_back():
    block = SelfAttention(64)
    with torch.no_grad(): block.gamma.fill_(.25)
    assert 'starts at 0.25' in named(certify(block, 'attention'))['gamma'] and block.gamma.item() == .25


def test_norms():
    assert not named(certify(spectral_norm, 'norm'))
    assert {*named(certify(nn.utils.parametrizations.spectral_norm, 'norm'))} == {'reading'}
    assert {*named(certify(nn.utils.spectral_norm, 'norm'))} == {'first evaluation'}
    assert 'about 1e-0' in named(certify(lambda m: spectral_norm(m, eps=1e-4), 'norm'))['epsilon']
    assert 'never moves' in named(certify(lambda m: spectral_norm(m, update='real'), 'norm'))['u']


@pytest.mark.parametrize('what, property', [
    ('u moves in evaluation mode by default', 'u'), ('reading the weight moves u', 'reading'),
    ('power step without its second unit', 'norm'), ("gradient of the divided weight without its second term", 'gradient')])
def test_planted_faults_of_the_norm(monkeypatch, tmp_path, what, property):
    wrap = planted(what, monkeypatch, tmp_path).spectral_norm
    if 'reading' in what: wrap = partial(wrap, detach=False)
    assert property in named(certify(wrap, 'norm'))


def test_losses(monkeypatch, tmp_path):
    assert not named(certify(hinge_d, 'loss')) and not named(certify(hinge_g, 'loss'))
    assert 'sign flipped' in named(certify(planted('hinge sign flipped', monkeypatch, tmp_path).hinge_d, 'loss'))['loss']
    assert 'look fake' in named(certify(planted('G rewarded for fakes that look fake', monkeypatch, tmp_path).hinge_g, 'loss'))['loss']
    assert 'exchanged' in named(certify(lambda real, fake: hinge_d(fake, real), 'loss'))['loss']
    pair = certify(lambda real, fake: (F.relu(1 - real).mean(), F.relu(1 + fake).mean()), 'loss')
    assert pair[0].verdict == CONFORMS and certify(lambda r, f: r.std() + f.std(), 'loss')[0].verdict == UNSURE


def test_a_loss_may_name_fake_first():
    "As BigGAN-PyTorch does; under such names in the wrong order it deviates."
    assert not named(certify(lambda dis_fake, dis_real: hinge_d(dis_real, dis_fake), 'loss'))
    assert 'exchanged' in named(certify(lambda dis_fake, dis_real: hinge_d(dis_fake, dis_real), 'loss'))['loss']


@pytest.mark.parametrize('wrap, words', [
    (lambda block: nn.utils.parametrizations.spectral_norm(block.f), 'on 1 of its 4 layers'),
    (lambda block: [nn.utils.parametrizations.weight_norm(o) for o in (block.f, block.g, block.h, block.v)], 'none on its layers'),
    (lambda block: [nn.utils.parametrizations.spectral_norm(o) for o in (block.f, block.g, block.h, block.v)], None)])
def test_spectral_norm_is_asked_of_each_layer(wrap, words):
    block = SelfAttention(64, sn=False)
    wrap(block)
    class Kept(nn.Module):                                      # the same layers in one container
        def __init__(self):
            super().__init__()
            self.of, self.gamma = nn.ModuleDict({k: getattr(block, k) for k in 'fghv'}), block.gamma
        def forward(self, x): return block(x)
    said = named(certify(block, 'attention')).get('spectral norm')
    assert named(certify(Kept(), 'attention')).get('spectral norm') == said
    assert said is None if words is None else words in said


def networks(module): return (getattr(module, n)(res=32, width=4, n_classes=10, attn_at=(16,)) for n in ('Generator', 'Discriminator'))


def test_our_networks_pass():
    G, D = Generator(res=32, width=4, n_classes=10, attn_at=(16,)), Discriminator(res=32, width=4, n_classes=10, attn_at=(16,))
    assert not named(certify(G, 'generator')) and not named(certify(D, 'discriminator'))
    with torch.no_grad():
        for b in G.blocks.values(): b.bn1.gain += torch.randn_like(b.bn1.gain)
    assert 'another picture' in next(f.words for f in certify(G, 'generator') if f.what == 'class tables')
    plain = certify(Discriminator(res=32, width=4, attn_at=(16,), n_classes=10, head='none'), 'discriminator')
    assert 'does not matter' in named(plain)['class tables']


@pytest.mark.parametrize('what, more, which, property', [
    ('mean pooling for sum pooling', (), 1, 'pooling'), ('in-place ReLU before the shortcut', ('networks',), 1, 'in-place ReLU'),
    ('moving variance unbiased', ('networks',), 0, 'moving variance'),
    ('u moves in evaluation mode by default', ('self_attention', 'blocks', 'networks'), 1, 'evaluation')])
def test_planted_faults_of_networks(monkeypatch, tmp_path, what, more, which, property):
    net = [*networks(planted(what, monkeypatch, tmp_path, *more))][which]
    assert property in named(certify(net, ('generator', 'discriminator')[which]))


def test_epsilon_of_batch_norm():
    torchs = Generator(res=32, width=4, n_classes=10, attn_at=(), sn=False)
    for m in [o for o in torchs.modules() if isinstance(o, (nn.Conv2d, nn.Linear))]: nn.utils.parametrizations.spectral_norm(m)
    assert 'batch norm' not in named(certify(torchs, 'generator'))                       # torch's norm has an epsilon of its own
    assert '0.001' in named(certify(Generator(res=32, width=4, n_classes=10, attn_at=(), bn=dict(eps=1e-3)), 'generator'))['batch norm']


# the command

def test_a_port_is_imported_as_anybody_may_have_written_it(tmp_path):
    "With a dataclass whose annotations wait, or a parser that ends the process; and the places to import from stay as they were."
    (tmp_path/'late.py').write_text('from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n  n: int = 3\n')
    (tmp_path/'asks.py').write_text('raise SystemExit("--data is required")\n')
    places = [*sys.path]
    assert find_object(f'{tmp_path}/late.py:A')().n == 3
    with pytest.raises(Refused, match='asks.py cannot be imported .SystemExit: --data is required'): find_object(f'{tmp_path}/asks.py:A')
    with pytest.raises(Refused, match='no such file'): find_object(f'{tmp_path}/none.py:A')
    assert sys.path == places


def test_objects_are_found_and_built(tmp_path):
    (tmp_path/'port.py').write_text('from torch import nn\nclass A(nn.Module):\n  def __init__(self, in_dim, n): super().__init__()\n')
    A = find_object(f'{tmp_path}/port.py:A')
    with pytest.raises(Refused, match='A needs n: say --args'): build(A, None)
    assert isinstance(build(A, '64, n=3'), nn.Module)
    with pytest.raises(Refused, match='cannot be made'): build(A, '1, 2, 3')
    for bad in ('open("x")', '1 +', '*a'):
        with pytest.raises(Refused, match='takes constants'): read_args(bad)
    for spec, words in (('nothing', 'say MODULE:NAME'), ('no.such.module:A', 'cannot be imported'), ('math:none', 'has no none')):
        with pytest.raises(Refused, match=words): find_object(spec)
    assert [guess_kind(n) for n in ('Self_Attn', 'netG', 'D', 'SpectralNorm', 'hinge_loss')] == ['attention', 'generator', 'discriminator', 'norm', 'loss']
    with pytest.raises(Refused, match='--what'): guess_kind('Block')
    with pytest.raises(Refused, match='does not run as generator'): certify(nn.Linear(3, 3), 'generator')


def test_the_command(tmp_path, monkeypatch, capsys):
    code, out, _ = shell(monkeypatch, capsys, 'sagan_check', 'sagan_nb.self_attention:SelfAttention')
    assert code == 0 and 'nothing deviates' in out
    (tmp_path/'loss.py').write_text('def g_loss(fake): return fake.mean()\n')
    code, out, err = shell(monkeypatch, capsys, 'sagan_check', f'{tmp_path}/loss.py:g_loss', '--strict')
    assert code == 1 and 'DEVIATES' in out and '1 of 1 properties deviate' in err
    (tmp_path/'block.py').write_text('from torch import nn\nclass Attention(nn.Conv2d):\n    def __init__(self, c): super().__init__(c, c, 3, padding=1)\n')
    for strict in ([], ['--strict']):
        code, out, err = shell(monkeypatch, capsys, 'sagan_check', f'{tmp_path}/block.py:Attention', *strict)
        assert 'not certified: its formula' in ' '.join(out.split()) and code == bool(strict)
    assert 'not certified: its loss' in certificate('x', 'loss', certify(lambda fake: (fake**2).mean(), 'loss'))
    found = certify(hinge_d, 'loss')
    assert deviations(found) == 0 and certificate('x', 'loss', found).count('\n') == 1
