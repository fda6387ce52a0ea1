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
    str, typer.Option(help="auto: go on where the run stopped. never: refuse an existing run. Or a checkpoint.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Build everything, try one step, write no run.")]
Gpus = Annotated[
    int | None,
    typer.Option(metavar="N", help="Start N ranks here, one per GPU (engine.device=cpu: processes)."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, runs/NAME.")]
Which = Annotated[str, typer.Option(help="Which checkpoint: last or best.")]
