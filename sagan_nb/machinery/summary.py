"Serves chapter 15: the first lines of a run's page: what it drew, its scores, its attention, signs of collapse."
import html
import math
from pathlib import Path

from ..ablation import collapse
from ..config import Config
from ..core import Refused
from ..networks import Generator
from ..train import draw, fixed_noise
from .evaluate import run_scores
from .html import pictures_html
from .options import command_path
from .runs import read_log, with_numbers

UNUSED = .001                 # |gamma o| / |x| below which a layer is called hardly used


def say_scores(
    run:Path,                 # run folder
)->str:                       # a sentence
    "Say the scores, each next to that of real pictures."
    try: records = run_scores(run)
    except Refused: return 'metrics.json is damaged: delete it, and sagan_eval makes it anew.'
    if not records: return f'Not measured yet: {command_path("sagan_eval", run)} does it.'
    def number(v): return f'{v:.3g}' if isinstance(v, (int, float)) else str(v)
    said = []
    for o in records:
        if o.get('splits', 1) != 1: continue
        real = f' (real pictures {number(o["real"])})' if o.get('real') is not None else ''
        said.append(f'{o["metric"]} {number(o["value"])}{real}')
    return '; '.join(said) + '. How each was made stands under Metrics.'


def say_attention(
    log:list,                 # from `read_log`
)->str:                       # a sentence
    "Say whether attention is used, by the last line of the log."
    used = []
    for net in 'GD':
        last = next((o[f'usage_{net}'] for o in reversed(log) if f'usage_{net}' in o), {})
        for size, o in last.items():
            if 'ratio' not in o: continue
            word = 'hardly used' if o['ratio'] < UNUSED else 'used'
            used.append(f'{net}, map {size}: {word}, it adds {o["ratio"]:.1%} of what passes through')
    return '; '.join(used) + '.' if used else 'There is no attention in this run, or its log has no line yet.'


def say_collapse(
    run:Path,                 # run folder
    cfg:Config,               # of the run
    log:list,                 # from `read_log`
)->str:                       # a sentence
    "Say the signs of collapse (chapter 12), by the log and, where there is one, the curve of the run."
    log, curve = with_numbers(log, 'loss_d'), read_log(run/'curve.jsonl')
    if not log and not with_numbers(curve, 'diversity'): return 'Unknown: the log has no line yet.'
    signs = curve and curve[-1].get('collapse')                # a look knows the real diversity
    if not signs: signs = collapse(log, [], math.inf, cfg.steps)
    looked = '' if curve else ' Diversity was not looked at; sagan_table does.'
    if not signs: return f'None found.{looked}'
    return '; '.join(f'{o["sign"]} at step {o["t"]} ({o["words"]})' for o in signs) + f'.{looked}'


def summary_html(
    run:Path,                 # run folder
    cfg:Config,               # of the run
    step:int,                 # updates of G
    G:Generator,              # from `sampler`
    names:list,               # class names
    log:list,                 # from `read_log`
)->str:                       # HTML
    "A few pictures and four answers."
    few = [*names[:10], '...'] if len(names) > 10 else names
    classes = f'{len(names)} classes ({", ".join(few)})' if names else 'pictures without classes'
    answers = {
        'What it drew': f'{classes} at {cfg.res}x{cfg.res}, after {step:,} of {cfg.steps:,} updates.',
        'Scores': say_scores(run),
        'Is attention used?': say_attention(log),
        'Signs of collapse': say_collapse(run, cfg, log)}
    rows = ''.join(f'<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>' for k, v in answers.items())
    x = draw(G, *fixed_noise(cfg, 12, 1))[None]
    drawn, caption = names[0] if names else 'the run', 'Twelve draws.'
    rest = 'first ten' if len(names) > 10 else 'classes'
    if names: caption = f'Twelve draws of {drawn}; the {rest} follow below.'
    look = pictures_html(x, f'Twelve generated pictures of {drawn}', caption)
    return f'<dl class=summary>{rows}</dl>{look}'
