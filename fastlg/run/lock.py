"""One command at a time trains in a run folder: a lock of the operating system on ``RUN/run.lock``.

The system drops it with the process that holds it, however that ends, so that nothing is left which would block a
resume; the file itself only says who holds it. NFS hands flock on to its server, where every node sees it. filelock has
no place for that note, nor for folders that a holder may remove, and see files/lock.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from fastlg import ranks
from fastlg.errors import UserError
from fastlg.files.lock import NO_LOCKS, is_same_file
from fastlg.ranks.say import say

LOCK = "run.lock"
POLL_S = 0.5
TRIES = 100  # to make folder and file between two removals by holders that leave
GRACE_S = 5.0  # ranks whose launcher was killed end their step and save before they leave
LEASE_S = 120.0  # an NFS server keeps the locks of a node that died for its lease, 90 s unless set otherwise
_own: set[int] = set()  # descriptors of lock files that this process has open


@contextlib.contextmanager
def run_lock(folder: Path, *, waits: bool = False) -> Iterator[None]:
    """Inside, no other fastlg trains in ``folder``, which is made if need be; all ranks call it, rank 0 holds the lock.

    While another process holds it: with ``waits`` this one says so and waits; else it gives the holder GRACE_S to
    leave, or LEASE_S on another host, which may have died with its node, and then refuses. Raises UserError that names
    the holder, or for a folder that cannot be written.
    """
    lock = _Lock(folder) if ranks.is_first() else None
    try:
        while not ranks.first_says(lock is None or lock.take(waits)):
            time.sleep(POLL_S)  # all ranks together, so that no exchange between them runs out of time
        yield
    finally:
        if lock is not None:
            lock.release()


class _Lock:
    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LOCK
        self.new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        self.file: int | None = None  # descriptor, while the lock is held
        self.deadline: float | None = None  # of waiting for the holder

    def take(self, waits: bool) -> bool:
        """Whether the lock is held now; if not, it is worth asking again. Raises UserError when it is not."""
        try:
            self.file = self._locked_file()
            if self.file is None:
                self._expect_holder_to_leave(waits)
                return False
            os.ftruncate(self.file, 0)
            os.write(self.file, f"{os.getpid()} {socket.gethostname()}\n".encode())
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}; choose another run.root or run.name"
            ) from None
        return True

    def _locked_file(self) -> int | None:
        """Descriptor of the lock file, locked; None where another process has locked it."""
        for tries_left in reversed(range(TRIES)):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # a holder that leaves an empty folder removes it; or there can be no folder
                if not tries_left:
                    raise
                continue
            _own.add(file)
            if not self._lock(file):
                _close(file)
                return None
            if is_same_file(file, self.path):
                return file
            _close(file)  # its holder has just removed it
        return None

    def _lock(self, file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(f"{self.folder} lies on a file system without locks; see to it that no other process trains there")
        return True

    def _expect_holder_to_leave(self, waits: bool) -> None:
        """Says once whom this process waits for. Raises UserError when there is nothing to wait for."""
        pid, _, host = self._note().partition(" ")
        who = f"process {pid} on {host}" if host else "another process"
        is_remote = bool(host) and host != socket.gethostname()
        patience = LEASE_S if is_remote else GRACE_S
        is_new, now = self.deadline is None, time.monotonic()
        if is_new:
            self.deadline = now + patience
        hint = f"if {host} is down, delete {self.path}" if is_remote else ""
        if not waits and now >= self.deadline:
            fix = f"wait for it or stop it, {hint and hint + ', '}or choose another run.name"
            raise UserError(f"{self.folder} is being trained by {who}; {fix}")
        if is_new:
            limit = "" if waits else f" for {patience:.0f} s at most"
            say(f"waiting  {self.folder} is being trained by {who}; waiting for it{limit}{hint and '; ' + hint}")

    def _note(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return ""

    def release(self) -> None:
        """Removes the lock file, and the folders that were made for it and hold nothing else."""
        if self.file is None:
            return
        with contextlib.suppress(OSError):
            if is_same_file(self.file, self.path):  # not removed by hand, and taken by another process since
                self.path.unlink()
            for folder in self.new_folders:
                folder.rmdir()
        _close(self.file)
        self.file = None


def _close(file: int) -> None:
    _own.discard(file)
    os.close(file)


def _close_in_child() -> None:
    """A data worker may outlive its killed parent by seconds; it must not hold the parent's lock meanwhile."""
    for file in tuple(_own):
        _close(file)


os.register_at_fork(after_in_child=_close_in_child)
