"""Two hosts for real: each in a network namespace with its own address. One is cut off in the middle and brought back.
`python -m pytest -m long tests/test_hosts.py`"""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from sagan_nb.machinery.checkpoints import checkpoints_of
from sagan_nb.machinery.crew import Crew
from sagan_nb.machinery.runs import read_log
from commands import other_bits
from test_ranks import SMOKE, run

pytestmark = pytest.mark.long
HOSTS = {'sagan_a': '10.77.24.1', 'sagan_b': '10.77.24.2'}           # a namespace and its address; its cable has its name


def ip(*words): return subprocess.run(['ip', *words], capture_output=True, text=True)


@pytest.fixture
def hosts():
    "Two network namespaces and a cable between them. Skips where that is not permitted."
    try: made = [ip('netns', 'add', name) for name in HOSTS]
    except FileNotFoundError: pytest.skip('no iproute2 on this machine')
    try:
        if any(o.returncode for o in made): pytest.skip('network namespaces are not permitted here')
        a, b = HOSTS
        ip('link', 'add', a, 'netns', a, 'type', 'veth', 'peer', 'name', b, 'netns', b)
        for name, address in HOSTS.items():
            ip('-n', name, 'addr', 'add', f'{address}/24', 'dev', name)
            for link in ('lo', name): ip('-n', name, 'link', 'set', link, 'up')
        if ip('netns', 'exec', a, 'true').returncode: pytest.skip('network namespaces are not permitted here')
        yield HOSTS
    finally:
        for name in HOSTS: ip('netns', 'del', name)


class Host:
    "A machine that runs torchrun, and starts it again when it ends too early, as a scheduler would."
    def __init__(self, name, out, steps):
        self.name, self.log, self.process = name, open(out.with_name(f'{name}.txt'), 'ab'), None
        pairs = [f'{k}={getattr(SMOKE, k)}' for k in ('width', 'sample_every')] + [f'steps={steps}']
        self.words = ['ip', 'netns', 'exec', name, sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '1',
                      '--max-restarts', '20', '--rdzv-backend', 'c10d', '--rdzv-endpoint', f'{HOSTS["sagan_a"]}:29524', '--rdzv-id', 'sagan',
                      '--rdzv-conf', f'is_host={int(name == "sagan_a")}', '--local-addr', HOSTS[name], '-m', 'sagan_nb.train', 't1_attn_16', '--scale', 'smoke', '--device', 'cpu',
                      '--out', str(out), '--set', *pairs]

    def keep_running(self):
        if self.process is not None and self.process.poll() in (None, 0): return
        env = os.environ | dict(OMP_NUM_THREADS='1', GLOO_SOCKET_IFNAME=self.name, SAGAN_NB_TIMEOUT='20', IN_TEST='1',
                                TORCHELASTIC_RESTART_COUNT='0')
        self.process = subprocess.Popen(self.words, stdout=self.log, stderr=self.log, env=env, start_new_session=True)

    def end(self):
        if self.process.poll() is None: os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


def test_a_host_that_is_cut_off_and_comes_back_costs_no_bit(hosts, tmp_path):
    out, steps, cut = tmp_path/'run', 40, None
    lines = lambda: (out/'log.jsonl').read_text().count('\n') if (out/'log.jsonl').exists() else 0
    both = [Host(name, out, steps) for name in hosts]
    try:
        while not all(o.process is not None and o.process.poll() == 0 for o in both):
            for host in both: host.keep_running()
            if cut is None and lines() >= 7:
                ip('-n', 'sagan_b', 'link', 'set', 'sagan_b', 'down')
                cut = time.monotonic()
            if cut and time.monotonic() > cut + 40:
                ip('-n', 'sagan_b', 'link', 'set', 'sagan_b', 'up')
                cut = float('inf')
            time.sleep(.1)
    finally:
        for host in both: host.end()
    text = ''.join((tmp_path/f'{name}.txt').read_text() for name in hosts)
    assert 'waited more than 20 s' in text or 'lost another rank' in text
    assert [o['t'] for o in read_log(out/'log.jsonl')] == [*range(1, steps + 1)] and lines() > steps
    with Crew(2) as crew: crew(run, tmp_path/'calm', replace(SMOKE, steps=steps))
    assert not other_bits(checkpoints_of(out)[-1], checkpoints_of(tmp_path/'calm')[-1])
