"""A teacher from a run folder, from a file of weights, or as a Python session handed it in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastlg import ranks
from fastlg.config import AugmentConfig, Config
from fastlg.config.keys import is_object
from fastlg.data.stores import Stores, held_out_in
from fastlg.errors import UserError, first_line
from fastlg.models.build import new_model
from fastlg.models.general.instances import expect_classes, taken
from fastlg.models.general.teaching import as_teacher
from fastlg.models.start import NEW_HEAD, start_from
from fastlg.models.weights import load_reference
from fastlg.ranks.say import say
from fastlg.run.checkpoint import LAST
from fastlg.run.folder import expect_there, read_summary, seen_images, told_score
from fastlg.run.plan import seen_advice, teacher_advice
from fastlg.run.trained.runs import load_trained
from fastlg.run.trained.weight_files import read_weights


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
    accuracy = f", {told_score(summary)}" if summary else " (unfinished run)"
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
    state = read_weights(path, "teacher.weights", "a teacher's run folder")
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
