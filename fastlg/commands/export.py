"""A trained student as a folder that plain timm loads, without fastlg."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn

from fastlg import __version__
from fastlg.commands.hand_on.backbone import Maps, check_backbone, feature_arguments
from fastlg.commands.hand_on.card import CARD, model_card
from fastlg.commands.hand_on.onnx import FILE, expect_onnx, write_onnx
from fastlg.commands.line.early import expect_empty
from fastlg.config import Config
from fastlg.config.keys import is_object
from fastlg.errors import RunError, UserError, first_line
from fastlg.models import Student
from fastlg.models.general.own import build_own, is_own
from fastlg.models.systems import parts

TIMM_PVT_V2_EPS = 1e-5  # what timm gives the LayerNorms behind PVTv2's convolutions; no argument changes it
LOGIT_TOLERANCE = 1e-4  # of the largest logit: float32 rounding stays two orders below


def export_student(
    student: nn.Module,
    out_dir: Path,
    *,
    class_names: Sequence[str],
    config: Config,
    measured: Mapping[str, Any] | None = None,
    onnx: bool = False,
    backbone: bool = False,
) -> Maps | None:
    """Writes weights, ``config.json`` and a model card for ``timm.create_model("local-dir:OUT", pretrained=True)``.

    student      a trained models.Student; it is left as it is
    out_dir      a folder that is new or empty
    class_names  names in label order; timm hands them on as ``pretrained_cfg["label_names"]``
    config       the run's config: mean and std of the images, and name and seed for the record
    measured     what the card says of accuracy and code: hand_on/card.py's ``measured_of``
    onnx         also ``model.onnx``, compared with torch by onnxruntime
    backbone     what timm loads is the feature network, which gives maps instead of logits (hand_on/backbone.py)

    Returns what maps a backbone gives.
    Students that timm lacks (T2T-ViT, PVT, CvT) are read so after ``import fastlg.models``; a user's own network is
    built by its function, which takes the weights (hand_on/card.py's ``how_to_load``).
    The folder appears whole or not at all, after timm has loaded it and given the same logits. timm's own evaluation
    transform (``timm.data.resolve_model_data_config``) then reads images as fastlg's does: squashed to the square,
    bilinear. Raises UserError for a CNN, which timm does not know, and for a folder that holds files; RunError where
    the folder cannot be written, or where timm does not reproduce the logits.
    """
    if not isinstance(student, Student):
        raise UserError(
            "only students can be exported: timm has no CIFAR ResNet. A teacher is used from its run folder "
            "(teacher.weights=RUN)"
        )
    expect_empty(out_dir)
    if onnx:
        expect_onnx()
    architecture, arguments = _in_timm(student)
    features = feature_arguments(student) if backbone else {}
    arguments = {**arguments, **features}
    try:
        description = json.dumps(_description(student, architecture, arguments, class_names, config), indent=2) + "\n"
    except TypeError as error:
        raise UserError(f"model.args {student.model_args} cannot be written to timm's config.json: {error}") from None
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    except OSError as error:
        raise UserError(f"cannot write to {out_dir.parent}: {error.strerror}; choose another folder") from None
    try:
        save_file(timm_weights(student.bare), draft / "model.safetensors", metadata={"format": "pt"})
        (draft / "config.json").write_text(description, encoding="utf-8")
        maps = check_backbone(student, draft, features) if backbone else None
        card = model_card(student, architecture, class_names, config, measured or {}, maps=maps)
        (draft / CARD).write_text(card, encoding="utf-8")
        if not backbone:
            _check_with_timm(student, draft)
        if onnx:
            write_onnx(student, draft / FILE)
        draft.chmod(0o777 & ~_umask())
        os.replace(draft, out_dir)
    except OSError as error:
        raise RunError(f"cannot write {out_dir}: {error.strerror or first_line(error)}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return maps


def timm_weights(bare: nn.Module) -> dict[str, Tensor]:
    """State dict under which timm's own model computes what ``bare`` does, contiguous and on the CPU.

    PVTv2 trained with the reference's LayerNorm eps needs a change, as timm cannot be told that eps: ten norms follow a
    convolution that feeds nothing else, and LN(y, eps) = LN(c y, c^2 eps), so c = sqrt(timm's eps / ours) goes into the
    convolution's weight and bias.
    """
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in bare.state_dict().items()}
    if isinstance(bare, PyramidVisionTransformerV2):
        modules = dict(bare.named_modules())
        for name, convolution in modules.items():
            if isinstance(convolution, nn.Conv2d) and name.endswith((".proj", ".sr")):
                norm = modules[f"{name.rpartition('.')[0]}.norm"]
                scale = math.sqrt(TIMM_PVT_V2_EPS / norm.eps)
                for part in ("weight", "bias"):
                    weights[f"{name}.{part}"] *= scale
    return weights


def _in_timm(student: Student) -> tuple[str, dict[str, Any]]:
    """(name, arguments) by which timm, or a user's own function, builds a student's network.

    Raises UserError for one that was handed in as an object, unless it is timm's by its own name and image size.
    """
    if is_own(student.name):
        return student.name, student.model_args
    if not is_object(student.name) and (entry := parts.entry_of(student.name, student.bare)):
        return entry, {"base": student.name.split(".")[0], **student.model_args}
    if not is_object(student.name):
        return student.name.split(".")[0], student.model_args
    name = (getattr(student.bare, "pretrained_cfg", None) or {}).get("architecture") or ""
    shapes = {key: value.shape for key, value in student.bare.state_dict().items()}
    for arguments in ({}, {"img_size": student.image_size}):
        with contextlib.suppress(Exception), torch.device("meta"):  # whatever timm makes of arguments it does not know
            built = timm.create_model(name, num_classes=student.bare.num_classes, **arguments)
            if {key: value.shape for key, value in built.state_dict().items()} == shapes:
                return name, arguments
    raise UserError(
        f"the network was a Python object, {type(student.bare).__name__}, that timm cannot build by a name alone; keep "
        "its weights with torch.save(run.model.state_dict(), PATH)"
    )


def _description(
    student: Student, architecture: str, arguments: dict[str, Any], class_names: Sequence[str], config: Config
) -> dict[str, Any]:
    """The content of timm's config.json; ``model_args`` are arguments of timm.create_model."""
    size, source = student.image_size, getattr(student.bare, "pretrained_cfg", None) or {}
    return {
        "architecture": architecture,
        "num_classes": len(class_names),
        "num_features": getattr(student.bare, "num_features", None),
        "model_args": arguments,
        "label_names": list(class_names),
        "pretrained_cfg": {
            "num_classes": len(class_names),
            "input_size": [3, size, size],
            "fixed_input_size": "img_size" in arguments,
            "pool_size": None,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "first_conv": _there(source.get("first_conv"), student.bare),
            "classifier": source.get("classifier"),
        },
        "fastlg": {"version": __version__, "run": config.run.name, "seed": config.run.seed},
    }


def _there(named: Any, bare: nn.Module) -> Any:
    """timm's name of a first convolution, or names, where the network still has it: parts of it may be in its place."""
    names = (named,) if isinstance(named, str) else tuple(named or ())
    return named if set(names) <= {name for name, _ in bare.named_modules()} else None


@torch.inference_mode()
def _check_with_timm(student: Student, folder: Path) -> None:
    """Loads the folder as a user would and compares logits on one image of noise."""
    try:
        with torch.random.fork_rng(devices=[]):
            loaded = _read_back(student, folder).eval()
    except Exception as error:  # whatever timm raises, the export failed
        raise RunError(f"timm {timm.__version__} cannot load the export: {first_line(error)}") from None
    size, device = student.image_size, next(student.parameters()).device
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    training = student.training
    want = student.eval()(image.to(device))[0].cpu()
    student.train(training)
    found = loaded(image)
    found = found if isinstance(found, Tensor) else found[0]  # a user's own, which gives its features too
    worst = (found - want).abs().max().item()
    if not worst <= LOGIT_TOLERANCE * max(1.0, want.abs().max().item()):
        raise RunError(
            f"timm {timm.__version__} loads the export, but its logits differ by {worst:.2g}; "
            f"model.args {student.model_args} may hold something that timm's config.json cannot carry"
        )


def _read_back(student: Student, folder: Path) -> nn.Module:
    if not is_own(student.name):
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    own = {key: value for key, value in student.model_args.items() if key != "image_size"}
    settings = {"num_classes": student.num_classes, "image_size": student.image_size, "drop_path": 0.0}
    loaded, _ = build_own(student.name, **settings, model_args=own)
    loaded.load_state_dict(load_file(folder / "model.safetensors"))
    return loaded


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
