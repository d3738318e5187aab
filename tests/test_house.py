"The rules of the house, read off the notebooks (json) and the package (ast). Nothing is imported or run."
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from conftest import allowed

ROOT = Path(__file__).resolve().parents[1]
LIB = 'sagan_nb'
NOTEBOOKS = {p: json.loads(p.read_text(encoding='utf-8')) for p in sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))}
MODULES = {p: p.read_text(encoding='utf-8') for p in sorted((ROOT/LIB).rglob('*.py')) if p.name != '_modidx.py'}
MACHINERY = {p.stem: p for p in MODULES if p.parent.name == 'machinery' and p.stem != '__init__'}
RANK = {m[2]: int(m[1]) for p in NOTEBOOKS if (m := re.match(r'(\d+)_(\w+)\.ipynb', p.name))}
CHECK = re.compile(r'\bassert\b|\btest_\w+\(|(?<![\w.])close\(|expect_fail|assert_close')
per_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
per_module = pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(ROOT/LIB))[:-3])
per_machine = pytest.mark.parametrize('path', MACHINERY.values(), ids=lambda p: p.stem)


def source(cell): return ''.join(cell['source'])


def code_cells(nb): return [o for o in nb['cells'] if o['cell_type'] == 'code']


def directives(cell):
    "The `#| name: value` lines of a code cell; `eval: true` is none."
    found = dict(re.findall(r'(?m)^#\| *([\w-]+):? *(.*)$', source(cell))) if cell['cell_type'] == 'code' else {}
    if found.get('eval', '').lower() == 'true': del found['eval']
    return found


def python(cell):
    "The cell without magics, as a syntax tree; a cell that is nothing but a magic is empty."
    text = source(cell)
    return ast.parse('' if text.lstrip().startswith('%%') else re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', text))


def room(parts):
    "A chapter by its name, machinery as machinery.name."
    return '.'.join(parts[:1 + (parts[0] == 'machinery')])


def imports(tree, folder=()):
    "Rooms that a tree imports, as (room, star); `folder` is where its file lies in the package."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((room(o.name.split('.')[1:]), False) for o in node.names if o.name.startswith(f'{LIB}.'))
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').split('.')[0] == LIB):
            above = folder[:len(folder) + 1 - node.level] if node.level else ()
            parts = [*above, *(node.module.split('.')[node.level == 0:] if node.module else ())]
            star = any(o.name == '*' for o in node.names)
            yield from [(room(parts), star)] if parts and parts != ['machinery'] else [(room([*parts, o.name]), star) for o in node.names]


def serves(path):
    "The chapter that a file of the machinery names in its first line; of several the first."
    return int(re.match(r'"{1,3}Serves chapters? (\d\d)[^:]*: .', MODULES[path])[1])


def rank(name): return serves(MACHINERY[name[10:]]) if name.startswith('machinery.') else RANK.get(name, -1)


def name_of(path): return '.'.join(path.relative_to(ROOT/LIB).with_suffix('').parts)


def graph():
    "Room -> rooms that its module imports, anywhere in it."
    return {name_of(p): {o for o, _ in imports(ast.parse(text), p.relative_to(ROOT/LIB).parts[:-1])} for p, text in MODULES.items()}


def circle(graph):
    "A way from a room back to it, or None."
    done = set()
    def walk(at, way):
        if at in way: return [*way[way.index(at):], at]
        if at in done: return None
        found = next(filter(None, (walk(o, [*way, at]) for o in sorted(graph.get(at, ())))), None)
        done.add(at)
        return found
    return next(filter(None, (walk(o, []) for o in sorted(graph))), None)


def mixed(tree):
    "True where a cell imports and does more than define."
    harmless = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef
    return any(isinstance(o, harmless[:2]) for o in ast.walk(tree)) and not all(isinstance(o, harmless) for o in tree.body)


def functions(text):
    "Functions and methods of a module (nested ones count with their outer one), each with its lines of code."
    blank = {i for i, o in enumerate(text.splitlines(), 1) if not o.strip() or o.lstrip().startswith('#')}
    for top in ast.parse(text).body:
        for o in [top, *(top.body if isinstance(top, ast.ClassDef) else [])]:
            if not isinstance(o, ast.FunctionDef): continue
            body = o.body if ast.get_docstring(o) is None else o.body[1:]           # neither signature nor docstring
            yield o, len({n for part in body for n in range(part.lineno, part.end_lineno + 1)} - blank)


def undocumented(text):
    "Public functions and classes without a docstring; their parameters with neither annotation nor comment."
    comments = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT}
    for top in ast.parse(text).body:
        if not isinstance(top, (ast.FunctionDef, ast.ClassDef)) or top.name.startswith('_'): continue
        if ast.get_docstring(top) is None: yield f'{top.name} has no docstring'
        makers = [o for o in getattr(top, 'body', []) if getattr(o, 'name', '') == '__init__']
        for f in makers if isinstance(top, ast.ClassDef) else [top]:
            args = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, *filter(None, (f.args.vararg, f.args.kwarg))]
            for a in args:
                if a.arg == 'self' or a.annotation is not None or a.end_lineno in comments: continue
                yield f'{top.name}: {a.arg} is not documented'


