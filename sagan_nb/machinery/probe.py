"""Serves chapter 12: can D alone tell whether distant parts agree? A supervised probe, its files, and how long it took.

    sagan_table probe --data twins --rows t1_none,t1_attn_16 --seeds 10-29 --out results/probe
"""
import argparse
import copy
import hashlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.nn.utils import parametrize

from ..ablation import TABLES, holm
from ..config import preset
from ..core import Refused, from_uint8
from ..data import open_source
from ..losses import hinge_d
from ..networks import Discriminator
from .atomic import atomic_write
from .console import complain
from .files import read_json, write_json
from .machine import environment
from .options import exit_code, fault_line, seeds_of

HELD_OUT = 1000           # images that are never trained on: half of them intact, half dealt out
PARTNERS = dict(toy=('colour', [1]), pairs=('colour', [1, 3]), twins=('code', [1]))      # what makes parts agree


@dataclass(frozen=True)
class Settings:
    "All that decides a probe."
    row: str                  # a row of Table 1; its block goes into D
    seed: int                 # of weights and batches
    data: str = 'twins'       # a world drawn by code
    res: int = 32             # pixels per side
    width: int = 4            # channels of the first block of D
    reduction: int = 2        # keys and queries have C / reduction channels
    updates: int = 2400       # length of the run
    every: int = 100          # updates between looks
    batch: int = 32           # half of them intact
    rate: float = 1.6e-3      # of Adam: the laptop scale's rate of D

    @property
    def name(self) -> str:
        "The stem of its file: row, seed and a hash of the rest."
        own = {k: v for k, v in asdict(self).items() if k not in ('row', 'seed')}
        return f'{self.row}-s{self.seed}-{hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]}'


def deal_out(
    world,                    # drawn by code
):                            # a copy
    "Give the partner of each part what it has in the image before, so that distant parts agree only by chance."
    if getattr(world, 'name', None) not in PARTNERS: raise Refused(f'{world.spec} has no parts that must agree')
    name, parts = PARTNERS[world.name]
    other, values = copy.copy(world), world.factors[name].clone()
    values[:, parts] = values[:, parts].roll(1, 0)
    other.factors = world.factors | {name: values}
    return other


def auc(
    intact,                   # scores, (n,)
    dealt,                    # scores, (m,)
) -> float:                   # 0.5: chance
    "Compute the share of pairs in which the intact image scores higher; a tie counts half."
    from scipy import stats
    return float(stats.mannwhitneyu(intact, dealt).statistic / (len(intact)*len(dealt)))


def score_images(
    D,                        # a discriminator
    x,                        # images, (B, 3, res, res)
) -> np.ndarray:              # logits, (B,)
    "Judge images in evaluation mode, with the weights divided by their norms once."
    D.eval()
    with torch.no_grad(), parametrize.cached(): logits = torch.cat([D(part) for part in x.split(250)])
    D.train()
    return logits.numpy()


def probe(
    D: Discriminator,         # with head 'none'; trained in place
    intact,                   # a source whose distant parts agree
    dealt,                    # the same, dealt out; the same source twice is the control: labels that mean nothing
    updates: int,             # length of the run
    every: int = 100,         # updates between looks
    seed: int = 0,            # of the batches
    batch: int = 32,          # images in an update, half of each kind
    rate: float = 1.6e-3,     # learning rate
) -> list:                    # looks: dicts of t, auc on HELD_OUT images, and loss, the mean since the look before
    "Train D with the hinge loss to tell intact images from dealt ones, and look how well it can."
    opt = torch.optim.Adam(D.parameters(), rate, betas=(0., .9), fused=True)
    rng, last = torch.Generator().manual_seed(seed), len(intact) - HELD_OUT
    form = dict(memory_format=torch.channels_last)

    def draw(source, indices): return from_uint8(source.batch(indices)[0]).contiguous(**form)
    held = [draw(source, torch.arange(last + a, len(intact), 2)) for a, source in enumerate((intact, dealt))]
    curve, losses = [], []
    for t in range(1, updates + 1):
        a, b = torch.randint(last, (batch,), generator=rng).chunk(2)
        loss = hinge_d(*D(torch.cat([draw(intact, a), draw(dealt, b)])).chunk(2))
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
        if t % every and t < updates: continue
        seen = auc(*(score_images(D, x) for x in held))
        curve.append(dict(t=t, auc=round(seen, 5), loss=round(float(np.mean(losses)), 5)))
        losses.clear()
    return curve


