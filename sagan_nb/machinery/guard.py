"Serves chapter 12: what a long run does about a collapse: note it, stop, or go back; and the best looks that are kept."
import re
import warnings
from contextlib import nullcontext
from itertools import takewhile
from pathlib import Path

import torch

from ..config import Config
from ..core import Refused, choose
from ..data import seed_of
from ..distributed import Ranks
from ..train import GAN
from .atomic import atomic_write
from .checkpoints import (Diverged, checkpoints_of, newest_checkpoint, read_checkpoint, read_newest, restore, sealed,
                          step_of)
from .curve import Curve, give_name
from .files import CacheWarning, append_line, read_lines
from .group import restarted, text_of_first
from .runs import Stopped, read_log, run_lock, state_to_go_on_from, train, with_numbers
from .terminal import printable

ACTIONS = ('go', 'stop', 'back')
MOST_BACKS = 3            # times that a run goes back before it stops


class Collapsed(Stopped):
    "A sign of collapse, in a run that is to do something about it."


def kept_best(
    text:str,                 # best:K, or None
)->int:                       # K; 0 where nobody asks
    "Read how many of the best looks are kept. Raises Refused for anything else."
    if text is None: return 0
    if found := re.fullmatch(r'best:([1-9]\d?)', text): return int(found[1])
    raise Refused(f'--keep takes best:K, with K from 1 to 99; got {text!r}')


class Guard:
    "Hook: look at the run, keep the best looks, and raise Collapsed at a sign of collapse where that is asked for."
    def __init__(self,
        curve:Curve,              # what looks; None on the ranks that wait for what the first one sees
        best:int=0,               # how many checkpoints to keep by their distance
        action:str='go',          # one of ACTIONS
    ):
        self.curve, self.best, self.action = curve, best, action

    def __call__(self, gan:GAN, log:dict=None):
        "Let rank 0 look; all ranks act on a sign, once."
        if why := text_of_first(lambda: self.look(gan)): raise Collapsed(why)

    def look(self, gan:GAN)->str:             # why the run is to end; '' where it goes on
        "Look, keep the best looks, and note a sign of collapse."
        before = any('collapse' in o for o in read_log(self.curve.path, gan.t - 1))
        try: line = self.curve(gan)
        except Diverged as e: return str(e)                      # which all ranks must hear
        if self.best: self.keep_best(gan.t)
        if before or 'collapse' not in line: return ''
        words = '; '.join(f'{o["sign"]} at step {o["t"]}, {o["words"]}' for o in line['collapse'])
        note_incident(self.curve.run, gan.t, f'sign of collapse: {words}', self.action)
        return '' if self.action == 'go' else f'sign of collapse: {words}{last_good(self.curve.run)}'

    def catch_up(self,
        out:Path,                 # run folder
        device,                   # where to
    ):
        "Look at the newest checkpoint if the run was stopped between saving it and looking at it. All ranks call this."
        ranks = Ranks()
        if not (state := state_to_go_on_from(out, ranks.world)): return
        gan = restore(state, device=device)                  # on all ranks, which begin alike
        why = text_of_first(lambda: self.look(gan) if self.curve.missed(gan.t) else '')
        if why and self.action == 'stop': raise Collapsed(why)

    def keep_best(self, t:int):
        "Name the checkpoint of this step best_XXXXXXX.pt, too, if its distance is among the smallest; one more goes."
        order = sorted(with_numbers(read_log(self.curve.path, t), 'distance'), key=lambda o: o['distance'])
        wanted = {o['t'] for o in order[:self.best]}
        here = self.curve.run/'checkpoints'/f'step_{t:07}.pt'
        if t in wanted and here.exists(): give_name(here, f'best_{t:07}.pt')
        for path in checkpoints_of(self.curve.run, 'best'):
            if step_of(path) not in wanted: path.unlink()


def good_state(
    run,                      # run folder
)->tuple:                     # path, what is in it (mapped into memory); None, None where there is none
    """Read the last checkpoint from before a collapse: good.pt. If that is damaged, a warning says so, and it is the
    newest whole one of a step that a look found well."""
    good = Path(run)/'checkpoints'/'good.pt'
    if not good.exists(): return None, None
    try: return good, read_checkpoint(good, lazily=True)
    except Refused as e: words = str(e)
    well = [o['t'] for o in takewhile(lambda o: 'collapse' not in o, read_log(Path(run)/'curve.jsonl'))]
    try: found = read_newest(run, True, max(well, default=0))
    except Refused: found = None, None
    warnings.warn(f'{words}; {found[0].name if found[0] else "no checkpoint"} is used', CacheWarning, stacklevel=1)
    return found


def note_incident(
    run,                      # run folder
    t:int,                    # step at which it was seen
    words:str,                # what
    action:str,               # what is done about it
):
    "Add a line to incidents.jsonl."
    path, state = good_state(run)
    append_line(Path(run)/'incidents.jsonl', dict(t=t, words=words, action=action, good=state['t'] if path else None))


def incidents(
    run,                      # run folder
)->list:                      # dicts: t, words, action, good (a step, or None)
    "Read what went wrong in a run, and what was done about it. Raises Refused for a line that says something else."
    path = Path(run)/'incidents.jsonl'
    found = read_lines(path)
    for o in found:
        if not (type(o.get('t')) is int and isinstance(o.get('words'), str) and o.get('action') in [*ACTIONS]
                and type(o.get('good')) in (int, type(None))):
            raise Refused(f'{path} is damaged (no incident: {printable(o)[:80]}): delete this line')
    return [dict(o, words=printable(o['words'])) for o in found]


