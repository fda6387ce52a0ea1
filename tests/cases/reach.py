"""The table of test_config_reaches.py: which check holds which config fields, and the small runs the checks look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from pydantic import BaseModel

from fastlg.assemble import assemble
from fastlg.config import Config, load_config
from fastlg.data.stores import open_stores
from fastlg.models.resnet_cifar import resnet20

ROWS: list[tuple[Callable, tuple[str, ...]]] = []
BARE = (  # nothing random but the order of the images
    "augment.rand_augment=null",
    "augment.erase=0",
    "augment.flip=0",
    "augment.crop_scale=[1,1]",
    "augment.crop_ratio=[1,1]",
    "model.drop_path=0",
    "engine.device=cpu",
    "engine.precision=fp32",
)
ALONE = ("teacher=null", *BARE)


def reaches(*fields: str):
    """The decorated check, a function of ``tmp_path`` and ``monkeypatch``, fails where one of ``fields`` is lost."""

    def register(check):
        ROWS.append((check, fields))
        return check

    return register


def all_fields(section: type[BaseModel] = Config, prefix: str = "") -> set[str]:
    """Dotted names of every field below ``section``."""
    found = set()
    for name, field in section.model_fields.items():
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if isinstance(t, type)]
        below = [t for t in inner if issubclass(t, BaseModel)]
        found |= all_fields(below[0], f"{prefix}{name}.") if below else {f"{prefix}{name}"}
    return found


def config_of(*overrides: str) -> Config:
    return load_config("student.yaml", list(overrides))


def teacher_model():
    """The same fixed ResNet-20 at every call, sure of what it says (of small logits a temperature changes next to
    nothing); its running statistics are those of noise, not 0 and 1."""
    torch.manual_seed(9)
    model = resnet20(3)
    with torch.no_grad():
        model.head.weight.mul_(100)
    model.train()(torch.randn(32, 3, 16, 16))
    return model.eval()


def parts_of(*overrides: str, features=None):
    """Assembled parts of student.yaml, in training mode."""
    config = config_of(*overrides)
    teacher = teacher_model() if config.teacher is not None else None
    parts = assemble(config, open_stores(config.data), teacher, 16 if teacher is not None else None, features)
    parts.unit.train()
    return parts


def first_batch(*overrides: str, epoch: int = 0):
    """(parts, batch, views) of the first batch."""
    parts = parts_of(*overrides)
    batch = next(iter(parts.train_loader.epoch(epoch)))
    return parts, batch, parts.views(batch, epoch)


def pixels_of(batch) -> torch.Tensor:
    """float32 [N, 3, S, S] in 0..1."""
    return batch.images.permute(0, 3, 1, 2).float() / 255


def normalised(pixels: torch.Tensor, config: Config) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.augment.mean, config.augment.std))
    return (pixels - mean) / std
