"constraints.txt, the Dockerfile and the workflows agree with settings.ini."
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
config = ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini', encoding='utf-8')
CFG = config['DEFAULT']
PINS = dict(line.split('==') for line in (ROOT/'constraints.txt').read_text(encoding='utf-8').splitlines() if line and not line.startswith('#'))


def test_every_requirement_is_pinned_within_its_range():
    for text in [*shlex.split(CFG['requirements']), *shlex.split(CFG['fid_requirements']), *shlex.split(CFG['export_requirements'])]:
        r = Requirement(text)
        assert r.name in PINS and r.specifier.contains(PINS[r.name]), text


def test_the_oldest_torch_of_the_workflow_is_the_oldest_that_is_asked_for():
    text = (ROOT/'.github/workflows/platforms.yml').read_text(encoding='utf-8')
    flow = yaml.safe_load(text)['jobs']['package']['strategy']['matrix']
    oldest = next(o for o in flow['include'] if o['torch'] == 'oldest')
    floors = {Requirement(o).name: str(Requirement(o).specifier).strip('>=') for o in shlex.split(CFG['requirements'])[:2]}
    assert all(re.search(rf'{name}=={floor}\.', oldest['pin']) for name, floor in floors.items()) and oldest['python'] == CFG['min_python']
    assert {o.split('-')[0] for o in flow['system']} == {'ubuntu', 'macos', 'windows'}
    for name in re.findall(r'tests/test_\w+\.py', text): assert (ROOT/name).exists()


def test_the_tests_install_the_pinned_versions():
    job = yaml.safe_load((ROOT/'.github/workflows/test.yml').read_text(encoding='utf-8'))['jobs']['test']
    step = next(o for o in job['steps'] if o.get('run') == '.ci/run')
    assert "'constraints.txt'" in step['env']['PIP_CONSTRAINT'] and any(f"== '{o}'" in step['env']['PIP_CONSTRAINT'] for o in job['strategy']['matrix']['python'])


def test_the_container_runs_a_command_that_is_there():
    text = (ROOT/'Dockerfile').read_text(encoding='utf-8')
    entry = re.search(r'ENTRYPOINT \["(\w+)"\]', text)[1]
    assert f'{entry}=' in CFG['console_scripts'] and 'constraints.txt' in text
