"""Choose a loader. All of them deliver the same samples, boxes and flips (data/loaders/plan.py)."""

from __future__ import annotations

import logging

import torch

from fastlg.data.loaders.dali import DaliLoader
from fastlg.data.loaders.ffcv import FfcvLoader
from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.loaders.resident import ResidentLoader
from fastlg.data.loaders.torch import TorchLoader
from fastlg.data.store.store import Store
from fastlg.errors import UserError

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.5  # of the GPU's free memory that a store may take


def make_loader(
    kind: str,
    store: Store,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    memory_share: float = MEMORY_SHARE,
    **plan,
) -> TorchLoader | ResidentLoader | FfcvLoader | DaliLoader:
    """The loader ``kind`` over ``store``.

    Args:
        kind: "resident" (the store on the device), "ffcv" or "dali" (that library over the store or its .beton file),
            "torch" (Pillow in DataLoader workers), or "auto": resident on a GPU where the store fits into
            ``memory_share`` of its free memory, else torch.
        device: where batches are delivered.
        workers: DataLoader processes of the torch loader, threads of ffcv and dali.
        plan: the fields of SamplePlan: size, batch_size, train, seed, scale, ratio, ...

    Returns:
        ``len(loader)`` is the number of batches per epoch; ``loader.epoch(epoch, start_batch=0)`` yields Batch.

    Raises:
        UserError: an unknown kind, or a library that is not installed.
    """
    sample_plan, device = SamplePlan(**plan), torch.device(device)
    if kind == "auto":
        kind = "resident" if _fits(store, device, memory_share) else "torch"
        log.info("data.loader=auto: %s loader for %s (%.0f MiB)", kind, store.split, len(store.pixels) / 2**20)
    match kind:
        case "resident":
            return ResidentLoader(store, sample_plan, device=device)
        case "ffcv":
            return FfcvLoader(store, sample_plan, device=device, workers=workers)
        case "dali":
            return DaliLoader(store, sample_plan, device=device, workers=workers)
        case "torch":
            return TorchLoader(store, sample_plan, device=device, workers=workers)
        case _:
            raise UserError(f"data.loader={kind} is unknown; choose auto, resident, ffcv, dali or torch")


def _fits(store: Store, device: torch.device, share: float) -> bool:
    """On the CPU never: there Pillow cuts crops faster than the batched kernel's plain torch twin."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(store.pixels) <= share * free
