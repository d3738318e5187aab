"Serves chapter 16: what the words of a command line mean."
import errno
import os
import re
import shlex
import shutil
import sys
import time
import warnings
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path

import torch

from ..ablation import TABLES
from ..config import Config, at_scale, override, preset
from ..core import Refused, choose
from ..data import open_source
from ..train import average, fit, make_gan
from .checkpoints import Diverged
from .console import complain, read_words
from .evaluate import check_metrics
from .catalogue import is_weights_name
from .features import check_features
from .files import CacheWarning, must_be_file
from .group import Lost, place, started_again, text_of_first, texts_of_all
from .hub import is_repo
from .guard import Collapsed
from .jobs import row_configs, setting_name
from .machine import fast_bf16, out_of_memory, short_of_memory
from .many import goes_to_many
from .pictures import reading_images, reading_options
from .protocols import PROTOCOLS
from .runs import Requeue, Stopped, agree_on, check_free, settings_of, stop_at
from .sending import stream_of
from .terminal import printable, quoted


WARNING_TEXT = warnings.formatwarning


def warn_in_a_line(
    message,                  # the warning
    category:type,            # its class
    *place,                   # where in the code it was raised
    **line,                   # the line there
)->str:                       # what is printed
    "Format a warning of a damaged or older file without the place in the code, which is no part of it."
    return f'{message}\n' if category is CacheWarning else WARNING_TEXT(message, category, *place, **line)


def command(f):               # a function with docments
    """Make a shell command of a function. A known fault is one line on stderr, and an exit code; a bug keeps its
    traceback. Of several ranks the first one alone prints."""
    @wraps(f)
    def run(*args, **kwargs):
        if args or kwargs: return f(*args, **kwargs)
        given, how = read_words(f.__name__, sys.argv[1:])
        warnings.formatwarning = warn_in_a_line
        name = f.__name__
        try:
            rank, world = place()
            if world > 1: name += f', rank {rank}'
            with reading_images(**how), redirect_stdout(open(os.devnull, 'w') if rank else sys.stdout): f(**given)
        except (Exception, KeyboardInterrupt) as e:
            if not (line := fault_line(e)): raise
            complain(name, line)
            sys.exit(exit_code(e))
    return run


def exit_code(
    e:BaseException,          # what stopped a command
)->int:                       # 3: a collapse; 75: "try again" (EX_TEMPFAIL of sysexits.h); 130: as after Ctrl-C
    "Choose the exit code: a run that a scheduler stopped wants to come back, not one that a user or a guard stopped."
    if isinstance(e, Collapsed): return 3
    if isinstance(e, Requeue): return 75
    return 130 if isinstance(e, (Stopped, KeyboardInterrupt)) else 1


GOES_ON = 'the same command goes on once there is a remedy'


def fault_line(
    e:BaseException,          # what stopped a command
    then:str=GOES_ON,         # as of `disk_line`
)->str:                       # one line to print; '' for a bug, which keeps its traceback
    "Say what happened: an input that cannot be used, a disk, memory, the user."
    if out_of_memory(e): return printable(f'out of memory: {short_of_memory(e)}')
    if isinstance(e, (Refused, Diverged, Lost)): return printable(e)
    if isinstance(e, OSError): return printable(disk_line(e, then))
    return printable(str(e) or 'stopped') if isinstance(e, (Stopped, KeyboardInterrupt)) else ''


def disk_line(
    e:OSError,                # what the system said
    then:str=GOES_ON,         # what is to be done; '' where the caller says that
)->str:
    "Say what happened to which file, and, where a disk or a limit is to blame, what is safe."
    path, said = re.sub(r'\.\d+\.part$', '', str(e.filename or '')), f'{e.strerror or e}'
    spent = 'ENOSPC EDQUOT EROFS EIO EMFILE ENFILE EFBIG'.split()
    if then and e.errno in {getattr(errno, name, None) for name in spent} and ';' not in said:
        said += f'; no file that was there is lost, and {then}'
    return f'{path}: {said}'.lstrip(': ')


@contextmanager
def resumable(
    out,                      # folder of a run that is about to begin, or to be gone on with
):
    """Within it, a fault of the system says how to go on with a run that it began: the command that did so would be
    refused."""
    settings = Path(out)/'config.json'
    before = settings.exists()
    try: yield
    except OSError as e:
        if before or not settings.exists(): raise
        then = f'what goes on, once there is a remedy, is {command_path("sagan_train", "--resume", "--out", out)}'
        raise OSError(e.errno, disk_line(OSError(e.errno, e.strerror or str(e)), then), e.filename) from e


