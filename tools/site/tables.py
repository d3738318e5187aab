"""Wide tables of results as the site shows them: what fits a page first, all the rest folded away below."""
import re

WIDE = 10                                        # columns; a table with fewer stays as it is
NOTHING = ('', '-')
UNCHECKED = ' (unchecked)'
ASIDE = ('parameters', 's/step', 'seeds', 'commit', 'notes')         # cost and provenance: folded away


def split(line): return [o.strip() for o in re.split(r'(?<!\\)\|', line.strip())[1:-1]]


def join(cells): return '| ' + ' | '.join(cells) + ' |'


def fitted(text):
    "Markdown with its wide tables made narrow. Nothing is lost: the whole table follows each, folded."
    return re.sub(r'(?m)(?:^\|.*\|[ ]*\n?)+', lambda m: narrow(m[0]), text)


def narrow(table):
    "A table without rows and columns that say nothing, with notes below and the whole of it folded."
    head, _, *rows = map(split, table.strip().splitlines())
    if len(head) < WIDE: return table
    note = head.index('notes') if 'notes' in head else None
    about = lambda row: row[note] if note is not None else ''
    absent = [r for r in rows if about(r).startswith(('not run', 'not applicable'))]
    kept = [r for r in rows if r not in absent]
    if not kept: return table
    shown = [i for i, name in enumerate(head) if name not in ASIDE and any(r[i] not in NOTHING for r in kept)]
    brief = lambda cell: cell.replace(' ± ', '\u00a0±\u00a0').replace(UNCHECKED, '\\*')
    lines = [join([head[i].replace('_', '_\u200b') for i in shown]), join(['---']*len(shown)), *(join([brief(r[i]) for i in shown]) for r in kept)]
    stars = ['\\* At second hand or from memory.', ''] if any(UNCHECKED in c for r in kept for c in r) else []
    return '\n'.join([*lines, '', *stars, *below(absent, kept, note), '<details class="whole"><summary>All rows and columns</summary>', '',
                      table.strip(), '', '</details>', ''])


def below(absent, kept, note):
    "What was left out of a narrow table, in words."
    for kind, words in (('not applicable', 'Cannot exist at this size'), ('not run', 'Not run')):
        if names := [r[0] for r in absent if r[note].startswith(kind)]: yield from (f'{words}: {", ".join(names)}.', '')
    for r in kept:
        if note is not None and r[note] not in NOTHING: yield from (f'{r[0]}: {r[note]}', '')
