"Serves chapter 00: what commands show, fitted to a terminal, a pipe or a file."
import os
import re
import shlex
import shutil
import sys
import textwrap
import time
from contextlib import suppress
from io import StringIO
from itertools import groupby


def screen_width()->int:      # columns; 100 where the output is no terminal
    "How wide a line of text may be."
    return min(max(shutil.get_terminal_size((100, 24)).columns, 40), 140)


def printable(
    text,                     # a name from a file system, a file or a stranger
)->str:                       # on one line
    "Write out control characters, invisible ones, and bytes that are no text."
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(text))


def wrap(
    text:str,                 # lines
)->str:                       # the same words; no line is wider than the screen unless a single word is
    "Break long lines between words. What follows in a line is indented by two more than its beginning."
    def fit(line):
        indent = line[:len(line) - len(line.lstrip())]
        return textwrap.fill(line.lstrip(), screen_width(), initial_indent=indent, subsequent_indent=indent + '  ',
                             break_long_words=False, break_on_hyphens=False)
    return '\n'.join(fit(line) if len(line) > screen_width() else line for line in text.split('\n'))


def text_table(
    head:list,                # names of the columns
    rows:list,                # lists of cells; '' and '-' are empty
)->str:                       # aligned, and no wider than the screen
    """Lay cells out in columns; words stay whole, and so do the cells of the first column. Columns without a single
    value are left out. What is too wide for the screen becomes a paragraph a row."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    used = [i for i, _ in enumerate(head) if any(row[i] not in ('', '-') for row in rows)]
    columns = [[head[i], *(row[i] for row in rows)] for i in used]
    wanted = [longest(cells, True) for cells in columns]
    tight = sum(wanted) + 3*len(used) > screen_width()
    widths = column_widths([longest(cells, i == 0) for i, cells in zip(used, columns)], wanted, tight)
    if not widths: return paragraphs(head, rows, used)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=tight)
    for i, width in zip(used, widths): table.add_column(head[i], width=width, overflow='fold')
    for row in rows: table.add_row(*(row[i] for i in used))
    page = StringIO()
    Console(file=page, width=screen_width(), color_system=None, markup=False, highlight=False, emoji=False).print(table)
    return '\n'.join(line.rstrip() for line in page.getvalue().splitlines())


def markdown_table(
    head,                     # names of the columns
    rows,                     # sequences of cells, each shown as str shows it
)->str:                       # Markdown
    "Lay cells out as a table of a page."
    return '\n'.join('| ' + ' | '.join(map(str, cells)) + ' |' for cells in (head, ['---']*len(head), *rows))


def longest(
    cells:list,               # of a column
    whole:bool,               # are they never broken?
)->int:                       # columns of the screen
    "How wide a column must be."
    return max((len(part) for cell in cells for part in ([cell] if whole else cell.split())), default=0)


def column_widths(
    least:list,               # of each column
    wanted:list,              # of each column: what shows every cell on one line
    tight:bool,               # two spaces between columns in place of three
)->list:                      # of each column; [] where the screen is too narrow
    "Share the screen out: what is left over goes to the narrowest columns that lack some."
    if not tight: return wanted
    widths, room = list(least), screen_width() - 2*len(least)
    if sum(widths) > room: return []
    while sum(widths) < min(room, sum(wanted)):
        lacking = [i for i, width in enumerate(widths) if width < wanted[i]]
        widths[min(lacking, key=lambda i: widths[i])] += 1
    return widths


def paragraphs(
    head:list,                # names of the columns
    rows:list,                # lists of cells
    used:list,                # numbers of the columns that are shown
)->str:
    "Write each row as a paragraph: its name, then what is known of it."
    def facts(row): return '; '.join(f'{head[i]} {row[i]}' for i in used[1:] if row[i] not in ('', '-'))
    return wrap('\n'.join(f'{row[used[0]]}\n  {facts(row)}' for row in rows))


def show_markdown(
    text:str,                 # headings, paragraphs and tables
)->str:                       # the same for a terminal
    "Lay out Markdown: tables as aligned columns, a long list of facts one a line, no marks."
    parts, plain = [], text.replace('**', '').replace('`', '').replace(' (unchecked)', '*').rstrip()
    for is_table, lines in groupby(plain.split('\n'), lambda o: o.startswith('|')):
        if is_table:
            rows = [[cell.strip().replace(' / ', '/ ') for cell in line.strip()[1:-1].split('|')] for line in lines]
            parts.append(text_table(rows[0], rows[2:]))
        else: parts += [break_facts(line.removeprefix('### ')) for line in lines]
    if '(unchecked)' in text: parts += ['', '* a published number at second hand, or from memory']
    return wrap('\n'.join(parts))


def break_facts(
    line:str,                 # a; b; c
)->str:                       # a line each where the whole is too wide
    "Put each fact of a long list on a line of its own."
    return line.replace('; ', ';\n  ') if len(line) > screen_width() and line.count('; ') > 4 else line


def duration(
    seconds:float,
)->str:                       # 0:07, 12:30, 3:05:00
    "Write a time as a clock shows it."
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours}:{m:02}:{s:02}' if hours else f'{m}:{s:02}'


def quoted(
    word,                     # of a command
)->str:                       # for a shell; what a terminal would act on is written out
    "Quote a word so that a shell takes back the same bytes."
    text = str(word)
    if os.name == 'nt':                                       # PowerShell takes a comma apart, cmd an &
        return text if re.fullmatch(r'[\w.:\\/=+-]+', text) else f'"{text}"'
    if printable(text) == text: return shlex.quote(text)
    def written(b): return chr(b) if 32 <= b < 127 and chr(b) not in "'\\" else f'\\x{b:02x}'
    return "$'" + ''.join(map(written, os.fsencode(text))) + "'"


def track_lines(
    items,                    # anything with a length
    label:str,                # what is being done
    every:float=30.,          # seconds
):                            # yields the items
    "Pass items on; now and then, print a line with the time left to stderr."
    began = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - said >= every:
            left = duration((now - began) / done * (len(items) - done))
            with suppress(OSError):                           # nobody may read it
                print(f'{label}: {done:,} of {len(items):,}, {left} left', file=sys.stderr, flush=True)
            said = now
        yield item


def track_bar(
    items,                    # anything with a length
    label:str,                # what is being done
):                            # yields the items
    "Pass items on under a bar on stderr, with the time left. The bar is gone when they end."
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    columns = TextColumn('{task.description}', markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn('left'), console=Console(stderr=True), transient=True, refresh_per_second=4,
                  redirect_stdout=sys.stdout.isatty()) as bar:
        yield from bar.track(items, description=label)


def track(
    items,                    # anything with a length
    label:str,                # what is being done
):                            # an iterable over the same items
    "Show how far the work is: a bar in a notebook and on a terminal, a line every half minute elsewhere. Rank 0 does."
    if os.environ.get('RANK', '0') != '0': return items
    if 'ipykernel' in sys.modules:
        from fastprogress.fastprogress import progress_bar
        return progress_bar(items, leave=False)
    return (track_bar if sys.stderr.isatty() else track_lines)(items, label)


def progress(
    items,                    # anything with a length
    label:str='working',      # what is being done
    least:int=0,              # how many items are worth it
):                            # an iterable over the same items
    "Show on stderr how far the work is, and the time left; silent where IN_TEST is set, and where items are fewer."
    return items if 'IN_TEST' in os.environ or len(items) < least else track(items, label)
