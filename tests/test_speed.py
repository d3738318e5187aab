"Chapter 14 and the folds of chapter 03: same function, faster; which kernel ran; memory; what `--against` times."
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from commands import as_folders, needs_compiler
from sagan_nb import speed
from sagan_nb.blocks import FOLDS, ConditionalBatchNorm2d, Conv2d, DownBlock, UpBlock, conv_by_matmul, conv_then_pool, tiny, up_then_conv
from sagan_nb.config import PRESETS, at_scale
from sagan_nb.core import Refused, close
from sagan_nb.losses import hinge_d, hinge_g
from sagan_nb.networks import Discriminator, Generator
from sagan_nb.self_attention import SelfAttention, attend, fused_attention, softmax_map
from sagan_nb.speed import (COMPILED, ENDS, FAST, FLOOR, NETS, PLAIN, VARIANTS, Net, Step, in_turns, step_operations,
                            timing_table, usable_variants)
from sagan_nb.spectral_norm import SpectralNorm, spectral_norm
from sagan_nb.train import frozen
from sagan_nb.machinery import bench as bench_room, machine
from sagan_nb.machinery.bench import Draw, attention_bytes, bench, callable_from, kept_bytes
from sagan_nb.machinery.cli import sagan_bench
from sagan_nb.machinery.quick import without_autocast
from sagan_nb.machinery.runs import read_log, train

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = dict(first=torch.contiguous_format, last=torch.channels_last)


# --- the same function ---------------------------------------------------------------------------------------------------------------

def traced(f, x, w, b):
    args = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, w, b) if t is not None]
    out = f(*args)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out, *torch.autograd.grad((out*weight).mean(), args)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(2, 9), st.integers(2, 9), st.sampled_from([1, 3]), st.booleans(),
       st.sampled_from(['first', 'last']), st.sampled_from(['up', 'down', None]), st.integers(0, 99))
