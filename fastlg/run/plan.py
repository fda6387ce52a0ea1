"""The facts of a run before it starts, and what in them is likely not meant: one line each, with a fix after which the
line is not said again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fastlg import ranks
from fastlg.config import OptimConfig
from fastlg.engine.build import engine_kind
from fastlg.engine.protocol import share_batch
from fastlg.engine.schedule import schedule_of
from fastlg.errors import printable
from fastlg.models.pretraining.neighbours import NEIGHBOURS
from fastlg.ranks.say import say
from fastlg.run.parts import Parts

FEWEST_STEPS = 10  # an epoch
MOST_DROPPED = 0.05  # of an epoch's images
SPLITS = {"val": "validation", "test": "test"}  # that are held out, and what they are called
PEAK = 0.9  # of optim.lr, which a learning rate should reach


def budget_advice(optim: OptimConfig, images: int, steps: int, unit: int = 1) -> list[str]:
    """Of a training budget.

    images  of the training split
    steps   per epoch
    unit    what the global batch must be a multiple of (ranks, micro-batches)
    """
    lines, batch = [], optim.global_batch_size
    if optim.warmup_epochs >= optim.epochs:
        lines.append(
            f"optim.warmup_epochs={optim.warmup_epochs} is not shorter than optim.epochs={optim.epochs}: the run ends "
            f"within its warm-up; set optim.warmup_epochs={optim.epochs // 10}"
        )
    elif line := _peak_advice(optim):
        lines.append(line)
    dropped = _dropped(images, batch) if optim.drop_last else 0
    if dropped > MOST_DROPPED * images:
        smaller = next(iter(_batches(images, batch - 1, unit)), 0)
        is_better = smaller and _dropped(images, smaller) <= MOST_DROPPED * images
        other = f" or optim.global_batch_size={smaller}" if is_better else ""
        lines.append(
            f"{dropped} of {images} images ({100 * dropped / images:.0f} %) are dropped from every epoch, the last "
            f"partial batch; set optim.drop_last=false{other}"
        )
    if steps < FEWEST_STEPS:
        smaller = _batches(images, images // FEWEST_STEPS, unit)
        fix = f"set optim.global_batch_size={smaller[0]}" if smaller else "more training images are needed"
        lines.append(
            f"an epoch has {steps} step{'s' * (steps != 1)} of up to {batch} images, fewer than {FEWEST_STEPS}, and "
            f"the learning rate moves once an epoch; {fix}"
        )
    return lines


def _peak_advice(optim: OptimConfig) -> str:
    """Of a learning rate that stays below its peak, as the curve has fallen before the warm-up ends; else ""."""

    def peak(warmup_epochs: int) -> float:
        rate = schedule_of(optim.model_copy(update={"warmup_epochs": warmup_epochs}))
        return max(rate(epoch) for epoch in range(optim.epochs)) / optim.lr

    reached, shorter = peak(optim.warmup_epochs), optim.warmup_epochs
    if reached >= PEAK:
        return ""
    while shorter > 0 and peak(shorter) < PEAK:
        shorter //= 2
    fix = f"optim.warmup_epochs={shorter}" if shorter < optim.warmup_epochs else "another optim.schedule"
    return (
        f"the learning rate reaches {100 * reached:.0f} % of optim.lr={optim.lr:g} at most, for it falls before its "
        f"warm-up of {optim.warmup_epochs} of {optim.epochs} epochs ends; set {fix}"
    )


def class_advice(images: Sequence[int], names: Sequence[str]) -> str:
    """Of classes with a single training image, given how many images each has; "" where there is none."""
    single = [printable(name) for count, name in zip(images, names, strict=True) if count == 1]
    if not single:
        return ""
    named = f"{', '.join(single[:5])}{' ...' if len(single) > 5 else ''}"
    verb = "class has" if len(single) == 1 else "classes have"
    return (
        f"{len(single)} {verb} one training image ({named}), from which nothing general is learned; add images, or "
        "leave out what has no more"
    )


def teacher_advice(top1: float, chance: float, own_epochs: int | None) -> str:
    """Of a teacher that guides to nothing; "" of a good one.

    top1        on the test split, in %
    chance      what naming its commonest class alone would reach, in %
    own_epochs  of the recipe that trained it for this run; None for one that was named
    """
    if top1 - chance >= min(0.5 * chance, 0.1 * (100 - chance)):
        return ""
    fix = "name a better one with teacher.weights, or leave that out to have one trained"
    if own_epochs is not None:
        fix = (
            f"train it for more than {own_epochs} epoch{'s' * (own_epochs != 1)} (teacher.overrides.optim.epochs=N) or "
            "name a better one with teacher.weights"
        )
    return f"the teacher's top-1 of {top1:.2f} % is near chance ({chance:.2f} %), so it guides to nothing; {fix}"


def seen_advice(weights: Path, seen: Mapping[str, int], held: Mapping[str, int]) -> str:
    """Of a teacher that was trained on images by which its student is judged; "" of one that was not.

    seen  split -> how many of its images the teacher was trained on
    held  split -> how many it has
    """
    told = [f"{count:,} of {held[split]:,} {SPLITS[split]} images" for split, count in seen.items() if count]
    if not told:
        return ""
    return (
        f"the teacher in {weights} was trained on {' and '.join(sorted(told))} of this run, so that what is measured "
        "there says too much; leave teacher.weights out to have one trained on this run's training images"
    )


def _dropped(images: int, batch: int) -> int:
    return images % batch if images > batch else 0  # a set smaller than a batch is always used


def _batches(images: int, most: int, unit: int) -> list[int]:
    """From the largest down, first those that drop few images."""
    sizes = range(most // unit * unit, 0, -unit)
    return sorted(sizes, key=lambda size: _dropped(images, size) > MOST_DROPPED * images)


def say_plan(parts: Parts, *, is_teacher: bool = False) -> None:
    """The facts of a run before it starts, one line each. ``is_teacher``: of another run, whose keys mend it."""
    config, stores, engine = parts.config, parts.stores, parts.engine
    size = " to ".join(dict.fromkeys(str(size) for _, size in config.model.resolution)) or config.model.image_size
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in parts.unit.student.parameters())
    precision = str(engine.dtype).removeprefix("torch.")
    val = "" if stores.val is None else f"{len(stores.val):,} validation, "
    say(f"run      {config.run_dir}  seed {config.run.seed}")
    say(
        f"data     {config.data.source}: {len(stores.train):,} train, {val}{len(stores.test):,} test, "
        f"{len(stores.class_names)} classes; store {stores.path}"
    )
    say(f"model    {config.model.name}, {parameters:,} parameters, {size} px, on {engine.device} in {precision}")
    if config.teacher is not None:
        pairs = ", ".join(
            f"block {block} ~ stage {stage}"
            for block, stage in zip(parts.unit.student.blocks, parts.teacher.stages, strict=True)
        )
        own, token = config.guidance, f"the {config.guidance.logits_token} token"
        logits = f"; {own.logits} logits for {token}, weight {own.logits_weight}" if own.logits != "none" else ""
        say(f"guidance {pairs}; weight {own.weight}, {config.teacher.norm_stats} statistics{logits}")
    if (own := parts.unit.drloc) is not None:
        say(
            f"drloc    {config.drloc.mode} loss of {config.drloc.sample_size} pairs an image on a grid of {own.side} x "
            f"{own.side}; weight {config.drloc.weight:g} after {config.drloc.warmup_epochs} epochs"
        )
    if (own := config.pretrain) is not None:
        small = f" and {own.local_crops} of {parts.unit.sizes[-1]} px" if own.local_crops else ""
        say(
            f"pretrain without labels: 2 views of {parts.unit.sizes[0]} px{small} an image, changed as DINO's are; "
            "augment's RandAugment, jitter, erasing, mixing and label smoothing play no part"
        )
        say(
            f"         top-1 in training: both networks name the same of {own.outputs:,} outputs; in tests: by the "
            f"classes of {NEIGHBOURS} nearest training images, the one use of labels"
        )
    optim, share = (
        config.optim,
        share_batch(config.optim.global_batch_size, ranks.world_size(), config.engine.micro_batch_size),
    )
    shared = f" = {ranks.world_size()} ranks x {share.per_rank}" if ranks.world_size() > 1 else ""
    passes = f" in {share.accumulation} passes" if share.accumulation > 1 else ""
    say(
        f"budget   {optim.epochs} epochs of {len(parts.train_loader)} steps, batch {optim.global_batch_size}{shared}"
        f"{passes}, {type(parts.train_loader).__name__}"
    )
    unit = ranks.world_size() * (config.engine.micro_batch_size or 1 if share.accumulation > 1 else 1)
    lines = budget_advice(optim, len(stores.train), len(parts.train_loader), unit)
    counts = np.bincount(stores.train.labels, minlength=len(stores.class_names))
    if line := "" if is_teacher else class_advice(counts.tolist(), stores.class_names):
        lines.append(line)
    for line in lines:
        line = f"the teacher's recipe: {line.replace('optim.', 'teacher.overrides.optim.')}" if is_teacher else line
        say(f"advice   {line}")
    zero = f", ZeRO stage {config.engine.zero_stage}" if engine_kind(config.engine) == "deepspeed" else ""
    say(f"engine   {engine_kind(config.engine)}{zero}; on: {parts.switches.on()}")
    if parts.switches.why_off:
        say(f"         off: {parts.switches.off()}")
