"Serves chapter 06: decoding images, what could not be read or looks wrong, and sources that hold them."
import errno
import hashlib
import io
import json
import os
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from ..core import Refused
from .listing import PICTURE_SUFFIXES, Listing, short_list
from .terminal import printable, progress, quoted


class BaseSource:
    "What follows from the seven facts of a `Source`; a data set inherits it and may know better."
    unreadable = {}               # path -> reason, of images that were left out
    found = {}                    # more about the files: left_out (kind -> number), truncated and nearly_black (paths)
    long_range = None             # (x, y) -> dict with `mi` in bits, where distant parts follow a rule

    @property
    def counts(self)->list:       # number of images per class
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist() if self.classes else []

    def __repr__(self)->str:
        "One line; `describe` says more."
        classes = f'{len(self.classes):,} classes' if self.classes else 'no labels'
        size = f'{self.res}x{self.res}'
        return f'{self.spec}: {len(self):,} pictures of {size}, {classes}, fingerprint {self.fingerprint}'


def take_batch(
    source,                       # any `Source`
    indices,                      # which images, int64 (B,)
)->tuple:                         # images uint8 (B, 3, res, res), labels int64 (B,)
    "Take images and labels. Raises Refused for a source that gives something else: images in [-1, 1] would be black."
    x, y = source.batch(indices)
    n, side = len(indices), source.res
    for name, t, want in (('images', x, f'torch.uint8 {(n, 3, side, side)}'), ('labels', y, f'torch.int64 {(n,)}')):
        has = f'{getattr(t, "dtype", type(t).__name__)} {tuple(getattr(t, "shape", ()))}'
        if has != want: raise Refused(f'{source.spec}: {name} are {has}; a Source gives {want}')
    return x, y


@dataclass(frozen=True)
class Reading:
    "How images are read."
    max_bad: float = .01          # largest share of unreadable images, 0..1
    truncated: bool = False       # read truncated files as far as they go
    stretch: bool = False         # see square_rgb


READING = Reading()               # what applies where a caller does not say; `reading_images` changes it for a while


@contextmanager
def reading_images(
    bad:str=None,                 # largest share of unreadable images: 5% or 0.05
    truncated:bool=None,          # read truncated files as far as they go
):
    "Change how images are read inside a `with` block. Raises Refused for a share that is none."
    global READING
    before, given = READING, {}
    if bad is not None: given['max_bad'] = share_of(bad)
    if truncated is not None: given['truncated'] = truncated
    READING = replace(before, **given)
    try: yield
    finally: READING = before


def how_to_read(
    max_bad:float=None,           # this and the next: None as READING says
    truncated:bool=None,          # see Reading
    stretch:bool=False,           # see square_rgb
)->Reading:
    "Complete what a caller says of reading images by what applies at the moment."
    given = dict(max_bad=max_bad, truncated=truncated, stretch=stretch)
    return replace(READING, **{k: v for k, v in given.items() if v is not None})


def reading_options()->list:
    "Return the options of a command line that read images as it is done at the moment."
    usual, words = Reading(), []
    if READING.max_bad != usual.max_bad: words += ['--bad', f'{READING.max_bad:g}']
    return words + ['--truncated'] if READING.truncated else words


def share_of(
    text:str,             # 5% or 0.05
)->float:                 # 0..1
    "Read a share. Raises Refused for what lies outside of 0..100%."
    number, percent = str(text).strip().removesuffix('%'), str(text).strip().endswith('%')
    try: share = float(number) / (100 if percent else 1)
    except ValueError: share = -1.
    if not 0 <= share <= 1: raise Refused(f'a share of unreadable pictures is 0% to 100%, for example 5%; got {text!r}')
    return share


MOST_PIXELS = 100 * 10**6         # of an image, and of all that are decoded at once


class Allowance:
    "Something that threads take a share of, and give back; who cannot have it yet waits."
    def __init__(self, most:int): self.left, self.changed = most, threading.Condition()

    @contextmanager
    def share(self, n:int):
        "Hold n of it inside a `with` block."
        with self.changed:
            self.changed.wait_for(lambda: self.left >= n)
            self.left -= n
        try: yield
        finally:
            with self.changed:
                self.left += n
                self.changed.notify_all()


DECODING = Allowance(MOST_PIXELS)


