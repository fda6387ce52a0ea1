"""``fastlg export --backbone``: a trained student as timm's feature network, for detectors and segmenters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import VisionTransformer
from torch import nn

from fastlg.errors import RunError, UserError, first_line
from fastlg.models import Student
from fastlg.models.general.own import is_own
from fastlg.models.resolution import takes_sizes


class Maps(NamedTuple):
    """What a backbone gives.

    levels         (channels, reduction) of each map, in its order
    takes_others   whether images of another size than it was trained on are taken
    """

    levels: list[tuple[int, int]]
    takes_others: bool


LEVELS = 4  # maps of a student whose blocks all have one grid: those after each quarter of its blocks
TOLERANCE = 1e-4  # of the largest value: float32 rounding stays two orders below


def feature_arguments(student: Student) -> dict[str, Any]:
    """Arguments by which timm.create_model builds the feature network: every stage's map, or four of a flat student's.

    A plain ViT or DeiT then takes images of other sizes too, its positions interpolated. Raises UserError for a network
    that timm cannot cut into maps.
    """
    if is_own(student.name) or not hasattr(student.bare, "forward_intermediates"):
        raise UserError(
            f"{student.name} has no forward_intermediates as timm's models have it, from which a backbone's maps come; "
            "export it without --backbone"
        )
    arguments: dict[str, Any] = {"features_only": True, "feature_cls": "getter"}
    if _is_flat(student.bare):
        depth = len(student.bare.feature_info)
        count = min(LEVELS, depth)
        arguments["out_indices"] = [(number + 1) * depth // count - 1 for number in range(count)]
    else:
        arguments["out_indices"] = list(range(len(student.bare.feature_info)))
    if takes_sizes(student.bare) and type(student.bare) is VisionTransformer:
        arguments["dynamic_img_size"] = True
    return arguments


def _is_flat(bare: nn.Module) -> bool:
    """Whether all maps have one size."""
    return len({info["reduction"] for info in bare.feature_info}) == 1


@torch.inference_mode()
def check_backbone(student: Student, folder: Path, arguments: dict[str, Any]) -> Maps:
    """Loads ``folder`` with timm as a user would and compares its maps of one image of noise with the student's own.

    Raises RunError where they differ.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # whatever timm raises, the export failed
        raise RunError(f"timm {timm.__version__} cannot load the backbone: {first_line(error)}") from None
    size, device = student.image_size, next(student.parameters()).device
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    training, found = student.training, loaded(image)
    chosen = {"indices": arguments["out_indices"], "output_fmt": "NCHW", "intermediates_only": True}
    want = [own.cpu() for own in student.eval().bare.forward_intermediates(image.to(device), **chosen)]
    student.train(training)
    known = list(zip(loaded.feature_info.channels(), loaded.feature_info.reduction(), strict=True))
    for number, (own, other) in enumerate(zip(want, found, strict=True)):
        worst = (own - other).abs().max().item() if own.shape == other.shape else float("inf")
        if own.shape[1] != known[number][0] or not worst <= TOLERANCE * max(1.0, own.abs().max().item()):
            raise RunError(f"timm {timm.__version__} loads the backbone, but its map {number} differs by {worst:.2g}")
    try:
        loaded(torch.zeros(1, 3, 2 * size, 2 * size))
    except Exception:  # whatever a network makes of a size that it is not meant for
        return Maps(known, False)
    return Maps(known, True)


def told(maps: Maps, size: int) -> str:
    """'192 channels at 1/16, ...; of images of 224 px, and of other sizes'"""
    levels = ", ".join(f"{channels} channels at 1/{reduction}" for channels, reduction in maps.levels)
    return f"{levels}; of images of {size} px{', and of other sizes' if maps.takes_others else ' alone'}"


def snippet(maps: Maps, size: int, first: str = "") -> str:
    """The section of a model card; ``first``: lines before its imports."""
    return (
        "## As a backbone\n\n"
        f"```python\n{first}import timm\n\n"
        'body = timm.create_model("local-dir:.", pretrained=True)  # this folder; out_indices=... chooses other maps\n'
        f"body.feature_info.channels()   # {[channels for channels, _ in maps.levels]}\n"
        f"body.feature_info.reduction()  # {[reduction for _, reduction in maps.levels]}\n"
        "maps = body(images)            # a list of [N, C, H, W]\n```\n\n"
        f"The maps: {told(maps, size)}.\n"
    )
