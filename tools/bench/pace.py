"""What an update costs in each row of a table: `python -m tools.bench.pace TABLE`, after its runs.

Writes results/TABLE/pace.json. Runs of a table meet other programs, each for itself; here the rows are timed in turns,
in processor seconds of one thread.
"""
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from sagan_nb.ablation import TABLES
from sagan_nb.config import from_json
from sagan_nb.data import Stream, open_source
from sagan_nb.speed import in_turns, timing_table
from sagan_nb.train import fit, make_gan
from sagan_nb.machinery.jobs import collect
from sagan_nb.machinery.machine import machine_facts

ROOT = Path(__file__).resolve().parents[2]


def one_update(cfg):
    "A callable that trains a row by one update of G, with its updates of D."
    gan, stream = make_gan(cfg), Stream(open_source(cfg.data, res=cfg.res), cfg.batch, cfg.seed, flip=cfg.flip)
    def run():
        gan.cfg = replace(cfg, steps=gan.t + 1)
        fit(gan, stream)
    return run


def main(name, rounds=15):
    os.environ['IN_TEST'] = '1'                         # no progress bar for every update
    torch.set_num_threads(1)
    folder = ROOT/'results'/name
    configs = {o['row']: from_json(json.dumps(o['config'])) for o in collect(folder, TABLES[name].rows)}
    taken = in_turns({row: one_update(cfg) for row, cfg in configs.items()}, rounds)
    rows = {row: {k: r[k] for k in ('cpu_seconds', 'ratio_of_cpu')}
            for row, r in timing_table(taken, 1, TABLES[name].base).items()}
    out = dict(made_by=f'python -m tools.bench.pace {name}', **machine_facts(), rows=rows)
    (folder/'pace.json').write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    if len(sys.argv) != 2 or sys.argv[1] not in TABLES: sys.exit(f'say which table: {", ".join(TABLES)}')
    main(sys.argv[1])