def test_rooms_have_ranks():
    assert RANK and len(RANK) == len(NOTEBOOKS), 'a notebook is NN_name.ipynb'
    assert len({p.name[:2] for p in NOTEBOOKS}) == len(NOTEBOOKS), 'two rooms share a number'
    assert max(RANK, key=RANK.get) == 'cli' or 'cli' not in RANK, 'the command line is the last room'


@per_notebook
def test_imports_only_lower_rooms(path):
    name = path.stem[3:]
    module = ROOT/LIB/f'{name}.py'
    trees = [python(o) for o in code_cells(NOTEBOOKS[path])] + [ast.parse(MODULES[o]) for o in [module] if o in MODULES]
    for other, _ in {o for t in trees for o in imports(t)}:
        there = other in RANK or other.startswith('_') or ROOT/LIB/f'{other.replace(".", "/")}.py' in MODULES
        assert there, f'{path.name} imports {other}, which is not there'
        own = other.startswith('machinery.')                    # a chapter uses the machinery that serves it
        assert rank(other) < RANK[name] + own, f'{path.name} imports {other}, which is not lower'


@per_machine
def test_machinery_serves_a_chapter(path):
    number = serves(path)
    assert number in RANK.values(), 'the first line is `"Serves chapter NN: what it holds."`'
    for other, _ in imports(ast.parse(MODULES[path]), ('machinery',)):
        assert other.startswith(('_', 'machinery.')) or RANK[other] <= number, f'{path.name} serves chapter {number:02} and imports {other}'


def test_no_circle():
    assert circle(graph()) is None
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c', 'b'] and circle({'a': {'b', 'c'}, 'b': {'c'}}) is None


def over_limits(nb):
    "Which limits a chapter is over: 60 % of its lines of code are exported ('share'), 40 lines in an exported cell ('cells')."
    texts = [re.sub(r'(?m)^#\|.*\n?', '', source(o)).strip() for o in code_cells(nb)]
    out = [text for o, text in zip(code_cells(nb), texts) if {'export', 'exporti'} & directives(o).keys()]
    lines = lambda texts: sum(bool(o.strip()) for text in texts for o in text.splitlines())
    longest = max((len(text.splitlines()) for text in out), default=0)
    return {limit for limit, over in dict(share=lines(out) > .6*lines(texts), cells=longest > 40).items() if over}


@per_notebook
def test_a_chapter_teaches_more_than_it_exports(path):
    "At most 60 % of its code is exported, in cells of at most 40 lines."
    assert over_limits(NOTEBOOKS[path]) == set()


@per_module
def test_modules_are_short(path):
    assert len(MODULES[path].splitlines()) <= 500


@per_notebook
def test_exports_its_module(path):
    "A chapter without an exported cell has no module: its commands are machinery."
    found = [d for o in code_cells(NOTEBOOKS[path]) if (d := directives(o).get('default_exp'))]
    exports = any({'export', 'exporti'} & directives(o).keys() for o in code_cells(NOTEBOOKS[path]))
    assert found == [path.stem[3:]]*exports, f'{path.name} says `#| default_exp` {found}'


def test_no_star_imports():
    trees = [python(o) for nb in NOTEBOOKS.values() for o in code_cells(nb)] + [ast.parse(o) for o in MODULES.values()]
    assert [other for t in trees for other, star in imports(t) if star] == []


