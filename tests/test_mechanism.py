"What is done to a trained generator's attention is what it says, and what is said of it follows from the file."
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sagan_nb.attention_maps import attention_layers
from sagan_nb.core import Refused
from sagan_nb.machinery.answers import answers
from sagan_nb.machinery.figures import show_pairs
from sagan_nb.machinery.mechanism import LESS, MECHANISM, TRAINED, mechanism_runs, mechanism_words
from sagan_nb.networks import Generator
from sagan_nb.self_attention import softmax_map
from sagan_nb.train import draw
from tools.study import mechanism


@pytest.fixture(scope='module')
def G():
    torch.manual_seed(0)
    G = Generator(res=32, width=4, attn_at=(16,)).eval()
    for block in attention_layers(G).values(): torch.nn.init.constant_(block.gamma, 1.)
    return G


def images(G): return draw(G, torch.randn(6, G.z_dim, generator=torch.Generator().manual_seed(1)), torch.zeros(6, dtype=torch.long))


def test_each_way_changes_the_map_and_leaves_the_network_as_it_was(G):
    whole, changed = images(G), {}
    for words, way in mechanism.ways(G, 32).items():
        with way: changed[words] = (images(G) - whole).abs().max().item()
        assert torch.equal(images(G), whole), words
    assert changed.pop(TRAINED) < 1e-4 < 1e-3 < min(changed.values()), changed
    assert {*LESS} <= {*changed} and {*MECHANISM.rows} == {TRAINED, *changed}


def test_the_control_is_silenced_as_attention_is():
    torch.manual_seed(0)
    G = Generator(res=32, width=4, attn_at=(16,), block='residual').eval()
    for block in G.extra.values(): torch.nn.init.constant_(block.gamma, 1.)
    whole, by_way = images(G), mechanism.ways(G, 32)
    assert [*by_way] == [TRAINED, 'silenced (gamma = 0)']
    with by_way['silenced (gamma = 0)']: assert (images(G) - whole).abs().max() > 1e-3
    assert torch.equal(images(G), whole)


def test_maps_are_what_their_names_say():
    q, k = torch.randn(3, 256, 4), torch.randn(3, 64, 4)
    beta, far = softmax_map(q, k), mechanism.distances(256, 64, 32)
    assert far[0, 0].item() == pytest.approx(2**.5) and far.max().item() == pytest.approx((31 - 2)*2**.5)     # queries every 2 px, keys every 4
    for r in (4, 8, 16):
        near = mechanism.within(r, 32)(q, k)
        assert torch.allclose(near.sum(-1), torch.ones(3, 256)) and near[:, far > r].max() == 0 and near[:, far <= r].min() > 0
    cut = (beta*(far > 8)).double()
    assert torch.allclose(mechanism.within(8, 32, far=True)(q, k).double(), cut/cut.sum(-1, keepdim=True), atol=1e-5)
    assert torch.allclose(mechanism.within(99, 32)(q, k), beta) and torch.equal(mechanism.of_another_image(q, k)[1], beta[0])
    assert mechanism.even(q, k).std() == 0 and sorted(mechanism.shuffled(q, k)[0, :, 0].tolist()) == sorted(beta[0, :, 0].tolist())


def test_each_run_keeps_the_commit_that_measured_it(G, tmp_path, monkeypatch):
    "Runs measured later take nothing from those before, in the stored file, too."
    cfg = SimpleNamespace(res=32, z_dim=G.z_dim, seed=14, preset='t1_attn_16', data='planted')
    monkeypatch.setattr(mechanism, 'open_run', lambda run: SimpleNamespace(G=G, cfg=cfg, step=1))
    monkeypatch.setattr(mechanism, 'pictures_of', lambda cfg: SimpleNamespace(long_range=lambda x, y: dict(mi=1., joint=1.)))
    monkeypatch.setattr(mechanism, 'ways', lambda G, res: {TRAINED: nullcontext()})
    for run, commit in (('a', '1'*40), ('b', '2'*40)):
        monkeypatch.setattr(mechanism, 'machine_facts', lambda: dict(commit=commit))
        monkeypatch.setattr(sys, 'argv', ['mechanism', 'a', run, '--n', '2', '--out', str(tmp_path/'found.json')])
        mechanism.main()
    commits = lambda path: {o['run']: o['env']['commit'] for o in json.loads(path.read_text())['runs']}
    assert commits(tmp_path/'found.json') == dict(a='1'*40, b='2'*40)
    stored = commits(Path(__file__).parents[1]/'results'/'twins'/'mechanism.json')
    assert len(stored) == 11 and {c[:7] for run, c in stored.items() if run.startswith('t1_attn')} == {'2188bdc'}


def planted(path, losses):
    "A file in which ways lose these bits, a little more or less by seed; seed 16 loses nothing."
    found = lambda s: {TRAINED: dict(mi=9. + s/10, spread=.3)} | {way: dict(mi=9. + s/10 - (loss + .1*(s % 3))*(s != 16)) for way, loss in losses.items()}
    path.write_text(json.dumps(dict(runs=[dict(seed=s, preset='t1_attn_16', found=found(s)) for s in (*MECHANISM.seeds, 16)])))
    return mechanism_runs(path)


def test_what_is_said_follows_from_the_file(tmp_path):
    runs = planted(tmp_path/'a.json', {way: loss for way, loss in zip(LESS, (3., 0., -2.))})
    assert {o['seed'] for o in runs} == {*MECHANISM.seeds}
    silenced, other, near = mechanism_words(runs)
    assert 'with it silenced: +3.1 bits' in silenced and silenced.endswith('holds (5 seeds)')
    assert near.endswith('is reversed (5 seeds)') and 'not resolved' in other
    text = answers(dict(twins=[]), runs)
    holds, rest = text.split('**Does not hold')
    assert 'with it silenced: +3.1 bits' in holds and 'another image' not in holds and 'another image: +0.1 bits' in rest and 'silenced' not in rest
    assert len(show_pairs(MECHANISM, runs).axes[1].get_yticks()) == 3
    few = [o for o in runs if o['seed'] in MECHANISM.seeds[:2]]
    assert all(o.endswith('not judged yet: 2 of 5 seeds') and '[' not in o for o in mechanism_words(few)) and 'silenced' not in answers(dict(twins=[]), few).split('**Does not hold')[0]
    (tmp_path/'a.json').write_text('{"runs"')
    with pytest.raises(Refused): mechanism_runs(tmp_path/'a.json')
