"""The sections of a config, typed; each part of fastlg receives its own."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fastlg.config.auto import AUTO
from fastlg.config.fields import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Alpha,
    Aspect,
    Auto,
    Batch,
    Block,
    Deviation,
    Epochs,
    Fraction,
    HomeText,
    Momentum,
    NotNegative,
    OfTimm,
    Path,
    Positive,
    RunName,
    Section,
    Share,
    Size,
    Stage,
    Steps,
    Switch,
    Temperature,
    Text,
)
from fastlg.config.timm_names import OfTimmOrOurs
from fastlg.config.values import BY_KEY
from fastlg.errors import brief


class RunConfig(Section):
    """Where the run lives: ``root/name``. An empty name is the config file's own."""

    name: RunName = ""  # a folder below root
    root: Path = pathlib.Path("runs")  # folder of all runs, and of the teachers that they share
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  # of initial weights, order, crops, augmentation and drop path


def scheme_of(source: str) -> str:
    """torchvision, hf or demo of a ``data.source`` that is a name; "" of one that is a path."""
    scheme, colon, _ = source.partition(":")
    return scheme if colon and scheme in ("torchvision", "hf", "demo") else ""


class DataConfig(Section):
    """Which images, and how they are read. See data/sources/choose.py for the forms of ``source``."""

    source: HomeText  # a path, torchvision:NAME, hf://OWNER/NAME or demo:mnist5k
    label_column: str | None = None  # parquet, hf:// and .beton only
    image_column: str | None = None  # likewise
    holdout: Momentum = 0.0  # share of the training images to test on, instead of the test split
    val: Momentum | Literal["split"] = 0.0  # share of the training images, or the set's own split, that chooses best.pt
    download: bool = True  # torchvision: and hf:// sources may be fetched; false: what was fetched before is used
    store: Path | None = None  # where the decoded store is kept; None: the cache folder
    on_bad: Literal["fail", "skip"] = "fail"  # images that cannot be used: refuse the set, or leave them out
    loader: Literal["auto", "resident", "ffcv", "dali", "torch"] = "auto"  # what reads the store; pixels are the same
    workers: Annotated[int, Field(ge=0, le=1024)] = 2  # decode and loader processes


class AugmentConfig(Section):
    """timm's train transform, by its parts; the defaults are the paper's."""

    crop_scale: tuple[Share, Share] = (0.08, 1.0)  # share of the image's area that a random crop has
    crop_ratio: tuple[Aspect, Aspect] = (3 / 4, 4 / 3)  # width of a crop by its height
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # of every change of size
    flip: Fraction | Literal["alternating"] = 0.5  # alternating: half of the images, the other half an epoch later
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"  # timm's RandAugment; three-augment: DeiT III's; None: without
    color_jitter: Alpha | tuple[Alpha, Alpha, Alpha] = 0.0  # most change of brightness, contrast, saturation; 0 is off
    erase: Fraction | Auto = 0.25  # probability of random erasing
    mixup: Alpha = 0.0  # alpha of its Beta distribution; 0 is off
    cutmix: Alpha = 0.0  # alpha; with mixup too, half of the samples take each
    mix_probability: Fraction = 1.0  # of a sample to be mixed, where mixup or cutmix is on
    mean: tuple[Fraction, Fraction, Fraction] = IMAGENET_MEAN  # of pixels as numbers from 0 to 1
    std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD  # likewise

    @model_validator(mode="after")
    def _ordered(self):
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}]; the smaller number comes first")
        return self


CNNS = ("resnet20", "resnet56", "resnet110")
Init = Literal["reference", "timm", "mimetic", "impulse", "impulse_closed", "whitening"]


