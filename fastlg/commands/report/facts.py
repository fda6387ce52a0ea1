"""What is known of a run, as far as it is: each part is had or says why it is missing, and no part fails another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastlg.commands.evaluate import expect_classes, over
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


class Answers(NamedTuple):
    """What a network says of every test image; each [N].

    labels      int64
    predicted   int64
    confidence  float64, the probability of ``predicted``
    of_true     float64, that of the label
    rank        int64, how many classes are likelier than the label
    loss        float64, cross entropy
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    of_true: np.ndarray
    rank: np.ndarray
    loss: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels

    @property
    def top1(self) -> float:
        """In percent, as all of these."""
        return 100 * float(self.right.mean())

    def top(self, most: int) -> float:
        return 100 * float((self.rank < most).mean())


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
    found = over(partial(look, count=len(stores.test)), config, network, stores.test).numpy()
    network.cpu()
    labels = np.asarray(stores.test.labels, dtype=np.int64)
    predicted, rank = found[:, 0].astype(np.int64), found[:, 3].astype(np.int64)
    return Answers(labels, predicted, found[:, 1], found[:, 2], rank, found[:, 4])


@torch.inference_mode()
def look(predict: Callable[[Tensor], Tensor], loader, views, device: torch.device, count: int) -> Tensor:
    """float64 [count, 5] on the CPU, rows in the order of the store: class, its probability, the label's, how many
    classes are likelier than the label, cross entropy. One sync."""
    found = torch.zeros(count, 5, dtype=torch.float64, device=device)
    for batch in loader.epoch(0):
        logs = predict(views(batch, 0, train=False).student).double().log_softmax(dim=1)
        labels = batch.labels.to(device)
        own = logs.gather(1, labels[:, None])
        best = logs.max(dim=1)
        rank = (logs > own).sum(dim=1)
        rows = (best.indices, best.values.exp(), own[:, 0].exp(), rank, -own[:, 0])
        found[batch.sample_ids.to(device)] = torch.stack([row.double() for row in rows], dim=1)
    return found.cpu()
