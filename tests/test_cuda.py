"""What runs on a GPU, and computes there what a CPU does: `python -m pytest -m cuda tests/test_cuda.py`.

SAGAN_NB_TEST_DEVICE=cpu rehearses those that need no GPU, as `python -m tools.bench.gpu --smoke --device cpu` does.
"""
import os
import signal
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from sagan_nb import train
from sagan_nb.blocks import FOLDS, conv_then_pool, up_then_conv
from sagan_nb.config import at_scale, preset
from sagan_nb.core import close, to_uint8
from sagan_nb.data import Toy
from sagan_nb.distributed import Gathered, Ranks
from sagan_nb.metrics import kernel_distance, prdc
from sagan_nb.networks import Discriminator, Generator
from sagan_nb.self_attention import SelfAttention
from sagan_nb.spectral_norm import SpectralNorm
from sagan_nb.speed import rounding
from sagan_nb.machinery import cli, runs
from sagan_nb.machinery.checkpoints import checkpoints_of, read_checkpoint
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.sending import stream_of

DEVICE = os.environ.get('SAGAN_NB_TEST_DEVICE', 'cuda')
if DEVICE != 'cpu' and not torch.cuda.is_available(): pytest.skip('no CUDA device on this machine', allow_module_level=True)
pytestmark = pytest.mark.cuda
needs_gpu = pytest.mark.skipif(DEVICE == 'cpu', reason='only a GPU can tell')


@pytest.fixture(autouse=True)
def exact():
    "Products of float32 in float32: torch's default lets a GPU round them in convolutions."
    with rounding('fp32'): yield


def config(row='t1_attn_16', **own):
    return replace(at_scale(preset(row), 'smoke'), **dict(n_classes=4, width=2, standing=0) | own)


def both(f, *tensors):
    "Outputs and gradients of a function, on the CPU and on the device."
    found = []
    for device in ('cpu', DEVICE):
        leaves = [t.detach().to(device).requires_grad_() for t in tensors]
        out = f(*leaves)
        grads = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum(), leaves)
        found.append([o.cpu() for o in (out, *grads)])
    return found


@pytest.mark.parametrize('name', ['paper', 'v1', 'released'])
@pytest.mark.parametrize('dtype, off', [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)])
def test_attention_without_its_map(name, dtype, off):
    "Against the explicit softmax in float64."
    torch.manual_seed(0)
    block, x = SelfAttention(32, name, sn=False).to(DEVICE), torch.randn(2, 32, 32, 32, device=DEVICE)
    torch.nn.init.constant_(block.gamma, .5)
    found = []
    for fast, kind in ((True, dtype), (False, torch.float64)):
        block.fast, leaf = fast, x.to(kind).requires_grad_()
        out = block.to(kind)(leaf)
        found.append([o.double() for o in (out, *torch.autograd.grad(out.double().square().sum(), leaf))])
    for a, b in zip(*found): assert (a - b).abs().max() < off*b.abs().max()


@needs_gpu
def test_the_map_is_never_in_memory():
    block, x = SelfAttention(64, 'paper').to(DEVICE), torch.randn(8, 64, 64, 64, device=DEVICE, requires_grad=True)
    def peak(fast, context):
        block.fast = fast
        torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with context: block(x).float().square().sum().backward()
        return torch.cuda.max_memory_allocated() - before
    maps = 8*4096**2*4
    assert peak(False, torch.autocast(DEVICE, torch.bfloat16)) > maps/2
    for context in (torch.autocast(DEVICE, torch.bfloat16), rounding('fp32'), rounding('tf32')): assert peak(True, context) < maps/2


def test_attention_has_a_second_gradient():
    torch.manual_seed(0)
    block, x = SelfAttention(16, 'paper', sn=False), torch.randn(1, 16, 8, 8)
    torch.nn.init.constant_(block.gamma, .5)
    def penalty(x):
        here = block.to(x.device)
        return torch.autograd.grad(here(x).square().sum(), x, create_graph=True)[0]
    for a, b in zip(*both(penalty, x)): close(b, a, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('f', [conv_then_pool, up_then_conv])
def test_folds_are_one_function(f, layout):
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 8, 16, 16), torch.randn(8, 8, 3, 3), torch.randn(8)
    plain, _ = both(lambda x, w, b: f(x, w, b, 'none'), x, w, b)
    for fold in FOLDS:
        _, there = both(lambda x, w, b: f(x.contiguous(memory_format=layout), w, b, fold), x, w, b)
        for ours, expected in zip(there, plain): close(ours, expected, rtol=1e-3, atol=1e-3)


def test_spectral_norm_moves_alike():
    torch.manual_seed(0)
    weight = torch.randn(32, 16, 3, 3)
    here = SpectralNorm(weight)
    there = SpectralNorm(weight).to(DEVICE)
    there.load_state_dict(here.state_dict())
    for _ in range(3):
        here.advance(weight), there.advance(weight.to(DEVICE))
        close(there(weight.to(DEVICE)), here(weight), rtol=1e-4, atol=1e-6)


@contextmanager
def waits_forbidden():
    "Within it, a call that waits for the GPU fails."
    torch.cuda.synchronize(), torch.cuda.set_sync_debug_mode('error')
    try: yield
    finally: torch.cuda.set_sync_debug_mode('default')


@needs_gpu
@pytest.mark.parametrize('row, own', [('t1_attn_16', {}), ('t1_attn_16', dict(precision='bf16', channels_last=True, width=4)), ('t2_acgan', {}),
                                      ('released', dict(attn_at=(16,))), ('best_known', dict(attn_at=(16,), bn_ghost=4, ema=.9, augment='diffaug', micro=4))])
