"Serves chapter 12: what a trained generator loses when its attention is replaced, by tools/study/mechanism.py."
import math
from pathlib import Path

from ..ablation import Plan, paired_difference, shares
from .files import read_json
from .power import UNJUDGED, ruling

TRAINED = 'as trained'
DRAWN = 5000                  # images of each run, by the design
LESS = {'silenced (gamma = 0)': 'with it silenced', 'map of another image': 'with the map of another image',
        'only within 8 px': 'with its map cut to 8 pixels'}
OTHERS = ('even map', 'locations shuffled', 'only within 4 px', 'only within 16 px', 'only beyond 8 px',
          'only beyond 16 px')
MECHANISM = Plan('What attention does in a trained generator', (TRAINED, *LESS, *OTHERS), TRAINED,
                 tuple((TRAINED, way, f'attention as trained gives more bits than {words}')
                       for way, words in LESS.items()),
                 kinds=('mi',), holm=True, seeds=(14, 15, 17, 18, 19))     # 16 was looked at before


def mechanism_runs(
    path: Path,               # results/twins/mechanism.json
    preset: str = 't1_attn_16',    # or 't1_res_16', the control of equal size
) -> list:                    # dicts as of `collect`, a row for each way; only the seeds that the design tests
    "Read what was measured as runs of a table. Raises Refused for a damaged file."
    def wanted(o): return (o['preset'], o.get('n', DRAWN)) == (preset, DRAWN) and o['seed'] in MECHANISM.seeds
    runs = filter(wanted, read_json(path, 'measure again')['runs'])
    return [dict(row=way, seed=o['seed'], records=[dict(metric=f'long_range_{k}', value=v) for k, v in found.items()])
            for o in runs for way, found in o['found'].items()]


def mechanism_words(
    runs: list,               # from `mechanism_runs`
) -> list:                    # a text for each claim
    "Judge what was written down before the runs were measured, in bits, each interval at its share of the 5 %."
    among, out = shares(runs, MECHANISM), []
    for a, b, words in MECHANISM.claims:
        d, low, high, n = paired_difference(runs, a, b, 'mi', 1 - .05/among[a, b, 'mi'])
        found = ruling(MECHANISM, runs, a, b, 'mi', among[a, b, 'mi'])
        ends = '' if found.startswith(UNJUDGED) or math.isnan(low) else f'{d:+.1f} bits [{low:+.1f}, {high:+.1f}], '
        if n: out.append(f'{words}: {ends}{found}')
    return out
