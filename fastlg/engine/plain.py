"""Plain torch: autocast, backward, fused update; DistributedDataParallel where several ranks share the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastlg import ranks
from fastlg.batch import Batch, StepOutput, Views
from fastlg.engine.average import Average
from fastlg.engine.cast import of_products, rounded
from fastlg.engine.graph import StepGraph
from fastlg.engine.precision import set_rates
from fastlg.engine.protocol import (
    Around,
    BesideTeacher,
    autocast,
    group_keys,
    joined_outputs,
    load_optimizer_state,
    micro_batches,
    optimizer_state,
)

TINY = 1e-12  # added to a gradient's length: one of zero leaves the weights where they are


class PlainEngine(BesideTeacher):
    """See ``protocol.Engine``. Parameters and moments stay float32 whatever the precision.

    Args:
        unit: on its device.
        teacher: what guides, called as ``teacher(views.teacher, batch)``, or None.
        optimizer: over the unit's parameters.
        accumulation: forward and backward passes per update.
        clip_norm: gradients are scaled down to this L2 norm; 0 leaves them.
        ema: decay of the student's running mean (average.py), which then predicts; 0: the student itself does.
        rho: how far sharpness-aware updates climb (``climbed``): two forward and backward passes each; 0: none.
        around: what is done before and after each update (protocol.Around), or None.
        is_compiled: the unit goes through torch.compile.
        is_captured: whole updates are replayed as a CUDA graph; the optimizer was built ``on_device``.
    """

    def __init__(
        self,
        unit: nn.Module,
        teacher,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        dtype: torch.dtype,
        accumulation: int = 1,
        clip_norm: float = 0.0,
        ema: float = 0.0,
        rho: float = 0.0,
        around: Around | None = None,
        is_compiled: bool = False,
        is_captured: bool = False,
    ):
        self.unit, self.teacher, self.optimizer = unit, teacher, optimizer
        self.device, self.dtype, self.group_keys = device, dtype, group_keys(optimizer)
        self.accumulation, self.clip_norm, self.rho = accumulation, clip_norm, rho
        self.around = around
        self.learning_rate = float(optimizer.param_groups[0]["lr"])
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.trained = torch.compile(unit, dynamic=False) if is_compiled else unit
        if ranks.world_size() > 1:
            # Buckets of torch's 25 MB would hold the whole of a tiny student, and overlap with nothing of its backward.
            self.trained = DistributedDataParallel(self.trained, gradient_as_bucket_view=True, bucket_cap_mb=5)
        # Gradients of a copy of all weights are there at once: too late for ranks to exchange them during backward.
        is_rounded = dtype != torch.float32 and ranks.world_size() == 1
        self.rounded = of_products(unit.student) if is_rounded else []
        self.average = Average(unit.student, ema) if ema else None
        self.graph = StepGraph(self._update) if is_captured else None

    def set_learning_rate(self, lr: float) -> None:
        self.learning_rate = lr
        set_rates(self.optimizer, lr)

    def set_weight_decay(self, decay: float) -> None:
        """Of what is decayed at all."""
        for group in self.optimizer.param_groups:
            if group["weight_decay"] > 0:
                group["weight_decay"] = decay

    def ask_teacher(self, is_asked: bool) -> None:
        if self.graph is not None and is_asked != self.is_asked:
            self.graph = StepGraph(self._update)
        super().ask_teacher(is_asked)

    def step(self, views: Views, batch: Batch, total: int) -> StepOutput:
        return (self.graph or self._update)(views, batch, total)

    def _update(self, views: Views, batch: Batch, total: int) -> StepOutput:
        parts = micro_batches(views, self.guide(views, batch), self.accumulation, total)
        set_back = random_state(self.device) if self.rho else None
        outputs = self._passes(parts, total)
        if set_back is not None:  # the same images, guide and dropped paths again
            with climbed(self.unit, self.rho):
                set_back()
                self._passes(parts, total)
        if self.clip_norm or self.around is not None:
            self.scaler.unscale_(self.optimizer)
        if self.around is not None:
            self.around.limit()
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.unit.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        if self.around is not None:
            self.around.follow()
        return joined_outputs(outputs)

    def _passes(self, parts: list[tuple], total: int) -> list[StepOutput]:
        """Forward and backward of each part; gradients add up, and are exchanged with the last one's."""
        outputs = []
        for part in parts:
            # Gradients are averaged over the ranks, each part counts by its share of all samples of the step.
            share = len(part[0]) * ranks.world_size() / total
            with nullcontext() if part is parts[-1] else self._without_exchange(), self.weights():
                with autocast(self.device, self.dtype):
                    out = self.trained(*part)
                self.scaler.scale(out.loss if share == 1 else out.loss * share).backward()
            outputs.append(out._replace(loss=out.loss.detach()))
        return outputs

    def weights(self):
        """Around forward and backward of a step: the weights that products read are rounded once."""
        return rounded(self.rounded, self.dtype) if self.rounded else nullcontext()

    def _without_exchange(self):
        """Gradients of all but the last part stay on their rank."""
        return self.trained.no_sync() if isinstance(self.trained, DistributedDataParallel) else nullcontext()

    def predict(self, images: Tensor, *, latest: bool = False) -> Tensor:
        student = self.unit.student  # eagerly: compiling it would cost as much as tens of evaluations
        with autocast(self.device, self.dtype):
            if latest or self.average is None:
                return student(images)[0]
            return torch.func.functional_call(student, self.average.weights, (images,))[0]

    def state_dict(self) -> dict:
        return {
            "unit": {name: value.detach() for name, value in self.unit.state_dict().items()},
            **optimizer_state(self.unit, self.optimizer, self.group_keys),
            "scaler": self.scaler.state_dict(),
            **({} if self.average is None else {"average": self.average.state_dict()}),
        }

    def load_state_dict(self, state: dict) -> None:
        self.unit.load_state_dict(state["unit"])
        load_optimizer_state(self.unit, self.optimizer, state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if state["scaler"]:
            self.scaler.load_state_dict({**self.scaler.state_dict(), **state["scaler"]})


@contextmanager
def climbed(unit: nn.Module, rho: float) -> Iterator[None]:
    """Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412): gradients of the worst weights nearby.

    Inside, the weights of ``unit`` lie ``rho`` further along their gradient, in the L2 norm over all of them, and
    have no gradient; afterwards they and the buffers are, to the bit, what they were before.

    The gradient is the one of the whole batch, over all ranks, so that the number of ranks changes nothing (the paper's
    own runs climb on each device's share); a factor on it, such as fp16's, cancels. Running statistics of norms do not
    see the weights up there. Costs a copy of weights and buffers.
    """
    weights = [weight for weight in unit.parameters() if weight.grad is not None]
    changed = [*weights, *unit.buffers()]
    with torch.no_grad():
        kept = [value.detach().clone() for value in changed]
        gradients = [weight.grad for weight in weights]
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_add_(weights, torch._foreach_mul(gradients, rho / (length + TINY)))
        for weight in weights:
            weight.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for value, before in zip(changed, kept, strict=True):
                value.copy_(before)


def random_state(device: torch.device) -> Callable[[], None]:
    """What sets the generators of the host and of ``device`` back to where they are now, without waiting for either."""
    on_host = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def set_back() -> None:
        torch.set_rng_state(on_host)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)

    return set_back
