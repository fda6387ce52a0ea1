"""Every student of the paper at full size: a few guided steps on one batch, on real images where they are given.

    fastlg bench students --set data.source=FOLDER

A batch is repeated at the peak learning rate, so that the loss has to fall from step to step; ``extra.losses`` holds it
before each step, with its parts. One that is not finite, or does not fall, fails the benchmark. The teacher is a
ResNet-56 that was not trained. The distilled DeiT-Ti takes the teacher's hard logits, too.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

from benchmarks.cases.training.end_to_end import NAMES
from benchmarks.harness.bench import Bench, peak_mib, wall
from benchmarks.harness.ours import Ours, config_of

STEPS = 4
DISTILLED = ("model.name=deit_tiny_distilled_patch16_224", "guidance.logits=hard", "guidance.logits_token=distillation")
CASES = [  # (label, config, overrides)
    *((label, name, ()) for name, label in NAMES.items()),
    ("DeiT-Ti, distillation token", "deit_tiny", DISTILLED),
]


def rows(bench: Bench) -> None:
    take_steps(bench, CASES)


def take_steps(bench: Bench, cases: Sequence[tuple[str, str, tuple[str, ...]]]) -> None:
    """A row for each case. Raises ArithmeticError, after all of them, for a loss that did not fall."""
    batch, fell = 128 if bench.gpu else 4, {}
    for label, name, overrides in cases:
        if bench.fits(label, 15 if bench.gpu else 5):
            losses = one(bench, label, config_of(bench, name, batch, "optim.warmup_epochs=0", *overrides))
            fell[label] = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
        gc.collect()
    if stuck := [label for label, has_fallen in fell.items() if not has_fallen]:
        raise ArithmeticError(f"the loss of a batch that is repeated did not fall: {', '.join(stuck)}")


def one(bench: Bench, label: str, config) -> list[float]:
    """Takes the steps, adds the row, and returns the loss before each."""
    ours = Ours(config, synthetic=True)
    ours.open()
    views, batch = ours.next_pair()
    engine, outs, times = ours.parts.engine, [], []

    def step() -> None:
        outs.append(engine.step(views, batch, len(batch.labels)))

    peak = peak_mib(step, bench.device)
    for _ in range(STEPS - 1):
        times.append(wall(step, bench.device))
    ours.close()
    losses = {part: [round(getattr(out, part).item(), 4) for out in outs] for part in ("loss", "loss_guidance")}
    bench.add(
        label,
        f"guided, {config.model.image_size} px",
        times,
        batch=len(batch.labels),
        peak_mib=peak,
        losses=losses["loss"],
        guidance=losses["loss_guidance"],
        parameters=sum(parameter.numel() for parameter in ours.parts.unit.student.parameters()),
        pictures="given" if any(own.startswith("data.source=") for own in bench.overrides) else "made",
    )
    return losses["loss"]
