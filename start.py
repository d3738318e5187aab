"""Set up and go: `python3 start.py` trains the main job, `python3 start.py test` runs all tests,
`python3 start.py docs` builds the site.

All make `.venv` here and install the package into it; a second call installs again only if the packaging changed.
The main job ends with an excerpt of Table 1, and is shortened where it would take more than about ten minutes on two
cores. Further arguments are passed to `sagan_train`; the run is as long as they say, and the excerpt is left out:
`python3 start.py --data FOLDER`.
"""
# An old Python must still get as far as its one clear sentence: keep to syntax that Python 2.7 can read.
from __future__ import print_function
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
VENV = os.path.join(HERE, '.venv')
BIN = os.path.join(VENV, 'Scripts' if os.name == 'nt' else 'bin')
WORLDS = 'toy', 'pairs', 'twins', 'cifar10', 'cifar100', 'mnist', 'fashion', 'svhn', 'stl10', 'celeba'
MAIN_JOB = ['t1_attn_16', '--data', 'toy', '--scale', 'laptop']
SHORT = ['--within', '3']                # minutes; the excerpt's two runs take three more, measuring all of them four
EXCERPT = ['table1', '--data', 'toy', '--scale', 'laptop']
BESIDE = ['t1_none', 't1_res_16']
FULL = ('table1 --data pairs --scale laptop --set steps=2000 reduction=2 precision=fp32 --seeds 0,1,2 '
        '--minutes 20 --out runs/table1-laptop')


def read(name):
    with open(os.path.join(HERE, name), 'rb') as f:
        return f.read()


def min_python():
    found = re.search(r'(?m)^min_python *= *(\d+)\.(\d+)', read('settings.ini').decode('utf-8'))
    return tuple(int(o) for o in found.groups())


def complaint(version, modules=('venv', 'ensurepip')):
    "One sentence about what this Python lacks, or None."
    need = min_python()
    if tuple(version[:2]) < need:
        return ('start.py needs Python %d.%d or newer, and this is Python %d.%d: '
                'run it with a newer one, as in `python%d.%d start.py`.' % (need + tuple(version[:2]) + need))
    for name in modules:
        try:
            __import__(name)
        except ImportError:
            return ('This Python cannot make environments: its module `%s` is missing. On Debian and Ubuntu, '
                    '`sudo apt install python%d-venv` adds it.' % (name, version[0]))
    return None


def call(command, env=None, out=None):
    "Run to the end and return the exit code."
    return end_of(subprocess.Popen(command, cwd=HERE, env=env, stdout=out))


def end_of(process):
    "Wait, and return the exit code. Ctrl-C is for the process, which may have something to save."
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, old)


def tool(name):
    return os.path.join(BIN, name)


def usable():
    "True where .venv is whole and was made for this very folder."
    try:
        return VENV in subprocess.check_output([tool('pip'), '--version'], stderr=subprocess.STDOUT,
                                               universal_newlines=True)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return False


def stamp():
    facts = b'\n'.join(read(o) for o in ('settings.ini', 'setup.py', 'pyproject.toml'))
    return hashlib.sha256(facts + VENV.encode('utf-8')).hexdigest()


def installed(extra):
    try:
        return read(os.path.join(VENV, 'installed' + extra)).decode() == stamp()
    except EnvironmentError:
        return False


def package_of(line):
    "'torch 2.6.0 (766.7 MB)' for the line in which pip says that it takes a package; None for any other line."
    found = re.match(r'\s*(?:Downloading|Using cached) (?:\S*/)?([^\s/-]+)-([^\s-]+)[^\s]*'
                     r'\.(?:whl|tar\.gz)( \(.*\))?\s*$', line)
    return None if found is None else '%s %s%s' % (found.group(1), found.group(2), found.group(3) or '')


def pip_install(what):
    "Install, with a line for each package fetched. Returns an exit code; after a fault, shows all that pip said."
    pip = [tool('python'), '-m', 'pip', 'install', '--disable-pip-version-check', '--progress-bar', 'off', '-e', what]
    process = subprocess.Popen(pip, cwd=HERE, stdout=subprocess.PIPE, universal_newlines=True)
    old, said = signal.signal(signal.SIGINT, signal.SIG_IGN), []
    try:
        for line in process.stdout:
            said.append(line)
            if package_of(line):
                print('  ' + package_of(line), flush=True)
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, old)
    if code:
        print(''.join(said), file=sys.stderr)
    return code


