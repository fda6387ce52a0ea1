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
    """The run folder is ``root/name``. An empty name takes that of the config file."""

    name: RunName = ""  # a folder below root
    root: Path = pathlib.Path("runs")  # folder of all runs, and of the teachers that they share
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  # for initial weights, order, crops, augmentation and drop path


def scheme_of(source: str) -> str:
    """torchvision, hf or demo of a ``data.source`` that is a name; "" of one that is a path."""
    scheme, colon, _ = source.partition(":")
    return scheme if colon and scheme in ("torchvision", "hf", "demo") else ""


class DataConfig(Section):
    """Which images, and how they are read. docs/data.md lists the forms of ``source``."""

    source: HomeText  # a path, torchvision:NAME, hf://OWNER/NAME or demo:mnist5k
    label_column: str | None = None  # column of the labels; parquet, hf:// and .beton only
    image_column: str | None = None  # column of the images; likewise
    holdout: Momentum = 0.0  # fraction of the training images to test on, instead of a test split
    val: Momentum | Literal["split"] = 0.0  # images that choose best.pt: a fraction of training, or the set's split
    download: bool = True  # download torchvision: and hf:// sources; false: use what is already there
    store: Path | None = None  # where the decoded store is kept; None: the cache folder
    on_bad: Literal["fail", "skip"] = "fail"  # images that cannot be used: stop, or leave them out
    loader: Literal["auto", "resident", "ffcv", "dali", "torch"] = "auto"  # reads the store; all give the same pixels
    workers: Annotated[int, Field(ge=0, le=1024)] = 2  # decode and loader processes


class AugmentConfig(Section):
    """The parts of timm's training transform; the defaults are the paper's."""

    crop_scale: tuple[Share, Share] = (0.08, 1.0)  # range of a random crop's area, as a fraction of the image
    crop_ratio: tuple[Aspect, Aspect] = (3 / 4, 4 / 3)  # range of a crop's width / height
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # for all resizing
    flip: Fraction | Literal["alternating"] = 0.5  # probability; alternating: every image every second epoch
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"  # timm's RandAugment string; or three-augment; None: none
    color_jitter: Alpha | tuple[Alpha, Alpha, Alpha] = 0.0  # largest change of brightness, contrast, saturation
    erase: Fraction | Auto = 0.25  # probability of random erasing
    mixup: Alpha = 0.0  # alpha of the Beta distribution; 0: off
    cutmix: Alpha = 0.0  # alpha; 0: off; with mixup, half of the samples take each
    mix_probability: Fraction = 1.0  # that a sample is mixed, with mixup or cutmix
    mean: tuple[Fraction, Fraction, Fraction] = IMAGENET_MEAN  # for pixels scaled to 0..1
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
    image_size: Size | Auto = 224  # px; auto, here and below: derived from the images (docs/own_images.md)
    resolution: list[tuple[Momentum, Size]] | Auto = []  # steps [fraction of the epochs, px from then on]; ViT, DeiT
    blocks: list[Block] | Literal["auto"] = "auto"  # guided blocks or stages, from 0; auto: Eq. 8
    fraction: Share = 1.0  # R of Eq. 8, used by blocks: auto
    drop_path: Momentum = 0.1  # stochastic depth rate of the last block, rising linearly from 0
    init: Init = "reference"  # whose initial weights, eps and drop path rule; or a start of docs/systems.md
    weights: Path | None = None  # to start from: a run, an export, a file of timm names, the reference's checkpoint
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
    weights: Path | None = None  # a teacher's run folder, or a file for the recipe's model; None: find or train one
    overrides: Annotated[dict[str, Any], BY_KEY] = {}  # for the recipe, as in teacher.overrides.optim.epochs=100
    stages: Annotated[list[Stage], Field(min_length=1)] = [0, 1, 2]  # stages whose maps guide, one per guided block
    norm_stats: Literal["batch", "running"] = "batch"  # statistics of its batch norms; batch: as the reference code
    mode: Literal["online", "cache", "auto"] = "online"  # cache: from `fastlg cache`; auto: made if needed
    cache: Path | None = None  # folder of the feature cache; None: one named by its content
    cache_form: Literal["auto", "maps", "compact"] = "auto"  # compact: on the student's grid; fixed crops only
    cache_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"  # of the features on disk
    cache_replay: Literal["exact", "cell"] = "exact"  # how a crop is cut from a cached map; cell: as the reference code
    cache_augment: Literal["geometric", "all"] = "geometric"  # all: the rest for the student only (docs/training.md)
    cache_memory: Literal["auto", "device", "shard", "host", "mmap"] = "auto"  # on GPU, split over GPUs, RAM or disk
    view: Literal["student", "source"] = "student"  # source: the same crop without RandAugment and erasing