@cache
def known_formats()->list:    # names of Pillow
    "List the formats that are read. Others, such as PostScript, would be handed to another program."
    from PIL import Image
    Image.init()
    warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)      # MOST_PIXELS says it, in a sentence
    return sorted(name for name in {Image.EXTENSION.get(o) for o in PICTURE_SUFFIXES} if name in Image.OPEN)


def open_picture(
    data:bytes,           # a file
):                        # PIL.Image, whose pixels are not read yet
    "Open an image of a format whose ending is taken. Raises UnidentifiedImageError for any other, by whatever name."
    from PIL import Image
    return Image.open(io.BytesIO(data), formats=known_formats())


def square_rgb(
    picture,              # PIL.Image of any mode and shape
    res:int,              # pixels per side of the result
    stretch:bool=False,   # rescale the crop's own darkest..brightest value to 0..255 (the released converter)
)->np.ndarray:            # uint8, (3, res, res)
    "Stand it up, make it RGB, cut the central square, resize. Raises ValueError on images of floats."
    from PIL import Image, ImageOps
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == 'F': raise ValueError('a picture of floats')
    if picture.mode.startswith('I'):                             # 16 bits: 65535 is white
        values = np.asarray(picture).astype(np.int32)
        np.clip(values, 0, 65535, out=values)
        values += 128
        values //= 257
        picture = Image.fromarray(values.astype(np.uint8))
    if picture.mode == 'P': picture = picture.convert('RGBA')    # its palette may hold transparent colours
    picture, (w, h) = picture.convert('RGB'), picture.size
    side = min(w, h)
    left, top = (w - side + 1) // 2, (h - side + 1) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if stretch:
        a = np.asarray(picture).astype(np.float32)
        picture = Image.fromarray(((a - a.min()) * (255 / max(a.max() - a.min(), 1)) + .5).astype(np.uint8))
    return np.asarray(picture.resize((res, res), Image.BILINEAR)).transpose(2, 0, 1)


def check_png(
    data:bytes,           # a file
):
    "Raise ValueError for a PNG with a chunk that is not as it was written; Pillow alone may decode it to other pixels."
    if not data.startswith(b'\x89PNG'): return
    with open_picture(data) as picture:
        try: picture.verify()
        except SyntaxError as e: raise ValueError(str(e)) from None


def decode_bytes(
    data:bytes,           # a file
    res:int,              # pixels per side
    stretch:bool=False,   # see square_rgb
)->np.ndarray:            # uint8, (3, res, res)
    "Decode one image. Raises ValueError for one of more than MOST_PIXELS."
    from PIL import ImageFile
    with open_picture(data) as picture:
        pixels = picture.width * picture.height
        if pixels > MOST_PIXELS:
            raise ValueError(f'{pixels / 1e6:,.0f} million pixels, more than {MOST_PIXELS / 1e6:.0f} million')
        with DECODING.share(pixels): found = square_rgb(picture, res, stretch)
    if not ImageFile.LOAD_TRUNCATED_IMAGES: check_png(data)
    return found


def decode(
    listing:Listing,      # where to read
    name:str,             # which image
    res:int,              # pixels per side
    stretch:bool=False,   # see square_rgb
):                        # uint8 array (3, res, res), or a str: why it cannot be read
    """Read one image; a fault in it becomes a reason. Raises OSError or MemoryError where there are no more files or
    memory: the image is not to blame."""
    from PIL import Image, UnidentifiedImageError
    try:
        data = listing.read(name)
        if isinstance(data, np.ndarray): return data
        if isinstance(data, Image.Image): return square_rgb(data, res, stretch)
        if not data: return 'empty file'
        return decode_bytes(data, res, stretch)
    except UnidentifiedImageError: return 'not a picture'
    except ValueError as e: return printable(f'{e}')
    except Exception as e:
        if isinstance(e, MemoryError) or getattr(e, 'errno', None) in (errno.EMFILE, errno.ENFILE): raise
        return printable(re.sub('<.*?>', '', f'{type(e).__name__}: {e}'.splitlines()[0]))


def decode_truncated(
    *args,                # of `decode`
):                        # as of `decode`
    "Read one image as far as it goes. Nothing else may be decoded meanwhile: Pillow's switch is global."
    from PIL import ImageFile
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try: return decode(*args)
    finally: ImageFile.LOAD_TRUNCATED_IMAGES = False


