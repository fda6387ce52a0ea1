"""What ``fastlg export`` wrote, read back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastlg.config import Config, config_from
from fastlg.errors import UserError, brief, first_line
from fastlg.files.reading import is_file, read_regular
from fastlg.models.build import new_model
from fastlg.models.student import Student

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
MOST_DESCRIPTION = 1 << 26  # bytes


def is_export(folder: Path) -> bool:
    """Whether ``fastlg export`` wrote this folder."""
    return is_file(folder / WEIGHTS) and is_file(folder / DESCRIPTION)


def load_export(folder: Path, source: str = "none") -> tuple[Config, Student, list[str]]:
    """(what it says of its run's config, student on the CPU in evaluation mode, class names) of what export wrote.

    ``source`` stands for the images, which an export does not know. The eps of its norms are timm's, as its weights
    expect. Raises UserError for a folder that holds no whole export.
    """
    where = folder / DESCRIPTION
    try:
        known = json.loads(read_regular(where, MOST_DESCRIPTION))
        about, name, names = known["pretrained_cfg"], known["architecture"], list(known["label_names"])
        if known["model_args"].get("features_only"):
            raise UserError(f"{folder} is a backbone, which gives maps and no classes; give its run or another export")
        own = {key: value for key, value in known["model_args"].items() if key not in ("img_size", "image_size")}
        section = {"name": name, "args": own, "image_size": about["input_size"][-1], "init": "timm"}
        augment = {"mean": about["mean"], "std": about["std"]}
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise UserError(f"{where} is not what fastlg export writes; give its folder, or a run") from None
    engine = {"precision": "fp32"}  # as whoever loads it with timm computes
    known = {"data": {"source": source}, "model": section, "augment": augment, "engine": engine}
    config = config_from(known, str(where))
    with torch.random.fork_rng(devices=[]):
        student = new_model(config.model, None, len(names))
    try:
        student.bare.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # safetensors and torch raise several types
        raise UserError(f"{folder / WEIGHTS} does not fit its {DESCRIPTION}: {brief(first_line(error), 200)}") from None
    return config, student.eval(), names


def exported_model(folder: Path) -> dict | None:
    """Name and arguments of the model that ``fastlg export`` wrote; None where its description is damaged."""
    try:
        known = json.loads(read_regular(folder / DESCRIPTION, MOST_DESCRIPTION))
        return {"name": known["architecture"], "args": dict(known["model_args"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
