"""The site: `make docs`, or `python -m tools.site.docs`. Notebooks, docs/*.md and generated pages go to _build/source,
Sphinx makes _build/html of them.

nbdev's processors read the notebooks; nothing is executed or fetched: what is shown is what the tests stored.
"""
import argparse
import ast
import base64
import importlib.util
import io
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT/'_build'

import nbformat
from execnb.nbio import nb2dict, read_nb
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, hide_line, rm_header_dash, strip_ansi
from nbformat.v4 import new_markdown_cell

from sagan_nb.config import PRESETS
from tools import settings
from tools.site import home, pages
from tools.site.api import FENCED, Names, around, book

WAYS_IN = ('tour', 'run', 'use', 'reproduce', 'paper_map', 'extend', 'questions')
PAPER = ('reproduced', 'paper_vs_code', 'few_images', 'weights', 'ports', 'glossary', 'references')
PROJECT = ('survives', 'tests', 'contributing', 'changelog', 'licence')
PAGES = {                 # file of the repository -> page
    'CONTRIBUTING': 'contributing.md', 'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md',
    'LICENSE': 'licence.md', 'README.md': 'index.ipynb', 'paper.yml': 'paper_map.md'}


def chapters():
    "(number, name, path) of every notebook with a number, in order."
    return [(p.name[:2], p.stem[3:], p) for p in sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))]


def machinery():
    "(name of the page, path) of every file of the machinery."
    return [(f'machinery_{p.stem}', p) for p in sorted((ROOT/'sagan_nb'/'machinery').glob('[a-z]*.py'))]


def page_of(target):
    "A link inside the repository as a link between pages; None where the site has no such page."
    path, _, anchor = target.partition('#')
    name = path.rsplit('/', 1)[-1]
    if name == 'README.md' and path.removeprefix('../') != name: return None     # that of a folder is not the home page
    if re.fullmatch(r'test_\w+\.py', name): return f'{name[:-3]}.md'
    page = re.sub(r'^\d+_', '', name) if name.endswith('.ipynb') else PAGES.get(name)
    return page and page + (f'#{anchor}' if anchor else '')


def site_pages():
    "Files that a link between pages may name."
    files = [*(ROOT/'tests').glob('test_*.py'), *(ROOT/'docs').glob('*.md')]
    made = ['paper_map', *PAPER, *PROJECT, *(name for name, _ in machinery()), *(p.stem for p in files)]
    return {f'{o}.md' for o in made} | {f'{name}.ipynb' for _, name, _ in chapters()} | {'index.ipynb'}


METADATA = dict(          # of every notebook of the site
    kernelspec=dict(name='python3', display_name='Python 3', language='python'),
    language_info=dict(name='python', pygments_lexer='ipython3', file_extension='.py', mimetype='text/x-python'))


