"""From the ``model`` section of a config to a network."""

from __future__ import annotations

from collections.abc import Sequence

from fastlg.config import ModelConfig, TeacherConfig
from fastlg.errors import UserError
from fastlg.models.resnet_cifar import CifarResNet, resnet20, resnet56, resnet110
from fastlg.models.student import Student, guided_blocks
from fastlg.models.systems.structured import KINDS, expect_plain
from fastlg.models.systems.whitening import expect_patches

# the names that ModelConfig.is_cnn knows
CNNS = {"resnet20": resnet20, "resnet56": resnet56, "resnet110": resnet110}


def build_model(
    config: ModelConfig, *, num_classes: int, guided: bool, stages: Sequence[int] = (0, 1, 2)
) -> Student | CifarResNet:
    """A fresh network on the CPU, float32, drawn from torch's global generator.

    ``guided`` False leaves the tokens out; it changes no weight. ``stages`` are the teacher's stages that guide: with
    ``blocks: auto`` each gets the block that Eq. 8 gives it among the paper's three, and where one lies beyond these,
    among those that guide. Raises UserError.
    """
    if config.is_cnn:
        if guided:
            raise UserError(f"model.name {config.name} is a CNN, which cannot be guided; remove the teacher section")
        if config.resolution:
            raise UserError(f"model.resolution {config.resolution}: {config.name} takes none; remove it")
        if config.args:
            raise UserError(f"model.args {config.args}: {config.name} takes none; set model.args={{}}")
        if config.init not in ("reference", "timm"):
            raise UserError(f"model.init {config.init}: {config.name} takes none; it is for ViTs")
        return CNNS[config.name](num_classes)
    student = Student(
        config.name,
        num_classes=num_classes,
        image_size=config.image_size,
        blocks=config.blocks if guided and config.blocks != "auto" else (),
        drop_path=config.drop_path,
        init="timm" if config.init == "timm" else "reference",
        model_args=config.args,
    )
    if config.init in KINDS:  # whose weights are made where a run begins, not for a checkpoint's to replace them
        expect_plain(student.bare, config.init, config.name)
    elif config.init == "whitening":
        expect_patches(student.bare, config.name)
    for _, size in config.resolution:  # which are refused here if they are; the last one is the model's own
        student.take_size(size)
    if guided and config.blocks == "auto":
        places = sorted({0, 1, 2} if max(stages) <= 2 else set(stages))
        by_stage = dict(zip(places, guided_blocks(student.depth, len(places), config.fraction), strict=True))
        student.guide([by_stage[stage] for stage in stages])
    return student


def new_model(config: ModelConfig, teacher: TeacherConfig | None, num_classes: int) -> Student | CifarResNet:
    """The network of a run, its guided blocks chosen where there is a ``teacher``; see ``build_model``."""
    stages = teacher.stages if teacher else ()
    return build_model(config, num_classes=num_classes, guided=teacher is not None, stages=stages)
