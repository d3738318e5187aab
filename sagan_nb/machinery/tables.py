"Serves chapter 12: a table as text: its verdicts with what they could have missed, its numbers, its protocol."
import math
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from ..ablation import (RESULT_KINDS, TABLES, Plan, by_seed, measured_alike, name_of, paired_difference, shares,
                        value_of)
from ..config import NUMERICS, PUBLISHED, preset
from .jobs import row_configs
from .power import SHORT, UNJUDGED, could_have_seen, plain, power_markdown, ruling
from .published import COMPARABLE
from .runs import BUSY
from .terminal import markdown_table, printable

OFFICIAL = dict(distance='fid', score='inception_score', intra='intra_fid')
COLUMN_HEADS = {'Fréchet classifier distance': 'distance', 'classifier score': 'score', 'long_range_mi': 'bits shared',
                'long_range_joint': 'joint bits', 'long_range_spread': 'spread'}       # a note below has the whole name
WORDS = dict(t1_none='no block', f3_sn_d='SN in D', f3_sn_gd='SN in G and D', f3_sn_gd_2e4='SN in both, rate doubled',
             f3_sn_gd_ttur='SN in both, two rates', f3_sn_d_5to1='SN in D, 5 D steps', t2_acgan='AC-GAN',
             t2_sngan_projection='SNGAN-projection', t2_sagan='SAGAN', best_known='best known',
             rb_ema='averaged weights',
             rb_sn_eps='epsilon of SN', rb_sn_rules='rules of SN', rb_bn='batch norm', rb_order='D before G',
             rb_adam="torch's Adam", rb_flip='flipped images')
TALLIES = {'holds': 'hold', 'is reversed': 'reversed', 'not resolved': 'not resolved',
           'no difference': 'without a difference', 'not comparable': 'not comparable', 'not judged:': 'not judged',
           'not judged yet': 'not judged yet'}
WORTH_SEEING = ('Worth seeing is the published difference, in per cent of the other row, where there is one (with a '
                'plus sign where the paper, too, has the row a little worse), '
                "else a quarter of the other row's distance or a tenth of the real images' bits. "
                '"Could have seen" is at the share of the 5 % that an ordering has among so many.')
BLOCK_WORDS = dict(attn='attention', res='residual', res3x3='3x3 residual')


def words_of(
    row: str,                 # preset
) -> str:
    "Name a row in words."
    if row in WORDS: return WORDS[row]
    if row.startswith('t1_'): return '{} at {}'.format(BLOCK_WORDS[row.split('_')[1]], row.split('_')[2])
    if row[0] == 'k' and row[1:].isdigit(): return f'k = {row[1:]}'
    return row


def row_name(
    row: str,                 # preset
) -> str:                     # a cell
    "Return a preset and its words; the preset alone where the words repeat it."
    words = words_of(row)
    repeats = re.sub(r'\W', '', words).lower() in row.replace('_', '')
    return f'`{row}`' if repeats else f'`{row}` {words}'


def mean_spread(
    values,                   # numbers
    digits: int = 4,          # significant
) -> str:
    "Return mean ± standard deviation as text."
    v = [x for x in values if math.isfinite(x)]
    if not v: return '-'
    if len(v) == 1: return plain(v[0], digits)
    return f'{plain(np.mean(v), digits)} ± {plain(np.std(v, ddof=1))}'


def paper_number(
    row: str,                 # preset
    kind: str,                # metric
) -> str:                     # part of a cell
    "Return the paper's number, and whether it was checked."
    found = PUBLISHED.get(row, {}).get(OFFICIAL.get(kind))
    if not found: return '-'
    return f'{found[0]:g}' if found[1] else f'{found[0]:g} (unchecked)'


def difference(
    results: list,            # runs of the table
    row: str,                 # preset
    base: str,                # the row it is compared with
    kind: str,                # metric
) -> str:                     # a cell
    "Return the mean difference over pairs of equal seed, with its interval, as text."
    if not measured_alike(results, (row, base), kind): return 'not comparable'
    d, low, high, n = paired_difference(results, row, base, kind)
    if row == base or not n: return '-'
    runs = min(sum(o['row'] == name for o in results) for name in (row, base))
    ends = f' [{low:.3g}, {high:.3g}]' if math.isfinite(low) else ''
    return f'{d:+.3g}{ends}{of_seeds(n, runs)}'


def of_seeds(
    n: int,                   # runs with a number
    runs: int,                # runs
) -> str:
    "Say how many seeds have a number, where some have none."
    return f' ({n} of {runs} seeds)' if 0 < n < runs else ''


