"""Rollout against products of whole matrices, written out."""

from __future__ import annotations

import pytest
import torch
from analysis_cases import CASES, images_for, small_student

from fastlg.analysis.attention import watch
from fastlg.analysis.geometry import Layout, stage_steps
from fastlg.analysis.measure import measure
from fastlg.analysis.rollout import readout, rollout


def means_of(case: str):
    """(student, per block the mean over heads [N, tokens, keys], layouts)."""
    student, means, layouts = small_student(case), [], []
    student.guide(range(student.depth))

    def see(block, matrix, layout):
        means.append(matrix.mean(1))
        layouts.append(layout)

    with torch.no_grad(), watch(student, see):
        student(images_for(student, 2))
    return student, means, layouts


@pytest.mark.parametrize(
    ("case", "readers"), [("vit", [0]), ("registers", [0]), ("distilled", [0, 1]), ("t2t", [0]), ("poorvit", [0, 1])]
)
def test_of_one_grid_it_is_the_class_tokens_row_of_the_product(case, readers):
    student, means, layouts = means_of(case)
    found = rollout(means, layouts, stage_steps(student), readout(student, layouts[-1]))
    for image in range(2):
        product = torch.eye(means[0].shape[1], dtype=torch.float64)
        for matrix in means:
            product = (matrix[image] + torch.eye(len(product), dtype=torch.float64)) / 2 @ product
        want = product[readers].mean(0)[layouts[0].prefix :]
        torch.testing.assert_close(found[image].flatten(), want / want.sum(), rtol=1e-10, atol=0)


def squares(side: int, step: int, reach: int = 0) -> torch.Tensor:
    """[tokens after, tokens before]: squares of ``step`` tokens; with ``reach`` of three around every other one, of
    which those between two squares count half in each."""
    after = -(-side // step) if reach else side // step

    def along(number: int) -> dict[int, float]:
        if not reach:
            return {step * number + k: 1 / step for k in range(step)}
        places = [place for place in (2 * number - 1, 2 * number, 2 * number + 1) if 0 <= place < side]
        return {place: 0.25 if place % 2 and place < side - 1 else 0.5 for place in places}

    made = torch.zeros(after, after, side, side, dtype=torch.float64)
    for y in range(after):
        for x in range(after):
            for row, down in along(y).items():
                for column, across in along(x).items():
                    made[y, x, row, column] = down * across
    return made.reshape(after * after, side * side)


def with_prefix(matrix: torch.Tensor, own: int, before: int) -> torch.Tensor:
    """A matrix of patches beside prefix tokens, which stay what they are, or begin at nothing where they join."""
    whole = torch.zeros(own + matrix.shape[0], before + matrix.shape[1], dtype=torch.float64)
    whole[own:, before:] = matrix
    if own == before:
        whole[:own, :own] = torch.eye(own, dtype=torch.float64)
    return whole


KEYS = {
    "pvt": [(16, 8, 0), (8, 4, 0), (4, 2, 0), (2, 1, 0)],
    "pvt_v2": [(16, 8, 0), (16, 8, 0), (8, 4, 0), (8, 4, 0), (4, 2, 0), (4, 2, 0), (2, 1, 0), (2, 1, 0)],
    "cvt": [(11, 2, 1), (6, 2, 1), (3, 2, 1)],
    "pit": [(6, 1, 0), (3, 1, 0), (3, 1, 0), (2, 1, 0)],
    "convit": [(3, 1, 0)] * 3,
}
STEPS = {"pvt": (2, 0), "pvt_v2": (2, 1), "cvt": (2, 1), "pit": (2, 1), "convit": None}


@pytest.mark.parametrize("case", KEYS)
def test_of_stages_and_reduced_keys_it_is_the_product_of_matrices_from_tokens_to_tokens(case):
    student, means, layouts = means_of(case)
    found = rollout(means, layouts, stage_steps(student), readout(student, layouts[-1]))
    for image in range(2):
        product, before, prefix = None, None, 0
        for matrix, layout, (side, step, reach) in zip(means, layouts, KEYS[case], strict=True):
            own = layout.prefix
            if product is None:
                product = torch.eye(own + side * side, dtype=torch.float64)
            elif before != side:
                product = with_prefix(squares(before, *STEPS[case]), own, prefix) @ product
            elif own != prefix:
                product = with_prefix(torch.eye(side * side, dtype=torch.float64), own, prefix) @ product
            to_tokens = matrix[image] @ with_prefix(squares(side, step, reach), own, own)
            product = (to_tokens + torch.eye(len(to_tokens), dtype=torch.float64)) / 2 @ product
            before, prefix = side, own
        row = product[0] if prefix else product.mean(0)  # PVTv2 has no class token and reads them all
        want = row[layouts[0].prefix :]
        torch.testing.assert_close(found[image].flatten(), want / want.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_student_that_looks_everywhere_alike_has_a_flat_map(case):
    student, means, layouts = means_of(case)
    alike = [torch.full_like(matrix, 1 / matrix.shape[2]) for matrix in means]
    found = rollout(alike, layouts, stage_steps(student), readout(student, layouts[-1]))
    torch.testing.assert_close(found, torch.full_like(found, 1 / found[0].numel()), rtol=1e-9, atol=0)


def test_grids_need_not_be_square():
    """Two rows of three tokens and a class token; keys are the means of both rows, written out token by token."""
    torch.manual_seed(4)
    layout = Layout((2, 3), 1, torch.full((1, 2), 0.5, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    matrices = [torch.randn(1, 7, 4, dtype=torch.float64).softmax(-1) for _ in range(2)]
    to_tokens = torch.tensor(
        [[1, 0, 0, 0, 0, 0, 0], *[[0, *[0.5 * (k % 3 == key) for k in range(6)]] for key in range(3)]]
    )
    read = torch.eye(7, dtype=torch.float64)[0]
    found = rollout(matrices, [layout, layout], [None, None], read)
    first, last = ((own[0] @ to_tokens.double() + torch.eye(7, dtype=torch.float64)) / 2 for own in matrices)
    want = (last @ first)[0, 1:]
    torch.testing.assert_close(found[0], (want / want.sum()).view(2, 3))


def test_a_student_that_averages_its_patches_is_read_from_them():
    student, _, layouts = means_of("vit")
    student.bare.global_pool = "avg"
    read = readout(student, layouts[-1])
    assert read[0] == 0 and read[1:].tolist() == pytest.approx([1 / 25] * 25)


def test_a_pass_over_images_keeps_maps_of_the_first_and_leaves_the_student_as_it_was():
    student = small_student("pvt")
    student.train().guide([1])
    images = images_for(student, 5)
    batches = [(part, images[:0]) for part in images.split([3, 2])]
    found = measure(student, batches, shown=2)
    assert student.training and student.blocks == [1] and found.images == 5 and found.cka is None
    assert found.rollouts.shape == (2, 16, 16) and [own.shape for own in found.middle[:2]] == [(2, 2, 2)] * 2
    _, means, layouts = means_of("pvt")  # of the same first two images
    for own, mean, layout in zip(found.middle, means, layouts, strict=True):
        height, width = layout.grid
        token = layout.prefix + [(y, x) for y in range(height) for x in range(width)].index((height // 2, width // 2))
        torch.testing.assert_close(own.flatten(1), mean[:, token, layout.prefix :], rtol=1e-6, atol=0)
    again = measure(student, [(images[:2], images[:0])], shown=2)
    torch.testing.assert_close(again.rollouts, found.rollouts, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.rollouts.sum((1, 2)), torch.ones(2, dtype=torch.float64))
