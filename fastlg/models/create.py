"""From a name and its arguments to the bare network: timm's, or a user's own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from fastlg.config.keys import is_object
from fastlg.errors import UserError, brief, did_you_mean, first_line
from fastlg.models.families import PREFIXES
from fastlg.models.general.instances import expect_classes, taken
from fastlg.models.general.own import build_own, is_own
from fastlg.models.systems import parts

# Arguments of timm.create_model that are set elsewhere, that fetch weights, or that break the token grid.
RESERVED = {
    "num_classes": "it follows from the data",
    "drop_path_rate": "use model.drop_path",
    "in_chans": "images are RGB",
    "dynamic_img_pad": "images have one size, which the patches must divide",
    "patch_drop_rate": "guidance needs every token of the grid",
    "features_only": "a student classifies",
    **dict.fromkeys(("pretrained", "pretrained_cfg", "pretrained_cfg_overlay"), "a start is set by model.weights"),
    **dict.fromkeys(("checkpoint_path", "cache_dir"), "a start is set by model.weights"),
    **dict.fromkeys(("device", "dtype"), "use engine.device and engine.precision"),
}
OPTIONAL = ("img_size", "drop_path_rate")  # given where a model has them
COUNTS = ("depth", "layers", "stages", "num_blocks")  # how the arguments begin that say how many blocks there are
SIZES = ("embed_dim", "num_heads", "patch_size")  # how arguments begin that are never 0
_LACKING: dict[tuple[str, str], list[str]] = {}  # a run builds its model several times
LARGEST_ARGUMENT, MOST_BLOCKS, MOST_WEIGHTS = 65_536, 1000, 2_000_000_000


def create(
    name: str, *, num_classes: int, image_size: int, drop_path: float, model_args: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """(network, arguments that rebuild it): a timm model, or what a user's ``module:function`` gives.

    The arguments are those of ``timm.create_model`` beside the classes and the drop path rate, or of the function.
    Raises UserError.
    """
    if is_object(name):
        return expect_classes(taken(name, "model"), num_classes), {}
    if is_own(name):
        settings = {"num_classes": num_classes, "image_size": image_size, "drop_path": drop_path}
        return build_own(name, **settings, model_args=model_args)
    called, (name, model_args, base) = name, parts.unwrapped(name, model_args)
    if ":" in name or "/" in name or not timm.is_model(name.split(".")[0]):
        field = "model.args.base" if base else "model.name"
        hint = did_you_mean(name.split(".")[0], timm.list_models(), "try deit_tiny_patch16_224;")
        raise UserError(
            f"{field} {brief(name)} is no model of timm {timm.__version__}; {hint} fastlg models lists them, and "
            "your own is given as module:function"
        )
    arguments = _checked_arguments(name, image_size, model_args)
    _refuse_long(arguments)
    own, drop = parts.take(name, arguments), {"drop_path_rate": drop_path}
    if base and not own:
        raise UserError(
            f"model.name {called} is named by parts that it then lacks; set {parts.given_by(called)}, or "
            f"model.name={name} for the model without"
        )
    if not name.startswith(PREFIXES):
        fitting = _fitting(name, {**arguments, **drop, "num_classes": num_classes})
        arguments = {key: value for key, value in arguments.items() if key in fitting}
        drop = {key: value for key, value in drop.items() if key in fitting}
    model = _create(name, num_classes, drop, arguments)
    return (parts.put_in(model, name, own) if own else model), {**base, **own, **arguments}


def _fitting(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """``arguments`` without those of OPTIONAL that this model does not have, as one building without memory finds."""
    asked = name, repr(sorted(arguments.items()))
    if asked not in _LACKING:
        _LACKING[asked] = _lacking(name, arguments)
    return {key: value for key, value in arguments.items() if key not in _LACKING[asked]}


def _lacking(name: str, arguments: dict[str, Any]) -> list[str]:
    found: list[str] = []
    while True:
        given = {key: value for key, value in arguments.items() if key not in found}
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                timm.create_model(name, pretrained=False, **given)
        except TypeError as error:
            refused = [key for key in OPTIONAL if key in given and f"'{key}'" in str(error)]
            if refused:
                found.append(refused[0])
                continue
        except Exception:  # it is said when the model is built
            return found
        return found


def _create(name: str, num_classes: int, drop: dict[str, float], model_args: dict[str, Any]) -> nn.Module:
    try:
        _refuse_giants(name, num_classes, model_args)
        return timm.create_model(name, pretrained=False, num_classes=num_classes, **drop, **model_args)
    except UserError:
        raise
    except TypeError as error:
        unknown = [key for key in model_args if f"'{key}'" in str(error)]
        what = f"model.args.{unknown[0]} is no argument of" if unknown else "model.args do not fit"
        if "multiple values" in str(error) and unknown:  # of timm's own call, whose arguments these are
            raise UserError(f"model.args.{unknown[0]} cannot be set: it is what makes a model {name}") from None
        raise UserError(f"{what} {name}: {first_line(error)}; see timm's documentation of the model") from None
    except Exception as error:  # whatever timm's or torch's constructors make of an argument of the wrong kind
        given, reason = brief(model_args, 200), first_line(error)
        if isinstance(error, AssertionError) and not str(error):  # of a map and patches that do not divide it
            size = model_args.get("img_size", 0) // 32 * 32
            reason = f"its patches do not divide its feature map; try model.image_size={max(32, size)} or {size + 32}"
        raise UserError(f"timm cannot build {name} with model.args {given}: {reason}") from None


def _refuse_long(model_args: Mapping[str, Any]) -> None:
    """Raises UserError for numbers with which no model is built in a lifetime, and for sizes that nothing has."""
    for key, value in model_args.items():
        if key.startswith(SIZES) and (isinstance(value, bool) or min(_integers(value), default=1) < 1):
            raise UserError(f"model.args.{key} is {brief(value)}; give a whole number, at least 1")
        most = MOST_BLOCKS if key.startswith(COUNTS) else LARGEST_ARGUMENT
        if max(map(abs, _integers(value)), default=0) > most:
            raise UserError(f"model.args.{key} is {brief(value)}; give at most {most:,}")


def _refuse_giants(name: str, num_classes: int, model_args: dict[str, Any]) -> None:
    """Raises UserError for a model that no memory holds, before any is taken for it."""
    wide = any(size >= 256 for key, value in model_args.items() if key != "img_size" for size in _integers(value))
    if not wide and min(_integers(model_args.get("patch_size")), default=16) >= 4:
        return
    count = 0
    with contextlib.suppress(Exception), torch.device("meta"):  # what is wrong otherwise is said when it is built
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, **model_args)
        count = sum(weight.numel() for weight in model.parameters())
    if count > MOST_WEIGHTS:
        given = brief(model_args, 200)
        raise UserError(f"{name} with model.args {given} has {count:,} weights; give at most {MOST_WEIGHTS:,}")


def _integers(value: Any) -> list[int]:
    """Those in a value or in a list of lists of values."""
    if isinstance(value, (list, tuple)):
        return [number for own in value for number in _integers(own)]
    return [value] if isinstance(value, int) else []


def _checked_arguments(name: str, image_size: int, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for timm; img_size is set by model.image_size alone, and only where the model has one."""
    for key in model_args:
        if key in RESERVED:
            raise UserError(f"model.args.{key} cannot be set: {RESERVED[key]}")
    size = model_args.get("img_size", image_size)
    if size not in (image_size, [image_size] * 2, (image_size,) * 2):
        raise UserError(f"model.args.img_size {size} differs from model.image_size {image_size}; set the latter alone")
    arguments = {key: value for key, value in model_args.items() if key != "img_size"}
    if not name.startswith(("pvt_v2", "cvt_", "dhvt_")):  # no position embedding: they take any size
        arguments["img_size"] = image_size
    return arguments
