"Serves chapter 10: other people's protocols by name, and two sets of pictures measured without a generator."
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import __version__
from ..core import Refused, choose, from_uint8
from ..data import open_source
from ..distributed import Ranks
from .evaluate import Table, Task, check_metrics, collect_warnings, evaluate, in_turn, real_table, record, table_key
from .features import (INCEPTION_LAYERS, INCEPTION_SHA256, Features, InceptionNet, download_folder, inception,
                       open_features)
from .files import cache_folder, content_hash, fetch, file_sha256, refusing
from .listing import list_pictures, locate
from .packed import is_pack
from .pictures import open_picture, take_batch, threads_to_use


def by_torch(x:Tensor)->Tensor:             # uint8 (B, 3, H, W) -> (B, 3, 299, 299)
    "StudioGAN's default: torch's bilinear without antialiasing, half-pixel centres."
    return F.interpolate(x.float(), (299, 299), mode='bilinear', align_corners=False).clip(0, 255)/127.5 - 1


def by_pillow(x:Tensor)->Tensor:            # uint8 (B, 3, H, W) -> (B, 3, 299, 299)
    "Resize by clean-fid's rule: each channel as floats by Pillow's antialiased bicubic, clipped and not rounded."
    from PIL import Image
    def channel(c):
        resized = Image.fromarray(c.astype(np.float32)).resize((299, 299), Image.BICUBIC)
        return np.asarray(resized).clip(0, 255)
    with ThreadPoolExecutor(threads_to_use()) as pool:           # Pillow works beside Python
        out = np.stack([*pool.map(lambda picture: np.stack([*map(channel, picture)]), x.cpu().numpy())])
    return (torch.from_numpy(out).to(x.device) - 128) / 128


def by_pillow_in_bytes(x:Tensor)->Tensor:   # uint8 (B, 3, H, W) -> (B, 3, 299, 299)
    "mmgeneration's for the score: Pillow's bicubic on RGB pictures, which rounds to bytes."
    from PIL import Image
    def resize(p): return np.asarray(Image.fromarray(p).resize((299, 299), Image.BICUBIC))
    pictures = x.cpu().permute(0, 2, 3, 1).numpy()
    with ThreadPoolExecutor(threads_to_use()) as pool: resized = np.stack([*pool.map(resize, pictures)])
    return (torch.from_numpy(resized).to(x.device).permute(0, 3, 1, 2).float() - 128) / 128


class TorchInception(InceptionNet):
    "The 2015 Inception after StudioGAN's resize, with the bias of its last layer."
    prepare = staticmethod(by_torch)
    rule = 'torch bilinear to 299, logits with bias'

    def forward(self, x:Tensor)->tuple[Tensor,Tensor]:       # (B, 3, H, W) -> (B, 2048), (B, 1008)
        "Compute pooled features and logits of uint8 images or floats in [-1, 1]."
        h, logits = super().forward(x)
        return h, logits + self.net.fc.bias


class CleanInception(InceptionNet):
    "The 2015 Inception after clean-fid's resize."
    prepare = staticmethod(by_pillow)
    rule = 'Pillow bicubic to 299, floats'


class ByteInception(InceptionNet):
    "The 2015 Inception after mmgeneration's resize."
    prepare = staticmethod(by_pillow_in_bytes)
    rule = 'Pillow bicubic to 299, bytes'


TORCHVISION = 'inception_v3_google-0cc3c7bd.pth'


class TorchvisionInception(nn.Module):
    "Torchvision's own Inception as BigGAN-PyTorch calls it: normalised first, then resized with aligned corners."
    def __init__(self,
        state:dict,               # its weights
    ):
        super().__init__()
        from torchvision.models import inception_v3
        self.net = inception_v3(weights=None, init_weights=False, transform_input=False)
        self.net.load_state_dict(state)
        for name, v in dict(mean=(.485, .456, .406), std=(.229, .224, .225)).items():
            self.register_buffer(name, torch.tensor(v)[:, None, None])

    def forward(self, x:Tensor)->tuple[Tensor,Tensor]:       # (B, 3, H, W) -> (B, 2048), (B, 1000)
        "Compute pooled features and logits of uint8 images or floats in [-1, 1]."
        x = x.float()/127.5 - 1 if x.dtype == torch.uint8 else x
        x = ((x + 1)/2 - self.mean) / self.std
        if x.shape[2:] != (299, 299): x = F.interpolate(x, (299, 299), mode='bilinear', align_corners=True)
        for name in [o.replace('MaxPool_', 'maxpool') for o in INCEPTION_LAYERS[:-1]]: x = getattr(self.net, name)(x)
        h = x.mean((2, 3))
        return h, self.net.fc(h)


