"""Everything a run can be told, typed; one YAML file plus ``section.key=value`` overrides.

Each part of fastlg receives its own section. Only cli.py, assemble.py, train.py and compare.py see the whole.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fastlg.errors import UserError, first_line

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Switch = bool | Literal["auto"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunConfig(Section):
    """Where the run lives: ``root/name``. An empty name is the config file's own."""

    name: str = ""
    root: Path = Path("runs")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class DataConfig(Section):
    """Which images, and how they are read. See data/sources.py for the forms of ``source``."""

    source: str = Field(min_length=1)
    label_column: str | None = None  # parquet and hf:// only
    image_column: str | None = None  # likewise
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of a source without a test split that is held out
    download: bool = True  # torchvision: and hf:// sources may be fetched
    store: Path | None = None  # where the decoded store is kept; None: the cache folder
    on_bad: Literal["fail", "skip"] = "fail"
    loader: Literal["auto", "resident", "ffcv", "dali", "torch"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 2  # decode and loader processes


class AugmentConfig(Section):
    """timm's train transform, by its parts; the defaults are the paper's."""

    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: Fraction = 0.5
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    erase: Fraction = 0.25
    mixup: Annotated[float, Field(ge=0)] = 0.0  # alpha of its Beta distribution; 0 is off
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # alpha; with mixup too, half of the samples take each
    mix_probability: Fraction = 1.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD

    @model_validator(mode="after")
    def _ordered(self):
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}]; the smaller number comes first")
        return self


class ModelConfig(Section):
    """The network that is trained: a student of models/student.py or a resnet20/56/110."""

    name: str
    image_size: Annotated[int, Field(ge=8)] = 224  # px
    blocks: list[Annotated[int, Field(ge=0)]] | Literal["auto"] = "auto"  # guided blocks, 0-based; auto: Eq. 8
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # R of Eq. 8, used by blocks: auto
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    init: Literal["reference", "timm"] = "reference"
    args: dict[str, Any] = {}  # handed to timm.create_model


class TeacherConfig(Section):
    """The frozen CNN that guides. ``recipe`` is the config that trains it on the run's own data."""

    recipe: str = Field(min_length=1)
    weights: Path | None = None  # a teacher's run folder, or a checkpoint of the reference code; None: find or train
    overrides: dict[str, Any] = {}  # dotted keys of the recipe, as in teacher.overrides.optim.epochs=100
    stages: list[Annotated[int, Field(ge=0, le=2)]] = [0, 1, 2]
    norm_stats: Literal["batch", "running"] = "batch"
    mode: Literal["online", "cache", "auto"] = "online"  # cache: features made by `fastlg cache`; auto: makes them
    cache: Path | None = None  # folder of the feature cache; None: named by its content, below the cache folder
    cache_form: Literal["auto", "maps", "compact"] = "auto"  # compact: on the student's grid, for fixed crops alone
    cache_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    cache_replay: Literal["exact", "cell"] = "exact"  # of a crop on a cached map; cell: the reference code's rule
    cache_augment: Literal["geometric", "all"] = "geometric"  # all: the rest (RandAugment ...) for the student alone
    cache_memory: Literal["auto", "device", "shard", "host", "mmap"] = "auto"  # see teacher/cache_memory.py
    view: Literal["student", "source"] = "student"  # source: the same crop without RandAugment and erasing


class GuidanceConfig(Section):
    """The losses that the teacher adds. beta = 2.5 belongs to ``reduction: mean``."""

    weight: Annotated[float, Field(ge=0)] = 2.5
    reduction: Literal["mean", "sum_channels"] = "mean"
    transform: Literal["linear", "attention", "similarity"] = "linear"
    impl: Literal["auto", "triton", "torch"] = "auto"
    logits: Literal["none", "soft", "hard"] = "none"
    logits_weight: Fraction = 0.5
    temperature: Positive = 1.0


class OptimConfig(Section):
    """Optimizer and timm's per-epoch cosine schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 5e-4
    min_lr: Annotated[float, Field(ge=0)] = 5e-6
    warmup_epochs: Annotated[int, Field(ge=0)] = 20
    warmup_factor: Fraction = 1e-3  # first learning rate as a share of lr
    epochs: Count = 300
    global_batch_size: Count = 128
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)  # adamw
    momentum: Momentum = 0.9  # sgd, Nesterov
    clip_norm: Annotated[float, Field(ge=0)] = 0.0  # gradients are scaled down to this L2 norm; 0 leaves them
    drop_last: bool = True  # the reference drops the last partial batch; a set smaller than a batch is always used


class EngineConfig(Section):
    """Where, in which precision and how fast; only ``precision`` changes results. ``auto``: CUDA with bf16 autocast
    where there is one, else CPU in fp32, and every switch that device and run allow (engine/switches.py)."""

    kind: Literal["auto", "plain", "deepspeed"] = "auto"  # auto: deepspeed where its fields below are set
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_batch_size: Count | None = None  # most samples per process in one forward pass; None: no limit
    compile: Switch = "auto"  # torch.compile of student, objective and teacher
    graph: Switch = "auto"  # whole updates as a CUDA graph
    prefetch: Switch = "auto"  # the next batch is augmented on a CUDA stream of its own
    channels_last: Switch = "auto"  # memory format of the teacher's convolutions
    fold_norms: Switch = "auto"  # the teacher's running statistics become part of its convolutions
    fused_attention: Switch = "auto"  # scaled_dot_product_attention where the student has it
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed: what the ranks share instead of copy
    deepspeed_config: Path | None = None  # DeepSpeed's own JSON, laid over what fastlg decides
    timeout_s: Positive = 600.0  # of the rendezvous and of every exchange between ranks


class LogConfig(Section):
    every_steps: Count = 50  # the only host syncs of the loop are these reports
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0  # extra checkpoints inside an epoch; 0: at epoch ends only
    eval_epochs: Count = 1  # evaluate every so many epochs, and always at the end
    eval_batch_size: Count = 200
    tensorboard: bool = True


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

    @property
    def run_dir(self) -> Path:
        return self.run.root / self.run.name

    def replace(self, overrides: dict[str, Any]) -> Config:
        """A copy with dotted keys replaced, validated again. Raises UserError."""
        tree = self.model_dump(mode="json")
        for key, value in overrides.items():
            _assign(tree, key, value)
        return _validate(tree, "overrides")


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
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


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
