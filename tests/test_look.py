"Attention maps, the page to click, samples and the report: what needs a browser, a process, or a shell."
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from commands import shell, spawn
from PIL import Image

from sagan_nb.attention_maps import attention_maps, show_attention
from sagan_nb.config import PRESETS, at_scale, from_json, to_json
from sagan_nb.core import save_fig, show_grid
from sagan_nb.data import open_source
from sagan_nb.networks import Discriminator, Generator
from sagan_nb.machinery import cli
from sagan_nb.machinery.features import Features
from sagan_nb.machinery.html import widget_html
from sagan_nb.machinery.planted import mirror_generator
from sagan_nb.machinery.publish import save_pretrained
from sagan_nb.machinery.report import report
from sagan_nb.machinery.checkpoints import save_checkpoint
from sagan_nb.machinery.runs import train
from sagan_nb.train import make_gan

on_linux = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='this system does not tell the peak of one process')

def text(tab): return tab.ask('document.querySelector("p[aria-live]").textContent')


@pytest.mark.parametrize('form', ['paper', 'v1', 'released'])
def test_clicking_a_pixel_shows_its_mirror_image(form, tmp_path, tab):
    "The page, at every place that is clicked, says what the planted network does."
    path = tmp_path/'look.html'
    path.write_text('<!doctype html><meta charset="utf-8"><body>' + widget_html(attention_maps(mirror_generator(form), torch.zeros(2, 4), torch.tensor([0, 1]))))
    cell = 4 if form == 'released' else 2
    for width in (400, 1600):
        tab.open(path, width=width)
        box = tab.ask('(({left, top, width, height}) => [left, top, width, height])(document.querySelector("canvas").getBoundingClientRect())')
        for row, column in ((0, 0), (9, 20), (31, 31), (17, 3)):
            tab.page.mouse.click(box[0] + (column + .5)/32*box[2], box[1] + (row + .5)/32*box[3])
            a, b = row//cell*cell, (31 - column)//cell*cell
            assert f'most at rows {a}-{a + cell - 1}, columns {b}-{b + cell - 1} (100.0%' in text(tab), (row, column, text(tab))
    tab.ask('document.querySelector("canvas").focus()')
    before = text(tab)
    tab.page.keyboard.press('ArrowDown')
    assert text(tab) != before and text(tab).startswith('pixel 19,')
    assert tab.ask('document.querySelector(".static").hidden') is True
    assert tab.ask('document.documentElement.scrollWidth <= window.innerWidth')
    assert tab.faults == []


def test_the_script_computes_the_rows_of_beta(tmp_path, tab):
    "Every weight that the script makes, against the tensor it stands for."
    torch.manual_seed(0)
    G = Generator(32, 8, 3, 8, attn_at=(16,), form='released')
    maps = attention_maps(G, torch.randn(1, 8)*30)
    page_text = widget_html(maps).replace('const draw =', 'window.rows = (y, x) => { at = [y, x]; return Array.from(row(shown[0])); }; const draw =')
    path = tmp_path/'look.html'
    path.write_text('<!doctype html><meta charset="utf-8"><body>' + page_text)
    beta = maps.pick().beta(0)
    assert beta.max() > 2/beta.shape[1]                                                     # not even
    tab.open(path)
    for j in (0, 1, 17, 100, 255):
        torch.testing.assert_close(torch.tensor(tab.ask(f'rows({j//16}, {j%16})')), beta[j], rtol=1e-4, atol=1e-7)


CELL = '''import torch
from sagan_nb.attention_maps import attention_maps; from sagan_nb.machinery.html import attention_widget; from sagan_nb.machinery.planted import mirror_generator
attention_widget(attention_maps(mirror_generator('released'), torch.zeros(1, 4), torch.tensor([0])))'''


@pytest.mark.long
def test_clicking_in_jupyterlab(tmp_path, lab):
    "A cell, run in JupyterLab: a click names the mirror image of the pixel."
    cell, kernel = nbformat.v4.new_code_cell(CELL), dict(name='python3', display_name='python3')
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=dict(kernelspec=kernel)), tmp_path/'book'/'look.ipynb')
    page, faults = lab('look.ipynb'), []
    page.on('pageerror', lambda e: faults.append(str(e)))
    page.set_default_timeout(120_000)
    page.click('.jp-Notebook .jp-CodeCell .cm-content')
    page.keyboard.press('Shift+Enter')
    page.wait_for_selector('.jp-OutputArea-output canvas')
    box = page.locator('.jp-OutputArea-output canvas').first.bounding_box()
    for row, column in ((9, 20), (30, 2)):
        page.mouse.click(box['x'] + (column + .5)/32*box['width'], box['y'] + (row + .5)/32*box['height'])
        a, b = row//4*4, (31 - column)//4*4
        assert f'most at rows {a}-{a + 3}, columns {b}-{b + 3} (100.0%' in page.inner_text('.jp-OutputArea-output p[aria-live]')
    assert faults == []


