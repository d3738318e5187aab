"Serves chapter 12: what the probe of D alone found by the design of results/probe, as sentences, a table and a figure."
from pathlib import Path

import numpy as np

from ..ablation import detectable
from .figures import BLUE, FONTS, GREY, ORANGE
from .probe import Settings, censored, judge_claims, read_results, take_off
from .tables import row_name, words_of
from .terminal import markdown_table

WORLD, SEEDS = 'twins:detail=4', range(10, 30)
CLAIMS = {('t1_attn_16', 't1_none'): 'than without it', ('t1_attn_16', 't1_res_16'): 'than with the residual control',
          ('t1_attn_16', 't1_attn_8'): 'than with attention at 8'}
CONTROLS = 't1_res_8', 't1_res3x3_8', 't1_res3x3_16'
ROWS = *dict.fromkeys(row for pair in CLAIMS for row in pair), *CONTROLS
DOSES = (       # a folder below results/probe_dose, in words, how it differs from the probe on `twins`, seeds
    ('numbers_12', '12 numbers a pattern', dict(updates=600, every=20), SEEDS),
    ('numbers_27', '27 numbers', dict(data='twins:detail=3'), SEEDS),
    ('../probe', '48 numbers', dict(data=WORLD), SEEDS),
    ('near', '27 numbers, near', dict(data='twins:detail=3,apart=0.8'), range(10, 20)),
    ('far', '27 numbers, far', dict(data='twins:detail=3,apart=1.6'), range(10, 20)),
    ('pixels_64', '27 numbers, 64 pixels', dict(data='twins:detail=3', res=64), range(10, 15)))
COLOURS = dict(none='black', attn=BLUE, res=ORANGE, res3x3=GREY)


def probe_runs(
    folder,                   # of results
) -> dict:                    # row -> seed -> result
    "Read the runs of the design that are there. Raises Refused for a damaged file."
    return read_results([Settings(row, seed, WORLD) for row in ROWS for seed in SEEDS], folder)


def over_pairs(
    claim: dict,              # from `judge_claims`
    unit: str = '',           # behind the difference
) -> str:
    "Give the mean difference over pairs, and its interval where there is one."
    if not claim['pairs']: return 'no pairs'
    ends = f' [{claim["low"]:+,.0f}, {claim["high"]:+,.0f}]' if 'low' in claim else ''
    return f'{claim["difference"]:+,.0f}{unit}{ends}'


def probe_words(
    found: dict,              # from `probe_runs`
) -> list:                    # a text for each claim with runs
    "Say what became of each claim: how many runs took off, the difference over pairs, the log-rank test by Holm."
    judged, out = judge_claims(found, list(CLAIMS)), []
    for o in judged['claims']:
        a, b = (judged['rows'][o[side]] for side in ('better', 'worse'))
        took = f'{round(a["share"]*a["n"])} of {a["n"]} runs took off against {round(b["share"]*b["n"])} of {b["n"]}'
        seeds = f'{o["verdict"]} ({o["pairs"]} seeds)'
        if o['pairs'] < len(SEEDS): seeds += ', provisional'
        than = CLAIMS[o['better'], o['worse']]
        out.append(f'$D$ alone with attention at 16 learns that distant parts agree sooner {than}: {took}, '
                   f'{over_pairs(o, " updates")}, log-rank p = {o["holm_p"]:.2g} by Holm, {seeds}')
    return out


def probe_missed(
    found: dict,              # from `probe_runs`
) -> str:                     # empty where nothing is open
    "Say how large a difference of mean updates the claims that are not resolved could have missed."
    judged = judge_claims(found, list(CLAIMS))['claims']
    unresolved = [o for o in judged if o['verdict'] == 'not resolved' and 'spread' in o]
    sizes = sorted(detectable(o['spread'], o['pairs'], len(CLAIMS)) for o in unresolved)
    return f'D alone: {sizes[0]:,.0f} to {sizes[-1]:,.0f} updates, by a paired t test' if sizes else ''


def reached_at(
    row: dict,                # from `takeoff_summary`
) -> str:
    "Say after how many updates half of the runs had taken off."
    return f'{row["median"]:,.0f}' if np.isfinite(row['median']) else f'more than {row["longest"]:,.0f}'


