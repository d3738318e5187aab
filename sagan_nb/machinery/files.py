"Serves chapters 10 and 13: files of tensors that are kept and read back, and are trusted only where their hash says so."
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..core import Refused
from .atomic import atomic_write


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
    h = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20): h.update(block)
    return h.hexdigest()


def append_line(
    path,                     # a file of JSON lines
    value:dict,               # JSON values
):
    "Add a line, in one write. Half a line that a crash left before it is closed off."
    try:
        with open(path, 'ab+') as f:
            end = f.seek(0, os.SEEK_END)
            f.seek(max(end - 1, 0))
            whole = not end or f.read(1) == b'\n'
            f.write((b'' if whole else b'\n') + json.dumps(value).encode() + b'\n')
    except OSError as e:
        e.filename = e.filename or str(path)
        raise


def read_lines(
    path,                     # a file of JSON lines, or none
)->list:                      # a dict for each
    "Read JSON lines; one that a crash cut off is left out."
    found, path = [], Path(path)
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError): found.append(json.loads(text))
    return [o for o in found if isinstance(o, dict)]


def cache_folder()->Path:     # $SAGAN_NB_CACHE, or ~/.cache/sagan_nb
    "Where classifiers and features are kept. Raises Refused for a user without a home folder."
    if named := os.environ.get('SAGAN_NB_CACHE'): return Path(named)
    try: return Path.home()/'.cache'/'sagan_nb'
    except RuntimeError: raise Refused('no home folder here: name one for the cache in SAGAN_NB_CACHE') from None


def prune_cache(
    folder:Path,              # cache
    days:float=14,            # since a table was last written to
):
    "Remove features of generated pictures that nobody has added to for a while: a checkpoint is seldom measured twice."
    for old in folder.glob('fake-*'):
        try:
            if old.stat().st_mtime < time.time() - days*24*3600: shutil.rmtree(old)
        except OSError: pass                     # another process was first


def content_hash(
    tensors:dict,             # name -> tensor
    facts:dict,               # anything JSON can hold
)->str:                       # 64 hex digits
    "Hash of tensors and facts."
    h = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, v in sorted(tensors.items()): h.update(as_bytes(name, v))
    return h.hexdigest()


class CacheWarning(UserWarning):
    "Something about a kept file, not about a number."


def write_cache(
    path:Path,                # file to write; replaced only when the new one is complete
    tensors:dict,             # name -> tensor, on the CPU
    facts:dict=None,          # anything JSON can hold
)->bool:                      # is it there now?
    "Keep tensors in a file. Where that fails (a full disk), warn, and leave what was there."
    from safetensors.torch import save
    facts = facts or {}
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = save(tensors, dict(facts=json.dumps(facts), sha256=content_hash(tensors, facts)))
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
    if path.is_dir() and (path/'model.safetensors').exists(): path = path/'model.safetensors'
    if path.with_name(path.name + '.index').exists() or path.suffix == '.index': return read_tf(path), {}
    if path.is_dir(): raise Refused(f'{path}: a folder without weights; a run is opened by open_run')
    if not path.is_file(): raise Refused(f'{path}: there is no such file')
    readers = {'.npz': read_npz, '.h5': read_h5, '.safetensors': read_safetensors, **{k: read_torch for k in ('.pt', '.pth', '.ckpt')}}
    if path.suffix not in readers: raise Refused(f'{path}: not a known kind of file; I read {", ".join(readers)}')
    try: return readers[path.suffix](path)
    except Refused: raise
    except Exception as e:
        raise Refused(f'{path}: not readable as {path.suffix}, damaged or hostile ({type(e).__name__})') from None


def read_npz(path:Path)->tuple[dict,dict]:
    "Arrays of NumPy; pickled ones are refused."
    import numpy as np
    with np.load(path, allow_pickle=False) as f: return {k: f[k] for k in f.files}, {}


def read_h5(path:Path)->tuple[dict,dict]:
    "Arrays of an HDF5 file, by their paths in it. Raises Refused where h5py is not installed."
    try: import h5py
    except ImportError: raise Refused(f'{path}: reading HDF5 needs another package: pip install h5py') from None
    out = {}
    def keep(name, o):
        if isinstance(o, h5py.Dataset): out[name] = o[()]
    with h5py.File(path, 'r') as f: f.visititems(keep)
    return out, {}


def body_sha256(content:bytes)->str:
    "Hash of the tensors in a safetensors file: of all that follows its header."
    return hashlib.sha256(memoryview(content)[8 + int.from_bytes(content[:8], 'little'):]).hexdigest()


def read_safetensors(path:Path)->tuple[dict,dict]:
    "Tensors and metadata. Raises Refused where a file of ours holds other weights than were written."
    from safetensors import safe_open
    with safe_open(path, 'pt') as f: arrays, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata() or {}
    if 'sagan_nb_sha256' in meta and meta['sagan_nb_sha256'] != body_sha256(path.read_bytes()):
        raise Refused(f'{path}: the weights are not those that were written: the file is damaged')
    return arrays, meta


def read_torch(path:Path)->tuple[dict,dict]:
    "A state dict, alone or inside a checkpoint."
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
