"N ranks, or a batch in parts, give what one rank gives with the whole batch; and each trap of that has a test which finds it."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist

from sagan_nb import blocks, distributed, train
from sagan_nb.config import at_scale, preset
from sagan_nb.core import Refused
from sagan_nb.data import Toy
from sagan_nb.machinery import checkpoints, cli, ending, evaluate as evaluation, finetune, group, jobs, options, packs, pictures, protocols, runs
from sagan_nb.machinery.bench import peak_of
from sagan_nb.machinery.checkpoints import checkpoints_of, step_of
from sagan_nb.machinery.crew import Crew, free_port
from sagan_nb.machinery.features import Features
from sagan_nb.machinery.guard import incidents
from sagan_nb.machinery.machine import pick_device
from sagan_nb.machinery.runs import read_log
from sagan_nb.spectral_norm import SpectralNorm
from commands import as_folders, other_bits, shell
from test_ablation import numbers
from test_guard import guarded
from tools.faults.works import Place, small, timeless
from tools.golden import Double

STEPS = 20
CASES = {                                     # name -> (preset, what else is set); batch of 8
    'paper, batch statistics of all': ('t1_attn_16', dict(ema=.9, ema_start=2)),
    'v1, chunks of 2': ('t1_attn_16', dict(form='v1', bn_ghost=2)),
    'released, with its epsilon': ('released', dict(attn_at=(16,), adam_eps=1e-3)),
    'released, chunks one after another': ('released', dict(attn_at=(16,), bn_ghost=2, bn_ghost_update='sequential')),
    'best_known': ('best_known', dict(attn_at=(16,), bn_ghost=2, ema=.9, ema_start=2)),
    'AC-GAN, five steps of D': ('t2_acgan', dict(ema=.9)),
}


def config(name, **own):
    row, given = CASES[name]
    return replace(at_scale(preset(row), 'smoke'), **dict(n_classes=4, width=2, steps=STEPS, standing=0) | given | own)


def flat(gan):
    "All numbers of a GAN: weights, u, statistics, the average, Adam's moments."
    found = {f'{n}.{k}': v for n in ('G', 'D', 'ema') if getattr(gan, n) for k, v in getattr(gan, n).state_dict().items()}
    for n in ('opt_g', 'opt_d'):
        found |= {f'{n}.{i}.{k}': v for i, s in getattr(gan, n).state_dict()['state'].items() for k, v in s.items()}
    return found


def updates(cfg, trap=None):
    "Train on this rank's share, in float64: losses over all ranks, and all numbers at the end."
    torch.set_default_dtype(torch.float64)
    losses = []
    try:
        with pytest.MonkeyPatch.context() as m:
            if trap: TRAPS[trap](m)
            gan = train.make_gan(cfg)
            note = lambda gan, log: losses.append([gan.ranks.mean(log[k]).item() for k in ('loss_d', 'loss_g')])
            source = Toy(cfg.res, n=50)
            with closing(Double(source, cfg.batch, cfg.seed, gan.ranks.rank, gan.ranks.world)) as data:
                train.fit(gan, data, [(1, train.average), (1, note)])
    finally: torch.set_default_dtype(torch.float32)
    return dict(losses=torch.tensor(losses), **flat(gan))


def check(ranks, whole):
    "The ranks agree to the last bit; with one rank they agree to rounding."
    first, *others = ranks
    assert all(set(o) == set(first) == set(whole) for o in others) and len(first) > 50
    assert [k for k in first for o in others if not torch.equal(first[k], o[k])] == []
    for k in whole: torch.testing.assert_close(first[k], whole[k], rtol=1e-6, atol=1e-9, msg=lambda m, k=k: f'{k}: {m}')


@pytest.fixture(scope='module')
def crew():
    with Crew(4) as made: yield made


@pytest.fixture
def two(crew):
    "The first two of the crew."
    return crew if len(crew.pools) == 2 else crew.regroup(2)


@pytest.fixture(scope='module')
def alone():
    "What one rank computes, once for each case."
    found = {}
    def get(cfg):
        if cfg not in found: found[cfg] = updates(cfg)
        return found[cfg]
    return get


@pytest.fixture(scope='module')
def together(crew):
    "What so many ranks compute, once for each case."
    found = {}
    def get(world, cfg):
        if len(crew.pools) != world: crew.regroup(world)
        if (world, cfg) not in found: found[world, cfg] = crew(updates, cfg)
        return found[world, cfg]
    return get


