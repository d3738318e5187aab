"Serves chapters 09, 14 and 16: devices, number formats, and what a number was made on."
import ctypes
import os
import platform
import re
import shutil
import time
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch

from .. import __version__
from ..core import Refused


def environment(
    device,                   # where the networks live
)->dict:                      # as it is written to env.json
    "Describe what a run ran on: versions, commit, device, threads."
    import subprocess
    import numpy, torchvision
    import sagan_nb
    from ..config import NUMERICS
    here = Path(sagan_nb.__file__).resolve().parent
    def git(*args):                                          # None where git will not say
        done = subprocess.run(['git', *args], cwd=here, capture_output=True, text=True)
        return None if done.returncode else done.stdout.strip()
    own = (here.parent/'.git').exists() and shutil.which('git')     # installed elsewhere there is no commit to name
    on_gpu = torch.device(device).type == 'cuda'
    state = git('status', '--porcelain', '--untracked-files=no', '.') if own else None
    name = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
    return dict(sagan_nb=__version__, numerics=NUMERICS, commit=git('rev-parse', 'HEAD') if own else None,
                changed=None if state is None else bool(state),
                python=platform.python_version(), torch=torch.__version__, torchvision=torchvision.__version__,
                numpy=numpy.__version__, device=str(device), device_name=name, system=platform.system(),
                threads=torch.get_num_threads(), cpu=torch.backends.cpu.get_cpu_capability())


def out_of_memory(
    e:BaseException,              # what was raised
)->bool:
    "Tell whether memory ran out: Python's, torch's on a CPU or a GPU, or that of a thread that could not start."
    words = ['allocate memory', "can't start new thread", 'out of memory', 'std::bad_alloc', 'STATUS_ALLOC_FAILED']
    if memory_is_limited(): words.append('could not create a primitive')             # oneDNN's way to say it
    return isinstance(e, MemoryError) or isinstance(e, RuntimeError) and any(o in str(e) for o in words)


def memory_is_limited()->bool:
    "Tell whether this process may have only so much memory (ulimit -v)."
    try: import resource
    except ImportError: return False                                                 # Windows
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def short_of_memory(
    e:BaseException,              # of which `out_of_memory` is true
)->str:                           # one line
    "Say in a few words what could not be had."
    asked = re.search(r'[Tt]ried to allocate ([\d.]+ ?\w+)', str(e))
    if isinstance(e, MemoryError) and str(e): return str(e)
    return f'{asked[1]} could not be had' if asked else 'the machine, or a limit on this process, has no more'


def keep_memory()->bool:          # False where it was not done
    """Tell glibc's allocator to keep what is freed for the next tensor, for this process, from now on. Otherwise much
    of it goes back to the system after every layer and is zeroed anew for the next one. The commands that train,
    measure or sample do so; it is left out where the environment says SAGAN_KEEP_MEMORY=0, or sets the allocator
    itself (MALLOC_...), and where there is no glibc."""
    own = any(name.startswith('MALLOC_') for name in os.environ)
    if own or os.environ.get('SAGAN_KEEP_MEMORY') == '0' or platform.libc_ver()[0] != 'glibc': return False
    mmap_max, trim_threshold, top_pad = -4, -1, -2           # of malloc.h; M_MMAP_THRESHOLD alone stops at 32 MiB
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(mmap_max, 0), mallopt(trim_threshold, -1), mallopt(top_pad, 2**28)])


@contextmanager
def tf32(
    allowed:bool,                 # may CUDA round the inputs of float32 products and convolutions to ten bits?
):
    """Allow TF32 or not; torch's settings come back after. Once somebody has used torch's newer names, it refuses to
    read the older."""
    name, value, holders = 'allow_tf32', allowed, (torch.backends.cudnn, torch.backends.cuda.matmul)
    try: before = [getattr(o, name) for o in holders]
    except RuntimeError:
        name, value = 'fp32_precision', 'tf32' if allowed else 'ieee'
        holders = torch.backends.cudnn.conv, torch.backends.cuda.matmul
        before = [o.fp32_precision for o in holders]
        before = ['none' if o == torch.backends.fp32_precision else o for o in before]    # as all of torch, also later
    try:
        for o in holders: setattr(o, name, value)
        yield
    finally:
        for o, old in zip(holders, before): setattr(o, name, old)


@contextmanager
def steady_kernels():
    "Compute float32 in full, and by kernels that are not chosen by timing them."
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        with tf32(False): yield
    finally: torch.backends.cudnn.benchmark = before


