"""Does it train on this device, and how fast: the first questions, answered before any finer one.

    python benchmarks/run.py first_light

    agreement   guided steps of DeiT-Ti on the same batches with every switch off, with a CUDA graph, compiled, and as a
                run has it: the losses, and how far they lie from those with everything off (drop path is off)
    throughput  three short epochs (--quick: one) as ``fastlg train`` takes them: images/s, memory at the peak and kept
                by the allocator after each, seconds to the first step; the share of each kernel in the device's time
    input       the same epochs without a step: cut, augmented, both views made

Whatever fails is named, with its traceback on the terminal, and the rest goes on.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager

import torch

from benchmarks.harness.bench import Bench, synchronize, wall
from benchmarks.harness.ours import Ours, config_of

OFF = tuple(f"engine.{name}=false" for name in ("compile", "graph", "prefetch", "channels_last", "fold_norms"))
STEPS = 8  # three before a graph is captured, then replays
EPOCHS = 3  # of a quick run one
KERNELS = 24  # most that a row names


def rows(bench: Bench) -> None:
    """The largest batch first: what a time-out cuts is then known from an earlier run, or small."""
    small, *large = (128, 1024) if bench.gpu else (8,)
    for batch in large:
        at_size(bench, batch)
    with named(bench, "agreement"):
        agreement(bench, small)
    at_size(bench, small)


def at_size(bench: Bench, batch: int) -> None:
    with named(bench, f"throughput, batch {batch}"):
        throughput(bench, batch)
    with named(bench, f"input, batch {batch}"):
        only_input(bench, batch)


@contextmanager
def named(bench: Bench, what: str):
    """A failure is said and left out; memory and compiled code of the part are gone afterwards."""
    bench.notice(what)
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        bench.left_out.append(f"{bench.name}: {what} failed with {type(error).__name__}: {error}")
    gc.collect()
    torch.compiler.reset()
    if bench.gpu:
        torch.cuda.empty_cache()


def variants(bench: Bench) -> dict[str, tuple[str, ...]]:
    """The overrides of each, the one that the others are compared with first."""
    if not bench.gpu:
        return {"switches off": OFF, "as a run has it": ()}
    without = {name: [o for o in OFF if name not in o] for name in ("graph", "compile")}
    return {
        "switches off": OFF,
        "graph": (*without["graph"], "engine.graph=true"),
        "compile": (*without["compile"], "engine.compile=true"),
        "as a run has it": (),
    }


def agreement(bench: Bench, batch: int) -> None:
    truth: list[float] = []
    for name, overrides in variants(bench).items():
        with named(bench, f"agreement, {name}"):
            ours = Ours(config_of(bench, "deit_tiny", batch, "model.drop_path=0", *overrides))
            losses, seconds = first_steps(ours, bench)
            truth = truth or losses
            off = max(abs(a - b) / abs(b) for a, b in zip(losses, truth, strict=True))
            extra = {"losses": losses, "off_by": float(f"{off:.3g}"), "seconds": [round(s, 4) for s in seconds]}
            bench.add("DeiT-Ti, first steps", name, seconds[-3:], batch=batch, kind="agreement", **extra)
            del ours


def first_steps(ours: Ours, bench: Bench) -> tuple[list[float], list[float]]:
    """Loss and seconds of each of the first steps."""
    losses, seconds = [], []
    ours.open()
    for _ in range(STEPS):
        seconds.append(wall(ours.step, bench.device))
        losses.append(ours.meter.read()[0].loss)
    ours.close()
    return losses, seconds


def throughput(bench: Bench, batch: int) -> None:
    start = time.perf_counter()
    ours = Ours(config_of(bench, "deit_tiny", batch))
    ours.open()
    took = wall(lambda: [ours.step() for _ in range(5)], bench.device)
    ours.close()
    begun = time.perf_counter() - start
    steps = len(ours.parts.train_loader)
    times, memory = [], []
    if bench.gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 if bench.quick else EPOCHS):
        times.append(an_epoch(ours, bench, ours.step, steps))
        if bench.gpu:
            memory.append([torch.cuda.max_memory_allocated() >> 20, torch.cuda.memory_reserved() >> 20])
    extra = {"peak_and_reserved_mib": memory, "start_s": round(begun, 2), "first_5_steps_s": round(took, 2)}
    peak = float(memory[-1][0]) if memory else None
    bench.add(
        "DeiT-Ti guided, epochs", "fastlg", times, batch=batch, peak_mib=peak, kind="throughput", work=ours.work(),
        switches=ours.parts.switches.on(), kernels=kernels(ours) if bench.gpu else [], **extra,
    )  # fmt: skip


def an_epoch(ours: Ours, bench: Bench, step: Callable[[], object], steps: int) -> float:
    """Seconds per step of a whole epoch, its start included."""

    def run() -> None:
        ours.open()
        for _ in range(steps):
            step()

    took = wall(run, bench.device) / steps
    ours.close()
    return took


def only_input(bench: Bench, batch: int) -> None:
    ours = Ours(config_of(bench, "deit_tiny", batch, "engine.compile=false"))
    steps = len(ours.parts.train_loader)
    times = [an_epoch(ours, bench, ours.next_pair, steps) for _ in range(1 + (1 if bench.quick else EPOCHS))][1:]
    bench.add("input, full augmentation", "fastlg", times, batch=batch, kind="input")


def kernels(ours: Ours) -> list[dict]:
    """Device time of ten steps by kernel, the longest first: name, share of all, calls a step, microseconds a call."""
    steps = 10
    ours.open()
    for _ in range(3):
        ours.step()
    synchronize(ours.parts.device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            ours.step()
        synchronize(ours.parts.device)
    ours.close()
    found = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    total = sum(event.self_device_time_total for event in found)
    found.sort(key=lambda event: -event.self_device_time_total)
    made = [
        {
            "kernel": event.key[:90],
            "share": round(event.self_device_time_total / total, 4),
            "calls": round(event.count / steps, 2),
            "us": round(event.self_device_time_total / event.count, 2),
        }
        for event in found[:KERNELS]
    ]
    calls = round(sum(event.count for event in found) / steps, 1)
    return [{"kernel": "all", "share": 1.0, "calls": calls, "us": round(total / steps, 1)}, *made]
