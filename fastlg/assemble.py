"""From a config to the parts of a run: loaders, views, trainable unit, teacher, engine. Wiring, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from fastlg import ranks
from fastlg.config import Config
from fastlg.data.loaders.of_run import new_crops_loader, new_first_loader, new_loader, new_plan
from fastlg.data.stores import Stores
from fastlg.data.views.crops import CropViewMaker
from fastlg.data.views.make import ViewMaker
from fastlg.data.views.mixing import Mixer
from fastlg.data.views.pairs import PairSampler
from fastlg.drloc import DenseRelativeLoc, loss_weight
from fastlg.engine.build import check_engine, engine_kind, new_engine
from fastlg.engine.precision import pick_device, pick_dtype
from fastlg.engine.protocol import Share, share_batch
from fastlg.engine.schedule import image_size
from fastlg.engine.switches import decide
from fastlg.engine.update.timm_optimizers import keeps_on_host
from fastlg.errors import UserError
from fastlg.models.build import new_model
from fastlg.models.general.fused import why_unfused
from fastlg.models.param_groups import groups_of
from fastlg.models.pretraining.unit import MomentumTeacher, SelfTaught, SelfTeaching
from fastlg.models.resnet_cifar import CifarResNet
from fastlg.models.student import Student
from fastlg.models.systems.structured import KINDS, start_structured
from fastlg.models.systems.whitening import expect_patches, start_whitening
from fastlg.networks import change_blocks, new_online_teacher, new_unit, placed
from fastlg.objective import GuidedStudent, check_guidance
from fastlg.ranks.say import say
from fastlg.run.parts import Parts
from fastlg.run.report import Pulse
from fastlg.run.trained import begin_from
from fastlg.teacher.cache.format import weights_digest
from fastlg.teacher.cache.read import CachedTeacher, FeatureCache

TWO_SIZES = "a run without labels sees views of two sizes"
ON_HOST = "a run without labels counts on the host around its updates"


def assemble(
    config: Config,
    stores: Stores,
    teacher_model: nn.Module | None,
    teacher_size: int | None,
    features: FeatureCache | None = None,
    *,
    begins: bool = True,
) -> Parts:
    """Builds the parts of one run. ``teacher_model`` None trains unguided. Seeds torch first: same seed, same init.

    With ``features`` the teacher is read from them and never run, nor is its view made. ``begins`` False leaves
    ``model.weights`` unread and ``model.init`` undone, for a checkpoint takes their place.
    """
    device = pick_device(config.engine)
    dtype = pick_dtype(config.engine, device)
    share = share_batch(config.optim.global_batch_size, ranks.world_size(), config.engine.micro_batch_size)
    torch.manual_seed(config.run.seed)
    model = new_model(config.model, config.teacher, len(stores.class_names))
    if begins:
        begin(model, config, stores, device)
    if config.pretrain is not None:
        return assemble_unlabelled(config, stores, model, device, dtype, share)
    cached = None
    if teacher_model is not None and features is not None:
        cached = new_cached_teacher(config, stores, features, device, share.per_rank)
    norm_stats = config.teacher.norm_stats if teacher_model is not None and cached is None else None
    switches = decide(
        config.engine,
        device,
        dtype,
        kind=engine_kind(config.engine),
        world_size=ranks.world_size(),
        accumulation=share.accumulation,
        norm_stats=norm_stats,
        is_on_device=cached is None or cached.is_on_device,
        is_cnn=model.is_cnn,
        optimizer=keeps_on_host(config.optim),
        unfusable=why_unfused(model, device, dtype, config.engine),
    )
    teacher_id = weights_digest(teacher_model) if teacher_model is not None else ""
    teacher = cached
    if norm_stats is not None:
        teacher = new_online_teacher(config, teacher_model, device, dtype, switches)
    unit = new_unit(config, model, teacher, device, dtype, switches)
    train_loader = new_loader(config, stores.train, device, train=True)
    return Parts(
        config=config,
        stores=stores,
        engine=new_engine(
            config.engine,
            config.optim,
            groups_of(unit, config.optim),
            unit,
            teacher,
            device=device,
            dtype=dtype,
            share=share,
            switches=switches,
        ),
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
            pairs=new_pairs(config, unit.drloc),
            samples=len(stores.train),
        ),
        teacher_id=teacher_id,
        val_loader=new_loader(config, stores.val, device, train=False) if stores.val is not None else None,
    )


def assemble_unlabelled(
    config: Config, stores: Stores, model: Student, device: torch.device, dtype: torch.dtype, share: Share
) -> Parts:
    """The parts of a run without labels, whose teacher is the student's own running mean."""
    switches = decide(
        config.engine,
        device,
        dtype,
        kind="plain",
        world_size=ranks.world_size(),
        accumulation=share.accumulation,
        norm_stats=None,
        is_cnn=model.is_cnn,
        optimizer=ON_HOST,
        unfusable=TWO_SIZES,
    )
    unit = placed(config, SelfTaught(model, config.pretrain, config.model.image_size), device, dtype, switches)
    teacher = MomentumTeacher(unit)
    around = SelfTeaching(unit, teacher, config.optim.epochs, config.optim.weight_decay)
    own = {"device": device, "dtype": dtype, "share": share, "switches": switches, "around": around}
    return Parts(
        config=config,
        stores=stores,
        engine=new_engine(config.engine, config.optim, groups_of(unit, config.optim), unit, teacher, **own),
        switches=switches,
        unit=unit,
        teacher=teacher,
        plan=new_plan(config, train=True),
        train_loader=new_crops_loader(config, stores.train, device, small_size=unit.sizes[-1]),
        test_loader=new_loader(config, stores.test, device, train=False),
        views=make_views(config, None, dtype=dtype),
        teacher_id="",
        val_loader=new_loader(config, stores.val, device, train=False) if stores.val is not None else None,
        self_teaching=around,
        known_loader=new_loader(config, stores.train, device, train=False),
    )