class ModelConfig(Section):
    """The network that is trained: a student of models/student.py (any timm model) or a resnet20/56/110."""

    name: Text  # a timm name; a resnet20, 56 or 110 is a teacher
    image_size: Size | Auto = 224  # px; auto, here and below: of the images (docs/own_images.md)
    resolution: list[tuple[Momentum, Size]] | Auto = []  # [share of the epochs, px from there on]; vit, deit
    blocks: list[Block] | Literal["auto"] = "auto"  # guided blocks or stages, 0-based; auto: Eq. 8
    fraction: Share = 1.0  # R of Eq. 8, used by blocks: auto
    drop_path: Momentum = 0.1  # stochastic depth rate of the last block; it rises over the blocks
    init: Init = "reference"  # whose initial weights, eps and drop path rule; or a start of docs/systems.md
    weights: Path | None = None  # a start: a run folder or export, a file of timm names, or the reference's checkpoint
    args: dict[str, Any] = {}  # handed to timm.create_model

    @property
    def is_cnn(self) -> bool:
        """Whether it is one of the CNNs that can teach."""
        return self.name in CNNS

    @model_validator(mode="after")
    def _rising(self):
        steps = self.resolution if self.resolution != AUTO else []
        for name, values in (("shares", [share for share, _ in steps]), ("sizes", [size for _, size in steps])):
            if any(low >= high for low, high in zip(values, values[1:], strict=False)):
                raise ValueError(f"resolution has {name} {brief(values)}; each is larger than the one before")
        if steps and (steps[0][0] != 0 or steps[-1][1] != self.image_size):
            raise ValueError(
                f"resolution is {brief([list(step) for step in steps])}; its first share is 0 and its last size is "
                f"image_size, {self.image_size}"
            )
        return self

    @model_validator(mode="after")
    def _begun_once(self):
        if self.weights is not None and self.init not in ("reference", "timm"):
            raise ValueError(f"init is {self.init}, but weights are given, which would replace it; remove one of them")
        return self

    @model_validator(mode="after")
    def _different(self):
        if isinstance(self.blocks, list) and len(set(self.blocks)) < len(self.blocks):
            raise ValueError(f"blocks is {brief(self.blocks)}; name each block once")
        return self


class TeacherConfig(Section):
    """The frozen network that guides. ``recipe`` is the config that trains it on the run's own data."""

    recipe: HomeText  # a config: a file or a shipped one's name
    weights: Path | None = None  # a teacher's run folder, or a file of the recipe's model; None: find or train
    overrides: Annotated[dict[str, Any], BY_KEY] = {}  # of the recipe, as in teacher.overrides.optim.epochs=100
    stages: Annotated[list[Stage], Field(min_length=1)] = [0, 1, 2]  # whose maps guide, one for each guided block
    norm_stats: Literal["batch", "running"] = "batch"  # of its batch norms; batch: as the reference code
    mode: Literal["online", "cache", "auto"] = "online"  # cache: features made by `fastlg cache`; auto: makes them
    cache: Path | None = None  # folder of the feature cache; None: named by its content, below the cache folder
    cache_form: Literal["auto", "maps", "compact"] = "auto"  # compact: on the student's grid, for fixed crops alone
    cache_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"  # of the features on disk
    cache_replay: Literal["exact", "cell"] = "exact"  # of a crop on a cached map; cell: the reference code's rule
    cache_augment: Literal["geometric", "all"] = "geometric"  # all: the rest for the student alone (docs/training.md)
    cache_memory: Literal["auto", "device", "shard", "host", "mmap"] = "auto"  # see teacher/cache/memory.py
    view: Literal["student", "source"] = "student"  # source: the same crop without RandAugment and erasing


class GuidanceConfig(Section):
    """The losses that the teacher adds. beta = 2.5 belongs to ``reduction: mean``."""

    weight: NotNegative = 2.5  # beta; 0: the teacher says nothing
    reduction: Literal["mean", "sum_channels"] = "mean"  # of channels; mean: as the reference code; sum: Eq. 5
    transform: Literal["linear", "attention", "similarity"] = "linear"  # what of the features is matched (table 8)
    impl: Literal["auto", "triton", "torch"] = "auto"  # auto: Triton's kernels on a GPU; torch: their plain twin
    logits: Literal["none", "soft", "hard"] = "none"  # distillation of the teacher's logits, too
    logits_token: Literal["class", "distillation"] = "class"  # whose logits answer to the teacher's
    logits_weight: Fraction = 0.5  # share of the classification loss that it replaces
    temperature: Temperature = 1.0  # of soft logits
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # how both weights go from theirs to 0
    until: Share = 1.0  # share of the epochs after which they are 0 and the teacher is asked no more

    @property
    def fades(self) -> bool:
        """Whether the weights change in a run."""
        return self.schedule != "constant" or self.until < 1

    @model_validator(mode="after")
    def _possible(self):
        if self.impl == "triton" and self.transform != "linear":
            raise ValueError(f"impl is triton, which has no transform {self.transform}; use guidance.impl=auto")
        if self.logits_token == "distillation" and self.logits == "none":
            raise ValueError("logits_token is distillation, but logits is none; use guidance.logits=soft or hard")
        return self


