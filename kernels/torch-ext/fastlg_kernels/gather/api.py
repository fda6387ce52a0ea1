"""Rows of a feature cache by index, cropped, flipped and upcast on the way: no cropped map of a dataset ever exists."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..devices import HAS_TRITON

RULES = ("exact", "cell")


def map_boxes(crop: Tensor, sizes: Tensor, grid: tuple[int, int], rule: str) -> Tensor:
    """Crop boxes on a feature map, float32 [N, 4]: y, x, height, width in cells.

    crop   float [N, 4]: y, x, h, w as fractions of the image
    sizes  int64 [N, 2]: height and width of the images in pixels
    grid   (H, W) of the map
    rule   "exact": the true box; "cell": the reference code's, every number cut to whole cells
           (``int(y / image_height * H)``), and at least one cell where the reference crashes
    """
    cells = _cells(*grid, crop.device)
    if rule == "exact":
        return (crop.double() * cells).float()
    if rule != "cell":
        raise ValueError(f"rule is {rule!r}; use one of {', '.join(map(repr, RULES))}")
    pixels = sizes.repeat(1, 2).double()
    boxes = ((crop * pixels).round() / pixels * cells).floor()  # the boxes were whole pixels: undo float32 first
    boxes[:, 2:].clamp_(min=1)
    return boxes.float()


@lru_cache(maxsize=64)
def _cells(height: int, width: int, device: torch.device) -> Tensor:
    """Kept on the device: sent anew at every step it would make the host wait, and could be in no CUDA graph."""
    return torch.tensor([height, width, height, width], dtype=torch.float64, device=device)


def gather_maps(
    source: Tensor,
    rows: Tensor,
    boxes: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    rule: str = "exact",
    impl: str = "auto",
) -> Tensor:
    """float32 [N, C, H, W]: rows of ``source`` [R, C, H, W], each box resized back to (H, W), then mirrored.

    Bilinear, ``align_corners=False``. With ``rule="cell"`` nothing outside a box is read (as crop, then resize); with
    "exact" the cells beside it take part, as far as the map reaches.

    rows   int64 [N]
    boxes  float32 [N, 4] of ``map_boxes``, or None: whole rows
    flip   bool [N] or None; only with boxes
    impl   "auto": one Triton kernel where the tensors are on a CUDA device, else torch; "triton", "torch"
    """
    if impl == "triton" or (impl == "auto" and source.is_cuda and HAS_TRITON):
        from .launch import gather_triton

        return gather_triton(source, rows, boxes, flip, clip_to_box=rule == "cell")
    maps = source.index_select(0, rows).float()
    if boxes is None:
        return maps
    with torch.autocast(source.device.type, enabled=False):
        height, width = source.shape[2:]
        down = _axis_matrices(boxes[:, 0], boxes[:, 2], height, rule)
        across = _axis_matrices(boxes[:, 1], boxes[:, 3], width, rule)
        if flip is not None:
            across = torch.where(flip[:, None, None], across.flip(1), across)
        return down.unsqueeze(1) @ (maps @ across.mT.unsqueeze(1))


def _axis_matrices(start: Tensor, extent: Tensor, size: int, rule: str) -> Tensor:
    """float32 [N, size, size]: row i holds the two weights of output cell i."""
    whole = start.floor()
    centre = (torch.arange(size, device=start.device) + 0.5) * (extent / size)[:, None] - 0.5
    if rule == "cell":
        centre = torch.minimum(centre.clamp(min=0), extent[:, None] - 1)
        last = (whole + extent - 1)[:, None]
    else:
        centre = centre + (start - whole)[:, None]
        centre = torch.minimum(torch.maximum(centre, -whole[:, None]), size - 1 - whole[:, None])
        last = torch.full_like(whole, size - 1)[:, None]
    low = centre.floor()
    weight = centre - low
    first = (low + whole[:, None]).long()
    second = torch.minimum(low + whole[:, None] + 1, last).long()
    matrix = torch.zeros(len(start), size, size, device=start.device)
    matrix.scatter_add_(2, first.unsqueeze(2), (1 - weight).unsqueeze(2))
    return matrix.scatter_add_(2, second.unsqueeze(2), weight.unsqueeze(2))