def test_the_browser_notices_faults(tmp_path, tab):
    "A page with a script error and a picture from the network is caught."
    path = tmp_path/'bad.html'
    path.write_text('<!doctype html><body><script>console.error("x"); nothing.there</script><img src="http://127.0.0.1:9/a.png"><div style="width:2000px">x</div>')
    tab.open(path, width=400)
    for kind, words in (('console', 'x'), ('script', 'nothing'), ('network', 'http')):
        assert any(f.startswith(kind) and words in f for f in tab.faults), (kind, tab.faults)
    assert tab.ask('document.documentElement.scrollWidth > window.innerWidth')


PEAK = "next(int(o.split()[1])/2**20 for o in open('/proc/self/status') if o.startswith('VmHWM'))"       # GiB, of this process alone
MEMORY = f'''
import torch
from sagan_nb.attention_maps import attention_maps
from sagan_nb.machinery.queries import find_queries
from sagan_nb.networks import Generator
torch.manual_seed(0)
G = Generator(128, 8, 3, 16, attn_at=(64,), form='paper')
maps = attention_maps(G, torch.randn(64, 16)*10, torch.arange(64) % 3)
assert maps.pick().shape == (64, 64)
for i in range(64): [maps.pick().look(i, q) for q in find_queries(maps.pick(), i, 'grid', 5)]
find_queries(maps.pick(), 0, 'auto', 5)
maps.pick().q, maps.pick().k = maps.pick().q[:8], maps.pick().k[:8]
maps.pick().reach()
print({PEAK})
'''
COMMAND = f'''
import sys
from sagan_nb.machinery import cli
sys.argv[0] = 'sagan_attention'
cli.sagan_attention()
print({PEAK})
'''


def peak(code, *args):
    "GiB that a process of its own took, as it says in its last line."
    done = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@on_linux
def test_maps_of_64_pictures_take_less_than_2_GiB():
    "At a 64x64 map without pooling, where all maps together would take 4 GiB."
    assert .1 < peak(MEMORY) < 2


@on_linux
@pytest.mark.long
@pytest.mark.parametrize('part', ['G', 'D'])
def test_maps_of_64_pictures_of_the_released_size(part, tmp_path):
    "The whole command at 128 pixels and width 64, figure included. Prints the peak."
    shape = dict(attn_at=(64,), form='paper')
    net = Generator(128, 64, 1000, 128, **shape) if part == 'G' else Discriminator(128, 64, 3, **shape)
    save_pretrained(net, tmp_path/'net.safetensors')
    found = peak(COMMAND, tmp_path/'net.safetensors', '--part', part, '--n', 64, '--out', tmp_path/'maps.png', *(('--data', 'toy:3') if part == 'D' else ()))
    print(f'{part}: peak {found:.2f} GiB')
    assert .1 < found < 2 and (tmp_path/'maps.png').stat().st_size > 100_000


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Smoke runs: with attention at two maps, and without; and a place for what is written."
    folder = tmp_path_factory.mktemp('look')
    cli.sagan_train('t1_attn_16', scale='smoke', out=str(folder/'run'), set=['attn_at=8,16', 'form=released', 'steps=6'])
    cli.sagan_train('t1_none', scale='smoke', out=str(folder/'none'))
    return folder


def test_attention_command(runs, monkeypatch, capsys):
    "Both networks, several layers, every way to ask; a picture and words for it."
    call = lambda *args: shell(monkeypatch, capsys, 'sagan_attention', runs/'run', *args)
    for out, args in (('a.png', ()), ('b.png', ('--part', 'D', '--layers', 'all', '--n', '2')), ('c.svg', ('--queries', '12,31', '0,0')),
                      ('d.png', ('--queries', 'grid', '--points', '5', '--classes', '1', '--layers', '8')), ('e.html', ('--n', '2'))):
        code, said, fault = call('--out', runs/out, *args)
        assert (code, fault) == (0, '') and (runs/out).stat().st_size > 10_000, (out, fault)
        assert 'query 1 at' in said and 'entropy' in said
    code, said, _ = call('--out', runs/'c.png', '--queries', '12,31', '0,0', '--n', '1', '--classes', '2_pillar')
    uses, asked = said.split('picture 1 (2_pillar)\n  query 1 at 12,31: ')                          # the verdict first
    assert uses.startswith('map 8:') and 'map 16: hardly used:' in uses and 'query 2 at 0,0: ' in asked    # six steps


