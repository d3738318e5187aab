"Tables: interruption, failures, slices, and what is said of their runs."
import errno
import json
import math
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
import numpy as np
from scipy import stats
import torch
from PIL import Image

from commands import as_folders, spawn
from sagan_nb.ablation import TABLES, detectable, shares, verdict
from sagan_nb.config import NUMERICS, PRESETS, to_json
from sagan_nb.core import Refused
from sagan_nb.data import Pairs, Stream, Toy, Twins
from sagan_nb.train import fit, make_gan
from sagan_nb.machinery import answers, cli, curve, figures, files, held_out, jobs, mechanism, power, runs as runs_room, tables, takeoff, terminal
from sagan_nb.machinery.jobs import Job, collect, row_configs, run_rows
from sagan_nb.machinery.pictures import WithoutLabels
from sagan_nb.machinery.evaluate import run_scores
from sagan_nb.machinery.checkpoints import load_checkpoint
from sagan_nb.machinery.tables import markdown

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent/'shared'/'data'
SMOKE = '--scale', 'smoke', '--only', 't1_none,t1_attn_16,t1_res_16'


def numbers(out):
    "A table without what belongs to the clock."
    return re.sub(r'(?m)^(Seconds a step|Commit): .*$', r'\1', (out/'table1.md').read_text())


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    "Three rows of Table 1, made in one go."
    out = tmp_path_factory.mktemp('table')/'t1'
    process = spawn('sagan_table', 'table1', *SMOKE, '--out', out)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    return out, text


def test_table_says_what_it_is(table):
    out, text = table
    written = (out/'table1.md').read_text()
    assert len(list(out.glob('*.json'))) == len(list(out.glob('t1_*.png'))) == 3
    for words in ('Table 1', '`t1_attn_32`', 'Not applicable here: `t1_attn_32`, `t1_res_32`', '(attention at 32: this map', 'one seed: shows the machinery, decides nothing', 'not resolved (1 seed)',
                  '22.14 (unchecked)', 'attention at 16 is better than the residual block of equal size at 16'):
        assert words in written, words
    said = re.findall(r'\[(\d)/3\] (t1_\w+), seed 0(, about \d+ min left)?', text)
    assert [o[:2] for o in said] == [('1', 't1_none'), ('2', 't1_attn_16'), ('3', 't1_res_16')] and [bool(o[2]) for o in said] == [False, True, True]
    o = json.loads(next(out.glob('t1_attn_16-*.json')).read_text())
    assert o['status'] == 'finished' and len(o['curve']) == 4 and o['parameters'] == json.loads(next(out.glob('t1_res_16-*.json')).read_text())['parameters']
    assert [p['seconds'] for p in o['curve']] == sorted(p['seconds'] for p in o['curve']) and o['curve'][0]['seconds'] > 0 and o['evaluation_seconds'] > 0
    assert markdown('table1', collect(out)) in written                                      # from the files alone, the same


WHOLE = dict(row='t1_none', seed=0, scale='smoke', name='', status='done', numerics=1, env={}, config={}, parameters={}, records=[], curve=[],
             collapse=[])                                                          # all that a result must hold


def test_a_finished_run_is_taken_for_a_row(tmp_path, capsys):
    "As the main job ends: what was trained is not trained again; what is another run, or no run, is refused."
    cli.sagan_train('t1_attn_16', data='toy', scale='smoke', out=str(tmp_path/'run'))
    how = dict(data='toy', scale='smoke', only='t1_none,t1_attn_16', out=str(tmp_path/'table'))
    cli.sagan_table('table1', adopt=str(tmp_path/'run'), **how)
    said = capsys.readouterr().out
    assert '] t1_none, seed 0' in said and '] t1_attn_16' not in said and 'one seed: shows the machinery, decides nothing' in said
    own = {o['row']: o for o in collect(tmp_path/'table')}
    measured = run_scores(tmp_path/'run')
    assert own['t1_attn_16']['records'] == measured
    assert {p.suffix for p in (tmp_path/'table').glob('t1_attn_16*')} == {'.json', '.png'} and (tmp_path/'table'/'table1-samples.png').exists()
    with pytest.raises(Refused, match='none of those'): cli.sagan_table('table1', adopt=str(tmp_path/'run'), seeds='1', **how)
    with pytest.raises(Refused, match='no finished run'): cli.sagan_table('table1', adopt=str(tmp_path/'table'), **how)
    def measured_with(**changes): (tmp_path/'run'/'metrics.json').write_text(json.dumps([o | changes for o in measured]))
    measured_with(numerics=0)
    with pytest.raises(Refused, match='another version of the numbers'): cli.sagan_table('table1', adopt=str(tmp_path/'run'), **how)
    measured_with()
    env = tmp_path/'run'/'env.json'
    whole = files.read_json(env, '')
    assert whole['numerics'] == NUMERICS
    files.write_json(env, whole | dict(numerics=NUMERICS - 1))
    with pytest.raises(Refused, match='was trained, in part at least, with another version'): cli.sagan_table('table1', adopt=str(tmp_path/'run'), **how)
    files.write_json(env, whole)
    measured_with(step=2)
    with pytest.raises(Refused, match='not measured at its last step'): cli.sagan_table('table1', adopt=str(tmp_path/'run'), **how)


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_killed_and_restarted_gives_the_same_table(table, tmp_path, how):
    out, seed = tmp_path/'t1', random.randrange(10**6)
    wait = random.Random(seed).uniform(.5, 12)
    print('seed', seed, 'wait', wait)
    process = spawn('sagan_table', 'table1', *SMOKE, '--out', out)
    while process.poll() is None and not (out/'runs').exists(): time.sleep(.05)
    while process.poll() is None and wait > 0 and len(list(out.glob('*.json'))) < 2: time.sleep(.05); wait -= .05
    assert process.poll() is None, 'there is nothing left to interrupt'
    process.send_signal(how)
    process.communicate()
    before = {p: p.stat().st_mtime_ns for p in out.glob('*.json')}
    assert process.returncode != 0 and len(before) < 3
    process = spawn('sagan_table', 'table1', *SMOKE, '--out', out)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert {p: p.stat().st_mtime_ns for p in before} == before                              # finished rows are not retrained
    assert numbers(out) == numbers(table[0])


def test_only_what_is_missing_is_made(table):
    out, _ = table
    gone, = out.glob('t1_none-*.json')
    kept = {p: p.stat().st_mtime_ns for p in out.glob('*.json') if p != gone}
    value, before = json.loads(gone.read_text())['records'], numbers(out)
    gone.unlink()
    cli.sagan_table('table1', scale='smoke', only='t1_none,t1_attn_16,t1_res_16', out=str(out))
    assert {p: p.stat().st_mtime_ns for p in kept} == kept and json.loads(gone.read_text())['records'] == value and numbers(out) == before
    age = gone.stat().st_mtime_ns
    cli.sagan_table('table1', scale='smoke', only='t1_none,t1_attn_16,t1_res_16', retrain='t1_none', out=str(out))
    assert gone.stat().st_mtime_ns > age and {p: p.stat().st_mtime_ns for p in kept} == kept
    with pytest.raises(Refused, match='--only leaves this row out'): cli.sagan_table('table1', scale='smoke', only='t1_none', retrain='t1_res_16', out=str(out))


