"""What a run's ``teacher.overrides`` say reaches the teacher's recipe; what is the run's own cannot be overridden."""

from __future__ import annotations

import pytest

from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.errors import UserError
from fastlg.teacher.recipe import teacher_config


def recipe_of(*overrides: str):
    config = load_config("student.yaml", [f"teacher.overrides.{override}" for override in overrides])
    return config, teacher_config(config, open_stores(config.data).fingerprints)


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("optim.epochs=7", "optim", "epochs", 7),
        ("augment.flip=0.25", "augment", "flip", 0.25),
        ("log.eval_epochs=3", "log", "eval_epochs", 3),
        ("engine.compile=false", "engine", "compile", False),
        ("engine.precision=bf16", "engine", "precision", "bf16"),
        ("model.image_size=24", "model", "image_size", 24),
    ],
)
def test_an_override_of_any_section_reaches_the_recipe(project, override, section, field, value):
    _, recipe = recipe_of(override)
    assert getattr(getattr(recipe, section), field) == value


def test_without_one_the_engine_and_the_data_are_the_runs(project):
    config, recipe = recipe_of()
    assert recipe.data == config.data and recipe.engine == config.engine and recipe.run.seed == config.run.seed


@pytest.mark.parametrize("override", ["data.source=elsewhere", "run.seed=5", "run.name=mine"])
def test_what_is_the_runs_own_is_refused(project, override):
    with pytest.raises(UserError, match=override.partition("=")[0]):
        recipe_of(override)
