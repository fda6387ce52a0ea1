"""What the verbs return: a run that can be asked, tables that pandas takes as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from fastlg.api.given import named_pixels, network_of, stored
from fastlg.commands.evaluate import evaluate_run
from fastlg.commands.export import export_student
from fastlg.commands.hand_on.card import measured_of
from fastlg.commands.hand_on.predict import Predictor, of_network
from fastlg.commands.line.early import expect_empty
from fastlg.commands.many.table import MEASURED
from fastlg.commands.report.go import write_report
from fastlg.commands.testing.choice import chosen_corruptions, out_folder, pair_of
from fastlg.commands.testing.go import evaluate as tested
from fastlg.commands.testing.outcome import Evaluation
from fastlg.config import Config, dotted, read_saved_config
from fastlg.errors import UserError
from fastlg.models.general.instances import offered
from fastlg.run.folder import expect_run, read_summary
from fastlg.run.metrics import Accuracy
from fastlg.run.report import read_metrics
from fastlg.run.trained import load_trained


class Rows(list):
    """A table: a list of dicts, one per row. ``pandas.DataFrame(rows)`` takes it as it is; pandas is not needed."""

    @property
    def columns(self) -> list[str]:
        """All keys, in the order of their first row."""
        return list(dict.fromkeys(key for row in self for key in row))

    def to_dict(self) -> dict[str, list]:
        """Column -> its values, None where a row has none."""
        return {column: [row.get(column) for row in self] for column in self.columns}

    def to_pandas(self):
        """A pandas DataFrame. Raises UserError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas needs pandas: pip install pandas; to_dict() does without") from None
        return pandas.DataFrame(list(self), columns=self.columns)


class TrainedRun:
    """A run folder, asked from Python.

    folder   where it lies
    summary  summary.json's content; None of a run that is not complete
    """

    def __init__(self, folder: Path, summary: Mapping[str, Any] | None, model: nn.Module | None = None):
        """``model``: the object that was trained, where one was given; it is not changed."""
        self.folder, self._given = folder, network_of(model)
        self.summary = None if summary is None else dict(summary)

    def __repr__(self) -> str:
        if self.summary is None:
            return f"<fastlg run {self.folder}, not complete>"
        return f"<fastlg run {self.folder}, top-1 {self.summary['top1_last']:.2f} %>"

    @cached_property
    def config(self) -> Config:
        return read_saved_config(self.folder / "config.yaml")

    @property
    def metrics(self) -> Rows:
        """The rows of metrics.jsonl: kind train or eval, step, epoch, losses, top1, lr, images_per_s."""
        return Rows(read_metrics(self.folder))

    @property
    def class_names(self) -> list[str]:
        return self._loaded[1]

    @property
    def model(self) -> nn.Module:
        """The trained network of the last checkpoint, in evaluation mode: ``model(images) -> logits``."""
        return network_of(self._loaded[0])

    def predict(self, images: Any, top_k: int = 5) -> Rows:
        """What the run says of images: files, folders, patterns, PIL images, uint8 tensors [C, H, W] or arrays
        [H, W, C], one or many, a batch too.

        A row each: image, class, probability (0 to 1), and top, the ``top_k`` likeliest as (class, probability).
        Raises UserError for an image that cannot be read.
        """
        return predicted(self._predictor, images, top_k)

    def evaluate(
        self,
        data: Any = None,
        *,
        which: str = "last",
        details: bool = False,
        against: TrainedRun | str | PathLike | None = None,
        corruptions: bool | Sequence[str] = False,
        severities: Sequence[int] | None = None,
        out: str | PathLike | None = None,
        **overrides: Any,
    ) -> Accuracy | Evaluation:
        """Top-1 and top-5 in percent, cross entropy and count: of the run's test split, or of ``data``, as in train.

        details      an ``Evaluation`` instead: ``scores`` (calibration error, NLL, Brier beside top-1 and top-5),
                     ``classes``, ``confusion``; as with any of what follows
        against      another run on the same images: ``evidence``, and ``classes`` with the difference
        corruptions  also on corrupted images: True for all 15, or their names; ``corruptions``, and against another run
                     ``mce`` and ``relative_mce``. What was measured is kept in the run's folder
        severities   some of 1 to 5; None: all
        out          a folder for the tables and pictures of ``fastlg eval``; None: none are written

        Raises UserError.
        """
        names = None if isinstance(corruptions, bool) else ",".join(corruptions)
        steps = None if severities is None else ",".join(map(str, severities))
        chosen = chosen_corruptions(corruptions is not False, names, None, steps)
        other = None if against is None else Path(getattr(against, "folder", against))
        folder, other = (self.folder, None) if other is None else pair_of(self.folder, other)
        with self._known():
            changes = {**stored(data, self.config, self.class_names), **dotted(overrides)}
            if not (details or chosen or other or out):
                return evaluate_run(folder, which, changes)
            place = None if out is None else out_folder(Path(out), folder, True)
            return tested(folder, which, changes, against=other, corruptions=chosen, out=place)

    def export(self, out: str | PathLike, *, which: str = "last", onnx: bool = False, backbone: bool = False) -> Path:
        """Writes the bare student for plain timm, as ``fastlg export``; returns the folder. Raises UserError."""
        out = Path(out)
        expect_empty(out)
        with self._known():
            config, model, class_names = load_trained(self.folder, which)
        measured = measured_of(self.folder, which)
        own = {"measured": measured, "onnx": onnx, "backbone": backbone}
        export_student(model, out, class_names=class_names, config=config, **own)
        return out

    def report(self, out: str | PathLike | None = None, *, which: str = "last", **overrides: Any) -> Path:
        """Writes one HTML page about the run, as ``fastlg report``, to ``out`` (None: report.html in its folder).

        overrides  data.* and engine.*: where its images are now. Returns where the page lies. Raises UserError.
        """
        with self._known():
            return reported(self.folder, out, which, overrides)

    @cached_property
    def _loaded(self) -> tuple[nn.Module, list[str]]:
        with self._known():
            _, model, class_names = load_trained(self.folder)
        return model, class_names

    @cached_property
    def _predictor(self) -> Predictor:
        return of_network(*self._loaded, self.config)

    @contextmanager
    def _known(self) -> Iterator[None]:
        with offered(model=self._given):
            yield