def test_attention_refusals(runs, monkeypatch, capsys):
    "One clear line for each."
    shutil.copytree(runs/'run', runs/'bare', ignore=shutil.ignore_patterns('*.pt'))
    save_pretrained(Generator(32, 4, 3, 8, attn_at=(16,)), runs/'G.safetensors')
    save_pretrained(Discriminator(32, 4, 3, attn_at=(16,)), runs/'D.safetensors')
    run, out = runs/'run', ('--out', runs/'x.png')
    for args, words in (((runs/'none',), 'this generator has no attention layer'), ((run, '--queries', '12,40'), '12,40 is outside the picture'),
                        ((run, '--queries', '4,-1'), 'outside'), ((run, '--queries', 'x'), 'queries are auto, grid, or pixels'),
                        ((run, '--queries', '-1,3'), 'the query -1,3 is outside the picture'), ((run, '--queries=-1,3'), '-1,3 is outside the picture'),
                        ((run, '--queries', '4,3', '-1,-3'), '-1,-3 is outside the picture'), ((run, '--queries', '-1', '3'), 'queries are auto, grid, or pixels'),
                        ((runs/'none', '--part', 'D'), 'this discriminator has no attention layer'), ((runs/'bare',), 'no checkpoints'),
                        ((run, '--layers', '32'), 'no attention at 32 in this network; there is at 8, 16'), ((run, '--points', '0'), 'must lie in 1..'),
                        ((runs/'nowhere',), 'no such run'), ((run, '--part', 'd'), 'choose G or D'), ((run, '--n', '0'), 'n must lie in'),
                        ((runs/'D.safetensors', '--part', 'D'), 'with --data'), ((runs/'G.safetensors', '--part', 'D'), 'this is a Generator'),
                        ((run, '--out', runs/'x.txt'), 'must end in'), ((run, '--part', 'D', '--data', 'nowhere'), 'no file or folder')):
        code, said, fault = shell(monkeypatch, capsys, 'sagan_attention', *args, *(() if '--out' in args else out))
        assert (code, said) == (1, '') and words in fault and fault.count('\n') == 1, (args, said, fault)
    assert not (runs/'x.png').exists()
    assert shell(monkeypatch, capsys, 'sagan_attention', runs/'G.safetensors', *out)[0] == 0        # anybody's weights
    assert shell(monkeypatch, capsys, 'sagan_attention', runs/'D.safetensors', '--part', 'D', '--data', 'toy:3', *out)[0] == 0


def test_samples_of_every_kind(runs, monkeypatch, capsys):
    "Grids, walks and films; the first and last picture of a walk are the generator's own."
    call = lambda *args: shell(monkeypatch, capsys, 'sagan_sample', runs/'run', *args)
    for out, args in (('g.png', ()), ('t.png', ('--truncation', '.3')), ('z.png', ('--kind', 'z')), ('c.png', ('--kind', 'classes', '--classes', '0,2')),
                      ('z.gif', ('--kind', 'z')), ('c.gif', ('--kind', 'classes', '--n', '16')), ('f.gif', ('--kind', 'timelapse')), ('f.png', ('--kind', 'timelapse'))):
        code, said, fault = call('--out', runs/'samples'/out, *args)
        assert (code, fault) == (0, '') and str(runs/'samples'/out) in said, (out, fault)
    assert Image.open(runs/'samples'/'z.gif').n_frames == 14 and Image.open(runs/'samples'/'f.gif').n_frames == 2
    assert (runs/'samples'/'g.png').read_bytes() != (runs/'samples'/'t.png').read_bytes()
    for args, words in ((('--kind', 'film'), 'choose one of grid, z'), (('--out', 'a.gif'), 'grid does not move'), (('--kind', 'classes', '--classes', '1'), 'two classes'),
                        (('--truncation', '0'), 'greater than 0'), (('--truncation', 'nan'), 'greater than 0'), (('--n', '100000000'), '1..10000'), (('--steps', '1'), '2..1000'), (('--out', 'a.txt'), 'must end in')):
        code, said, fault = call(*args)
        assert (code, said) == (1, '') and words in fault and fault.count('\n') == 1, (args, fault)