@pytest.mark.parametrize('world, name', [(world, name) for world in (4, 2) for name in CASES])
def test_ranks_together_are_one(together, alone, world, name):
    check(together(world, config(name)), alone(config(name)))


# The traps: each takes one of the cures away, on the ranks alone.

def trap(f):
    TRAPS[f.__name__] = f
    return f


TRAPS = {}


def only_alone(right, wrong):
    "A method that is wrong on several ranks, and right on one."
    return lambda self, *args: (wrong if distributed.Ranks().world > 1 else right)(self, *args)


@trap
def gradients_are_not_averaged(patch): patch.setattr(distributed.Ranks, 'average', lambda self, net: None)


@trap
def gradients_of_one_network_alone_are_averaged(patch):
    right = distributed.Ranks.average
    patch.setattr(distributed.Ranks, 'average', lambda self, net: isinstance(net, train.Discriminator) and right(self, net))


@trap
def every_rank_begins_with_its_own_weights_and_u(patch):
    right = distributed.Ranks.connect
    def wrong(self, net):
        if self.rank: [t.copy_(torch.randn(t.shape)) for t in net.state_dict().values()]
        return right(distributed.Ranks(0, 1), net)
    patch.setattr(distributed.Ranks, 'connect', wrong)


@trap
def u_alone_is_not_sent(patch):
    right = distributed.Ranks.connect
    def wrong(self, net):
        right(self, net)
        if self.rank: [m.u.copy_(torch.randn(m.u.shape)) for m in net.modules() if isinstance(m, SpectralNorm)]
        return net
    patch.setattr(distributed.Ranks, 'connect', wrong)


@trap
def batch_statistics_are_those_of_each_rank(patch):
    patch.setattr(distributed.Ranks, 'gather', lambda self, x: x)


@trap
def batch_statistics_have_no_gradient(patch):
    right = distributed.Ranks.gather
    patch.setattr(distributed.Ranks, 'gather', lambda self, x: right(self, x.detach()))


@trap
def rank_0_alone_keeps_the_average(patch):
    right = train.average
    patch.setattr(train, 'average', lambda gan, log=None: gan.ranks.first and right(gan, log))


