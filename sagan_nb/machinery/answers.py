"Serves chapter 12: the answers it opens with, computed: what holds, what does not, what could not be seen."
import math

import numpy as np

from ..ablation import LOWER, TABLES, by_seed, paired_difference, shares
from ..config import NUMERICS, preset
from .mechanism import mechanism_words
from .plan import reported_hours
from .power import SHORT, UNJUDGED, plain, power_rows, ruling
from .tables import has_collapsed
from .takeoff import probe_missed, probe_words

PLACES = dict(twins='`twins`', twins_at_8='`twins`, new seeds', twins_again='`twins` again',
              photographs='photographs', photographs_64='photographs of 64 pixels',
              fig3_photographs='photographs, Figure 3',
              table1='Table 1 on pairs', fig3='Figure 3', table2='Table 2')


def listed(
    parts: list,              # texts
) -> str:
    "Join texts with commas and an and."
    if len(parts) < 2: return ''.join(parts)
    return f'{", ".join(parts[:-1])} and {parts[-1]}'


def capital(
    text: str,                # a sentence
) -> str:
    "Begin with a capital letter."
    return text[:1].upper() + text[1:]


def bullets(
    parts: list,              # texts
) -> str:                     # Markdown
    "List texts as sentences."
    return '\n'.join(f'- {capital(o)}.' for o in parts)


def planned(
    name: str,                # a key of TABLES, with seeds
) -> int:
    "Count the runs that a design asks for."
    plan = TABLES[name]
    return len(plan.rows)*len(plan.seeds) - len(plan.once)*(len(plan.seeds) - 1)


def progress_words(
    name: str,                # a key of TABLES, with seeds
    results: list,            # its runs
) -> str:
    "Say how many runs are complete, how many collapsed, and how many ended early."
    plan = TABLES[name]
    own = [o for o in results if o['row'] in plan.rows]
    n, fell = len(own), f'{sum(map(has_collapsed, own))} collapsed'
    if lost := sum(o.get('status', 'finished') != 'finished' for o in own): fell += f', {lost} ended early'
    ended = 'there' if lost else 'complete'
    if n == planned(name): return f'all {n} runs are {ended}, {fell}'
    state = f'the runs are not complete: {n} of {planned(name)}'
    if n and not any(plan.missing(results, a, b, kind) for a, b, _ in plan.claims for kind in plan.kinds):
        state += ', all that its claims need among them'
    return f'{state}, {fell}' if n else state


def claim_words(
    name: str,                # a key of TABLES, with seeds
    results: list,            # runs
    claim: tuple,             # better, worse, words
    among: int,               # as of `verdict`
) -> str:
    "Say what became of one claim, in the unit of its measure."
    (a, b, words), kind = claim, TABLES[name].kinds[0]
    found = ruling(TABLES[name], results, a, b, kind, among)
    d, low, high, n = paired_difference(results, a, b, kind, 1 - .05/among)
    if found.startswith(UNJUDGED): return f'on {PLACES[name]}, {words}: {found}'
    digits = 2 if kind in LOWER else 1                       # a distance may be below one
    ends = '' if math.isnan(low) else f' [{low:+.{digits}f}, {high:+.{digits}f}]'
    better = ' (less is better)' if kind in LOWER else ''
    return f'on {PLACES[name]}, {words}: {d:+.{digits}f} {SHORT[kind]}{better}{ends}, {found}'


def sorted_claims(
    name: str,                # a key of TABLES
    results: list,            # runs
) -> dict:                    # 'holds', 'is reversed', 'open', 'unfinished' -> texts
    """Sort the claims of a table by what became of them. Left out are those that were not run and, in a table without
    seeds of its own, those between different measures."""
    plan, among = TABLES[name], shares(results, TABLES[name])
    out = {'holds': [], 'is reversed': [], 'open': [], 'unfinished': []}
    for (a, b, kind), m in among.items():
        words = next((text for x, y, text in plan.claims if (x, y) == (a, b)), None)
        if words is None: continue
        found = ruling(plan, results, a, b, kind, m)
        if not plan.seeds and found.startswith(UNJUDGED) or found == 'not run': continue
        ended = found.startswith('not judged:')                            # nothing more is to come
        other = 'unfinished' if plan.missing(results, a, b, kind) and not ended else 'open'
        first = next((key for key in ('holds', 'is reversed') if found.startswith(key)), other)
        by = claim_words(name, results, (a, b, words), m) if plan.seeds else f'{words} (by {kind}, {PLACES[name]})'
        out[first].append(by)
    return out


def missed_words(
    name: str,                # a key of TABLES
    results: list,            # runs
) -> str:                     # empty where nothing is open
    "Say how large a difference a table could have missed."
    rows = [o for o in power_rows(TABLES[name], results) if o['verdict'].startswith('not res')]
    parts = []
    for kind, unit in (('mi', 'bits'), ('joint', 'joint bits'), ('distance', 'of distance')):
        sizes = sorted(o['seen'] for o in rows if o['kind'] == kind)
        if sizes: parts.append(f'{" to ".join(dict.fromkeys(map(plain, (sizes[0], sizes[-1]))))} {unit}')
    return f'{PLACES[name]}: {", ".join(parts)}' if parts else ''


