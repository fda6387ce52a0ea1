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
    plan = vars(new_plan(config, train=True))
    return _crops_loader(config, config.data.loader, store, device, plan, small_size, config.pretrain.local_crops)


def new_first_loader(config: Config, store: Store, device: torch.device):
    """Loader of what a student sees large of the training split, in whole batches: of all ranks, on each alike."""
    plan = {**vars(new_plan(config, train=True)), "rank": 0, "world_size": 1}
    plan["batch_size"] = config.optim.global_batch_size
    if config.pretrain is None:
        return make_loader("torch", store, device=device, **plan)
    return _crops_loader(config, "torch", store, device, plan, plan["size"], 0)


def _crops_loader(
    config: Config, kind: str, store: Store, device: torch.device, plan: dict, small_size: int, small_crops: int
) -> CropsLoader:
    own = config.pretrain
    return CropsLoader(
        kind,
        store,
        device=device,
        workers=config.data.workers,
        plan=plan,
        large_scale=own.global_scale,
        small_scale=own.local_scale,
        small_size=small_size,
        small_crops=small_crops,
    )
