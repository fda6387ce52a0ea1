"""Parts of neighbouring systems that go into a model once timm has built it: ``model.args.life``, ``spt``, ``lsa``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fastlg.errors import UserError
from fastlg.models.systems import life, spt_lsa

PARTS = ("life", *spt_lsa.PARTS)
ENTRIES = {  # what timm calls a model with parts in it -> what it is made of unless something else is said
    life.ENTRY: {"base": life.BASE, "life": True},
    spt_lsa.ENTRY: {"base": life.BASE},
}


def unwrapped(name: str, model_args: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], dict[str, Any]]:
    """(name, arguments, {"base": name}) of the model that the parts go into, where ``name`` is what an export of one is
    called; any other comes back as it is, with {}."""
    if name not in ENTRIES:
        return name, model_args, {}
    given = {**ENTRIES[name], **model_args}
    base = str(given.pop("base"))
    return base, given, {"base": base}


def given_by(entry: str) -> str:
    """How the parts are given that ``entry``, one of ENTRIES, is named by."""
    return "model.args.life=true" if entry == life.ENTRY else "model.args.spt=true or model.args.lsa=true"


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
        raise UserError(f"model.args has life and {beside}, parts of two systems; give one of them")
    if "life" in parts:
        return life.add_life(model, name, parts["life"])
    return spt_lsa.add_spt_lsa(model, name, **parts)


def entry_of(name: str, model: nn.Module) -> str | None:
    """What timm calls ``model``, whose ``base`` is what the parts went into; None without, and of one that has them by
    its own design."""
    if name.startswith(tuple(spt_lsa.OWN)):
        return None
    if life.has_life(model):
        return life.ENTRY
    return spt_lsa.ENTRY if spt_lsa.has_spt_or_lsa(model) else None
