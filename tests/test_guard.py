"A guard for long runs: it looks on the way, keeps the best, and acts on a collapse; numbers that are not finite are named by step and layer."
import errno
import os
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from commands import shell
from sagan_nb.config import at_scale, preset
from sagan_nb.core import Refused
from sagan_nb.train import make_gan
from sagan_nb.machinery import checkpoints, cli, guard
from sagan_nb.machinery.checkpoints import Diverged, checkpoints_of, disk_price, read_checkpoint, step_of
from sagan_nb.machinery.curve import give_name
from sagan_nb.machinery.ending import ENDINGS, summarise
from sagan_nb.machinery.options import exit_code
from sagan_nb.machinery.report import incidents_html
from sagan_nb.machinery.runs import InUse, Stopped, read_log, train
from tools.faults.works import Place, settings, small

STEPS = 12


@pytest.fixture(scope='module')
def place(tmp_path_factory): return Place(tmp_path_factory.mktemp('place'))


def cfg_of(place, **own): return settings(place.source, steps=STEPS, standing=0, ema=0., ema_start=0, sample_every=2, **own)


def collapse_once(at, value=50.):
    "A hook: G draws one colour from this step on; once, whatever comes after."
    done = []
    def hook(gan, log):
        if gan.t == at and not done:
            done.append(at)
            gan.G.conv.bias.data.fill_(value)
    return [(1, hook)]


def run(place, out, hooks=(), **how):
    with small(place): return guard.train_guarded(cfg_of(place), place.source, out, hooks=hooks, every=2, features=place.features, **how)


def test_it_goes_on_and_notes(place, tmp_path):
    gan = run(place, tmp_path/'run', collapse_once(5))
    seen = guard.incidents(tmp_path/'run')
    assert gan.t == STEPS and len(seen) == 1 and seen[0]['t'] == 6 and seen[0]['good'] == 4 and seen[0]['action'] == 'go' and 'diversity at step 6' in seen[0]['words']
    page = incidents_html(tmp_path/'run')['Incidents']
    assert 'Samples at step 4' in page and 'it went on' in page and 'diversity' in page


def test_it_stops_with_the_good_state_named(place, tmp_path):
    with pytest.raises(Stopped, match=r'sign of collapse: diversity at step 6, .*; the last good checkpoint is .*good\.pt'): run(place, tmp_path/'run', collapse_once(5), action='stop')
    assert read_checkpoint(tmp_path/'run'/'checkpoints'/'good.pt')['t'] == 4 and step_of(checkpoints_of(tmp_path/'run')[-1]) == 6


def test_it_goes_back_and_ends_well(place, tmp_path, capsys):
    "With other noise from the good state on; what a collapsed run wrote is replaced, and a second resume has nothing to do."
    out = tmp_path/'run'
    gan = run(place, out, collapse_once(5), action='back')
    assert gan.t == STEPS and not any('collapse' in o for o in read_log(out/'curve.jsonl')) and [o['t'] for o in read_log(out/'log.jsonl')] == [*range(1, STEPS + 1)]
    assert [o['action'] for o in guard.incidents(out)] == ['back']
    whole = run(place, tmp_path/'whole')
    state, other = (read_checkpoint(checkpoints_of(p)[-1]) for p in (out, tmp_path/'whole'))
    assert not torch.equal(state['rng'], other['rng']) and whole.t == STEPS
    assert run(place, out, resume=True, action='back').t == STEPS


@pytest.mark.parametrize('action', ['back', 'go'])
@pytest.mark.parametrize('at', [5, 6])                           # the look that saw the collapse was at 6
def test_a_run_that_went_back_and_is_stopped_before_its_next_look_does_not_go_back_again(place, tmp_path, at, action):
    "The looks at what is behind us do not count, and the one that was missed is made."
    out, seen, stops = tmp_path/'run', [], []
    def stop(gan, log):
        if gan.t == at and guard.incidents(out) and not stops:
            stops.append(at)
            raise Stopped
    with pytest.raises(Stopped): run(place, out, [*collapse_once(5), (1, stop)], action='back')
    assert [o['t'] for o in read_log(out/'curve.jsonl')] == [2, 4] and step_of(checkpoints_of(out)[-1]) == at
    gan = run(place, out, [(1, lambda gan, log: seen.append(gan.t))], resume=True, action=action)
    assert seen[0] == at + 1 and gan.t == STEPS and len(guard.incidents(out)) == 1
    assert [o['t'] for o in read_log(out/'curve.jsonl')] == [*range(2, STEPS + 1, 2)] and not any('collapse' in o for o in read_log(out/'curve.jsonl'))
    assert read_checkpoint(out/'checkpoints'/'good.pt')['t'] == STEPS


