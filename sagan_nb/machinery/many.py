"Serves chapter 16: thousands of single pictures out: a folder of PNG files, or an .npz as other evaluators read it."
import errno
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core import Refused, to_uint8
from .arrays import NAMES
from .atomic import atomic_write
from .terminal import progress
from ..data import seed_of
from ..report import draw_z
from ..train import draw
from .door import Model
from .evaluate import steady_generator
from .features import weights_hash
from .files import read_json, sweep
from .pictures import check_png

TOGETHER = 100                # pictures drawn together; picture i never depends on how many are asked for
PNG_END = b'IEND\xaeB`\x82'    # the last bytes of every PNG, which Pillow does not ask for


def goes_to_many(
    out,                      # where sagan_sample is to write
)->bool:
    "Does the path mean single pictures: a folder (it is there, or ends in a slash), or an .npz?"
    return str(out).endswith(('/', os.sep)) or Path(out).is_dir() or Path(out).suffix.lower() == '.npz'


def is_device(
    name:str,                 # of a folder
)->bool:
    "Does Windows take it for a device?"
    return bool(re.fullmatch(r'(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?', name))


def folder_names(
    classes:list,             # names, in order; [] without classes
)->list:                      # a folder for each; their sorted order is the order of the classes
    "Name a folder for each class: as the class where that is a name for a folder and sorts alike, else numbered."
    safe = all(re.fullmatch(r'\w[\w .()+-]*', c) and not c.endswith(('.', ' ')) and not is_device(c) for c in classes)
    apart = len({c.casefold() for c in classes}) == len(classes)       # else macOS and Windows take two for one folder
    if safe and apart and list(classes) == sorted({*classes}): return list(classes)
    wide = len(str(len(classes) - 1))
    if all(c == str(k) for k, c in enumerate(classes)): return [f'{k:0{wide}}' for k in range(len(classes))]
    return [f'{k:0{wide}}_' + re.sub(r'[^\w()+-]', '_', c) for k, c in enumerate(classes)]


def is_whole(
    path:Path,                # a PNG file, or none
    res:int,                  # pixels per side
)->bool:
    "Whether the file holds a picture of this size, to its last byte."
    from PIL import Image
    try:
        data = path.read_bytes()
        check_png(data)
        with Image.open(io.BytesIO(data), formats=['PNG']) as picture:
            if picture.size != (res, res): return False
            picture.load()
        return data.endswith(PNG_END)
    except Exception: return False                # whatever is wrong with it, it is drawn again


class PictureFolder:
    "Single PNG files, a folder for each class. A file that is whole is not drawn again."
    def __init__(self,
        out:Path,                 # folder
        n:int,                    # pictures in all
        res:int,                  # pixels per side
        classes:list,             # names of all classes; [] without
    ):
        self.out, self.names, self.res = out, folder_names(classes) or ['.'], res
        out.mkdir(parents=True, exist_ok=True)
        for name in self.names: sweep(out/name)

    def path(self, i:int, k:int)->Path:
        "Where picture i of class k goes."
        return self.out/self.names[k]/f'{i:06}.png'

    def has(self, first:int, labels:list)->bool:     # the first of them, their classes
        "Are these pictures there, and whole?"
        return all(is_whole(self.path(first + j, k), self.res) for j, k in enumerate(labels))

    def put(self, first:int, x:Tensor, labels:list): # uint8 (m, 3, res, res)
        "Write these pictures."
        from PIL import Image
        for j, (picture, k) in enumerate(zip(x, labels)):
            path = self.path(first + j, k)
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as part: Image.fromarray(picture.permute(1, 2, 0).numpy()).save(part, 'PNG')

    def close(self): pass


def holds_array(
    path:Path,                # .npy, or none
    shape:tuple,              # of the pictures
)->bool:
    "Whether the file holds bytes of this shape, all of them: opened to be changed, a short one would be made longer."
    try: found = np.lib.format.open_memmap(path, 'r')
    except Exception: return False                # whatever is wrong with it, it is made again
    return (found.dtype, found.shape) == (np.uint8, shape)


def reserve(
    path:Path,                # a file that is mapped into memory
):
    "Take its space on the disk now, where the system can: a map that finds none later ends the process without a word."
    if not hasattr(os, 'posix_fallocate'): return
    with open(path, 'r+b') as f:
        try: os.posix_fallocate(f.fileno(), 0, os.fstat(f.fileno()).st_size)
        except OSError as e:
            full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)          # others: no such call there
            if full: raise OSError(e.errno, e.strerror, str(path)) from None