def torchvision_inception(
    path=None,                # file of weights; None: torch's download folder, fetched if it is not there
    device='cpu',             # where to
)->Features:
    "Open torchvision's Inception. Raises Refused where its weights are missing, or are other ones."
    url = f'https://download.pytorch.org/models/{TORCHVISION}'
    want = Path(path).expanduser() if path else download_folder()/TORCHVISION
    say, prefix = f'get {url} and put it at {want}', TORCHVISION[-12:-4]
    if not path: fetch(want, url, prefix, "torchvision's Inception", say)
    if not want.exists(): raise Refused(f'{want}: there is no such file; {say}')
    published = file_sha256(want).startswith(prefix)
    with refusing(f"{want}: not torchvision's Inception, or damaged; {say}"):
        net = TorchvisionInception(torch.load(want, map_location='cpu', weights_only=True)).to(device)
    name = "torchvision's Inception" if published else "torchvision's Inception with other weights"
    return Features(net, name, 'torch bilinear to 299, aligned corners', published)


@dataclass(frozen=True)
class Protocol:
    "How somebody measures: whose network, which resize, rounding, how many pictures, which real ones."
    net: object               # features; a kind of InceptionNet, or TorchvisionInception
    splits: int               # of the score; 0: no score
    real: str                 # the real pictures it wants
    n_real: int               # how many at most; None: all
    rounding: bool            # generated pictures rounded to bytes
    batch_norm: str           # of the generator
    whose: str                # where it was read
    score_net: object = None  # features of the score; None: the same
    n_fake: int = 50_000      # generated pictures


MOVING = 'moving averages'
PROTOCOLS = dict(
    tf2018=Protocol(InceptionNet, 1, 'training set, 50,000 at random', 50_000, False, MOVING,
                    'the released code of the paper'),
    biggan=Protocol(TorchvisionInception, 10, 'training set, all', None, False,
                    'moving averages or standing statistics',
                    'BigGAN-PyTorch, inception_utils.py: its monitor, not the TensorFlow score; its roots, of 50 steps '
                    'in float32, are exact here, and its splits, in order there, at random'),
    studiogan=Protocol(TorchInception, 1, 'training set, all', None, True, MOVING,
                       'StudioGAN: InceptionV3_tf, resizer legacy; '
                       'an older version took floats and the validation set'),
    mmgen=Protocol(InceptionNet, 10, 'training set, all', None, True, MOVING,
                   'mmgeneration: inception style StyleGAN, PIL resize for the score', ByteInception),
    clean=Protocol(CleanInception, 0, 'training set, all', None, True, MOVING,
                   'clean-fid, mode clean: FID and KID alone'))


def features_by(
    net,                      # of a Protocol
    paths:dict,               # 'inception' and 'torchvision': files of weights, where they are not in torch's folder
    device='cpu',             # where to
)->Features:
    "Open the network of a protocol. Raises Refused where its weights are missing."
    if net is TorchvisionInception: return torchvision_inception(paths.get('torchvision'), device)
    path = paths.get('inception')
    sha256 = file_sha256(path) if path and Path(path).is_file() else INCEPTION_SHA256
    rule = dict(resize=net.rule) if net is not InceptionNet else {}
    return inception(path, sha256, device, net, **rule)


def open_together(
    nets:set,                 # of protocols
    paths:dict,               # see `features_by`
    device='cpu',             # where to
    ranks:Ranks=None,         # see `evaluate`
)->dict:                      # net -> Features
    "Open networks. Raises Refused on every rank where any of them lacks weights."
    return in_turn(ranks or Ranks(0, 1), lambda: {net: features_by(net, paths, device) for net in nets})