def test_other_settings_make_no_row(tmp_path, capsys):
    "A folder that holds the same row and seed by other settings: the table is of those that were asked for, and names the others."
    how = dict(scale='smoke', only='t1_none', out=str(tmp_path))
    cli.sagan_table('table1', set=['batch=4'], **how)
    cli.sagan_table('table1', seeds='0', **how)
    text, results = (tmp_path/'table1.md').read_text(), collect(tmp_path)
    asked, others = jobs.asked_for(results, row_configs(TABLES['table1'], Pairs(32, 4), 'smoke')[0])
    assert [o['config']['batch'] for o in asked] == [8] and [o['config']['batch'] for o in others] == [4]
    assert 'batch 8;' in text and 'batch 4' not in text and f'made by other settings: {others[0]["name"]}.' in text
    assert re.search(r'^\| `t1_none`[^|]* \| 1 \| ', text, re.M)
    with pytest.raises(Refused, match='two runs of one seed'): markdown('table1', results)


def test_a_new_table_takes_away_old_figures_and_no_samples(tmp_path):
    "The samples of a row may begin as the table does: `best` and best_known."
    for name in ('best.png', 'best-training.png', 'best-samples.png', 'best_known-s0-a-b.png'): (tmp_path/name).write_bytes(b'')
    cli.write_table('best', tmp_path, {}, 'domain')
    assert {p.name for p in tmp_path.glob('*.png')} == {'best_known-s0-a-b.png'}


def test_figures_are_replaced_only_by_new_ones(table, tmp_path, monkeypatch):
    "A figure cannot be written: all that were there stay, also those that this table no longer has."
    out = tmp_path/'t1'
    shutil.copytree(table[0], out)
    before = {p: p.read_bytes() for p in out.glob('table1*.png')}
    def full(fig, path): raise OSError(errno.EFBIG, 'File too large', str(path))
    monkeypatch.setattr(cli, 'save_fig', full)
    monkeypatch.setattr(cli, 'show_samples', lambda *args: None)
    with pytest.raises(OSError, match='File too large'): cli.write_table('table1', out, row_configs(TABLES['table1'], Pairs(32, 4), 'smoke')[0], 'domain')
    assert len(before) == 3 and {p: p.read_bytes() for p in before} == before


def test_collapse_is_marked_and_the_good_checkpoint_stays(tmp_path, capsys):
    "Diversity is planted: fine at the first looks, gone from then on."
    toy = Toy(32, 4, n=600)
    cfg = replace(row_configs(TABLES['table1'], toy, 'smoke')[0]['t1_none'], steps=16, checkpoint_every=1)
    seen = []
    def planted(x, y):
        seen.append(len(seen))
        return .3 if len(seen) < 6 else .01                                      # the first is that of the real pictures
    with pytest.MonkeyPatch.context() as m:
        m.setattr(curve, 'diversity', planted)
        quietly([Job(cfg)], toy, tmp_path/'r', tmp_path/'runs')
    o, = collect(tmp_path/'r')
    assert [(c['sign'], c['t']) for c in o['collapse']] == [('diversity', 10)] and 'seed 0: diversity at step 10' in markdown('table1', [o])
    assert [bool(p.get('collapse')) for p in o['curve']] == [False]*4 + [True]*4
    assert capsys.readouterr().out.count('sign of collapse: diversity at step 10') == 1
    run, = (tmp_path/'runs').glob('t1_*')
    assert {p.name: load_checkpoint(p).t for p in (run/'checkpoints').iterdir()} == {
        **{f'step_{t:07}.pt': t for t in (1, 2, 3, 5, 9, 15, 16)}, 'good.pt': 8}


def test_one_failing_row_does_not_stop_the_rest(tmp_path, monkeypatch, capsys):
    train = jobs.train
    def sometimes(cfg, *args, **kw):
        if cfg.block == 'residual': raise RuntimeError('planted')
        return train(cfg, *args, **kw)
    monkeypatch.setattr(jobs, 'train', sometimes)
    with pytest.raises(Refused, match='1 of 2 runs failed'): cli.sagan_table('table1', scale='smoke', only='t1_res_16,t1_none', out=str(tmp_path/'t'))
    text = (tmp_path/'t'/'table1.md').read_text()
    assert re.search(r'Failed: `t1_res_16-s0-\w+-v\d+` \(RuntimeError: planted\)', text) and len(list((tmp_path/'t').glob('*.json'))) == 1
    monkeypatch.setattr(jobs, 'train', train)
    cli.sagan_table('table1', scale='smoke', only='t1_res_16,t1_none', out=str(tmp_path/'t'))
    assert 'planted' not in (tmp_path/'t'/'table1.md').read_text() and len(list((tmp_path/'t').glob('*.json'))) == 2


def test_a_slice_that_ends_says_what_failed(tmp_path, monkeypatch):
    def some(cfg, *args, **kw): raise cli.Stopped('over') if cfg.block == 'none' else RuntimeError('planted')
    monkeypatch.setattr(jobs, 'train', some)
    with pytest.raises(cli.Stopped): cli.sagan_table('table1', scale='smoke', only='t1_res_16,t1_none', out=str(tmp_path/'t'))
    assert re.search(r'Failed: `t1_res_16-s0-\w+-v\d+` \(RuntimeError: planted\)', (tmp_path/'t'/'table1.md').read_text())


def test_a_run_that_diverges_is_a_result(tmp_path, monkeypatch):
    toy = Toy(32, 4, n=600)
    cfg = replace(row_configs(TABLES['table1'], toy, 'smoke')[0]['t1_none'], steps=8, checkpoint_every=2)
    def poison(gan, log):
        if gan.t == 5: log['loss_g'].fill_(math.nan)
    log = runs_room.Log.__call__
    monkeypatch.setattr(runs_room.Log, '__call__', lambda self, gan, o: (poison(gan, o), log(self, gan, o))[1])
    assert quietly([Job(cfg)], toy, tmp_path/'r', tmp_path/'runs') == {}
    o, = collect(tmp_path/'r')
    assert o['status'].startswith('diverged: at step 5') and all(r['step'] == 4 for r in o['records'] if 'step' in r)
    assert 'seed 0: diverged' in markdown('table1', [o])