def install(extra):
    "Make .venv and install the package, editable; '' or '[dev]' is what to install with it. Returns an exit code."
    python = any(os.path.exists(tool(o)) for o in ('python', 'python.exe'))          # a link may lead nowhere by now
    if python and (installed('[dev]') or installed(extra)):
        return 0
    if not usable():
        print('Making the environment .venv', flush=True)
        code = call([sys.executable, '-m', 'venv', '--clear', VENV])
        if code:
            print('The environment could not be made in ' + VENV, file=sys.stderr)
            return code
    print('Installing the package and what it needs; the first time, PyTorch is a large download', flush=True)
    code = pip_install('.' + extra)
    if code:
        print('The installation stopped. Mend what pip names above and run the same command again.', file=sys.stderr)
        return code
    with open(os.path.join(VENV, 'installed' + extra), 'w') as f:
        f.write(stamp())
    return 0


def out_folder(args):
    "`--out` for a new run: runs/toy, or the next free name. With --resume, the newest there is."
    if any(o.split('=')[0] == '--out' for o in args):
        return []
    names = ['runs/toy'] + ['runs/toy-%d' % i for i in range(2, 10000)]
    free = next(i for i, o in enumerate(names) if not os.path.exists(os.path.join(HERE, o)))
    return ['--out', names[max(0, free - 1) if '--resume' in args else free]]


def absolute(args):
    "The same with paths that hold in the folder of this file, too. A world keeps its name, whatever folders there are."
    words = [part for o in args for part in (o.split('=', 1) if o.startswith('--') else [o])]
    def path(before, a):
        mine = before in ('--out', '--init') or before == '--data' and a not in WORLDS
        return os.path.abspath(os.path.expanduser(a)) if mine and (before == '--out' or os.path.exists(a)) else a
    return [path(before, a) for before, a in zip([''] + words, words)]


def typed(words):
    "A command as it is typed: the program in quotes, the rest in them where the shell needs it."
    if os.name == 'nt':
        plain = re.match(r'[\w.:\\/-]+$', words[0])                     # PowerShell runs no word in quotes
        program = words[0] if plain else '"%s"' % words[0]
        return '%s %s' % (program, ' '.join(o if re.match(r'[\w.:\\/=+-]+$', o) else '"%s"' % o for o in words[1:]))
    return '"%s" %s' % (re.sub(r'([$`"\\])', r'\\\1', words[0]), ' '.join(shlex.quote(o) for o in words[1:]))


def excerpt(run):
    "Train the other rows at once, each by half of the run's threads; set them beside the run. Returns an exit code."
    with open(os.path.join(HERE, run, 'config.json')) as f:
        steps = json.load(f)['steps']
    print('\nAn excerpt of Table 1: the run above beside one without attention '
          'and one with the control of equal size.\n'
          'Both are trained at once; the bar is that of the second.', flush=True)
    table = [tool('sagan_table')] + EXCERPT + ['--set', 'steps=%d' % steps, '--out', run + '-table1', '--only']
    with open(os.path.join(HERE, run, 'env.json')) as f:
        threads = json.load(f)['threads']     # fewer than there are, where those would hold each other up
    alone, all_of_them = [dict(os.environ, OMP_NUM_THREADS=str(max(1, n))) for n in (threads // 2, threads)]
    mute = open(os.devnull, 'w')
    first = subprocess.Popen(table + BESIDE[:1], cwd=HERE, stdout=mute, stderr=mute, env=alone)
    code = call(table + BESIDE[1:], alone, mute)             # one bar; the table is printed when it is whole
    whole = table + [','.join(['t1_attn_16'] + BESIDE), '--adopt', run]
    code = end_of(first) or code or call(whole, all_of_them)
    if code:
        print('\nThe excerpt is not complete. This goes on with it:\n  ' + typed(whole), flush=True)
    else:
        print('\nLook first at:\n  %s\n  %s\n' % (run + '/report.html', run + '-table1/table1-samples.png') +
              '\nThe full table, every row that exists at this size, from three seeds, is 21 runs of some minutes:\n'
              'repeat this, 20 minutes each time, until it is done.\n  ' +
              typed([tool('sagan_table')] + FULL.split()), flush=True)
    return code


def main(args):
    fault = complaint(sys.version_info)
    if fault:
        print(fault, file=sys.stderr)
        return 1
    if args in (['-h'], ['--help']):
        print(__doc__)
        return 0
    word = args[0] if args and args[0] in ('test', 'docs') else ''
    if args and not word and not args[0].startswith('-'):
        print('start.py does not know %r: say nothing, `test`, `docs`, '
              'or options of sagan_train such as --data FOLDER.' % args[0], file=sys.stderr)
        return 1
    args = absolute(args)
    code = install({'test': '[dev]', 'docs': '[docs]', '': ''}[word])
    if code:
        return code
    if word:
        return call([tool('python'), '-m', {'test': 'tools.test', 'docs': 'tools.site.docs'}[word]] + args[1:])
    out = out_folder(args)
    code = call([tool('sagan_train')] + ([] if '--resume' in args else MAIN_JOB) + out + (args or SHORT))
    if code or args:
        return code
    return excerpt(out[1])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
