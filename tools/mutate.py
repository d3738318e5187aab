"""Break the book on purpose and see whether it notices: `python -m tools.mutate [WHICH ...]` (in `make long`).

WHICH is a chapter (10) or words of a mutation ("resize with half"); all without it.

Each mutation is one edit of an exported cell, or of a file of the machinery that serves the chapter. It is applied in a
copy; then the chapters that could notice run, in order, until one fails. A mutation that no chapter notices ends the
command with exit code 1, and so does one of the training code that moves no golden trace (tests/test_golden.py), unless
it is listed in STILL. The table it prints is the one in CONTRIBUTING.md.
"""
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sysconfig.get_path('scripts'))
LEFT = '.git', '.venv', 'runs', '__pycache__', '.*_cache', 'dist', 'build', '*.egg-info'    # not copied

MUTATIONS = [   # what, chapter, from, to, the chapters that could notice
    ('softmax over the wrong axis', '02', '.softmax(dim=-1)', '.softmax(dim=-2)', '02'),
    ('gamma dropped', '02', 'return x + self.gamma*o', 'return x + o', '02'),
    ("attention with torch's default initialisation", '02', 'make_layer(nn.Conv2d(c_in, c_out, 1, bias=False), sn)', '(lambda m: __import__("sagan_nb").spectral_norm.spectral_norm(m) if sn else m)(nn.Conv2d(c_in, c_out, 1, bias=False))', '04'),
    ('fused attention scaled by 1/sqrt(d)', '02', ', scale=1.0)', ')', '02'),
    ('gradient of attention without its second term', '02', 'torch.cat([g, -(g*quotient(sums)).sum(1, keepdim=True)], 1)', 'torch.cat([g, 0*(g*quotient(sums)).sum(1, keepdim=True)], 1)', '02'),
    ('the largest of large scores not looked for', '02', 'if (most < 130).all(): return', 'if True: return', '02'),
    ('hinge sign flipped', '05', 'F.relu(1 - real).mean() + F.relu(1 + fake).mean()', 'F.relu(1 + real).mean() + F.relu(1 - fake).mean()', '05'),
    ('G rewarded for fakes that look fake', '05', 'return -fake.mean()', 'return fake.mean()', '05'),
    ('mean pooling for sum pooling', '04', 'F.relu(x).sum((2, 3))', 'F.relu(x).mean((2, 3))', '04'),
    ('batch norm in evaluation forgets the mean', '03', 'offset = offset - self.mean*gain', 'offset = offset + 0*gain', '03'),
    ('in-place ReLU before the shortcut', '03', 'x if self.first else F.relu(x)', 'x if self.first else F.relu(x, inplace=True)', '03'),
    ('beta1 0.5', '07', "beta1:float = setting(0.,", "beta1:float = setting(.5,", '07 09'),
    ('u moves in evaluation mode by default', '01', "return self.update == 'always' or (self.training and", "return self.update == 'always' or (True and", '01'),
    ('reading the weight moves u', '01', '"The normalised weight."', '"The normalised weight."\n    self.advance(weight)', '01'),
    ('power step without its second unit', '01', 'return unit(W @ v, **eps), v', 'return W @ v, v', '01'),
    ('the same fakes train both networks', '09', 'z, y = gan.noise(n)', 'gan.rng.manual_seed(0); z, y = gan.noise(n)', '09'),
    ('D trained in the step of G', '09', 'with frozen(gan.D), gan.precision(): logit', 'gan.opt_d.step()\n    with frozen(gan.D), gan.precision(): logit', '09'),
    ('u not copied with the averaged weights', '09', 'for a, b in zip(gan.ema.buffers(), gan.G.buffers()): a.copy_(b)', 'pass', '09'),
    ('the place in the data not restored', '09', "data.load_state_dict(state['data'])", 'pass', '09'),
    ('fold without the quarter of its mean', '03', 'return F.conv2d(box(x, 1), w, b, stride=2)', 'return F.conv2d(4*box(x, 1), w, b, stride=2)', '03'),
    ('means of a box that leave its zeros out', '03', 'return F.avg_pool2d(x, 2, stride=1, padding=zeros)', 'return F.avg_pool2d(x, 2, stride=1, padding=zeros, count_include_pad=False)', '03'),
    ('transposed kernel not flipped', '03', 'w = 4*w.flip(2, 3).transpose(0, 1)', 'w = 4*w.transpose(0, 1)', '03'),
    ('taps of a doubled map swapped', '03', 'torch.stack([before + middle + last, first + middle + after]', 'torch.stack([first + middle + after, before + middle + last]', '03'),
    ("gradient of the divided weight without its second term", '01', 'torch.addr(G, u*(G.reshape(-1) @ out.reshape(-1)), v, alpha=-1) / s', 'G / s', '01'),
    ('D not frozen in the step of G, in the bench', '14', 'with frozen(self.D) if self.v.frozen else', 'with contextlib.nullcontext() if self.v.frozen else', '14'),
    ('covariance divided by n', '10', 'return self.scatter / (self.n - 1)', 'return self.scatter / self.n', '10'),
    ('splits of the score not shuffled', '10', 'if shuffle and splits > 1 else', 'if False else', '10'),
    ('real and generated swapped in precision', '10', 'F, R = Cloud(fake, centre, chunk), Cloud(real, centre, chunk)', 'F, R = Cloud(real, centre, chunk), Cloud(fake, centre, chunk)', '10'),
    ('resize with half-pixel centres', '10', 'at = torch.arange(size, dtype=torch.float32, device=x.device) *', 'at = (.5 + torch.arange(size, dtype=torch.float32, device=x.device)) *', '10'),
    ('trace of the root for the nuclear norm', '10', '2*torch.linalg.svdvals(cross).sum().item()', '2*torch.linalg.matrix_norm(cross).item()', '10'),
    ('map drawn transposed', '11', 'self.shape[0] // self.cell, self.shape[1] // self.cell)', 'self.shape[0] // self.cell, self.shape[1] // self.cell).T', '11'),
    ('row and column of a query exchanged', '11', 'query[0]*self.shape[0]//self.res*self.shape[1] + query[1]*', 'query[1]*self.shape[0]//self.res*self.shape[1] + query[0]*', '11'),
    ('pooled keys drawn as small as locations', '11', 'o.look(i, query), o.res/o.shape[0]*o.cell, query', 'o.look(i, query), o.res/o.shape[0], query', '11'),
    ('arrows end at the corner of a cell', '11', 'tuple((v + .5)*side - .5 for v in cell)', 'tuple(v*side for v in cell)', '11'),
    ('map of a pooled layer from unpooled keys', '11', 'key = F.max_pool2d(key, 2) if block.pool else key', 'key = F.avg_pool2d(key, 2) if block.pool else key', '11'),
    ('queries for contrast lie side by side', '11', 'gap = max(1, min(o.shape) // (2*math.ceil(math.sqrt(n))))', 'gap = 1', '11'),
    ('looking at a map moves u', '01', 'if not torch.equal(b, was): b.copy_(was)', 'pass', '01 11'),
    ('a walk between classes keeps the old offsets', '13', "for name in ('gain', 'offset'):", "for name in ('gain',):", '15'),
    ('the line in place of the great circle', '15', '(((1 - t)*w).sin()*a[..., None, :] + (t*w).sin()*b[..., None, :]) / w.sin()', '(1 - t)*a[..., None, :] + t*b[..., None, :]', '15'),
    ('an ordering that is reversed counts as held', '12', "(d < 0) == (kind in LOWER)", "(d < 0) != (kind in LOWER)", '12'),
    ('interval over rows for interval over pairs', '12', 'np.array([a[s] - b[s] for s in seeds])', 'np.array([a[s] - b[t] for s, t in zip(seeds, reversed(seeds))])', '12'),
    ("Holm's rule goes on after a claim that failed", '12', 'if ps[o]*left < .05: left -= 1', 'left -= 1', '12'),
    ('power of a test that knows the spread', '12', 'stats.nct.sf(t, n - 1, c) - power', 'stats.norm.sf(t - c) - power', '12'),
    ('loss of diversity not seen', '12', "o['diversity'] < .25*min(best, real)", "o['diversity'] < .025*min(best, real)", '12'),
    ('a finished row trained again', '12', 'missing, failed, took = [j for j in jobs if not stored_result(j, out)]', 'missing, failed, took = [*jobs]', '12'),
    ('even growth taken for a jump', '12', 'if third > 2*goes_on:', 'if third > 2*second:', '12'),
    ('rows compared across other features', '12', "'data_id', 'pictures'))) for o in found}) < 2", "'data_id', 'pictures'))) for o in found}) < 9", '12'),
    ('moving variance unbiased', '03', 'var if self.unbiased else var*((n - 1)/n)', 'var', '03'),
]

