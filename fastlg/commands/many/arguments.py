"""The command lines of ``reproduce`` and ``sweep``; cli.py registers them. Imports nothing heavy before they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastlg.commands.line.arguments import ConfigName
from fastlg.commands.line.complete import complete_override

Jobs = Annotated[
    int, typer.Option(metavar="N", help="Train N runs at once, each on its own GPU, or as N processes on a CPU.")
]
Seeds = Annotated[str | None, typer.Option(metavar="N", help="Number of seeds (3), or which ones (0,5,7).")]
Costs = Annotated[bool, typer.Option("--dry-run", help="List the runs and their epochs; train nothing.")]
Overlay = Annotated[
    Path | None, typer.Option("--with", metavar="FILE", help="YAML file of overrides, for all rows and by_model.")
]


def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="table1 to table9 of arXiv 2207.10026, or systems.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Overrides for every row, e.g. optim.epochs=10."),
    ] = None,
    seeds: Seeds = None,
    rows: Annotated[str | None, typer.Option(metavar="TEXT", help="Only rows with this text in their name.")] = None,
    jobs: Jobs = 1,
    dry_run: Costs = False,
    overlay: Overlay = None,
) -> None:
    """Train or resume every row of a table of the paper, and show the published beside the measured results.

    The table named systems holds related systems, alone and guided. Finished runs are reused, and the same command
    continues unfinished ones. Writes TABLE.md, .tex, .csv and .json to RUNS/paper.
    """
    from fastlg.commands.reproduce import reproduce as run

    run(table, overrides or [], seeds=seeds, only=rows, jobs=jobs, dry_run=dry_run, overlay=overlay)


def sweep(
    config: ConfigName,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SECTION.KEY=A,B,C...",
            help="e.g. guidance.weight=0,1,2.5 run.seed=0,1,2",
            autocompletion=complete_override,
        ),
    ] = None,
    jobs: Jobs = 1,
    dry_run: Costs = False,
) -> None:
    """Train every combination of the given values and show them in one table, averaged over run.seed.

    A key with one value overrides it in every run. Commas inside brackets or quotes do not separate values.
    """
    from fastlg.commands.sweep import sweep as run

    run(config, settings or [], jobs=jobs, dry_run=dry_run)
