"""The page on few images, made from results/few_images; without results there is none.
`python -m tools.site.readme` writes it."""
import math
from pathlib import Path
from statistics import fmean, stdev

from sagan_nb.ablation import paired_difference, seed_differences, shares
from sagan_nb.machinery.answers import capital
from sagan_nb.machinery.power import UNJUDGED, ruling
from sagan_nb.machinery.terminal import markdown_table
from tools.study.few_images import FEW, collect_few

ROOT = Path(__file__).resolve().parents[2]
SHOWN = {                 # name of a metric -> column
    'Fréchet classifier distance': 'distance', 'kernel classifier distance': 'kernel distance',
    'precision': 'precision', 'recall': 'recall', 'diversity': 'variety'}

HEAD = """# Few images

What does a SAGAN make of 100, 1,000 or 10,000 images, and does augmentation help? The images are CIFAR-10's (JPEG,
32x32, ten classes), the networks small, and the design was [written down](../results/few_images/README.md) before the
first run."""

READING = """\
*Distance* (Fréchet) and *kernel distance* are to 10,000 held-out images, by a classifier that has seen neither them nor
the images trained on; 0 is best. *Variety* is the standard deviation of a pixel within a class. *Copies*: the share of
generated images that lie nearer to a training image than 99 in 100 held-out images do; 1 % means that nothing is
copied. *Known*: the share of pairs in which D prefers a training image to a held-out one; 50 % means that it has learnt
none by heart."""

JUDGED = """\
Judged by distance, paired by seed, each interval at its share of the 5 %. A difference below 0 speaks for the claim:"""

LOOKS = """\
The distance of 500 generated images, mean over the seeds. More images have a smaller distance: compare within this \
table alone."""

ADVICE = """## With few images of your own

- `--set augment=diffaug` changes all that D sees; `--set flip=true` adds mirror images, where a mirrored one is as \
good.
- Begin with weights that know images, and hold the first blocks of D: `--init` and `--freeze` ([weights](weights.md)).
- Look on the way, and keep the best checkpoint: `--look_every 300 --keep best:3` (a multiple of `checkpoint_every`: \
300 at laptop scale, 1,000 at gpu).
- Look at the nearest real image of each generated one: `sagan_sample RUN --kind neighbours`."""


def spread(values, digits=2):
    "Mean and standard deviation, as text."
    mean = f'{fmean(values):.{digits}f}'
    return mean if len(values) < 2 else f'{mean} ± {stdev(values):.{digits}f}'


def percent(values, digits=0): return f'{100*fmean(values):.{digits}f} %'


def cells(own):
    "What a row of the table says of its runs."
    for metric in SHOWN:
        records = [o for r in own for o in r['records'] if o['metric'] == metric]
        values = [o['value'] for o in records if isinstance(o['value'], float)]
        yield spread(values) if values else '-'
    yield percent([o['copies']['generated'] for o in own], 1)
    yield percent([o['known'] for o in own])


def by_row(results):
    "Row -> its runs, in the order of the design."
    found = {row: [o for o in results if o['row'] == row] for row in FEW.rows}
    return {row: own for row, own in found.items() if own}


def name_of_row(row):
    images, augment = row.split()
    return f'{int(images):,}', augment


def judged(results):
    "A line for each claim of the design."
    results = FEW.of_its_seeds(results)
    all_shares = shares(results, FEW)
    for a, b, words in FEW.claims:
        among = all_shares[a, b, 'distance']
        d, low, high, n = paired_difference(results, a, b, 'distance', 1 - .05/among)
        found = ruling(FEW, results, a, b, 'distance', among)
        if not n: continue
        within = '' if math.isnan(low) else f' [{low:+.2f}, {high:+.2f}]'
        nearer = (seed_differences(results, a, b, 'distance') < 0).sum()
        numbers = '' if found.startswith(UNJUDGED) else f'{d:+.2f}{within}, nearer in {nearer} of {n} seeds, '
        yield f'- {capital(words)}: {numbers}**{found}**.'


def looks_of(results): return sorted(set.intersection(*({p['t'] for p in o['curve']} for o in results)))


def on_the_way(results):
    "Mean distance of each row at each look, and where it was lowest."
    for row, own in by_row(results).items():
        means = {t: fmean(p['distance'] for o in own for p in o['curve'] if p['t'] == t) for t in looks_of(results)}
        lowest = min(means, key=means.get)
        yield *name_of_row(row), *(f'{v:.2f}' for v in means.values()), f'{lowest:,}'


def pictures(results, folder):
    "The first seed of each row: generated images, and below each the nearest one of those it was trained on."
    for row, own in by_row(results).items():
        first, (images, augment) = min(own, key=lambda o: o['seed']), name_of_row(row)
        where = f'../results/{Path(folder).name}/{first["name"]}.png'
        alt = f'A generated image of each class, and below it the nearest training image: {images} images, {augment}'
        yield f'{images} images, `{augment}`:\n\n![{alt}]({where})'


def few_page(folder=ROOT/'results'/'few_images', scale='laptop'):
    "The page, or '' where there is no result."
    results = collect_few(folder, scale)
    if not results: return ''
    one = results[0]
    control = percent([o['copies']['real'] for o in results], 1)
    variety = next(o['real'] for o in one['records'] if o['metric'] == 'diversity')
    seeds = ', '.join(map(str, sorted({o['seed'] for o in results})))
    about = (f'`t1_attn_16` at `{one["scale"]}` scale, {one["steps"]:,} updates of {one["settings"]["batch"]} images; '
             f'seeds: {seeds}; mean ± standard deviation. Held-out images have a variety of {variety:.2f}; '
             f'of real images that were not trained on, {control} count as copies.')
    head = ['images', 'augmentation', *SHOWN.values(), 'copies', 'known']
    looks = ['images', 'augmentation', *(f'{t:,} updates' for t in looks_of(results)), 'lowest at']
    rows = [(*name_of_row(row), *cells(own)) for row, own in by_row(results).items()]
    return '\n\n'.join([HEAD, '## The result', markdown_table(head, rows), about, READING, JUDGED,
                        '\n'.join(judged(results)), '## On the way', LOOKS, markdown_table(looks, on_the_way(results)),
                        '## What it draws', *pictures(results, folder), ADVICE]) + '\n'
