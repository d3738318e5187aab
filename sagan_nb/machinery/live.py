"Serves chapter 15: a generator that draws in the page: noise, class and the attention of a clicked pixel, by script."
import base64
import hashlib
import html
import json
import re

import torch
from torch import Tensor, nn

from ..blocks import ConditionalBatchNorm2d
from ..core import Refused
from ..networks import Generator
from ..self_attention import SelfAttention
from .html import asset
from .publish import divided_weights

LARGEST = 3 * 10**6           # bytes of the page
BODY = '''<div id="@ID" class="sagan-live"><style>
@STYLE</style><div class="static">@FALLBACK</div><div class="live" hidden>
<canvas tabindex="0" role="img" aria-label="Generated picture. Click a pixel, or move with the arrow keys"></canvas>
<canvas role="img" aria-label="What the chosen pixel attends to"></canvas>
<div class="controls"><label>noise <input type="range" min="0" max="1" step="0.01" value="0"></label>
<label>class <select>@OPTIONS</select></label><output aria-live="polite"></output></div></div></div><script>
@SCRIPT</script>'''


def packed(
    t:Tensor,                 # any shape
)->str:                       # base64 of its float32 values
    "Pack numbers for the page."
    return base64.b64encode(t.detach().float().contiguous().cpu().numpy().tobytes()).decode()


def folded(
    bn:ConditionalBatchNorm2d,        # in evaluation mode
    names:str,                        # of the two numbers
)->dict:                              # scale and shift for each class and channel
    "Fold moving statistics and class tables into one scale and one shift."
    scale = bn.gain / (bn.var + bn.eps).sqrt()
    return dict(zip(names.split(), map(packed, (scale, bn.offset - bn.mean*scale))))


def layer_of(
    layer:nn.Module,          # convolution or linear, without spectral norm
    names:str,                # of weight and bias
)->dict:
    "Pack a layer."
    return dict(zip(names.split(), map(packed, (layer.weight, layer.bias))))


def attention_of_page(
    block:SelfAttention,      # without spectral norm
)->dict:
    "Pack an attention block."
    weights = {n: packed(getattr(block, n).weight) for n in 'fgh'}
    if isinstance(block.v, nn.Conv2d): weights['v'] = packed(block.v.weight)
    sizes = dict(narrow=block.f.weight.shape[0], value=block.h.weight.shape[0], pool=bool(block.pool))
    return dict(weights, **sizes, gamma=block.gamma.item())


def live_data(
    G:Generator,              # in evaluation mode
    seed:int=0,               # of the two noises that the slider goes between
    start=None,               # (row, column) of the pixel that is asked first; None: in the upper left
)->dict:                      # what the script needs, ready for JSON
    "Take a generator to pieces. Raises Refused for one that the script cannot compute, or too large for a page."
    from matplotlib import colormaps, colors
    if len(G.extra) > 1 or not all(isinstance(b, SelfAttention) for b in G.extra.values()):
        raise Refused('the live page computes generators with one attention block, or none')
    if 16*sum(p.numel() for p in G.parameters())/3 > LARGEST - 10**5:
        raise Refused(f'this generator is too large to draw in a page of {LARGEST/1e6:.0f} MB')
    net = divided_weights(G) if any('parametrizations' in n for n, _ in G.named_parameters()) else G
    def block_of(m, b):
        norms = folded(b.bn1, 's1 t1') | folded(b.bn2, 's2 t2')
        layers = layer_of(b.conv1, 'w1 b1') | layer_of(b.conv2, 'w2 b2') | layer_of(b.short, 'ws bs')
        return norms | layers | dict(c=len(b.conv2.bias), attention=m in net.extra)
    blocks = [block_of(m, b) for m, b in net.blocks.items()]
    a, b = torch.randn(2, G.z_dim, generator=torch.Generator().manual_seed(seed))
    attention = next((attention_of_page(o) for o in net.extra.values()), None)
    made = layer_of(net.linear, 'linear bias') | folded(net.bn, 's t') | layer_of(net.conv, 'w b')
    made |= {'first': net.widths[0], 'blocks': blocks, 'attention': attention, 'to': packed(b), 'from': packed(a)}
    return dict(net=made, at=start, res=G.res, colors=[colors.to_hex(colormaps['inferno'](v/255)) for v in range(256)])


def live_html(
    G:Generator,              # in evaluation mode
    classes=(),               # names; (): numbers
    seed:int=0,               # see `live_data`
    fallback:str='',          # HTML where no script runs
    start=None,               # see `live_data`
)->str:                       # HTML with its script, to put into a page
    "A generator to play with. Raises Refused as `live_data` does."
    data = json.dumps(live_data(G, seed, start)).replace('<', '\\u003c')
    names = list(classes) or [str(k) for k in range(max(G.n_classes, 1))]
    options = ''.join(f'<option value="{k}">{html.escape(str(n))}</option>' for k, n in enumerate(names))
    name = f'live-{hashlib.sha256(data.encode()).hexdigest()[:12]}'
    script = re.sub('\n\n+', '\n', asset('live.js'))           # an empty line would end the HTML in a page of Markdown
    def own(text): return re.sub('@(ID|DATA)', lambda m: dict(ID=name, DATA=data)[m[1]], text)
    parts = dict(STYLE=own(asset('live.css')), FALLBACK=fallback, OPTIONS=options, SCRIPT=own(script))
    return re.sub('@(STYLE|FALLBACK|OPTIONS|SCRIPT)', lambda m: parts[m[1]], own(BODY))
