"Serves chapter 06: what a folder or a zip holds: images, their classes, and what is left out, by kind."
import os
import re
import stat
import unicodedata
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..core import Refused
from .files import need_handles
from .terminal import printable

PICTURE_SUFFIXES = {'.jpg', '.jpeg', '.jpe', '.jfif', '.jif', '.png', '.bmp', '.gif', '.webp', '.avif', '.ppm', '.pgm',
                    '.tif', '.tiff'}
DANGEROUS = 'links, absolute names or names with ..'
REPEATED = 'older of a name that is there twice'
DATA_PARTS = {'train', 'training', 'val', 'valid', 'validation', 'test'}       # of a data set: no classes
LARGEST_FILE = 128 * 2**20       # bytes of one file, after it is taken out of a zip


@dataclass
class Listing:
    "The images of a source before any of them is read."
    spec: str             # as the user wrote it
    names: list           # of images, sorted
    labels: list          # int, one per name
    classes: list         # class names, printable; empty: no labels
    read: object          # name -> bytes of a file, a PIL image, or uint8 (3, res, res); raises OSError or ValueError
    left_out: dict = field(default_factory=dict)     # kind -> number of files that are not taken for images


def composed(
    name:str,             # of a file or a class
)->str:
    "Write it with composed characters: macOS stores others, and the same name would sort elsewhere."
    return unicodedata.normalize('NFC', name)


def short_list(
    names,                # strings
    most:int=4,           # how many to show
)->str:                   # 'a, b, c and 12 more'
    "Return a short list for a message, with names made printable."
    names = sorted(names)
    more = f' and {len(names) - most:,} more' if len(names) > most else ''
    return ', '.join(map(printable, names[:most])) + more


def kind_left_out(
    name:str,             # path with forward slashes
)->str:                   # '' for an image
    "Say why a file does not count as an image, by its name alone."
    parts = name.split('/')
    if any(p.startswith('.') or p == '__MACOSX' for p in parts): return 'hidden'
    suffix = Path(name).suffix.lower()
    if suffix in PICTURE_SUFFIXES: return ''
    return suffix or 'without an ending'


def say_left_out(
    left_out:dict,        # kind -> number of files
)->str:                   # '' where nothing is left out
    "Return what is left out, most frequent first."
    kinds = sorted(left_out.items(), key=lambda o: (-o[1], o[0]))
    more = f' and {len(kinds) - 8} more kinds' if len(kinds) > 8 else ''
    return ', '.join(f'{n:,} {printable(kind)}' for kind, n in kinds[:8]) + more


def read_file(
    path:Path,            # file, or anything else that has a name
)->bytes:
    "Read a file of at most LARGEST_FILE bytes. Raises ValueError for others, and for pipes, sockets and devices."
    about = path.stat()
    if not stat.S_ISREG(about.st_mode): raise ValueError('a pipe, socket or device, not a file')
    if about.st_size > LARGEST_FILE: raise ValueError(f'larger than {LARGEST_FILE >> 20} MiB')
    with open(path, 'rb') as f: return f.read(LARGEST_FILE + 1)


def folder_tree(
    root:Path,            # folder
):                        # files and folders (names relative to root), read(name) -> bytes, kind left out -> number
    """List everything below a folder; links are followed, but none twice. Raises OSError where a folder cannot be read
    but for want of permission."""
    files, folders, seen, closed, again = [], [], set(), [], []
    def unopened(e):
        if not isinstance(e, PermissionError): raise e        # the disk, or too many files: what is inside was not seen
        closed.append(e.filename)
    for here, inside, names in os.walk(root, onerror=unopened, followlinks=True):
        inside.sort()                                         # or the file system would say which of two links counts
        if (real := os.path.realpath(here)) in seen:
            inside.clear()
            again.append(here)
        else:
            seen.add(real)
            def relative(name): return (Path(here) / name).relative_to(root).as_posix()
            files += map(relative, names)
            folders += map(relative, inside)
    others = {'folders that may not be opened': len(closed), 'folders that are there already, by a link': len(again)}
    return files, folders, lambda name: read_file(root / name), others


