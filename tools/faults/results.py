"""What the suite found, as data: one JSON for each part, a row for each fault, a line for each slice of the campaign.
The page of the book is made from them."""
import datetime
import json
from collections import Counter
from pathlib import Path

from sagan_nb.core import atomic_write
from sagan_nb.machinery.machine import environment

KEPT = 'commit', 'changed', 'python', 'torch', 'cpu'


def read_results(path):
    "What is there: slices and rows."
    return json.loads(Path(path).read_text(encoding='utf-8')) if Path(path).exists() else dict(slices=[], rows=[])


def joined(old, new):
    """Two rows of one fault as one: numbers add up, what went wrong is the newest slice's, and three examples of what
    was said are enough."""
    both = {**old, **new, 'tries': old['tries'] + new['tries']}
    if 'outcomes' in new: both['outcomes'] = dict(Counter(old['outcomes']) + Counter(new['outcomes']))
    if 'said' in new: both['said'] = (old['said'] + new['said'])[:3]
    if 'found' in new: both['found'] = sorted({*old['found'], *new['found']})
    return both


def add_rows(path, rows, seconds):
    "Add a slice to what is there: rows (fault, how, tries, wrong, ...), and when and with which code they were made."
    path, about = Path(path), read_results(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    there = {(o['fault'], o['how']): o for o in about['rows']}
    for o in rows:
        key = o['fault'], o['how']
        there[key] = joined(there[key], o) if key in there else o
    env = {k: v for k, v in environment('cpu').items() if k in KEPT}
    tries, wrong = sum(o['tries'] for o in rows), sum(len(o['wrong']) for o in rows)
    one = dict(date=datetime.date.today().isoformat(), seconds=round(seconds), tries=tries, wrong=wrong, **env)
    text = json.dumps(dict(slices=[*about['slices'], one], rows=[*there.values()]), indent=1)
    with atomic_write(path) as part: part.write_text(text + '\n', encoding='utf-8')


def tries_so_far(path):
    "The seed with which a slice begins, so that it is another one than those before."
    return sum(o['tries'] for o in read_results(path)['rows'])
