"""The augmentation pipeline in plain torch: the CPU path, and the truth the Triton kernels are held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...rng import normals, uniforms
from ..rand_augment import OP_NAMES, RandAugmentDraw
from . import geometry, ops

# Draws of one rectangle attempt: area, ratio, top, left.
_ATTEMPTS, _ATTEMPT_DRAWS = 10, 4
NOISE_OFFSET = 1 << 24
Triple = tuple[float, float, float]
_CPU_CHUNK_PIXELS = 2 * 224 * 224


def apply_op(images: Tensor, name: str, value: Tensor, resample: str, fill: geometry.Colour) -> Tensor:
    """The plain torch twin of `augment.apply_op`: `value` float64 [N]."""
    parts = [_apply(images[part], name, value[part], resample, fill) for part in _parts(images, len(images))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(images: Tensor, count: int) -> list[slice]:
    """0..count in steps; on the CPU so few images of this size at a time that the float scratch stays in cache."""
    step = max(1, _CPU_CHUNK_PIXELS // (images.shape[1] * images.shape[2]))
    step = step if images.device.type == "cpu" else max(1, count)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def _apply(images: Tensor, name: str, value: Tensor, resample: str, fill: geometry.Colour) -> Tensor:
    match name:
        case "AutoContrast":
            return ops.auto_contrast(images)
        case "Equalize":
            return ops.equalize(images)
        case "Invert":
            return ops.invert(images)
        case "Rotate":
            return geometry.rotate(images, value, resample, fill)
        case "Posterize" | "PosterizeIncreasing" | "PosterizeOriginal":
            return ops.posterize(images, value)
        case "Solarize" | "SolarizeIncreasing":
            return ops.solarize(images, value)
        case "SolarizeAdd":
            return ops.solarize_add(images, value)
        case "Color" | "ColorIncreasing":
            return ops.color(images, value)
        case "Contrast" | "ContrastIncreasing":
            return ops.contrast(images, value)
        case "Brightness" | "BrightnessIncreasing":
            return ops.brightness(images, value)
        case "Sharpness" | "SharpnessIncreasing":
            return ops.sharpness(images, value)
        case "ShearX":
            return geometry.shear_x(images, value, resample, fill)
        case "ShearY":
            return geometry.shear_y(images, value, resample, fill)
        case "TranslateXRel":
            return geometry.translate_x(images, value, resample, fill)
        case "TranslateYRel":
            return geometry.translate_y(images, value, resample, fill)
        case "Desaturate":
            return ops.color(images, (1.0 - value).clamp(0.0, 1.0))
        case "GaussianBlur":
            return ops.gaussian_blur(images, value)
    raise ValueError(f"unknown operation {name!r}; known are {', '.join(OP_NAMES)}")


def rand_augment(images: Tensor, draw: RandAugmentDraw, resample: str, fill: geometry.Colour) -> Tensor:
    """Applies every sample's drawn operations, each operation once per layer on the samples that drew it."""
    out = images.clone(memory_format=torch.contiguous_format)
    numbers = torch.where(draw.applied, draw.op, -1).cpu()
    for layer in range(numbers.shape[1]):
        for number in numbers[:, layer].unique().tolist():
            if number < 0:
                continue
            chosen = (numbers[:, layer] == number).nonzero().reshape(-1).tolist()
            for part in _parts(images, len(chosen)):
                members = chosen[part]
                some = torch.stack([out[i] for i in members])
                result = _apply(some, OP_NAMES[number], draw.value[members, layer], resample, fill)
                # Image by image: whole-row copies, which index_copy_ on bytes is not.
                for i, image in zip(members, result, strict=True):
                    out[i] = image
    return out


def normalise(images: Tensor, mean: Triple, std: Triple, flip: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(x / 255 - mean) / std in the order of torchvision's ToTensor and Normalize: float32 results are equal."""
    count, height, width, channels = images.shape
    out = torch.empty(count, channels, height, width, dtype=dtype, device=images.device)
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (mean, std))
    for part in _parts(images, count):
        values = images[part].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        out[part] = values.div_(255.0).sub_(mean).div_(std)
    return out if flip is None else mirror(out, flip, 3)


def mirror(images: Tensor, flip: Tensor, columns: int) -> Tensor:
    """Turns the chosen images left to right, in place; `columns` is the dimension of the columns."""
    for number in flip.nonzero().reshape(-1).tolist():
        images[number] = images[number].flip(columns - 1)
    return images


def draw_erasing(
    seeds: Tensor,
    height: int,
    width: int,
    probability: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
    count: int,
) -> Tensor:
    """The rectangles to erase: int32 [N, count, 4] (top, left, height, width); height 0 where there is none.

    timm's rule (RandomErasing._erase): with the given chance an image loses 1..count rectangles, the area of each drawn
    uniformly and divided by their number, the log of the ratio drawn uniformly; ten attempts to fit strictly inside.
    """
    n = seeds.shape[0]
    draws = uniforms(seeds, 2 + count * _ATTEMPTS * _ATTEMPT_DRAWS)
    rectangles = (1.0 + torch.floor(draws[:, 1] * count)) * (draws[:, 0] <= probability)
    wanted, log_ratio, top, left = draws[:, 2:].view(n, count, _ATTEMPTS, _ATTEMPT_DRAWS).unbind(-1)
    share = rectangles.clamp(min=1.0).view(n, 1, 1)
    wanted = (area[0] + (area[1] - area[0]) * wanted) * (height * width) / share
    shape = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * log_ratio)
    h, w = torch.round((wanted * shape).sqrt()), torch.round((wanted / shape).sqrt())
    fits = (w < width) & (h < height)
    attempt = fits.to(torch.int8).argmax(dim=-1, keepdim=True)
    boxes = torch.stack((torch.floor(top * (height - h + 1)), torch.floor(left * (width - w + 1)), h, w), dim=-1)
    boxes = boxes.gather(2, attempt[..., None].expand(-1, -1, -1, 4)).squeeze(2)
    used = fits.any(-1) & (torch.arange(count, device=seeds.device) < rectangles[:, None])
    return (boxes * used[..., None]).to(torch.int32)


def erase(images: Tensor, rectangles: Tensor, seeds: Tensor, mode: str) -> Tensor:
    """Fills the rectangles in place, with normal noise per pixel, per channel, or zero."""
    channels = images.shape[1]
    boxes = rectangles.tolist()
    for number, image_boxes in enumerate(boxes):
        for slot, (top, left, h, w) in enumerate(image_boxes):
            if h == 0 or w == 0:
                continue
            patch = images[number, :, top : top + h, left : left + w]
            if mode == "const":
                patch.zero_()
                continue
            # Each rectangle has its own stretch of the sample's noise.
            shape = (channels, h, w) if mode == "pixel" else (channels, 1, 1)
            offset = NOISE_OFFSET * (slot + 1)
            noise = normals(seeds[number : number + 1], math.prod(shape), offset=offset, dtype=torch.float32)
            patch.copy_(noise.view(shape))
    return images