def mean_cell(
    results: list,            # runs of the table
    row: str,                 # preset
    kind: str,                # metric
) -> str:                     # a cell
    "Return mean and spread of a row as text."
    if not measured_alike(results, (row,), kind): return 'not comparable'
    values, runs = by_seed(results, row, kind).values(), sum(o['row'] == row for o in results)
    return mean_spread(values) + of_seeds(len(values), runs)


def real_spread(
    result: dict,             # one run
) -> float:                   # nan in a world without one
    "Read the spread of the real images' patterns."
    return next((o.get('real', math.nan) for o in result['records'] if o['metric'] == 'long_range_spread'), math.nan)


def has_collapsed(
    result: dict,             # one run
) -> bool:
    "Tell whether a run shows a sign of collapse, or draws patterns with less than a quarter of the real spread."
    return bool(result.get('collapse')) or value_of(result, 'spread') < .25*real_spread(result)


def collapsed_cell(
    results: list,            # runs of the table
    row: str,                 # preset
) -> str:                     # a cell
    "Count the collapsed runs of a row."
    own = [o for o in results if o['row'] == row]
    return f'{sum(map(has_collapsed, own))} of {len(own)}'


def columns(
    plan: Plan,               # which table
    results: list,            # runs
) -> dict:                    # heading -> what makes its cell from a row
    "Choose the columns of a table. One that stays empty is dropped by `table_lines`."
    def mean(kind): return lambda row: mean_cell(results, row, kind)
    def gap(kind): return lambda row: difference(results, row, plan.base, kind)
    scored = [k for k in OFFICIAL if k in ('score', *official_kinds(plan))]
    shown = (*plan.kinds, 'mi', 'joint', 'spread', 'diversity') if plan.holm else (*plan.kinds, *scored)
    kinds = [k for k in RESULT_KINDS if k in shown and name_of(results, k)]
    cols = {'row': row_name, 'seeds': lambda row: str(sum(o['row'] == row for o in results))}
    for k in kinds:
        cols[COLUMN_HEADS.get(name_of(results, k), name_of(results, k))] = mean(k)
        if k in plan.kinds: cols[f'{SHORT[k]} minus base'] = gap(k)
    return cols | {'collapsed': lambda row: collapsed_cell(results, row)}


def official_kinds(
    plan: Plan,               # which table
) -> list:                    # keys of OFFICIAL
    "List the measures for which the paper gives numbers of these rows."
    return [k for k, name in OFFICIAL.items() if any(name in PUBLISHED.get(row, {}) for row in plan.rows)]


def paper_line(
    plan: Plan,               # which table
    results: list,            # runs
) -> list:                    # one line of Markdown, or none
    "Give the paper's numbers of the rows that were run."
    there, known = [] if plan.holm else official_kinds(plan), []
    for row in plan.rows:
        numbers = [paper_number(row, k) for k in there]
        run = any(o['row'] == row for o in results)
        if run and {*numbers} - {'-'}: known.append(f'`{row}` {" / ".join(numbers)}')
    names = ' / '.join(RESULT_KINDS[k][0] for k in there)
    return [f'The paper, at its size ({names}): {"; ".join(known)}.'] if known else []


def reading_note(
    plan: Plan,               # which table
    results: list,            # runs
) -> str:                     # one paragraph of Markdown
    "Say what the columns hold."
    names = [name_of(results, k) for k in plan.kinds]
    long = [f'{COLUMN_HEADS[name]} is the {name}, the less the better' for name in names if name.startswith('Fréchet')]
    said = ['After ± comes the standard deviation over seeds', *long,
            f'the base row is {words_of(plan.base)}',
            'a difference has its 95 % interval, over the seeds that both rows have']
    return '; '.join(said) + '.'


def table_lines(
    plan: Plan,               # which table
    results: list,            # runs
) -> list:                    # lines of Markdown
    "Write one line for each row that has runs, and only columns that say something."
    rows = [row for row in plan.rows if any(o['row'] == row for o in results)]
    cells = {head: [make(row) for row in rows] for head, make in columns(plan, results).items()}
    cells = {head: own for head, own in cells.items() if any(o != '-' and not o.startswith('0 of') for o in own)}
    return markdown_table([*cells], zip(*cells.values())).splitlines() if rows else []


def grouped(
    pairs,                    # (row, text) pairs
) -> list:                    # a text for each group of rows with equal texts
    "Join the rows that have the same thing said of them."
    groups = {}
    for row, text in pairs: groups.setdefault(text, []).append(f'`{row}`')
    return [f'{", ".join(rows)} ({text})' for text, rows in groups.items()]


