"Serves chapter 00: files that are there whole or not at all."
import errno
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(
    path,                     # file to write or to replace
):                            # where to write meanwhile
    "Put what is written inside in the file's place, once the disk holds it; after a fault the file is as it was."
    path = Path(path)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        yield part
        with open(part, 'rb+') as f: os.fsync(f.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as e:
        e.filename = e.filename or str(path)
        raise
    finally: part.unlink(missing_ok=True)


def sync_folder(
    path:Path,                # folder
):
    "Wait until the names in a folder are on the disk, where the system can do that."
    if not hasattr(os, 'O_DIRECTORY'): return            # Windows opens no folders
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try: os.fsync(fd)
    except OSError as e:                                 # some file systems sync no folders
        if e.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP): raise
    finally: os.close(fd)