def test_a_run_that_another_process_trains_is_not_looked_at(place, tmp_path, monkeypatch):
    from filelock import FileLock
    out = tmp_path/'run'
    run(place, out)
    monkeypatch.setattr(guard.Guard, 'catch_up', lambda *args: pytest.fail('it looked'))
    with FileLock(out/'.lock'), pytest.raises(InUse): run(place, out, resume=True)


def test_where_torchrun_starts_it_again_it_stays_stopped(place, tmp_path, monkeypatch):
    "By its exit code torchrun takes it for a failure. Somebody who goes on has seen it."
    out = tmp_path/'run'
    with pytest.raises(Stopped): run(place, out, collapse_once(5), action='stop')
    with monkeypatch.context() as m:
        m.setenv('TORCHELASTIC_RESTART_COUNT', '1')
        with pytest.raises(Stopped, match=r'it had collapsed; the last good checkpoint is .*good\.pt'): run(place, out, resume=True, action='stop')
    assert step_of(checkpoints_of(out)[-1]) == 6
    def stop(gan, log):
        if gan.t == 9: raise Stopped
    with pytest.raises(Stopped): run(place, out, [(1, stop)], resume=True, action='stop')                  # somebody went on, and a rank was lost
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert run(place, out, resume=True, action='stop').t == STEPS


@pytest.mark.parametrize('action, ends', [('stop', 6), ('back', STEPS), ('go', STEPS)])
def test_a_run_killed_while_it_looked_acts_on_what_it_would_have_seen(place, tmp_path, monkeypatch, action, ends):
    out, right = tmp_path/'run', guard.Guard.look
    def killed(self, gan):
        if gan.t == 6: raise KeyboardInterrupt
        return right(self, gan)
    with monkeypatch.context() as m:
        m.setattr(guard.Guard, 'look', killed)
        with pytest.raises(KeyboardInterrupt): run(place, out, collapse_once(5), action=action, keep='best:2')
    if action == 'stop':
        with pytest.raises(Stopped, match='sign of collapse: diversity at step 6'): run(place, out, resume=True, action=action, keep='best:2')
    else: run(place, out, resume=True, action=action, keep='best:2')
    assert step_of(checkpoints_of(out)[-1]) == ends and [(o['t'], o['action']) for o in guard.incidents(out)] == [(6, action)]


def test_a_second_name_that_a_killed_process_left_does_no_harm(tmp_path):
    path = tmp_path/'step_0000002.pt'
    path.write_bytes(b'new')
    (tmp_path/'older.pt').write_bytes(b'old')
    os.link(tmp_path/'older.pt', tmp_path/f'good.pt.{os.getpid()}.part')
    give_name(path, 'good.pt')
    assert (tmp_path/'good.pt').read_bytes() == b'new' and (tmp_path/'older.pt').read_bytes() == b'old'


def test_it_does_not_go_back_for_ever(place, tmp_path):
    def always(gan, log):
        if gan.t >= 5: collapse_once(gan.t)[0][1](gan, log)
    with pytest.raises(Stopped, match='sign of collapse'): run(place, tmp_path/'run', [(1, always)], action='back')
    assert len(guard.incidents(tmp_path/'run')) == guard.MOST_BACKS + 1


def test_numbers_that_are_not_finite_send_it_back_too(place, tmp_path):
    out = tmp_path/'run'
    assert run(place, out, collapse_once(5, float('nan')), action='back').t == STEPS
    seen = guard.incidents(out)
    assert len(seen) == 1 and ('is not finite' in seen[0]['words'] or 'not a finite number' in seen[0]['words'])


