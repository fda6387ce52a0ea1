"""The arguments that several commands take. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastlg.commands.line.complete import complete_config, complete_override

ConfigName = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, or a shipped config (fastlg configs): cifar100/deit_tiny.",
        autocompletion=complete_config,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="e.g. optim.epochs=100; all keys: fastlg config --keys",
        autocompletion=complete_override,
    ),
]
Resume = Annotated[
    str, typer.Option(help="auto: continue where the run stopped. never: refuse an existing run. Or a checkpoint file.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Build everything and try one step, without writing a run.")]
Gpus = Annotated[
    int | None,
    typer.Option(metavar="N", help="Start N ranks on this machine, one per GPU; with engine.device=cpu, N processes."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, runs/NAME.")]
Which = Annotated[str, typer.Option(help="Checkpoint to use: last or best.")]
