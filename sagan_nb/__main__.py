"`python -m sagan_nb train ...` is `sagan train ...`, for where the commands are not on the path."
from .machinery.console import sagan

sagan()