def test_the_best_looks_are_kept(place, tmp_path):
    run(place, tmp_path/'run', keep='best:2')
    by_distance = sorted(read_log(tmp_path/'run'/'curve.jsonl'), key=lambda o: o['distance'])
    assert len(by_distance) == STEPS // 2
    kept = {int(p.stem[5:]): read_checkpoint(p)['t'] for p in (tmp_path/'run'/'checkpoints').glob('best_*.pt')}
    assert kept == {o['t']: o['t'] for o in by_distance[:2]}


def flip(path):
    "Damage a checkpoint, and no other name of it."
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.fixture
def warned(monkeypatch):
    "What is warned of."
    said = []
    monkeypatch.setattr(warnings, 'warn', lambda words, *args, **kw: said.append(str(words)))
    return said


def damage_once(at, folder, *names):
    "A hook: damage checkpoints after one step, the first time."
    left = [*names]
    def hook(gan, log):
        while gan.t == at and left: flip(folder/'checkpoints'/left.pop())
    return [(1, hook)]


@pytest.mark.parametrize('action', guard.ACTIONS)
@pytest.mark.parametrize('older', [True, False])
def test_a_damaged_good_state_is_named_and_an_older_one_is_used(place, tmp_path, warned, action, older):
    "Or none, where no step before the collapse has a whole one: a run that is to go back then ends as one that is to stop."
    out, names = tmp_path/'run', ['good.pt', *['step_0000002.pt', 'step_0000004.pt']*(not older)]
    hooks = [*collapse_once(5), *damage_once(5, out, *names)]
    if action == 'go' or action == 'back' and older: assert run(place, out, hooks, action=action).t == STEPS
    else:
        with pytest.raises(Stopped, match='sign of collapse.*the last good checkpoint is .*step_0000004.pt$' if older else 'sign of collapse[^;]*$'): run(place, out, hooks, action=action)
    assert [o['good'] for o in guard.incidents(out)] == [4 if older else None]
    assert any(re.search(rf'good\.pt: not a readable checkpoint.*; {"step_0000004.pt" if older else "no checkpoint"} is used', o) for o in warned)


def test_a_stopped_run_whose_good_state_is_damaged_goes_back_when_it_is_gone_on_with(place, tmp_path, warned):
    out = tmp_path/'run'
    with pytest.raises(Stopped): run(place, out, collapse_once(5), action='stop')
    flip(out/'checkpoints'/'good.pt')
    gan = run(place, out, resume=True, action='back')
    assert gan.t == STEPS and not any('collapse' in o for o in read_log(out/'curve.jsonl')) and any('step_0000004.pt is used' in o for o in warned)


def test_a_copy_of_a_kept_checkpoint_is_left_alone(place, tmp_path):
    "As `cp` or a file manager names it."
    folder = tmp_path/'run'/'checkpoints'
    copy = [(1, lambda gan, log: shutil.copy2(next(folder.glob('best_*.pt')), folder/'best_0000002 (1).pt') if gan.t == 5 else None)]
    assert run(place, tmp_path/'run', copy, keep='best:2').t == STEPS
    assert (folder/'best_0000002 (1).pt').exists() and len(checkpoints_of(tmp_path/'run', 'best')) == 2


@pytest.mark.parametrize('best', [0, 3, 99])
def test_the_price_counts_the_best_looks(place, tmp_path, best):
    "Every look, or as many as fit beside those that are kept anyway; a second name takes nothing."
    cfg = replace(cfg_of(place), steps=24)
    with small(place): guard.train_guarded(cfg, place.source, tmp_path/'run', every=2, features=place.features, keep=f'best:{best}' if best else None)
    stored = {p.stat().st_ino for p in (tmp_path/'run'/'checkpoints').glob('*.pt')}
    n, least = disk_price(cfg, 2, best)[0], disk_price(cfg)[0]
    assert len(stored) <= n == least + min(best, 12 - least) and (best == 3 or len(stored) == n)


