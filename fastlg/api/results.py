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
from fastlg.run.folder import expect_run, read_summary, told_score
from fastlg.run.metrics import Accuracy
from fastlg.run.report import read_metrics
from fastlg.run.trained import load_trained


class Rows(list):
    """A table: a list of dicts, one per row. ``pandas.DataFrame(rows)`` accepts it; pandas itself is not needed."""

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
    """A trained run, opened from its folder.

    folder   the run folder
    summary  the content of summary.json: accuracies in percent, images/s, seconds; None while the run is not complete
    """

    def __init__(self, folder: Path, summary: Mapping[str, Any] | None, model: nn.Module | None = None):
        """``model``: the object that was trained, where one was given; it is not changed."""
        self.folder, self._given = folder, network_of(model)
        self.summary = None if summary is None else dict(summary)

    def __repr__(self) -> str:
        if self.summary is None:
            return f"<fastlg run {self.folder}, not complete>"
        return f"<fastlg run {self.folder}, {told_score(self.summary)}>"

    @cached_property
    def config(self) -> Config:
        """The resolved config. Raises UserError for a folder without one."""
        return read_saved_config(self.folder / "config.yaml")

    @property
    def metrics(self) -> Rows:
        """The rows of metrics.jsonl: kind (train or eval), step, epoch, losses, top1 in percent, lr, images_per_s."""
        return Rows(read_metrics(self.folder))

    @property
    def class_names(self) -> list[str]:
        """The K class names, in the order of the logits. Raises UserError without a whole checkpoint."""
        return self._loaded[1]

    @property
    def model(self) -> nn.Module:
        """The trained network of the last checkpoint, in evaluation mode, on the CPU: ``model(images) -> logits``.

        images are float [N, 3, S, S], normalised by ``config.augment``; logits are [N, K]. Raises UserError without a
        whole checkpoint.
        """
        return network_of(self._loaded[0])

    def predict(self, images: Any, top_k: int = 5) -> Rows:
        """Classifies images: files, folders, patterns, PIL images, uint8 tensors [C, H, W] or arrays [H, W, C]; one
        image, a sequence or a batch.

        Returns a row per image: image, class, probability (0 to 1) and top, the ``top_k`` likeliest classes as (class,
        probability).
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
        """Evaluates the run on its test split, or on ``data`` (as in ``train``): an ``Accuracy`` with top1 and top5 in
        percent, loss (mean cross entropy, nats) and count.

        which        last or best: the checkpoint
        details      return an ``Evaluation`` instead: ``scores`` (calibration error, NLL and Brier beside top-1 and
                     top-5), ``classes``, ``confusion``; any of the following options does so, too
        against      another run to compare with on the same images: ``evidence``, and ``classes`` with the difference
        corruptions  also evaluate on corrupted images: True for all 15, or their names. Adds ``corruptions`` and, with
                     ``against``, ``mce`` and ``relative_mce``. Results are kept in the run folder
        severities   some of 1 to 5; None: all
        out          folder for the tables and pictures of ``fastlg eval``; None: none are written
        overrides    data.* and engine.* keys

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
        """Exports the student without its teacher for plain timm, as ``fastlg export``; returns the folder ``out``.

        which     last or best: the checkpoint
        onnx      also write model.onnx; backbone: export a feature network instead of a classifier

        Raises UserError for a folder that is not empty, a missing extra, or both options at once.
        """
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

        overrides  data.* and engine.* keys, such as data.source if the images have moved

        Returns the path of the page. Raises UserError.
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
    """A comparison, opened from its folder: the runs ``unguided`` and ``guided``, and ``summary`` with the summaries of
    both and of the teacher."""

    def __init__(self, folder: Path, summary: Mapping[str, Any], model: nn.Module | None = None):
        self.folder, self.summary = folder, dict(summary)
        self.unguided, self.guided = (
            TrainedRun(folder / name, self.summary.get(name), model) for name in ("unguided", "guided")
        )

    def __repr__(self) -> str:
        return f"<fastlg comparison {self.folder}, guidance {self.gain:+.2f} points of top-1>"

    @property
    def gain(self) -> float:
        """Top-1 of the guided run minus that of the unguided one, in percentage points."""
        return self.summary["guided"]["top1_last"] - self.summary["unguided"]["top1_last"]

    def evaluate(self, data: Any = None, **more: Any) -> Evaluation:
        """Evaluates the guided run against the unguided one; arguments and errors as in ``TrainedRun.evaluate``."""
        return self.guided.evaluate(data, against=self.unguided, **more)

    @property
    def table(self) -> Rows:
        """The summaries as a table: a row per run, its name first."""
        return Rows({"run": name, **own} for name, own in self.summary.items())

    def report(self, out: str | PathLike | None = None, *, which: str = "last", **overrides: Any) -> Path:
        """Writes one HTML page about both runs, side by side; arguments and errors as in ``TrainedRun.report``."""
        with offered(model=self.guided._given):
            return reported(self.folder, out, which, overrides)


def reported(folder: Path, out: str | PathLike | None, which: str, overrides: Mapping[str, Any]) -> Path:
    return write_report(folder, None if out is None else Path(out), which=which, overrides=dotted(overrides))


def open_run(folder: str | PathLike, model: nn.Module | None = None) -> TrainedRun:
    """Opens a run that was trained earlier, from Python or the command line.

    folder  the run folder
    model   the network object that was passed to ``train``, if one was

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