class GuidanceConfig(Section):
    """The losses that the teacher adds. beta = 2.5 belongs to ``reduction: mean``."""

    weight: NotNegative = 2.5  # beta; 0: no guidance
    reduction: Literal["mean", "sum_channels"] = "mean"  # over channels; mean: as the reference code; sum: Eq. 5
    transform: Literal["linear", "attention", "similarity"] = "linear"  # what is matched (Table 8)
    impl: Literal["auto", "triton", "torch"] = "auto"  # auto: Triton kernels on a GPU; torch: plain PyTorch
    logits: Literal["none", "soft", "hard"] = "none"  # also distil the teacher's logits
    logits_token: Literal["class", "distillation"] = "class"  # token whose logits are distilled
    logits_weight: Fraction = 0.5  # share of the classification loss that distillation replaces
    temperature: Temperature = 1.0  # of soft logits
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # how weight and logits_weight fall to 0
    until: Share = 1.0  # fraction of the epochs after which both are 0 and the teacher is not run

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

    weight: NotNegative = 0.0  # lambda, after the warm-up; 0: off
    mode: Literal["l1", "ce", "cbr"] = "l1"  # distances as numbers, as classes, or as the mean over classes
    use_abs: bool = True  # absolute distance per axis; false: signed
    normalize: bool = False  # scale distances to 0..1; the authors' code never does
    sample_size: Annotated[int, Field(ge=1, le=4096)] = 64  # pairs per image
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 512  # width of the head's hidden layers
    pool: Switch = "auto"  # average the map to half its side first; auto: T2T-ViT and CvT, as the authors
    warmup_epochs: Annotated[int, Field(ge=0, le=100_000)] = 20  # epochs over which the weight rises from 0
    decay: Literal["linear", "none"] = "linear"  # of the weight, to 0 at total_epochs
    total_epochs: Epochs | None = None  # None: optim.epochs; the authors' code stops 300 epochs after 101

    @model_validator(mode="after")
    def _tellable(self):
        if self.normalize and self.mode != "l1":
            raise ValueError(f"normalize is true, but mode {self.mode} tells whole distances apart; use drloc.mode=l1")
        return self


class PretrainConfig(Section):
    """Pretraining without labels (``fastlg pretrain``; Gani et al. 2022, arXiv 2210.07240): from one view of an image
    the student predicts the output of the teacher, its running mean, on another. No such section: an ordinary run."""

    global_scale: tuple[Share, Share] = (0.5, 1.0)  # range of the two large views' area, as a fraction of the image
    local_scale: tuple[Share, Share] = (0.2, 0.4)  # likewise, of the small views, which only the student sees
    local_crops: Annotated[int, Field(ge=0, le=64)] = 8  # small views per image
    local_size: Size | None = None  # side of the small views, px; None: half of model.image_size, in whole patches
    outputs: Annotated[int, Field(ge=2, le=65_536)] = 1024  # outputs of the projection head of both networks
    student_temperature: Temperature = 0.1  # of the student's softmax
    teacher_temperature: tuple[Temperature, Temperature] = (0.04, 0.07)  # of the teacher's softmax: first, last
    temperature_epochs: Epochs = 10  # epochs over which the teacher's temperature rises
    center_momentum: Momentum = 0.9  # of the running mean that is subtracted from the teacher's outputs
    momentum: Momentum = 0.996  # of the teacher's running mean of weights; rises to 1 as a cosine
    final_weight_decay: NotNegative = 0.4  # last value of the weight decay, from optim.weight_decay as a cosine
    clip_each: NotNegative = 3.0  # largest L2 norm of each parameter's gradient; 0: no clipping
    frozen_epochs: Annotated[int, Field(ge=0, le=100_000)] = 1  # first epochs, in which the head's last layer is frozen

    @model_validator(mode="after")
    def _ordered(self):
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}]; the smaller number comes first")
        return self


