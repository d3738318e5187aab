"Serves chapter 16: presets and settings as tables for a terminal."
from ..config import FIELDS, PRESETS, PUBLISHED, differences
from .settings import meaning
from .terminal import text_table, wrap


def typed_text(
    value,                    # of a setting
)->str:
    "A value as it is typed behind `--set`."
    if isinstance(value, tuple): return ','.join(map(str, value)) or 'none'
    return str(value).lower() if isinstance(value, bool) else str(value)


def source_of(name:str)->str:
    "Where a preset is from, by the beginning of its name."
    places = dict(t1='paper, Table 1', t2='paper, Table 2', f3='paper, Figure 3', k1='paper, section 3',
                  k2='paper, section 3', k4='paper, section 3', k8='paper, section 3', rb='ours: released, one change',
                  paper='paper', released='released code', best='best public reproduction')
    return places.get(name.partition('_')[0], 'ours')


def published_cell(
    number,                   # (value, was it checked, where), or None
)->str:
    "Write a published number, with a star where nobody checked it."
    if not number: return ''
    value, checked, _ = number
    return f'{value:g}' if checked else f'{value:g}*'


def presets()->str:
    "All presets: how each differs from `paper` (or `released`), where it is from, what the paper reports."
    rows = []
    for name, cfg in PRESETS.items():
        base = PRESETS['released' if name.startswith('rb_') else 'paper']
        own = [f'{k}={typed_text(v)}' for k, (_, v) in differences(base, cfg, ignore=('preset',)).items()]
        numbers = PUBLISHED.get(name, {})
        rows.append([name, ' '.join(own) or 'nothing', source_of(name),
                     *(published_cell(numbers.get(k)) for k in ('fid', 'inception_score'))])
    notes = ('Each row is `paper` (rb_ rows: `released`) with these settings, at paper scale; --scale shrinks it. '
             'FID and IS are those of the paper; * not checked against its text (chapter 07).')
    return text_table(['preset', 'what it changes', 'source', 'FID', 'IS'], rows) + '\n\n' + wrap(notes)


def settings()->str:
    "All settings of `--set`: default, meaning, source."
    rows = [[name, typed_text(f.default), meaning(f), f.metadata['source']] for name, f in FIELDS.items()]
    example = '--set attn_at=8,16 precision=fp32 sets two; defaults are those of preset `paper` at paper scale.'
    return text_table(['setting', 'default', 'meaning', 'source'], rows) + '\n\n' + wrap(example)