@trap
def every_rank_draws_its_own_rows_from_the_same_seed(patch):
    patch.setattr(distributed.Ranks, 'mine', lambda self, x: x[:len(x) // self.world])


@pytest.mark.parametrize('name', TRAPS)
def test_a_trap_is_found(crew, together, alone, name):
    cfg = config('paper, batch statistics of all', steps=4)
    check(together(2, cfg), alone(cfg))
    with pytest.raises(AssertionError): check(crew(updates, cfg, name), alone(cfg))


def test_moving_statistics_of_chunks_are_those_of_all_ranks(crew, together, alone):
    cfg = config('best_known', steps=2)
    check(together(2, cfg), alone(cfg))
    with pytest.raises(AssertionError): check(crew(updates, cfg, 'batch_statistics_are_those_of_each_rank'), alone(cfg))


@pytest.mark.parametrize('how', ['mean', 'sequential'])
def test_a_chunk_may_lie_on_two_ranks(crew, alone, how):
    "Four ranks with two images each, in chunks of four; the moving statistics are those of both chunks."
    cfg = config('best_known', bn_ghost=4, bn_ghost_update=how, steps=4)
    check(crew.regroup(4)(updates, cfg), alone(cfg))
    crew.regroup(2)
    with pytest.raises(AssertionError): check([alone(config('best_known', steps=4))], alone(cfg))          # chunks of 2 are another thing


def test_two_forwards_before_one_backward(monkeypatch):
    "u moves between them: the first must keep the u it was computed with."
    cfg = config('paper, batch statistics of all', steps=1)
    updates(cfg)
    monkeypatch.setattr(SpectralNorm, 'vectors', lambda self, W, weight: (self.u, self.reorder(self.v, weight)))
    with pytest.raises(RuntimeError, match='inplace'): updates(cfg)


# A batch in parts.

IN_PARTS = {'v1, chunks of 2': {}, 'released, chunks one after another': {}, 'best_known': {},
            'AC-GAN, five steps of D': dict(bn_ghost=2, steps=4)}


@pytest.mark.parametrize('name', IN_PARTS)
def test_parts_together_are_the_whole_batch(alone, name):
    cfg = config(name, **IN_PARTS[name])
    check([updates(replace(cfg, micro=4))], alone(cfg))


def test_parts_of_a_share_are_the_whole_batch(two, alone):
    cfg = config('best_known', steps=4)
    check(two(updates, replace(cfg, micro=2)), alone(cfg))


def one_forward_for_each_part(net, micro, *args):
    outs = [net(*part) for part in zip(*(a.split(micro or len(a)) for a in args))]
    return tuple(map(torch.cat, zip(*outs))) if isinstance(outs[0], tuple) else torch.cat(outs)


def test_parts_that_move_u_and_statistics_each_are_found(alone, monkeypatch):
    "As in other code bases. Without spectral norm and moving statistics the gradients alone would be right."
    cfg = config('best_known', steps=2)
    monkeypatch.setattr(train, 'in_parts', one_forward_for_each_part)
    with pytest.raises(AssertionError): check([updates(replace(cfg, micro=4))], alone(cfg))


def test_u_statistics_and_adam_move_once_for_an_update(monkeypatch):
    gan, moved = train.make_gan(config('best_known', micro=2)), []
    for cls, name in ((SpectralNorm, 'advance'), (blocks.ConditionalBatchNorm2d, 'update')):
        def count(self, *args, right=getattr(cls, name)):
            if getattr(self, 'parts', None) is None: moved.append(id(self))
            return right(self, *args)
        monkeypatch.setattr(cls, name, count)
    train.g_step(gan, 8)
    layers = [m for net in (gan.G, gan.D) for m in net.modules() if isinstance(m, SpectralNorm | blocks.ConditionalBatchNorm2d)]
    assert sorted(moved) == sorted(map(id, layers)) and {int(s['step']) for s in gan.opt_g.state.values()} == {1}


def test_what_a_part_keeps_is_what_is_in_memory():
    "Peak over a forward and backward, from the profiler: a batch of 32 in parts of 4 takes little more than a batch of 4."
    def peak(n, micro):
        torch.manual_seed(0)
        D, x = train.Discriminator(32, 8, 4, attn_at=(16,), sn=False), torch.randn(n, 3, 32, 32)
        return peak_of(lambda: distributed.in_parts(D, micro, x, torch.arange(n) % 4).sum().backward())
    whole, parts, part = peak(32, 0), peak(32, 4), peak(4, 0)
    assert part < parts < 1.5*part < whole/2


@pytest.mark.parametrize('given, words', [(dict(bn_ghost=0, micro=4), 'must be a multiple of bn_ghost, which is 0'),
                                          (dict(bn_ghost=4, micro=2), 'must be a multiple of bn_ghost, which is 4')])
def test_parts_that_cut_a_chunk_are_refused(given, words):
    with pytest.raises(Refused, match=words): config('best_known', **given)


# A run of several ranks: who writes, who is refused, what ends it.

SMOKE = replace(at_scale(preset('t1_attn_16'), 'smoke'), n_classes=4, width=2, data_id=Toy(32).fingerprint, sample_every=1000)


def run(out, cfg, resume=False):
    runs.train(cfg, Toy(32), out, resume)
    return sorted(p.name for p in Path(out).rglob('*') if p.is_file())


def test_a_run_goes_on_with_any_number_of_ranks(crew, tmp_path):
    cfg = replace(SMOKE, steps=2)
    crew.regroup(2)
    files, _ = crew(run, tmp_path, cfg)
    assert {'config.json', 'data.json', 'env.json', 'log.jsonl', 'step_0000002.pt', 'step_0000002.png'} <= {*files}
    assert [o['t'] for o in read_log(tmp_path/'log.jsonl')] == [1, 2]
    found = []
    for world in (1, 2, 4):                                     # the first update after it: the same, to rounding
        folder = tmp_path.with_name(f'on{world}')
        shutil.copytree(tmp_path, folder)
        if world == 1: run(folder, replace(cfg, steps=3), True)
        else: crew.regroup(world)(run, folder, replace(cfg, steps=3), True)
        last = read_log(folder/'log.jsonl')[-1]
        assert last['t'] == 3
        found.append([last['loss_d'], last['loss_g']])
    torch.testing.assert_close(torch.tensor(found[1:]), torch.tensor(found[:1]*2), rtol=1e-3, atol=1e-4)


def refusal(out, cfgs, other_code=False):
    "What a rank is told at the start, where the ranks do not agree."
    rank = distributed.Ranks().rank
    with pytest.MonkeyPatch.context() as m:
        if rank and other_code: m.setattr(group, 'code_version', lambda: 'other')
        try: run(out, cfgs[rank])
        except Refused as e: return str(e)


@pytest.mark.parametrize('change, words', [(dict(lr_g=1e-3), 'lr_g is 0.0001 on rank 0, 0.001 on rank 1'),
                                           (dict(data_id='another'), "'another' on rank 1"), ({}, "'other' on rank 1")])
def test_ranks_that_do_not_agree_are_refused(two, tmp_path, change, words):
    first, second = two(refusal, tmp_path/'run', (SMOKE, replace(SMOKE, **change)), not change)
    assert first == second and first.startswith('the ranks do not agree: ') and words in first
    assert not (tmp_path/'run').exists()


def numbers_that_differ(out):
    "Rank 1 loses a bit: no checkpoint is written."
    def flip(gan, log=None):
        if gan.ranks.rank:
            with torch.no_grad(): gan.D.linear.bias[0] = gan.D.linear.bias[0].nextafter(torch.tensor(9.))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(runs, 'average', flip)
        try: run(out, SMOKE)
        except runs.Diverged as e: return str(e)


def test_no_checkpoint_is_written_of_ranks_that_differ(two, tmp_path):
    found = two(numbers_that_differ, tmp_path)
    assert all('at step 2 the ranks do not have the same numbers: D.linear.bias is' in o for o in found)
    assert checkpoints_of(tmp_path) == []


def buffers_that_are_not_finite(out):
    "On rank 0 alone the generator to sample from has lost a number: all ranks end alike."
    def broken(gan):
        G = train.sampler(gan)
        next(G.buffers()).fill_(torch.nan)
        return G
    with pytest.MonkeyPatch.context() as m:
        if distributed.Ranks().first: m.setattr(checkpoints, 'sampler', broken)
        m.setattr(runs, 'SamplerOfStep', lambda: checkpoints.sampler)
        try: run(out, SMOKE)
        except runs.Diverged as e: return str(e)


def test_what_rank_0_alone_cannot_save_ends_the_run_on_every_rank(two, tmp_path):
    first, second = two(buffers_that_are_not_finite, tmp_path)
    assert first == second and first.startswith('at step 2 ') and ' is not finite' in first
    assert checkpoints_of(tmp_path) == []


def waits_for(path):
    "Rank 1 hangs until a file is there; rank 0 says what it waited for."
    ranks = distributed.Ranks()
    try:
        while ranks.rank and not path.exists(): time.sleep(.05)
        ranks.any(True)
    except group.Lost as e: return str(e)
    finally: path.touch()


@pytest.mark.parametrize('raised, kind, words', [
    (dist.DistBackendError("NCCL error in: NCCLUtils.cpp:1, unhandled cuda error\nLast error:\nDuplicate GPU detected : rank 0 and rank 1"), group.Lost, 'others: Duplicate GPU detected'),
    (RuntimeError('No backend type associated with device type cpu'), Refused, 'cpu:gloo,cuda:nccl'),
    (RuntimeError('Connection closed by peer'), group.Lost, 'lost another rank')])
def test_what_fails_between_ranks_is_said_as_it_is(monkeypatch, raised, kind, words):
    monkeypatch.setattr(dist, 'get_rank', lambda: 0)
    with pytest.raises(kind, match=words), group.answered(): raise raised


def test_more_processes_than_gpus_are_refused(monkeypatch):
    "The one that is too many would share the first GPU, and NCCL refuse both. A process that sees one GPU alone is a scheduler's."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('LOCAL_RANK', '2')
    for n in (2, 1, 3):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: n)
        if n != 2: assert pick_device('auto').type == 'cuda'
        else:
            with pytest.raises(Refused, match='process 2 of this machine has no GPU: there are 2'): pick_device('auto')
        assert pick_device('cpu').type == 'cpu'


def test_a_rank_that_hangs_ends_the_wait_of_the_others(crew, tmp_path):
    crew.wait, was = 5, crew.wait
    try: found = crew.regroup(2)(waits_for, tmp_path/'go')
    finally: crew.wait = was
    assert all('lost another rank, or waited more than 5 s (SAGAN_NB_TIMEOUT) for it' in o for o in found)
    crew.regroup(2)


def met(store, world, late=0.):
    "The names that the ranks of one start agree on; rank 1 comes late."
    def come(rank):
        if rank == 1: time.sleep(late)
        return group.meeting(store, rank, world, 20.)
    with ThreadPoolExecutor(world) as pool: return [*pool.map(come, range(world))]


def test_ranks_meet_anew_however_often_which_of_them_was_started():
    "Agents of torchrun count restarts apart, and the store keeps what the dead ones left: each meeting has a name of its own."
    store = dist.HashStore()
    store.set('here_1', 'a sign of a rank that died before it was answered')
    names = [met(store, 3, late) for late in (0., .3, .3)]
    assert all(len({*o}) == 1 for o in names) and len({o[0] for o in names}) == 3
    with pytest.raises(RuntimeError, match='rank 1 did not come'): group.meeting(dist.HashStore(), 0, 2, .1)
    with pytest.raises(RuntimeError): group.meeting(dist.HashStore(), 1, 2, .1)


def told_to_go_on(out, counts, asked):
    "Whether each rank goes on, and whether torchrun has started any of them again."
    rank = distributed.Ranks().rank
    with pytest.MonkeyPatch.context() as m:
        m.setenv(group.AGAIN, counts[rank])
        try: return options.begun(out, asked[rank]), group.restarted()
        except Refused as e: return str(e)


@pytest.mark.parametrize('counts, asked, there, go_on', [
    ('00', (False, False), True, [False, False]), ('01', (False, False), True, [True, True]), ('10', (False, False), True, [True, True]),
    ('00', (False, True), True, [True, True]), ('11', (False, False), False, [False, False])])
def test_all_ranks_go_on_where_one_was_started_again(two, tmp_path, counts, asked, there, go_on):
    if there: (tmp_path/'config.json').write_text('{}')
    taken = there and not any(go_on)
    said = [f'{tmp_path} is there already: choose another --out, or go on with --resume' if taken else (o, counts != '00') for o in go_on]
    assert two(told_to_go_on, tmp_path, counts, asked) == said


def opened_together(missing):
    "One rank lacks the weights of a protocol."
    rank = distributed.Ranks().rank
    def features_by(net, paths, device='cpu'):
        if rank == missing: raise Refused('no weights on this machine')
        return net
    with pytest.MonkeyPatch.context() as m:
        m.setattr(protocols, 'features_by', features_by)
        try: return protocols.open_together({'net'}, {}, ranks=distributed.Ranks())
        except Refused as e: return str(e)


def test_weights_that_one_machine_lacks_are_lacking_on_every_rank(two):
    assert two(opened_together, 1) == two(opened_together, 0) == ['no weights on this machine']*2
    assert two(opened_together, None) == [{'net': 'net'}]*2


def begun_with(out):
    "What the networks begin with, where each rank finds other weights under one name."
    gan, own = train.make_gan(SMOKE), train.make_gan(SMOKE)
    rank, tuning = distributed.Ranks().rank, finetune.FineTune('anything', 0, out)
    with torch.no_grad():
        for p in (*own.G.parameters(), *own.D.parameters()): p.fill_(rank + 1.)
    tuning.model = own
    with pytest.MonkeyPatch.context() as m:
        m.setattr(finetune, 'begin_with', lambda net, model, part: net.load_state_dict(getattr(model, part).state_dict()))
        tuning(gan)
    return {p.unique().item() for p in (*gan.G.parameters(), *gan.D.parameters())}


def test_all_ranks_begin_with_the_weights_that_rank_0_read(two, tmp_path):
    assert two(begun_with, tmp_path) == [{1.}, {1.}]


def test_a_meeting_to_which_nobody_comes(monkeypatch):
    for name, value in dict(RANK=0, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), SAGAN_NB_TIMEOUT=1).items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(Refused, match=r'rank 0 waited 1 s \(SAGAN_NB_TIMEOUT\) at 127.0.0.1:\d+ for 2 ranks'): distributed.Ranks()