def test_the_table_in_slices_and_in_commands(table, tmp_path, capsys, monkeypatch):
    cli.sagan_table('table1', scale='smoke', seeds='0,1', print_commands=True, out=str(tmp_path/'a b'), data='toy', set=['batch=4'])
    lines = capsys.readouterr().out.strip().splitlines()
    there = row_configs(TABLES['table1'], Toy(32, 4), 'smoke')[0]
    assert len(lines) == 2*len(there) + 1 and lines[-1].startswith('# ') and f'--only {",".join(there)} --seeds 0,1' in lines[-1] and sum(o.endswith("--features domain --device auto --only t1_none --seeds 1 --set batch=4 precision=fp32") for o in lines) == 1
    assert shlex.split(lines[0])[shlex.split(lines[0]).index('--out') + 1] == str(tmp_path/'a b') and not (tmp_path/'a b').exists()
    monkeypatch.setattr(sys, 'argv', ['sagan_table', 'table1', '--scale', 'smoke', '--print-commands'])     # a hyphen will do
    cli.sagan_table()
    assert len(capsys.readouterr().out.strip().splitlines()) == len(there) + 1
    with pytest.raises(cli.Stopped, match='all is saved. The same command without --retrain goes on'):
        cli.sagan_table('table1', scale='smoke', only='t1_none', out=str(tmp_path/'s'), minutes=1e-6, retrain='t1_none')
    assert list((tmp_path/'s').glob('*.json')) == [] and list((tmp_path/'s'/'runs').glob('*/checkpoints/*.pt'))
    cli.sagan_table('table1', scale='smoke', only='t1_none', out=str(tmp_path/'s'))
    ours, = (json.loads(p.read_text())['records'] for p in (tmp_path/'s').glob('*.json'))
    theirs, = (json.loads(p.read_text())['records'] for p in table[0].glob('t1_none-*.json'))
    assert [o['value'] for o in ours] == [o['value'] for o in theirs]


@pytest.mark.parametrize('args, words', [
    (['table9'], "no table 'table9'; choose one of table1"), (['table1', '--only', 't1_nine'], "no row 't1_nine'"), (['table1', '--seeds', 'a'], 'seeds are like'), (['table1', '--seeds', '5-3'], 'seeds are like'),
    (['table1', '--set', 'attn_at=8'], 'tells the rows of this table apart'), (['table1', '--scale', 'huge'], 'choose one of smoke'),
    (['table1', '--set', 'seed=5'], 'seed is not for --set: say --seeds'), (['table1', '--set', 'scale=paper'], 'say --scale'), (['table1', '--only', ''], "no row ''"),
    (['table1', '--set', 'res=48'], 'no row can be trained: t1_none: res is 48'), (['table1', '--retrain', 't1_none', '--adopt', 'there'], 'are two commands'),
    (['table1', '--print_commands', '--adopt', 'there'], 'goes with neither'), (['table1', '--print_commands', '--set', 'foo=1'], "no setting 'foo'"),
    (['table1', '--data', 'nowhere'], 'no file or folder'), (['table1', '--device', 'tpu'], 'say auto'), (['table1', '--features', 'vgg'], "no features 'vgg'")])
def test_refused_in_one_line(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['sagan_table', '--scale', 'smoke', '--only', 't1_none', *args])
    with pytest.raises(SystemExit) as e: cli.sagan_table()
    err = capsys.readouterr().err
    assert e.value.code == 1 and words in err and err.count('\n') == 1


def test_rows_that_do_not_apply():
    found, skipped = row_configs(TABLES['table2'], WithoutLabels(Toy(32, 4)), 'smoke')
    assert 'no classes' in skipped['t2_acgan'] and 'attention at 64' in skipped['t2_sagan'] and found['t2_sngan_projection'].head == 'none'
    found, skipped = row_configs(TABLES['best'], Toy(64, 4), 'gpu')
    assert set(skipped) == {'best_known'} and 'attention at 64' in skipped['best_known']
    assert [r for r, cfg in found.items() if cfg.ema] == ['rb_ema']              # what a row asks about, a scale does not switch on
    with pytest.raises(Refused, match='tells the rows'): row_configs(TABLES['best'], Toy(64, 4), 'gpu', ['ema=.5'])


def test_a_map_for_all_rows_is_said():
    found, skipped = row_configs(TABLES['table2'], Toy(32, 4), 'laptop', ['attn_at=16'])
    assert not skipped and [cfg.attn_at for cfg in found.values()] == [(), (), (16,)]
    run = lambda row, cfg: dict(row=row, seed=0, scale='laptop', name=f'{row}-s0-a-b', numerics=NUMERICS, env=dict(commit=None), config=json.loads(to_json(cfg)), records=[], collapse=[],
                                status='finished', curve=[], parameters={}, seconds_per_step=1.)
    said = 'attention at map 16, in the presets at 64'
    assert said in tables.protocol([run(*o) for o in found.items()])
    assert said not in tables.protocol([run('t1_attn_16', replace(found['t2_sagan'], preset='t1_attn_16'))])
    assert 't2_sagan' in tables.not_applicable(TABLES['table2'], [run('t2_acgan', found['t2_acgan'])])
    assert not tables.not_applicable(TABLES['table2'], [run(*o) for o in found.items()])
    k1 = run('k1', row_configs(TABLES['reduction'], Toy(32, 4), 'laptop', ['attn_at=16'])[0]['k1'])
    assert not tables.not_applicable(TABLES['reduction'], [k1]) and 'Not run: `k2`, `k4`, `k8`.' in markdown('reduction', [k1])


@pytest.fixture
def one_job(tmp_path):
    "A row on few pictures: the job, the pictures, where results and runs go."
    toy = Toy(32, 4, n=600)
    return Job(row_configs(TABLES['table1'], toy, 'smoke')[0]['t1_none']), toy, tmp_path/'r', tmp_path/'runs'


def quietly(*args, **kw): return run_rows(*args, say=lambda *a, **k: None, **kw)


def test_two_processes_do_not_train_the_same_run(one_job):
    job, toy, out, runs = one_job
    (runs/job.name).mkdir(parents=True)
    with FileLock(runs/job.name/'.lock'):                                       # as another process would hold it
        assert 'another process is at it' in quietly([job], toy, out, runs)[job.name]
        assert (runs/job.name).exists() and not out.exists()
    assert quietly([job], toy, out, runs) == {} and len(collect(out)) == 1


