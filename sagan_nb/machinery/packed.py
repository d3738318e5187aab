"Serves chapter 06: a pack: images and labels as .npy files that any NumPy maps, and a JSON that says what they are."
import hashlib
import math
import random
from itertools import accumulate
from pathlib import Path

import numpy as np

from ..core import Refused
from .files import LONGEST, need_handles, parse_json
from .pictures import CHUNK, Pictures, fingerprint_of
from .terminal import printable, progress

FORMAT, VERSION = 'sagan_nb pack', 2
HEAD = 128                       # bytes of a .npy header as it is written here
OLD = b'SAGANPK1'                # the first bytes of packs of version 1, a format of this package alone
SAMPLED = 64 * 2**20             # bytes of images that are checked whenever a pack is opened


def npy_header(
    dtype,                # of the array
    shape:tuple,          # of the array
)->bytes:                 # HEAD bytes
    "Return the header of a .npy file of version 1.0, of one length for every shape."
    about = repr(dict(descr=np.dtype(dtype).str, fortran_order=False, shape=shape))
    return b'\x93NUMPY\x01\x00' + (HEAD - 10).to_bytes(2, 'little') + about.ljust(HEAD - 11).encode() + b'\n'


def is_pack(
    path:Path,            # file or folder
)->bool:
    "Tell whether this is a pack, finished or not, of this or the earlier format."
    if path.is_dir(): return (path/'pack.json').is_file() or path.suffix == '.part' and (path/'images.npy').is_file()
    if not path.is_file(): return False
    with open(path, 'rb') as f: return f.read(len(OLD)) == OLD


def open_packed(
    path:Path,            # folder made by pack
    whole:bool=False,     # check every image, not a sample
)->Pictures:              # mapped, not read
    "Map a pack and check it against its hashes. Raises Refused where it is old, unfinished, cut off or damaged."
    if not path.is_dir():
        raise Refused(f'{path} is a pack of version 1, which is read no more: '
                      f'pack the pictures again with sagan_pack FOLDER --res RES --out {path}')
    if not (path/'pack.json').is_file(): raise Refused(f'{path} is unfinished or cut off: run sagan_pack again')
    need_handles(path)
    try:
        about = read_about(path/'pack.json')
        n, res = about['n'], about['res']
        pixels = map_array(path/'images.npy', np.uint8, (n, 3, res, res))
        labels = np.array(map_array(path/'labels.npy', np.int64, (n,)))
        check_labels(about, labels)
        check_chunks(pixels, about['chunks'], whole)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, RecursionError) as e:
        raise Refused(f'{path} is damaged ({printable(str(e))[:200]}): run sagan_pack again') from None
    known = (about[k] for k in ('fingerprint', 'unreadable', 'found'))
    return Pictures(pixels, labels, about['classes'], str(path), *known)


def read_about(
    path:Path,            # pack.json
)->dict:
    "Read what a pack says of itself. Raises ValueError where it is not that, or longer than LONGEST."
    if path.stat().st_size > LONGEST: raise ValueError('pack.json is too long')
    about = parse_json(path.read_bytes())
    if about['format'] != FORMAT or about['version'] != VERSION:
        raise ValueError(f'its format is {about["format"]!r}, version {about["version"]!r}')
    n, res, classes, chunks = (about[k] for k in ('n', 'res', 'classes', 'chunks'))
    if not (type(n) is type(res) is int and n > 0 and 0 < res < 2**16): raise ValueError('n or res is no size')
    texts = [*classes, *(c['sha256'] for c in chunks)]
    if not all(type(c) is str for c in texts): raise ValueError('a name is no text')
    kept = [c['n'] for c in chunks]
    if not all(type(k) is int and 0 <= k <= CHUNK for k in kept) or sum(kept) != n:
        raise ValueError('its chunks do not add up')
    for name in ('unreadable', 'found'): about[name].items()
    about['classes'] = [printable(c) for c in classes]
    return about


def map_array(
    path:Path,            # .npy file
    dtype,                # that it must have
    shape:tuple,          # that it must have
)->np.ndarray:            # mapped
    "Map an array, of which nothing is read. Raises ValueError for another type, shape or length; never unpickles."
    if not path.is_file(): raise ValueError(f'{path.name} is not there')
    wanted = HEAD + np.dtype(dtype).itemsize * math.prod(shape)
    if (size := path.stat().st_size) != wanted: raise ValueError(f'{path.name} has {size} bytes instead of {wanted}')
    with open(path, 'rb') as f: head = f.read(HEAD)
    if head != npy_header(dtype, shape): raise ValueError(f'{path.name} holds another type or shape')
    return np.memmap(path, dtype, 'r', HEAD, shape)


def check_labels(
    about:dict,           # from read_about
    labels:np.ndarray,    # int64, (n,)
):
    "Check labels, classes and the hashes of the chunks against the fingerprint. Raises ValueError where they differ."
    if labels.min() < 0 or labels.max() >= max(1, len(about['classes'])): raise ValueError('labels out of range')
    hashes = [c['sha256'] for c in about['chunks']]
    if fingerprint_of(hashes, labels.tolist(), about['classes'], about['res']) != about['fingerprint']:
        raise ValueError('labels, classes or hashes do not fit the fingerprint')


def check_chunks(
    pixels:np.ndarray,    # uint8, (n, 3, res, res)
    chunks:list,          # of pack.json: n, sha256
    whole:bool,           # check all of them
):
    "Check images against their hashes: chunks chosen at random, or all. Raises ValueError at the first that differs."
    ends = list(accumulate(c['n'] for c in chunks))
    each = max(1, CHUNK * pixels[0].nbytes)
    asked = range(len(chunks))
    if not whole: asked = random.Random().sample(asked, min(len(chunks), max(1, SAMPLED // each)))
    for i in progress(asked, 'checking pictures', least=5) if whole else asked:
        part = pixels[ends[i] - chunks[i]['n']:ends[i]]
        if hashlib.sha256(part).hexdigest() != chunks[i]['sha256']:
            raise ValueError(f'images {ends[i] - len(part)} to {ends[i] - 1} are not those that were packed')