def test_folds(B, C, C2, H, W, size, bias, layout, resample, seed):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)
    x, w = (t.to(memory_format=LAYOUTS[layout]) for t in (draw(B, C, H, W), draw(C2, C, size, size)))
    b = draw(C2) if bias else None
    said = {'up': lambda *a: up_then_conv(*a, fold='none'), 'down': lambda *a: conv_then_pool(*a, fold='none'),
            None: lambda *a: F.conv2d(*a, padding=size // 2)}[resample]
    others = [lambda *a: conv_by_matmul(*a, resample=resample)] if size == 3 else []
    for fold in ('box', 'kernel') if resample else ():
        f = up_then_conv if resample == 'up' else conv_then_pool
        others.append(lambda *a, f=f, fold=fold: f(*a, fold=fold))
    for f in others:
        for ours, expected in zip(traced(f, x, w, b), traced(said, x, w, b)): close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('fold', ['box', 'kernel'])
def test_networks_under_spectral_norm(fold, layout):
    "Three training steps, then evaluation: values, gradients to 1e-5 of the largest, and every u alike."
    def run(fold, layout):
        torch.manual_seed(0)
        shape = dict(res=32, width=8, n_classes=3, attn_at=16, fold=fold)
        nets, seen = [Generator(**shape, z_dim=8), Discriminator(**shape)], []
        for n in nets: n.to(memory_format=LAYOUTS[layout]).double()
        G, D = nets
        for step in range(3):
            for n in nets: n.train(step < 2)
            x = G(torch.randn(4, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
            s = D(x, torch.tensor([0, 1, 2, 0]))
            seen += [x, s, *torch.autograd.grad(s.square().sum(), [*G.parameters(), *D.parameters()])]
        return seen, [t for n in nets for k, t in n.named_buffers() if k.endswith(('.u', '.v'))]
    (ours, u), (said, u_said) = run(fold, layout), run('none', 'first')
    for a, b in zip(ours, said): close(a, b, rtol=1e-9, atol=1e-9*max(1., b.abs().max().item()))
    for a, b in zip(u, u_said): close(a, b, rtol=0, atol=1e-12)


def test_matrix_products_are_taken_where_the_map_is_tiny():
    last = lambda *shape: torch.zeros(*shape, device='cpu').to(memory_format=torch.channels_last)
    assert tiny(last(8, 16, 4, 4), last(1024, 16, 3, 3)) and tiny(last(8, 16, 8, 8), last(512, 16, 3, 3), 'up')
    assert not tiny(last(8, 16, 8, 8), last(512, 16, 3, 3)) and not tiny(last(8, 16, 4, 4), last(1024, 16, 1, 1))
    assert not tiny(last(8, 16, 4, 4), torch.zeros(1024, 16, 3, 3))                          # channels first: bits as they were
    layer = Conv2d(16, 128, resample='up').to(memory_format=torch.channels_last)
    with torch.profiler.profile() as prof: layer(last(2, 16, 4, 4))
    seen = {e.key for e in prof.key_averages()}
    assert not any('convolution' in k for k in seen), seen
    with torch.no_grad(), torch.profiler.profile() as prof: layer(last(2, 16, 4, 4))
    assert 'aten::bmm' not in {e.key for e in prof.key_averages()}                          # torch would copy the weight for every row


def test_a_folded_layer_moves_u_once_and_reads_its_weight_once():
    for block, args in ((UpBlock(8, 8, 2), (torch.randn(2, 8, 4, 4), torch.tensor([0, 1]))), (DownBlock(8, 8), (torch.randn(2, 8, 4, 4),))):
        calls = dict(advance=0, read=0)
        for sn in (m for m in block.modules() if isinstance(m, SpectralNorm)):
            def advance(w, sn=sn, f=sn.advance): calls['advance'] += 1; f(w)
            sn.advance = advance
            sn.register_forward_hook(lambda *_: calls.update(read=calls['read'] + 1))
        block(*args)
        assert calls == dict(advance=3, read=3), calls


def test_state_is_the_same_for_every_fold():
    keys = [list(Generator(32, 4, 2, attn_at=(), fold=fold).state_dict()) for fold in ('box', 'kernel', 'none')]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('channels', [2, 16, 40])
def test_a_norm_of_a_narrow_map_is_the_same_in_every_layout(channels, training):
    "Values and all gradients; channels last and narrow, gain and offset are written out along rows."
    norm, y, found = ConditionalBatchNorm2d(channels, 3).train(training).double(), torch.tensor([0, 2, 2, 1]), []
    for p in norm.parameters(): torch.nn.init.normal_(p)
    x = torch.randn(4, channels, 6, 7, dtype=torch.float64)
    for layout in LAYOUTS.values():
        leaf = x.clone(memory_format=layout).requires_grad_()
        out = norm(leaf, y)
        assert out.is_contiguous(memory_format=layout)
        found.append([out, *torch.autograd.grad((out*x.flip(0, 3)).mean(), [leaf, *norm.parameters()])])
    for ours, expected in zip(*found): close(ours, expected, rtol=1e-12, atol=1e-12)


def test_what_a_forward_hands_on_is_not_used_when_u_or_the_layout_changed():
    "In training, a reading divides by the u and v that are stored; copies that `advance` left are for these alone."
    (layer, other), x = [spectral_norm(torch.nn.Conv2d(3, 4, 3)) for _ in range(2)], torch.randn(2, 3, 5, 5)
    def expected():
        sn, w = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        return w/(sn.u @ sn.matrix(w) @ sn.v)
    layer(x), other(x)
    assert layer.parametrizations.weight[0].fresh
    close(layer.weight, expected())
    layer.load_state_dict(other.state_dict())
    close(layer.weight, expected())
    layer.to(memory_format=torch.channels_last)
    close(layer.weight, expected())
    layer(x)
    close(layer.weight, expected())
    layer.double()
    close(layer.weight, expected())


def test_autocast_is_off_inside_and_as_it_was_afterwards():
    states, on = [], lambda: torch.is_autocast_enabled('cpu')
    for enabled in (True, False):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            with pytest.raises(ValueError), without_autocast('cpu'), without_autocast('cpu'):
                states.append(on())
                raise ValueError
            states.append(on())
    assert states == [False, True, False, False] and not on()


# --- attention -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('form', ['paper', 'v1', 'released'])
@pytest.mark.parametrize('channels', [64, 128])                                              # D's and G's map of 64 in the released networks
def test_which_operator_ran(form, channels, layout, precision):
    block = SelfAttention(channels, form).to(memory_format=LAYOUTS[layout])
    x = torch.randn(1, channels, 64, 64).to(memory_format=LAYOUTS[layout]).requires_grad_()
    with torch.profiler.profile() as prof, torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'): out = block(x).float().sum()
    ran = {e.key for e in prof.key_averages()}
    assert 'TiledAttention' in ran and 'aten::_softmax' not in ran, ran
    with torch.profiler.profile() as prof: out.backward()
    ran |= {e.key for e in prof.key_averages()}
    assert any('TiledAttentionBackward' in o for o in ran) and 'aten::_softmax' not in ran, ran
    with torch.profiler.profile() as prof: fused_attention(*block.heads(x))                      # what a compiler, a trace and a GPU get
    ran = {e.key for e in prof.key_averages()}
    assert any('flash_attention' in o for o in ran) and 'aten::_scaled_dot_product_attention_math' not in ran, ran


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 200), st.integers(1, 200), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0., .3, 3., 30.]), st.integers(0, 99))
def test_tiles_are_exact(B, N, M, d, D, size, seed):
    "Values and gradients of every shape and size of scores, in double precision, where nothing is left but the formula."
    g = torch.Generator().manual_seed(seed)
    heads = [torch.randn(B, n, w, generator=g, dtype=torch.float64)*s for n, w, s in ((N, d, size), (M, d, size), (M, D, 1.))]
    arriving, found = torch.randn(B, N, D, generator=g, dtype=torch.float64), []
    for f in (attend, lambda q, k, v: softmax_map(q, k) @ v):
        leaves = [t.clone().requires_grad_() for t in heads]
        found.append([o := f(*leaves), *torch.autograd.grad(o, leaves, arriving)])
    for ours, expected in zip(*found): close(ours, expected, rtol=1e-8, atol=1e-9*max(1., expected.abs().max().item()))


@pytest.mark.parametrize('form', ['paper', 'released'])
def test_attention_of_narrow_nets_is_exact_in_single_precision(form):
    "The block at a map of 32 in G and D of 64 px and width 8: values and gradients to 1e-5 of the largest."
    for channels in (16, 32):
        torch.manual_seed(0)
        block, x = SelfAttention(channels, form), torch.randn(2, channels, 32, 32)
        torch.nn.init.constant_(block.gamma, .7)
        block.eval()
        found = []
        for fast in (True, False):
            block.fast, leaf = fast, x.clone().requires_grad_()
            found.append([o := block(leaf), *torch.autograd.grad((o*x.flip(0, 3)).mean(), [leaf, *block.parameters()])])
        for ours, expected in zip(*found): close(ours, expected, rtol=1e-5, atol=1e-5*expected.abs().max().item())