class Page:
    "What one page needs to know while it is adapted."
    def __init__(self, cfg, names, dest, number=None, module=None):
        self.cfg, self.names, self.dest, self.site = cfg, names, dest, site_pages()
        self.number, self.module = number, module
        self.equations = self.figures = self.differing = 0
        self.checks = pages.anchors(number) if number else {}

    def prose(self, text, base=ROOT/'nbs'):
        "Markdown with its links turned, names linked and equations numbered."
        return self.names.link(self.equation(self.links(text, base)), self.module)

    def links(self, text, base):
        """Links into the repository: to a page of the site, else to the repository where it has an address, else the
        words alone."""
        def turn(m):
            bang, words, target = m.groups()
            if re.match(r'[a-z]+:|#', target): return m[0]
            path = (base/target.split('#')[0]).resolve()
            if bang:
                name = '-'.join(path.relative_to(ROOT).parts)
                shutil.copy(path, self.dest/name)
                return f'![{words}]({name})'
            name, hash_, anchor = target.rpartition('/')[2].partition('#')
            if name in self.site: return f'[{words}]({name}{hash_}{anchor})'
            if page := page_of(target): return f'[{words}]({page})'
            if not path.exists(): raise pages.Missing(f'a link leads to {target}, which is not there')
            inside, git = path.relative_to(ROOT), self.cfg['git_url']
            if not git: return f'{words} (`{inside}`)'
            return f'[{words}]({git}/blob/{self.cfg["branch"]}/{inside}{hash_}{anchor})'
        return outside_code(lambda t: re.sub(r'(!?)\[([^\]]*)\]\(([^)\s]+)\)', turn, t), text)

    def equation(self, text):
        "A number and an anchor for each displayed equation of a chapter; a \\tag of its own stays."
        if not self.number: return text
        def one(m):
            self.equations += 1
            tex = m[1].strip()
            if r'\tag' not in tex: tex += rf' \tag{{{int(self.number)}.{self.equations}}}'
            return f'\n\n(eq-{int(self.number)}-{self.equations})=\n$$\n{tex}\n$$\n\n'
        return outside_code(lambda t: re.sub(r'\$\$(.+?)\$\$', one, t, flags=re.S), text)

    def notebook(self, path):
        "The notebook at `path` as myst-nb reads it."
        nb, self.file = read_nb(path), path.name
        NBProcessor(nb=nb, procs=[strip_ansi, hide_line, rm_header_dash, clean_magics], rm_directives=False).process()
        nb = nbformat.reads(json.dumps(nb2dict(nb)), 4)
        def adapted(cell): return self.prose_cell(cell) if cell.cell_type == 'markdown' else self.code_cell(cell)
        nb.cells = [c for cell in nb.cells for c in adapted(cell)]
        nb.metadata = nbformat.from_dict(METADATA)
        return nb

    def prose_cell(self, cell):
        if m := re.match(r'# (\S[^\n]*)\n> (\S[^\n]*)\s*$', cell.source):
            title = f'# {self.number} {m[1]}' if self.number else f'# {m[1]}'
            cell.source = f'{title}\n\n{{.chapter-line}}\n{self.names.link(m[2], self.module)}' + self.colab()
        else: cell.source = self.prose(re.sub(r'(?m)^(?=\*\*Paper vs code:\*\*)', self.differs, cell.source))
        return [cell]

    def differs(self, _):
        "An anchor before a paragraph that says where paper and code differ."
        self.differing += 1
        return f'(differs-{self.number}-{self.differing})=\n'

    def colab(self):
        "A line that opens the chapter elsewhere, where the repository has an address."
        git, host = self.cfg['git_url'].rstrip('/'), 'https://github.com/'
        if not git: return ''
        where = f'blob/{self.cfg["branch"]}/nbs/{self.file}'
        source = f'[Source of this page]({git}/{where})'
        if not git.startswith(host): return f'\n\n{source}'
        first = f'`!git clone {git} book && pip install -q ./book`, then `%cd book/nbs`'
        colab = f'https://colab.research.google.com/github/{git[len(host):]}/{where}'
        return f'\n\n[Open in Colab]({colab}) (run first: {first}) · {source}'

    def code_cell(self, cell):
        "Directives become tags and captions; a cell that only names its module, or hides, goes."
        told = {}
        while m := re.match(r'#\| *([\w-]+):? *([^\n]*)\n?', cell.source):
            told[m[1]] = m[2].strip()
            cell.source = cell.source[m.end():]
        if {'hide', 'default_exp'} & told.keys(): return []
        tag(cell, told)
        if 'fig-cap' in told: self.figure(cell, told)
        for o in cell.get('outputs', []):
            if 'text/markdown' in o.get('data', {}): o.data['text/markdown'] = self.prose(o.data['text/markdown'])
        checks = {} if 'export' in told else self.checks
        marks = [f'({name})=' for text, name in checks.items() if text in cell.source]
        named = [new_markdown_cell('\n'.join(marks))] if marks else []
        return [*named, cell] if cell.source.strip() or cell.outputs else []

    def figure(self, cell, told):
        "Caption, number and text alternative of a cell's picture. The finding stands out; the rest is smaller."
        self.figures += 1
        def text(name): return told.get(name, '').strip('"').replace('\\"', '"')
        alt = text('fig-alt') or re.match(r'.{60}.*?[.;:](?= |$)|.*', text('fig-cap').replace('`', ''))[0]
        number, name = f'{int(self.number or 0)}.{self.figures}', (self.module or 'index').split('.')[-1]
        caption = '\n\n'.join(filter(None, sentences(f'**Figure {number}.** {text("fig-cap")}')))
        image = dict(alt=alt, classes='chart') if is_chart(cell) else dict(alt=alt)
        cell.metadata.setdefault('mystnb', {}).update(image=image, figure=dict(
            caption=self.names.link(caption, self.module), align='center', name=f'fig-{name}-{self.figures}'))


