"Serves chapter 13: networks for others: safetensors, ONNX, and the names of BigGAN-PyTorch."
import importlib.util
import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import __version__
from ..blocks import ConditionalBatchNorm2d, Conv2d
from ..core import Refused
from ..networks import Generator
from ..self_attention import SelfAttention
from .atomic import atomic_write
from .catalogue import is_weights_name
from .door import open_run
from .files import body_sha256, must_be_utf8, safetensors_bytes, sweep
from .hub import is_repo
from .peers import PEER_ATTENTION, PEER_NAMES, halving_blocks
from .recipe import recipe_of, restore_network


def model_card(
    net:nn.Module,                # what is published
    r:dict,                       # its recipe
    about:str='',                 # how it was trained, on what, by whom, under which licence
)->str:                           # markdown
    "Write what a stranger needs to know about the file."
    n = sum(p.numel() for p in net.parameters())
    def kind(o): return f'{o["block"]} ({o["form"]} form)' if 'form' in o else o['block']
    maps = ', '.join(f'{kind(o)} on the {k} map' for k, o in r['extra'].items()) or 'no attention'
    use = ['G(torch.randn(8, G.z_dim), torch.zeros(8, dtype=torch.int64))      # pictures in [-1, 1], (8, 3, res, res)']
    size = f'{r["res"]}x{r["res"]} pixels, {r["n_classes"] or "no"} classes, channels {tuple(r["channels"])}'
    about = about or 'Nothing is recorded about its training.'
    return '\n'.join([f'# {r["kind"]} of a Self-Attention GAN', '', about, '',
                      f'- {size}, {maps}, {n:,} parameters', f'- written by sagan_nb {__version__}', '',
                      '```python', 'import torch', f'from sagan_nb import {r["kind"]}',
                      f'{r["kind"][0]} = {r["kind"]}.from_pretrained(PATH)',
                      *(use if r['kind'] == 'Generator' else []), '```', ''])


def is_card(
    path:Path,                    # README.md, or none
)->bool:
    "Tell whether the place of a model card is free, or holds one."
    if not path.exists(): return True
    return bool(re.match(r'# \w+ of a Self-Attention GAN\n', path.read_text(encoding='utf-8', errors='replace')))


def in_half(
    name:str,                     # of a tensor
    t:Tensor,                     # of any type
)->Tensor:                        # float32 as float16, others as they are
    "Round a tensor. Raises Refused for one that float16 cannot hold."
    if t.dtype != torch.float32: return t
    if not t.half().isfinite().all(): raise Refused(f'{name} holds numbers that float16 cannot: publish without half')
    return t.half()


def save_pretrained(
    what,                         # a network, or what `open_run` takes (its generator is published)
    path,                         # a .safetensors file, or a folder for model.safetensors and README.md
    about:str='',                 # for the model card
    half:bool=False,              # store weights in float16, half the size; they are computed with in float32
    classes:list=None,            # names of its classes; None: those of the run
)->Path:                          # the safetensors file
    "Publish a network: tensors, recipe, class names and card in one file. Raises Refused for a path without a run."
    from safetensors.torch import save
    must_be_utf8(path)
    model = None if isinstance(what, nn.Module) else open_run(what)
    net = model.G if model else getattr(what, '_orig_mod', what)         # as `torch.compile` wraps it
    if classes is None: classes = model.classes if model else []
    if not about and model and net.report.notes:
        peer = net.report.source
        made = 'Trained with sagan_nb' if peer == 'sagan_nb' else f'Converted from {peer} weights'
        about = f'{made}: {"; ".join(net.report.notes)}.'
    path, recipe = Path(path), recipe_of(net)
    card = model_card(net, recipe, about)
    file = path if path.suffix == '.safetensors' else path/'model.safetensors'
    if file != path and not is_card(path/'README.md'):
        raise Refused(f'{path}/README.md is not of a published network: choose another folder, or FILE.safetensors')
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: t.detach().cpu().contiguous().clone() for k, t in net.state_dict().items()}
    if half: tensors = {k: in_half(k, t) for k, t in tensors.items()}
    ours = dict(recipe=recipe, version=__version__, classes=classes)
    meta = dict(format='pt', sagan_nb=json.dumps(ours), model_card=card)
    content = safetensors_bytes(tensors, dict(meta, sagan_nb_sha256=body_sha256(save(tensors))))
    sweep(file.parent, file.name + '.*')
    sweep(file.parent, 'README.md.*')
    with atomic_write(file) as part: part.write_bytes(content)
    if file == path: return file
    with atomic_write(path/'README.md') as part: part.write_text(card, encoding='utf-8')
    return file