@pytest.mark.parametrize('there', [False, True])
def test_a_row_that_another_process_trains_has_not_failed(table, tmp_path, monkeypatch, capsys, there):
    "It is named as such, and costs no exit code; a result that comes while other rows are trained is picked up."
    out, row = tmp_path/'t1', next(table[0].glob('t1_none-*.json')).stem
    (out/'runs'/row).mkdir(parents=True)
    fit, trained = jobs.train, []
    def train(cfg, *args, **kw):
        trained.append(cfg.preset)
        if there: shutil.copy(table[0]/f'{row}.json', out)
        return fit(cfg, *args, **kw)
    monkeypatch.setattr(jobs, 'train', train)
    with FileLock(out/'runs'/row/'.lock'):                                      # as another process would hold it
        cli.sagan_table('table1', scale='smoke', only='t1_none,t1_res_16', out=str(out))
    text = (out/'table1.md').read_text()
    assert trained == ['t1_res_16'] and 'Failed' not in text and (f'Another process is at it: `{row}`.' in text) == (not there)
    assert bool(re.search(r'(?m)^\| `t1_none`', text)) == there and f'{row}: another process is at it' in capsys.readouterr().out


def test_a_result_is_replaced_only_by_a_new_one(one_job, monkeypatch):
    job, toy, out, runs = one_job
    quietly([job], toy, out, runs)
    old, = out.glob('*.json')
    text = old.read_text()
    with FileLock(runs/job.name/'.lock'), pytest.raises(Refused, match='another process'): jobs.set_aside([job], out, runs)
    assert old.read_text() == text and [*runs.glob('t1_*')]
    jobs.set_aside([job], out, runs)
    assert not old.exists() and (out/'replaced'/old.name).read_text() == text and not collect(out)
    assert [p.name for p in runs.glob('t1_*/*')] == ['.lock']
    def fail(*args, **kw): raise RuntimeError('planted')
    with monkeypatch.context() as m:
        m.setattr(jobs, 'train', fail)
        assert quietly([job], toy, out, runs)
    assert (out/'replaced'/old.name).read_text() == text
    quietly([job], toy, out, runs)
    assert old.exists() and not [*(out/'replaced').iterdir()]


@pytest.mark.parametrize('at', [2, 4])
def test_stopped_between_saving_and_looking(at, one_job, monkeypatch):
    "The look is made up for. The machine that goes on is named beside the first, if there is a step left to take."
    job, toy, out, runs = one_job
    look, here = jobs.Curve.__call__, runs_room.environment
    def killed(self, gan, log=None):
        if gan.t == at: raise cli.Stopped('over')
        return look(self, gan, log)
    with monkeypatch.context() as m:
        m.setattr(jobs.Curve, '__call__', killed)
        with pytest.raises(cli.Stopped): quietly([job], toy, out, runs)
    assert [o['t'] for o in map(json.loads, (runs/job.name/'curve.jsonl').read_text().splitlines())] == [*range(1, at)]
    monkeypatch.setattr(runs_room, 'environment', lambda device: here(device) | dict(commit='f'*40, changed=True, device_name='another'))
    quietly([job], toy, out, runs)
    o, = collect(out)
    assert [p['t'] for p in o['curve']] == [1, 2, 3, 4]
    there = ' / '.join(sorted(['another', o['env']['device_name']]))
    assert [words in text for words, text in (('fffffff (changed)', markdown('table1', [o])), (there, tables.protocol([o])))] == [at < 4]*2


def test_a_folder_keeps_what_it_is_measured_by(one_job, monkeypatch, tmp_path, capsys):
    "Another machine, with no cache of its own, measures by the classifier that lies beside the results."
    job, toy, out, runs = one_job
    own = jobs.features_of('domain', toy, out).hash
    assert [*(out/'features').glob('classifier-*.safetensors')]
    monkeypatch.setenv('SAGAN_NB_CACHE', str(tmp_path/'empty'))
    monkeypatch.setattr('sagan_nb.machinery.features.train_classifier', None)              # it could not learn another
    quietly([job], toy, out, runs)
    o, = collect(out)
    assert {r['features_hash'] for r in o['records'] if 'classifier' in r['metric']} == {own}
    capsys.readouterr()
    cli.warn_of_others([o], jobs.features_of('domain', toy, out))
    assert not capsys.readouterr().out
    for r in o['records']: r['features_hash'] = 'another'
    cli.warn_of_others([o], jobs.features_of('domain', toy, out))
    assert '1 of 1 results here were measured by other features' in capsys.readouterr().out


def test_sagan_train_notes_where_it_goes_on(tmp_path):
    run = tmp_path/'run'
    cli.sagan_train('t1_none', data='toy', scale='smoke', out=str(run))
    cli.sagan_train(out=str(run), resume=True, steps=5)
    assert len(runs_room.machines(run)) == 1                                      # here, as before
    (run/'env.json').write_text(json.dumps(runs_room.machines(run)[0] | dict(commit='0'*40)))
    cli.sagan_train(out=str(run), resume=True, steps=6)
    assert [e['commit'] for e in runs_room.machines(run)] == ['0'*40, runs_room.environment('cpu')['commit']]


def test_a_run_begun_by_other_code_is_named(one_job):
    job, toy, out, runs = one_job
    (runs/f'{job.stem}-000000').mkdir(parents=True)
    (runs/f'{job.stem}-000000'/'config.json').write_text('{}')
    said = []
    run_rows([job], toy, out, runs, say=lambda *a, **k: said.append(a[0]))
    assert any('-000000 has other numbers' in o for o in said) and (runs/f'{job.stem}-000000').exists()


def test_runs_without_a_number_are_counted(one_job):
    "A seed that diverged before its first checkpoint, an error of several lines, other features, a damaged file."
    job, toy, out, runs = one_job
    quietly([job, Job(replace(job.cfg, seed=1)), Job(replace(job.cfg, seed=2))], toy, out, runs)
    found = collect(out)
    lost = dict(found[0], records=[], status='diverged: planted')
    text = markdown('table1', [lost, *found[1:]], failed={'t1_res_16-s0-a-b': 'RuntimeError: one\ntwo | three'})
    row = next(o for o in text.splitlines() if o.startswith('| `t1_none`'))
    assert row.count('(2 of 3 seeds)') == 3 and 'Signs: no block, seed 0: diverged: planted.' in text
    assert 'Failed: `t1_res_16-s0-a-b` (RuntimeError: one two / three).' in text and 't1_attn_16`' in next(o for o in text.splitlines() if o.startswith('Not run: '))
    both = [dict(o, row='t1_attn_16') for o in found] + [lost, *found[1:]]
    assert 'attention at 16 is better than none: **no difference (2 seeds)**; 1 run of t1_none ended early' in markdown('table1', both)
    for o in both[:3]: o['records'] = [r | dict(features_hash='other') for r in o['records']]
    assert 'attention at 16 is better than none: **not comparable' in markdown('table1', both) and '| not comparable |' in markdown('table1', both)
    next(out.glob('*.json')).write_text('{"row": ')
    with pytest.raises(Refused, match='is damaged .*: delete it'): collect(out)


