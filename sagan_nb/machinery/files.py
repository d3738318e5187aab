"Serves chapters 09, 10 and 13: files that are kept and read back, and are trusted only where their hash says so."
import hashlib
import json
import os
import re
import shutil
import time
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from ..core import Refused
from .atomic import atomic_write
from .machine import out_of_memory
from .terminal import printable


def fetch(
    want:Path,                # where the file is kept
    url:str,                  # where it comes from
    sha256:str,               # what it must hash to, or how that begins; '': no hash is known
    what:str,                 # it, in words
    say:str,                  # what to do where this fails
):
    "Download a file that is not there. Raises Refused where that fails."
    if want.exists(): return
    want.parent.mkdir(parents=True, exist_ok=True)
    show = 'IN_TEST' not in os.environ
    try: torch.hub.download_url_to_file(url, str(want), hash_prefix=sha256 or None, progress=show)
    except Exception as e: raise Refused(f'cannot download {what} ({e}): {say}') from None


def as_bytes(
    name:str,                 # of a tensor
    v:Tensor,                 # of any type and shape, on any device
)->bytes:                     # what is hashed
    "Name, shape, type and values of a tensor."
    values = v.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f'{name} {tuple(v.shape)} {v.dtype} '.encode() + values.numpy().tobytes()


def file_sha256(
    path,                     # file
)->str:                       # 64 hex digits
    "Hash of a file."
    need_handles(path)                           # whoever trusts a hash reads the file next
    h = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20): h.update(block)
    return h.hexdigest()


SEAL = 'seal'             # the key under which a JSON object carries the hash of all others
BEGINS = 'sha256:'        # how that hash begins
LONGEST = 256 * 2**20     # bytes of a JSON file that are read


def hash_json(
    value:dict,               # JSON values
)->str:                       # BEGINS and 16 hex digits
    "Hash an object as it will be read back: keys are texts, and their order does not matter."
    plain = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return BEGINS + hashlib.sha256(plain.encode()).hexdigest()[:16]


def sealed_json(
    value:dict,               # JSON values
)->dict:                      # the same, and its hash
    "Let an object carry its hash, at its end."
    return {**value, SEAL: hash_json(value)}


def unsealed_json(
    value:dict,               # from `sealed_json`, or from an earlier version
)->dict:                      # without the hash
    "Check an object against the hash it carries, if it does. Raises ValueError where they differ."
    name, said = next(reversed(value.items()), ('', ''))
    if name != SEAL and not str(said).startswith(BEGINS): return value
    rest = {k: v for k, v in value.items() if k != name}
    if (name, said) == (SEAL, hash_json(rest)): return rest
    raise ValueError('it holds other values than were written')


def whole_number(text:str)->int:
    "Read a whole number. Raises ValueError for one that is too long to be computed with."
    if len(text) > 308: raise ValueError('a number in it is too long')       # that a float can hold
    return int(text)


def parse_json(
    content:bytes,            # JSON
    kind:type=dict,           # what it must be
):                            # the value
    "Read JSON from bytes. Raises ValueError for anything else, however deep or long its numbers are."
    try: value = json.loads(content.decode('utf-8'), parse_int=whole_number)
    except RecursionError: raise ValueError('it is nested too deeply') from None
    if not isinstance(value, kind): raise ValueError(f'it holds a {type(value).__name__}')
    return unsealed_json(value) if kind is dict else value


ON_THE_WAY = 8            # files that a library may open on the way to one


def need_handles(
    path,                     # what is about to be read
):
    """Raise OSError where this process may open no more than a few files: libraries, and we, would take the file for
    damaged or missing."""
    taken = []
    try:
        for _ in range(ON_THE_WAY): taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as e: raise OSError(e.errno, e.strerror, str(path)) from None
    finally:
        for fd in taken: os.close(fd)


def must_be_utf8(
    path,                     # a file or folder
):
    "Raise Refused for a path that torch and safetensors cannot open, and would call damaged."
    try: str(path).encode()
    except UnicodeEncodeError:
        raise Refused(f'{path}: a name in it is not UTF-8, and the libraries that read and write weights take no '
                      'other: rename it') from None


ABSURD = 2**40            # bytes that only a hostile file asks for


