"What `NUMERICS` names: training gives the stored losses, on any processor and with any torch; see tools/golden.py."
import json

import pytest
import torch

from sagan_nb.config import NUMERICS
from tools import golden

STORED = json.loads(golden.FILE.read_text(encoding='utf-8'))


def test_every_trace_is_stored_for_this_version():
    assert STORED['numerics'] == NUMERICS and STORED['traces'].keys() == golden.ROWS.keys()


@pytest.mark.parametrize('name', golden.ROWS)
def test_twenty_updates_are_those_that_were_stored(name):
    "To 1e-5; where this fails on purpose: raise NUMERICS, run `python -m tools.golden`, say why in results/LOG.md."
    found, stored = golden.trace(name), STORED['traces'][name]
    for key in ('losses', 'images'):
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(stored[key]), rtol=1e-5, atol=1e-5)


def test_a_trace_that_is_named_is_written_alone(tmp_path, monkeypatch):
    monkeypatch.setenv('IN_TEST', '1')                                          # `main` sets it, too; this takes it back
    monkeypatch.setattr(golden, 'FILE', tmp_path/'stored.json')
    with pytest.raises(SystemExit, match='not there yet'): golden.main(['none'])
    few = dict(STORED, traces={k: v for k, v in STORED['traces'].items() if k != 'none'}, first='as it was')
    golden.FILE.write_text(json.dumps(few))
    monkeypatch.setattr(golden, 'trace', lambda name: f'{name} anew')
    golden.main(['none'])
    assert json.loads(golden.FILE.read_text()) == dict(few, traces=few['traces'] | dict(none='none anew'))
    with pytest.raises(SystemExit, match="no trace 'nonsense'; there are: paper, "): golden.main(['nonsense'])


@pytest.mark.parametrize('fold', ['kernel', 'none'])
def test_a_fold_changes_no_trace(fold):
    found, stored = golden.trace('laptop', fold), STORED['traces']['laptop']
    torch.testing.assert_close(torch.tensor(found['losses']), torch.tensor(stored['losses']), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('precision, bound', [('fp32', 1e-4), ('bf16', 3e-2)])
def test_the_first_update_in_the_number_formats_of_real_runs(precision, bound):
    found, stored = golden.first_losses(precision), STORED['first'][precision]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(stored), rtol=bound, atol=bound)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(STORED['first']['fp32']), rtol=3e-2, atol=3e-2)
    assert precision == 'fp32' or found != golden.first_losses('fp32')           # another format, in fact


def test_a_hinge_moved_by_a_thousandth_moves_the_trace(monkeypatch):
    from sagan_nb import train
    hinge = train.hinge_d
    monkeypatch.setattr(train, 'hinge_d', lambda real, fake: hinge(real, fake) * 1.001)
    with pytest.raises(AssertionError): test_twenty_updates_are_those_that_were_stored('none')
