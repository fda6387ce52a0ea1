"""From a config to the parts of a run: stores, loaders, views, trainable unit, engine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastlg.config import Config
from fastlg.data.loaders import make_loader
from fastlg.data.mixing import Mixer
from fastlg.data.prepare import Store, find_or_prepare, open_store
from fastlg.data.views import ViewMaker
from fastlg.engine.plain import PlainEngine, build_optimizer, pick_device, pick_dtype
from fastlg.errors import UserError
from fastlg.models.build import build_model
from fastlg.models.param_groups import param_groups
from fastlg.objective import GuidedStudent
from fastlg.report import say
from fastlg.teacher.cache import CachedTeacher, FeatureCache
from fastlg.teacher.online import OnlineTeacher


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
    engine: PlainEngine
    unit: GuidedStudent
    teacher: OnlineTeacher | CachedTeacher | None
    train_loader: object
    test_loader: object
    views: ViewMaker
    teacher_id: str  # what the teacher's weights and statistics hash to; "" without a teacher

    @property
    def device(self) -> torch.device:
        return self.engine.device


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
    torch.manual_seed(config.run.seed)
    model = new_model(config, len(stores.class_names))
    teacher = None
    if teacher_model is not None:
        settings = config.teacher
        if features is None:
            teacher = OnlineTeacher(teacher_model.to(device), stages=settings.stages, norm_stats=settings.norm_stats)
        else:
            sizes = torch.from_numpy(stores.train.sizes)
            teacher = CachedTeacher(
                features,
                sizes,
                device=device,
                replay=settings.cache_replay,
                memory=settings.cache_memory,
                batch_size=config.optim.global_batch_size,
            )
        if len(model.blocks) != len(settings.stages):
            raise UserError(
                f"model.blocks {model.blocks} and teacher.stages {settings.stages} differ in length; "
                "each guided block needs one stage"
            )
    unit = GuidedStudent(model, teacher.dims if teacher else [], config.guidance).to(device)
    optimizer = build_optimizer(param_groups(unit, config.optim.weight_decay), config.optim)
    train_loader = new_loader(config, stores.train, device, train=True)
    return Parts(
        config=config,
        stores=stores,
        engine=PlainEngine(unit, optimizer, device, dtype),
        unit=unit,
        teacher=teacher,
        train_loader=train_loader if features is None else teacher.follow(train_loader),
        test_loader=new_loader(config, stores.test, device, train=False),
        views=make_views(config, teacher_size if features is None else None, len(stores.class_names)),
        teacher_id=weights_id(teacher_model) if teacher_model is not None else "",
    )


def weights_id(model: nn.Module) -> str:
    """Hex digest of every parameter and buffer of a model on the CPU or elsewhere."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_buildable(config: Config, stores: Stores) -> None:
    """Raises UserError for a model, view or device that cannot be built, before anything is trained for it."""
    pick_dtype(config.engine, pick_device(config.engine))
    new_model(config, len(stores.class_names))
    make_views(config, None, len(stores.class_names))


def new_model(config: Config, num_classes: int) -> nn.Module:
    """The untrained network of a config, on the CPU, its guided blocks chosen; drawn from torch's generator."""
    stages = config.teacher.stages if config.teacher else ()
    return build_model(config.model, num_classes=num_classes, guided=config.teacher is not None, stages=stages)


def make_views(config: Config, teacher_size: int | None, num_classes: int = 0) -> ViewMaker:
    """``num_classes`` is needed where samples are mixed; without it they are not (evaluation, contact sheets)."""
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
        )
    except ValueError as error:
        raise UserError(f"augment: {error}") from None


def new_loader(config: Config, store: Store, device: torch.device, *, train: bool):
    """Loader of one split; ``train`` False cuts nothing and delivers every image once."""
    augment, optim = config.augment, config.optim
    return make_loader(
        config.data.loader,
        store,
        size=config.model.image_size,
        batch_size=optim.global_batch_size if train else config.log.eval_batch_size,
        train=train,
        seed=config.run.seed,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        flip_probability=augment.flip,
        interpolation=augment.interpolation,
        device=device,
        workers=config.data.workers,
        drop_last=optim.drop_last,
    )


def say_plan(parts: Parts) -> None:
    """The facts of a run before it starts, one line each."""
    config, stores, engine = parts.config, parts.stores, parts.engine
    size = config.model.image_size
    parameters = sum(p.numel() for p in parts.unit.student.parameters())
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
    optim = config.optim
    say(
        f"budget   {optim.epochs} epochs of {len(parts.train_loader)} steps, batch {optim.global_batch_size}, "
        f"{type(parts.train_loader).__name__}"
    )