class DrlocConfig(Section):
    """L_drloc (arXiv 2106.03746): how far apart are two patches? One more loss, beside guidance or instead of it."""

    weight: NotNegative = 0.0  # lambda, where its warm-up ends; 0 is off
    mode: Literal["l1", "ce", "cbr"] = "l1"  # distances as numbers, as classes, as classes whose mean is a number
    use_abs: bool = True  # |first - second| per axis; false: with its sign
    normalize: bool = False  # distances from 0 to 1; the authors' code never turns it on
    sample_size: Annotated[int, Field(ge=1, le=4096)] = 64  # pairs per image
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 512  # width of the head's layers
    pool: Switch = "auto"  # the map is averaged to half its side first; auto: T2T-ViT and CvT, as the authors do
    warmup_epochs: Annotated[int, Field(ge=0, le=100_000)] = 20  # the weight rises from 0 over them
    decay: Literal["linear", "none"] = "linear"  # to 0 at total_epochs
    total_epochs: Epochs | None = None  # None: optim.epochs; the authors stop 300 after 101

    @model_validator(mode="after")
    def _tellable(self):
        if self.normalize and self.mode != "l1":
            raise ValueError(f"normalize is true, but mode {self.mode} tells whole distances apart; use drloc.mode=l1")
        return self


class PretrainConfig(Section):
    """A start without labels (``fastlg pretrain``; Gani et al. 2022, arXiv 2210.07240): the student tells from one view
    of an image what its own running mean, the teacher, says of another. Without the section: an ordinary run."""

    global_scale: tuple[Share, Share] = (0.5, 1.0)  # share of the image's area that the two large views have
    local_scale: tuple[Share, Share] = (0.2, 0.4)  # that the small views have, which the student alone sees
    local_crops: Annotated[int, Field(ge=0, le=64)] = 8  # small views of an image
    local_size: Size | None = None  # their side, px; None: half of model.image_size, in whole patches
    outputs: Annotated[int, Field(ge=2, le=65_536)] = 1024  # what both networks sort views into
    student_temperature: Temperature = 0.1  # of its answers
    teacher_temperature: tuple[Temperature, Temperature] = (0.04, 0.07)  # rises from the first to the second
    temperature_epochs: Epochs = 10  # in as many epochs
    center_momentum: Momentum = 0.9  # of the mean of the teacher's answers, which is taken off them
    momentum: Momentum = 0.996  # of the teacher's weights; it rises to 1 as a cosine
    final_weight_decay: NotNegative = 0.4  # to which optim.weight_decay goes as a cosine
    clip_each: NotNegative = 3.0  # the gradient of each parameter is scaled down to this L2 norm; 0 leaves them
    frozen_epochs: Annotated[int, Field(ge=0, le=100_000)] = 1  # first ones, in which the last layer of the head rests

    @model_validator(mode="after")
    def _ordered(self):
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}]; the smaller number comes first")
        return self


