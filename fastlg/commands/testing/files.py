"""What ``fastlg eval`` leaves in a folder: the files of one call, never of two.

``evaluation.json`` is there while all that it names (``files``) are whole and of the call that wrote it: it is the
first to go and the last to come.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastlg.errors import writing
from fastlg.files.atomic import write_whole
from fastlg.files.lock import file_lock
from fastlg.ranks.say import say

WHOLE, PAGE = "evaluation.json", "evaluation.md"
OTHERS = (
    *("scores.csv", "classes.csv", "corruptions.csv", "confusion.csv", "confusion_against.csv", "seeds.csv"),
    *("reliability.png", "confusion.png", "corruptions.png"),
)
WORK = ".evaluation.partial"  # a folder in which a call's files are made; what a kill leaves of it means nothing


def keep(
    out: Path, texts: Mapping[str, str], found: Mapping[str, Any], draw: Callable[[Path], list[str]] | None = None
) -> None:
    """Writes to the folder ``out``, in the place of what an earlier call left there; other files stay.

    texts  PAGE and some of OTHERS: name -> content
    found  for WHOLE
    draw   writes pictures to a folder and returns the names of those that came out

    A call that fails or is killed while it makes its files leaves the earlier ones. Of two at once, one waits for the
    other. Raises RunError where the disk is full.
    """
    work = out / WORK
    with writing(out), file_lock(out / ".evaluation.lock", f"writing an evaluation to {out}"):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            names = [*texts, *(draw(work) if draw is not None else [])]
            whole = json.dumps({**found, "files": names}, indent=1, ensure_ascii=False, allow_nan=False)
            for name, text in {**texts, WHOLE: f"{whole}\n"}.items():
                write_whole(work / name, text.encode("utf-8", "backslashreplace"))
            if any((out / name).exists() for name in (WHOLE, PAGE)):  # else files of these names are somebody's own
                for name in (WHOLE, *OTHERS):
                    (out / name).unlink(missing_ok=True)
            for name in (*names, WHOLE):
                os.replace(work / name, out / name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    say(f"{', '.join([WHOLE, *names])} in {out}")
