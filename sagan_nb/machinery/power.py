"Serves chapter 12: what a table could have seen, and how many seeds a difference needs."
import math

import numpy as np

from ..ablation import (LOWER, TABLES, Plan, by_seed, detectable, measured_alike, name_of, paired_difference,
                        seed_differences, seeds_needed, shares, verdict)
from ..config import PUBLISHED
from .terminal import markdown_table

SAME = 'the runs are equal'
SHORT = dict(distance='distance', mi='bits', joint='joint bits')


def plain(
    x: float,                 # a number
    digits: int = 2,          # significant
) -> str:
    "Return a number as text, without an exponent where it would be short."
    text = f'{x:.{digits}g}'
    return f'{float(text):,.0f}' if 'e+' in text and x < 1e9 else text


UNJUDGED = 'not judged', 'not comparable'              # with these a ruling begins that has no difference to show


def ruling(
    plan: Plan,               # which table
    results: list,            # runs
    better: str,              # a row
    worse: str,               # another
    kind: str,                # metric
    among: int,               # as of `verdict`
) -> str:
    "Judge an ordering as `verdict` does: by the seeds that the design asks for, and not before all of them are there."
    results, wanted, left = plan.of_its_seeds(results), len(plan.seeds), plan.missing(results, better, worse, kind)
    without = max(0, wanted - len(seed_differences(results, better, worse, kind)))
    absent = {(row, s) for row in (better, worse) for s in plan.seeds} - {(o['row'], o['seed']) for o in results}
    if without and not absent: return f'not judged: {without} of {wanted} seeds ended without a number'
    if not without and left: return f'not judged yet: all {wanted} seeds, and waits for the runs of the other claims'
    if left and without < wanted: return f'not judged yet: {wanted - without} of {wanted} seeds'
    return verdict(results, better, worse, kind, among)


def spread_of(
    results: list,            # runs
    better: str,              # a row
    worse: str,               # another
    kind: str,                # metric
) -> float:                   # nan with fewer than two pairs, or between other measures
    "Compute the standard deviation of the paired differences."
    d = seed_differences(results, better, worse, kind)
    if len(d) < 2 or not measured_alike(results, (better, worse), kind): return math.nan
    return float(d.std(ddof=1))


def could_have_seen(
    results: list,            # runs
    better: str,              # a row
    worse: str,               # another
    kind: str,                # metric
    among: int,               # as of `verdict`
) -> str:                     # for the end of a sentence; empty where the ordering is decided, or nothing can be said
    "Say which true difference an undecided ordering would most likely have shown."
    spread = spread_of(results, better, worse, kind)
    if not spread > 0 or not verdict(results, better, worse, kind, among).startswith('not resolved'): return ''
    n = len(seed_differences(results, better, worse, kind))
    return f'; could have seen {plain(detectable(spread, n, among))}'


def stated_difference(
    results: list,            # runs
    better: str,              # a row
    worse: str,               # another
    kind: str,                # metric
) -> tuple:                   # size, and where it is from
    "Name a difference worth seeing: the published one as a share of the other row, or a tenth of the real bits."
    mean = float(np.mean(list(by_seed(results, worse, kind).values())))
    a, b = (PUBLISHED.get(row, {}).get('fid') for row in (better, worse))
    if kind == 'distance' and a and b: return (a[0]/b[0] - 1)*mean, f'published: {a[0]/b[0] - 1:+.0%}'
    if kind in LOWER: return -mean/4, 'a quarter of the other row'
    real = [o['real'] for r in results for o in r['records'] if o['metric'] == name_of(results, kind) and 'real' in o]
    if real: return real[0]/10, 'a tenth of the real images'
    return mean/10, 'a tenth of the other row'


def power_rows(
    plan: Plan,               # which table
    results: list,            # runs
) -> list:                    # dicts: words, kind, n, among, mean, low, high, verdict, spread, seen, wanted, why, seeds
    "Say for each ordering what was seen, what could have been, and the seeds that a difference worth seeing needs."
    out, results = [], plan.of_its_seeds(results)
    for (a, b, kind), among in shares(results, plan).items():
        mean, low, high, n = paired_difference(results, a, b, kind)
        spread = spread_of(results, a, b, kind)
        if not n or math.isnan(spread): continue
        words = next(words for x, y, words in plan.orderings if (x, y) == (a, b))
        wanted, why = stated_difference(results, a, b, kind)
        own = dict(words=words, kind=kind, n=n, among=among, mean=mean, low=low, high=high, spread=spread,
                   wanted=wanted, why=why, verdict=ruling(plan, results, a, b, kind, among),
                   seen=detectable(spread, n, among), seeds=None)
        if spread and wanted: own['seeds'] = seeds_needed(wanted, spread, among)
        out.append(own)
    return out


def power_cells(
    row: dict,                # from `power_rows`
    name: str,                # of the measure
) -> list:                    # texts
    "Write one ordering as cells."
    first, mean, seeds = [row['words'], name, str(row['n'])], f'{row["mean"]:+.3g}', row['seeds'] or 0
    if not row['spread']: return [*first, mean, 'every pair alike' if row['mean'] else SAME, '-', '-']
    return [*first, f'{mean} [{row["low"]:.3g}, {row["high"]:.3g}]', f'{plain(row["seen"])} ({row["among"]})',
            f'{row["wanted"]:+.2g} ({row["why"]})', f'{seeds:,}' if seeds < 10_000 else 'over 10,000']


POWER_HEAD = ['ordering', 'by', 'seeds', 'seen, own 95 %', 'could have seen (among)', 'worth seeing', 'seeds it needs']


def power_table(
    name: str,                # a key of TABLES
    results: list,            # runs
) -> list:                    # rows of texts, the heading first
    "Make the table of power from results alone."
    plan, own = TABLES[name], [o for o in results if o['row'] in TABLES[name].rows]
    return [POWER_HEAD, *[power_cells(row, SHORT[row['kind']]) for row in power_rows(plan, own)]]


def power_markdown(
    name: str,                # a key of TABLES
    results: list,            # runs
) -> str:                     # Markdown
    "Write the table of power for a page."
    head, *rows = power_table(name, results)
    return markdown_table(head, rows)


def power_text(
    name: str,                # a key of TABLES
    results: list,            # runs
) -> str:                     # lines
    "Write the table of power for a terminal: one ordering a paragraph."
    head, *rows = power_table(name, results)
    if not rows: return 'no ordering has two pairs of runs yet'
    out = ['could have seen: the smallest true difference that so many seeds show in four cases of five,',
           'at the level of one among those judged with it (how many: in brackets). The spread of a few',
           'seeds is itself a rough number.']
    for cells in rows:
        out += ['', f'{cells[0]}, by {cells[1]}, {cells[2]} seeds']
        out += [f'    {h:24} {c}' for h, c in zip(head[3:], cells[3:])]
    return '\n'.join(out)
