"""What is made from data in Markdown files, without Quarto: `python -m tools.site.readme`.

README.md comes from nbs/index.ipynb. In other files, what stands between `<!-- made: NAME -->` and `<!-- end -->` comes
from a function here. With `--check` nothing is written: it fails on a difference.
"""
import ast
import json
import re
import sys
from pathlib import Path

from sagan_nb.machinery.terminal import markdown_table

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = r'(?m)^#\| *(hide|export|default_exp)\b'
NO_CODE = r'(?m)^#\| *echo: *false\b'
HEAD = '<!-- Made from nbs/index.ipynb by tools/site/readme.py: edit the notebook. -->'
MADE = re.compile(r'(<!-- made: (\w+) -->\n)(.*?)(<!-- end -->)', re.S)
SHOWN = {                                        # name of a metric -> what it says
    'classifier score': 'Are the classes clear, and all there? 1 to 4, more is better',
    'Fréchet classifier distance': 'How far are the pictures from the real ones? 0 is best',
    'intra distance': 'The same within each class, mean over the classes',
    'diversity': 'How much do the pictures of a class differ? Standard deviation of a pixel',
    'long_range_mi': 'What the colour of one part tells of the other part: 0 to 3 bits',
    'long_range_agreement': 'Share of pictures whose two parts have one colour, of eight',
    'long_range_chance': 'That share, if left and right parts were dealt out by chance'}


def links(text):
    "Links and pictures of a page in nbs/, as they read from the root; addresses and anchors stay as they are."
    def turn(m):
        target = m[2]
        if re.match(r'[a-z]+:|#|/', target): return m[0]
        return f'{m[1]}({target[3:]})' if target.startswith('../') else f'{m[1]}(nbs/{target})'
    return re.sub(r'(\[[^\]]*\])\(([^)\s]+)\)', turn, text)


def outputs(cell):
    "What a cell printed or returned, as text; figures stay in the notebook."
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        if 'text/markdown' in data: yield links(''.join(data['text/markdown']))
        elif not any(k.startswith('image/') for k in data):
            if text := ''.join(o.get('text') or data.get('text/plain') or []).rstrip(): yield f'```text\n{text}\n```'


def parts(nb):
    "The paragraphs of README, cell by cell."
    yield HEAD
    for cell in nb['cells']:
        source = ''.join(cell['source']).strip()
        if cell['cell_type'] == 'markdown': yield links(source)
        if cell['cell_type'] != 'code' or re.search(LEFT_OUT, source): continue
        silent = re.search(NO_CODE, source)
        source = '\n'.join(o for o in source.splitlines() if not o.startswith('#|')).strip()
        if source and not silent: yield f'```python\n{source}\n```'
        yield from outputs(cell)


def read(path): return json.loads((ROOT/path).read_text(encoding='utf-8'))


def short(commit): return (commit or 'unknown')[:7]


def mutations():
    "The bugs that tools/mutate.py plants, and who noticed when results/long.txt was written."
    tree = ast.parse((ROOT/'tools'/'mutate.py').read_text(encoding='utf-8'))
    values = {o.targets[0].id: o.value for o in tree.body if isinstance(o, ast.Assign)}
    log = (ROOT/'results'/'long.txt').read_text(encoding='utf-8')
    by = dict(re.findall(r'(?m)^\| ([^|]+) \| \d\d \| ([^|]+) \|(?: [^|]* \|)?$', log))       # of two runs, the later
    rows = [(m[0], m[1], by.get(m[0], 'not run yet')) for m in ast.literal_eval(values['MUTATIONS'])]
    return markdown_table(('bug', 'planted in chapter', 'noticed by chapter'), rows)


