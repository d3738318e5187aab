"Serves chapter 12: the figures of a table: dots, pairs, curves in small panels, samples."
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..ablation import LOWER, TABLES, Plan, by_seed, name_of, paired_difference, seed_differences, shares
from .tables import has_collapsed, words_of

BLUE, ORANGE, GREY = '#0072B2', '#D55E00', '#999999'       # safe for colour-blind readers
FONTS = {'font.size': 10, 'axes.titlesize': 10, 'axes.labelsize': 10, 'xtick.labelsize': 9, 'ytick.labelsize': 9,
         'legend.fontsize': 9, 'figure.dpi': 90}
PAGE = 880                                                # pixels across the text of the site at 1280
AXES = dict(distance='Fréchet distance', mi='bits shared by distant parts', joint='joint bits shared by distant parts',
            diversity='diversity')


def axis_name(
    results: list,            # runs
    kind: str,                # metric
) -> str:
    "Name a measure on an axis, and from how many images a curve takes it, where the runs say so."
    key = dict(distance='n_fake').get(kind, f'n_{kind}')
    drawn = sorted({o['curve'][0][key] for o in results if o.get('curve') and key in o['curve'][0]})
    words = AXES.get(kind, name_of(results, kind))
    return f'{words}\n({" / ".join(map(str, drawn))} images)' if drawn else words


def rows_with(
    plan: Plan,               # which table
    results: list,            # runs
    kind: str,                # metric
) -> list:
    "List the rows that have a number."
    return [r for r in plan.rows if by_seed(results, r, kind)]


def deciding_measure(
    plan: Plan,               # which table
    results: list,            # runs
) -> str:                     # a key of RESULT_KINDS
    "Choose what a figure shows: the first of the plan's deciding measures that any run has; the distance if none has."
    return next((k for k in plan.kinds if name_of(results, k)), 'distance')


def draw_rows(
    ax,                       # where
    rows: list,               # presets, from top to bottom
    results: list,            # runs
    kind: str,                # metric
):
    "Draw every seed of every row as a dot, crossed out if it collapsed; join seeds in grey; the mean is a bar."
    values = [by_seed(results, row, kind) for row in rows]
    for seed in sorted(set().union(*values)):
        there = [(v[seed], i) for i, v in enumerate(values) if seed in v]
        ax.plot(*zip(*there), '-', color=GREY, lw=.6, alpha=.6, zorder=1)
    for i, v in enumerate(values):
        ax.plot(list(v.values()), [i]*len(v), 'o', color=BLUE, ms=5, alpha=.8)
        lost = [v[o['seed']] for o in results if o['row'] == rows[i] and o['seed'] in v and has_collapsed(o)]
        ax.plot(lost, [i]*len(lost), 'x', color='k', ms=8)
        ax.plot([np.mean(list(v.values()))]*2, [i - .3, i + .3], color=ORANGE, lw=2.5)
    ax.set(yticks=range(len(rows)), yticklabels=map(words_of, rows), ylim=(max(len(rows), 1) - .5, -.5))
    ax.grid(axis='x', alpha=.3)


def draw_claims(
    ax,                       # where
    plan: Plan,               # which table
    results: list,            # runs
    kind: str,                # metric
):
    "Draw the paired differences of each claim: seeds as dots, the 95 % interval thick, that of the verdict thin."
    among, drawn, results = shares(results, replace(plan, kinds=(kind,))), [], plan.of_its_seeds(results)
    for a, b, words in plan.orderings:
        d = seed_differences(results, a, b, kind)
        if not len(d): continue
        i = len(drawn)
        drawn.append(f'{words_of(a)}\nminus {words_of(b)}')
        ax.plot(d, [i]*len(d), 'o', color=BLUE, ms=5, alpha=.8)
        ax.plot([d.mean()]*2, [i - .3, i + .3], color=ORANGE, lw=2.5)
        for level, width in ((.95, 3), (1 - .05/among[a, b, kind], 1)):
            low, high = paired_difference(results, a, b, kind, level)[1:3]
            ax.plot([low, high], [i + .2]*2, color=ORANGE, lw=width, solid_capstyle='butt')
    ax.axvline(0, color=GREY, lw=1)
    ax.set(yticks=range(len(drawn)), yticklabels=drawn, ylim=(max(len(drawn), 1) - .5, -.5))
    ax.grid(axis='x', alpha=.3)


