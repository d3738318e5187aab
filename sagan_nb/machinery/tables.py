"Serves chapter 12: a table as text with its protocol, and its figures."
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ..ablation import RESULT_KINDS, TABLES, Plan, by_seed, measured_alike, name_of, paired_difference, verdict
from ..config import NUMERICS, PUBLISHED, preset
from .jobs import row_configs
from .terminal import text_table, wrap

OFFICIAL = dict(distance='fid', score='inception_score', intra='intra_fid')


def mean_spread(
    values,                   # numbers
    digits:int=4,             # significant
)->str:                       # mean ± standard deviation
    "A cloud in a cell."
    v = [x for x in values if math.isfinite(x)]
    if not v: return '-'
    return f'{np.mean(v):.{digits}g}' + (f' ± {np.std(v, ddof=1):.2g}' if len(v) > 1 else '')


def paper_number(
    row:str,                  # preset
    kind:str,                 # metric
)->str:                       # a cell
    "The paper's number, and whether it was checked."
    found = PUBLISHED.get(row, {}).get(OFFICIAL.get(kind))
    return f'{found[0]:g}' + ('' if found[1] else ' (unchecked)') if found else '-'


def published_kinds(plan:Plan)->list:
    "The metrics that the paper gives for a row of the table; FID and IS at least."
    there = [k for k, name in OFFICIAL.items() if any(name in PUBLISHED.get(r, {}) for r in plan.rows)]
    return [k for k in OFFICIAL if k in ('distance', 'score', *there)]


def notes_of(
    row:str,                  # preset
    own:list,                 # its runs
    skipped:dict,             # row -> why it does not apply
    failed:dict,              # job name -> error
)->str:                       # a cell
    "What else must be said of a row: signs of collapse, an early end, an error."
    if row in skipped: return f'not applicable: {skipped[row]}'
    errors = [e for name, e in failed.items() if name.startswith(f'{row}-s')]
    if not own and not errors: return 'not run'
    notes = {f'seed {o["seed"]}: {c["sign"]} at step {c["t"]}' for o in own for c in o['collapse']}
    notes |= {f'seed {o["seed"]} {o["status"]}' for o in own if o['status'] != 'finished'}
    notes |= {f'failed: {e}' for e in errors}
    return ' '.join('; '.join(sorted(notes)).replace('|', '/').split())


def difference(
    results:list,             # runs of the table
    row:str,                  # preset
    base:str,                 # the row it is compared with
    kind:str,                 # metric
)->str:                       # a cell
    "Mean difference over pairs of equal seed, with its interval."
    if not measured_alike(results, (row, base), kind): return 'not comparable'
    d, low, high, n = paired_difference(results, row, base, kind)
    if row == base or not n: return '-'
    runs = min(sum(o['row'] == name for o in results) for name in (row, base))
    return f'{d:+.3g}' + f' [{low:.3g}, {high:.3g}]'*math.isfinite(low) + f' ({n} of {runs} seeds)'*(n < runs)


def mean_cell(
    results:list,             # runs of the table
    row:str,                  # preset
    kind:str,                 # metric
)->str:                       # a cell
    "Mean and spread of a row; of how many runs, where some have no number."
    if not measured_alike(results, (row,), kind): return 'not comparable'
    values, runs = by_seed(results, row, kind).values(), sum(o['row'] == row for o in results)
    return mean_spread(values) + f' ({len(values)} of {runs} seeds)'*(0 < len(values) < runs)


def commit_of(
    env:dict,                 # as of `environment`
)->str:                       # seven digits
    "The commit that a run was made with, and whether files were changed since."
    return (env['commit'] or 'unknown')[:7] + ' (changed)'*bool(env.get('changed'))


def envs_of(
    result:dict,              # one run
)->list:                      # as of `environment`
    "Every machine and commit that trained it."
    return [result['env'], *result.get('went_on', [])]


def row_cells(
    plan:Plan,                # which table
    row:str,                  # preset
    results:list,             # runs of the table
    kinds:list,               # metrics
)->list:                      # cells, without the notes
    "The numbers of a row."
    own = [o for o in results if o['row'] == row]
    return [f'`{row}`', *[mean_cell(results, row, k) for k in kinds],
            *[difference(results, row, plan.base, k) for k in kinds if k in ('distance', 'mi')],
            *[paper_number(row, k) for k in published_kinds(plan)],
            f'{sum(own[0]["parameters"].values()):,}' if own else '-',
            mean_spread([o['seconds_per_step'] or math.nan for o in own], 3), str(len(own)),
            ', '.join(sorted({commit_of(env) for o in own for env in envs_of(o)})) or '-']


