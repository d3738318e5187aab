"Settings as text and as files: what a field accepts, and that values made before the fields stood in groups read the same."
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pytest

from sagan_nb.config import FIELDS, PRESETS, Config, from_json, to_json
from sagan_nb.core import Refused
from sagan_nb.machinery.jobs import Job
from sagan_nb.machinery.settings import check_value, find_field, list_fields, meaning, parse_value, read_values, read_pairs, setting

RESULTS = Path(__file__).resolve().parents[1]/'results'


@dataclass
class Oven:
    "Fields that have nothing to do with training."
    heat:float = setting(180., 'degrees', 'ours', '> 0')
    trays:tuple[int, ...] = setting((1,), 'which are in', 'ours')
    fan:bool = setting(False, 'blow', 'ours')
    mode:str = setting('bake', 'what for', 'ours', ('bake', 'grill'))


OVEN = {f.name: f for f in fields(Oven)}


@pytest.mark.parametrize('name, text, value', [
    ('heat', '200', 200.), ('heat', '2e2', 200.), ('trays', '1,3', (1, 3)), ('trays', 'none', ()), ('trays', '', ()),
    ('fan', 'True', True), ('fan', '0', False), ('mode', 'grill', 'grill')])
def test_a_text_becomes_the_type_of_its_field(name, text, value):
    found = parse_value(OVEN[name], text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize('name, text, words', [
    ('heat', 'hot', "heat must be float, got 'hot'"), ('trays', '1,b', 'trays must be numbers like 16,32'), ('fan', 'maybe', 'fan must be bool')])
def test_a_text_that_does_not_fit_is_refused(name, text, words):
    with pytest.raises(Refused, match=words): parse_value(OVEN[name], text)


@pytest.mark.parametrize('name, value, words', [
    ('heat', 0., 'heat must be greater than 0, got 0.0'), ('heat', float('inf'), 'heat must be a finite number'), ('heat', True, 'heat must be float'),
    ('trays', (1.,), 'trays must be a list of whole numbers'), ('mode', 'boil', 'choose one of bake, grill'), ('fan', 1, 'fan must be bool')])
def test_a_value_that_does_not_fit_is_refused(name, value, words):
    with pytest.raises(Refused, match=words): check_value(OVEN[name], value)


def test_numbers_and_lists_of_a_file_are_converted():
    assert read_values('{"heat": 200, "trays": [1, 2]}', OVEN) == dict(heat=200., trays=(1, 2))
    assert type(check_value(OVEN['heat'], 200)) is float
    assert read_pairs(['heat = 5', 'mode=grill'], OVEN) == dict(heat=5., mode='grill')
    for text in ('[1]', '1', '{'):
        with pytest.raises(Refused, match='not a configuration'): read_values(text, OVEN)
    with pytest.raises(Refused, match='expected key=value'): read_pairs(['heat'], OVEN)
    with pytest.raises(Refused, match="did you mean 'heat'"): find_field('heet', OVEN)


def test_a_field_says_what_it_is():
    assert meaning(OVEN['heat']) == 'degrees; > 0' and meaning(OVEN['mode']) == 'what for; one of bake, grill' and meaning(OVEN['fan']) == 'blow'
    assert "    mode = 'bake': what for; one of bake, grill (ours)" in list_fields(OVEN).splitlines()
    assert all(f'    {name} = ' in Config.__doc__ for name in FIELDS)


def test_config_is_flat_and_frozen():
    assert [*asdict(Config())] == [*json.loads(to_json(Config()))] == [*FIELDS]
    assert len({*PRESETS.values(), Config()}) == len(PRESETS)                    # equal values are one key
    with pytest.raises(AttributeError): Config().seed = 1
    assert Config('mine', 'laptop').preset == 'mine', 'the row and its scale come first'


def test_stored_results_still_have_their_names():
    "A result file is named after its settings: reading these back and naming the job again gives the same hash."
    checked = 0
    for path in sorted(RESULTS.rglob('*-v[12].json')):
        found = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(found, dict) or 'config' not in found: continue
        assert Job(from_json(json.dumps(found['config'])), features='domain').stem == path.stem[:-len('-v2')]
        checked += 1
    assert checked > 150
