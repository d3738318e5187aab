"""What the package offers, read off its source, without importing it: names, parameters with their comments, and where
each stands.

`book()` gives the modules, `Module.reference()` one module as Sphinx markup; `Names` turns backticked names into links.
"""
import ast
import copy
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIB = 'sagan_nb'


def plain(text):
    "Text of a docstring as markdown: backticks keep their meaning, nothing else has one."
    parts = re.split(r'(`[^`]*`)', ' '.join((text or '').split()))
    return ''.join(o if o.startswith('`') else re.sub(r'([\\*_<>\[\]$|{}^~])', r'\\\1', o) for o in parts)


FENCED = r'^ *(?P<fence>`{3,}).*?^ *(?P=fence) *$'                   # a code block of markdown


def around(pattern, f, text):
    "Apply f to the text between the matches of a pattern."
    out, at = [], 0
    for m in re.finditer(pattern, text, flags=re.M | re.S):
        out += [f(text[at:m.start()]), m[0]]
        at = m.end()
    return ''.join([*out, f(text[at:])])


@dataclass
class Symbol:
    "One public name: a function, a class with its members, or a value."
    name: str
    kind: str                                   # as the Python domain of Sphinx calls it
    module: str
    node: ast.AST
    comments: dict = field(repr=False)          # line -> comment
    members: list = field(default_factory=list)

    @property
    def full(self): return f'{self.module}.{self.name}'

    @property
    def maker(self):
        "The function whose parameters are the symbol's."
        if not isinstance(self.node, ast.ClassDef): return self.node
        return next((o for o in self.node.body if getattr(o, 'name', '') == '__init__'), None)

    def doc(self):
        "Docstring; of a value, the comment behind its first or last line; of a setting, what its line says."
        if self.kind == 'attribute': return setting(self.node.value)
        if self.kind == 'data':
            ends = self.node.lineno, self.node.end_lineno
            return next(filter(None, map(self.comments.get, ends)), '')
        return ast.get_docstring(self.node) or ''

    def params(self):
        "(name, type, meaning) for each parameter, and the meaning of what is returned."
        if isinstance(self.node, ast.ClassDef) and self.maker is None: return [*self.fields()], ''
        a = self.maker.args
        args = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
        if args and args[0].arg in ('self', 'cls') or 'patch' in decorators(self.node): args = args[1:]
        last = {o.end_lineno: o for o in args}                       # a comment belongs to the last one of its line
        said = {o: self.comments.get(line, '') for line, o in last.items()}
        rows = [(o.arg, *about(o.annotation, said.get(o, ''))) for o in args]
        end = self.maker.returns.end_lineno if self.maker.returns else self.maker.body[0].lineno - 1
        inside = args and end == args[-1].end_lineno
        return rows, '' if self.kind == 'class' or inside else self.comments.get(end, '')

    def fields(self):
        "Fields of a dataclass, with the comment behind each or the text given to `setting`."
        for o in self.node.body:
            if not isinstance(o, ast.AnnAssign): continue
            yield o.target.id, ast.unparse(o.annotation), setting(o.value) or self.comments.get(o.lineno, '')

    def signature(self):
        "As written, without annotations: they stand in the table below it."
        if self.kind in ('data', 'attribute'): return ''
        if self.name == 'Config': return '(**settings)'                          # its fields follow, one by one
        if self.maker is None: return f'({", ".join(o[0] for o in self.params()[0])})'
        if 'command' in decorators(self.node): return '()'            # typed in a shell: the table below says it all
        a = copy.deepcopy(self.maker.args)
        every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        for o in every: o.annotation = None
        first = a.posonlyargs or a.args
        if first and (first[0].arg in ('self', 'cls') or 'patch' in decorators(self.node)): first.pop(0)
        returned = getattr(self.node, 'returns', None)
        return f'({ast.unparse(a)})' + (f' -> {ast.unparse(returned)}' if returned else '')


def setting(value):
    "Meaning, choices and source of a field of `Config`, from a call of `setting`; '' for anything else."
    if not isinstance(value, ast.Call) or ast.unparse(value.func) != 'setting': return ''
    doc, source, *may = map(ast.literal_eval, value.args[1:])
    words = ''.join(f'; one of {", ".join(o)}' if isinstance(o, tuple) else f'; {o}' for o in may)
    return f'{doc}{words} (source: {source})'


def decorators(node): return {ast.unparse(o).split('(')[0] for o in getattr(node, 'decorator_list', [])}


def about(annotation, comment):
    "Type and meaning; a command's `Param` carries both."
    if isinstance(annotation, ast.Call) and ast.unparse(annotation.func) == 'Param':
        text, kind = annotation.args[0], annotation.args[1] if len(annotation.args) > 1 else None
        words = [o.value if isinstance(o, ast.Constant) else '...' for o in getattr(text, 'values', [text])]
        return ast.unparse(kind) if kind is not None else '', ''.join(map(str, words))
    return ast.unparse(annotation) if annotation is not None else '', comment


