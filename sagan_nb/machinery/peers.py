"Serves chapter 13: other people's names and orders of tensors, and how they become ours."
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from fastcore.basics import patch
from torch import Tensor

from ..core import Refused
from ..spectral_norm import unit
from .nnabla import is_nnabla, under_our_names
from .recipe import control_options
from .ylg import is_ylg, local_recipe, notes_of, released_arrays


@dataclass
class Report:
    "What became of every tensor of a file. Printing it gives a summary."
    source:str                                  # whose names and semantics
    kind:str                                    # 'Generator' or 'Discriminator'
    used:dict = field(default_factory=dict)     # their tensor -> ours
    unused:dict = field(default_factory=dict)   # their tensor -> why it is not needed
    missing:dict = field(default_factory=dict)  # our tensor that they do not store -> what stands in
    notes:list = field(default_factory=list)    # what was folded, assumed, or never tried
    classes:list = field(default_factory=list)  # names of its classes, where the file has them

    def __str__(self):
        "Summarise the report in a few lines."
        def count(d, of): return ', '.join(f'{n} {why}' for why, n in sorted(of(d).items()))
        def tally(d): return {why: sum(w == why for w in d.values()) for why in set(d.values())}
        lines = [f'{self.kind} from {self.source}: {len(self.used)} tensors used']
        if self.unused: lines.append(f'{len(self.unused)} unused: {count(self.unused, tally)}')
        if self.missing: lines.append(f'{len(self.missing)} not stored there: {count(self.missing, tally)}')
        return '\n'.join([*lines, *self.notes])


PEER_NAMES = dict(
    official=dict(conv1=('/snconv1', '/sn_conv1', '/conv1'), conv2=('/snconv2', '/sn_conv2', '/conv2'),
                  short=('/snconv3', '/sn_conv3', '/conv3'), bn1='/cbn_0', bn2='/cbn_1', f='/sn_conv_phi',
                  g='/sn_conv_theta', h='/sn_conv_g', v='/sn_conv_attn', gamma='/sigma_ratio',
                  G=dict(linear=('g_snh0', 'g_h0'), bn='g_bn', conv=('g_snconv_last', 'g_conv_last')),
                  D=dict(linear='d_sn_linear', embed='d_embedding')),
    biggan=dict(conv1='.conv1', conv2='.conv2', short='.conv_sc', bn1='.bn1', bn2='.bn2', f='.phi', g='.theta', h='.g',
                v='.o', gamma='.gamma', G=dict(linear='linear', bn='output_layer.0', conv='output_layer.2'),
                D=dict(linear='linear', embed='embed')),
    studiogan=dict(conv1='.conv2d1', conv2='.conv2d2', short='.conv2d0', bn1='.bn1', bn2='.bn2', f='.conv1x1_phi',
                   g='.conv1x1_theta', h='.conv1x1_g', v='.conv1x1_attn', gamma='.sigma',
                   G=dict(linear='linear0', bn='bn4', conv='conv2d5'),
                   D=dict(linear='linear1', embed='embedding', classify='linear2')),
    mmgeneration=dict(conv1='.conv_1.conv', conv2='.conv_2.conv', short='.shortcut.conv', bn1='.norm_1', bn2='.norm_2',
                      f='.phi.conv', g='.theta.conv', h='.g.conv', v='.o.conv', gamma='.gamma',
                      G=dict(linear='noise2feat', bn='to_rgb.bn', conv='to_rgb.conv'),
                      D=dict(linear='decision', embed='proj_y')))

SIGNS = dict(                     # tensors that every network of this source has: generator, discriminator
    official=(('g_bn/gamma', 'g_block1/cbn_0/gamma'), ('d_optimized_block1/sn_conv1/w', 'd_sn_linear/Matrix')),
    biggan=(('linear.bias', 'output_layer.2.bias', 'blocks.0.0.conv1.bias'), ('linear.bias', 'blocks.0.0.conv1.bias')),
    studiogan=(('linear0.bias', 'conv2d5.bias', 'blocks.0.0.conv2d1.bias'),
               ('linear1.bias', 'blocks.0.0.conv2d1.bias')),
    mmgeneration=(('noise2feat.bias', 'to_rgb.conv.bias'), ('from_rgb.conv_1.conv.bias', 'decision.bias')),
    sagan_nb=(('linear.bias', 'blocks.8.conv1.bias', 'bn.offset'), ('linear.bias', 'blocks.0.conv1.bias')))

