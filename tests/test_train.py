"Runs as a user makes them: commands, faults, signals, restarts, real pictures."
import copy
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import start
from commands import needs_compiler, other_bits, shell, spawn
from sagan_nb.blocks import BLOCKS, FOLDS
from sagan_nb.config import FIELDS, PRESETS, Config, at_scale, from_json
from sagan_nb.core import Refused
from sagan_nb.data import Stream, Toy
from sagan_nb.distributed import in_parts
from sagan_nb.networks import Generator
from sagan_nb.self_attention import FORMS
from sagan_nb.spectral_norm import real_pass, spectral_norm
from sagan_nb.train import attention_usage, fit, make_gan, networks, sampler
from sagan_nb.machinery import cli, machine, options
from sagan_nb.machinery.checkpoints import Diverged, checkpoints_of, load_checkpoint, newest_checkpoint, read_checkpoint
from sagan_nb.machinery.files import CacheWarning
from sagan_nb.machinery.runs import Log, read_log, train

DATA = Path(__file__).parents[2]/'shared'/'data'


def smoke(out, *more): return ('sagan_train', 't1_attn_16', '--scale', 'smoke', '--out', out, *more)


def differing(a, b):
    "Names of what the newest checkpoints of two runs do not hold alike."
    return other_bits(*map(newest_checkpoint, (a, b)))


def test_choices_of_the_settings_are_those_of_the_networks():
    choices = {name: f.metadata['may'] for name, f in FIELDS.items() if isinstance(f.metadata['may'], tuple)}
    assert (choices['block'], choices['form'], choices['fold']) == (BLOCKS, FORMS, FOLDS) and len(choices) > 10
    cfg = at_scale(PRESETS['t1_attn_16'], 'smoke')
    for name, values in choices.items():
        for value in values: assert make_gan(replace(cfg, **{name: value})).G.res == 32
        with pytest.raises(Refused, match='choose one of'): replace(cfg, **{name: 'nonsense'})


# faults: one clear line, exit code not 0, nothing written, nothing lost

def make_fault(name, tmp, run):
    "(arguments, words of the message)"
    out = tmp/'out'
    if name == 'missing folder': return [*smoke(out), '--data', tmp/'nowhere'], 'no file or folder'
    if name == 'corrupt zip':
        (tmp/'x.zip').write_bytes(b'PK\3\4' + bytes(200))
        return [*smoke(out), '--data', tmp/'x.zip'], 'is no zip file, or a damaged one'
    if name == 'text named .jpg':
        for k in 'ab':
            (tmp/'zoo'/k).mkdir(parents=True)
            for i in range(3): (tmp/'zoo'/k/f'{i}.jpg').write_text('no picture')
        return [*smoke(out), '--data', tmp/'zoo'], 'a/0.jpg'
    if name == 'one class':
        from PIL import Image
        (tmp/'zoo'/'a').mkdir(parents=True)
        Image.new('RGB', (40, 40)).save(tmp/'zoo'/'a'/'0.png')
        return [*smoke(out), '--data', tmp/'zoo'], '--unlabelled'
    if name == 'wrong res': return [*smoke(out), '--set', 'res=48'], 'choose one of 32, 64, 128, 256'
    if name == 'attention where no map is': return [*smoke(out), '--set', 'attn_at=32'], 'maps to choose from: 8, 16'
    if name == 'negative steps': return [*smoke(out), '--steps', '-5'], 'steps must be greater than 0'
    if name == 'unknown preset': return ['sagan_train', 't1_atn_16', '--out', out], 'did you mean t1_attn_16'
    if name == 'unknown scale': return ['sagan_train', 't1_none', '--scale', 'huge', '--out', out], 'choose one of smoke, laptop, gpu, paper'
    if name == 'unknown setting': return [*smoke(out), '--set', 'lr=1'], "did you mean 'lr_g'"
    if name == 'not key=value': return [*smoke(out), '--set', 'lr'], 'expected key=value'
    if name == 'unsplit batch': return [*smoke(out), '--set', 'bn_ghost=3'], 'does not split'
    if name == 'output is a file':
        out.write_text('mine')
        return [*smoke(out)], 'is there already'
    if name == 'output below a file':
        out.write_text('mine')
        return [*smoke(out/'run')], str(out)
    if name == 'read-only output': return [*smoke('/proc/run')], '/proc/run'
    if name == 'run in use': return [*smoke(run)], 'is there already'
    if name == 'resume nothing': return ['sagan_train', '--resume', '--out', out], 'no run to go on with'
    if name == 'resume with another rate': return ['sagan_train', '--resume', '--out', run, '--set', 'lr_g=1e-3'], 'lr_g was 0.0001, now 0.001'
    if name == 'resume with other data': return ['sagan_train', '--resume', '--out', run, '--data', 'toy:5'], 'n_classes was 4, now 5'
    if name == 'resume to an earlier step': return ['sagan_train', '--resume', '--out', run, '--steps', 1], 'is at step 4 already'
    if name == 'another number of classes': return [*smoke(out), '--data', 'toy:4', '--set', 'n_classes=10'], '10 are asked for'
    if name == 'seed too large': return [*smoke(out), '--seed', 10**20], 'seed is too large a number'
    if name == 'no such device': return [*smoke(out), '--device', 'meta'], 'say auto, cpu or cuda'
    if name == 'sample to a strange ending': return ['sagan_sample', run, '--out', tmp/'a.xyz'], 'the name must end in one of .png'
    if name == 'sample from a classifier':
        torch.save(torch.nn.Linear(3, 4).state_dict(), tmp/'x.pt')
        return ['sagan_sample', tmp/'x.pt', '--out', tmp/'a.png'], 'not a SAGAN generator'
    if name == 'export to another format': return ['sagan_export', run, '--format', 'pickle'], "choose 'safetensors' or 'onnx'"
    if name == 'sample nothing': return ['sagan_sample', tmp/'nowhere'], 'there is no such run'
    if name == 'sample no class': return ['sagan_sample', run, '--classes', 'whale', '--out', tmp/'a.png'], "there is no class 'whale'"
    if name == 'sample -1': return ['sagan_sample', run, '--n', '-1', '--out', out], 'n must lie in 1..10000'
    if name == 'pack nothing': return ['sagan_pack', tmp/'nowhere', '--out', out], 'no file or folder'


