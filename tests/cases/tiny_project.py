"""The two configs of the tiny task that end-to-end tests train on."""

from __future__ import annotations

from pathlib import Path

import yaml

TEACHER = {
    "augment": {"rand_augment": None, "erase": 0.0, "crop_scale": [0.5, 1.0]},
    "data": {"source": "set by the student"},
    "model": {"name": "resnet20", "image_size": 16},
    "optim": {"name": "sgd", "lr": 0.05, "min_lr": 0.0, "warmup_epochs": 0, "epochs": 1, "global_batch_size": 20},
    "engine": {"precision": "fp32"},  # auto is bf16 on some CPUs, and numbers are compared
}
STUDENT = {
    "run": {"seed": 3},
    "data": {"workers": 0},
    "model": {
        "name": "vit_tiny_patch16_224",
        "image_size": 32,
        "blocks": [0, 1, 2],
        "args": {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    },
    "optim": {"lr": 1.0e-3, "warmup_epochs": 1, "epochs": 2, "global_batch_size": 16},
    "engine": {"precision": "fp32"},
    "log": {"every_steps": 2, "eval_batch_size": 25, "tensorboard": False},
}


def write_project(folder: Path, image_folder: Path) -> None:
    """student.yaml and teacher.yaml on the tiny images."""
    data = {**STUDENT["data"], "source": str(image_folder)}
    student = {**STUDENT, "data": data, "teacher": {"recipe": "teacher.yaml"}}
    (folder / "student.yaml").write_text(yaml.safe_dump(student))
    (folder / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
