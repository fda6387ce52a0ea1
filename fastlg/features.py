"""Feature caches of a run: what they must hold, where they lie, and how they are built. ``fastlg cache``."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastlg import __version__
from fastlg.assemble import Stores, new_model
from fastlg.config import Config
from fastlg.data.loaders.plan import Draw, SamplePlan
from fastlg.data.loaders.torch import TorchLoader
from fastlg.data.store.store import Store
from fastlg.data.views.make import ViewMaker
from fastlg.engine.precision import pick_device
from fastlg.errors import RunError, UserError
from fastlg.files.lock import file_lock
from fastlg.files.places import cache_root
from fastlg.files.progress import progress_bar
from fastlg.files.provenance import commit, device_name, versions
from fastlg.ranks.say import say
from fastlg.teacher.cache import format as cache_format
from fastlg.teacher.cache.read import FeatureCache, open_cache, stored_arrays
from fastlg.teacher.cache.write import CacheWriter
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
    if not cache_format.is_cache(job.path):
        if config.teacher.mode == "cache":
            raise UserError(_missing(job.path, job.fingerprint))
        if dry_run:
            say(f"cache    {job.path} would be built first ({job.sizes()}); the teacher runs online here")
            return None
        build(job, config, stores)
    features = open_cache(job.path, job.fingerprint)
    say(f"cache    {job.path}: {job.sizes()}")
    return features


def build_or_verify(config: Config, stores: Stores, model: nn.Module, teacher_size: int) -> Path:
    """The folder of a config's cache, built if need be, else read and hashed whole. Raises UserError, RunError."""
    job = plan_cache(config, stores, model, teacher_size)
    if cache_format.is_cache(job.path):
        open_cache(job.path, job.fingerprint, verify=True)
        say(f"cache    {job.path} is whole: {job.sizes()}")
    else:
        build(job, config, stores)
    return job.path


def expect_features(config: Config, stores: Stores, model: nn.Module, teacher_size: int, *, is_trained: bool) -> None:
    """For a teacher that is used later on. Raises UserError where its features are not kept as the config asks, or
    cannot be."""
    if config.teacher.mode == "online":
        return
    job = plan_cache(config, stores, model, teacher_size)
    if config.teacher.mode == "auto":
        expect_writable(config, job)
    elif not is_trained:
        raise UserError(
            f"teacher.mode=cache, but the teacher is not trained yet, so {job.path} cannot hold its features; run "
            "fastlg cache CONFIG, or set teacher.mode=auto"
        )
    elif not cache_format.is_cache(job.path):
        raise UserError(_missing(job.path, job.fingerprint))


def expect_writable(config: Config, job: CacheJob) -> None:
    """Raises UserError where the cache of ``job`` cannot be written; makes no folder."""
    if job.path.exists() and not cache_format.is_cache(job.path):
        raise UserError(_occupied(job.path))
    above = next(path for path in job.path.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES if above.is_dir() else errno.ENOTDIR)
        raise UserError(_unwritable(config, job.path, f"{above}: {reason}"))


def _occupied(path: Path) -> str:
    return f"{path} exists and is no feature cache; set teacher.cache to another folder"


def _unwritable(config: Config, path: Path, reason: object) -> str:
    setting = "teacher.cache" if config.teacher.cache else "FASTLG_CACHE (or teacher.cache)"
    return f"cannot write a feature cache at {path}: {reason}; set {setting} to a folder that is writable"


@dataclass(frozen=True)
class CacheJob:
    """A cache that may have to be built: where, what identifies it, and the teacher that fills it."""

    path: Path
    fingerprint: cache_format.Fingerprint
    teacher: OnlineTeacher
    map_shapes: list[tuple[int, int, int]]
    classes: int
    count: int

    @property
    def infos(self) -> list[cache_format.ArrayInfo]:
        return cache_format.array_infos(self.fingerprint, self.map_shapes, self.classes)

    @property
    def chunking(self) -> cache_format.Chunking:
        return cache_format.Chunking(self.count, cache_format.CHUNK)

    def sizes(self) -> str:
        """Size per image and in all, for a person."""
        per_image = sum(info.row_bytes for info in self.infos)
        values = sum(math.prod(info.shape) for info in self.infos if "_" not in info.name and info.name != "logits")
        sides = cache_format.orientations(self.fingerprint.transforms)
        both = " in each of both orientations" if sides == 2 else ""
        return (
            f"{self.count:,} images, {values // sides:,} values{both} as {self.fingerprint.dtype}, "
            f"{per_image / 1e3:.1f} kB an image, {self.count * per_image / 2**20:,.1f} MiB"
        )


