"""Files that are whole or absent, after a kill and after a power cut: written beside, put on the disk, then moved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"  # behind the name of a file that is being written; what a kill leaves of it means nothing


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to. When the block ends, what was written there is put on the disk and
    moves to ``path``; if it fails, it is gone.

    Raises OSError as the writing does.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """``content`` (text in UTF-8) as the file ``path``, whole or not at all."""
    with whole(path) as partial, open(partial, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Returns once what was written to the file ``path`` is on the disk. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