@pytest.mark.parametrize('env, words', [(dict(RANK='2', WORLD_SIZE='2'), 'rank 2 of 2 does not exist'),
                                        (dict(RANK='0', WORLD_SIZE='two'), 'must be numbers'),
                                        (dict(RANK='0', WORLD_SIZE='2'), 'without MASTER_ADDR: use torchrun'),
                                        (dict(SAGAN_NB_TIMEOUT='soon', RANK='0', WORLD_SIZE='2', MASTER_ADDR='x', MASTER_PORT='1'), 'must be a number of seconds')])
def test_an_environment_that_makes_no_sense(monkeypatch, env, words):
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    for name, value in env.items(): monkeypatch.setenv(name, value)
    with pytest.raises(Refused, match=words): distributed.Ranks()


@pytest.mark.parametrize('number, code', [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_whether_to_come_back(monkeypatch, capsys, tmp_path, number, code):
    monkeypatch.setattr(runs, 'average', lambda gan, log=None: os.kill(os.getpid(), number) if gan.t == 3 else None)
    found, _, said = shell(monkeypatch, capsys, 'sagan_train', '--scale', 'smoke', '--out', tmp_path/'run', '--set', 'width=2')
    assert found == code and 'stopped at step 3 and saved. Go on with' in said
    if number == signal.SIGINT:                                # Ctrl-C ends the `tee` that reads what is printed, too
        stop = runs.StopOnSignal('')
        monkeypatch.setattr('builtins.print', Mock(side_effect=BrokenPipeError('nobody reads')))
        stop.ask(number, None)
        assert stop.asked == number
    assert [p.name for p in checkpoints_of(tmp_path/'run')][-1] == 'step_0000003.pt'


def lines(out):
    "How many updates were logged in all, those made twice twice."
    path = out/'log.jsonl'
    return path.read_text().count('\n') if path.exists() else 0


def workers(process):
    "The ranks of a torchrun."
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return [int(o) for o in children if b'sagan_nb.train' in Path(f'/proc/{o}/cmdline').read_bytes()]


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='this system does not list processes in /proc')
def test_one_rank_of_torchrun_is_sagan_train(monkeypatch, capsys, tmp_path):
    "To the same bits; SIGUSR1 to the rank ends the run after a step."
    words = 't1_attn_16', '--scale', 'smoke', '--device', 'cpu', '--set', 'width=2', 'sample_every=1000'
    process = subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '1', '-m', 'sagan_nb.train',
                                *words, 'steps=10000', '--out', str(tmp_path/'one')], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while lines(tmp_path/'one') < 3 and process.poll() is None: time.sleep(.05)
        os.kill(workers(process)[0], signal.SIGUSR1)
        text = process.communicate(timeout=300)[0]
    finally: process.kill()
    last = checkpoints_of(tmp_path/'one')[-1]
    assert process.returncode and f'stopped at step {step_of(last)} and saved' in text, text
    monkeypatch.setattr(cli, 'summarise', lambda *args: None)
    assert shell(monkeypatch, capsys, 'sagan_train', *words, f'steps={step_of(last)}', '--out', tmp_path/'plain')[0] == 0
    assert not other_bits(last, checkpoints_of(tmp_path/'plain')[-1])


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='this system does not list processes in /proc')
def test_a_killed_rank_and_a_stopped_job_cost_no_bit(two, tmp_path):
    "kill -9 of one rank, a restart by torchrun, then SIGTERM: the last checkpoint is that of a run without any of it."
    out, cfg = tmp_path/'run', replace(SMOKE, steps=10_000)
    pairs = [f'{k}={getattr(cfg, k)}' for k in ('width', 'steps', 'sample_every')]
    process = subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '--max-restarts', '1',
                                '-m', 'sagan_nb.train', 't1_attn_16', '--scale', 'smoke', '--device', 'cpu', '--out', str(out), '--set', *pairs],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    def until(n):
        while lines(out) < n and process.poll() is None: time.sleep(.05)
    try:
        until(5)
        os.kill(workers(process)[-1], signal.SIGKILL)
        until(lines(out) + 6)
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=300)[0]
    finally: process.kill()
    last = checkpoints_of(out)[-1]
    t = step_of(last)
    assert process.returncode and f'stopped at step {t} and saved' in text, text
    assert [o['t'] for o in read_log(out/'log.jsonl')] == [*range(1, t + 1)] and lines(out) > t - 1
    two(run, tmp_path/'calm', replace(cfg, steps=t))
    assert not other_bits(last, checkpoints_of(tmp_path/'calm')[-1])


