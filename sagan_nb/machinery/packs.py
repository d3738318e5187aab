"Serves chapter 06: packing images into files that are mapped, and going on with it after an interruption."
import hashlib
import json
import os
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import astuple
from itertools import accumulate, takewhile
from pathlib import Path

import numpy as np

from ..core import Refused
from ..data import is_toy, open_world
from .atomic import atomic_write, sync_folder
from .files import parse_json, sealed_json, sweep
from .group import agree, texts_of_all
from .listing import Listing, locate
from .named import is_named
from .packed import FORMAT, HEAD, VERSION, is_pack, npy_header, open_packed
from .pictures import (Chunk, Pictures, Reading, check_bad, decode, fingerprint_of, how_to_read, read_chunks,
                       report_faults)
from .sources import check_res, describe, list_images
from .terminal import printable


OWN = {'images.npy', 'labels.npy', 'pack.json'}       # all that a pack holds
BEGUN = b'{"identity"'                                # how the log of an unfinished one begins


def list_world(
    spec:str,             # see `open_world`
    res:int,              # pixels per side
    unlabelled:bool=False,# without labels
    n_classes:int=None,   # of the world
)->Listing:               # what there is to draw
    "List a world that is drawn by code."
    toy = open_world(spec, res, n_classes)
    def read(name): return toy.batch([int(name)])[0][0].numpy()
    names, k = [f'{i:06d}' for i in range(len(toy))], 1 if unlabelled else len(toy.classes)
    return Listing(spec, names, [i % k for i in range(len(toy))], [] if unlabelled else toy.classes, read)


def check_target(
    out:Path,             # pack to write
):
    "Raise Refused where packing would overwrite something else, also under the names that it takes on the way."
    if out.is_symlink(): raise Refused(f'{out} is a link: say the folder that it leads to')
    if out.exists() and not is_pack(out):
        what = 'is a folder' if out.is_dir() else 'exists'
        raise Refused(f'{out} {what} and is no pack; it is left alone')
    for path in (out, *(out.with_name(out.name + end) for end in ('.old', '.part'))):
        if path.is_dir() and (more := {p.name for p in path.iterdir()} - OWN):
            raise Refused(f'{path} holds what is not of a pack ({printable(min(more))}); it is left alone: '
                          'choose another --out')
    log = out.with_name(f'{out.name}.part.log')
    begins = log.read_bytes()[:len(BEGUN)] if log.is_file() else b''
    if not BEGUN.startswith(begins): raise Refused(f'{log} is no log of ours; it is left alone: choose another --out')


@contextmanager
def packing_alone(
    out:Path,             # pack to write
):
    "Hold an exclusive lock on a pack. Raises Refused where another process is packing it."
    from filelock import FileLock, Timeout
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f'.{out.name}.lock'), timeout=0): yield
    except Timeout:
        raise Refused(f'{out} is being packed by another process: wait, or choose another --out') from None


def pack(
    spec:str,             # as for open_source
    res:int,              # pixels per side
    out,                  # folder to write
    unlabelled:bool=False,# take every image at any depth, without labels
    n_classes:int=None,   # of the toy world
    max_bad:float=None,   # largest share of unreadable images, 0..1; this and the next: None as READING says
    truncated:bool=None,  # read truncated files as far as they go
    stretch:bool=False,   # see square_rgb
    place:tuple=(0, 1),   # rank and number of the processes that share the images, and all call this
)->Pictures:              # the finished pack, opened by rank 0
    "Decode everything into one folder; after an interruption the same call goes on. Raises Refused like open_source."
    spec, out = str(spec), Path(out).expanduser()
    if not place[0]: check_target(out)
    check_res(res)
    if not is_toy(spec) and not is_named(spec) and is_pack(locate(spec)[0]): raise Refused(f'{spec} is packed already')
    how = how_to_read(max_bad, truncated, stretch)
    with nullcontext() if place[0] else packing_alone(out):
        listing = list_world(spec, res, unlabelled, n_classes) if is_toy(spec) else list_images(spec, unlabelled)
        part, log = out.with_name(out.name + '.part'), out.with_name(out.name + '.part.log')
        records = write_chunks(listing, res, how, part, log, place)
        if place[0]: return None
        finish_pack(listing, res, records, part)
        open_packed(part)                                    # refuses before an older pack goes
        put_in_place(part, out)
        log.unlink()
    report_faults(*faults_of(records), len(listing.names))
    return open_packed(out)


