"""Files that are whole after a kill or a power cut: on the disk before they take another one's place."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Returns once what was written to the file ``path`` is on the disk. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_atomically(target: Path, data) -> None:
    """``data`` (bytes, or text as UTF-8) becomes the content of ``target``; until then, and on any OSError, the old
    content stays and nothing else is left behind."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
