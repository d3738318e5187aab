"Serves chapter 12: runs on photographs, measured against images that no training saw."
from ..ablation import RESULT_KINDS, TABLES, measured_alike, seed_differences
from ..core import Refused
from .tables import difference, mean_spread, row_name, words_of
from .terminal import markdown_table

HELD_OUT_HEADS = dict(distance='distance', kid='kernel distance', precision='precision', recall='recall',
                      diversity='diversity')             # kind -> a column
READ_SO = ('Means over seeds, after ± their standard deviation; of distances less is better, of precision and '
           'recall more, and diversity should be that of the real images. Each run is measured by {n_fake:,} '
           'generated images against {n_real:,} that no training saw (diversity and copies by fewer); the claims '
           'above by fewer and against training images, so the two distances are not to be subtracted. A copy is '
           'nearer to a training image than 99 of 100 held-out images are, in the features of the classifier. '
           '*Block silenced*: the trained network with gamma set to 0, the statistics of its batch norm unchanged; '
           'it says nothing of a network that never had a block. A difference has its own 95 % interval: of so '
           'many, chance lets some leave out zero. None of this is judged.')


def mean_cells(
    words: str,               # the first cell
    runs: list,               # as of `held_out_table`
    key: str = 'value',       # in a record: 'value', or 'real' for the real images
) -> list:                    # cells of a line
    "Take means over runs."
    def of(kind, part):
        records = [r for o in runs for r in o.get(part, []) if r['metric'] in RESULT_KINDS[kind]]
        return [r[key] for r in records if r.get(key, 'n/a') != 'n/a']
    whose = dict(value='generated', real='real')[key]
    numbers = [of(kind, 'held_out') for kind in HELD_OUT_HEADS]
    numbers += [[round(100*o['copies'][whose], 6) for o in runs], of('distance', 'silenced')]
    if key == 'real':                                        # one value of each, and no block
        return [words, '-', *[mean_spread(dict.fromkeys(v), 3) for v in numbers], '-']
    use = [100*layer['ratio'] for o in runs for layer in o['usage'].values()]
    return [words, str(len(runs)), *[mean_spread(v, 3) for v in [*numbers, use]]]


def difference_cells(
    scored: list,             # runs, whose records are those against held-out images
    better: str,              # a row
    worse: str,               # another
) -> list:                    # cells of a line
    "Subtract two rows seed by seed, each number with its own 95 % interval."
    pairs = len(seed_differences(scored, better, worse, 'distance'))
    count = '1 pair' if pairs == 1 else f'{pairs} pairs'
    numbers = [difference(scored, better, worse, kind) for kind in HELD_OUT_HEADS]
    return [f'{words_of(better)} minus {words_of(worse)}', count, *numbers, '-', '-', '-']


def held_out_table(
    found: list,              # what `tools/study/photographs.py` wrote, a dict for each run
) -> str:                     # Markdown
    """Write a line for each row of the design, one for the real images, and one for the difference that each claim is
    about; and how to read them. Raises Refused without a run, and where runs were measured against different images or
    by different features."""
    plan = TABLES['photographs']
    found = plan.of_its_seeds(found)
    if not found: raise Refused('no run was measured against held-out images')
    scored = [dict(o, records=o['held_out']) for o in found]
    steps = {o.get('step') for o in found}
    alike = all(measured_alike(scored, plan.rows, kind) for kind in HELD_OUT_HEADS)
    if len(steps) > 1 or not alike: raise Refused('these runs were not measured alike')
    head = ['', 'runs', *HELD_OUT_HEADS.values(), 'copies, %', 'distance, block silenced',
            'what the block adds, % of the map']
    lines = [mean_cells(row_name(row), [o for o in found if o['row'] == row]) for row in plan.rows]
    lines += [mean_cells('real images', found, 'real'), *(difference_cells(scored, a, b) for a, b, _ in plan.claims)]
    table = markdown_table(head, lines).replace(' ± ', '\u00a0±\u00a0')
    distance = next(r for r in found[0]['held_out'] if r['metric'] in RESULT_KINDS['distance'])
    return '\n'.join([table, '', READ_SO.format(**distance)])
