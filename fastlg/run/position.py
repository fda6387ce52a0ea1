"""How far a run is, and everything that a checkpoint holds of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from fastlg.errors import RunError, UserError
from fastlg.run.folder import read_resumable
from fastlg.run.metrics import Accuracy, Meter
from fastlg.run.parts import Parts


@dataclass
class Position:
    """Of the next batch to train on, and what was reached on the way.

    images  those that ``train_seconds`` were timed over
    latest  top-1 of the last epoch's weights, where ``last`` is of their running mean
    """

    epoch: int = 0
    batch: int = 0
    images: int = 0
    top1_best: float = -1.0
    last: Accuracy | None = None
    latest: float | None = None
    train_seconds: float = 0.0
    wall_seconds: float = 0.0

    def state_dict(self) -> dict:
        return {**asdict(self), "last": list(self.last) if self.last else None}

    def load_state_dict(self, state: dict) -> None:
        for field in fields(self):
            setattr(self, field.name, state.get(field.name, field.default))  # older ones lack ``latest``
        self.last = Accuracy(*state["last"]) if state["last"] else None


def saved_state(parts: Parts, position: Position, meter: Meter) -> dict:
    """All that a run goes on from, to the same bits: data and augmentation are pure functions of its position."""
    engine = parts.engine.state_dict()
    return {
        "unit": engine.pop("unit"),
        "engine": engine,
        "teacher": parts.teacher.state_dict() if parts.teacher else {},
        "position": position.state_dict(),
        "meter": meter.state_dict(),
        "config": parts.config.absolute().model_dump(mode="json"),
        "class_names": list(parts.stores.class_names),
        "data": parts.stores.fingerprints,
        "teacher_id": parts.teacher_id,
        "dtype": _name(parts.engine.dtype),
    }


def restore(path: Path, parts: Parts, position: Position, meter: Meter) -> str:
    """Takes over what ``saved_state`` gave; returns what to say of it beside the position, or "".

    Raises UserError for a checkpoint of another config, teacher or data.
    """
    state = read_resumable(path, parts.config, parts.stores.fingerprints)
    if state["teacher_id"] != parts.teacher_id:
        raise UserError(
            f"checkpoint {path} was guided by another teacher than this run's; name the first one with "
            "teacher.weights=RUN, or start anew under another run.name"
        )
    parts.engine.load_state_dict({"unit": state["unit"], **state["engine"]})
    if parts.teacher:
        parts.teacher.load_state_dict(state["teacher"])
    meter.load_state_dict(state["meter"])
    position.load_state_dict(state["position"])
    own = _name(parts.engine.dtype)
    if (saved := state.get("dtype", own)) == own:  # older ones lack it
        return ""
    return f"; in {own} from here on and {saved} before, for engine.precision=auto goes by the device"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def refuse_non_finite_weights(weights: dict[str, torch.Tensor], step: int) -> None:
    """Raises RunError when a weight is not finite; the last update's effect shows in no loss yet."""
    sums = [value.sum(dtype=torch.float32) for value in weights.values() if value.is_floating_point()]
    if sums and not bool(torch.stack(sums).isfinite().all()):  # one wait for the device
        raise RunError(
            f"a weight is not finite after step {step}; nothing of it was saved. Lower optim.lr and run again"
        )
