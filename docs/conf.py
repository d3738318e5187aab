"How Sphinx shows the site. Its sources are made by tools/site/docs.py, which also calls it: `make docs`."
import os
import re
import sys
from configparser import ConfigParser
from html import escape, unescape
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
config = ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini', encoding='utf-8')
facts = config['DEFAULT']

project, author, copyright, version = facts['lib_name'], facts['author'], facts['copyright'], facts['version']
language = 'en'
extensions = ['myst_nb', 'sphinx_copybutton', 'sphinx.ext.viewcode', 'sphinx.ext.mathjax']
source_suffix = {'.ipynb': 'myst-nb', '.md': 'myst-nb'}
nb_execution_mode = 'off'                       # what is shown is what the tests stored
nb_merge_streams = True
nb_render_markdown_format = 'myst'               # tables in what a cell displays, too
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist', 'fieldlist', 'attrs_inline', 'attrs_block']
myst_heading_anchors = 3
nitpicky = True
nitpick_ignore_regex = [('py:class', r'(torch|nn|np|plt|stats|argparse)\..*|Tensor|Path|Figure|Field|optional')]    # other people's: no network here
smartquotes = False                             # quotes and dashes are code as often as prose
python_maximum_signature_line_length = 60
toc_object_entries = False
viewcode_line_numbers = True
viewcode_follow_imported_members = False         # would import the package

mathjax_path = 'mathjax/tex-chtml-full.js'      # copied from the package sphinx-mathjax-offline by tools/site/docs.py
mathjax3_config = dict(options=dict(enableMenu=False), chtml=dict(displayAlign='left', displayIndent='1em'))

html_theme, html_title = 'furo', facts['title']
html_static_path = [os.environ.get('DOCS_STATIC', '_static')]
html_css_files, html_js_files = ['book.css'], ['fold.js']
html_favicon = '_static/favicon.svg'
html_search_scorer = str(ROOT/'docs'/'scorer.js')     # the ways in come first
html_baseurl = facts['doc_host'] + facts['doc_baseurl'] if facts['doc_host'] else ''
html_show_sourcelink = html_copy_source = False
html_show_sphinx = html_domain_indices = False
html_show_search_summary = False                # a summary is fetched, which a browser refuses for files
html_theme_options = dict(navigation_with_keys=False)        # the arrow keys move pixels in the pictures, and tables sideways
if facts['git_url']: html_theme_options['footer_icons'] = [dict(name='Source', url=facts['git_url'], html='Source', class_='')]
pygments_style, pygments_dark_style = 'a11y-high-contrast-light', 'a11y-high-contrast-dark'
copybutton_exclude = '.linenos, .gp, .go'


def read_source(app, modname):
    "Source pages are read from the file: the package and torch need not be imported."
    path = ROOT.joinpath(*modname.split('.')).with_suffix('.py')
    analyzer = ModuleAnalyzer.for_file(path, modname)
    analyzer.find_tags()
    return analyzer.code, analyzer.tags


HOME_TITLE = 'Self-Attention GAN, as a book that runs (sagan_nb)'
CARDS = ('paper_map', 'paper_vs_code')           # pages with tables that become cards on a phone


def words(html): return ' '.join(unescape(re.sub('<[^>]+>', '', html)).split())


def description(body):
    "The first paragraph of a page, at most 160 characters."
    text = next((t for o in re.findall(r'(?s)<p\b[^>]*>(.*?)</p>', body) if len(t := words(o)) > 20), '')
    return text if len(text) <= 160 else text[:158].rsplit(' ', 1)[0] + ' …'


def sections(toc):
    "(link, title) of the sections of a page, from its table of contents: those of the second level."
    depth = 0
    for tag, link, title in re.findall(r'(?s)<(/?ul)>|<a class="reference internal" href="(#[^"]*)">(.*?)</a>', toc):
        depth += {'ul': 1, '/ul': -1}.get(tag, 0)
        if link and depth == 2: yield link, title


def contents(body, toc):
    "The page with a list of its sections under the title, for windows that have no room for one at the side."
    found = [*sections(toc)]
    if len(found) < 3: return body
    rows = ''.join(f'<li><a href="{link}">{title}</a></li>' for link, title in found)
    nav = f'<nav class="sections" aria-label="Sections of this page"><p>On this page</p><ul>{rows}</ul></nav>'
    after = '</p>' if '<p class="chapter-line">' in body else '</h1>'
    at = body.index(after, body.find('<p class="chapter-line">') if after == '</p>' else 0) + len(after)
    return body[:at] + nav + body[at:]


def labelled(body):
    "Tables whose cells say which column they belong to, so that a phone can show rows as cards."
    def table(m):
        names = [words(o) for o in re.findall(r'(?s)<th\b[^>]*>(.*?)</th>', m[0])]
        def row(r):
            labels = iter(names)
            return re.sub('<td', lambda _: f'<td data-label="{escape(next(labels, ""))}"', r[0])
        return re.sub(r'(?s)<tr\b.*?</tr>', row, m[0]).replace('class="docutils', 'class="cards docutils', 1)
    return re.sub(r'(?s)<table\b.*?</table>', table, body)


def page(app, name, template, context, doctree):
    "What a page gets on top of the theme: a description, its sections, cards in place of wide tables."
    body = context['body'] = re.sub(r'(</strong>|</(?:code|a)>\)) -- ', r'\1: ', context.get('body', ''))       # a parameter and its meaning
    if name in CARDS: context['body'] = body = labelled(body)
    about = escape(description(body) or facts['description'])
    title = HOME_TITLE if name == 'index' else words(context.get('title', '')) + ' - ' + facts['title']
    tags = [f'<meta name="description" content="{about}">', f'<meta property="og:title" content="{escape(title)}">',
            f'<meta property="og:description" content="{about}">', '<meta property="og:type" content="book">']
    if html_baseurl: tags.append(f'<meta property="og:image" content="{html_baseurl.rstrip("/")}/_static/look.png">')
    if name == '404' and html_baseurl: tags.insert(0, f'<base href="{html_baseurl.rstrip("/")}/">')          # it is shown at any address
    context['metatags'] = context.get('metatags', '') + '\n'.join(tags)
    if name == 'index':
        context['furo_hide_toc'], context['docstitle'], context['title'] = True, None, HOME_TITLE
    elif doctree is not None: context['body'] = contents(body, context.get('toc', ''))


def setup(app):
    app.connect('viewcode-find-source', read_source)
    app.connect('html-page-context', page, priority=900)             # after the theme's own