FAULTS = ['missing folder', 'corrupt zip', 'text named .jpg', 'one class', 'wrong res', 'attention where no map is', 'negative steps',
          'unknown preset', 'unknown scale', 'unknown setting', 'not key=value', 'unsplit batch', 'output is a file', 'output below a file',
          'read-only output', 'run in use', 'resume nothing', 'resume with another rate', 'resume with other data', 'sample nothing',
          'sample no class', 'sample -1', 'pack nothing', 'resume to an earlier step', 'another number of classes',
          'seed too large', 'no such device', 'sample to a strange ending', 'sample from a classifier', 'export to another format']


@pytest.mark.parametrize('name', FAULTS)
def test_fault(name, tmp_path, run, monkeypatch, capsys):
    files = lambda p: {f: f.read_bytes() for f in Path(p).rglob('*') if f.is_file()}
    args, words = make_fault(name, tmp_path, run)
    before = files(run), files(tmp_path)
    code, out, err = shell(monkeypatch, capsys, *args)
    assert code == 1 and words in err and err.startswith(f'{args[0]}: ') and len(err.strip().splitlines()) == 1, (code, err)
    assert (files(run), files(tmp_path)) == before


def test_wrong_words_on_the_command_line(monkeypatch, capsys, tmp_path):
    code, _, err = shell(monkeypatch, capsys, *smoke(tmp_path/'x'), '--steps', 'many')
    assert code == 2 and 'invalid int value' in err
    code, _, err = shell(monkeypatch, capsys, *smoke(tmp_path/'x'), '--stepz', '3')
    assert code == 2 and '--stepz' in err