def main_job():
    "What the first command of README gave when it ran to its end."
    records, config, env = (read(f'results/main_job/{o}.json') for o in ('metrics', 'config', 'env'))
    shown = {r['metric']: r for r in records if r['metric'] in SHOWN and r.get('splits', 1) == 1}
    def cell(v): return '-' if v is None else f'{v:.2f}'
    o = shown['Fréchet classifier distance']
    rows = [(f'{text} (`{k}`)', cell(shown[k]['value']), cell(shown[k].get('real'))) for k, text in SHOWN.items()]
    return '\n'.join([
        markdown_table(('what is measured (its name)', 'generated', 'real'), rows), '',
        f'{o["n_fake"]:,} generated and {o["n_real"]:,} real pictures. The first three rows are by a {o["features"]} '
        f'({o["features_hash"]},',
        f'{o["features_accuracy"]:.0%} right on held-out pictures), the others from pixels.',
        f'The run: `{o["preset"]}` at `{o["scale"]}` scale, {o["step"]:,} updates, seed {o["train_seed"]}, '
        f'{config["precision"]}, averaged weights,',
        f'batch norm with {o["batch_norm"]} generated pictures; torch {env["torch"]} on {env["threads"]} threads, '
        f'commit {short(o["trained_commit"])}.'])


def chapters():
    "Number, title and the one line of every chapter."
    rows = []
    for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        title, line = re.fullmatch(r'# (.+)\n> (.+)', ''.join(read(path)['cells'][0]['source']).strip()).groups()
        rows.append((f'[{path.stem[:2]} {title}](../nbs/{path.name})', line))
    return markdown_table(('chapter', 'in one line'), rows)


def parity():
    "How far the outputs of loaded weights are from those of the code they belong to."
    read_of = {'official-tf': 'released code', 'biggan-pytorch': 'BigGAN-PyTorch', 'studiogan': 'StudioGAN'}
    rows, found = [], read('results/parity.json')['rows']
    for case in dict.fromkeys(o['case'] for o in found):
        mine = [o for o in found if o['case'] == case]
        def most(k): return max((o[k] for o in mine if k in o), default=None)
        where, network = case.split('/')
        off = [most(k) for k in ('images', 'logits', 'gradients')]
        rows.append((f'{read_of[where]}, `{network}`', *('-' if v is None else f'{v:.0e}' for v in off)))
    return markdown_table(('weights of', 'images', 'logits', 'gradients'), rows)


REAL_SHOWN = {                                   # name of a metric -> what it says of real images
    'kernel classifier distance': 'Kernel distance to held-out images; 0 is best',
    'Fréchet classifier distance': 'Fréchet distance to them; 0 is best',
    'precision': 'Precision: share of generated images that lie among real ones',
    'recall': 'Recall: share of real images that lie among generated ones',
    'diversity': 'How much the images of a class differ: standard deviation of a pixel'}


def cifar10_rows(o):
    "What each metric says of generated images, of those with attention silenced, and of real ones."
    drawn, silenced = ({r['metric']: r for r in o[key]} for key in ('records', 'silenced'))
    def number(v): return f'{v:.3g}' if v < 100 else f'{v:.0f}'
    for k, words in REAL_SHOWN.items():
        if k not in drawn: continue
        real = drawn[k].get('real')
        beside = number(real) if isinstance(real, float) else '-'
        yield words, number(drawn[k]['value']), number(silenced[k]['value']), beside