def harmless(
    text,                     # from a file that a stranger may have written
) -> str:                     # for Markdown
    "Write out what a terminal would act on, and let no text begin a tag."
    return printable(text).replace('<', '&lt;')


def one_text(
    text: str,                # of any lines
) -> str:                     # one line
    "Put a text on one line of a table."
    return harmless(' '.join(str(text).replace('|', '/').split()))


def missing_lines(
    plan: Plan,               # which table
    results: list,            # runs
    skipped: dict,            # row -> why it does not apply
    failed: dict,             # job name -> error, or BUSY
) -> list:                    # lines of Markdown
    """Say in one line each which rows do not apply, were not run, are being run elsewhere, or failed (a result may be
    there by now), and which seeds do not count."""
    failed = {name: error for name, error in failed.items() if name not in {o['name'] for o in results}}
    there = {o['row'] for o in results} | {*skipped} | {name.rsplit('-s', 1)[0] for name in failed}
    rest = [f'`{row}`' for row in plan.rows if row not in there]
    extra = {o['seed'] for o in results} - {o['seed'] for o in plan.of_its_seeds(results)}
    unasked = ', '.join(map(str, sorted(extra)))
    found = {'Not applicable here': grouped((row, one_text(why)) for row, why in skipped.items()),
             'Not run': [', '.join(rest)] if rest else [],
             'Seeds that the design does not ask for, shown but not judged': [unasked] if extra else [],
             'Another process is at it': [f'`{name}`' for name, error in failed.items() if error == BUSY],
             'Failed': [f'`{name}` ({one_text(error)})' for name, error in failed.items() if error != BUSY]}
    return [f'{head}: {"; ".join(parts)}.' for head, parts in found.items() if parts]


def signs_line(
    results: list,            # runs
) -> list:                    # one line of Markdown, or none
    "Say which runs show a sign of collapse or ended early."
    who = [(f'{words_of(o["row"])}, seed {o["seed"]}', o) for o in results]
    notes = [f'{name}: {one_text(c["sign"])} at step {c["t"]}' for name, o in who for c in o['collapse']]
    notes += [f'{name}: {one_text(o["status"])}' for name, o in who if o['status'] != 'finished']
    if notes: return [f'Signs: {"; ".join(notes)}.']
    return ['No run shows a sign of collapse.'] if results and not any(map(has_collapsed, results)) else []


def cost_lines(
    results: list,            # runs
) -> list:                    # lines of Markdown
    "Say what the rows weigh and cost."
    rows = list(dict.fromkeys(o['row'] for o in results))
    of = {row: [o for o in results if o['row'] == row] for row in rows}
    weights = [(row, f'{sum(of[row][0]["parameters"].values()):,}') for row in rows]
    cost = [f'`{row}` {mean_spread([o.get("seconds_per_step") or math.nan for o in of[row]], 3)}' for row in rows]
    clock = '(by the clock, not in turns: they do not compare rows)'
    return [f'Weights: {"; ".join(grouped(weights))}.', f'Seconds a step: {", ".join(cost)} {clock}.'] if rows else []


def commit_of(
    env: dict,                # as of `environment`
) -> str:
    "Return seven digits of the commit that a run was made with, and whether files were changed since."
    return str(env.get('commit') or 'unknown')[:7] + (' (changed)' if env.get('changed') else '')


def envs_of(
    result: dict,             # one run
) -> list:                    # as of `environment`
    "List every machine and commit that trained it."
    return [result['env'], *result.get('went_on', [])]


def moved_attention(
    results: list,            # runs
) -> set:                     # (maps here, maps in the preset) of the runs where they differ, each as '16,32'
    "Find where attention was put on another map than a row names, by `--set attn_at=...`."
    def named(maps): return ','.join(map(str, maps))
    maps = {(named(r['config']['attn_at']), named(preset(r['row']).attn_at)) for r in results}
    return {(here, there) for here, there in maps if here and here != there}


def file_alone(
    name: str,                # images or features, as a record names them: also 'classifier of IMAGES', FILE.zip:FOLDER
) -> str:
    "Leave out the folders that a file lies in: they belong to a machine."
    what, of, images = name.rpartition('classifier of ')
    file, zipped, folder = images.partition('.zip:')
    return what + of + re.split(r'[/\\]', file)[-1] + zipped + folder


def each_once(
    values,                   # what occurs, of any type
) -> str:
    "Write what occurs, each value once, in order."
    return ' / '.join(sorted({harmless(v) for v in values}))


