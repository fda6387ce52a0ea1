"""gather_maps: rows of a cache, cropped and flipped as the reference does (cell) or by the true box (exact)."""

from __future__ import annotations

import importlib
import math
import sys

import numpy as np
import pytest
import torch

import fastlg_kernels
from fastlg_kernels.gather.api import RULES, gather_maps, map_boxes


@pytest.fixture(params=["torch", "triton"])
def impl(request, monkeypatch):
    """Both implementations; the kernel through Triton's interpreter, which needs no GPU."""
    name = "fastlg_kernels.gather.launch"
    if request.param == "triton" and not torch.cuda.is_available():
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is defined: at the module's import
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.import_module(name)
    yield request.param
    sys.modules.pop(name, None)
    vars(fastlg_kernels.gather).pop("launch", None)  # an interpreted kernel cannot be compiled by tests that follow


def boxes_of(pixels, size, grid, rule):
    pixels, sizes = torch.as_tensor(pixels).reshape(-1, 4), torch.tensor([size])
    crop = (pixels.double() / sizes.repeat(1, 2)).float()  # as a Batch carries it
    return map_boxes(crop, sizes.expand(len(pixels), 2), grid, rule)


def test_cell_is_the_references_replay_to_the_last_bit(golden, impl):
    data = np.load(golden / "offline_crop_flip.npz")
    compared = 0
    for tag, boxes, size in (
        ("crop", "boxes_ijhw_image_32", (32, 32)),
        ("crop375", "boxes_ijhw_image_375x500", (375, 500)),
    ):
        for number, pixels in enumerate(data[boxes]):
            for k in range(3):
                source = torch.from_numpy(data[f"feature_{k}"])[None]
                box = boxes_of(pixels, size, tuple(source.shape[2:]), "cell")
                for flip in (False, True):
                    name = f"{tag}_{number}_{'flip_' if flip else ''}feature_{k}"
                    if name in data.files:
                        row, mirrored = torch.tensor([0]), torch.tensor([flip])
                        out = gather_maps(source, row, box, mirrored, rule="cell", impl=impl)[0]
                        np.testing.assert_array_equal(out.numpy(), data[name])
                        compared += 1
                if f"{tag}_{number}_feature_{k}_box" in data.files:
                    np.testing.assert_array_equal(box[0].numpy(), data[f"{tag}_{number}_feature_{k}_box"])
    assert compared == 57


def sampled(maps, box, flip):
    """Bilinear sampling of the true box in float64, one output cell after the other."""
    maps, (y, x, h, w) = maps.double(), box
    _, height, width = maps.shape
    out = torch.empty_like(maps)
    for i in range(height):
        for j in range(width):
            sy = min(max(y + (i + 0.5) * h / height - 0.5, 0), height - 1)
            sx = min(max(x + (j + 0.5) * w / width - 0.5, 0), width - 1)
            top, left = math.floor(sy), math.floor(sx)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            fy, fx = sy - top, sx - left
            upper = maps[:, top, left] * (1 - fx) + maps[:, top, right] * fx
            lower = maps[:, bottom, left] * (1 - fx) + maps[:, bottom, right] * fx
            out[:, i, width - 1 - j if flip else j] = upper * (1 - fy) + lower * fy
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_exact_is_bilinear_sampling_of_the_true_box(impl, dtype):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(6, 3, 7, 5, generator=generator).to(dtype)
    start = torch.rand(8, 2, generator=generator) * 0.9
    crop = torch.cat([start, torch.rand(8, 2, generator=generator) * (1 - start)], dim=1)
    crop[0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    crop[1] = torch.tensor([0.9, 0.9, 0.1, 0.1])
    rows, flip = torch.tensor([5, 0, 0, 3, 2, 5, 1, 4]), torch.arange(8) % 3 == 1
    sizes = torch.full((8, 2), 100)
    out = gather_maps(source, rows, map_boxes(crop, sizes, (7, 5), "exact"), flip, impl=impl)
    assert out.dtype == torch.float32
    assert torch.equal(out[0], source[5].float()), "a whole image must come back as it is"
    for n in range(8):
        box = (crop[n].double() * torch.tensor([7, 5, 7, 5])).tolist()
        torch.testing.assert_close(out[n].double(), sampled(source[rows[n]], box, flip[n]), rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_without_boxes_are_upcast_and_nothing_else(impl, dtype):
    source = torch.randn(4, 2, 3, 3).to(dtype)
    rows = torch.tensor([3, 3, 0])
    assert torch.equal(gather_maps(source, rows, impl=impl), source[rows].float())


def test_a_crop_smaller_than_a_cell_keeps_one_cell_where_the_reference_crashes():
    box = boxes_of([[5, 30, 3, 2]], (32, 32), (8, 8), "cell")
    assert box.tolist() == [[1, 7, 1, 1]]
    source = torch.randn(1, 2, 8, 8)
    out = gather_maps(source, torch.tensor([0]), box, rule="cell", impl="torch")
    assert torch.equal(out, source[:, :, 1:2, 7:8].expand(1, 2, 8, 8))


def test_cell_boxes_do_not_suffer_from_float32_fractions():
    """int(i / height * cells) of the reference is float64; a float32 fraction just below a whole cell would lose it."""
    for size in (7, 49, 99, 375, 641):
        start = torch.arange(size)
        pixels = torch.stack([start, start, torch.ones_like(start), torch.ones_like(start)], dim=1)
        box = boxes_of(pixels, (size, size), (14, 14), "cell")
        assert box[:, 0].tolist() == [int(i / size * 14) for i in range(size)]


def test_an_unknown_rule_is_refused():
    assert set(RULES) == {"exact", "cell"}
    with pytest.raises(ValueError, match="'nearest'"):
        map_boxes(torch.rand(1, 4), torch.tensor([[8, 8]]), (4, 4), "nearest")
