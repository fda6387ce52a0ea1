"""``fastlg prepare``: a source decoded once into a store, and a picture of what a run would see of it."""

from __future__ import annotations

from pathlib import Path

from fastlg.assemble import make_views, new_loader, open_stores
from fastlg.config import Config, load_config
from fastlg.data.prepare import prepare as write_store
from fastlg.data.views_sheet import contact_sheet
from fastlg.engine.precision import pick_device
from fastlg.evaluate import load_trained
from fastlg.report import say

SHEET_IMAGES = 16


def prepare(source: str, out: Path, **options) -> Path:
    """Writes the store ``out``; ``options`` are those of ``data.prepare.prepare``. Raises UserError or RunError."""
    path = write_store(source, out, **options)
    say(f"prepared {source} in {path}; train with data.source={path}")
    return path


def preview_store(store: Path, path: Path) -> Path:
    """What the paper's recipe (224 px student, 32 px teacher) makes of a store's images."""
    config = Config.model_validate({"data": {"source": str(store)}, "model": {"name": "deit_tiny_patch16_224"}})
    return _sheet(config, 32, path)


def preview_run(folder: Path) -> Path:
    """What a run's student and teacher saw in its first epoch, as ``RUN/views.png``."""
    config, _, _ = load_trained(folder)
    teacher_size = None
    if config.teacher is not None:
        teacher_size = load_config(config.teacher.recipe).replace(config.teacher.overrides).model.image_size
    return _sheet(config, teacher_size, folder / "views.png")


def _sheet(config: Config, teacher_size: int | None, path: Path) -> Path:
    """The contact sheet of the first training images of epoch 0."""
    stores = open_stores(config)
    loader = new_loader(config, stores.train, pick_device(config.engine), train=True)
    batch = next(iter(loader.epoch(0)))
    batch = batch._replace(**{name: value[:SHEET_IMAGES] for name, value in batch._asdict().items()})
    views = make_views(config, teacher_size)(batch, 0)
    contact_sheet(path, stores.train, batch, views, mean=config.augment.mean, std=config.augment.std)
    say(f"pictures {path}: stored images with their crops, crops, student views, teacher views")
    return path
