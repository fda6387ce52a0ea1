"""What every benchmark shares: rows and what stamps them, turns between rivals, peak memory.

A benchmark is a file with ``rows(bench)``: it measures through the Bench it is given and ends with ``bench.add`` for
each rival. Rivals of a case take turns, so that all of them see the same machine; a row holds the median over the turns
and, as ``spread``, the distance of the quartiles over that median.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.counting import Ceilings, Work
from fastlg.files.provenance import commit, device_name, versions


@dataclass(frozen=True)
class Stamp:
    """What made a row: no number without it."""

    commit: str  # "" outside a git checkout
    dirty: bool  # the sources differ from the commit
    device: str
    driver: str  # of the GPU; "none" on a CPU
    versions: dict[str, str]
    command: str
    date: str  # UTC, when the measurement began
    others: float | None  # threads of other programs that were running then, mean over half a second

    @classmethod
    def of(cls, device: torch.device, command: str) -> Stamp:
        head = commit()
        return cls(
            commit=head.removesuffix("-dirty"),
            dirty=head.endswith("-dirty"),
            device=device_name(device),
            driver=_driver() if device.type == "cuda" else "none",
            versions={**versions(), **({"cuda": torch.version.cuda} if device.type == "cuda" else {})},
            command=command,
            date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            others=_others_running(),
        )


@dataclass(frozen=True)
class Row:
    """One rival in one case. None is what was not counted there."""

    bench: str  # the name it is run by, see run.py
    case: str
    provider: str
    batch: int | None
    median_ms: float  # of one call: a step, an operation, an epoch
    spread: float  # quartile distance over the median
    repeats: int  # turns behind the median
    images_per_s: float | None
    ratio: float | None  # this row's speed over the speed of the case's base
    peak_mib: float | None  # at the peak of one call, above what lay there before it
    bytes: int | None  # see counting.py
    flops: int | None
    bound_ms: float | None  # what this device's ceilings allow for bytes and flops
    bound_share: float | None  # bound_ms / median_ms
    stamp: Stamp
    extra: dict[str, Any] = field(default_factory=dict)  # what only this benchmark has

    def as_json(self) -> dict:
        """Flat: the stamp's fields stand beside the row's own."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "stamp"}
        return {**own, **asdict(self.stamp)}


ROW_FIELDS = tuple(f.name for f in fields(Row) if f.name != "stamp") + tuple(f.name for f in fields(Stamp))


class Bench:
    """What a benchmark is told and where its rows go.

    seconds  what this benchmark may spend; cases that no longer fit are left out and named in ``left_out``
    folder   scratch space that is gone afterwards
    profile  folder for torch.profiler traces, or None
    log      file that every row is appended to as soon as it is there, or None: a run cut short loses none
    overrides  of every config that is measured
    """

    def __init__(
        self,
        device: torch.device,
        *,
        quick: bool,
        folder: Path,
        ceilings: Ceilings,
        stamp: Stamp,
        profile: Path | None,
        log: Path | None = None,
        overrides: tuple[str, ...] = (),
    ):
        self.device, self.quick, self.folder = device, quick, folder
        self.ceilings, self.stamp, self.profile = ceilings, stamp, profile
        self.log, self.overrides = log, overrides
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self.name, self.ends, self.seconds = "", float("inf"), float("inf")
        self.notice: Callable[[str], None] = lambda line: None

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def begin(self, name: str, seconds: float) -> None:
        """The next benchmark starts; it may spend so many seconds."""
        self.name, self.seconds, self.ends = name, seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds this benchmark still has."""
        return self.ends - time.monotonic()

    def fits(self, what: str, seconds: float) -> bool:
        """Whether a case of so many seconds still fits; says what is measured, or notes what is left out."""
        if self.left() < seconds:
            self.left_out.append(f"{self.name}: {what} (out of time)")
            return False
        self.notice(what)
        return True

    def turns(self, runs: dict[str, Callable], *, turns: int, seconds: float, warm: int = 1) -> dict[str, list[float]]:
        """Seconds of each call, rivals in turn; ``seconds`` is cut to what is left."""
        return take_turns(runs, self.device, turns=turns, seconds=min(seconds, self.left()), warm=warm)

    def add(
        self,
        case: str,
        provider: str,
        times: list[float],
        *,
        batch: int | None = None,
        images: int | None = None,
        base: list[float] | None = None,
        work: Work | None = None,
        peak_mib: float | None = None,
        measured: tuple[float, int] | None = None,
        **extra: Any,
    ) -> Row:
        """One row. times: seconds of each turn; images: per call, ``batch`` unless told; base: times of the base;
        measured: (spread, turns) where another program took the turns and ``times`` is their median alone."""
        median = statistics.median(times)
        images = batch if images is None else images
        bound = work.bound_s(self.ceilings) if work else None
        row = Row(
            bench=self.name,
            case=case,
            provider=provider,
            batch=batch,
            median_ms=_short(1e3 * median),
            spread=_short(spread(times) if measured is None else measured[0]),
            repeats=len(times) if measured is None else measured[1],
            images_per_s=_short(images / median) if images else None,
            ratio=_short(statistics.median(base) / median) if base else None,
            peak_mib=peak_mib,
            bytes=work.bytes if work else None,
            flops=work.flops if work else None,
            bound_ms=_short(1e3 * bound) if bound else None,
            bound_share=_short(bound / median) if bound else None,
            stamp=self.stamp,
            extra=extra,
        )
        self.rows.append(row)
        if self.log is not None:
            append_line(self.log, row.as_json())
        return row


def append_line(path: Path, content: dict) -> None:
    """One line more in a .jsonl file, there at once."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


def _short(value: float) -> float:
    """Five significant digits; no clock here has more."""
    return float(f"{value:.5g}")


def spread(times: list[float]) -> float:
    """Quartile distance over the median; 0 for a single time."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / statistics.median(times)


def take_turns(
    runs: dict[str, Callable], device: torch.device, *, turns: int, seconds: float, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call after ``warm`` rounds; at most ``turns``, and fewer (two at least) when time runs out."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    ends = time.monotonic() + seconds
    for turn in range(-warm, turns):
        if turn >= 2 and time.monotonic() > ends:
            break
        for name, run in runs.items():
            took = timed(run, device)
            if turn >= 0:
                times[name].append(took)
    return times


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: between events on a GPU, by the wall clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def wall(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call by the wall clock, the device idle before and after: for work that includes the host's."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """MiB at the peak of one call above what lay there before it.

    On a GPU by the allocator's count; on a CPU by the process's resident memory, whose peak Linux lets a process reset;
    None where it does not.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory that libc kept hides a part of the peak
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status_kib("VmHWM")
    except (OSError, AttributeError, StopIteration):
        run()
        return None
    run()
    return round((_status_kib("VmHWM") - before) / 1024, 1)


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _others_running() -> float | None:
    """Whether the machine is quiet; None where Linux does not tell. The load average tells of minutes ago."""
    counts = []
    try:
        for _ in range(10):
            time.sleep(0.05)
            running, _ = Path("/proc/loadavg").read_text(encoding="ascii").split()[3].split("/")
            counts.append(int(running) - 1)  # this process is running too
    except (OSError, ValueError, IndexError):
        return None
    return round(statistics.mean(counts), 1)


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()[0].strip()
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return "unknown"
