"Serves chapter 08: how the ranks meet, compare what they have, and end with a sentence when one is missing."
import hashlib
import json
import os
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist

from ..core import Refused
from .files import as_bytes

WAIT = 'SAGAN_NB_TIMEOUT'     # seconds that a rank waits for the others, at the start and in every exchange
LONGEST_WAIT = 10**7          # seconds to wait for another rank: four months
AGAIN = 'TORCHELASTIC_RESTART_COUNT'      # how often torchrun started a machine's ranks again; machines count apart


class Lost(RuntimeError):
    "Another rank is gone, or did not answer in time; what is saved can be gone on with."


def patience()->float:
    "Return the seconds to wait for another rank. Raises Refused for anything but a number above 0."
    text = os.environ.get(WAIT, '600')
    try: seconds = float(text)
    except ValueError: seconds = 0
    if not 0 < seconds <= LONGEST_WAIT:
        raise Refused(f'{WAIT} must be a number of seconds above 0, {LONGEST_WAIT:,} at most; got {text!r}')
    return seconds


def place()->tuple[int,int]:      # rank, world
    "Read from the environment, as torchrun sets it, which of how many processes this is. Raises Refused for nonsense."
    try: rank, world = (int(os.environ.get(name, usual)) for name, usual in (('RANK', 0), ('WORLD_SIZE', 1)))
    except ValueError as e: raise Refused(f'RANK and WORLD_SIZE must be numbers: {e}') from None
    if not 0 <= rank < world: raise Refused(f'rank {rank} of {world} does not exist')
    missing = [name for name in ('MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
    if world > 1 and missing: raise Refused(f'started as one of {world} ranks without {missing[0]}: use torchrun')
    return rank, world


def local_rank()->int:
    "Read which process of this machine this is. Raises Refused for nonsense."
    text = os.environ.get('LOCAL_RANK') or '0'
    if not text.isdecimal(): raise Refused(f'LOCAL_RANK must be a number, got {text!r}')
    return int(text)


def apart()->tuple[int,int]:      # rank, world
    "Let every rank work by itself from here on: a process that knows its number, and meets nobody."
    rank, world = place()
    gpus, local = torch.cuda.device_count(), local_rank()
    if world > 1 and gpus: torch.cuda.set_device(local % gpus)
    os.environ |= dict(RANK='0', WORLD_SIZE='1')
    return rank, world


def meeting(
    store,                    # which all ranks see; it may hold what ranks of an earlier start left in it
    rank:int,                 # this one
    world:int,                # how many there are
    seconds:float,            # to wait for the others
)->str:                       # the same on every rank, and new
    """Name this meeting: after a restart the store still has the addresses of dead ranks. Each rank leaves a sign of
    its own, and rank 0 answers it with the name, until all have said that they know it. Raises RuntimeError where one
    does not come."""
    sign, end = uuid4().hex, time.monotonic() + seconds
    if rank:
        store.set(f'here_{rank}', sign)
        store.wait([f'name_{sign}'], timedelta(seconds=seconds))
        name = store.get(f'name_{sign}').decode()
        store.set(f'knows_{name}_{rank}', '1')
        return name
    missing, answered = [*range(1, world)], set()
    while missing := [o for o in missing if not store.check([f'knows_{sign}_{o}'])]:
        if time.monotonic() > end: raise RuntimeError(f'rank {missing[0]} did not come')
        for other in {store.get(f'here_{o}').decode() for o in missing if store.check([f'here_{o}'])} - answered:
            store.set(f'name_{other}', sign)
            answered.add(other)
        time.sleep(.02)
    return sign


def join(
    rank:int,                 # this one
    world:int,                # how many there are
):
    "Meet the other ranks, once per process. Raises Refused if they do not all come in time."
    if world == 1 or dist.is_initialized(): return
    gpus, local, seconds = torch.cuda.device_count(), local_rank(), patience()
    if local < gpus: torch.cuda.set_device(local)
    wait = timedelta(seconds=seconds)
    try:
        store = next(dist.rendezvous('env://', rank, world, timeout=wait))[0]
        store = dist.PrefixStore(meeting(store, rank, world, seconds), store)
        backend = 'cpu:gloo,cuda:nccl' if gpus and dist.is_nccl_available() else 'gloo'
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
    except (dist.DistError, RuntimeError) as e:
        where = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
        words = str(e).splitlines()[0]
        raise Refused(f'rank {rank} waited {seconds:g} s ({WAIT}) at {where} for {world} ranks: {words}') from None


@contextmanager
def answered():
    "Within it, ranks exchange something. Raises Lost where that fails: one is gone or late (gloo), or as NCCL says."
    try: yield
    except torch.OutOfMemoryError: raise                         # this rank's own trouble
    except RuntimeError as e:
        if 'No backend type' in str(e):
            raise Refused('the ranks met without a way to exchange tensors of a CPU: '
                          'torch.distributed.init_process_group("cpu:gloo,cuda:nccl") has one') from None
        reason = str(e).partition('Last error:')[2].strip()      # NCCL's own, after where in torch it was
        if reason: raise Lost(f'rank {dist.get_rank()} could not exchange with the others: {reason}') from e
        words = f'rank {dist.get_rank()} lost another rank, or waited more than {patience():g} s ({WAIT}) for it'
        raise Lost(f'{words}: {str(e).splitlines()[0].partition(". This is")[0]}') from e


def texts_of_all(
    text:str,                 # this rank's
)->list:                      # of every rank, in order
    "Exchange texts; a process that has met nobody gets its own."
    if not dist.is_initialized(): return [text]
    own = torch.tensor(list(text.encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    with answered():
        dist.all_gather(sizes, torch.tensor([len(own)]))
        parts = [torch.zeros(int(max(sizes)), dtype=torch.uint8) for _ in sizes]
        dist.all_gather(parts, torch.cat([own, parts[0][len(own):]]))
    return [bytes(part[:int(n)].tolist()).decode() for part, n in zip(parts, sizes)]


def text_of_first(
    make,                     # a function without arguments; rank 0 calls it
)->str:                       # what it returned there, on every rank
    "Let rank 0 decide."
    first = not dist.is_initialized() or dist.get_rank() == 0
    return texts_of_all(make() if first else '')[0]


def started_again()->bool:
    "Did torchrun start this process in place of one before it?"
    return os.environ.get(AGAIN, '0') != '0'


def restarted()->bool:
    "Did torchrun start any of the ranks again? All ranks call this."
    return 'True' in texts_of_all(str(started_again()))


def differences_between(
    mine:dict,                # name -> JSON value
)->str:                       # '' where all ranks have the same; the same text on every rank
    "Compare what the ranks have with what rank 0 has."
    first, *others = [json.loads(o) for o in texts_of_all(json.dumps(mine))]
    found = []
    for rank, there in enumerate(others, 1):
        for name in {**first, **there}:
            a, b = first.get(name), there.get(name)
            if a != b: found.append(f'{name} is {a!r} on rank 0, {b!r} on rank {rank}')
    more = f', and {len(found) - 5} more' if len(found) > 5 else ''
    return '; '.join(found[:5]) + more


def code_version()->str:
    "Hash the source files of this package."
    files = sorted(Path(__file__).parents[1].rglob('*.py'))
    return hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()[:12]


def agree(
    settings:dict,            # name -> JSON value
):
    "Compare settings, code and torch of all ranks. Raises Refused, on every rank, with what differs."
    if not dist.is_initialized(): return
    words = differences_between(settings | dict(code=code_version(), torch=torch.__version__))
    if words: raise Refused(f'the ranks do not agree: {words}')


def digests(
    tensors,                  # pairs (name, tensor)
)->dict:                      # name -> hash of its bits
    "Hash every tensor."
    return {name: hashlib.sha256(as_bytes(name, v)).hexdigest()[:16] for name, v in tensors}