def run_probe(
    own: Settings,            # which
) -> dict:                    # JSON values: settings, curve, seconds, where
    "Build the worlds and D of a row from its seed, and probe it."
    row, intact = preset(own.row), open_source(own.data, own.res)
    dealt = deal_out(intact)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(own.seed)
        D = Discriminator(own.res, own.width, 1, row.attn_at, row.block, row.form, own.reduction, head='none')
    D.to(memory_format=torch.channels_last)
    began, cpu = time.monotonic(), time.process_time()
    curve = probe(D, intact, dealt, own.updates, own.every, own.seed, own.batch, own.rate)
    gamma = {m: block.gamma.item() for m, block in D.extra.items()}
    took = dict(seconds=round(time.monotonic() - began, 1), cpu_seconds=round(time.process_time() - cpu, 1))
    return dict(settings=asdict(own), data_id=intact.fingerprint, curve=curve, gamma=gamma, **took,
                weights=sum(p.numel() for p in D.parameters()), env=environment('cpu'))


def run_missing(
    wanted: list,             # Settings
    out,                      # folder of results
    end: float = math.inf,    # time.monotonic() after which nothing new is begun
) -> list:                    # Settings that have no result yet
    "Run every probe that has no file. Several processes may share a folder: each takes what no other is at."
    out = Path(out)
    (out/'locks').mkdir(parents=True, exist_ok=True)
    for own in wanted:
        path = out/f'{own.name}.json'
        if path.exists() or time.monotonic() > end: continue
        try:
            with FileLock(out/'locks'/f'{own.name}.lock', timeout=0):
                if path.exists(): continue
                result = run_probe(own)
                write_json(path, result)
        except Timeout: continue
        seen = ' '.join(f'{o["auc"]:.2f}' for o in result['curve'])
        print(f'{own.row} seed {own.seed}, {result["seconds"]:.0f} s: {seen}', flush=True)
    return [own for own in wanted if not (out/f'{own.name}.json').exists()]


def read_results(
    wanted: list,             # Settings
    out,                      # folder of results
) -> dict:                    # row -> seed -> result
    "Read what is there of what is wanted."
    found = {}
    for own in wanted:
        path = Path(out)/f'{own.name}.json'
        if path.exists(): found.setdefault(own.row, {})[own.seed] = read_json(path, 'delete it, and it is made anew')
    return found


def take_off(
    curve: list,              # looks
    level: float = .9,        # of AUC
) -> tuple:                   # updates, and whether the level was reached; if not, updates is the length of the run
    "Find the first look at which D reached a level."
    return next(((o['t'], True) for o in curve if o['auc'] >= level), (curve[-1]['t'], False))


def censored(
    times: list,              # pairs from `take_off`
):                            # scipy.stats.CensoredData
    "Make times for scipy: runs that never took off are right-censored at their end."
    from scipy import stats
    return stats.CensoredData([t for t, seen in times if seen], right=[t for t, seen in times if not seen])


