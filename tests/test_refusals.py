"What the commands refuse, and that nothing is written then; a run and one on a pack of its pictures are one and the same."
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from commands import zoo_with_a_run
from sagan_nb.core import Refused
from sagan_nb.machinery.cli import sagan_bench, sagan_eval, sagan_pack, sagan_sample, sagan_train
from sagan_nb.machinery.door import open_run


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a class-per-folder zoo and a smoke run on it; an own cache."
    with zoo_with_a_run(tmp_path_factory.mktemp('refusals')) as folder: yield folder


@pytest.mark.parametrize('bad, words', [
    (dict(nets='31'), "there is no net '31'"), (dict(nets='small', rounds=0), 'rounds must be 1 or more'),
    (dict(nets='small', against='none.py'), 'there is no such file'), (dict(nets='small', out='nowhere/x.json'), 'there is no such folder')])
def test_bench(bad, words):
    with pytest.raises(Refused, match=words): sagan_bench(**bad)


@pytest.mark.parametrize('bad, words', [
    (dict(within=1e-6, steps=12), 'not ten updates'), (dict(within=math.nan), 'minutes, more than 0'),
    (dict(within=5., resume=True, out='run'), 'is for a new run')])
def test_train(place, monkeypatch, bad, words):
    monkeypatch.chdir(place)
    with pytest.raises(Refused, match=words): sagan_train(**{'scale': 'smoke', 'out': 'new', **bad})
    assert not Path('new').exists()


def test_records_are_added_and_a_walk_moves(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    stored = json.loads(Path('run/metrics.json').read_text())
    sagan_eval('run', metrics='kid,prdc', n_fake=60)
    assert len(json.loads(Path('run/metrics.json').read_text())) == len(stored) + 5
    sagan_sample('run', kind='classes', n=16, out='walk.gif')
    assert '14 frames' in capsys.readouterr().out and Image.open('walk.gif').n_frames == 14


def test_features_are_asked_before_anything_is_trained(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(Refused, match='choose domain, inception'): sagan_train('t1_attn_16', data='zoo', scale='smoke', out='none', features='incepton')
    assert not Path('none').exists()


def test_a_pack_trains_alike(place, monkeypatch):
    monkeypatch.chdir(place)
    sagan_pack('zoo', res=32, out='zoo.pack')
    sagan_train('t1_attn_16', data='zoo.pack', scale='smoke', out='run2')
    a, b = open_run('run'), open_run('run2')
    assert all(torch.equal(p, b.G.state_dict()[k]) for k, p in a.G.state_dict().items())