def probe_table(
    found: dict,              # from `probe_runs`
) -> str:                     # Markdown
    "Lay out the rows, and below them the claims with the difference over pairs."
    judged = judge_claims(found, list(CLAIMS))
    head, rows = ['row', 'runs', 'took off', 'half of them by', 'mean update (restricted)',
                  'AUC at the end, mean and median', 'size of gamma at the end', 's of a core'], []
    for row, o in judged['rows'].items():
        gammas = [abs(g) for r in found[row].values() for g in r['gamma'].values()]
        gamma = f'{np.mean(gammas):.2f}' if gammas else '-'
        share = f'{o["share"]:.0%} ({o["share_low"]:.0%} to {o["share_high"]:.0%})'
        rows.append([row_name(row), o['n'], share, reached_at(o), f'{o["restricted_mean"]:,.0f}',
                     f'{o["final_auc"]:.3f}, {o["final_auc_median"]:.3f}', gamma, f'{o["seconds"]:.0f}'])
    claims_head = ['claim: takes off sooner', 'log-rank p', 'by Holm',
                   'mean difference of restricted times over pairs, at its own 95 %', 'verdict']
    claims = [[f'{words_of(o["better"])}, {words_of(o["worse"])}', f'{o["p"]:.2g}', f'{o["holm_p"]:.2g}',
               over_pairs(o), f'{o["verdict"]} ({o["pairs"]} seeds)'] for o in judged['claims']]
    return f'{markdown_table(head, rows)}\n\n{markdown_table(claims_head, claims)}'


def dose_settings(
    dose: tuple,              # of DOSES
) -> dict:                    # row -> Settings of its seeds; no block, attention, the residual control
    "Say which runs a dose asks for."
    _, _, own, seeds = dose
    m = own.get('res', 32)//2                                         # the map of the block
    return {row: [Settings(row, seed, **own) for seed in seeds] for row in ('t1_none', f't1_attn_{m}', f't1_res_{m}')}


def dose_table(
    folder,                   # results/probe_dose
) -> str:                     # Markdown
    "Lay out the doses that are whole: of each row what took off and when, and the two differences over pairs."
    head = ['dose', 'no block', 'attention', 'residual', 'attention minus no block', 'attention minus residual']
    lines = []
    for dose in DOSES:
        wanted = dose_settings(dose)
        found = read_results([o for own in wanted.values() for o in own], Path(folder)/dose[0])
        if any(len(found.get(row, ())) < len(own) for row, own in wanted.items()): continue
        none, attention, residual = wanted
        judged = judge_claims(found, [(attention, none), (attention, residual)])
        cells = [f'{o["share"]:.0%}, {o["restricted_mean"]:,.0f}' for o in map(judged['rows'].get, wanted)]
        lines.append([dose[1], *cells, *map(over_pairs, judged['claims'])])
    return markdown_table(head, lines)


def show_takeoff(
    found: dict,              # from `probe_runs`
):                            # matplotlib Figure
    "Draw the share of runs that have taken off against updates, and the mean AUC on the way."
    import matplotlib.pyplot as plt
    from scipy import stats
    with plt.rc_context(FONTS):
        fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout='constrained')
        for row in (r for r in ROWS if r in found):
            kind = row.split('_')[1]
            look = dict(color=COLOURS[kind], ls=':' if row.endswith('_8') else '-', label=words_of(row), lw=2)
            curves = [o['curve'] for o in found[row].values()]
            share = stats.ecdf(censored([take_off(c) for c in curves])).cdf
            t = [0, *(o['t'] for o in curves[0])]
            left.step(t, share.evaluate(t), where='post', **look)
            right.plot(t[1:], np.mean([[o['auc'] for o in c] for c in curves], 0), **look)
        left.set(xlabel='updates of D', ylabel='share of runs that reached 0.9', ylim=(-.02, 1.02))
        right.set(xlabel='updates of D', ylabel='AUC, mean over runs', ylim=(.45, 1.02))
        left.legend(frameon=False)
        for ax in (left, right): ax.grid(alpha=.3)
    return fig