def test_the_price_is_said_with_the_best_looks(tmp_path, monkeypatch, capsys):
    def ends(*args): raise guard.Collapsed('planted')
    monkeypatch.setattr(cli, 'train_guarded', ends)
    code, out, err = shell(monkeypatch, capsys, 'sagan_train', 't1_attn_16', '--scale', 'smoke', '--steps', 60, '--look_every', 2, '--keep', 'best:25', '--out', tmp_path/'run')
    assert (code, err) == (3, 'sagan_train: planted\n')                          # 3: not the user's Ctrl-C
    assert int(re.search(r'\((\d+) checkpoints', out)[1]) > 25 and exit_code(Stopped()) == 130


@pytest.mark.parametrize('how, words', [(dict(keep='best:0'), 'best:K'), (dict(keep='3'), 'best:K'), (dict(action='cry'), 'on_collapse'), (dict(every=3), 'multiple of checkpoint_every'),
                                        (dict(every=0, action='stop'), 'need --look_every'), (dict(every=0, keep='best:1'), 'need --look_every'), (dict(every=-2), 'multiple')])
def test_what_does_not_go_together(place, tmp_path, how, words):
    with pytest.raises(Refused, match=words): guard.train_guarded(cfg_of(place), place.source, tmp_path/'run', **dict(every=2) | how)
    assert not (tmp_path/'run').exists()


def guarded(place, out, action):
    "How a run that collapses once ends, on each of several ranks (test_ranks.py)."
    try: return run(place, out, collapse_once(5), action=action, keep='best:2').t
    except Stopped as e: return str(e)


class Spoilt:
    "A source that gives something else than images of bytes, and labels, from some batch on."
    def __init__(self, source, good, spoil): self.source, self.good, self.spoil, self.n = source, good, spoil, 0

    def __getattr__(self, name): return getattr(self.source, name)

    def __len__(self): return len(self.source)

    def batch(self, indices):
        self.n += 1
        return self.source.batch(indices) if self.n <= self.good else self.spoil(*self.source.batch(indices))


def test_ranks_that_differ_are_named_before_numbers_that_are_not_finite(monkeypatch):
    "On one rank alone NaN would raise there, and leave the others waiting for its numbers."
    gan = make_gan(replace(at_scale(preset('t1_attn_16'), 'smoke'), n_classes=4))
    gan.ranks = SimpleNamespace(world=2)
    gan.D.linear.bias.data.fill_(float('nan'))
    monkeypatch.setattr(checkpoints, 'differences_between', lambda mine: 'D.linear.bias')
    with pytest.raises(Diverged, match='the ranks do not have the same numbers: D.linear.bias'): checkpoints.check_alike(gan)
    monkeypatch.setattr(checkpoints, 'differences_between', lambda mine: '')
    with pytest.raises(Diverged, match='D.linear.bias is not finite'): checkpoints.check_alike(gan)


@pytest.mark.parametrize('spoil, words', [(lambda x, y: (x/127.5 - 1, y), r'images are torch.float32 \(\d+, 3, 32, 32\); a Source gives torch.uint8 \(\d+, 3, 32, 32\)'),
    (lambda x, y: (x[:, :1], y), r'images are torch.uint8 \(\d+, 1, 32, 32\)'), (lambda x, y: (x[1:], y), r'a Source gives'),
    (lambda x, y: (x, None), r'labels are NoneType \(\)'), (lambda x, y: (x, y.int()), r'labels are torch.int32 .*gives torch.int64'), (lambda x, y: (x, y[:, None]), r'labels are torch.int64 \(\d+, 1\)')])
def test_a_source_that_gives_something_else_is_refused(place, tmp_path, spoil, words):
    "In [-1, 1], say, which as bytes would be black: at the first batch that is so, and the run can be gone on with."
    run = tmp_path/'run'
    with pytest.raises(Refused, match=words): train(cfg_of(place), Spoilt(place.source, 3, spoil), run)
    assert train(replace(cfg_of(place), steps=3), place.source, run, resume=True).t == 3


@pytest.mark.parametrize('own, words', [(dict(res=64), 'have res 32, the settings 64'), (dict(n_classes=7), r'have n_classes \d+, the settings 7'),
                                        (dict(data_id='other'), 'have data_id .*, the settings other')])