@pytest.mark.parametrize('path', [*MODULES, *sorted((ROOT/'tools').rglob('*.py'))], ids=lambda p: str(p.relative_to(ROOT))[:-3])
def test_functions_are_short(path):
    long = [f'{f.name}: {n} lines' for f, n in functions(path.read_text(encoding='utf-8')) if n > 40]
    assert not long, long


def test_functions_take_few_turns(tmp_path):
    "C901 at most 8, as tools/test.py asks ruff; and a planted function of 9 is found by the same settings."
    def complexity(*files):
        done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '--config', ROOT/'pyproject.toml', '--select', 'C901',
                               '--output-format', 'concise', *files], cwd=ROOT, capture_output=True, text=True)
        return re.findall(r'C901 `(\w+)`', done.stdout)
    (tmp_path/'planted.py').write_text('def eight(x):\n' + '    if x: pass\n'*7 + 'def nine(x):\n' + '    if x: pass\n'*8)
    assert complexity(tmp_path/'planted.py') == ['nine']
    assert complexity(ROOT/LIB, ROOT/'tools', ROOT/'start.py') == []


@per_notebook
def test_lines_of_cells_are_short(path):
    cells = code_cells(NOTEBOOKS[path])
    long = [f'{len(o)}: {o}' for c in cells for o in source(c).splitlines() if len(o) > 120 and not o.startswith('#|')]
    assert not long, '\n'.join(long)


def test_lines_of_plain_python_are_short():
    "A row of the table in tools/mutate.py is one line, as it quotes lines whole."
    files = [*MACHINERY.values(), *(ROOT/'tools').rglob('*.py'), ROOT/'start.py', ROOT/'setup.py']
    lines = [(p.name, o) for p in files for o in p.read_text(encoding='utf-8').splitlines() if len(o) > 120]
    assert [o for name, o in lines if not (name == 'mutate.py' and o.startswith('    ('))] == []


@per_notebook
def test_cells_that_import_can_run_alone(path):
    "`nbdev_docs` runs exported cells and those that import, and no others."
    assert [source(c)[:80] for c in code_cells(NOTEBOOKS[path]) if not {'export', 'exporti'} & directives(c).keys() and mixed(python(c))] == []


def definitions(text):
    "Public names that a module defines at its top level; what `@patch` adds to a class is a method."
    for o in ast.parse(text).body:
        patched = any(getattr(d, 'id', '') == 'patch' for d in getattr(o, 'decorator_list', []))
        if isinstance(o, (ast.FunctionDef, ast.ClassDef)): names = [] if patched else [o.name]
        else:
            targets = getattr(o, 'targets', [getattr(o, 'target', o)]) if isinstance(o, (ast.Assign, ast.AnnAssign)) else []
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        yield from (n for n in names if not n.startswith('_'))


def test_a_lambda_with_a_name_is_a_def():
    named = [(name_of(path), o.lineno) for path, text in MODULES.items() for o in ast.walk(ast.parse(text))
             if isinstance(o, ast.Assign) and isinstance(o.value, ast.Lambda) and isinstance(o.targets[0], ast.Name)]
    assert not named


def test_a_name_means_one_thing():
    homes = {}
    for path, text in MODULES.items():
        for name in {*definitions(text)}: homes.setdefault(name, []).append(name_of(path))
    assert len(homes) > 300 and {k: v for k, v in homes.items() if len(v) > 1} == {}


@per_module
def test_public_names_are_documented(path):
    assert [*undocumented(MODULES[path])] == []


@per_notebook
def test_anatomy(path):
    nb = NOTEBOOKS[path]
    cells, text = code_cells(nb), '\n'.join(source(o) for o in nb['cells'] if o['cell_type'] == 'markdown')
    title = source(nb['cells'][0])
    assert re.fullmatch(r'# \S[^\n]*\n> \S[^\n]*', title), 'the first cell is `# title` and `> line`, and nothing else'
    for heading in ('Pitfalls', 'Exercises'):
        assert re.search(rf'(?m)^## {heading}', text), f'no heading "## {heading}"'
    assert any(CHECK.search(source(o)) for o in cells if not {'export', 'exporti'} & {*directives(o)}), 'no check'
    drawn = [o for o in cells if any('image/png' in out.get('data', {}) for out in o['outputs'])]
    assert any('fig-cap' in directives(o) for o in drawn), 'no stored figure with `#| fig-cap`'
    assert all(out['output_type'] != 'error' for o in cells for out in o['outputs']), 'a stored output is an error'


