"""The command line of ``analyze``; cli.py registers it. Imports nothing heavy before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastlg.commands.line.arguments import Which


def analyze(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, a comparison's, or an exported model.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN2] [data.KEY=VALUE]...", help="A second one to compare with; other images."),
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", min=1, max=1_000_000, help="Number of test images.")] = 256,
    blocks: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Blocks whose attention is drawn; default: four of them.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Test images whose maps are drawn; default: four of them.")
    ] = None,
    of_class: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="NAME", help="Class of the dense rollout; default: each image's predicted one."
        ),
    ] = None,
    which: Which = "last",
    teacher: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Compare features with this teacher; default: the run's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: RUN/analysis.")] = None,
    views: Annotated[
        bool, typer.Option("--views", help="Only write RUN/views.png: what student and teacher saw.")
    ] = False,
) -> None:
    """Analyse a trained student: attention distance, maps and rollout, similarity to its teacher, curves.

    Two runs are drawn side by side. Writes PNG and JSON files to RUN/analysis.
    """
    from fastlg.commands.line.early import expect_source, expect_trained, expect_which
    from fastlg.config import parse_overrides

    expect_which(which)
    if views:
        from fastlg.commands.prepare import preview_run

        return preview_run(run)
    others = [text for text in more or [] if "=" not in text]
    expect_trained(run, *map(Path, others[:1]), *([teacher] if teacher is not None else []))
    expect_source(parse_overrides([text for text in more or [] if "=" in text]).get("data.source"))
    from fastlg.analysis.go import analyze as look

    maps = {"blocks": blocks, "image": image, "of_class": of_class}
    look(run, more or [], images=images, which=which, teacher=teacher, out=out, **maps)