# What else uses several ranks.

class Small(torch.nn.Module):
    "Features of a picture: random sums of its mean colours."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(48, 12)

    def forward(self, x):
        h = self.linear(torch.nn.functional.avg_pool2d(x.float(), 8).flatten(1) / 100)
        return h, h


def measured(out, cache):
    "The records of sagan_eval on all ranks, and how many shards this one made."
    made, right = [], evaluation.Table.compute
    with pytest.MonkeyPatch.context() as m:
        m.setattr(evaluation.Table, 'compute', lambda self, i: made.append(i) or right(self, i))
        m.setattr(evaluation.Table.__init__, '__defaults__', (None, 20, 20))                # small shards
        m.setattr(evaluation, 'open_features', lambda *args: Features(Small(), 'small'))
        m.setenv('SAGAN_NB_CACHE', str(cache))
        records = cli.sagan_eval(str(out), metrics='score,distance,intra,kid,prdc,diversity', n_fake=100, n_real=100, device='cpu', out=f'{cache}.json')
    return [(o['metric'], o['value']) for o in records], len(made)


def test_ranks_share_an_evaluation(crew, tmp_path):
    run(tmp_path/'run', replace(SMOKE, steps=1))
    crew.regroup(2)
    alone, all_made = measured(tmp_path/'run', tmp_path/'alone')
    (first, made), (second, made_there) = crew(measured, tmp_path/'run', tmp_path/'together')
    assert first == second == alone and len(alone) > 6 and made + made_there == all_made and min(made, made_there) > all_made / 3
    assert [o['value'] for o in json.loads((tmp_path/'together.json').read_text())] == [value for _, value in alone]