@dataclass
class Module:
    "One module of the package and its public names, in order."
    name: str
    path: Path
    symbols: list

    @classmethod
    def read(cls, path):
        text = path.read_text(encoding='utf-8')
        tree, comments, symbols = ast.parse(text), comments_of(text), {}
        classes = {o.name: o for o in tree.body if isinstance(o, ast.ClassDef)}
        name, public = '.'.join(path.relative_to(ROOT).with_suffix('').parts), public_names(tree)
        for node in tree.body:
            for called in names_of(node):
                if called not in public: continue
                kind = {ast.ClassDef: 'class', ast.FunctionDef: 'function'}.get(type(node), 'data')
                new = Symbol(called, kind, name, node, comments)
                if kind == 'class': new.members = [*members(new, classes)]
                if 'patch' not in decorators(node): symbols.setdefault(called, new)
                elif (owner := ast.unparse(node.args.args[0].annotation)) in symbols:
                    new.name, new.kind = f'{owner}.{called}', 'method'
                    symbols[owner].members.append(new)
        return cls(name, path, list(symbols.values()))

    def reference(self, names, source=lambda symbol: ''):
        "Sphinx markup of all public names."
        return '\n\n'.join(entry(o, names, source) for o in self.symbols)

    def every(self):
        "Symbols and their members."
        for o in self.symbols: yield from (o, *o.members)


def comments_of(text):
    "Line -> the comment behind its code."
    found = (t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT)
    return {t.start[0]: t.string.lstrip('# ') for t in found if t.line[:t.start[1]].strip()}


def public_names(tree):
    "What `__all__` lists; without it (machinery) all names that begin with no underscore."
    for o in tree.body:
        if isinstance(o, ast.Assign) and ast.unparse(o.targets[0]) == '__all__': return ast.literal_eval(o.value)
    return [n for o in tree.body for n in names_of(o) if not n.startswith('_')]


def names_of(node):
    "Names that a statement defines."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return [node.name]
    targets = getattr(node, 'targets', None) or [getattr(node, 'target', None)]
    return [o.id for o in targets if isinstance(o, ast.Name)]


def lines_of(node, classes):
    "Statements of a class, after those of its bases in the same module: a dataclass reads these from the right."
    for base in reversed(node.bases):
        if getattr(base, 'id', '') in classes: yield from lines_of(classes[base.id], classes)
    yield from node.body


def members(owner, classes):
    "Public methods of a class, `__call__` included; the fields of `Config`, in all its groups."
    for o in lines_of(owner.node, classes) if owner.name == 'Config' else owner.node.body:
        if isinstance(o, ast.FunctionDef) and (o.name == '__call__' or not o.name.startswith('_')):
            yield Symbol(f'{owner.name}.{o.name}', 'method', owner.module, o, owner.comments)
        if isinstance(o, ast.AnnAssign) and owner.name == 'Config':
            yield Symbol(f'{owner.name}.{o.target.id}', 'attribute', owner.module, o, owner.comments)


def entry(o, names, source, ticks=10):
    "One name as Sphinx markup; the members of a class stand inside it."
    fence, inner = '`'*ticks, ticks < 10
    own = o.name.split('.')[-1] if inner else o.name
    lines = [f'{fence}{{py:{o.kind}}} {own}{o.signature()}']
    if not inner: lines.append(f':module: {o.module}')
    if o.kind in ('data', 'attribute') and getattr(o.node, 'annotation', None) is not None:
        lines.append(f':type: {ast.unparse(o.node.annotation)}')
    if o.kind == 'attribute': lines.append(f':value: {ast.unparse(o.node.value.args[0])}')
    lines += ['', names.link(plain(o.doc()), o.module) + source(o), '']
    if o.kind not in ('data', 'attribute') and o.name != 'Config': lines += parameters(o, names)
    for m in o.members: lines += ['', entry(m, names, source, ticks - 1)]
    return '\n'.join([*lines, fence])


def parameters(o, names):
    "Lines of Sphinx markup about the parameters of a symbol and what it returns."
    rows, returned = o.params()
    for name, kind, meaning in rows:
        yield f':param {name}: {names.link(plain(meaning), o.module)}'.rstrip()
        if kind: yield f':type {name}: {names.link(f"`{kind}`", o.module)}'
    if returned: yield f':returns: {names.link(plain(returned), o.module)}'


class Names:
    "Backticked names and what they lead to."
    def __init__(self, modules):
        self.found = {}
        for m in modules:
            for o in m.every(): self.found.setdefault(o.name, []).append(o)
            self.found[m.name] = [m]
        for o in self.found.get('Config', [])[:1]:
            for m in o.members:
                if '_' in (short := m.name.split('.')[1]): self.found.setdefault(short, []).append(m)

    def also(self, words, name):
        "Further words that lead to a name, such as the presets."
        for o in words: self.found.setdefault(o, self.found[name])

    def target(self, text, module=None):
        "Where a backticked text leads, or None: the present chapter first, then the one place there is."
        name = re.sub(r'\(.*\)$', '', text, flags=re.S).removeprefix('nn.')
        if name.count('.') > 1: name = name.removeprefix(f'{LIB}.').removeprefix('machinery.').partition('.')[2]
        found = self.found.get(text) or self.found.get(name) or []
        if len(found) > 1: found = [o for o in found if o.module == module] or []
        if not found: return None
        return found[0].name if isinstance(found[0], Module) else found[0].full

    def link(self, text, module=None):
        "Markdown with its backticked names linked; code blocks, headings and what is a link already stay as they are."
        def one(t): return re.sub(r'(?<![`\[\\])`([^`\n]+)`(?!`)', lambda m: self._one(m, module), t)
        return around(FENCED + r'|^#+ [^\n]*$|\[[^\]\n]*\]\([^)\n]*\)|\$\$.*?\$\$', one, text)

    def _one(self, m, module):
        to = self.target(m[1], module)
        return f'[{m[0]}](#{to})' if to else m[0]


def book():
    "All modules of the package."
    return [Module.read(p) for folder in (ROOT/LIB, ROOT/LIB/'machinery') for p in sorted(folder.glob('[a-z]*.py'))]