def test_other_numbers_are_said_and_not_used(table, monkeypatch):
    out, _ = table
    cfg = row_configs(TABLES['table1'], Pairs(32, 4), 'smoke')[0]['t1_none']
    assert jobs.stored_result(Job(cfg), out)
    assert f'numbers of version {NUMERICS + 1}; today' in markdown('table1', [o | dict(numerics=NUMERICS + 1) for o in collect(out)])
    for room in (jobs, tables): monkeypatch.setattr(room, 'NUMERICS', NUMERICS + 1)
    assert jobs.stored_result(Job(cfg), out) is None and 'numbers of version' in markdown('table1', collect(out))


def test_of_several_versions_the_newest_is_read_or_the_one_asked_for(tmp_path):
    job = Job(row_configs(TABLES['table1'], Pairs(32, 4), 'smoke')[0]['t1_none'])
    for v in (1, 9, 10): (tmp_path/f'{job.stem}-v{v}.json').write_text(json.dumps(WHOLE | dict(name=f'{job.stem}-v{v}', numerics=v)))
    assert [o['numerics'] for o in collect(tmp_path)] == [10] and [o['numerics'] for o in collect(tmp_path, numerics=9)] == [9]


@pytest.mark.parametrize('row', [o for o, cfg in PRESETS.items() if max(cfg.attn_at, default=0) <= 16])
def test_rows_that_fit_32_px_take_two_steps_at_128(row):
    "The others do in test_train.test_preset_trains."
    cfg = replace(PRESETS[row], res=128, width=8, batch=2, n_classes=4, bn_ghost=0, steps=2, d_per_g=min(PRESETS[row].d_per_g, 2))
    gan, losses = make_gan(cfg), []
    fit(gan, Stream(Toy(128, 4, n=40), 2, 0), [(1, lambda gan, log: losses.append(log['loss_d'].item()))])
    assert gan.t == 2 and all(map(math.isfinite, losses)) and all(p.isfinite().all() for p in gan.G.parameters())


def paper_commands():
    "The commands of docs/reproduce.md that are for the paper's size."
    text = (ROOT/'docs'/'reproduce.md').read_text(encoding='utf-8')
    lines = [o for block in re.findall(r'```\{code-block\} sh\n(.*?)```', text, re.S) for o in block.splitlines()]
    return [o for o in lines if 'imagenet-128' in o or '--scale paper' in o or 'runs/released' in o]


def test_the_commands_for_the_paper_s_size_at_smoke_scale(tmp_path):
    "Each as the page has it, but for scale, pictures (where they are at hand, one of each class of ImageNet), features, and all but a row or two of a table."
    pictures, K = DATA/'imagenet-sample.zip', 1000
    if not pictures.exists():
        pictures, K = tmp_path/'drawn', 4
        as_folders(Toy(32, K, n=40), pictures)
    few = dict(table1='t1_none,t1_attn_16', table2='t2_acgan', fig3='f3_sn_gd_ttur')
    changes = {'imagenet/train': pictures, '--res 128': '--res 32', 'imagenet-128.pack': tmp_path/'imagenet.pack', '--scale paper': '--scale smoke',
               'inception': 'domain', '50000': '100', 'runs/': f'{tmp_path}/runs/', **{f'sagan_table {t} ': f'sagan_table {t} --only {rows} ' for t, rows in few.items()}}
    said = paper_commands()
    said = [o for o in said if not o.startswith('torchrun') and '--adopt' not in o]  # those are tried in tests/test_ranks.py, and above
    assert [o.split()[0] for o in said] == ['sagan_pack', *['sagan_table']*4, *['sagan_train']*2, 'sagan_eval'], said
    for line in said:
        for old, new in changes.items(): line = line.replace(old, str(new))
        if line.startswith('sagan_train'): line += ' --set attn_at=16'          # their maps are not there at 32 pixels
        assert line.count('--set') <= 1
        process = spawn(*shlex.split(line), stderr=subprocess.DEVNULL if '--print_commands' in line else subprocess.STDOUT)
        text = process.communicate()[0]
        assert process.returncode == 0, f'{line}\n{text}'
        if '--print_commands' in line: assert text.count('\n') == 2 and text.startswith('sagan_table table2') and '\n# when all are done' in text, text
    for table, rows in few.items():
        found = collect(tmp_path/'runs'/table)
        assert {o['row'] for o in found} == {*rows.split(',')} and all(o['config']['n_classes'] == K for o in found)
        assert (tmp_path/'runs'/table/f'{table}.md').exists()
    assert {o['metric'] for o in json.loads((tmp_path/'runs'/'released'/'metrics.json').read_text())} >= {'classifier score', 'precision', 'intra distance'}


def test_what_an_update_costs(tmp_path, monkeypatch):
    "tools/bench/pace.py: five updates of D for one of G cost more than one, and all it asks of the results are their settings."
    from tools.bench import pace
    folder = tmp_path/'results'/'fig3'
    folder.mkdir(parents=True)
    for row in ('f3_sn_d', 'f3_sn_d_5to1'):
        cfg = row_configs(TABLES['fig3'], Toy(32, 4), 'smoke')[0][row]
        (folder/f'{row}-s0-a-v1.json').write_text(json.dumps(WHOLE | dict(row=row, name=f'{row}-s0-a-v1', config=json.loads(to_json(cfg)))), encoding='utf-8')
    monkeypatch.setattr(pace, 'ROOT', tmp_path)
    monkeypatch.setenv('IN_TEST', '1')                                          # `main` sets it, too; this takes it back
    threads = torch.get_num_threads()
    try: pace.main('fig3', rounds=3)
    finally: torch.set_num_threads(threads)
    rows = json.loads((folder/'pace.json').read_text(encoding='utf-8'))['rows']
    assert rows['f3_sn_d']['ratio_of_cpu'] == 1 and .1 < rows['f3_sn_d_5to1']['ratio_of_cpu'] < .7


# Twins and power, on planted runs: what is true of them is known.

def twins_runs(seeds, rows=('t1_none', 't1_attn_16', 't1_res_16'), gap=3., noise=.5, spread=.4):
    "Runs of twins: attention leads by `gap`, everything else differs by chance; every seed has its own luck."
    found = row_configs(TABLES['twins'], Twins(32, n=100), 'laptop')[0]
    draws = random.Random(0)
    for seed in seeds:
        luck = draws.gauss(0, 5)
        for row in rows:
            value = 10 + luck + draws.gauss(0, noise) + (gap if row == 't1_attn_16' else 0)
            records = [dict(metric='long_range_mi', value=value, real=40., features='pixels'), dict(metric='long_range_spread', value=spread, real=.57, features='pixels'),
                       dict(metric='long_range_joint', value=value, real=40., features='pixels')]
            yield dict(row=row, seed=seed, scale='laptop', name=f'{row}-s{seed}-a-v{NUMERICS}', numerics=NUMERICS, env=dict(commit=None), config=json.loads(to_json(found[row])), records=records,
                       collapse=[], status='finished', curve=[], parameters=dict(G=1, D=1), seconds_per_step=1.)