def show_pairs(
    plan,                     # which table: a Plan, or a key of TABLES
    results: list,            # runs
    kind: str = None,         # metric; None: as of `deciding_measure`
):                            # figure
    "Draw every run of each row at the left; at the right the paired differences of the claims, over the plan's seeds."
    import matplotlib.pyplot as plt
    plan = TABLES[plan] if isinstance(plan, str) else plan
    kind = kind or deciding_measure(plan, results)
    rows = rows_with(plan, results, kind)
    claims = sum(a in rows and b in rows for a, b, _ in plan.orderings)
    high = 1.1 + .3*max(len(rows), 1.5*claims, 3)             # a claim has two lines
    with plt.rc_context(FONTS):
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, high), layout='constrained')
        draw_rows(left, rows, results, kind)
        draw_claims(right, plan, results, kind)
        left.set_xlabel(AXES.get(kind, name_of(results, kind)))
        side = '\n(left of 0 the first is better)' if kind in LOWER else ''
        right.set_xlabel(f'difference, seed by seed{side}')
        if not rows:
            for ax in (left, right): ax.text(.5, .5, 'no run has this measure yet', ha='center', transform=ax.transAxes)
    return fig


def mean_curve(
    own: list,                # runs of a row
    kind: str,                # as in a curve
) -> tuple:                   # steps that all of them have; means
    "Average the curves of a row."
    steps = sorted(set.intersection(*({p['t'] for p in o['curve']} for o in own)))
    at = [{p['t']: p[kind] for p in o['curve']} for o in own]
    return steps, [np.mean([v[t] for v in at]) for t in steps]


def draw_row_curves(
    ax,                       # where
    own: list,                # runs of a row
    kind: str,                # as in a curve
):
    "Draw seeds thin and grey, their mean bold, and a cross where a sign of collapse came first."
    for o in own:
        t, y = ([p[k] for p in o['curve']] for k in ('t', kind))
        ax.plot(t, y, color=GREY, lw=1)
        if not o['collapse']: continue
        at = o['collapse'][0]['t']
        ax.plot(at, np.interp(at, t, y), 'x', color=ORANGE, ms=8)
    ax.plot(*mean_curve(own, kind), color=BLUE, lw=2.5)


def draw_cost(
    ax,                       # where
    of: dict,                 # row -> runs
    kind: str,                # as in a curve
    pace: dict,               # row -> seconds of an update
):
    "Draw the mean of each row against seconds, its name at the end of its line."
    colours, ends = ('#000000', BLUE, '#E69F00', '#009E73', ORANGE), []
    for (row, own), colour in zip(of.items(), colours):
        if row not in pace: continue                         # of a run that came after the timing
        t, y = mean_curve(own, kind)
        ax.plot(np.multiply(t, pace[row]), y, color=colour, lw=1.8)
        ends.append((y[-1], t[-1]*pace[row], row, colour))
    for i, (y, x, row, colour) in enumerate(sorted(ends)):
        ax.annotate(words_of(row), (x, y), (1.04, (i + .5)/len(ends)), textcoords='axes fraction', fontsize=9,
                    va='center', color=colour, annotation_clip=False,
                    arrowprops=dict(arrowstyle='-', color=colour, lw=.6))
    ax.set(title='means against cost', xlabel='seconds of training')