def rows_made(place, out):
    "Make a small table, as each process of torchrun does: the rows that this one trained."
    made, right = [], jobs.run_job
    with pytest.MonkeyPatch.context() as m, small(place):
        m.setattr(jobs, 'run_job', lambda job, *args: made.append(job.cfg.preset) or right(job, *args))
        m.setattr(cli, 'features_of', lambda *args: place.features)
        cli.sagan_table('table1', str(place.folder/'pictures'), 'smoke', out=str(out), only='t1_none,t1_attn_16', device='cpu',
                        set=['width=2', 'batch=4', 'steps=2', 'standing=16'])
    return made


def ended(place, out):
    "Train and end as the command does; over how many ranks this one measured."
    seen, right = [], ending.measure
    with pytest.MonkeyPatch.context() as m, small(place):
        m.setattr(ending, 'measure', lambda *args, ranks: seen.append(ranks.world) or right(*args, sizes=(64, 64), ranks=ranks))
        m.setattr(ending, 'write_report', lambda *args: None)
        m.setattr(ending, 'ENDINGS', {k: f for k, f in ending.ENDINGS.items() if k in ('metrics.json', 'incidents.jsonl')})
        m.setenv('SAGAN_NB_CACHE', str(place.folder/f'cache-{out.name}'))
        gan = runs.train(replace(SMOKE, data_id=place.source.fingerprint, n_classes=len(place.source.classes)), place.source, out)
        ending.summarise(gan, place.source, out, place.features)
    return seen


