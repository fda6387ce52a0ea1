"""From a config to the parts of a run: stores, loaders, views, trainable unit, engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastlg import ranks
from fastlg.advice import budget_advice
from fastlg.build_engine import check_engine, engine_kind, new_engine
from fastlg.config import Config
from fastlg.data.loaders import make_loader
from fastlg.data.mixing import Mixer
from fastlg.data.plan import SamplePlan
from fastlg.data.prepare import Store, find_or_prepare, open_store
from fastlg.data.views import ViewMaker
from fastlg.engine.precision import pick_device, pick_dtype
from fastlg.engine.protocol import Engine, share_batch
from fastlg.engine.switches import Switches, decide
from fastlg.errors import UserError
from fastlg.models.build import build_model, is_cnn
from fastlg.models.student import use_fused_attention
from fastlg.models.synced_norm import with_synced_norms
from fastlg.objective import GuidedStudent, check_guidance
from fastlg.report import say
from fastlg.teacher.cache import CachedTeacher, FeatureCache
from fastlg.teacher.cache_format import weights_digest
from fastlg.teacher.online import OnlineTeacher
from fastlg.verify import Digested


@dataclass(frozen=True)
class Stores:
    """The decoded images of a run, memory-mapped; train and test hold the same classes."""

    train: Store
    test: Store
    path: Path

    @property
    def fingerprints(self) -> list[str]:
        """What the images of both splits hash to, wherever they lie."""
        return [self.train.fingerprint, self.test.fingerprint]

    @property
    def class_names(self) -> list[str]:
        return self.train.class_names


def open_stores(config: Config) -> Stores:
    """Finds or makes the store of ``data.source``. Raises UserError on bad images, classes or paths."""
    data = config.data
    most = max(32, 16 * (os.cpu_count() or 1))
    if data.workers > most:  # each is a process of some 100 MB
        raise UserError(f"data.workers is {data.workers}; on the {os.cpu_count()} cores of this machine at most {most}")
    path = find_or_prepare(
        data.source,
        data.store,
        on_bad=data.on_bad,
        holdout=data.holdout,
        label_column=data.label_column,
        image_column=data.image_column,
        download=data.download,
        workers=max(1, data.workers),
    )
    return Stores(open_store(path, "train"), open_store(path, "test"), path)


@dataclass
class Parts:
    """Everything the training loop touches, on one device."""

    config: Config
    stores: Stores
    engine: Engine
    switches: Switches
    unit: GuidedStudent
    teacher: OnlineTeacher | CachedTeacher | None
    plan: SamplePlan  # of the training batches on this rank
    train_loader: object
    test_loader: object
    views: ViewMaker
    teacher_id: str  # what the teacher's weights and statistics hash to; "" without a teacher

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def digested(self) -> list[Digested]:
        """The files that the run reads and that were not hashed at its start."""
        cached = self.teacher.cache.digested() if isinstance(self.teacher, CachedTeacher) else []
        return [self.stores.train.digested(), self.stores.test.digested(), *cached]

    def step_total(self, step: int) -> int:
        """Samples that all ranks together train on at a 0-based step of an epoch."""
        return self.plan.step_total(len(self.stores.train), step)


def assemble(
    config: Config,
    stores: Stores,
    teacher_model: nn.Module | None,
    teacher_size: int | None,
    features: FeatureCache | None = None,
) -> Parts:
    """Builds the parts of one run. ``teacher_model`` None trains unguided. Seeds torch first: same seed, same init.

    With ``features`` the teacher is read from them and never run, nor is its view made.
    """
    device = pick_device(config.engine)
    dtype = pick_dtype(config.engine, device)
    share = share_batch(config.optim.global_batch_size, ranks.world_size(), config.engine.micro_batch_size)
    torch.manual_seed(config.run.seed)
    model = new_model(config, len(stores.class_names))
    if config.teacher is not None and len(model.blocks) != len(config.teacher.stages):
        raise UserError(
            f"model.blocks {model.blocks} and teacher.stages {config.teacher.stages} differ in length; "
            "each guided block needs one stage"
        )
    cached = None
    if teacher_model is not None and features is not None:
        cached = new_cached_teacher(config, stores, features, device, share.per_rank)
    norm_stats = config.teacher.norm_stats if teacher_model is not None and cached is None else None
    switches = decide(
        config.engine,
        device,
        dtype,
        kind=engine_kind(config),
        world_size=ranks.world_size(),
        accumulation=share.accumulation,
        norm_stats=norm_stats,
        is_on_device=cached is None or cached.is_on_device,
        is_cnn=is_cnn(config.model.name),
    )
    teacher_id = weights_digest(teacher_model) if teacher_model is not None else ""
    teacher = cached
    if norm_stats is not None:
        teacher = new_online_teacher(config, teacher_model, device, dtype, switches)
    unit = GuidedStudent(model, teacher.dims if teacher else [], config.guidance)
    use_fused_attention(unit.student, switches.fused_attention)
    unit = with_synced_norms(unit).to(device) if ranks.world_size() > 1 else unit.to(device)
    if switches.channels_last and is_cnn(config.model.name):
        unit = unit.to(memory_format=torch.channels_last)
    train_loader = new_loader(config, stores.train, device, train=True)
    return Parts(
        config=config,
        stores=stores,
        engine=new_engine(config, unit, teacher, device, dtype, share, switches),
        switches=switches,
        unit=unit,
        teacher=teacher,
        plan=new_plan(config, train=True),
        train_loader=train_loader if cached is None else cached.follow(train_loader),
        test_loader=new_loader(config, stores.test, device, train=False),
        views=make_views(
            config,
            teacher_size if cached is None else None,
            len(stores.class_names),
            dtype=dtype,
            samples=len(stores.train),
        ),
        teacher_id=teacher_id,
    )


def new_online_teacher(
    config: Config, model: nn.Module, device: torch.device, dtype: torch.dtype, switches: Switches
) -> OnlineTeacher:
    """The teacher that is run at every step. Batch statistics are those of the global batch, whatever the ranks."""
    settings = config.teacher
    if ranks.world_size() > 1 and settings.norm_stats == "batch":
        model = with_synced_norms(model)
    return OnlineTeacher(
        model.to(device),
        stages=settings.stages,
        norm_stats=settings.norm_stats,
        dtype=dtype,
        is_channels_last=switches.channels_last,
        is_folded=switches.fold_norms,
        is_compiled=switches.compile,
    )


def new_cached_teacher(
    config: Config, stores: Stores, features: FeatureCache, device: torch.device, batch_size: int
) -> CachedTeacher:
    """The teacher read from a feature cache, for batches of up to ``batch_size`` samples on this rank."""
    return CachedTeacher(
        features,
        torch.from_numpy(stores.train.sizes),
        device=device,
        replay=config.teacher.cache_replay,
        memory=config.teacher.cache_memory,
        batch_size=batch_size,
    )


def check_buildable(config: Config, stores: Stores) -> None:
    """Raises UserError for a model, view, batch or engine that cannot be, before anything is trained for it."""
    device = pick_device(config.engine)
    dtype = pick_dtype(config.engine, device)
    check_engine(config, device, dtype)
    if config.teacher is not None:
        check_guidance(config.guidance, device, dtype)
    new_model(config, len(stores.class_names))
    make_views(config, None, len(stores.class_names))


def new_model(config: Config, num_classes: int) -> nn.Module:
    """The untrained network of a config, on the CPU, its guided blocks chosen; drawn from torch's generator."""
    stages = config.teacher.stages if config.teacher else ()
    return build_model(config.model, num_classes=num_classes, guided=config.teacher is not None, stages=stages)


