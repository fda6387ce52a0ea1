"""Fill a feature cache: its job, the checks before it, the pass over all chunks."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastlg.errors import RunError, UserError
from fastlg.files.lock import file_lock
from fastlg.files.progress import progress_bar
from fastlg.files.provenance import commit, device_name, versions
from fastlg.ranks.say import say
from fastlg.teacher.cache import format as cache_format
from fastlg.teacher.cache.format import (
    MANIFEST,
    ArrayInfo,
    Chunking,
    Fingerprint,
    array_infos,
    is_cache,
    orientations,
    read_manifest,
)
from fastlg.teacher.cache.read import stored_arrays
from fastlg.teacher.cache.write import CacheWriter
from fastlg.teacher.online import OnlineTeacher


@dataclass(frozen=True)
class CacheJob:
    """A cache that may have to be built: where, what identifies it, and the teacher that fills it."""

    path: Path
    fingerprint: Fingerprint
    teacher: OnlineTeacher
    device: torch.device
    map_shapes: list[tuple[int, int, int]]
    classes: int
    count: int
    setting: str  # what a user sets to keep it elsewhere

    @property
    def infos(self) -> list[ArrayInfo]:
        return array_infos(self.fingerprint, self.map_shapes, self.classes)

    @property
    def chunking(self) -> Chunking:
        return Chunking(self.count, cache_format.CHUNK)

    def sizes(self) -> str:
        """Size per image and in all, for a person."""
        per_image = sum(info.row_bytes for info in self.infos)
        values = sum(math.prod(info.shape) for info in self.infos if "_" not in info.name and info.name != "logits")
        sides = orientations(self.fingerprint.transforms)
        both = " in each of both orientations" if sides == 2 else ""
        return (
            f"{self.count:,} images, {values // sides:,} values{both} as {self.fingerprint.dtype}, "
            f"{per_image / 1e3:.1f} kB an image, {self.count * per_image / 2**20:,.1f} MiB"
        )


def expect_writable(job: CacheJob) -> None:
    """Raises UserError where the cache of ``job`` cannot be written; makes no folder."""
    if job.path.exists() and not is_cache(job.path):
        raise UserError(_occupied(job.path))
    above = next(path for path in job.path.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES if above.is_dir() else errno.ENOTDIR)
        raise UserError(_unwritable(job, f"{above}: {reason}"))


def _occupied(path: Path) -> str:
    return f"{path} exists and is no feature cache; set teacher.cache to another folder"


def _unwritable(job: CacheJob, reason: object) -> str:
    return f"cannot write a feature cache at {job.path}: {reason}; set {job.setting} to a folder that is writable"


def build(job: CacheJob, views: Callable[[int], Iterable[list[Tensor]]], source: str) -> None:
    """Fills the cache of ``job``, going on where an earlier call stopped; waits while another process builds it.

    views   ``views(first)``: the teacher's views of the samples of each chunk from ``first`` on, in the chunk's order,
            on the device; one tensor [N, 3, T, T] for each orientation
    source  what the images came from, for the manifest

    Raises UserError where it cannot be written or the disk is too small, RunError when the disk fills up on the way.
    """
    with contextlib.ExitStack() as stack:
        try:
            job.path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(job.path.with_name(job.path.name + ".lock"), f"building {job.path}"))
            if is_cache(job.path):
                return  # by the process this one waited for
            if job.path.exists():
                raise UserError(_occupied(job.path))
            writer = CacheWriter(job.path, job.fingerprint, job.infos, job.chunking)
        except OSError as error:
            raise UserError(_unwritable(job, error.strerror or error)) from None
        free = shutil.disk_usage(writer.work).free
        say(f"cache    building {job.path}: {job.sizes()}; {free / 2**30:,.1f} GiB free")
        try:
            writer.check_space()
            _fill(writer, job, views, source)
        except UserError:
            if not writer.done:
                writer.discard()
            raise
        except OSError as error:
            raise RunError(
                f"cannot go on writing the feature cache {job.path}: {error.strerror or error}; "
                f"{writer.done} of {job.chunking.chunks} chunks are kept, mend that and run again to go on"
            ) from None


def _fill(writer: CacheWriter, job: CacheJob, views: Callable[[int], Iterable[list[Tensor]]], source: str) -> None:
    done, started = sum(chunk["rows"] for chunk in writer.chunks), time.perf_counter()
    with exact_convolutions(), progress_bar("features", job.count) as advance:
        advance(done)
        for sides in views(writer.done):
            arrays = [stored_arrays(job.teacher(view), job.fingerprint.grids) for view in sides]
            writer.add([torch.stack(each, dim=1) for each in zip(*arrays, strict=True)])
            advance(len(sides[0]))
    rate = (job.count - done) / max(time.perf_counter() - started, 1e-9)
    about = {"source": source, "commit": commit(), "versions": versions(), "device": device_name(job.device)}
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


def missing(path: Path, wanted: Fingerprint) -> str:
    """The error for a cache that is not there, with the nearest one beside it and how that differs."""
    nearest: tuple[int, str] | None = None
    for manifest in sorted(path.parent.glob(f"*/{MANIFEST}")):
        try:
            differing = wanted.differences(read_manifest(manifest.parent)["fingerprint"])
        except UserError:
            continue
        if nearest is None or len(differing) < nearest[0]:
            nearest = len(differing), f" ({manifest.parent} differs: {'; '.join(differing[:3])})"
    known = nearest[1] if nearest else ""
    return f"there is no feature cache {path}{known}; run fastlg cache CONFIG, or set teacher.mode=auto"