SN = dict(                        # how each moves u and takes sigma
    official=dict(detach=False, eps=1e-12, eps_rule='add'), biggan=dict(eps=1e-8), sagan_nb={},
    studiogan=dict(eps=1e-6, eval_sigma='stored'), mmgeneration=dict(eps=1e-12, eval_sigma='stored'))

TORCH_BN = dict(momentum=.1, unbiased=True)
BN = dict(official=dict(eps=1e-5, momentum=1e-3), biggan=dict(TORCH_BN, eps=1e-5), studiogan=dict(TORCH_BN, eps=1e-4),
          mmgeneration=dict(TORCH_BN, eps=1e-4), sagan_nb={})

OFFICIAL_LAST = dict(eps=1.001e-5, momentum=1e-4, unbiased=True)      # TensorFlow 1.5's fused kernel raises its epsilon
PEER_ATTENTION = dict(block='attention', form='released', reduction=8)      # as all four have it
HEADS = {'embed': 'projection', 'classify': 'acgan', None: 'none'}
MMGEN = 'names and order from the source of mmgeneration at 34a85691 (August 2021): never run on real weights'


class Conversion:
    "Arrays of one network on their way from a peer's names to ours. Raises Refused for one that is missing."
    def __init__(self,
        arrays:dict,              # name -> tensor, of one network, without prefixes
        source:str,               # a key of PEER_NAMES
        kind:str,                 # 'Generator' or 'Discriminator'
    ):
        self.arrays, self.source, self.names = arrays, source, PEER_NAMES[source]
        self.outer, self.state, self.report = self.names[kind[0]], {}, Report(source, kind)
        self.sep = '/' if source == 'official' else '.'
        self.modules = {name[:i] for name in arrays for i, c in enumerate(name) if c == self.sep}

    def pick(self, prefix:str, names)->str:             # the module of theirs
        "Find which of several names is there; without one, the first."
        names = [prefix + n for n in ([names] if isinstance(names, str) else names)]
        return next((n for n in names if n in self.modules or n in self.arrays), names[0])

    def find(self, prefix:str, *names)->str:            # the tensor of theirs, or None
        "Find the first of these tensors that is there."
        return next((f'{prefix}{self.sep}{n}' for n in names if f'{prefix}{self.sep}{n}' in self.arrays), None)

    def put(self, ours:str, theirs:str, move=lambda t: t):
        "Store one tensor under our name."
        if theirs not in self.arrays: raise Refused(f'{self.source}: {theirs} is missing (here it would be {ours})')
        self.report.used[theirs], self.state[ours] = ours, move(self.arrays[theirs]).contiguous()

    def weight(self, module:str, attribute:str, theirs:str, move=lambda t: t, rows=torch.flatten, dim:int=0):
        "Store a weight: plain, or with the vectors of its spectral norm."
        raw = self.find(theirs, 'weight_orig', 'w', 'Matrix', 'embedding_map', 'weight') or f'{theirs}{self.sep}weight'
        legacy = raw.endswith('weight_orig')            # torch's own: stores both vectors, always
        u = f'{theirs}.weight_u' if legacy else self.find(theirs, 'u0', 'u')
        v = f'{theirs}.weight_v' if legacy else None
        if not u: return self.put(f'{module}.{attribute}', raw, move)
        ours = f'{module}.parametrizations.{attribute}'
        self.put(f'{ours}.original', raw, move)
        self.put(f'{ours}.0.u', u, rows)
        if v: return self.put(f'{ours}.0.v', v)
        W, u = self.state[f'{ours}.original'].float().movedim(dim, 0).flatten(1), self.state[f'{ours}.0.u'].float()
        if len(W) == len(u): self.state[f'{ours}.0.v'] = unit(W.t() @ u)
        self.report.missing[f'{ours}.0.v'] = 'right singular vectors, computed from u'


@patch
def layer(self:Conversion, ours:str, theirs:str, grid:bool=False):
    "Move a linear layer, convolution or embedding with its bias; `grid`: the first layer of G, rows of a 4x4 map."
    turned = self.source == 'official' and not theirs.endswith('embedding')
    turn = {4: lambda t: t.permute(3, 2, 0, 1), 2: torch.t} if turned else {}
    move, rows = lambda t: turn.get(t.ndim, lambda t: t)(t), torch.flatten
    if grid and self.source == 'official':              # h, w, c -> c, h, w
        def order(t): return t.unflatten(0, (4, 4, -1)).movedim(2, 0).flatten(0, 2)
        move, rows = lambda t: order(t.t()), lambda t: order(t.flatten())
    self.weight(ours, 'weight', theirs, move, rows)
    if (bias := self.find(theirs, 'bias', 'biases')): self.put(f'{ours}.bias', bias, rows)


