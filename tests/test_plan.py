"What a table would take, against numbers counted by hand, and against what a training step really keeps."
from dataclasses import replace

import pytest
import torch

from commands import shell
from sagan_nb.config import PRESETS, at_scale, preset
from sagan_nb.core import Refused
from sagan_nb.machinery.plan import given_for_plan, kept_for_backward, memory_of, plan_of, sent_of
from sagan_nb.train import networks

PAPER = PRESETS['t1_attn_32']


def test_the_paper_batch_fits_a_card_of_24_GB_in_parts():
    "256 images in parts of 64, as the released code's towers; and the parts are what makes it fit easily."
    assert memory_of(replace(PAPER, micro=64), 1) < 8e9 < 16e9 < memory_of(PAPER, 1)


def test_what_is_kept_is_what_autograd_saves():
    "On real tensors, with batch norm that has statistics: the shapes without memory count the same."
    cfg = replace(at_scale(preset('t1_none'), 'smoke'), n_classes=4, sn_g=False, sn_d=False)
    (G, D), kept = networks(cfg), {}
    weights = {p.untyped_storage()._cdata for p in G.parameters()}
    def keep(t):
        if t.untyped_storage()._cdata not in weights: kept[t.untyped_storage()._cdata] = t.untyped_storage()
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): G(torch.randn(8, cfg.z_dim), torch.zeros(8, dtype=torch.int64))
    assert abs(sum(o.nbytes() for o in kept.values()) / kept_for_backward(cfg, 8)['G'] - 1) < .02
    assert kept_for_backward(cfg, 16)['D'] / kept_for_backward(cfg, 8)['D'] == pytest.approx(2, rel=.01)


def test_hours_cost_and_network_by_hand():
    cfg = replace(PAPER, steps=36_000)
    text = plan_of({'t1_attn_32': cfg}, 2, {'t1_attn_32': .5}, gpus=4, price=2.5)
    with pytest.raises(Refused, match='does not split over 3 ranks'): plan_of({'t1_attn_32': cfg}, 2, {'t1_attn_32': .5}, gpus=3)
    row = next(line.split() for line in text.splitlines() if line.startswith('t1_attn_32'))
    weights = sum(p.numel() for net in networks(cfg) for p in net.parameters())
    assert sent_of(cfg, 4) == 4*weights*1.5 and sent_of(cfg, 1) == 0
    assert row[1:5] == ['36,000', '0.5', '4', '10.0'] and row[-1] == '100' and row[-2] == f'{4*weights*1.5/.5/1e6:,.0f}'
    assert 'in all 40.0 GPU hours, cost 100' in text


def test_the_command(monkeypatch, capsys):
    words = 'sagan_table', 'table1', '--data', 'toy', '--scale', 'smoke', '--only', 't1_none,t1_attn_16', '--plan', 'step=0.1', 'price=3'
    code, said, _ = shell(monkeypatch, capsys, *words)
    assert code == 0 and 't1_attn_16' in said and '128 TPU-v2 cores' in said and 'StudioGAN: 10.8 days' in said and 'timing' not in said


@pytest.mark.parametrize('pair, words', [('step=-1', 'must be greater than 0'), ('gpus=two', 'must be a number'), ('speed=1', 'a plan is told')])
def test_nonsense_is_refused(pair, words):
    with pytest.raises(Refused, match=words): given_for_plan([pair])
