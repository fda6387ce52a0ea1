"""How good features are, by the classes of an image's nearest neighbours: nothing is trained for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlg import ranks

NEIGHBOURS, TEMPERATURE = 20, 0.07  # as DINO's code measures
LEAST = 1e-6  # share of the votes that a class without any is given, so that its logarithm is a number


class Neighbours:
    """features [M, D] and labels int64 [M] of known images -> ``votes(features [N, D])``, log-shares [N, K]: the
    ``NEIGHBOURS`` nearest by cosine each vote for their class, the nearer the more."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int):
        self.features = F.normalize(features.float(), dim=1)
        self.classes = F.one_hot(labels, classes).to(self.features.dtype)

    def votes(self, features: Tensor) -> Tensor:
        near, index = (F.normalize(features.float(), dim=1) @ self.features.T).topk(min(NEIGHBOURS, len(self.features)))
        weights = ((near - 1) / TEMPERATURE).exp()[..., None]
        found = (weights * self.classes[index]).sum(dim=1)
        return (found / found.sum(dim=1, keepdim=True)).clamp(min=LEAST).log()


@torch.inference_mode()
def neighbours_of(
    features_of: Callable[[Tensor], Tensor],
    loader,
    views,
    *,
    device: torch.device,
    shape: tuple[int, int],
    classes: int,
) -> Neighbours:
    """Of all M images of ``loader``'s split, unaugmented: each rank looks at its own, and learns all.

    ``features_of(images [N, 3, S, S]) -> [N, D]``, in evaluation mode; ``shape`` (M, D).
    """
    found, labels = torch.zeros(shape, device=device), torch.zeros(shape[0], dtype=torch.int64, device=device)
    for batch in loader.epoch(0):
        own, ids = features_of(views(batch, 0, train=False).student).float(), batch.sample_ids.to(device)
        found[ids], labels[ids] = own, batch.labels.to(device)
    return Neighbours(ranks.total(found), ranks.total(labels), classes)