def identity_of(
    listing:Listing,      # what to pack
    res:int,              # pixels per side
    how:Reading,          # see there
)->str:                   # 64 hex digits
    "Hash what a pack is made of and how, so that an unfinished one is continued only by the same call."
    where = listing.spec
    if not is_toy(where) and not is_named(where): where = str(Path(where).expanduser().absolute())
    made = [where, res, *astuple(how)[1:], listing.names, listing.labels, listing.classes]
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()


def unfinished(
    part:Path,            # folder of the pack so far
    log:Path,             # a line for what is packed, then one per chunk
    identity:str,         # from identity_of
)->list:                  # records of its chunks
    "Read what an interrupted pack left behind. Raises Refused where it was packing something else."
    if not ((part/'images.npy').exists() and log.exists()): return []
    records = []
    for line in log.read_bytes().splitlines():
        try: records.append(parse_json(line))
        except ValueError: break                                 # torn, or damaged: what follows is packed again
    if len(records) < 2: return []                               # nothing was packed yet
    if records[0] != dict(identity=identity):
        raise Refused(f'{part} is an unfinished pack of other pictures or settings: delete it, or choose another --out')
    return records[1:]


def before_mended(
    records:list,         # of the chunks of an unfinished pack
    listing:Listing,      # what it reads
    res:int,              # pixels per side
    how:Reading,          # see there
)->list:                  # the same, up to the first chunk without a picture that can be read by now
    "Take pictures in that were mended since."
    def still(r): return all(isinstance(decode(listing, name, res, how.stretch), str) for name in r['bad'])
    return [*takewhile(still, records)]


def whole_chunks(
    path:Path,            # images.npy of an unfinished pack
    records:list,         # of its chunks
    bytes_each:int,       # of one image
    place:tuple=(0, 1),   # as of `pack`: each process reads its share
)->int:                   # how many, from the first
    "Count the chunks that are in the file as they were packed."
    (rank, world), starts = place, [*accumulate((r['n']*bytes_each for r in records), initial=HEAD)]
    def whole(f, i):
        f.seek(starts[i])
        return hashlib.sha256(f.read(records[i]['n']*bytes_each)).hexdigest() == records[i]['sha256']
    if not records: return 0
    with open(path, 'rb') as f:
        for i in range(0, len(records), world):
            found = exchange(str(i + rank >= len(records) or whole(f, i + rank)), world)
            if 'False' in found: return i + found.index('False')
    return len(records)


def write_chunks(
    listing:Listing,      # what to read
    res:int,              # pixels per side
    how:Reading,          # see there
    part:Path,            # folder of the pack
    log:Path,             # its records
    place:tuple=(0, 1),   # as of `pack`
)->list:                  # records of all chunks
    "Write the chunks that are missing; a record is written only after its images are on the disk."
    (rank, world), identity, size = place, identity_of(listing, res, how), 3 * res**2
    if world > 1: agree(dict(pictures=identity))
    def of_all(record): return [json.loads(o) for o in exchange(json.dumps(record), world)]
    records = of_all(None if rank else before_mended(unfinished(part, log, identity), listing, res, how))[0]
    records = records[:whole_chunks(part/'images.npy', records, size, place)]
    if not rank: begin_packing(part, log, identity, res, records)
    exchange('', world)                                          # the file is there
    bad, written = faults_of(records)[0], sum(r['n'] for r in records)
    with open_to_write(part/'images.npy') as f, open(log, 'a', encoding='utf-8') as lines:
        for chunk in read_chunks(listing, res, how, len(records), place):
            there = of_all(record_of(chunk))                     # of this round, in the order of the ranks
            bad |= faults_of(there)[0]
            check_bad(bad, len(listing.names), how.max_bad)
            f.seek(HEAD + size*(written + sum(r['n'] for r in there[:rank])))
            f.write(chunk.pixels)
            sync(f)
            exchange('', world)                                  # all of them are on the disk
            new = [r for r in there if r['n'] or r['bad']]       # the last round may have too few chunks for all
            records += new
            written += sum(r['n'] for r in new)
            if rank: continue
            lines.writelines(json.dumps(sealed_json(r)) + '\n' for r in new)
            sync(lines)
    return records


def exchange(
    text:str,             # of this process
    world:int,            # how many there are
)->list:                  # texts of all, in their order
    "Hand a text to the processes that pack together, and wait for theirs."
    return texts_of_all(text) if world > 1 else [text]


