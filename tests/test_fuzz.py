"Fuzzing in its short form: hypothesis makes inputs for every target of tools/faults/fuzz.py, and good inputs are mutated; `make long` runs a million."
import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tools.faults.fuzz import SLOW, TARGETS, attempt, campaign, guided, seeds

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda o: st.lists(o, max_size=4) | st.dictionaries(st.sampled_from(
    ['t', 'metric', 'value', 'seal', 'row', 'seed', 'config', 'records', 'curve', 'usage_G', 'version', 'format', 'n', 'res', 'classes', 'chunks', 'sha256', 'lr_g', 'steps', 'attn_at', 'data']), o, max_size=5), max_leaves=12)
INPUTS = st.binary(max_size=400) | st.text(max_size=60).map(lambda o: o.encode('utf-8', 'surrogatepass')) | VALUES.map(lambda o: json.dumps(o).encode())


@pytest.mark.parametrize('name', TARGETS)
def test_nothing_but_a_refusal(name, tmp_path):
    "Bytes, texts and JSON, as hypothesis makes them."
    @settings(max_examples=20 if name in SLOW else 80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(INPUTS)
    def never_crashes(data): assert attempt(TARGETS[name], data, tmp_path) is None
    never_crashes()


@pytest.mark.parametrize('name', TARGETS)
def test_good_inputs_are_taken_and_mutated_ones_do_no_harm(name, tmp_path):
    for data in seeds()[name]:
        if name not in ('pack.json', 'npz', 'pth', 'checkpoint', 'safetensors'): TARGETS[name](data, tmp_path)
        else: assert attempt(TARGETS[name], data, tmp_path) is None              # some of these are refused: their arrays lie elsewhere
    assert campaign(name, 10 if name in SLOW else 200, 0, tmp_path) == {}


def test_a_crash_is_found(tmp_path):
    "The fuzzer itself, on a reader that trips over a brace, and on one that never ends."
    def trips(data, folder):
        if b'{' not in data: raise KeyError('t')
    assert 'KeyError' in attempt(trips, b'', tmp_path) and attempt(trips, b'{', tmp_path) is None
    with pytest.MonkeyPatch.context() as m:
        m.setattr('tools.faults.fuzz.PATIENCE', .05)
        def hangs(data, folder):
            while True: pass
        assert 'longer than' in attempt(hangs, b'', tmp_path)
        m.setitem(TARGETS, 'log', trips)
        assert any('KeyError' in words for words in campaign('log', 200, 0, tmp_path))


@pytest.mark.long
def test_inputs_chosen_by_coverage(tmp_path):
    "atheris finds its way into a reader: it reaches more branches than the good inputs do, and nothing crashes."
    pytest.importorskip('atheris', reason='atheris is not installed: pip install .[fuzz]')
    found, made, first, last = guided('log', 3000, 0, tmp_path)
    assert found == {} and made >= 3000 and last > first