def reached_words(
    results: list,            # runs of twins
) -> list:                    # one text; none without runs
    "Say how far the rows are from the real images."
    real = [o['real'] for r in results for o in r['records'] if o['metric'] == 'long_range_mi' and 'real' in o]
    means = [np.mean(list(found.values())) for row in TABLES['twins'].rows if (found := by_seed(results, row, 'mi'))]
    if not (real and means): return []
    return [f'on `twins`, the best row has {max(means):.1f} of the {real[0]:.0f} bits of real images']


def inside_and_alone(
    inside: list,             # from `mechanism_runs`
    alone: dict,              # from `probe_runs`
    held: bool,               # the claims that hold, or all others
) -> list:                    # a text for each claim
    "Say what attention does in trained generators of twins, and in D alone."
    found = [f'inside trained generators of `twins`, {o}' for o in mechanism_words(inside)]
    return [o for o in [*found, *probe_words(alone or {})] if (', holds' in o) == held]


def large_maps() -> list:     # texts
    "List the maps of Table 1 that need larger images than 32 px."
    return [str(m) for m in sorted({m for row in TABLES['table1'].rows for m in preset(row).attn_at if m > 16})]


def open_orderings(
    found: dict,              # name of a table -> from `sorted_claims`
) -> list:                    # one text, or none
    "Count the open orderings of the tables that name no seeds."
    texts = {name: o['open'] for name, o in found.items() if not TABLES[name].seeds}
    claims = {name: {text.split(' (by ')[0] for text in own} for name, own in texts.items()}
    counts = [f'{len(own)} in {PLACES[name]}' for name, own in claims.items() if own]
    return [f'orderings not resolved by bits, by distance, or both: {listed(counts)}'] if counts else []


def unseen_words(
    results: dict,            # name of a table -> its runs
    alone: dict,              # from `probe_runs`
) -> str:                     # a paragraph
    "Say what these tables could not show."
    sizes = [*(missed_words(name, runs) for name, runs in results.items()), probe_missed(alone)]
    missed = '; '.join(filter(None, sizes))
    old = sorted({str(o['numerics']) for runs in results.values() for o in runs} - {str(NUMERICS)})
    least, most = reported_hours()
    out = ['**Could not be seen.**']
    if missed:
        out.append('A true difference of this size would have been found four times in five, a smaller one less often: '
                   f'{missed}. Where seeds are few, these sizes are themselves rough.')
    out.append(f"The paper's best maps, {listed(large_maps())}, need larger images, "
               f'and its million updates of ImageNet a GPU: {least:,.0f} to {most:,.0f} hours of a V100 for each row '
               'and seed, by what others report (`sagan_table table1 --data toy --scale paper --plan step=SECONDS`).')
    versions = f"version {listed(old)} of the numbers (today's is {NUMERICS})"
    unfair = ("are not comparable with today's: attention's raw weights started narrower than its controls'. "
              'Spectral norm divides that out at first; Adam then turns them faster')
    if old: out.append(f'Tables of {versions} {unfair}.')
    return ' '.join(out)


def answers(
    results: dict,            # name of a table, twins among them -> its runs
    inside: list = (),        # runs from `mechanism_runs`
    alone: dict = None,       # runs from `probe_runs`
) -> str:                     # Markdown
    "Write what holds, what does not, and what could not be seen, from results alone."
    results = {name: TABLES[name].of_its_seeds(runs) for name, runs in results.items()}
    found = {name: sorted_claims(name, runs) for name, runs in results.items()}
    holds, turned = ('; '.join(text for o in found.values() for text in o[key]) for key in ('holds', 'is reversed'))
    first = capital(holds or 'no ordering of a table that was written down before its runs is confirmed')
    second = f'Reversed: {turned}' if turned else 'No ordering of a table is reversed'
    own = [name for name in results if TABLES[name].seeds]
    progress = [f'on {PLACES[name]}, {progress_words(name, results[name])}' for name in own]
    unsure, begun = ([text for name in own for text in found[name][key]] for key in ('open', 'unfinished'))
    doubts = [*inside_and_alone(inside, alone, False), *unsure]
    if unsure or any(found[name]['holds'] for name in own):
        doubts.append("each interval is at the share of the 5 % that Holm's rule gives its claim among those of its "
                      'table, those of D alone at their own 95 %')
    out = [f'**Holds.** {first}.']
    if also := inside_and_alone(inside, alone, True): out.append(bullets(also))
    out += [f'**Does not hold, or is not resolved.** {second}.',
            bullets([*doubts, *reached_words(results['twins']), *open_orderings(found)])]
    if own: out.append(f'**Runs.** {capital("; ".join([*progress, *begun]))}.')
    return '\n\n'.join([*out, unseen_words(results, alone or {})])
