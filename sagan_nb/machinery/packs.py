"Serves chapter 06: packing pictures into one file, and going on with it after an interruption."
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from ..core import Refused
from ..data import check_res, is_toy, open_world
from .pictures import (HEAD, MAGIC, Listing, Pictures, begins_packed, fingerprint_of, list_pictures, locate,
                       open_packed, read_chunks, report_bad)


def list_world(
    spec:str,             # see `open_world`
    res:int,              # pixels per side
    unlabelled:bool=False,# without labels
    n_classes:int=None,   # of the world
)->Listing:               # what there is to draw
    "List a world that is drawn by code."
    toy = open_world(spec, res, n_classes)
    read = lambda name: toy.batch([int(name)])[0][0].numpy()
    names, k = [f'{i:06d}' for i in range(len(toy))], 1 if unlabelled else len(toy.classes)
    return Listing(spec, names, [i % k for i in range(len(toy))], [] if unlabelled else toy.classes, read)


def unfinished(
    part:Path,            # the pictures so far
    log:Path,             # one line per chunk
    identity:str,         # of source and settings
    bytes_each:int,       # of one picture
)->list:                  # records {'sha', 'kept', 'bad'} of the chunks that are safely in part
    "What an interrupted pack left behind. Raises Refused where it was packing something else."
    if not (part.exists() and log.exists()): return []
    records = []
    for line in log.read_text().splitlines():
        try: records.append(json.loads(line))
        except ValueError: break                                 # the last line may be torn
    if not records: return []
    if records[0] != identity:
        raise Refused(f'{part} is an unfinished pack of other pictures or settings: delete it, or choose another --out')
    records, size = records[1:], part.stat().st_size
    while records and HEAD + sum(r['kept'] for r in records) * bytes_each > size: records.pop()
    return records


def check_target(
    out:Path,             # file to write
):
    "Raises Refused where packing would overwrite something else."
    if out.is_dir(): raise Refused(f'{out} is a folder; --out names a file')
    if out.exists() and not begins_packed(out): raise Refused(f'{out} exists and is no packed file; it is left alone')


def pack(
    spec:str,             # as for open_source
    res:int,              # pixels per side
    out,                  # file to write
    unlabelled:bool=False,# take every picture at any depth, without labels
    n_classes:int=None,   # of the toy world
    max_bad:float=.01,    # largest share of unreadable pictures, 0..1
    stretch:bool=False,   # see square_rgb
)->Pictures:              # the finished file, opened
    "Decode everything into one file; after an interruption the same call goes on. Raises Refused like open_source."
    spec, out = str(spec), Path(out).expanduser()
    check_target(out)
    check_res(res)
    if not is_toy(spec) and begins_packed(locate(spec)[0]): raise Refused(f'{spec} is packed already')
    listing = list_world(spec, res, unlabelled, n_classes) if is_toy(spec) else list_pictures(spec, unlabelled)
    part, log = out.with_name(out.name + '.part'), out.with_name(out.name + '.part.log')
    out.parent.mkdir(parents=True, exist_ok=True)
    where = spec if is_toy(spec) else str(Path(spec).expanduser().absolute())
    identity = hashlib.sha256(json.dumps([where, res, stretch, listing.names, listing.classes]).encode()).hexdigest()
    records = write_chunks(listing, res, max_bad, stretch, part, log, identity)
    bad = {name: why for r in records for name, why in r['bad'].items()}
    report_bad(bad, len(listing.names))
    finish_pack(listing, res, records, bad, part)
    os.replace(part, out)
    log.unlink()
    return open_packed(out)


def write_chunks(
    listing:Listing,      # what to read
    res:int,              # pixels per side
    max_bad:float,        # see read_chunks
    stretch:bool,         # see square_rgb
    part:Path,            # file that grows
    log:Path,             # its records
    identity:str,         # of source and settings
)->list:                  # records of all chunks
    "Append the chunks that are missing; a record is written only after its pictures are on the disk."
    records = unfinished(part, log, identity, 3 * res**2)
    bad = {name: why for r in records for name, why in r['bad'].items()}
    with open(part, 'r+b' if records else 'w+b') as f, open(log, 'w') as lines:
        lines.writelines(json.dumps(r) + '\n' for r in [identity, *records])
        if not records: f.write(MAGIC.ljust(HEAD, b'\0'))
        f.truncate(HEAD + sum(r['kept'] for r in records) * 3 * res**2)
        f.seek(0, os.SEEK_END)
        for pixels, labels, new in read_chunks(listing, res, max_bad, stretch, len(records), bad):
            f.write(pixels.tobytes())
            f.flush()
            os.fsync(f.fileno())
            records.append(dict(sha=hashlib.sha256(pixels.tobytes()).hexdigest(), kept=len(labels), bad=new))
            lines.write(json.dumps(records[-1]) + '\n')
            lines.flush()
    return records


def finish_pack(
    listing:Listing,      # what was read
    res:int,              # pixels per side
    records:list,         # of all chunks
    bad:dict,             # pictures left out, path -> reason
    part:Path,            # file with all pictures
):
    "Add labels, header and end mark."
    labels = [k for name, k in zip(listing.names, listing.labels) if name not in bad]
    classes = listing.classes
    header = dict(n=len(labels), res=res, classes=classes, unreadable=bad,
                  fingerprint=fingerprint_of([r['sha'] for r in records], labels, classes, res))
    text = json.dumps(header).encode()
    with open(part, 'r+b') as f:
        f.seek(HEAD + len(labels) * 3 * res**2)
        f.write(np.asarray(labels, '<i4').tobytes() + text + len(text).to_bytes(8, 'little') + MAGIC)
        f.truncate()
        f.flush()
        os.fsync(f.fileno())
