"The example files of cluster/: their shell, their YAML, and the commands in them, parsed by the parsers that will read them."
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from sagan_nb.config import PRESETS
from sagan_nb.machinery.console import read_words

CLUSTER = Path(__file__).parents[1]/'cluster'
SLURM = CLUSTER/'table1.sbatch'
MANIFESTS = sorted(CLUSTER.glob('*.yaml'))
# options of sbatch (its manual, version 24.05) that the example uses -> what their value looks like
SBATCH = {'job-name': r'[\w-]+', 'array': r'\d+-\d+', 'nodes': r'\d+', 'ntasks-per-node': r'\d+', 'gpus-per-node': r'\d+',
          'cpus-per-task': r'\d+', 'mem': r'\d+[KMGT]', 'time': r'(\d+-)?\d+:\d\d:\d\d', 'requeue': '', 'open-mode': 'append|truncate',
          'signal': r'(B:)?(USR1|TERM)@\d+'}


def container(spec):
    "The first container of a manifest's pods."
    if spec['kind'] == 'PyTorchJob': spec = spec['spec']['pytorchReplicaSpecs']['Worker']
    else: spec = spec['spec']
    return spec['template']['spec']['containers'][0]


def scripts():
    yield SLURM.name, SLURM.read_text(encoding='utf-8')
    for path in MANIFESTS:
        jobs = [o for o in yaml.safe_load_all(path.read_text(encoding='utf-8')) if o['kind'] in ('Job', 'PyTorchJob')]
        yield path.name, container(jobs[-1])['args'][0]


SCRIPTS = dict(scripts())


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_shell_reads_it(name):
    if not shutil.which('bash'): pytest.skip('no bash on this machine')
    done = subprocess.run(['bash', '-n'], input=SCRIPTS[name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert subprocess.run(['bash', '-n'], input=SCRIPTS[name] + '\nif', capture_output=True, text=True).returncode


@pytest.mark.parametrize('name', SCRIPTS)
def test_torchrun_and_sagan_train_read_its_commands(name):
    text = re.sub(r'\\\n\s*', '', SCRIPTS[name])
    words = shlex.split(re.search(r'torchrun (.*-m sagan_nb\.train.*)', text)[1].rstrip(' &'))
    fill = lambda words: [re.sub(r'\$\w+|\$\{.*?\}', '2', o) for o in words]
    torchrun = get_args_parser().parse_args(fill(words))
    assert torchrun.module and torchrun.training_script == 'sagan_nb.train'
    assert name == 'pytorchjob.yaml' or (torchrun.rdzv_backend == 'c10d' and torchrun.max_restarts >= 3)
    tail = [o for o in torchrun.training_script_args if o.startswith('--out') or '/' in o]
    starts = re.findall(r'go=["(](.*?)[")]\n|go=["(](.*?)[");]+ *;? *else', text)
    starts = [next(filter(None, o)) for o in starts]
    assert len(starts) == 2, starts
    for start in starts:
        given, _ = read_words('sagan_train', fill(shlex.split(start.replace('"', ''))) + tail)
        assert given['out'] and (given['resume'] or (given['scale'] == 'paper' and given['data']))
        assert given['preset'] is None or given['preset'] in PRESETS or given['preset'] == '2'


def test_the_job_array_has_a_task_for_every_row():
    text = SLURM.read_text(encoding='utf-8')
    rows = re.search(r'rows=\((.*)\)', text)[1].split()
    assert all(row in PRESETS for row in rows) and re.search(r'--array=0-(\d+)', text)[1] == str(len(rows) - 1)
    assert len(set(rows)) == 9


def test_the_job_array_stops_by_a_signal_that_torchrun_passes_on():
    "SIGUSR1 it does not know, but by an option of newer versions: it would die, and leave its ranks behind."
    sent = re.findall(r'scancel --signal=(\w+)', SLURM.read_text(encoding='utf-8'))
    assert len(sent) == 1 and {f'SIG{o}' for o in sent} <= {'SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT'}


def test_sbatch_knows_its_options():
    options = re.findall(r'(?m)^#SBATCH --([\w-]+)=?(.*)$', SLURM.read_text(encoding='utf-8'))
    assert len(options) > 8
    for name, value in options: assert re.fullmatch(SBATCH[name], value), (name, value)


@pytest.mark.parametrize('path', MANIFESTS, ids=lambda p: p.stem)
def test_a_manifest_is_whole(path):
    "What its parts say of each other: names, numbers of pods, volumes."
    *others, job = yaml.safe_load_all(path.read_text(encoding='utf-8'))
    box, pod = container(job), (job['spec'].get('template') or job['spec']['pytorchReplicaSpecs']['Worker']['template'])['spec']
    assert {o['name'] for o in box['volumeMounts']} == {o['name'] for o in pod['volumes']}
    text, gpus = box['args'][0], str(box['resources']['limits']['nvidia.com/gpu'])
    if job['kind'] == 'Job':
        service = others[0]
        assert service['spec']['selector'] == {'job-name': job['metadata']['name']} and service['spec']['clusterIP'] == 'None'
        assert f'{job["metadata"]["name"]}-0.{service["metadata"]["name"]}:' in text and pod['subdomain'] == service['metadata']['name']
        assert f'--nnodes {job["spec"]["completions"]} --nproc-per-node {gpus} ' in text and job['spec']['parallelism'] == job['spec']['completions']
    else: assert job['spec']['nprocPerNode'] == gpus and job['spec']['elasticPolicy']['minReplicas'] == job['spec']['pytorchReplicaSpecs']['Worker']['replicas']
