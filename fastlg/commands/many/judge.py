"""The verdict of a comparison: what its runs make of every test image, and what that proves."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastlg import ranks
from fastlg.commands.evaluate import classify_run
from fastlg.commands.many.evidence import Evidence, verdict, weigh
from fastlg.commands.many.table import MEASURED, Table, figures, measured, spread
from fastlg.errors import RunError, UserError
from fastlg.files.atomic import write_whole
from fastlg.ranks.say import dispensable, say
from fastlg.run.checkpoint import LAST
from fastlg.run.report import Pulse

KEPT = "predictions.npz"  # in a run folder: labels, predicted, and which checkpoint it was


def judge(table: Table, what: str = "guidance") -> None:
    """Adds to a table of two rows, first and second side, how they differ and whether that is more than chance.

    Adds why there is no verdict where a run is missing. All ranks call it alike. Raises UserError.
    """
    (_, first), (_, second) = table.entries
    pairs = list(zip(first, second, strict=True))
    if missing := sum(any(single.summary is None for single in pair) for pair in pairs):
        table.findings = [f"{what}: no verdict, for {missing} of {len(pairs)} pairs of runs are missing"]
        return
    with Pulse(lambda: "testing  every image of the runs"):
        sides = [[right(single.config.run_dir) for single in side] for side in (first, second)]
    if ranks.is_first():
        add(table, weigh(_stacked(sides[0]), _stacked(sides[1])), what)


def add(table: Table, found: Evidence, what: str) -> None:
    """The row of differences, the verdict and its numbers."""
    (first, own), (second, others) = table.entries
    table.closing = [[f"{second.label} - {first.label}"]]
    for key in MEASURED:
        values = zip(measured(own, key).values, measured(others, key).values, strict=True)
        table.closing[0].append(_signed(spread(figures([late - early for early, late in values]))))
    table.closing[0].append(f"{len(own)} of {len(own)}")
    table.findings = [verdict(found, what)]
    table.evidence = {**found._asdict(), "holds": found.holds}


def right(folder: Path) -> np.ndarray:
    """bool [N]: which test images of a finished run its last checkpoint has right; kept beside it. Of all ranks."""
    digest = hashlib.blake2b((folder / "checkpoints" / LAST).read_bytes(), digest_size=16).hexdigest()
    kept = _kept(folder / KEPT, digest)
    if not ranks.first_says(kept is not None):
        labels, predicted = classify_run(folder)
        kept = predicted == labels
        if ranks.is_first():
            with dispensable(f"the file {folder / KEPT}", "the images are classified again when they are needed"):
                buffer = io.BytesIO()
                np.savez_compressed(buffer, labels=labels, predicted=predicted, checkpoint=np.array(digest))
                write_whole(folder / KEPT, buffer.getvalue())
    return kept if kept is not None else np.zeros(0, dtype=bool)  # rank 0 alone looks at it


def _kept(path: Path, digest: str) -> np.ndarray | None:
    """What an earlier call wrote of this very checkpoint."""
    try:
        with np.load(path) as file:
            if str(file["checkpoint"]) == digest:
                return file["predicted"] == file["labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    return None


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    if len({len(row) for row in rows}) != 1:
        raise UserError("the runs were tested on different images; give the comparison another run.name")
    return np.stack(rows)


def _signed(text: str) -> str:
    return text if text.startswith("-") else f"+{text}"


def try_to_judge(table: Table, what: str = "guidance") -> None:
    """``judge``; where it cannot, the table stands without a verdict, and says why."""
    try:
        judge(table, what)
    except (UserError, RunError, OSError) as error:
        if ranks.world_size() > 1:  # the others wait for this one, and have to hear that it leaves
            raise
        table.findings = [f"{what}: no verdict: {error}"]
        say(f"warning  {table.findings[0]}")