def tag(cell, told):
    """Tag a cell whose code is left out, exported or folded. Folded are imports, and cells that say `fold`; what one
    says `fold: all` shows, too."""
    known = dict(echo='remove-input', export='exported', exporti='exported')
    tags = [tag for name, tag in known.items() if name in told]
    if only_imports(cell.source) or 'fold' in told:
        whole = told.get('fold') == 'all'
        tags.append('hide-cell' if whole else 'hide-input')
        words = 'The figure, and its code' if whole else what_it_does(cell.source, told)
        cell.metadata['mystnb'] = dict(code_prompt_show=words, code_prompt_hide=words)
    if tags: cell.metadata['tags'] = tags


def what_it_does(source, told):
    "The words that folded code stands under: it imports, draws, checks, or defines names."
    if only_imports(source): return 'Imports'
    if 'fig-cap' in told: return 'Code of the figure'
    if re.search(r'\bassert|\btest_\w+\(|\bagree\(', source): return 'Code of the check'
    names = [o.name for o in ast.parse(source).body if isinstance(o, (ast.FunctionDef, ast.ClassDef))]
    return f'Code: {", ".join(names)}' if names else 'Code'


def only_imports(source):
    "True for a cell that imports and does nothing else."
    try: body = ast.parse(source).body
    except SyntaxError: return False
    return bool(body) and all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in body)


def sentences(caption):
    "The first sentence of a caption behind its number, and what follows."
    m = re.match(r'(?s)(\*\*[^*]+\*\*\s*(?:`[^`]*`|[^`])+?[.?!])(?:\s+(?=[A-Z`"(])|$)(.*)', caption)
    return m.groups() if m else (caption, '')


def is_chart(cell):
    "Is the picture lines on white? Then it can be turned dark; a photograph cannot."
    import numpy as np
    from PIL import Image
    for o in cell.get('outputs', []):
        if png := o.get('data', {}).get('image/png'):
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB'))
            return (pixels >= 250).all(-1).mean() > .6
    return False


def outside_code(f, text):
    "Apply f to markdown, leaving code blocks and inline code alone."
    return around(FENCED + r'|`[^`\n]+`', f, text)


def toctree(caption, rows):
    lines = [f'{title} <{page}>' if title else page for title, page in rows]
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *lines, '```'])


def navigation(dest):
    "The order of all pages."
    def there(names): return [('', o) for o in names if (dest/f'{o}.md').exists()]
    read = [*there(['chapters']), *(('', name) for _, name, _ in chapters())]
    return '\n\n'.join([toctree('Ways in', there(WAYS_IN)), toctree('The book', read),
                        toctree('The machinery', [('', name) for name, _ in machinery()]),
                        toctree('The paper', there(PAPER)), toctree('The project', there(PROJECT))])


CARDS = {                                        # page -> name and promise of a card on the home page
    'tour': ('Read', 'the idea in ten minutes'), 'run': ('Run', '<code>python3 start.py</code>, ten minutes, no GPU'),
    'use': ('Use', 'the attention block, spectral norm, FID, your own pictures'),
    'reproduce': ('Reproduce', 'the command for each table, and what it costs'),
    'questions': ('Ask', 'questions of people who use SAGANs, answered by code')}

FAR = """\
**How far does it get?** The code and the metrics are checked against the authors' code, BigGAN-PyTorch, StudioGAN and
torch-fidelity. The experiments ran small, on two CPU cores. Nothing ran at the paper's size.
[The map of the paper](paper_map.md) has every equation, figure and table."""

LOOK = """\
**Click a pixel, move the slider, choose a class.** Left: a picture by a small trained generator, which runs in this
page. Right: how strongly it looked at each place while it drew the marked pixel. In its training pictures, shapes in
opposite corners have the same colour. Many pixels look at the opposite corner, as the first one marked here; not all
do. [How to read it](attention_maps.ipynb)"""


def front(cells):
    "The home page: the generator itself and cards where README has a picture and a list."
    def at(text): return next((i for i, c in enumerate(cells) if text in c.source), None)
    picture, ways = at('look.png'), at('## Ways in')
    if None in (picture, ways): raise pages.Missing('index has lost its picture or its ways in')
    cards = ''.join(f'<a class="card" href="{page}.html"><strong>{name}</strong><span>{text}</span></a>'
                    for page, (name, text) in CARDS.items())
    new = [f'{home.live()}\n\n{{.look-caption}}\n{LOOK}', f'<div class="cards">{cards}</div>\n\n{{.how-far}}\n{FAR}']
    kept = [c for i, c in enumerate(cells) if i not in (picture, ways)]
    return [*kept[:picture], *map(new_markdown_cell, new), *kept[picture:]]