def cifar10():
    "The generator of real images: what it draws, its scores with and without attention, how it was chosen."
    if not (ROOT/'results'/'cifar10'/'generator.json').exists(): return ''
    o = read('results/cifar10/generator.json')
    tried = ', '.join(f'{c["kid"]:.3f} at {c["step"]:,}' for c in sorted(o['candidates'], key=lambda c: c['step']))
    classes, where, drawn = ', '.join(o['classes']), f'results/cifar10/{o["file"]}', o['records'][0]
    so_far = f' of the {o["of"]:,} of its design' if o['step'] < o['of'] else ''
    samples = f'Generated images of the ten classes of CIFAR-10, one row for each: {classes}'
    maps = 'Generated images with numbered dots, and for each dot a map with arrows to where it looks'
    return '\n'.join([
        f'After {o["step"]:,} updates{so_far}. {o["bytes"]/1e6:.1f} MB, weights in half precision. Of the checkpoints '
        f'kept (kernel distance {tried}) it is the nearest to images that no training saw.', '',
        f'![{samples}](../results/cifar10/samples.png)', '',
        f'One row for each class: {classes}. One z for each column, none chosen.', '',
        markdown_table(('what is measured', 'generated', 'attention silenced', 'real'), cifar10_rows(o)), '',
        f'{drawn["n_fake"]:,} generated and {drawn["n_real"]:,} held-out images, measured by a classifier of the '
        f'training images ({drawn["features_hash"]}). CIFAR-10 is a JPEG copy here: compare these numbers with each '
        'other alone.', '', '```{code-block} sh', f'sagan_sample {where} --out samples.png',
        f'sagan_attention {where} --n 4 --out maps.png', '```', '', f'![{maps}](../results/cifar10/maps.png)', ''])


def gpu(folder=ROOT/'results'/'gpu'):
    "What `tools.bench.gpu` found, part by part; each may be missing, or have ended early."
    if not (folder/'run.json').exists(): return 'Nobody has run it on a GPU yet.'
    about = read(folder/'run.json')
    part = {name: read(folder/f'{name}.json') for name in about['parts'] if (folder/f'{name}.json').exists()}
    facts, out = next(iter(part.values()), {}), []
    device, torch = facts.get('device_name', 'a device that left no word'), facts.get('torch', 'unknown')
    lasted = f'{about["minutes"]:g} minutes' + (', a rehearsal' if about['smoke'] else '')
    if check := part.get('check'):
        came = [*check.get('pytest', {}).get('cuda', {}).get('outcomes', {}).values()]
        same = [o.get('same', False) for o in check.get('traces', {}).values()]
        passed = came.count('PASSED')
        out.append(f'- **Does it run, and compute what a CPU does?** {passed} of {len(came)} tests passed; '
                   f'{sum(same)} of {len(same)} traces of losses are a CPU\'s.')
    if steps := {n: o for n, o in part.get('speed', {}).get('steps', {}).items() if 'failed' not in o}:
        name, rate = next((name, o['steps_per_s']) for name, o in steps.items())
        out.append(f'- **How fast?** {rate:.3g} steps a second ({name}): a million in {1e6/rate/3600:,.0f} hours. '
                   f'{len(steps)} cases are in chapter 14.')
    if (table_part := part.get('table')) and table_part.get('runs'):
        runs, images = table_part['runs'], Path(table_part['data']).name
        rows = ', '.join(sorted({o['row'] for o in runs}))
        out.append(f'- **Rows of Table 1** on {table_part["images"]:,} images of {images}: {len(runs)} runs of {rows}, '
                   f'{table_part["steps"]:,} updates each.')
    a_run = part.get('profile', {}).get('profiles', {}).get('a run', {})
    if waits := a_run.get('waits'):
        times = sum(waits.values())/a_run['updates']
        out.append(f'- **Does a run wait for it?** {times:.1f} times in an update.')
    early = '; '.join(f'{name} {o["ended"]}' for name, o in about['parts'].items() if o['ended'] != 'whole')
    if early: out.append(f'- Not whole: {early}.')
    return '\n'.join([f'On {device}, torch {torch}, commit {short(facts.get("commit"))}, {lasted}.', '', *out])


def refreshed(text):
    "The text with every made part made anew."
    return MADE.sub(lambda m: f'{m[1]}\n{globals()[m[2]]()}\n\n{m[4]}', text)