CHUNK = 256               # images read, written and recorded together
DARK = 64                 # an image without a value above this is reported: of 255


@dataclass
class Chunk:
    "Some images that were read together."
    pixels: np.ndarray    # uint8, (m, 3, res, res)
    labels: list          # int, (m,)
    bad: dict             # path -> reason, of images that could not be read
    dark: list            # paths of images that are nearly black
    cut: list             # paths of truncated images that were read as far as they go


def read_chunk(
    listing:Listing,      # what to read
    at:slice,             # which images make this chunk
    got:list,             # what `decode` made of them
    res:int,              # pixels per side
    how:Reading,          # see there
)->Chunk:
    "Sort out what was decoded; read truncated images as far as they go where that is asked for."
    names, labels = listing.names[at], listing.labels[at]
    bad = {name: g for name, g in zip(names, got) if isinstance(g, str)}
    cut = [name for name, why in bad.items() if how.truncated and 'truncated' in why]
    saved = {name: decode_truncated(listing, name, res, how.stretch) for name in cut}
    saved = {name: g for name, g in saved.items() if not isinstance(g, str)}
    good = [(name, saved.get(name, g), k) for name, g, k in zip(names, got, labels) if name in saved or name not in bad]
    pixels = np.empty((len(good), 3, res, res), np.uint8)
    if good: np.stack([g for _, g, _ in good], out=pixels)
    dark = [name for name, g, _ in good if g.max() <= DARK]
    bad = {name: why for name, why in bad.items() if name not in saved}
    return Chunk(pixels, [k for _, _, k in good], bad, dark, list(saved))


def read_chunks(
    listing:Listing,      # what to read
    res:int,              # pixels per side
    how:Reading,          # see there
    done:int=0,           # chunks already read
    place:tuple=(0, 1),   # rank and number of those that take chunks in turn
):                        # yields Chunk; an empty one where only others have a last one
    "Read everything in order, on all cores; the next chunk is decoded while this one is used."
    rank, world = place
    rounds = range(done*CHUNK, len(listing.names), world*CHUNK)
    with ThreadPoolExecutor(threads_to_use()) as pool:
        def begin(a):
            at = slice(a + rank*CHUNK, a + (rank + 1)*CHUNK)
            return at, pool.map(lambda name: decode(listing, name, res, how.stretch), listing.names[at])
        ahead = None
        for a in progress(rounds, 'reading pictures', least=5):
            at, got = ahead or begin(a)
            got = list(got)
            ahead = None if how.truncated else begin(a + world*CHUNK)      # decode_truncated must be alone
            yield read_chunk(listing, at, got, res, how)