def test_many_gradients_at_once():
    "Gradients along a batch of directions, and a batch of values with the same queries and keys, by torch.func."
    q, k, v = (torch.randn(2, n, 2, dtype=torch.float64, requires_grad=True) for n in (9, 7, 7))
    along = torch.randn(4, 2, 9, 2, dtype=torch.float64)
    batched = torch.func.vmap(torch.func.vjp(attend, q, k, v)[1])(along)
    for i, g in enumerate(along):
        for ours, expected in zip(batched, torch.autograd.grad(attend(q, k, v), (q, k, v), g)): close(ours[i], expected)
    several = torch.randn(3, 2, 7, 2, dtype=torch.float64)
    for axis in (0, 2):
        found = torch.func.vmap(attend, (None, None, axis))(q, k, several.movedim(0, axis))
        for o, one in zip(found, several): close(o, attend(q, k, one))


def test_memory_of_attention():
    assert attention_bytes('paper', fused=True, side=64, channels=128, batch=8) < .1*2**30
    assert attention_bytes('paper', fused=True, side=64, channels=64, batch=8) < .1*2**30
    for form in ('paper', 'released'):                                                           # narrow heads: 128 MiB of weights, tiles of 2^17
        assert attention_bytes(form, fused=True, side=32, channels=16, batch=32) < 32*2**20
    assert attention_bytes('paper', fused=False, side=32, channels=64, batch=8) > 3*4*32**4*8*.9         # the map, softmax and gradient


def test_kept_bytes():
    "Counted from shapes, against the profiler's record of what is still alive when a loss has been computed; images and z were there before."
    net, v = Net(32, 8, 4, (), (16,)*4, (True, True, False, False)), replace(FAST, channels_last=False)
    step, counted = Step(net, replace(v, sn='none')), kept_bytes(net, v)

    def alive(loss):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof: kept = loss()
        assert kept.requires_grad
        return sum(e.nbytes() for e in prof.profiler.kineto_results.events() if e.name() == '[memory]')
    found, z = dict(D=alive(lambda: hinge_d(step.D(step.x, step.y), step.D(step.x.flip(0), step.y))) + step.x.nbytes), torch.randn(8, 128)
    with frozen(step.D): found['G'] = alive(lambda: hinge_g(step.D(step.G(z, step.y), step.y))) + z.nbytes
    for name in 'DG': assert counted[name] == pytest.approx(found[name], rel=.001)


# --- the bench -----------------------------------------------------------------------------------------------------------------------

def test_operations():
    "The counts of issue and reference: billions for one picture, plain and floor."
    expected = {('32', replace(PLAIN, frozen=True)): 7.87, ('32', FLOOR): 5.13, ('128', replace(PLAIN, frozen=True)): 154.1, ('128', FLOOR): 97.8}
    for (name, v), n in expected.items(): close(step_operations(NETS[name], v) / 1e9, n, rtol=5e-3, atol=0)
    assert step_operations(NETS['32'], FAST) < step_operations(NETS['32'], FLOOR)


def test_optimised_is_faster_than_plain():
    "Ratios within one run, never seconds; of processor time, because other programs may share the machine."
    threads, net = torch.get_num_threads(), NETS['small']
    torch.set_num_threads(1)
    try: seconds = in_turns({n: Step(net, v) for n, v in (('plain', PLAIN), ('no fold', replace(FAST, fold='none')), ('all', FAST))}, 6)
    finally: torch.set_num_threads(threads)
    best = {n: min(cpu for _, cpu in t) for n, t in seconds.items()}
    assert best['plain'] / best['all'] > 1.3 and best['no fold'] / best['all'] > 1.15, seconds


