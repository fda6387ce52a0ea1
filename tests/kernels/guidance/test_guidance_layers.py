"""The module that owns the projections, the parameter-free transforms, and logit distillation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from guidance_truth import GOLDEN_CASES, draw, golden_inputs, golden_token_grad, relative, truth

from fastlg_kernels import GuidanceLoss, distillation_loss


def test_module_is_the_function_with_its_own_parameters():
    inputs = draw(2, [((4, 6), 5, 3, (8, 7)), ((3, 3), 4, 2, (2, 2))], torch.float64, prefix=1)
    module = GuidanceLoss([5, 4], [3, 2], grids=inputs.grids, reduction="sum_channels").double()
    names = [f"projections.{k}.{name}" for k in (0, 1) for name in ("weight", "bias")]
    assert [name for name, _ in module.named_parameters()] == names
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    assert shapes == [(3, 5), (3,), (2, 4), (2,)]
    projections = [p.weight for p in module.projections], [p.bias for p in module.projections]
    expected, expected_grads = truth(inputs._replace(weights=projections[0], biases=projections[1]), "sum_channels")
    loss = module(inputs.students, inputs.teachers)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    leaves = [*inputs.students, *projections[0], *projections[1]]
    for leaf, correct in zip(leaves, expected_grads, strict=True):
        assert relative(leaf.grad, correct) < 1e-12


def test_projections_start_uniform_within_one_over_root_channels():
    module = GuidanceLoss([192], [512])
    for values in (module.projections[0].weight, module.projections[0].bias):
        bound = 1 / math.sqrt(192)
        assert values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_module_without_bias_and_with_one_tensor():
    module = GuidanceLoss([5], [3], grids=[(4, 6)], bias=False)
    inputs = draw(2, [((4, 6), 5, 3, (8, 7))], prefix=1)
    inputs = inputs._replace(weights=[module.projections[0].weight], biases=[None])
    assert module(inputs.students[0], inputs.teachers[0]).item() == pytest.approx(truth(inputs)[0], rel=1e-5)
    assert len(list(module.parameters())) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("transform", ["attention", "similarity"])
@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_other_transforms_are_the_references(golden, case, transform, dtype):
    inputs, numbers = golden_inputs(golden, case, dtype)
    dims = [t.shape[2] for t in inputs.students], [t.shape[1] for t in inputs.teachers]
    module = GuidanceLoss(*dims, grids=inputs.grids, transform=transform)
    assert not list(module.parameters())
    loss = module(inputs.students, inputs.teachers)
    (loss * 3).backward()
    exact = dtype == torch.float64
    expected = float(numbers[f"{transform}_total_f64"])
    assert loss.item() == pytest.approx(expected, rel=1e-12 if exact else 1e-6, abs=1e-30)
    for index, student in enumerate(inputs.students):
        own = float(numbers[f"p{index}_{transform}_gtok_f32_relerr"])
        for kind, ours, correct, stored in golden_token_grad(numbers, index, transform, student.grad / 3):
            limit = (1e-7 if stored == torch.float32 else 1e-11) if exact else 5 * own + 1e-6
            limit *= 100 if kind == "_channel_sum" else 1  # sums that nearly cancel
            assert (ours - correct.double()).norm() <= limit * max(correct.double().norm(), 1e-12), (index, kind)


def test_transforms_take_maps_and_prefix_tokens_alike():
    tokens, teacher = torch.randn(3, 1 + 12, 4), torch.randn(3, 5, 6, 4)
    maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 4))
    for transform in ("attention", "similarity"):
        module = GuidanceLoss([4], [5], grids=[(3, 4)], transform=transform)
        torch.testing.assert_close(module(tokens, teacher), module(maps, teacher))
        assert module(tokens.bfloat16(), teacher.half()).dtype == torch.float32


def test_wrong_module_options_are_refused():
    with pytest.raises(ValueError, match="2 student_dims, 1 teacher_dims"):
        GuidanceLoss([1, 2], [3])
    with pytest.raises(ValueError, match="'cosine'.*'linear', 'attention', 'similarity'"):
        GuidanceLoss([1], [3], transform="cosine")
    with pytest.raises(ValueError, match="'sum'.*'mean', 'sum_channels'"):
        GuidanceLoss([1], [3], reduction="sum")
    with pytest.raises(ValueError, match="'cuda'.*'auto', 'triton', 'torch'"):
        GuidanceLoss([1], [3], impl="cuda")
    with pytest.raises(TypeError, match="student_dims is 4; give a sequence"):
        GuidanceLoss(4, 3)


@pytest.mark.parametrize("transform", ["attention", "similarity"])
def test_transforms_refuse_what_the_projection_refuses(transform):
    module = GuidanceLoss([4], [3], transform=transform)
    tokens, maps = torch.randn(2, 16, 4), torch.randn(2, 3, 8, 8)
    for students, teachers, message in (
        (tokens[:1], maps, "1 samples, teachers.* 2"),
        (tokens[:0], maps[:0], r"students\[0\] is empty"),
        (tokens, maps.clone().requires_grad_(), r"\.detach\(\)"),
        ([tokens] * 3, [maps] * 3, "3 students and 3 teachers for a GuidanceLoss of 1 pairs"),
        ([tokens], [maps] * 2, "1 students and 2 teachers"),
    ):
        with pytest.raises(ValueError, match=message):
            module(students, teachers)
    with pytest.raises(TypeError, match=r"students\[0\] is torch.int64"):
        module(tokens.long(), maps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_distillation_is_the_references(golden, dtype):
    with np.load(golden / "guidance_logits.npz") as archive:
        numbers = dict(archive)
    checked = 0
    for key in numbers:
        if not key.endswith("_loss_f64"):
            continue
        case, kind, temperature = key.removesuffix("_loss_f64").split("_")
        student = torch.tensor(numbers[f"{case}_logits_s"]).to(dtype).requires_grad_()
        teacher = torch.tensor(numbers[f"{case}_logits_t"]).to(dtype)
        loss = distillation_loss(student, teacher, kind, float(temperature[1:]))
        loss.backward()
        exact = dtype == torch.float64
        assert loss.item() == pytest.approx(float(numbers[key]), rel=1e-12 if exact else 5e-6)
        expected = torch.as_tensor(numbers[key.replace("loss_f64", "grad")])
        assert relative(student.grad, expected) < (1e-11 if exact else 1e-5)
        checked += 1
    assert checked == 24


def test_distillation_refuses_what_does_not_fit():
    logits = torch.randn(2, 5)
    for arguments, message in (
        ((logits, logits, "medium"), "'medium'.*'soft' or 'hard'"),
        ((logits, logits, "soft", 0.0), "temperature is 0.0"),
        ((logits, logits[:, :4]), r"\(2, 5\) and \(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            distillation_loss(*arguments)
    teacher = logits.clone().requires_grad_()
    distillation_loss(logits.clone().requires_grad_(), teacher).backward()
    assert teacher.grad is None