def exact_products()->bool:
    "Does a product of float32 matrices use all of their bits, on a CPU and on a GPU?"
    try: return torch.get_float32_matmul_precision() == 'highest'
    except RuntimeError:                                     # of torch's newer names, see `tf32`
        return all(o.matmul.fp32_precision in ('none', 'ieee') for o in (torch.backends.cuda, torch.backends.mkldnn))


def fast_bf16(
    device='cpu',                 # where
)->bool:
    "Return whether the device computes bfloat16 in hardware; emulated, it is many times slower than float32."
    if torch.device(device).type == 'cuda':
        if not torch.cuda.is_available(): return False
        with torch.cuda.device(device) if torch.device(device).index else nullcontext():
            return torch.cuda.is_bf16_supported(including_emulation=False)
    names = '_is_avx512_bf16_supported', '_is_amx_tile_supported'
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def processor()->str:             # '' where the system does not say
    "Return the name of the processor."
    try: lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError: lines = []
    return next((o.split(':', 1)[1].strip() for o in lines if o.startswith('model name')), platform.processor())


def machine_facts(
    device='cpu',                 # where the bench runs
)->dict:                          # as it is written down
    "Describe the machine that a measurement belongs to."
    allocator = {k: v for k, v in os.environ.items() if k.startswith('MALLOC_') or k == 'LD_PRELOAD'}
    facts = dict(environment(device), date=time.strftime('%Y-%m-%d'), cores=os.cpu_count(), allocator=allocator,
                 load=os.getloadavg() if hasattr(os, 'getloadavg') else None, cpu_name=processor())
    if torch.device(device).type == 'cuda': facts |= dict(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    return facts


def check_compiler(
    kind:str='cpu',               # of device
):
    "Check for what `torch.compile` needs: a C++ compiler for a CPU, triton and a C compiler for a GPU. Raises Refused."
    if kind == 'cuda':
        there = find_spec('triton') and any(shutil.which(o) for o in (os.environ.get('CC', ''), 'gcc', 'clang'))
        if there: return
        raise Refused('torch.compile on a GPU needs triton and a C compiler (gcc, clang, or what CC names), '
                      'and they are not here')
    from torch._inductor import cpp_builder
    try: cpp_builder.get_cpp_compiler()
    except RuntimeError:                                     # of several kinds, by torch and system
        raise Refused('torch.compile needs a C++ compiler (g++, or what CXX names), and there is none here') from None


def apple_gpu()->torch.device:
    "Return the GPU of an Apple machine, and say that it is untested. Raises Refused where there is none."
    if not torch.backends.mps.is_available(): raise Refused('there is no Apple GPU here; say --device cpu')
    print('mps: this package has never been run on an Apple GPU; compare a short run with --device cpu first')
    return torch.device('mps')


def check_gpu(
    device:torch.device,          # cuda, or cuda:N
    bf16:bool,                    # is it to compute in bfloat16?
):
    "Raise Refused for a GPU that is not there, that another process here has, or that cannot compute as asked."
    if not torch.cuda.is_available(): raise Refused('there is no CUDA device here; say --device cpu')
    n, local = torch.cuda.device_count(), int(os.environ.get('LOCAL_RANK', 0))
    if (device.index or 0) >= n:
        raise Refused(f'there is no device {str(device)!r}: there are {n} here, counted from 0')
    if 1 < n <= local:
        raise Refused(f'process {local} of this machine has no GPU: there are {n}, counted from 0, '
                      'and each serves one process')
    if bf16 and not fast_bf16(device):
        raise Refused('this GPU only emulates bfloat16, many times slower: say --set precision=fp32')


def pick_device(
    name:str,                 # 'auto', 'cpu', 'cuda', 'cuda:1', 'mps', ...
    compiled:bool=False,      # is torch.compile to work there?
    bf16:bool=False,          # is it to compute in bfloat16?
)->torch.device:              # where to compute
    "Pick a device; 'auto' is a GPU if there is one. Raises Refused if it is missing or cannot compute as asked."
    if name == 'auto': name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if name == 'mps': return apple_gpu()
    try: device = torch.device(name if name.split(':')[0] in ('cpu', 'cuda') else 'none')
    except RuntimeError: raise Refused(f'there is no device {name!r}; say auto, cpu or cuda') from None
    if device.type == 'cuda': check_gpu(device, bf16)
    if compiled: check_compiler(device.type)
    return device
