"""The matrices that the analysis sees are those that every family's layers multiply their values with."""

from __future__ import annotations

import pytest
import torch
from analysis_cases import CASES, by_hand, images_for, small_student
from timm.models.vision_transformer import ParallelScalingBlock

from fastlg.analysis.attention import attention_layers, remarks, watch
from fastlg.models import Student


def seen_of(student: Student, images: torch.Tensor) -> list[tuple]:
    """(block, matrix, layout) as ``watch`` gives them."""
    seen = []
    student.guide(range(student.depth))
    with torch.no_grad(), watch(student, lambda *arguments: seen.append(arguments)):
        student(images)
    return seen


@pytest.mark.parametrize("case", CASES)
def test_every_matrix_is_the_one_computed_by_hand_and_makes_the_layers_own_output(case):
    student = small_student(case)
    images = images_for(student, 2)
    seen = seen_of(student, images)
    layers, reason = attention_layers(student)
    assert reason == "" and [block for block, *_ in seen] == list(range(student.depth))
    passed = {}
    for layer in layers:
        if hasattr(layer, "fused_attn"):
            assert layer.fused_attn, "the layers are fused again"
        layer.register_forward_hook(lambda layer, given, out: passed.update({layer: (given[0], out)}))
    with torch.no_grad():
        student(images)
        for layer, (block, matrix, layout) in zip(layers, seen, strict=True):
            assert layout.grid == student.grids[block]
            given, out = passed[layer]
            want, mixed = by_hand(layer, given, layout.grid)
            torch.testing.assert_close(matrix, want, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(mixed, out, rtol=1e-9, atol=1e-10)
            height, width = layout.keys
            assert matrix.shape[3] == layout.prefix + height * width
            assert matrix.shape[2] == layout.prefix + layout.grid[0] * layout.grid[1]
            assert matrix.std() > 1e-4, "a matrix that says something"


def test_a_fused_flag_that_was_off_stays_off_and_hooks_are_gone_after_a_failure():
    student = small_student("vit")
    layers, _ = attention_layers(student)
    layers[0].fused_attn, layers[1].fused_attn = False, True
    student.guide(range(student.depth))

    def fails(*_):
        raise RuntimeError("seen")

    with pytest.raises(RuntimeError, match="seen"), watch(student, fails):
        student(images_for(student, 1))
    assert [layer.fused_attn for layer in layers] == [False, True]
    student(images_for(student, 1))


def test_prefixes_join_where_the_models_have_them():
    counts = {
        case: [layout.prefix for *_, layout in seen_of(small_student(case), images_for(small_student(case), 1))]
        for case in ("vit", "registers", "distilled", "convit", "pvt", "pvt_v2", "cvt")
    }
    assert counts["vit"] == [1, 1] and counts["registers"] == [3, 3] and counts["distilled"] == [2, 2]
    assert counts["convit"] == [0, 0, 1] and counts["pvt"] == [0, 0, 0, 1] and counts["cvt"] == [0, 0, 1]
    assert set(counts["pvt_v2"]) == {0}


def test_performers_are_said_to_have_no_matrix():
    assert "no attention matrix" in remarks(small_student("t2t"))[0] and remarks(small_student("vit")) == []


def test_a_student_without_one_matrix_per_block_is_left_out_with_a_reason():
    student = small_student("vit")
    student.bare.blocks[1] = ParallelScalingBlock(24, 3).double()
    layers, reason = attention_layers(student)
    assert layers == [] and "1 of its 2 blocks" in reason