class OptimConfig(OfTimmOrOurs):
    """Optimizer and learning rate, which is one throughout an epoch (engine/schedule.py)."""

    name: Literal["adamw", "sgd", "muon"] | OfTimm = "adamw"  # muon: Muon for matrices, AdamW for the rest
    args: dict[str, Any] = {}  # arguments of a timm optimizer, besides lr and weight_decay
    lr: Positive | Auto = 5e-4  # peak learning rate; not scaled by the batch size
    min_lr: NotNegative = 5e-6  # learning rate at the end
    warmup_epochs: Annotated[int, Field(ge=0, le=100_000)] | Auto = 20  # epochs over which lr rises linearly
    warmup_factor: Fraction = 1e-3  # first learning rate as a fraction of lr
    schedule: Literal["cosine", "linear"] | OfTimm = "cosine"  # how lr falls to min_lr; cosine: as timm's
    schedule_args: dict[str, Any] = {}  # arguments of a timm schedule, as in timm.scheduler.create_scheduler_v2
    layer_decay: Share = 1.0  # a layer's lr / that of the layer above, layers as in timm; 1: one lr
    flat: Momentum = 0.0  # fraction of the epochs, with warm-up, before lr begins to fall
    epochs: Epochs | Auto = 300  # passes over the training images
    global_batch_size: Batch | Auto = 128  # samples per update, over all ranks
    weight_decay: NotNegative = 0.05  # of matrices only, not of biases, norms and tokens
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)  # of adamw
    momentum: Momentum = 0.9  # of sgd, Nesterov
    muon_momentum: Momentum = 0.95  # of muon's matrices, Nesterov
    muon_also: list[Literal["stem", "head"]] = ["stem"]  # what else muon steps: patch embedding, head
    clip_norm: NotNegative = 0.0  # largest L2 norm of the gradients; 0: no clipping
    label_smoothing: Momentum = 0.0  # fraction of each target spread over all classes
    ema: Momentum = 0.0  # decay per update of averaged weights, which are tested and exported; 0: off
    sam_rho: NotNegative = 0.0  # radius (L2) of sharpness-aware updates, at twice the cost; 0: off
    drop_last: bool = True  # drop the last partial batch, as the reference; a set below one batch is kept

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

    kind: Literal["auto", "plain", "deepspeed"] = "auto"  # auto: deepspeed if its fields below are set
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA if available
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of autocast; weights and sums are fp32
    residual: Literal["fp32", "bf16"] = "fp32"  # of tokens between blocks, which guidance reads, with bf16
    micro_batch_size: Batch | None = None  # most samples per process and forward pass; None: no limit
    compile: Switch = "auto"  # torch.compile student, objective and teacher
    graph: Switch = "auto"  # replay whole updates as a CUDA graph
    prefetch: Switch = "auto"  # augment the next batch on a CUDA stream of its own
    channels_last: Switch = "auto"  # memory format of CNNs: of the teacher, and of one in training
    fold_norms: Switch = "auto"  # fold the teacher's batch norms into its convolutions
    fused_attention: Switch = "auto"  # scaled_dot_product_attention, where the student supports it
    fuse: Switch = "auto"  # run blocks of timm's ViT on fastlg_kernels.fuse, and AdamW in one launch
    tune_convolutions: Switch = "auto"  # let cuDNN time its algorithms; a resumed run may differ in bits; auto: off
    checkpointing: bool = False  # recompute the student's blocks in backward: less memory, a third more work
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed: ZeRO stage
    deepspeed_config: Path | None = None  # DeepSpeed: a JSON file that overrides what fastlg decides
    timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0  # for the rendezvous and every exchange between ranks

    @model_validator(mode="after")
    def _possible(self):
        wants = "zero_stage" if self.zero_stage else "deepspeed_config" if self.deepspeed_config else ""
        if self.kind == "plain" and wants:
            raise ValueError(f"{wants} is set, but engine.kind is plain; use engine.kind=deepspeed or auto")
        return self


class LogConfig(Section):
    """How often a run reports, tests and saves."""

    every_steps: Steps = 50  # updates between reports, the loop's only host syncs
    checkpoint_steps: Steps | Literal[0] = 0  # updates between extra checkpoints within an epoch; 0: none
    eval_epochs: Epochs = 1  # epochs between evaluations; the last epoch is always evaluated
    eval_batch_size: Batch = 200  # per process
    tensorboard: bool = True  # also write TensorBoard files


class PaperRow(Section):
    """The row of a table that a config is: of arXiv 2207.10026, or that of the neighbouring systems. Nothing of a run
    depends on it."""

    table: Annotated[int, Field(ge=1, le=9)] | Literal["systems"]  # its number; systems: docs/systems.md
    row: Text  # its name there
    top1: Annotated[float, Field(ge=0, le=100)] | None = None  # %, as published
