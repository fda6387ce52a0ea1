"""What the training loop knows of an engine, and what engines share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastlg import ranks
from fastlg.batch import Batch, CropViews, StepOutput, Views
from fastlg.errors import UserError


class Engine(Protocol):
    """Owns precision, gradients and the optimizer of one trainable unit, on one or many ranks.

    ``unit(images, targets, guide, beside) -> StepOutput`` is what is trained; ``teacher`` stays outside. Every method
    is called by all ranks. States hold float32 weights and optimizer moments by parameter name, whole, so that any
    engine on any number of ranks reads what any other wrote.
    """

    unit: nn.Module
    device: torch.device
    dtype: torch.dtype
    learning_rate: float

    def set_learning_rate(self, lr: float) -> None: ...

    def ask_teacher(self, is_asked: bool) -> None:
        """Whether the steps from now on are guided."""

    def guide(self, views: Views, batch: Batch):
        """What the teacher says of a batch, in the run's precision; None when it is not asked, or there is none."""

    def step(self, views: Views, batch: Batch, total: int) -> StepOutput:
        """One update on this rank's share of ``total`` samples; what comes back is of this rank's share. No host sync
        (but fp16 may ask whether it overflowed, and ZeRO 1 to 3 look at the gradients' norm). The tensors that come
        back hold until the next call."""

    def predict(self, images: Tensor, *, latest: bool = False) -> Tensor:
        """Logits [N, K] of the bare student, which the caller put in evaluation mode, or of its running mean where
        there is one and not the ``latest`` weights are asked for."""

    def state_dict(self) -> dict:
        """{"unit": {name: tensor}, "optimizer": {name: {moment: tensor}}, "scaler": {...}}, and of a
        run with optim.ema its "average"; complete on rank 0, perhaps elsewhere. What an optimizer remembers of a whole
        group of parameters is in "optimizer_groups". The tensors may be the run's own,
        wherever they lie: who keeps them copies them, as run/checkpoint.py does."""

    def load_state_dict(self, state: dict) -> None: ...


class Around(Protocol):
    """What the plain engine does beside its updates for a unit that is taught by its own past."""

    def limit(self) -> None:
        """Before an update, when gradients are whole and unscaled."""

    def follow(self) -> None:
        """After it."""


class BesideTeacher:
    """The part of an engine that asks its ``teacher``; None is unguided."""

    is_asked = True

    def ask_teacher(self, is_asked: bool) -> None:
        self.is_asked = is_asked

    def guide(self, views: Views, batch: Batch):
        if self.teacher is None or not self.is_asked:
            return None
        with autocast(self.device, self.dtype):
            return self.teacher(views.teacher, batch)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The autocast region of a forward pass; none for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


class Share(NamedTuple):
    """How a global batch is shared: ``per_rank`` samples per rank and step, in ``accumulation`` forward passes."""

    per_rank: int
    accumulation: int


def share_batch(global_batch_size: int, world_size: int, micro_batch_size: int | None) -> Share:
    """Raises UserError where ranks or forward passes would get unequal shares, naming the nearest sizes that fit."""
    per_rank, rest = divmod(global_batch_size, world_size)
    if rest:
        near = [size for size in (global_batch_size - rest, global_batch_size - rest + world_size) if size]
        raise UserError(
            f"optim.global_batch_size {global_batch_size} cannot be shared by {world_size} processes; "
            f"the nearest sizes that can are {' and '.join(map(str, near))}"
        )
    if micro_batch_size is None or per_rank <= micro_batch_size:
        return Share(per_rank, 1)
    accumulation, rest = divmod(per_rank, micro_batch_size)
    if rest:
        step = micro_batch_size * world_size
        low = global_batch_size // step * step
        raise UserError(
            f"{per_rank} samples per process (optim.global_batch_size {global_batch_size} over {world_size}) are no "
            f"multiple of engine.micro_batch_size {micro_batch_size}; the nearest global sizes that are: {low} and "
            f"{low + step}"
        )
    return Share(per_rank, accumulation)


def micro_batches(
    views: Views | CropViews, guide, accumulation: int, total: int
) -> list[tuple[Tensor, Tensor, object, tuple]]:
    """What the unit is called with, of this rank's samples of a step of ``total``, in parts of nearly equal size:
    ``accumulation`` of them, or fewer where a rank has fewer samples. All ranks get equally many, for a forward pass
    may be an exchange."""
    beside = (views.small,) if isinstance(views, CropViews) else (views.pairs, views.pair_weight)
    whole = (views.student, views.targets, guide, beside)
    samples, count = len(views.student), min(accumulation, max(1, total // ranks.world_size()))
    if count == 1:
        return [whole]
    parts = [slice(samples * part // count, samples * (part + 1) // count) for part in range(count)]
    return [_rows_of(whole, rows) for rows in parts]


def _rows_of(value, rows: slice):
    """The same samples of every tensor in it, also in a Guide; sizes and None stay."""
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, tuple):
        parts = [_rows_of(part, rows) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def joined_outputs(outputs: list[StepOutput]) -> StepOutput:
    """One output of several forward passes: losses are means over all their samples."""
    if len(outputs) == 1:
        return outputs[0]
    stacked = StepOutput(*(torch.stack(values) for values in zip(*outputs, strict=True)))
    weights = stacked.count / stacked.count.sum()
    sums = {"correct": stacked.correct.sum(), "count": stacked.count.sum()}
    losses = {name: (loss * weights).sum() for name, loss in stacked._asdict().items() if name not in sums}
    return StepOutput(**losses, **sums)


def group_keys(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """What an optimizer's groups of parameters say before its first step; what is there later it has remembered."""
    return frozenset(key for group in optimizer.param_groups for key in group)


def optimizer_state(unit: nn.Module, optimizer: torch.optim.Optimizer, known: frozenset[str]) -> dict:
    """{"optimizer": a torch optimizer's moments by parameter name}, no copies, and where it remembers something of
    whole groups, such as a count of steps, "optimizer_groups", one dict for each. ``known``: its ``group_keys``."""
    names = _names_in_order(unit, optimizer)
    whole = optimizer.state_dict()
    state = {names[i]: {k: v for k, v in own.items() if v is not None} for i, own in whole["state"].items()}
    groups = [{k: v for k, v in group.items() if k not in known} for group in whole["param_groups"]]
    return {"optimizer": state, **({"optimizer_groups": groups} if any(groups) else {})}


def load_optimizer_state(unit: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Takes over what ``optimizer_state`` gave, every number in its own type."""
    names, own = _names_in_order(unit, optimizer), state["optimizer"]
    whole = optimizer.state_dict()
    whole["state"] = {index: own[name] for index, name in enumerate(names) if name in own}
    for group, saved in zip(whole["param_groups"], state.get("optimizer_groups", []), strict=False):
        group.update(saved)
    optimizer.load_state_dict(whole)


def _names_in_order(unit: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    name_of = {id(parameter): name for name, parameter in unit.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
