"""The command line of ``eval``; cli.py registers it. Imports nothing heavy before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastlg.commands.line.arguments import Overrides, Which


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, runs/NAME, or that of a comparison.")],
    overrides: Overrides = None,
    which: Which = "last",
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Another run to compare with, on the same images.")
    ] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Also test on the 15 common corruptions, severities 1 to 5.")
    ] = False,
    only: Annotated[str | None, typer.Option(metavar="A,B,...", help="Only these corruptions.")] = None,
    without: Annotated[str | None, typer.Option(metavar="A,B,...", help="All corruptions but these.")] = None,
    severities: Annotated[str | None, typer.Option(metavar="1,3,...", help="Only these severities.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for tables and pictures, by default RUN/evaluation with two runs."),
    ] = None,
) -> None:
    """Evaluate a trained run on its test split: accuracy, calibration, classes, robustness, difference to another run.

    data.source=... evaluates on other images of its classes, or of some of them: a test split, or plain class folders.
    For the folder of a comparison, the guided run is compared with the unguided one.
    """
    from fastlg.commands.line.early import expect_source, expect_which
    from fastlg.commands.testing.choice import chosen_corruptions, out_folder, pair_of, pairs_of_seeds
    from fastlg.config import parse_overrides

    expect_which(which)
    parsed = parse_overrides(overrides or [])
    pairs, left = pairs_of_seeds(run, against)
    folder, other = (run.expanduser(), None) if pairs else pair_of(run, against)
    chosen = chosen_corruptions(corruptions, only, without, severities)
    place = out_folder(out, run.expanduser(), corruptions or other is not None or bool(pairs))
    expect_source(parsed.get("data.source"))
    if pairs:
        from fastlg.commands.testing.seeds import evaluate_seeds

        evaluate_seeds(folder, pairs, which, parsed, corruptions=chosen, out=place, notes=left)
        return

    from fastlg.commands.testing.go import evaluate as test

    test(folder, which, parsed, against=other, corruptions=chosen, out=place)
