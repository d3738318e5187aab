"""Three drawings, made from the package so that they stay true: `python -m tools.drawings`; `--check` only fails on a difference.

Shapes are read off the modules as they run; rates and counts come from the presets.
"""
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT/'docs'/'pictures'
INK, BLUE, GREEN, ORANGE, GREY = '#1b1b1b', '#dbe9f8', '#dcf1e4', '#fbe6cf', '#eeeeee'


class Drawing:
    "Boxes and arrows in SVG."
    def __init__(self, width, height, title):
        self.head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
                     f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="13" fill="{INK}">\n<title>{escape(title)}</title>\n'
                     '<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
                     f'<path d="M0,0 L9,4 L0,8 z" fill="{INK}"/></marker></defs>\n<rect width="{width}" height="{height}" fill="#fff"/>')
        self.parts = []

    def box(self, x, y, w, h, *lines, fill=BLUE):
        "A box with its upper left corner at x, y; the first line is bold."
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="5" fill="{fill}" stroke="{INK}"/>')
        top = y + h/2 - 8.5*(len(lines) - 1) + 4.5
        for i, o in enumerate(lines): self.text(x + w/2, top + 17*i, o, bold=i == 0)
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
    for name, m in module.named_modules():
        hooks.append(m.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, tuple(getattr(o, 'shape', ())))))
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
    per = lambda o: f'{o[0]} x {o[1]}'
    d = Drawing(760, 330, f'The attention block, released form, {C} channels on a {side}x{side} map')
    d.box(15, 140, 100, 60, 'x', f'{C} x {side} x {side}', fill=GREY)
    for y, name, role, shape in ((30, 'g', 'query', q), (140, 'f', 'key', k), (250, 'h', 'value', v)):
        pooled = name != 'g' and block.pool
        d.box(170, y, 150, 60, f'{name}: {role}', f'1x1, {C} to {seen[name][1]}', per(shape) + ' (pooled)'*pooled)
        d.arrow((115, 170), (140, 170), (140, y + 30), (170, y + 30))
    d.box(362, 85, 136, 60, 's', 'key · query', f'{q[0]} x {k[0]}', fill=GREEN)
    d.arrow((320, 60), (340, 60), (340, 105), (362, 105)).arrow((320, 170), (340, 170), (340, 125), (362, 125))
    d.box(362, 195, 136, 60, 'beta', 'softmax over keys', 'rows sum to 1', fill=GREEN)
    d.arrow((430, 145), (430, 195))
    d.box(532, 195, 110, 60, 'average', 'beta · value', f'{q[0]} x {v[1]}', fill=GREEN)
    d.arrow((498, 225), (532, 225)).arrow((320, 280), (587, 280), (587, 255))
    d.box(532, 85, 110, 60, 'v', f'1x1, {v[1]} to {seen["v"][1]}')
    d.arrow((587, 195), (587, 145))
    d.box(665, 85, 80, 60, 'y', 'gamma · o', '+ x', fill=ORANGE)
    d.arrow((642, 115), (665, 115)).arrow((65, 140), (65, 14), (705, 14), (705, 85)).text(385, 28, 'x goes on unchanged', size=12)
    return d