def open_to_write(
    path:Path,            # images.npy of a pack
):
    """Open a file that several machines write into, each its own part. Not for reading: a file system of theirs then
    fetches the page that two parts share, and may write it back over the part of another."""
    return os.fdopen(os.open(path, os.O_WRONLY | getattr(os, 'O_BINARY', 0)), 'wb')


def begin_packing(
    part:Path,            # folder of the pack
    log:Path,             # its records
    identity:str,         # from identity_of
    res:int,              # pixels per side
    records:list,         # of the chunks that are there
):
    "Begin a pack, or cut off what an interrupted one has not recorded."
    sweep(log.parent, f'{log.name}.*')
    part.mkdir(exist_ok=True)
    text = ''.join(json.dumps(sealed_json(r)) + '\n' for r in [dict(identity=identity), *records])
    with atomic_write(log) as new: new.write_text(text, encoding='utf-8')
    with open(part/'images.npy', 'r+b' if records else 'w+b') as f:
        if not records: f.write(npy_header(np.uint8, (0, 3, res, res)))
        f.truncate(HEAD + sum(r['n'] for r in records) * 3 * res**2)


def record_of(
    chunk:Chunk,          # some images
)->dict:                  # JSON values
    "Describe a chunk: how many images, their hash, and what was noticed of them."
    return dict(n=len(chunk.labels), sha256=hashlib.sha256(chunk.pixels).hexdigest(), bad=chunk.bad, dark=chunk.dark,
                cut=chunk.cut)


def sync(
    f,                    # open file
):
    "Wait until everything written to a file is on the disk."
    f.flush()
    os.fsync(f.fileno())


def faults_of(
    records:list,         # of all chunks
)->tuple:                 # bad (path -> reason), dark (paths), cut (paths)
    "Collect what the chunks say of their images."
    bad = {name: why for r in records for name, why in r['bad'].items()}
    return bad, [name for r in records for name in r['dark']], [name for r in records for name in r['cut']]


def finish_pack(
    listing:Listing,      # what was read
    res:int,              # pixels per side
    records:list,         # of all chunks
    part:Path,            # folder with all images
):
    "Add labels and pack.json, and say in the header of the images how many there are."
    bad, dark, cut = faults_of(records)
    labels = [k for name, k in zip(listing.names, listing.labels) if name not in bad]
    n, classes, chunks = len(labels), listing.classes, [dict(n=r['n'], sha256=r['sha256']) for r in records]
    about = dict(format=FORMAT, version=VERSION, n=n, res=res, classes=classes,
                 counts=np.bincount(labels, minlength=len(classes)).tolist() if classes else [],
                 fingerprint=fingerprint_of([r['sha256'] for r in records], labels, classes, res),
                 unreadable=bad, found=dict(left_out=listing.left_out, truncated=cut, nearly_black=dark), chunks=chunks)
    with open(part/'images.npy', 'r+b') as f:
        f.write(npy_header(np.uint8, (n, 3, res, res)))
        sync(f)
    with open(part/'labels.npy', 'wb') as f:
        f.write(npy_header(np.int64, (n,)) + np.asarray(labels, '<i8').tobytes())
        sync(f)
    with open(part/'pack.json', 'w', encoding='utf-8') as f:
        f.write(json.dumps(sealed_json(about), indent=1) + '\n')
        sync(f)


def put_in_place(
    part:Path,            # finished folder
    out:Path,             # its name; an older pack there is removed once the new one has taken its place
):
    "Rename a finished pack. Killed in between, the same call finds one of the two under a name that it knows."
    old = out.with_name(out.name + '.old')
    if out.exists():
        remove(old)
        os.replace(out, old)
    os.replace(part, out)
    sync_folder(out.parent)
    remove(old)


def remove(
    path:Path,            # file, folder, or nothing
):
    "Remove a pack of this or the earlier format."
    if path.is_dir(): shutil.rmtree(path)
    else: path.unlink(missing_ok=True)


def verify_pack(
    spec:str,                 # pack
)->int:                       # pixels per side of its images
    "Check every image of a pack. Raises Refused for anything else, and for a pack that is not as it was written."
    path = locate(spec)[0]
    if not is_pack(path): raise Refused(f'{spec} is no pack: --verify checks what sagan_pack wrote')
    packed = open_packed(path, whole=True)
    print(describe(packed))
    print('every picture is as it was packed')
    return packed.res
