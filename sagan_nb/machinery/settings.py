"Serves chapter 07: fields that know their meaning, their source and their range, and values that are read from text."
import json
import math
import typing
from dataclasses import Field, field

from .refused import Refused, choose

RANGES = {                    # what a number may be -> how a refusal says it, what fits
    '> 0': ('be greater than 0', lambda v: v > 0),
    '>= 0': ('be 0 or more', lambda v: v >= 0),
    '0..1': ('lie in 0..1', lambda v: 0 <= v <= 1),
    '0..1, below 1': ('be below 1, and 0 or more', lambda v: 0 <= v < 1),
    '0..2**63 - 1': ('be below 2**63, and 0 or more', lambda v: 0 <= v < 2**63)}


def setting(
    default,                  # the value where nothing else is said
    doc:str,                  # meaning and unit
    source:str,               # paper section, 'released code', or 'ours'
    may=None,                 # what it may be: the choices, or a key of RANGES; None: anything of its type
):                            # a dataclass field
    "Make a field that knows its meaning, its source, and what it may be."
    return field(default=default, metadata=dict(doc=doc, source=source, may=may))


def meaning(f:Field)->str:
    "Say what a field means, and what it may be."
    doc, may = f.metadata['doc'], f.metadata['may']
    if may is None: return doc
    if isinstance(may, tuple): return f'{doc}; one of {", ".join(may)}'
    return f'{doc}; {may}'


def list_fields(
    known:dict,               # name -> field
)->str:                       # a line each
    "List fields with default, meaning, what they may be, and (their source)."
    head = 'Fields, each with its default, its meaning, what it may be, and (its source):'
    lines = [f'    {name} = {f.default!r}: {meaning(f)} ({f.metadata["source"]})' for name, f in known.items()]
    return '\n'.join([head, *lines])


def type_of(f:Field)->type:
    "Return a field's type; a tuple of something is a tuple."
    return tuple if typing.get_origin(f.type) is tuple else f.type


def typed_value(
    f:Field,
    value,                    # from JSON or Python
):                            # the value in the field's type
    "Convert an int to float and a list to tuple where the field wants it. Raises Refused for another type."
    kind = type_of(f)
    if kind is tuple:
        if isinstance(value, (list, tuple)) and all(type(v) is int for v in value): return tuple(value)
        raise Refused(f'{f.name} must be a list of whole numbers, got {value!r}')
    most = 2**63 if f.metadata['may'] == '0..2**63 - 1' else 2**31         # what no seed, no size and no rate is above
    if type(value) is int and abs(value) > most: raise Refused(f'{f.name} is too large a number, above {most}')
    if kind is float and type(value) is int: return float(value)
    if type(value) is float and not math.isfinite(value):
        raise Refused(f'{f.name} must be a finite number, got {value}')
    if type(value) is kind: return value
    raise Refused(f'{f.name} must be {kind.__name__}, got {value!r}')


def check_value(
    f:Field,
    value,                    # from JSON or Python
):                            # the value in the field's type
    "Return a value that the field may have. Raises Refused for any other."
    value, may = typed_value(f, value), f.metadata['may']
    if isinstance(may, tuple): return choose(value, may, f.name)
    if may is None: return value
    words, fits = RANGES[may]
    if not fits(value): raise Refused(f'{f.name} must {words}, got {value}')
    return value


def find_field(
    name:str,                 # asked for
    known:dict,               # name -> field
)->Field:
    "Return the field of that name. Raises Refused, with the nearest name, for one that is not there."
    return known[choose(name, known, 'setting', write=repr)]


def parse_value(
    f:Field,
    text:str,                 # as typed on a command line; lists as 16,32; none or nothing for an empty list
):                            # the value in the field's type
    "Read a value from text. Raises Refused for a text that does not fit."
    kind = type_of(f)
    try:
        if kind is bool: return {'true': True, 'false': False, '1': True, '0': False}[text.lower()]
        if kind is tuple and text.lower() in ('', 'none'): return ()
        if kind is tuple: return tuple(int(t) for t in text.split(','))
        return kind(text)
    except (ValueError, KeyError):
        wanted = 'numbers like 16,32' if kind is tuple else kind.__name__
        raise Refused(f'{f.name} must be {wanted}, got {text!r}') from None


def read_pairs(
    pairs,                    # texts of the form key=value
    known:dict,               # name -> field
)->dict:                      # name -> value
    "Read settings of a command line. Raises Refused for anything that is not a setting."
    own = {}
    for pair in pairs:
        if '=' not in pair: raise Refused(f'expected key=value, got {pair!r}; other words come before --set')
        name, text = (o.strip() for o in pair.split('=', 1))
        own[name] = parse_value(find_field(name, known), text)
    return own


def read_values(
    text:str,                 # a JSON object
    known:dict,               # name -> field
)->dict:                      # name -> value
    "Read settings of a file. Raises Refused for broken JSON, unknown names and wrong types."
    try: found = json.loads(text)
    except ValueError as e: raise Refused(f'this is not a configuration: {e}') from None
    except RecursionError: raise Refused('this is not a configuration: it is nested too deeply') from None
    if not isinstance(found, dict): raise Refused('this is not a configuration: expected a JSON object')
    return {name: typed_value(find_field(name, known), value) for name, value in found.items()}