def test_images_that_are_not_those_of_the_settings_are_refused(place, tmp_path, own, words):
    with pytest.raises(Refused, match=words): train(replace(cfg_of(place), **own), place.source, tmp_path/'run')
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('part, words', [('weight', r'so is G\.linear\.'), ('gradient', r'so is gradient of G\.linear\.')])
def test_a_layer_that_is_not_finite_is_named(place, tmp_path, part, words):
    def spoil(gan, log):
        if gan.t != 3: return
        p = gan.G.linear.parametrizations.weight.original
        (p.data if part == 'weight' else p.grad).view(-1)[0] = float('nan')
        log['loss_g'] = log['loss_g'] * float('nan')
    from sagan_nb.machinery import runs
    look = runs.Log.__call__
    def call(self, gan, log):
        spoil(gan, log)
        look(self, gan, log)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(runs.Log, '__call__', call)
        with pytest.raises(Diverged, match=rf'at step 3 loss_g is not a finite number \({words}.*; the last good checkpoint is .*step_0000002'): train(cfg_of(place), place.source, tmp_path/'run')


# the end of a run

@pytest.mark.parametrize('part', ENDINGS)
def test_a_part_that_fails_costs_no_other(place, tmp_path, part, monkeypatch, capsys):
    "Names, locale, backend, disk: whatever it is. One line says what is not made, and how to make up for it; the rest is there."
    out, made = tmp_path/'run', {name: (lambda gan, source, out, *more, name=name: (out/name).write_text('made')) for name in ENDINGS}
    gan = train(replace(cfg_of(place), steps=2), place.source, out)
    def fails(*args): raise RuntimeError('no such font')
    monkeypatch.setattr('sagan_nb.machinery.ending.ENDINGS', made | {part: fails})
    with pytest.raises(Refused, match=rf'trained and saved, but not made are: {part} \(RuntimeError: no such font\)\. To make up for it: .*sagan_train --resume --out'): summarise(gan, place.source, out)
    assert {p.name for p in out.iterdir()} >= {*ENDINGS} - {part} and part not in capsys.readouterr().out
    monkeypatch.setattr('sagan_nb.machinery.ending.ENDINGS', made)
    summarise(gan, place.source, out)
    assert (out/part).exists()


def test_a_damaged_incident_hides_nothing(place, tmp_path, monkeypatch, capsys):
    "What else failed is named beside it, with the command that makes up for all; what was made is listed."
    out = tmp_path/'run'
    gan = train(replace(cfg_of(place), steps=2), place.source, out)
    (out/'incidents.jsonl').write_text('nonsense\n')
    (out/'samples.png').mkdir()
    monkeypatch.setattr('sagan_nb.machinery.ending.measure', lambda *args, **how: [])
    with pytest.raises(Refused, match=r'trained and saved, but not made are: samples\.png .*; incidents\.jsonl .*delete this line.*To make up for it: .*sagan_train --resume'): summarise(gan, place.source, out)
    assert 'curves.png' in capsys.readouterr().out


def test_what_is_missing_in_the_end_is_not_made_up_for_by_the_same_command(place, tmp_path, monkeypatch):
    "No more files may be opened: training is over, and the command that began it would be refused."
    out = tmp_path/'run'
    gan = train(replace(cfg_of(place), steps=2), place.source, out)
    def full(*args): raise OSError(errno.EMFILE, 'Too many open files', str(out/'incidents.jsonl'))
    monkeypatch.setattr('sagan_nb.machinery.ending.ENDINGS', {name: full for name in ENDINGS})
    with pytest.raises(Refused, match=r'incidents\.jsonl: Too many open files\)\. To make up for it: ') as e: summarise(gan, place.source, out)
    assert 'the same command' not in str(e.value)


def test_a_run_that_could_not_be_measured_says_so_by_its_exit_code(place, tmp_path, monkeypatch):
    "A user without a home folder, and no cache named."
    out = tmp_path/'run'
    gan = train(replace(cfg_of(place), steps=2), place.source, out)
    def nowhere(): raise RuntimeError('no home')
    monkeypatch.delenv('SAGAN_NB_CACHE')
    monkeypatch.setattr(Path, 'home', nowhere)
    with pytest.raises(Refused, match=r'not made are: metrics\.json \(no home folder here: .*SAGAN_NB_CACHE\)\. To make up for it'): summarise(gan, place.source, out)
