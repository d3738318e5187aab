"What the suite found, as data: one JSON for each part, a row for each fault; the page of the book is made from them."
import datetime
import json
from pathlib import Path

from sagan_nb.machinery.machine import environment

KEPT = 'commit', 'changed', 'python', 'torch', 'cpu'


def read_rows(path):
    "Rows that were written before; none where there is no file."
    return json.loads(Path(path).read_text(encoding='utf-8'))['rows'] if Path(path).exists() else []


def write_rows(path, rows, seconds):
    "Rows (fault, how, tries, wrong), and where and when they were made."
    env = {k: v for k, v in environment('cpu').items() if k in KEPT}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = dict(date=datetime.date.today().isoformat(), seconds=round(seconds), env=env, rows=rows)
    path.write_text(json.dumps(about, indent=1) + '\n', encoding='utf-8')