def test_truncated_checkpoint_loses_nothing(run, tmp_path, monkeypatch, capsys):
    "The damaged one is named and the one before goes on. What a killed process was writing is removed. With none whole, nothing is touched."
    out = tmp_path/'run'
    shutil.copytree(run, out)
    old, new = checkpoints_of(out)
    new.write_bytes(new.read_bytes()[:5000])
    part = new.with_name(f'{new.name}.4711.part')
    part.write_bytes(b'half')
    with pytest.warns(CacheWarning, match=f'{new}: not a readable checkpoint.*{old.name} is used'):
        code, _, err = shell(monkeypatch, capsys, 'sagan_train', '--resume', '--out', out)
    assert code == 0, err
    assert not differing(run, out) and not part.exists()
    log = (out/'log.jsonl').read_bytes()
    for path in checkpoints_of(out): path.write_bytes(path.read_bytes()[:5000])
    code, _, err = shell(monkeypatch, capsys, 'sagan_train', '--resume', '--out', out, '--steps', 9)
    assert code == 1 and 'none of its 2 checkpoints is whole' in err and new.name in err and len(err.strip().splitlines()) == 1
    assert (out/'log.jsonl').read_bytes() == log and from_json((out/'config.json').read_text()).steps == 4


def test_hostile_checkpoint_is_not_run(tmp_path):
    class Boom:
        def __reduce__(self): return (Path.write_text, (tmp_path/'boom', 'ran'))
    torch.save(dict(config='{}', t=0, G=Boom(), D={}, rng=0), tmp_path/'evil.pt')
    with pytest.raises(Refused, match='not a readable checkpoint'): load_checkpoint(tmp_path/'evil.pt')
    assert not (tmp_path/'boom').exists()


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    code, out, err = shell(monkeypatch, capsys, *smoke(tmp_path/'run', '--steps', 50, '--set', 'lr_factor=1e30', 'checkpoint_every=1'))
    assert code == 1 and 'finite' in err and len(err.strip().splitlines()) == 1, err
    assert 'the last good checkpoint is' in err or 'no checkpoint was written yet' in err, err
    good = sorted((tmp_path/'run'/'checkpoints').glob('*.pt'))
    for p in good: assert all(v.isfinite().all() for n in ('G', 'D') for v in read_checkpoint(p)[n].values())
    assert not list((tmp_path/'run'/'checkpoints').glob('*.part'))


@pytest.mark.parametrize('log_every', [1, 4])
def test_divergence_in_mid_run_names_the_last_good_checkpoint(tmp_path, log_every):
    "A weight that turns into NaN after step 5: the next line of the log ends the run and names step 6, and the checkpoint of step 5 is whole."
    def poison(gan, log):
        if gan.t == 5: gan.D.linear.bias.data.fill_(float('nan'))
    cfg = replace(at_scale(PRESETS['t1_attn_16'], 'smoke'), n_classes=4, steps=20, checkpoint_every=5, log_every=log_every)
    with pytest.raises(Diverged, match=r'at step 6 .* is not a finite number.*D.linear.bias.*; the last good checkpoint is .*step_0000005.pt'):
        train(cfg, Toy(32, 4, n=50), tmp_path/'run', hooks=[(1, poison)])
    assert all(v.isfinite().all() for n in ('G', 'D') for v in read_checkpoint(newest_checkpoint(tmp_path/'run'))[n].values())


# restarts

CUT = dict(fp32=(), bf16=('precision=bf16', 'channels_last=true', 'ema=0.9', 'ema_start=3'))
LONG = ('--steps', 20, '--set', 'checkpoint_every=3', 'log_every=1', 'sample_every=100', 'sigma_every=100')


@pytest.fixture(scope='module', params=CUT)
def whole(request, tmp_path_factory):
    "An undisturbed run, and its arguments."
    out, more = tmp_path_factory.mktemp('whole')/'run', (*LONG, *CUT[request.param])
    process = spawn(*smoke(out, *more))
    text = process.communicate()[0]
    assert process.returncode == 0, text
    return out, more


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL], ids=['Ctrl-C', 'kill -9'])
def test_interrupted_run_ends_with_the_same_bits(whole, number, tmp_path, monkeypatch, capsys):
    whole, more = whole
    process = spawn(*smoke(tmp_path/'cut', *more))
    log, patience = tmp_path/'cut'/'log.jsonl', time.time() + 60
    while not (log.exists() and len(read_log(log)) > 4) and time.time() < patience: time.sleep(.01)
    process.send_signal(number)
    text = process.communicate(timeout=60)[0]
    stopped_at = read_checkpoint(newest_checkpoint(tmp_path/'cut'))['t']
    assert 3 <= stopped_at < 20
    if number == signal.SIGINT: assert process.returncode == 130 and f'stopped at step {stopped_at} and saved' in text and '--resume' in text
    code, _, err = shell(monkeypatch, capsys, 'sagan_train', '--resume', '--out', tmp_path/'cut')
    assert code == 0, err
    assert not differing(whole, tmp_path/'cut')
    logs = [read_log(o/'log.jsonl') for o in (whole, tmp_path/'cut')]
    keep = lambda o: {k: v for k, v in o.items() if k not in ('images_per_s', 'seconds_per_step', 'wait_share')}
    assert [keep(o) for o in logs[0]] == [keep(o) for o in logs[1]] and [o['t'] for o in logs[0]] == list(range(1, 21))