@pytest.fixture(scope='module')
def page(runs):
    "The report of the run with attention, as a shell makes it; the domain classifier is trained for it."
    process = spawn('sagan_report', runs/'run', stderr=subprocess.PIPE)
    out, fault = process.communicate()
    assert process.returncode == 0 and str(runs/'run'/'report.html') in out.split(), fault
    return runs/'run'/'report.html'


NAMED = '''[...document.querySelectorAll(".rows")].filter(o => o.querySelector(".names span")).map(o => {
    const image = o.querySelector("img"), box = image.getBoundingClientRect(), spans = [...o.querySelectorAll(".names span[title]")]
    const middle = s => { const b = s.getBoundingClientRect(); return (b.top + b.bottom)/2 - box.top }
    const foot = image.alt.includes("over training") ? 14*box.height/image.naturalHeight : 0
    return {names: spans.map(s => s.textContent), middles: spans.map(middle), rows: box.height - foot} })'''


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [400, 1600])
def test_report_in_a_browser(page, width, dark, tab):
    "Every figure is there and has words, nothing is fetched, nothing complains, and the page is as wide as the window."
    tab.open(page, width=width, dark=dark)
    assert tab.faults == []
    images = tab.ask('[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt, i.closest(".static") !== null])')
    assert len(images) > 15 and all(o[0] and len(o[1]) > 10 for o in images), images
    assert tab.ask('[...document.querySelectorAll("figcaption")].every(c => c.textContent.length > 10)')
    assert tab.ask('document.documentElement.scrollWidth') <= width
    small = tab.ask('[...document.querySelectorAll("p, td, th, figcaption, a")].map(e => parseFloat(getComputedStyle(e).fontSize)).reduce((a, b) => Math.min(a, b))')
    assert small >= 14
    light = tab.ask('getComputedStyle(document.body).color')
    assert (sum(map(int, re.findall(r'\d+', light)[:3])) > 380) == dark                             # light letters on dark ground
    titles = tab.ask('[...document.querySelectorAll("nav a")].map(a => [a.textContent, document.querySelector(a.getAttribute("href")) !== null])')
    assert all(o[1] for o in titles) and {'Attention', 'Did it copy?', 'Metrics', 'Configuration'} <= {o[0] for o in titles}
    assert tab.ask('document.querySelectorAll("canvas").length') == 4                              # G and D, to click
    named = tab.ask(NAMED)
    assert [o['names'] for o in named].count(['0_disc', '1_ring', '2_pillar', '3_beam']) == 4 and ['trained', 'gamma = 0', 'difference'] in [o['names'] for o in named]
    for o in named:                                                                                # each name in the middle of its row
        pitch = o['rows']/len(o['names'])
        assert all(abs(y - (i + .5)*pitch) < .15*pitch for i, y in enumerate(o['middles'])), o


def test_nearest_real_pictures(page, runs, monkeypatch, capsys):
    "Eight in a row, the generated one first, a class beside each row; in words, how far. The help says so."
    seen = {}
    monkeypatch.setattr(cli, 'show_grid', lambda x, n, **named: seen.update(x=x, n=n, **named) or show_grid(x, n, **named))
    code, said, fault = shell(monkeypatch, capsys, 'sagan_sample', runs/'run', '--kind', 'neighbours', '--n', '17', '--classes', '1,3', '--out', runs/'n.png')
    assert (code, seen['n'], len(seen['x']), seen['rows']) == (0, 8, 24, ['1_ring', '3_beam', '1_ring']), fault
    words = ' '.join(said.split())                                                # a terminal wraps them
    assert '24 pictures of 2 classes' in words and 'Distance to the nearest of' in words and 'Copies would be near 0' in words
    assert 'of neighbours, one in eight is generated' in ' '.join(shell(monkeypatch, capsys, 'sagan_sample', '--help')[1].split())


class Means(torch.nn.Module):
    "Features that need no training."
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x): return torch.nn.functional.avg_pool2d(x.float()*self.one, 8).flatten(1), x.float().flatten(1)[:, :4]


