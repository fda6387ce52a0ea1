"""Files and paths that a user names: read without waiting for ever, refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

from fastlg.errors import brief
from fastlg.files.reading import kind_of

NAME_BYTES, PATH_BYTES = 255, 4000  # Linux allows 255 and 4,096; the rest is for the files of a run folder


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


def read_text(path: str | os.PathLike, most: int) -> str:
    """A regular file of at most ``most`` bytes of UTF-8. Raises ValueError with the reason and the fix, in one line."""
    try:
        kind = what_is(path)  # before it is opened: a FIFO would wait for a writer
        if kind not in ("a file", ""):
            raise ValueError(f"it is {kind}; give a file")
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ValueError(f"{error.strerror or type(error).__name__}; make it readable or give another file") from None
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes; give the right file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start:,} is not UTF-8; save it as UTF-8") from None


def usable_path(path: Path) -> Path:
    """``path`` with ~ as the home folder it means. Raises ValueError for what no file system can hold."""
    if "\0" in str(path):
        raise ValueError("a path has no NUL character")
    if any(len(os.fsencode(part)) > NAME_BYTES for part in path.parts):
        raise ValueError(f"each name in a path has at most {NAME_BYTES} bytes")
    if len(os.fsencode(path)) > PATH_BYTES:
        raise ValueError(f"a path has at most {PATH_BYTES:,} bytes")
    try:
        return path.expanduser()
    except RuntimeError:
        first = path.parts[0]
        raise ValueError(f"there is no home folder {brief(first)}; write ./{brief(first)} or a full path") from None
