"Serves chapter 16: what a run ends with: its pictures, curves, scores and page; what fails of it costs nothing else."
import sys
from pathlib import Path

from ..config import PRESETS
from ..core import Refused, save_fig, show_grid
from ..train import GAN, draw, fixed_noise, show_curves
from .door import open_run
from .evaluate import as_table, save_records
from .features import TooFew
from .guard import incidents
from .jobs import measure
from .options import command_path, fault_line, free_path, say_next
from .report import report
from .runs import read_log, with_numbers
from .summary import say_attention
from .terminal import wrap

WRITTEN = {'report.html': 'all of it on one page', 'real.png': 'real images, one row per class',
           'samples.png': 'one row per class', 'curves.png': 'logits, losses, attention, norms',
           'metrics.json': 'the numbers above, with how they were made', 'log.jsonl': 'everything logged',
           'incidents.jsonl': 'what went wrong on the way', 'checkpoints': 'to go on from'}


def write_samples(
    gan:GAN,                  # a trained model
    source,                   # the real pictures
    out:Path,                 # its run folder
):
    "Write samples.png, one row per class."
    names, cfg, (z, y) = list(source.classes)[:10], gan.cfg, fixed_noise(gan.cfg)
    grid = show_grid(draw(open_run(out, gan.device).G, z, y), 12, rows=names, title=f'{cfg.preset}, step {gan.t}')
    save_fig(grid, out/'samples.png', dpi=150)


def write_curves(
    gan:GAN,                  # a trained model
    source,                   # the real pictures
    out:Path,                 # its run folder
):
    "Write curves.png."
    title = f'{gan.cfg.preset}, {gan.cfg.scale} scale, seed {gan.cfg.seed}'
    log = with_numbers(read_log(out/'log.jsonl'), 'loss_d', 'loss_g', 'd_real', 'd_fake')
    save_fig(show_curves(log, title), out/'curves.png')


def write_metrics(
    gan:GAN,                  # a trained model
    source,                   # the real pictures
    out:Path,                 # its run folder
    features='domain',        # as of `measure`
):
    "Measure, all ranks together; write metrics.json, and print the numbers."
    try: records = measure(out, source, gan.device, features, ranks=gan.ranks)
    except TooFew as e: return gan.ranks.first and print(f'not measured: {e}')       # as was said before the run
    if not gan.ranks.first: return
    save_records(out/'metrics.json', records)
    print(f'\n{wrap(as_table(records))}\nOne seed: shows the machinery, decides nothing.\n')


def write_report(
    gan:GAN,                  # a trained model
    source,                   # the real pictures
    out:Path,                 # its run folder
):
    "Write report.html, but at smoke scale."
    if gan.cfg.scale != 'smoke': report(out, source=source, device=gan.device)


def say_incidents(
    gan:GAN,                  # a trained model
    source,                   # the real pictures
    out:Path,                 # its run folder
):
    "Say how much went wrong on the way, and what first."
    if not (seen := incidents(out)): return
    print(wrap(f'{len(seen)} incidents on the way, the first at step {seen[0]["t"]}: {seen[0]["words"]}'))


def say_attention_use(
    gan:GAN,                  # a trained model
    source,                   # the real pictures
    out:Path,                 # its run folder
):
    "Say whether attention came to be used."
    log = read_log(out/'log.jsonl')
    if gan.cfg.block == 'attention' and any('usage_G' in o for o in log):
        print(wrap(f'Attention in {say_attention(log)}'))


ENDINGS = {'samples.png': write_samples, 'curves.png': write_curves, 'metrics.json': write_metrics,
           'report.html': write_report, 'log.jsonl': say_attention_use, 'incidents.jsonl': say_incidents}


def fault_words(
    e:Exception,              # what went wrong
)->str:                       # one line
    "Say what happened; of a bug, its kind and its words."
    return fault_line(e, '') or f'{type(e).__name__}: {e}'


def summarise(
    gan:GAN,                  # a trained model
    source,                   # the real pictures
    out,                      # its run folder
    features='domain',        # what the scores measure with, as of `evaluate`
):
    """Write pictures, curves, scores and page into the run folder, and say where they are and what to try next. A part
    that fails costs no other. All ranks call this, and measure; rank 0 does the rest. Raises Refused, naming those that
    failed, and the command that makes up for them."""
    out, failed = Path(out), {}
    if not gan.ranks.first:
        try: return write_metrics(gan, source, out, features)
        except Exception as e:                                       # rank 0 has the word
            return print(f'rank {gan.ranks.rank}: {fault_words(e)}', file=sys.stderr)
    for name, write in ENDINGS.items():
        more = [features] if name == 'metrics.json' else []
        try: write(gan, source, out, *more)
        except Exception as e: failed[name] = fault_words(e)
    for name, what in WRITTEN.items():
        if (out/name).exists() and name not in failed: print(f'  {out/name}   {what}')
    chosen = ['--features', features] if isinstance(features, str) and features != 'domain' else []
    again = ('sagan_train', '--resume', '--out', out, *chosen)
    if failed:
        words = '; '.join(f'{name} ({why})' for name, why in failed.items())
        raise Refused(f'the run is trained and saved, but not made are: {words}. '
                      f'To make up for it: {command_path(*again)}')
    measured = [('sagan_eval', out, '--metrics', 'kid,prdc')] if (out/'metrics.json').exists() else []
    preset = gan.cfg.preset
    fits = preset in PRESETS and max(PRESETS[preset].attn_at, default=0) <= 16       # maps that 32 pixels have
    row = preset if fits else 't1_attn_16'
    say_next(('sagan_sample', out, '--n', 64, '--out', 'more.png'), *measured, (*again, '--steps', 2*gan.cfg.steps),
             ('sagan_train', row, '--data', 'YOUR_FOLDER', '--scale', 'laptop', '--out', free_path('runs/mine')))