def measured_kinds(results:list)->list:
    "The metrics that the results have."
    return [k for k in ('distance', 'score', 'intra', 'mi') if name_of(results, k)]


def table_head(
    plan:Plan,                # which table
    results:list,             # runs
)->list:                      # names of the columns
    "Name the cells of `row_cells`, and the notes."
    kinds = measured_kinds(results)
    return ['row', *[name_of(results, k) for k in kinds],
            *[f'{k} minus {plan.base}, 95 %' for k in kinds if k in ('distance', 'mi')],
            *[f'paper: {RESULT_KINDS[k][0]}' for k in published_kinds(plan)],
            'parameters', 's/step', 'seeds', 'commit', 'notes']


def table_lines(
    plan:Plan,                # which table
    results:list,             # runs
    skipped:dict,             # row -> why it does not apply
    failed:dict,              # job name -> error
)->list:                      # lines of Markdown
    "One line for each row."
    kinds, head = measured_kinds(results), table_head(plan, results)
    line = lambda cells: '| ' + ' | '.join(cells) + ' |'
    own = lambda row: [o for o in results if o['row'] == row]
    return [line(head), '|---' * len(head) + '|',
            *[line([*row_cells(plan, r, results, kinds), notes_of(r, own(r), skipped, failed)]) for r in plan.rows]]


def moved_attention(
    results:list,             # runs
)->set:                       # (maps here, maps in the preset) of the runs where they differ
    "Where attention was put on another map than a row names, by `--set attn_at=...`."
    maps = {(tuple(r['config']['attn_at']), preset(r['row']).attn_at) for r in results}
    return {(here, there) for here, there in maps if here and here != there}


def protocol(
    results:list,             # runs
)->str:                       # one paragraph
    "How the numbers were made; where runs differ, all values are listed."
    if not results: return 'Nothing was run.'
    each = lambda values: ' / '.join(sorted({str(v) for v in values}))
    rows = [o for r in results for o in r['records'] if o['features'] != 'pixels']
    of = lambda key: each(o[key] for o in rows if key in o)
    cfg = lambda key: each(r['config'].get(key) for r in results)
    env = lambda key: each(e.get(key) for r in results for e in envs_of(r))
    versions = {o['numerics'] for o in results}
    where = lambda maps: each('+'.join(map(str, m)) for m in maps)
    parts = [f'{cfg("scale")} scale, {cfg("res")} px, width {cfg("width")}, batch {cfg("batch")}',
             f'{cfg("steps")} steps, {cfg("precision")}, rates times {cfg("lr_factor")}',
             f'decay of averaged weights {cfg("ema")}',
             f'pictures {of("data")} ({of("data_id")})',
             f'features {of("features")} ({of("features_hash")})',
             f'{of("n_fake")} generated against {of("n_real")} real', of('batch_norm'),
             f'{env("device_name")}, processor {env("cpu")}, {env("threads")} threads, torch {env("torch")}']
    if maps := moved_attention(results):
        here, there = zip(*maps)
        parts.append(f'**attention at map {where(here)}, in the presets at {where(there)}**')
    if versions != {NUMERICS}: parts.append(f'numbers of version {each(versions)}; today\'s is {NUMERICS}')
    if len({r['seed'] for r in results}) == 1: parts.append('**one seed: shows the machinery, decides nothing**')
    return '; '.join(parts) + '.'


def early_ends(
    results:list,             # runs
    rows,                     # the two rows of an ordering
)->str:                       # for the end of a sentence
    "How many of their runs ended early: such a run counts with its last checkpoint, or not at all."
    ended = [(row, sum(o['row'] == row and o['status'] != 'finished' for o in results)) for row in rows]
    return ''.join(f'; {n} run{"s"*(n > 1)} of {row} ended early' for row, n in ended if n)


