"""Pages of the site that are made from data and code: the map of the paper, Paper vs code, the tests, and the one for a
wrong address."""
import ast
import functools
import json
import re
import zlib
from dataclasses import fields
from pathlib import Path

import yaml

from sagan_nb.ablation import TABLES
from sagan_nb.machinery.answers import capital
from sagan_nb.machinery.terminal import markdown_table
from tools.site.api import plain

ROOT = Path(__file__).resolve().parents[2]
DATA = yaml.safe_load((ROOT/'docs'/'paper.yml').read_text(encoding='utf-8'))
SCALES = ('paper', 'gpu', 'laptop', 'smoke')
METRICS = {               # what is shown of a run, in this order
    'FID': 'FID', 'IS': 'IS', 'Fréchet classifier distance': 'Fréchet classifier distance',
    'classifier score': 'classifier score', 'long_range_mi': 'long-range information in bits'}
BREAK = '_\u200b'         # a line may end after the underscore


class Missing(Exception):
    "The data names something that is not there."


def notebook(number):
    "Name of a chapter, and its cells as (text, is it code that is not exported?)."
    path = next((ROOT/'nbs').glob(f'{number}_*.ipynb'), None)
    if path is None: raise Missing(f'there is no chapter {number}')
    found = [(''.join(c['source']), c['cell_type']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
    return path.stem[3:], [(text, kind == 'code' and '#| export' not in text) for text, kind in found]


def test_functions(text):
    "Tests of a file, as syntax trees."
    return [o for o in ast.parse(text).body if isinstance(o, ast.FunctionDef) and o.name.startswith('test_')]


def tests():
    "Test file -> names of its tests."
    return {p.stem: [o.name for o in test_functions(p.read_text(encoding='utf-8'))]
            for p in sorted((ROOT/'tests').glob('test_*.py'))}


def anchor(number, text): return f'check-{number}-{zlib.crc32(text.encode()):08x}'


def anchors(number):
    "Text -> anchor, for the cells of a chapter that are named as a check."
    def walk(o):
        if isinstance(o, dict):
            for k, v in o.items(): yield from v if k == 'check' else walk(v)
        elif isinstance(o, list):
            for v in o: yield from walk(v)
    return {text: anchor(number, text) for o in walk(DATA) if o.startswith(f'{number}: ') for text in [o[4:]]}


def check(named, all_tests=None):
    "A link to a check. Raises Missing for one that does not exist."
    if m := re.match(r'(\d\d): (.+)', named):
        number, text = m.groups()
        name, cells = notebook(number)
        there = any(text in source for source, code in cells if code)
        if not there: raise Missing(f'no check of chapter {number} holds {text!r}')
        return f'[chapter\u00a0{number}]({name}.ipynb#{anchor(number, text)})'
    file, _, name = named.partition('.')
    known = tests() if all_tests is None else all_tests
    if name not in known.get(file, ()): raise Missing(f'there is no test {named}')
    return f'[{name.replace("_", BREAK)}]({file}.md#{slug(file, name)})'


def checks(named, known):
    "Links to checks; a chapter that is named twice says so only once."
    links, seen = [check(o, known) for o in named], set()
    for link in links:
        words = link[:link.index(']')]
        yield link.replace(words, '[also there', 1) if words in seen else link
        seen.add(words)


def slug(file, name): return f'{file}-{name}'.replace('_', '-')


def code(name, names):
    "A link to a name of the package. Raises Missing for one that does not exist."
    if not (to := names.target(name)): raise Missing(f'{name} is not in the package')
    return f'[`{name}`](#{to})'


@functools.cache
def records():
    """What runs ended with: of the tables' result files, in the folder of their table, and of single runs
    (metrics.json). Dicts with preset, scale, folder, metric, value, data, seed. Tables made again, or with other rates,
    lie in folders of other names, and are left out."""
    found = []
    for path in sorted((ROOT/'results').rglob('*.json')):
        o = json.loads(path.read_text(encoding='utf-8'))
        folder = path.parent.name
        if isinstance(o, dict) and {'row', 'records'} <= o.keys():
            if folder not in TABLES: continue
            about = dict(preset=o['row'], scale=o['scale'], folder=folder, run=path.name)
            found += [r | about for r in o['records']]
        elif path.name == 'metrics.json':
            scale = json.loads(path.with_name('config.json').read_text(encoding='utf-8'))['scale']
            found += [r | dict(scale=scale, folder=folder, run=folder) for r in o]
    return found


def ours(row):
    "(state, numbers) of a preset: at the largest scale at which it was run, of the table with most runs."
    mine = [o for o in records() if o['preset'] == row and o.get('splits', 1) == 1]
    mine = [o for o in mine if isinstance(o['value'], (int, float))]
    scale = next((s for s in SCALES if any(o['scale'] == s for o in mine)), None)
    if scale is None: return 'not run', '-'
    here = [o for o in mine if o['scale'] == scale]
    def runs(folder): return {o['run'] for o in here if o['folder'] == folder}
    folder = max(sorted({o['folder'] for o in here}), key=lambda name: len(runs(name)))
    here = [o for o in here if o['folder'] == folder]
    seeds, shown = runs(folder), []
    for metric in [m for m in METRICS if any(o['metric'] == m for o in here)][:2]:
        own = [o for o in here if o['metric'] == metric]
        mean = sum(o['value'] for o in own)/len(own)
        real = next((o['real'] for o in own if o.get('real') is not None), None)
        beside = '' if real is None else f' (real pictures {real:.2f})'
        shown.append(f'{METRICS[metric]} {mean:.2f}{beside}')
    many = '1 seed' if len(seeds) == 1 else f'{len(seeds)} seeds'
    where = 'at paper scale' if scale == 'paper' else f'smaller: {scale} scale, {here[0]["data"]}'
    return f'{where}, {many}', '; '.join(shown) or '-'


def number(value, checked): return f'{value:g}' + ('' if checked else '\\*')


KINDS = {'checked': 'good', 'at paper scale': 'good', 'smaller': 'part', 'not run': 'open'}      # how a state looks


def badge(state):
    "A state as a coloured word, with what is said of it behind."
    word = next(o for o in KINDS if state.startswith(o))
    return f'[{word}]{{.badge .{KINDS[word]}}}' + state[len(word):].replace(':', '', 1)


def bar(text):
    "One bar with the counts of all badges in a text."
    count = {word: text.count(f'[{word}]{{.badge') for word in KINDS}
    parts = [(word, n) for word, n in count.items() if n]
    spans = ''.join(f'<span class="{KINDS[word]}" style="flex: {n}">{n} {word}</span>' for word, n in parts)
    return f'<div class="bar" role="img" aria-label="{", ".join(f"{n} {word}" for word, n in parts)}">{spans}</div>'


def place(at):
    "A link to a place in the book."
    page, _, where = (o.strip() for o in at.partition(','))
    path = next((ROOT/'nbs').glob(f'[0-9][0-9]_{page}.ipynb'), None)
    if path is None: return f'[drawing](#{where})'
    return f'[chapter\u00a0{path.name[:2]}]({page}.ipynb#{where})'


def items(group, names, known, numbers=False):
    "Rows of equations, figures and claims; with what was published and what came here, where there can be `numbers`."
    for o in DATA[group]:
        mine = [(r, *ours(r)) for r in o.get('rows', ())]
        state = max(mine, key=lambda m: m[1] != 'not run', default=('', 'checked'))[1]
        measured = '; '.join(f'`{row}`: {value}' for row, _, value in mine if value != '-')
        said = [o.get('published', '-'), measured or '-'] if numbers else []
        here = [*(code(c, names) for c in o.get('code', ())), *(f'`{row}`' for row, _, _ in mine)]
        yield (f'**{o["paper"]}**: {o["says"]}', place(o['at']), ', '.join(here), ', '.join(checks(o['check'], known)),
               *said, badge(o.get('state', state)))


def settings(names, known):
    "Rows of the stated settings. Raises Missing where preset `paper` has another value than the paper."
    from sagan_nb.config import PRESETS, Config
    from_paper = {f.name: f for f in fields(Config) if f.metadata['source'].startswith('paper')}
    wrong = from_paper.keys() ^ DATA['hyperparameters'].keys()
    if wrong: raise Missing(f'settings of the paper, in Config or in paper.yml alone: {wrong}')
    def shown(v): return ', '.join(map(str, v)) if isinstance(v, (list, tuple)) else v
    for name, o in DATA['hyperparameters'].items():
        here, said, about = getattr(PRESETS['paper'], name), o['paper'], from_paper[name].metadata
        same = here == (tuple(said) if isinstance(said, list) else said)
        if not same: raise Missing(f'{name}: the paper says {said}, preset `paper` has {here}')
        yield (about['doc'], place('config, reference'), code(f'Config.{name}', names),
               ', '.join(checks(o['check'], known)), f'{shown(said)} ({about["source"]})', shown(here),
               badge(o.get('state', 'checked')))
    for o in DATA['stated']:
        made_by = o['code'] and code(o['code'], names)
        yield (o['what'], place(o['at']), made_by, ', '.join(checks(o['check'], known)), o['paper'], o['here'],
               badge(o['state']))


def table_of_the_paper(o, names, known):
    "Heading, what the table says, and its rows: what was published, and what came here."
    from sagan_nb.config import PRESETS, PUBLISHED
    published = {r: PUBLISHED.get(r, {}) for r in o['rows']}
    metrics = [m for m in ('fid', 'inception_score', 'intra_fid') if any(m in p for p in published.values())]
    rows = []
    for r, of_row in published.items():
        if r not in PRESETS: raise Missing(f'there is no preset {r}')
        values = [number(*of_row[m][:2]) if m in of_row else '-' for m in metrics]
        state, numbers = ours(r)
        rows.append((f'`{r}`', *values, numbers, badge(state)))
    made_by, checked_by = ', '.join(code(c, names) for c in o['code']), ', '.join(checks(o['check'], known))
    yield f'## {o["paper"].capitalize()}'
    yield f'{capital(o["says"])}: {place(o["at"])}, {made_by}. What checks the rows: {checked_by}.'
    heads = (f'published {m.replace("_", " ").replace("fid", "FID")}' for m in metrics)
    yield markdown_table(('preset', *heads, 'ours', 'state'), rows)


def paper_map(names):
    "The map of the paper."
    known, head = tests(), ('in the paper', 'here', 'code', 'what checks it', 'state')
    more = (*head[:-1], 'published', 'ours', 'state')
    out = [MAP_HEAD, '## Equations', markdown_table(head, items('equations', names, known)),
           'Without a number there, but the paper stands on them:',
           markdown_table(head, items('builds_on', names, known)),
           '## Figures', markdown_table(more, items('figures', names, known, True))]
    for o in DATA['tables']: out += table_of_the_paper(o, names, known)
    out += ['## Claims in the text', markdown_table(more, items('claims', names, known, True)),
            '## Stated settings', SETTINGS, markdown_table(('setting', *more[1:]), settings(names, known))]
    return '\n\n'.join([out[0], bar('\n'.join(out[1:])), LEGEND, *out[1:]]) + '\n'


MAP_HEAD = """# The map of the paper

Every numbered equation, figure, table and stated setting of
[the paper](https://arxiv.org/abs/1805.08318): where the book treats it, which code computes it, what would fail if it
were wrong, and how far it is reproduced."""

LEGEND = """| state | meaning |
|---|---|
| [checked]{.badge .good} | computed here and compared with something independent |
| [smaller]{.badge .part} | the experiment was run with smaller networks, pictures or times: its numbers are not \
the paper's |
| [not run]{.badge .open} | the settings are there, a result is not |

Nothing was run at the paper's size. A star (\\*) marks what is quoted from memory and was not checked against a source.
This page is made from one data file and the code; a check that does not exist stops the build."""

SETTINGS = """\
Ours is the preset `paper`; the build stops where it has another value than the paper. "Checked" says that the setting
does what it names. It does not say that a run of that length was made."""


def cells_that_differ():
    "(chapter, name, number within the chapter, first paragraph) of every Paper vs code cell."
    for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        found = 0
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            text = ''.join(cell['source']) if cell['cell_type'] == 'markdown' else ''
            for m in re.finditer(r'(?ms)^\*\*Paper vs code:\*\*(.+?)(?:\n\s*\n|\Z)', text):
                found += 1
                yield path.name[:2], path.stem[3:], found, ' '.join(m[1].split())


def differences(names):
    "Paper vs code: the table of docs/paper_vs_code.md, with ports and checks, and what the chapters say."
    known = tests()
    text = (ROOT/'docs'/'paper_vs_code.md').read_text(encoding='utf-8')
    lines = [line for line in text.splitlines() if line.startswith('| ')][1:]
    rows = [[o.strip() for o in line.strip('| ').split(' | ')] for line in lines]
    out, left = [], dict(DATA['differences'])
    for point, paper, released, here, chapter in rows:
        key = point if point in left else point.split(':')[0]
        if key not in left:
            raise Missing(f'paper.yml has no ports and checks for the row {point!r} of paper_vs_code.md')
        o = left.pop(key)
        out.append((point, paper, released, o['ports'], here, chapter, ', '.join(checks(o['check'], known))))
    if left: raise Missing(f'paper_vs_code.md has no row for {", ".join(left)}')
    said = [f'**[Chapter {number}]({name}.ipynb#differs-{number}-{i}).** {capital(text)}'
            for number, name, i, text in cells_that_differ()]
    head = 'point', 'the paper', 'the released code', 'ports', 'here', 'chapter', 'what checks it'
    return '\n\n'.join([DIFFERENCES, markdown_table(head, out), '## What the chapters say', *said]) + '\n'


DIFFERENCES = """# Paper vs code

The paper, the authors' [released code](https://github.com/brain-research/self-attention-gan) and the ports disagree.
Each difference has a name here, a switch and a check. Ports are the PyTorch versions that people use:
[BigGAN-PyTorch](https://github.com/ajbrock/BigGAN-PyTorch),
[StudioGAN](https://github.com/POSTECH-CVLab/PyTorch-StudioGAN),
[mmgeneration](https://github.com/open-mmlab/mmgeneration), [mimicry](https://github.com/kwotsin/mimicry) and
[heykeetae's](https://github.com/heykeetae/Self-Attention-GAN). The first arXiv version of the paper differs from the
later one in the attention block alone, as far as its text tells: `form='v1'`."""


def test_pages():
    "The source of every test file, one heading per test."
    lists = []
    for path in sorted((ROOT/'tests').glob('test_*.py')):
        text = path.read_text(encoding='utf-8')
        lines, tree, parts, at = text.splitlines(), ast.parse(text), [], 0
        doc = plain((ast.get_docstring(tree) or '').split('\n\n')[0])
        for node in test_functions(text):
            begin = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            if helpers := '\n'.join(lines[at:begin]).strip(): parts.append(fenced(helpers))
            heading = f'({slug(path.stem, node.name)})=\n## {node.name}'
            parts += [heading, fenced('\n'.join(lines[begin:node.end_lineno]))]
            at = node.end_lineno
        if rest := '\n'.join(lines[at:]).strip(): parts.append(fenced(rest))
        yield path.stem, '\n\n'.join([f'# {path.name}', doc, *parts]) + '\n'
        lists.append((path.stem, doc, sum(o.startswith('def test_') for o in lines)))
    rows = [(f'[{name}]({name}.md)', doc, n) for name, doc, n in lists]
    toctree = '\n'.join(['```{toctree}', ':hidden:', '', *(name for name, _, _ in lists), '```'])
    yield 'tests', '\n\n'.join([TESTS, markdown_table(('file', 'what it holds', 'tests'), rows), toctree]) + '\n'


def fenced(text): return f'````python\n{text}\n````'


TESTS = """# The tests

Each chapter checks itself, cell by cell. What needs processes, files, faults or a browser is in `tests/`, and can be
read here. `python3 start.py test` runs everything. To show that the checks can fail, bugs are planted on purpose: the
list is in [How to change something](../CONTRIBUTING.md#mutations)."""

ABSENT = """---
orphan: true
---

# This page is not here

It may have moved. Try the search on the left, or begin at a way in:

- [Read it](tour.md), ten minutes
- [Run it](run.md) on a laptop
- [Use it](use.md) in your project
- [The map of the paper](paper_map.md)
- [The chapters](chapters.md)
"""


def generated(names):
    "Name -> markdown of every page that is made."
    return {'paper_map': paper_map(names), 'paper_vs_code': differences(names), '404': ABSENT, **dict(test_pages())}