def plan_cache(config: Config, stores: Stores, model: nn.Module, teacher_size: int) -> CacheJob:
    """What the cache of a config must be. ``model``: the trained teacher. Raises UserError for a form it cannot have.

    The student's view is a fixed one where every crop is the same in every epoch; then nothing but a flip has to be
    replayed, guidance from the cache is exact, and the compact form is possible.
    """
    settings, device = config.teacher, pick_device(config.engine)
    teacher = OnlineTeacher(model.to(device), stages=settings.stages, norm_stats=settings.norm_stats)
    maps = teacher(torch.zeros(1, 3, teacher_size, teacher_size, device=device)).maps
    shapes = [tuple(m.shape[1:]) for m in maps]
    moving = _moving_crops(config, stores.train)
    compact = settings.cache_form == "compact" or (settings.cache_form == "auto" and not moving)
    if compact and config.guidance.transform != "linear":
        if settings.cache_form == "compact":
            raise UserError(f"guidance.transform {config.guidance.transform} needs teacher.cache_form=maps")
        compact = False
    if compact and moving:
        raise UserError(f"teacher.cache_form=compact cannot replay crops: {moving}; use teacher.cache_form=maps")
    grids: list[tuple[int, int] | None] = [None] * len(shapes)
    if compact:
        own = new_model(config, len(stores.class_names)).grids
        grids = [g if math.prod(g) < math.prod(shape[1:]) else None for g, shape in zip(own, shapes, strict=True)]
    fixed = "flip" if config.augment.flip > 0 else "none"
    fingerprint = cache_format.Fingerprint(
        version=__version__,
        teacher=cache_format.weights_digest(model),
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
    return CacheJob(path, fingerprint, teacher, shapes, len(stores.class_names), len(stores.train))


def build(job: CacheJob, config: Config, stores: Stores) -> None:
    """Fills the cache of ``job``, going on where an earlier call stopped; waits while another process builds it.

    Raises UserError where it cannot be written or the disk is too small, RunError when the disk fills up on the way.
    """
    with contextlib.ExitStack() as stack:
        try:
            job.path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(job.path.with_name(job.path.name + ".lock"), f"building {job.path}"))
            if cache_format.is_cache(job.path):
                return  # by the process this one waited for
            if job.path.exists():
                raise UserError(_occupied(job.path))
            writer = CacheWriter(job.path, job.fingerprint, job.infos, job.chunking)
        except OSError as error:
            raise UserError(_unwritable(config, job.path, error.strerror or error)) from None
        free = shutil.disk_usage(writer.work).free
        say(f"cache    building {job.path}: {job.sizes()}; {free / 2**30:,.1f} GiB free")
        try:
            writer.check_space()
            _fill(writer, job, config, stores)
        except UserError:
            if not writer.done:
                writer.discard()
            raise
        except OSError as error:
            raise RunError(
                f"cannot go on writing the feature cache {job.path}: {error.strerror or error}; "
                f"{writer.done} of {job.chunking.chunks} chunks are kept, mend that and run again to go on"
            ) from None


