"""The weights that a network's training starts from: of a run, an export or a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fastlg.config import ModelConfig
from fastlg.errors import UserError, brief
from fastlg.files.reading import is_file
from fastlg.models.start import start_from
from fastlg.models.systems.parts import unwrapped
from fastlg.run.checkpoint import LAST
from fastlg.run.folder import expect_run, expect_there, read_summary
from fastlg.run.trained.exports import WEIGHTS, exported_model
from fastlg.run.trained.runs import averaged
from fastlg.run.trained.weight_files import read_weights

HARMLESS = ("img_size", "image_size")  # positions are resized, which is said


def begin_from(model: nn.Module, settings: ModelConfig, classes: list[str]) -> str:
    """Copies the weights that ``settings`` name into a fresh network; returns what to say of it. Raises UserError.

    They are a run folder (its last checkpoint; with optim.ema the averaged ones, without labels its teacher's), what
    ``fastlg export`` wrote, or a file: safetensors, or what torch.load reads with weights_only=True. Where they tell
    which model they are of, what of it these settings change without changing a shape is told, too.
    """
    path = weights = settings.weights
    theirs: dict | None = None  # model section of the config that they were trained by, as far as it is known
    note = ""
    if is_file(weights / WEIGHTS):
        path, theirs = weights / WEIGHTS, exported_model(weights)
    elif path.is_dir():
        expect_run(path)
        path = path / "checkpoints" / LAST
        note = "" if read_summary(weights) else " (unfinished run)"
    else:
        expect_there(path, "model.weights")
    state = read_weights(path, "model.weights", "a run folder")
    trained = state.get("class_names") if isinstance(state, dict) else None
    is_other = isinstance(trained, list) and trained != list(classes)
    where, own = f"model.weights {weights}{note}", state.get("config") if isinstance(state, dict) else None
    own = own if isinstance(own, dict) else {}
    if isinstance(own.get("model"), dict):
        theirs = own["model"]
    if isinstance(own.get("optim"), dict) and own["optim"].get("ema"):
        state, where = averaged(state, path), f"the averaged weights of {where}"
    if own.get("pretrain") is not None and isinstance(state.get("teacher"), dict):
        return _begin_unlabelled(model, settings, state["teacher"], theirs, where)
    said = start_from(model, state, where, is_other_classes=is_other)
    return "; ".join([said, *changed_meaning(theirs or {}, settings)])


def _begin_unlabelled(model: nn.Module, settings: ModelConfig, teacher: dict, theirs: dict, where: str) -> str:
    """From what a run without labels hands on. Raises UserError for one of another model."""
    if theirs.get("name") != settings.name:
        raise UserError(
            f"{where} was trained without labels as {brief(theirs.get('name'))}, but model.name is {settings.name}; "
            "set the same model.name and model.args as there"
        )
    said = start_from(model, {key: own for key, own in teacher.items() if key.startswith("student.")}, where)
    left = [name for name in teacher if not name.startswith("student.")]
    return "; ".join([f"{said}; left there: {', '.join(left)}", *changed_meaning(theirs, settings)])


def changed_meaning(theirs: Mapping[str, Any], settings: ModelConfig) -> list[str]:
    """What of a model is another one than that of which its weights are, though they fit: its name and arguments.

    theirs  the model section of the config that trained them; {} where it is not known
    """
    if not theirs:
        return []
    args = theirs.get("args") if isinstance(theirs.get("args"), dict) else {}
    (name, given, _), (other, own, _) = (
        unwrapped(str(theirs.get("name")), args),
        unwrapped(settings.name, settings.args),
    )
    told = [] if name == other else [f"they are of {brief(name)}"]
    for key in sorted({*given, *own} - set(HARMLESS), key=str):
        if given.get(key) != own.get(key) and "drop" not in str(key):
            before, now = (brief(each[key]) if key in each else "not set" for each in (given, own))
            told.append(f"model.args.{brief(key)} was {before} and is {now}")
    return [f"{', '.join(told)}: the same weights may compute something else"] if told else []
