"Serves chapter 10: the networks whose features are compared: Inception, and a classifier trained on the pictures."
import hashlib
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Refused, from_uint8
from .dino import DINO_SHA256, DINO_URL, Dino
from .files import as_bytes, cache_folder, content_hash, fetch, file_sha256, read_cache, refusing, write_cache
from .machine import steady_kernels
from .pictures import take_batch
from .terminal import progress


def tf1_resize(
    x:Tensor,                 # pictures, float or uint8, (B, C, H, W)
    size:int,                 # pixels per side of the result
)->Tensor:                    # float, (B, C, size, size)
    "Resize as TensorFlow 1 does (bilinear, align_corners off): corners aligned at 0, no half pixel, no antialiasing."
    if not x.is_floating_point(): x = x.float()          # bytes would wrap around
    def axis(n):
        at = torch.arange(size, dtype=torch.float32, device=x.device) * torch.tensor(n / size, dtype=torch.float32)
        low = at.long()
        return low, (low + 1).clamp_max(n - 1), (at - low).to(x.dtype)
    (top, bottom, dy), (left, right, dx) = axis(x.shape[2]), axis(x.shape[3])
    def across(row): return row[..., left] + (row[..., right] - row[..., left]) * dx
    upper, lower = across(x[:, :, top]), across(x[:, :, bottom])
    return upper + (lower - upper) * dy[:, None]


def weights_hash(
    net:nn.Module,            # network
)->str:                       # 16 hex digits
    "Hash weights, buffers and the settings of our own layers: with other settings, equal weights compute otherwise."
    h = hashlib.sha256()
    simple = int, float, str, type(None)
    for name, v in sorted(net.state_dict().items()): h.update(as_bytes(name, v))
    def plain(v): return isinstance(v, simple) or isinstance(v, tuple) and all(map(plain, v))
    def setting(v): return v if plain(v) else None           # a tuple of tensors is not there in a network just loaded
    for name, m in net.named_modules():
        if type(m).__module__.startswith('torch.'): continue
        own = {k: setting(v) for k, v in vars(m).items()
               if isinstance(v, (*simple, tuple)) and k != 'training' and not k.startswith('_')}
        h.update(f'{name} {type(m).__name__} {sorted(own.items())}'.encode())
    return h.hexdigest()[:16]


class Features:
    "A frozen network that turns images into features and class logits, with its name and the hash of its weights."
    def __init__(self,
        net:nn.Module,            # pictures uint8, or float in [-1, 1], (B, 3, H, W) -> features (B, d), logits (B, K)
        name:str,                 # to print
        resize:str='none',        # how the network resizes its input
        published:bool=False,     # is it the Inception of the published numbers?
        facts:dict=None,          # what else to say of it, such as its accuracy
    ):
        self.net, self.hash = net.eval().requires_grad_(False), weights_hash(net)
        self.name, self.resize, self.published, self.facts = name, resize, published, facts or {}

    @torch.no_grad()
    def __call__(self, x:Tensor)->tuple[Tensor,Tensor]:      # pictures (B, 3, H, W) -> features (B, d), logits (B, K)
        "Compute features and logits of a batch in full precision; float32, on the CPU."
        device = next(self.net.parameters()).device
        with steady_kernels(): out = self.net(x.to(device))
        return tuple(o.float().cpu() for o in out)


INCEPTION = 'weights-inception-2015-12-05-6726825d.pth'
INCEPTION_SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
INCEPTION_URL = 'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/' + INCEPTION
INCEPTION_LAYERS = ('Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 MaxPool_1 Conv2d_3b_1x1 Conv2d_4a_3x3 MaxPool_2 '
                    'Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e '
                    'Mixed_7a Mixed_7b Mixed_7c AvgPool').split()


def download_folder()->Path:      # ~/.cache/torch/hub/checkpoints, or as TORCH_HOME says
    "Find where torch keeps weights that it fetched. Raises Refused for a user without a home folder."
    folder = Path(torch.hub.get_dir())
    if str(folder).startswith('~'): raise Refused('no home folder here: name one for weights in TORCH_HOME')
    return folder/'checkpoints'


def inception_file(
    path=None,                # where the weights are; None: where torch keeps downloads, fetched if they are not there
    sha256:str=INCEPTION_SHA256,      # what the file must hash to
)->Path:                      # a file with this content
    "Find or download the file of weights. Raises Refused, with name, hash and place, if it is missing or another file."
    want = Path(path).expanduser() if path else download_folder()/INCEPTION
    say = f'{INCEPTION} (sha256 {sha256}), from {INCEPTION_URL}; put it at {want}, or say --features inception:PATH'
    if not want.exists() and path: raise Refused(f'{want}: there is no such file. Inception features need {say}')
    fetch(want, INCEPTION_URL, sha256, 'the Inception weights', f'they are {say}')
    if (found := file_sha256(want)) != sha256:
        raise Refused(f'{want} has sha256 {found}: not the file that is needed, which is {say}')
    return want


