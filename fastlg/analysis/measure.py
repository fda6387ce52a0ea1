"""One pass of a student over images: all that its analysis is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastlg.analysis.attention import attention_layers, remarks, watch
from fastlg.analysis.dense import DenseMaps, class_maps, token_rollout, token_scores
from fastlg.analysis.distance import AttentionDistance
from fastlg.analysis.geometry import Layout, pitches, stage_steps
from fastlg.analysis.rollout import readout, rollout
from fastlg.analysis.similarity import Similarity
from fastlg.models.general.teaching import as_map
from fastlg.models.student import Student


@dataclass
class Findings:
    """What was found in ``images`` images.

    blocks    per block what ``AttentionDistance.result`` says; empty where there is no attention to look at
    middle    per block [shown, Hk, Wk]: what the token in the middle of the image attends to, the mean over heads
    rollouts  [shown, H, W], or None
    dense     of the same images, or None
    cka       [blocks][stages], or None without a teacher
    notes     what is left out and why
    """

    images: int = 0
    blocks: list[dict[str, Any]] = field(default_factory=list)
    middle: list[Tensor] = field(default_factory=list)
    rollouts: Tensor | None = None
    dense: DenseMaps | None = None
    cka: list[list[float | None]] | None = None
    notes: list[str] = field(default_factory=list)


@torch.inference_mode()
def measure(
    student: Student,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    teacher: nn.Module | None = None,
    shown: int = 0,
    class_names: Sequence[str] = (),
    of_class: str | None = None,
) -> Findings:
    """Runs ``student`` and ``teacher`` in evaluation mode, float32, on pairs of (its view, the teacher's view).

    ``shown``: of so many images, the first ones, maps are kept; not more than the first batch holds. Dense maps are
    about the class ``of_class``, or each image's predicted one; without ``class_names`` there are none. The blocks
    that the student hands out are the same afterwards.
    """
    layers, reason = attention_layers(student)
    found = Findings(notes=([reason] if reason else remarks(student)))
    guided, training = student.blocks, student.training
    student.eval().guide(range(student.depth))
    seen = _Seen(student, shown) if layers else None
    similarity = Similarity() if teacher is not None else None
    try:
        for view, teacher_view in batches:
            if seen is not None:
                with watch(student, seen.see):
                    logits, tokens = student(view)
                if seen.shown and class_names:
                    found.dense = seen.dense(logits, tokens[-1], class_names, of_class)
                seen.shown = 0  # the first batch holds them all
            elif teacher is not None:
                _, tokens = student(view)
            else:
                break
            if similarity is not None:
                maps = [as_map(own, grid) for own, grid in zip(tokens, student.grids, strict=True)]
                similarity.add(maps, teacher.eval()(teacher_view)[1])
            found.images += len(view)
        if seen is not None and found.images:
            found.blocks, found.middle = seen.distance.result(), seen.middle
            found.rollouts = seen.rolled(found.notes)
            if of_class is not None and found.dense is None:
                found.notes.append(f"no dense rollout, so that --class {of_class} changes nothing: {NO_DENSE}")
    finally:
        student.guide(guided)
        student.train(training)
    found.cka = similarity.result() if similarity is not None else None
    return found


NO_DENSE = "its blocks differ in their grids, keys or tokens, or its head scores no single token"


class _Seen:
    """What is taken of every attention matrix while it is there."""

    def __init__(self, student: Student, shown: int):
        self.student, self.shown = student, shown
        self.steps = stage_steps(student)
        self.distance = AttentionDistance(pitches(student))
        self.layouts: list[Layout] = []
        self.means: list[Tensor] = []
        self.middle: list[Tensor] = []

    def see(self, block: int, matrix: Tensor, layout: Layout) -> None:
        self.distance.see(block, matrix, layout)
        if not self.shown:
            return
        mean = matrix[: self.shown].mean(dim=1)
        self.layouts.append(layout)
        self.means.append(mean)
        height, width = layout.grid
        row = mean[:, layout.prefix + (height // 2) * width + width // 2, layout.prefix :]
        self.middle.append(row.unflatten(1, layout.keys).cpu())

    def dense(
        self, logits: Tensor, tokens: Tensor, class_names: Sequence[str], of_class: str | None
    ) -> DenseMaps | None:
        """From the last block's ``tokens``. None where grids differ, or no token has scores of its own."""
        shape = self.means[-1].shape
        if len(set(self.student.grids)) > 1 or any(mean.shape != shape or shape[1] != shape[2] for mean in self.means):
            return None
        scores = token_scores(self.student, tokens[: self.shown])
        if scores is None:
            return None
        rolled = token_rollout(self.means)
        classes = logits[: self.shown].argmax(dim=-1).tolist()
        if of_class is not None:
            classes = [list(class_names).index(of_class)] * len(classes)
        chosen = [
            own[range(len(classes)), classes].unflatten(1, self.layouts[-1].grid).cpu()
            for own in class_maps(rolled, scores)
        ]
        return DenseMaps([class_names[number] for number in classes], *chosen)

    def rolled(self, notes: list[str]) -> Tensor | None:
        if not self.means:
            return None
        if self.steps is None:
            notes.append(f"{self.student.name}: how its grids follow from each other is not known; no rollout")
            return None
        return rollout(self.means, self.layouts, self.steps, readout(self.student, self.layouts[-1])).cpu()
