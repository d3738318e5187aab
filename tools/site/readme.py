"README.md from nbs/index.ipynb, without Quarto: `python -m tools.site.readme`; `--check` only fails on a difference."
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = r'(?m)^#\| *(hide|export|default_exp)\b'
NO_CODE = r'(?m)^#\| *echo: *false\b'
HEAD = '<!-- Made from nbs/index.ipynb by tools/site/readme.py: edit the notebook. -->'


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


def main(check):
    new = '\n\n'.join(parts(json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8')))) + '\n'
    path = ROOT/'README.md'
    if path.exists() and path.read_text(encoding='utf-8') == new: return 0
    if not check: path.write_text(new, encoding='utf-8')
    else: print('README.md differs from nbs/index.ipynb: run `python -m tools.site.readme`', file=sys.stderr)
    return int(check)


if __name__ == '__main__':
    sys.exit(main('--check' in sys.argv[1:]))
