"""Whole updates as one CUDA graph: the host replays it instead of launching a thousand kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastlg.batch import Batch, StepOutput, Views

WARM_UP_STEPS = 3  # real updates, made eagerly: libraries choose algorithms and the optimizer makes its state


class StepGraph:
    """``update(views, batch, total)``, captured once its batches have the shape of the first one, and anew when images
    have another size.

    The warm-up and every batch of another shape run eagerly; they are ordinary updates. A captured update reads copies
    of its inputs at fixed addresses, the learning rate from a tensor, and random numbers from torch's generator, which
    may be seeded anew between replays. Nothing on the host may depend on a value of the step.
    """

    def __init__(self, update: Callable[[Views, Batch, int], StepOutput]):
        self.update = update
        self.eager_steps = 0
        self.shape: tuple | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.side: torch.cuda.Stream | None = None

    def __call__(self, views: Views, batch: Batch, total: int) -> StepOutput:
        batch = batch._replace(images=batch.images[:0])  # whose pixels are in the views; nothing copies them
        shape = (total, *(tuple(tensor.shape) for tensor in (*views, *batch)))
        if self.shape is None or (self.graph is None and total > self.shape[0]) or self._has_another_size(views):
            # A resumed run may begin with the short last batch of an epoch; image sizes change between epochs.
            self.shape, self.eager_steps, self.graph = shape, 0, None
        if shape != self.shape:
            return self.update(views, batch, total)
        if self.graph is None and self.eager_steps < WARM_UP_STEPS:
            self.eager_steps += 1
            return self._on_side_stream(views, batch, total)
        if self.graph is None:
            self._capture(views, batch, total)
        for own, new in zip((*self.views, *self.batch), (*views, *batch), strict=True):
            own.copy_(new)
        self.graph.replay()
        return self.output

    def _has_another_size(self, views: Views) -> bool:
        return tuple(views.student.shape[1:]) != self.shape[1][1:]

    def _on_side_stream(self, views: Views, batch: Batch, total: int) -> StepOutput:
        """As torch asks for before a capture: what backward keeps per stream must not be tied to the default one."""
        self.side = self.side or torch.cuda.Stream()
        current, side = torch.cuda.current_stream(), self.side
        side.wait_stream(current)
        with torch.cuda.stream(side):
            output = self.update(views, batch, total)
        current.wait_stream(side)
        return output

    def _capture(self, views: Views, batch: Batch, total: int) -> None:
        self.views = Views(*(tensor.clone() for tensor in views))
        self.batch = Batch(*(tensor.clone() for tensor in batch))
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Records, and computes nothing; of this thread's calls alone, for loaders' threads may call CUDA meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.output = self.update(self.views, self.batch, total)
