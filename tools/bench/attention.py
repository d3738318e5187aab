"""What attention adds to an update of small nets: `python -m tools.bench.attention [--against FOLDER] [ROUNDS]`.

Writes results/speed/attention.json. Whole updates (D on real and fake, then G) in processor seconds of one thread, in
turns: none, released and paper form, with freed memory kept, as `sagan_train` has it. FOLDER is a checkout of an
earlier commit, whose code then runs in a process of its own, in the same turns.
"""
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NETS = {'64 px, width 8, map 32': (64, 8, 32, 'fp32'), '64 px, width 8, map 32, bfloat16': (64, 8, 32, 'bf16'),
        '32 px, width 4, map 16': (32, 4, 16, 'fp32'), '32 px, width 4, map 8': (32, 4, 8, 'fp32')}
FORMS = 'none', 'released', 'paper'


def update(res, width, at, precision, form):
    "A callable that makes one update; gamma is not 0, as after some training."
    from dataclasses import replace

    import torch

    from sagan_nb.config import PRESETS, at_scale
    from sagan_nb.train import d_step, g_step, make_gan
    attention = {} if form == 'none' else dict(attn_at=(at,), block='attention', form=form)
    plain = at_scale(PRESETS['t1_none'], 'laptop', precision == 'bf16')
    cfg = replace(plain, res=res, width=width, n_classes=10, **attention)
    gan, x, y = make_gan(cfg), torch.rand(cfg.batch, 3, res, res)*2 - 1, torch.arange(cfg.batch) % 10
    for net in (gan.G, gan.D):
        for block in net.extra.values(): torch.nn.init.constant_(block.gamma, .3)

    def run(): d_step(gan, gan.place(x), y), g_step(gan, len(x))
    return run


def serve():
    "Answer each line `net form` with the processor seconds of an update."
    import torch

    from sagan_nb.machinery.machine import keep_memory
    keep_memory()
    torch.set_num_threads(1)
    made = {}
    for line in sys.stdin:
        name, form = line.strip().rsplit(' ', 1)
        if (name, form) not in made:
            made[name, form] = update(*NETS[name], form)
            for _ in range(2): made[name, form]()
        repeats = 1 if NETS[name][0] > 32 else 4
        start = time.process_time()
        for _ in range(repeats): made[name, form]()
        print((time.process_time() - start)/repeats, flush=True)


def worker(folder):
    "A process that times the code of a folder."
    env = os.environ | dict(PYTHONPATH=str(folder), OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, __file__, '--serve'], cwd=folder, env=env, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def ask(process, question):
    process.stdin.write(question + '\n')
    process.stdin.flush()
    return float(process.stdout.readline())


def row(turns, code, net):
    "Medians over the rounds: seconds of each form, and what each has more than none."
    taken = {form: [t[code, f'{net} {form}'] for t in turns] for form in FORMS}
    def middle(seconds): return round(statistics.median(seconds), 4)
    def more(form): return middle(a - b for a, b in zip(taken[form], taken['none']))
    return {form: middle(taken[form]) for form in FORMS} | {f'{form} less none': more(form) for form in FORMS[1:]}


def main(rounds, against):
    from sagan_nb.machinery.machine import machine_facts
    workers = {'now': worker(ROOT)} | ({'before': worker(Path(against).resolve())} if against else {})
    questions = [f'{net} {form}' for net in NETS for form in FORMS]
    for q in questions:
        for w in workers.values(): ask(w, q)
    turns = [{(code, q): ask(w, q) for q in questions for code, w in workers.items()} for _ in range(rounds)]
    for w in workers.values(): w.stdin.close()
    rows = {net: {code: row(turns, code, net) for code in workers} for net in NETS}
    unit = 'processor seconds of an update, one thread, batch 32; medians over rounds in turns'
    out = dict(made_by='python -m tools.bench.attention', unit=unit, rounds=rounds, **machine_facts(), rows=rows)
    (ROOT/'results'/'speed'/'attention.json').write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(rows, indent=1))


if __name__ == '__main__':
    words = sys.argv[1:]
    if words == ['--serve']: serve()
    else:
        folder = words.pop(words.index('--against') + 1) if '--against' in words else None
        main(int(next((w for w in words if w != '--against'), 5)), folder)