def test_nothing_waits_between_two_lines_of_the_log(tmp_path, row, own):
    cfg = config(row, **own, steps=100, log_every=1000)
    gan, source = train.make_gan(cfg, DEVICE), Toy(cfg.res, n=50)
    def watch(gan, log):
        if gan.t == 2: torch.cuda.synchronize(), torch.cuda.set_sync_debug_mode('error')
        if gan.t == 6: raise runs.Stopped
    with closing(stream_of(cfg, source, gan.ranks, DEVICE)) as data, pytest.raises(runs.Stopped):
        try: train.fit(gan, data, [(1, train.average), (1, runs.Log(tmp_path/'log.jsonl', data)), (1, watch)])
        finally: torch.cuda.set_sync_debug_mode('default')


@needs_gpu
def test_a_wait_is_found():
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match='synchroniz'), waits_forbidden(): x.sum().item()


def numbers(gan): return {f'{n}.{k}': v.cpu() for n in ('G', 'D') for k, v in getattr(gan, n).state_dict().items()}


def trained(cfg, steps):
    gan = train.make_gan(replace(cfg, steps=steps), DEVICE)
    with closing(stream_of(cfg, Toy(cfg.res, n=50), gan.ranks, DEVICE)) as data: train.fit(gan, data)
    return numbers(gan)


def test_a_batch_in_parts_is_the_whole_batch():
    "u and statistics move once; two updates, to the rounding that Adam makes of float32."
    cfg = config('best_known', attn_at=(16,), bn_ghost=2)
    whole, parts = trained(cfg, 2), trained(replace(cfg, micro=4), 2)
    for k in whole: torch.testing.assert_close(parts[k], whole[k], rtol=1e-2, atol=2e-3, msg=lambda m, k=k: f'{k}: {m}')


@needs_gpu
def test_what_ranks_exchange_goes_through_nccl(tmp_path):
    "At world size 1, where nothing may change."
    dist.init_process_group('cpu:gloo,cuda:nccl', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        x = torch.randn(4, 3, device=DEVICE, requires_grad=True)
        out = Gathered.apply(x, Ranks(0, 1))
        out.square().sum().backward()
        close(out, x.detach()), close(x.grad, 2*x.detach())
        total = x.detach().clone()
        dist.all_reduce(total), dist.broadcast(total, 0)
        assert torch.equal(total, x)
    finally: dist.destroy_process_group()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of four updates by the command, stopped after two of them and gone on with."
    out, before = tmp_path_factory.mktemp('cuda')/'run', {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with rounding('fp32'):                             # `exact` is set up later than a fixture of the module
            cli.sagan_train('t1_attn_16', scale='smoke', out=str(out), steps=2, set=['width=2', 'standing=16'], device=DEVICE)
            cli.sagan_train(out=str(out), resume=True, steps=4, device=DEVICE)
    finally: [signal.signal(s, f) for s, f in before.items()]
    return out


def test_a_run_goes_on(run):
    "Its first updates, and those after a resume, are those of a run on the CPU, to float32's rounding."
    state, cfg = read_checkpoint(checkpoints_of(run)[-1]), runs.settings_of(run)
    gan = train.make_gan(cfg)
    with closing(stream_of(cfg, Toy(cfg.res), gan.ranks, 'cpu')) as data: train.fit(gan, data)
    assert state['t'] == 4
    for k, v in gan.D.state_dict().items(): torch.testing.assert_close(state['D'][k].cpu(), v, rtol=5e-2, atol=5e-3, msg=lambda m, k=k: f'{k}: {m}')


def test_a_generator_draws_alike(run):
    z, y = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    here, there = (train.draw(open_run(run, torch.device(device)).G, z, y) for device in ('cpu', DEVICE))
    close(there, here, rtol=0, atol=1e-3)
    assert (to_uint8(here).int() - to_uint8(there).int()).abs().max() <= 1


def test_the_commands_run(run, tmp_path, capsys):
    cli.sagan_sample(str(run), n=8, out=str(tmp_path/'grid.png'), device=DEVICE)
    cli.sagan_attention(str(run), n=1, out=str(tmp_path/'maps.png'), device=DEVICE)
    assert {p.name for p in tmp_path.iterdir()} >= {'grid.png', 'maps.png'} and 'entropy' in capsys.readouterr().out


def test_metrics_of_features_on_the_device():
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(300, 16, generator=rng) + shift for shift in (0, .3))
    here, there = prdc(a, b), prdc(a.to(DEVICE), b.to(DEVICE))
    assert here == pytest.approx(there)
    assert kernel_distance(a, b, 3, 100) == pytest.approx(kernel_distance(a.to(DEVICE), b.to(DEVICE), 3, 100), rel=1e-6)


@needs_gpu
def test_compiled_networks_are_the_same():
    "A forward and a backward of both; compiling takes most of a minute."
    torch.manual_seed(0)
    shape = dict(res=32, width=4, n_classes=4, attn_at=(16,))
    G, D, y = Generator(**shape, z_dim=16).to(DEVICE), Discriminator(**shape).to(DEVICE), torch.arange(8, device=DEVICE) % 4
    z, state = torch.randn(8, 16, device=DEVICE), [{k: v.clone() for k, v in net.state_dict().items()} for net in (G, D)]
    def loss():
        for net, was in zip((G, D), state): net.load_state_dict(was), net.zero_grad()
        value = F.softplus(-D(G(z, y), y)).mean()
        value.backward()
        return value.detach(), [p.grad.clone() for net in (G, D) for p in net.parameters()]
    eager = loss()
    G.compile(), D.compile()
    found = loss()
    close(found[0], eager[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(found[1], eager[1]): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4*max(1., b.abs().max().item()))
