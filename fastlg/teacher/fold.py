"""BatchNorm's running statistics as part of the convolutions before it: fewer passes over a frozen teacher's maps."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIDE = 32  # px of the images that are looked at, where a teacher takes any
CLOSE = 1e-2  # of the largest value: TF32 stays below, and a norm in the wrong place does not


@torch.no_grad()
def with_folded_norms(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorms in evaluation mode are part of the convolutions before them, wherever that can be.

    Which follows which is seen on one image: a norm whose input is a convolution's very output. Whether anything else
    reads that output is not seen, so that the copy's answers are compared, and one that differs is not folded.
    """
    model = copy.deepcopy(model).eval()
    weight = next(model.parameters())
    side = getattr(model, "image_size", None) or SIDE
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(weight.device)
    folded = copy.deepcopy(model)
    modules = dict(folded.named_modules())
    for conv, norm in _followers(folded, image):
        _replace(folded, conv, fuse_conv_bn_eval(modules[conv], modules[norm]).requires_grad_(False))
        _replace(folded, norm, _rest_of(modules[norm]))
    return folded if _agree(model(image), folded(image)) else model


def is_plain(module: nn.Module) -> bool:
    """Whether a convolution or linear layer multiplies by its ``weight`` as it is, not by something made of it."""
    is_known = type(module).__module__.startswith(("torch.nn.", "fastlg."))
    return is_known and isinstance(module, (nn.Conv2d, nn.Linear))


def _followers(model: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """(convolution, norm) by name, of those that run once."""
    made: dict[str, list[Tensor]] = {}
    taken: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        if is_plain(module) and isinstance(module, nn.Conv2d):
            keep = made.setdefault(name, [])
            handles.append(module.register_forward_hook(lambda _m, _given, out, keep=keep: keep.append(out)))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            keep = taken.setdefault(name, [])
            handles.append(module.register_forward_pre_hook(lambda _m, given, keep=keep: keep.append(given[0])))
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    once = {id(outs[0]): name for name, outs in made.items() if len(outs) == 1}
    return [(once[id(ins[0])], norm) for norm, ins in taken.items() if len(ins) == 1 and id(ins[0]) in once]


def _rest_of(norm: nn.BatchNorm2d) -> nn.Module:
    """What a norm does beside normalising: timm's own apply an activation."""
    return getattr(norm, "act", None) or nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above), last, module)


def _agree(one: tuple[Tensor, tuple[Tensor, ...]], other: tuple[Tensor, tuple[Tensor, ...]]) -> bool:
    pairs = zip((one[0], *one[1]), (other[0], *other[1]), strict=True)
    return all(bool((a - b).abs().max() <= CLOSE * a.abs().max()) for a, b in pairs)
