"Serves chapter 06: names of data sets, images on a disk, and what a source holds, in words."
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from ..core import Refused, from_uint8, grid_image
from .arrays import list_array
from .atomic import atomic_write
from .listing import Listing, list_pictures, locate
from .named import NAMED, is_named, list_named
from .packed import is_pack, open_packed
from .pictures import BaseSource, Reading, load_pictures

OPTIONS = dict(detail=int, apart=float, same={'0': False, '1': True}.__getitem__)        # of `Twins`, from text


def world_of(spec)->str:  # a key of WORLDS
    "'toy' for 'toy' and 'toy:K', 'pairs' for 'pairs' and 'pairs:K', 'twins' for 'twins' with or without options."
    return str(spec).split(':')[0]


def toy_classes(
    spec:str,             # toy, toy:K, pairs or pairs:K
    n_classes:int=None,   # asked for elsewhere
)->int:                   # number of shapes; 4 where nobody says
    "How many shapes. Raises Refused where K is no number or contradicts n_classes."
    k = spec.partition(':')[2]
    if k and not k.isdecimal(): raise Refused(f'{spec}: say {world_of(spec)}, or {world_of(spec)}:K with K classes')
    if k and n_classes not in (None, int(k)): raise Refused(f'{spec} has {k} classes, but {n_classes} are asked for')
    return int(k or n_classes or 4)


def twins_options(
    spec:str,             # twins, or twins:detail=3,apart=1.2,same=0 with any of the three
)->dict:                  # arguments of `Twins`
    "Read the options of `Twins` from a spec. Raises Refused for an unknown name or a value that does not fit."
    given = [o.partition('=')[::2] for o in spec.partition(':')[2].split(',') if o]
    try: return {name: OPTIONS[name](value) for name, value in given}
    except (KeyError, ValueError):
        raise Refused(f'{spec}: say twins, or twins: and any of detail=1 to 4, apart=0.8 to 1.6, same=0') from None


def find_files(
    spec:str,             # folder, zip or pack
)->Path:                  # the file or folder
    "Find pictures on a disk. Raises Refused where there is nothing, with the public data set that is called almost so."
    try: return locate(spec)[0]
    except Refused as e:
        near = get_close_matches(spec.partition(':')[0], NAMED, 1)
        raise Refused(f'{e}; did you mean {near[0]}?' if near else str(e)) from None


def list_images(
    spec:str,             # folder, zip, file.zip:folder, .npz, or the name of a public data set
    unlabelled:bool=False,# without labels
)->Listing:               # what there is to read
    "List images before any is read. Raises Refused where there are none."
    if is_named(spec): return list_named(spec, unlabelled)
    array = spec.lower().endswith('.npz') and Path(spec).expanduser().is_file()
    return (list_array if array else list_pictures)(spec, unlabelled)


def check_res(
    res,                  # pixels per side
):
    "Raise Refused where res is no size."
    if res is None: raise Refused('pictures in a folder or zip have no common size: give one, for example --set res=64')
    if res < 1: raise Refused(f'res is pixels per side, 1 or more; got {res}')


def open_files(
    spec:str,             # folder, zip, pack, or the name of a public data set
    res:int=None,         # pixels per side; None: a pack's own
    unlabelled:bool=False,# of a folder take every image at any depth
    how:Reading=None,     # how images are read; None: as READING says
)->BaseSource:            # see `Source`
    "Open images on a disk. Raises Refused, in one line, on everything that is not such images."
    if not is_named(spec) and is_pack(path := find_files(spec)):
        source = open_packed(path)
        if res in (None, source.res): return source
        raise Refused(f'{spec} was packed at {source.res} px, not {res}: pack again with --res {res}, '
                      f'or train with --set res={source.res}')
    check_res(res)
    return load_pictures(list_images(spec, unlabelled), res, how)


def first_of_each(
    source,               # of images
)->Tensor:                # in [-1, 1], twelve of each of the first ten classes, (B, 3, res, res)
    "Take images to look at, as the networks see them; a class that has fewer begins anew."
    labels = torch.as_tensor(source.labels)
    rows = [(labels == k).nonzero()[:12, 0] for k in range(min(10, max(1, len(source.classes))))]
    return from_uint8(source.batch(torch.cat([row.repeat(12)[:12] for row in rows if len(row)]))[0])


def write_rows(
    path:Path,                # PNG file to write
    x:Tensor,                 # pictures in [-1, 1], twelve for each row
)->Path:                      # the same path
    "Write a grid of pictures."
    from PIL import Image
    grid = grid_image(x, 12).permute(1, 2, 0).numpy()
    with atomic_write(path) as part: Image.fromarray(grid).save(part, format='PNG')
    return path


def uneven(
    counts:list,          # images of each class
)->str:                   # '' where no class has more than twice as many images as another
    "Say that classes are imbalanced."
    low, high = min(counts, default=0), max(counts, default=0)
    return f'classes are imbalanced, {low:,} to {high:,} pictures' if high > 2*low else ''


def describe(
    source,               # any source
    most:int=40,          # classes to list
)->str:                   # a table
    "Return what a source holds, as text to print."
    n, k, bad = len(source), len(source.classes), len(source.unreadable)
    facts = [f'{n:,} pictures of {source.res}x{source.res}', f'{k:,} classes' if k else 'no labels']
    if bad: facts.append(f'{bad:,} unreadable left out')
    facts.append(f'fingerprint {source.fingerprint}')
    wide = max(map(len, source.classes[:most]), default=0)
    rows = [f'{i:5d}  {c:{wide}s}  {m:9,d}' for i, (c, m) in enumerate(zip(source.classes[:most], source.counts))]
    low, high = min(source.counts, default=0), max(source.counts, default=0)
    if k > most: rows.append(f'and {k - most:,} more classes; {low:,} to {high:,} pictures each')
    if words := uneven(source.counts): rows.append(f'{words}; labels of generated pictures are drawn evenly')
    return '\n'.join([f'{source.spec}: ' + ', '.join(facts), *rows])
