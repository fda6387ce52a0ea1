"""Evaluating DeiT-Ti on a test split: images/s of ``fastlg.run.evaluate`` as it runs after an epoch."""

from __future__ import annotations

import torch

from benchmarks.harness.bench import Bench, wall
from benchmarks.harness.counting import Work, count_per_batch
from benchmarks.harness.ours import Ours, config_of
from fastlg.engine.protocol import autocast
from fastlg.run.evaluate import evaluate


def rows(bench: Bench) -> None:
    if not bench.fits("test split", 1.5):
        return
    batch = 200 if bench.gpu else 50
    ours = Ours(config_of(bench, "deit_tiny", 8, "teacher=null", f"log.eval_batch_size={batch}"))
    parts, images = ours.parts, len(ours.stores.test)
    sample = torch.randn(4, 3, 224, 224, device=bench.device)

    @torch.inference_mode()
    def forward(count: int) -> None:
        with autocast(bench.device, parts.engine.dtype):
            parts.unit.student(sample[:count])

    work = count_per_batch(forward, images, str(parts.engine.dtype).removeprefix("torch."))
    weights = sum(p.numel() * p.element_size() for p in parts.unit.student.parameters())
    work = work + Work(weights * (-(-images // batch) - 1), 0)  # the weights are read once per batch
    evaluate(parts)
    times = []
    for _ in range(2 if bench.quick else 5):
        if len(times) < 2 or bench.left() > 2:
            times.append(wall(lambda: evaluate(parts), bench.device))
    bench.add("DeiT-Ti, test split", "fastlg", times, batch=batch, images=images, work=work)