@patch
def norm(self:Conversion, ours:str, theirs:str):
    "Move a batch norm, conditional or not."
    plain = (self.find(theirs, 'gamma', 'gain', 'weight', 'norm.weight'),
             self.find(theirs, 'beta', 'bias', 'norm.bias'))
    table = self.find(theirs, 'gain.weight_orig', 'gain.weight', 'embed0.weight_orig', 'embed0.weight',
                      'weight_embedding.weight_orig', 'weight_embedding.weight')
    if table:
        gain, raw = table.rsplit('.', 1)
        offset = gain.replace('weight_embedding', 'bias_embedding').replace('embed0', 'embed1')
        offset = offset[:-4] + 'bias' if offset.endswith('.gain') else offset
        turn = torch.t if self.source == 'studiogan' and gain.endswith('.gain') else lambda t: t
        lacks = 1 if raw == 'weight' and not self.whole_gain() else 0          # a normalised table gets its 1 later
        self.weight(ours, 'gain', gain, lambda t: turn(t) + lacks, dim=int(turn is torch.t))
        self.weight(ours, 'offset', offset, turn, dim=int(turn is torch.t))
    else:
        for name, t in zip(('gain', 'offset'), plain):
            self.put(f'{ours}.{name}', t or f'{theirs}{self.sep}{name}', lambda t: t.reshape(-1, t.shape[-1]))
    for name, other in (('mean', 'mean'), ('var', 'variance')):
        t = self.find(theirs, name, f'moving_{other}', f'stored_{name}',
                      *(f'{p}running_{name}' for p in ('', 'bn.', 'norm.')))
        self.put(f'{ours}.{name}', t or f'{theirs}{self.sep}{name}', torch.flatten)


@patch
def whole_gain(self:Conversion)->bool:
    """Tell by the mean of all tables whether they hold the gain (mmgeneration's SAGAN and SNGAN initialisations) or
    gain - 1."""
    tables = [v for k, v in self.arrays.items() if k.endswith('weight_embedding.weight')]     # one setting for all
    return self.source == 'mmgeneration' and sum(v.float().mean().item() for v in tables) > .5*len(tables)


@patch
def attention(self:Conversion, ours:str, theirs:str):
    "Move the four 1x1 convolutions and gamma."
    for name in 'fghv': self.layer(f'{ours}.{name}', theirs + self.names[name])
    self.put(f'{ours}.gamma', theirs + self.names['gamma'], lambda t: t.reshape(()))


def find_blocks(
    c:Conversion,                 # with its arrays
)->tuple[list,dict]:              # prefixes of the blocks; number of a block -> prefix of the attention after it
    "Find a peer's blocks and attention layers, in order."
    G, blocks, attention = c.report.kind == 'Generator', [], {}
    if c.source == 'biggan':
        while f'blocks.{len(blocks)}.0' in c.modules: blocks.append(f'blocks.{len(blocks)}.0')
        return blocks, {i: f'blocks.{i}.1' for i in range(len(blocks)) if f'blocks.{i}.1' in c.modules}
    if c.source == 'official':
        start, letter = ([], 'g') if G else (['d_optimized_block1'], 'd')
        while (name := f'{letter}_block{len(start) + 1}') in c.modules: start.append(name)
        return start, {place_by_width(c, start, m): m for m in sorted(c.modules) if m.endswith('non_local')}
    row = 'blocks.{}.0' if c.source == 'studiogan' else 'conv_blocks.{}'
    found = [row.format(j) for j in range(len(c.modules)) if row.format(j) in c.modules]
    if c.source == 'mmgeneration' and not G: blocks.append('from_rgb')
    for name in found:
        if name + c.names['g'] in c.modules: attention[len(blocks) - 1] = name
        else: blocks.append(name)
    return blocks, attention


