"""Fused kernels for locality guidance and on-device augmentation: torch and triton, nothing else."""

from . import layers  # by name: Hugging Face's kernels looks for layers here, in whichever copy it loaded last
from .adamw.optimizer import AdamW
from .attention.api import short_attention
from .augment.api import (
    RaggedImages,
    apply_op,
    draw_rand_augment,
    normalise,
    parse_rand_augment,
    rand_augment,
    random_erasing,
    resize_crops,
)
from .augment.views import ViewDraw, draw_views, teacher_view, train_views
from .blocks import fuse, unfuse
from .guidance.api import guidance_loss
from .layers import GuidanceLoss, distillation_loss
from .mlp.api import add_mlp
from .norm.api import add_layer_norm
from .rng import sample_seeds

__all__ = [
    "AdamW",
    "GuidanceLoss",
    "RaggedImages",
    "ViewDraw",
    "add_layer_norm",
    "add_mlp",
    "apply_op",
    "distillation_loss",
    "draw_rand_augment",
    "draw_views",
    "fuse",
    "guidance_loss",
    "layers",
    "normalise",
    "parse_rand_augment",
    "rand_augment",
    "random_erasing",
    "resize_crops",
    "sample_seeds",
    "short_attention",
    "teacher_view",
    "train_views",
    "unfuse",
]
