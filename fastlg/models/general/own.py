"""A user's own network, named as ``module:function``. docs/own_model.md is its contract."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fastlg.errors import UserError, brief, first_line

SPELLED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
OF_CONFIG = {"num_classes": "it follows from the data", "image_size": "use model.image_size"}
OF_CONFIG["drop_path"] = "use model.drop_path"


def is_own(name: str) -> bool:
    """Whether ``name`` is spelled ``module:function``."""
    return SPELLED.fullmatch(name) is not None


def build_own(
    name: str, *, num_classes: int, image_size: int, drop_path: float, model_args: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """What ``function(num_classes=..., **model_args)`` gives, told ``image_size`` and ``drop_path`` where it takes
    arguments of these names; and the arguments that rebuild it, beside the classes and the drop path rate.

    Raises UserError where it cannot be imported or called, or gives no network.
    """
    for key, why in OF_CONFIG.items():
        if key in model_args:
            raise UserError(f"model.args.{key} cannot be set: {why}")
    function = _imported(name)
    known, arguments = _parameters(function), dict(model_args)
    if "image_size" in known:
        arguments["image_size"] = image_size
    drop = {"drop_path": drop_path} if "drop_path" in known else {}
    try:
        model = function(num_classes=num_classes, **drop, **arguments)
    except Exception as error:  # their code
        where = f" with model.args {brief(dict(model_args), 200)}" if model_args else ""
        raise UserError(f"model.name {name} fails{where}: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"model.name {name} gives a {type(model).__name__}; it must give a torch.nn.Module")
    return model, arguments


def _imported(name: str) -> Callable:
    module, _, function = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as python itself does for a script; an installed command does not
    try:
        found = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:  # their code
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"model.name {name}: {module} cannot be imported ({why}); it is looked for in the working folder, {here}, "
            "and where PYTHONPATH says"
        ) from None
    if not callable(found):
        raise UserError(f"model.name {name}: {module} has no function {function}")
    return found


def _parameters(function: Callable) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()