def sentences(
    plan:Plan,                # which table
    results:list,             # runs
)->list:                      # lines of Markdown
    "What the paper orders, and what is found here: computed, not written. Without claims, each row against the base."
    rows = [(row, plan.base, f'{row} is better than {plan.base}') for row in plan.rows if row != plan.base]
    out, asked = [], 'orderings of the paper' if plan.claims else 'orderings (ours: the paper claims none)'
    pairs = [(a, b, k) for k in ('distance', 'mi') if name_of(results, k) for a, b, _ in plan.claims or rows]
    among = sum(paired_difference(results, *o)[3] > 1 for o in pairs) or 1
    for kind in ('distance', 'mi'):
        name = name_of(results, kind)
        said = [(words, verdict(results, a, b, kind, among), early_ends(results, (a, b)))
                for a, b, words in plan.claims or rows]
        run = [o for o in said if o[1] != 'not run']
        if name and run: out += [f'By {name}, of {len(run)} {asked} that could be run here:', '',
                                 *[f'- {words}: **{v}**{ended}' for words, v, ended in run], '']
    return out


def not_applicable(
    plan:Plan,                # which table
    results:list,             # runs
)->dict:                      # row -> why
    "The rows that cannot be at the picture size of these results."
    if not results: return {}
    cfg = results[0]['config']
    source = SimpleNamespace(res=cfg['res'], classes=range(cfg['n_classes']), spec='', fingerprint='')
    pairs = [f'attn_at={",".join(map(str, here))}' for here, _ in moved_attention(results)][:1]
    skipped = row_configs(plan, source, results[0]['scale'], pairs)[1]
    return {row: why for row, why in skipped.items() if row not in {r['row'] for r in results}}


def markdown(
    name:str,                 # a key of TABLES
    results:list,             # runs
    skipped:dict=None,        # row -> why it does not apply
    failed:dict=None,         # job name -> error
)->str:                       # the whole table
    "A table as text: numbers, protocol, and the paper's orderings."
    plan, own = TABLES[name], [o for o in results if o['row'] in TABLES[name].rows]
    if skipped is None: skipped = not_applicable(plan, own)
    lines = table_lines(plan, own, skipped, failed or {})
    return '\n'.join([f'### {plan.title}', '', *lines, '', protocol(own), '', *sentences(plan, own)])


def other_rows(
    plan:Plan,                # which table
    run:list,                 # rows with a result
    skipped:dict,             # row -> why it does not apply
    failed:dict,              # job name -> error
)->list:                      # lines
    "Name the rows without a result, in a line for each reason."
    broken = [f'failed: {name}: {" ".join(error.split())}' for name, error in failed.items()]
    rest = [row for row in plan.rows if row not in (*run, *skipped)]
    lines = [f'not run: {", ".join(rest)}'] if rest else []
    return [*broken, *lines, *([f'not applicable here: {", ".join(skipped)}'] if skipped else [])]


def on_screen(
    name:str,                 # a key of TABLES
    results:list,             # runs
    skipped:dict=None,        # row -> why it does not apply
    failed:dict=None,         # job name -> error
)->str:                       # as wide as the screen
    "A table for a terminal: verdicts, numbers of the rows that were run, then how they were made."
    plan, own = TABLES[name], [o for o in results if o['row'] in TABLES[name].rows]
    skipped = not_applicable(plan, own) if skipped is None else skipped
    run = [row for row in plan.rows if any(o['row'] == row for o in own)]
    verdicts = '\n'.join(line for line in sentences(plan, own) if line)
    head, kinds = table_head(plan, own)[:-1], measured_kinds(own)
    kept = [i for i, column in enumerate(head) if column not in ('parameters', 's/step', 'commit')]
    rows = [row_cells(plan, row, own, kinds) for row in run]
    cells = [[cell[i].strip('`') for i in kept] for cell in rows]
    numbers = text_table([head[i] for i in kept], cells) if cells else ''
    notes = [f'{row}: {said}' for row in run if (said := notes_of(row, [o for o in own if o['row'] == row], {}, {}))]
    how = [f'  {part}' for part in protocol(own).split('; ')]
    parts = [plan.title, verdicts, numbers, '\n'.join([*notes, *other_rows(plan, run, skipped, failed or {})]),
             '\n'.join(['How it was made:', *how])]
    return wrap('\n\n'.join(part for part in parts if part).replace('**', ''))