def test_twice_n_steps_are_n_and_n(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path/'half')
    assert shell(monkeypatch, capsys, 'sagan_train', '--resume', '--out', tmp_path/'half', '--steps', 8)[0] == 0
    assert shell(monkeypatch, capsys, *smoke(tmp_path/'whole', '--steps', 8))[0] == 0
    assert not differing(tmp_path/'half', tmp_path/'whole')
    assert shell(monkeypatch, capsys, 'sagan_train', '--resume', '--out', tmp_path/'whole')[0] == 0      # nothing left to do: no harm


def test_looking_does_not_change_training():
    "With every diagnostic at every step the weights are those of a run without any; also where u moves in evaluation mode."
    toy = Toy(32, 4, n=100)
    for change in ({}, dict(sn_update_g='always', sn_update_d='real', sn_detach=False)):
        cfg = replace(at_scale(PRESETS['t1_attn_16'], 'smoke'), n_classes=4, sigma_every=1, **change)
        with tempfile.TemporaryDirectory() as d:
            stream = Stream(toy, cfg.batch)
            watched = fit(make_gan(cfg), stream, [(1, Log(Path(d)/'log.jsonl', stream)), (1, lambda gan, log: sampler(gan))])
        alone = fit(make_gan(cfg), Stream(toy, cfg.batch))
        for net in ('G', 'D'):
            a, b = (getattr(g, net).state_dict() for g in (watched, alone))
            assert all(torch.equal(a[k], b[k]) for k in a)


# every row

@pytest.mark.parametrize('name', PRESETS)
def test_preset_trains(name):
    "At 32 px where its maps exist there; otherwise it says so. At 128 px its networks are built, without memory."
    cfg = replace(at_scale(PRESETS[name], 'smoke'), n_classes=4, steps=2)
    with torch.device('meta'): networks(PRESETS[name])
    if any(m > 16 for m in cfg.attn_at):
        with pytest.raises(Refused, match='maps to choose from: 8, 16'): make_gan(cfg)
        cfg = replace(cfg, res=128, width=8, batch=2)
    gan = fit(make_gan(cfg), Stream(Toy(cfg.res, 4, n=50), cfg.batch))
    assert gan.t == 2 and all(p.isfinite().all() for net in (gan.G, gan.D) for p in net.parameters())


# torch.compile, imports

def test_spectral_norm_compiles():
    "Two forwards and one backward, compiled, three updates: outputs, gradients and u as in eager."
    def net():
        torch.manual_seed(0)
        return torch.nn.Sequential(spectral_norm(torch.nn.Conv2d(3, 4, 3)), torch.nn.ReLU(), spectral_norm(torch.nn.Conv2d(4, 2, 1)))
    eager, compiled = net(), net()
    fast, x = torch.compile(compiled, backend='aot_eager', fullgraph=True), torch.randn(2, 3, 8, 8)
    for _ in range(3):
        for m, f in ((eager, eager), (compiled, fast)):
            m.zero_grad()
            (f(x).mean() - f(2*x).square().mean()).backward()
            with torch.no_grad():
                for p in m.parameters(): p -= .1*p.grad
    for (k, a), b in zip(eager.state_dict().items(), compiled.state_dict().values()): torch.testing.assert_close(a, b, msg=k)


