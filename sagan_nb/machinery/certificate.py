"Serves chapter 13: a certificate for ports: somebody's attention, spectral norm, losses, G or D, and what deviates."
import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

from torch import nn

from ..core import Refused, choose
from .port_attention import DEVIATES, UNSURE, check_attention
from .port_layers import check_loss, check_norm
from .port_networks import check_discriminator, check_generator

KINDS = ('attention', 'norm', 'loss', 'generator', 'discriminator')
USUAL_SIZES = dict.fromkeys('channels in_dim in_channels in_planes in_channel ch num_feat c dim'.split(), 64)
USUAL_WORDS = dict(activation='relu', act='relu')


def find_object(
    spec:str,                 # MODULE:NAME or FILE.py:NAME
):                            # what has that name
    "Import what a spec names; this runs its code. Raises Refused where there is no such thing."
    place, _, name = spec.rpartition(':')
    if not place: raise Refused(f'{spec}: say MODULE:NAME or FILE.py:NAME')
    before = [*sys.path]
    try:
        if place.endswith('.py'):
            path = Path(place)
            if not path.is_file(): raise Refused(f'{place}: there is no such file')
            sys.path.insert(0, str(path.resolve().parent))
            found = importlib.util.spec_from_file_location('_ported', path)
            module = sys.modules['_ported'] = importlib.util.module_from_spec(found)         # where a dataclass looks
            found.loader.exec_module(module)
        else:
            sys.path.insert(0, '')
            module = importlib.import_module(place)
    except Refused: raise
    except (Exception, SystemExit) as e:
        raise Refused(f'{place} cannot be imported ({type(e).__name__}: {e})') from None
    finally: sys.path[:] = before
    if not hasattr(module, name): raise Refused(f'{place} has no {name}')
    return getattr(module, name)


def read_args(
    text:str,                 # 64, 'relu', key=3
)->tuple:                     # positional, by name
    "Read arguments as Python writes them, constants only. Raises Refused for anything else."
    try:
        call = ast.parse(f'f({text})', mode='eval').body
        return [ast.literal_eval(a) for a in call.args], {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise Refused(f"--args takes constants such as 64, 'relu', n=3; got {text}") from None


def needed(
    thing,                    # class or function
)->list:                      # parameters without a default
    "List what must be given."
    try: parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError): return []
    return [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def guess_kind(
    name:str,                 # how it is called
)->str:                       # one of KINDS
    "Guess what a thing is by its name. Raises Refused where that does not say."
    low = name.lower()
    for kind, words in dict(attention=('att', 'nonlocal', 'non_local'), generator=('generator', 'netg', 'g_net'),
                            discriminator=('discriminator', 'netd', 'd_net', 'critic'),
                            norm=('spectral', 'specnorm'), loss=('loss', 'hinge')).items():
        if any(w in low for w in words) or (kind in ('generator', 'discriminator') and low == kind[0]): return kind
    raise Refused(f'{name}: what is it? Say --what {"|".join(KINDS)}')


def build(
    thing,                    # class, function that builds, or a module that is built
    args:str,                 # as in sagan_check; None: guessed by the names of the parameters
)->nn.Module:
    "Make the module. Raises Refused where its arguments cannot be guessed, or it cannot be made."
    if isinstance(thing, nn.Module): return thing
    positional, named = read_args(args) if args else ([], {})
    usual = USUAL_SIZES | USUAL_WORDS
    for p in () if args else needed(thing):
        if p.name.lower() not in usual: raise Refused(f'{thing.__name__} needs {p.name}: say --args')
        positional.append(usual[p.name.lower()])
    try: made = thing(*positional, **named)
    except Exception as e:
        raise Refused(f'{thing.__name__} cannot be made ({type(e).__name__}: {e}): say --args') from None
    if not isinstance(made, nn.Module):
        raise Refused(f'{thing.__name__} makes a {type(made).__name__}, not a torch module')
    return made


def certify(
    thing,                    # what was imported
    kind:str,                 # one of KINDS
    args:str=None,            # to build it
    sizes:dict=None,          # channels, z_dim, n_classes, res
)->list:                      # Findings
    "Run what belongs to a kind. Raises Refused for an unknown kind, and where the thing does not run as one."
    choose(kind, KINDS, 'kind')
    s = dict(channels=64, z_dim=128, n_classes=10, res=32) | (sizes or {})
    try:
        if kind == 'norm': return check_norm(thing)
        if kind == 'loss': return check_loss(thing, min(2, len(needed(thing))))
        net = build(thing, args)
        if kind == 'attention': return check_attention(net, s['channels'])
        if kind == 'generator': return check_generator(net, s['z_dim'], s['n_classes'])
        return check_discriminator(net, s['res'], s['n_classes'])
    except Refused: raise
    except Exception as e:
        raise Refused(f'it does not run as {kind} ({type(e).__name__}: {e}): say --what, --args or sizes') from None


def deviations(
    found:list,               # Findings
)->int:
    "Count what deviates."
    return sum(f.verdict == DEVIATES for f in found)


def unknown(
    found:list,               # Findings
)->str:                       # 'formula', 'loss', or None
    "Name what is unlike everything that is known, so that nothing more could be asked."
    return next((f.what for f in found if f.verdict == UNSURE and f.what in ('formula', 'loss')), None)


def insist(
    found:list,               # Findings
):
    "Raise Refused where something deviates, or the formula could not be told."
    if n := deviations(found): raise Refused(f'{n} of {len(found)} properties deviate')
    if what := unknown(found): raise Refused(f'its {what} could not be told, so nothing is certified')


def certificate(
    spec:str,                 # as in sagan_check
    kind:str,                 # one of KINDS
    found:list,               # Findings
)->str:                       # lines: what deviates first
    "Write the findings."
    order = {DEVIATES: 0, UNSURE: 1}
    lines = [f'  {f.verdict:12} {f.what}: {f.words}' for f in sorted(found, key=lambda f: order.get(f.verdict, 2))]
    said = 'nothing deviates from the paper and its code'
    if what := unknown(found): said = f'not certified: its {what} could not be told'
    if n := deviations(found): said = f'{n} of {len(found)} properties deviate'
    return '\n'.join([f'{spec} as {kind}: {said}', *lines])
