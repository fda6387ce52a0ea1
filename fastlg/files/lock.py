"""One process at a time: a lock file that vanishes when its holder is done, killed or not.

Not filelock's: where there is no flock it takes a marker file instead, which a killed holder leaves behind for good; it
never removes its file; and it polls where this one sleeps until the holder is done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system that has none


@contextlib.contextmanager
def file_lock(path: Path, purpose: str) -> Iterator[None]:
    """Hold the lock file ``path``; wait while another process holds it, saying what that one does (``purpose``).

    On a file system without locks it goes on without, and says so.
    """
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process is %s; waiting for it", purpose)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                _warn(path.parent, purpose)
            if not is_same_file(file.fileno(), path):
                continue  # the holder before us removed this very file: take the lock of its successor
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@functools.cache  # said once, however often that file is written
def _warn(folder: Path, purpose: str) -> None:
    log.warning("%s lies on a file system without locks; see to it that no other process is %s", folder, purpose)


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still lies at ``path``, not removed or replaced since."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
