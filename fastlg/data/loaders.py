"""Choose a loader. All of them deliver the same samples, boxes and flips (data/plan.py)."""

from __future__ import annotations

import torch

from fastlg.data.plan import SamplePlan
from fastlg.data.store import Store
from fastlg.data.torch_loader import TorchLoader
from fastlg.errors import UserError


def make_loader(
    kind: str, store: Store, *, device: torch.device | str = "cpu", workers: int = 0, **plan
) -> TorchLoader:
    """The loader ``kind`` over ``store``.

    Args:
        kind: "torch" (Pillow in DataLoader workers) or "auto".
        device: where batches are delivered.
        workers: DataLoader processes of the torch loader.
        plan: the fields of SamplePlan: size, batch_size, train, seed, scale, ratio, ...

    Returns:
        ``len(loader)`` is the number of batches per epoch; ``loader.epoch(epoch, start_batch=0)`` yields Batch.

    Raises:
        UserError: an unknown kind.
    """
    sample_plan = SamplePlan(**plan)
    match kind:
        case "torch" | "auto":
            return TorchLoader(store, sample_plan, device=device, workers=workers)
        case _:
            raise UserError(f"data.loader={kind} is unknown; choose auto or torch")