def threads_to_use()->int:
    "Divide the cores that this process may use by the ranks of this machine."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    mates = os.environ.get('LOCAL_WORLD_SIZE', '')
    return max(1, cores // max(1, int(mates) if mates.isdecimal() else 1))


def check_bad(
    bad:dict,             # path -> reason, of images found unreadable so far
    total:int,            # images there are
    limit:float,          # share that is tolerated
):
    "Raise Refused when too many images are unreadable."
    if len(bad) <= round(limit*total, 6): return         # .29*100 is a little less than 29
    which = short_list([f'{name} ({why})' for name, why in bad.items()])
    truncated = any('truncated' in why for why in bad.values())
    cut = ', or read truncated ones as far as they go with --truncated' if truncated else ''
    raise Refused(f'{len(bad):,} or more of {total:,} pictures cannot be read, the limit is {100*limit:g}%: {which}. '
                  'Mend or remove them, raise the limit '
                  f'(--bad 100% leaves out all of them, and lists them in a file){cut}')


class Pictures(BaseSource):
    "Images in an array, in memory or mapped from a pack."
    def __init__(
        self,
        pixels,           # uint8 array (N, 3, res, res)
        labels,           # int, (N,)
        classes:list,     # class names; empty: no labels
        spec:str,         # what was opened
        fingerprint:str,  # hash of pixels, labels and names
        unreadable:dict,  # path -> reason, of images left out
        found:dict=None,          # as of BaseSource
    ):
        self.pixels, self.labels = pixels, torch.as_tensor(labels, dtype=torch.int64)
        self.classes, self.spec = list(classes), spec
        self.fingerprint, self.unreadable, self.res = fingerprint, unreadable, pixels.shape[-1]
        self.found = found or {}
        if without := [c for c, n in zip(self.classes, self.counts) if not n]:
            raise Refused(f'no readable picture in class {short_list(without)} of {spec}')

    def __len__(self): return len(self.pixels)

    def batch(
        self,
        indices,          # which images, int64 tensor or list, (B,)
    ):                    # images uint8 (B, 3, res, res), labels int64 (B,)
        "Copy these images out."
        i = torch.as_tensor(indices, dtype=torch.int64)
        return torch.from_numpy(self.pixels[i.numpy()]), self.labels[i]


class WithoutLabels(BaseSource):
    "The same images with all labels 0 and no classes."
    def __init__(
        self,
        source,           # with labels or without
    ):
        self.source, self.res, self.spec, self.classes = source, source.res, source.spec, []
        self.unreadable, self.found, self.long_range = source.unreadable, source.found, source.long_range
        self.labels, self.fingerprint = torch.zeros_like(source.labels), f'{source.fingerprint}-unlabelled'

    def __len__(self): return len(self.source)

    def batch(self, indices):
        "Return the source's images, with label 0."
        x, y = self.source.batch(indices)
        return x, torch.zeros_like(y)


def fingerprint_of(
    chunks:list,          # sha256 of each chunk's pixels, hex
    labels:list,          # int
    classes:list,         # names
    res:int,              # pixels per side
)->str:                   # 16 hex digits
    "Hash the content: not paths, times or the kind of file."
    return hashlib.sha256(json.dumps([res, classes, chunks, labels]).encode()).hexdigest()[:16]


MEMORY = 2 * 2**30        # bytes of images that open_source will hold in memory


def load_pictures(
    listing:Listing,      # what to read
    res:int,              # pixels per side
    how:Reading=None,     # None: READING
)->Pictures:              # all in memory
    "Decode everything once. Raises Refused where it would not fit into MEMORY."
    how, n = how or READING, len(listing.names)
    need = n * 3 * res**2
    if need > MEMORY:
        options = reading_options() if listing.classes else ['--unlabelled', *reading_options()]
        words = ' '.join(['sagan_pack', quoted(listing.spec), *options, f'--res {res} --out FILE'])
        raise Refused(f'{n:,} pictures at {res} px need {need / 2**30:.1f} GiB of memory; '
                      f'pack them once: {words}, then use FILE')
    pixels, labels, hashes, bad, dark, cut = np.empty((n, 3, res, res), np.uint8), [], [], {}, [], []
    for chunk in read_chunks(listing, res, how):
        bad = bad | chunk.bad
        check_bad(bad, n, how.max_bad)
        pixels[len(labels):len(labels) + len(chunk.labels)] = chunk.pixels
        labels += chunk.labels
        hashes.append(hashlib.sha256(chunk.pixels.tobytes()).hexdigest())
        dark, cut = dark + chunk.dark, cut + chunk.cut
    report_faults(bad, dark, cut, n)
    if bad: print('(leave them where they are while a run needs this data: without them it has another fingerprint)')
    made_of = fingerprint_of(hashes, labels, listing.classes, res)
    found = dict(left_out=listing.left_out, truncated=cut, nearly_black=dark)
    return Pictures(pixels[:len(labels)], labels, listing.classes, listing.spec, made_of, bad, found)


def report_faults(
    bad:dict,             # path -> reason, of images left out
    dark:list,            # paths of images that are nearly black
    cut:list,             # paths of truncated images that were read as far as they go
    total:int,            # images there are
):
    "Print which images are left out, cut off or nearly black."
    if bad:
        which = short_list([f'{name} ({why})' for name, why in bad.items()])
        print(f'{len(bad):,} of {total:,} pictures cannot be read and are left out: {which}')
    if cut: print(f'{len(cut):,} of {total:,} pictures are truncated and read as far as they go: {short_list(cut)}')
    if dark:
        print(f'{len(dark):,} of {total:,} pictures are nearly black, with no value above {DARK} of 255: '
              f'{short_list(dark)}. 12 bits in a 16-bit file, masks, and alpha over black look like this')
