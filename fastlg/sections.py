"""The sections of a config, typed; each part of fastlg receives its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


def scheme_of(source: str) -> str:
    """torchvision, hf or demo of a ``data.source`` that is a name; "" of one that is a path."""
    scheme, colon, _ = source.partition(":")
    return scheme if colon and scheme in ("torchvision", "hf", "demo") else ""


class DataConfig(Section):
    """Which images, and how they are read. See data/sources.py for the forms of ``source``."""

    source: str = Field(min_length=1)
    label_column: str | None = None  # parquet, hf:// and .beton only
    image_column: str | None = None  # likewise
    holdout: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # share of the training images to test on, instead of the test split
    )
    download: bool = True  # torchvision: and hf:// sources may be fetched; false: what was fetched before is used
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
    cache_augment: Literal["geometric", "all"] = "geometric"  # all: the rest for the student alone (README: -4 points)
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

    name: Literal["adamw", "sgd", "muon"] = "adamw"  # muon: for matrices of hidden layers, adamw for the rest
    lr: Positive = 5e-4
    min_lr: Annotated[float, Field(ge=0)] = 5e-6
    warmup_epochs: Annotated[int, Field(ge=0)] = 20
    warmup_factor: Fraction = 1e-3  # first learning rate as a share of lr
    epochs: Count = 300
    global_batch_size: Count = 128
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)  # adamw
    momentum: Momentum = 0.9  # sgd, Nesterov
    muon_momentum: Momentum = 0.95  # muon's matrices, Nesterov
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
    channels_last: Switch = "auto"  # memory format of a CNN's convolutions: the teacher's, and those of one in training
    fold_norms: Switch = "auto"  # the teacher's running statistics become part of its convolutions
    fused_attention: Switch = "auto"  # scaled_dot_product_attention where the student has it
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed: what the ranks share instead of copy
    deepspeed_config: Path | None = None  # DeepSpeed's own JSON, laid over what fastlg decides
    timeout_s: Positive = 600.0  # of the rendezvous and of every exchange between ranks


class LogConfig(Section):
    every_steps: Count = 50  # the only host syncs of the loop are these reports
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0  # extra checkpoints inside an epoch; 0: at epoch ends only
    eval_epochs: Count = 1  # evaluate every so many epochs, and always at the end
    eval_batch_size: Count = 200  # per process
    tensorboard: bool = True
