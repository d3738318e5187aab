"What Python says of our objects: `help` names parameters with their meaning, a repr fits a line or a screen, Jupyter shows captions."
import inspect
import pydoc
import sys
from pathlib import Path

import pytest
import torch

from sagan_nb.config import PRESETS
from sagan_nb.data import open_source
from sagan_nb.machinery.captions import show_captions
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.pictures import WithoutLabels
from sagan_nb.metrics import Stats
from sagan_nb.networks import Discriminator, Generator
from sagan_nb.self_attention import SelfAttention
from sagan_nb.train import make_gan

GENERATOR = Path(__file__).resolve().parents[1]/'results'/'generator'/'t1_attn_16-pairs.safetensors'


@pytest.mark.parametrize('cls', [Generator, Discriminator, SelfAttention])
def test_help_shows_each_parameter_with_its_meaning(cls):
    text = pydoc.plain(pydoc.render_doc(cls))
    for name in inspect.signature(cls).parameters:
        line = next(o for o in text.splitlines() if o.startswith((f' |      {name} = ', f' |      {name}: ')))
        assert line.split(': ', 1)[1].strip(), f'{name} of {cls.__name__} has no meaning'
    assert 'shared by both nn.Module and ScriptModule' not in inspect.getdoc(cls.__init__)


@pytest.mark.parametrize('attn_at', [(), (8, 16, 32, 64)])
def test_a_printed_network_fits_a_screen_and_adds_up(attn_at):
    with torch.device('meta'): nets = Generator(attn_at=attn_at), Discriminator(attn_at=attn_at)
    for net in nets:
        head, *rows = repr(net).splitlines()
        count = lambda text: int(text.replace(',', ''))
        assert len(rows) < 20 and max(map(len, rows)) < 100
        assert sum(count(o.split()[-1]) for o in rows) == count(head.split()[-2]) == sum(p.numel() for p in net.parameters())
        assert sum('SelfAttention' in o for o in rows) == len(attn_at)


def test_a_printed_gan_fits_a_screen():
    with torch.device('meta'): gan = make_gan(PRESETS['paper'], 'meta')
    head, *rows = repr(gan).splitlines()
    assert head == "GAN at update 0 of 1,000,000: PRESETS['paper']" and len(rows) < 40 and max(map(len, rows)) < 100
    assert rows == [*repr(gan.G).splitlines(), *repr(gan.D).splitlines()]


def test_spectral_norm_is_a_word():
    assert 'spectral norm' not in repr(Generator(32, 4, 2, attn_at=(), sn=False))
    assert repr(Generator(32, 4, 2, attn_at=())).count('spectral norm') == 5


@pytest.mark.parametrize('make, words', [
    (lambda: open_source('toy'), 'toy:4: 50,000 pictures of 32x32, 4 classes, fingerprint'),
    (lambda: WithoutLabels(open_source('toy')), 'no labels, fingerprint'),
    (lambda: open_run(GENERATOR), ': 32x32, 4 classes'),
    (lambda: Stats.of(torch.randn(20, 3)), 'Stats of 20 rows, 3 features')])
def test_a_repr_is_a_line_that_says_something(make, words):
    text = repr(make())
    assert words in text and '\n' not in text and len(text) < 120


def test_jupyter_shows_the_caption_of_a_cell_that_ran(monkeypatch, capsys):
    from IPython.core.interactiveshell import InteractiveShell
    shell, shown = InteractiveShell(), []
    monkeypatch.setattr('IPython.get_ipython', lambda: shell)
    monkeypatch.setattr('IPython.display.display', lambda o: shown.append(o.data))
    monkeypatch.delitem(sys.modules, 'ipykernel', raising=False)
    show_captions()                                                  # a script, a test or the site
    cell = '#| fig-cap: "It falls. Would show a bug if: it rose."\nx = 1'
    shell.run_cell(cell)
    assert shown == []
    monkeypatch.setitem(sys.modules, 'ipykernel', sys)
    show_captions(), show_captions()                                 # every chapter imports it
    for each in (cell, 'x = 2', cell + '/0'): shell.run_cell(each)
    assert shown == ['It falls. Would show a bug if: it rose.']
