"""timm's training transforms, batched, on the device, to Pillow's bytes."""

from .api import (
    RaggedImages,
    apply_op,
    draw_rand_augment,
    normalise,
    parse_rand_augment,
    rand_augment,
    random_erasing,
    resize_crops,
)
from .views import ViewDraw, draw_views, teacher_view, train_views

__all__ = [
    "RaggedImages",
    "ViewDraw",
    "apply_op",
    "draw_rand_augment",
    "draw_views",
    "normalise",
    "parse_rand_augment",
    "rand_augment",
    "random_erasing",
    "resize_crops",
    "teacher_view",
    "train_views",
]