def begin(model: Student | CifarResNet, config: Config, stores: Stores, device: torch.device) -> None:
    """First weights that are more than a draw: a checkpoint's, or those of models/systems. Raises UserError."""
    settings = config.model
    if settings.weights is not None:
        say(f"start    {begin_from(model, settings, stores.class_names)}")
    elif settings.init in KINDS:
        with Pulse(lambda: f"start    making {settings.init} weights"):
            say(f"start    {start_structured(model.bare, settings.init, config.run.seed)}")
    elif settings.init == "whitening":
        with Pulse(lambda: "start    looking at images for whitening weights"):
            conv = expect_patches(model.bare, settings.name)
            say(f"start    {start_whitening(conv, first_views(config, stores, device))}")


def first_views(config: Config, stores: Stores, device: torch.device) -> Iterator[Tensor]:
    """What the student sees in the first epoch, unmixed, in whole batches [N, 3, S, S]: of all ranks, on each of them
    alike. Of a run without labels the large views, one after the other."""
    views = make_views(config, None)
    for batch in new_first_loader(config, stores.train, device).epoch(0):
        seen = views(batch, 0).student
        yield seen.flatten(0, -4)


def online_statistics(config: Config) -> str | None:
    """``teacher.norm_stats`` of a teacher that runs at every step; None where none does."""
    return config.teacher.norm_stats if config.teacher is not None and config.teacher.mode == "online" else None


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


def check_buildable(config: Config, stores: Stores, *, begins: bool = True) -> None:
    """Raises UserError for a model, view, batch or engine that cannot be, before anything is trained for it.

    ``begins`` as in ``assemble``.
    """
    device = pick_device(config.engine)
    dtype = pick_dtype(config.engine, device)
    on_host = ON_HOST if config.pretrain is not None else ""
    check_engine(config.engine, config.optim, device, dtype, norm_stats=online_statistics(config), on_host=on_host)
    if config.teacher is not None:
        check_guidance(config.guidance, device, dtype)
    model = new_model(config.model, config.teacher, len(stores.class_names))
    if begins and config.model.weights is not None:
        begin_from(model, config.model, stores.class_names)
    if config.pretrain is not None:
        unit = SelfTaught(model, config.pretrain, config.model.image_size)
    else:
        unit = GuidedStudent(model, [1] * len(model.blocks) if config.teacher else [], config.guidance, config.drloc)
    groups_of(unit, config.optim)
    change_blocks(config, model, dtype)
    make_views(config, None, len(stores.class_names))


def new_pairs(config: Config, drloc: DenseRelativeLoc | None) -> PairSampler | None:
    """What draws the pairs that ``drloc`` looks at; None without it."""
    if drloc is None:
        return None
    own, epochs = config.drloc, config.optim.epochs

    def weight_at(epoch: int) -> float:
        return loss_weight(own, epoch, epochs)

    return PairSampler(side=drloc.side, count=own.sample_size, seed=config.run.seed, weight_at=weight_at)


def make_views(
    config: Config,
    teacher_size: int | None,
    num_classes: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    pairs: PairSampler | None = None,
    samples: int | None = None,
) -> ViewMaker | CropViewMaker:
    """``num_classes`` is needed where samples are mixed; without it they are not (evaluation, contact sheets).

    ``samples``: length of the training store where whole epochs are trained, see ViewMaker; ``pairs``: see new_pairs.
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
        made = ViewMaker(
            teacher_size=teacher_size,
            rand_augment=augment.rand_augment,
            color_jitter=augment.color_jitter,
            erase=augment.erase,
            mean=augment.mean,
            std=augment.std,
            seed=config.run.seed,
            interpolation=augment.interpolation,
            teacher_source=config.teacher.view if config.teacher else "student",
            mixer=mixer,
            num_classes=num_classes,
            pairs=pairs,
            samples=samples,
            student_size=sizes_of(config),
            dtype=torch.float32 if mixer is not None and mixer.active else dtype,
        )
    except ValueError as error:
        raise UserError(f"augment: {error}") from None
    if config.pretrain is None:
        return made
    return CropViewMaker(made, mean=augment.mean, std=augment.std, seed=config.run.seed, dtype=dtype)


def sizes_of(config: Config) -> Callable[[int], int] | None:
    """Epoch -> side in px of what the student sees; None where that never changes."""
    model = config.model
    if not model.resolution:
        return None
    return partial(image_size, resolution=model.resolution, epochs=config.optim.epochs, full=model.image_size)
