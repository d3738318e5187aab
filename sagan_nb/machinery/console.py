"Serves chapter 16: the words of a command line, read before torch is imported."
import argparse
import ast
import os
import re
import sys
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from textwrap import indent

from fastcore.script import Param, anno_parser

from .. import __version__
from .refused import Refused
from .terminal import printable, screen_width, wrap

COMMANDS = 'train sample eval attention report table pack export check bench'.split()
EXAMPLES = dict(
    train='''
        sagan_train t1_attn_16 --data toy --scale laptop --out runs/first
        sagan_train --resume --out runs/first --steps 2600''',
    sample='''
        sagan_sample runs/first --n 64 --classes 0,1
        sagan_sample runs/first --kind classes --out walk.gif''',
    eval='''
        sagan_eval runs/first --data PICTURES --features inception --n_fake 50000
        sagan_eval REAL FAKE --protocol all''',
    attention='''
        sagan_attention runs/first --n 4 --points 3
        sagan_attention runs/first --queries 12,20 20,8 --out maps.html''',
    report='''
        sagan_report runs/first
        sagan_report runs/first --data PICTURES --out first.html''',
    table='''
        sagan_table table1 --scale laptop --seeds 0,1,2 --minutes 20
        sagan_table table1 --scale laptop --only t1_none,t1_attn_16''',
    pack='''
        sagan_pack PICTURES --res 64 --out pictures.pack
        sagan_pack pictures.zip --res 128 --unlabelled''',
    export='''
        sagan_export runs/first
        sagan_export runs/first --format onnx --out first.onnx''',
    check='''
        sagan_check my_gan.blocks:SelfAttention --channels 64
        sagan_check port.py:netD --what discriminator --args '32' --res 64''',
    bench='''
        sagan_bench --nets 32 --rounds 5
        sagan_bench --nets small --brief --out small.json''')
VALUES = dict(scale='smoke laptop gpu paper', device='auto cpu cuda', features='domain inception clip dinov2',
              protocol='tf2018 biggan studiogan mmgen clean all', part='G D',
              format='safetensors onnx', kind='grid z classes neighbours timelapse',
              what='attention norm loss generator discriminator')      # what completion offers


class Formatter(argparse.RawDescriptionHelpFormatter):
    "Help as wide as the screen, examples as they are typed."
    def __init__(self, prog:str): super().__init__(prog, max_help_position=26, width=screen_width())


class ListAction(argparse.Action):
    "An option that prints a list and ends."
    def __call__(self, parser, namespace, values, option_string=None):
        print(getattr(import_module('.lists', __package__), self.const)())
        parser.exit()


def declared(
    name:str,                 # a command such as sagan_train
):                            # a function with its parameters and comments, without its body
    "Read the definition of a command off the text of cli.py: importing that would import torch."
    path = Path(__file__).with_name('cli.py')
    body = ast.parse(path.read_text(encoding='utf-8')).body
    found = next(o for o in body if isinstance(o, ast.FunctionDef) and o.name == name)
    found.decorator_list, found.body, space = [], found.body[:1], dict(Param=Param)         # the docstring stays
    exec(compile(ast.Module([found], []), path, 'exec'), space)
    return space[name]


def parser_of(
    name:str,                 # a command such as sagan_train
)->argparse.ArgumentParser:
    "The options of a command, with examples, the version, and lists where they belong."
    parser, short = anno_parser(declared(name), name), name.removeprefix('sagan_')
    parser.formatter_class, parser.description = Formatter, wrap(parser.description)
    parser.epilog = 'examples:\n' + indent(cleandoc(EXAMPLES[short]), '  ')
    for action in parser._actions:                      # one default is enough: what the comment says
        said = re.sub(r'(\(default: .+\)) \(default: .*\)$', r'\1', action.help or '')
        action.help = said.removesuffix(' (default: False)')
    if {'data', 'spec'} & {a.dest for a in parser._actions}:
        parser.add_argument('--bad', help='share of unreadable pictures that is tolerated (default: 1%%)')
        parser.add_argument('--truncated', action='store_true', default=None,
                            help='read truncated pictures as far as they go')
    parser.add_argument('--version', action='version', version=f'sagan_nb {__version__}',
                        help='show the version and end')
    lists = dict(train=('presets', 'settings'), table=('presets', 'settings')).get(short, ())
    for what in lists:
        parser.add_argument(f'--list-{what}', f'--list_{what}', action=ListAction, nargs=0, const=what,
                            default=argparse.SUPPRESS, help=f'show all {what} with meaning and source, and end')
    return parser


def read_words(
    name:str,                 # a command such as sagan_train
    words:list,               # of the command line
)->tuple[dict,dict]:          # parameter -> value; arguments of `reading_images`
    "Read a command line. Options take hyphens too; `~/` is the home folder. Ends the process after help and mistakes."
    words = [f' {a}' if re.match(r'-[\d.]+,', a) else a for a in words]                     # -1,3: a place, no option
    words = [re.sub(r'^--[a-z-]+', lambda m: '--' + m[0][2:].replace('-', '_'), a) for a in words]
    given = {k: expand_home(v) for k, v in vars(parser_of(name).parse_args(words)).items()}
    how = {k: given[k] for k in ('bad', 'truncated') if k in given}
    return {k: v for k, v in given.items() if k not in ('bad', 'truncated', 'pdb', 'xtra')}, how


