"""The whole store on the device; every batch is cut there. No decoding, no workers, no copy of pixels per step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastlg.batch import Batch
from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.store.store import Store
from fastlg_kernels.augment.api import RaggedImages, resize_crops


class ResidentLoader:
    """Batches of a store that lives on the device, with Pillow's pixels.

    On the CPU the store stays a memory map; on CUDA it is copied once, when the loader is made.

    Args:
        store: one split, from ``open_store``.
        plan: what is delivered (data/loaders/plan.py).
        device: where the store lies and the batches are cut.
    """

    def __init__(self, store: Store, plan: SamplePlan, *, device: torch.device | str = "cpu"):
        self.store = store
        self.plan = plan
        self.device = torch.device(device)
        self.pixels = _pixels(store).to(self.device)
        self.sizes = torch.from_numpy(store.sizes)
        self.offsets = torch.from_numpy(store.offsets[:-1])
        self.labels_device = torch.from_numpy(store.labels).to(self.device)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan.slices(len(self.store)))

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_batch`` on. Host and device meet once per block of batches."""
        for drawn, counts in self.plan.blocks(self.sizes, epoch, start_batch):
            crop, flip = self._to_device(drawn.fractions(self.sizes)), self._to_device(drawn.flip)
            sample_ids = self._to_device(drawn.sample_ids)
            # What resize_crops counts with stays on the host.
            where = drawn.sample_ids.split(counts), drawn.boxes.split(counts)
            given = (tensor.split(counts) for tensor in (self.labels_device[sample_ids], sample_ids, crop, flip))
            for ids, boxes, *rest in zip(*where, *given, strict=True):
                yield Batch(self._cut(ids, boxes), *rest)

    def _cut(self, sample_ids: Tensor, boxes: Tensor) -> Tensor:
        images = RaggedImages(self.pixels, self.offsets[sample_ids], self.sizes[sample_ids])
        return resize_crops(images, boxes, self.plan.size, interpolation=self.plan.resample)

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _pixels(store: Store) -> Tensor:
    """The store's pixels, uint8 [bytes], as a private map of the file: read as needed, never written back."""
    path = store.path / store.split / "pixels.bin"
    return torch.from_file(str(path), shared=False, size=len(store.pixels), dtype=torch.uint8)
