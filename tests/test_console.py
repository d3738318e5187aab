"The commands on a terminal of 100 columns and through a pipe: width, labels, what is left behind."
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

import start
from commands import as_folders, environment, shell, words
from sagan_nb.ablation import TABLES
from sagan_nb.config import FIELDS, PRESETS
from sagan_nb.data import Toy
from sagan_nb.machinery import cli, console, lists, options, terminal

ROOT = Path(__file__).resolve().parents[1]
PTY = '''
import fcntl, os, pty, struct, sys, termios
pid, fd = pty.fork()
if not pid: os.execvp(sys.argv[1], sys.argv[1:])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 30, 100, 0, 0))
while True:
    try: data = os.read(fd, 1 << 16)
    except OSError: break
    if not data: break
    os.write(1, data)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
'''


def piped(place, name, *args):
    "Through a pipe: stdout, stderr."
    done = subprocess.run(words(name, *args), capture_output=True, text=True, cwd=place, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def typed(place, name, *args):
    "On a terminal of 100 columns: all that was written, and the lines that remain on the screen."
    done = subprocess.run([sys.executable, '-c', PTY, *words(name, *args)], capture_output=True, cwd=place, env=environment())
    raw = done.stdout.decode()
    assert done.returncode == 0, raw
    return raw, screen(raw)


def screen(raw):
    "The lines that stay, by the few control sequences that a bar uses; text is kept whole, however wide."
    lines, at, column = [''], 0, 0
    for part in re.findall(r'\x1b\[\??\d*(?:;\d+)*[A-Za-z]|\r|\n|[^\x1b\r\n]+', raw):
        if part == '\n':
            at, column = at + 1, 0
            if at == len(lines): lines.append('')
        elif part == '\r': column = 0
        elif part.startswith('\x1b'):
            n = int(re.sub(r'\D', '', part) or 1)
            if part[-1] == 'A': at = max(0, at - n)
            if part == '\x1b[2K': lines[at] = ''
        else:
            line = lines[at].ljust(column)
            lines[at], column = line[:column] + part + line[column + len(part):], column + len(part)
    return [line.rstrip() for line in lines]


def fits(lines):
    "No line is wider than 100 columns, but for a command to be pasted and a single long word."
    wide = [o for o in lines if len(o) > 100 and not o.startswith('  sagan_') and len(o.split()) > 1]
    assert not wide, wide


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A run, trained on a terminal, whose folder has a name that a shell would change; and what was shown."
    folder = tmp_path_factory.mktemp('console')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('SAGAN_NB_CACHE', str(folder/'cache'))              # the classifier is trained here, whatever ran before
        raw, left = typed(folder, 'sagan_train', 't1_attn_16', '--scale', 'smoke', '--data', 'toy', '--steps', 6, '--out', 'a $run')
        yield folder, raw, left


def test_training_on_a_terminal(place):
    folder, raw, left = place
    assert re.search(r'training .*\d/6', raw) and 'training the classifier that measures' in raw and 'left' in raw
    fits(left)
    assert not [o for o in left if '━' in o or re.search(r'\d+/\d+ \d:', o)], left                     # no bar stays
    tips = [o.strip() for o in left if 'sagan_sample' in o and '--n 64' in o]
    assert [shlex.split(o)[1] for o in tips] == ['a $run'], left


@pytest.mark.parametrize('args, expected', [
    (('sagan_sample', 'a $run', '--n', 8), r'in a \$run/samples(-\d)?\.png'),
    (('sagan_eval', 'a $run', '--metrics', 'distance,prdc', '--n_fake', 60, '--n_real', 300), r'written to'),
    (('sagan_attention', 'a $run', '--n', 1), r'in a \$run/maps(-\d)?\.png'),
    (('sagan_export', 'a $run'), r'wrote a \$run\.safetensors'),
    (('sagan_table', 'table1', '--scale', 'smoke', '--only', 't1_none', '--out', 'table'), r'Not run: .*t1_attn_16')], ids=lambda o: o[0] if isinstance(o, tuple) else '')
def test_on_a_terminal_and_through_a_pipe(place, args, expected):
    folder = place[0]
    raw, left = typed(folder, *args)
    out, err = piped(folder, *args)
    for lines in (left, out.splitlines(), err.splitlines()): fits(lines)
    assert not [o for o in left if '━' in o], left
    for text in ('\n'.join(left), out):
        assert re.search(expected, text.replace('\n  ', ' ')) and 'Try next:' in text, text
    assert '\r' not in out + err and '\x1b' not in out + err
    if args[0] == 'sagan_table': assert '| ' not in out and out.index('Not applicable here') < out.index('features')


def test_names_and_words_for_other_systems(monkeypatch, tmp_path):
    "What a user of Windows types back, and the names of what has none here."
    with monkeypatch.context() as m:
        m.setattr('os.name', 'nt')
        words = [terminal.quoted(o) for o in (r'runs\toy', r'my runs\toy', '--n', 'kid,prdc', r'R&D\runs')]
    assert words == [r'runs\toy', r'"my runs\toy"', '--n', '"kid,prdc"', r'"R&D\runs"']
    with monkeypatch.context() as m:
        m.setattr('os.path.relpath', Mock(side_effect=ValueError('on another drive')))
        assert options.from_here('D:/runs/metrics.json') == 'D:/runs/metrics.json'
    assert str(options.folder_of('hf:somebody/sagan')) == str(options.folder_of('mmgen:imagenet')) == '.' and options.folder_of(tmp_path) == tmp_path
    assert options.folder_of(tmp_path/'model.ckpt-7') == tmp_path                     # TensorFlow's: the name of several files


@pytest.mark.parametrize('columns', [100, 60, 40])
def test_words_of_a_table_stay_whole(columns, monkeypatch):
    monkeypatch.setenv('COLUMNS', str(columns))
    rows = [['t1_attn_16 attention at 16', '11.41 ± 16', '-1.07 [-3.77, 1.63]', '22.14 (unchecked)'], ['t1_none no block', '3.6', '-', '22.96']]
    head = ['row', 'Fréchet classifier distance', 'distance minus SNGAN-projection, 95 %', 'paper: FID']
    lines = ['| ' + ' | '.join(o) + ' |' for o in (head, ['---']*4, *rows)]
    said = terminal.show_markdown('\n'.join(lines))
    words = [o.replace(' (unchecked)', '*') for cells in (head[1:], *rows) for cell in cells if cell != '-' for o in re.split(r' (?!\(un)', cell)]
    assert max(map(len, said.splitlines())) <= columns and not [o for o in words if o not in re.split(r'[;\s]+', said)]
    assert '\n* a published' in said and ('───' in said) == (columns == 100)


def test_a_bar_in_a_file_is_a_line_now_and_then(capfd):
    items = terminal.track_lines(range(5), 'counting', every=0.)
    assert list(items) == [0, 1, 2, 3, 4]
    err = capfd.readouterr().err.splitlines()
    assert err == [f'counting: {i} of 5, 0:00 left' for i in (1, 2, 3, 4)]
    assert list(terminal.track_lines(range(5), 'counting')) == [0, 1, 2, 3, 4] and capfd.readouterr().err == ''
    assert [terminal.duration(s) for s in (7, 750, 11100)] == ['0:07', '12:30', '3:05:00']


def test_progress_passes_items_on_and_is_silent_where_pages_are_made(monkeypatch, capfd):
    seen = []
    monkeypatch.setattr(terminal, 'track', lambda items, label: seen.append(label) or items)
    for value in ('1', None):
        monkeypatch.setenv('IN_TEST', value) if value else monkeypatch.delenv('IN_TEST', raising=False)
        assert list(terminal.progress(range(3), 'counting')) == [0, 1, 2]
    assert seen == ['counting'] and capfd.readouterr().err == ''


def test_nothing_is_overwritten_silently(place, tmp_path, capsys):
    folder = place[0]
    def say(**more):
        cli.sagan_sample(str(folder/'a $run'), n=4, **more)
        return capsys.readouterr().out.splitlines()[0]
    said = [say(), say(), say(out=str(tmp_path/'y.png')), say(out=str(tmp_path/'y.png'))]
    assert len({o.split(' in ')[1].split(' (')[0] for o in said}) == 3
    assert ['in place of the file' in o for o in said] == [False, False, False, True]
    (tmp_path/'maps.png').touch()
    assert options.free_path(tmp_path/'maps.png').name == 'maps-2.png' and options.free_path(tmp_path/'x.png').name == 'x.png'


def test_help_needs_no_torch():
    "Of every command; with two examples that the parser takes. Mistakes in options, too, end before torch is imported."
    code = ('import sys\nsys.argv = ["sagan_train", "--help"]\nfrom sagan_nb.machinery import console\n'
            'for name in ("sagan", *(f"sagan_{o}" for o in console.COMMANDS)):\n'
            '    for words in (["--help"], ["--version"]):\n'
            '        sys.argv = [name, *words]\n        try: getattr(console, name)()\n        except SystemExit as e: assert not e.code\n'
            'print([o for o in ("torch", "numpy", "matplotlib") if o in sys.modules])')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=environment()).stdout
    assert out.endswith('[]\n') and out.count('sagan_nb 0.') == 1 + len(console.COMMANDS)
    fits([o for o in out.splitlines() if not o.startswith('  sagan_')])
    for name in console.COMMANDS:
        lines = [o.strip() for o in console.EXAMPLES[name].splitlines() if o.strip()]
        assert len(lines) == 2
        for line in lines: console.read_words(shlex.split(line)[0], shlex.split(line)[1:])
        assert all(line in out for line in lines)
    assert 'default: no limit) (default' not in out