def _fill(writer: CacheWriter, job: CacheJob, config: Config, stores: Stores) -> None:
    augment, device = config.augment, pick_device(config.engine)
    plan = CachePlan(
        size=config.model.image_size,
        batch_size=cache_format.CHUNK,
        train=True,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        interpolation=augment.interpolation,
        whole=job.fingerprint.transforms == "crop and flip",
    )
    loader = TorchLoader(stores.train, plan, device=device, workers=config.data.workers)
    views = ViewMaker(
        teacher_size=job.fingerprint.teacher_size,
        rand_augment=None,
        erase=0.0,
        mean=augment.mean,
        std=augment.std,
        teacher_source=job.fingerprint.view,
    )
    done, started = sum(chunk["rows"] for chunk in writer.chunks), time.perf_counter()
    with exact_convolutions(), progress_bar("features", job.count) as advance:
        advance(done)
        for batch in loader.epoch(0, writer.done):
            sides = []
            for side in range(cache_format.orientations(job.fingerprint.transforms)):
                view = views(batch._replace(flip=torch.full_like(batch.flip, side == 1)), 0).teacher
                sides.append(stored_arrays(job.teacher(view), job.fingerprint.grids))
            writer.add([torch.stack(arrays, dim=1) for arrays in zip(*sides, strict=True)])
            advance(len(batch.labels))
    rate = (job.count - done) / max(time.perf_counter() - started, 1e-9)
    about = {"source": config.data.source, "commit": commit(), "versions": versions(), "device": device_name(device)}
    writer.finish([shape[1:] for shape in job.map_shapes], {**about, "images_per_s": round(rate, 1)})
    say(f"cache    built at {rate:,.0f} images/s")


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """cuDNN multiplies in float32, not in TF32: what is made once and read ever after is right to the last bit."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before


@dataclass(frozen=True)
class CachePlan(SamplePlan):
    """Every sample once, unflipped, chunk by chunk: whole images, or the one crop that a fixed recipe gives each."""

    whole: bool = True

    def _chunking(self, count: int) -> cache_format.Chunking:
        return cache_format.Chunking(count, self.batch_size)

    def order(self, count: int, epoch: int) -> Tensor:
        chunking = self._chunking(count)
        return torch.cat([chunking.sample_ids(chunk) for chunk in range(chunking.chunks)])

    def slices(self, count: int) -> list[slice]:
        chunking = self._chunking(count)
        ends = [0]
        for chunk in range(chunking.chunks):
            ends.append(ends[-1] + len(chunking.sample_ids(chunk)))
        return [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]

    def draw(self, sample_ids: Tensor, sizes: Tensor, epoch: int) -> Draw:
        own = sizes[sample_ids]
        boxes = torch.cat([torch.zeros_like(own), own], dim=1)
        if not self.whole:
            boxes = super().draw(sample_ids, sizes, 0).boxes
        return Draw(sample_ids, boxes, torch.zeros(len(sample_ids), dtype=torch.bool))


def _moving_crops(config: Config, store: Store) -> str:
    """Why the crops of a config differ from epoch to epoch; "" when they never do."""
    augment = config.augment
    for name in ("crop_scale", "crop_ratio"):
        if tuple(getattr(augment, name)) != (1.0, 1.0):
            return f"augment.{name} is {list(getattr(augment, name))}, not [1, 1]"
    height, width = torch.from_numpy(store.sizes).double().unbind(1)
    jitter = (height != width) & (torch.round(torch.sqrt(height * width)) <= torch.minimum(height, width))
    if jitter.any():
        first = int(jitter.nonzero()[0])
        return f"image {first} of {store.path} is {int(height[first])} x {int(width[first])} px, its square crop moves"
    return ""


def _missing(path: Path, wanted: cache_format.Fingerprint) -> str:
    """The error for a cache that is not there, with the nearest one beside it and how that differs."""
    nearest: tuple[int, str] | None = None
    for manifest in sorted(path.parent.glob(f"*/{cache_format.MANIFEST}")):
        try:
            differing = wanted.differences(cache_format.read_manifest(manifest.parent)["fingerprint"])
        except UserError:
            continue
        if nearest is None or len(differing) < nearest[0]:
            nearest = len(differing), f" ({manifest.parent} differs: {'; '.join(differing[:3])})"
    known = nearest[1] if nearest else ""
    return f"there is no feature cache {path}{known}; run fastlg cache CONFIG, or set teacher.mode=auto"
