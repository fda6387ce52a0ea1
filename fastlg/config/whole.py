"""All sections of a run together, and what they must have in common."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from fastlg.config.auto import AUTO
from fastlg.config.fields import Section
from fastlg.config.keys import assign, dotted
from fastlg.config.refusals import MISSING, problems, refuse_monsters, refuse_unknown, shown
from fastlg.config.sections import (
    AugmentConfig,
    DataConfig,
    DrlocConfig,
    EngineConfig,
    GuidanceConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    PaperRow,
    PretrainConfig,
    RunConfig,
    TeacherConfig,
    scheme_of,
)
from fastlg.config.values import typed
from fastlg.errors import UserError, brief
from fastlg.files.reading import is_file


class Config(Section):
    """A whole run: a section per part, each documented in docs/configuration.md, checked alone and together."""

    run: RunConfig = RunConfig()
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig
    teacher: TeacherConfig | None = None
    guidance: GuidanceConfig = GuidanceConfig()
    drloc: DrlocConfig = DrlocConfig()
    pretrain: PretrainConfig | None = None
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    log: LogConfig = LogConfig()
    paper: PaperRow | list[PaperRow] | None = None

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, tree: Any) -> Any:
        if isinstance(tree, dict):
            refuse_monsters(tree)
            tree = typed(tree, cls, cls)
            refuse_monsters(tree)  # again: now numbers are numbers
        return tree

    @model_validator(mode="after")
    def _pairs(self):
        if self.teacher is not None and isinstance(self.model.blocks, list):
            blocks, stages = self.model.blocks, self.teacher.stages
            if len(blocks) != len(stages):
                raise ValueError(
                    f"model.blocks {brief(blocks)} and teacher.stages {brief(stages)} differ in length; "
                    "each guided block needs one stage"
                )
        return self

    @model_validator(mode="after")
    def _located(self):
        if self.drloc.weight > 0 and self.model.is_cnn:
            raise ValueError(
                f"drloc.weight is {self.drloc.weight:g}, but model.name {self.model.name} is a CNN, which has no grid "
                "of tokens; set drloc.weight=0"
            )
        return self

    @model_validator(mode="after")
    def _replayable(self):
        if self.teacher is None or self.teacher.mode == "online":
            return self
        if self.teacher.cache_augment == "geometric":
            for name, off in (
                ("rand_augment", None),
                ("color_jitter", 0.0),
                ("erase", 0.0),
                ("mixup", 0.0),
                ("cutmix", 0.0),
            ):
                if getattr(self.augment, name) != off:
                    raise ValueError(
                        f"augment.{name} is {getattr(self.augment, name)}, which cached features cannot follow; "
                        f"set augment.{name}={'null' if off is None else 0}, or teacher.cache_augment=all to augment "
                        "the student alone"
                    )
        if self.teacher.cache_form == "compact" and self.guidance.transform != "linear":
            raise ValueError(f"guidance.transform {self.guidance.transform} needs teacher.cache_form=maps")
        if self.teacher.cache_form == "compact" and self.model.resolution not in ([], AUTO):
            raise ValueError("model.resolution changes the grid that teacher.cache_form=compact is made for; use maps")
        return self

    @model_validator(mode="after")
    def _one_grid_for_pairs(self):
        if self.model.resolution not in ([], AUTO) and self.drloc.weight > 0:
            raise ValueError(
                f"drloc.weight is {self.drloc.weight:g}, whose pairs lie on one grid of tokens, but model.resolution "
                f"{brief(self.model.resolution)} changes it; set model.resolution=[] or drloc.weight=0"
            )
        return self

    @model_validator(mode="after")
    def _unlabelled(self):
        if self.pretrain is None:
            return self
        for key, is_there, fix in (
            ("teacher", self.teacher is not None, "null"),
            ("drloc.weight", self.drloc.weight > 0, "0"),
            ("model.weights", self.model.weights is not None, "null"),
            ("model.resolution", bool(self.model.resolution), "[]"),
            ("optim.ema", self.optim.ema > 0, "0"),
            ("optim.sam_rho", self.optim.sam_rho > 0, "0"),
            ("data.loader", self.data.loader in ("ffcv", "dali"), "auto"),
        ):
            if is_there:
                raise ValueError(f"{key} has no place in a run without labels (pretrain); set {key}={fix}")
        if self.model.is_cnn:
            raise ValueError(f"pretrain is for students, but model.name is {self.model.name}; take a ViT")
        if self.pretrain.final_weight_decay > 0 and self.optim.weight_decay == 0:
            raise ValueError(
                "optim.weight_decay is 0, from which nothing rises to pretrain.final_weight_decay "
                f"{self.pretrain.final_weight_decay:g}; set that to 0, too"
            )
        return self

    @model_validator(mode="after")
    def _whole_matrices(self):
        if (self.optim.name == "muon" or self.optim.of_timm) and self.engine.zero_stage > 0:
            raise ValueError(
                f"optim.name is {self.optim.name}, which steps whole weights, but engine.zero_stage "
                f"{self.engine.zero_stage} cuts them into flat parts; set engine.zero_stage=0 or optim.name=adamw"
            )
        return self

    @model_validator(mode="after")
    def _by_the_plain_engine(self):
        engine = self.engine
        if engine.kind != "deepspeed" and not engine.zero_stage and not engine.deepspeed_config:
            return self
        for name, what in (
            ("ema", "a mean that the plain engine keeps and DeepSpeed does not"),
            ("sam_rho", "which steps from other weights than its gradients are of; DeepSpeed keeps both to itself"),
        ):
            if value := getattr(self.optim, name):
                raise ValueError(f"optim.{name} is {value:g}, {what}; set optim.{name}=0 or engine.kind=plain")
        if self.pretrain is not None:
            raise ValueError(
                "pretrain has a teacher that follows every update, which DeepSpeed keeps to itself; set "
                "engine.kind=plain, engine.zero_stage=0 and engine.deepspeed_config=null"
            )
        return self

    @property
    def paper_rows(self) -> list[PaperRow]:
        """The published rows that this run repeats: one run may stand in several tables."""
        return self.paper if isinstance(self.paper, list) else [self.paper] if self.paper else []

    @property
    def run_dir(self) -> Path:
        return self.run.root / self.run.name

    def replace(self, changes: dict[str, Any], origin: str = "override") -> Config:
        """A copy with dotted keys replaced, validated again. Raises UserError that begins with ``origin``."""
        return laid_over(self.model_dump(mode="json"), changes, "config", origin=origin)

    def absolute(self) -> Config:
        """A copy that means the same from any working directory: every path absolute, names left as they are."""
        paths = {key: value for key, value in dotted(self.model_dump()).items() if isinstance(value, Path)}
        if not scheme_of(self.data.source):
            paths["data.source"] = self.data.source
        if self.teacher is not None and is_file(self.teacher.recipe):  # as find_config: else a shipped config
            paths["teacher.recipe"] = self.teacher.recipe
        return self.replace({key: os.path.abspath(os.path.expanduser(path)) for key, path in paths.items()})


def validated(tree: dict, where: str) -> Config:
    """Raises UserError, one line that begins with ``where``."""
    found = _config_or_problems(tree)
    if isinstance(found, Config):
        return found
    raise UserError(f"{where}: {found[0]}")


def laid_over(
    tree: dict, changes: dict[str, Any], where: str, *, texts: dict[str, str] | None = None, origin: str = "override"
) -> Config:
    """``tree`` with dotted keys replaced, validated.

    Raises UserError, one line that begins with those of the ``changes`` that are to blame, as they were typed
    (``texts``), or with ``where`` when none is: when it would be said without them, too.
    """
    laid = copy.deepcopy(tree)
    for key, value in changes.items():
        try:
            assign(laid, key, value)
        except UserError as error:
            raise UserError(f"{origin} {_spelled(key, value, texts)}: {error}") from None
    found = _config_or_problems(laid)
    if isinstance(found, Config):
        return found
    blamed = [_spelled(key, changes[key], texts) for key in _to_blame(found, tree, changes)]
    who = f"{origin}{'s' if len(blamed) > 1 else ''} {' and '.join(blamed)}" if blamed else where
    raise UserError(f"{who}: {found[0]}")


def _to_blame(found: list[str], tree: dict, changes: dict[str, Any]) -> list[str]:
    """The changes without which the first problem is gone, not just hidden behind another one that comes before it."""
    surely, maybe = [], []
    for key in changes:
        left = _without(key, tree, changes)
        if isinstance(left, Config) or (found[0] not in left and key in found[0]):
            surely.append(key)
        elif found[0] not in left and not any(MISSING in line for line in left):
            maybe.append(key)
    return surely or maybe


def _without(key: str, tree: dict, changes: dict[str, Any]) -> Config | list[str]:
    laid = copy.deepcopy(tree)
    try:
        for other, value in changes.items():
            if other != key:
                assign(laid, other, value)
    except UserError as error:
        return [str(error)]
    return _config_or_problems(laid)


def _config_or_problems(tree: dict) -> Config | list[str]:
    try:
        refuse_unknown(tree, Config)
        return Config.model_validate(tree)
    except ValidationError as error:
        return problems(error, Config, tree)
    except ValueError as error:
        return [str(error)]


def _spelled(key: str, value: Any, texts: dict[str, str] | None) -> str:
    if texts is not None:
        return brief(texts[key])
    text = value if isinstance(value, (str, Path)) else str(value).lower() if isinstance(value, bool) else shown(value)
    return brief(f"{key}={text}")
