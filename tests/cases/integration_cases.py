"""A small student, its batch, torchdistill without guidance and a group of one process, for tests of the swaps."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from torch import nn

BLOCKS = [0, 1, 3]


def small_vit(**options) -> nn.Module:
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **sizes, **options)


def small_batch(size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, size, size, generator=generator), torch.arange(8) % 5


@contextmanager
def one_process(folder: Path):
    """A gloo group of this process alone, for DistributedDataParallel."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def torchdistill_config() -> dict:
    """torchdistill's training configuration of a student with cross-entropy alone."""
    cross_entropy = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
                "target": {"uses_label": True},
            },
        },
        "weight": 1.0,
    }
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.SequentialSampler},
            "kwargs": {"batch_size": 8, "num_workers": 0},
        },
        "val_data_loader": {},
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-2}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": cross_entropy}}},
    }


def torchdistill_box(config: dict, teacher: nn.Module, student: nn.Module, images: torch.Tensor, targets: torch.Tensor):
    """torchdistill's trainer of one batch."""
    from torchdistill.core.distillation import get_distillation_box

    dataset = {"train": [(image, int(target)) for image, target in zip(images, targets, strict=True)]}
    return get_distillation_box(teacher, student, dataset, config, torch.device("cpu"), None, False, 1)
