"""The site, built as `make docs` builds it and driven in a headless browser from files, without a server.

What a check must find is planted, too (`test_planted_*`), so that none of them can pass by seeing nothing.
"""
import io
import json
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from PIL import Image

from tools.site.docs import WAYS_IN, chapters, page_of, sentences

ROOT = Path(__file__).resolve().parents[1]


def processor_seconds():
    "Of processes that this one started and that have ended: what else the machine does takes no part in it."
    used = os.times()
    return used.children_user + used.children_system


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The folder of the built site; warnings are errors."
    out, began = tmp_path_factory.mktemp('site'), processor_seconds()
    done = subprocess.run([sys.executable, '-m', 'tools.site.docs', '--out', out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert processor_seconds() - began < 180, 'the build takes more than three minutes of a core'
    return out/'html'


def pages(site): return sorted(p for p in site.rglob('*.html') if p.name != 'planted.html')


# What is looked at in the browser: each piece of script returns a list of faults.

MATH = r"""() => [...document.querySelectorAll('.math')].filter(o => !o.parentElement.closest('.math')).flatMap(o => {
    const set = o.querySelectorAll('mjx-container'), text = o.textContent.slice(0, 60)
    if (!set.length) return ['left as text: ' + text]
    if (o.querySelector('[data-mjx-error]')) return ['error: ' + o.querySelector('[data-mjx-error]').dataset.mjxError]
    if ([...o.querySelectorAll('mjx-mtext')].some(t => /red/.test(t.getAttribute('style') || ''))) return ['unknown macro: ' + text]
    return [] })"""

PICTURES = """() => [...document.querySelectorAll('img, svg[role=img]')].filter(o => !(o.getAttribute('alt') || o.getAttribute('aria-label') || '').trim()
    || (o.getAttribute('alt') || o.getAttribute('aria-label')).length < 20).map(o => o.outerHTML.slice(0, 120))"""

WIDTH = """() => { const frames = [document.documentElement, ...document.querySelectorAll('body, .main, .content, .article-container, article')]
    const boxed = e => { for (let p = e.parentElement; !frames.includes(p); p = p.parentElement) if (getComputedStyle(p).overflowX != 'visible') return true }
    const wide = [...document.querySelectorAll('.article-container *')].filter(e => e.getBoundingClientRect().right > innerWidth - 15 && !boxed(e))
    return frames.filter(o => o.scrollWidth > o.clientWidth + 1).map(o => `${o.tagName}.${o.className}: ${o.scrollWidth} px in ${o.clientWidth}`).concat(
        wide.slice(-2).map(e => e.outerHTML.slice(0, 120))) }"""

CODE = """() => [...document.querySelectorAll('.article-container pre')].filter(o => o.scrollWidth > o.clientWidth + 1
    && Math.max(...o.textContent.split('\\n').map(l => l.length)) <= 120).map(o => `${o.scrollWidth} px of code in ${o.clientWidth}`)"""

TABLES = """() => [...document.querySelectorAll('.article-container table')].filter(o => o.checkVisibility() && !o.closest('details:not([open])')
    && o.scrollWidth > o.clientWidth + 1).map(o => `a table of ${o.rows[0].cells.length} columns: ${o.scrollWidth} px in ${o.clientWidth}`)"""

CONTENTS = """() => { const titles = [...document.querySelectorAll('article > section > section > h2')].filter(o => o.checkVisibility()); if (titles.length < 3) return []
    const seen = [...document.querySelectorAll('nav.sections a, .toc-drawer a')].filter(o => { const b = o.getBoundingClientRect()
        return o.checkVisibility() && b.width > 0 && b.left >= 0 && b.right <= innerWidth }).map(o => o.hash)
    return document.title.startsWith('Self-Attention GAN') ? [] : titles.map(o => '#' + o.parentElement.id).filter(o => !seen.includes(o)) }"""

CAPTIONS = """() => [...document.querySelectorAll('figcaption')].flatMap(o => { const size = e => parseFloat(getComputedStyle(e).fontSize)
    const first = o.querySelector('p'), rest = o.querySelector('.legend p'), text = first ? first.textContent : ''
    if (!/^Figure \\d+\\.\\d+\\. ./.test(text)) return ['no number: ' + text.slice(0, 60)]
    return rest && size(rest) >= size(first) ? ['the rest is as large as the finding: ' + text.slice(0, 60)] : [] })"""

LETTERS = """() => Promise.all([...document.querySelectorAll('.article-container img[src$=".svg"]')].map(o => o.decode().then(
    () => o.width/o.naturalWidth*1.25*12))).then(all => all.filter(o => o < 11).map(o => `letters of a drawing are ${o} px high`))"""

SHRUNK = """() => Promise.all([...document.querySelectorAll('figure > img')].map(o => o.decode().then(() => [o.getBoundingClientRect().width,
    parseFloat(o.style.width) || o.naturalWidth])))
    .then(all => all.filter(([shown, whole]) => shown < .95*whole).map(([shown, whole]) => `a figure of ${whole} px is shown in ${shown}`))"""

CONTRAST = """() => {
    const rgba = s => { const v = s.match(/[\\d.]+/g).map(Number); return [v[0], v[1], v[2], v.length > 3 ? v[3] : 1] }
    const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3])).concat(1)
    const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b }
    const once = f => { const known = new Map(); return o => known.has(o) ? known.get(o) : known.set(o, f(o)).get(o) }
    const ground = once(o => o ? over(rgba(getComputedStyle(o).backgroundColor), ground(o.parentElement)) : [255, 255, 255, 1])
    const alpha = once(o => o ? getComputedStyle(o).opacity*alpha(o.parentElement) : 1)
    const seen = new Map(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (walk.nextNode()) {
        const o = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim()
        if (!text || o.closest('script, style, noscript, mjx-container, svg') || !o.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue
        const box = o.getBoundingClientRect(); if (box.width < 2 || box.height < 2) continue
        const b = ground(o), ink = rgba(getComputedStyle(o).color)
        const [x, y] = [light(over([ink[0], ink[1], ink[2], ink[3]*alpha(o)], b)), light(b)], ratio = (Math.max(x, y) + .05)/(Math.min(x, y) + .05)
        const key = o.tagName + '.' + o.className; if (ratio < 4.5 && !seen.has(key)) seen.set(key, `${ratio.toFixed(2)} ${key}: ${text.slice(0, 40)}`) }
    return [...seen.values()] }"""


def look(tab):
    "All faults of the page that is open, by kind."
    page, found = tab.page, {}
    page.emulate_media(color_scheme='light')
    found['math'], found['pictures'], found['contrast, light'] = map(page.evaluate, (MATH, PICTURES, CONTRAST))
    page.emulate_media(color_scheme='dark')
    found['contrast, dark'] = page.evaluate(CONTRAST)
    page.emulate_media(color_scheme='light')
    page.set_viewport_size(dict(width=400, height=800))
    found['width'], found['drawings'], found['figures'] = map(page.evaluate, (WIDTH, LETTERS, SHRUNK))
    page.set_viewport_size(dict(width=1280, height=800))
    found['1280 px'] = [o for script in (WIDTH, CODE, TABLES, CONTENTS) for o in page.evaluate(script)]
    found['captions'] = page.evaluate(CAPTIONS)
    page.set_viewport_size(dict(width=1600, height=1000))
    found['wide window'] = page.evaluate(WIDTH) + page.evaluate(CODE)
    found['browser'] = list(tab.faults)
    return {k: v for k, v in found.items() if v}


class Links(HTMLParser):
    "Links and anchors of a page."
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], {'', 'top'}
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        self.links += [attrs[k] for k in ('href', 'src') if attrs.get(k) and tag != 'base']


def dead_links(folder):
    "Links inside a site that lead nowhere, as (page, link)."
    read = {p.resolve(): Links(p) for p in folder.rglob('*.html')}
    for path, page in read.items():
        for link in page.links:
            if re.match(r'[a-z]+:|//', link): continue
            name, _, anchor = link.partition('#')
            target = (path.parent/unquote(name.split('?')[0])).resolve() if name else path
            known = read[target].anchors if target in read else None
            if not target.exists() or known is not None and unquote(anchor) not in known: yield path.name, link


def test_links_lead_somewhere(site):
    assert [*dead_links(site)] == []


def test_every_notebook_is_a_page_in_order(site):
    names = [name for _, name, _ in chapters()]
    home = (site/'index.html').read_text(encoding='utf-8')
    listed = re.findall(r'toctree-l1"><a class="reference internal" href="(\w+)\.html', home)
    assert [o for o in listed if o in names] == names
    for before, after in zip(names, names[1:]):
        assert f'<a class="next-page" href="{after}.html">' in (site/f'{before}.html').read_text(encoding='utf-8')
        assert f'<a class="prev-page" href="{before}.html">' in (site/f'{after}.html').read_text(encoding='utf-8')


def test_names_and_sources_are_linked(site):
    text = (site/'self_attention.html').read_text(encoding='utf-8')
    assert 'href="_modules/sagan_nb/self_attention.html#SelfAttention"' in text                          # an entry, to its lines
    assert re.search(r'href="#sagan_nb.self_attention.attention_map"[^>]*>(<span[^>]*>)?<code', text)     # a name, to its entry
    assert 'C, channels of the map' in text and 'keys and queries have C/k channels' in text       # docments
    assert re.search(r'href="spectral_norm.html#sagan_nb.spectral_norm.\w+"', (site/'train.html').read_text(encoding='utf-8'))


def unlinked(path, names):
    "Backticked names of a page that lead somewhere, and are no link; headings, code and entries of the reference aside."
    text = path.read_text(encoding='utf-8')
    text = re.sub(r'(?s)<(a|h[1-6]|pre|dt)\b.*?</\1>', '', text[text.index('<article role="main"'):text.index('</article>')])
    for o in re.findall(r'(?s)<code class="[^"]*literal[^"]*">(.*?)</code>', text):
        o = unescape(re.sub(r'<[^>]+>', '', o))
        if names.target(o, f'sagan_nb.{path.stem}'): yield o


def test_backticked_names_are_linked(site, tmp_path):
    from tools.site.api import Names, book
    names = Names(book())
    room = 'sagan_nb.machinery.machine'
    assert [names.target(o) for o in (room, f'{room}.keep_memory', 'keep_memory()', f'{room}.none', 'torch.nn.utils.prune')] == [room, *[f'{room}.keep_memory']*2, None, None]
    assert {p.name: found for p in sorted(site.glob('*.html')) if (found := [*unlinked(p, names)])} == {}
    text = (site/'tour.html').read_text(encoding='utf-8')
    (tmp_path/'tour.html').write_text(text.replace('</article>', '<code class="literal">hinge_d</code></article>', 1), encoding='utf-8')
    assert [*unlinked(tmp_path/'tour.html', names)] == ['hinge_d']


def test_equations_have_numbers_and_figures_captions(site):
    for _, name, path in chapters():
        text, cells = (site/f'{name}.html').read_text(encoding='utf-8'), json.loads(path.read_text(encoding='utf-8'))['cells']
        prose = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
        shown = re.findall(r'(?s)<div class="math notranslate[^>]*>(.*?)</div>', text)
        assert all(r'\tag{' in o for o in shown), name
        assert len(shown) == len(re.findall(r'(?s)\$\$.+?\$\$', prose)), name
        captions = re.findall(r'(?s)<figcaption>(.*?)</figcaption>', text)
        assert len(captions) == sum('#| fig-cap' in ''.join(c['source']) for c in cells) and all('Figure ' in o for o in captions), name


def test_the_readme_of_a_folder_is_not_the_home_page():
    assert page_of('../README.md#cite') == 'index.ipynb#cite' and page_of('README.md') == 'index.ipynb'
    assert page_of('../results/README.md#unfinished') is None and page_of('results/cifar10/README.md') is None


def test_links_of_the_sources_lead_somewhere():
    "Where notebooks and docs are read as files, too: on a code host."
    for path in [*(ROOT/'docs').glob('*.md'), *(ROOT/'nbs').glob('*.ipynb'), ROOT/'README.md', ROOT/'CONTRIBUTING.md']:
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.ipynb': text = '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
        found = re.findall(r'\]\(([^)\s]+)\)', re.sub(r'(?ms)^ *```.*?^ *```|`[^`\n]*`', '', text))
        assert [o for o in found if not re.match('[a-z]+:|#', o) and not (path.parent/o.partition('#')[0]).exists()] == [], path.name


def test_nothing_comes_from_elsewhere(site):
    for path in pages(site):
        outside = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', path.read_text(encoding='utf-8'))
        assert not outside, (path.name, outside)


def test_no_markdown_is_left(site):
    "A table, a heading or a fence that was not understood would stand there as text."
    for path in pages(site):
        text = re.sub(r'(?s)<(script|style|pre|code)\b.*?</\1>', '', path.read_text(encoding='utf-8'))
        assert not re.search(r'\|-{3}|>\s*#{1,4} |```|\]\(|\{\.', re.sub(r'(?s)<head>.*?</head>', '', text)), path.name


def test_links_to_colab_need_an_address(tmp_path, site):
    from tools.site import docs
    assert not any(re.search(r'<a [^>]*href="https://colab', p.read_text(encoding='utf-8')) for p in site.glob('*.html'))
    docs.sources(tmp_path, dict(docs.settings(), git_url='https://github.com/somebody/sagan_nb'))
    for number, name, path in [*docs.chapters(), ('', 'index', ROOT/'nbs'/'index.ipynb')]:
        there = f'https://colab.research.google.com/github/somebody/sagan_nb/blob/main/nbs/{path.name}'
        assert there in (tmp_path/f'{name}.ipynb').read_text(encoding='utf-8')
    assert 'sagan_nb/blob/main/sagan_nb/networks.py#L' in (tmp_path/'networks.ipynb').read_text(encoding='utf-8')


def test_every_page(site, tab):
    """No error, no request, formulas set, pictures described, text readable in both themes, no sideways scrolling at 400 px, where figures
    keep their size, and so their letters. At 1280 px code and tables are whole and the sections of the page in sight; code is whole at 1600; captions have a number and the finding first."""
    faults = {}
    for path in pages(site):
        if found := look(tab.open(path)): faults[path.name] = found
    assert not faults, json.dumps(faults, indent=1)


def test_search_finds_a_class(site, tab):
    tab.open(site/'search.html', '?q=SelfAttention')
    tab.page.wait_for_selector('#search-results ul.search li a')
    found = tab.page.eval_on_selector_all('#search-results ul.search li a', 'all => all.map(o => o.getAttribute("href"))')
    assert any(o.startswith('self_attention.html#sagan_nb.self_attention.SelfAttention') for o in found), found
    assert tab.faults == []
    tab.open(site/'search.html', '?q=' + 'zq'*4)                       # the tests are pages, too: no page holds this word
    tab.page.wait_for_function('document.querySelector("#search-results").textContent.includes("did not match")')


@pytest.mark.parametrize('words', ['install', 'start.py', 'metrics', 'reproduce'])
def test_search_finds_the_ways_in_first(site, tab, words):
    tab.open(site/'search.html', f'?q={words}')
    tab.page.wait_for_selector('#search-results ul.search li a')
    tab.page.wait_for_function('document.querySelector("#search-results p.search-summary").textContent.includes("found")')
    found = tab.page.eval_on_selector_all('#search-results ul.search li a', 'all => all.map(o => o.getAttribute("href").split(/[.#?]/)[0])')
    assert found[0] in {*WAYS_IN, 'chapters', 'weights', 'glossary'}, found[:8]


@pytest.mark.parametrize('name', ['metrics', 'ablation', 'interop'])
def test_long_chapters_fit_twenty_screens(site, tab, name):
    "Of 1280 x 800, folded as they are opened. The longest is longer than that with all its folds open, so the folds are seen to count."
    tab.open(site/f'{name}.html', width=1280, height=800)
    screens = lambda: tab.page.evaluate('document.body.scrollHeight')/800
    assert screens() <= 20
    tab.page.evaluate('document.querySelectorAll("details").forEach(o => o.open = true)')
    if name == 'ablation': assert screens() > 20


def test_cells_are_folded_under_what_they_do(site):
    "Where `#| fold` says so; what the cell shows stays in sight, but where it says `fold: all`."
    for name, path in (('metrics', ROOT/'nbs'/'10_metrics.ipynb'), ('ablation', ROOT/'nbs'/'12_ablation.ipynb')):
        text = (site/f'{name}.html').read_text(encoding='utf-8')
        asked = sum('#| fold' in ''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'])
        folds = re.findall(r'(?s)<details class="admonition hide above-input">.*?<p class="collapsed admonition-title">(.*?)</p>(.*?)</details>', text)
        words = [unescape(o) for o, _ in folds if o != 'Imports']
        assert len(words) == asked > 10 and {*words} >= {'Code of the figure', 'Code of the check'}
        assert all(('<img' in inside) == (words == 'The figure, and its code') for words, inside in folds)
        assert not any('cell_output' in inside for words, inside in folds if words != 'The figure, and its code')
    assert 'Code: measured_alike, verdict' in words and 'Code: holm' not in words


def test_letters_of_figures_are_readable():
    "No letter is asked for at less than 8 points; pages show figures as large as they are stored, at 90 dots an inch or more."
    files = [*(ROOT/'nbs').glob('*.ipynb'), *(ROOT/'sagan_nb').rglob('*.py')]
    asked = {p.name: re.findall(r'(?:font|label|title)size\W{1,4}([\d.]+)', p.read_text(encoding='utf-8')) for p in files}
    assert sum(map(len, asked.values())) > 30
    assert {name: small for name, sizes in asked.items() if (small := [o for o in sizes if float(o) < 8])} == {}


def luminance(rgb):
    lin = [v/12.92 if v <= .03928 else ((v + .055)/1.055)**2.4 for v in (c/255 for c in rgb)]
    return .2126*lin[0] + .7152*lin[1] + .0722*lin[2]


def seen_in(shot):
    "Ground of a picture (its commonest colour), and the best contrast with it of a colour that covers a thousandth of it."
    image = Image.open(io.BytesIO(shot)).convert('RGB')
    count = sorted(image.getcolors(1 << 24), reverse=True)
    ground = luminance(count[0][1])
    ratio = lambda c: (max(luminance(c), ground) + .05)/(min(luminance(c), ground) + .05)
    return ground, max(ratio(c) for n, c in count if n >= image.width*image.height/1000)


DRAWN = 'article img.chart, article img[src$=".svg"]'


def test_drawings_are_dark_in_the_dark(site, tab):
    "Lines on white become lines on dark, and can be read; so do drawings."
    seen = 0
    for path in pages(site):
        if not re.search(r'class="[^"]*chart|<img[^>]*\.svg"', path.read_text(encoding='utf-8')): continue
        for dark in (False, True):
            tab.open(path, dark=dark)
            tab.page.evaluate('document.querySelectorAll("details").forEach(o => o.open = true)')       # some figures are folded
            for o in tab.page.query_selector_all(DRAWN):
                ground, contrast = seen_in(o.screenshot())
                assert (ground < .05 if dark else ground > .9) and contrast > 4.5, (path.name, o.get_attribute('alt')[:60], dark, ground, contrast)
                seen += 1
    assert seen > 40


def test_a_white_box_is_seen(site, tab):
    text, path = (site/'losses.html').read_text(encoding='utf-8'), site/'planted.html'
    path.write_text(text.replace('</head>', '<style>img.chart {filter: none !important}</style></head>', 1), encoding='utf-8')
    tab.open(path, dark=True)
    ground, _ = seen_in(tab.page.query_selector(DRAWN).screenshot())
    path.unlink()
    assert ground > .9


def test_home_page_opens_with_the_generator(site, tab):
    "At 1280 x 800, without scrolling: the generator, to draw with and to click on; cards; how far. A click, a class and other noise each change it."
    tab.open(site/'index.html', width=1280, height=800)
    low = lambda selector: tab.page.eval_on_selector(selector, 'o => o.getBoundingClientRect().bottom')
    for selector in ('.sagan-live canvas', '.sagan-live select', '.cards', '.how-far'): assert low(selector) <= 800, (selector, low(selector))
    assert {o.get_attribute('href') for o in tab.page.query_selector_all('.card')} >= {f'{o}.html' for o in ('tour', 'run', 'use', 'reproduce')}
    assert tab.page.query_selector('.how-far a[href^="paper_map.html"]') and tab.page.title().startswith('Self-Attention GAN')
    said = lambda: tab.page.eval_on_selector('.sagan-live output', 'o => o.value')
    start = said()
    assert start.startswith('pixel 11,9 looks most at 2') and len(tab.page.query_selector_all('.sagan-live')) == len(tab.page.query_selector_all('select')) == 1
    tab.page.click('.sagan-live canvas', position=dict(x=30, y=300))
    heard = [start, said()]
    tab.page.select_option('.sagan-live select', '2')
    heard.append(said())
    tab.page.fill('.sagan-live input', '0.6')
    assert len({*heard, said()}) == 4 and tab.faults == []


def test_map_counts_its_states(site):
    text = (site/'paper_map.html').read_text(encoding='utf-8')
    legend = text.index('<section id="equations">')
    said = dict((word, int(n)) for n, word in re.findall(r'(\d+) (checked|smaller|not run|at paper scale)</span>', text[:legend]))
    badges = re.findall(r'<span class="badge \w+">([^<]+)</span>', text[legend:])
    assert said == {word: badges.count(word) for word in {*badges}} and sum(said.values()) == len(badges) > 40
    home = (site/'index.html').read_text(encoding='utf-8')
    listed = re.findall(r'toctree-l1"><a class="reference internal" href="(\w+)\.html', home)
    assert listed.index('paper_map') < listed.index('core')


def test_every_page_has_a_description(site):
    for path in site.glob('*.html'):
        if path.name in ('genindex.html', 'search.html', 'planted.html'): continue
        about = re.findall(r'<meta name="description" content="([^"]*)">', text := path.read_text(encoding='utf-8'))
        assert len(about) == 1 and 20 <= len(unescape(about[0])) <= 161 and 'favicon.svg' in text, path.name
    assert 'This page is not here' in (site/'404.html').read_text(encoding='utf-8')


def test_import_cells_are_folded(site):
    for _, name, path in chapters():
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        only = [c for c in cells if c['cell_type'] == 'code' and not re.search(r'(?m)^#\| *hide\b', ''.join(c['source']))
                and (code := re.sub(r'(?m)^#.*\n?', '', ''.join(c['source'])).strip())
                and re.fullmatch(r'(?:(?:from|import) (?:[^\n(]+|[^(\n]+\([^)]*\)[^\n]*|[^\n]+\\\n[^\n]+)\s*)+', code)]
        assert (site/f'{name}.html').read_text(encoding='utf-8').count('<details class="admonition hide') >= len(only) > 0, name


def test_captions_are_split():
    assert sentences('**Figure 1.1.** It works. If not, it would not.') == ('**Figure 1.1.** It works.', 'If not, it would not.')
    assert sentences('**Figure 1.2.** A rate of 0.5 in `a. B` is best. "So" it is.') == ('**Figure 1.2.** A rate of 0.5 in `a. B` is best.', '"So" it is.')
    assert sentences('**Figure 1.3.** No end') == ('**Figure 1.3.** No end', '')


def test_first_screens_and_credit():
    "README is short, opens with a picture, and links what it stands on; one version everywhere."
    readme, refs = ((ROOT/o).read_text(encoding='utf-8') for o in ('README.md', 'docs/references.md'))
    assert len(readme.splitlines()) <= 110 and '![' in '\n'.join(readme.splitlines()[:8]) and 'python3 start.py' in readme
    for text in (readme, refs):
        for link in ('arxiv.org/abs/1805.08318', 'brain-research/self-attention-gan', 'ajbrock/BigGAN-PyTorch', 'POSTECH-CVLab/PyTorch-StudioGAN',
                     'toshas/torch-fidelity'): assert link in text, link
    cite = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    version = re.search(r'(?m)^version = (.+)$', (ROOT/'settings.ini').read_text(encoding='utf-8'))[1]
    assert cite['version'] == version and f'version {version}' in refs
    assert cite['references'][0]['authors'][0] == {'family-names': 'Zhang', 'given-names': 'Han'} and refs.count('```bibtex') == 2


# Planted faults.

@pytest.fixture
def plant(site, tab):
    "Faults that a check finds in a page in which one piece was replaced."
    def replaced(old, new, page='self_attention.html'):
        text, path = (site/page).read_text(encoding='utf-8'), site/'planted.html'
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding='utf-8')
        return look(tab.open(path))
    yield replaced
    (site/'planted.html').unlink(missing_ok=True)


@pytest.mark.parametrize('tex, said', [(r'\begin{aligned} x', 'error'), (r'\nosuchmacro x', 'unknown macro'), (r'\frac{x}{y', 'left as text')],
                         ids=['missing end', 'undefined macro', 'unbalanced brace'])
def test_planted_formulas(plant, tex, said):
    found = plant(r'<article role="main"', rf'<div class="math notranslate">\[{tex}\]</div><article role="main"')
    assert any(o.startswith(said) for o in found['math']), found


@pytest.mark.parametrize('kind, html', [
    ('pictures', '<img src="_static/file.png">'), ('pictures', '<img src="_static/file.png" alt="file.png">'),
    ('width', '<div style="width: 900px">wide</div>'), ('contrast, light', '<p style="color: #999; background: #fff">grey</p>'),
    ('contrast, dark', '<p style="color: #555; background: none">grey</p>'), ('browser', '<script>console.error("no")</script>'),
    ('browser', '<script>nosuchname()</script>'), ('browser', '<img alt="away" src="https://example.com/a.png">'),
    ('browser', '<script src="_static/nosuchfile.js"></script>'), ('wide window', f'<pre style="overflow: auto; width: 300px">{"x"*120}</pre>'),
    ('1280 px', f'<pre style="overflow: auto; width: 300px">{"x"*120}</pre>'), ('1280 px', f'<table style="display: block; overflow-x: auto; width: 300px"><tr><td>{"x"*120}</td></tr></table>'),
    ('1280 px', '<style>nav.sections {display: none}</style>'), ('captions', '<figure><figcaption><p>No number.</p></figcaption></figure>'),
    ('captions', '<style>figcaption .legend p {font-size: 30px !important}</style>'),
    ('figures', '<style>figure > img {max-width: 100% !important}</style>'), ('drawings', '<img alt="a drawing that is too small" style="width: 300px" src="_images/docs-pictures-attention.svg">')])
def test_planted_faults(plant, kind, html):
    assert kind in plant('<article role="main"', f'{html}<article role="main"')


def test_planted_links(tmp_path):
    (tmp_path/'a.html').write_text('<p id="x"><a href="#x">1</a><a href="b.html#y">2</a><a href="#z">3</a><a href="c.html">4</a>')
    (tmp_path/'b.html').write_text('<a href="a.html#x">5</a><a href="a.html#no">6</a>')
    assert sorted(dead_links(tmp_path)) == [('a.html', '#z'), ('a.html', 'b.html#y'), ('a.html', 'c.html'), ('b.html', 'a.html#no')]