def networks(res=128, width=64, at=32):
    "G and D as a walk over map sizes."
    import torch
    from sagan_nb.networks import Discriminator, Generator
    G, D = Generator(res, width, attn_at=(at,)).eval(), Discriminator(res, width, attn_at=(at,)).eval()
    z, y = torch.zeros(1, G.z_dim), torch.zeros(1, dtype=torch.long)
    up = {k: o[1:] for k, o in shapes(G, z, y).items()}
    down = {k: o[1:] for k, o in shapes(D, torch.zeros(1, 3, res, res), y).items()}
    d = Drawing(760, 400, f'The networks at {res} pixels')
    tall = lambda side: 16 + 13*(side.bit_length() - 2)*1.6
    def walk(y0, title, begin, steps, end):
        d.text(15, y0 - 78, title, bold=True, anchor='start')
        x = 84
        step = (670 - x)/len(steps)
        d.box(6, y0 - 20, 68, 40, begin, fill=GREY)
        for channels, side, extra in steps:
            h = tall(side)
            d.arrow((x - 10, y0), (x + 4, y0))
            d.box(round(x + 4), round(y0 - h/2), round(step - 20), round(h), f'{side}x{side}', f'{channels} ch', fill=ORANGE if extra else BLUE)
            if extra: d.text(x + step/2 - 6, y0 + h/2 + 17, 'attention', size=12)
            x += step
        d.arrow((x - 10, y0), (x + 8, y0))
        d.box(round(x + 8), y0 - 20, 752 - round(x + 8), 40, end, fill=GREY)
    G_steps = [(G.widths[0], 4, False), *((*up[f'blocks.{m}'][:2], int(m) == at) for m in G.blocks)]
    D_steps = [(o[0], o[1], o[1] == at) for k, o in down.items() if k.startswith('blocks.') and k.count('.') == 1]
    walk(105, f'G: {sum(p.numel() for p in G.parameters()):,} weights; each block doubles the map', 'z, y', G_steps, f'{res}x{res}')
    walk(300, f'D: {sum(p.numel() for p in D.parameters()):,} weights; each block but the last halves it', f'{res}x{res}', D_steps, 'logit')
    return d


def training():
    "One pass of the loop of `fit`, with the rates of preset `paper`."
    from sagan_nb.config import PRESETS
    cfg = PRESETS['paper']
    assert cfg.order == 'd_then_g'
    d = Drawing(760, 330, 'One step of training')
    d.text(15, 24, f'step of D, {cfg.d_per_g} time' + 's'*(cfg.d_per_g > 1), bold=True, anchor='start')
    d.box(15, 40, 120, 46, 'real x, y', f'{cfg.batch} pictures', fill=GREY).box(15, 110, 120, 46, 'fresh z, y', 'noise, labels', fill=GREY)
    d.box(175, 110, 110, 46, 'G', 'no gradient', fill=GREEN)
    d.arrow((135, 133), (175, 133))
    d.box(325, 75, 110, 46, 'D')
    d.arrow((135, 63), (380, 63), (380, 75)).arrow((285, 133), (380, 133), (380, 121))
    d.box(475, 75, 130, 46, 'hinge_d', 'margins +1, -1', fill=ORANGE)
    d.arrow((435, 98), (475, 98))
    d.box(640, 75, 110, 46, 'Adam of D', f'rate {cfg.lr_d:g}', fill=GREY)
    d.arrow((605, 98), (640, 98))
    d.text(15, 200, 'step of G', bold=True, anchor='start')
    d.box(15, 220, 120, 46, 'fresh z, y', 'noise, labels', fill=GREY).box(175, 220, 110, 46, 'G', fill=GREEN).box(325, 220, 110, 46, 'D', 'held still')
    d.arrow((135, 243), (175, 243)).arrow((285, 243), (325, 243)).arrow((435, 243), (475, 243))
    d.box(475, 220, 130, 46, 'hinge_g', 'no margin', fill=ORANGE)
    d.arrow((605, 243), (640, 243))
    d.box(640, 220, 110, 46, 'Adam of G', f'rate {cfg.lr_g:g}', fill=GREY)
    d.text(15, 305, f'Then t = t + 1, until {cfg.steps:,}. Both Adams: beta1 {cfg.beta1:g}, beta2 {cfg.beta2:g}. Logging, averages, samples, checkpoints: hooks.', anchor='start', size=12)
    return d


def main(check):
    code = 0
    for draw in (attention, networks, training):
        path, text = OUT/f'{draw.__name__}.svg', str(draw())
        if path.exists() and path.read_text(encoding='utf-8') == text: continue
        if check: print(f'{path.relative_to(ROOT)} differs from the package: run `python -m tools.drawings`', file=sys.stderr); code = 1
        else: path.write_text(text, encoding='utf-8')
    return code


if __name__ == '__main__': sys.exit(main('--check' in sys.argv[1:]))
