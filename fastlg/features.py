"""The feature cache of a run: what it must hold, where it lies, and the views that fill it. Wiring, nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fastlg import __version__
from fastlg.config import Config
from fastlg.data.loaders.once import OncePlan, moving_crops
from fastlg.data.loaders.torch import TorchLoader
from fastlg.data.stores import Stores
from fastlg.data.views.make import ViewMaker
from fastlg.engine.precision import pick_device
from fastlg.errors import UserError
from fastlg.files.places import cache_root
from fastlg.models.build import new_model
from fastlg.ranks.say import say
from fastlg.teacher.cache import format as cache_format
from fastlg.teacher.cache.build import CacheJob, build, expect_writable, missing
from fastlg.teacher.cache.format import Fingerprint, is_cache, orientations, weights_digest
from fastlg.teacher.cache.read import FeatureCache, open_cache
from fastlg.teacher.online import OnlineTeacher


def find_features(
    config: Config, stores: Stores, model: nn.Module, teacher_size: int, *, dry_run: bool = False
) -> FeatureCache | None:
    """The cache a run reads its teacher from, built first where ``teacher.mode`` is auto; None for mode online.

    A dry run builds nothing: without a cache its teacher runs online. Raises UserError, RunError.
    """
    if config.teacher.mode == "online":
        return None
    job = plan_cache(config, stores, model, teacher_size)
    if not is_cache(job.path):
        if config.teacher.mode == "cache":
            raise UserError(missing(job.path, job.fingerprint))
        if dry_run:
            say(f"cache    {job.path} would be built first ({job.sizes()}); the teacher runs online here")
            return None
        build_cache(job, config, stores)
    features = open_cache(job.path, job.fingerprint)
    say(f"cache    {job.path}: {job.sizes()}")
    return features


def build_or_verify(config: Config, stores: Stores, model: nn.Module, teacher_size: int) -> Path:
    """The folder of a config's cache, built if need be, else read and hashed whole. Raises UserError, RunError."""
    job = plan_cache(config, stores, model, teacher_size)
    if is_cache(job.path):
        open_cache(job.path, job.fingerprint, verify=True)
        say(f"cache    {job.path} is whole: {job.sizes()}")
    else:
        build_cache(job, config, stores)
    return job.path


def expect_features(config: Config, stores: Stores, model: nn.Module, teacher_size: int, *, is_trained: bool) -> None:
    """For a teacher that is used later on. Raises UserError where its features are not kept as the config asks, or
    cannot be."""
    if config.teacher.mode == "online":
        return
    job = plan_cache(config, stores, model, teacher_size)
    if config.teacher.mode == "auto":
        expect_writable(job)
    elif not is_trained:
        raise UserError(
            f"teacher.mode=cache, but the teacher is not trained yet, so {job.path} cannot hold its features; run "
            "fastlg cache CONFIG, or set teacher.mode=auto"
        )
    elif not is_cache(job.path):
        raise UserError(missing(job.path, job.fingerprint))


def plan_cache(config: Config, stores: Stores, model: nn.Module, teacher_size: int) -> CacheJob:
    """What the cache of a config must be. ``model``: the trained teacher. Raises UserError for a form it cannot have.

    The student's view is a fixed one where every crop is the same in every epoch; then nothing but a flip has to be
    replayed, guidance from the cache is exact, and the compact form is possible.
    """
    settings, device = config.teacher, pick_device(config.engine)
    teacher = OnlineTeacher(model.to(device), stages=settings.stages, norm_stats=settings.norm_stats)
    maps = teacher(torch.zeros(2, 3, teacher_size, teacher_size, device=device)).maps  # one has no batch statistics
    shapes = [tuple(m.shape[1:]) for m in maps]
    moving = moving_crops(config.augment, stores.train)
    compact = settings.cache_form == "compact" or (
        settings.cache_form == "auto" and not moving and not config.model.resolution
    )
    if compact and config.guidance.transform != "linear":
        if settings.cache_form == "compact":
            raise UserError(f"guidance.transform {config.guidance.transform} needs teacher.cache_form=maps")
        compact = False
    if compact and moving:
        raise UserError(f"teacher.cache_form=compact cannot replay crops: {moving}; use teacher.cache_form=maps")
    grids: list[tuple[int, int] | None] = [None] * len(shapes)
    if compact:
        own = new_model(config.model, config.teacher, len(stores.class_names)).grids
        grids = [g if math.prod(g) < math.prod(shape[1:]) else None for g, shape in zip(own, shapes, strict=True)]
    fixed = "none" if config.augment.flip == 0 else "flip"
    fingerprint = Fingerprint(
        version=__version__,
        teacher=weights_digest(model),
        norm_stats=settings.norm_stats,
        chunk=cache_format.CHUNK if settings.norm_stats == "batch" else 0,
        store=stores.train.fingerprint,
        image_size=config.model.image_size,
        teacher_size=teacher_size,
        view=settings.view,
        mean=config.augment.mean,
        std=config.augment.std,
        interpolation=config.augment.interpolation,
        dtype=settings.cache_dtype,
        stages=tuple(settings.stages),
        grids=tuple(grids),
        transforms="crop and flip" if moving else fixed,
    )
    name = f"{stores.path.name}-{fingerprint.digest[:12]}"
    path = settings.cache.expanduser() if settings.cache else cache_root() / "features" / name
    setting = "teacher.cache" if settings.cache else "FASTLG_CACHE (or teacher.cache)"
    return CacheJob(path, fingerprint, teacher, device, shapes, len(stores.class_names), len(stores.train), setting)


def build_cache(job: CacheJob, config: Config, stores: Stores) -> None:
    """Fills the cache of ``job`` from the run's training images. Raises UserError, RunError."""
    build(job, lambda first: teacher_views(job, config, stores, first), config.data.source)


def teacher_views(job: CacheJob, config: Config, stores: Stores, first: int) -> Iterator[list[Tensor]]:
    """Of each chunk from ``first`` on: the teacher's view as it is, and mirrored where the run flips."""
    augment, chunking = config.augment, job.chunking
    plan = OncePlan(
        size=config.model.image_size,
        batch_size=cache_format.CHUNK,
        train=True,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        interpolation=augment.interpolation,
        chunks=tuple(chunking.sample_ids(chunk) for chunk in range(chunking.chunks)),
        whole=job.fingerprint.transforms == "crop and flip",
    )
    loader = TorchLoader(stores.train, plan, device=job.device, workers=config.data.workers)
    views = ViewMaker(
        teacher_size=job.fingerprint.teacher_size,
        rand_augment=None,
        erase=0.0,
        mean=augment.mean,
        std=augment.std,
        teacher_source=job.fingerprint.view,
    )
    for batch in loader.epoch(0, first):
        yield [
            views(batch._replace(flip=torch.full_like(batch.flip, side == 1)), 0).teacher
            for side in range(orientations(job.fingerprint.transforms))
        ]