def panels_of(
    n: int,                   # rows
    cost: bool,               # also one wide panel behind the others
):                            # figure, a list of axes
    "Make a small panel for each row, four in a line; the wide one takes what the last line has left, or a line."
    import matplotlib.pyplot as plt
    left = -n % 4 if n > 4 else 0                            # places in the last line
    high = math.ceil(n / 4) + (cost and left < 2)
    fig = plt.figure(figsize=(9.4, .4 + 1.5*high), layout='constrained')
    grid = fig.add_gridspec(high, min(n, 4))
    axes = []
    for i in range(n):
        axes.append(fig.add_subplot(grid[i // 4, i % 4], sharey=axes[0] if axes else None))
    begins = n % 4 if left >= 2 else 0
    if cost: axes.append(fig.add_subplot(grid[-1, begins:], sharey=axes[0]))
    return fig, axes


def plain_log(
    ax,                       # where
):
    "Make the vertical axis logarithmic, with numbers and not powers at its ticks."
    from matplotlib.ticker import LogFormatter
    ax.set(yscale='log')
    ax.yaxis.set_major_formatter(LogFormatter())
    ax.yaxis.set_minor_formatter(LogFormatter())


def show_training(
    name: str,                # a key of TABLES
    results: list,            # runs
    kind: str = 'distance',   # 'distance', 'mi' or 'diversity', as of `Curve`
    pace: dict = None,        # row -> seconds of an update, all rows timed in turns; None: no cost is drawn
):                            # figure
    "Draw a number against updates, a panel a row; with their pace, the means of up to five rows against seconds, too."
    import matplotlib.pyplot as plt
    results = [o for o in results if o['curve']]
    of = {row: [o for o in results if o['row'] == row] for row in TABLES[name].rows}
    of = {row: own for row, own in of.items() if own}
    cost = bool(pace) and 2 <= len(of) <= 5
    with plt.rc_context(FONTS):
        fig, axes = panels_of(len(of), cost)
        for i, (ax, (row, own)) in enumerate(zip(axes, of.items())):
            draw_row_curves(ax, own, kind)
            ax.set_title(words_of(row))
            if i + 4 >= len(of): ax.set_xlabel('updates of G')
        if cost: draw_cost(axes[-1], of, kind, pace)
        for ax in axes:
            if kind == 'distance': plain_log(ax)
            ax.grid(alpha=.3)
        fig.supylabel(axis_name(results, kind), fontsize=10)
    return fig


def sample_strips(
    name: str,                # a key of TABLES
    results: list,            # runs
    out,                      # folder where `run_job` put their images
) -> dict:                    # title -> image, floats (H, W, 3 or 4)
    "Read the samples of each row's first seed."
    import matplotlib.pyplot as plt
    strips = {}
    for row in TABLES[name].rows:
        o = next((o for o in results if o['row'] == row), None)
        path = o and Path(out)/f'{o["name"]}.png'
        if not path or not path.exists(): continue
        at = o.get('samples_at')
        when = f'steps {", ".join(map(str, at))}' if at else 'later to the right'
        strips[f'{words_of(row)}: {when}'] = plt.imread(path)
    return strips


def show_strips(
    strips: dict,             # title -> image, floats (H, W, 3 or 4)
):                            # figure, or None where there is no image
    "Show images as large as they are, pixel for pixel, each under its title; side by side where a page has room."
    import matplotlib.pyplot as plt
    if not strips: return None
    dpi, gap, title = 100, 12, 24                             # pixels; the title stands above its strip
    h, w = (max(o.shape[i] for o in strips.values()) for i in (0, 1))
    across = max(1, min(len(strips), PAGE // (w + gap)))
    size = across*(w + gap) - gap, math.ceil(len(strips)/across)*(h + title)
    fig = plt.figure(figsize=[n/dpi for n in size], dpi=dpi)
    for i, (words, image) in enumerate(strips.items()):
        x, y = i % across*(w + gap), size[1] - (i // across + 1)*(h + title)
        ax = fig.add_axes((x/size[0], y/size[1], image.shape[1]/size[0], image.shape[0]/size[1]))
        ax.imshow(image, interpolation='nearest', aspect='auto')
        ax.set_axis_off()
        fig.text(x/size[0], (y + h + 4)/size[1], words, fontsize=9)
    return fig


def show_samples(
    name: str,                # a key of TABLES
    results: list,            # runs
    out,                      # folder where `run_job` put their images
):                            # figure, or None where there is no image
    "Show samples of every row at several steps, from the same noise (Figure 4); of each row the first seed."
    return show_strips(sample_strips(name, results, out))