class ArrayFile:
    """An .npz with arr_0, uint8 (n, res, res, 3), arr_1, the labels, and classes, their names; until it is whole, a
    folder named .npz.part."""
    def __init__(self,
        out:Path,                 # .npz
        n:int,                    # pictures in all
        res:int,                  # pixels per side
        classes:list,             # names, in order; [] without classes
    ):
        self.out, self.classes, self.part = out, classes, out.with_name(out.name + '.part')
        self.part.mkdir(parents=True, exist_ok=True)
        self.done, pixels, shape = self.part/'done.txt', self.part/'images.npy', (n, res, res, 3)
        again = holds_array(pixels, shape)
        if not again: self.done.unlink(missing_ok=True)
        self.pixels = np.lib.format.open_memmap(pixels, 'r+' if again else 'w+', np.uint8, shape)
        reserve(pixels)                                   # also of one that is there: it may have holes
        self.labels, self.kept = np.zeros(n, np.int64), self.read_done()

    def read_done(self)->int:     # pictures from the first on; 0 where the file does not say it
        "How many pictures are there."
        try: return int(self.done.read_bytes())
        except (FileNotFoundError, ValueError): return 0

    def has(self, first:int, labels:list)->bool:     # the first of them, their classes
        "Are these pictures there?"
        self.labels[first:first + len(labels)] = labels
        return first + len(labels) <= self.kept

    def put(self, first:int, x:Tensor, labels:list): # uint8 (m, 3, res, res)
        "Write these pictures, then that they are there."
        self.pixels[first:first + len(x)] = x.permute(0, 2, 3, 1).numpy()
        self.pixels.flush()
        with atomic_write(self.done) as part: part.write_text(f'{first + len(x)}')

    def close(self):
        "Write the .npz and remove the folder."
        names = {NAMES: self.classes} if self.classes else {}
        with atomic_write(self.out) as part, open(part, 'wb') as f: np.savez(f, self.pixels, self.labels, **names)
        del self.pixels
        shutil.rmtree(self.part)


def say_what(
    place:Path,               # folder that is being filled
    facts:dict,               # what decides the pictures
):
    "Keep beside the pictures how they were made. Raises Refused where others are there already."
    path, text = place/'about.json', json.dumps(facts, indent=1)
    if path.exists() and read_json(path, f'delete {place}, or choose another --out') != json.loads(text):
        raise Refused(f'{place} holds pictures of another generator, seed or choice of classes: choose another --out')
    if not path.exists() and any(not o.name.startswith('about.json.') for o in place.iterdir()):  # those a kill leaves
        raise Refused(f'{place} holds something else: choose another --out')
    with atomic_write(path) as part: part.write_text(text, encoding='utf-8')


def write_many(
    model:Model,              # from `open_run`
    wanted:list,              # classes, in turn
    n:int,                    # pictures
    out,                      # folder or .npz
    seed:int=0,               # of z
    truncation:float=None,    # cut z at this value
)->str:                       # what is there now
    "Write single pictures; after an interruption the same call goes on. Raises Refused where something else is there."
    out, G = Path(out), steady_generator(model.G)
    array = out.suffix.lower() == '.npz'
    if array and out.exists(): raise Refused(f'{out} is there already: choose another --out')
    place = out.with_name(out.name + '.part') if array else out
    place.mkdir(parents=True, exist_ok=True)
    facts = dict(generator=weights_hash(G), seed=seed, truncation=truncation, classes=[*wanted], step=model.step)
    say_what(place, dict(facts, n=n) if array else facts)
    sink = (ArrayFile if array else PictureFolder)(out, n, G.res, model.classes)
    for first in progress(range(0, n, TOGETHER), 'drawing'):
        labels = [wanted[i % len(wanted)] for i in range(first, min(first + TOGETHER, n))]
        if sink.has(first, labels): continue
        z = draw_z(TOGETHER, G.z_dim, seed=seed_of('many', seed, first), truncation=truncation)[:len(labels)]
        sink.put(first, to_uint8(draw(G, z, torch.tensor(labels))), labels)
    sink.close()
    names = f', {len(wanted)} classes' if model.classes else ''
    there = n if array else sum(1 for _ in out.rglob('*.png'))
    more = f', where {there:,} are by now' if there > n else ''
    return f'{n:,} pictures of {G.res}x{G.res}{names}, in {out}{more}'