def test_twins_without_runs_with_two_seeds_and_complete():
    none = answers.answers(dict(twins=[]))
    assert ' 864 to 2,880 hours of a V100 for each row' in none                   # 9 days on 4; 27 days on 8 for 1.8 million
    assert 'not complete: 0 of 60' in none and 'No ordering of a table that was written down before its runs is confirmed' in none and 'Not run: `t1_none`, `t1_attn_16`' in markdown('twins', [])
    assert power.power_markdown('twins', []).count('\n') == 1 and 'no ordering' in power.power_text('twins', [])
    assert figures.show_pairs('twins', []).axes[0].texts[0].get_text() == 'no run has this measure yet'
    two = [*twins_runs((10, 11), noise=2.)]
    assert 'not complete: 6 of 60, 0 collapsed' in answers.answers(dict(twins=two)) and 'not judged yet: 2 of 10 seeds' in answers.answers(dict(twins=two))
    assert 'could have seen' not in markdown('twins', two)                        # it would tell the verdict of the pairs that are there
    assert 'could have seen' in markdown('twins', [*twins_runs(range(10, 20), gap=.1, noise=2.)])
    whole = [*twins_runs(range(10, 20), TABLES['twins'].rows)]
    text = answers.answers(dict(twins=whole))
    assert 'all 60 runs are complete, 0 collapsed' in text and text.split('**Does not')[0].count('holds (10 seeds)') == 3 and 'not judged yet' not in text
    assert markdown('twins', whole).count('**holds (10 seeds)**; by joint bits: holds (10 seeds)') == 3
    turned = answers.answers(dict(twins=[*twins_runs(range(10, 20), gap=-3.)]))
    assert 'Reversed: on `twins`, attention at 16' in turned and 'No ordering of a table that was written down' in turned
    lost = [*twins_runs(range(10, 20), spread=.1)]
    assert 'of 60, 30 collapsed' in answers.answers(dict(twins=lost)) and '| 10 of 10 |' in markdown('twins', lost)


def test_the_second_table_of_twins_is_judged_by_joint_bits_when_all_seeds_are_there():
    "Not before: the design fixes their number, and a verdict at every look would come out too often."
    most, whole = ([*twins_runs(range(20, last))] for last in (43, 44))
    text = answers.answers(dict(twins=[], twins_again=most))
    assert 'holds (' not in text and text.count('not judged yet: 23 of 24 seeds') == 2 and 'joint bits [' not in text
    assert tables.tally(TABLES['twins_again'], most) == '2 comparisons written down before the first run: 2 not judged yet.'
    text = answers.answers(dict(twins=[], twins_again=whole)).split('**Does not')[0]
    assert text.startswith('**Holds.** On `twins` again, attention at 16 is better than ') and text.count('joint bits [') == text.count('holds (24 seeds)') == 2
    assert markdown('twins_again', whole).count('**holds (24 seeds)**; by the sum of bits: holds (24 seeds)') == 2


def test_seeds_that_a_design_does_not_ask_for_are_shown_and_not_judged():
    "To add seeds until a claim holds would be to stop where chance is kind."
    plan, rows = TABLES['twins_at_8'], ('t1_none', 't1_attn_8', 't1_res_8')
    asked = [*twins_runs(range(44, 56), rows)]
    extra = [*twins_runs(range(6), rows)]
    for o in extra:
        o['status'] = 'stopped'
        if o['row'] == 't1_attn_8': o['records'][2]['value'] += 50
    results = dict(twins=[], twins_at_8=asked + extra)
    assert shares(asked + extra, plan) == shares(asked, plan) and power.power_rows(plan, asked + extra) == power.power_rows(plan, asked)
    assert tables.tally(plan, asked + extra) == tables.tally(plan, asked) and answers.answers(results) == answers.answers(dict(twins=[], twins_at_8=asked))
    text = markdown('twins_at_8', asked + extra)
    assert 'ended early' not in text and 'shown but not judged: 0, 1, 2, 3, 4, 5.' in text and '| 18 |' in text and '(12 seeds)' in text and 'not judged' not in markdown('twins_at_8', asked)
    drawn = figures.show_pairs('twins_at_8', asked + extra, 'joint').axes[1]
    assert {len(o.get_xdata()) for o in drawn.lines if o.get_marker() == 'o'} == {12}
    few = [*twins_runs(range(50, 52), rows), *extra]             # eight seeds, two of them its own
    assert 'not judged yet: 2 of 12 seeds' in markdown('twins_at_8', few) and tables.tally(plan, extra) == ''


def test_the_figure_of_a_table_shows_the_measure_that_decides():
    assert figures.deciding_measure(TABLES['twins_at_8'], [*twins_runs((44,))]) == 'joint' and figures.deciding_measure(TABLES['twins'], [*twins_runs((10,))]) == 'mi'
    assert figures.deciding_measure(TABLES['table1'], collect(ROOT/'results'/'table1')) == figures.deciding_measure(TABLES['twins'], []) == 'distance'


def test_a_claim_that_is_not_finished_frees_no_part_of_the_five_percent():
    "Holm's rule would divide by one less for each claim that holds before it; half of the seeds of one are no verdict."
    plan, half = TABLES['twins_at_8'], lambda o: o['row'] != 't1_res_8' or o['seed'] < 50
    part = [*filter(half, twins_runs(range(44, 56), ('t1_none', 't1_attn_8', 't1_res_8')))]
    for o in part:
        if o['row'] != 't1_attn_8': o['records'][2]['value'] -= 3 if o['row'] == 't1_none' else 10       # the clearer one is not finished
    assert {other: m for (_, other, _), m in shares(part, replace(plan, whole=False)).items()} == dict(t1_none=2, t1_res_8=1)
    assert {*shares(part, plan).values()} == {2} and power.ruling(plan, part, 't1_attn_8', 't1_none', 'joint', 2) == 'not judged yet: all 12 seeds, and waits for the runs of the other claims'      # its design: all, or nothing
    text = answers.answers(dict(twins=[], twins_at_8=part))
    assert '**Runs.**' in text and text.split('**Runs.**')[1].count('residual block of equal size at 8: not judged yet: 6 of 12 seeds') == 1


def test_a_claim_between_other_measures_frees_no_part_of_the_five_percent_and_shows_no_difference():
    plan, runs = TABLES['twins_at_8'], [*twins_runs(range(44, 56), ('t1_none', 't1_attn_8', 't1_res_8'))]
    for o in runs:
        if o['row'] == 't1_attn_8': o['records'][2]['value'] += 3
        if o['row'] == 't1_none': o['records'][2] |= dict(value=o['records'][2]['value'] - 45, n_fake=7)
    assert shares(runs, plan)['t1_attn_8', 't1_res_8', 'joint'] == 2
    text = answers.answers(dict(twins=[], twins_at_8=runs))
    assert 'attention at 8 is better than none: not comparable: by other' in text and '+4' not in text


