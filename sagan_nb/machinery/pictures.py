"Serves chapter 06: folders, zips and packs of images, decoding, and what could not be read."
import hashlib
import io
import json
import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ..core import Refused, progress


class BaseSource:
    "What follows from the seven facts of a `Source`; a data set inherits it and may know better."
    unreadable = {}               # path -> reason, of images that were left out
    long_range = None             # (x, y) -> dict with `mi` in bits, where distant parts follow a rule

    @property
    def counts(self)->list:       # number of images per class
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist() if self.classes else []

    @property
    def content(self)->str:       # part of the key of everything that is computed from the images and kept
        return self.fingerprint


PICTURE_SUFFIXES = {'.jpg', '.jpeg', '.jpe', '.png', '.bmp', '.gif', '.webp', '.ppm', '.pgm', '.tif', '.tiff'}


def is_picture(
    name:str,             # path with forward slashes
)->bool:                  # by its ending; hidden files and what macOS adds to a zip do not count
    "Does this name look like a picture?"
    parts = name.split('/')
    hidden = any(p.startswith('.') or p == '__MACOSX' for p in parts)
    return Path(name).suffix.lower() in PICTURE_SUFFIXES and not hidden


def folder_tree(
    root:Path,            # folder
):                        # names of files, names of folders (both relative to root), read(name) -> bytes
    "Everything below a folder; links are followed, but none twice."
    files, folders, seen = [], [], set()
    for here, inside, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(here)) in seen: inside.clear()
        else:
            seen.add(real)
            relative = lambda name: (Path(here) / name).relative_to(root).as_posix()
            files += map(relative, names)
            folders += map(relative, inside)
    return files, folders, lambda name: (root / name).read_bytes()


def zip_tree(
    path:Path,            # zip file
    inner:str,            # folder inside it, or ''
):                        # as folder_tree
    "Everything below a folder of a zip. Raises Refused where the file is not a zip or has no such folder."
    try: z = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError, ValueError) as e:
        raise Refused(f'{path} is no zip file, or a damaged one ({e})') from e
    start = inner.strip('/') + '/' if inner.strip('/') else ''
    below = [n[len(start):] for n in z.namelist() if n.startswith(start)]
    if start and not below:
        raise Refused(f'{path} holds no folder {inner}; it holds {short_list({n.split("/")[0] for n in z.namelist()})}')
    files = [n for n in below if n and not n.endswith('/')]
    folders = {n[:-1] for n in below if n.endswith('/')}
    folders |= {p.as_posix() for n in files for p in PurePosixPath(n).parents}
    return files, sorted(folders - {'.'}), lambda name: z.read(start + name)


def short_list(
    names,                # strings
    most:int=4,           # how many to show
)->str:                   # 'a, b, c and 12 more'
    "A short list for a message."
    names = sorted(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most:,} more' if len(names) > most else '')


def by_class(
    names:list,           # pictures, relative to where
    folders:list,         # all folders, relative to where
    where:str,            # for messages
):                        # labels (list of int, one per name), classes (list of str)
    "Labels from <class>/<picture>; folders that wrap all pictures are skipped. Raises Refused on any other layout."
    cut = ''
    while len(tops := {n[len(cut):].split('/')[0] for n in names}) == 1:
        if min(n[len(cut):].count('/') for n in names) < 2: break
        cut += min(tops) + '/'
    inside = [n[len(cut):] for n in names]
    direct, deep = [n for n in inside if '/' not in n], [n for n in inside if n.count('/') > 1]
    want = f'expected {where}/{cut}<class>/<picture>'
    if direct:
        raise Refused(f'{len(direct):,} pictures lie outside of class folders ({short_list(direct, 2)}): {want}; '
                      'to train without labels: sagan_train --unlabelled')
    if deep:
        one = where + (':' if where.lower().endswith('.zip') else '/') + cut + min(tops)
        raise Refused(f'{len(deep):,} pictures lie too deep ({deep[0]}): {want}; '
                      f'if one of {short_list(tops)} holds the class folders, name it: {one}')
    classes = sorted({n.split('/')[0] for n in inside})
    beside = {f[len(cut):] for f in folders if f.startswith(cut) and is_picture(f + '/x.png')}
    if empty := {f for f in beside if f and '/' not in f} - set(classes):
        raise Refused(f'class folders without a picture in {where}: {short_list(empty)}. Fill or remove them')
    if len(classes) == 1:
        raise Refused(f'{where} holds only one class ({classes[0]}); to train without labels: sagan_train --unlabelled')
    index = {c: k for k, c in enumerate(classes)}
    return [index[n.split('/')[0]] for n in inside], classes


