"""Sums of the training step stay on the device; reading them is the loop's only host sync."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlg import ranks
from fastlg.batch import StepOutput
from fastlg.config import Config
from fastlg.errors import RunError
from fastlg.models.pretraining.neighbours import NEIGHBOURS


class Means(NamedTuple):
    """Means over ``count`` samples; ``top1`` in percent."""

    loss: float
    loss_cls: float
    loss_guidance: float
    loss_drloc: float
    top1: float
    count: int


def measured_by(config: Config) -> str:
    """What says the classes that a run's tests count, where that is not the network's own head; "" else."""
    return f"{NEIGHBOURS} nearest training images" if config.pretrain is not None else ""


class Meter:
    """Accumulates StepOutputs in fp64 on the device, each rank its own.

    ``update`` never syncs. ``read`` sums over the ranks, syncs once and raises RunError when any loss of any rank since
    the last ``reset`` was not finite, so that no checkpoint or report follows a broken update. All but ``update`` are
    called by all ranks.
    """

    FIELDS = 6  # loss, loss_cls, loss_guidance, correct, count; loss_drloc last, which older checkpoints lack

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(self.FIELDS, dtype=torch.float64, device=device)
        self.first_bad = torch.full((5,), -1.0, dtype=torch.float64, device=device)  # step, and the losses in order
        self.last_read = [0.0] * self.FIELDS

    def update(self, out: StepOutput, step: int) -> None:
        losses = torch.stack([out.loss, out.loss_cls, out.loss_guidance, out.loss_drloc]).double()
        count = out.count.double()
        counts = torch.stack([out.correct.double(), count])
        self.sums += torch.cat([losses[:3] * count, counts, losses[3:] * count])
        newly_bad = ~torch.isfinite(losses).all() & (self.first_bad[0] < 0)
        self.first_bad = torch.where(newly_bad, torch.cat([losses.new_full((1,), step), losses]), self.first_bad)

    def read(self) -> tuple[Means, Means]:
        """(means since the last read, means since the last reset). Raises RunError on a non-finite loss."""
        values = ranks.gathered(torch.cat([self.sums, self.first_bad])).tolist()
        total = [sum(own[field] for own in values) for field in range(self.FIELDS)]
        _refuse_non_finite([own[self.FIELDS :] for own in values])
        since = [new - old for new, old in zip(total, self.last_read, strict=True)]
        self.last_read = total
        return _means(since), _means(total)

    def check(self) -> None:
        """Raises RunError when any loss since the last reset was not finite. Syncs once."""
        _refuse_non_finite(ranks.gathered(self.first_bad).tolist())

    def reset(self) -> None:
        self.sums.zero_()
        self.last_read = [0.0] * self.FIELDS

    def state_dict(self) -> dict:
        return {"sums": ranks.total(self.sums).cpu(), "last_read": list(self.last_read)}

    def load_state_dict(self, state: dict) -> None:
        known = len(state["last_read"])
        if ranks.is_first():  # the sums of all ranks go on in one of them
            self.sums[:known].copy_(state["sums"])
        self.last_read = [*state["last_read"], *[0.0] * (self.FIELDS - known)]


def _refuse_non_finite(of_ranks: list[list[float]]) -> None:
    bad = min((own for own in of_ranks if own[0] >= 0), default=None)
    if bad is not None:
        fix = "Lower optim.lr, or take engine.precision=fp32 if it is not yet, in a run of another run.name"
        if bad[0] == 0:  # before any update: no learning rate did this
            fix = "No update was made yet: look at guidance.weight, model.args, augment.std and teacher.weights"
        drloc = f", drloc {bad[4]:.4g} (likewise)" if bad[4] else ""
        raise RunError(
            f"the loss is not finite at step {int(bad[0])}: loss {bad[1]:.4g} = classification {bad[2]:.4g}, "
            f"guidance {bad[3]:.4g} (before its weight){drloc}; nothing of it was saved. {fix}"
        )


def _means(sums: list[float]) -> Means:
    count = max(sums[4], 1.0)
    losses = (sums[0] / count, sums[1] / count, sums[2] / count, sums[5] / count)
    return Means(*losses, 100 * sums[3] / count, int(sums[4]))


class Accuracy(NamedTuple):
    """Result over a whole split: top-1 and top-5 in percent, mean cross entropy, images counted."""

    top1: float
    top5: float
    loss: float
    count: int


class AccuracyMeter:
    """Top-1, top-5 and cross entropy over a split that the ranks share; one sync, in ``read``."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits [N, K] of any float dtype, labels int64 [N]. With fewer than 5 classes, top-5 is top-K."""
        logits = logits.float()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        top1, top5 = ranked[:, 0].sum(), ranked.any(1).sum()
        count = torch.full_like(loss, len(labels))
        self.sums += torch.stack([value.double() for value in (top1, top5, loss, count)])

    def read(self) -> Accuracy:
        top1, top5, loss, count = ranks.total(self.sums).tolist()
        return Accuracy(100 * top1 / count, 100 * top5 / count, loss / count, int(count))
