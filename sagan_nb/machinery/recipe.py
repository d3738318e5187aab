"Serves chapter 13: a network as plain data, and back."
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..blocks import ConditionalBatchNorm2d, ResidualControl, control_width, conv, map_block
from ..core import Refused
from ..networks import Discriminator, Generator
from ..self_attention import FORMS, SelfAttention
from ..spectral_norm import SpectralNorm, _advance, normalised, unit
from .local import LocalAttention
from .terminal import printable


MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError,
             RuntimeError)        # of data that is not ours


class PlusOne(nn.Module):
    "Adds the 1 that a stored gain lacks."
    def forward(self, t:Tensor)->Tensor:        # the same shape
        "Add one."
        return 1 + t

    def right_inverse(self, t:Tensor)->Tensor:  # the same shape
        "Take one away: what a gain that is set is stored as."
        return t - 1


def normalise_tables(
    bn:ConditionalBatchNorm2d,    # a layer whose `gain` is still a plain table
    **options,                    # keywords of `SpectralNorm`; dim=1: one column of the peer's matrix per class
):
    "Put spectral norm on the class tables; the gain becomes 1 + table / sigma (StudioGAN)."
    parametrize.register_parametrization(bn, 'gain', SpectralNorm(bn.gain, **options))
    parametrize.register_parametrization(bn, 'gain', PlusOne())
    parametrize.register_parametrization(bn, 'offset', SpectralNorm(bn.offset, **options))
    bn.register_forward_pre_hook(_advance)


def rectify_input(block:nn.Module, args:tuple)->tuple:
    "Rectify the input before a forward (a hook)."
    return tuple(F.relu(x) for x in args)


def rectify_shortcuts(
    net:Discriminator,            # every block but the first is changed
):
    "Rectify what the shortcuts see, as an in-place ReLU does."
    for block in list(net.blocks)[1:]: block.register_forward_pre_hook(rectify_input)


class LateU(SpectralNorm):
    "Spectral norm whose backward pass finds the new u where the forward pass used the old one (released code)."
    def sigma(self, weight:Tensor)->Tensor:     # a scalar with gradient to the weight
        "Compute the same value; in a pass that moved u, take the gradient of W^T u at the new u."
        if self.detach or not self.moves(): return super().sigma(weight)
        W, late = self.matrix(weight), self.matrix(weight).t() @ self.u.clone()
        a = late - late.detach() + (W.t() @ self.u_start).detach()
        v = unit(a, **self.eps)
        return unit(W @ v, **self.eps) @ (W @ v)


def read_u_late(
    net:nn.Module,                # its spectral norms are changed
):
    "Give every spectral norm the released code's gradient."
    for _, sn, _ in normalised(net): sn.__class__ = LateU


def norm_options(bn:ConditionalBatchNorm2d)->dict:
    "Read off the keywords a batch norm was made with."
    return {k: getattr(bn, k) for k in ('eps', 'momentum', 'unbiased', 'ghost', 'ghost_update')}


def mixed_norm(
    bn:ConditionalBatchNorm2d,    # with classes; its tables may be normalised
    weights:Tensor,               # share of each class in each mixture, (T, K)
)->ConditionalBatchNorm2d:        # another, with plain tables
    "Mix the class tables. (To remove a parametrization from a copy of a layer takes it off the layer, too: torch.)"
    mixed = ConditionalBatchNorm2d(len(bn.mean), len(weights), **norm_options(bn))
    for name in ('gain', 'offset'):
        table = getattr(bn, name).detach()
        setattr(mixed, name, nn.Parameter(weights.to(table) @ table))
    mixed.mean, mixed.var = bn.mean, bn.var
    return mixed.train(bn.training)


def sn_options(sn:SpectralNorm)->dict:
    "Read off the keywords a spectral norm was made with."
    return dict(update=sn.update, eval_sigma=sn.eval_sigma, detach=sn.detach, steps=sn.steps, **sn.eps)


def layer_options(layer:nn.Module):
    "Read off the argument `sn` of a layer: options, or False."
    return sn_options(layer.parametrizations.weight[0]) if parametrize.is_parametrized(layer, 'weight') else False


def map_options(
    block:nn.Module,              # attention or a control
)->dict:                          # keywords of `map_block`, without channels and sn
    "Say how to make another block like this one."
    if isinstance(block, SelfAttention): return dict(block='attention', form=block.form, reduction=block.reduction)
    if isinstance(block, LocalAttention): return dict(block='local')
    if not isinstance(block, ResidualControl):
        raise Refused(f'{type(block).__name__} is no block of ours: a file could not bring it back; '
                      'torch.save(net.state_dict(), FILE) keeps its weights')
    return control_options(*block.conv1.weight.shape[:3])


