"""What ``fastlg eval`` leaves in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastlg.errors import writing
from fastlg.files.atomic import write_whole
from fastlg.files.together import together
from fastlg.ranks.say import say

WHOLE, PAGE = "evaluation.json", "evaluation.md"
NAMES = (
    *(WHOLE, PAGE),
    *("scores.csv", "classes.csv", "corruptions.csv", "confusion.csv", "confusion_against.csv", "seeds.csv"),
    *("reliability.png", "confusion.png", "corruptions.png"),
)


def keep(
    out: Path, texts: Mapping[str, str], found: Mapping[str, Any], draw: Callable[[Path], list[str]] | None = None
) -> None:
    """Writes to the folder ``out``, in the place of what an earlier call left there (files/together.py).

    texts  PAGE and others of NAMES: name -> content
    found  for WHOLE, which names the others, too (``files``)
    draw   writes pictures to a folder and returns the names of those that came out

    Raises RunError where the disk is full.
    """
    with writing(out), together(out, NAMES) as work:
        names = [*texts, *(draw(work) if draw is not None else [])]
        whole = json.dumps({**found, "files": names}, indent=1, ensure_ascii=False, allow_nan=False)
        for name, text in {**texts, WHOLE: f"{whole}\n"}.items():
            write_whole(work / name, text.encode("utf-8", "backslashreplace"))
    say(f"{', '.join([WHOLE, *names])} in {out}")