class Comparison:
    """A comparison's folder: ``unguided`` and ``guided`` runs, and ``summary``, that of each and of the teacher."""

    def __init__(self, folder: Path, summary: Mapping[str, Any], model: nn.Module | None = None):
        self.folder, self.summary = folder, dict(summary)
        self.unguided, self.guided = (
            TrainedRun(folder / name, self.summary.get(name), model) for name in ("unguided", "guided")
        )

    def __repr__(self) -> str:
        return f"<fastlg comparison {self.folder}, guidance {self.gain:+.2f} points of top-1>"

    @property
    def gain(self) -> float:
        """Points of top-1 that guidance adds."""
        return self.summary["guided"]["top1_last"] - self.summary["unguided"]["top1_last"]

    def evaluate(self, data: Any = None, **more: Any) -> Evaluation:
        """The guided run against the unguided one; arguments as in ``TrainedRun.evaluate``."""
        return self.guided.evaluate(data, against=self.unguided, **more)

    @property
    def table(self) -> Rows:
        """A row per run, its name first."""
        return Rows({"run": name, **own} for name, own in self.summary.items())

    def report(self, out: str | PathLike | None = None, *, which: str = "last", **overrides: Any) -> Path:
        """Writes one HTML page about both runs side by side; as ``TrainedRun.report``."""
        with offered(model=self.guided._given):
            return reported(self.folder, out, which, overrides)


def reported(folder: Path, out: str | PathLike | None, which: str, overrides: Mapping[str, Any]) -> Path:
    return write_report(folder, None if out is None else Path(out), which=which, overrides=dotted(overrides))


def open_run(folder: str | PathLike, model: nn.Module | None = None) -> TrainedRun:
    """A run that was trained before, from Python or the command line; ``model`` as it was given then, if one was.

    Raises UserError for a folder that holds no run.
    """
    folder = Path(folder).expanduser()
    expect_run(folder)
    return TrainedRun(folder, read_summary(folder), model)


def predicted(predictor: Predictor, images: Any, top_k: int) -> Rows:
    found = predictor(named_pixels(images), top_k)
    return Rows({"image": i, "class": top[0][0], "probability": top[0][1], "top": top} for i, top in found)


def table_of(content: Mapping[str, Any]) -> Rows:
    """The rows of a table of many runs: what was set, mean and std of what was measured, and the runs' folders."""
    rows = Rows()
    for row in content["rows"]:
        flat = {key: value for key, value in row.items() if key not in ("config", "paper", *MEASURED, "runs")}
        for key in MEASURED:
            found = row[key] or {}
            flat |= {key: found.get("mean"), f"{key}_std": found.get("std")}
        rows.append({**flat, "runs": [run["run"] for run in row["runs"]]})
    return rows