def fits_biggan(r:dict):          # raises Refused where it does not
    "Check that BigGAN-PyTorch can express this network. Raises Refused if it cannot."
    short = [d or a != b for d, a, b in zip(r.get('down', ()), [3, *r['channels']], r['channels'])]
    other = [o for o in r['extra'].values() if not PEER_ATTENTION.items() <= o.items()]
    trouble = dict(zip(('a map block other than the released attention', 'normalised class tables',
                        'rectified shortcuts', 'sigma from stored vectors', "a head other than 'projection'",
                        'another batch norm epsilon',
                        'this choice of blocks that halve the map'),
                       (other, r.get('tables'), r.get('rectified'), r['sn'] and r['sn']['eval_sigma'] == 'stored',
                        r.get('head', 'projection') != 'projection',
                        any(abs(r[b]['eps'] - 1e-5) > 1e-7 for b in ('bn', 'bn_last') if b in r),
                        'down' in r and halving_blocks(short, 'biggan') != (r['down'], r['res']))))
    for what, there in trouble.items():
        if there: raise Refused(f'BigGAN-PyTorch has no name for {what}')


def lacking_one(gain:Tensor)->Tensor:       # in float32 where that is exact, else in float64
    "Subtract 1 such that adding 1 gives back the same bits."
    return gain - 1 if torch.equal(1 + (gain - 1), gain) else gain.double() - 1


def biggan_name(net:nn.Module, path:str)->str:
    "Translate the name of one of our modules."
    n, (first, *rest) = PEER_NAMES['biggan'], path.split('.')
    if first not in ('blocks', 'extra'): return n[type(net).__name__[0]][first]
    if isinstance(net, Generator): i = list(net.blocks).index(rest[0])
    elif first == 'blocks': i = int(rest[0])
    else: i = next(i for i, key in net.places.items() if key == rest[0])
    part = n[rest[1]] if len(rest) > 1 else ''
    return f'blocks.{i}.{int(first == "extra")}{part}'


def biggan_layer(m:nn.Module)->dict:        # the end of the name -> tensor
    "Write a linear layer, convolution or embedding as BigGAN-PyTorch stores it."
    p = m.parametrizations.weight if parametrize.is_parametrized(m, 'weight') else None
    out = dict(weight=p.original, u0=p[0].u[None], sv0=p[0].sigma(p.original)[None]) if p else dict(weight=m.weight)
    return out if getattr(m, 'bias', None) is None else dict(out, bias=m.bias)


def biggan_norm(m:ConditionalBatchNorm2d, last:bool)->dict:     # the end of the name -> tensor
    "Write a batch norm as BigGAN-PyTorch stores it: the last one whole, the others as tables of gain - 1."
    if last: affine = dict(gain=m.gain[0], bias=m.offset[0])
    else: affine = {'gain.weight': lacking_one(m.gain), 'bias.weight': m.offset}
    return dict(affine, stored_mean=m.mean, stored_var=m.var)


@torch.no_grad()
def to_biggan(
    net:nn.Module,                # Generator or Discriminator
)->dict:                          # name -> tensor, as BigGAN-PyTorch's state dict has them
    "Write our weights under BigGAN-PyTorch's names. Raises Refused for what it cannot express."
    fits_biggan(recipe_of(net))
    out = {}
    for path, m in net.named_modules():
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding)): part = biggan_layer(m)
        elif isinstance(m, ConditionalBatchNorm2d): part = biggan_norm(m, path == 'bn')
        elif isinstance(m, SelfAttention): part = dict(gamma=m.gamma)
        else: continue
        out |= {f'{biggan_name(net, path)}.{end}': t.detach().clone() for end, t in part.items()}
    return out


