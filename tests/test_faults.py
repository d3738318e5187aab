"What a run survives: flipped bits, kills, a full disk, two owners, numbers that are not finite. Nothing is lost, nothing damaged is used."
import errno
import io
import json
import os
import random
import re
import resource
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from filelock import FileLock

from commands import environment, shell, words
from sagan_nb.config import PRESETS, at_scale, from_json
from sagan_nb.core import Refused
from sagan_nb.data import Toy
from sagan_nb.machinery import door, machine, runs
from sagan_nb.machinery.arrays import find_arrays
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.checkpoints import (Diverged, Keeper, checkpoints_of, disk_price, every_tensor, load_checkpoint, read_checkpoint, read_newest,
                                            save_checkpoint, worth_keeping)
from sagan_nb.machinery.files import CacheWarning, append_line, read_arrays, read_cache, write_cache
from sagan_nb.machinery.listing import list_pictures
from sagan_nb.machinery.options import fault_line
from sagan_nb.machinery.packed import open_packed
from sagan_nb.machinery.packs import pack
from sagan_nb.machinery.pictures import decode, decode_bytes
from sagan_nb.machinery.runs import Stopped, kept_samples, read_log, train
from sagan_nb.train import make_gan, sampler
from tools.faults.crash import forked
from tools.faults.damage import Kind, damage
from tools.faults.layer import Layer
from tools.faults.works import WORKS, check_whole

ROOT = Path(__file__).resolve().parents[1]

TOY = Toy(32, 4, n=50)
CFG = replace(at_scale(PRESETS['t1_attn_16'], 'smoke'), n_classes=4, width=1, attn_at=(8,), steps=6, ema=.9, ema_start=1, standing=16, checkpoint_every=2, sample_every=6,
              log_every=1, sigma_every=100)
PLACE = SimpleNamespace(state_dict=lambda: dict(t=0))


def at(step, do):
    "A hook that does something after one step."
    return [(1, lambda gan, log: do(gan) if gan.t == step else None)]


def halt(error):
    def do(gan): raise error
    return do


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "An undisturbed run."
    out = tmp_path_factory.mktemp('run')/'whole'
    train(CFG, TOY, out)
    return out


def files(run): return {p: p.read_bytes() for p in run.rglob('*') if p.is_file() and p.suffix != '.lock'}


def last_bytes(run): return checkpoints_of(run)[-1].read_bytes()


# the suite of tools/faults, in its short form; `make long` runs more of the same

