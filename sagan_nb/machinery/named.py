"Serves chapter 06: public data sets by name: torchvision fetches, checks and reads them; `hf:NAME` needs `datasets`."
from pathlib import Path

from ..core import Refused, choose
from .files import cache_folder
from .listing import Listing
from .terminal import printable

TRAIN = dict(train=dict(train=True), test=dict(train=False))
SPLIT = dict(train=dict(split='train'), test=dict(split='test'))
NAMED = dict(              # name -> class in torchvision.datasets; what may follow a colon -> keywords
    cifar10=('CIFAR10', TRAIN), cifar100=('CIFAR100', TRAIN), mnist=('MNIST', TRAIN), fashion=('FashionMNIST', TRAIN),
    svhn=('SVHN', dict(SPLIT, extra=dict(split='extra'))),
    stl10=('STL10', dict(SPLIT, unlabeled=dict(split='unlabeled'))),
    celeba=('CelebA', dict(train=dict(split='train'))))
ONE_CHANNEL = 'mnist', 'fashion'
CELEBA = 'https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html'


def is_named(
    spec,                 # what a user says of the data
)->bool:
    "Does the spec name a public data set, as `cifar10`, `svhn:test` or `hf:NAME`?"
    name, colon, rest = str(spec).partition(':')
    return name in NAMED or (name == 'hf' and bool(colon and rest))


def data_folder()->Path:
    "Return where public data sets are kept: a folder of the cache."
    return cache_folder()/'data'


def what_to_get(
    kind,                 # class of torchvision.datasets
    options:dict,         # its keywords
    root:Path,            # where it looks
)->str:                   # addresses and the folder, for a sentence
    "Say what to download by hand, and where to put it."
    where = root
    if hasattr(kind, 'tgz_md5'): files = [(kind.url, kind.tgz_md5)]
    elif hasattr(kind, 'resources'):
        files, where = [(kind.mirrors[0] + name, md5) for name, md5 in kind.resources], root/kind.__name__/'raw'
    elif hasattr(kind, 'split_list'): files = [kind.split_list[options['split']][::2]]
    else:
        names = ', '.join(name for *_, name in kind.file_list)
        return f'get {names} from {CELEBA}, put them into {root/kind.base_folder} and unzip the pictures there'
    return f'get {", ".join(f"{url} (md5 {md5})" for url, md5 in files)} and put it into {where}'


def open_torchvision(
    name:str,             # a key of NAMED
    options:dict,         # keywords of its class
):                        # a data set of torchvision: pairs (PIL image, label)
    "Open a data set, downloading it once. Raises Refused, with what to get and where to put it, where that fails."
    from filelock import FileLock
    from torchvision import datasets
    kind, root = getattr(datasets, NAMED[name][0]), data_folder()
    root.mkdir(parents=True, exist_ok=True)
    lock, held = FileLock(root/f'.{name}.lock'), True                 # one process fetches and unpacks
    try: lock.acquire()
    except OSError: held = False                                   # a folder that cannot be written: it may be there
    try: return kind(root, download=held, **options)
    except (RuntimeError, OSError, EOFError, ImportError, ValueError) as e:
        why = f'{e}'.strip().splitlines()[-1] if f'{e}'.strip() else type(e).__name__
        raise Refused(f'{name} is not in {root} and cannot be downloaded here ({why}): '
                      f'{what_to_get(kind, options, root)}') from None
    finally: lock.release()


def attribute_labels(
    found,                # CelebA
    attribute:str,        # one of its forty, or ''
)->tuple[list,list]:      # labels, classes
    "Split faces by an attribute. Raises Refused for an unknown one, and where none is named."
    names = [n for n in found.attr_names if n]
    if not attribute:
        raise Refused('celeba has attributes and no classes: add --unlabelled, or name one, such as celeba:Smiling')
    column = names.index(choose(attribute, names, 'attribute of celeba'))
    return found.attr[:, column].tolist(), [f'not {attribute}', attribute]


def list_torchvision(
    spec:str,             # NAME, or NAME:SPLIT, or celeba:ATTRIBUTE
    unlabelled:bool,      # without labels
)->Listing:
    "List a data set of torchvision. Raises Refused where it cannot be had, and for a split that it lacks."
    name, _, option = spec.partition(':')
    kind, splits = NAMED[name]
    attribute = option if name == 'celeba' else ''
    split = next(iter(splits)) if attribute or not option else choose(option, splits, f'part of {name}')
    found = open_torchvision(name, splits[split])
    names = [f'{i:06}' for i in range(len(found))]
    if name in ONE_CHANNEL: print(f'{spec}: one channel of grey, repeated to three')
    def read(k): return found[int(k)][0]
    if unlabelled: return Listing(spec, names, [0] * len(names), [], read)
    if split == 'unlabeled': raise Refused(f'{spec} has no classes: add --unlabelled')
    if name == 'celeba': labels, classes = attribute_labels(found, attribute)
    else:
        labels = found.targets if hasattr(found, 'targets') else found.labels
        classes = getattr(found, 'classes', None) or [str(k) for k in range(10)]
    return Listing(spec, names, [int(k) for k in labels], list(classes), read)


def list_hub(
    spec:str,             # hf:NAME or hf:NAME:SPLIT
    unlabelled:bool,      # without labels
)->Listing:
    "List a data set of the Hugging Face hub by its first columns of images and classes. Raises Refused without them."
    try: from datasets import load_dataset
    except ImportError: raise Refused(f'{spec} needs another package: pip install datasets') from None
    name, _, split = spec.removeprefix('hf:').partition(':')
    try: found = load_dataset(name, split=split or 'train')
    except Exception as e:
        why = f'{e}'.strip().splitlines()
        raise Refused(f'{spec} cannot be loaded ({type(e).__name__}: {why[0] if why else ""})') from None
    def column(kind): return next((k for k, f in found.features.items() if type(f).__name__ == kind), None)
    images, classes = column('Image'), column('ClassLabel')
    if not images: raise Refused(f'{spec} has no column of images; it has {", ".join(found.features)}')
    names, read = [f'{i:06}' for i in range(len(found))], lambda k: found[int(k)][images]
    if unlabelled: return Listing(spec, names, [0] * len(names), [], read)
    if not classes: raise Refused(f'{spec} has no column of classes: add --unlabelled')
    labels = [*found[classes]]
    if any(k is None or k < 0 for k in labels): raise Refused(f'{spec} has pictures without a class: add --unlabelled')
    return Listing(spec, names, [int(k) for k in labels], [*map(printable, found.features[classes].names)], read)


def list_named(
    spec:str,             # see `is_named`
    unlabelled:bool=False,# without labels
)->Listing:               # what there is to read
    "List a public data set. Raises Refused where it cannot be had, or a file of the same name makes it unclear."
    if Path(spec).exists():
        raise Refused(f'{spec} is a public data set, and a file or folder called {spec} is here, too: '
                      f'say ./{spec} for that one')
    return (list_hub if spec.startswith('hf:') else list_torchvision)(spec, unlabelled)