def departures(
    p:Protocol,               # what was asked for
    n_fake:int,               # what there is
    source,                   # the real pictures
    about:dict,               # what is known of the generator
    drawn:bool=True,          # does a generator draw them, or are they pictures already, of any classes?
)->list:                      # sentences
    "Say how a measurement departs from its protocol; the real pictures are the caller's to know."
    out = [f'real pictures of the protocol: {p.real}']
    if n_fake != p.n_fake: out.append(f'{n_fake:,} generated pictures in place of {p.n_fake:,}')
    if p.n_real and len(source) < p.n_real: out.append(f'{len(source):,} real pictures in place of {p.n_real:,}')
    if not drawn and not p.rounding: out.append('generated pictures rounded to bytes in place of floats')
    if not drawn: out.append('labels as in the pictures in place of uniform ones')
    norm = about.get('batch_norm', '')
    if 'standing' in norm and 'standing' not in p.batch_norm:
        out.append(f'batch norm by {norm} in place of {p.batch_norm}')
    return out


def measure_by(
    name:str,                 # a key of PROTOCOLS
    fake,                     # a generator in evaluation mode, or a source of pictures
    source,                   # the real pictures
    n_fake:int=None,          # generated pictures; None: as many as the protocol has
    paths:dict=None,          # see `features_by`
    cache='default',          # see `evaluate`
    seed:int=0,               # see `evaluate`
    about:dict=None,          # what is known of the generator
    device='cpu',             # where features are computed; those of a generator where that is
    ranks=None,               # see `evaluate`
)->list:                      # records, each with `protocol` and `departures`
    "Measure by a named protocol. Raises Refused for an unknown one, and where its weights are missing."
    p, about = PROTOCOLS[choose(name, PROTOCOLS, 'protocol')], about or {}
    drawn = isinstance(fake, nn.Module)
    if drawn: device = next(fake.parameters()).device
    n = n_fake or p.n_fake if drawn else len(fake)
    said = dict(about, protocol=name, protocol_of=p.whose, departures=departures(p, n, source, about, drawn))
    nets = dict(distance=p.net, score=p.score_net or p.net) if p.splits else dict(distance=p.net, kid=p.net)
    opened, out = open_together({*nets.values()}, paths or {}, device, ranks), []
    for metric, net in nets.items():
        how = dict(features=opened[net], n_real=p.n_real or len(source), seed=seed, cache=cache, rounding=p.rounding,
                   about=said, ranks=ranks)
        if drawn: found = evaluate(fake, source, [metric], n_fake=n, **how)
        else: found = compare(fake, source, [metric], **how)
        out += [o for o in found if o.get('splits', p.splits) == p.splits]
    return out


def by_protocols(
    name:str,                 # a key of PROTOCOLS, or 'all'
    *how,                     # of `measure_by`: fake, source, n_fake, paths
    **more,                   # of `measure_by`: seed, about, device, ranks
)->list:                      # records
    "Measure by one protocol or by all whose weights are there. Raises Refused where none can be measured by."
    if name != 'all': return measure_by(name, *how, **more)
    out, why = [], {}
    for each in PROTOCOLS:
        try: out += measure_by(each, *how, **more)
        except Refused as e: why[each] = str(e)
    if not out: raise Refused(next(iter(why.values())))
    for each, reason in why.items(): print(f'not measured by {each}: {reason}')
    return out


def by_protocol_table(
    records:list,             # from `by_protocols`
)->str:                       # a line for each protocol, then how each departs from what it names
    "Show scores by protocol as text."
    from .terminal import text_table
    groups = {}
    for o in records: groups.setdefault(o['protocol'], []).append(o)
    def cell(found, metric):
        values = [o['value'] for o in found if o['metric'] == metric]
        return f'{values[0]:.4g}' if values and not isinstance(values[0], str) else '-'
    names = list(dict.fromkeys(o['metric'] for o in records))
    def how(o): return f'{o["features"]}, {o["resize"]}, {o["pictures"]}, {o["n_fake"]:,} against {o["n_real"]:,}'
    rows = [[each, *(cell(found, m) for m in names), how(found[0])] for each, found in groups.items()]
    notes = [f'{each}: {"; ".join(found[0]["departures"])}' for each, found in groups.items()]
    return '\n'.join([text_table(['protocol', *names, 'how'], rows), *notes])