@pytest.mark.parametrize('parts', [5, 9])
def test_parts_compile(parts):
    "There was a graph for each part, of which torch makes eight at most: then parts ran uncompiled, and their gradient failed."
    torch.manual_seed(0)
    eager = Generator(32, 2, 3, 8, attn_at=(16,), bn=dict(ghost=2), bn_last=dict(ghost=2))
    compiled, z, y = copy.deepcopy(eager), torch.randn(2*parts, 8), torch.arange(2*parts) % 3
    torch._dynamo.reset()
    frames = []
    def backend(graph, inputs):
        frames.append(torch.is_grad_enabled())
        return torch._dynamo.lookup_backend('aot_eager')(graph, inputs)
    compiled.compile(backend=backend)
    a, b = (in_parts(net, 2, z, y) for net in (eager, compiled))
    a.square().sum().backward(), b.square().sum().backward()
    torch.testing.assert_close(a, b)
    for (k, p), q in zip(eager.named_parameters(), compiled.parameters()): torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=k)
    assert len(frames) <= 4


@pytest.mark.parametrize('rows, detach', [(1, True), (2, False), (3, True)])
def test_few_rows_compile(rows, detach):
    "The default backend, one forward, then two before a backward: a weight of few rows, whose power step it would compute again from the moved u."
    needs_compiler()
    torch.manual_seed(0)
    eager = torch.nn.Sequential(spectral_norm(torch.nn.Linear(8, rows), detach=detach))
    compiled, x = copy.deepcopy(eager), torch.randn(4, 8)
    fast = torch.compile(compiled, fullgraph=True)
    for loss in (lambda f: f(x).pow(3).sum(), lambda f: f(x).pow(3).sum() - f(2*x).sum()):
        for m, f in ((eager, eager), (compiled, fast)):
            m.zero_grad()
            loss(f).backward()
        for a, b in zip(eager.parameters(), compiled.parameters()): torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)
    for (k, a), b in zip(eager.state_dict().items(), compiled.state_dict().values()): torch.testing.assert_close(a, b, msg=k)


def test_a_forward_at_rest_compiles():
    "update='real', the default backend: a forward that leaves u alone, then one that moves it, before one backward."
    needs_compiler()
    torch.manual_seed(0)
    eager = torch.nn.Sequential(spectral_norm(torch.nn.Linear(8, 3), update='real'))
    compiled, x = copy.deepcopy(eager), torch.randn(4, 8)
    fast = torch.compile(compiled, fullgraph=True)
    for m, f in ((eager, eager), (compiled, fast)):
        fake = f(x).pow(3).sum()
        with real_pass(m): real = f(2*x).sum()
        (fake - real).backward()
    for a, b in zip(eager.parameters(), compiled.parameters()): torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)
    for (k, a), b in zip(eager.state_dict().items(), compiled.state_dict().values()): torch.testing.assert_close(a, b, msg=k)


def test_fold_and_compiled_reach_the_networks():
    cfg = replace(PRESETS['paper'], res=32, width=8, n_classes=4, attn_at=(16,), batch=4, bn_ghost=0, ema=.9)
    folds = lambda fold: {m.fold for net in networks(replace(cfg, fold=fold)) for m in net.modules() if getattr(m, 'resample', None)}
    assert [folds(o) for o in ('box', 'kernel', 'none')] == [{'box'}, {'kernel'}, {'none'}]
    gan, plain = make_gan(replace(cfg, compiled=True)), make_gan(cfg)
    is_compiled = lambda *nets: [o._compiled_call_impl is not None for o in nets]
    assert is_compiled(gan.G, gan.D, gan.ema, sampler(gan), plain.G, plain.D) == [True, True, False, False, False, False]


def test_a_gpu_that_is_not_there_or_only_emulates(monkeypatch, tmp_path):
    "One old GPU, pretended: refused before anything is trained, for bfloat16 and for a second one."
    for name, value in (('is_available', True), ('device_count', 1), ('is_bf16_supported', False)):
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value, **kw: value)
    with pytest.raises(Refused, match="no device 'cuda:1': there are 1 here"): machine.pick_device('cuda:1')
    with pytest.raises(Refused, match='say --set precision=fp32'): cli.sagan_train('t1_none', scale='gpu', out=str(tmp_path/'run'))
    with pytest.raises(Refused, match='say --set precision=fp32'): cli.sagan_table('table1', data='toy', scale='gpu', out=str(tmp_path/'table'))
    assert machine.pick_device('auto') == torch.device('cuda') and options.run_settings(None, None, 'laptop', None, (), False, False, 'cuda').precision == 'fp32'


