"""Parts of neighbouring systems that go into a model once timm has built it: ``model.args.life``, ``spt``, ``lsa``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fastlg.errors import UserError
from fastlg.models.systems import life, spt_lsa

PARTS = ("life", *spt_lsa.PARTS)


def unwrapped(name: str, model_args: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(name, arguments) of the model that the parts go into, where ``name`` is what an export of one is called."""
    if name == life.ENTRY:
        given = dict(model_args)
        return str(given.pop("base", life.BASE)), {"life": True, **given}
    if name == spt_lsa.ENTRY and "base" in model_args:
        given = dict(model_args)
        return str(given.pop("base")), given
    return name, model_args


def take(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Takes the parts out of ``arguments``, in place; of a model that has them by its own design, none."""
    if name.startswith(tuple(spt_lsa.OWN)):
        return {}
    taken = {key: arguments.pop(key) for key in PARTS if key in arguments}
    return {key: value for key, value in taken.items() if value is not False}


def put_in(model: nn.Module, name: str, parts: Mapping[str, Any]) -> nn.Module:
    """``model`` with ``parts``, changed in place. Raises UserError where it cannot take them."""
    if "life" in parts and len(parts) > 1:
        beside = next(key for key in parts if key != "life")
        raise UserError(f"model.args has life and {beside}, which change the same layers; give one of them")
    if "life" in parts:
        return life.add_life(model, name, parts["life"])
    return spt_lsa.add_spt_lsa(model, name, **parts)


def entry_of(model: nn.Module, model_args: Mapping[str, Any]) -> str | None:
    """What timm calls a model with parts in it, whose ``base`` is the one that they went into; None without."""
    if life.has_life(model):
        return life.ENTRY
    return spt_lsa.ENTRY if "base" in model_args and spt_lsa.has_spt_or_lsa(model) else None