TRAINING = '01', '02', '03', '04', '05', '07', '09'        # chapters whose mutations change what training computes
STILL = {   # mutation -> why it moves no golden trace
    'softmax over the wrong axis': 'training takes the fast path; this softmax is for looking',
    'fused attention scaled by 1/sqrt(d)': 'training on a CPU takes the tiles',
    'the largest of large scores not looked for': 'the scores of these runs are small',
    'looking at a map moves u': 'these runs look at no map',
}


def mutate(work, chapter, old, new):
    "Edit the one exported cell, or the one file of the machinery that serves the chapter, that holds the text."
    path = next((work/'nbs').glob(f'{chapter}_*.ipynb'))
    nb = nbformat.read(path, 4)
    cells = [c for c in nb.cells if c.cell_type == 'code' and '#| export' in c.source and old in c.source]
    files = {p: text for p in (work/'sagan_nb'/'machinery').glob('*.py') for text in [p.read_text(encoding='utf-8')]
             if old in text and chapter in text.split(':')[0]}
    count = sum(c.source.count(old) for c in cells) + sum(text.count(old) for text in files.values())
    assert count == 1, f'{chapter}: {old!r} must stand in one exported cell or one file of its machinery, once'
    for c in cells: c.source = c.source.replace(old, new)
    for p, text in files.items(): p.write_text(text.replace(old, new), encoding='utf-8')
    nbformat.write(nb, path)


