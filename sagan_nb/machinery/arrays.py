"Serves chapter 06: pictures in an .npz, as samplers of several projects write them."
from pathlib import Path

import numpy as np

from ..core import Refused
from .files import need_handles, read_npz, refusing
from .listing import Listing
from .terminal import printable

PICTURES, LABELS, NAMES = ('arr_0', 'x', 'images', 'samples'), ('arr_1', 'y', 'labels'), 'classes'


def find_arrays(
    path:Path,            # .npz
)->tuple:                 # images uint8 (n, H, W, 3), labels (n,) or None, name of each label or None
    "Read images, channels first or last, with labels and class names if any. Raises Refused for other content."
    need_handles(path)
    with refusing(f'{path}: not readable as .npz'): held, _ = read_npz(path)
    x = next((held[k] for k in PICTURES if k in held), None)
    if x is None or x.dtype != np.uint8 or x.ndim != 4 or 3 not in (x.shape[1], x.shape[3]) or not len(x):
        raise Refused(f'{path}: expected uint8 pictures (n, H, W, 3) or (n, 3, H, W) as one of {", ".join(PICTURES)}; '
                      f'it holds {", ".join(f"{k} {v.dtype} {v.shape}" for k, v in held.items()) or "nothing"}')
    y = next((held[k] for k in LABELS if k in held), None)
    if y is not None and (y.shape != x.shape[:1] or y.dtype.kind not in 'iu' or y.min() < 0):
        raise Refused(f'{path}: labels must be whole numbers from 0, one for each picture; got {y.dtype} {y.shape}')
    names = held.get(NAMES) if y is not None else None
    if names is not None and names.dtype.kind != 'U': names = None                 # whatever it means there
    if names is not None: names = np.array([*map(printable, names.ravel().tolist())]).reshape(names.shape)
    if names is not None and (names.ndim != 1 or y.max() >= len(names) or len({*names.tolist()}) < len(names)):
        raise Refused(f'{path}: {NAMES} must be different names, one for each label; '
                      f'got {names.tolist()} for labels up to {y.max()}')
    return (x if x.shape[3] == 3 else x.transpose(0, 2, 3, 1)), y, names


def list_array(
    spec:str,             # .npz
    unlabelled:bool=False,# without labels
)->Listing:               # classes are the labels that occur, by name where the file has names
    "List the pictures of an .npz. Raises Refused for other content, and without labels where they are asked for."
    from PIL import Image
    x, y, named = find_arrays(Path(spec).expanduser())
    def read(name): return Image.fromarray(x[int(name)])
    names = [f'{i:06}' for i in range(len(x))]
    if unlabelled: return Listing(spec, names, [0] * len(x), [], read)
    if y is None: raise Refused(f'{spec} has no labels: add --unlabelled')
    found, index = np.unique(y, return_inverse=True)
    classes = [str(k if named is None else named[k]) for k in found.tolist()]
    return Listing(spec, names, index.tolist(), classes, read)
