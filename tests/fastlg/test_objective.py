"""Every loss of the method adds up as written, checked against float64 by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastlg.config import DrlocConfig, GuidanceConfig
from fastlg.models.families import Place
from fastlg.models.vits.token_model import BlockShape
from fastlg.objective import GuidedStudent
from fastlg.teacher.online import Guide

N, K, L, C = 5, 7, 17, 12  # 4 x 4 grid behind one class token


class Student(nn.Module):
    """A stand-in with the contract of models/student.py."""

    grids, dims, blocks = [(4, 4), (4, 4)], [C, C], [0, 1]

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, L * C)
        self.head = nn.Linear(C, K)

    def forward(self, images):
        tokens = self.embed(images).unflatten(1, (L, C))
        logits = self.head(tokens[:, 0])
        logits = (logits, self.head(tokens[:, 1])) if self.is_distilled else logits
        return logits, [tokens, tokens.sin(), *([tokens.cos()] if self.is_located else [])]

    is_distilled = is_located = False

    def distil(self):
        self.is_distilled = True

    def localise(self):
        self.is_located = True
        return Place(2, BlockShape((4, 4), C), False, None)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    guide = Guide((torch.randn(N, 3, 8, 8), torch.randn(N, 5, 4, 4)), torch.randn(N, K))
    return Student(), torch.randn(N, 6), torch.randint(0, K, (N,)), guide


def reference_guidance(unit, features, maps) -> torch.Tensor:
    """Project, resize, mean of squares; float64 and F.interpolate, as the reference code computes it."""
    total = torch.zeros((), dtype=torch.float64)
    for tokens, teacher, projection in zip(features, maps, unit.guidance.projections, strict=True):
        student = tokens[:, 1:].double().transpose(1, 2).unflatten(2, (4, 4))
        weight, bias = projection.weight.double().flatten(1), projection.bias.double()
        projected = torch.einsum("nchw,dc->ndhw", student, weight) + bias[:, None, None]
        teacher = teacher.double()
        size = tuple(max(a, b) for a, b in zip(projected.shape[2:], teacher.shape[2:], strict=True))
        projected, teacher = (F.interpolate(m, size, mode="bilinear") for m in (projected, teacher))
        total += (projected - teacher).square().mean()
    return total


@pytest.mark.parametrize("logits", ["none", "soft", "hard"])
def test_total_is_classification_distillation_and_guidance_together(parts, logits):
    student, images, labels, guide = parts
    config = GuidanceConfig(weight=1.7, logits=logits, logits_weight=0.3, temperature=2.0)
    unit = GuidedStudent(student, [3, 5], config)
    out = unit(images, labels, guide)
    scores, features = student(images)
    cls = F.cross_entropy(scores.double(), labels)
    guidance = reference_guidance(unit, features, guide.maps)
    s, t = scores.double(), guide.logits.double()
    soft = (t / 2).softmax(1) * ((t / 2).log_softmax(1) - (s / 2).log_softmax(1))
    part = {"none": cls, "soft": soft.sum() / (N * K) * 4, "hard": F.cross_entropy(s, t.argmax(1))}[logits]
    weight = 0.0 if logits == "none" else 0.3
    expected = (1 - weight) * cls + weight * part + 1.7 * guidance
    assert out.loss.double().item() == pytest.approx(expected.item(), rel=1e-6)
    assert out.loss_cls.item() == pytest.approx(cls.item(), rel=1e-6)
    assert out.loss_guidance.item() == pytest.approx(guidance.item(), rel=1e-6)
    assert out.correct.item() == (scores.argmax(1) == labels).sum().item() and out.count.item() == N


@pytest.mark.parametrize("is_mixed", [False, True])
def test_smoothed_targets_spread_their_share_evenly_over_all_classes(parts, is_mixed):
    student, images, labels, guide = parts
    targets = F.one_hot(labels, K).double()
    if is_mixed:
        targets = 0.7 * targets + 0.3 * targets.flip(0)
    given = targets.float() if is_mixed else labels
    out = GuidedStudent(student, [3, 5], GuidanceConfig(weight=0.5), label_smoothing=0.2)(images, given, guide)
    smoothed = 0.8 * targets + 0.2 / K
    cls = -(smoothed * student(images)[0].double().log_softmax(1)).sum(1).mean()
    assert out.loss_cls.item() == pytest.approx(cls.item(), rel=1e-6)
    assert (out.loss - 0.5 * out.loss_guidance).item() == pytest.approx(cls.item(), rel=1e-6)


def test_only_student_and_projections_learn_and_both_do(parts):
    student, images, labels, guide = parts
    unit = GuidedStudent(student, [3, 5], GuidanceConfig())
    unit(images, labels, guide).loss.backward()
    for name, parameter in unit.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert {name.split(".")[0] for name, _ in unit.named_parameters()} == {"student", "guidance"}


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("logits", ["none", "soft"])
def test_both_teacher_losses_shrink_to_the_share_that_is_left_without_a_compilation_anew(parts, logits, backend):
    student, images, labels, guide = parts
    unit = GuidedStudent(student, [3, 5], GuidanceConfig(weight=1.7, logits=logits, logits_weight=0.4))
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    run = torch.compile(unit, backend=backend, dynamic=False) if backend else unit
    whole = unit(images, labels, guide)
    cls, guidance = whole.loss_cls.item(), whole.loss_guidance.item()
    distilled = (whole.loss.item() - 1.7 * guidance - 0.6 * cls) / 0.4
    for share in (1.0, 0.5, 0.1, 0.0):
        unit.set_share(share)
        weight = 0.4 * share if logits == "soft" else 0.0
        wanted = (1 - weight) * cls + weight * distilled + 1.7 * share * guidance
        assert run(images, labels, guide).loss.item() == pytest.approx(wanted, rel=1e-6)
    assert counted["stats"]["unique_graphs"] == (1 if backend else 0)


def test_a_teacher_that_rests_is_a_share_of_nothing_and_every_parameter_has_its_gradient(parts):
    student, images, labels, guide = parts
    gradients = []
    for seen in (guide, None):
        unit = GuidedStudent(student, [3, 5], GuidanceConfig())
        unit.zero_grad()
        unit.set_share(0.0)
        unit(images, labels, seen).loss.backward()
        assert all(parameter.grad is not None for parameter in unit.parameters())
        assert all(not parameter.grad.any() for parameter in unit.guidance.parameters())
        gradients.append([parameter.grad.clone() for parameter in student.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_without_a_teacher_it_is_plain_classification(parts):
    student, images, labels, _ = parts
    out = GuidedStudent(student, [], GuidanceConfig())(images, labels)
    assert out.loss.item() == pytest.approx(F.cross_entropy(student(images)[0], labels).item())
    assert out.loss_guidance.item() == 0


@pytest.mark.parametrize("logits", ["soft", "hard"])
def test_the_distillation_token_answers_to_the_teacher_and_the_class_token_to_the_labels(parts, logits):
    student, images, labels, guide = parts
    config = GuidanceConfig(weight=1.7, logits=logits, logits_weight=0.3, logits_token="distillation", temperature=2.0)
    unit = GuidedStudent(student, [3, 5], config)
    out = unit(images, labels, guide)
    (first, second), features = student(images)
    s, t = second.double(), guide.logits.double()
    soft = ((t / 2).softmax(1) * ((t / 2).log_softmax(1) - (s / 2).log_softmax(1))).sum() / (N * K) * 4
    distilled = soft if logits == "soft" else F.cross_entropy(s, t.argmax(1))
    cls, guidance = F.cross_entropy(first.double(), labels), reference_guidance(unit, features, guide.maps)
    assert out.loss.item() == pytest.approx((0.7 * cls + 0.3 * distilled + 1.7 * guidance).item(), rel=1e-6)
    assert out.loss_cls.item() == pytest.approx(cls.item(), rel=1e-6)
    hits = ((first + second) / 2).argmax(1) == labels
    assert out.correct.item() == hits.sum().item(), "both tokens together, as in evaluation"


@pytest.mark.parametrize("guided", [True, False])
def test_localisation_adds_what_each_sample_weighs_beside_guidance_and_alone(parts, guided):
    student, images, labels, guide = parts
    unit = GuidedStudent(student, [3, 5] if guided else [], GuidanceConfig(), DrlocConfig(weight=9.0, hidden=8))
    pairs, weight = torch.randint(4, (N, 2, 6, 2)), torch.rand(N)
    out = unit(images, labels, guide if guided else None, (pairs, weight))
    logits, (_, _, located) = student(images)
    total, each = F.cross_entropy(logits, labels), []
    for tokens, (firsts, seconds) in zip(located, pairs, strict=True):
        maps = tokens[1:].unflatten(0, (4, 4))
        ends = [torch.cat([maps[tuple(a)], maps[tuple(b)]]) for a, b in zip(firsts, seconds, strict=True)]
        answers = unit.drloc.heads[0](unit.drloc.hidden(torch.stack(ends)))
        each.append((answers - (firsts - seconds).abs()).abs().mean())
    each = torch.stack(each)
    assert out.loss_drloc.item() == pytest.approx(each.mean().item(), rel=1e-5)
    guidance = 2.5 * out.loss_guidance if guided else 0
    assert out.loss.item() == pytest.approx((total + guidance + (weight * each).mean()).item(), rel=1e-5)
    out.loss.backward()
    for name, parameter in unit.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
