"""From the reference style to fastlg on a CPU at batch 32, one change at a time, and what surrounds the step.

    python benchmarks/run.py cpu

Rivals take turns, one step each. With one thread a turn is the process's own CPU seconds, which other programs hardly
change; with more it is the wall clock, for threads that wait for each other spend CPU seconds, too: then the machine
has to be quiet (``extra.clock`` says which it was). The breakdown's parts are those of step_parts.py.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from benchmarks.cases.training.end_to_end import EAGER, made, reference
from benchmarks.cases.training.step_parts import PARTS, Clock, TakenApart
from benchmarks.harness.bench import Bench
from benchmarks.harness.ours import Ours, config_of
from benchmarks.harness.reference_style import Style

BATCH = 32
STYLES = {
    "reference style, fp32": {},
    "no host sync per logged value": {"syncs": False},
    "guided blocks alone, no copies to NCHW": {"copies": False},
    "guidance loss of fastlg_kernels": {"kernel": True},
    "fused AdamW": {"fused": True},
}
LOOP = (*EAGER, "data.loader=torch", "engine.precision=fp32")
FORMS = {
    "fastlg's loop, its switches off, fp32": LOOP,
    "teacher in channels-last": ("engine.precision=fp32",),
    "bf16, attention fused": ("engine.precision=bf16", "engine.fused_attention=true"),
    "bf16, attention step by step": ("engine.precision=bf16", "engine.fused_attention=false"),
    "residual stream in bf16": ("engine.precision=bf16", "engine.residual=bf16"),
}
AROUND = ("input wait", "views", "other")


class CpuClock(Clock):
    """Of the process's own CPU seconds."""

    def now(self) -> float:
        return time.process_time()


def rows(bench: Bench) -> None:
    if bench.gpu:
        bench.left_out.append(f"{bench.name}: it is about CPUs")
        return
    is_alone = torch.get_num_threads() == 1
    clock = {"clock": "CPU seconds" if is_alone else "wall"}
    if bench.fits(f"ladder, batch {BATCH}", 60):
        ladder(bench, time.process_time if is_alone else time.perf_counter, clock)
    if bench.fits(f"breakdown, batch {BATCH}", 20):
        breakdown(bench, CpuClock(bench.device) if is_alone else Clock(bench.device), clock)


def ladder(bench: Bench, now, clock: dict) -> None:
    style, makers = Style(), {}
    for name, change in STYLES.items():
        style = replace(style, **change)
        makers[name] = lambda style=style: reference(bench, BATCH, **vars(style))
    makers |= {name: made(bench, BATCH, overrides) for name, overrides in FORMS.items()}
    steppers = {name: make() for name, make in makers.items()}
    for stepper in steppers.values():
        stepper.open()
    times: dict[str, list[float]] = {name: [] for name in steppers}
    ends = time.monotonic() + bench.left() * 0.7
    for turn in range(-1, 3 if bench.quick else 9):
        if turn >= 2 and time.monotonic() > ends:
            break
        for name, stepper in steppers.items():
            began = now()
            stepper.step()
            if turn >= 0:
                times[name].append(now() - began)
    for stepper in steppers.values():
        stepper.close()
    base = times["reference style, fp32"]
    for name, taken in times.items():
        bench.add("DeiT-Ti guided", name, taken, batch=BATCH, base=base, kind="ladder", **clock)


def breakdown(bench: Bench, clock: Clock, told: dict) -> None:
    """One row in each precision; ``around`` is the share of a step that is neither network nor update."""
    apart = {
        name: TakenApart(Ours(config_of(bench, "deit_tiny", BATCH, f"engine.precision={name}")))
        for name in ("fp32", "bf16")
    }
    taken: dict[str, list[dict]] = {name: [] for name in apart}
    ends = time.monotonic() + bench.left() * 0.9
    for turn in range(-1, 3 if bench.quick else 9):
        if turn >= 2 and time.monotonic() > ends:
            break
        for name, step in apart.items():
            clock.start()
            step.step(clock)
            if turn >= 0:
                taken[name].append(clock.read())
    for name, parts in taken.items():
        medians = {part: statistics.median(own[part] for own in parts) for part in PARTS}
        whole = [sum(own.values()) / 1e3 for own in parts]
        around = sum(medians[part] for part in AROUND) / sum(medians.values())
        shown = {part: float(f"{value:.4g}") for part, value in medians.items() if value}
        own = {"kind": "breakdown", "breakdown_ms": shown, "around": round(around, 4), **told}
        bench.add("DeiT-Ti guided, parts of a step", name, whole, batch=BATCH, **own)
