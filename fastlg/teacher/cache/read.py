"""The teacher read back from a cache: the same call as the online teacher, the same output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastlg.batch import Batch
from fastlg.errors import UserError
from fastlg.files.verify import Digested
from fastlg.teacher.cache.format import (
    ArrayInfo,
    Chunking,
    Fingerprint,
    broken,
    check_files,
    map_array,
    orientations,
    read_manifest,
)
from fastlg.teacher.cache.memory import RowReader
from fastlg.teacher.online import Guide
from fastlg_kernels.gather.api import gather_maps, map_boxes
from fastlg_kernels.guidance.compact import CompactMap, compact_map


class FeatureCache:
    """An opened cache: its arrays memory-mapped, [rows * orientations, ...] each, ``rows`` of sample and flip."""

    def __init__(self, path: Path, manifest: dict):
        """Use ``open_cache``, which checks the files first."""
        self.path, self.manifest = path, manifest
        self.chunking = Chunking(manifest["count"], manifest["chunk"])
        self.transforms = manifest["fingerprint"]["transforms"]
        self.stages = tuple(manifest["fingerprint"]["stages"])
        self.grids = [tuple(grid) if grid else None for grid in manifest["fingerprint"]["grids"]]
        self.infos = [ArrayInfo(**array) for array in manifest["arrays"]]
        self.arrays = {info.name: map_array(path, info, manifest["count"]).flatten(0, 1) for info in self.infos}

    def __len__(self) -> int:
        return self.chunking.count

    @property
    def bytes(self) -> int:
        return len(self) * sum(info.row_bytes for info in self.infos)

    @property
    def map_sizes(self) -> list[tuple[int, int]]:
        """(h, w) of each pair's own map, also where it is stored on the student's grid."""
        return [tuple(size) for size in self.manifest["map_sizes"]]

    def digested(self) -> list[Digested]:
        """For a ``Verification``."""
        chunks = self.manifest["chunks"]
        return [
            Digested(
                self.path / f"{info.name}.bin",
                [(chunk["rows"] * info.row_bytes, chunk["sha256"][number]) for chunk in chunks],
                lambda reason: broken(self.path, reason),
            )
            for number, info in enumerate(self.infos)
        ]

    def rows(self, sample_ids: Tensor, flip: Tensor) -> Tensor:
        """int64 [N]: the row of each sample, in its orientation where both are stored."""
        rows = self.chunking.rows(sample_ids)
        return 2 * rows + flip if orientations(self.transforms) == 2 else rows


def open_cache(path: Path, wanted: Fingerprint, *, verify: bool = False) -> FeatureCache:
    """Opens the cache at ``path`` after checking that it is the wanted one, and whole.

    ``verify`` reads and hashes every byte; otherwise only files that changed since they were last found whole.
    Raises UserError that names the field that differs, or the damaged file.
    """
    manifest = read_manifest(path)
    differing = wanted.differences(manifest["fingerprint"])
    if differing:
        raise UserError(
            f"feature cache {path} does not fit this config ({'; '.join(differing[:3])}); delete it, "
            "or set teacher.cache to another folder, and run fastlg cache"
        )
    check_files(path, manifest, always=verify)
    return FeatureCache(path, manifest)


def stored_arrays(guide: Guide, grids: Sequence[tuple[int, int] | None]) -> list[Tensor]:
    """What a cache keeps of a guide, float32, in the order of ``array_infos``: per pair its map, or the compact form
    on the student's grid and its energy; then the logits."""
    arrays = []
    for maps, grid in zip(guide.maps, grids, strict=True):
        arrays += [maps] if grid is None else compact_map(maps, grid)[:2]
    return [array.float() for array in (*arrays, guide.logits)]


class CachedTeacher:
    """What the teacher said of the clean image, made to fit the batch's crops and flips. No gradient, no network.

    Args:
        cache: from ``open_cache``.
        sizes: int64 [count, 2], height and width of every stored image in pixels.
        device: of the batches.
        replay: rule by which a crop is cut from a map, see ``fastlg_kernels.gather.map_boxes``.
        memory, batch_size: where rows are kept, see ``RowReader``.
    """

    def __init__(
        self,
        cache: FeatureCache,
        sizes: Tensor,
        *,
        device: torch.device,
        replay: str = "exact",
        memory: str = "auto",
        batch_size: int = 0,
    ):
        self.cache, self.replay = cache, replay
        self.stages = cache.stages
        self.reader = RowReader(cache.arrays, device, memory, batch_size)
        self.sizes = sizes.to(device)

    @property
    def is_on_device(self) -> bool:
        """Whether a step reads nothing from the host."""
        return self.reader.place == "device"

    @property
    def dims(self) -> list[int]:
        """Channels of each stage handed on."""
        return [self.cache.arrays[f"map{pair}"].shape[1] for pair in range(len(self.stages))]

    @torch.no_grad()
    def __call__(self, view: Tensor, batch: Batch) -> Guide:
        """``view`` is not looked at; ``batch`` says which samples, crops and flips. No host sync where rows are on
        the device. Maps are float32, CompactMap where the cache is compact; logits are those of the whole image."""
        arrays, rows = self.reader.take(batch.sample_ids, lambda: self.cache.rows(batch.sample_ids, batch.flip))
        maps = []
        for pair, (grid, size) in enumerate(zip(self.cache.grids, self.cache.map_sizes, strict=True)):
            source = arrays[f"map{pair}"]
            boxes = flip = None
            if self.cache.transforms == "crop and flip":
                sizes = self.sizes[batch.sample_ids]
                boxes, flip = map_boxes(batch.crop, sizes, tuple(source.shape[2:]), self.replay), batch.flip
            values = gather_maps(source, rows, boxes, flip, rule=self.replay)
            if grid is not None:
                larger = max(grid[0], size[0]), max(grid[1], size[1])
                values = CompactMap(values, arrays[f"map{pair}_energy"].index_select(0, rows), larger)
            maps.append(values)
        return Guide(tuple(maps), arrays["logits"].index_select(0, rows))

    def follow(self, loader):
        """``loader``, with the rows of its next batch read ahead where they are not on the device."""
        return self.reader.follow(loader, lambda batch: self.cache.rows(batch.sample_ids, batch.flip))

    def state_dict(self) -> dict:
        """The fingerprint; nothing else of a cache can change."""
        return {"cache": self.cache.manifest["fingerprint"]}

    def load_state_dict(self, state: dict) -> None:
        """Raises UserError when a run is resumed with other features than it was begun with."""
        if state.get("cache") != self.cache.manifest["fingerprint"]:
            raise UserError(f"the run was begun with other teacher features than {self.cache.path} holds")
