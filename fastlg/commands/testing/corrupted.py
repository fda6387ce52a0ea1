"""A run on corrupted test images: accuracy per corruption and severity, kept beside the run as it is measured."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastlg.commands.evaluate import Pass, Tested
from fastlg.data.corruptions.apply import SMALLEST, VERSION
from fastlg.data.corruptions.loader import CorruptedLoader, corrupted_side
from fastlg.data.corruptions.strengths import NAMES, SEVERITIES, strengths_for
from fastlg.engine.precision import pick_device, pick_dtype
from fastlg.errors import UserError
from fastlg.files.atomic import write_whole
from fastlg.files.lock import file_lock
from fastlg.files.reading import read_regular
from fastlg.ranks.say import dispensable, say
from fastlg.run.evaluate import measure
from fastlg.run.folder import EVALUATION
from fastlg.run.metrics import Accuracy
from fastlg.run.report import Pulse

KEPT = "corrupted.json"  # in EVALUATION of a run folder
MOST_KEPT = 1 << 24  # bytes


@dataclass
class Corrupted:
    """What a run makes of corrupted images.

    side    of the images when they are corrupted, px
    set     whose strengths they have: CIFAR-10-C, Tiny-ImageNet-C or ImageNet-C
    found   (corruption, severity) -> Accuracy
    """

    side: int
    set: str
    found: dict[tuple[str, int], Accuracy] = field(default_factory=dict)

    def errors(self, name: str, severities: Sequence[int]) -> list[float]:
        """Top-1 errors in percent."""
        return [100 - self.found[name, severity].top1 for severity in severities]


def expect_corruptible(own: Tested) -> None:
    """Raises UserError for a run whose images are too small for it."""
    if (side := corrupted_side(own.store, own.config.model.image_size)) < SMALLEST:
        raise UserError(
            f"{own.folder}: its images are {side} px when they are corrupted, and corruptions are meant for {SMALLEST} "
            "px and more; leave out --corruptions"
        )


def measure_corrupted(own: Tested, names: Sequence[str], severities: Sequence[int]) -> Corrupted:
    """Tests a run on every corruption at every severity; what an earlier call measured of the same weights on the same
    images is taken from beside the run, and what is measured lies there before the next is begun."""
    size = own.config.model.image_size
    side = corrupted_side(own.store, size)
    result, kept = Corrupted(side, strengths_for(side).name), _Kept(own, side)
    missing = [(name, severity) for name in names for severity in severities if (name, severity) not in kept.found]
    if len(missing) < len(names) * len(severities):
        say(f"corrupt  {own.folder}: {len(names) * len(severities) - len(missing)} measured before, {kept.path}")
    run = Pass(own.config, own.network, own.store, size=side) if missing else None
    for number, (name, severity) in enumerate(missing, 1):
        change = partial(CorruptedLoader, name=name, severity=severity, size=size)
        at = f"corrupt  {own.folder}: {name} {severity}, {number} of {len(missing)}"
        with Pulse(lambda at=at: at):
            kept.add(name, severity, run(measure, change))
        if severity == severities[-1]:
            top1 = " ".join(f"{kept.found[name, step].top1:.1f}" for step in severities)
            say(f"corrupt  {own.folder}: {name}, top-1 {top1} %")
    result.found = {(name, severity): kept.found[name, severity] for name in names for severity in severities}
    return result


def known_corrupted(own: Tested) -> Corrupted | None:
    """What was measured before of these weights on these images; None of nothing."""
    side = corrupted_side(own.store, own.config.model.image_size)
    kept = _Kept(own, side)
    return Corrupted(side, strengths_for(side).name, kept.found) if kept.found else None


class _Kept:
    """The file beside a run: a list of {key..., values: {corruption: {severity: [top1, top5, loss, count]}}}.

    Several evaluations at once, of one run or of two checkpoints of it, add to what is there.
    """

    def __init__(self, own: Tested, side: int):
        self.path = own.folder / EVALUATION / KEPT
        self.key = {
            "version": VERSION,
            "weights": own.weights,
            "images": own.store.fingerprint,
            "side": side,
            "residual": own.config.engine.residual,
            "dtype": str(pick_dtype(own.config.engine, pick_device(own.config.engine))).removeprefix("torch."),
        }
        self.found, _ = self._read()

    def _read(self) -> tuple[dict[tuple[str, int], Accuracy], list[Any]]:
        """(what is known under this key, the entries of other keys)."""
        found: dict[tuple[str, int], Accuracy] = {}
        others: list[Any] = []
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):  # or it was altered
            for entry in json.loads(read_regular(self.path, MOST_KEPT)):
                if {key: entry.get(key) for key in self.key} == self.key:
                    found |= {
                        (name, severity): Accuracy(*map(float, row[str(severity)][:3]), int(row[str(severity)][3]))
                        for name, row in entry["values"].items()
                        for severity in SEVERITIES
                        if name in NAMES and str(severity) in row
                    }
                else:
                    others.append(entry)
        return found, others

    def add(self, name: str, severity: int, accuracy: Accuracy) -> None:
        self.found[name, severity] = accuracy
        with dispensable(f"the file {self.path}", "what is measured is told, but the next call measures it again"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(self.path.with_name(f"{KEPT}.lock"), f"writing {self.path}"):
                found, others = self._read()
                self.found = found | self.found
                values: dict[str, dict[str, list]] = {}
                for (own, step), known in sorted(self.found.items()):
                    values.setdefault(own, {})[str(step)] = list(known)
                text = json.dumps([*others, {**self.key, "values": values}], indent=1)
                write_whole(self.path, f"{text}\n")
