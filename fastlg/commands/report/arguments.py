"""The command line of ``report``; cli.py registers it. Imports nothing heavy before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastlg.commands.line.arguments import Which


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN|COMPARE", help="A run folder, or a comparison's.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[data.KEY=VALUE]...", help="data.source if the images have moved; engine.*."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Default: report.html in the folder.")] = None,
    which: Which = "last",
) -> None:
    """Write one HTML page about a run or a comparison: curves, views, attention, mistakes, config, provenance.

    The page needs no network and no other file. Where something cannot be shown (images that have moved, an
    unfinished run), it says why.
    """
    from fastlg.commands.line.early import expect_source
    from fastlg.commands.report.places import expect_drawable, expect_reportable, out_path
    from fastlg.config import parse_overrides

    parsed = parse_overrides(overrides or [])
    expect_reportable(folder)
    out_path(folder, out)
    expect_source(parsed.get("data.source"))
    expect_drawable(which, parsed)

    from fastlg.commands.report.go import write_report
    from fastlg.ranks.say import say

    say(f"report   {write_report(folder, out, which=which, overrides=parsed)}: open it in a browser")