class OptimConfig(OfTimmOrOurs):
    """Optimizer and learning rate, which is one throughout an epoch (engine/schedule.py)."""

    name: Literal["adamw", "sgd", "muon"] | OfTimm = "adamw"  # muon: for hidden matrices, adamw for the rest
    args: dict[str, Any] = {}  # of timm's optimizers: what they take beside lr and weight_decay
    lr: Positive | Auto = 5e-4  # learning rate after the warm-up, for global_batch_size as it is
    min_lr: NotNegative = 5e-6  # where it ends
    warmup_epochs: Annotated[int, Field(ge=0, le=100_000)] | Auto = 20  # lr rises linearly over them
    warmup_factor: Fraction = 1e-3  # first learning rate as a share of lr
    schedule: Literal["cosine", "linear"] | OfTimm = "cosine"  # how lr falls to min_lr; cosine: as timm's
    schedule_args: dict[str, Any] = {}  # of timm's schedules, as timm.scheduler.create_scheduler_v2 takes them
    layer_decay: Share = 1.0  # lr of a layer by that of the layer above it, layers as timm counts them; 1: one lr
    flat: Momentum = 0.0  # share of the epochs, warm-up included, before it begins to fall
    epochs: Epochs | Auto = 300  # passes over the training images
    global_batch_size: Batch | Auto = 128  # samples of one update, over all ranks
    weight_decay: NotNegative = 0.05  # of matrices; biases, norms and tokens are spared
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)  # adamw
    momentum: Momentum = 0.9  # sgd, Nesterov
    muon_momentum: Momentum = 0.95  # muon's matrices, Nesterov
    clip_norm: NotNegative = 0.0  # gradients are scaled down to this L2 norm; 0 leaves them
    label_smoothing: Momentum = 0.0  # share of every target that is spread over all classes
    ema: Momentum = 0.0  # decay per update of the weights' running mean, which is then tested and exported; 0: none
    sam_rho: NotNegative = 0.0  # sharpness-aware updates: how far they climb, in L2; twice the step's cost; 0 is off
    drop_last: bool = True  # the reference drops the last partial batch; a set smaller than a batch is always used

    @model_validator(mode="after")
    def _falling(self):
        if self.lr != AUTO and self.min_lr > self.lr:
            raise ValueError(
                f"min_lr is {self.min_lr:g}, above the lr of {self.lr:g} that falls to it; set optim.min_lr=0"
            )
        return self


class EngineConfig(Section):
    """Where, in which precision and how fast; only ``precision`` and ``residual`` change results. ``auto``: CUDA where
    there is one, bf16 autocast where the device multiplies it natively, else fp32, and every switch that device and run
    allow (engine/switches.py)."""

    kind: Literal["auto", "plain", "deepspeed"] = "auto"  # auto: deepspeed where its fields below are set
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of autocast; weights and sums are fp32
    residual: Literal["fp32", "bf16"] = "fp32"  # of tokens between blocks where precision is bf16; guidance reads them
    micro_batch_size: Batch | None = None  # most samples per process in one forward pass; None: no limit
    compile: Switch = "auto"  # torch.compile of student, objective and teacher
    graph: Switch = "auto"  # whole updates as a CUDA graph
    prefetch: Switch = "auto"  # the next batch is augmented on a CUDA stream of its own
    channels_last: Switch = "auto"  # memory format of a CNN's convolutions: the teacher's, and those of one in training
    fold_norms: Switch = "auto"  # the teacher's running statistics become part of its convolutions
    fused_attention: Switch = "auto"  # scaled_dot_product_attention where the student has it
    fuse: Switch = "auto"  # blocks of timm's ViT on fastlg_kernels.fuse
    tune_convolutions: Switch = "auto"  # cuDNN times its algorithms: a resumed run may end in other bits; auto: off
    checkpointing: bool = False  # less memory, a third more work: backward computes the student's blocks again
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed: what the ranks share instead of copy
    deepspeed_config: Path | None = None  # DeepSpeed's own JSON, laid over what fastlg decides
    timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0  # of the rendezvous and of every exchange between ranks

    @model_validator(mode="after")
    def _possible(self):
        wants = "zero_stage" if self.zero_stage else "deepspeed_config" if self.deepspeed_config else ""
        if self.kind == "plain" and wants:
            raise ValueError(f"{wants} is set, but engine.kind is plain; use engine.kind=deepspeed or auto")
        return self


class LogConfig(Section):
    """How often a run reports, tests and saves."""

    every_steps: Steps = 50  # the only host syncs of the loop are these reports
    checkpoint_steps: Steps | Literal[0] = 0  # extra checkpoints inside an epoch; 0: at epoch ends only
    eval_epochs: Epochs = 1  # evaluate every so many epochs, and always at the end
    eval_batch_size: Batch = 200  # per process
    tensorboard: bool = True  # also write TensorBoard's files


class PaperRow(Section):
    """The row of a table that a config is: of arXiv 2207.10026, or that of the neighbouring systems. Nothing of a run
    depends on it."""

    table: Annotated[int, Field(ge=1, le=9)] | Literal["systems"]  # its number; systems: docs/systems.md
    row: Text  # its name there
    top1: Annotated[float, Field(ge=0, le=100)] | None = None  # %, as published
