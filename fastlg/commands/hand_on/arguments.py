"""The command line of ``predict``; cli.py hangs it up. Imports nothing heavy before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN|EXPORT", help="A run folder, or what fastlg export wrote.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Files, folders or 'patterns/**/*.jpg'.")],
    top_k: Annotated[int, typer.Option(metavar="K", help="How many classes of each image.")] = 5,
    as_csv: Annotated[bool, typer.Option("--csv", help="A row per image and class.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One list.")] = False,
    which: Annotated[str, typer.Option(help="Which checkpoint of a run: last or best.")] = "last",
) -> None:
    """Say what a trained run, or an export of one, sees in images: classes and probabilities.

    A file that cannot be read is told on stderr with its reason and left out, and the exit status is then 1.
    """
    from fastlg.commands.hand_on.images import image_files
    from fastlg.commands.line.early import expect_trained
    from fastlg.errors import UserError

    if as_csv and as_json:
        raise UserError("--csv and --json exclude each other; give one")
    if which not in ("last", "best"):
        raise UserError(f"--which is {which}; it is last or best")
    expect_trained(folder)
    paths = image_files(images)

    from fastlg.commands.hand_on.predict import predict as run

    form = "csv" if as_csv else "json" if as_json else "text"
    raise typer.Exit(run(folder, paths, top_k=top_k, form=form, which=which))