def shuffled_table(
    source,                   # pictures
    features:Features,        # the network
    seed:int,                 # of the order
    rounding:bool,            # False: bytes become floats in [-1, 1]
    folder:Path,              # where features are kept; None: in memory
)->Table:
    "Prepare the features of all pictures in a random order, so that any part of them has all classes."
    rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    key = dict(table_key(features, rounding), shuffled=source.fingerprint, seed=seed)
    def make(a, b):
        x, _ = take_batch(source, rows[a:b])
        return x if rounding else from_uint8(x)
    return Table(source.labels[rows], make, features, folder and folder/f'fake-{content_hash({}, key)[:16]}')


def compare(
    fake,                     # generated pictures, from `open_source`
    source,                   # the real ones, of the same size
    metrics=('score', 'distance', 'intra'),   # any of METRICS
    features='domain',        # see `evaluate`
    n_real:int=None,          # real pictures, at most; None: 50,000, and all there are for the intra distance
    seed:int=0,               # of the choice of real pictures
    rounding:bool=True,       # False: bytes become floats in [-1, 1]
    cache='default',          # see `evaluate`
    about:dict=None,          # what else to say
    device='cpu',             # where features are computed
    ranks:Ranks=None,         # see `evaluate`
)->list:                      # records
    "Measure one set of pictures against another. Raises Refused for unknown metrics and for sizes that differ."
    check_metrics(metrics)
    if fake.res != source.res: raise Refused(f'{fake.spec} has {fake.res} px and {source.spec} {source.res} px')
    if min(len(fake), len(source)) < 2: raise Refused('a distance needs at least 2 pictures of each kind')
    ranks = ranks or Ranks(0, 1)
    net = features if isinstance(features, Features) else in_turn(ranks, open_features, features, source, cache, device)
    how = dict(features=net, seed=seed, rounding=rounding,
               folder=cache_folder() if cache == 'default' else cache and Path(cache))
    real, reference = (real_table(source, n=n_real or n, **how) for n in (50_000, len(source)))
    alike = list(fake.classes) == list(source.classes)
    by_class = real_table(fake, n=len(fake), **how) if alike else None
    task = Task(shuffled_table(fake, **how), by_class, real, reference, source, None)
    tables = [task.fake, real, reference]
    if alike: tables.append(by_class)
    for table in tables: table.ranks = ranks
    stamp = dict(features=net.name, features_hash=net.hash, resize=net.resize, n_fake=len(fake), n_real=real.n,
                 pictures='uint8' if rounding else 'uint8 as floats', seed=seed, labels='as in the pictures',
                 generator=fake.fingerprint, generated=fake.spec, data=source.spec, data_id=source.fingerprint,
                 unreadable=len(source.unreadable), version=__version__, **(about or {}))
    return [record(*found, stamp, net) for m in metrics for found in collect_warnings(getattr(task, m))]


def open_pair(
    real:str,                 # folder, zip, pack, .npz, or a name
    fake:str,                 # folder, zip, pack or .npz
    res:int=None,             # pixels per side; None: of the first generated picture
)->tuple:                     # two sources of one size; without labels where one side has none
    "Open two sets of pictures for a comparison. Raises Refused where one cannot be read."
    res = res or size_of(fake)
    made = []
    for spec, known in ((real, ('--unlabelled',)), (fake, ('--unlabelled', 'too deep'))):    # of real ones, name a part
        try: made.append(open_source(spec, res))
        except Refused as e:
            if not any(words in str(e) for words in known): raise
            return tuple(open_source(o, res, unlabelled=True) for o in (real, fake))
    return tuple(made)


def size_of(
    spec:str,                 # folder, zip, pack or .npz
)->int:                       # the shorter side
    "Read the size of the first picture. Raises Refused where there is none."
    from .arrays import find_arrays
    if spec.lower().endswith('.npz') and Path(spec).is_file(): return min(find_arrays(Path(spec))[0].shape[1:3])
    if is_pack(locate(spec)[0]): return open_source(spec).res
    listing = list_pictures(spec, unlabelled=True)
    try:
        with open_picture(listing.read(listing.names[0])) as picture: return min(picture.size)
    except Exception as e:
        raise Refused(f'{spec}: {listing.names[0]} cannot be read ({e}): say --res') from None
