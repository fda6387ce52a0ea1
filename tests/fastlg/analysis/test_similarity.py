"""Linear CKA against its closed form on kernels of all samples at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from analysis_cases import images_for, small_student

from fastlg.analysis.measure import measure
from fastlg.analysis.similarity import Similarity
from fastlg.models import Student, resnet20
from fastlg.models.general.teaching import StageMaps


def on_kernels(own: torch.Tensor, guide: torch.Tensor) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of maps [N, C, H, W], each place a sample (Kornblith et al., Eq. 2)."""
    grid = min(own.shape[2], guide.shape[2]), min(own.shape[3], guide.shape[3])
    samples = [F.adaptive_avg_pool2d(maps, grid).permute(0, 2, 3, 1).flatten(0, 2) for maps in (own, guide)]
    count = len(samples[0])
    centre = torch.eye(count, dtype=torch.float64) - 1 / count
    kernels = [centre @ (part @ part.T) @ centre for part in samples]
    cross, one, other = ((kernels[a] * kernels[b]).sum().item() for a, b in ((0, 1), (0, 0), (1, 1)))
    return cross / (one * other) ** 0.5


def made(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(3)
    common = torch.randn(7, 2, 9, 9, dtype=torch.float64)
    maps = []
    for channels, height, width in shapes:
        small = F.adaptive_avg_pool2d(common, (height, width))
        mixed = torch.einsum("oc,nchw->nohw", torch.randn(channels, 2, dtype=torch.float64), small)
        maps.append(mixed + 0.2 * torch.randn_like(mixed) + 30)  # a mean that is larger than what varies
    return maps


def test_uneven_batches_give_the_closed_form_of_all_images():
    students, teachers = made((5, 4, 6), (8, 3, 3)), made((4, 6, 6), (3, 2, 2))
    similarity = Similarity()
    for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
        similarity.add([own[rows] for own in students], [own[rows] for own in teachers])
    found = similarity.result()
    for block, own in enumerate(students):
        for stage, guide in enumerate(teachers):
            assert found[block][stage] == pytest.approx(on_kernels(own, guide), rel=1e-9)
    assert len({round(value, 3) for row in found for value in row}) == 4


def test_it_knows_turned_and_scaled_features_and_says_nothing_of_constants():
    (maps,) = made((6, 3, 3))
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    turned = torch.einsum("oc,nchw->nohw", turn, maps) * 7 + 5
    similarity = Similarity()
    similarity.add([turned, torch.full_like(maps, 0.1)], [maps])
    (same,), (constant,) = similarity.result()
    assert same == pytest.approx(1, rel=1e-9) and constant is None


def test_features_that_are_maps_already_are_compared_as_they_are():
    torch.manual_seed(0)
    student = Student("resnet10t", num_classes=3, image_size=32, init="timm").double()
    views = images_for(student, 4)
    found = measure(student, [(views[:3], views[:3]), (views[3:], views[3:])], teacher=StageMaps(student))
    assert found.blocks == [] and "attention is left out" in found.notes[0]
    assert [found.cka[place][place] for place in range(2)] == pytest.approx([1, 1], rel=1e-6)
    with torch.no_grad():
        features = student.bare.eval().forward_intermediates(views, intermediates_only=True)
    assert found.cka[0][1] == pytest.approx(on_kernels(features[0].double(), features[1].double()), rel=1e-4)


@pytest.mark.parametrize("case", ["vit", "pvt_v2"])
def test_a_pass_compares_every_block_with_every_stage(case):
    student = small_student(case)
    torch.manual_seed(1)
    teacher = resnet20(4).double().eval()
    images, views = images_for(student, 3), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    found = measure(student, [*zip(images.split(2), views.split(2), strict=True)], teacher=teacher)
    student.guide(range(student.depth))
    with torch.no_grad():
        tokens, maps = student(images)[1], teacher(views)[1]
    for block, (own, grid) in enumerate(zip(tokens, student.grids, strict=True)):
        patches = own[:, own.shape[1] - grid[0] * grid[1] :].transpose(1, 2).reshape(3, -1, *grid)
        for stage, guide in enumerate(maps):
            assert found.cka[block][stage] == pytest.approx(on_kernels(patches, guide), rel=1e-8)