STOCK = '''
import torch, torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as sn

class Norm(nn.Module):
    def __init__(self, c, k):
        super().__init__()
        self.bn = nn.BatchNorm2d(c, affine=False)
        self.gain, self.bias = nn.Embedding(k, c), nn.Embedding(k, c)
    def forward(self, x, y): return self.bn(x)*self.gain(y)[:, :, None, None] + self.bias(y)[:, :, None, None]

class Up(nn.Module):
    def __init__(self, a, b, k):
        super().__init__()
        self.n1, self.n2 = Norm(a, k), Norm(b, k)
        self.c1, self.c2, self.c0 = sn(nn.Conv2d(a, b, 3, padding=1)), sn(nn.Conv2d(b, b, 3, padding=1)), sn(nn.Conv2d(a, b, 1))
    def forward(self, x, y):
        h = self.c1(F.interpolate(F.relu(self.n1(x, y)), scale_factor=2))
        return self.c2(F.relu(self.n2(h, y))) + self.c0(F.interpolate(x, scale_factor=2))

class Down(nn.Module):
    def __init__(self, a, b, down, first):
        super().__init__()
        self.c1, self.c2 = sn(nn.Conv2d(a, b, 3, padding=1)), sn(nn.Conv2d(b, b, 3, padding=1))
        self.c0 = sn(nn.Conv2d(a, b, 1)) if down or a != b else None
        self.down, self.first = down, first
    def forward(self, x):
        h = self.c2(F.relu(self.c1(x if self.first else F.relu(x))))
        if self.first: return F.avg_pool2d(h, 2) + self.c0(F.avg_pool2d(x, 2))
        if self.c0 is not None: x = self.c0(x)
        return F.avg_pool2d(h, 2) + F.avg_pool2d(x, 2) if self.down else h + x

class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        make = lambda a, b: sn(nn.Conv2d(a, b, 1, bias=False))
        self.f, self.g, self.h, self.v = make(c, c // 8), make(c, c // 8), make(c, c // 2), make(c // 2, c)
        self.gamma = nn.Parameter(torch.zeros(()))
    def forward(self, x):
        B, C, H, W = x.shape
        key, query, value = F.max_pool2d(self.f(x), 2).flatten(2), self.g(x).flatten(2), F.max_pool2d(self.h(x), 2).flatten(2)
        beta = torch.bmm(query.transpose(1, 2), key).softmax(-1)
        return x + self.gamma*self.v(torch.bmm(value, beta.transpose(1, 2)).view(B, C // 2, H, W))

class G(nn.Module):
    def __init__(self, c, k):
        super().__init__()
        self.lin, self.ups, self.att = sn(nn.Linear(128, 16*c)), nn.ModuleList(Up(c, c, k) for _ in range(3)), Attention(c)
        self.bn, self.out = nn.BatchNorm2d(c), sn(nn.Conv2d(c, 3, 3, padding=1))
    def forward(self, z, y):
        x = self.ups[1](self.ups[0](self.lin(z).view(len(z), -1, 4, 4), y), y)
        return self.out(F.relu(self.bn(self.ups[2](self.att(x), y)))).tanh()

class D(nn.Module):
    def __init__(self, c, k):
        super().__init__()
        self.blocks, self.att = nn.ModuleList([Down(3, c, True, True), Down(c, c, True, False), Down(c, c, False, False), Down(c, c, False, False)]), Attention(c)
        self.lin, self.emb = sn(nn.Linear(c, 1)), sn(nn.Embedding(k, c))
    def forward(self, x, y):
        for i, b in enumerate(self.blocks):
            x = b(x)
            if i == 0: x = self.att(x)
        h = F.relu(x).sum((2, 3))
        return self.lin(h)[:, 0] + (self.emb(y)*h).sum(1)

def make_step(res, batch, n_classes):
    assert res == 32
    g, d = G(CHANNELS, n_classes), D(CHANNELS, n_classes)
    og, od = torch.optim.Adam(g.parameters(), 1e-4, (0., .9)), torch.optim.Adam(d.parameters(), 4e-4, (0., .9))
    x, y = torch.randn(batch, 3, 32, 32).tanh(), torch.arange(batch) % n_classes
    def step():
        with torch.no_grad(): fake = g(torch.randn(batch, 128), y)
        loss = F.relu(1 - d(x, y)).mean() + F.relu(1 + d(fake, y)).mean()
        od.zero_grad(); loss.backward(); od.step()
        loss = -d(g(torch.randn(batch, 128), y), y).mean()
        og.zero_grad(); loss.backward(); og.step()
    step.parameters = [sum(p.numel() for p in n.parameters()) for n in (g, d)]
    return step
'''


def stock(tmp_path, channels):
    path = tmp_path/'stock.py'
    path.write_text(STOCK.replace('CHANNELS', str(channels)), encoding='utf-8')
    return path


def test_the_stock_composition_has_the_same_weights(tmp_path):
    step, ours = callable_from(stock(tmp_path, 64))(32, 4, 10), Step(replace(NETS['small'], batch=4), PLAIN)
    assert step.parameters == [sum(p.numel() for p in n.parameters()) for n in (ours.G, ours.D)]
    step(), ours()


@pytest.mark.long
def test_plain_is_no_slower_than_a_stock_composition(tmp_path):
    "Within 10 %, in processor seconds, in turns."
    result = bench('32', 10, ['plain'], callable_from(stock(tmp_path, 128)))
    ratio = result['rows']['against']['ratio_of_cpu']
    print('plain / stock', ratio)
    assert .9 < ratio < 1.1, result['rows']


def test_the_table_is_of_pairs():
    rows = timing_table(dict(plain=[(2., 3.), (4., 4.), (6., 3.)], fast=[(1., 1.), (1., 1.), (6., 1.)]), 8)
    assert rows['fast']['ratio'] == 2 and rows['fast']['ratio_of_cpu'] == 3 and rows['fast']['fastest'] == 1
    assert rows['plain']['pictures_per_s'] == 2
    order = []
    in_turns({n: lambda n=n: order.append(n) for n in 'ab'}, 2, warm=1)
    assert ''.join(order) == 'ababab'


