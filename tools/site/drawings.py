"""Three drawings, made from the package so that they stay true: `python -m tools.site.drawings`.

Shapes are read off the modules as they run; rates and counts come from the presets. With `--check` nothing is written:
it fails on a difference.
"""
import sys
from functools import partial
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT/'docs'/'pictures'
INK, BLUE, GREEN, ORANGE, GREY = '#1b1b1b', '#dbe9f8', '#dcf1e4', '#fbe6cf', '#eeeeee'


class Drawing:
    "Boxes and arrows in SVG."
    def __init__(self, height, title):
        width = 390                                                    # as wide as a phone; larger where there is room
        self.head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
                     f'width="{width*5//4}" height="{height*5//4}" '
                     f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="13" fill="{INK}">\n'
                     f'<title>{escape(title)}</title>\n'
                     '<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
                     f'<path d="M0,0 L9,4 L0,8 z" fill="{INK}"/></marker></defs>\n'
                     f'<rect width="{width}" height="{height}" fill="#fff"/>')
        self.parts = []

    def box(self, x, y, w, h, *lines, fill=BLUE):
        "A box with its upper left corner at x, y; the first line is bold."
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="5" fill="{fill}" stroke="{INK}"/>')
        top = y + h/2 - 8.5*(len(lines) - 1) + 4.5
        for i, o in enumerate(lines): self.text(x + w/2, top + 17*i, o, bold=i == 0, size=12 if i else 13)
        return self

    def text(self, x, y, words, bold=False, anchor='middle', size=13):
        "Words at x, y."
        weight = ' font-weight="bold"' if bold else ''
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"{weight}>'
                          f'{escape(words)}</text>')
        return self

    def arrow(self, *points):
        "A line through the points, with a tip at the end."
        path = ' L'.join(f'{x:g},{y:g}' for x, y in points)
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{INK}" stroke-width="1.4" marker-end="url(#tip)"/>')
        return self

    def __str__(self): return '\n'.join([self.head, *self.parts, '</svg>\n'])


def shapes(module, *args):
    "Name -> shape of what each submodule returns."
    import torch
    seen, hooks = {}, []
    def note(name, m, given, out): seen[name] = tuple(getattr(out, 'shape', ()))
    for name, m in module.named_modules(): hooks.append(m.register_forward_hook(partial(note, name)))
    with torch.no_grad(): module(*args)
    for h in hooks: h.remove()
    return seen


def attention(C=256, side=32):
    "The attention block in the released form, as it stands in the 128-pixel generator."
    import torch
    from sagan_nb.self_attention import SelfAttention
    block = SelfAttention(C).eval()
    x = torch.zeros(1, C, side, side)
    seen = shapes(block, x)
    q, k, v = (tuple(t.shape[1:]) for t in block.heads(x))
    def per(o): return f'{o[0]} x {o[1]}'
    d = Drawing(518, f'The attention block, released form, {C} channels on a {side}x{side} map')
    d.box(138, 8, 120, 46, 'x', f'{C} x {side} x {side}', fill=GREY)
    for x, name, role, shape in ((18, 'g', 'query', q), (140, 'f', 'key', k), (262, 'h', 'value', v)):
        pooled = ('pooled, 2x2',) if name != 'g' and block.pool else ()
        d.box(x, 86, 116, 78, f'{name}: {role}', f'1x1, {C} to {seen[name][1]}', *pooled, per(shape))
        d.arrow((198, 54), (198, 70), (x + 58, 70), (x + 58, 86))
    d.box(70, 205, 136, 60, 's', 'key · query', f'{q[0]} x {k[0]}', fill=GREEN)
    d.arrow((76, 164), (76, 184), (118, 184), (118, 205)).arrow((198, 164), (198, 184), (158, 184), (158, 205))
    d.box(70, 298, 136, 60, 'beta', 'softmax over keys', 'rows sum to 1', fill=GREEN)
    d.arrow((138, 265), (138, 298))
    d.box(250, 298, 128, 60, 'average', 'beta · value', f'{q[0]} x {v[1]}', fill=GREEN)
    d.arrow((206, 328), (250, 328)).arrow((320, 164), (320, 298))
    d.box(250, 391, 128, 46, 'v', f'1x1, {v[1]} to {seen["v"][1]}')
    d.arrow((314, 358), (314, 391))
    d.box(138, 464, 120, 46, 'y', 'gamma · o + x', fill=ORANGE)
    d.arrow((314, 437), (314, 487), (258, 487))
    d.arrow((138, 31), (8, 31), (8, 487), (138, 487)).text(16, 479, 'x, unchanged', anchor='start', size=12)
    return d


def networks(res=128, width=64, at=32):
    "G and D as a walk over map sizes."
    import torch
    from sagan_nb.networks import Discriminator, Generator
    G, D = Generator(res, width, attn_at=(at,)).eval(), Discriminator(res, width, attn_at=(at,)).eval()
    z, y = torch.zeros(1, G.z_dim), torch.zeros(1, dtype=torch.long)
    up = {k: o[1:] for k, o in shapes(G, z, y).items()}
    down = {k: o[1:] for k, o in shapes(D, torch.zeros(1, 3, res, res), y).items()}
    d = Drawing(494, f'The networks at {res} pixels')
    def walk(x, title, rule, begin, steps, end):
        d.text(x, 18, title, bold=True).text(x, 36, rule, size=12)
        rows = [(begin, 90, GREY)]
        for channels, side, extra in steps:
            map_size, w = f'{side}x{side}, {channels} ch', 98 + 12*(side.bit_length() - 2)
            rows.append(([map_size, 'and attention'], w, ORANGE) if extra else ([map_size], w, BLUE))
        rows.append((end, 90, GREY))
        for i, (lines, w, fill) in enumerate(rows):
            if i: d.arrow((x, 48 + 56*i - 16), (x, 48 + 56*i))
            d.box(x - w//2, 48 + 56*i, w, 40, *lines, fill=fill)
    G_steps = [(G.widths[0], 4, False), *((*up[f'blocks.{m}'][:2], int(m) == at) for m in G.blocks)]
    D_steps = [(o[0], o[1], o[1] == at) for k, o in down.items() if k.startswith('blocks.') and k.count('.') == 1]
    def count(net): return f'{sum(p.numel() for p in net.parameters()):,} weights'
    walk(98, f'G: {count(G)}', 'each block doubles the map', ['z, y'], G_steps, [f'{res}x{res}', 'picture'])
    walk(292, f'D: {count(D)}', 'all blocks but the last halve it', [f'{res}x{res}', 'picture'], D_steps, ['logit'])
    return d


def training():
    "One pass of the loop of `fit`, with the rates of preset `paper`."
    from sagan_nb.config import PRESETS
    cfg = PRESETS['paper']
    assert cfg.order == 'd_then_g'
    d = Drawing(474, 'One step of training')
    def step(y, G, D, loss, margin, adam, rate):
        d.box(8, y, 110, 46, 'fresh z, y', 'noise, labels', fill=GREY)
        d.box(146, y, 92, 46, *G, fill=GREEN).box(268, y, 92, 46, *D)
        d.arrow((118, y + 23), (146, y + 23)).arrow((238, y + 23), (268, y + 23))
        d.box(254, y + 76, 120, 46, loss, margin, fill=ORANGE)
        d.box(98, y + 76, 120, 46, adam, f'rate {rate:g}', fill=GREY)
        d.arrow((314, y + 46), (314, y + 76)).arrow((254, y + 99), (218, y + 99))
    times = 'times' if cfg.d_per_g > 1 else 'time'
    d.text(8, 20, f'Step of D, {cfg.d_per_g} {times}', bold=True, anchor='start')
    d.box(254, 34, 120, 46, 'real x, y', f'{cfg.batch} pictures', fill=GREY).arrow((314, 80), (314, 110))
    step(110, ('G', 'no gradient'), ('D',), 'hinge_d', 'margins +1, -1', 'Adam of D', cfg.lr_d)
    d.text(8, 266, 'Step of G', bold=True, anchor='start')
    step(280, ('G',), ('D', 'held still'), 'hinge_g', 'no margin', 'Adam of G', cfg.lr_g)
    notes = (f'Then t = t + 1, until {cfg.steps:,}.', f'Both Adams: beta1 {cfg.beta1:g}, beta2 {cfg.beta2:g}.',
             'Hooks: log, averages, samples, checkpoints.')
    for i, o in enumerate(notes): d.text(8, 428 + 18*i, o, anchor='start', size=12)
    return d


def main(check):
    code = 0
    for draw in (attention, networks, training):
        path, text = OUT/f'{draw.__name__}.svg', str(draw())
        if path.exists() and path.read_text(encoding='utf-8') == text: continue
        if not check:
            path.write_text(text, encoding='utf-8')
            continue
        name, code = path.relative_to(ROOT), 1
        print(f'{name} differs from the package: run `python -m tools.site.drawings`', file=sys.stderr)
    return code


if __name__ == '__main__': sys.exit(main('--check' in sys.argv[1:]))
