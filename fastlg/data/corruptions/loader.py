"""A loader whose images are corrupted, and which size they have by then."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fastlg.batch import Batch
from fastlg.data.corruptions.apply import corrupt
from fastlg.data.store.store import Store
from fastlg_kernels.augment.api import resize_crops


def corrupted_side(store: Store, image_size: int) -> int:
    """At which size, in px, images are corrupted before a network sees them at ``image_size``.

    As they are stored, where that is one square, smaller than what the network sees: so was CIFAR-10-C made. All others
    as the network sees them, as ImageNet-C was.
    """
    side = int(store.sizes[0, 0])
    return side if side < image_size and bool(np.all(store.sizes == side)) else image_size


class CorruptedLoader:
    """The batches of ``loader``, whole images of ``corrupted_side`` px, corrupted and brought to ``size`` px as
    evaluation does it: by Pillow's bilinear resize. As other loaders, ``len()`` batches in ``epoch()``."""

    def __init__(self, loader, name: str, severity: int, size: int):
        self.loader, self.name, self.severity, self.size = loader, name, severity, size

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        for batch in self.loader.epoch(epoch, start_batch):
            images = corrupt(batch.images, batch.sample_ids, self.name, self.severity)
            count, side = images.shape[:2]
            if side != self.size:
                boxes = torch.tensor([0, 0, side, side]).expand(count, 4)
                images = resize_crops(images, boxes, self.size, interpolation="bilinear")
            yield batch._replace(images=images)