@dataclass
class Listing:
    "The pictures of a source before any of them is read."
    spec: str             # as the user wrote it
    names: list           # of pictures, sorted
    labels: list          # int, one per name
    classes: list         # class names; empty: no labels
    read: object          # name -> bytes of a file, or a picture uint8 (3, res, res)


def locate(
    spec:str,             # path, or file.zip:folder
):                        # Path that exists, folder inside the zip or ''
    "Find what a spec names. Raises Refused where there is nothing."
    path, inner = Path(spec).expanduser(), ''
    inside = re.fullmatch(r'(.+\.zip)[:/\\](.+)', spec, re.I)
    if inside and not path.exists(): path, inner = Path(inside[1]).expanduser(), inside[2]
    if not path.exists(): raise Refused(f'there is no file or folder {path}')
    return path, inner


def list_pictures(
    spec:str,             # folder, zip, or file.zip:folder
    unlabelled:bool=False,# take every picture at any depth, without labels
)->Listing:               # what there is to read
    "List a source. Raises Refused where there are no pictures or the layout gives no classes."
    path, inner = locate(spec)
    if not path.is_dir() and path.suffix.lower() != '.zip':
        raise Refused(f'{path} is neither a folder, nor a .zip, nor a file made by sagan_pack')
    files, folders, read = folder_tree(path) if path.is_dir() else zip_tree(path, inner)
    names = sorted(filter(is_picture, files))
    if not names:
        raise Refused(f'no pictures in {spec}: ' + (f'it holds {short_list(files)}' if files else 'it is empty'))
    labels, classes = ([0] * len(names), []) if unlabelled else by_class(names, folders, spec)
    return Listing(spec, names, labels, classes, read)


def square_rgb(
    picture,              # PIL.Image of any mode and shape
    res:int,              # pixels per side of the result
    stretch:bool=False,   # rescale the crop's own darkest..brightest value to 0..255 (the released converter)
)->np.ndarray:            # uint8, (3, res, res)
    "Stand it up, make it RGB, cut the central square, resize. Raises ValueError on pictures of floats."
    from PIL import Image, ImageOps
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == 'F': raise ValueError('a picture of floats')
    if picture.mode.startswith('I'):                             # 16 bits: 65535 is white
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
    if picture.mode == 'P': picture = picture.convert('RGBA')    # its palette may hold transparent colours
    picture, (w, h) = picture.convert('RGB'), picture.size
    side = min(w, h)
    left, top = (w - side + 1) // 2, (h - side + 1) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if stretch:
        a = np.asarray(picture).astype(np.float32)
        picture = Image.fromarray(((a - a.min()) * (255 / max(a.max() - a.min(), 1)) + .5).astype(np.uint8))
    return np.asarray(picture.resize((res, res), Image.BILINEAR)).transpose(2, 0, 1)


def decode(
    listing:Listing,      # where to read
    name:str,             # which picture
    res:int,              # pixels per side
    stretch:bool=False,   # see square_rgb
):                        # uint8 array (3, res, res), or a str: why it cannot be read
    "Read one picture; a fault in it becomes a reason, never an exception."
    from PIL import Image, UnidentifiedImageError
    try:
        data = listing.read(name)
        if isinstance(data, np.ndarray): return data
        if not data: return 'empty file'
        with Image.open(io.BytesIO(data)) as picture: return square_rgb(picture, res, stretch)
    except UnidentifiedImageError: return 'not a picture'
    except Exception as e: return re.sub('<.*?>', '', f'{type(e).__name__}: {e}'.splitlines()[0])


