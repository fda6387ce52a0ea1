"""``fastlg train``: the whole recipe. Finds or trains the teacher, trains the student, leaves the run folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from fastlg.assemble import Parts, Stores, assemble, new_model, open_stores, say_plan
from fastlg.batch import Batch, Views
from fastlg.cache import build_or_verify, find_features
from fastlg.checkpoint import LAST
from fastlg.config import Config, load_config
from fastlg.engine.schedule import learning_rate
from fastlg.errors import UserError, first_line
from fastlg.evaluate import load_trained
from fastlg.models.build import is_cnn
from fastlg.models.reference_weights import load_reference
from fastlg.report import say
from fastlg.run import Run, finished
from fastlg.signals import StopRequest


def train(config: Config, *, resume: str = "auto", dry_run: bool = False) -> dict:
    """Trains to the end (or from the last checkpoint to the end) and returns summary.json's content.

    ``dry_run`` builds every part and takes one step on the first two training images, but trains and writes nothing.
    Raises UserError, RunError, or signals.Stopped after it saved.
    """
    done = finished(config.run_dir, config)
    if done is not None and resume == "auto":
        say(f"finished {config.run_dir} is complete (top-1 {done['top1_last']:.2f} %); nothing to do")
        return done
    stores = open_stores(config)
    teacher, size, features = None, None, None
    if config.teacher is not None:
        teacher, size = find_or_train_teacher(config, stores, dry_run=dry_run)
        features = find_features(config, stores, teacher, size, dry_run=dry_run)
    parts = assemble(config, stores, teacher, size, features)
    say_plan(parts)
    if dry_run:
        return rehearse(parts)
    with StopRequest() as stop:
        run = Run(parts, stop, resume)
        try:
            fit(parts, run)
            return run.finish()
        finally:
            run.close()


def fit(parts: Parts, run: Run) -> None:
    """The training loop."""
    optim = parts.config.optim
    schedule = optim.model_dump(include={"lr", "min_lr", "warmup_epochs", "warmup_factor", "epochs"})
    parts.unit.train()
    for epoch in range(run.epoch, optim.epochs):
        parts.engine.set_learning_rate(learning_rate(epoch, **schedule))
        for batch in run.batches(epoch):
            views = parts.views(batch, epoch)
            guide = guidance(parts, views, batch)
            out = parts.engine.step(views.student, views.targets, guide)
            run.after_step(out)
        run.after_epoch()


def guidance(parts: Parts, views: Views, batch: Batch):
    """What the teacher says of a batch, in the student's precision; None when the run is unguided."""
    if parts.teacher is None:
        return None
    with parts.engine.autocast():
        return parts.teacher(views.teacher, batch)


def rehearse(parts: Parts) -> dict:
    """One forward and backward pass on the first two training images: every shape of the run is tried."""
    batch = next(iter(parts.train_loader.epoch(0)))
    batch = batch._replace(**{name: value[:2] for name, value in batch._asdict().items()})
    views = parts.views(batch, 0)
    out = parts.engine.step(views.student, views.targets, guidance(parts, views, batch))
    say(f"dry run  one step on {len(batch.labels)} images: loss {out.loss.item():.4f}; nothing was written")
    return {"loss": out.loss.item()}


def make_cache(config: Config) -> Path:
    """``fastlg cache``: the feature cache of a config, built where it is missing, every byte checked where it is not.

    Raises UserError, RunError.
    """
    if config.teacher is None:
        raise UserError(f"{config.run.name} has no teacher section; there is nothing to cache")
    stores = open_stores(config)
    return build_or_verify(config, stores, *find_or_train_teacher(config, stores, dry_run=False))


def find_or_train_teacher(config: Config, stores: Stores, *, dry_run: bool) -> tuple[nn.Module, int]:
    """(teacher, its image size in px): from ``teacher.weights``, or trained once by its recipe on the run's data."""
    recipe = teacher_config(config, stores)
    if dry_run and config.teacher.weights is None and not (recipe.run_dir / "summary.json").is_file():
        say(f"teacher  {recipe.model.name} would be trained first, in {recipe.run_dir}; untrained here")
        model = new_model(recipe, len(stores.class_names))
        return model, recipe.model.image_size
    weights = config.teacher.weights
    if weights is not None and not weights.is_dir():
        return load_teacher_file(weights, recipe, stores), recipe.model.image_size
    folder = weights or recipe.run_dir
    if weights is None:
        train(recipe)
    trained, model, class_names = load_trained(folder, "last")
    if not is_cnn(trained.model.name):
        raise UserError(f"teacher.weights {folder} holds a {trained.model.name}; a teacher is a resnet20, 56 or 110")
    if list(class_names) != list(stores.class_names):
        raise UserError(f"the teacher in {folder} was trained on other classes than {config.data.source} holds")
    say(f"teacher  {trained.model.name} at {trained.model.image_size} px from {folder}{_accuracy(folder)}")
    return model, trained.model.image_size


def teacher_config(config: Config, stores: Stores) -> Config:
    """The recipe that trains the teacher, on the run's own data, in a folder named by everything that shapes it."""
    recipe = load_config(config.teacher.recipe).replace(
        {
            **config.teacher.overrides,
            "data": config.data.model_dump(mode="json"),
            "engine": config.engine.model_dump(mode="json"),
            "run.seed": config.run.seed,
            "run.root": str(config.run.root / "teachers"),
        }
    )
    if not is_cnn(recipe.model.name) or recipe.teacher is not None:
        raise UserError(f"teacher.recipe {config.teacher.recipe} trains {recipe.model.name}; it must train a CNN alone")
    shaping = recipe.model_dump(mode="json", include={"augment", "model", "optim"})
    key = json.dumps([shaping, config.run.seed, stores.train.fingerprint], sort_keys=True)
    name = f"{recipe.model.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return recipe.replace({"run.name": name})


def load_teacher_file(path: Path, recipe: Config, stores: Stores) -> nn.Module:
    """A teacher from one file: a checkpoint of the reference code. Raises UserError with every mismatch."""
    if not path.is_file():
        raise UserError(f"teacher.weights {path} does not exist; give a teacher's run folder or a checkpoint file")
    if path.name == LAST:
        raise UserError(f"teacher.weights {path}: give the run folder, {path.parent.parent}, not the file inside")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file it cannot read
        raise UserError(f"teacher.weights {path} cannot be read: {first_line(error)}") from None
    model = new_model(recipe, len(stores.class_names))
    load_reference(model, state)
    say(f"teacher  {recipe.model.name} from {path}")
    return model


def _accuracy(folder: Path) -> str:
    summary = folder / "summary.json"
    if not summary.is_file():
        return " (unfinished run)"
    return f", top-1 {json.loads(summary.read_text(encoding='utf-8'))['top1_last']:.2f} %"