def show_rows(
    name:str,                 # a key of TABLES
    results:list,             # runs
    kind:str='distance',      # metric
):                            # figure
    "Every seed of every row as a dot, the mean as a bar."
    import matplotlib.pyplot as plt
    rows = [r for r in TABLES[name].rows if by_seed(results, r, kind)]
    fig, ax = plt.subplots(figsize=(6.5, .6 + .34*max(len(rows), 2)), layout='constrained')
    for i, row in enumerate(rows):
        values = list(by_seed(results, row, kind).values())
        ax.plot(values, [i]*len(values), 'o', color='#0072B2', ms=5, alpha=.8)
        ax.plot([np.mean(values)]*2, [i - .3, i + .3], color='#D55E00', lw=2)
    ax.set(yticks=range(len(rows)), yticklabels=rows, xlabel=name_of(results, kind), ylim=(len(rows) - .5, -.5))
    ax.grid(axis='x', alpha=.3)
    return fig


def show_training(
    name:str,                 # a key of TABLES
    results:list,             # runs
    kind:str='distance',      # 'distance', 'mi' or 'diversity', as of `Curve`
    pace:dict=None,           # row -> seconds of an update, timed in turns; None: each run's own
):                            # figure
    "A number against steps and against seconds (Figure 3); a cross where a sign of collapse came first."
    import matplotlib.pyplot as plt
    results = [o for o in results if o['curve']]
    if pace: results = [dict(o, curve=[dict(p, seconds=p['t']*pace[o['row']]) for p in o['curve']]) for o in results]
    rows = [r for r in TABLES[name].rows if r in {o['row'] for o in results}]
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 2.8), sharey=True, layout='constrained')
    colours = 'k', '#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7'
    lines = [dict(color=c, ls=s) for s in ('-', ':', '--') for c in colours]
    for ax, key in zip(axes, ('t', 'seconds')):
        for row, line in zip(rows, lines):
            for j, o in enumerate(r for r in results if r['row'] == row):
                x, y = ([p[k] for p in o['curve']] for k in (key, kind))
                ax.plot(x, y, **line, lw=1.3, label=row if not j else None)
                if not o['collapse']: continue
                at = [np.interp(o['collapse'][0]['t'], [p['t'] for p in o['curve']], v) for v in (x, y)]
                ax.plot(*at, 'x', color=line['color'], ms=9)
        ax.set(xlabel=dict(t='updates of G', seconds='seconds of training')[key])
        if kind == 'distance': ax.set(yscale='log')
        ax.grid(alpha=.3)
    drawn = {o['curve'][0].get(dict(distance='n_fake').get(kind, f'n_{kind}')) for o in results} - {None}
    number = f'\n({" / ".join(map(str, sorted(drawn)))} images)' if drawn else ''         # older results do not say
    axes[0].set_ylabel(name_of(results, kind) + number)
    axes[1].legend(fontsize=7)
    return fig


def show_samples(
    name:str,                 # a key of TABLES
    results:list,             # runs
    out,                      # folder where `run_job` put their pictures
):                            # figure, or None where there is no picture
    "Samples of every row at several steps, from the same noise (Figure 4); of each row the first seed."
    import matplotlib.pyplot as plt
    first = {r: next((o for o in results if o['row'] == r), None) for r in TABLES[name].rows}
    found = {r: Path(out)/f'{o["name"]}.png' for r, o in first.items() if o}
    found = {r: plt.imread(p) for r, p in found.items() if p.exists()}
    if not found: return None
    fig, axes = plt.subplots(len(found), 1, figsize=(5.4, 1.6*len(found)), dpi=64, squeeze=False, layout='constrained')
    for ax, (row, picture) in zip(axes.flat, found.items()):
        ax.imshow(picture, interpolation='nearest')
        when = f'steps {", ".join(map(str, at))}' if (at := first[row].get('samples_at')) else 'later to the right'
        ax.set(xticks=[], yticks=[], title=f'{row}, seed {first[row]["seed"]}: {when}')
        ax.title.set_fontsize(9)
    return fig


def table1(
    results:list,             # runs, from `collect`
)->str:                       # Markdown
    "Table 1: attention against nothing and against its controls."
    return markdown('table1', results)


def table2(
    results:list,             # runs, from `collect`
)->str:                       # Markdown
    "Table 2: AC-GAN, SNGAN-projection, SAGAN."
    return markdown('table2', results)


def fig3(
    results:list,             # runs, from `collect`
    pace:dict=None,           # as of `show_training`
):                            # figure
    "Figure 3: the metric against steps and against seconds."
    return show_training('fig3', results, pace=pace)


def fig4(
    results:list,             # runs, from `collect`
    out,                      # their folder
):                            # figure
    "Figure 4: samples of the runs of Figure 3 at several steps."
    return show_samples('fig3', results, out)
