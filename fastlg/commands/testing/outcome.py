"""What an evaluation found of one run, or of two on the same images, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fastlg.analysis.scores import Calibration, PerClass, confusion, most_confused, per_class
from fastlg.commands.evaluate import Tested
from fastlg.commands.many.evidence import Evidence
from fastlg.commands.testing.answers import Answers
from fastlg.commands.testing.corrupted import Corrupted
from fastlg.commands.testing.relative import Relative, relative_to
from fastlg.run.metrics import Accuracy


@dataclass
class Side:
    """One run. ``corrupted`` is None where nothing was measured."""

    name: str
    tested: Tested
    answers: Answers
    accuracy: Accuracy
    corrupted: Corrupted | None = None

    @cached_property
    def confusion(self) -> np.ndarray:
        """int64 [K, K]: how many images of the row's class were taken for the column's."""
        return confusion(self.answers.labels, self.answers.predicted, len(self.tested.class_names))

    @cached_property
    def calibration(self) -> Calibration:
        return self.answers.calibrated()

    @property
    def of_classes(self) -> PerClass:
        return per_class(self.confusion)

    @property
    def scores(self) -> dict[str, float]:
        """top1, top5 and calibration_error in percent; nll in nats; brier from 0 to 2."""
        return {
            "top1": self.accuracy.top1,
            "top5": self.accuracy.top5,
            "calibration_error": 100 * self.calibration.error,
            "nll": self.answers.nll,
            "brier": self.answers.brier,
        }


@dataclass
class Evaluation:
    """A run on its test images, and where ``against`` is set, what another makes of the same ones.

    evidence    whether the runs differ by more than chance, paired by image; None of one run
    names       corruptions that are told, in the published order; [] of none
    severities  of them
    """

    own: Side
    against: Side | None = None
    evidence: Evidence | None = None
    names: Sequence[str] = ()
    severities: Sequence[int] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def sides(self) -> list[Side]:
        return [self.own, *([self.against] if self.against is not None else [])]

    @property
    def accuracy(self) -> Accuracy:
        return self.own.accuracy

    @property
    def scores(self) -> dict[str, float]:
        return self.own.scores

    @property
    def confusion(self) -> np.ndarray:
        return self.own.confusion

    @property
    def classes(self) -> list[dict[str, Any]]:
        """A row per class: class, images, accuracy and precision in percent (None where there is nothing to divide by),
        and with ``against`` its accuracy and the difference in points."""
        rows = []
        known, other = self.own.of_classes, self.against.of_classes if self.against is not None else None
        for number, name in enumerate(self.own.tested.class_names):
            row = {"class": name, "images": int(known.images[number])}
            row |= {key: _percent(getattr(known, key)[number]) for key in ("accuracy", "precision")}
            if other is not None:
                theirs = _percent(other.accuracy[number])
                both = row["accuracy"], theirs
                row |= {"against": theirs, "difference": None if None in both else both[0] - both[1]}
            rows.append(row)
        return rows

    @property
    def confused(self) -> list[dict[str, Any]]:
        """The commonest mistakes: class, taken_for, images."""
        names = self.own.tested.class_names
        return [
            {"class": names[true], "taken_for": names[other], "images": count}
            for true, other, count in most_confused(self.own.confusion, 10)
        ]

    @cached_property
    def relative(self) -> Relative | None:
        """Corruption errors against the other run; None of one run, or where nothing was measured."""
        if self.against is None or not self.names:
            return None
        given = []
        for side in self.sides:
            given.append({name: side.corrupted.errors(name, self.severities) for name in self.names})
            given.append(100 - side.accuracy.top1)
        return relative_to(*given)

    @property
    def mce(self) -> float | None:
        """Mean corruption error in percent of the other run's; None without one."""
        return self.relative.mce if self.relative is not None else None

    @property
    def relative_mce(self) -> float | None:
        return self.relative.relative_mce if self.relative is not None else None

    def mean_error(self, side: Side) -> float:
        """Top-1 error in percent, the mean over corruptions and severities."""
        return float(np.mean([side.corrupted.errors(name, self.severities) for name in self.names]))

    @property
    def corruptions(self) -> list[dict[str, Any]]:
        """A row per corruption and severity: top1, top5 and error in percent, loss, and ``error_against``."""
        rows = []
        for name in self.names:
            for severity in self.severities:
                known = self.own.corrupted.found[name, severity]
                row = {"corruption": name, "severity": severity, "top1": known.top1, "top5": known.top5}
                row |= {"error": 100 - known.top1, "loss": known.loss}
                if self.against is not None:
                    row["error_against"] = 100 - self.against.corrupted.found[name, severity].top1
                rows.append(row)
        return rows

    def as_json(self) -> dict[str, Any]:
        found = {
            "runs": [_told(side) for side in self.sides],
            "classes": self.classes,
            "confused": self.confused,
        }
        if self.evidence is not None:
            found["evidence"] = {**self.evidence._asdict(), "holds": self.evidence.holds}
        if self.names:
            corrupted = self.own.corrupted
            found["corruptions"] = {"side_px": corrupted.side, "strengths": corrupted.set, "rows": self.corruptions}
            found["corruptions"]["mean_error"] = [self.mean_error(side) for side in self.sides]
            if self.relative is not None:
                found["corruptions"] |= {"ce": self.relative.of, "relative_ce": self.relative.relative_of}
                found["corruptions"] |= {"mce": self.mce, "relative_mce": self.relative_mce}
        return {**found, "notes": self.notes}


def _told(side: Side) -> dict[str, Any]:
    bins = side.calibration
    return {
        "name": side.name,
        "folder": str(side.tested.folder),
        "which": side.tested.which,
        "weights": side.tested.weights,
        "images": side.accuracy.count,
        "fingerprint": side.tested.store.fingerprint,
        **side.scores,
        "bins": {
            "edges": bins.edges.tolist(),
            "images": bins.images.tolist(),
            "confidence": [_number(value) for value in bins.confidence],
            "accuracy": [_number(value) for value in bins.accuracy],
        },
    }


def _number(value: float) -> float | None:
    return None if value != value else float(value)


def _percent(share: float) -> float | None:
    return None if share != share else 100 * float(share)
