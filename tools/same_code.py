"""Do stored results belong to today's code? `python -m tools.same_code`. Writes results/same_code.json, which chapter 12 reads.

Every row of every table in results/ that was made by other code is begun anew, twice: by the code of its commit, and by that of this tree. Its own
settings, seed and pictures, but fewer steps and fewer pictures in the metrics. Losses, curve and metrics must be the same numbers, to the last bit.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEWER = dict(steps=8, standing=64, ema_start=3, checkpoint_every=8, sample_every=8, log_every=1, sigma_every=4)


def begin(tree, out, files):
    "Begin the runs of result files with the package that lies in `tree`; called in a process of its own."
    sys.path.insert(0, str(tree))
    import torch
    from sagan_nb import ablation
    from sagan_nb.config import from_json
    from sagan_nb.data import open_source
    if Path(ablation.__file__).parents[1] != Path(tree).resolve(): sys.exit(f'took {ablation.__file__}, not the package in {tree}')
    torch.set_num_threads(1)
    ablation.SIZES['laptop'] = 200, 500
    for file in files:
        known = json.loads(Path(file).read_text(encoding='utf-8'))['config']
        cfg = from_json(json.dumps(known | {k: v for k, v in FEWER.items() if k != 'ema_start' or known['ema']}))
        job = ablation.Job(cfg)
        ablation.run_job(job, open_source(cfg.data, res=cfg.res), out/Path(file).stem, out/'runs')


def numbers(out, file):
    "What a run came to, without its seconds, names and versions."
    result = json.loads(next((out/Path(file).stem).glob('*.json')).read_text(encoding='utf-8'))
    log = (out/'runs'/result['name']/'log.jsonl').read_text(encoding='utf-8').splitlines()
    return dict(losses=[{k: v for k, v in json.loads(o).items() if k.startswith('loss')} for o in log],
                curve=[[o.get(k) for k in ('t', 'distance', 'diversity', 'mi')] for o in result['curve']],
                records=[[o.get(k) for k in ('metric', 'splits', 'value', 'spread', 'per_class', 'features_hash')] for o in result['records']])


def compare(old, new, files, work):
    "Which of these result files (all by one version of the code) are begun alike by the packages in two trees? file -> bool"
    work.mkdir(exist_ok=True)
    for side, tree in (('old', old), ('new', new)):
        env = dict(os.environ, SAGAN_NB_CACHE=str(work/side/'cache'), OMP_NUM_THREADS='1', MPLBACKEND='agg', IN_TEST='1')
        subprocess.run([sys.executable, __file__, tree, work/side, *files], check=True, env=env, cwd=work)
    return {Path(f): numbers(work/'old', f) == numbers(work/'new', f) for f in files}


def main():
    from sagan_nb.ablation import TABLES, code_version, collect
    from sagan_nb.speed import here
    cases = {}
    for table in TABLES:
        firsts = {(o['env']['commit'], o['code'], o['row']): o for o in reversed(collect(ROOT/'results'/table)) if o['code'] != code_version()}
        for (commit, code, row), o in sorted(firsts.items()): cases.setdefault((commit, code), []).append(ROOT/'results'/table/f'{o["name"]}.json')
    out = dict(made_by='python -m tools.same_code', **here(), code=code_version(), fewer=FEWER, cases=[])
    for (commit, code), files in cases.items():
        with tempfile.TemporaryDirectory() as work:
            old = Path(work)/'tree'
            old.mkdir()
            packed = subprocess.run(['git', 'archive', commit, 'sagan_nb'], cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(['tar', '-x', '-C', old], input=packed, check=True)
            same = compare(old, ROOT, files, Path(work))
        for file, alike in same.items():
            print(f'{commit[:7]} {file.parent.name:10} {file.stem:40} {"the same" if alike else "OTHER NUMBERS"}', flush=True)
            out['cases'].append(dict(table=file.parent.name, row=file.stem.split('-')[0], commit=commit, code=code, same=alike))
    (ROOT/'results'/'same_code.json').write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    if len(sys.argv) > 1: begin(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    else: main()
