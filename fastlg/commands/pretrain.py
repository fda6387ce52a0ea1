"""``fastlg pretrain CONFIG``: a start without labels on a config's own images (docs/systems.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastlg.config import Config, dotted, load_config, parse_overrides
from fastlg.config.auto import AUTO, PRETRAIN_RATE, PRETRAIN_WARM_UP
from fastlg.errors import UserError
from fastlg.ranks.say import say
from fastlg.run.folder import told_score

SUFFIX = "_pretrained"
RECIPE: dict[str, Any] = {  # Gani et al. 2022, in the place of what a config says for training with labels
    "teacher": None,
    "drloc.weight": 0.0,
    "model.weights": None,
    "model.resolution": [],
    "optim.name": "adamw",
    "optim.args": {},
    "optim.min_lr": 1e-6,
    "optim.warmup_factor": 1e-3,
    "optim.schedule": "cosine",
    "optim.schedule_args": {},
    "optim.layer_decay": 1.0,
    "optim.flat": 0.0,
    "optim.weight_decay": 0.04,
    "optim.clip_norm": 0.0,
    "optim.label_smoothing": 0.0,
    "optim.ema": 0.0,
    "optim.sam_rho": 0.0,
    "paper": None,
}


def unlabelled(name: str, overrides: Sequence[str]) -> tuple[Config, str]:
    """(the config of a run without labels, what to say of it).

    That is ``name`` itself where it has a ``pretrain`` section, else its model, images, epochs and batch under the
    authors' recipe, as the run NAME_pretrained. ``overrides`` win.

    Raises UserError.
    """
    named = [(text, key.partition(".")[0], key) for text in overrides for key in parse_overrides([text])]
    labelled = load_config(name, [text for text, section, _ in named if section != "pretrain"])
    if labelled.pretrain is not None:
        return load_config(name, overrides), ""
    recipe = {**_recipe(labelled), "run.name": labelled.run.name + SUFFIX, "pretrain": {}}
    kept = [text for text, _, key in named if not key.startswith("teacher.")]
    config = load_config(name, kept, recipe=recipe, of="the recipe of fastlg pretrain")
    if config.pretrain is None:
        raise UserError("pretrain=null asks for a run with labels; leave it out, or use fastlg train")
    before, after = (dotted(each.model_dump(mode="json")) for each in (labelled, config))
    changed = [key for key in RECIPE if key.startswith("optim.") and before.get(key) != after.get(key)]
    told = ", ".join(f"{key} {after[key]}" for key in ("optim.lr", "optim.warmup_epochs", *changed) if key in after)
    left = "; its teacher is left out" if labelled.teacher is not None else ""
    return config, f"recipe   that of Gani et al. in the place of {labelled.run.name}'s own: {told}{left}"


def _recipe(labelled: Config) -> dict[str, Any]:
    epochs, batch = labelled.optim.epochs, labelled.optim.global_batch_size
    rate = AUTO if batch == AUTO else PRETRAIN_RATE * batch
    return {
        **RECIPE,
        "optim.lr": rate,
        "optim.warmup_epochs": AUTO if epochs == AUTO else round(PRETRAIN_WARM_UP * epochs),
    }


def pretrain(config: Config, *, resume: str = "auto", dry_run: bool = False) -> None:
    """Trains or resumes it, as ``fastlg train`` does, and says how to go on from it."""
    from fastlg.train import train  # late: it imports torch

    summary = train(config, resume=resume, dry_run=dry_run)
    if dry_run:
        return
    say(
        f"done     {config.run_dir}: {told_score(summary)}, "
        f"{summary['images_per_s']:,.0f} images/s, {summary['wall_s']:,.0f} s; begin a run from it with "
        f"model.weights={config.run_dir}"
    )
