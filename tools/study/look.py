"""What attention does in one trained run, as data for chapter 11: `python -m tools.study.look RUN`.

Writes results/look: maps of both networks and pictures without attention, the numbers of both generators (`use.json`),
and the run's log.
"""
import json
import shutil
import sys
from pathlib import Path

import torch

from sagan_nb.attention_maps import attention_maps, show_attention, silenced
from sagan_nb.core import from_uint8, save_fig, show_grid
from sagan_nb.report import draw_z
from sagan_nb.train import draw
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.evaluate import evaluate
from sagan_nb.machinery.features import domain
from sagan_nb.machinery.runs import pictures_of

OUT = Path(__file__).resolve().parents[2]/'results'/'look'
METRICS = ('score', 'distance', 'intra', 'prdc', 'long_range')


def numbers(G, source, judge, **about):
    "The metrics of a generator, by name."
    records = evaluate(G, source, METRICS, judge, n_fake=5000, n_real=10_000, cache=None, about=about)
    keep = ('metric', 'value', 'real', 'features', 'features_hash', 'n_fake', 'n_real', 'pictures', 'splits', 'seed',
            'labels', 'data_id', *about)
    return [{k: o[k] for k in keep if k in o} for o in records]


def main(run):
    model = open_run(run)
    cfg, G, D, source = model.cfg, model.G, model.D, pictures_of(model.cfg)
    z, y = draw_z(64, cfg.z_dim, cfg.seed), torch.arange(64) % cfg.n_classes
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(cfg.seed))[:64]
    real, labels = source.batch(order)
    maps = {'G': attention_maps(G, z, y), 'D': attention_maps(D, from_uint8(real), labels)}
    for part, which in (('G', range(4)), ('D', [labels.tolist().index(k) for k in range(4)])):
        names = [source.classes[k] for k in (y if part == 'G' else labels)]
        save_fig(show_attention(maps[part], n=3, pictures=which, names=names), OUT/f'maps_{part}.png', dpi=80)
    with silenced(G): without = draw(G, z[:12], y[:12])
    whole, judge = draw(G, z[:12], y[:12]), domain(source)
    rows = {'trained': whole, 'gamma = 0': without, 'difference': (whole - without).abs() - 1}
    save_fig(show_grid(torch.cat([*rows.values()]), 12, rows=[*rows]), OUT/'gamma0.png', dpi=80)
    about = dict(step=model.step, preset=cfg.preset, scale=cfg.scale, gamma='trained')
    found = numbers(G, source, judge, **about)
    with silenced(G): found += numbers(G, source, judge, **about | dict(gamma='0'))
    env, config = (json.loads((Path(run)/f'{o}.json').read_text(encoding='utf-8')) for o in ('env', 'config'))
    use = {part: {name: o.use() for name, o in m.layers.items()} for part, m in maps.items()}
    facts = dict(use=use, pictures=64, metrics=found, env=env, config=config)
    (OUT/'use.json').write_text(json.dumps(facts, indent=1), encoding='utf-8')
    shutil.copy(Path(run)/'log.jsonl', OUT/'log.jsonl')


if __name__ == '__main__': main(sys.argv[1])