def test_the_command(tmp_path, capsys, monkeypatch):
    for room in (speed, bench_room): monkeypatch.setattr(room, 'conv_rate', lambda *_: 1e12)
    monkeypatch.setattr(bench_room, 'peak_bytes', lambda *_: 2**30)
    monkeypatch.setitem(NETS, 'small', replace(NETS['small'], batch=4))
    path = stock(tmp_path, 64)
    sagan_bench(nets='small', rounds=1, against=str(path), out=str(tmp_path/'bench.json'), device='cpu', no_sampling=True, note='a test')
    found = json.loads((tmp_path/'bench.json').read_text(encoding='utf-8'))
    rows = found['nets']['small']['rows']
    assert set(rows) == {*usable_variants(), 'against'} and found['note'] == 'a test' and {'commit', 'torch', 'threads', 'cpu'} <= set(found)
    assert rows['plain']['peak_bytes'] == 2**30 and all(0 < rows[n]['share'] < 1 for n in usable_variants())
    out = capsys.readouterr().out                          # a table, or a paragraph a row where slow steps make the cells too wide
    assert all(o in out for o in ('share', 'against', 'plain', 'Try next:')) and max(map(len, out.splitlines())) <= 100
    monkeypatch.setattr('sys.path', [*sys.path])
    (tmp_path/'peer').mkdir()
    (tmp_path/'neighbour.py').write_text('seen = []', encoding='utf-8')
    beside = tmp_path/'beside.py'                          # it finds its neighbour, and the folder after the colon
    beside.write_text('import neighbour\ndef make_step(*size, folder): return lambda: neighbour.seen.append(folder)', encoding='utf-8')
    callable_from(f'{beside}:{tmp_path/"peer"}')(32, 4, 10)()
    assert sys.modules.pop('neighbour').seen == [str(tmp_path/'peer')]
    with pytest.raises(Refused, match='no such folder'): callable_from(f'{beside}:{tmp_path/"nobody"}')
    broken = tmp_path/'broken.py'
    broken.write_text('1/0', encoding='utf-8')
    with pytest.raises(Refused, match='cannot be run as Python'): callable_from(broken)
    for text in ('def make_step(res): pass', 'def make_step(*a): return 7', 'def make_step(*a): return lambda: 1/0', 'def make_step(*a): raise SystemExit(3)'):
        broken.write_text(text, encoding='utf-8')                                # said before anything is timed
        with pytest.raises(Refused, match='its step fails'): bench('small', against=callable_from(broken))
    with pytest.raises(Refused, match='no net'): sagan_bench(nets='', out=str(tmp_path/'bench.json'))
    sagan_bench(nets='small', rounds=1, brief=True, out=str(tmp_path/'brief.json'), device='cpu', no_sampling=True)
    assert set(json.loads((tmp_path/'brief.json').read_text())['nets']['small']['rows']) == {*usable_variants('cpu', ENDS)}


def test_another_implementation_is_timed_beside_ours(tmp_path, monkeypatch):
    monkeypatch.setitem(NETS, 'quick', quick := Net(32, 8, 4, (16,), (16,)*4, (True, True, False, False)))
    twice, empty = tmp_path/'twice.py', tmp_path/'empty.py'
    twice.write_text("from sagan_nb.speed import NETS, PLAIN, Step\n\ndef make_step(res, batch, n_classes):\n"
                     "    step = Step(NETS['small'], PLAIN)\n    return lambda: (step(), step())\n", encoding='utf-8')
    empty.write_text('x = 1', encoding='utf-8')
    rows = bench('quick', 3, ['plain', 'all, fp32'], callable_from(twice))['rows']
    assert set(rows) == {'plain', 'all, fp32', 'against'} and rows['plain']['ratio'] == 1 and 0 < rows['plain']['share'] < 1
    assert rows['against']['ratio'] < .5                                       # two steps of a larger net take longer than one of this
    monkeypatch.setenv('COLUMNS', '140')                                       # room for the seconds of a busy machine
    assert bench_room.show_table(rows).splitlines()[0].split()[:3] == ['variant', 'seconds', 'processor']
    with pytest.raises(Refused, match='there is no net'): bench('64')
    with pytest.raises(Refused, match='needs a function make_step'): callable_from(empty)
    with pytest.raises(Refused, match='there is no such file'): callable_from(tmp_path/'none.py')
    for name in ('all, fp32', 'plain'): assert Draw(quick, VARIANTS[name])().shape == (8, 3, 32, 32)


def test_what_is_only_emulated_is_left_out(monkeypatch):
    for hardware, left_out in ((True, set()), (False, {'bf16', 'all, bf16'})):
        for room in (speed, machine): monkeypatch.setattr(room, 'fast_bf16', lambda device: hardware)
        assert set(VARIANTS) - {*usable_variants('cpu')} == left_out | {*COMPILED, 'all, tf32'}
        assert {*usable_variants('cuda', VARIANTS)} == {n for n in VARIANTS if hardware or 'bf16' not in n}
        assert {*usable_variants('cpu', VARIANTS)} == {n for n in VARIANTS if (hardware or 'bf16' not in n) and 'tf32' not in n}


def test_what_a_gpu_rounds():
    "fp32 means fp32 in convolutions, too, where torch's default is TF32; within a step, its backward pass included, and no longer."
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    read, seen = lambda: [f.allow_tf32 for f in flags], []
    before = read()
    for v, on in ((FAST, False), (VARIANTS['all, tf32'], True)):
        step = Step(replace(NETS['small'], batch=2), v)
        step.opt_d.step = lambda: seen.append(read())
        step()
        assert seen.pop() == [on, on] and read() == before


NEWER = ["torch.backends.fp32_precision = 'tf32'", "torch.backends.fp32_precision = 'ieee'", "torch.backends.cudnn.conv.fp32_precision = 'ieee'"]


@pytest.mark.parametrize('own', ["torch.set_float32_matmul_precision('high')", *(NEWER if hasattr(torch.backends.cudnn, 'conv') else [])])
def test_settings_of_tf32_by_any_name(own):
    "After one by torch's newer names, reading one by the older raises: features, neighbours and the bench did. In a process of its own, as it lasts."
    code = own + """
import torch
from sagan_nb.machinery.features import Classifier, Features
from sagan_nb.metrics import prdc
from sagan_nb.speed import rounding
newer = hasattr(torch.backends.cudnn, 'conv')
def now():
    if not newer: return tuple('tf32' if o.allow_tf32 else 'ieee' for o in (torch.backends.cudnn, torch.backends.cuda.matmul))
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
class Look(Classifier):
    def forward(self, x):
        print('within', *now())
        return super().forward(x)
before = now()
Features(Look(32, 4), 'look')(torch.zeros(2, 3, 32, 32))
with rounding('tf32'): print('allowed', *now())
prdc(torch.randn(20, 4), torch.randn(20, 4))
print('after', now() == before)
if newer and torch.backends.fp32_precision != 'none':
    torch.backends.fp32_precision = 'ieee'
    print('later', now() == ('ieee', 'ieee'))"""
    said = subprocess.run([sys.executable, '-c', 'import torch; ' + code], capture_output=True, text=True)
    within, allowed, after, *later = said.stdout.splitlines()
    assert not {'tf32', 'bf16'} & {*within.split()} and allowed == 'allowed tf32 tf32' and after == 'after True', said.stderr
    assert set(later) <= {'later True'} and bool(later) == own.startswith('torch.backends.fp32')


