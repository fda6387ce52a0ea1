"""``fastlg prepare``: a source decoded once into a store, and a picture of what a run would see of it."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from fastlg.assemble import make_views
from fastlg.config import Config, dotted, load_config, parse_overrides, read_saved_config
from fastlg.config.whole import laid_over
from fastlg.data.loaders.of_run import new_loader
from fastlg.data.store.make import prepare as write_store
from fastlg.data.stores import open_stores
from fastlg.data.views.sheet import contact_sheet
from fastlg.engine.precision import pick_device
from fastlg.errors import RunError, UserError, first_line, writing
from fastlg.ranks.say import dispensable, say
from fastlg.run.report import Pulse
from fastlg.run.trained import load_trained

SHEET_IMAGES = 16


def prepare(source: str, out: Path, **options) -> Path:
    """Writes the store ``out``; ``options`` are those of ``data.prepare.prepare``. Raises UserError or RunError."""
    with Pulse(lambda: f"prepare  {source}"):
        path = write_store(source, out, **options)
    say(f"prepared {source} in {path}; train with data.source={path}")
    return path


def val_of(text: str) -> float | str:
    """What ``--val`` means, as data.val takes it. Raises UserError."""
    tree = {"data": {"source": "."}, "model": {"name": "resnet20"}}
    return laid_over(tree, parse_overrides([f"data.val={text}"]), "prepare").data.val


def check_preview(path: Path) -> None:
    """Raises UserError where no picture can be written to ``path``, before anything is prepared for it."""
    Image.init()
    if path.suffix.lower() not in Image.EXTENSION or Image.EXTENSION[path.suffix.lower()] not in Image.SAVE:
        raise UserError(f"the picture {path} has no suffix of a picture that Pillow writes; call it {path.stem}.png")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write the picture {path}: choose a file in a folder that exists and is writable")


def preview_store(store: Path, path: Path) -> None:
    """What the paper's recipe (224 px student, 32 px teacher) makes of a store's images; a warning where it fails."""
    with dispensable(f"the picture {path}", f"the store {store} is whole"):
        _preview_store(store, path)


def _preview_store(store: Path, path: Path) -> Path:
    config = Config.model_validate({"data": {"source": str(store)}, "model": {"name": "deit_tiny_patch16_224"}})
    return _sheet(config, 32, path)


def preview_run(folder: Path) -> Path:
    """What a run's student and teacher saw in its first epoch, as ``RUN/views.png``."""
    config, _, _ = load_trained(folder)
    return _sheet(config, teacher_size_of(config), folder / "views.png")


def teacher_size_of(config: Config) -> int | None:
    """Side in px of what a run's teacher sees: of the run that its weights are, else by its recipe. None without one.

    Raises UserError.
    """
    if config.teacher is None:
        return None
    saved = config.teacher.weights / "config.yaml" if config.teacher.weights is not None else None
    if saved is not None and saved.is_file():
        return read_saved_config(saved).model.image_size
    recipe = load_config(config.teacher.recipe)
    return recipe.replace(dotted(config.teacher.overrides), "teacher.overrides").model.image_size


def _sheet(config: Config, teacher_size: int | None, path: Path) -> Path:
    """The contact sheet of the first training images of epoch 0."""
    stores = open_stores(config.data)
    loader = new_loader(config, stores.train, pick_device(config.engine), train=True)
    batch = next(iter(loader.epoch(0)))
    batch = batch._replace(**{name: value[:SHEET_IMAGES] for name, value in batch._asdict().items()})
    views = make_views(config, teacher_size)(batch, 0)
    try:
        with writing(path):
            contact_sheet(path, stores.train, batch, views, mean=config.augment.mean, std=config.augment.std)
    except RunError:
        raise
    except Exception as error:  # whatever Pillow makes of a format
        raise RunError(f"cannot draw {path}: {first_line(error)} ({type(error).__name__})") from None
    say(f"pictures {path}: stored images with their crops, crops, student views, teacher views")
    return path