def opened_in_turn(who, kind):
    "One rank is refused what all of them open in turn."
    ranks = distributed.Ranks()
    def opens():
        if ranks.rank == who: raise kind('nothing to open here')
        return 'open'
    try: return evaluation.in_turn(ranks, opens)
    except Refused as e: return type(e).__name__, str(e)


def test_what_one_rank_is_refused_all_are(two):
    "Else the others would wait in another exchange, and torchrun would call a finished run failed."
    assert two(opened_in_turn, None, Refused) == ['open']*2
    for who in (0, 1):
        for kind in (Refused, evaluation.TooFew): assert two(opened_in_turn, who, kind) == [(kind.__name__, 'nothing to open here')]*2
    with pytest.raises(evaluation.TooFew): evaluation.in_turn(distributed.Ranks(0, 1), Mock(side_effect=evaluation.TooFew('few')))


def test_ranks_measure_the_end_of_a_run_together(crew, tmp_path):
    "Else all wait for one, and torchrun for no longer than five minutes."
    place = Place(tmp_path/'place')
    assert ended(place, tmp_path/'alone') == [1] and crew.regroup(2)(ended, place, tmp_path/'together') == [[2], [2]]
    one, two = ({(o['metric'], o.get('splits')): o['value'] for o in json.loads((tmp_path/name/'metrics.json').read_text())} for name in ('alone', 'together'))
    assert one == pytest.approx(two, rel=.05, nan_ok=True) and len(one) > 3


def test_ranks_share_a_table(crew, tmp_path):
    "Each row is trained by one rank, and the last to finish writes the table of all."
    place = Place(tmp_path/'place')
    alone = rows_made(place, tmp_path/'alone')
    first, second = crew.regroup(2)(rows_made, place, tmp_path/'together')
    assert [first, second] == [[row] for row in alone] and len(alone) == 2
    assert numbers(tmp_path/'together') == numbers(tmp_path/'alone')
    one, two = ({o['row']: timeless(o) for o in jobs.collect(tmp_path/name)} for name in ('alone', 'together'))
    assert one == two and len(one) == 2


def test_a_row_that_fails_leaves_the_rows_of_other_processes_alone(capsys, monkeypatch):
    "By an exit code torchrun would stop all of them. And what was to be done anew is not done anew after a restart."
    with pytest.raises(Refused, match='1 of 3 runs failed. Again'): options.say_lost(['a'], 3, 'Again', 1)
    options.say_lost(['a'], 3, 'Again', 2)
    assert '1 of 3 runs failed. Again' in capsys.readouterr().err and options.say_lost([], 3, 'Again', 1) is None
    asked = lambda: options.asked_rows('table1', 't1_none', '0', 't1_none', None, False)[2]
    assert asked() == ['t1_none']
    monkeypatch.setenv(group.AGAIN, '1')
    assert asked() == []