def pick_classes(
    text:str,                 # names or numbers, separated by commas; None for all
    names:list,               # class names, in order
)->list:                      # their numbers
    "Read classes from a command line. Where a name is a number, names alone count. Raises Refused for an unknown one."
    if not names: return [0]
    if not text: return list(range(len(names)))
    found = {n: k for k, n in enumerate(names)}
    if not any(n.isdecimal() for n in names): found |= {str(k): k for k in range(len(names))}
    if text in found: return [found[text]]                    # a name may hold a comma
    missing = [t for t in text.split(',') if t not in found]
    some = [*names[:10], '...'] if len(names) > 10 else names
    if missing: raise Refused(f'there is no class {missing[0]!r}; there are {len(names)}: {", ".join(some)}')
    return [found[t] for t in text.split(',')]


def command_path(
    name:str,                 # a command of this package
    *words,                   # its arguments
)->str:                       # what to type to run it, from where this one was run, quoted for a shell
    "The name alone where the shell finds it, else its path."
    path = Path(sys.argv[0] or '-').with_name(f'{name}.exe' if os.name == 'nt' else name)
    known = shutil.which(name) or not path.exists()
    return ' '.join(map(quoted, [name if known else from_here(path), *words]))


def from_here(
    path,                     # a file
)->str:                       # the shortest name for it here
    "Name a file from the current folder; on another drive, where there is no such way, as it is."
    try: return os.path.relpath(path)
    except ValueError: return str(path)


def say_next(
    *lines,                   # (command, words...) each, or a sentence
    file=None,                # where to (default: stdout)
):
    "Print what can be done next, in a form that a shell takes back."
    print('\nTry next:', file=file)
    for line in lines: print(f'  {line if isinstance(line, str) else command_path(*line)}', file=file)


def attention_tip(
    G,                        # a generator
    run,                      # what it was opened from
)->list:                      # for `say_next`; empty where there is nothing to look at
    "The command that shows where a generator looks."
    from ..self_attention import SelfAttention
    looks = any(isinstance(block, SelfAttention) for block in getattr(G, 'extra', {}).values())
    return [('sagan_attention', run)] if looks else []


def folder_of(
    run,                      # run folder, a checkpoint, or a file of weights
)->Path:                      # the run folder, or the file's folder
    "Where what is made of a run belongs."
    if is_weights_name(run) or is_repo(run): return Path()    # of nobody's folder
    folder = Path(run) if Path(run).is_dir() else Path(run).absolute().parent
    if folder.name == 'checkpoints': return folder.parent
    return folder if folder.is_dir() else Path()              # of a run that is not there, which its reader says


def free_path(
    path,                     # file to write
)->Path:                      # the same, or with the first free number: maps.png, maps-2.png, ...
    "A name at which nothing is overwritten."
    path, i = Path(path), 2
    stem = path.stem
    while path.exists(): path, i = path.with_stem(f'{stem}-{i}'), i + 1
    return path


def file_to_write(
    path,                     # where a command will put what it found
)->Path:
    "Check the place before any work. Raises Refused for a folder, a device, or a folder that is not there."
    path = must_be_file(path)
    if not path.parent.is_dir(): raise Refused(f'{path.parent}: there is no such folder')
    return path


def replaces(
    path,                     # file to write, as the user named it
)->str:                       # for the end of a sentence
    "Say that a file was there already; empty where it was not."
    return ' (in place of the file that was there)' if Path(path).is_file() else ''


def begun(
    out:str,                  # run folder
    resume:bool,              # asked for
)->bool:                      # is it to be gone on with?
    """A run that torchrun starts again, after one of its ranks was lost, goes on where it was; so do all ranks where
    one was asked to, as on a machine that came later. Raises Refused, on every rank, where a new run would overwrite
    something."""
    again = 'True' in texts_of_all(str(resume or started_again()))
    there = text_of_first(lambda: str((Path(out)/'config.json').exists())) == 'True'
    if resume or again and there: return True
    if why := text_of_first(lambda: taken(out)): raise Refused(why)
    return False


def taken(
    out:str,                  # run folder
)->str:                       # empty where nothing is in the way
    "Say why a new run cannot be put there."
    try: check_free(Path(out))
    except Refused as e: return str(e)
    return ''