def test_a_mistyped_preset_needs_no_torch(monkeypatch, capsys):
    "The line is the command's own, and comes before torch is imported."
    code = ('import sys\nsys.argv = ["sagan_train", "t1_attn_61"]\nfrom sagan_nb.machinery import console\n'
            'try: console.sagan_train()\nexcept SystemExit as e: print(e.code, "torch" in sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment())
    assert done.stdout == '1 False\n'
    assert (1, '', done.stderr) == shell(monkeypatch, capsys, 'sagan_train', 't1_attn_61') and 'did you mean t1_attn_6' in done.stderr


def test_what_trains_nothing_says_what_is_next(tmp_path, monkeypatch, capsys):
    "With one line to be pasted. Behind commands for a shell it goes to stderr."
    as_folders(Toy(32, 2, n=8), tmp_path/'pictures')
    assert shell(monkeypatch, capsys, 'sagan_pack', tmp_path/'pictures', '--res', 32, '--out', tmp_path/'p.pack')[0] == 0
    commands = ('sagan_table', 'table1', '--data', 'toy', '--scale', 'smoke', '--print_commands')
    for args in (commands, ('sagan_table', 'table1', '--power', '--out', ROOT/'results'/'table1'), ('sagan_table', 'public'),
                 ('sagan_pack', tmp_path/'p.pack', '--verify')):
        code, *streams = shell(monkeypatch, capsys, *args)
        said, tip = streams[args is commands].split('\nTry next:\n')
        command, *rest = shlex.split(tip)
        assert code == 0 and tip.count('\n') == 1 and command in dir(cli), tip
        console.read_words(command, rest)
        if args is commands: assert {o.split()[0] for o in streams[0].splitlines()} == {'sagan_table', '#'}


def test_declared_is_what_cli_has():
    from fastcore.docments import docments
    for name in console.COMMANDS:
        f, known = inspect.unwrap(getattr(cli, f'sagan_{name}')), console.declared(f'sagan_{name}')
        assert known.__doc__ == f.__doc__ and dict(docments(known)) == dict(docments(f)) and known.__defaults__ == f.__defaults__
    said = console.parser_of('sagan_table').format_help()
    assert all(table in said for table in TABLES)


def test_lists(capsys):
    for name, known in (('presets', PRESETS), ('settings', FIELDS)):
        with pytest.raises(SystemExit): console.read_words('sagan_train', [f'--list-{name}'])
        said = capsys.readouterr().out
        assert all(re.search(rf'^{o} ', said, re.M) for o in known) and 'source' in said
        fits(said.splitlines())
    assert 'paper, Table 1' in lists.presets()


@pytest.mark.parametrize('name, says', [('fid', '--metrics distance --features inception'), ('is', '--metrics score --features inception')])
def test_the_usual_names_say_what_to_type(place, name, says, monkeypatch, capsys):
    code, _, err = shell(monkeypatch, capsys, 'sagan_eval', place[0]/'a $run', '--metrics', name)
    assert code == 1 and says in err and err.count('\n') == 1


def test_one_command_for_all(monkeypatch, capsys):
    for args, code, words in ((['train', 't1_attn_61'], 1, 'sagan_train: '), (['trane'], 2, 'invalid choice'), (['eval', 'run', '--nonsense'], 2, 'unrecognized')):
        monkeypatch.setattr(sys, 'argv', ['sagan', *args])
        monkeypatch.setenv('MPLBACKEND', 'agg')
        with pytest.raises(SystemExit) as e: console.sagan()
        assert e.value.code == code and words in capsys.readouterr().err


def test_completion(tmp_path):
    if not shutil.which('bash'): pytest.skip('no bash on this machine')
    script = tmp_path/'complete.sh'
    script.write_text(console.completion('bash'))
    def complete(*line):
        ask = f'. {script}; COMP_WORDS=({shlex.join(line)}); COMP_CWORD={len(line) - 1}; _sagan; printf "%s\\n" "${{COMPREPLY[@]}}"'
        return subprocess.run(['bash', '-c', ask], capture_output=True, text=True, check=True).stdout.split()
    assert complete('sagan', 'ev') == ['eval'] and complete('sagan', 'train', '--sca') == ['--scale'] == complete('sagan_train', '--sca')
    assert complete('sagan_train', 't1_attn_1') == ['t1_attn_16'] and complete('sagan_train', '--scale', 'l') == ['laptop']
    assert console.completion('zsh').splitlines()[1].startswith('autoload')


def test_faults_of_the_surroundings(place):
    "A backend of a notebook that is not installed here, and an output that cannot say é."
    env = environment(MPLBACKEND='module://not_installed.backend', PYTHONIOENCODING='ascii')
    done = subprocess.run(words('sagan_sample', 'a $run', '--n', 4, '--out', 'caf\u00e9.png'), capture_output=True, text=True, cwd=place[0], env=env)
    assert done.returncode == 0 and 'in caf?.png' in done.stdout, done.stderr


def test_the_installation_says_a_line_a_package():
    said = ['Obtaining file:///x', 'Collecting torch>=2.6', '  Downloading torch-2.9.1-cp312-cp312-manylinux_2_28_x86_64.whl.metadata (30 kB)',
            'Downloading torch-2.9.1-cp312-cp312-manylinux_2_28_x86_64.whl (899.7 MB)', '  Using cached numpy-2.3.5-cp312-cp312-manylinux_2_27_x86_64.whl (16.6 MB)',
            'Downloading https://files.example/simple/rich-15.0.0-py3-none-any.whl (240 kB)', 'Successfully installed torch-2.9.1']
    assert [o for o in map(start.package_of, said) if o] == ['torch 2.9.1 (899.7 MB)', 'numpy 2.3.5 (16.6 MB)', 'rich 15.0.0 (240 kB)']


def test_what_is_suggested_fits_the_run(tmp_path, monkeypatch, capsys):
    "No maps of a network without attention, no walk between no classes, no score of too few images, no folder that is there."
    as_folders(Toy(32, 2, n=5), tmp_path/'few')
    (tmp_path/'runs'/'mine').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    def tips(*args):
        code, out, err = shell(monkeypatch, capsys, *args)
        assert code == 0, err
        return [shlex.split(o) for o in out.split('\nTry next:\n')[1].splitlines()]
    told = tips('sagan_train', 't1_none', '--data', 'few', '--unlabelled', '--scale', 'smoke', '--out', 'run')
    assert [o[0] for o in told] == ['sagan_sample', 'sagan_train', 'sagan_train'] and told[-1][-1] == 'runs/mine-2' and told[-1][1] == 't1_none'
    assert [o[0] for o in tips('sagan_sample', 'run', '--n', 4)] == ['sagan_report'] and [o[0] for o in tips('sagan_report', 'run')] == ['open']
    as_folders(Toy(32, 2, n=30), tmp_path/'some')
    told = tips('sagan_train', 't1_attn_32', '--data', 'some', '--scale', 'smoke', '--set', 'attn_at=16', '--out', 'maps')
    assert ['sagan_eval', 'maps', '--metrics', 'kid,prdc'] in told and told[-1][1] == 't1_attn_16'
    assert [o[0] for o in tips('sagan_sample', 'maps', '--n', 4)] == ['sagan_attention', 'sagan_sample', 'sagan_report']
    assert [o[0] for o in tips('sagan_attention', 'maps', '--n', 1, '--out', 'maps.html')] == ['sagan_report']