def protocol(
    results: list,            # runs
) -> str:                     # one paragraph
    "Say how the numbers were made; where runs differ, list all values."
    if not results: return 'Nothing was run.'
    rows = [o for r in results for o in r['records'] if o['features'] != 'pixels']
    envs = [o for r in results for o in envs_of(r)]
    versions = {o['numerics'] for o in results}
    def of(key): return each_once(file_alone(str(o[key])) for o in rows if key in o)
    def cfg(key): return each_once(o['config'].get(key) for o in results)
    def env(key): return each_once(o.get(key) for o in envs)
    threads = '1 thread' if env('threads') == '1' else f'{env("threads")} threads'
    parts = [f'{cfg("scale")} scale, {cfg("res")} px, width {cfg("width")}, batch {cfg("batch")}',
             f'{cfg("steps")} steps, {cfg("precision")}, rates times {cfg("lr_factor")}',
             f'decay of averaged weights {cfg("ema")}',
             f'images {of("data")} ({of("data_id")})',
             f'features {of("features")} ({of("features_hash")})',
             f'{of("n_fake")} generated against {of("n_real")} real', of('batch_norm'),
             f'{env("device_name")}, processor {env("cpu")}, {threads}, torch {env("torch")}']
    if moved := moved_attention(results):
        here, there = map(each_once, zip(*moved))
        parts.append(f'**attention at map {here}, in the presets at {there}**')
    if versions != {NUMERICS}: parts.append(f'numbers of version {each_once(versions)}; today\'s is {NUMERICS}')
    if len({r['seed'] for r in results}) == 1: parts.append('**one seed: shows the machinery, decides nothing**')
    return '; '.join(parts) + f'.\n\nCommit: {each_once(map(commit_of, envs))}.'


def early_ends(
    results: list,            # runs
    rows,                     # the two rows of an ordering
) -> str:                     # for the end of a sentence
    "Say how many runs ended early (they are measured at their last checkpoint, if there is one)."
    ended = Counter(o['row'] for o in results if o['status'] != 'finished')
    def said(n): return '1 run' if n == 1 else f'{n} runs'
    return ''.join(f'; {said(ended[row])} of {row} ended early' for row in rows if ended[row])


def by_other_bits(
    plan: Plan,               # which table
    results: list,            # runs
    better: str,              # a row
    worse: str,               # another
) -> str:                     # for the end of a sentence; empty without such bits
    "Say what an ordering is by the bits that do not decide: of all numbers of a pattern together, or their sum."
    other, words = ('mi', 'the sum of bits') if 'joint' in plan.kinds else ('joint', 'joint bits')
    if not name_of(results, other): return ''
    among = shares(results, replace(plan, kinds=(other,)))
    return f'; by {words}: {ruling(plan, results, better, worse, other, among[better, worse, other])}'


def sentences(
    plan: Plan,               # which table
    results: list,            # runs
) -> list:                    # lines of Markdown
    "Write the verdict on each ordering, with the smallest difference that could have been seen."
    out, among = [], shares(results, plan)
    origin = 'written down before' if plan.claims else '(ours: the paper claims none)'
    for kind in plan.kinds:
        said = [(*o, ruling(plan, results, *o[:2], kind, among.get((*o[:2], kind), 1))) for o in plan.orderings]
        run = [o for o in said if o[3] != 'not run']
        if not name_of(results, kind) or not run: continue
        by = name_of(results, kind) + (' (bits shared)' if kind == 'mi' else '')
        count = '1 ordering' if len(run) == 1 else f'{len(run)} orderings'
        out += [f'By {by}, {count} {origin} that could be run here:', '']
        for a, b, words, found in run:
            mine = plan.of_its_seeds(results)
            ends = early_ends(mine, (a, b))
            if not found.startswith(UNJUDGED): ends += could_have_seen(mine, a, b, kind, among[a, b, kind])
            if plan.holm: ends += by_other_bits(plan, results, a, b)
            out.append(f'- {words}: **{found}**{ends}')
        out.append('')
    return out


def not_applicable(
    plan: Plan,               # which table
    results: list,            # runs
) -> dict:                    # row -> why
    "Find the rows that cannot be at the image size of these results."
    if not results: return {}
    cfg = results[0]['config']
    source = SimpleNamespace(res=cfg['res'], classes=range(cfg['n_classes']), spec='', fingerprint='')
    pairs = [f'attn_at={here}' for here, _ in moved_attention(results)][:1]
    skipped = row_configs(plan, source, results[0]['scale'], pairs)[1]
    return {row: why for row, why in skipped.items() if row not in {r['row'] for r in results}}


