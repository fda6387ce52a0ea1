"""The facts of a run before it starts, and what in them is likely not meant."""

from __future__ import annotations

from fastlg import ranks
from fastlg.config import OptimConfig
from fastlg.engine.build import engine_kind
from fastlg.engine.protocol import share_batch
from fastlg.ranks.say import say
from fastlg.run.parts import Parts


def advice(optim: OptimConfig, images: int, steps: int) -> list[str]:
    """What in a budget is likely not meant, one line each with its fix. ``steps``: per epoch of ``images``."""
    lines = []
    if optim.warmup_epochs >= optim.epochs:
        lines.append(
            f"optim.warmup_epochs={optim.warmup_epochs} is not shorter than optim.epochs={optim.epochs}: the learning "
            f"rate never reaches optim.lr; set optim.warmup_epochs={optim.epochs // 10}"
        )
    dropped = images % optim.global_batch_size if optim.drop_last and images > optim.global_batch_size else 0
    if dropped > 0.05 * images:
        lines.append(
            f"{dropped} of {images} images ({100 * dropped / images:.0f} %) are dropped from every epoch, the last "
            "partial batch; set optim.drop_last=false or a smaller optim.global_batch_size"
        )
    if steps < 10:
        lines.append(f"an epoch has {steps} steps, fewer than 10; set a smaller optim.global_batch_size or more epochs")
    return lines


def say_plan(parts: Parts) -> None:
    """The facts of a run before it starts, one line each."""
    config, stores, engine = parts.config, parts.stores, parts.engine
    size = config.model.image_size
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in parts.unit.student.parameters())
    precision = str(engine.dtype).removeprefix("torch.")
    say(f"run      {config.run_dir}  seed {config.run.seed}")
    say(
        f"data     {config.data.source}: {len(stores.train):,} train, {len(stores.test):,} test, "
        f"{len(stores.class_names)} classes; store {stores.path}"
    )
    say(f"model    {config.model.name}, {parameters:,} parameters, {size} px, on {engine.device} in {precision}")
    if parts.teacher is not None:
        pairs = ", ".join(
            f"block {block} ~ stage {stage}"
            for block, stage in zip(parts.unit.student.blocks, parts.teacher.stages, strict=True)
        )
        say(f"guidance {pairs}; weight {config.guidance.weight}, {config.teacher.norm_stats} statistics")
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
    for line in advice(optim, len(stores.train), len(parts.train_loader)):
        say(f"advice   {line}")
    zero = f", ZeRO stage {config.engine.zero_stage}" if engine_kind(config.engine) == "deepspeed" else ""
    say(f"engine   {engine_kind(config.engine)}{zero}; on: {parts.switches.on()}")
    if parts.switches.why_off:
        say(f"         off: {parts.switches.off()}")