class InceptionNet(nn.Module):
    "The 2015 Inception as ported by torch-fidelity, run layer by layer, so that it also takes floats."
    def __init__(self,
        state:dict,               # its weights
    ):
        super().__init__()
        import io
        try: from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Port
        except ImportError: raise Refused('Inception needs torch-fidelity: pip install "sagan_nb[fid]"') from None
        safe = io.BytesIO()          # torch-fidelity unpickles what it is given: it is given what was written here
        torch.save(state, safe)
        safe.seek(0)
        self.net = Port('inception', ['2048', 'logits_unbiased'], feature_extractor_weights_path=safe)

    def prepare(self, x:Tensor)->Tensor:                     # (B, 3, H, W) -> (B, 3, 299, 299)
        "Resize as the released code does, and scale bytes to [-1, 1)."
        return (tf1_resize(x.float(), 299) - 128) / 128 if x.dtype == torch.uint8 else tf1_resize(x, 299)

    def forward(self, x:Tensor)->tuple[Tensor,Tensor]:       # (B, 3, H, W) -> (B, 2048), (B, 1008)
        "Compute pooled features, and logits without bias, of uint8 images or floats in [-1, 1]."
        x = self.prepare(x)
        for name in INCEPTION_LAYERS: x = getattr(self.net, name)(x)
        x = x.flatten(1)
        return x, x @ self.net.fc.weight.T


def inception(
    path=None,                # file of weights; None: torch's download folder
    sha256:str=INCEPTION_SHA256,      # what it must hash to; other weights than the published ones are named as such
    device='cpu',             # where to
    net=InceptionNet,         # made of the weights; another one resizes otherwise
    resize:str='TF1 bilinear to 299',         # what it does, in words
)->Features:                  # 2048 wide, 1008 logits
    "Open the features of FID and IS. Raises Refused if torch-fidelity or the weights are missing."
    path = inception_file(path, sha256)
    with refusing(f'{path}: holds more than weights, other weights, or is damaged'):
        made = net(torch.load(path, map_location='cpu', weights_only=True))
    published = sha256 == INCEPTION_SHA256
    name = 'inception' if published else 'Inception with other weights'
    return Features(made.to(device), name, resize, published, dict(file_sha256=sha256))


class Classifier(nn.Module):
    "A small convolutional classifier whose features are the mean over the last map."
    version = 1               # of design and training; part of the cache key
    def __init__(self,
        res:int,                  # pixels per side; halved by each layer until 4
        n_classes:int,            # K
    ):
        super().__init__()
        depth = max(2, math.ceil(math.log2(res / 4)))
        widths = [3, *[min(32 * 2**i, 128) for i in range(depth)]]
        def layer(a, b): return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        last = nn.Conv2d(widths[-1], 128, 3, 1, 1), nn.ReLU()
        self.layers = nn.Sequential(*[layer(a, b) for a, b in zip(widths, widths[1:])], *last)
        self.linear = nn.Linear(128, n_classes)

    def forward(self, x:Tensor)->tuple[Tensor,Tensor]:       # (B, 3, H, W) -> (B, 128), (B, K)
        "Compute features and logits of uint8 images or floats in [-1, 1]."
        h = self.layers(from_uint8(x) if x.dtype == torch.uint8 else x).mean((2, 3))
        return h, self.linear(h)


def task_of(
    source,                   # pictures
    indices:Tensor,           # which, (B,)
    rng:torch.Generator,      # of the turns
):                            # pictures uint8 (B, 3, H, W), what to tell (B,)
    "Take images and their classes; with fewer than two classes, turn the images by 0 to 3 quarters and tell the turn."
    x, y = take_batch(source, indices)
    if len(source.classes) > 1: return x, y
    turn = torch.randint(4, (len(x),), generator=rng)
    return torch.stack([p.rot90(int(k), (1, 2)) for p, k in zip(x, turn)]), turn


@torch.no_grad()
def held_out_accuracy(
    net:Classifier,           # in evaluation mode
    source,                   # pictures
    indices:Tensor,           # which, (n,)
    device,                   # where the network is
)->float:                     # 0..1
    "Compute the share of images that the network gets right."
    rng, right = torch.Generator().manual_seed(1), 0
    for part in indices.split(200):
        x, y = task_of(source, part, rng)
        right += (net(x.to(device))[1].argmax(1).cpu() == y).sum().item()
    return right / len(indices)


