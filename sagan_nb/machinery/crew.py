"Serves chapter 08: a few ranks on this machine, to watch what they do."
import inspect
import os
import socket
import textwrap
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

import torch
import torch.distributed as dist

from .group import WAIT


def free_port()->int:
    "Find a TCP port that nobody listens at."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def enter(
    rank:int,                 # of this process
    world:int,                # how many there are
    port:int,                 # where they meet
    wait:float,               # seconds
):
    "Make this process a rank, as torchrun would."
    if dist.is_initialized(): dist.destroy_process_group()
    torch.set_num_threads(1)
    os.environ |= {'RANK': str(rank), 'WORLD_SIZE': str(world), 'LOCAL_RANK': str(rank), 'MASTER_ADDR': '127.0.0.1',
                   'MASTER_PORT': str(port), WAIT: str(wait)}


def call_source(
    text:str,                 # a function as it was written
    name:str,                 # its name
    module:str,               # whose names it may use
    args:tuple,               # its arguments
):                            # what it returns
    "Run a function that was sent as text: what a notebook defines cannot be imported elsewhere."
    scope = dict(vars(import_module(module)))
    exec(text, scope)
    return scope[name](*args)


class Crew:
    "Some ranks in processes of their own. Calling it runs one function on all of them at once."
    def __init__(self,
        world:int,                # how many
        module:str=__name__,      # whose names the functions of a notebook may use
        wait:float=60,            # seconds that one waits for another
    ):
        context, self.module, self.wait = get_context('spawn'), module, wait
        self.all = self.pools = [ProcessPoolExecutor(1, context) for _ in range(world)]
        self.regroup(world)

    def regroup(self,
        world:int,                # how many of them work from now on
    )->'Crew':
        "Let the first of them be a group by themselves."
        port, self.pools = free_port(), self.all[:world]
        for work in [p.submit(enter, r, world, port, self.wait) for r, p in enumerate(self.pools)]: work.result()
        return self

    def __call__(self,
        f,                        # a function; one of a notebook may use what it imports, and the names of a module
        *args,                    # the same for all ranks
    )->list:                      # what each rank returned
        "Run a function on every rank. Raises what the first of them that failed raised."
        if f.__module__ == '__main__':
            f, args = call_source, (textwrap.dedent(inspect.getsource(f)), f.__name__, self.module, args)
        work = [pool.submit(f, *args) for pool in self.pools]
        return [o.result() for o in work]

    def __enter__(self): return self

    def __exit__(self, *fault):
        for pool in self.all: pool.shutdown(wait=True, cancel_futures=True)
