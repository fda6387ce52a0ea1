"""Gradient checkpointing changes memory and time, and no bit of a gradient, whatever is drawn on the way."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from refusals import refused
from torch import nn

from fastlg.errors import UserError
from fastlg.models import Student, resnet20
from fastlg.models.general.recompute import recompute_blocks

TINY = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
CASES = {  # name -> (image size, arguments, guided features, blocks that are computed again)
    "vit_tiny_patch16_224": (32, {**TINY, "proj_drop_rate": 0.2}, [0, 2], 3),
    "t2t_vit_7": (32, {"depth": 2, "drop_rate": 0.2}, [0, 1], 2),
    "pvt_v2_b0": (32, {}, [0, 7], 8),
    "convit_tiny": (32, {"patch_size": 8, "depth": 3, "local_up_to_layer": 2}, [0, 2], 3),
    "cvt_13": (32, {"embed_dims": [8, 12, 24], "depths": [1, 2, 2]}, [0, 4], 5),  # batch norms in its blocks
    "dhvt_tiny_cifar_patch4": (16, {"embed_dim": 24, "depth": 2, "num_heads": 3}, [0, 1], 2),
    "swin_tiny_patch4_window7_224": (56, {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}, [0], 4),
}


def gradients(student: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    logits, tokens = student(images)
    (logits.square().sum() + sum(own.square().mean() for own in tokens)).backward()
    return {name: p.grad for name, p in student.named_parameters()}


def counted(student: nn.Module) -> list[int]:
    """Grows by one whenever the first layer inside a block runs."""
    seen = []
    for name, module in student.named_modules():
        if name.endswith("norm1") and "blocks" in name:
            module.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_bits_and_blocks_run_twice(name):
    size, args, blocks, count = CASES[name]
    torch.manual_seed(1)
    plain = Student(name, num_classes=3, image_size=size, blocks=blocks, drop_path=0.4, model_args=args).train()
    student, images = copy.deepcopy(plain), torch.randn(4, 3, size, size)
    recompute_blocks(student.bare, name)
    seen = counted(student)
    found, truth = gradients(student, images), gradients(plain, images)
    assert len(seen) == 2 * count
    assert all(torch.equal(truth[key], own) for key, own in found.items()) and found.keys() == truth.keys()
    assert list(student.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(student.state_dict()[key], value), f"{key}: statistics are those of one pass"
    seen.clear()
    with torch.no_grad():
        student.eval()(images)
    assert len(seen) == count
    assert len(copy.deepcopy(student).state_dict()) == len(plain.state_dict())


def test_compiled_it_is_one_graph_of_the_same_gradients():
    """By a backend that runs the captured graphs as they are: generating code for them takes a minute."""
    own = {"num_classes": 3, "image_size": 32, "blocks": [0, 1], "drop_path": 0.0, "model_args": {**TINY, "depth": 2}}
    plain, images = Student("vit_tiny_patch16_224", **own).train(), torch.randn(2, 3, 32, 32)
    student = copy.deepcopy(plain)
    recompute_blocks(student.bare, "it")
    truth = gradients(plain, images)
    torch.manual_seed(11)
    logits, tokens = torch.compile(student, backend="aot_eager", fullgraph=True)(images)
    (logits.square().sum() + sum(one.square().mean() for one in tokens)).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, truth[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("name", "more"), [("resnet18", {}), ("cvt_13", {"is_compiled": True})], ids=["timm's own switch", "compiled"]
)
def test_batch_norms_that_would_count_twice_are_refused(name, more):
    with pytest.raises(UserError, match=r"batch norms would count every batch twice.*engine\.checkpointing=false"):
        recompute_blocks(timm.create_model(name, num_classes=3), name, **more)


@pytest.mark.parametrize("model", [resnet20(3), nn.Linear(2, 2)], ids=["resnet20", "own"])
def test_a_network_without_blocks_is_refused(model):
    with pytest.raises(UserError, match=r"engine\.checkpointing=false"):
        recompute_blocks(model, "it")


def test_the_command_line_refuses_it_before_anything_is_trained(project, fastlg):
    own = ("model.name=resnet20", "model.args={}", "model.blocks=auto", "teacher=null", "engine.checkpointing=true")
    refused(fastlg("train", "student.yaml", *own), "engine.checkpointing is true", "resnet20")
    refused(fastlg("train", "student.yaml", "engine.checkpointing=true", "engine.graph=true"), "engine.graph is true")
