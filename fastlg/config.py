"""Everything a run can be told, typed; one YAML file plus ``section.key=value`` overrides.

Each part of fastlg receives its own section. Only cli.py, assemble.py, train.py and compare.py see the whole.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from fastlg.durable import write_atomically
from fastlg.errors import UserError, first_line
from fastlg.sections import (
    AugmentConfig,
    DataConfig,
    EngineConfig,
    GuidanceConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Section,
    TeacherConfig,
    scheme_of,
)


class Config(Section):
    run: RunConfig = RunConfig()
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig
    teacher: TeacherConfig | None = None
    guidance: GuidanceConfig = GuidanceConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _pairs(self):
        if self.teacher is not None and isinstance(self.model.blocks, list):
            blocks, stages = self.model.blocks, self.teacher.stages
            if len(blocks) != len(stages):
                raise ValueError(
                    f"model.blocks {blocks} and teacher.stages {stages} differ in length; "
                    "each guided block needs one stage"
                )
        return self

    @model_validator(mode="after")
    def _replayable(self):
        if self.teacher is not None and self.teacher.mode != "online" and self.teacher.cache_augment == "geometric":
            for name, off in (("rand_augment", None), ("erase", 0.0), ("mixup", 0.0), ("cutmix", 0.0)):
                if getattr(self.augment, name) != off:
                    raise ValueError(
                        f"augment.{name} is {getattr(self.augment, name)}, which cached features cannot follow; "
                        f"set augment.{name}={'null' if off is None else 0}, or teacher.cache_augment=all to augment "
                        "the student alone"
                    )
        return self

    @model_validator(mode="after")
    def _whole_matrices(self):
        if self.optim.name == "muon" and self.engine.zero_stage > 0:
            raise ValueError(
                f"optim.name is muon, which steps whole matrices, but engine.zero_stage {self.engine.zero_stage} cuts "
                "them into flat parts; set engine.zero_stage=0 or optim.name=adamw"
            )
        return self

    @property
    def run_dir(self) -> Path:
        return self.run.root / self.run.name

    def replace(self, overrides: dict[str, Any]) -> Config:
        """A copy with dotted keys replaced, validated again. Raises UserError."""
        tree = self.model_dump(mode="json")
        for key, value in overrides.items():
            _assign(tree, key, value)
        return _validate(tree, "overrides")

    def absolute(self) -> Config:
        """A copy that means the same from any working directory: every path absolute, names left as they are."""
        paths = {key: value for key, value in dotted(self.model_dump()).items() if isinstance(value, Path)}
        if not scheme_of(self.data.source):
            paths["data.source"] = Path(self.data.source)
        if self.teacher is not None and Path(self.teacher.recipe).is_file():  # as find_config: else a shipped config
            paths["teacher.recipe"] = Path(self.teacher.recipe)
        return self.replace({key: os.path.abspath(path.expanduser()) for key, path in paths.items()})


def config_folders() -> list[Path]:
    """Where configs are looked for by name: inside an installed wheel, or beside the sources."""
    here = Path(__file__).resolve().parent
    return [folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir()]


def find_config(name: str) -> Path:
    """The file a user means by ``name``: a path, or a shipped config with or without ``configs/`` and ``.yaml``."""
    path = Path(name)
    if path.is_file():
        return path
    stem = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    known = []
    for folder in config_folders():
        for candidate in (folder / stem, folder / f"{stem}.yaml"):
            if candidate.is_file():
                return candidate
        known += [str(p.relative_to(folder).with_suffix("")) for p in sorted(folder.rglob("*.yaml"))]
    near = difflib.get_close_matches(str(stem.with_suffix("")), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"shipped configs: {', '.join(known) or 'none'}"
    raise UserError(f"config '{name}' is neither a file nor a shipped config; {hint}")


def load_config(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML config, applies ``section.key=value`` overrides, validates. Raises UserError, one line."""
    path = find_config(name)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, dates that do not exist
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}; a config is a mapping of sections")
    for key, value in parse_overrides(overrides).items():
        _assign(tree, key, value)
    config = _validate(tree, str(path))
    if not config.run.name:
        config = config.replace({"run.name": path.stem})
    return config


def parse_overrides(overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """``section.key=value`` strings as {dotted key: value}; values are YAML. Raises UserError."""
    parsed = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"override '{override}' is not of the form section.key=value")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
            raise UserError(f"override '{override}': the value is not valid YAML; quote it") from None
    return parsed


def dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{optim: {epochs: 1}} and {optim.epochs: 1} alike as {"optim.epochs": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def save_config(config: Config, path: Path) -> None:
    """Atomically, and only when it changed: a kill or a full disk leaves the old file or the new one."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    write_atomically(path, text)


def read_saved_config(path: Path) -> Config:
    """A run's own config.yaml; fields that are newer than it take their defaults. Raises UserError."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    return config_from(tree, str(path))


def config_from(tree: Any, where: str) -> Config:
    """Validates a mapping of sections. Raises UserError that begins with ``where``."""
    if not isinstance(tree, dict):
        raise UserError(f"{where} holds a {type(tree).__name__}; a config is a mapping of sections")
    return _validate(tree, where)


def _assign(tree: dict, key: str, value: Any) -> None:
    """Sets a dotted key; behind ``teacher.overrides.`` and ``model.args.`` the rest is one literal key."""
    for literal in ("teacher.overrides.", "model.args."):
        if key.startswith(literal):
            parts = [*literal.rstrip(".").split("."), key.removeprefix(literal)]
            break
    else:
        parts = key.split(".")
    node = tree
    for part in parts[:-1]:
        if not isinstance(node.setdefault(part, {}), dict):
            node[part] = {}
        node = node[part]
    node[parts[-1]] = value


def _validate(tree: dict, where: str) -> Config:
    _refuse_unknown(tree, Config, where)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_one_line(error)}") from None


def _refuse_unknown(tree: Any, model: type[BaseModel], where: str, prefix: str = "") -> None:
    """Unknown keys are named with the nearest real one, before pydantic sees them."""
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        if key not in model.model_fields:
            names = _dotted_names(Config)
            near = difflib.get_close_matches(f"{prefix}{key}", names, n=1, cutoff=0.5) or [
                name for name in names if name.rsplit(".", 1)[-1] == key
            ]
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(model.model_fields)}"
            raise UserError(f"{where}: unknown key {prefix}{key}; {hint}")
        child = _section_type(model.model_fields[key].annotation)
        if child is not None:
            _refuse_unknown(value, child, where, f"{prefix}{key}.")


def _section_type(annotation: Any) -> type[Section] | None:
    options = (annotation, *getattr(annotation, "__args__", ()))
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, Section)), None)


def _dotted_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for key, field in model.model_fields.items():
        child = _section_type(field.annotation)
        names += [f"{prefix}{key}"] if child is None else [f"{prefix}{key}", *_dotted_names(child, f"{prefix}{key}.")]
    return names


def _one_line(error: ValidationError) -> str:
    """The first problem: key, offending value, what is allowed."""
    first = error.errors()[0]
    names = [str(part) for part in first["loc"] if str(part).isidentifier() or isinstance(part, int)]
    key = ".".join(names)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{key} is missing; give it in the file or as {key}=VALUE"
    if first["type"] == "value_error":
        return message
    return f"{key} is {first['input']!r}: {message[0].lower()}{message[1:]}"
