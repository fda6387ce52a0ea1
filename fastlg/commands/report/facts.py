"""What is known of a run, as far as it is: each part is had or says why it is missing, and no part fails another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fastlg.commands.evaluate import expect_classes
from fastlg.commands.testing.answers import Answers, answers_of
from fastlg.config import Config, read_saved_config
from fastlg.data.stores import Stores, open_stores
from fastlg.errors import RunError, UserError, first_line, shortened
from fastlg.run.checkpoint import load_checkpoint
from fastlg.run.folder import read_summary
from fastlg.run.report import read_metrics
from fastlg.run.trained import load_trained


class Had(NamedTuple):
    """``value``, or ``why`` there is none."""

    value: Any = None
    why: str = ""

    def __bool__(self) -> bool:
        return self.value is not None


def tried(make: Callable[[], Any]) -> Had:
    """What ``make`` returns, or the line that says why not; whatever it is, the other parts of the page stand."""
    try:
        return Had(make())
    except (UserError, RunError) as error:
        return Had(None, shortened(str(error), 1000))
    except Exception as error:
        return Had(None, f"{first_line(error)} ({type(error).__name__})")


@dataclass
class Facts:
    """Of one run.

    config    with the overrides of the report; the images and the device may differ from the run's own
    rows      of metrics.jsonl
    saved     dict of the checkpoint: epoch, time, data (fingerprints of its images)
    network   (network on the CPU, class names)
    stores    the run's images
    answers   of ``network`` about the test images
    """

    folder: Path
    which: str
    config: Config
    summary: dict | None = None
    rows: list[dict] = field(default_factory=list)
    saved: Had = Had()
    network: Had = Had()
    stores: Had = Had()
    answers: Had = Had()

    @property
    def epochs_done(self) -> int:
        told = [row["epoch"] for row in self.rows if row.get("kind") == "eval" and type(row.get("epoch")) is int]
        return max([self.saved.value["epoch"] if self.saved else 0, *told])

    @property
    def is_complete(self) -> bool:
        return self.summary is not None

    @property
    def class_names(self) -> list[str]:
        return list(self.network.value[1]) if self.network else []

    @property
    def chooser(self) -> str:
        """Which split was tested after each epoch."""
        return "validation" if self.config.data.val else "test"


def facts_of(folder: Path, which: str = "last", overrides: dict[str, Any] | None = None) -> Facts:
    """Reads a run folder and has its network classify the test images.

    overrides  dotted keys of data and engine

    Raises UserError where even the config cannot be read.
    """
    found = Facts(folder, which, read_saved_config(folder / "config.yaml").replace(overrides or {}))
    found.summary = read_summary(folder)
    found.rows = read_metrics(folder)
    found.saved = tried(lambda: _saved(folder / "checkpoints" / f"{which}.pt"))
    found.network = tried(lambda: load_trained(folder, which)[1:])
    found.stores = tried(lambda: open_stores(found.config.data))
    if overrides and not found.stores:
        raise UserError(f"{found.stores.why}; no page was written")
    if not (found.network and found.stores):
        found.answers = Had(None, found.network.why or found.stores.why)
        return found
    found.answers = tried(lambda: _answers(found.config, *found.network.value, found.stores.value))
    if overrides and not found.answers:  # what was given is wrong, and an earlier page is better than one without
        raise UserError(f"{found.answers.why}; no page was written")
    return found


def _saved(path: Path) -> dict:
    state = load_checkpoint(path)
    position, data = state.get("position"), state.get("data")
    epoch = position.get("epoch") if isinstance(position, dict) else None
    time = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return {
        "epoch": epoch if type(epoch) is int else 0,
        "data": data if isinstance(data, list) else [],
        "time": f"{time:%Y-%m-%d %H:%M} UTC",
    }


def _answers(config: Config, network: nn.Module, class_names: list[str], stores: Stores) -> Answers:
    expect_classes(stores.class_names, class_names, config.data.source)
    found, _ = answers_of(config, network, stores.test)
    network.cpu()
    return found