@pytest.mark.parametrize('fold', FOLDS)
def test_maps_of_g_are_bfloat16_on_a_gpu(fold):
    "CUDA's autocast takes doubling by nearest neighbour to float32, and with it every map of G; a CPU's does not. On tensors without memory."
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device('cuda'): block, x, y = UpBlock(8, 4, 3, sn=False, fold=fold), torch.empty(2, 8, 8, 8), torch.zeros(2, dtype=torch.int64)
        torch.set_autocast_enabled('cuda', True)
        torch.set_autocast_dtype('cuda', torch.bfloat16)
        try: assert block(x.bfloat16(), y).dtype == torch.bfloat16
        finally:
            torch.set_autocast_enabled('cuda', False)
            torch.clear_autocast_cache()


def test_what_a_call_leaves_on_a_gpu_is_waited_for(monkeypatch):
    order = []
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: order.append('.'))
    in_turns({n: lambda n=n: order.append(n) for n in 'ab'}, 2, warm=1)
    assert ''.join(order) == 'ab.' + 'a.b.'*2


def test_a_net_without_a_peak_costs_no_timings(monkeypatch):
    "On a GPU the process that measures memory may find too little of it."
    for room in (speed, bench_room): monkeypatch.setattr(room, 'conv_rate', lambda *_: 1e12)
    monkeypatch.setitem(NETS, 'small', replace(NETS['small'], batch=2))
    for stderr, words in (('Traceback\nOutOfMemoryError: no room\n', 'OutOfMemoryError: no room'), ('', 'died with')):     # or killed, without a word
        def full(*_): raise subprocess.CalledProcessError(-9, 'python', stderr=stderr)
        monkeypatch.setattr(bench_room, 'peak_bytes', full)
        saved = []
        bench_room.bench_all(['small'], 1, ['plain'], drawing=False, save=lambda out: saved.append(json.dumps(out)))
        assert words in json.loads(saved[0])['nets']['small']['rows']['plain']['no_peak']


def test_the_other_implementation_says_what_it_lacks(monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    make_step = callable_from(ROOT/'tools'/'bench'/'against_mimicry.py')
    with pytest.raises(Refused, match='torch-mimicry is not installed'): bench_room.try_step(make_step, NETS['32'])
    with pytest.raises(Refused, match='another shape than ours'): bench_room.try_step(make_step, NETS['128'])


def test_what_was_left_out_is_timed(tmp_path, monkeypatch):
    from tools.bench import bench_left_out
    monkeypatch.setattr(sys, 'argv', ['bench_left_out', '--net', 'small', '--rounds', '1', '--out', str(tmp_path/'out.json')])
    bench_left_out.main()
    found = json.loads((tmp_path/'out.json').read_text(encoding='utf-8'))
    assert {*bench_left_out.TRIALS, 'power alone', 'all'} == set(found['fp32']) and set(found['one_missing_fp32']) == set(bench_left_out.ALONE)
    assert 0 < found['power_share_fp32'] < .5 and 'convolution' in (tmp_path/'out.txt').read_text(encoding='utf-8')


@pytest.mark.parametrize('precision, off', [('fp32', 1e-4), ('bf16', .05)])
def test_two_passes_of_d_together_are_two_passes(precision, off):
    "Loss, gradients and what the power steps left; biases, gains of attention and narrow maps among them. After it D is as before."
    from tools.bench import tried
    if precision == 'bf16' and not machine.fast_bf16(): pytest.skip('no bfloat16 in this processor')
    net, steps = replace(NETS['32'], batch=4, channels=(16, 32, 64, 64)), []
    for kind in (Step, tried.Together):
        torch.manual_seed(0)
        steps.append(step := kind(net, replace(FAST, precision=precision)))
        for p in step.D.parameters():
            if p.ndim < 2: torch.nn.init.normal_(p, std=.3)
        torch.manual_seed(1)
        step.loss = hinge_d(*step.judged())
        step.loss.backward()
    plain, together = steps
    assert together.loss.item() == pytest.approx(plain.loss.item(), rel=off)
    for (name, p), q in zip(plain.D.named_parameters(), together.D.parameters()):
        assert (p.grad - q.grad).norm() <= off*p.grad.norm() + 1e-6, name
    for (name, p), q in zip(plain.D.named_buffers(), together.D.buffers()): assert torch.allclose(p, q, atol=1e-6), name
    assert not any('forward' in vars(m) for m in together.D.modules())


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='no allocator here that can be told to keep memory')
def test_what_was_tried_is_timed(tmp_path, monkeypatch):
    "Winograd's products are the convolution; and the tensors of one side do lie in huge pages, where the system gives them."
    from tools.bench import tried
    for name in [o for o in os.environ if o.startswith('MALLOC_') or o == 'SAGAN_KEEP_MEMORY']: monkeypatch.delenv(name)
    monkeypatch.setattr(tried, 'keep_memory', lambda: True)                                   # not for the tests that follow
    tried.main(['--nets', 'small', '--rounds', '1', '--shapes', '3', '--out', str(tmp_path/'out.json')])
    found = json.loads((tmp_path/'out.json').read_text(encoding='utf-8'))
    given = Path('/sys/kernel/mm/transparent_hugepage/enabled')
    for rows in found['nets']['small'].values(): assert rows["D's two passes together"]['ratio_of_cpu'] > 0
    huge = found['nets']['small']['all, fp32']['huge pages']                                  # in bfloat16 its largest tensors are 2 MiB, which may fit none
    if given.exists() and '[madvise]' in given.read_text(): assert huge['huge_mib'] > 0 == huge['base_huge_mib']
    assert len(found['winograd']) == 3 and all(row['apart'] < 1e-5 and row['rounds'] for row in found['winograd'])
    monkeypatch.setattr(tried, 'keep_memory', lambda: False)
    with pytest.raises(Refused, match='glibc alone'): tried.main(['--out', str(tmp_path/'none.json')])
    assert not (tmp_path/'none.json').exists()


