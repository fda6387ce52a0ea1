"""Trained networks read back: a run's and an export's from their folders, a teacher's from a run or from a file of the
reference code; and whatever a network's training may start from."""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastlg import ranks
from fastlg.config import AugmentConfig, Config, ModelConfig, config_from, read_saved_config
from fastlg.config.keys import is_object
from fastlg.data.stores import Stores, held_out_in
from fastlg.engine.switches import takes_fused_attention
from fastlg.errors import UserError, brief, first_line
from fastlg.files.reading import is_file, read_regular
from fastlg.models.build import new_model
from fastlg.models.general.instances import expect_classes, taken
from fastlg.models.general.residual import round_residual
from fastlg.models.general.teaching import as_teacher
from fastlg.models.start import NEW_HEAD, start_from
from fastlg.models.student import Student, use_fused_attention
from fastlg.models.systems.parts import unwrapped
from fastlg.models.weights import load_reference
from fastlg.ranks.say import say
from fastlg.run.checkpoint import LAST, expect_whole, load_checkpoint
from fastlg.run.folder import expect_run, expect_there, read_summary, refuse_other, seen_images
from fastlg.run.plan import seen_advice, teacher_advice

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"  # of an export
MOST_DESCRIPTION = 1 << 26  # bytes


def load_trained(folder: Path, which: str = "last", *, fix: str = "") -> tuple[Config, nn.Module, list[str]]:
    """(config, model with its trained weights on the CPU, class names) of a run folder; averaged ones with optim.ema.

    ``which`` is last or best. Raises UserError when the folder holds no run or no whole checkpoint; ``fix`` says what
    to do about one that is missing or damaged.
    """
    expect_run(folder)
    saved, path = folder / "config.yaml", folder / "checkpoints" / f"{which}.pt"
    if not path.is_file():
        there = ", ".join(sorted(own.stem for own in path.parent.glob("*.pt")))
        own = f"there is --which {there}" if there else "it was stopped before its first one; train it on"
        raise UserError(f"{folder} holds no checkpoint {path.relative_to(folder)}; {fix or own}")
    other = "best" if which == "last" else "last"
    state = load_checkpoint(path, fix=fix or f"take the run's other one (--which {other}) or another run")
    config = read_saved_config(saved)
    if config.pretrain is not None:
        raise UserError(
            f"{folder} was trained without labels (fastlg pretrain), so that it tells no classes apart; begin a run "
            f"from it with model.weights={folder}"
        )
    unit, class_names = state.get("unit"), state.get("class_names")
    if not isinstance(unit, dict) or not isinstance(class_names, list) or not class_names:
        raise UserError(f"checkpoint {path} holds no weights and class names of a run; it was altered")
    if isinstance(state.get("config"), dict):
        refuse_other(config_from(state["config"], str(path)), config, str(path), fix="put the run's own file back")
    model = new_model(config.model, config.teacher, len(class_names))
    prefix = "student."
    weights = {k.removeprefix(prefix): v for k, v in unit.items() if str(k).startswith(prefix)}
    if config.optim.ema:
        weights = _averaged(state, path)
    _fill(model, weights, path)
    return config, model.eval(), class_names


def as_tested(model: nn.Module, config: Config, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """``model`` itself on ``device``, computing as the evaluation of its run does, but for blocks that it fused there;
    its residual stream is rounded where this device, too, computes in bf16."""
    use_fused_attention(model, takes_fused_attention(config.engine, device, dtype))
    if config.engine.residual == "bf16" and dtype == torch.bfloat16 and not config.model.is_cnn:
        round_residual(model.bare, config.model.name, dtype)
    return model.to(device)


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


def _averaged(state: dict, path: Path) -> dict:
    """The running mean of a student's weights. Raises UserError."""
    average = state["engine"].get("average") if isinstance(state.get("engine"), dict) else None
    if not isinstance(average, dict) or not isinstance(average.get("weights"), dict):
        raise UserError(f"checkpoint {path} holds no averaged weights, though its run has optim.ema; it was altered")
    return average["weights"]


def _fill(model: nn.Module, weights: dict, path: Path) -> None:
    """Raises UserError for weights that are not those of ``model``, or not finite."""
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | weights.keys(), key=str):
        value = weights.get(name)
        if name not in wanted or not isinstance(value, Tensor) or value.shape != wanted[name].shape:
            found = list(value.shape) if isinstance(value, Tensor) else "nothing" if value is None else "no tensor"
            raise UserError(
                f"checkpoint {path} does not fit its run's config.yaml: {name} is {found} there and "
                f"{list(wanted[name].shape) if name in wanted else 'nothing'} in the model; one of the two files was "
                "altered or replaced"
            )
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"checkpoint {path} holds weights that are not finite ({name}); take another checkpoint")
    model.load_state_dict(weights)


def load_teacher(
    weights: Path, recipe: Config, stores: Stores, *, views: AugmentConfig | None = None, is_asked: bool = False
) -> tuple[nn.Module, int]:
    """(teacher, its image size in px) from a run folder, or from a file: of the recipe's model, by timm's names or the
    reference code's; or the network itself where a Python session handed one in, which sees the student's views.

    views     how the images that it is shown are normalised; None: as those it was trained on
    is_asked  for its logits too, which a network of other classes cannot answer
    """
    if is_object(weights.name):
        return _given_teacher(weights.name, recipe, len(stores.class_names)), recipe.model.image_size
    if not weights.is_dir():
        network = _load_file(weights, recipe, stores.class_names, is_asked=is_asked)
        return as_teacher(network, recipe.augment, views or recipe.augment), recipe.model.image_size
    is_own = weights == recipe.run_dir  # which the run trains, and trains again when it is gone
    fix = f"delete {weights}, so that the teacher is trained again" if is_own else "name another teacher.weights"
    trained, model, class_names = load_trained(weights, "last", fix=fix)
    if list(class_names) != list(stores.class_names):
        raise UserError(f"the teacher in {weights} was trained on other classes than this run's")
    summary = read_summary(weights)
    accuracy = f", top-1 {summary['top1_last']:.2f} %" if summary else " (unfinished run)"
    say(f"teacher  {trained.model.name} at {trained.model.image_size} px from {weights}{accuracy}")
    chance = 100 * float(np.bincount(stores.test.labels).max()) / len(stores.test)
    own_epochs = trained.optim.epochs if is_own else None
    if summary and (line := teacher_advice(summary["top1_last"], chance, own_epochs)):
        say(f"advice   {line}")
    _tell_what_it_saw(weights, recipe, stores)
    return as_teacher(model, trained.augment, views or trained.augment), trained.model.image_size