def suite(part, out, *args):
    "Run a part of it in a process of its own: its rows."
    done = subprocess.run([sys.executable, '-m', f'tools.faults.{part}', '--out', out, *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads((out/f'{part}.json').read_text())['rows']


def test_killed_anywhere(tmp_path):
    "At least 20 processes end by SIGKILL, or as if the power went: the same final bits, nothing half written under a final name, no lock left."
    rows = suite('crash', tmp_path, '--kills', 20)
    assert sum(o['tries'] for o in rows) >= 20 and {o['fault'].split()[0] for o in rows} == {*WORKS} and {o['how'] for o in rows} == {'kill', 'power', 'delay'}


def test_what_a_program_needs_is_taken_away(tmp_path):
    "Each time one line that says what happened; nothing is lost, and it goes on afterwards."
    rows = {o['fault']: o for o in suite('scarce', tmp_path, '--tries', 20)}
    assert len(rows) >= 8 and sum(len(o['said']) for o in rows.values()) > 8
    if 'a small disk' not in rows: pytest.skip('no small file system can be mounted here')


@contextmanager
def handles(spare):
    "No more files than are open now, and so many."
    before, free = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(1)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, before[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize('spare', [0, 1, 2, 5])
def test_too_many_open_files_are_not_taken_for_damage(whole, tmp_path, spare):
    "Whatever reads a file says that no more can be opened, never that this one is damaged, empty or missing."
    pictures = tmp_path/'pictures'
    for k in 'ab': (pictures/k).mkdir(parents=True)
    for i in range(4): Image.new('RGB', (16, 16), (i*60, 9, 9)).save(pictures/'ab'[i % 2]/f'{i}.png')
    pack(pictures, 16, tmp_path/'packed')
    listing = list_pictures(str(pictures))
    write_cache(tmp_path/'kept.safetensors', dict(x=torch.ones(3)))
    np.savez(tmp_path/'x.npz', arr_0=np.zeros((2, 16, 16, 3), np.uint8))
    last = checkpoints_of(whole)[-1]
    reads = [lambda: read_checkpoint(last), lambda: read_newest(whole), lambda: door.open_run(whole), lambda: list_pictures(str(pictures)), lambda: open_packed(tmp_path/'packed'),
             lambda: read_cache(tmp_path/'kept.safetensors'), lambda: read_arrays(tmp_path/'x.npz'), lambda: find_arrays(tmp_path/'x.npz'),
             lambda: kept_samples(whole), lambda: read_log(whole/'log.jsonl'), lambda: door.is_checkpoint(last), *[lambda: decode(listing, 'a/0.png', 16)]*(not spare)]
    for read in reads:
        with handles(spare), warnings.catch_warnings():
            warnings.simplefilter('error')
            try: found = read()
            except OSError as e: found = e
        assert isinstance(found, OSError) and found.errno == errno.EMFILE, found
        assert 'no file that was there is lost' in fault_line(found)
    for read in reads: read()


def test_every_kind_of_file_damaged(tmp_path):
    "Cut off at every hundredth, and with bits flipped: refused or named, never other values where a hash guards them."
    rows = suite('damage', tmp_path, '--flips', 20)
    assert len(rows) >= 40 and sum(o['tries'] for o in rows) > 2000 and not any(o['outcomes'].get('other') for o in rows if o['guarded'])


PLANTED = """
import os, sys
from pathlib import Path
from sagan_nb.core import atomic_write
from tools.faults.layer import Layer
folder, fault, at, way = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
with Layer(folder, at, int(fault) if fault.isdecimal() else fault).on():
    try:
        if way == 'in place': (folder/'a.json').write_text('[1, 2, 3]')
        else:
            with atomic_write(folder/'a.json') as part: part.write_text('[1, 2, 3]')
    except OSError as e: sys.exit(e.errno)
"""


@pytest.mark.parametrize('fault, at, way, code, whole', [('kill', 2, 'in place', -9, False), ('kill', 2, 'atomic', -9, True), ('power', 2, 'in place', -9, False), ('28', 1, 'in place', 28, True),
                                                         ('28', 2, 'in place', 28, False), ('28', 2, 'atomic', 28, True), ('30', 5, 'atomic', 30, True), ('kill', 9, 'in place', 0, True)])
def test_the_layer_finds_writers_that_write_in_place(tmp_path, fault, at, way, code, whole):
    (tmp_path/'a.json').write_text('[1, 2]')
    assert subprocess.run([sys.executable, '-c', PLANTED, tmp_path, fault, str(at), way], cwd=ROOT).returncode == code
    assert (check_whole(tmp_path) == []) == whole


def test_damage_to_what_nothing_guards_is_found(tmp_path):
    "The harness itself: a reader that believes anything, and one that ends in a traceback."
    path = tmp_path/'a.json'
    path.write_text('{"a": 12345}')
    rng = random.Random(0)
    believes = damage('it', Kind(path, lambda: path.read_bytes().hex()), rng, 10)
    raises = damage('it', Kind(path, lambda: json.loads(path.read_text())), rng, 10)
    assert all('silently other' in w for w in believes[1]['wrong']) and len(believes[1]['wrong']) == 10
    assert any('a traceback' in w for w in raises[0]['wrong']) and path.read_text() == '{"a": 12345}'


# a checkpoint is whole or refused

@pytest.fixture
def checkpoint(tmp_path): return save_checkpoint(make_gan(CFG), PLACE, tmp_path/'step_0000000.pt')


def test_a_flipped_bit_anywhere_is_refused(checkpoint):
    content, rng = checkpoint.read_bytes(), random.Random(0)
    ends = [*range(0, 40, 5), *range(len(content) - 90, len(content), 3)]        # the headers, and the hash itself
    for place in (*ends, *rng.choices(range(len(content)), k=40)):
        checkpoint.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1:])
        with pytest.raises(Refused, match='not a readable checkpoint'): read_checkpoint(checkpoint)
    with pytest.raises(Refused): door.open_run(checkpoint)
    checkpoint.write_bytes(content)
    assert read_checkpoint(checkpoint)['t'] == 0


def test_a_truncated_checkpoint_is_refused(checkpoint):
    content = checkpoint.read_bytes()
    for size in (*range(0, len(content), len(content) // 50), len(content) - 64, len(content) - 1):
        checkpoint.write_bytes(content[:size])
        with pytest.raises(Refused, match='not a readable checkpoint'): read_checkpoint(checkpoint)


def test_a_resumed_run_ends_with_the_same_file(whole, tmp_path):
    "Stopped between checkpoints; the settings of the first part differ in length. Equal states are equal bytes."
    with pytest.raises(Stopped): train(CFG, TOY, tmp_path/'run', hooks=at(3, halt(Stopped())))
    train(CFG, TOY, tmp_path/'run', resume=True)
    assert last_bytes(whole) == last_bytes(tmp_path/'run')


def test_a_checkpoint_of_an_earlier_version_opens(whole, tmp_path):
    "Without statistics and without a hash: they are made anew, and that is said; training goes on from it."
    state = read_checkpoint(checkpoints_of(whole)[-1])
    old = tmp_path/'old.pt'
    torch.save({k: v for k, v in state.items() if k != 'sampling'}, old)
    with pytest.warns(CacheWarning, match='of an earlier version') as said: G = door.open_run(old).G
    want = sampler(load_checkpoint(old)).state_dict()
    assert len(said) == 1 and all(torch.equal(v, want[k]) for k, v in G.state_dict().items())
    old.write_bytes(old.read_bytes()[:-1])
    with pytest.raises(Refused, match='not a readable checkpoint'): load_checkpoint(old)


def test_what_is_stored_for_sampling_is_what_the_sampler_would_have(whole):
    G, want = door.open_run(whole).G, sampler(load_checkpoint(checkpoints_of(whole)[-1]))
    assert all(torch.equal(v, G.state_dict()[k]) for k, v in want.state_dict().items())


def spoil(gan, part):
    if part == 'buffer': next(b for n, b in gan.G.named_buffers() if n.endswith('var')).view(-1)[0] = float('nan')
    if part == 'adam': next(iter(gan.opt_g.state.values()))['exp_avg_sq'].view(-1)[0] = float('inf')
    if part == 'ema': next(gan.ema.parameters()).data.view(-1)[0] = float('nan')
    if part == 'u': next(b for n, b in gan.D.named_buffers() if n.endswith('.u'))[0] = float('-inf')


@pytest.mark.parametrize('part, name', [('buffer', 'G.'), ('adam', 'opt_g.state.0.exp_avg_sq'), ('ema', 'ema.'), ('u', '')])
def test_numbers_that_are_not_finite_are_not_saved(part, name, tmp_path):
    "Planted after step 3, after the checkpoint of step 2."
    cfg = replace(CFG, log_every=100, sample_every=100)
    with pytest.raises(Diverged, match=rf'at step \d {name}.* is not finite; the last good checkpoint is .*step_0000002.pt'):
        train(cfg, TOY, tmp_path/'run', hooks=at(3, lambda gan: spoil(gan, part)))
    for path in checkpoints_of(tmp_path/'run'):
        assert all(v.isfinite().all() for _, v in every_tensor(read_checkpoint(path)) if v.is_floating_point())


@pytest.mark.parametrize('synced', [True, False])
def test_a_power_cut_takes_what_was_not_synced_and_no_more(synced, tmp_path):
    "The layer of tools/faults: ten bytes are there before, five are added, and the power goes at the next operation."
    path, left = tmp_path/'a', set()
    for seed in range(20):
        path.write_bytes(b'0123456789')
        def child():
            with Layer(tmp_path, 4 if synced else 3, 'power', seed=seed).on(), open(path, 'ab') as f:
                f.write(b'abcde')
                f.flush()
                if synced: os.fsync(f.fileno())
                os.unlink(path)
        assert forked(child, tmp_path/'said') == -9
        left.add(path.read_bytes())
    whole = b'0123456789abcde'
    assert left == {whole} if synced else len(left) > 3 and all(whole.startswith(o) and len(o) >= 10 for o in left)


# which are kept

def test_a_checkpoint_that_comes_before_a_line_of_the_log_says_where_it_began(tmp_path):
    "Which losses were not finite first, and from which step on: a weight is found only when it is about to be saved."
    with pytest.raises(Diverged, match=r'at step 4 .* is not finite \(loss_g from step 1 on\); no checkpoint'):
        train(replace(CFG, checkpoint_every=4, log_every=100, sample_every=100, lr_d=1e30), TOY, tmp_path/'run')


def test_checkpoints_are_kept_spaced_in_log_time():
    "As a run of 1,000 steps makes them: what is kept at the end, and that nothing is missed on the way."
    kept = set()
    for t in range(1, 1001):
        kept = worth_keeping(kept | {t}, 1000)
        assert {t, max(t - 1, 1)} <= kept and len(kept) <= 12
    assert kept == {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 999, 1000}
    assert worth_keeping([300, 600, 900, 1200, 1300], 1300) == {300, 600, 900, 1200, 1300}


def test_a_collapse_overwrites_no_good_state_and_the_price_is_right(tmp_path):
    def collapse(gan, log):
        if gan.t >= 5: gan.G.conv.bias.data.fill_(50.)
    cfg = replace(CFG, steps=24, sample_every=24, standing=0)
    train(cfg, TOY, tmp_path/'run', hooks=[(1, collapse)])
    found = checkpoints_of(tmp_path/'run')
    assert [p.name for p in found] == [f'step_{t:07}.pt' for t in (2, 4, 8, 14, 22, 24)]
    n, size = disk_price(cfg)
    stored = sum(v.nbytes for _, v in every_tensor(read_checkpoint(found[-1])))
    assert n == len(found) and .9 < stored / size < 1.1


# what to do next

@pytest.mark.parametrize('after, words', [(0, 'the same command goes on'), (1, 'what goes on, once there is a remedy, is .*sagan_train --resume --out')])
def test_a_fault_before_the_first_step_says_what_goes_on(tmp_path, monkeypatch, capsys, after, words):
    "The disk is full before the folder of a run is made, or after: then the command that began it would be refused."
    out, more = tmp_path/'run', ('t1_attn_16', '--scale', 'smoke', '--steps', 1)
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device', str(out/'data.json'))
    with monkeypatch.context() as m:
        m.setattr(runs, 'fill_folder' if after else 'check_free', full)
        code, _, err = shell(m, capsys, 'sagan_train', *more, '--out', out)
        assert code == 1 and re.fullmatch(rf'sagan_train: {out}/data.json: No space left on device; no file that was there is lost, and {words}.*\n', err), err
        if after: assert 'the same command goes on' in shell(m, capsys, 'sagan_train', '--resume', '--out', out)[2]
    monkeypatch.setattr('sagan_nb.machinery.cli.summarise', lambda *args: None)
    code, _, err = shell(monkeypatch, capsys, 'sagan_train', *(('--resume',) if after else more), '--out', out)
    assert code == 0 and checkpoints_of(out), err


@pytest.mark.parametrize('closed', ['>&-', '2>&-'])
def test_a_shell_may_close_what_is_printed_to(tmp_path, closed):
    "No stream at all, as some daemons start a program: training and measuring go on."
    for args in (('sagan_train', 't1_attn_16', '--scale', 'smoke', '--steps', 2, '--out', 'run'), ('sagan_eval', 'run', '--metrics', 'diversity', '--n_fake', 20)):
        done = subprocess.run(['bash', '-c', f'exec "$@" {closed}', 'bash', *words(*args)], cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path/'run'/'metrics.json').exists()


# log and settings

def test_a_log_is_only_added_to(tmp_path):
    "Lines made anew count as they are there last; half a line of a crash is closed off and left out."
    path = tmp_path/'log.jsonl'
    assert read_log(path) == []
    for t in (1, 2, 3): append_line(path, dict(t=t, first=True))
    with path.open('a') as f: f.write('{"t": 4, "fi')
    for t in (2, 3): append_line(path, dict(t=t, first=False))
    assert [(o['t'], o['first']) for o in read_log(path)] == [(1, True), (2, False), (3, False)]
    assert len(path.read_bytes().splitlines()) == 6 and [o['t'] for o in read_log(path, 2)] == [1, 2]


@pytest.mark.parametrize('wrong', [dict(usage_G='used'), dict(usage_D=[1]), dict(usage_G={'16': 3.}), dict(usage_G={'16': {}}), dict(usage_G={'16': dict(ratio='a')}), dict(norms_G={}),
    dict(norms_D={'conv': [1.]}), dict(raw_G=1.), dict(loss_d='low'), dict(d_real=None), dict(seconds_per_step={}), dict(distance=True), dict(diversity=[])], ids=str)
def test_a_log_that_holds_something_else_is_named(wrong, tmp_path):
    "Found by fuzzing: a line without a hash, whose maps are not numbers by name."
    (tmp_path/'log.jsonl').write_text(json.dumps(dict(t=1, loss_d=1.)) + '\n' + json.dumps(dict(t=2, **wrong)) + '\n')
    with pytest.raises(Refused, match=f'damaged: {next(iter(wrong))} of step 2'): read_log(tmp_path/'log.jsonl')


@pytest.mark.parametrize('what', ['log', 'checkpoint'])
def test_a_failed_resume_leaves_log_and_settings(what, whole, tmp_path, monkeypatch):
    "The disk is full when it writes first; then it is not, and the run ends as one that was never disturbed."
    cfg, run = replace(CFG, steps=4), tmp_path/'run'
    train(cfg, TOY, run)
    before = files(run)
    def full(*args): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        if what == 'log': m.setattr(runs, 'append_line', full)
        else: m.setattr(os, 'fsync', full)
        with pytest.raises(OSError, match=r'No space left on device; the last good checkpoint is .*step_0000004.pt'): train(CFG, TOY, run, resume=True)
    after = files(run)
    log = run/'log.jsonl'
    assert after.keys() == before.keys() and after.pop(log).startswith(before.pop(log)) and after == before
    train(CFG, TOY, run, resume=True)
    assert last_bytes(run) == last_bytes(whole) and [o['t'] for o in read_log(log)] == [1, 2, 3, 4, 5, 6]
    assert from_json((run/'config.json').read_text()).steps == 6


def test_killed_between_the_last_checkpoint_and_its_settings(tmp_path):
    "Found by the two hundredth kill: a run that was lengthened has its last checkpoint, and config.json says what it was before. Gone on with, there is no step left to make; the settings are made up for."
    run = tmp_path/'run'
    train(replace(CFG, steps=4), TOY, run)
    class Killed(BaseException): pass
    def kill(self, gan): raise Killed
    with pytest.MonkeyPatch.context() as m, pytest.raises(Killed):
        m.setattr(Keeper, 'write_settings', kill)
        train(CFG, TOY, run, resume=True)
    assert from_json((run/'config.json').read_text()).steps == 4 and read_checkpoint(checkpoints_of(run)[-1])['t'] == 6
    train(CFG, TOY, run, resume=True)
    assert from_json((run/'config.json').read_text()).steps == 6


def test_killed_before_the_first_checkpoint(whole, tmp_path):
    "The run begins again, with the settings it had, and no others."
    run = tmp_path/'run'
    with pytest.raises(KeyboardInterrupt): train(replace(CFG, checkpoint_every=100), TOY, run, hooks=at(2, halt(KeyboardInterrupt())))
    assert not checkpoints_of(run)
    (run/'data.json').unlink()                                                   # killed even earlier
    with pytest.raises(Refused, match='lr_g was'): train(replace(CFG, lr_g=1.), TOY, run, resume=True)
    train(CFG, TOY, run, resume=True)
    assert last_bytes(run) == last_bytes(whole) and (run/'data.json').exists() and [o['t'] for o in read_log(run/'log.jsonl')] == [1, 2, 3, 4, 5, 6]


def test_killed_while_the_folder_is_made(tmp_path):
    "Nothing is there but a lock that nobody holds and half of the settings: a new run may begin."
    run = tmp_path/'run'
    run.mkdir()
    for name in ('.lock', 'config.json.17.part'): (run/name).touch()
    train(replace(CFG, steps=1), TOY, run)
    assert checkpoints_of(run) and not [*run.rglob('*.part')]
    with pytest.raises(Refused, match='is there already'): train(CFG, TOY, run)


def test_a_run_has_one_owner(tmp_path):
    run, cfg = tmp_path/'run', replace(CFG, steps=2)
    train(cfg, TOY, run)
    before = files(run)
    with FileLock(run/'.lock'), pytest.raises(Refused, match='another process is at it'): train(CFG, TOY, run, resume=True)
    assert files(run) == before
    train(CFG, TOY, run, resume=True)                                            # the file is there, nobody holds it


def test_a_damaged_later_checkpoint_goes_when_the_run_passes_it(tmp_path):
    gan = make_gan(CFG)
    (tmp_path/'checkpoints').mkdir()
    for t in (5, 7): (tmp_path/'checkpoints'/f'step_{t:07}.pt').write_bytes(b'damaged')
    gan.t = 6
    Keeper(tmp_path, PLACE)(gan)
    assert [p.name for p in checkpoints_of(tmp_path)] == ['step_0000005.pt', 'step_0000006.pt']


# writers

def test_a_file_is_synced_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ('fsync', 'replace'):
        monkeypatch.setattr(os, name, lambda *a, name=name, real=getattr(os, name): (calls.append(name), real(*a))[1])
    with atomic_write(tmp_path/'a') as part: part.write_text('b')
    assert calls == ['fsync', 'replace', 'fsync'] and os.listdir(tmp_path) == ['a']


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path/'a.txt'
    with atomic_write(path) as part: part.write_text('first')
    with pytest.raises(OSError) as failed, atomic_write(path) as part:
        part.write_text('half of the sec')
        raise OSError('disk full')
    assert failed.value.filename == str(path)
    assert path.read_text() == 'first' and os.listdir(tmp_path) == ['a.txt']


def test_no_writer_of_a_run_folder_writes_in_place(whole, monkeypatch):
    "Where the last step of a write fails, every file is as it was: samples, figures, metrics, settings, report."
    from sagan_nb.core import save_fig
    from sagan_nb.machinery.evaluate import save_records
    from sagan_nb.machinery.report import report
    import matplotlib.pyplot as plt
    def full(*args): raise OSError(28, 'No space left on device')
    gan = load_checkpoint(checkpoints_of(whole)[-1])
    (whole/'metrics.json').write_text('[]')
    (whole/'report.html').write_text('old')
    before = files(whole)
    monkeypatch.setattr(os, 'replace', full)
    monkeypatch.setattr('sagan_nb.machinery.report.sections', lambda *args: {})
    fig = plt.figure()
    writers = [lambda: runs.Sampler(whole)(gan), lambda: Keeper(whole, PLACE)(gan), lambda: save_fig(fig, whole/'curves.png'),
               lambda: save_records(whole/'metrics.json', []), lambda: report(whole, source=TOY, features=object())]
    for write in writers:
        with pytest.raises(OSError, match='No space'): write()
        assert files(whole) == before
    plt.close(fig)


def test_a_commit_that_git_will_not_say_is_unknown(monkeypatch):
    "A checkout of another user: git refuses. Neither '' nor \"nothing changed\" would be true."
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kw: SimpleNamespace(returncode=128, stdout=''))
    found = machine.environment('cpu')
    assert (found['commit'], found['changed']) == (None, None)


# a PNG whose checksum is wrong

def test_a_png_with_other_pixels_is_named(tmp_path):
    "Found by flipping bits: Pillow stops at the last pixel, before zlib's own check, and reads no checksum of image data."
    t = np.linspace(0, 6, 120)
    x = ((np.sin(t[:, None, None]*[1, 2, 3]) + np.cos(t[None, :, None]))*60 + 120 + np.random.default_rng(0).normal(0, 6, (120, 120, 3))).clip(0, 255).astype(np.uint8)
    (tmp_path/'samples').mkdir()
    path = tmp_path/'samples'/'step_0000001.png'
    Image.fromarray(x).save(path)
    whole = path.read_bytes()
    def flipped(byte, bit): return whole[:byte] + bytes([whole[byte] ^ 1 << bit]) + whole[byte + 1:]
    def pillow(data):
        try: return np.array(Image.open(io.BytesIO(data)).convert('RGB'))
        except Exception: return x
    other = [data for byte in range(len(whole) - 400, len(whole) - 20) for bit in range(8) if not np.array_equal(pillow(data := flipped(byte, bit)), x)]
    assert other and np.array_equal(decode_bytes(whole, 120), x.transpose(2, 0, 1)) and torch.equal(kept_samples(tmp_path)[1], torch.from_numpy(x).permute(2, 0, 1))
    for data in other:
        with pytest.raises(ValueError, match='broken PNG'): decode_bytes(data, 120)
    path.write_bytes(other[0])
    with pytest.raises(Refused, match='damaged .*broken PNG'): kept_samples(tmp_path)