def test_the_bench_of_a_busy_machine(tmp_path, monkeypatch):
    "Rows by all threads and by one, beside no program and beside one, which is gone afterwards."
    from tools.bench import busy
    monkeypatch.setattr(busy, 'keep_memory', lambda: True)                                    # not for the tests that follow
    monkeypatch.setattr(busy, 'Step', lambda net, variant: lambda: torch.ones(256, 256)@torch.ones(256, 256))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        busy.main(['--net', 'small', '--rounds', '1', '--out', str(tmp_path/'out.json')])
        assert torch.get_num_threads() == 2
        with busy.beside(1) as (other,): assert other.poll() is None
        assert other.poll() is not None
        torch.set_num_threads(1)
        with pytest.raises(Refused, match='needs two'): busy.main(['--out', str(tmp_path/'none.json')])
    finally: torch.set_num_threads(before)
    found = json.loads((tmp_path/'out.json').read_text(encoding='utf-8'))['rows']['all, fp32']
    assert {k: set(v) for k, v in found.items()} == {'0': {'1', '2'}, '1': {'1', '2'}}
    assert all(r['seconds'] > 0 for rows in found.values() for r in rows.values()) and not (tmp_path/'none.json').exists()


class Layouts(TorchDispatchMode):
    "Note the maps that a convolution, or its backward, meets in another layout than channels last: it copies them. Weights are its third or second."
    def __init__(self):
        super().__init__()
        self.seen, self.other = 0, set()

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        maps = dict([('aten.convolution.default', args[:1]), ('aten.convolution_backward.default', args[:2])]).get(str(f), ())
        for t in maps:
            if t.shape[1] == 1 or t.shape[2]*t.shape[3] == 1: continue
            self.seen += 1
            if not t.is_contiguous(memory_format=torch.channels_last): self.other.add(tuple(t.shape[1:]))
        return f(*args, **(kwargs or {}))


def test_convolutions_copy_next_to_no_maps():
    "All of a step are channels last, but the 4x4 map that G's linear layer makes, and in float32 what attention gives, and the gradients of its keys and queries."
    net, small = replace(NETS['32'], batch=4), {(128, 4, 4)}
    attention = {(64, 16, 16), (16, 16, 16)}
    for p, allowed in (('fp32', small | attention), ('bf16', small)):
        step = Step(net, replace(FAST, precision=p))
        with Layouts() as found: step()
        assert found.seen > 100 and found.other <= allowed, found.other
    step = Step(net, replace(FAST, channels_last=False))
    with Layouts() as found: step()
    assert len(found.other) > 5                              # so the other layout is seen


def test_samples_are_drawn_with_memory_kept_and_channels_last(tmp_path, monkeypatch):
    "Weights from elsewhere, too; opening them stays exact to the last bit, so this is the command's."
    from sagan_nb.machinery import cli
    seen, draw, last = [], cli.sample_rows, torch.channels_last
    def look(model, *args):
        seen.append({m.weight.is_contiguous(memory_format=last) for m in model.G.modules() if isinstance(m, torch.nn.Conv2d)})
        return draw(model, *args)
    monkeypatch.setattr(cli, 'keep_memory', lambda: seen.append('kept'))
    monkeypatch.setattr(cli, 'sample_rows', look)
    cli.sagan_sample(str(ROOT/'results'/'generator'/'t1_attn_16-pairs.safetensors'), n=4, out=str(tmp_path/'few.png'), device='cpu')
    assert seen == ['kept', {True}] and (tmp_path/'few.png').exists()


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='no allocator here that can be told to keep memory')
def test_each_side_is_timed_in_a_process_of_its_own(tmp_path, monkeypatch):
    "The other side has the allocator of the system, or with --kept one that keeps memory; a side that dies is named, and leaves no file."
    from tools.bench import started
    monkeypatch.setattr(started, 'usable_variants', lambda *args: ['all, fp32'])
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', '1')                                         # of neither side
    other, seen = tmp_path/'other.py', tmp_path/'seen'
    other.write_text(f"""import os, pathlib, time, torch
def rss(): return int(open('/proc/self/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')
def make_step(res, batch, n_classes):
    assert not any(o.startswith('MALLOC_') for o in os.environ)
    before = rss()
    torch.ones(2**26)                                        # 256 MB, freed at once
    pathlib.Path({str(seen)!r}).write_text(str(rss() - before))
    return lambda: time.sleep(.2)
""")
    for more, kept in ((), False), (('--kept',), True):
        started.main([str(other), '--net', 'small', '--rounds', '2', '--out', str(tmp_path/'out.json'), *more])
        found = json.loads((tmp_path/'out.json').read_text(encoding='utf-8'))
        rows = found['nets']['small']['rows']
        assert (int(seen.read_text()) > 2**27) == kept == rows['against']['keeps_memory'] and rows['all, fp32']['keeps_memory'] and found['against'] == 'other.py'
        assert .2 < rows['against']['seconds'] < 1 and rows['against']['cpu_seconds'] < .1 < rows['all, fp32']['first_seconds']
        assert rows['all, fp32']['ratio'] == pytest.approx(statistics.median(b[0]/a[0] for a, b in zip(rows['all, fp32']['rounds'], rows['against']['rounds'])))
    other.write_text('def make_step(res, batch, n_classes): return lambda: 1/0')
    with pytest.raises(RuntimeError, match='against: its process died'): started.main([str(other), '--net', 'small', '--out', str(tmp_path/'none.json')])
    assert not (tmp_path/'none.json').exists()


