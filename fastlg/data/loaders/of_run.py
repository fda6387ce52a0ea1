"""The loaders of a run, from its config."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastlg import ranks
from fastlg.config import Config
from fastlg.data.loaders.choose import make_loader
from fastlg.data.loaders.crops import CropsLoader
from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.store.store import Store


def new_plan(config: Config, *, train: bool) -> SamplePlan:
    """What this rank's loaders deliver; ``train`` False cuts nothing and delivers every image once over all ranks."""
    augment, optim = config.augment, config.optim
    return SamplePlan(
        size=config.model.image_size,
        batch_size=optim.global_batch_size // ranks.world_size() if train else config.log.eval_batch_size,
        train=train,
        seed=config.run.seed,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        flip=augment.flip,
        interpolation=augment.interpolation,
        drop_last=optim.drop_last,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
    )


def new_loader(config: Config, store: Store, device: torch.device, *, train: bool, size: int | None = None):
    """Loader of this rank's part of one split; ``size`` in px, None: what the network sees."""
    plan = new_plan(config, train=train)
    plan = plan if size is None else replace(plan, size=size)
    return make_loader(config.data.loader, store, device=device, workers=config.data.workers, **vars(plan))


def new_crops_loader(config: Config, store: Store, device: torch.device, *, small_size: int) -> CropsLoader:
    """Loader of this rank's part of the training split, several crops of each image, as ``pretrain`` says."""
    own = config.pretrain
    return CropsLoader(
        config.data.loader,
        store,
        device=device,
        workers=config.data.workers,
        plan=vars(new_plan(config, train=True)),
        large_scale=own.global_scale,
        small_scale=own.local_scale,
        small_size=small_size,
        small_crops=own.local_crops,
    )
