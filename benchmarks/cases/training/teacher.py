"""The teacher's forward pass at 32 px: as the reference style runs it, and with each of fastlg's switches."""

from __future__ import annotations

import torch

from benchmarks.harness.bench import Bench, peak_mib
from benchmarks.harness.counting import count_per_batch
from benchmarks.harness.ours import TEACHER_SIZE, made_teacher
from fastlg.engine.protocol import autocast
from fastlg.teacher.online import OnlineTeacher


def rows(bench: Bench) -> None:
    dtype = torch.bfloat16 if bench.gpu else torch.float32
    for batch in (128, 1024) if bench.gpu else (32,):
        if bench.fits(f"ResNet-56, batch {batch}", 8 if bench.gpu else 1):
            measure(bench, batch, dtype)


def measure(bench: Bench, batch: int, dtype: torch.dtype) -> None:
    """Batch statistics are the base, for they are what the reference code uses."""
    view = torch.randn(batch, 3, TEACHER_SIZE, TEACHER_SIZE, device=bench.device)
    plain = made_teacher(100).to(bench.device).train().requires_grad_(False)
    forms = {"batch statistics": {}, "channels-last": {"is_channels_last": True}}
    if bench.gpu:
        forms["channels-last, compiled"] = {"is_channels_last": True, "is_compiled": True}
    running = {"norm_stats": "running", "is_channels_last": True}
    forms["running statistics, channels-last"] = running
    forms["running statistics, folded"] = {**running, "is_folded": True}
    if bench.gpu:
        forms["running statistics, folded, compiled"] = {**running, "is_folded": True, "is_compiled": True}

    def eager(count: int = batch) -> None:
        with torch.no_grad(), autocast(bench.device, dtype):
            plain(view[:count])

    runs = {"eager, batch statistics": eager}
    for name, options in forms.items():
        teacher = OnlineTeacher(
            made_teacher(100).to(bench.device), stages=[0, 1, 2], dtype=dtype, **{"norm_stats": "batch", **options}
        )

        def run(teacher: OnlineTeacher = teacher) -> None:
            with autocast(bench.device, dtype):
                teacher(view)

        runs[f"fastlg, {name}"] = run
    work = count_per_batch(eager, batch, str(dtype).removeprefix("torch."))
    for run in runs.values():
        run()
    peaks = {name: peak_mib(run, bench.device) for name, run in runs.items()}
    times = bench.turns(runs, turns=50 if bench.gpu else 9, seconds=bench.left() * 0.7, warm=1)
    for name, taken in times.items():
        base = times["eager, batch statistics"]
        bench.add("ResNet-56", name, taken, batch=batch, base=base, work=work, peak_mib=peaks[name])
