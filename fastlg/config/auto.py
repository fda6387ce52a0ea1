"""Values that are ``auto``: rules that make them of the images, for some 500 to 20,000 (docs/own_images.md)."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from fastlg.errors import UserError

if TYPE_CHECKING:
    from fastlg.config.whole import Config

AUTO = "auto"
BATCH, FEWEST_STEPS = 32, 10
UPDATES_BY_ROOT, UPDATES_BY_CLASS = 100, 50
FEW_EPOCHS = 5  # below, nothing warms up nor rises
WARM_UP = 1 / 20  # of the epochs
PRETRAIN_WARM_UP = 0.15  # the same without labels: Gani et al. 2022
PRETRAIN_RATE = 1e-4 / 256  # of a sample of an update, for training without labels: Gani et al. 2022
MANY_EPOCHS = 50  # from here on images are seen so often that they have to differ
LITTLE_PX = 64  # images up to this side hold no more detail
RISING = ((0.0, 0.5), (0.3, 0.75), (0.6, 1.0))  # share of the epochs, and of the side from there on
PLAIN = re.compile(r"(vit|deit)_(tiny|small|base)_patch(\d+)_\d+")  # of timm, which take images of several sizes
SHAPE = {"patch_size", "embed_dim", "depth", "num_heads"}  # arguments that leave them so
RATES = {"muon": (4e-3, 8e-3), "adamw": (5e-4, 2e-3)}  # unguided, guided: the best measured (docs/recipe.md)
KEYS = (
    "model.image_size",
    "model.resolution",
    "optim.global_batch_size",
    "optim.epochs",
    "optim.warmup_epochs",
    "optim.lr",
    "augment.rand_augment",
    "augment.erase",
)


class Facts(NamedTuple):
    """Of the training images: how many, of how many classes, and the median of their shorter sides in px."""

    images: int
    classes: int
    side: int


def open_keys(config: Config) -> list[str]:
    """The keys of ``config`` that are ``auto`` and wait for the images."""
    return [key for key in KEYS if getattr(getattr(config, key.partition(".")[0]), key.partition(".")[2]) == AUTO]


def values_of(config: Config, facts: Facts) -> dict[str, Any]:
    """Dotted key -> value of each of ``open_keys``. Raises UserError where there is no rule."""
    optim, waiting = config.optim, open_keys(config)
    batch = optim.global_batch_size if optim.global_batch_size != AUTO else _batch(facts.images)
    epochs = optim.epochs if optim.epochs != AUTO else _epochs(facts, batch, drop_last=optim.drop_last)
    model, size = config.model, config.model.image_size
    warm_up = WARM_UP if config.pretrain is None else PRETRAIN_WARM_UP
    size = size if size != AUTO else _image_size(facts.side, is_cnn=model.is_cnn)
    found = {
        "model.image_size": size,
        "model.resolution": _resolution(config, size) if epochs >= FEW_EPOCHS else [],
        "optim.global_batch_size": batch,
        "optim.epochs": epochs,
        "optim.warmup_epochs": max(1, round(warm_up * epochs)) if epochs >= FEW_EPOCHS else 0,
        "augment.rand_augment": "rand-m9-mstd0.5-inc1" if epochs >= MANY_EPOCHS else None,
        "augment.erase": 0.25 if epochs >= MANY_EPOCHS else 0.0,
    }
    if "optim.lr" in waiting:
        if optim.name not in RATES:
            raise UserError(f"optim.lr is auto, which knows {' and '.join(RATES)}, not {optim.name}; give a number")
        found["optim.lr"] = RATES[optim.name][is_guided(config)]
        if config.pretrain is not None:
            found["optim.lr"] = PRETRAIN_RATE * batch
    return {key: found[key] for key in waiting}


def is_guided(config: Config) -> bool:
    """Whether what the teacher says counts at all."""
    return config.teacher is not None and (config.guidance.weight > 0 or config.guidance.logits != "none")


def _image_size(side: int, *, is_cnn: bool) -> int:
    """Of a CNN, which teaches, about half the student's; images that are little themselves need fewer patches."""
    return (32, 64)[side > LITTLE_PX] if is_cnn else (64, 96)[side > LITTLE_PX]


def _resolution(config: Config, size: int) -> list[tuple[float, int]]:
    """Half, three quarters, then all of the side, in whole patches; [] where not every part of the run could follow."""
    model, teacher = config.model, config.teacher
    plain = PLAIN.fullmatch(model.name)
    is_compact = teacher is not None and teacher.cache_form == "compact"
    if plain is None or not model.args.keys() <= SHAPE or config.drloc.weight > 0 or is_compact:
        return []
    patch = model.args.get("patch_size", int(plain[3]))
    if not isinstance(patch, int) or patch < 1 or size % patch or size < 4 * patch:
        return []
    return [(share, max(1, int(part * size / patch)) * patch) for share, part in RISING]


def _batch(images: int) -> int:
    """32, or the largest power of two of which an epoch has ten, 4 at least."""
    return min(BATCH, max(4, 1 << max(0, (images // FEWEST_STEPS).bit_length() - 1)))


def _epochs(facts: Facts, batch: int, *, drop_last: bool) -> int:
    """As many as make max(100 sqrt(images), 50 classes) updates: it is updates that a small set lacks, not epochs."""
    updates = max(UPDATES_BY_ROOT * math.sqrt(facts.images), UPDATES_BY_CLASS * facts.classes)
    steps = facts.images // batch if drop_last and facts.images >= batch else math.ceil(facts.images / batch)
    return max(1, math.ceil(updates / steps))
