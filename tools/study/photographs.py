"""Measure a run of the table of photographs against images that no training saw:
results/photographs/README.md is the design.

    python -m tools.study.photographs RUN TRAIN.zip TEST.zip

Writes held_out/ROW-sSEED.json beside the table's results: distance, KID, precision and recall, diversity, the same with
the block silenced where there is one, attention or its control, and how many images copy a training image; and a
picture of the first image of each class over its nearest training image. Decides nothing.
"""
from pathlib import Path

from fastcore.script import call_parse

from sagan_nb.attention_maps import silenced
from sagan_nb.core import Refused
from sagan_nb.data import open_source
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.evaluate import evaluate
from sagan_nb.machinery.files import write_json
from sagan_nb.machinery.jobs import features_of as judge_of
from sagan_nb.machinery.machine import keep_memory, machine_facts
from sagan_nb.machinery.runs import machines, read_log

from .few_images import copied_share, features_of, looked_up
from .generator import HELD_OUT, METRICS, TRAINED_ON, renamed

OUT = Path(__file__).resolve().parents[2]/'results'/'photographs'


def copies(G, judge, source, held, n):
    """Share of n generated images that copy a training image, and the same of real ones that no training saw; the
    first of each class as a picture."""
    made, own, picture = looked_up(G, judge, source, n)
    real = features_of(judge, held)
    some, others = real[::2], real[1::2]                 # every other one: they lie class by class
    return dict(n=n, generated=copied_share(made, own, others), real=copied_share(some, own, others)), picture


@call_parse
def main(
    run:str,                  # run folder
    train:str,                # the images it was trained on
    test:str,                 # held-out images
    out:str=str(OUT),         # folder of the table's results, with its classifier
    n:int=10_000,             # generated images for each score; for the copies a fifth of them
):
    "Measure, and write one file."
    keep_memory()
    model = open_run(run)
    source = open_source(train, model.cfg.res)
    cfg = model.cfg
    if source.fingerprint != cfg.data_id: raise Refused(f'{train} is not what {run} was trained on')
    if model.step != cfg.steps: raise Refused(f'{run} is not finished: {model.step} of {cfg.steps} updates')
    held, judge = renamed(test, cfg.res, HELD_OUT), judge_of('domain', source, out)
    judge.name = f'classifier of {TRAINED_ON}'           # a record names no path
    def scores(): return evaluate(model.G, held, METRICS, judge, n, len(held), cache=None, about=model.about)
    copied, picture = copies(model.G, judge, source, held, n // 5)
    usage = next((o['usage_G'] for o in reversed(read_log(Path(run)/'log.jsonl')) if 'usage_G' in o), {})
    found = dict(row=cfg.preset, seed=cfg.seed, step=model.step, env=machines(run)[0], measured=machine_facts(),
                 held_out=scores(), copies=copied, usage=usage)
    if model.G.extra:
        with silenced(model.G, model.G.extra.values()): found['silenced'] = scores()
    folder = Path(out)/'held_out'
    folder.mkdir(exist_ok=True)
    name = f'{cfg.preset}-s{cfg.seed}'
    with atomic_write(folder/f'{name}.png') as part: picture.save(part, format='PNG', optimize=True)
    write_json(folder/f'{name}.json', found)
    for o in found['held_out']: print(f'{o["metric"]}: {o["value"]:.4g}')
    print(f'copies: {found["copies"]["generated"]:.1%}, of real images {found["copies"]["real"]:.1%}')
