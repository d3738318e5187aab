"How Sphinx shows the site. Its sources are made by tools/site/docs.py, which also calls it: `make docs`."
import os
import sys
from configparser import ConfigParser
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
nitpick_ignore_regex = [('py:class', r'(torch|nn|np|plt|stats)\..*|Tensor|Path|Figure|optional')]    # other people's: no network here
smartquotes = False                             # quotes and dashes are code as often as prose
python_maximum_signature_line_length = 60
toc_object_entries = False
viewcode_line_numbers = True
viewcode_follow_imported_members = False         # would import the package

mathjax_path = 'mathjax/tex-chtml-full.js'      # copied from the package sphinx-mathjax-offline by tools/site/docs.py
mathjax3_config = dict(options=dict(enableMenu=False), chtml=dict(displayAlign='left', displayIndent='1em'))

html_theme, html_title = 'furo', facts['title']
html_static_path = [os.environ.get('DOCS_STATIC', '_static')]
html_css_files = ['book.css']
html_baseurl = facts['doc_host'] + facts['doc_baseurl'] if facts['doc_host'] else ''
html_show_sourcelink = html_copy_source = False
html_show_sphinx = html_domain_indices = False
html_show_search_summary = False                # a summary is fetched, which a browser refuses for files
html_theme_options = dict(navigation_with_keys=True)
if facts['git_url']: html_theme_options['footer_icons'] = [dict(name='Source', url=facts['git_url'], html='Source', class_='')]
pygments_style, pygments_dark_style = 'a11y-high-contrast-light', 'a11y-high-contrast-dark'
copybutton_exclude = '.linenos, .gp, .go'


def read_source(app, modname):
    "Source pages are read from the file: the package and torch need not be imported."
    path = ROOT.joinpath(*modname.split('.')).with_suffix('.py')
    analyzer = ModuleAnalyzer.for_file(path, modname)
    analyzer.find_tags()
    return analyzer.code, analyzer.tags


def setup(app): app.connect('viewcode-find-source', read_source)
