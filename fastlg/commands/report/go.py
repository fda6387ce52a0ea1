"""``fastlg report``: from a folder to its page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastlg import __version__
from fastlg.commands.report.compare_page import Pairing, compare_page
from fastlg.commands.report.facts import facts_of
from fastlg.commands.report.places import expect_drawable, expect_reportable, out_path, pairs_of
from fastlg.commands.report.run_page import run_page
from fastlg.errors import writing
from fastlg.files.atomic import write_whole
from fastlg.files.provenance import commit
from fastlg.ranks.say import say
from fastlg.run.report import Pulse


def write_report(
    folder: Path, out: Path | None = None, *, which: str = "last", overrides: dict[str, Any] | None = None
) -> Path:
    """Writes the page of a run, or of a comparison of one seed or several, and returns where it lies.

    out        None: report.html in ``folder``
    overrides  dotted keys of data and engine: where the images are now, which device computes

    Raises UserError for a folder that holds neither, and without matplotlib; RunError on a full disk.
    """
    expect_reportable(folder)
    expect_drawable(which, overrides or {})
    path = out_path(folder, out)
    foot = f"Written by fastlg {__version__} ({commit() or 'no checkout'}), {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    with Pulse(lambda: f"report   {folder}"):
        if named := pairs_of(folder):
            pairs = [Pairing.read(name, pair, which, overrides) for name, pair in named]
            runs = [own for pair in pairs for own in pair.sides.values()]
            text = compare_page(folder, pairs, foot)
        else:
            runs = [facts_of(folder, which, overrides)]
            text = run_page(runs[0], foot)
    for run in runs:
        if run.answers.why:
            say(f"left out {run.folder}: what needs its images or weights: {run.answers.why}")
    with writing(path):
        write_whole(path, text)
    return path