def test_several_ranks_look_and_act_as_one(crew, tmp_path):
    "Rank 0 looks; all stop, go back and go on together."
    place = Place(tmp_path/'place')
    alone = guarded(place, tmp_path/'alone', 'back')
    first, second = crew.regroup(2)(guarded, place, tmp_path/'stop', 'stop')
    assert first == second and 'sign of collapse: diversity at step 6' in first and step_of(checkpoints_of(tmp_path/'stop')[-1]) == 6
    assert crew(guarded, place, tmp_path/'back', 'back') == [alone]*2
    assert [(o['t'], o['action']) for o in incidents(tmp_path/'back')] == [(6, 'back')]
    one, two = ([(o['t'], o['diversity']) for o in read_log(tmp_path/name/'curve.jsonl')] for name in ('alone', 'back'))
    assert [t for t, _ in two] == [t for t, _ in one] and torch.tensor(two).allclose(torch.tensor(one), rtol=.02)
    assert len([*(tmp_path/'back'/'checkpoints').glob('best_*.pt')]) == 2


# Packing, shared out by chunks of images.

def pack_together(folder, out, stop_after=None):
    "Pack on all ranks, chunks of 4; stop each before it reads its chunk number `stop_after`. The names that this one decoded."
    ranks, read, right = distributed.Ranks(), [], pictures.decode
    def decode(listing, name, *args):
        if stop_after is not None and listing.names.index(name) // (4*ranks.world) >= stop_after: raise KeyboardInterrupt
        read.append(name)
        return right(listing, name, *args)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(pictures, 'CHUNK', 4)
        m.setattr(pictures, 'decode', decode)
        try: packs.pack(folder, 16, out, max_bad=.2, place=(ranks.rank, ranks.world))
        except KeyboardInterrupt: assert stop_after is not None
    return read


@pytest.fixture
def zoo(tmp_path):
    "A folder of 30 pictures, two of which cannot be read."
    as_folders(Toy(16, 3, n=30), tmp_path/'zoo')
    for name in ('0/3.png', '2/11.png'): (tmp_path/'zoo'/name).write_text('words')
    return tmp_path/'zoo'


def bytes_of(pack): return {p.name: p.read_bytes() for p in pack.iterdir()}


def test_ranks_pack_what_one_packs(crew, zoo, tmp_path):
    alone = pack_together(zoo, tmp_path/'alone.pack')
    for world in (2, 4):
        read = crew.regroup(world)(pack_together, zoo, tmp_path/f'{world}.pack')
        assert bytes_of(tmp_path/f'{world}.pack') == bytes_of(tmp_path/'alone.pack')
        assert sorted(sum(read, [])) == sorted(alone) and min(map(len, read)) >= 4                 # shared, none twice
    assert sorted(p.name for p in tmp_path.glob('[!.]*.pack*')) == ['2.pack', '4.pack', 'alone.pack']


def test_packing_goes_on_with_another_number_of_ranks(crew, zoo, tmp_path):
    pack_together(zoo, tmp_path/'alone.pack')
    read = crew.regroup(2)(pack_together, zoo, tmp_path/'p.pack', 1)
    done = (tmp_path/'p.pack.part.log').read_text().count('"sha256"')
    assert done == 2 and not (tmp_path/'p.pack').exists()
    read += crew.regroup(4)(pack_together, zoo, tmp_path/'p.pack')
    assert len(sum(read, [])) == 30 == len({*sum(read, [])}) and bytes_of(tmp_path/'p.pack') == bytes_of(tmp_path/'alone.pack')


def refused_to_pack(folders, out, **how):
    ranks = distributed.Ranks()
    try: packs.pack(folders[ranks.rank], 16, out, place=(ranks.rank, ranks.world), **how)
    except Refused as e: return str(e)


def test_ranks_that_see_other_pictures_do_not_pack(crew, zoo, tmp_path):
    as_folders(Toy(16, 3, n=27), tmp_path/'less')
    first, second = crew.regroup(2)(refused_to_pack, (zoo, tmp_path/'less'), tmp_path/'p.pack')
    assert first == second and first.startswith('the ranks do not agree: pictures is') and not (tmp_path/'p.pack.part').exists()
    first, second = crew(refused_to_pack, (zoo, zoo), tmp_path/'p.pack')
    assert first == second and '2 or more of 30 pictures cannot be read, the limit is 1%' in first