def run_settings(
    preset_name:str,          # row, or None
    data:str,                 # pictures, or None
    scale:str,                # scale, or None
    out:str,                  # run folder
    pairs,                    # key=value texts
    resume:bool,              # start from the settings of the run in `out`
    unlabelled:bool,          # pictures without classes
    device='cpu',             # where
)->Config:                    # complete but for what only the pictures know
    "The settings that a command line asks for. Raises Refused for anything that does not exist."
    if not resume:
        cfg = at_scale(preset(preset_name or 't1_attn_16'), scale or 'laptop', fast_bf16(device))
        without = dict(n_classes=0, head='none') if unlabelled else {}
        return override(replace(cfg, data='toy' if data is None else data, **without), pairs)
    cfg = settings_of(Path(out))
    cfg = replace(cfg, preset=preset_name or cfg.preset, scale=scale or cfg.scale,
                  data=cfg.data if data is None else data)
    return override(cfg, pairs)


def time_update(
    cfg:Config,               # settings
    source,                   # the pictures
    device,                   # where to
    most:float,               # seconds after which to stop, by the fifth update at the earliest
)->float:                     # seconds; the first two updates, which are slower, do not count
    "How long an update takes on this machine, from at most twenty of networks that are thrown away."
    ends, gan = [], make_gan(replace(cfg, steps=22), device)
    def clock(gan, log):
        float(sum(log.values()))                              # waits for a GPU
        ends.append(time.perf_counter())
    stream = stream_of(cfg, source, gan.ranks, device)
    with closing(stream), suppress(Stopped):
        fit(gan, stream, [(1, average), (1, clock), (5, stop_at(time.monotonic() + most))])
    return (ends[-1] - ends[1]) / (len(ends) - 2)


HELD_UP = 2               # times as long by all threads as by fewer: for less, all stay