def test_compiled_on_a_gpu_without_a_compiler(monkeypatch):
    "Triton builds a piece of C when it runs first: known before there is a run folder."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.delenv('CC', raising=False)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(Refused, match='on a GPU needs triton and a C compiler'): machine.pick_device('cuda', compiled=True)
    assert machine.pick_device('cuda').type == 'cuda'


def test_networks_of_a_seed_leave_every_generator_as_it_was(monkeypatch):
    "Those of GPUs, too, which `torch.manual_seed` seeds."
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', lambda seed: pytest.fail('seeds GPUs'))
    state = torch.random.get_rng_state()
    a, b = (make_gan(replace(at_scale(PRESETS['t1_none'], 'smoke'), n_classes=4)).G for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state) and torch.equal(a.linear.bias, b.linear.bias)
    assert torch.equal(a.linear.parametrizations.weight.original, b.linear.parametrizations.weight.original)


@pytest.mark.parametrize('command', [('sagan_train',), ('sagan_table', 'table1')])
def test_compiled_without_a_compiler(command, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    process = spawn(*command, '--data', 'toy', '--scale', 'smoke', '--device', 'cpu', '--set', 'compiled=true', '--out', tmp_path/'run', stderr=subprocess.PIPE)
    _, err = process.communicate()
    assert process.returncode == 1 and 'needs a C++ compiler' in err and err.count('\n') == 1 and not (tmp_path/'run').exists(), err


def test_the_front_door_is_light():
    "`import sagan_nb` loads no torch; its names are there, listed; none is that of a chapter."
    code = '''import sys, time
start = time.process_time()
import sagan_nb
seconds = time.process_time() - start
assert not {'torch', 'numpy', 'importlib.metadata'} & {*sys.modules} and {*sagan_nb.DOORS} <= {*dir(sagan_nb)}
import sagan_nb.train, sagan_nb.spectral_norm
from sagan_nb.networks import Generator
for name in sagan_nb.DOORS: assert callable(getattr(sagan_nb, name)) or name == 'PRESETS', name
assert sagan_nb.Generator is Generator and sagan_nb.train.__name__ == 'sagan_nb.train' and sys.modules['sagan_nb.machinery.door'].open_run is sagan_nb.open_run
try: sagan_nb.no_such_name
except AttributeError as e: assert 'no_such_name' in str(e)
print(seconds)'''
    seconds = [float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    assert min(seconds) < .02, seconds


def test_networks_import_without_the_rest():
    code = 'import sys, sagan_nb.networks; print([m for m in ("matplotlib", "torchvision", "PIL", "scipy", "rich", "nbdev") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# real pictures

def real(name):
    if not (DATA/name).exists(): pytest.skip(f'{name} is not on this machine')
    return DATA/name


def test_unlabelled_folder(tmp_path, monkeypatch, capsys):
    from PIL import Image
    toy, folder = Toy(32, 2, n=20), tmp_path/'pictures'
    folder.mkdir()
    for i in range(20): Image.fromarray(toy.batch([i])[0][0].permute(1, 2, 0).numpy()).save(folder/f'{i}.png')
    code, out, err = shell(monkeypatch, capsys, *smoke(tmp_path/'run', '--data', folder, '--unlabelled'))
    assert code == 0, err
    cfg = from_json((tmp_path/'run'/'config.json').read_text())
    assert (cfg.n_classes, cfg.head) == (0, 'none')
    assert shell(monkeypatch, capsys, 'sagan_sample', tmp_path/'run', '--n', 5, '--out', tmp_path/'s.png')[0] == 0
    assert shell(monkeypatch, capsys, 'sagan_train', '--resume', '--out', tmp_path/'run', '--steps', 5)[0] == 0


@pytest.mark.parametrize('name, res, classes, sub', [('cifar10-train.zip', 32, 10, ''), ('tiny-imagenet-20.zip', 64, 20, ':train')])
def test_real_pictures(name, res, classes, sub, tmp_path, monkeypatch, capsys):
    "A short run on a thousand real pictures: classes found, pictures neither flat nor noise, a grid."
    few = tmp_path/'few.zip'
    with zipfile.ZipFile(real(name)) as z, zipfile.ZipFile(few, 'w') as out:
        seen = {}
        for o in z.namelist():
            kind = o.rsplit('/', 1)[0]
            if o.endswith(('jpg', 'JPEG')) and kind.startswith('train') and seen.get(kind, 0) < 1000//classes:
                seen[kind] = seen.get(kind, 0) + 1
                out.writestr(o, z.read(o))
    code, out, err = shell(monkeypatch, capsys, *smoke(tmp_path/'run', '--data', few, '--steps', 30, '--set', f'res={res}', 'batch=16', 'lr_factor=4'))
    assert code == 0, err
    assert f'{classes} classes' in out and '1,000 pictures' in out
    records = {o['metric']: o for o in json.loads((tmp_path/'run'/'metrics.json').read_text())}
    assert .1 < records['diversity']['real'] < 1 and records['diversity']['value'] > .01
    assert (tmp_path/'run'/'samples.png').stat().st_size > 20_000


def clocked(monkeypatch, timed, *seconds):
    "Let an update take a second where it is timed, ten for the second of them, and let training end at these times."
    ticks, ends = itertools.chain([0], itertools.count(10, timed)).__next__, iter((0, *seconds)).__next__
    monkeypatch.setattr(options, 'time', SimpleNamespace(time=time.time, monotonic=time.monotonic, perf_counter=ticks))
    monkeypatch.setattr(cli, 'time', SimpleNamespace(time=time.time, monotonic=ends))


def test_a_run_is_as_long_as_fits(tmp_path, monkeypatch, capsys):
    "With a clock of one second an update twelve fit, ten are made, and the run is that of --steps 10."
    monkeypatch.setattr(cli, 'summarise', lambda *args: [])
    assert shell(monkeypatch, capsys, *smoke(tmp_path/'a', '--steps', 10))[0] == 0
    clocked(monkeypatch, 1, 11)
    code, out, err = shell(monkeypatch, capsys, *smoke(tmp_path/'b', '--steps', 15, '--within', .2))
    assert code == 0 and 'an update takes 1 s here: 10 of 15 fit into 0.2 minutes; --resume --steps 15 makes the rest' in out, err
    assert not differing(tmp_path/'a', tmp_path/'b') and 'on to' not in out
    clocked(monkeypatch, 1, 5)
    code, out, err = shell(monkeypatch, capsys, *smoke(tmp_path/'c', '--steps', 5, '--within', .1))
    assert code == 0 and '5 of 5 fit into 0.1 minutes\n' in out, err


def test_a_run_that_was_timed_on_a_busy_machine_is_lengthened(tmp_path, monkeypatch, capsys):
    "Ten seconds an update while it is timed, one while it is trained: 10 updates end at 10 s, so 40 s hold 40; 25 are wanted. The run is that of --steps 25."
    monkeypatch.setattr(cli, 'summarise', lambda *args: [])
    assert shell(monkeypatch, capsys, *smoke(tmp_path/'a', '--steps', 25))[0] == 0
    clocked(monkeypatch, 10, 10, 25)
    code, out, err = shell(monkeypatch, capsys, *smoke(tmp_path/'b', '--steps', 25, '--within', 2))
    assert code == 0 and '10 of 25 fit' in out and '10 updates took 0.2 of 2 minutes, less than timed: on to 25 of 25' in out, err
    assert not differing(tmp_path/'a', tmp_path/'b') and [o['t'] for o in read_log(tmp_path/'b'/'log.jsonl')] == [*range(1, 26)]
    clocked(monkeypatch, 10, 10, 22, 24)
    code, out, err = shell(monkeypatch, capsys, *smoke(tmp_path/'c', '--steps', 50, '--within', .4))
    assert code == 1 and 'not ten updates' in err


@pytest.mark.parametrize('seconds, left, said', [({4: 8., 2: 1., 1: 1.1}, 2, 'by 2 of 4 an update is 8.0 times as fast'), ({4: 1., 2: .6, 1: .7}, 4, ''),
                                                 ({4: 8., 2: 7., 1: .5}, 1, 'by 1 of 4 an update is 16.0 times as fast'), ({1: 2.}, 1, '')])
def test_threads_that_hold_up_each_other_are_left_out(tmp_path, monkeypatch, capsys, seconds, left, said):
    "On a busy machine, on a CPU, by one rank, and where nobody said how many there are to be; what an update takes is then by those that stay."
    before = torch.get_num_threads()
    monkeypatch.setattr(options, 'time_update', lambda *args: seconds[torch.get_num_threads()])
    monkeypatch.setattr(options, 'agree_on', lambda cfg: None)
    there = max(seconds)
    try:
        for own, world, device, n in (('4', 1, 'cpu', there), (None, 2, 'cpu', there), (None, 1, 'cuda', there), (None, 1, 'cpu', left)):
            if own is None: monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
            else: monkeypatch.setenv('OMP_NUM_THREADS', own)
            monkeypatch.setattr(options, 'place', lambda: (0, world))
            torch.set_num_threads(there)
            fit = options.steps_within(10., Config(steps=10**4), None, device)
            assert (torch.get_num_threads(), fit) == (n, int(600/seconds[n])//10*10)
            words = capsys.readouterr().out
            assert ('hold each other up' in words) == (n < there)
        assert said in words
    finally: torch.set_num_threads(before)


@pytest.mark.parametrize('spent, done, wanted, n', [(60, 10, 100, 20), (60, 10, 15, 15), (100, 10, 100, 10), (101, 10, 11, 11), (119, 10, 100, 10), (240, 10, 100, 10), (60, 100, 100, 100)])
def test_what_still_fits(spent, done, wanted, n): assert options.steps_still_within(2, spent, done, wanted) == n


# the main job as a whole: `make long`

@pytest.mark.long
def test_main_job(tmp_path):
    "The README's first command: under five minutes on two cores, classes told apart, z used."
    began = time.time()
    process = spawn('sagan_train', *start.MAIN_JOB, *start.SHORT, '--out', tmp_path/'run')
    text = process.communicate()[0]
    assert process.returncode == 0, text[-2000:]
    m = {o['metric']: o for o in json.loads((tmp_path/'run'/'metrics.json').read_text())}
    print(json.dumps({k: (o['value'], o.get('real')) for k, o in m.items()}), f'{time.time() - began:.0f} s', os.cpu_count(), 'cores')
    print(next(o for o in text.splitlines() if o.startswith('an update takes')))
    assert m['diversity']['value'] > .8*m['diversity']['real'] and m['long_range_mi']['value'] > .3
    assert m['classifier score']['value'] > 1.5                # 1: the class is ignored
    assert time.time() - began < 300


def test_a_log_has_names_and_an_old_one_gets_them(tmp_path):
    "Lists of two or four numbers, as they were written until NUMERICS 2; the residual control has no map to look with."
    old = [dict(t=1, usage_G={'16': [.1, .2, 7., 12.]}, usage_D={'8': [.3, .4]}), dict(t=2, usage_G={'16': dict(gamma=.1)})]
    (tmp_path/'log.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in old) + '{"t": 3, "usage_')
    found = read_log(tmp_path/'log.jsonl')
    assert found == [dict(t=1, usage_G={'16': dict(gamma=.1, ratio=.2, entropy=7., distance=12.)}, usage_D={'8': dict(gamma=.3, ratio=.4)}), old[1]]
    for block, names in (('attention', ['gamma', 'ratio', 'entropy', 'distance']), ('residual', ['gamma', 'ratio'])):
        G = Generator(32, 8, 3, 8, attn_at=(16,), block=block)
        G.extra['16'].gamma.data.fill_(.5)
        before = {k: t.clone() for k, t in G.state_dict().items()}
        use = attention_usage(G, torch.randn(2, 8), torch.tensor([0, 1]))
        assert [*use['16']] == names and use['16']['gamma'] == .5 and use['16']['ratio'] > 0
        assert G.training and all(torch.equal(t, G.state_dict()[k]) for k, t in before.items()) and not G.extra['16']._forward_pre_hooks
