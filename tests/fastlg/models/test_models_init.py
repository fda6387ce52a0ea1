"""A student starts where the reference code starts: weights, drop path, LayerNorm eps; timm's own start is a choice."""

from __future__ import annotations

import json
import math

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from fastlg.models import CifarResNet, Student, resnet56
from fastlg.models.weights import reference_name

MODELS = {
    "deit/deit-ti_c100_ours": "deit_tiny_patch16_224",
    "convit/convit-ti_c100_ours": "convit_tiny",
    "pit/pit-ti_c100_ours": "pit_ti_224",
    "pvtv2/pvtv2-b0_c100_ours": "pvt_v2_b0",
    "t2t/t2t-7_c100_ours": "t2t_vit_7",
    "pvt/pvt-ti_c100_ours": "pvt_tiny",
    "cvt/cvt-13_c100_ours": "cvt_13",
    "resnet/r-56_c100": "resnet56",
}
STUDENTS = [name for name in MODELS.values() if name != "resnet56"]


def fresh(name: str, init: str = "reference") -> CifarResNet | Student:
    torch.manual_seed(5)
    return resnet56(100) if name == "resnet56" else Student(name, num_classes=100, image_size=224, init=init)


@pytest.fixture(scope="module")
def schedule(golden):
    return json.loads((golden / "schedule.json").read_text())


@pytest.mark.parametrize("run", MODELS)
def test_first_weights_have_the_statistics_of_the_reference(run, schedule):
    """Mean, standard deviation and extent of every tensor; two draws of n values differ by a few std / sqrt(n)."""
    wanted = schedule["init"]["init_statistics"][run]
    model = fresh(MODELS[run])
    model = getattr(model, "bare", model)
    for name, parameter in model.named_parameters():
        key = reference_name(model, name)
        shape, mean, std, extent = wanted.get(f"student_model.{key}", wanted.get(key))
        value = parameter.detach().double()
        assert list(value.shape) == shape, name
        # A truncated normal draws its bound, 100 standard deviations out, once in 2^24 values: on either side.
        if (at_bound := value.abs() == 2.0).any():
            assert at_bound.sum() == 1, name
            value = value[~at_bound]
        if extent == 2.0:
            std = math.sqrt(std**2 - extent**2 / math.prod(shape))
            extent = value.abs().max().item()
        if std == 0 or value.numel() < 16:  # constants, and ConViT's locality weights, are the same numbers
            assert value.mean().item() == pytest.approx(mean, abs=1e-7), name
            assert value.abs().max().item() == pytest.approx(extent, abs=1e-7), name
            continue
        noise = std / math.sqrt(value.numel())
        assert abs(value.mean().item() - mean) < 8 * noise, name
        assert abs(value.std().item() - std) < 8 * noise, name
        assert extent / 2 < value.abs().max().item() < extent * 2, name


def test_what_t2t_never_trains_has_the_statistics_of_the_reference(schedule):
    wanted = schedule["init"]["init_statistics"]["t2t/t2t-7_c100_ours"]
    model = fresh("t2t_vit_7").bare
    buffers = dict(model.named_buffers())
    assert len(buffers) == 3
    for name, value in buffers.items():
        shape, mean, std, extent = wanted[f"student_model.{reference_name(model, name)}"]
        assert list(value.shape) == shape
        noise = 1e-5 if name == "pos_embed" else 8 * std / math.sqrt(value.numel())
        assert value.double().mean().item() == pytest.approx(mean, abs=noise), name
        assert value.double().std().item() == pytest.approx(std, abs=noise), name
        assert extent / 2 < value.abs().max().item() < extent * 2, name


def test_deit_head_starts_at_zero_and_timms_does_not():
    deit, timms = fresh("deit_tiny_patch16_224").bare, fresh("deit_tiny_patch16_224", init="timm").bare
    assert not deit.head.weight.any() and not deit.head.bias.any()
    assert timms.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert deit.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert timms.cls_token.abs().max() < 1e-5


@pytest.mark.parametrize("name", STUDENTS)
def test_init_timm_is_exactly_timms(name):
    torch.manual_seed(5)
    plain = timm.create_model(name, num_classes=100, drop_path_rate=0.1)
    ours = fresh(name, init="timm").bare
    for key, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    assert drop_rates(ours) == drop_rates(plain)
    assert eps_of(ours) == eps_of(plain)


@pytest.mark.parametrize("name", STUDENTS)
def test_every_layer_norm_has_the_references_eps(name):
    assert eps_of(fresh(name).bare) == {1e-5 if name == "cvt_13" else 1e-6}


def test_timms_pvt_v2_would_have_another_eps():
    assert eps_of(fresh("pvt_v2_b0", init="timm").bare) == {1e-5, 1e-6}


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "convit_tiny", "pvt_v2_b0", "t2t_vit_7", "pvt_tiny"])
def test_drop_path_rises_to_its_rate_at_the_last_block(name):
    rates = drop_rates(fresh(name).bare)
    assert rates == pytest.approx(torch.linspace(0, 0.1, len(rates)).tolist(), abs=1e-7)


def test_drop_path_of_pit_stops_one_block_short_as_the_references():
    assert drop_rates(fresh("pit_ti_224").bare) == pytest.approx([0.1 * block / 12 for block in range(12)])


def test_cvt_drops_paths_in_its_last_stage_alone_as_the_references():
    rates = drop_rates(fresh("cvt_13").bare)
    assert rates == pytest.approx([0.0] * 3 + torch.linspace(0, 0.1, 10).tolist(), abs=1e-7)


def test_drop_path_zero_drops_nothing():
    student = Student("pit_ti_224", num_classes=3, image_size=64, drop_path=0.0, model_args={"depth": [1, 1, 1]})
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(student.train()(x)[0], student.eval()(x)[0])


def drop_rates(model: nn.Module) -> list[float]:
    """One rate per block; both residual branches must agree."""
    rates = []
    for name, block in model.named_modules():
        if name.split(".")[-2:-1] == ["blocks"]:
            paths = [m.drop_prob if isinstance(m, DropPath) else 0.0 for n, m in block.named_children() if "path" in n]
            assert len(set(paths)) == 1, name
            rates.append(paths[0])
    return rates


def eps_of(model: nn.Module) -> set[float]:
    return {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