CHUNK = 256               # pictures read, written and recorded together


def read_chunks(
    listing:Listing,      # what to read
    res:int,              # pixels per side
    max_bad:float=.01,    # largest share of pictures that may be unreadable, 0..1
    stretch:bool=False,   # see square_rgb
    done:int=0,           # chunks already read
    bad:dict=None,        # unreadable pictures so far, name -> reason; grows
):                        # yields pictures uint8 (m, 3, res, res), their labels (list), the chunk's own bad (dict)
    "Read everything, several pictures at a time, in order. Raises Refused when too many are unreadable."
    bad, total = {} if bad is None else bad, len(listing.names)
    if not (starts := range(done*CHUNK, total, CHUNK)): return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for a in progress(starts, 'reading pictures') if len(starts) > 4 else starts:
            names, labels = listing.names[a:a + CHUNK], listing.labels[a:a + CHUNK]
            got = list(pool.map(lambda name: decode(listing, name, res, stretch), names))
            new = {name: g for name, g in zip(names, got) if isinstance(g, str)}
            bad.update(new)
            if len(bad) > max_bad * total:
                raise Refused(f'{len(bad):,} or more of {total:,} pictures cannot be read, the limit is {max_bad:.0%}: '
                              + short_list([f'{n} ({why})' for n, why in bad.items()]))
            good = [(g, k) for g, k in zip(got, labels) if not isinstance(g, str)]
            pixels = np.stack([g for g, _ in good]) if good else np.empty((0, 3, res, res), np.uint8)
            yield pixels, [k for _, k in good], new


class Pictures(BaseSource):
    "Pictures in an array, in memory or mapped from a packed file."
    def __init__(
        self,
        pixels,           # uint8 array (N, 3, res, res)
        labels,           # int, (N,)
        classes:list,     # class names; empty: no labels
        spec:str,         # what was opened
        fingerprint:str,  # hash of pixels, labels and names
        unreadable:dict,  # path -> reason, of pictures left out
    ):
        self.pixels, self.labels = pixels, torch.as_tensor(labels, dtype=torch.int64)
        self.classes, self.spec = list(classes), spec
        self.fingerprint, self.unreadable, self.res = fingerprint, unreadable, pixels.shape[-1]
        if without := [c for c, n in zip(self.classes, self.counts) if not n]:
            raise Refused(f'no readable picture in class {short_list(without)} of {spec}')

    def __len__(self): return len(self.pixels)

    @property
    def content(self):
        "The fingerprint; of a packed file, whose header says it, also the file's size and time of its last change."
        if not isinstance(self.pixels, np.memmap): return self.fingerprint
        file = os.stat(self.pixels.filename)
        return f'{self.fingerprint}-{file.st_size}-{file.st_mtime_ns}'

    def batch(
        self,
        indices,          # which pictures, int64 tensor or list, (B,)
    ):                    # pictures uint8 (B, 3, res, res), labels int64 (B,)
        "Copy these pictures out."
        i = torch.as_tensor(indices, dtype=torch.int64)
        return torch.from_numpy(self.pixels[i.numpy()]), self.labels[i]


class WithoutLabels(BaseSource):
    "The same pictures with all labels 0 and no classes."
    def __init__(
        self,
        source,           # with labels or without
    ):
        self.source, self.res, self.spec, self.classes = source, source.res, source.spec, []
        self.unreadable, self.long_range = source.unreadable, source.long_range
        self.labels, self.fingerprint = torch.zeros_like(source.labels), f'{source.fingerprint}-unlabelled'

    @property
    def content(self): return f'{self.source.content}-unlabelled'

    def __len__(self): return len(self.source)

    def batch(self, indices):
        "As of the source; labels 0."
        x, y = self.source.batch(indices)
        return x, torch.zeros_like(y)