FEWEST = 20               # pictures from which a classifier can learn


class TooFew(Refused):
    "There are so few pictures that nothing can be measured by them, whatever a run does."


def train_classifier(
    source,                   # pictures, from `open_source`
    seed:int=0,               # of weights, split and order
    device='cpu',             # where to
)->tuple[Classifier,dict]:    # the network, and what to say of it
    "Train the domain classifier, holding out a tenth (at most 2,000); stop early when nothing is left to learn."
    rng, n, K, began = torch.Generator().manual_seed(seed), len(source), len(source.classes), time.perf_counter()
    if n < FEWEST: raise TooFew(f'{source.spec} holds {n} pictures: too few for a classifier; say --features inception')
    told = K if K > 1 else 4                                 # classes, or quarter turns
    tenth = min(n // 10, 2000)
    held, rest = torch.randperm(n, generator=rng).split([tenth, n - tenth])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = Classifier(source.res, told).to(device).train()
    opt, right = torch.optim.AdamW(net.parameters(), lr=2e-3), 0.
    steps = min(max(200, 2*n // 64), 5000)                   # two rounds through the pictures
    for t in progress(range(steps), 'training the classifier that measures, once'):
        x, y = task_of(source, rest[torch.randint(len(rest), (64,), generator=rng)], rng)
        logits, y = net(x.to(device))[1], y.to(device)
        opt.zero_grad()
        F.cross_entropy(logits, y).backward()
        opt.step()
        right = .95*right + .05*(logits.argmax(1) == y).float().mean().item()
        if t >= 199 and right > .995: break
    net.eval().requires_grad_(False)
    accuracy, seconds = held_out_accuracy(net, source, held, device), round(time.perf_counter() - began, 1)
    return net, dict(task='classes' if K > 1 else 'quarter turns', accuracy=accuracy, held_out=len(held),
                     chance=1/told, steps=t + 1, seconds=seconds, data_id=source.fingerprint)


def domain(
    source,                   # the real pictures
    cache='default',          # folder; 'default': cache_folder(); None: keep nothing
    seed:int=0,               # of the training
    device='cpu',             # where to
)->Features:                  # 128 wide, K logits
    """Train a classifier on these images, once, and return its features.

    It is kept under a key made of content, in the folder and in cache_folder(): another folder need not train it.
    """
    key = dict(version=Classifier.version, data_id=source.fingerprint, classes=len(source.classes), seed=seed)
    name = f'classifier-{content_hash({}, key)[:16]}.safetensors'
    folders = [] if cache is None else [cache_folder()]
    if cache not in (None, 'default'): folders.insert(0, Path(cache))
    found = {o/name: read_cache(o/name) for o in dict.fromkeys(folders)}
    if kept := next(filter(None, found.values()), None):
        net, facts = Classifier(source.res, len(kept[0]['linear.bias'])).to(device), kept[1]
        net.load_state_dict(kept[0])
    else: net, facts = train_classifier(source, seed, device)
    for path in [path for path, o in found.items() if not o]:
        write_cache(path, {k: v.cpu() for k, v in net.state_dict().items()}, facts)
    what = 'classifier' if facts['task'] == 'classes' else 'rotation classifier'
    return Features(net, f'{what} of {source.spec}', 'none', facts=facts)


CLIP = 'clip-vit-b-32'


class ClipNet(nn.Module):
    "The image half of CLIP as ported by torch-fidelity. It knows no classes: its logits have no columns."
    def __init__(self,
        state:dict,               # weights of CLIP, of any size, under OpenAI's names
    ):
        super().__init__()
        from torch_fidelity.feature_extractor_clip import build_model
        self.visual = build_model(dict(state), torch.float32).visual
        for name, v in dict(mean=(.48145466, .4578275, .40821073), std=(.26862954, .26130258, .27577711)).items():
            self.register_buffer(name, torch.tensor(v)[:, None, None])

    def forward(self, x:Tensor)->tuple[Tensor,Tensor]:       # (B, 3, H, W) -> (B, d), (B, 0)
        "Compute the embedding of uint8 images or floats in [-1, 1]."
        x = x.float() if x.dtype == torch.uint8 else (x + 1)*127.5
        h = self.visual((tf1_resize(x, self.visual.input_resolution)/255 - self.mean) / self.std)
        return h, h[:, :0]


class DinoNet(nn.Module):
    "DINOv2 behind the resize of torch-fidelity. It knows no classes: its logits have no columns."
    def __init__(self,
        state:dict,               # as of `Dino`
    ):
        super().__init__()
        self.net = Dino(state)
        for name, v in dict(mean=(.485, .456, .406), std=(.229, .224, .225)).items():
            self.register_buffer(name, torch.tensor(v)[:, None, None]*255)

    def forward(self, x:Tensor)->tuple[Tensor,Tensor]:       # (B, 3, H, W) -> (B, d), (B, 0)
        "Compute the class token of uint8 images or floats in [-1, 1]."
        x = x.float() if x.dtype == torch.uint8 else (x + 1)*127.5
        h = self.net((tf1_resize(x, 224) - self.mean) / self.std)
        return h, h[:, :0]


def weights_file(
    what:str,                 # whose weights, in words
    spec:str,                 # as --features calls them
    path,                     # where the file is; None: in torch's download folder, fetched if it is not there
    file:str,                 # its name there
    url:str,                  # where it comes from
    sha256:str,               # what it must hash to if it is fetched
)->tuple[Path,str]:           # the file; what to say of a wrong one
    "Find or download a file of weights. Raises Refused, with address, hash and place, where it is missing."
    want = Path(path).expanduser() if path else download_folder()/file
    say = f'get {url} (sha256 {sha256}) and put it at {want}, or say --features {spec}:PATH'
    if path and not want.is_file(): raise Refused(f'{want}: there is no such file; {say}')
    fetch(want, url, sha256, f'the weights of {what}', say)
    return want, say


def clip(
    path=None,                # file of weights; None: torch's download folder, fetched if it is not there
    device='cpu',             # where to
)->Features:
    "Open the features of CLIP. Raises Refused if torch-fidelity or the weights are missing."
    try: from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS
    except ImportError: raise Refused('CLIP needs torch-fidelity: pip install "sagan_nb[fid]"') from None
    sha256 = MODEL_METADATA[CLIP]['hash']
    want, say = weights_file('CLIP', 'clip', path, f'{CLIP}-{sha256}.pt', MODEL_URLS[CLIP], sha256)
    found = file_sha256(want)
    with refusing(f'{want}: neither the published CLIP nor a state dict; {say}'):
        # the published file is a program, trusted for its hash; others may hold tensors only
        if found == sha256: state = torch.jit.load(str(want), map_location='cpu').state_dict()
        else: state = torch.load(want, map_location='cpu', weights_only=True)
        net = ClipNet(state)
    name = CLIP if found == sha256 else 'CLIP with other weights'
    resize = f'TF1 bilinear to {net.visual.input_resolution}'
    return Features(net.to(device), name, resize, facts=dict(file_sha256=found))


def dinov2(
    path=None,                # file of weights, of S, B or L; None: B, as `clip` finds its own
    device='cpu',             # where to
)->Features:
    "Open the features of DINOv2. Raises Refused if the weights are missing or others."
    url, sha256 = DINO_URL.format('b'), DINO_SHA256['b']
    want, say = weights_file('DINOv2', 'dinov2', path, url.rsplit('/', 1)[1], url, sha256)
    found = file_sha256(want)
    with refusing(f'{want}: no DINOv2 of size S, B or L without registers; {say}'):
        net = DinoNet(torch.load(want, map_location='cpu', weights_only=True))
    size = next((k for k, v in DINO_SHA256.items() if v == found), None)
    name = f'dinov2-vit-{size}-14' if size else 'DINOv2 with other weights'
    return Features(net.to(device), name, 'TF1 bilinear to 224', facts=dict(file_sha256=found))


def check_features(
    spec:str,                 # as of `open_features`
)->tuple[str,str]:            # name, path or ''
    "Take a name of features apart. Raises Refused for one that is none, before anything is opened."
    name, _, path = str(spec).partition(':')
    if name in ('inception', 'clip', 'dinov2') or spec == 'domain': return name, path
    raise Refused(f'there are no features {spec!r}; choose domain, inception, clip, dinov2, '
                  'or one of the last three with a file: clip:PATH')


def open_features(
    spec:str,                 # 'domain', 'inception', 'clip', 'dinov2', or one of the last three with :PATH
    source,                   # the real pictures
    cache='default',          # as in domain
    device='cpu',             # where to
)->Features:                  # the network
    "Open features by name. Raises Refused for an unknown name."
    name, path = check_features(spec)
    if name == 'domain': return domain(source, cache, device=device)
    return dict(inception=inception, clip=clip, dinov2=dinov2)[name](path or None, device=device)