@contextmanager
def refusing(
    words:str,                # what to say of the file
):
    "Within it a file of others is read: whatever that raises becomes Refused, but for memory that ran out."
    try: yield
    except Refused: raise
    except Exception as e:
        asked = re.search(r'tried to allocate (\d+) bytes', str(e))
        if out_of_memory(e) and not (asked and int(asked[1]) > ABSURD): raise
        raise Refused(f'{words} ({type(e).__name__})') from None


def must_be_file(
    path,                     # a file, or none
)->Path:
    """Raise Refused for a pipe, a device or a folder where a file is read: a pipe would never end. Raises as
    `need_handles` and `must_be_utf8` do."""
    path = Path(path)
    need_handles(path)
    must_be_utf8(path)
    kind = 'folder' if path.is_dir() else 'pipe or device'
    if path.exists() and not path.is_file(): raise Refused(f'{path} is no file, but a {kind}')
    return path


def read_json(
    path,                     # a file
    remedy:str,               # what to do about a damaged one
    kind:type=dict,           # what it must hold
):                            # the value
    "Read a JSON file. Raises Refused, with the remedy, for one that is damaged."
    path = must_be_file(path)
    try:
        if path.stat().st_size > LONGEST: raise ValueError('it is too long')
        return parse_json(path.read_bytes(), kind)
    except ValueError as e: raise Refused(f'{path} is damaged ({printable(e)[:120]}): {remedy}') from None


def write_json(
    path,                     # file to write; replaced only when the new one is complete
    value:dict,               # JSON values
):
    "Write an object with its hash."
    with atomic_write(path) as part: part.write_text(json.dumps(sealed_json(value), indent=1), encoding='utf-8')


def append_line(
    path,                     # a file of JSON lines
    value:dict,               # JSON values
):
    "Add a line with its hash, in one write, and wait for the disk. Half a line of a crash is closed off before it."
    try:
        with open(path, 'ab+') as f:
            end = f.seek(0, os.SEEK_END)
            f.seek(max(end - 1, 0))
            whole = not end or f.read(1) == b'\n'
            f.write((b'' if whole else b'\n') + json.dumps(sealed_json(value)).encode() + b'\n')
            f.flush()
            os.fsync(f.fileno())                     # a checkpoint may follow: its log must not be the one that is lost
    except OSError as e:
        e.filename = e.filename or str(path)
        raise


def read_lines(
    path,                     # a file of JSON lines, or none
)->list:                      # a dict for each
    "Read JSON lines; one that a crash cut off is left out. Raises Refused for a line that is damaged otherwise."
    found, path = [], must_be_file(path)
    size = path.stat().st_size if path.exists() else 0
    if size > LONGEST: raise Refused(f'{path} is too long: {size / 2**20:,.0f} MiB')
    for i, text in enumerate(path.read_bytes().split(b'\n') if size else (), 1):
        if text[:1] in (b'', b'{') and not text.endswith(b'}'): continue             # cut off, or the end
        try: found.append(parse_json(text))
        except ValueError as e:
            unended = isinstance(e, json.JSONDecodeError) and e.pos == len(e.doc)
            if text[:1] == b'{' and unended: continue                                # cut off behind an inner }
            raise Refused(f'{path}, line {i} is damaged ({printable(e)[:120]}): delete this line') from None
    return found


STALE = 3600              # seconds after which nobody is still writing a file


def sweep(
    folder:Path,              # where files were about to be written
    what:str='*',             # which files
):
    "Remove what killed processes had half written: parts that are older than STALE."
    for left in folder.glob(f'{what}.part'):
        with suppress(OSError):                      # another process was first
            if left.is_file() and left.stat().st_mtime <= time.time() - STALE: left.unlink()


def cache_folder()->Path:     # $SAGAN_NB_CACHE, or ~/.cache/sagan_nb
    "Where classifiers and features are kept. Raises Refused for a user without a home folder."
    named = os.environ.get('SAGAN_NB_CACHE')
    try:
        if named: return Path(named).expanduser()
        return Path.home()/'.cache'/'sagan_nb'
    except RuntimeError: raise Refused('no home folder here: name one for the cache in SAGAN_NB_CACHE') from None


def prune_cache(
    folder:Path,              # cache
    days:float=14,            # since a table was last written to
):
    "Remove features of generated pictures that nobody has added to for a while: a checkpoint is seldom measured twice."
    for made in folder.glob('*-*/'):
        if not re.fullmatch('(real|fake)-[0-9a-f]{16}', made.name): continue         # not ours
        with suppress(OSError):                  # another process was first
            if made.name.startswith('fake-') and made.stat().st_mtime < time.time() - days*24*3600: shutil.rmtree(made)
            else: sweep(made)


