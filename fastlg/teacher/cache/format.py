"""What a feature cache is on disk: layout, fingerprint, checks. write.py writes it, read.py reads it.

    CACHE/manifest.json     fingerprint, arrays, per chunk its rows and a SHA-256 per array, its own digest
    CACHE/NAME.bin          one array, row after row: map0, map1, ... (map0_energy where compact), and logits
    CACHE/checked.json      size and modification time of each array when it was last found whole

A chunk holds every ``chunk_count``-th sample (sample_id modulo chunk_count), so that a store sorted by class gives
mixed batches to a teacher that normalises by the batch, and no batch is ever small.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastlg.errors import UserError

FORMAT = 1  # part of the fingerprint: raised when cached values or their meaning change
MANIFEST = "manifest.json"
CHUNK = 200  # images per chunk and teacher call, the reference code's
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_STORED_AS = {"fp16": np.float16, "bf16": np.uint16, "fp32": np.float32}  # numpy knows no bfloat16


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides the numbers of a cache. Two caches are the same when all fields agree.

    version     fastlg's version        format  of the files and of the meaning of their numbers
    teacher     SHA-256 of its weights and statistics            store  fingerprint of the dataset's store
    norm_stats  batch or running        chunk   images per teacher call with batch statistics, else 0
    image_size, teacher_size            px, of the student's and the teacher's view
    view        student or source: what the teacher's view is cut from
    mean, std, interpolation            of the student's view
    dtype       of the stored maps      stages  of the teacher
    grids       per pair: (H, W) of the student's grid where it is compact, None where the map itself is stored
    transforms  what a reader can replay: "crop and flip", or "flip" / "none" of one fixed crop
    """

    version: str
    teacher: str
    norm_stats: str
    chunk: int
    store: str
    image_size: int
    teacher_size: int
    view: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    dtype: str
    stages: tuple[int, ...]
    grids: tuple[tuple[int, int] | None, ...]
    transforms: str
    format: int = FORMAT

    def fields(self) -> dict:
        """As JSON gives them back."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.fields(), sort_keys=True).encode()).hexdigest()

    def differences(self, found: dict) -> list[str]:
        """'teacher: 1f2e3d4c5b6a in the cache, 9a8b7c6d5e4f wanted', one per field that differs."""
        wanted = self.fields()
        names = [name for name in wanted | found if wanted.get(name) != found.get(name)]
        return [f"{name}: {_short(found.get(name))} in the cache, {_short(wanted.get(name))} wanted" for name in names]


@dataclass(frozen=True)
class ArrayInfo:
    """One array: ``shape`` of a row, which is one sample in all its orientations."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Chunking:
    """Which row of the arrays holds which sample."""

    count: int  # samples
    chunk: int  # samples per chunk, at most

    @property
    def chunks(self) -> int:
        return -(-self.count // self.chunk)

    def sample_ids(self, chunk: int) -> Tensor:
        """int64: the samples of a chunk, in the order of its rows."""
        return torch.arange(chunk, self.count, self.chunks)

    def rows(self, sample_ids: Tensor) -> Tensor:
        """int64 [N]: the row of each sample."""
        chunk, index = sample_ids % self.chunks, sample_ids // self.chunks
        whole, rest = divmod(self.count, self.chunks)
        return chunk * whole + chunk.clamp(max=rest) + index


def array_infos(fingerprint: Fingerprint, shapes: list[tuple[int, int, int]], classes: int) -> list[ArrayInfo]:
    """The arrays of a cache. ``shapes``: [C, h, w] of each pair's map."""
    sides = orientations(fingerprint.transforms)
    infos = []
    for pair, (grid, (channels, *size)) in enumerate(zip(fingerprint.grids, shapes, strict=True)):
        infos.append(ArrayInfo(f"map{pair}", (sides, channels, *(grid or size)), fingerprint.dtype))
        if grid is not None:
            infos.append(ArrayInfo(f"map{pair}_energy", (sides,), "fp32"))
    infos.append(ArrayInfo("logits", (sides, classes), "fp32"))
    return infos


def orientations(transforms: str) -> int:
    """Stored orientations per sample: a strided CNN is not flip-equivariant, so an exact cache holds both."""
    return 2 if transforms == "flip" else 1


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a teacher's parameters, statistics and ``identity``, where it has one; the batch counters of its norms
    do not count."""
    digest = hashlib.sha256(getattr(model, "identity", "").encode())
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_manifest(path: Path) -> dict:
    """The manifest of the cache at ``path``. Raises UserError when there is none or it was altered."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        whole = manifest["kind"] == "fastlg features" and manifest.pop("sha256") == manifest_digest(manifest)
    except FileNotFoundError:
        raise UserError(f"{path} is no feature cache (no {MANIFEST}); make one with fastlg cache CONFIG") from None
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise broken(path, f"{MANIFEST} was altered or cannot be read")
    return manifest


def is_cache(path: Path) -> bool:
    """Whether a manifest lies at ``path``; the files are not checked."""
    return (path / MANIFEST).is_file()


def manifest_digest(manifest: dict) -> str:
    """SHA-256 of a manifest without its own ``sha256`` entry."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def check_files(path: Path, manifest: dict, *, always: bool) -> None:
    """Sizes of all arrays, and their hashes where a file is not as it was when last checked (``always``: all).

    Raises UserError that names file and bytes.
    """
    stamp = {} if always else _stamp(path)
    for number, array in enumerate(manifest["arrays"]):
        info, name = ArrayInfo(**array), f"{array['name']}.bin"
        expected = sum(chunk["rows"] for chunk in manifest["chunks"]) * info.row_bytes
        try:
            status = (path / name).stat()
        except OSError:
            raise broken(path, f"{name} is missing") from None
        if status.st_size != expected:
            raise broken(path, f"{name} has {status.st_size} bytes instead of {expected}")
        if stamp.get(name) == [status.st_size, status.st_mtime_ns]:
            continue
        with open(path / name, "rb") as file:
            for index, chunk in enumerate(manifest["chunks"]):
                start, size = file.tell(), chunk["rows"] * info.row_bytes
                if hashlib.sha256(file.read(size)).hexdigest() != chunk["sha256"][number]:
                    raise broken(path, f"{name} was altered between bytes {start} and {start + size} (chunk {index})")
    write_stamp(path, manifest)


def write_stamp(path: Path, manifest: dict) -> None:
    """Notes that the arrays were found whole as they are now; a read-only cache goes without."""
    with contextlib.suppress(OSError):
        status = {f"{a['name']}.bin": (path / f"{a['name']}.bin").stat() for a in manifest["arrays"]}
        (path / "checked.json").write_text(json.dumps({n: [s.st_size, s.st_mtime_ns] for n, s in status.items()}))


def map_array(path: Path, info: ArrayInfo, rows: int) -> Tensor:
    """[rows, *shape] in the stored dtype, memory-mapped; the file cannot be changed through it."""
    shape = (rows, *info.shape)
    mapped = np.memmap(path / f"{info.name}.bin", dtype=_STORED_AS[info.dtype], mode="c", shape=shape)
    return torch.from_numpy(mapped).view(DTYPES[info.dtype])


def broken(path: Path, reason: str) -> UserError:
    return UserError(f"feature cache {path} is damaged: {reason}; delete it and run fastlg cache again")


def _stamp(path: Path) -> dict:
    try:
        return json.loads((path / "checked.json").read_text())
    except (OSError, ValueError):
        return {}


def _short(value) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