def control_options(hidden:int, C:int, size:int)->dict:
    "Find options that give a residual control of this width. Raises Refused if there are none."
    for reduction in (8, *range(1, C + 1)):
        for form in FORMS:
            try: found = control_width(C, form, reduction, size)[0]
            except Refused: continue
            if found != hidden: continue
            return dict(block='residual' if size == 1 else 'residual3x3', form=form, reduction=reduction)
    raise Refused(f'no residual control has {hidden} hidden channels at {C} channels')


def recipe_of(
    net:nn.Module,                # Generator or Discriminator
)->dict:                          # plain data, fit for JSON; `restore_network` makes the same network from it
    """Write down everything that makes this network, except its tensors. Raises Refused for one that would come back
    as another."""
    r = read_off(net)
    check_recipe(net, r)
    return r


def read_off(
    net:nn.Module,                # Generator or Discriminator
)->dict:                          # plain data; what differs from layer to layer is read off one of them
    "Write down what a network looks like."
    if type(net) not in (Generator, Discriminator):
        raise Refused(f'{type(net).__name__} is no Generator or Discriminator of ours, and a file could not bring its '
                      'class back; torch.save(net.state_dict(), FILE) keeps its weights')
    r = dict(kind=type(net).__name__, res=net.res, n_classes=net.n_classes, channels=list(net.widths),
             sn=layer_options(net.linear))
    D = isinstance(net, Discriminator)
    place = {key: i for i, key in net.places.items()} if D else {key: key for key in net.extra}
    r['late_u'] = bool(r['sn']) and isinstance(net.linear.parametrizations.weight[0], LateU)
    if strange := {*net.extra} - {*(place if D else net.blocks)}:
        raise Refused(f'there is no map {[*strange][0]}: the block on it is never called')
    r['extra'] = {key: dict(map_options(block), at=place[key]) for key, block in net.extra.items()}
    if D:
        hooks = [list(b._forward_pre_hooks.values()) for b in net.blocks]
        inner = [b.conv1.weight.shape[0] for b in net.blocks]
        return dict(r, head=net.head, down=[b.down for b in net.blocks],
                    rectified=any(rectify_input in h for h in hooks),
                    inner=inner if inner != list(net.widths) else None)
    first = next(iter(net.blocks.values())).bn1
    table = first.parametrizations.gain[0] if parametrize.is_parametrized(first, 'gain') else None
    return dict(r, z_dim=net.z_dim, bn=norm_options(first), bn_last=norm_options(net.bn),
                tables=table and dict(sn_options(table), dim=table.dim))


def layer_facts(m:nn.Module)->dict:     # what a recipe must bring back, beside the tensors
    "Read off how a layer computes."
    if isinstance(m, ConditionalBatchNorm2d): return dict(norm_options(m), classes=m.n_classes)
    if isinstance(m, SpectralNorm): return dict(sn_options(m), dim=m.dim)
    return {}


def made_of(m:nn.Module)->type:         # its class, as it was before a weight was normalised
    "Tell the class of a layer."
    return type(m).__bases__[0] if parametrize.is_parametrized(m) else type(m)


def check_recipe(
    net:nn.Module,                # any network of ours
    r:dict,                       # its recipe
):
    "Check that a recipe makes this network. Raises Refused, naming the first layer that it would make otherwise."
    with torch.device('meta'), NoDraws(): made = shape_net(r)
    there = dict(net.named_modules())
    for name, m in made.named_modules():
        own = there.pop(name, None)
        if made_of(own) != made_of(m):
            here = 'nothing' if own is None else made_of(own).__name__
            raise Refused(f'{name}: a file would bring back {made_of(m).__name__}, and here is {here}')
        if layer_facts(own) != layer_facts(m):
            raise Refused(f'{name}: its options differ from those of other layers of its kind, and would be lost')
    if there: raise Refused(f'{[*there][0]}: a file would not bring it back')


def shape_net(
    r:dict,                       # from `recipe_of` or `convert`
)->nn.Module:                     # on the current default device
    "Build the network of a recipe, with initial weights."
    shape = dict(res=r['res'], n_classes=r['n_classes'], channels=tuple(r['channels']), sn=r['sn'], attn_at=())
    if r['kind'] == 'Generator': net = Generator(**shape, z_dim=r['z_dim'], bn=r['bn'], bn_last=r['bn_last'])
    else: net = Discriminator(**shape, head=r['head'], down=tuple(r['down']))
    add_map_blocks(net, r)
    for block, inner in zip(net.blocks, r.get('inner') or ()):
        c_in, c_out = block.conv1.weight.shape[1], len(block.conv2.bias)
        how = dict(resample=block.conv2.resample, fold=block.conv2.fold)
        block.conv1, block.conv2 = conv(c_in, inner, 3, r['sn']), conv(inner, c_out, 3, r['sn'], **how)
    if r.get('rectified'): rectify_shortcuts(net)
    if r.get('late_u'): read_u_late(net)
    if r.get('tables'):
        for block in net.blocks.values():
            for bn in (block.bn1, block.bn2): normalise_tables(bn, **r['tables'])
    return net