def expand_home(
    value,                    # of an option
):                            # the same, where it is not a path that begins with ~/
    "Expand what a shell leaves alone in `--out=~/runs`."
    return os.path.expanduser(value) if isinstance(value, str) and re.match('~(/|$)', value) else value


def complain(
    who:str,                  # a command such as sagan_train
    line:str,                 # what is wrong
):
    "Print a fault on one line of stderr; on a terminal, lines break between words."
    said = f'{who}: {line}'
    print(wrap(said) if sys.stderr.isatty() else said, file=sys.stderr)


def check_preset(
    name:str,                 # a command such as sagan_train
    given:dict,               # parameter -> value
):
    "End the process, with the line that the command itself would print, for a preset that is not there."
    if not given.get('preset'): return
    try: import_module('..config', __package__).preset(given['preset'])
    except Refused as e:
        complain(name, printable(e))
        sys.exit(1)


def mend_streams():
    "Open a place where all is lost for a closed stdout or stderr: printing goes on, no file of ours gets its number."
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None: setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))


def start(
    name:str,                 # a command such as sagan_train
):
    "Run a command as a shell does: read the words, and only then import what it needs."
    mend_streams()
    if sys.argv[1:2] != ['probe']:                      # the probe has options of its own
        check_preset(name, read_words(name, sys.argv[1:])[0])
    os.environ['MPLBACKEND'] = 'agg'                    # files only; a notebook's backend may not be here
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'): stream.reconfigure(errors='replace')             # ? for what cannot be said
    try: run = getattr(import_module('.cli', __package__), name)
    except KeyboardInterrupt:                           # it takes seconds
        complain(name, 'stopped')
        sys.exit(130)
    run()


def entry(name:str):
    "A function for console_scripts."
    def run(): start(name)
    return run


def __getattr__(name:str):
    "sagan_train and the others, as functions for console_scripts. Raises AttributeError for any other name."
    if name in [f'sagan_{o}' for o in COMMANDS]: return entry(name)
    raise AttributeError(f'module {__name__} has no {name}')


COMPLETION = '''# {shell} completion for sagan_nb; to use it: source <(sagan --completion {shell})
{first}_sagan() {{
  local name=${{COMP_WORDS[0]##*/}} word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if [ "$name" = sagan ] && [ "$COMP_CWORD" -gt 1 ]; then name=sagan_${{COMP_WORDS[1]}}; fi
  case "$before" in
{values}
    *) case "$name" in
      sagan) words="{commands} --help --version --completion" ;;
{options}
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _sagan sagan {names}'''


def completion(
    shell:str,                # 'bash' or 'zsh'
)->str:                       # a script for it
    "Write a script that completes commands, options, and the values that have names; file names elsewhere."
    config, tables = import_module('..config', __package__), import_module('..ablation', __package__).TABLES
    more = dict(train=config.PRESETS, table=tables)
    def options(name):
        known = [o for a in parser_of(f'sagan_{name}')._actions for o in a.option_strings
                 if a.help != argparse.SUPPRESS and re.match('--(?!list_)', o)]
        return ' '.join([*known, *more.get(name, ())])
    return COMPLETION.format(
        shell=shell, first='autoload -U +X bashcompinit && bashcompinit\n' if shell == 'zsh' else '',
        values='\n'.join(f'    --{name}) words="{words}" ;;' for name, words in VALUES.items()),
        options='\n'.join(f'      sagan_{name}) words="{options(name)}" ;;' for name in COMMANDS),
        commands=' '.join(COMMANDS), names=' '.join(f'sagan_{name}' for name in COMMANDS))


def sagan():
    "The ten commands as one: `sagan train ...` is `sagan_train ...`."
    about = [wrap(f'  {name:10} {declared(f"sagan_{name}").__doc__}') for name in COMMANDS]
    examples = ['  sagan train t1_attn_16 --data toy --scale laptop --out runs/first',
                '  sagan sample runs/first --n 64']
    parser = argparse.ArgumentParser('sagan', formatter_class=Formatter,
                                     description='Self-Attention GANs from a shell.',
                                     epilog='\n'.join(['commands:', *about, '', 'examples:', *examples]))
    parser.add_argument('command', choices=COMMANDS, metavar='command',
                        help='what to do, with its own options behind it')
    parser.add_argument('--version', action='version', version=f'sagan_nb {__version__}',
                        help='show the version and end')
    parser.add_argument('--completion', choices=('bash', 'zsh'),
                        help='print a script that completes commands and options')
    if sys.argv[1:2] == ['--completion'] and sys.argv[2:] in (['bash'], ['zsh']): return print(completion(sys.argv[2]))
    name = parser.parse_args(sys.argv[1:2] or ['--help']).command
    sys.argv[1:2] = []
    start(f'sagan_{name}')