def wanted():
    "(path, text) of every file with a made part."
    yield ROOT/'README.md', '\n\n'.join(parts(read('nbs/index.ipynb'))) + '\n'
    for path in (ROOT/'CONTRIBUTING.md', *sorted((ROOT/'docs').glob('*.md'))):
        yield path, refreshed(path.read_text(encoding='utf-8'))
    if any((ROOT/'results'/'few_images').glob('*-laptop-*.json')):
        from tools.site.few_images import few_page           # needs torch
        yield ROOT/'docs'/'few_images.md', few_page()


def survives():
    "What survives what: a table for each part of the suite, from what its last campaign left."
    out = []
    for part, title in PARTS.items():
        path = ROOT/'results'/'faults'/f'{part}.json'
        if not path.exists(): continue
        about = read(path)
        rows = [(o['fault'], o['how'], f'{o["tries"]:,}', came_of(o)) for o in about['rows'] if o['tries']]
        made = markdown_table(['fault', 'how injected', 'tries', 'outcome'], rows)
        out += [f'## {title}', '', made_on(about), '', made, '']
    return '\n'.join(out).strip()


PARTS = dict(crash='Killed anywhere', scarce='What a program needs is taken away', damage='Damaged files',
             fuzz='Malformed input', soak='A long run', oldest='The oldest versions that are allowed')
CAME = dict(refused='refused by name', named='named, and made again or an earlier one used', same='the same values',
            other='other values: nothing guards it')


def made_on(about):
    "How many tries there were and when, and whether any went wrong."
    slices, n = about['slices'], sum(o['tries'] for o in about['rows'])
    all_made, wrong, seconds = (sum(o[k] for o in slices) for k in ('tries', 'wrong', 'seconds'))
    days, commits = sorted(o['date'] for o in slices), sorted({short(o['commit']) for o in slices})
    occasions = '1 occasion' if len(slices) == 1 else f'{len(slices)} occasions'
    when = days[0] if days[0] == days[-1] else f'{days[0]} to {days[-1]}'
    of = '' if all_made == n else f', of {all_made:,} made (rows that were renamed or left out since are not shown)'
    where, since = '', ''
    if not slices[-1]['wrong']: where, since = ', on an earlier occasion,', '; it was mended, and the newest shows none'
    bad = f' In {wrong} of them{where} something went wrong{since}.' if wrong else ''
    return (f'{n:,} tries, made on {occasions}{of}; {seconds / 60:.0f} minutes, {when}, '
            f'commits {", ".join(commits)}.{bad}')


def came_of(o):
    "The outcome of a row, in words."
    if o['wrong']: return f'**{len(o["wrong"])} went wrong**: ' + o['wrong'][0].replace('|', '/').splitlines()[0][:200]
    if 'outcomes' in o:
        parts = [f'{n:,} {CAME[k]}' for k, n in o['outcomes'].items()]
        rest = o['tries'] - sum(o['outcomes'].values())
        if rest: parts.append(f'{rest:,} went wrong, and were mended since')
        return '; '.join(parts)
    if 'found' in o:
        first, last = o.get('branches', (0, 0))
        branches = f'; {first} branches of the code by good inputs, {last} at the end' if 'branches' in o else ''
        mended = f'; found, and mended: {", ".join(o["found"])}' if o['found'] else ''
        return f'taken or refused{branches}{mended}'
    if o['fault'].startswith(('a long run', 'the oldest')): return o['said'][-1]
    if o.get('said') is None: return 'nothing lost; the same end'
    line = 'one line says what happened' if o['said'] else 'without a word to say'
    return f'nothing lost; the same end, {line}'


def main(check):
    stale = [(path, new) for path, new in wanted() if not path.exists() or path.read_text(encoding='utf-8') != new]
    for path, new in stale:
        if not check: path.write_text(new, encoding='utf-8')
        else: print(f'{path.name} differs from what it is made of: run `python -m tools.site.readme`', file=sys.stderr)
    return int(check and bool(stale))


if __name__ == '__main__':
    sys.exit(main('--check' in sys.argv[1:]))