def sources(dest, cfg=None):
    "Everything that Sphinx reads."
    cfg = cfg or settings()
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir(parents=True)
    modules = book()
    names, by_name = Names(modules), {m.name: m for m in modules}
    names.also([o for o in PRESETS if '_' in o], 'PRESETS')
    for number, name, path in chapters():
        module = f'sagan_nb.{name}'
        page = Page(cfg, names, dest, number, module)
        nb = page.notebook(path)
        if module in by_name: nb.cells.append(new_markdown_cell(reference(by_name[module], names, cfg, folded=True)))
        write(nb, dest/f'{name}.ipynb')
    for name, path in machinery():
        module = by_name[f'sagan_nb.machinery.{path.stem}']
        line = path.read_text(encoding='utf-8').splitlines()[0].strip('"')
        text = reference(module, names, cfg)
        (dest/f'{name}.md').write_text(f'# {path.stem}\n\n{line}\n\n{text}\n', encoding='utf-8')
    plain = Page(cfg, names, dest)
    written = {path.stem: path.read_text(encoding='utf-8') for path in sorted((ROOT/'docs').glob('*.md'))}
    for name, text in (written | pages.generated(names)).items():
        (dest/f'{name}.md').write_text(plain.prose(text, ROOT/'docs'), encoding='utf-8')
    for name, path in (('contributing', 'CONTRIBUTING.md'), ('changelog', 'CHANGELOG.md')):
        (dest/f'{name}.md').write_text(plain.prose((ROOT/path).read_text(encoding='utf-8'), ROOT), encoding='utf-8')
    licence = (ROOT/'LICENSE').read_text(encoding='utf-8')
    (dest/'licence.md').write_text(f'# Licence\n\n```text\n{licence}\n```\n', encoding='utf-8')
    index = plain.notebook(ROOT/'nbs'/'index.ipynb')
    index.cells = [*front(index.cells), new_markdown_cell(navigation(dest))]
    write(index, dest/'index.ipynb')


def reference(module, names, cfg, folded=False):
    """All names of a module, for its page. A chapter has them folded; docs/_static/fold.js opens the fold for a link
    that leads into it."""
    text = module.reference(names, source_line(cfg))
    summary = '<summary>Every name, with its parameters</summary>'
    if folded: text = f'<details class="reference">{summary}\n\n{text}\n\n</details>'
    return f'```{{py:module}} {module.name}\n```\n\n## Reference\n\n{text}'


def write(nb, path):
    for i, c in enumerate(nb.cells): c['id'] = f'c{i}'
    nbformat.write(nb, path)


def source_line(cfg):
    "A link to the lines in the repository, where it has an address; pages with the source are there in any case."
    def link(o):
        if not cfg['git_url'] or o.kind in ('data', 'attribute'): return ''
        file = o.module.replace('.', '/') + '.py'
        return f' [[lines]]({cfg["git_url"]}/blob/{cfg["branch"]}/{file}#L{o.node.lineno}-L{o.node.end_lineno})'
    return link


def static(dest):
    "Style sheet, and the part of MathJax that is used: one script and its fonts."
    shutil.copytree(ROOT/'docs'/'_static', dest, dirs_exist_ok=True)
    shutil.copy(home.PICTURE, dest)
    mathjax = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent/'static'/'mathjax'
    (dest/'mathjax').mkdir(exist_ok=True)
    shutil.copy(mathjax/'tex-chtml-full.js', dest/'mathjax')
    shutil.copytree(mathjax/'output'/'chtml'/'fonts', dest/'mathjax'/'output'/'chtml'/'fonts', dirs_exist_ok=True)


def build(out=BUILD, cfg=None):
    "Exit code of Sphinx; warnings are errors."
    from sphinx.cmd.build import main as sphinx
    shutil.rmtree(out, ignore_errors=True)
    sources(out/'source', cfg)
    static(out/'static')
    os.environ['DOCS_STATIC'] = str(out/'static')
    flags = '-W', '--keep-going', '-n', '-E', '-q', '-b', 'html', '-d', str(out/'doctrees'), '-c', str(ROOT/'docs')
    return sphinx([*flags, str(out/'source'), str(out/'html')])


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--out', type=Path, default=BUILD, help='where to build; its folder html is the site')
    o = p.parse_args()
    began = time.perf_counter()
    code = build(o.out.resolve())
    seconds, site = time.perf_counter() - began, o.out/'html'/'index.html'
    if code: print(f'the site was not built ({seconds:.0f} s)')
    else: print(f'{site}: {len(list((o.out/"html").glob("*.html")))} pages in {seconds:.0f} s')
    return code


if __name__ == '__main__': sys.exit(main())