def _tell_what_it_saw(weights: Path, recipe: Config, stores: Stores) -> None:
    """Advice on a teacher that was trained on what its student is measured on, where its record and a store show it."""
    seen = seen_images(weights) if ranks.is_first() else None
    if seen:
        found = held_out_in(stores, seen[0], recipe.data)
        if line := seen_advice(weights, found, {store.split: len(store) for store in stores.splits}):
            say(f"advice   {line}")


class GivenTeacher(nn.Module):
    """A teacher that was handed in; ``dims``, the channels of its maps, are set beside whatever it has itself."""

    def __init__(self, network: nn.Module, dims: list[int]):
        super().__init__()
        self.network, self.dims = network, dims

    def forward(self, views: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        return self.network(views)


def _given_teacher(name: str, recipe: Config, num_classes: int) -> nn.Module:
    """Raises UserError for a network that gives no logits and stage maps."""
    model = expect_classes(taken(name, "teacher"), num_classes).eval()
    size = recipe.model.image_size
    try:
        with torch.no_grad():
            logits, maps = model(torch.zeros(1, 3, size, size))
        dims, is_map = [stage.shape[1] for stage in maps], all(stage.dim() == 4 for stage in maps)
    except Exception as error:  # whatever a user's network makes of images, or gives
        raise UserError(
            f"the teacher, a {type(model).__name__}, gives no (logits, stage maps) of images of {size} px: "
            f"{first_line(error)}; a teacher is a fastlg.models.resnet56, or forwards as it does"
        ) from None
    if not is_map or not dims or logits.shape[-1] != num_classes:
        raise UserError(
            f"the teacher, a {type(model).__name__}, gives logits {list(logits.shape)} and maps "
            f"{[list(stage.shape) for stage in maps]}; it must give [N, {num_classes}] and maps [N, C, H, W]"
        )
    say(f"teacher  {type(model).__name__} at {size} px, as it was given")
    return GivenTeacher(model, dims)


def _load_file(path: Path, recipe: Config, classes: list[str], *, is_asked: bool) -> nn.Module:
    """A teacher from one file. Raises UserError with every mismatch, and for one that ``is_asked`` what it cannot know.

    A CIFAR ResNet is the reference code's. Any other has timm's names, and may tell other classes apart.
    """
    expect_there(path, "teacher.weights")
    if path.name == LAST:
        raise UserError(f"teacher.weights {path}: give the run folder, {path.parent.parent}, not the file inside")
    model = new_model(recipe.model, None, len(classes))
    state = _read_file(path, "teacher.weights", "a teacher's run folder")
    if recipe.model.is_cnn:
        load_reference(model, state)
        say(f"teacher  {recipe.model.name} from {path}")
        return model
    said = start_from(model, state, f"teacher.weights {path}")
    if NEW_HEAD in said and is_asked:
        raise UserError(
            f"guidance.logits asks the teacher for the run's classes, but {said}; set guidance.logits=none, or name a "
            "teacher that was trained on them"
        )
    say(f"teacher  {recipe.model.name} at {recipe.model.image_size} px: {said}")
    return model


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
        path, theirs = weights / WEIGHTS, _exported_model(weights)
    elif path.is_dir():
        expect_run(path)
        path = path / "checkpoints" / LAST
        note = "" if read_summary(weights) else " (unfinished run)"
    else:
        expect_there(path, "model.weights")
    state = _read_file(path, "model.weights", "a run folder")
    trained = state.get("class_names") if isinstance(state, dict) else None
    is_other = isinstance(trained, list) and trained != list(classes)
    where, own = f"model.weights {weights}{note}", state.get("config") if isinstance(state, dict) else None
    own = own if isinstance(own, dict) else {}
    if isinstance(own.get("model"), dict):
        theirs = own["model"]
    if isinstance(own.get("optim"), dict) and own["optim"].get("ema"):
        state, where = _averaged(state, path), f"the averaged weights of {where}"
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


HARMLESS = ("img_size", "image_size")  # positions are resized, which is said


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


def _exported_model(folder: Path) -> dict | None:
    """Name and arguments of the model that ``fastlg export`` wrote; None where its description is damaged."""
    try:
        known = json.loads(read_regular(folder / DESCRIPTION, MOST_DESCRIPTION))
        return {"name": known["architecture"], "args": dict(known["model_args"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _read_file(path: Path, field: str, instead: str) -> dict:
    """What a file of weights holds. Raises UserError, which calls it by the config ``field`` that named it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):  # as torch writes them since 1.6
            expect_whole(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise half a dozen types for a file they cannot read
        is_legible = isinstance(error, OSError) and error.errno != errno.EINVAL  # which torch gives for a cut file
        reason = first_line(error) if is_legible else "it is truncated or no checkpoint"
        raise UserError(
            f"{field} {path} cannot be read: {reason}; give {instead}, or a file of tensors that torch.load reads with "
            "weights_only=True"
        ) from None
