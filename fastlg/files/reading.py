"""Paths and files that a user names: what is no regular file is never opened, what is too large never loaded."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from fastlg.errors import UserError, brief

NAME_BYTES, PATH_BYTES = 255, 4000  # Linux allows 255 and 4,096; the rest is for the files of a run folder


def usable_path(given: str | Path) -> Path:
    """``given`` with ~ and ~user as the home folder they mean. Raises ValueError for what no file system can hold."""
    path = Path(given)
    if "\0" in str(path):
        raise ValueError("a path has no NUL character")
    if any(len(os.fsencode(part)) > NAME_BYTES for part in path.parts):
        raise ValueError(f"each name in a path has at most {NAME_BYTES} bytes")
    if len(os.fsencode(path)) > PATH_BYTES:
        raise ValueError(f"a path has at most {PATH_BYTES:,} bytes")
    if not str(given).startswith("~"):  # ./~ is a folder of that name, which a Path forgets
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        first = brief(path.parts[0])
        raise ValueError(f"no user {first[1:]!r} on this machine; write ./{first} or a full path") from None


def expanded(path: str | Path, setting: str) -> Path:
    """``usable_path`` of what was given as ``setting``. Raises UserError that names both."""
    try:
        return usable_path(path)
    except ValueError as error:
        raise UserError(f"{setting}={brief(path, 200)}: {error}; give another path") from None


def is_file(path: str | os.PathLike) -> bool:
    """Whether a regular file is there; False, too, where a path cannot be one or nobody may look."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def what_is(path: str | os.PathLike) -> str:
    """'a folder', 'a pipe (FIFO)', 'a device', 'a file'; "" for nothing. Raises OSError where nobody may look."""
    try:
        return f"a {kind_of(os.stat(path).st_mode)}"
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return ""


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


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a file.

    Args:
        limit: most bytes the file may have; None reads any size.

    Raises:
        OSError: it cannot be read, is a device, a pipe or a folder (EINVAL), or is larger than ``limit`` (EFBIG).
    """
    size, most = check_regular(path), -1 if limit is None else limit + 1
    with open(path, "rb") as file:
        data = b"" if 0 < most <= size else file.read(most)  # read with the limit, too: files of /proc have no size
    if 0 < most <= max(size, len(data)):
        amount = f"{limit >> 20} MiB, taken for damaged" if limit >= 1 << 24 else f"{limit:,} bytes"
        raise OSError(errno.EFBIG, f"more than {amount}", str(path))
    return data


def read_text(path: Path, limit: int) -> str:
    """A regular file of at most ``limit`` bytes of UTF-8. Raises ValueError with the reason and the fix, one line."""
    try:
        return read_regular(path, limit).decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        fixes = {errno.EINVAL: "give a file", errno.EFBIG: "give the right file"}
        raise ValueError(f"{reason}; {fixes.get(error.errno, 'make it readable or give another file')}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start:,} is not UTF-8; save it as UTF-8") from None


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