def test_outputs_are_small():
    size = {p.name: len(json.dumps([o['outputs'] for o in code_cells(nb)])) for p, nb in NOTEBOOKS.items()}
    assert sum(size.values()) < 3e6, size


def test_readme_is_made_from_index():
    done = subprocess.run([sys.executable, '-m', 'tools.site.readme', '--check'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# These rules can fail: each finds a planted fault.

def test_rules_find_planted_faults():
    text = 'from sagan_nb.train import *\nfrom .cli import f\nfrom . import data\nimport sagan_nb.core as c'
    assert [*imports(ast.parse(text))] == [('train', True), ('cli', False), ('data', False), ('core', False)]
    text = 'from ..core import a\nfrom .runs import b\nfrom .. import data\nfrom sagan_nb.machinery import jobs\nimport sagan_nb.machinery.html'
    assert [o for o, _ in imports(ast.parse(text), ('machinery',))] == ['core', 'machinery.runs', 'data', 'machinery.jobs', 'machinery.html']
    assert mixed(ast.parse('import a\nx = a.b()')) and not mixed(ast.parse('import a\ndef f(): return a'))
    assert [n for _, n in functions('def f(\n  a,\n):\n  "doc"\n  # why\n\n  x = [\n    1]\n  return x')] == [3]
    text = 'def f(a, b:int,\n  c, # see\n):\n  pass'
    assert [*undocumented(text)] == ['f has no docstring', 'f: a is not documented']
    text = '@patch\ndef f(self:A): pass\n@g\ndef h(): x = 1\na, (b, _c) = 1, (2, 3)\nd:int = 4\nclass E: e = 5\na = [i for i in b]'
    assert {*definitions(text)} == {'h', 'a', 'b', 'd', 'E'}
    lines = ['# note', 'tests/test_a.py::test_b[*] | no data']
    assert allowed('tests/test_a.py::test_b[1]', 'there is no data', lines)
    assert not allowed('tests/test_a.py::test_b[1]', 'no GPU', lines)
    assert not allowed('tests/test_a.py::test_bc', 'no data', lines)
    cells = lambda *sizes: dict(cells=[dict(cell_type='code', source=f'{head}\n' + 'x\n'*n) for head, n in sizes])
    assert over_limits(cells(('#| export', 30), ('#| export', 30), ('', 40))) == set()
    assert over_limits(cells(('#| export', 30), ('#| export', 31), ('', 40))) == {'share'}
    assert over_limits(cells(('#| export', 41), ('', 40))) == {'cells'}
    cell = dict(cell_type='code', source='#| slow\n#| eval: true\n#| fig-cap: "x"')
    assert directives(cell) == {'slow': '', 'fig-cap': '"x"'}


def test_every_mutation_edits_one_place_and_leaves_python():
    "So that `tools.mutate`, which takes an hour, does not end in the middle: a mutation that does not parse is caught by nothing but the parser."
    from tools.mutate import MUTATIONS
    for what, chapter, old, new, _ in MUTATIONS:
        cells = [source(c) for p, nb in NOTEBOOKS.items() if p.name.startswith(chapter) for c in code_cells(nb) if {'export', 'exporti'} & directives(c).keys()]
        files = [MODULES[p] for p in MACHINERY.values() if chapter in MODULES[p].split(':')[0]]
        hit = [text for text in cells + files if old in text]
        assert sum(text.count(old) for text in hit) == 1, f'{what}: {old!r} stands {len(hit)} times'
        ast.parse(hit[0].replace(old, new))


def test_each_bug_that_moved_no_golden_trace_has_a_reason():
    "Or `tools.mutate` fails; as results/long.txt has them."
    from tools.mutate import MUTATIONS, STILL
    still = set(re.findall(r'(?m)^\| ([^|]+) \| \d\d \| [^|]+ \| \*\*no\*\* \|$', (ROOT/'results'/'long.txt').read_text(encoding='utf-8')))
    assert still <= STILL.keys() <= {m[0] for m in MUTATIONS}