def test_a_run_that_ended_without_a_number_is_not_waited_for():
    plan, runs = TABLES['twins_at_8'], [*twins_runs(range(44, 56), ('t1_none', 't1_attn_8', 't1_res_8'))]
    next(o for o in runs if o['row'] == 't1_none')['records'] = []
    assert 'not judged: 1 of 12 seeds ended without a number' in markdown('twins_at_8', runs)
    assert '1 not judged' in tables.tally(plan, runs) and 'not judged yet' not in tables.tally(plan, runs)
    for o in runs:
        if o['row'] == 't1_none': o['records'] = []
    assert '1 not judged' in tables.tally(plan, runs) and 'not judged yet' not in tables.tally(plan, runs)


def test_samples_are_shown_pixel_for_pixel(tmp_path):
    "Side by side where a page has room, below each other where it has not; every pixel of the file is one of the figure."
    names, rng = ('f3_sn_d', 'f3_sn_gd', 'f3_sn_gd_ttur'), np.random.default_rng(0)
    for width, places in ((278, [(0, 0), (290, 0), (580, 0)]), (562, [(0, 0), (0, 162), (0, 324)])):
        images = {name: rng.integers(0, 256, (138, width, 3), np.uint8) for name in names}
        for name, image in images.items(): Image.fromarray(image).save(tmp_path/f'{name}.png')
        fig = figures.show_samples('fig3', [dict(row=o, name=o, seed=0) for o in names], tmp_path)
        fig.canvas.draw()
        drawn = np.asarray(fig.canvas.buffer_rgba())[..., :3]
        for (x, y), image in zip(places, images.values()):
            assert np.array_equal(drawn[y + 24:y + 162, x:x + width], image)
            assert (drawn[y:y + 24, x:x + 50] < 128).any()                          # its title


def test_a_table_for_a_page_counts_its_verdicts_and_loses_nothing():
    whole = [*twins_runs(range(10, 20), TABLES['twins'].rows)]
    page = tables.folded_table('twins', whole)
    seen = re.sub(r'(?s)<details>.*?</details>', '', page)
    assert '3 comparisons written down before the first run: 3 hold.' in seen and '| `t1_attn_16` attention at 16 | 10 |' in seen
    assert '**holds (10 seeds)**' not in seen and page.count('**holds (10 seeds)**') == 3 and 'Commit: ' in page and 'Commit: ' not in seen
    turned = tables.tally(TABLES['twins'], [*twins_runs(range(10, 20), gap=-3.)])
    assert turned == '3 comparisons written down before the first run: 2 reversed, 1 not judged yet.'
    assert tables.tally(TABLES['twins'], []) == ''


def test_a_claim_that_lost_all_its_pairs_is_told_and_runs_that_ended_early_are_counted():
    runs = [dict(o, status='diverged: planted', records=[]) if o['row'] == 't1_none' else o for o in twins_runs(range(44, 56), TABLES['twins_at_8'].rows)]
    text = answers.answers(dict(twins=[], twins_at_8=runs))
    assert 'not judged: 12 of 12 seeds ended without a number' in text and 'all 36 runs are there, 0 collapsed, 12 ended early' in text
    assert 'complete, 0 collapsed, ' not in answers.answers(dict(twins=[], twins_at_8=[*twins_runs(range(44, 56), TABLES['twins_at_8'].rows)]))


def test_rows_of_other_images_are_not_compared():
    runs = [*twins_runs(range(3))]
    for o in runs:
        for r in o['records']: r['data_id'] = 'other' if o['row'] == 't1_none' else 'one'
    assert verdict(runs, 't1_attn_16', 't1_none', 'mi').startswith('not comparable') and not verdict(runs, 't1_attn_16', 't1_res_16', 'mi').startswith('not comp')


def resolved_elsewhere(found):
    "Whether a claim outside of twins holds or is reversed."
    sorted_ = [answers.sorted_claims(name, TABLES[name].of_its_seeds(runs)) for name, runs in found.items()]
    return any(o[key] for o in sorted_ for key in ('holds', 'is reversed'))


def test_a_verdict_on_photographs_is_seen_once_all_nine_runs_are_there():
    record = lambda row, seed: dict(metric='Fréchet classifier distance', value=9. + .1*seed - 5*(row == 't1_attn_16'), features='planted', features_hash='0')
    runs = [dict(row=row, seed=seed, records=[record(row, seed)], status='finished', collapse=[]) for seed in range(3) for row in TABLES['photographs'].rows]
    assert resolved_elsewhere(dict(photographs=runs)) and not resolved_elsewhere(dict(photographs=runs[:-1]))


def test_pages_count_the_claims_that_hold():
    "Thirteen on twins, of which five hold; nothing that was written down beforehand holds elsewhere."
    twins, others = ({name: collect(ROOT/'results'/name) for name in names}
                     for names in (('twins', 'twins_at_8', 'twins_again'), ('photographs', 'fig3_photographs', 'table1', 'fig3', 'table2')))
    said = [*mechanism.mechanism_words(mechanism.mechanism_runs(ROOT/'results'/'twins'/'mechanism.json')), *takeoff.probe_words(takeoff.probe_runs(ROOT/'results'/'probe'))]
    sorted_ = [answers.sorted_claims(name, TABLES[name].of_its_seeds(runs)) for name, runs in twins.items()]
    claims = [words for o in sorted_ for key in ('holds', 'open', 'unfinished', 'is reversed') for words in o[key]] + said
    assert (len(claims), sum(', holds' in o for o in claims)) == (13, 5)
    assert not resolved_elsewhere(others)
    pages = {name: ' '.join((ROOT/name).read_text(encoding='utf-8').split()) for name in ('README.md', 'docs/tour.md')}
    assert 'thirteen comparisons were written down beforehand. Five hold' in pages['README.md'] and 'Eight are not resolved, among them three of' in pages['README.md']
    assert 'five of thirteen comparisons that were written down beforehand' in pages['docs/tour.md']
    for name in ('photographs', 'fig3_photographs'):
        assert len(answers.sorted_claims(name, TABLES[name].of_its_seeds(others[name]))['open']) == 2
    assert pages['README.md'].count('Neither is resolved') == 2 and 'Neither is resolved' in pages['docs/tour.md']
    assert 'that each remedy is better, is not resolved' in pages['docs/tour.md']


def test_the_map_of_the_paper_shows_the_numbers_of_the_tables():
    "And not those of the same rows with other rates, or run again."
    from tools.site import pages
    for row in TABLES['fig3'].rows:
        values = [r['value'] for o in collect(ROOT/'results'/'fig3') if o['row'] == row for r in o['records'] if r['metric'] == 'Fréchet classifier distance']
        state, numbers = pages.ours(row)
        assert ', 3 seeds' in state and numbers.startswith(f'Fréchet classifier distance {np.mean(values):.2f};')