def fewer_threads(
    each:float,               # seconds of an update by the threads of this process
    timed,                    # times it again
)->float:                     # seconds by the threads that stay
    """Leave threads out that hold each other up, for this process, from now on. They wait for each other after every
    operation, so one that shares its core with another program holds up all. Half of them are tried, and one alone."""
    n = torch.get_num_threads()
    seconds = {n: each}
    for fewer in {n // 2, 1} - {0, n}:
        torch.set_num_threads(fewer)
        seconds[fewer] = timed()
    best = min(seconds, key=seconds.get)
    if each < HELD_UP*seconds[best]: best = n
    torch.set_num_threads(best)
    if best < n:
        faster = each / seconds[best]
        print(f'\nthreads hold each other up here: by {best} of {n} an update is {faster:.1f} times as fast, '
              f'so this run has no more;\n  OMP_NUM_THREADS={best} before the command, where it goes on, keeps it so',
              flush=True)
    return seconds[best]


def steps_within(
    minutes:float,            # of training, without what is measured after it
    cfg:Config,               # settings; cfg.steps is the most there can be
    source,                   # the pictures
    device,                   # where to
)->int:                       # cfg.steps, or a multiple of ten
    "How many updates fit, as it says. Raises Refused where not even ten do."
    print('timing an update', flush=True)
    agree_on(cfg)
    timed = partial(time_update, cfg, source, device, 6*minutes)                 # a tenth of the time
    each = timed()
    alone = torch.device(device).type == 'cpu' and place()[1] == 1
    if alone and 'OMP_NUM_THREADS' not in os.environ: each = fewer_threads(each, timed)
    each = float(text_of_first(lambda: repr(each)))
    n = 60*minutes / each
    if n < min(10, cfg.steps): raise Refused(f'not ten updates of {each:.2g} s fit into {minutes:g} minutes')
    n = cfg.steps if n >= cfg.steps else int(n)//10*10
    rest = f'; --resume --steps {cfg.steps} makes the rest' if n < cfg.steps else ''
    print(f'\nan update takes {each:.2g} s here: {n} of {cfg.steps} fit into {minutes:g} minutes{rest}')
    return n


WORTH = 1.2               # times as many updates: for less, a run is not lengthened


def steps_still_within(
    minutes:float,            # as of `steps_within`
    spent:float,              # seconds since the run began
    done:int,                 # updates it has made
    wanted:int,               # updates it was asked for
)->int:                       # updates to end with, a multiple of ten or `wanted`; `done`: no more are worth it
    "Look at the clock again when a run ends early: other programs may have been busy while an update was timed."
    fit = int(text_of_first(lambda: str(int(60*minutes / spent * done))))
    n = wanted if fit >= wanted else fit//10*10
    if n < min(WORTH*done, wanted) or n <= done: return done
    print(f'\n{done} updates took {spent/60:.1f} of {minutes:g} minutes, less than timed: on to {n} of {wanted}',
          flush=True)
    return n


FIGURE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.pdf', '.svg')
SAMPLE_KINDS = ('grid', 'z', 'classes', 'neighbours', 'timelapse')


def check_sample_options(
    kind:str,                 # as in sagan_sample
    n:int,                    # as in sagan_sample
    seed:int,                 # as in sagan_sample
    steps:int,                # as in sagan_sample
    out:str,                  # as in sagan_sample
):
    "Raises Refused for what sagan_sample cannot do."
    choose(kind, SAMPLE_KINDS, 'kind')
    many = goes_to_many(out)
    if many and kind != 'grid': raise Refused(f'{kind} makes one picture: write a .png')
    if not 1 <= n <= (10**9 if many else 10_000):
        raise Refused(f'n must lie in 1..10000, got {n}: --out DIR/ takes more')
    if not 2 <= steps <= 1000: raise Refused(f'steps must lie in 2..1000, got {steps}')
    if not 0 <= seed < 2**63: raise Refused(f'seed must lie in 0..2**63, got {seed}')
    if many: return
    ending = Path(out).suffix.lower()
    if ending == '.gif' and kind in ('grid', 'neighbours'): raise Refused(f'{kind} does not move: write a .png')
    if ending not in (*FIGURE_SUFFIXES, '.gif'):
        names = ', '.join((*FIGURE_SUFFIXES, '.gif', '.npz'))
        raise Refused(f'{out}: the name must end in one of {names}, or in / for a folder')


def check_eval_options(
    metrics:list,             # names
    labels:str,               # as in sagan_eval
    seed:int,                 # as in sagan_eval
    per_class:int,            # as in sagan_eval
    protocol:str,             # as in sagan_eval
    features:str='domain',    # as in sagan_eval
):
    "Check the options of sagan_eval before anything is opened. Raises Refused for what it cannot do."
    if labels not in ('uniform', 'data'): raise Refused(f'labels are uniform or data, not {labels!r}')
    if not 0 <= seed < 2**63 or per_class < 0: raise Refused('seed must lie in 0..2**63, and per_class be 0 or more')
    check_features(features)
    if protocol is None: check_metrics(metrics)
    else: choose(protocol, (*PROTOCOLS, 'all'), 'protocol')


EVAL = dict(metrics='score,distance,intra', labels='uniform', features='domain', per_class=0,
            floats=False)         # usual options of sagan_eval


def refuse_idle(
    protocol:str,             # as in sagan_eval
    fake:str,                 # as in sagan_eval
    given:dict,               # option -> value, of those that may be of no use
):
    "Raise Refused for options of sagan_eval that would change nothing."
    said = [o for o in given if given[o] != EVAL.get(o) and not (o == 'features' and given[o].startswith('inception'))]
    reasons = {}
    if protocol: reasons['a protocol says it'] = 'metrics', 'features', 'n_real', 'per_class', 'labels', 'floats'
    if fake: reasons['two sets of pictures have it'] = 'data', 'n_fake', 'per_class', 'labels'
    else: reasons['it is for two sets of pictures'] = ('res',)
    for why, names in reasons.items():
        if idle := [o for o in said if o in names]: raise Refused(f'leave out --{idle[0]}: {why}')


def say_lost(
    lost:list,                # names of runs that failed
    of:int,                   # of so many
    then:str,                 # what to do about it
    world:int,                # processes that share the rows of a table
):
    "Raise Refused where runs failed; beside other processes say it alone, for torchrun would stop their rows, too."
    words = f'{len(lost)} of {of} runs failed. {then}'
    if lost and world == 1: raise Refused(words)
    if lost: print(words, file=sys.stderr)               # of a rank whose stdout goes nowhere, too


def seeds_of(
    text:str,                 # '10-29', '1,2,5', or both
)->list:
    "Read a list of seeds, at most a thousand in a row. Raises Refused for anything else."
    one = r'\d{1,19}(-\d{1,19})?'
    known = re.fullmatch(f'{one}(,{one})*', text, re.ASCII)
    parts = [[int(o) for o in part.split('-')] for part in text.split(',')] if known else []
    if not parts or any(p[-1] - p[0] not in range(1000) for p in parts):
        raise Refused(f'seeds are like 10-29 or 1,2,5; got {text!r}')
    return [s for part in parts for s in range(part[0], part[-1] + 1)]


def slice_of(
    plan,                     # a table
    only:str,                 # rows, separated by commas; None: all
    seeds:str,                # as of `seeds_of`
)->tuple[list,list]:          # rows, seeds
    "What of a table is asked for. Raises Refused for rows and seeds that do not exist."
    rows = list(plan.rows) if only is None else only.split(',')
    if strange := [r for r in rows if r not in plan.rows]:
        raise Refused(f'there is no row {strange[0]!r} in this table; there are {", ".join(plan.rows)}')
    return rows, seeds_of(seeds)


def asked_rows(
    table:str,                # a key of TABLES
    only:str,                 # as in sagan_table
    seeds:str,                # as in sagan_table
    retrain:str,              # as in sagan_table
    adopt:str,                # as in sagan_table
    print_commands:bool,      # as in sagan_table
)->tuple[list,list,list]:     # rows, seeds, rows to do anew
    "Check the options of sagan_table. Raises Refused for unknown rows and for options that exclude each other."
    choose(table, TABLES, 'table')
    rows, numbers = slice_of(TABLES[table], only, seeds)
    again = [] if retrain is None else slice_of(TABLES[table], retrain, seeds)[0]
    if odd := [r for r in again if r not in rows]: raise Refused(f'--retrain {odd[0]}: --only leaves this row out')
    if again and adopt: raise Refused('--retrain and --adopt are two commands')
    if print_commands and (again or adopt): raise Refused('--print_commands goes with neither --retrain nor --adopt')
    return rows, numbers, [] if started_again() else again       # done when torchrun started first


def commands(
    table:str,                # a key of TABLES
    jobs:list,                # what it needs
    options:dict,             # name -> value, for all alike
    pairs,                    # key=value texts
)->tuple[list,str]:           # one line for each row and seed; the line that makes the table when all are done
    "Commands that do not depend on each other, for the scheduler of a cluster."
    given = [word for name, value in options.items() if value for word in (f'--{name}', str(value))]
    line = shlex.join(['sagan_table', table, *given, *reading_options()])
    kept = [] if 'precision' in map(setting_name, pairs or ()) else [f'precision={jobs[0].cfg.precision}']
    more = f' --set {shlex.join([*(pairs or ()), *kept])}'           # whatever the machine that runs it would prefer
    each = [f'{line} --only {job.cfg.preset} --seeds {job.cfg.seed}{more}' for job in jobs]
    rows, seeds = (','.join(dict.fromkeys(str(getattr(j.cfg, k)) for j in jobs)) for k in ('preset', 'seed'))
    return each, f'{line} --only {rows} --seeds {seeds}{more}'


def rows_of(
    table:str,                # a key of TABLES
    rows:list,                # those asked for
    data:str,                 # pictures
    scale:str,                # scale
    pairs,                    # key=value texts
    device,                   # where
)->tuple:                     # pictures; row -> Config; row -> why it does not apply
    "Open the pictures and settle the rows. Raises Refused where none of those asked for can be trained."
    sizes = [p for p in pairs if setting_name(p) == 'res']
    source = open_source(data, res=override(at_scale(preset(rows[0]), scale), sizes).res)
    found, skipped = row_configs(TABLES[table], source, scale, pairs, fast_bf16(device))
    if not found.keys() & {*rows}: raise Refused(f'no row can be trained: {rows[0]}: {skipped[rows[0]]}')
    return source, found, skipped


def read_queries(
    texts,                    # 'auto', 'grid', or texts ROW,COLUMN
):                            # 'auto', 'grid', or a list of (row, column)
    "Queries from a command line. Raises Refused for what is none of these."
    texts = [texts] if isinstance(texts, str) else list(texts or ['auto'])
    if texts in (['auto'], ['grid']): return texts[0]
    try: pairs = [tuple(int(v) for v in t.split(',')) for t in texts]
    except ValueError: pairs = [()]
    if all(len(p) == 2 for p in pairs): return pairs
    raise Refused(f'queries are auto, grid, or pixels as ROW,COLUMN such as 12,40 20,8; got {" ".join(texts)}')
