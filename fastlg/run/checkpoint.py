"""Checkpoints that are whole or absent: written beside, flushed, renamed. Loaded with ``weights_only=True``.

A run goes on while its checkpoint is written (``Saver``). torch is imported by what needs it: a folder is looked
through, and refused, without.
"""

from __future__ import annotations

import copy
import errno
import io
import os
import shutil
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlg.errors import RunError, UserError, first_line
from fastlg.files.atomic import sync, whole

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2  # raised when the meaning of a saved field changes
LAST, BEST = "last.pt", "best.pt"


def save_checkpoint(folder: Path, state: dict, *, best: bool = False) -> Path:
    """Writes ``state`` to ``folder/last.pt`` atomically; ``best`` makes best.pt the same file.

    best.pt comes first: a run that is killed between the two trains that epoch again, and makes it again. The other way
    round it would go on after an epoch that it calls the best and does not have.

    Raises RunError when the disk is full or the folder cannot be written; the previous checkpoint survives.
    """
    import torch

    buffer = io.BytesIO()  # serialised in memory, so that a full disk is a plain OSError of one write
    torch.save({"format": FORMAT, **state}, buffer)
    target = folder / LAST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(target) as partial:
            partial.write_bytes(buffer.getbuffer())
            if best:
                sync(partial)
                _link_atomically(partial, folder / BEST)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else error.strerror
        kept = "the last good one is kept" if target.exists() else "there is no earlier one"
        raise RunError(f"cannot save the checkpoint {target}: {reason}; {kept}. Mend that and run again") from None
    return target


class Saver:
    """Writes the checkpoints of a run to ``folder`` beside its training, one after the other.

    ``save`` returns once the state is copied; on CUDA once the copies, into pinned memory that is used again, are
    enqueued before whatever comes next on the stream. A write that failed is raised by the next call. Killed while
    it writes, a run has the checkpoint before.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future | None = None
        self.pinned: list[Tensor] = []

    def save(self, state: dict, *, best: bool = False) -> None:
        """Begins to write ``state``, as it is now; waits for the write before. See ``save_checkpoint``."""
        self.wait()
        copies, enqueued = self._copied(state)
        self.pending = self.writer.submit(self._write, copies, enqueued, best)

    def poll(self) -> None:
        """Raises RunError if the last write has failed by now."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is on the disk. Raises RunError if it is not."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Until nothing is written any more; raises nothing."""
        self.writer.shutdown()

    def _write(self, state: dict, enqueued: Any, best: bool) -> None:
        if enqueued is not None:
            enqueued.synchronize()
        save_checkpoint(self.folder, state, best=best)

    def _copied(self, state: dict) -> tuple[dict, Any]:
        """(``state`` with its tensors copied to the host, the CUDA event behind the copies if there are any)."""
        import torch

        copies: dict[tuple, Tensor] = {}  # tensors that are one in memory are one in the file
        pinned: list[Tensor] = []

        def copied(value: Any) -> Any:
            if isinstance(value, dict):
                own = copy.copy(value)  # its class and attributes, too
                own.update((key, copied(item)) for key, item in value.items())
                return own
            if isinstance(value, list | tuple):
                return type(value)(map(copied, value))
            if not isinstance(value, torch.Tensor):
                return value
            key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            if key not in copies:
                copies[key] = to_host(value) if value.is_cuda else value.detach().clone()
            return copies[key]

        def to_host(value: Tensor) -> Tensor:
            place = self.pinned[len(pinned)] if len(pinned) < len(self.pinned) else None
            if place is None or place.shape != value.shape or place.dtype != value.dtype:
                place = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            pinned.append(place)
            return place.copy_(value.detach(), non_blocking=True)

        whole = copied(state)
        if not pinned:
            return whole, None
        self.pinned = pinned
        return whole, torch.cuda.current_stream().record_event()


RESUME_ELSEWHERE = "resume from another one with --resume PATH, or start anew under another run.name"


def load_checkpoint(path: Path, *, fix: str = RESUME_ELSEWHERE) -> dict:
    """The state in ``path``, tensors on the CPU.

    Raises UserError, which ends with ``fix``, when it is missing, truncated or of another format.
    """
    if not path.is_file():
        inside = path / "checkpoints" / LAST
        near = sorted(path.parent.glob("*.pt"))[:5] if path.parent.is_dir() else []
        there = f"there: {', '.join(map(str, near))}" if near else "give a file such as runs/NAME/checkpoints/last.pt"
        fix = there if fix is RESUME_ELSEWHERE else fix
        if inside.is_file():
            fix = f"it is a run folder: give {inside}"
        raise UserError(f"there is no checkpoint {path}; {fix}")
    import torch

    try:
        expect_whole(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file; each means the same here
        is_shut = isinstance(error, PermissionError)
        reason = error.strerror if is_shut else f"truncated or altered: {first_line(error)}"
        raise UserError(f"checkpoint {path} cannot be read ({reason}); {fix}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UserError(f"checkpoint {path} has format {found}; this fastlg reads format {FORMAT}")
    return state


def expect_whole(path: Path) -> None:
    """Looks at the checksums that torch writes and does not look at. Raises ValueError, BadZipFile or OSError."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"checksum of {damaged} is wrong")


def _link_atomically(source: Path, target: Path) -> None:
    """Hard link where the file system has it, else a copy; ``source`` is later replaced, never rewritten."""
    with whole(target) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
