"""Students without a walk of their own, one of a family, so small that a test may train them."""

from __future__ import annotations

import torch

from fastlg.models import Student

PYRAMID = {"embed_dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
FAMILIES = {  # name -> (image size, model.args)
    "swin_tiny_patch4_window7_224": (64, {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}),
    "swinv2_tiny_window8_256": (64, {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}),
    "life_vit": (
        64,
        {"base": "swinv2_tiny_window8_256", "embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "cait_xxs24_224": (48, {"embed_dim": 24, "depth": 4, "num_heads": 2}),
    "xcit_nano_12_p8_224": (48, {"embed_dim": 24, "depth": 4, "num_heads": 2}),
    "beit_base_patch16_224": (48, {"embed_dim": 24, "depth": 4, "num_heads": 2}),
    "eva02_tiny_patch14_224": (42, {"embed_dim": 24, "depth": 4, "num_heads": 2}),
    "levit_128s": (64, {"embed_dim": [16, 24, 32], "num_heads": [2, 2, 2], "depth": [1, 1, 1], "key_dim": 8}),
    "test_maxvit": (64, {}),
    "coatnet_nano_cc_224": (64, {"embed_dim": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "stem_width": 8}),
    "efficientformer_l1": (224, {"embed_dims": [8, 8, 8, 16], "depths": [1, 1, 1, 2]}),
    "efficientformerv2_s0": (64, PYRAMID),
    "hiera_tiny_224": (64, {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 2, 1]}),
    "davit_tiny": (64, {**PYRAMID, "num_heads": [1, 2, 2, 3]}),
    "twins_svt_small": (64, {**PYRAMID, "num_heads": [1, 2, 2, 3]}),
    "visformer_tiny": (64, {"embed_dim": 24, "depth": [1, 1, 1], "num_heads": 2}),
    "tnt_s_patch16_224": (
        48,
        {"embed_dim": 24, "inner_dim": 8, "depth": 3, "num_heads_outer": 2, "num_heads_inner": 2},
    ),
    "vit_relpos_small_patch16_224": (48, {"embed_dim": 24, "depth": 3, "num_heads": 2}),
    "convnext_atto": (64, {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "mambaout_femto": (64, {"dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}),
    "fcvit_tiny": (64, {"embed_dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}),
    "resnet18": (40, {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}),
    "test_efficientnet": (64, {}),
    "test_byobnet": (64, {}),
}


def any_student(name: str, *, classes: int = 5, seed: int = 1, **more) -> Student:
    """Off its start, where a zero or a one would hide a mistake."""
    size, arguments = FAMILIES[name]
    torch.manual_seed(seed)
    student = Student(name, num_classes=classes, image_size=size, model_args=arguments, **more)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return student


def noise(student: Student, count: int = 3) -> torch.Tensor:
    size = student.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))
