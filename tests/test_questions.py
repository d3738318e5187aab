"Every question that people asked has an answer, and its anchor is there."
import re
from pathlib import Path

import yaml

DOCS = Path(__file__).resolve().parents[1]/'docs'
ASKED = yaml.safe_load((DOCS/'questions.yml').read_text(encoding='utf-8'))


def anchors(page):
    "The anchors of a page's headings, as GitHub and the site make them."
    text = re.sub(r'(?ms)^```.*?^```', '', (DOCS/page).read_text(encoding='utf-8'))
    return {re.sub(r'[^\w\- ]', '', h.lower()).strip().replace(' ', '-') for h in re.findall(r'(?m)^#+ (.+)$', text)}


def lost(asked): return [o['answer'] for o in asked if (a := o['answer'].partition('#'))[2] and a[2] not in anchors(a[0]) or not (DOCS/a[0]).exists()]


def test_every_answer_is_there():
    assert len(ASKED) == len({o['ask'] for o in ASKED}) >= 54 and lost(ASKED) == []


def test_every_entry_of_the_page_is_asked_for():
    entries = set(re.findall(r'(?m)^### (.+)$', re.sub(r'(?ms)^```.*?^```', '', (DOCS/'questions.md').read_text(encoding='utf-8'))))
    assert len(entries) == len({o['answer'] for o in ASKED if o['answer'].startswith('questions.md#')})


def test_a_lost_anchor_is_found():
    assert lost([dict(answer='questions.md#gone'), dict(answer='gone.md'), dict(answer='use.md#public-data-by-name')]) == ['questions.md#gone', 'gone.md']


def test_threads_are_named_as_github_does():
    assert all(re.fullmatch(r'[\w.-]+/[\w.-]+#\d+', t) for o in ASKED for t in o.get('threads', ()))
