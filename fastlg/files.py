"""Files that are whole or absent: written beside, then moved. Needs no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"  # behind the name of a file that is being written; what a kill leaves of it means nothing


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to. It moves to ``path`` when the block ends, and is gone if it fails.

    Raises OSError as the writing does.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes | memoryview, *, is_safe: bool = False) -> None:
    """``content`` (text in UTF-8) as the file ``path``, whole or not at all; ``is_safe``: on the disk on return."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with whole(path) as partial, open(partial, "wb") as file:
        file.write(data)
        if is_safe:
            file.flush()
            os.fsync(file.fileno())