def tally(
    plan: Plan,               # which table
    results: list,            # runs
) -> str:                     # a sentence; empty without a comparison
    "Count the verdicts of a table."
    found = [ruling(plan, results, *key, among) for key, among in shares(results, plan).items()]
    if all(o == 'not run' for o in found): return ''
    if plan.seeds: found = ['not judged yet' if o == 'not run' else o for o in found]
    else: found = [o for o in found if o != 'not run']
    count = Counter(next(o for o in TALLIES if said.startswith(o)) for said in found)
    alone = sum('own interval' in o for o in found)
    origin = 'written down before the first run' if plan.claims else 'with the base row (ours: the paper claims none)'
    parts = [f'{count[o]} {words}' for o, words in TALLIES.items() if count[o]]
    last = f', {alone} of them only because the 5 % are shared' if alone else ''
    return f'{len(found)} {"comparison" if len(found) == 1 else "comparisons"} {origin}: {", ".join(parts)}{last}.'


def table_parts(
    name: str,                # a key of TABLES
    results: list,            # runs
    skipped: dict,            # row -> why it does not apply; None: found here
    failed: dict,             # job name -> error
) -> tuple:                   # plan, its runs, the numbers with what must be read with them, how all was made: lines
    "Write the parts that a file and a page have in common."
    plan, own = TABLES[name], [o for o in results if o['row'] in TABLES[name].rows]
    if skipped is None: skipped = not_applicable(plan, own)
    read = [reading_note(plan, own), *signs_line(own)] if own else []
    missing = missing_lines(plan, own, skipped, failed)
    elsewhere = [o for o in missing if o.startswith('Not applicable')]
    notes = [' '.join(read), *paper_line(plan, own), *(o for o in missing if o not in elsewhere)]
    return plan, own, [*table_lines(plan, own), *spaced(notes)], spaced([*elsewhere, *cost_lines(own), protocol(own)])


def spaced(
    lines,                    # paragraphs
) -> list:                    # the same with an empty line before each
    "Separate paragraphs."
    return [line for text in lines for line in ('', text)]


def markdown(
    name: str,                # a key of TABLES
    results: list,            # runs
    skipped: dict = None,     # row -> why it does not apply
    failed: dict = None,      # job name -> error
) -> str:                     # the whole table
    "Write a table as text: verdicts first, then the numbers, what is missing, and how all of it was made."
    plan, own, numbers, made = table_parts(name, results, skipped, failed or {})
    return '\n'.join([f'### {plan.title}', '', *sentences(plan, own), *numbers, *made])


def folded_lines(
    words: str,               # to click on
    lines: list,              # Markdown
) -> list:                    # lines of Markdown
    "Fold lines away on a page."
    return ['', f'<details><summary>{words}</summary>', '', *lines, '', '</details>']


def folded_table(
    name: str,                # a key of TABLES
    results: list,            # runs
    numbers_too: bool = False,    # fold the numbers, too
) -> str:                     # Markdown
    "Write a table for a page: how many orderings hold, the numbers, and the rest to be unfolded."
    plan, own, numbers, made = table_parts(name, results, None, {})
    numbers = [line.replace(' ± ', '\u00a0±\u00a0') if line.startswith('|') else line for line in numbers]
    each = [*sentences(plan, own), power_markdown(name, own), '', WORTH_SEEING]
    if numbers_too: numbers = folded_lines('The numbers', numbers)
    title = plan.title if plan.title.endswith('?') else f'{plan.title}.'
    text = '\n'.join([f'**{title}** {tally(plan, own)}', '', *numbers,
                      *folded_lines('Each comparison: its verdict, and what it could have missed', each),
                      *folded_lines('How it was made', made)])
    return text.replace(' (unchecked)', r'\*')


def table1(
    results: list,            # runs, from `collect`
) -> str:                     # Markdown
    "Write Table 1: attention against nothing and against its controls."
    return markdown('table1', results)


def table2(
    results: list,            # runs, from `collect`
) -> str:                     # Markdown
    "Write Table 2: AC-GAN, SNGAN-projection, SAGAN."
    return markdown('table2', results)


def anchors() -> str:         # Markdown
    "List the public results that tried to reach the paper's number, each with its state."
    rows = []
    for name, words in COMPARABLE.items():
        fid, score = (PUBLISHED[name].get(k) for k in ('fid', 'inception_score'))
        state = (fid or score)[2] if (fid or score)[1] else f'{(fid or score)[2]} (not checked)'
        cells = [f'{o[0]:g}' if o else '-' for o in (fid, score)]
        rows.append([name, *cells, state, words])
    return markdown_table(['who', 'FID', 'IS', 'read where', 'comparable with the paper?'], rows)