@pytest.mark.long
@pytest.mark.parametrize('precision, off', [('fp32', 1e-3), ('bf16', .1)])
def test_a_compiled_step_is_the_same_step(precision, off):
    "torch.compile with its default backend, both networks: losses of three updates as in eager, and D's first gradients, before Adam has made much of rounding (in bf16 their direction)."
    needs_compiler()
    if precision == 'bf16' and not machine.fast_bf16(): pytest.skip('no bfloat16 in this processor, and emulated it takes too long')
    net = replace(NETS['small'], batch=4, channels=(16,)*4)
    eager, compiled = (Step(net, replace(FAST, precision=precision, compiled=o)) for o in (False, True))
    for i in range(3):
        torch.manual_seed(i); expected = torch.stack(eager.losses())
        torch.manual_seed(i); torch.testing.assert_close(torch.stack(compiled.losses()), expected, rtol=off, atol=off)
        if i: continue
        if precision == 'bf16':
            a, b = (torch.cat([p.grad.flatten() for p in s.D.parameters()]) for s in (eager, compiled))
            assert F.cosine_similarity(a, b, dim=0) > .99
        else:
            for p, q in zip(eager.D.parameters(), compiled.D.parameters()):
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5*max(1., p.grad.abs().max().item()))


def test_peak_memory_and_rate():
    assert 2**27 < bench_room.peak_bytes(replace(NETS['small'], batch=2), FAST) < 2**32
    x = torch.randn(512, 512)
    timed = in_turns({'product': lambda: [x @ x for _ in range(20)]}, 5)['product']
    product = 20*2*512**3 / min(cpu for _, cpu in timed) * torch.get_num_threads()
    assert .1*product < speed.conv_rate('fp32', seconds=.05) < 10*product


def test_the_rate_is_the_one_that_is_kept_up(monkeypatch):
    "Clocks tick, so one call of ten seems ten times as fast as it is; the rate must not be taken from it."
    now, calls = [0.], itertools.count()
    def conv2d(x, w, padding): now[0] += .001 if next(calls) % 10 else .0001
    monkeypatch.setattr(speed, 'F', SimpleNamespace(conv2d=conv2d))
    for room in (speed, machine): monkeypatch.setattr(room, 'time', SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[0]*torch.get_num_threads()))
    expected = 2*9*8*512*512*16**2 / .00091                # the largest of its shapes has the most operations
    assert abs(speed.conv_rate(seconds=.5)/expected - 1) < .02


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='no glibc on this machine')
@pytest.mark.parametrize('settings, kept', [({}, True), ({'SAGAN_KEEP_MEMORY': '0'}, False), ({'MALLOC_ARENA_MAX': '4'}, False)])
def test_freed_memory_is_kept_unless_told_otherwise(settings, kept):
    "Resident memory in MiB, after a tensor of 64 MiB was there and is gone."
    code = ("import torch\nfrom sagan_nb.machinery.machine import keep_memory\nsaid = keep_memory()\n"
            "def rss(): return int(open('/proc/self/statm').read().split()[1])*4//1024\n"
            "torch.ones(8); before = rss(); torch.ones(2**24); print(said, rss() - before)")
    env = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')} | {'PYTHONPATH': str(ROOT)} | settings
    said, more = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT, env=env).stdout.split()
    assert said == str(kept) and (int(more) > 60 if kept else int(more) < 10)


# --- the rest ------------------------------------------------------------------------------------------------------------------------

def test_import_is_quick():
    "After torch, in seconds of this process alone."
    code = 'import torch, time\nbegan = time.process_time()\nimport sagan_nb, sagan_nb.machinery.cli\nprint(time.process_time() - began)'
    took = [float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True,
                                 env={**os.environ, 'PYTHONPATH': str(ROOT)}).stdout) for _ in range(3)]
    assert min(took) < .5, took


def test_data_never_waits(tmp_path):
    "At laptop scale, from a packed file and mirrored, a run's own log: less than 2 % of the time is spent waiting for pictures."
    from sagan_nb.data import Toy, open_source
    from sagan_nb.machinery.packs import pack
    as_folders(Toy(32, 4, n=200), tmp_path/'in')
    pack(tmp_path/'in', 32, tmp_path/'toy.pack')
    source = open_source(tmp_path/'toy.pack', res=32)
    cfg = replace(at_scale(PRESETS['t1_attn_16'], 'laptop'), steps=30, n_classes=4, log_every=5, standing=0, flip=True, data_id=source.fingerprint)
    train(cfg, source, tmp_path/'run')
    shares = [o['wait_share'] for o in read_log(tmp_path/'run'/'log.jsonl')]
    assert len(shares) == 6 and statistics.median(shares[1:]) < .02, shares