def place_by_width(c:Conversion, blocks:list, module:str)->int:
    "Find the first block with as many channels as the attention: the released names do not say where it sits."
    def size(name): return c.arrays[name].shape[-1] if name in c.arrays else None
    C = c.arrays[f'{module}/sn_conv_theta/w'].shape[2] if f'{module}/sn_conv_theta/w' in c.arrays else None
    places = [i for i, b in enumerate(blocks) if size(c.pick(b, c.names['conv2']) + '/w') == C]
    if not places: raise Refused(f'official: {module} has {C} channels, which no block has')
    return places[0]


def halving_blocks(
    short:list,                   # per block of D: does its shortcut have weights?
    source:str,                   # in all but mmgeneration the last block keeps its size
)->tuple[list,int]:               # which blocks halve the map; pixels per side of the picture
    "Tell where D halves, and from what size: its last map has 4 pixels a side, 8 if two blocks keep it, 2 if none."
    down = [*short[:-1], short[-1] and source == 'mmgeneration']
    last = 4 if down[-2] else 8
    return down, (2 if down[-1] else last) << sum(down)


def convert_g(c:Conversion)->dict:      # the recipe; fills c.state
    "Convert a peer's generator."
    blocks, attention = find_blocks(c)
    if not blocks: raise Refused(f'{c.source}: no residual blocks')
    c.layer('linear', c.pick('', c.outer['linear']), grid=True)
    for i, b in enumerate(blocks):
        for name in ('bn1', 'bn2'): c.norm(f'blocks.{8 << i}.{name}', b + c.names[name])
        for name in ('conv1', 'conv2', 'short'): c.layer(f'blocks.{8 << i}.{name}', c.pick(b, c.names[name]))
        if i in attention: c.attention(f'extra.{8 << i}', attention[i])
    c.norm('bn', c.outer['bn'])
    c.layer('conv', c.pick('', c.outer['conv']))
    rows, z_dim = first_weight(c.state, 'linear').shape
    channels = [rows // 16, *(first_weight(c.state, f'blocks.{8 << i}.conv2').shape[0] for i in range(len(blocks)))]
    table = c.state.get('blocks.8.bn1.gain', c.state.get('blocks.8.bn1.parametrizations.gain.original'))
    stored = c.state.get('blocks.8.bn1.parametrizations.gain.0.u')
    sn, bn = sn_of(c), BN[c.source]
    if c.source == 'mmgeneration' and stored is None and len(table) > 1: bn = dict(bn, eps=1e-5)
    by_column = c.source == 'studiogan' and 'blocks.0.0.bn1.gain' in c.modules
    return dict(kind='Generator', res=4 << len(blocks), n_classes=len(table) if len(table) > 1 else 0, z_dim=z_dim,
                channels=channels, sn=sn, late_u=c.source == 'official', bn=bn,
                bn_last=OFFICIAL_LAST if c.source == 'official' else bn,
                extra={str(8 << i): dict(PEER_ATTENTION, at=str(8 << i)) for i in attention},
                tables=None if stored is None else dict(sn, dim=int(by_column)))


def convert_d(c:Conversion)->dict:      # the recipe; fills c.state
    "Convert a peer's discriminator."
    blocks, attention = find_blocks(c)
    if len(blocks) < 2: raise Refused(f'{c.source}: fewer than two residual blocks')
    short = [c.pick(b, c.names['short']) in c.modules for b in blocks]
    down, res = halving_blocks(short, c.source)
    sizes = [res >> sum(down[:i + 1]) for i in range(len(down))]
    keys = {i: f'{sizes[i]}' if sizes.index(sizes[i]) == i else f'{sizes[i]}_{i}' for i in attention}
    for i, b in enumerate(blocks):
        for name in ('conv1', 'conv2', 'short') if short[i] else ('conv1', 'conv2'):
            c.layer(f'blocks.{i}.{name}', c.pick(b, c.names[name]))
        if i in attention: c.attention(f'extra.{keys[i]}', attention[i])
    c.layer('linear', c.outer['linear'])
    head = next((h for h in ('embed', 'classify') if c.outer.get(h) in c.modules), None)
    if head: c.layer(head, c.outer[head])
    def weights(name): return [first_weight(c.state, f'blocks.{i}.{name}') for i in range(len(blocks))]
    channels, inner = ([len(W) for W in weights(name)] for name in ('conv2', 'conv1'))
    K = len(first_weight(c.state, head)) if head else 0
    if head == 'classify' and 'classify.bias' not in c.state:
        c.state['classify.bias'], c.report.missing['classify.bias'] = torch.zeros(K), 'bias of the classifier, zero'
    return dict(kind='Discriminator', res=res, n_classes=K, head=HEADS[head], channels=channels, down=down,
                inner=inner if inner != channels else None, sn=sn_of(c), late_u=c.source == 'official',
                extra={keys[i]: dict(PEER_ATTENTION, at=i) for i in attention}, rectified=c.source == 'studiogan')


def first_weight(state:dict, module:str)->Tensor:
    "Look up the weight of one of our modules, with or without spectral norm. Raises Refused if it is missing."
    name = f'{module}.weight' if f'{module}.weight' in state else f'{module}.parametrizations.weight.original'
    if name not in state: raise Refused(f'{module} is missing: not a whole network of ours')
    return state[name]


def sn_of(c:Conversion):
    "Choose the options of spectral norm for this source; False where the first layer has none."
    if 'linear.parametrizations.weight.original' not in c.state: return False
    sn = dict(SN[c.source])
    if c.source == 'official': sn['update'] = 'always' if c.report.kind == 'Generator' else 'real'
    if 'linear.parametrizations.weight.0.v' in c.report.missing: sn.pop('eval_sigma', None)     # without v: one step
    return sn


def convert_ours(arrays:dict, kind:str)->tuple[dict,dict,Report]:    # recipe, state, report
    "Read our own names without a recipe: widths from shapes, places from names, the rest from our defaults."
    G, sn = kind == 'Generator', 'linear.parametrizations.weight.original' in arrays and dict(update='forward')
    keys = sorted({k.split('.')[1] for k in arrays if k.startswith('blocks.')}, key=int)
    def out(k): return first_weight(arrays, f'blocks.{k}.conv2').shape[0]
    maps = sorted({k.split('.')[1] for k in arrays if k.startswith('extra.')})
    extra = {k: own_map(arrays, f'extra.{k}') for k in maps}
    r = dict(kind=kind, channels=[out(k) for k in keys], sn=sn)
    rows, z_dim = first_weight(arrays, 'linear').shape
    if G:
        K = len(arrays['blocks.8.bn1.gain']) if 'blocks.8.bn1.gain' in arrays else 0
        r |= dict(res=4 << len(keys), z_dim=z_dim, n_classes=K if K > 1 else 0, bn={},
                  bn_last=dict(momentum=1e-4, unbiased=True), channels=[rows // 16, *r['channels']],
                  extra={k: dict(o, at=k) for k, o in extra.items()})
    else:
        head = next((h for h in ('embed', 'classify') if any(k.startswith(f'{h}.') for k in arrays)), None)
        down, res = halving_blocks([any(k.startswith(f'blocks.{i}.short.') for k in arrays) for i in keys], 'sagan_nb')
        sizes = [str(res >> sum(down[:i + 1])) for i in range(len(down))]
        if (lost := {*maps} - {*sizes}): raise Refused(f'a block on a map that is not there: {min(lost)}')
        inner = [len(first_weight(arrays, f'blocks.{k}.conv1')) for k in keys]
        r |= dict(res=res, down=down, n_classes=len(first_weight(arrays, head)) if head else 0,
                  inner=inner if inner != r['channels'] else None,
                  head=HEADS[head], extra={k: dict(o, at=sizes.index(k)) for k, o in extra.items()})
    report = Report('sagan_nb', kind, {k: k for k in arrays}, notes=['no recipe: semantics are our defaults'])
    return r, dict(arrays), report


def own_map(arrays:dict, name:str)->dict:
    "Tell which block is on a map, by the shapes of its weights."
    if f'{name}.conv1.weight' in arrays or f'{name}.conv1.parametrizations.weight.original' in arrays:
        return control_options(*first_weight(arrays, f'{name}.conv1').shape[:3])
    (value, C), narrow = first_weight(arrays, f'{name}.h').shape[:2], len(first_weight(arrays, f'{name}.f'))
    has_v = any(k.startswith(f'{name}.v.') for k in arrays)
    with_v = 'paper' if value == narrow else 'released'
    reduction = 8 if C // 8 == narrow else C // narrow
    return dict(block='attention', form=with_v if has_v else 'v1', reduction=reduction)


PREFIXES = ('generator_ema.', 'generator.', 'discriminator.')         # in the order of preference
SPARE = ((r'/Adam(_\d+)?$|(^|/)beta[12]_power$|(^|/)(global|[gd])_step$', 'of the optimiser'),
         (r'\.sv\d+$', 'sigma, logged only'), (r'num_batches_tracked$|^n_averaged$', 'a counter'))


def spare_reason(name:str)->str:
    "Say why a tensor is not needed; None if it is."
    return next((why for pattern, why in SPARE if re.search(pattern, name)), None)


def one_network(
    arrays:dict,                  # name -> tensor, as they came from the file
    part:str=None,                # 'G', 'D' or None
)->tuple[dict,dict,dict]:         # short name -> tensor; short name -> name in the file; that -> why it is left out
    "Choose a network of a file and take its prefix off."
    names, other = {re.sub(r'^((module|_orig_mod)\.)+|:0$', '', k): k for k in arrays}, 'of another network in the file'
    there = [p for p in PREFIXES if any(k.startswith(p) for k in names)]
    prefixes = [p for p in there if part in (None, p[0].upper())]
    left = {}
    if prefixes:
        left = {k: other for s, k in names.items() if not s.startswith(prefixes[0])}
        names = {s[len(prefixes[0]):]: k for s, k in names.items() if k not in left}
    tf = {re.sub(r'^(?:[^/]*/)*?([gd]_\w+/)', r'\1', s): k for s, k in names.items()}
    if any(re.match(r'[gd]_(block|optimized)', s) for s in tf):
        usual = 'g' if any(s.startswith('g_bn') for s in tf) else 'd'
        own = (part.lower() if part else usual) + '_'
        left |= {k: other for s, k in tf.items() if not s.startswith(own) and not spare_reason(s)}
        names = tf
    left |= {k: spare_reason(s) for s, k in names.items() if spare_reason(s)}
    names = {s: k for s, k in names.items() if k not in left}
    return {s: arrays[k] for s, k in names.items()}, names, left


def recognise(
    arrays:dict,                  # of one network
    source:str='auto',            # or the name of one
)->tuple[str,str]:                # source and kind
    "Tell by the names whose network this is, and which. Raises Refused if it is nobody's."
    choice = 'auto', *SIGNS, 'ylg', 'tfgan'
    if source not in choice: raise Refused(f'there is no source {source!r}; choose {", ".join(choice)}')
    for name in arrays:
        if not re.match(r'shared(_embedding)?\.', name): continue
        raise Refused(f'{name}: a BigGAN with a shared class embedding, not a SAGAN')
    for s, signs in SIGNS.items():
        for kind, sign in zip(('Generator', 'Discriminator'), signs):
            if {*sign} <= {*arrays} and source in ('auto', s): return s, kind
    wanted = 'of ' + ', '.join(SIGNS) if source == 'auto' else f'of {source}'
    first = ', '.join(sorted(arrays)[:3]) or 'nothing'
    raise Refused(f'not a SAGAN generator or discriminator {wanted}; the names begin with {first}')


def tensors(
    arrays,                       # mapping of names to arrays or tensors
)->dict:                          # names to tensors on the CPU
    "Turn arrays into tensors. Raises Refused for objects and for numbers that are not finite."
    out, several = {}, [str(name) for name, a in arrays.items() if isinstance(a, Mapping)]
    if several:
        raise Refused(f'what lies in {", ".join(several)} has names of its own: '
                      f'give the one of the network, such as torch.load(FILE)[{several[0]!r}]')
    for name, a in arrays.items():
        try: out[str(name)] = t = (a.detach().cpu() if isinstance(a, Tensor) else torch.as_tensor(a))
        except (TypeError, ValueError, RuntimeError): raise Refused(f'{name} is not an array of numbers') from None
        if t.numel()*t.element_size() > t.untyped_storage().nbytes():
            raise Refused(f'{name} claims {t.numel():,} numbers, more than the file holds')
        if t.is_floating_point() and not t.sum().isfinite() and not t.isfinite().all():      # the sum is fast
            raise Refused(f'{name} holds numbers that are not finite')
    return out


def convert(
    arrays,                       # name -> array, as the peer names and shapes them
    source:str='auto',            # 'official', 'biggan', 'studiogan', 'mmgeneration', 'ylg', 'tfgan', 'sagan_nb'
    part:str=None,                # 'G' or 'D' where both are there
)->tuple[dict,dict,Report]:       # recipe, tensors under our names, report
    "Convert a peer's network without building it. Raises Refused, naming the first thing that does not fit."
    arrays = tensors(arrays)
    if is_nnabla(arrays): return convert_nnabla(arrays, part)
    arrays, origin, left = one_network(arrays, part)
    if is_ylg(arrays): return convert_ylg(arrays, 'ylg' if source == 'auto' else source, origin, left)
    source, kind = recognise(arrays, source)
    for name, t in arrays.items():
        if not t.is_floating_point(): raise Refused(f'{name} holds {t.dtype}, not weights')
    try:
        if source == 'sagan_nb': recipe, state, report = convert_ours(arrays, kind)
        else: recipe, state, report = convert_peer(arrays, source, kind)
    except Refused: raise
    except (RuntimeError, IndexError, KeyError, ValueError) as e:
        raise Refused(f'{source}: the shapes are not those of a SAGAN ({e})') from None
    report.used, report.unused = {origin[k]: v for k, v in report.used.items()}, report.unused | left
    report.notes += weight_notes(source, recipe)
    return recipe, {k: t.float() for k, t in state.items()}, report


def convert_peer(
    arrays:dict,                  # names to tensors
    source:str,                   # whose
    kind:str,                     # 'Generator' or 'Discriminator'
)->tuple[dict,dict,Report]:       # as of `convert`
    "Convert another code base's network. Raises Refused for a tensor that has no place in it."
    c = Conversion(arrays, source, kind)
    recipe = (convert_g if kind == 'Generator' else convert_d)(c)
    over = [name for name in arrays if name not in c.report.used]
    more = f' (and {len(over) - 1} more)' if len(over) > 1 else ''
    if over: raise Refused(f'{source}: {over[0]} has no place in a SAGAN {kind.lower()}{more}')
    return recipe, c.state, c.report


def convert_nnabla(arrays:dict, part:str=None)->tuple[dict,dict,Report]:
    "Convert nnabla's generator or discriminator, as `convert` does."
    state, used, left, kind = under_our_names(arrays, part)
    recipe, state, report = convert_ours(state, kind)
    report.source, report.used, report.unused = 'nnabla', used, left
    report.notes = ['names and order from models.py of nnabla-examples at 294cccf6: never run on real weights']
    return recipe, {k: t.float() for k, t in state.items()}, report


def convert_ylg(
    arrays:dict,                  # names to tensors, of one network
    source:str,                   # 'ylg' or 'tfgan'
    origin:dict,                  # name -> name in the file
    left:dict,                    # name in the file -> why it is left out
)->tuple[dict,dict,Report]:       # as of `convert`
    "Convert a network of Your Local GAN or TF-GAN. Raises Refused for another source, and for what does not fit."
    if source not in ('ylg', 'tfgan'): raise Refused(f'these names are those of ylg and tfgan, not of {source}')
    released, theirs = released_arrays({k: t.float() for k, t in arrays.items()})
    kind = 'Generator' if any(k.startswith('g_') for k in released) else 'Discriminator'
    try: recipe, state, report = convert_peer(released, 'official', kind)
    except Refused as e: raise Refused(str(e).replace('official:', f'{source}:')) from None
    except (RuntimeError, IndexError, KeyError, ValueError) as e:
        raise Refused(f'{source}: the shapes are not those of a SAGAN ({e})') from None
    report.source, report.unused, report.notes = source, left, notes_of(source)
    report.used = {origin[k]: ours for name, ours in report.used.items() for k in theirs[name]}
    return local_recipe(recipe, source), state, report


def weight_notes(source:str, recipe:dict)->list:
    "List what a user of these weights should know."
    out = [MMGEN] if source == 'mmgeneration' else []
    G = recipe['kind'] == 'Generator'
    if source == 'official' and G and recipe['sn']:
        out.append('u moves in evaluation, too, as in the released code, so pictures change a little at each call; '
                   "sn=dict(update='forward') holds it")
    if recipe.get('rectified'):
        out.append('shortcuts see a rectified input (in-place ReLU of StudioGAN); inplace=False takes that back')
    if source == 'biggan' and G: out.append('class gains: 1 was added to the stored tables')
    if source == 'mmgeneration' and G:
        out.append(f'batch norm eps {recipe["bn"]["eps"]:g} is a guess from the kind of class tables; '
                   'bn=dict(eps=...) sets another; that class tables hold the gain, or gain - 1, is told by their mean')
    return out