def content_hash(
    tensors:dict,             # name -> tensor
    facts:dict,               # anything JSON can hold
)->str:                       # 64 hex digits
    "Hash of tensors and facts."
    h = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, v in sorted(tensors.items()): h.update(as_bytes(name, v))
    return h.hexdigest()


class CacheWarning(UserWarning):
    "A cache file could not be read or written; results are unaffected."


def safetensors_bytes(
    tensors:dict,             # name -> tensor
    about:dict,               # name -> text
)->bytes:                     # a safetensors file
    "Write tensors under a header in order, so that equal ones make equal bytes, that carries its own hash."
    from safetensors.torch import save
    content = save(tensors, about)
    n = int.from_bytes(content[:8], 'little')
    facts = json.loads(content[8:8 + n])
    facts['__metadata__'][SEAL] = hash_json(facts)
    header = json.dumps(facts, sort_keys=True, separators=(',', ':'), ensure_ascii=False).encode()
    header = header.ljust(-(-len(header) // 8) * 8)              # tensors begin at a multiple of 8
    return len(header).to_bytes(8, 'little') + header + content[8 + n:]


def write_cache(
    path:Path,                # file to write; replaced only when the new one is complete
    tensors:dict,             # name -> tensor, on the CPU
    facts:dict=None,          # anything JSON can hold
)->bool:                      # is it there now?
    "Keep tensors in a file. Where that fails (a full disk), warn, and leave what was there."
    must_be_utf8(path)
    facts = facts or {}
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = safetensors_bytes(tensors, dict(facts=json.dumps(facts), sha256=content_hash(tensors, facts)))
        with atomic_write(path) as part: part.write_bytes(kept)
        return True
    except OSError as e:
        warnings.warn(f'cannot keep {path} ({e.strerror or e}): it will have to be made again', CacheWarning,
                      stacklevel=2)
        return False


def read_cache(
    path:Path,                # what `write_cache` wrote
):                            # (tensors, facts); None where there is nothing, or nothing to be trusted
    "Read tensors back. A damaged file is reported, and counts as missing."
    from safetensors import safe_open
    if not path.exists(): return None
    need_handles(path)
    try:
        with safe_open(path, 'pt') as f: tensors, about = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
        facts = json.loads(about['facts'])
        if content_hash(tensors, facts) == about['sha256']: return tensors, facts
    except Exception: pass                       # whatever is wrong with it, it is made again
    warnings.warn(f'{path} is damaged: making it again', CacheWarning, stacklevel=2)
    return None


def read_arrays(
    path,                         # .npz, .safetensors, .pt, .pth, .ckpt or a TensorFlow checkpoint
)->tuple[dict,dict]:              # name -> array; metadata (safetensors of ours), or {}
    "Read weights without running code from the file. Raises Refused for a damaged, hostile or unknown file."
    path = Path(path)
    must_be_utf8(path)
    if path.is_dir() and (path/'model.safetensors').exists(): path = path/'model.safetensors'
    if path.with_name(path.name + '.index').exists() or path.suffix == '.index': return read_tf(path), {}
    if path.is_dir(): raise Refused(f'{path}: a folder without weights; a run is opened by open_run')
    if not path.is_file(): raise Refused(f'{path}: there is no such file')
    need_handles(path)
    readers = {'.npz': read_npz, '.h5': read_h5, '.safetensors': read_safetensors,
               **dict.fromkeys(('.pt', '.pth', '.ckpt'), read_torch)}
    if path.suffix not in readers: raise Refused(f'{path}: not a known kind of file; I read {", ".join(readers)}')
    with refusing(f'{path}: not readable as {path.suffix}, damaged or hostile'): return readers[path.suffix](path)


SQUEEZED = 50             # times that an array of images or weights may shrink in a zip; more is a bomb, or zeros


def check_unpacked(
    path:Path,                # a zip: .npz, or a file of torch
):
    "Raise Refused before memory is taken for arrays that unpack to far more than the file holds."
    with zipfile.ZipFile(path) as z: must_fit(path, sum(o.file_size for o in z.infolist()))


def must_fit(
    path:Path,                # file
    unpacked:int,             # bytes of what is in it
):
    "Raise Refused for a file that would unpack to more than SQUEEZED times its size."
    if unpacked > max(64 * 2**20, SQUEEZED * path.stat().st_size):
        raise Refused(f'{path} would unpack to {unpacked / 2**20:,.0f} MiB, more than {SQUEEZED} times its size')


def read_npz(path:Path)->tuple[dict,dict]:
    "Arrays of NumPy; pickled ones are refused."
    import numpy as np
    check_unpacked(path)
    with np.load(path, allow_pickle=False) as f: return {k: f[k] for k in f.files}, {}


def read_h5(path:Path)->tuple[dict,dict]:
    "Arrays of an HDF5 file, by their paths in it. Raises Refused where h5py is not installed."
    try: import h5py
    except ImportError: raise Refused(f'{path}: reading HDF5 needs another package: pip install h5py') from None
    out = {}
    def list_them(name, o):
        if isinstance(o, h5py.Dataset): out[name] = o
    with h5py.File(path, 'r') as f:
        f.visititems(list_them)
        must_fit(path, sum(o.nbytes for o in out.values()))
        return {name: o[()] for name, o in out.items()}, {}


def body_sha256(content:bytes)->str:
    "Hash of the tensors in a safetensors file: of all that follows its header."
    return hashlib.sha256(memoryview(content)[8 + int.from_bytes(content[:8], 'little'):]).hexdigest()


def read_safetensors(path:Path)->tuple[dict,dict]:
    "Tensors and metadata. Raises Refused where a file of ours holds other weights than were written."
    from safetensors import safe_open
    with safe_open(path, 'pt') as f: arrays, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata() or {}
    if not {SEAL, 'sagan_nb_sha256'} & meta.keys(): return arrays, meta
    content = path.read_bytes()
    if meta.get('sagan_nb_sha256') != body_sha256(content) or not header_is_whole(content):
        raise Refused(f'{path}: the weights are not those that were written: the file is damaged')
    return arrays, meta


def header_is_whole(
    content:bytes,            # a safetensors file
)->bool:                      # True for an earlier version, whose header has no hash
    "Compare the header with the hash it carries."
    facts = json.loads(content[8:8 + int.from_bytes(content[:8], 'little')])
    said = facts['__metadata__'].pop(SEAL, None)
    return said in (None, hash_json(facts))


def check_members(
    path:Path,                # file
):
    """Raise Refused where a zip's own checksums say that a part of it is damaged. `torch.load` does not look at them;
    where none fits, torch was told to write none."""
    if not zipfile.is_zipfile(path): return
    check_unpacked(path)
    def whole(z, member):
        try:
            with z.open(member) as f:
                while f.read(1 << 20): pass
        except zipfile.BadZipFile: return False
        return True
    with zipfile.ZipFile(path) as z: wrong = [o.filename for o in z.infolist() if not whole(z, o)]
    if 0 < len(wrong) < len(z.infolist()):
        raise Refused(f'{path} is damaged: its part {wrong[0]} does not fit its checksum')


def read_torch(path:Path)->tuple[dict,dict]:
    "A state dict, alone or inside a checkpoint. Raises Refused where a checksum of its zip does not fit."
    check_members(path)
    state = torch.load(path, map_location='cpu', weights_only=True)
    for key in ('state_dict', 'model', 'model_state_dict'):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping): state = state[key]
    if isinstance(state, Mapping) and {'config', 'G', 'D'} <= state.keys():
        raise Refused(f'{path}: a checkpoint of a run: open_run opens it')
    if not isinstance(state, Mapping): raise Refused(f'{path}: holds a {type(state).__name__}, not a state dict')
    return dict(state), {}


def read_tf(path:Path)->dict:
    "Variables of a TensorFlow checkpoint. Raises Refused where TensorFlow is not installed."
    try: import tensorflow as tf
    except ImportError:
        raise Refused(f'{path}: reading a TensorFlow checkpoint needs tensorflow. Where it is installed, write an npz: '
                      'r = tf.train.load_checkpoint(path); '
                      'numpy.savez(out, **{k: r.get_tensor(k) for k in r.get_variable_to_shape_map()})') from None
    reader = tf.train.load_checkpoint(str(path.with_suffix('') if path.suffix == '.index' else path))
    return {k: reader.get_tensor(k) for k in reader.get_variable_to_shape_map()}