def tidy_name(
    info:zipfile.ZipInfo, # member of a zip
)->str:                   # with forward slashes, without `./`; '' for a member that must not be used
    "Return where a member lies. Links, absolute names and names with `..` are dangerous and give ''."
    name = info.filename
    if not info.flag_bits & 0x800:                   # not marked as UTF-8, though many tools write it
        try: name = name.encode('cp437').decode('utf-8')
        except ValueError: pass
    name = name.replace('\\', '/')
    if name.startswith('/') or re.match('[A-Za-z]:', name) or stat.S_ISLNK(info.external_attr >> 16): return ''
    parts = [p for p in name.split('/') if p not in ('', '.')]
    if '..' in parts: return ''
    return '/'.join(parts) + ('/' if name.endswith('/') else '')


def read_member(
    z:zipfile.ZipFile,    # open zip
    info:zipfile.ZipInfo, # one of its members
)->bytes:
    "Take out at most LARGEST_FILE bytes. Raises ValueError for larger members and unusual compression."
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError('compressed by another method than deflate')
    if info.file_size > LARGEST_FILE: raise ValueError(f'larger than {LARGEST_FILE >> 20} MiB')
    with z.open(info) as f: return f.read(LARGEST_FILE + 1)


def zip_tree(
    path:Path,            # zip file
    inner:str,            # folder inside it, or ''
):                        # as folder_tree
    "List everything below a folder of a zip. Raises Refused where the file is not a zip or has no such folder."
    try: z = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as e:
        raise Refused(f'{path} is no zip file, or a damaged one ({e})') from e
    every = [(tidy_name(info), info) for info in z.infolist()]
    members = dict(every)                                        # of one name twice the last, as unzip leaves it
    dangerous = sum(not name for name, info in every if info.filename.strip('./\\'))
    members.pop('', None)
    usable = [name for name, _ in every if name and not name.endswith('/')]
    twice = len(usable) - len({*usable})
    start = inner.strip('/') + '/' if inner.strip('/') else ''
    below = [n[len(start):] for n in members if n.startswith(start)]
    if start and not below:
        raise Refused(f'{path} holds no folder {inner}; it holds {short_list({n.split("/")[0] for n in members})}')
    files = [n for n in below if n and not n.endswith('/')]
    folders = {n[:-1] for n in below if n.endswith('/')}
    folders |= {p.as_posix() for n in files for p in PurePosixPath(n).parents}
    def read(name): return read_member(z, members[start + name])
    return files, sorted(folders - {'.', ''}), read, {DANGEROUS: dangerous, REPEATED: twice}


def by_class(
    names:list,           # images, relative to where
    folders:list,         # all folders, relative to where
    where:str,            # for messages
    left_out:str='',      # what else is there, for messages
):                        # labels (list of int, one per name), classes (list of str)
    "Read labels from <class>/<image>, skipping folders that wrap all images. Raises Refused on any other layout."
    cut = ''
    while len(tops := {n[len(cut):].split('/')[0] for n in names}) == 1:
        if min(n[len(cut):].count('/') for n in names) < 2: break
        cut += min(tops) + '/'
    inside = [n[len(cut):] for n in names]
    check_depth(inside, cut, where, tops)
    classes = sorted({n.split('/')[0] for n in inside}, key=composed)
    if len(classes) > 1 and {c.lower() for c in classes} <= DATA_PARTS:
        one = within(where, cut + classes[0])
        raise Refused(f'{where} holds parts of a data set ({short_list(classes)}), not classes: '
                      f'name one of them, such as {one}')
    beside = {f[len(cut):] for f in folders if f.startswith(cut) and not kind_left_out(f + '/x.png')}
    if empty := {f for f in beside if f and '/' not in f} - set(classes):
        others = f'; left out: {left_out}' if left_out else ''
        raise Refused(f'class folders without a picture in {where}: {short_list(empty)}. Fill or remove them{others}')
    if len(classes) == 1:
        raise Refused(f'{where} holds only one class ({printable(classes[0])}); '
                      'to train without labels: sagan_train --unlabelled')
    index = {c: k for k, c in enumerate(classes)}
    shown = [printable(composed(c)) for c in classes]
    if len({*shown}) < len(shown): raise Refused(f'two class folders in {where} look the same by name: rename one')
    return [index[n.split('/')[0]] for n in inside], shown


