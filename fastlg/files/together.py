"""Files that one call leaves in a folder, in the place of those of an earlier call: all of one, never of two."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastlg.files.atomic import PARTIAL
from fastlg.files.lock import file_lock


@contextlib.contextmanager
def together(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """Gives an empty folder in ``out`` to make files in. When the block ends, they move to ``out``, and those of
    ``names`` that were not made are removed there; other files stay.

    names  of all files that such a call may leave. The first is there while the others are whole and of one call: it is
           the first to go and the last to come. Without it and the second, files of the other names are somebody's own,
           and stay where they are not replaced.

    If the block fails or is killed, the earlier files are as they were. Of two calls at once, one waits for the other.
    Raises OSError as the writing does.
    """
    work = out / f".{names[0]}{PARTIAL}"
    with file_lock(out / f".{names[0]}.lock", f"writing {out / names[0]}"):
        shutil.rmtree(work, ignore_errors=True)  # what a kill left
        work.mkdir()
        try:
            yield work
            made = {path.name for path in work.iterdir()}
            if any((out / name).exists() for name in names[:2]):
                for name in (names[0], *(name for name in names[1:] if name not in made)):
                    (out / name).unlink(missing_ok=True)
            for name in sorted(made, key=lambda name: (name == names[0], name != names[1])):
                os.replace(work / name, out / name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
