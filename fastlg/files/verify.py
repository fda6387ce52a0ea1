"""Bit rot: files whose bytes changed though size and time did not, found while the first epoch is trained.

Opening a store or a feature cache hashes nothing that was hashed before, so that a start is instant. A thread of the
lowest priority reads the files once per run beside the training instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fastlg.errors import UserError, first_line

BLOCK = 1 << 20  # bytes read and hashed at once, without the interpreter's lock
LOWEST = 19  # Linux's niceness of a thread


class Digested(NamedTuple):
    """A file, what its parts hash to, and the error that says how it is mended.

    parts    (bytes, SHA-256 in hex) one after another from the file's start
    damaged  makes the error from what was found, such as "pixels.bin was altered between bytes 0 and 9"
    """

    file: Path
    parts: list[tuple[int, str]]
    damaged: Callable[[str], UserError]

    def find_damage(self, stopped: Callable[[], bool]) -> UserError | None:
        """Reads the whole file unless ``stopped``. It is read and not mapped: a file cut short kills no process."""
        buffer, start = memoryview(bytearray(BLOCK)), 0
        with open(self.file, "rb", buffering=0) as file:
            for size, expected in self.parts:
                digest, left = hashlib.sha256(), size
                while left and not stopped():
                    count = file.readinto(buffer[: min(left, BLOCK)])
                    if not count:
                        return self.damaged(f"{self.file.name} was cut short")
                    digest.update(buffer[:count])
                    left -= count
                if stopped():
                    return None
                if digest.hexdigest() != expected:
                    return self.damaged(f"{self.file.name} was altered between bytes {start} and {start + size}")
                start += size
        return None


class Verification:
    """Hashes ``files`` in a thread of its own. ``poll`` costs nothing, ``wait`` ends it, ``close`` gives it up.

    A file that this process found whole before, by its size, time and number, is not read again: the runs of one
    comparison share their images.
    """

    _whole: set[tuple] = set()

    def __init__(self, files: Iterable[Digested]):
        self.files = list(files)
        self.error: UserError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastlg-verify", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Raises UserError when a damaged file was found so far."""
        if self.error is not None:
            raise self.error

    def wait(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """Returns once all files are read, or when ``hurried``. Raises UserError when one is damaged."""
        while self._thread.is_alive() and not hurried():
            self._thread.join(0.05)
        self.poll()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not everywhere may a thread have a priority
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        for each in self.files:
            try:
                status = os.stat(each.file)
                version = (each.file, status.st_ino, status.st_size, status.st_mtime_ns)
                if version not in self._whole:
                    self.error = each.find_damage(self._stop.is_set)
            except OSError as error:
                self.error = each.damaged(f"{each.file.name} cannot be read ({error.strerror or first_line(error)})")
            if self.error is not None or self._stop.is_set():
                return
            self._whole.add(version)
