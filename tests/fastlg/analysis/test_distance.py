"""Attention distance against loops over pixels; the number of the paper's Table 5."""

from __future__ import annotations

import math

import pytest
import torch
from analysis_cases import images_for, small_student

from fastlg.analysis.attention import attention_layers, watch
from fastlg.analysis.distance import AttentionDistance
from fastlg.analysis.geometry import distance_matrix, layout_of, pitches
from fastlg.models import Student


def middles(count: int, pitch: float, first: float) -> list[float]:
    """Pixels of the middles of ``count`` patches."""
    return [first + pitch * number for number in range(count)]


def joined(places: list[float], side: int) -> list[float]:
    """Middles of neighbours joined in squares of ``side``."""
    return [sum(places[k : k + side]) / side for k in range(0, len(places), side)]


def every_other(places: list[float]) -> list[float]:
    """Of windows of three around every other place: the places between two windows count half in each."""
    found, last = [], len(places) - 1
    for middle in range(0, len(places), 2):
        near = {k: 0.5 if k % 2 and k < last else 1.0 for k in (middle - 1, middle, middle + 1) if 0 <= k <= last}
        found.append(sum(places[k] * share for k, share in near.items()) / sum(near.values()))
    return found


def pooled(places: list[float], count: int) -> list[float]:
    """Of the windows of an adaptive pool, which overlap: a place counts in each less by the number that see it."""
    side = len(places)
    windows = [range(k * side // count, -(-(k + 1) * side // count)) for k in range(count)]
    seen = [sum(place in window for window in windows) for place in range(side)]
    return [sum(places[k] / seen[k] for k in own) / sum(1 / seen[k] for k in own) for own in windows]


# Along one axis, per block: pixels of the middles of the tokens, of those of the keys, prefix tokens, and the pitch.
PVT = [middles(16, 4, 2), middles(8, 8, 4), middles(4, 16, 8), middles(2, 32, 16)]
CVT = [middles(11, 4, 0), middles(6, 8, 0), middles(3, 16, 0)]  # of convolutions that pad
PIT = [middles(6, 8, 8), *[middles(3, 16, 8)] * 2, middles(2, 32, 8)]
AXES = {
    "vit": [(middles(5, 8, 4), middles(5, 8, 4), 1, 8)] * 2,
    "distilled": [(middles(3, 16, 8), middles(3, 16, 8), 2, 16)] * 2,
    "convit": [(middles(3, 16, 8), middles(3, 16, 8), prefix, 16) for prefix in (0, 0, 1)],
    "pit": [(own, own, 1, pitch) for own, pitch in zip(PIT, (8, 16, 16, 32), strict=True)],
    "pvt": [
        (own, joined(own, side), prefix, pitch)
        for own, side, prefix, pitch in zip(PVT, (8, 4, 2, 1), (0, 0, 0, 1), (4, 8, 16, 32), strict=True)
    ],
    "pvt_v2": [
        (own, joined(own, side), 0, pitch)
        for own, side, pitch in zip(PVT, (8, 4, 2, 1), (4, 8, 16, 32), strict=True)
        for _ in range(2)
    ],
    "pvt_v2_linear": [(own, pooled(own, 7), 0, pitch) for own, pitch in zip(PVT, (4, 8, 16, 32), strict=True)],
    "t2t": [(middles(4, 16, 0), middles(4, 16, 0), 1, 16)] * 2,
    "cvt": [
        (own, every_other(own), prefix, pitch) for own, prefix, pitch in zip(CVT, (0, 0, 1), (4, 8, 16), strict=True)
    ],
}


def looped(matrix, tokens: list[float], keys: list[float], prefix: int) -> list[float]:
    """Mean over images and patch tokens of sum over keys of attention times distance, per head."""
    images, heads, _, _ = matrix.shape
    sums = [0.0] * heads
    values = matrix.tolist()
    for image in range(images):
        for head in range(heads):
            for y in range(len(tokens)):
                for x in range(len(tokens)):
                    row = values[image][head][prefix + y * len(tokens) + x]
                    for v in range(len(keys)):
                        for u in range(len(keys)):
                            length = math.hypot(tokens[y] - keys[v], tokens[x] - keys[u])
                            sums[head] += row[prefix + v * len(keys) + u] * length
    return [own / (images * len(tokens) ** 2) for own in sums]


def measured(student: Student, images: torch.Tensor, sizes: list[int]) -> tuple[list[dict], list[torch.Tensor]]:
    student.guide(range(student.depth))
    distance, matrices = AttentionDistance(pitches(student)), {}

    def see(block, matrix, layout):
        distance.see(block, matrix, layout)
        matrices.setdefault(block, []).append(matrix)

    with torch.no_grad(), watch(student, see):
        for part in images.split(sizes):
            student(part)
    return distance.result(), [torch.cat(matrices[block]) for block in range(student.depth)]


@pytest.mark.parametrize("case", AXES)
def test_it_is_what_loops_over_pixels_give(case):
    student = small_student(case)
    found, matrices = measured(student, images_for(student, 2), [2])
    for own, matrix, (tokens, keys, prefix, pitch) in zip(found, matrices, AXES[case], strict=True):
        want = looped(matrix, tokens, keys, prefix)
        assert own["heads_px"] == pytest.approx(want, rel=1e-9), own["block"]
        assert own["heads"] == pytest.approx([value / pitch / len(keys) ** 2 for value in want], rel=1e-9)
        assert own["distance_px"] == pytest.approx(sum(want) / len(want), rel=1e-9)
        assert own["prefix_share"] == pytest.approx(matrix[:, :, prefix:, :prefix].sum(-1).mean((0, 2)).tolist())
        flat = looped(torch.full_like(matrix[:1, :1], 1 / matrix.shape[-1]), tokens, keys, prefix)[0]
        assert own["uniform_px"] == pytest.approx(flat, rel=1e-9)
        assert own["uniform"] == pytest.approx(flat / pitch / len(keys) ** 2, rel=1e-9)


@pytest.mark.parametrize("case", ["vit", "pvt"])
def test_batches_of_any_size_give_the_same(case):
    student = small_student(case)
    images = images_for(student, 5)
    whole, parts = (measured(student, images, sizes)[0] for sizes in ([5], [2, 2, 1]))
    for one, other in zip(whole, parts, strict=True):
        assert one["heads_px"] == pytest.approx(other["heads_px"], rel=1e-12)
        assert one["prefix_share"] == pytest.approx(other["prefix_share"], rel=1e-12)


PUBLISHED = {  # Table 5, unguided students at 224 px
    "deit_tiny_patch16_224": 0.0336,
    "t2t_vit_7": 0.0338,
    "pit_ti_224": 0.0421,
    "pvt_tiny": 0.2590,
    "pvt_v2_b0": 0.2622,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_scale_is_table_5s_whose_unguided_students_look_almost_everywhere_alike(name):
    """Attention that is the same everywhere has 0.036 to 0.28 on this scale, family by family a tenth above Table 5.

    Neither pixels, nor shares of the image, nor a sum over the keys order the families as the table does.
    """
    student = Student(name, num_classes=2, image_size=224)
    student.guide(range(student.depth))
    layers, _ = attention_layers(student)
    uniform = []
    for layer, grid in zip(layers, student.grids, strict=True):
        lengths = distance_matrix(layout_of(layer, grid, 0))
        uniform.append(lengths.mean().item() / lengths.shape[1])
    assert 0.89 < PUBLISHED[name] / (sum(uniform) / len(uniform)) < 0.95