def takeoff_summary(
    times: list,              # pairs from `take_off`, all of runs of one length
) -> dict:                    # n; share that took off, its interval; restricted mean; longest; median, or inf
    "Describe when the runs of a row took off. The restricted mean counts a censored run with its whole length."
    from scipy import stats
    ends = {t for t, seen in times if not seen}
    if len(ends) > 1: raise Refused('these runs were of different lengths: a restricted mean needs one horizon')
    took = sum(seen for _, seen in times)
    share = stats.binomtest(took, len(times)).proportion_ci(method='wilson')
    # counted: Kaplan-Meier's products miss one half by rounding
    half = sorted(t for t, seen in times if seen)[(len(times) - 1)//2:]
    return dict(n=len(times), share=took / len(times), share_low=share.low, share_high=share.high,
                restricted_mean=float(np.mean([t for t, _ in times])), longest=max(t for t, _ in times),
                median=float(half[0]) if half else math.inf)


def compare_rows(
    a: dict,                  # seed -> pair from `take_off`, of the row that should be earlier
    b: dict,                  # the same of the other row
) -> dict:                    # log-rank's p, two-sided, and z, above 0 where a is earlier; pairs; difference of times
    """Compare two rows: log-rank over all runs, and the mean difference of restricted times over the seeds of both,
    with its interval, p and spread where it has them."""
    from scipy import stats
    data = [censored(list(o.values())) for o in (a, b)]
    p = z = math.nan
    if any(seen for o in (a, b) for _, seen in o.values()):
        with np.errstate(invalid='ignore'): test = stats.logrank(*data)
        p, z = float(test.pvalue), float(test.statistic)
    if math.isnan(p): z, p = 0., 1.                                  # nothing took off, or all at once: nothing differs
    d = np.array([a[s][0] - b[s][0] for s in sorted(a.keys() & b.keys())], float)
    out = dict(p=p, z=z, pairs=len(d), difference=float(d.mean()) if len(d) else math.nan)
    if len(d) < 2 or not d.std(): return out
    test = stats.ttest_1samp(d, 0)
    low, high = test.confidence_interval()
    return out | dict(low=float(low), high=float(high), paired_p=float(test.pvalue), spread=float(d.std(ddof=1)))


def claims_of(
    rows,                     # names of rows
    given: str = '',          # 'better>worse,...'; '': those of Table 1 that have both rows
) -> list:                    # pairs: the row that should take off earlier, the other
    "List the claims. Raises Refused for a claim about a row that is not there."
    if not given: return [(a, b) for a, b, _ in TABLES['table1'].claims if a in rows and b in rows]
    pairs = [tuple(o.strip() for o in part.split('>')) for part in given.split(',')]
    for pair in pairs:
        if len(pair) != 2 or not set(pair) <= set(rows):
            raise Refused(f'a claim is better>worse, of two of the rows; got {">".join(pair)}')
    return pairs


def probe_verdict(
    p: float,                 # adjusted
    difference: float,        # of restricted means, better minus worse
    z: float = math.nan,      # of the log-rank test; nan: not asked
) -> str:
    "Say whether a claim holds at 5 %."
    if p >= .05: return 'not resolved'
    if z*difference >= 0: return 'not resolved: the curves cross'
    return 'holds' if difference < 0 else 'is reversed'


def judge_claims(
    found: dict,              # from `read_results`
    claims: list,             # from `claims_of`
    level: float = .9,        # of AUC
) -> dict:                    # JSON values: rows, claims
    "Judge the claims on the runs that are there."
    times = {row: {s: take_off(o['curve'], level) for s, o in own.items()} for row, own in found.items()}
    rows = {row: takeoff_summary(list(own.values())) for row, own in times.items()}
    for row, own in found.items():
        last = [o['curve'][-1]['auc'] for o in own.values()]
        rows[row] |= dict(final_auc=float(np.mean(last)), final_auc_median=float(np.median(last)),
                          seconds=float(np.median([o['cpu_seconds'] for o in own.values()])))
    judged = [dict(better=a, worse=b, **compare_rows(times[a], times[b])) for a, b in claims if {a, b} <= times.keys()]
    unseen = [1.]*(len(claims) - len(judged))                      # rows that have not run yet: their claims count, too
    for o, p in zip(judged, holm([o['p'] for o in judged] + unseen)):
        gap = rows[o['better']]['restricted_mean'] - rows[o['worse']]['restricted_mean']
        o |= dict(holm_p=p, gap=gap, verdict=probe_verdict(p, gap, o['z']))
    return dict(level=level, rows=rows, claims=judged)


def as_text(
    found: dict,              # from `judge_claims`
) -> str:
    "Lay a report out as two tables."
    lines = [f'{"row":16} runs  took off           restricted mean  median   final AUC   s a run']
    for row, o in found['rows'].items():
        share = f'{o["share"]:4.0%} ({o["share_low"]:3.0%} to {o["share_high"]:4.0%})'
        lines.append(f'{row:16} {o["n"]:4d}  {share}  {o["restricted_mean"]:15,.0f}  {o["median"]:6.0f}  '
                     f'{o["final_auc"]:10.3f}  {o["seconds"]:8.0f}')
    lines.append(f'\nTime to an AUC of {found["level"]}; runs that never got there count with their whole length.')
    for o in found['claims']:
        ends = f' ({o["low"]:+,.0f} to {o["high"]:+,.0f})' if 'low' in o else ''
        lines.append(f'{o["better"]} before {o["worse"]}: {o["verdict"]}; log-rank p {o["p"]:.3g}, by Holm '
                     f'{o["holm_p"]:.3g}; {o["difference"]:+,.0f} updates{ends} over {o["pairs"]} seeds')
    return '\n'.join(lines)


def probe_options():
    "Describe the command line."
    p = argparse.ArgumentParser('sagan_table probe', description='Can D alone tell whether distant parts agree?')
    p.add_argument('--rows', default='t1_none,t1_attn_8,t1_attn_16,t1_res_8,t1_res_16,t1_res3x3_8,t1_res3x3_16')
    p.add_argument('--seeds', default='10-29')
    p.add_argument('--out', default='results/probe')
    p.add_argument('--minutes', type=float, default=math.inf, help='begin nothing new after these')
    p.add_argument('--claims', default='', help="better>worse,...; default: those of Table 1 between the rows")
    p.add_argument('--level', type=float, default=.9, help='of AUC')
    for name in ('data', 'res', 'width', 'reduction', 'updates', 'every', 'batch', 'rate'):
        usual = getattr(Settings, name)
        p.add_argument(f'--{name}', type=type(usual), default=usual)
    return p


def main(
    argv=None,                # arguments; None: those of the process
) -> int:                     # 0: all is done; 3: something is missing still
    "Run what is missing, print the tables, and write report.json beside the results."
    given = vars(probe_options().parse_args(argv))
    rows, seeds, out = given.pop('rows').split(','), seeds_of(given.pop('seeds')), Path(given.pop('out'))
    minutes, claims, level = given.pop('minutes'), claims_of(rows, given.pop('claims')), given.pop('level')
    if min(given['updates'], given['every'], given['batch'] - 1) < 1:
        raise Refused('--updates and --every are 1 or more, --batch 2 or more')
    wanted = [Settings(row, seed, **given) for seed in seeds for row in rows]        # seed by seed
    missing = run_missing(wanted, out, time.monotonic() + 60*minutes)
    found = read_results(wanted, out)
    if found:
        text = judge_claims(found, claims, level)
        print(as_text(text))
        with atomic_write(out/'report.json') as part: part.write_text(json.dumps(text, indent=1), encoding='utf-8')
    if missing: print(f'{len(missing)} of {len(wanted)} runs are missing still: the same command goes on')
    return 3 if missing else 0


def with_probe(
    f,                        # a command
):                            # the same command; `probe ...` goes to `main`
    "Add the probe to the tables that a command knows; it has options of its own."
    @wraps(f)
    def run(*args, **kwargs):
        if args or kwargs or sys.argv[1:2] != ['probe']: return f(*args, **kwargs)
        try: code = main(sys.argv[2:])
        except (Exception, KeyboardInterrupt) as e:
            if not (line := fault_line(e)): raise
            complain(f'{f.__name__} probe', line)
            code = exit_code(e)
        sys.exit(code)
    return run
