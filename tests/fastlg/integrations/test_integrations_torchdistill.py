"""The torchdistill swap trains offline: wrappers and criterion by their names in its configuration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from integration_cases import BLOCKS, one_process, small_batch, small_vit, torchdistill_box, torchdistill_config
from torch import nn

from fastlg.models.resnet_cifar import resnet20
from fastlg_kernels import guidance_loss

pytest.importorskip("torchdistill", reason="torchdistill is not installed")


def guided_config() -> dict:
    import fastlg.integrations.torchdistill  # noqa: F401  registers the names

    stages = [f"teacher_model.stages.{k}" for k in range(3)]
    blocks = [f"student_model.blocks.{k}" for k in BLOCKS]
    projections = {"student_dims": [24] * 3, "teacher_dims": [16, 32, 64]}
    guidance = {"student_paths": blocks, "teacher_paths": stages, "grids": [(6, 6)] * 3}
    config = torchdistill_config()
    config["teacher"] |= {
        "auxiliary_model_wrapper": {"key": "LocalityGuidanceTeacher", "kwargs": {"size": 32}},
        "forward_hook": {"output": stages},
    }
    config["student"] |= {
        "auxiliary_model_wrapper": {"key": "LocalityGuidanceStudent", "kwargs": projections},
        "forward_hook": {"output": [*blocks, "guidance"]},
    }
    term = {"criterion": {"key": "LocalityGuidanceLoss", "kwargs": guidance}, "weight": 2.5}
    config["criterion"]["kwargs"]["sub_terms"]["guidance"] = term
    return config


def test_torchdistill_trains_the_projections():
    torch.manual_seed(0)
    teacher, student = resnet20(5).eval(), small_vit()
    box = torchdistill_box(guided_config(), teacher, student, *small_batch())
    layers = box.student_model.guidance.layers
    before = [parameter.clone() for parameter in layers.parameters()]
    fixed = [parameter.clone() for parameter in teacher.parameters()]
    losses = []
    for _ in range(5):
        for images, targets, _ in box.train_data_loader:
            loss = box.forward_process(images, targets, None)
            if not losses:
                first_images = images
                expected = expected_first_loss(student, teacher, layers, images, targets)
            box.post_forward_process(loss)
            losses.append(loss.item())
    assert first_images.shape == (8, 3, 48, 48)
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, layers.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(fixed, teacher.parameters(), strict=True))
    small_vit().load_state_dict(student.state_dict())


@pytest.mark.parametrize("find_unused_parameters", [False, True])
def test_torchdistill_wrapper_trains_under_ddp(tmp_path, find_unused_parameters):
    from fastlg.integrations.torchdistill import LocalityGuidanceStudent

    torch.manual_seed(0)
    teacher, tokens = torch.randn(2, 3, 8, 8), torch.randn(2, 16, 6)
    with one_process(tmp_path):
        placement = torch.device("cpu"), None, True, find_unused_parameters
        wrapper = LocalityGuidanceStudent(nn.Linear(6, 5), [5], [3], *placement)
        hooked = {}
        wrapper.guidance.register_forward_hook(lambda module, args, out: hooked.update(projections=out))
        optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1)
        layer = wrapper.guidance.module.layers[0]
        for _ in range(2):
            before = [parameter.detach().clone().requires_grad_() for parameter in (layer.weight, layer.bias)]
            students = wrapper(tokens)
            wrapper.secondary_forward({})
            optimizer.zero_grad()
            guidance_loss(students, teacher, *hooked["projections"]).backward()
            optimizer.step()
            maps = F.conv2d(students.detach().mT.unflatten(2, (4, 4)), before[0][..., None, None], before[1])
            F.mse_loss(F.interpolate(maps, (8, 8), mode="bilinear"), teacher).backward()
            for old, new in zip(before, (layer.weight, layer.bias), strict=True):
                torch.testing.assert_close(new, old - 0.1 * old.grad)
                assert not torch.equal(new, old)


@pytest.mark.parametrize("distributed", [False, True])
def test_what_torchdistill_saves_of_the_wrapper_is_the_plain_student(tmp_path, distributed):
    from torchdistill.common.main_util import load_ckpt, save_ckpt

    from fastlg.integrations.torchdistill import LocalityGuidanceStudent

    torch.manual_seed(0)
    student, file = small_vit(), str(tmp_path / "ckpt.pt")
    with one_process(tmp_path):
        wrapper = LocalityGuidanceStudent(student, [24], [16], torch.device("cpu"), None, distributed)
        optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1)
        save_ckpt(wrapper, optimizer, None, 0.0, None, file)
        fresh, other = small_vit(), small_vit()
        again = LocalityGuidanceStudent(other, [24], [16], torch.device("cpu"), None, distributed)
        for model in (fresh, again):  # as torchdistill's runner does after training, and when it resumes
            load_ckpt(file, model=model, strict=True)
    for loaded in (fresh, other):
        assert all(torch.equal(a, b) for a, b in zip(student.parameters(), loaded.parameters(), strict=True))
    assert wrapper.state_dict().keys() == small_vit().state_dict().keys()


def expected_first_loss(student, teacher, layers, images, targets) -> float:
    with torch.no_grad():
        final, tokens = student.forward_intermediates(images, indices=BLOCKS, output_fmt="NLC", norm=False)
        _, maps = teacher(F.interpolate(images, 32, mode="bilinear", align_corners=False))
        guidance = guidance_loss(tokens, maps, [p.weight for p in layers], [p.bias for p in layers])
        return (F.cross_entropy(student.forward_head(final), targets) + 2.5 * guidance).item()
