"Serves chapters 11 and 15: pictures, figures, tables and the page to click, as HTML that needs no other file."
import base64
import hashlib
import html
import io
import json
import re
from importlib import resources

from torch import Tensor

from ..attention_maps import AttentionMaps, asked_of, describe_attention, show_attention
from ..core import grid_image, to_uint8


def asset(
    name:str,                 # of a file in assets/
)->str:                       # its text, without the last newline
    "Read a script or a style sheet."
    return (resources.files(__package__)/'assets'/name).read_text(encoding='utf-8').rstrip('\n')


WIDGET = ('<div id="@ID" class="sagan-look"><style>\n'
          + asset('look.css')
          + '</style><div class="static">@FALLBACK<p>To click on a pixel, let scripts run: '
          + 'in Jupyter, run the cell or trust the notebook.</p></div></div><script>'
          + asset('look.js')
          + '</script>')


def widget_data(
    maps:AttentionMaps,       # from `attention_maps`
    layer=None,               # name; None: the largest map
    names=(),                 # a name for each picture
    start=None,               # (row, column) of the pixel that is asked first; None: the middle
)->dict:                      # what the script needs, ready for JSON
    "Pictures as bytes, queries and keys as float32, all in base64."
    from matplotlib import colormaps, colors
    def pack(t): return base64.b64encode(t.contiguous().numpy().tobytes()).decode()
    o = maps.pick(layer)
    rgb = to_uint8(maps.pictures).permute(0, 2, 3, 1)
    pictures = [dict(rgb=pack(rgb[i]), q=pack(o.q[i].float()), k=pack(o.k[i].float()),
                     name=f'{i + 1} {names[i]}' if len(names) else f'picture {i + 1}') for i in range(len(rgb))]
    palette = [colors.to_hex(colormaps['inferno'](v/255)) for v in range(256)]
    at = None if start is None else divmod(o.location(start), o.shape[1])
    return dict(at=at, shape=o.shape, cell=o.cell, width=o.q.shape[-1], res=o.res, pictures=pictures, colors=palette)


def figure_tag(
    fig,                      # matplotlib Figure; it is closed
    alt:str,                  # what it shows, in words
    dpi:int=100,              # dots per inch
)->str:                       # an <img> with the figure in it
    "A figure as HTML that needs no other file."
    import matplotlib.pyplot as plt
    out = io.BytesIO()
    fig.savefig(out, dpi=dpi, format='png', pil_kwargs=dict(optimize=True))
    plt.close(fig)
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'


def widget_html(
    maps:AttentionMaps,       # from `attention_maps`
    layer=None,               # name; None: the largest map
    names=(),                 # a name for each picture
    queries='auto',           # of the static figure that stands in where no script runs
    fallback:str=None,        # HTML to stand in instead of that figure
    start=None,               # (row, column) of the pixel that is asked first; None: the middle
)->str:                       # HTML with its script, to put into a page
    "Click a pixel, see its map: computed in the page from queries and keys."
    data = json.dumps(widget_data(maps, layer, names, start)).replace('<', '\\u003c')
    if fallback is None:
        asked = [asked_of(queries, maps.pick(layer), i, 3) for i in range(len(maps.pictures))]
        alt = '. '.join(describe_attention(maps, i, q, layer).replace('\n', '. ') for i, q in enumerate(asked))
        fallback = figure_tag(show_attention(maps, asked, layers=[layer] if layer else None, names=names), alt)
    name = f'look-{hashlib.sha256(data.encode()).hexdigest()[:12]}'
    parts = dict(ID=name, FALLBACK=fallback, DATA=data)
    return re.sub('@(ID|FALLBACK|DATA)', lambda m: parts[m[1]], WIDGET)


def page(
    title:str,                # of the page
    body:str,                 # HTML
    style:str='',             # more CSS
)->str:                       # a whole page, without anything from elsewhere
    "HTML around a body, for small and wide screens, light and dark."
    head = (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">')
    style = f'<style>body {{font: 16px/1.5 sans-serif; margin: 1rem}} {style}</style>'
    return f'{head}{style}</head><body>{body}</body></html>'


def attention_widget(
    maps:AttentionMaps,       # from `attention_maps`
    layer=None,               # name; None: the largest map
    names=(),                 # a name for each picture
    start=None,               # (row, column) of the pixel that is asked first; None: the middle
):                            # IPython.display.HTML
    "The page for a notebook."
    from IPython.display import HTML
    return HTML(widget_html(maps, layer, names, start=start))


STYLE = '\n' + asset('page.css')


def figure_html(
    tag:str,                  # an <img>, or other HTML
    caption:str,              # what it shows, and what would look different if it were wrong
    wide:bool=False,          # may be scrolled sideways on a small screen
)->str:                       # HTML
    "A figure with its caption."
    if wide: tag = f'<div class=wide tabindex=0>{tag}</div>'
    return f'<figure>{tag}<figcaption>{html.escape(caption)}</figcaption></figure>'


def image_tag(
    data:bytes,               # of the file
    kind:str,                 # png or gif
    alt:str,                  # what it shows, in words
    widest:int,               # pixels on the screen
    least:int=0,              # pixels that it keeps on a small one, where it is scrolled
)->str:                       # an <img>
    "A file as part of the page, its pixels kept sharp."
    inside = base64.b64encode(data).decode()
    style = f'class=pixels style="max-width: {widest}px; min-width: {min(least, widest)}px"'
    return f'<img {style} alt="{html.escape(alt)}" src="data:image/{kind};base64,{inside}">'


def beside_names(
    tag:str,                  # an <img> of rows of pictures
    names:list,               # of the rows; [] where they have none
    foot:float=0,             # what lies below the rows, in heights of a row
)->str:                       # HTML, to be scrolled sideways on a small screen
    "Names at the left of the rows, which stay when the pictures are scrolled."
    spans = ''.join(f'<span title="{html.escape(n)}">{html.escape(n)}</span>' for n in map(str, names))
    below = f'<span style="flex: {foot:.3f}"></span>' if foot else ''
    return f'<div class="wide rows" tabindex=0><div class=names>{spans}{below}</div>{tag}</div>'


def pictures_html(
    x:Tensor,                 # pictures in [-1, 1], (rows, columns, 3, res, res)
    alt:str,                  # what they show, in words
    caption:str,              # below them
    names:list=(),            # of the rows
)->str:                       # HTML
    "Pictures in rows."
    from PIL import Image
    out, grid = io.BytesIO(), grid_image(x.flatten(0, 1), x.shape[1])
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(out, 'PNG')
    widest = max(grid.shape[2], min(3*grid.shape[2], 1300))
    return figure_html(beside_names(image_tag(out.getvalue(), 'png', alt, widest, 40*x.shape[1]), names), caption)


def table_html(
    head:list,                # of the columns
    rows:list,                # of values
)->str:                       # HTML
    "A table that can be scrolled sideways."
    rows = [[f'{v:.4g}' if isinstance(v, float) else str(v) for v in row] for row in rows]
    body = ''.join('<tr>' + ''.join(f'<td class=n>{html.escape(v)}</td>' for v in row) + '</tr>' for row in rows)
    top = ''.join(f'<th>{html.escape(h)}</th>' for h in head)
    width = sum(min(14, .5*max(map(len, column))) for column in zip(head, *rows))      # long texts get more lines
    return f'<div class=wide tabindex=0><table style="min-width: {width}em"><tr>{top}</tr>{body}</table></div>'
