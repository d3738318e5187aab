"Serves chapter 16: the log of a run on TensorBoard."
from contextlib import suppress
from pathlib import Path

from ..core import Refused
from .runs import kept_samples, read_log, sample_files


def flat(
    line:dict,                # of a log
    above:str='',             # name so far
):                            # yields (name, number)
    "Name the numbers of a log by their path."
    for name, v in line.items():
        if isinstance(v, dict): yield from flat(v, f'{above}{name}/')
        elif isinstance(v, (int, float)) and name != 't': yield f'{above}{name}', v


NO_BOARD = '--tensorboard needs an optional package: pip install "sagan_nb[log]"'


class Board:
    "Hook: hand on what log.jsonl and the samples say since the last call. Raises Refused without TensorBoard."
    def __init__(self,
        run,                      # run folder
    ):
        try: from torch.utils.tensorboard import SummaryWriter
        except ImportError: raise Refused(NO_BOARD) from None
        self.run, self.make = Path(run), SummaryWriter
        self.begin()

    def begin(self):
        "Hand on all of the run, in place of what was handed on before."
        self.writer, self.done, self.shown, self.size = None, -1, -1, 0

    def __call__(self, gan, log:dict):
        "Write what is new."
        if gan.t < self.done: self.begin()                   # it went back
        self.writer = self.writer or self.make(str(self.run/'tensorboard'), purge_step=0)
        path = self.run/'log.jsonl'
        size = path.stat().st_size if path.exists() else 0
        for line in read_log(path) if size != self.size else ():         # a long log is not read in vain
            if line['t'] <= self.done: continue
            for name, v in flat(line): self.writer.add_scalar(name, v, line['t'])
            self.done = line['t']
        self.size = size
        for t in [t for t in sample_files(self.run) if t > self.shown]:
            with suppress(Refused):                          # a damaged one is passed over
                self.writer.add_image('samples', kept_samples(self.run, steps=[t])[t], t)
            self.shown = t
        self.writer.flush()
