"Supply chain: no connection at import or in the default run, caps that have a reason, an audit in the workflow, and what SECURITY.md promises."
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.faults.oldest import oldest, requirements

ROOT = Path(__file__).resolve().parents[1]
ALONE = """
import socket, sys
def refuse(*args, **kw): raise SystemExit('a connection was opened')
for name in ('connect', 'connect_ex', 'sendto'): setattr(socket.socket, name, refuse)
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
"""
RUNS = {'import': 'import sagan_nb; [getattr(sagan_nb, o) for o in sagan_nb.__all__]; from sagan_nb.machinery import cli',
        'train': "import sys; from sagan_nb.machinery import cli; sys.argv = ['sagan_train', 't1_attn_16', '--scale', 'smoke', '--set', 'width=1', 'attn_at=8', '--device', 'cpu', '--out', sys.argv[1]]; cli.sagan_train()",
        'planted': 'import urllib.request; urllib.request.urlopen("http://127.0.0.1:9")'}


@pytest.mark.parametrize('name', RUNS)
def test_no_connection_is_opened(name, tmp_path):
    done = subprocess.run([sys.executable, '-c', ALONE + RUNS[name], tmp_path/'run'], capture_output=True, text=True)
    assert (done.returncode == 0) == (name != 'planted'), done.stderr
    assert ('a connection was opened' in done.stderr) == (name == 'planted')


def test_each_upper_cap_has_a_reason():
    "settings.ini says of each cap why it is there, in a comment."
    text = (ROOT/'settings.ini').read_text(encoding='utf-8')
    comments = ' '.join(o for o in text.splitlines() if o.startswith('#'))
    capped = {re.match(r'[\w-]+', o)[0] for o in re.findall(r'[\w-]+[^\s]*<[^\s]*', text)}
    assert capped and not {o for o in capped if o not in comments}, capped


def test_the_oldest_versions_are_those_of_settings_ini():
    assert oldest('torch>=2.6') == 'torch==2.6.*' and oldest('numpy') == 'numpy' and oldest('fastcore>=1.14,<2') == 'fastcore==1.14.*' and oldest('a>=1.2.3') == 'a==1.2.3'
    assert all('==' in o for o in map(oldest, requirements())), 'a requirement without a lower bound allows what nobody has tried'


def test_the_workflow_audits_and_security_is_told():
    assert 'pip-audit' in (ROOT/'.github/workflows/test.yml').read_text(encoding='utf-8')
    told = (ROOT/'SECURITY.md').read_text(encoding='utf-8')
    assert all(o in told for o in ('weights_only', 'report', 'not promised'))