def add_map_blocks(
    net:nn.Module,                # changed in place
    r:dict,                       # its recipe
):
    "Put the blocks of a recipe on its maps."
    for key, o in r['extra'].items():
        block = net.blocks[o['at']]
        C = len(block.conv2.bias)
        if o['block'] == 'local': net.extra[key] = LocalAttention(C, r['sn'])
        else: net.extra[key] = map_block(o['block'], C, o['form'], o['reduction'], r['sn'])
        if r['kind'] == 'Discriminator':
            others = {i: k for i, k in net.places.items() if k != key}
            net.places = others | {int(o['at']): key}
    net.attn_at = tuple(sorted({int(key.split('_')[0]) for key in r['extra']}))


class NoDraws(torch.overrides.TorchFunctionMode):
    "Leaves out drawing initial values, u and v: they take longest of all, and would be overwritten."
    kept = (nn.init.kaiming_uniform_, nn.init.xavier_uniform_, nn.init.uniform_, nn.init.normal_,
            Tensor.uniform_, Tensor.normal_, Tensor.clamp_min)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        "Return tensors of the right shape, without values."
        if func in self.kept: return args[0] if args else kwargs['tensor']
        if func is Tensor.div: return args[0].view_as(args[0])           # autograd wants another tensor than went in
        if func is torch.randn: return torch.empty(*args)
        if func is Tensor.norm: return args[0].new_empty(())
        if func is Tensor.matmul: return args[0].new_empty(len(args[0]))
        return func(*args, **(kwargs or {}))


def check_sizes(
    recipe:dict,                  # possibly from a stranger
    state:dict,                   # its tensors
):
    "Check sizes before any memory is taken. Raises Refused for a recipe that asks for more than its tensors hold."
    largest = max((n for t in state.values() for n in t.shape), default=0)
    sizes = (*recipe['channels'], recipe['n_classes'], recipe.get('z_dim', 0), *(recipe.get('inner') or ()))
    if len(recipe['channels']) > 10 or not all(type(n) is int and 0 <= n <= largest for n in sizes):
        raise Refused(f'the recipe asks for sizes {sizes}, but no tensor has an axis longer than {largest}')


def check_options(
    recipe:dict,                  # possibly from a stranger
):
    "Check the options of spectral and batch norm. Raises Refused for one that is no small number."
    for name in ('sn', 'bn', 'bn_last', 'tables'):
        options = recipe.get(name)
        for k, v in (options if isinstance(options, dict) else {}).items():
            number = type(v) in (int, float) and 0 <= v <= (100 if k == 'steps' else 1)
            if k in ('eps', 'momentum', 'steps') and not number: raise Refused(f'the recipe has {k} {v!r} in {name}')


def check_tensors(
    ours:dict,                    # tensors that the network has
    state:dict,                   # tensors that are given
    kind:str,                     # 'Generator' or 'Discriminator'
):
    "Check that a network can take these tensors. Raises Refused, naming the first difference."
    for name, t in ours.items():
        if name not in state: raise Refused(f'{name} is missing: the file does not hold a whole {kind}')
        if state[name].shape != t.shape:
            raise Refused(f'{name} has shape {tuple(state[name].shape)}; this {kind} takes {tuple(t.shape)}')
    for name in state:
        if name not in ours: raise Refused(f'{name} has no place in this {kind}')


def class_names_of(
    ours:dict,                    # what `save_pretrained` wrote beside the tensors
    recipe:dict,                  # its recipe
)->list:                          # [] where the file has none
    "Read the names of the classes. Raises Refused where they do not fit the recipe."
    names = ours.get('classes') or []
    texts = isinstance(names, list) and all(isinstance(o, str) for o in names)
    if not texts or len(names) not in (0, recipe.get('n_classes')):
        raise Refused('the class names in this safetensors file do not fit its classes')
    return [*map(printable, names)]


def restore_network(
    recipe:dict,                  # from `recipe_of` or `convert`
    state:dict,                   # tensors under our names
)->nn.Module:                     # in evaluation mode
    "Build a network from its tensors, without drawing initial weights. Raises Refused, naming the first difference."
    try:
        check_sizes(recipe, state)
        check_options(recipe)
        with torch.device('meta'), NoDraws(): ours = shape_net(recipe).state_dict()      # takes no memory yet
    except Refused: raise
    except MALFORMED as e:
        raise Refused(f'this recipe is not one of ours ({type(e).__name__}: {e})') from None
    check_tensors(ours, state, recipe['kind'])
    with NoDraws(): net = shape_net(recipe)
    kinds = {t.dtype for t in state.values() if t.is_floating_point()}
    if kinds == {torch.float64}: net = net.double()     # it stays so, bit for bit; halves are computed with in float32
    net.load_state_dict(state)
    return net.eval()
