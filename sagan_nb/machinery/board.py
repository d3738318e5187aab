"Serves chapter 16: the log of a run on TensorBoard."
from pathlib import Path

from ..core import Refused
from .runs import kept_samples, read_log


def flat(
    line:dict,                # of a log
    above:str='',             # name so far
):                            # yields (name, number)
    "Name the numbers of a log by their path."
    for name, v in line.items():
        if isinstance(v, dict): yield from flat(v, f'{above}{name}/')
        elif isinstance(v, (int, float)) and name != 't': yield f'{above}{name}', v


NO_BOARD = "--tensorboard needs an optional package: pip install 'sagan_nb[log]'"


class Board:
    "Hook: hand on what log.jsonl and the samples say since the last call. Raises Refused without TensorBoard."
    def __init__(self,
        run,                      # run folder
    ):
        try: from torch.utils.tensorboard import SummaryWriter
        except ImportError: raise Refused(NO_BOARD) from None
        self.run, self.done, self.shown, self.make = Path(run), -1, -1, SummaryWriter
        self.writer = None

    def __call__(self, gan, log:dict):
        "Write what is new."
        self.writer = self.writer or self.make(str(self.run/'tensorboard'))
        for line in read_log(self.run/'log.jsonl'):
            if line['t'] <= self.done: continue
            for name, v in flat(line): self.writer.add_scalar(name, v, line['t'])
            self.done = line['t']
        if any((self.run/'samples').glob('step_*.png')):
            for t, grid in kept_samples(self.run).items():
                if t > self.shown: self.writer.add_image('samples', grid, t)
                self.shown = max(t, self.shown)
        self.writer.flush()
