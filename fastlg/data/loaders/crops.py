"""Several crops of every image, large and small, for a student that learns without labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fastlg.batch import CropsBatch
from fastlg.data.loaders.choose import make_loader
from fastlg.data.store.store import Store

LARGE = 2  # crops of each image that both networks see


class CropsLoader:
    """Two loaders of the same kind over the same samples in the same order: one cuts the large crops, one the small.

    Args:
        kind, store, device, workers: as ``make_loader`` takes them; ``workers`` are those of each of the two.
        plan: the fields of SamplePlan that large and small crops share.
        large_scale, small_scale: range of a crop's share of the image's area.
        small_size: side of the small crops in pixels.
        small_crops: how many of them an image gets; 0 for none.
    """

    def __init__(
        self,
        kind: str,
        store: Store,
        *,
        device: torch.device,
        workers: int,
        plan: dict[str, Any],
        large_scale: tuple[float, float],
        small_scale: tuple[float, float],
        small_size: int,
        small_crops: int,
    ):
        common = {"device": device, "workers": workers}
        large = {**plan, "scale": large_scale, "crops": LARGE}
        small = {**plan, "scale": small_scale, "crops": small_crops, "first_crop": LARGE, "size": small_size}
        self.large = make_loader(kind, store, **common, **large)
        self.small = make_loader(kind, store, **common, **small) if small_crops else None
        self.small_crops = small_crops

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.large)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[CropsBatch]:
        """The batches of an epoch from ``start_batch`` on."""
        large = self.large.epoch(epoch, start_batch)
        small = self.small.epoch(epoch, start_batch) if self.small is not None else None
        try:
            for _ in range(start_batch, len(self)):
                yield self._joined(next(large), next(small) if small is not None else None)
        finally:  # the last that was begun ends first: each gives back the signals that it has taken
            if small is not None:
                small.close()
            large.close()

    def _joined(self, large, small) -> CropsBatch:
        """Of two Batches, in which the crops of a sample lie in a row."""
        images, crop, flip = (getattr(large, name).unflatten(0, (-1, LARGE)) for name in ("images", "crop", "flip"))
        little = images.new_empty(len(images), 0, 1, 1, 3)
        if small is not None:
            many = (-1, self.small_crops)
            little = small.images.unflatten(0, many)
            crop = torch.cat((crop, small.crop.unflatten(0, many)), dim=1)
            flip = torch.cat((flip, small.flip.unflatten(0, many)), dim=1)
        return CropsBatch(images, little, large.labels[::LARGE], large.sample_ids[::LARGE], crop, flip)