def step_back(
    run,                      # run folder
    good:Path,                # its last good checkpoint
    times:int,                # how often it went back before
)->int:                       # the step from which it goes on
    """Make the last good checkpoint the newest, with noise drawn anew and pictures from where the run was: the same
    noise and pictures would end alike. Raises Refused where it is damaged."""
    run = Path(run)
    with run_lock(run):
        state = read_checkpoint(good)
        state['data'] = read_newest(run)[1]['data']
        state['rng'] = torch.Generator().manual_seed(seed_of('back', state['t'], times)).get_state()
        with atomic_write(run/'checkpoints'/f'step_{state["t"]:07}.pt') as part: part.write_bytes(sealed(state))
        for path in checkpoints_of(run):
            if step_of(path) > state['t']: path.unlink()
        looks = read_log(run/'curve.jsonl', state['t'])
        if looks: append_line(run/'curve.jsonl', looks[-1])     # again: later looks, of what is behind us, do not count
    return state['t']


def check_watch(
    cfg:Config,               # of the run
    every:int,                # steps between two looks; 0: none
    keep:str,                 # as of `kept_best`
    action:str,               # one of ACTIONS
)->int:                       # K of `kept_best`
    "Check what is asked of a guard. Raises Refused for what does not go together."
    choose(action, ACTIONS, '--on_collapse')
    best = kept_best(keep)
    if not every and (best or action != 'go'): raise Refused('--keep and --on_collapse need --look_every')
    if every < 0 or every % cfg.checkpoint_every:
        raise Refused(f'--look_every must be a multiple of checkpoint_every, {cfg.checkpoint_every}; got {every}')
    return best


def train_guarded(
    cfg:Config,               # this and the next six: as of `train`
    source,                   # the pictures
    out,                      # run folder
    resume:bool=False,        # go on from the newest checkpoint
    device='cpu',             # where to
    hooks=(),                 # more hooks
    prepare=None,             # called with the GAN before the first step
    every:int=0,              # steps between two looks; 0: none
    keep:str=None,            # as of `kept_best`
    action:str='go',          # one of ACTIONS
    features='domain',        # what the distance is measured with
)->GAN:                       # at the last step
    "Train, look on the way, and act on a collapse. Raises Stopped where it ends the run, with what to do next."
    best = check_watch(cfg, every, keep, action)
    if not every: return train(cfg, source, out, resume, device, hooks, prepare)
    first = Ranks().first
    curve = Curve(out, source, cfg, device, features, every) if first else None
    guard = Guard(curve, best, action)
    if resume:
        lock = run_lock(out) if first and checkpoints_of(out) else nullcontext()
        with lock: guard.catch_up(Path(out), device)
    if resume and action != 'go': act_again(out, action)
    while True:
        try: return train(cfg, source, out, resume, device, [*hooks, (every, guard)], prepare)
        except (Collapsed, Diverged) as e:
            done = 'stop' if action == 'go' else action
            if first and isinstance(e, Diverged): note_incident(out, newest_step(out), str(e), done)
            if action != 'back' or not went_back(out, str(e)): raise
            resume = True


def act_again(
    run,                      # run folder
    action:str,               # 'stop' or 'back'
):
    """Go back where the last look saw a collapse. Raises Collapsed where the run cannot, or was to stop, and torchrun
    started it again before it has moved: nobody has seen it."""
    def looks(): return read_log(Path(run)/'curve.jsonl', newest_step(run)) or [{}]
    def fell(): return 'collapse' in looks()[-1]
    def unseen():
        *before, last = looks()
        fresh = 'collapse' in last and last['t'] == newest_step(run)
        return fresh and not any('collapse' in o for o in before)
    if action == 'back' and went_back(run, 'it had collapsed', fell): return
    if restarted() and text_of_first(lambda: str(unseen())) == 'True':
        raise Collapsed(f'it had collapsed{text_of_first(lambda: last_good(run))}')


def went_back(
    run,                      # run folder
    why:str,                  # what to print
    wanted=lambda: True,      # is it to go back?
)->bool:                      # as of `go_back`
    "Let rank 0 go back to the last good checkpoint, from which all go on."
    return text_of_first(lambda: 'back' if wanted() and go_back(run, why) else '') == 'back'


def go_back(
    run,                      # run folder
    why:str,                  # what to print
)->bool:                      # False: it did so too often, or there is no checkpoint
    "Go back to the last good checkpoint, and say so."
    times = sum(o['action'] == 'back' for o in incidents(run))
    if times > MOST_BACKS or not checkpoints_of(run): return False
    good = good_state(run)[0] if (Path(run)/'checkpoints'/'good.pt').exists() else newest_checkpoint(run)
    if not good: return False
    print(f'\n{why}: back to step {step_back(run, good, times)}, with other noise')
    return True


def last_good(
    run,                      # run folder
)->str:                       # for the end of a sentence
    "Say which checkpoint is from before a collapse."
    good, _ = good_state(run)
    return f'; the last good checkpoint is {good}' if good else ''


def newest_step(
    run,                      # run folder
)->int:                       # of its newest checkpoint; 0 without one
    "Say how far a run is saved."
    found = checkpoints_of(run)
    return step_of(found[-1]) if found else 0