def test_pictures_without_labels(runs, monkeypatch, capsys):
    "No classes: no row names, no walk between classes, and a page all the same; without its pictures, too."
    source = open_source('toy', res=32, unlabelled=True)
    cfg = replace(at_scale(PRESETS['t1_attn_8'], 'smoke'), n_classes=0, head='none', data='toy', data_id=source.fingerprint)
    train(cfg, source, runs/'bare_labels')
    for args in (('sagan_sample', '--kind', 'z'), ('sagan_sample',), ('sagan_attention',), ('sagan_attention', '--part', 'D')):
        code, said, fault = shell(monkeypatch, capsys, args[0], runs/'bare_labels', '--out', runs/'u.png', *args[1:])
        assert (code, fault) == (0, ''), (args, fault)
    assert shell(monkeypatch, capsys, 'sagan_sample', runs/'bare_labels', '--kind', 'classes')[0] == 1
    text = report(runs/'bare_labels', features=Features(Means(), 'means')).read_text()
    assert 'Walks through' not in text and 'Did it copy?' in text and 'Discriminator, on real pictures' in text
    gone = from_json((runs/'bare_labels'/'config.json').read_text())
    state = torch.load(next((runs/'bare_labels'/'checkpoints').glob('*4.pt')), weights_only=True)
    torch.save(dict(state, config=to_json(replace(gone, data='gone'))), runs/'bare_labels'/'checkpoints'/'step_0000004.pt')
    text = report(runs/'bare_labels').read_text()
    assert 'Did it copy?' not in text and 'The real pictures are not here' in text


HOSTILE = '<script>alert(1)</script>'


@pytest.fixture
def strange(tmp_path):
    "A run folder with a preset and classes as a stranger may call them, a line of an old log, and scores."
    class Place: state_dict = lambda self: dict(t=0)
    run = tmp_path/'run'
    (run/'checkpoints').mkdir(parents=True)
    cfg = replace(at_scale(PRESETS['t1_attn_16'], 'smoke'), preset=HOSTILE, data='/nowhere', n_classes=3, standing=0)
    save_checkpoint(make_gan(cfg), Place(), run/'checkpoints'/'step_0000001.pt')
    (run/'data.json').write_text(json.dumps(dict(classes=[HOSTILE, '$x_{$', '</script><b>'])))
    (run/'metrics.json').write_text(json.dumps([dict(metric=HOSTILE, value=1.5, real=HOSTILE, features=HOSTILE)]))
    line = dict(t=1, loss_d=1., loss_g=1., d_real=1., d_fake=-1., usage_G={'16': [.1, .2, 7.5, 12.]}, usage_D={'16': [.1, .0001]})
    (run/'log.jsonl').write_text(json.dumps(line) + '\n')
    return run


def test_a_stranger_s_names_are_text(strange, tab):
    "On the page, in its title and in the data of its script; the summary reads the old log."
    path = report(strange)
    assert '<script>alert' not in path.read_text() and '</script><b>' not in path.read_text()
    tab.open(path)
    assert tab.faults == [] and HOSTILE in tab.ask('document.title') and HOSTILE in tab.ask('document.querySelector("h1").textContent')
    summary = tab.ask('document.querySelector(".summary").textContent')
    assert 'G, map 16: used, it adds 20.0%' in summary and 'D, map 16: hardly used' in summary and f'{HOSTILE} 1.5 (real pictures {HOSTILE})' in summary


@pytest.mark.parametrize('content', ['{', '3', '[1]', '[{"metric": "x"}]'])
def test_damaged_scores_are_named(strange, content):
    (strange/'metrics.json').write_text(content)
    assert report(strange).read_text().count('metrics.json is damaged') == 2


@pytest.mark.parametrize('names', [['$5_$10', '$$'], ['$x_{$', 'a']])
def test_dollars_in_names_are_dollars(names, tmp_path):
    maps = attention_maps(mirror_generator('paper'), torch.zeros(2, 4), torch.tensor([0, 1]))
    for i, fig in enumerate((show_grid(torch.zeros(2, 3, 8, 8), 1, rows=names, title=names[0]), show_attention(maps, names=names))):
        said = [o.get_text() for ax in fig.axes for o in (*ax.get_yticklabels(), ax.yaxis.label)]
        assert all(any(name in o for o in said) for name in names)
        assert save_fig(fig, tmp_path/f'{i}.png').stat().st_size > 1000


def test_report_refusals(runs, monkeypatch, capsys):
    (runs/'empty').mkdir()
    for run, words in ((runs/'nowhere', 'no such run folder'), (runs/'empty', 'no checkpoints'), (runs/'run'/'config.json', 'no such run folder')):
        code, said, fault = shell(monkeypatch, capsys, 'sagan_report', run)
        assert (code, said) == (1, '') and words in fault and fault.count('\n') == 1, fault
    for out in (runs/'page.png', runs):
        code, said, fault = shell(monkeypatch, capsys, 'sagan_report', runs/'run', '--out', out)
        assert (code, said) == (1, '') and 'ends in .html' in fault
