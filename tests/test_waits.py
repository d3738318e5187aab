"""Between two lines of the log nothing is read from the device, so a GPU never waits. Shown on torch's device 'meta', whose tensors
have no values: whoever reads one fails. tests/test_cuda.py asks a GPU itself."""
from contextlib import closing, nullcontext
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sagan_nb import train
from sagan_nb.config import at_scale, preset
from sagan_nb.data import Stream, Toy
from sagan_nb.machinery import runs, sending
from sagan_nb.machinery.sending import Bytes, send, stream_of
from test_ranks import CASES

STEPS = 2
SMALL = replace(at_scale(preset('t1_none'), 'smoke'), n_classes=4, width=2)
ROWS = {**CASES, 'augmented, in parts': ('best_known', dict(attn_at=(16,), bn_ghost=2, micro=4, ema=.9, flip=True, augment='diffaug')),
        'residual, channels last': ('t1_res_16', dict(channels_last=True))}


class Copies(TorchDispatchMode):
    "Note every copy from the CPU to the device: does it wait, and from which memory does it leave?"
    def __init__(self):
        super().__init__()
        self.sent = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if f is torch.ops.aten._to_copy.default and args[0].device.type == 'cpu' and str(kwargs.get('device')) == 'meta':
            self.sent.append((args[0].shape, args[0].dtype, bool(kwargs.get('non_blocking')), args[0].data_ptr()))
        return f(*args, **kwargs)


@pytest.fixture
def fake_gpu(monkeypatch):
    "A device without values that torch takes for a GPU; the memory it is sent from is marked as pinned."
    pinned, held = set(), []                                 # as long as they are held, no other tensor has their addresses
    monkeypatch.setattr(sending, 'pinned', lambda t: held.append(t) or pinned.add(t.data_ptr()) or t)
    monkeypatch.setattr(import_module('torch.optim.adam'), '_device_dtype_check_for_fused', lambda *args: None)
    monkeypatch.setattr(train.GAN, 'precision', lambda gan: nullcontext())              # it knows no autocast
    return pinned


def steps(cfg, tmp_path, log_every):
    "Some updates with the hooks of a run, up to the step before the last, which would write a line."
    gan, source = train.make_gan(replace(cfg, log_every=log_every, steps=STEPS + 1), 'meta'), Toy(cfg.res, n=50)
    def stop(gan, log):
        if gan.t == STEPS: raise runs.Stopped
    with closing(Bytes(source, cfg.batch, cfg.seed, flip=cfg.flip)) as data, Copies() as copies, pytest.raises(runs.Stopped):
        train.fit(gan, data, [(1, train.average), (1, runs.Log(tmp_path/'log.jsonl', data)), (1, stop)])
    return copies.sent


@pytest.mark.parametrize('name', ROWS)
def test_nothing_is_read_between_two_lines_of_the_log(fake_gpu, tmp_path, name):
    row, own = ROWS[name]
    cfg = replace(at_scale(preset(row), 'smoke'), **dict(n_classes=4, width=2) | own)
    sent = steps(cfg, tmp_path, 1000)
    assert len(sent) >= 3*STEPS and all(waits_not and memory in fake_gpu for *_, waits_not, memory in sent), sent
    images = [dtype for shape, dtype, *_ in sent if len(shape) == 4]
    assert images == [torch.uint8]*STEPS*cfg.d_per_g


def test_a_line_of_the_log_is_read_from_the_device(fake_gpu, tmp_path):
    with pytest.raises(RuntimeError, match='meta'): steps(SMALL, tmp_path, 1)


def test_a_copy_that_waits_is_found(fake_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'send', lambda t, device: t.to(device))
    assert not any(waits_not for *_, waits_not, _ in steps(SMALL, tmp_path, 1000))


def test_a_copy_from_memory_that_is_not_pinned_is_found(fake_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'send', lambda t, device: t.clone().to(device, non_blocking=True))
    assert not any(memory in fake_gpu for *_, memory in steps(SMALL, tmp_path, 1000))


def test_a_step_count_that_is_read_is_found(fake_gpu, tmp_path, monkeypatch):
    "As torch keeps it for a fused Adam: on the device."
    def reads(adam):
        adam.register_step_post_hook(lambda optimizer, *_: [int(o['step']) for o in optimizer.state.values()])
        return adam
    monkeypatch.setattr(train, 'epsilon_hat', reads)
    with pytest.raises(RuntimeError, match='meta'): steps(replace(SMALL, adam_eps_rule='tensorflow'), tmp_path, 1000)


@pytest.mark.parametrize('flip', [False, True])
def test_bytes_become_the_same_numbers(flip):
    "To the last bit, on a CPU, in either layout; and a CPU gets numbers."
    source, cfg = Toy(32, 4, n=40), replace(at_scale(preset('t1_none'), 'smoke'), n_classes=4, flip=flip, channels_last=flip)
    gan = train.make_gan(cfg)
    with closing(Bytes(source, 8, cfg.seed, flip=flip)) as sent, closing(stream_of(cfg, source, gan.ranks, 'cpu')) as plain:
        for _ in range(6):
            (x, y), (numbers, labels) = next(sent), next(plain)
            assert x.dtype == torch.uint8 and torch.equal(gan.place(x), numbers) and torch.equal(y, labels)
            assert gan.place(x).is_contiguous(memory_format=train.layout(cfg))
    assert type(plain) is Stream and type(stream_of(cfg, source, gan.ranks, 'cuda')) is Bytes


def test_what_is_there_is_not_sent_again(fake_gpu):
    t = torch.ones(3)
    assert send(t, torch.device('cpu')) is t and not fake_gpu
    there = send(t, torch.device('meta'))
    assert there.device.type == 'meta' and fake_gpu and send(there, torch.device('meta')) is there


def test_epsilon_goes_on_after_a_checkpoint():
    "The count of steps is read once from what was loaded."
    make = lambda: train.epsilon_hat(torch.optim.Adam([torch.ones(2, requires_grad=True)], lr=.1, betas=(.5, .9), eps=1e-2))
    def step(adam):
        w = adam.param_groups[0]['params'][0]
        adam.zero_grad()
        (w**2 * torch.tensor([1e-3, 1.])).sum().backward()
        adam.step()
        return adam.param_groups[0]['eps']
    whole, first, second = make(), make(), make()
    seen = [step(whole) for _ in range(4)]
    assert [step(first) for _ in range(2)] == seen[:2]
    step(second)                                                            # it had made a step before it was loaded
    second.load_state_dict(first.state_dict())
    with torch.no_grad(): second.param_groups[0]['params'][0].copy_(first.param_groups[0]['params'][0])
    assert [step(second) for _ in range(2)] == seen[2:] == [pytest.approx(1e-2/(1 - .9**t)**.5) for t in (3, 4)]
