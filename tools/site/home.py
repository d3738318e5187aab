"""What the first screens show: the trained generator in results/generator, and where the pixels of its pictures looked.

`python -m tools.site.home` draws docs/pictures/look.png, the picture of README. The home page of the site has the
generator itself.
"""
import functools
import math
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT/'results'/'generator'/'t1_attn_16-pairs.safetensors'
PICTURE = ROOT/'docs'/'pictures'/'look.png'
SEED, SHOWN = 2, 4                     # that of results/generator/maps.png; its first pictures, one class after another
LIVE = dict(seed=20, start=(11, 9))    # noise and pixel that the home page opens with: this one looks at its partner
SIDE, ARROW, RIM = 320, '#ffffff', '#1b1b1b'


@functools.cache
def maps():
    "AttentionMaps of the first pictures."
    import torch
    from sagan_nb.attention_maps import attention_maps
    from sagan_nb.networks import Generator
    G = Generator.from_pretrained(FILE)
    z = torch.randn(SHOWN, G.z_dim, generator=torch.Generator().manual_seed(SEED))
    return attention_maps(G, z, torch.arange(SHOWN) % G.n_classes)


def query(i):
    "The pixel nearest to the middle of the upper left shape, of the three that `sagan_attention` would choose."
    from sagan_nb.attention_maps import find_queries
    o = maps().pick()
    return min(find_queries(o, i), key=lambda q: math.dist(q, (o.res/4, o.res/4)))


def live():
    "The trained generator, to draw with and to click on."
    from sagan_nb.data import open_source
    from sagan_nb.machinery.live import live_html
    from sagan_nb.networks import Generator
    alt = 'Four generated pictures, and next to each where one of its pixels looked'
    still = f'<img src="_static/look.png" alt="{alt}">'
    return live_html(Generator.from_pretrained(FILE), open_source('pairs').classes, fallback=still, **LIVE)


def draw():
    "Pairs of a picture with a marked pixel and the map of that pixel, with an arrow to each place it looked at most."
    from matplotlib import colormaps
    from PIL import Image, ImageDraw
    from sagan_nb.attention_maps import cell_middle, peaks
    from sagan_nb.core import to_uint8
    o, pixels = maps().pick(), to_uint8(maps().pictures).permute(0, 2, 3, 1).numpy()
    inner, outer, zoom = 4, 28, SIDE/o.res
    def enlarged(o): return Image.fromarray(o).resize((SIDE, SIDE), Image.NEAREST)
    sheet = Image.new('RGBA', (SHOWN//2*(2*SIDE + inner + outer) - outer, 2*SIDE + outer))
    for i in range(SHOWN):
        beta, dot = o.look(i, query(i)), [(v + .5)*zoom for v in reversed(query(i))]
        heat = enlarged((colormaps['inferno'](beta/beta.max())*255).astype('uint8'))
        left = enlarged(pixels[i])
        right = Image.blend(left.convert('L').convert('RGBA'), heat, .75)
        pen = ImageDraw.Draw(right)
        for cell in peaks(beta):
            end = [(v + .5)*zoom for v in reversed(cell_middle(o, cell))]
            if math.dist(dot, end) > 3*zoom: arrow(pen, dot, end)
        for image in (left, right): ImageDraw.Draw(image).circle(dot, 11, '#E69F00', '#fff', 3)
        x, y = i % 2*(2*SIDE + inner + outer), i//2*(SIDE + outer)
        for dx, image in ((0, left), (SIDE + inner, right)): sheet.paste(image, (x + dx, y))
    sheet.save(PICTURE, optimize=True)


def arrow(pen, a, b, head=16):
    "A white arrow with a dark rim from a to b."
    at = math.atan2(b[1] - a[1], b[0] - a[0])
    def wing(turn, long): return (b[0] - long*math.cos(at + turn), b[1] - long*math.sin(at + turn))
    foot = wing(0, head)
    for colour, width, long in ((RIM, 8, head + 5), (ARROW, 4, head)):
        pen.line([*a, *foot], colour, width)
        pen.polygon([tuple(b), wing(.5, long), wing(-.5, long)], colour)


if __name__ == '__main__':
    draw()
    print(PICTURE.relative_to(ROOT), PICTURE.stat().st_size, 'bytes')
