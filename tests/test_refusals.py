"What the commands refuse, and that nothing is written then; a run, its checkpoint and a pack of its pictures are one and the same."
import json
import math
from pathlib import Path

import pytest
import torch
from fastcore.test import test_eq, test_fail
from PIL import Image

from sagan_nb.core import Refused
from sagan_nb.data import Toy
from sagan_nb.train import draw, fixed_noise
from sagan_nb.machinery.checkpoints import newest_checkpoint
from sagan_nb.machinery.cli import sagan_attention, sagan_bench, sagan_eval, sagan_pack, sagan_sample, sagan_train
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.options import pick_classes

for f in (test_eq, test_fail): f.__test__ = False               # fastcore's, no tests of this file


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a class-per-folder zoo and a smoke run on it; an own cache."
    folder = tmp_path_factory.mktemp('refusals')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('SAGAN_NB_CACHE', str(folder/'cache'))
        m.setenv('IN_TEST', '1')
        toy = Toy(32, 3, n=90)
        for k in range(90):
            x, y = toy.batch([k])
            path = folder/'zoo'/('bird', 'cat', 'dog')[y]/f'{k:03}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[0].permute(1, 2, 0).numpy()).save(path)
        sagan_train('t1_attn_16', data=str(folder/'zoo'), scale='smoke', out=str(folder/'run'))
        yield folder


def test_classes_of_a_command_line():
    test_eq(pick_classes(None, ['a', 'b']), [0, 1])
    test_eq(pick_classes('b,0', ['a', 'b']), [1, 0])
    test_eq(pick_classes(None, []), [0])
    test_fail(lambda: pick_classes('c', ['a', 'b']), exc=Refused, contains="no class 'c'; there are 2: a, b")


@pytest.mark.parametrize('bad, words', [
    (dict(nets='31'), "there is no net '31'"), (dict(nets='small', rounds=0), 'rounds must be 1 or more'),
    (dict(nets='small', against='none.py'), 'there is no such file'), (dict(nets='small', out='nowhere/x.json'), 'there is no such folder')])
def test_bench(bad, words): test_fail(lambda: sagan_bench(**bad), exc=Refused, contains=words)


@pytest.mark.parametrize('bad, words', [
    (dict(preset='t1_attn_32'), 'maps to choose from: 8, 16'), (dict(preset='t1_attn_61'), 'did you mean'),
    (dict(steps=-5), 'steps must be greater than 0'), (dict(set=['lr=1']), "did you mean 'lr_g'?"), (dict(data='nowhere'), 'no file or folder'),
    (dict(device='tpu9'), 'say auto, cpu or cuda'), (dict(out='run'), 'is there already'), (dict(resume=True), 'no run to go on with'),
    (dict(within=1e-6, steps=12), 'not ten updates'), (dict(within=math.nan), 'minutes, more than 0'),
    (dict(within=5., resume=True, out='run'), 'is for a new run')])
def test_train(place, monkeypatch, bad, words):
    monkeypatch.chdir(place)
    test_fail(lambda: sagan_train(**{'scale': 'smoke', 'out': 'new', **bad}), exc=Refused, contains=words)
    assert not Path('new').exists()


def test_attention(place, monkeypatch):
    monkeypatch.chdir(place)
    for bad, words in ((dict(queries=['12,40']), 'outside the picture'), (dict(part='D', layers='8'), 'there is at 16')):
        test_fail(lambda: sagan_attention('run', **bad), exc=Refused, contains=words)
    test_fail(lambda: sagan_attention('zoo'), exc=Refused, contains='no checkpoints')


def test_a_run_and_its_checkpoint_draw_the_same(place):
    a, b = open_run(place/'run'), open_run(newest_checkpoint(place/'run'))
    z, y = fixed_noise(a.cfg, 3)
    assert torch.equal(draw(a.G, z, y), draw(b.G, z, y))
    test_fail(lambda: open_run(place/'zoo'), exc=Refused, contains='no checkpoints')
    test_fail(lambda: open_run(place/'nowhere'), exc=Refused, contains='there is no such run or file')


def test_records_are_added_and_a_walk_moves(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    stored = json.loads(Path('run/metrics.json').read_text())
    sagan_eval('run', metrics='kid,prdc', n_fake=60)
    test_eq(len(json.loads(Path('run/metrics.json').read_text())), len(stored) + 5)
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
