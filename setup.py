"Packaging: every fact is in settings.ini. Edit it there, not here."
from configparser import ConfigParser
from pathlib import Path
import re
import shlex

import setuptools

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature',
            '7 - Inactive']
spdx = {'apache2': 'Apache-2.0', 'mit': 'MIT', 'bsd3': 'BSD-3-Clause'}
lib, minor = cfg['lib_path'], int(cfg['min_python'].split('.')[1])


def outside(link):
    "A link of README that leads into the repository: absolute where the project has an address, else its words alone."
    picture, words, target = link.groups()
    if not cfg['git_url']: return '' if picture else words
    return f'{picture}[{words}]({cfg["git_url"]}/{"raw" if picture else "blob"}/{cfg["branch"]}/{target})'


readme = (here/'README.md').read_text(encoding='utf-8')
setuptools.setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=re.sub(r'(!?)\[([^\]]+)\]\((?![a-z]+:|#)([^)]+)\)', outside, readme),
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    author_email=cfg['author_email'] or None,      # None: no such line in the metadata
    url=cfg['git_url'] or None,
    license=spdx.get(cfg['license'], cfg['license']),
    license_files=['LICENSE'],
    classifiers=[f'Development Status :: {statuses[int(cfg["status"]) - 1]}',
                 f'Intended Audience :: {cfg["audience"]}',
                 f'Natural Language :: {cfg["language"]}',
                 *(f'Programming Language :: Python :: 3.{o}' for o in range(minor, 14))],
    packages=setuptools.find_packages(include=[lib, f'{lib}.*']),
    include_package_data=True,                     # MANIFEST.in says which: scripts and styles of the pages
    zip_safe=False,
    python_requires=f'>={cfg["min_python"]}',
    install_requires=shlex.split(cfg['requirements']),
    extras_require={k[:-len('_requirements')]: shlex.split(v) for k, v in cfg.items() if k.endswith('_requirements')},
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
