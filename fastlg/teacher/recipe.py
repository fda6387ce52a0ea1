"""The teacher of a run: the recipe that trains it, and where it is kept. The one part that sees a whole config beside
the wiring, for a recipe is one."""

from __future__ import annotations

import hashlib
import json

from fastlg.config import Config, dotted, load_config
from fastlg.errors import UserError

STUDENTS_OWN = (
    "kind",
    "micro_batch_size",
    "zero_stage",
    "deepspeed_config",
    "checkpointing",
    "residual",
)  # of engine: made for its batch, size and blocks


def teacher_config(config: Config, fingerprints: list[str]) -> Config:
    """The recipe that trains the teacher, on the run's own data, in a folder named by everything that shapes it.

    fingerprints: of the run's images.

    Raises UserError for an override of what is the run's (its data, name and seed), and for a recipe that makes no
    teacher: one that has a teacher itself, or trains without labels.
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
        }
    )
    recipe = recipe.replace(overrides, "teacher.overrides")
    if recipe.teacher is not None:
        raise UserError(
            f"teacher.recipe {config.teacher.recipe} trains a {recipe.model.name} that has a teacher itself; name a "
            "recipe without a teacher section, or set teacher.overrides.teacher=null"
        )
    if recipe.pretrain is not None:
        raise UserError(
            f"teacher.recipe {config.teacher.recipe} trains without labels (pretrain), so that it tells no classes "
            "apart; name another recipe, or set teacher.overrides.pretrain=null"
        )
    return as_teacher(recipe, fingerprints)


def as_teacher(recipe: Config, fingerprints: list[str]) -> Config:
    """``recipe`` named by everything that shapes the network it trains: what it is called among the teachers."""
    shaping = recipe.model_dump(
        mode="json", include={"augment": True, "model": True, "optim": True, "engine": {"precision"}}
    )
    key = json.dumps([shaping, recipe.run.seed, fingerprints], sort_keys=True)
    network = recipe.model.name.replace(":", ".")  # of a user's own
    name = f"{network}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return recipe.replace({"run.name": name})
