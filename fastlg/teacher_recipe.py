"""The teacher of a run: the recipe that trains it, where it is kept, and how it is read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from fastlg.assemble import Stores, new_model
from fastlg.checkpoint import LAST
from fastlg.config import Config, dotted, load_config
from fastlg.errors import UserError, first_line
from fastlg.evaluate import load_trained
from fastlg.models.build import is_cnn
from fastlg.models.reference_weights import load_reference
from fastlg.report import say
from fastlg.run_folder import read_summary

STUDENTS_OWN = ("kind", "micro_batch_size", "zero_stage", "deepspeed_config")  # of engine: made for its batch and size


def teacher_config(config: Config, stores: Stores) -> Config:
    """The recipe that trains the teacher, on the run's own data, in a folder named by everything that shapes it.

    Raises UserError for an override of what is the run's: its data, name and seed.
    """
    overrides = dotted(config.teacher.overrides)
    if foreign := [key for key in overrides if key.partition(".")[0] in ("data", "run")]:
        raise UserError(
            f"teacher.overrides.{foreign[0]} cannot be set: a teacher is trained on the run's own data and seed"
        )
    engine = {key: value for key, value in config.engine.model_dump(mode="json").items() if key not in STUDENTS_OWN}
    recipe = load_config(config.teacher.recipe).replace(
        {
            "data": config.data.model_dump(mode="json"),
            **{f"engine.{key}": value for key, value in engine.items()},
            "run.seed": config.run.seed,
            "run.root": str(config.run.root / "teachers"),
            **overrides,
        }
    )
    if not is_cnn(recipe.model.name) or recipe.teacher is not None:
        raise UserError(f"teacher.recipe {config.teacher.recipe} trains {recipe.model.name}; it must train a CNN alone")
    shaping = recipe.model_dump(
        mode="json", include={"augment": True, "model": True, "optim": True, "engine": {"precision"}}
    )
    key = json.dumps([shaping, config.run.seed, stores.fingerprints], sort_keys=True)
    name = f"{recipe.model.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return recipe.replace({"run.name": name})


def load_teacher(weights: Path, recipe: Config, stores: Stores) -> tuple[nn.Module, int]:
    """(teacher, its image size in px) from a run folder, or from a checkpoint file of the reference code."""
    if not weights.is_dir():
        return _load_file(weights, recipe, stores), recipe.model.image_size
    is_own = weights == recipe.run_dir  # which the run trains, and trains again when it is gone
    fix = f"delete {weights}, so that the teacher is trained again" if is_own else "name another teacher.weights"
    trained, model, class_names = load_trained(weights, "last", fix=fix)
    if not is_cnn(trained.model.name):
        raise UserError(f"teacher.weights {weights} holds a {trained.model.name}; a teacher is a resnet20, 56 or 110")
    if list(class_names) != list(stores.class_names):
        raise UserError(f"the teacher in {weights} was trained on other classes than this run's")
    summary = read_summary(weights)
    accuracy = f", top-1 {summary['top1_last']:.2f} %" if summary else " (unfinished run)"
    say(f"teacher  {trained.model.name} at {trained.model.image_size} px from {weights}{accuracy}")
    chance = 100 / len(class_names)
    if summary and summary["top1_last"] < 1.5 * chance:
        say(
            f"advice   the teacher's top-1 is near chance ({chance:.2f} %), so it guides to nothing; train it longer "
            "(teacher.overrides.optim.epochs=...) or name a better one with teacher.weights"
        )
    return model, trained.model.image_size


def _load_file(path: Path, recipe: Config, stores: Stores) -> nn.Module:
    """A teacher from one file: a checkpoint of the reference code. Raises UserError with every mismatch."""
    if not path.is_file():
        raise UserError(f"teacher.weights {path} does not exist; give a teacher's run folder or a checkpoint file")
    if path.name == LAST:
        raise UserError(f"teacher.weights {path}: give the run folder, {path.parent.parent}, not the file inside")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file it cannot read
        reason = "it is truncated or no checkpoint" if isinstance(error, UnpicklingError) else first_line(error)
        raise UserError(
            f"teacher.weights {path} cannot be read: {reason}; give a teacher's run folder, or a file of tensors that "
            "torch.load reads with weights_only=True"
        ) from None
    model = new_model(recipe, len(stores.class_names))
    load_reference(model, state)
    say(f"teacher  {recipe.model.name} from {path}")
    return model
