"""Writing a feature cache chunk by chunk: a kill or a full disk costs the chunk in work, nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from fastlg.errors import RunError, UserError
from fastlg.files.atomic import write_whole
from fastlg.teacher.cache.format import DTYPES, MANIFEST, ArrayInfo, Chunking, Fingerprint, manifest_digest, write_stamp

_RESERVE = 64 << 20  # bytes a disk must keep free beside the cache


class CacheWriter:
    """Appends chunks to a hidden folder beside ``path``, which becomes the cache when it is whole.

    ``done`` chunks were written by earlier calls; go on behind them. One writer at a time: the caller holds a lock.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, infos: list[ArrayInfo], chunking: Chunking):
        self.path, self.fingerprint, self.infos, self.chunking = path, fingerprint, infos, chunking
        self.work = path.with_name(f".{path.name}.partial")
        if self.work.is_dir() and _read(self.work / "fingerprint") != fingerprint.digest:
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "fingerprint").write_text(fingerprint.digest)
        self.chunks = self._finished_chunks()

    @property
    def done(self) -> int:
        return len(self.chunks)

    def check_space(self) -> None:
        """Raises UserError when the disk cannot hold what is still to be written."""
        left = self.chunking.count - sum(chunk["rows"] for chunk in self.chunks)
        needed = left * sum(info.row_bytes for info in self.infos) + _RESERVE
        free = shutil.disk_usage(self.work).free
        if free < needed:
            raise UserError(
                f"the feature cache needs {needed / 2**30:.2f} GiB more at {self.path.parent}, which has "
                f"{free / 2**30:.2f} GiB free; set teacher.cache to a folder on a larger disk"
            )

    def add(self, arrays: list[Tensor]) -> None:
        """Writes the next chunk: per array its rows, in the order of ``infos``. Raises RunError, OSError."""
        digests = []
        for info, values in zip(self.infos, arrays, strict=True):
            data = self._bytes(info, values)
            with open(self.work / f"{info.name}.bin", "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            digests.append(hashlib.sha256(data).hexdigest())
        chunk = {"rows": len(arrays[0]), "sha256": digests}
        with open(self.work / "chunks.jsonl", "a", encoding="utf-8") as journal:  # last: only whole chunks are in it
            journal.write(json.dumps(chunk) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self.chunks.append(chunk)

    def discard(self) -> None:
        """Removes what was written so far."""
        shutil.rmtree(self.work)

    def finish(self, map_sizes: list[tuple[int, int]], about: dict) -> None:
        """Writes the manifest and moves the cache to its place.

        map_sizes: (h, w) of each pair's own map. about: for people, never compared.
        """
        manifest = {
            "kind": "fastlg features",
            "fingerprint": self.fingerprint.fields(),
            "count": self.chunking.count,
            "chunk": self.chunking.chunk,
            "arrays": [vars(info) for info in self.infos],
            "chunks": self.chunks,
            "map_sizes": map_sizes,
            "about": about,
        }
        manifest = json.loads(json.dumps(manifest))
        manifest["sha256"] = manifest_digest(manifest)
        write_whole(self.work / MANIFEST, json.dumps(manifest, indent=1))
        write_stamp(self.work, manifest)
        self.work.rename(self.path)
        for name in ("fingerprint", "chunks.jsonl"):  # after: a kill in between leaves a whole cache or a whole journal
            (self.path / name).unlink()

    def _bytes(self, info: ArrayInfo, values: Tensor) -> bytes:
        stored = values.detach().to("cpu", DTYPES[info.dtype]).contiguous()
        if stored.shape[1:] != info.shape:
            raise ValueError(f"{info.name} has rows of {tuple(stored.shape[1:])}, the cache {info.shape}")
        if not torch.isfinite(stored).all():
            if torch.isfinite(values).all():
                most = values.abs().max().item()
                raise UserError(f"{info.name} reaches {most:.3g}, beyond {info.dtype}; use teacher.cache_dtype=bf16")
            raise RunError(f"the teacher's {info.name} holds a value that is not finite; train the teacher again")
        return stored.flatten().view(torch.uint8).numpy().tobytes()  # flat, for an axis of length 1 has any stride

    def _finished_chunks(self) -> list[dict]:
        """The journal's chunks up to the first whose bytes are not what was written; files are cut to them."""
        text = _read(self.work / "chunks.jsonl")
        kept = []
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(self.work / f"{info.name}.bin", "a+b")) for info in self.infos]
            for file in files:
                file.seek(0)
            for chunk in map(json.loads, text[: text.rfind("\n") + 1].splitlines()):
                data = [file.read(chunk["rows"] * i.row_bytes) for file, i in zip(files, self.infos, strict=True)]
                if [hashlib.sha256(d).hexdigest() for d in data] != chunk["sha256"]:
                    break
                kept.append(chunk)
            rows = sum(chunk["rows"] for chunk in kept)
            for file, info in zip(files, self.infos, strict=True):
                file.truncate(rows * info.row_bytes)
        (self.work / "chunks.jsonl").write_text("".join(json.dumps(chunk) + "\n" for chunk in kept))
        return kept


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
