"""Does a stored row begin alike with today's code? `python -m tools.same_code`. Writes results/same_code.json, which chapter 12 reads.

One seed of every row in results/ that was made by other code is begun anew, twice: with the package of its commit, and with that of this tree. Settings,
seed and pictures are the row's own, but for a few updates and fewer pictures in the metrics. "The same": losses, norms, curve and metrics, to the last bit.
Code that sums in another order is not the same, and a few updates make much of rounding. So how far the losses of the first update are off is written down, too.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEWER = dict(steps=8, standing=64, ema_start=3, checkpoint_every=8, sample_every=8, log_every=1, sigma_every=4)
COMPARED = 'loss', 'raw', 'sigma', 'usage'          # how names in the log begin


def begin(tree, out, files):
    "Begin the runs of result files with the package in `tree`; in a process of its own. Leaves the hash of its code in `out`."
    sys.path.insert(0, str(tree))
    import torch
    from sagan_nb import ablation
    from sagan_nb.config import from_json
    from sagan_nb.data import open_source
    if Path(ablation.__file__).resolve().parents[1] != tree.resolve(): sys.exit(f'took {ablation.__file__}, not the package in {tree}')
    torch.set_num_threads(1)
    ablation.SIZES['laptop'] = 200, 500
    for file in files:
        known = json.loads(Path(file).read_text(encoding='utf-8'))['config']
        cfg = from_json(json.dumps(known | {k: v for k, v in FEWER.items() if k != 'ema_start' or known['ema']}))
        ablation.run_job(ablation.Job(cfg), open_source(cfg.data, res=cfg.res), out/Path(file).stem, out/'runs')
    (out/'code').write_text(ablation.code_version())


def numbers(out, file):
    "What a run came to, without its seconds, names and versions; the losses of its first update first."
    result = json.loads(next((out/Path(file).stem).glob('*.json')).read_text(encoding='utf-8'))
    log = [json.loads(o) for o in (out/'runs'/result['name']/'log.jsonl').read_text(encoding='utf-8').splitlines()]
    records = 'metric', 'splits', 'value', 'real', 'spread', 'per_class', 'features_hash'
    return ([log[0][k] for k in ('loss_d', 'loss_g')], result['parameters'],
            [{k: v for k, v in o.items() if k.startswith(COMPARED)} for o in log],
            [[o.get(k) for k in ('t', 'distance', 'diversity', 'mi')] for o in result['curve']],
            [[o.get(k) for k in records] for o in result['records']])


def compare(old, new, files, work):
    "Are result files (all by one version of the code) begun alike by the packages in two trees? file -> (bool, larger difference of the first losses), hash of the old code"
    work.mkdir(exist_ok=True)
    env = dict(os.environ, MPLBACKEND='agg', IN_TEST='1')
    start = lambda side, tree: subprocess.Popen([sys.executable, __file__, tree, work/side, *files], cwd=work,
                                                env=dict(env, SAGAN_NB_CACHE=str(work/side/'cache')))
    both = start('old', old), start('new', new)
    if any([o.wait() for o in both]): raise SystemExit('one side stopped')
    pairs = {Path(f): [numbers(work/side, f) for side in ('old', 'new')] for f in files}
    found = {f: (json.dumps(a) == json.dumps(b), max(abs(p - q) for p, q in zip(a[0], b[0], strict=True))) for f, (a, b) in pairs.items()}
    return found, (work/'old'/'code').read_text()


def main():
    from sagan_nb.ablation import TABLES, code_version, collect
    from sagan_nb.speed import here
    cases, out = {}, dict(made_by='python -m tools.same_code', **here(), code=code_version(), fewer=FEWER, cases=[])
    for table in (*TABLES, 'precision'):
        for o in collect(ROOT/'results'/table):                     # by row and seed: the first of each row stays
            if o['code'] == code_version(): continue
            case = cases.setdefault((o['env']['commit'], o['code']), {})
            case.setdefault((table, o['row']), ROOT/'results'/table/f'{o["name"]}.json')
    for (commit, code), rows in cases.items():
        with tempfile.TemporaryDirectory() as work:
            old = Path(work)/'tree'
            old.mkdir()
            packed = subprocess.run(['git', 'archive', commit, 'sagan_nb'], cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(['tar', '-x', '-C', old], input=packed, check=True)
            found, was = compare(old, ROOT, [*rows.values()], Path(work)/'runs')
        if was != code: raise SystemExit(f'results of {commit} say that code {code} made them, but its code is {was}')
        for (table, row), file in rows.items():
            same, off = found[file]
            print(f'{commit[:7]} {table:10} {file.stem:40} {"the same" if same else f"other numbers: the first losses differ by {off:.1e}"}', flush=True)
            out['cases'].append(dict(table=table, row=row, commit=commit, code=code, same=same, loss_difference=off))
        (ROOT/'results'/'same_code.json').write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    if len(sys.argv) > 1: begin(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    else: main()