def fingerprint_of(
    chunks:list,          # sha256 of each chunk's pixels, hex
    labels:list,          # int
    classes:list,         # names
    res:int,              # pixels per side
)->str:                   # 16 hex digits
    "Hash of the content: not of paths, times or the kind of file."
    return hashlib.sha256(json.dumps([res, classes, chunks, labels]).encode()).hexdigest()[:16]


MEMORY = 2 * 2**30        # bytes of pictures that open_source will hold in memory


def load_pictures(
    listing:Listing,      # what to read
    res:int,              # pixels per side
    max_bad:float=.01,    # see read_chunks
    stretch:bool=False,   # see square_rgb
)->Pictures:              # all in memory
    "Decode everything once. Raises Refused where it would not fit into MEMORY."
    need = len(listing.names) * 3 * res**2
    if need > MEMORY:
        raise Refused(f'{len(listing.names):,} pictures at {res} px need {need / 2**30:.1f} GiB of memory; '
                      f'pack them once: sagan_pack {listing.spec} --res {res} --out FILE, then use FILE')
    pixels, labels, chunks, bad = np.empty((len(listing.names), 3, res, res), np.uint8), [], [], {}
    for part, own, _ in read_chunks(listing, res, max_bad, stretch, bad=bad):
        pixels[len(labels):len(labels) + len(own)] = part
        labels += own
        chunks.append(hashlib.sha256(part.tobytes()).hexdigest())
    report_bad(bad, len(listing.names))
    made_of = fingerprint_of(chunks, labels, listing.classes, res)
    return Pictures(pixels[:len(labels)], labels, listing.classes, listing.spec, made_of, bad)


def report_bad(
    bad:dict,             # path -> reason
    total:int,            # pictures there are
):
    "Print which pictures are left out."
    if not bad: return
    which = short_list([f'{name} ({why})' for name, why in bad.items()])
    print(f'{len(bad):,} of {total:,} pictures cannot be read and are left out: {which}')


MAGIC, HEAD = b'SAGANPK1', 4096      # a packed file starts and ends with MAGIC; its pictures start at byte HEAD


def begins_packed(
    path:Path,            # file
)->bool:                  # has a packed file's first bytes
    "Is this a packed file, whole or not?"
    if not path.is_file(): return False
    with open(path, 'rb') as f: return f.read(len(MAGIC)) == MAGIC


def open_packed(
    path:Path,            # file made by pack
)->Pictures:              # mapped, not read
    "Map a packed file. Raises Refused where it is unfinished, cut off or damaged."
    size = path.stat().st_size
    with open(path, 'rb') as f:
        f.seek(max(0, size - 16))
        tail = f.read(16)
        if size < HEAD + 16 or tail[8:] != MAGIC:
            raise Refused(f'{path} is unfinished or cut off: run sagan_pack again')
        try:
            length = int.from_bytes(tail[:8], 'little')
            f.seek(size - 16 - length)
            h = json.loads(f.read(length))
            n, res = h['n'], h['res']
            if size != HEAD + n*3*res**2 + 4*n + length + 16: raise ValueError('its size does not fit its header')
            f.seek(HEAD + n*3*res**2)
            labels = np.frombuffer(f.read(4*n), '<i4').astype(np.int64)
            if labels.min() < 0 or labels.max() >= max(1, len(h['classes'])): raise ValueError('labels out of range')
        except (ValueError, KeyError, OSError, OverflowError, TypeError) as e:
            raise Refused(f'{path} is damaged ({e}): run sagan_pack again') from e
    pixels = np.memmap(path, np.uint8, 'r', HEAD, (n, 3, res, res))
    return Pictures(pixels, labels, h['classes'], str(path), h['fingerprint'], h['unreadable'])