def caught_by(mutation):
    "The first chapter that fails, or None; does a golden trace move? (None: not asked)"
    what, chapter, old, new, chapters = mutation
    with tempfile.TemporaryDirectory() as d:
        work = Path(d)/'book'
        shutil.copytree(ROOT, work, ignore=shutil.ignore_patterns(*LEFT))
        mutate(work, chapter, old, new)
        env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | dict(PYTHONPATH=str(work), OMP_NUM_THREADS='1')
        def call(*command): return subprocess.run(command, cwd=work, env=env, capture_output=True).returncode
        def fails(n): return call(BIN/'nbdev_test', '--path', next((work/'nbs').glob(f'{n}_*.ipynb')))
        if call(BIN/'nbdev_export'): raise SystemExit('nbdev_export failed')
        by = next(filter(fails, chapters.split()), None)
        moves = call(BIN/'pytest', '-x', '-q', 'tests/test_golden.py') != 0 if chapter in TRAINING else None
        return by, moves


def chosen(words):
    "The mutations of these chapters, or with these words in their names; all of them for no words."
    found = {w: [m for m in MUTATIONS if w == m[1] or (not w.isdigit() and w in m[0])] for w in words}
    strange = [w for w in words if not found[w]]
    if strange: sys.exit(f'no mutation {strange[0]!r}; say a chapter, such as 10, or words of a name')
    return [m for m in MUTATIONS if not words or any(m in ms for ms in found.values())]


def main():
    missed, mutations = 0, chosen(sys.argv[1:])
    print('| mutation | in chapter | caught by chapter | moves a golden trace |\n|---|---|---|---|')
    (what, chapter, old, *_), all_chapters = mutations[0], sorted({n for m in mutations for n in m[4].split()})
    nothing = what, chapter, old, old, ' '.join(all_chapters)    # no bug: what fails now would notice everything
    by, moves = caught_by(nothing)
    if by or moves: sys.exit(f'{f"chapter {by}" if by else "a golden trace"} fails without a planted bug')
    for m in mutations:
        by, moves = caught_by(m)
        missed += by is None or (moves is False and m[0] not in STILL)
        words = {None: '', True: 'yes', False: STILL.get(m[0], '**no**')}[moves]
        print(f'| {m[0]} | {m[1]} | {by or "**nobody**"} | {words} |', flush=True)
    sys.exit(1 if missed else 0)


if __name__ == '__main__': main()