@torch.no_grad()
def divided_weights(
    net:nn.Module,                # Generator or Discriminator
)->nn.Module:                     # the same function without spectral norm, in evaluation mode
    "Divide all weights by their norms and drop spectral norm."
    r, state = recipe_of(net), {k: t for k, t in net.state_dict().items() if '.parametrizations.' not in k}
    for name, m in net.named_modules():
        if not hasattr(m, 'parametrizations'): continue
        for attribute, p in m.parametrizations.items():
            sn, was = p[0], (p[0].training, p[0].update)
            sn.training, sn.update = False, 'forward'
            state[f'{name}.{attribute}'] = getattr(m, attribute).detach().clone()
            sn.training, sn.update = was
    return restore_network(dict(r, sn=False, **{k: None for k in ('tables',) if k in r}), state)


def onnx_difference(
    path,                         # .onnx file
    net:Generator,                # what it was made of
)->float:                         # largest difference of a pixel, over three sizes of batch
    "Compare an ONNX file, run by onnxruntime, with the network."
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names, off, rng = [o.name for o in session.get_inputs()], [], torch.Generator().manual_seed(0)
    for n in (1, 2, 5):                                         # the file takes any number
        z, y = torch.randn(n, net.z_dim, generator=rng), torch.arange(n) % max(net.n_classes, 1)
        theirs = torch.from_numpy(session.run(None, {k: dict(z=z, y=y)[k].numpy() for k in names})[0])
        with torch.no_grad(): off.append((net(z, y) - theirs).abs().max())
    return torch.stack(off).max().item()                        # not a number, if any is none


def export_onnx(
    G:Generator,                  # the generator, for instance from `open_run(run)`
    path,                         # .onnx file to write
)->float:                         # largest difference of a pixel between torch and onnxruntime
    "Write an ONNX file (inputs z, y; output images) and try it. Raises Refused without the extra `export`."
    if not all(map(importlib.util.find_spec, ('onnx', 'onnxruntime', 'onnxscript'))):
        raise Refused('ONNX needs the optional packages: pip install "sagan_nb[export]"')
    net = divided_weights(G)
    for m in net.modules():
        if isinstance(m, SelfAttention): m.fast = False         # the explicit softmax: operators that every runtime has
        if isinstance(m, Conv2d): m.fold = 'none'               # no choice that depends on the size of the batch
    z, y = torch.zeros(2, G.z_dim), torch.zeros(2, dtype=torch.int64)
    used = dict(input_names=['z', 'y'] if G.n_classes else ['z'], output_names=['images'])
    axes = {name: {0: torch.export.Dim('batch')} for name in ('z', 'y')}
    with atomic_write(path) as part:
        torch.onnx.export(net, (z, y), str(part), dynamo=True, verbose=False, dynamic_shapes=axes, external_data=False,
                          **used)
        off = onnx_difference(part, net)
        if not off <= 1e-4: raise RuntimeError(f'{path}: other pictures than from torch (a pixel differs by {off:.2g})')
    return off


def export(
    run,                          # anything `open_run` takes
    format:str='safetensors',     # 'safetensors' or 'onnx'
    out:str=None,                 # file to write; None: beside the run, named after it
    half:bool=False,              # as in `save_pretrained`
)->Path:                          # the file
    "Publish a trained generator. Raises Refused for another format."
    if format not in ('safetensors', 'onnx'): raise Refused(f"format is {format!r}; choose 'safetensors' or 'onnx'")
    if half and format == 'onnx': raise Refused('--half is for safetensors')
    public = is_weights_name(run) or is_repo(run)
    path = Path(out or (re.sub('[:/]', '-', f'{run}.{format}') if public else f'{Path(run)}.{format}'))
    if format == 'safetensors': return save_pretrained(run, path, half=half)
    export_onnx(open_run(run).G, path)
    return path
