"""Dense rollout against numbers made apart from it, and a student's own tokens' scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analysis_cases import images_for, small_student

from fastlg.analysis.dense import class_maps, token_rollout, token_scores
from fastlg.analysis.measure import measure


@pytest.mark.parametrize("case", ["rand", "life"])
def test_maps_of_classes_are_those_of_the_definition(case, shared):
    arrays = dict(np.load(shared / "systems" / "golden" / "rollout.npz"))
    own = {key.partition("/")[2]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith(case)}
    rolled = token_rollout(list(own["attn"].mean(dim=2)))
    soft, hard = class_maps(rolled, own["token_logits"][:, 1:])
    for got, want in (
        (rolled, "rollout"),
        (rolled[:, 0, 1:], "std_cls_map"),
        (rolled[:, 1:, 1:], "dense_token_maps"),
        (soft, "class_map_soft"),
        (hard, "class_map_hard"),
    ):
        torch.testing.assert_close(got, own[want], rtol=1e-10, atol=1e-12, msg=want)


@pytest.mark.parametrize(
    ("case", "has_them"), [("life", True), ("t2t", True), ("convit", False), ("pvt", False), ("poorvit", False)]
)
def test_a_students_maps_are_of_its_own_tokens_and_classes(case, has_them):
    """ConViT's class token joins late, PVT's grids differ, and PoorViT's head reads two tokens at once."""
    student = small_student(case)
    images = images_for(student, 2)
    found = measure(student, [(images, images[:0])], shown=2, class_names=list("abcd"), of_class="c")
    assert (found.dense is not None) == has_them and found.rollouts is not None
    assert any("--class c changes nothing" in note for note in found.notes) != has_them
    if not has_them:
        return
    assert found.dense.labels == ["c", "c"]
    student.guide([student.depth - 1])
    with torch.no_grad():
        logits, (tokens,) = student(images)
        scores = token_scores(student, tokens)
        count = scores.shape[1]
        by_hand = student.bare.head(student.bare.norm(tokens)[:, -count:])
    torch.testing.assert_close(scores, by_hand)
    means = found.dense.soft.flatten(1)
    assert means.shape == (2, count) and (means > 0).all() and (means.sum(1) < 1).all(), "the class token has the rest"
    each = measure(student, [(images, images[:0])], shown=2, class_names=list("abcd")).dense
    assert each.labels == ["abcd"[best] for best in logits.argmax(1).tolist()]
    assert measure(student, [(images, images[:0])], shown=2).dense is None
