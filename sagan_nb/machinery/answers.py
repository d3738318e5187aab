"Serves chapter 12: the answers it opens with, computed: what holds, what does not, what could not be seen."
import math

import numpy as np

from ..ablation import TABLES, by_seed, paired_difference, seed_differences, shares, verdict
from ..config import NUMERICS, preset
from .mechanism import mechanism_words
from .power import plain, power_rows
from .tables import has_collapsed

PLACES = dict(twins='twins', table1='Table 1 on pairs', fig3='Figure 3', table2='Table 2')


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


def planned(
    name: str,                # a key of TABLES, with seeds
) -> int:
    "Count the runs that a design asks for."
    return len(TABLES[name].rows)*len(TABLES[name].seeds)


def progress_words(
    results: list,            # runs of twins
) -> str:
    "Say how many runs are complete, and how many of them collapsed."
    plan = TABLES['twins']
    n = sum(o['row'] in plan.rows and o['seed'] in plan.seeds for o in results)
    fell = sum(map(has_collapsed, results))
    if n == planned('twins'): return f'all {n} runs are complete, {fell} collapsed'
    state = f'the runs are not complete: {n} of {planned("twins")}'
    return f'{state}, {fell} collapsed' if n else state


def claim_words(
    results: list,            # runs
    claim: tuple,             # better, worse, words
    among: int,               # as of `verdict`
) -> str:
    "Say what became of one claim of the flagship, in bits."
    a, b, words = claim
    found = verdict(results, a, b, 'mi', among)
    if len(seed_differences(results, a, b, 'mi')) < len(TABLES['twins'].seeds): found += ', provisional'
    d, low, high, n = paired_difference(results, a, b, 'mi', 1 - .05/among)
    if not n: return f'{words}: not run'
    ends = '' if math.isnan(low) else f' [{low:+.1f}, {high:+.1f}]'
    return f'{words}: {d:+.1f} bits{ends}, {found}'


def sorted_claims(
    name: str,                # a key of TABLES
    results: list,            # runs
) -> dict:                    # 'holds', 'is reversed', 'open' -> texts; claims without a pair are left out
    "Sort the claims of a table by their verdicts."
    plan, among, out = TABLES[name], shares(results, TABLES[name]), {'holds': [], 'is reversed': [], 'open': []}
    for (a, b, kind), m in among.items():
        words = next((text for x, y, text in plan.claims if (x, y) == (a, b)), None)
        if words is None or not len(seed_differences(results, a, b, kind)): continue
        found = verdict(results, a, b, kind, m)
        first = next((key for key in ('holds', 'is reversed') if found.startswith(key)), 'open')
        by = claim_words(results, (a, b, words), m) if name == 'twins' else f'{words} (by {kind}, {PLACES[name]})'
        out[first].append(by)
    return out


def missed_words(
    name: str,                # a key of TABLES
    results: list,            # runs
) -> str:                     # empty where nothing is open
    "Say how large a difference a table could have missed."
    rows = [o for o in power_rows(TABLES[name], results) if o['verdict'].startswith('not res')]
    parts = []
    for kind, unit in (('mi', 'bits'), ('distance', 'of distance')):
        sizes = sorted(o['seen'] for o in rows if o['kind'] == kind)
        if sizes: parts.append(f'{" to ".join(dict.fromkeys(map(plain, (sizes[0], sizes[-1]))))} {unit}')
    return f'{PLACES[name]}: {", ".join(parts)}' if parts else ''


def reached_words(
    results: list,            # runs of twins
) -> str:                     # a sentence; empty without runs
    "Say how far the rows are from the real images."
    real = [o['real'] for r in results for o in r['records'] if o['metric'] == 'long_range_mi' and 'real' in o]
    means = [np.mean(list(found.values())) for row in TABLES['twins'].rows if (found := by_seed(results, row, 'mi'))]
    return f' The best row has {max(means):.1f} of the {real[0]:.0f} bits of real images.' if real and means else ''


def inside_words(
    runs: list,               # from `mechanism_runs`
    held: bool,               # the claims that hold, or all others
) -> str:                     # a sentence with a space before or behind; empty without claims
    "Say what attention does in trained generators of twins."
    said = '; '.join(o for o in mechanism_words(runs) if (', holds' in o) == held)
    if not said: return ''
    return f'Inside trained generators of `twins`, {said}. ' if held else f' Inside trained generators: {said}.'


def large_maps() -> list:     # texts
    "List the maps of Table 1 that need larger images than 32 px."
    return [str(m) for m in sorted({m for row in TABLES['table1'].rows for m in preset(row).attn_at if m > 16})]


def answers(
    results: dict,            # name of a table, twins among them -> its runs
    inside: list = (),        # runs from `mechanism_runs`
) -> str:                     # Markdown: three paragraphs
    "Write what holds, what does not, and what could not be seen, from results alone."
    found = {name: sorted_claims(name, runs) for name, runs in results.items()}
    holds, turned = ([text for o in found.values() for text in o[key]] for key in ('holds', 'is reversed'))
    older = [f'{len({text.split(" (by ")[0] for text in o["open"]})} in {PLACES[name]}' for name, o in found.items() if o['open'] and name != 'twins']
    unsure = '; '.join(found['twins']['open'])
    missed = '; '.join(filter(None, (missed_words(name, runs) for name, runs in results.items())))
    old = sorted({str(o['numerics']) for runs in results.values() for o in runs} - {str(NUMERICS)})
    first = capital(f'{"; ".join(holds)}.') if holds else 'No ordering of a table that was written down before its runs is confirmed.'
    shown, open_inside = inside_words(inside, True), inside_words(inside, False)
    second = f'Reversed: {"; ".join(turned)}.' if turned else 'No ordering is reversed.'
    room = f'A true difference of this size would have been found four times in five, a smaller one less often: {missed}. ' if missed else ''
    out = [f'**Holds.** {shown}{first} On `twins`, the flagship, {progress_words(results["twins"])}.',
           f'**Does not hold, or is not resolved.** {second}{open_inside}'
           + (f' On `twins`, with intervals that share 5 % among the claims: {unsure}.{reached_words(results["twins"])}' if unsure else '')
           + (f' Orderings not resolved by bits, by distance, or both: {listed(older)}.' if older else ''),
           f"**Could not be seen.** {room}The paper's best maps, {listed(large_maps())}, "
           'need larger images, and its million updates of ImageNet a GPU.']
    if old: out[-1] += (f' Tables of version {listed(old)} of the numbers (today\'s is {NUMERICS}) are unfair to attention: '
                        'it started from narrower weights than its controls.')
    return '\n\n'.join(out)