def within(
    where:str,            # folder or zip
    name:str,             # of a folder in it
)->str:                   # as a command takes it
    "Name a folder inside a source."
    return where + (':' if where.lower().endswith('.zip') else '/') + printable(name)


def check_depth(
    inside:list,          # images, relative to the folder that holds the class folders
    cut:str,              # that folder, relative to where, with a slash at its end; or ''
    where:str,            # for messages
    tops:set,             # first parts of the names
):
    "Raise Refused for images outside of class folders, and for images deeper than that."
    direct, deep = [n for n in inside if '/' not in n], [n for n in inside if n.count('/') > 1]
    want = f'expected {where}/{printable(cut)}<class>/<picture>'
    if direct:
        raise Refused(f'{len(direct):,} pictures lie outside of class folders ({short_list(direct, 2)}): {want}; '
                      'to train without labels: sagan_train --unlabelled')
    if deep:
        one = within(where, cut + min(tops))
        raise Refused(f'{len(deep):,} pictures lie too deep ({printable(deep[0])}): {want}; '
                      f'if one of {short_list(tops)} holds the class folders, name it: {one}')


def locate(
    spec:str,             # path, or file.zip:folder
):                        # Path that exists, folder inside the zip or ''
    "Find what a spec names. Raises Refused where there is nothing."
    path, inner = Path(spec).expanduser(), ''
    inside = re.fullmatch(r'(.+\.zip)[:/\\](.+)', spec, re.I)
    if inside and not path.exists(): path, inner = Path(inside[1]).expanduser(), inside[2].replace('\\', '/')
    if not path.exists() and any(path.with_name(path.name + end).exists() for end in ('.part', '.old')):
        raise Refused(f'{path} is being packed, or was when something ended it: the same sagan_pack command goes on')
    if not path.exists(): raise Refused(f'there is no file or folder {path}; if it was moved, say where it is (--data)')
    return path, inner


def list_pictures(
    spec:str,             # folder, zip, or file.zip:folder
    unlabelled:bool=False,# take every image at any depth, without labels
)->Listing:               # what there is to read
    "List a source. Raises Refused where there are no images or the layout gives no classes."
    path, inner = locate(spec)
    need_handles(path)
    if not path.is_dir() and path.suffix.lower() != '.zip':
        raise Refused(f'{path} is neither a folder, nor a .zip, nor an .npz, nor a pack made by sagan_pack: '
                      'unpack it into a folder')
    if not path.is_dir() and not path.is_file(): raise Refused(f'{path} is a pipe, socket or device, not a zip file')
    files, folders, read, others = folder_tree(path) if path.is_dir() else zip_tree(path, inner)
    left_out = Counter(filter(None, map(kind_left_out, files))) + Counter(others)
    names = sorted((n for n in files if not kind_left_out(n)), key=composed)
    said = say_left_out(left_out)
    if not names:
        holds = f'left out: {said}' if said else 'it is empty'
        if files: holds = f'it holds {short_list(files)}'
        raise Refused(f'no pictures in {spec}: {holds}')
    if 'dataset.json' in files and not unlabelled:
        raise Refused(f'{spec} holds dataset.json, as StyleGAN writes it: its folders are parts, not classes. Sort the '
                      'pictures into a folder for each class; to train without labels: sagan_train --unlabelled')
    labels, classes = ([0] * len(names), []) if unlabelled else by_class(names, folders, spec, said)
    tops = {n.split('/')[0] for n in names}
    if unlabelled and len(tops) > 1 and {o.lower() for o in tops} <= DATA_PARTS:
        print(f'{spec}: takes all of {short_list(tops)} together; name one of them for that one alone')
    if said: print(f'{spec}: not taken for pictures and left out: {said}')
    return Listing(spec, names, labels, classes, read, dict(left_out))
