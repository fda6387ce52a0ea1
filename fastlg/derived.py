"""A config's ``auto`` values, and its teacher's, become numbers once the images are known. Wiring, nothing else."""

from __future__ import annotations

import numpy as np

from fastlg.config import Config, dotted, load_config
from fastlg.config.auto import Facts, open_keys, values_of
from fastlg.data.stores import Stores, open_stores
from fastlg.ranks.say import say
from fastlg.run.folder import refuse_other_images


def derived(config: Config, stores: Stores | None = None, *, is_told: bool = True) -> Config:
    """``config`` without ``auto`` in any of config/auto.py's keys; itself, and no image is read, where there is none.

    What is derived of the teacher's recipe goes into ``teacher.overrides``, so that a run's saved config is complete:
    it resumes with the same numbers or, should the images have changed, is refused. ``stores``: of its images, where
    they are open already. Raises UserError.
    """
    overrides, recipe = {}, None
    if config.teacher is not None and config.teacher.recipe:
        overrides = dotted(config.teacher.overrides)
        own = load_config(config.teacher.recipe).replace(overrides, "teacher.overrides")
        recipe = own if open_keys(own) else None
    if not open_keys(config) and recipe is None:
        return config
    stores = stores or open_stores(config.data)
    train = stores.train
    facts = Facts(len(train), len(train.class_names), int(np.median(np.asarray(train.sizes).min(1))))
    found, taught = values_of(config, facts), values_of(recipe, facts) if recipe is not None else {}
    changes = found | ({"teacher.overrides": overrides | taught} if taught else {})
    made = config.replace(changes, "derived")
    keys = [*found, *(f"teacher.overrides.{key}" for key in taught)]
    refuse_other_images(made, stores.fingerprints, left=keys)
    if is_told:
        counts = {key: own for key, own in taught.items() if _counts(config, key)}
        told = [_told(found), *([f"teacher: {_told(counts)}"] if counts else [])]
        images = f"{facts.images:,} images of {facts.classes} classes, {facts.side} px"
        say(f"derived  {'; '.join(part for part in told if part)}; from {images}")
    return made


def _counts(config: Config, key: str) -> bool:
    """Whether a key of the teacher's recipe counts: all do where it is trained, none where it was, and of one that is
    read from a file its size."""
    weights = config.teacher.weights
    return weights is None or (not weights.is_dir() and key.startswith("model."))


def _told(values: dict) -> str:
    """``epochs 101, lr 0.008``"""
    return ", ".join(f"{key.partition('.')[2]} {'none' if own is None else own}" for key, own in values.items())