def make_views(
    config: Config,
    teacher_size: int | None,
    num_classes: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    samples: int | None = None,
) -> ViewMaker:
    """``num_classes`` is needed where samples are mixed; without it they are not (evaluation, contact sheets).

    ``samples``: length of the training store where whole epochs are trained, see ViewMaker.
    Views come in the run's ``dtype``, which is what the first layers would round them to; mixing is done in float32.
    """
    augment = config.augment
    mixer = None
    if num_classes:
        mixer = Mixer(
            mixup=augment.mixup,
            cutmix=augment.cutmix,
            probability=augment.mix_probability,
            switch=0.5,
            seed=config.run.seed,
        )
    try:
        return ViewMaker(
            teacher_size=teacher_size,
            rand_augment=augment.rand_augment,
            erase=augment.erase,
            mean=augment.mean,
            std=augment.std,
            seed=config.run.seed,
            interpolation=augment.interpolation,
            teacher_source=config.teacher.view if config.teacher else "student",
            mixer=mixer,
            num_classes=num_classes,
            samples=samples,
            dtype=torch.float32 if mixer is not None and mixer.active else dtype,
        )
    except ValueError as error:
        raise UserError(f"augment: {error}") from None


def new_plan(config: Config, *, train: bool) -> SamplePlan:
    """What this rank's loaders deliver; ``train`` False cuts nothing and delivers every image once over all ranks."""
    augment, optim = config.augment, config.optim
    return SamplePlan(
        size=config.model.image_size,
        batch_size=optim.global_batch_size // ranks.world_size() if train else config.log.eval_batch_size,
        train=train,
        seed=config.run.seed,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        flip_probability=augment.flip,
        interpolation=augment.interpolation,
        drop_last=optim.drop_last,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
    )


def new_loader(config: Config, store: Store, device: torch.device, *, train: bool):
    """Loader of this rank's part of one split."""
    plan = new_plan(config, train=train)
    return make_loader(config.data.loader, store, device=device, workers=config.data.workers, **vars(plan))


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
    unit = ranks.world_size() * (config.engine.micro_batch_size or 1 if share.accumulation > 1 else 1)
    for line in budget_advice(optim, len(stores.train), len(parts.train_loader), unit):
        say(f"advice   {line}")
    zero = f", ZeRO stage {config.engine.zero_stage}" if engine_kind(config) == "deepspeed" else ""
    say(f"engine   {engine_kind(config)}{zero}; on: {parts.switches.on()}")
    if parts.switches.why_off:
        say(f"         off: {parts.switches.off()}")
