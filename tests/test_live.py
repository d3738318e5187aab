"The generator in the page draws what PyTorch draws, in Chromium; by pointer and by keyboard, also on a small screen."
from pathlib import Path

import pytest
import torch

from sagan_nb.core import Refused
from sagan_nb.machinery.html import page
from sagan_nb.machinery.live import LARGEST, live_data, live_html
from sagan_nb.networks import Generator
from sagan_nb.report import slerp
from sagan_nb.self_attention import attention_map

TRAINED = Path(__file__).resolve().parents[1]/'results'/'generator'/'t1_attn_16-pairs.safetensors'
LIVE = '() => document.querySelector(".sagan-live").live'


def random_generator(form):
    torch.manual_seed(0)
    G = Generator(res=32, n_classes=3, z_dim=6, channels=(8, 8, 16, 8), attn_at=(16,), form=form, reduction=4).eval()
    with torch.no_grad():
        for p in G.parameters(): p.add_(.2*torch.randn_like(p))
        for n, b in G.named_buffers():
            if n.endswith(('mean', 'var')): b.add_(.3*torch.rand_like(b))
    return G


def noise(G, t, seed=0):
    a, b = torch.randn(2, G.z_dim, generator=torch.Generator().manual_seed(seed))
    return slerp(a[None], b[None], torch.tensor([t]))[0]


@pytest.mark.parametrize('which', ['trained', 'paper', 'v1', 'released'])
def test_the_page_draws_what_torch_draws(tab, tmp_path, which):
    G = Generator.from_pretrained(TRAINED) if which == 'trained' else random_generator(which)
    path = tmp_path/'live.html'
    path.write_text(page('live', live_html(G)), encoding='utf-8')
    assert path.stat().st_size < LARGEST
    tab.open(path)
    for t, k in ((0., 0), (.35, 2), (1., 1)):
        theirs = torch.tensor(tab.page.evaluate(f'({LIVE})().generate({t}, {k})')).reshape(3, 32, 32)
        with torch.no_grad(): ours = G(noise(G, t), torch.tensor([k]))[0]
        assert (theirs - ours).abs().max() < 1e-3, (t, k)
    row = torch.tensor(tab.page.evaluate(f'({LIVE})().row(5, 9)'))
    inputs = []
    block = next(iter(G.extra.values()))
    handle = block.register_forward_pre_hook(lambda m, i: inputs.append(i[0]))
    with torch.no_grad(): G(noise(G, 0.), torch.tensor([0]))
    handle.remove()
    assert (attention_map(block, inputs[0])[0, 5*16 + 9] - row).abs().max() < 1e-3
    assert not tab.faults


def test_a_class_may_be_called_as_a_place_in_the_page():
    text = live_html(random_generator('paper'), ['@DATA', 'me@IDEA', 'cat'])
    assert '<option value="0">@DATA</option>' in text and '>me@IDEA<' in text


def test_pointer_keyboard_and_a_small_screen(tab, tmp_path):
    path = tmp_path/'live.html'
    path.write_text(page('live', live_html(random_generator('paper'), ['ant', '<b>', 'cat'], fallback='<p>no script</p>')), encoding='utf-8')
    tab.open(path, width=400, height=800)
    canvas, said = tab.page.locator('canvas').first, tab.page.locator('output')
    assert tab.page.evaluate('document.documentElement.scrollWidth') <= 400 and not tab.page.locator('.static').is_visible()
    box = canvas.bounding_box()
    tab.page.mouse.click(box['x'] + box['width']*(20.5/32), box['y'] + box['height']*(3.5/32))
    assert tab.page.evaluate(f'({LIVE})().at()') == [3, 20] and said.text_content().startswith('pixel 3,20 ')
    tab.page.evaluate("document.addEventListener('keydown', e => { window.heard = e.key })")
    canvas.focus()
    for key in ('ArrowDown', 'ArrowRight', 'ArrowRight'): tab.page.keyboard.press(key)
    assert tab.page.evaluate(f'({LIVE})().at()') == [4, 22] and not tab.page.evaluate('window.heard')       # it turns no page
    picture = lambda: canvas.evaluate('o => o.toDataURL()')
    before = picture()
    tab.page.locator('select').select_option('1')
    other = picture()
    tab.page.locator('input').focus()
    tab.page.keyboard.press('End')
    assert len({before, other, picture()}) == 3 and tab.page.locator('option').nth(1).text_content() == '<b>'
    assert not tab.faults


def test_one_generator_twice_in_a_page(tab, tmp_path):
    path, live = tmp_path/'two.html', live_html(random_generator('paper'), ['ant', 'cat', 'dog'])
    path.write_text(page('live', live + live), encoding='utf-8')
    tab.open(path, width=800, height=800)
    assert [o.evaluate('o => o.querySelectorAll("canvas").length') for o in tab.page.locator('[id^=live-]').all()] == [2, 2]
    assert not tab.faults


def test_what_a_page_cannot_draw():
    with pytest.raises(Refused, match='one attention block'): live_data(Generator(res=64, width=4, n_classes=2, attn_at=(16, 32)))
    with pytest.raises(Refused, match='one attention block'): live_data(Generator(res=32, width=4, n_classes=2, attn_at=(16,), block='residual'))
    with torch.device('meta'): large = Generator(res=32, width=64, n_classes=2, attn_at=(16,))
    with pytest.raises(Refused, match='too large'): live_data(large)
    assert live_data(Generator(res=32, width=4, n_classes=2, attn_at=()).eval())['net']['attention'] is None
