"""Pack into one folder what a machine lacks that has little more than torch:
`python -m tools.bench.carry [--data FILE.zip[:FOLDER]] [--out .carry] [--fetch NAME ...]`.

The folder and the repository weigh at most `--most` MiB, as machines that are lent often take no more; as many images
of each class as there is room for go along. Packages of pure Python are copied from this environment to OUT/site, for
any Python 3: those that the package and its tests need, less what comes with torch and torchvision. Compiled ones must
be there, or are fetched by pip (`--fetch scipy`) for `--python` and Linux. On the other machine:
`PYTHONPATH=OUT/site python3 -m tools.bench.gpu --data OUT/FILE.zip:FOLDER --minutes 9 --out DIR`.
"""
import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement

from tools import settings

ROOT = Path(__file__).resolve().parents[2]
THERE = 'torch', 'torchvision'
ENTRY = 128                   # bytes that an archive adds to a file, beside twice its name
MADE = 'carry.txt'            # says that a folder was filled here, and may be filled anew


def requirements():
    "What the package and its tests are said to need, less what must be there."
    named = [Requirement(o).name for o in shlex.split(settings()['requirements'])]
    return [*(o for o in named if o not in THERE), 'pytest']


def needs(name, python):
    "Packages that a package needs on the other machine."
    there = dict(python_version=python, python_full_version=f'{python}.0', sys_platform='linux',
                 platform_system='Linux', extra='')
    found = [Requirement(o) for o in distribution(name).requires or ()]
    return [o.name for o in found if o.marker is None or o.marker.evaluate(there)]


def compiled(name):
    "Does a package hold compiled code? That fits one kind of machine, so it cannot be copied."
    return any(re.search(r'\.(so|pyd|dylib)$', str(o)) for o in distribution(name).files or ())


def closure(names, python, through=lambda name: True):
    "Packages, with those they need; None of this environment's are left out."
    found, todo = {}, [*names]
    while todo:
        name = re.sub(r'[-_.]+', '-', todo.pop()).lower()
        if name in found: continue
        try: distribution(name)
        except PackageNotFoundError: continue                # for another system, or optional
        found[name] = through(name)
        if found[name]: todo += needs(name, python)
    return found


def chosen(python):
    "Packages to copy; packages that must be there."
    own = closure(THERE, python)
    wanted = closure(requirements(), python, lambda name: not compiled(name))
    new = sorted(n for n in wanted if n not in own)
    copied = [n for n in new if wanted[n]]
    return copied, [n for n in new if not wanted[n]]


def copy(name, site):
    "Copy the files of a package, without scripts and caches."
    dist = distribution(name)
    for path in dist.files:
        if path.parts[0] == '..' or '__pycache__' in path.parts: continue
        (site/path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dist.locate_file(path), site/path)


def fetch(names, python, site):
    "Let pip download wheels for the other machine, and unpack them. Raises CalledProcessError where there is none."
    there = [f'--platform=manylinux_2_{n}_x86_64' for n in (28, 27, 24, 17)]
    there += ['--platform=manylinux2014_x86_64', '--implementation=cp', f'--python-version={python}']
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--only-binary=:all:', *there,
                        '-d', folder, *names], check=True)
        for wheel in Path(folder).glob('*.whl'): zipfile.ZipFile(wheel).extractall(site)


def weight(folder):
    "Bytes of all files in a folder."
    return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())


def tracked():
    "Bytes of the repository's own files, which travel too."
    said = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return sum((ROOT/o).stat().st_size for o in said.split('\0') if o and (ROOT/o).is_file())


def in_turns(files):
    "Files of an archive, one of each folder in turns, so that every beginning has as many of each class."
    own = {}
    for o in sorted(files, key=lambda o: o.filename): own.setdefault(PurePosixPath(o.filename).parent, []).append(o)
    return [o for turn in zip_longest(*own.values()) for o in turn if o]


def take(path, folder, target, room):
    "Copy images of an archive's folder, as many of each class as there is room for: how many, and how many there are."
    prefix = f'{folder}/' if folder else ''
    with zipfile.ZipFile(path) as z, zipfile.ZipFile(target, 'w') as out:
        files = in_turns(o for o in z.infolist() if not o.is_dir() and o.filename.startswith(prefix))
        kept = 0
        for o in files:
            room -= o.file_size + ENTRY + 2*len(o.filename.encode())
            if room < 0: break
            out.writestr(o.filename, z.read(o))
            kept += 1
    if not files: raise ValueError(f'{path} has no file in {folder!r}')
    if not kept: raise ValueError(f'there is no room for an image of {path}')
    return kept, len(files)


def pack(out, data=None, python='3.12', wheels=(), most=64):
    """Fill the folder anew: what it holds, what must be there, and how many images of how many. Raises ValueError for a
    folder of others, and where it is too much to travel."""
    if out.exists() and not (out/MADE).is_file(): raise ValueError(f'{out} is there already, and holds something else')
    shutil.rmtree(out, ignore_errors=True)
    (site := out/'site').mkdir(parents=True)
    (out/MADE).write_text(f'{__doc__}\nMade anew each time: keep nothing here.\n', encoding='utf-8')
    copied, there = chosen(python)
    for name in copied: copy(name, site)
    if wheels: fetch(wheels, python, site)
    if (total := weight(out) + tracked()) > most*2**20:
        raise ValueError(f'{out} and the repository weigh {total/2**20:.0f} MiB; {most} may travel (--most)')
    path, _, folder = str(data or '').partition('.zip:')
    path = Path(f'{path}.zip' if folder else path)
    room = most*2**20 - total - 2**20                     # a MiB for the results of a rehearsal
    images = take(path, folder, out/path.name, room) if data else (0, 0)
    return copied, [o for o in there if o not in wheels], images


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', help='images to take along: FILE.zip, or FILE.zip:FOLDER for a folder in it')
    p.add_argument('--out', type=Path, default=ROOT/'.carry')
    p.add_argument('--python', default='3.12', help='version there')
    p.add_argument('--most', type=int, default=64, help='MiB that may travel, the repository included')
    p.add_argument('--fetch', nargs='*', default=[], metavar='NAME', help='compiled packages that are not there')
    o = p.parse_args(argv)
    try: copied, there, images = pack(o.out, o.data, o.python, o.fetch, o.most)
    except (ValueError, OSError, zipfile.BadZipFile, subprocess.CalledProcessError) as e: sys.exit(f'carry: {e}')
    print(f'{o.out}: {weight(o.out)/2**20:.1f} MiB\n  copied: {", ".join(copied)}')
    if o.fetch: print(f'  fetched: {", ".join(o.fetch)}')
    print(f'  must be there: {", ".join([*THERE, *there])}')
    if o.data: print(f'  images: {images[0]:,} of {images[1]:,}')


if __name__ == '__main__': main()
