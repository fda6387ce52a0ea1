"""Files that a user names, read with care: what is no regular file is never opened, what is too large never loaded."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from fastlg.errors import UserError


def expanded(path: str | Path, setting: str) -> Path:
    """``path`` with ``~`` and ``~user`` replaced by their folders.

    Raises:
        UserError: there is no such user; ``setting`` is what the path was given as.
    """
    if not str(path).startswith("~"):  # ./~ is a folder of that name, which a Path would forget
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{setting}={path}: no user {Path(path).parts[0][1:]!r} on this machine; write the folder out"
        ) from None


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a file.

    Args:
        limit: most bytes the file may have; None reads any size.

    Raises:
        OSError: it cannot be read, is a device, a pipe or a folder (EINVAL), or is larger than ``limit`` (EFBIG).
    """
    size = check_regular(path)
    if limit is not None and size > limit:
        raise OSError(errno.EFBIG, f"more than {limit >> 20} MiB, taken for damaged", str(path))
    return path.read_bytes()


def check_regular(path: Path) -> int:
    """The size in bytes. Raises OSError where ``path``, links followed, is anything but a file (EINVAL) or nothing is
    there (ENOENT)."""
    try:
        status = path.stat()
    except ValueError:  # a NUL in the name
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"a {kind_of(status.st_mode)}, not a file", str(path))
    return status.st_size


def kind_of(mode: int) -> str:
    """What a ``st_mode`` stands for, in words."""
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFIFO: "pipe (FIFO)",
        stat.S_IFSOCK: "socket",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