def test_how_a_table_was_made_names_files_and_not_where_they_lie():
    for name, said in (('../cifar10-train.zip', 'cifar10-train.zip'), ('/home/me/my data/photos.zip', 'photos.zip'), ('C:\\My data\\x.zip', 'x.zip'), ('toy:4', 'toy:4'),
                       ('a/photos.zip:train/real', 'photos.zip:train/real'), ('classifier of ../cifar10-train.zip', 'classifier of cifar10-train.zip')):
        assert tables.file_alone(name) == said


def test_runs_on_photographs_beside_held_out_images():
    record = lambda metric, value, **more: dict(metric=metric, value=value, n_fake=2000, n_real=1000, **more)
    runs = [dict(row=row, seed=s, copies=dict(generated=.01*s, real=.02), usage={'16': dict(ratio=.1*s)} if row == 't1_attn_16' else {}, silenced=[record('Fréchet classifier distance', 9. + s)]*(row == 't1_attn_16'),
                 held_out=[record('Fréchet classifier distance', 2. + s - .5*(row == 't1_attn_16')*(1 + s)), record('diversity', .25, real=.5)])
            for row in ('t1_res_16', 't1_none', 't1_attn_16') for s in (0, 1, 2, 7)]
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in held_out.held_out_table(runs).replace('\u00a0', ' ').splitlines()]
    *lines, _, (note,) = lines
    assert [o[0] for o in lines] == ['', '---', '`t1_none` no block', '`t1_attn_16` attention at 16', '`t1_res_16` residual at 16', 'real images', 'attention at 16 minus no block', 'attention at 16 minus residual at 16']
    assert len({len(o) for o in lines}) == 1
    assert lines[2] == ['`t1_none` no block', '3', '3 ± 1', '-', '-', '-', '0.25 ± 0', '1 ± 1', '-', '-'] and lines[3][-2:] == ['10 ± 1', '10 ± 10']
    assert lines[5] == ['real images', '-', '-', '-', '-', '-', '0.5', '2', '-', '-']
    low, high = stats.ttest_1samp([-.5, -1, -1.5], 0).confidence_interval()
    assert lines[6][:3] == ['attention at 16 minus no block', '3 pairs', f'-1 [{low:.3g}, {high:.3g}]'] and lines[6][3:] == ['-', '-', '-', '+0', '-', '-', '-']
    assert '2,000 generated images against 1,000' in note
    with pytest.raises(Refused, match='no run was measured'): held_out.held_out_table([])
    runs[0]['held_out'][0]['features_hash'] = 'another'
    with pytest.raises(Refused, match='not measured alike'): held_out.held_out_table(runs)


def test_a_claim_by_distance_says_which_way_is_better():
    values = dict(t1_none=[5., 5.1, 5.2], t1_attn_16=[3., 3.2, 3.1], t1_res_16=[5.1, 5., 5.2])
    runs = [dict(row=row, seed=s, numerics=NUMERICS, collapse=[], records=[dict(metric='Fréchet classifier distance', value=v)])
            for row, own in values.items() for s, v in enumerate(own)]
    text = answers.answers(dict(twins=[], photographs=runs))
    assert 'attention at 16 is better than none: -2.00 distance (less is better) [-2.36, -1.64], holds (3 seeds)' in text, text


@pytest.mark.parametrize('name', ['table1', 'table2', 'fig3', 'reduction', 'best', 'twins'])
def test_tables_fit_a_terminal(name, monkeypatch):
    "Of 100 columns, as a table and not as paragraphs."
    monkeypatch.setenv('COLUMNS', '100')
    said = terminal.show_markdown(markdown(name, collect(ROOT/'results'/name)))
    assert '───' in said and max(map(len, said.splitlines())) <= 100


def test_what_a_table_could_have_seen(tmp_path, monkeypatch, capsys):
    "What it says for the number of seeds and the spread at hand; that four in five tables then resolve it, chapter 12 draws."
    d = power.spread_of([*twins_runs(range(10, 20))], 't1_attn_16', 't1_none', 'mi')
    assert .3 < d < 1.3                                                            # noise of two rows, without the seed's luck: .7
    row = next(o for o in power.power_rows(TABLES['twins'], [*twins_runs(range(10, 20), gap=0.)]) if 'none' in o['words'])
    assert row['verdict'].startswith('not resolved') and row['low'] < row['mean'] < row['high'] and row['among'] == 3
    assert row['wanted'] == 4 and detectable(row['spread'], row['seeds'], 3) <= 4 < detectable(row['spread'], row['seeds'] - 1, 3)
    assert abs(row['seen'] / detectable(1., 10, 3) / row['spread'] - 1) < 1e-9
    equal = [*twins_runs(range(10, 20), gap=0., noise=0.)]
    assert power.power_markdown('twins', equal).count(power.SAME) == 2 and 'could have seen' not in '\n'.join(tables.sentences(TABLES['twins'], equal))
    for o in twins_runs(range(10, 14)): (tmp_path/f'{o["name"]}.json').write_text(json.dumps(o))
    monkeypatch.setattr(sys, 'argv', ['sagan_table', 'twins', '--power', '--out', str(tmp_path)])
    cli.sagan_table()
    assert 'attention at 16 is better than none, by bits, 4 seeds' in capsys.readouterr().out
    with pytest.raises(Refused, match='no results of fig3 here'): cli.sagan_table('fig3', power=True, out=str(tmp_path))


def test_a_published_difference_asks_for_seeds():
    "Attention at 16: the paper's FID is 22.14 against 22.96, so 3.6 % of what the worse row has here."
    size, why = power.stated_difference(collect(ROOT/'results'/'table1'), 't1_attn_16', 't1_none', 'distance')
    worse = [o['value'] for r in collect(ROOT/'results'/'table1', ['t1_none']) for o in r['records'] if o['metric'].startswith('Fr')]
    assert abs(size / (sum(worse)/len(worse)*(22.14/22.96 - 1)) - 1) < 1e-9 and why == 'published: -4%'


def test_sagan_table_knows_the_probe(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['sagan_table', 'probe', '--rows', 't1_none', '--seeds', 'x', '--out', str(tmp_path)])
    with pytest.raises(SystemExit) as e: cli.sagan_table()
    assert e.value.code == 1 and 'sagan_table probe: seeds are like' in capsys.readouterr().err
    monkeypatch.setattr(sys, 'argv', ['sagan_table', 'probe', '--seeds', '10', '--minutes', '0', '--out', str(tmp_path)])
    with pytest.raises(SystemExit) as e: cli.sagan_table()
    assert e.value.code == 3 and '7 of 7 runs are missing' in capsys.readouterr().out
