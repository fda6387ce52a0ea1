"""RandAugment's choices: timm's specification string, and every sample's operations with their arguments.

Source of the rules: timm.data.auto_augment (rand_augment_transform, AugmentOp). The draws are made for the whole batch
at once from the samples' seeds; nothing here touches pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..rng import normals, uniforms

LEVEL_DENOMINATOR = 10.0
# The draws of one layer, in uniforms; normals are taken far behind all of them.
_LAYER_DRAWS = 3
_WEIGHTED_OFFSET = 1 << 20
_NORMAL_OFFSET = 1 << 21


class Level(NamedTuple):
    """How timm makes an operation's argument from a magnitude m: base + sign * min(cap, slope * m / 10), at least low.

    sign 0 stands for a random one. `whole` cuts slope * m / 10 to an integer first.
    """

    base: float
    slope: float
    sign: int
    whole: bool = False
    cap: float = float("inf")
    low: float = float("-inf")


_NO_ARGUMENT = Level(0.0, 0.0, 1)
_ENHANCE = Level(0.1, 1.8, 1)
_ENHANCE_INCREASING = Level(1.0, 0.9, 0, low=0.1)
LEVELS = {
    "AutoContrast": _NO_ARGUMENT,
    "Equalize": _NO_ARGUMENT,
    "Invert": _NO_ARGUMENT,
    "Rotate": Level(0.0, 30.0, 0),
    "Posterize": Level(0.0, 4.0, 1, whole=True),
    "PosterizeIncreasing": Level(4.0, 4.0, -1, whole=True),
    "PosterizeOriginal": Level(4.0, 4.0, 1, whole=True),
    "Solarize": Level(0.0, 256.0, 1, whole=True, cap=256.0),
    "SolarizeIncreasing": Level(256.0, 256.0, -1, whole=True, cap=256.0),
    "SolarizeAdd": Level(0.0, 110.0, 1, whole=True, cap=128.0),
    "Color": _ENHANCE,
    "ColorIncreasing": _ENHANCE_INCREASING,
    "Contrast": _ENHANCE,
    "ContrastIncreasing": _ENHANCE_INCREASING,
    "Brightness": _ENHANCE,
    "BrightnessIncreasing": _ENHANCE_INCREASING,
    "Sharpness": _ENHANCE,
    "SharpnessIncreasing": _ENHANCE_INCREASING,
    "ShearX": Level(0.0, 0.3, 0),
    "ShearY": Level(0.0, 0.3, 0),
    "TranslateXRel": Level(0.0, 0.45, 0),
    "TranslateYRel": Level(0.0, 0.45, 0),
    "Desaturate": Level(0.5, 0.5, 1, cap=0.5),
    "GaussianBlur": Level(0.1, 1.9, 1, cap=1.9),
}
OP_NAMES = tuple(LEVELS)

_PLAIN = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
_HAS_INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
_INCREASING = tuple(name + "Increasing" if name in _HAS_INCREASING else name for name in _PLAIN)
_3A = ("SolarizeIncreasing", "Desaturate", "GaussianBlur")
# timm's named sets; a dict's numbers are the operations' weights.
SETS = {
    "weights": {
        "Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "TranslateXRel": 1.0, "TranslateYRel": 1.0,
        "ColorIncreasing": 0.25, "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05,
        "SolarizeAdd": 0.05, "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05,
        "PosterizeIncreasing": 0.05, "Invert": 0.05,
    },
    "3a": dict.fromkeys(_3A),
    "3aw": {
        **dict.fromkeys(_3A, 6.0), "Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "PosterizeIncreasing": 1.0,
        "AutoContrast": 1.0, "ColorIncreasing": 1.0, "SharpnessIncreasing": 1.0, "ContrastIncreasing": 1.0,
        "BrightnessIncreasing": 1.0, "Equalize": 1.0, "Invert": 1.0,
    },
}  # fmt: skip
MOST_LAYERS = 100


@dataclass(frozen=True)
class RandAugmentSpec:
    """A parsed specification.

    Attributes:
        ops: names of the operations to choose from.
        weights: None for a uniform choice with replacement; else the chance of each operation, without replacement.
        layers: operations per image.
        probability: chance that a chosen operation is applied.
        magnitude: mean magnitude. magnitude_std: its standard deviation; infinite means uniform in 0..magnitude.
        magnitude_max: magnitudes are clipped to 0..magnitude_max.
        levels: how each operation's argument is made of a magnitude; None for timm's way, `LEVELS`.
    """

    ops: tuple[str, ...]
    weights: tuple[float, ...] | None
    layers: int
    probability: float
    magnitude: float
    magnitude_std: float
    magnitude_max: float
    levels: tuple[Level, ...] | None = None


# DeiT III's (arXiv 2204.07118): one of grey, solarised at 128 and blurred by 0.1 to 2 pixels, each as likely.
THREE_AUGMENT = "three-augment"
_THREE = RandAugmentSpec(
    ops=("Desaturate", "Solarize", "GaussianBlur"),
    weights=None,
    layers=1,
    probability=1.0,
    magnitude=LEVEL_DENOMINATOR,
    magnitude_std=float("inf"),
    magnitude_max=LEVEL_DENOMINATOR,
    levels=(Level(1.0, 0.0, 1), Level(128.0, 0.0, 1), Level(0.1, 1.9, 1)),
)
JITTERED = ("Brightness", "Contrast", "Color")


class RandAugmentDraw(NamedTuple):
    """What is done to each sample, layer by layer: op int64 [N, layers] (position in OP_NAMES), applied bool, value
    float64 (the operation's resolved argument, as timm passes it to the operation). ``blurs`` tells the host whether a
    GaussianBlur may be among them."""

    op: Tensor
    applied: Tensor
    value: Tensor
    blurs: bool = True


@lru_cache(maxsize=64)
def parse_rand_augment(spec: str) -> RandAugmentSpec:
    """Reads timm's RandAugment string, such as "rand-m9-mstd0.5-inc1"; or "three-augment", which is DeiT III's.

    Sections after "rand", in any order: m (magnitude, integer), n (operations per image, integer), p (probability of
    each), mstd (standard deviation of the magnitude; above 100: uniform), mmax (largest magnitude, integer), inc
    (0 or 1: severity grows with magnitude), or one of timm's sets of operations in place of inc: tweights and t3aw
    (weighted choices, without replacement) and t3a.

    Raises:
        ValueError: an unknown or malformed section; the message names it and what is known.
    """
    if spec == THREE_AUGMENT:
        return _THREE
    head, *sections = spec.split("-")
    if head != "rand":
        raise ValueError(
            f"RandAugment spec {spec!r} must start with 'rand', as in 'rand-m9-mstd0.5-inc1', or be {THREE_AUGMENT!r}"
        )
    values = {"m": LEVEL_DENOMINATOR, "n": 2.0, "p": 0.5, "mstd": 0.0, "mmax": 0.0, "inc": 0.0}
    ops: dict[str, float | None] | None = None
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|\.\d+|inf)", section)
        if section[:1] == "t" and section[1:] in SETS:
            ops = ops or SETS[section[1:]]  # as in timm, the first one counts
        elif match and match[1] in values:
            values[match[1]] = float(match[2])
        else:
            raise ValueError(
                f"RandAugment spec {spec!r}: unknown section {section!r}; known are m9, n2, p0.5, mstd0.5, mmax10, "
                f"inc1 (each a name and a number) and the sets t{', t'.join(SETS)}"
            )
    for name in ("m", "n", "mmax", "inc"):
        if values[name] != int(min(values[name], 1e9)):
            raise ValueError(f"RandAugment spec {spec!r}: {name}{values[name]:g} must be a whole number")
    if ops is None:
        ops = dict.fromkeys(_INCREASING if values["inc"] else _PLAIN)
    weights = tuple(ops.values()) if None not in ops.values() else None
    most = MOST_LAYERS if weights is None else len(ops)
    if not 1 <= values["n"] <= most:
        raise ValueError(f"RandAugment spec {spec!r}: n{values['n']:g} must be 1..{most}")
    if values["p"] > 1:
        raise ValueError(f"RandAugment spec {spec!r}: p{values['p']:g} must lie in 0..1")
    return RandAugmentSpec(
        ops=tuple(ops),
        weights=weights,
        layers=int(values["n"]),
        probability=values["p"],
        magnitude=values["m"],
        magnitude_std=float("inf") if values["mstd"] > 100 else values["mstd"],
        magnitude_max=values["mmax"] or LEVEL_DENOMINATOR,
    )


def draw_rand_augment(seeds: Tensor, spec: str | RandAugmentSpec = "rand-m9-mstd0.5-inc1") -> RandAugmentDraw:
    """Chooses every sample's operations and arguments by timm's rules.

    Args:
        seeds: int64 [N], one per sample (`rng.sample_seeds`).
        spec: timm's string, or what `parse_rand_augment` made of it.

    Returns:
        RandAugmentDraw on the device of `seeds`; no host synchronisation.

    Raises:
        TypeError: seeds that are no integers. ValueError: a wrong shape or a bad spec, naming the part.
    """
    spec = parse_rand_augment(spec) if isinstance(spec, str) else spec
    count, device = seeds.shape[0], seeds.device
    draws = uniforms(seeds, _LAYER_DRAWS * spec.layers).view(count, spec.layers, _LAYER_DRAWS)
    choice, apply, sign = draws.unbind(-1)
    if spec.weights is None:
        chosen = (choice * len(spec.ops)).to(torch.int64)
    else:
        # Exponential clocks: the order in which they ring is a weighted choice without replacement.
        clocks = -torch.log1p(-uniforms(seeds, len(spec.ops), offset=_WEIGHTED_OFFSET)) / _weights(spec.weights, device)
        chosen = clocks.argsort(dim=1)[:, : spec.layers]
    numbers, levels = _tables(spec.ops, spec.levels, device)
    base, slope, fixed_sign, whole, cap, low = levels[chosen].unbind(-1)
    amount = _magnitudes(seeds, spec) / LEVEL_DENOMINATOR * slope
    amount = torch.minimum(torch.where(whole > 0, amount.floor(), amount), cap)
    random_sign = torch.where(sign > 0.5, -1.0, 1.0)
    value = torch.maximum(base + torch.where(fixed_sign == 0, random_sign, fixed_sign) * amount, low)
    return RandAugmentDraw(numbers[chosen], apply <= spec.probability, value, "GaussianBlur" in spec.ops)


def draw_color_jitter(seeds: Tensor, amounts: Sequence[float]) -> RandAugmentDraw:
    """torchvision's ColorJitter without hue: brightness, contrast and saturation in an order drawn for every sample.

    Args:
        seeds: int64 [N], one per sample, of another purpose than RandAugment's.
        amounts: of brightness, contrast and saturation: each is multiplied by a factor that is uniform from
            max(0, 1 - amount) to 1 + amount; an amount of 0 leaves it alone.

    Returns:
        RandAugmentDraw of as many layers as amounts above 0, on the device of `seeds`; no host synchronisation.

    Raises:
        ValueError: not three amounts, or one below 0.
    """
    if len(amounts) != len(JITTERED) or not all(0 <= amount < float("inf") for amount in amounts):
        raise ValueError(
            f"colour jitter takes three amounts of 0 or more (brightness, contrast, colour), got {amounts}"
        )
    table = _jitter_table(tuple(float(amount) for amount in amounts), seeds.device)
    draws = uniforms(seeds, 2 * len(table)).view(len(seeds), 2, len(table))
    op, low, high = table[draws[:, 0].argsort(dim=1)].unbind(-1)
    value = low + (high - low) * draws[:, 1]
    return RandAugmentDraw(op.to(torch.int64), torch.ones_like(op, dtype=torch.bool), value, False)


def _magnitudes(seeds: Tensor, spec: RandAugmentSpec) -> Tensor:
    """float64 [N, layers], clipped."""
    if spec.magnitude_std == float("inf"):
        drawn = uniforms(seeds, spec.layers, offset=_NORMAL_OFFSET) * spec.magnitude
    else:
        drawn = normals(seeds, spec.layers, offset=_NORMAL_OFFSET) * spec.magnitude_std + spec.magnitude
    return drawn.clamp_(0.0, spec.magnitude_max)


@lru_cache(maxsize=64)
def _jitter_table(amounts: tuple[float, ...], device: torch.device) -> Tensor:
    """float64 [operations, 3]: position in OP_NAMES, least and largest factor."""
    used = [(name, amount) for name, amount in zip(JITTERED, amounts, strict=True) if amount > 0]
    rows = [(OP_NAMES.index(name), max(0.0, 1 - amount), 1 + amount) for name, amount in used]
    return torch.tensor(rows, dtype=torch.float64, device=device).view(-1, 3)


@lru_cache(maxsize=64)
def _weights(weights: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64, device=device)


@lru_cache(maxsize=64)
def _tables(ops: tuple[str, ...], levels: tuple[Level, ...] | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each operation of a spec: its position in OP_NAMES, and the numbers of its Level."""
    numbers = torch.tensor([OP_NAMES.index(name) for name in ops], device=device)
    return numbers, torch.tensor(levels or [LEVELS[name] for name in ops], dtype=torch.float64, device=device)
