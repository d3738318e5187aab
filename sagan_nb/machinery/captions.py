"Serves chapter 00: in Jupyter, the caption of a figure below it."
import re
import sys


def caption_of(
    source:str,               # of a cell
)->str:                       # '' where it has none
    "Read the caption off the directive `#| fig-cap`."
    found = re.search(r'(?m)^#\| *fig-cap: *"?(.*?)"? *$', source or '')
    return found[1] if found else ''


def show_caption(
    result,                   # IPython's ExecutionResult of the cell
):
    "Show the caption of the cell that was run, unless it failed."
    from IPython.display import Markdown, display
    if result.success and (text := caption_of(result.info.raw_cell)): display(Markdown(text))


def show_captions():
    "From now on, where a reader runs cells in Jupyter, show the caption of each that has one. Elsewhere, do nothing."
    if 'ipykernel' not in sys.modules: return
    from IPython import get_ipython
    shell = get_ipython()
    if not shell or show_caption in shell.events.callbacks['post_run_cell']: return
    shell.events.register('post_run_cell', show_caption)
