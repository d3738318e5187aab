"Attention maps, the page to click, samples and the report: what needs a browser, a process, or a shell."
import json

import pytest
import torch
from browser import Page, chromium

from sagan_nb.attention_maps import attention_maps, mirror_discriminator, mirror_generator, mirror_picture, widget_html
from sagan_nb.networks import Generator

needs_browser = pytest.mark.skipif(chromium() is None, reason='there is no Chromium on this machine')


def text(page): return page.ask('document.querySelector("p[aria-live]").textContent')


@needs_browser
@pytest.mark.parametrize('form', ['paper', 'v1', 'released'])
def test_clicking_a_pixel_shows_its_mirror_image(form, tmp_path):
    "The page, at every place that is clicked, says what the planted network does."
    path = tmp_path/'look.html'
    path.write_text('<!doctype html><meta charset="utf-8"><body>' + widget_html(attention_maps(mirror_generator(form), torch.zeros(2, 4), torch.tensor([0, 1]))))
    cell = 4 if form == 'released' else 2
    with Page() as page:
        for width in (400, 1600):
            page.open(path, width)
            box = page.ask('(({left, top, width, height}) => [left, top, width, height])(document.querySelector("canvas").getBoundingClientRect())')
            for row, column in ((0, 0), (9, 20), (31, 31), (17, 3)):
                page.click(box[0] + (column + .5)/32*box[2], box[1] + (row + .5)/32*box[3])
                a, b = row//cell*cell, (31 - column)//cell*cell
                assert f'most at rows {a}-{a + cell - 1}, columns {b}-{b + cell - 1} (100.0%' in text(page), (row, column, text(page))
        page.ask('document.querySelector("canvas").focus()')
        before = text(page)
        page.press('ArrowDown')
        assert text(page) != before and text(page).startswith('pixel 19,')
        assert page.ask('document.querySelector(".static").hidden') is True
        assert page.ask('document.documentElement.scrollWidth <= window.innerWidth')
        assert page.errors == []


@needs_browser
def test_the_script_computes_the_rows_of_beta(tmp_path):
    "Every weight that the script makes, against the tensor it stands for."
    torch.manual_seed(0)
    G = Generator(32, 8, 3, 8, attn_at=(16,), form='released')
    maps = attention_maps(G, torch.randn(1, 8)*30)
    page_text = widget_html(maps).replace('const draw =', 'window.rows = (y, x) => { at = [y, x]; return Array.from(row(shown[0])); }; const draw =')
    path = tmp_path/'look.html'
    path.write_text('<!doctype html><meta charset="utf-8"><body>' + page_text)
    beta = maps.pick().beta(0)
    assert beta.max() > 2/beta.shape[1]                                                     # not even
    with Page() as page:
        page.open(path)
        for j in (0, 1, 17, 100, 255):
            torch.testing.assert_close(torch.tensor(page.ask(f'rows({j//16}, {j%16})')), beta[j], rtol=1e-4, atol=1e-7)


@needs_browser
def test_the_browser_notices_faults(tmp_path):
    "A page with a script error and a picture from the network is caught."
    path = tmp_path/'bad.html'
    path.write_text('<!doctype html><body><script>console.error("x"); nothing.there</script><img src="http://127.0.0.1:9/a.png"><div style="width:2000px">x</div>')
    with Page() as page:
        page.open(path, 400)
        assert len(page.errors) >= 2 and any('nothing' in e for e in page.errors)
        assert any(r.startswith('http') for r in page.requests)
        assert page.ask('document.documentElement.scrollWidth > window.innerWidth')


MEMORY = '''
import resource, torch
from sagan_nb.attention_maps import attention_maps, attention_use, find_queries
from sagan_nb.networks import Generator
torch.manual_seed(0)
G = Generator(128, 8, 3, 16, attn_at=(64,), form='paper')
maps = attention_maps(G, torch.randn(64, 16)*10, torch.arange(64) % 3)
assert maps.pick().shape == (64, 64)
for i in range(64): [maps.pick().look(i, q) for q in find_queries(maps.pick(), i, 'grid', 5)]
find_queries(maps.pick(), 0, 'auto', 5)
maps.pick().q, maps.pick().k = maps.pick().q[:8], maps.pick().k[:8]
maps.pick().reach()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
'''


def test_maps_of_64_pictures_take_less_than_2_GiB():
    "At a 64x64 map without pooling, where all maps together would take 4 GiB."
    import subprocess
    import sys
    done = subprocess.run([sys.executable, '-c', MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert .1 < float(done.stdout) < 2, done.stdout
