"""The ready swaps train offline: the loss falls, projections move, the student stays a plain timm model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from fastlg.models.resnet_cifar import resnet20
from fastlg_kernels import GuidanceLoss, guidance_loss

README = Path(__file__).resolve().parents[2] / "kernels" / "README.md"
BLOCKS = [0, 1, 3]


def small_vit(**options) -> nn.Module:
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **sizes, **options)


def small_batch(size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, size, size, generator=generator), torch.arange(8) % 5


def timm_task(student=None, teacher=None, blocks=BLOCKS, size=48, **options):
    from fastlg.integrations.timm_task import LocalityGuidanceTask

    torch.manual_seed(0)
    student = student or small_vit()
    return LocalityGuidanceTask(student, teacher or resnet20(5), blocks, input_size=(3, size, size), **options)


def train(task, steps: int = 6, lr: float = 1e-2, size: int = 48) -> list[float]:
    images, targets = small_batch(size)
    optimizer = torch.optim.AdamW(task.get_trainable_module().parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        result = task(images, targets)
        result["loss"].backward()
        optimizer.step()
        losses.append(result["guidance_loss"].item())
    return losses


def test_timm_task_trains_student_and_projections():
    task = timm_task()
    before = {name: value.clone() for name, value in task.named_parameters()}
    losses = train(task)
    assert losses[-1] < 0.9 * losses[0]
    moved = {name for name, value in task.named_parameters() if not torch.equal(value, before[name])}
    assert {name for name in moved if "guidance" in name} == {
        f"trainable_module.guidance.projections.{k}.{kind}" for k in range(3) for kind in ("weight", "bias")
    }
    assert not any(name.startswith("teacher") for name in moved)
    assert any(name.startswith("trainable_module.student.blocks.0") for name in moved)


def test_timm_task_computes_the_loss_it_says():
    task = timm_task(weight=3.0).eval()
    images, targets = small_batch()
    result = task(images, targets)
    student, guidance = task.trainable_module.student, task.trainable_module.guidance
    _, maps = task.teacher(F.interpolate(images, 32, mode="bilinear", align_corners=False))
    final, tokens = student.forward_intermediates(images, indices=BLOCKS, output_fmt="NLC", norm=False)
    expected = guidance(tokens, maps)
    torch.testing.assert_close(result["guidance_loss"], expected)
    torch.testing.assert_close(result["output"], student(images))
    torch.testing.assert_close(result["loss"], F.cross_entropy(student(images), targets) + 3 * expected)


def test_timm_task_checkpoints_a_plain_student_and_its_projections():
    task = timm_task()
    train(task, 2)
    state = task.get_checkpoint_state()
    small_vit().load_state_dict(state["state_dict"])  # plain timm
    other = timm_task()
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    for ours, theirs in zip(task.eval().parameters(), other.eval().parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert train(task, 1) == train(other, 1)


def test_timm_task_guides_pyramid_students_with_a_timm_teacher():
    teacher = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2), pretrained=False)
    student = timm.create_model("pvt_v2_b0", num_classes=5, embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2))
    task = timm_task(student, teacher, blocks=[0, 1], size=64, teacher_size=None)
    losses = train(task, 4, size=64)
    assert losses[-1] < losses[0]


def test_timm_task_keeps_an_average_and_names_what_is_wrong():
    task = timm_task()
    task.setup_ema(decay=0.5)
    train(task, 1)
    task.update_ema()
    assert isinstance(task.get_eval_model(ema=True), type(task.get_eval_model()))
    assert set(task.get_checkpoint_state(ema=True)) == {"state_dict_ema", "task_state_ema"}
    assert "student.pos_embed" in task.trainable_module.no_weight_decay()
    assert task.trainable_module.group_matcher()("guidance.projections.0.weight") > 0
    with pytest.raises(ValueError, match="2 guided blocks, but the teacher gives 3 maps"):
        timm_task(blocks=[0, 1])


def test_timm_task_compiles():
    task = timm_task()
    task.compile(backend="aot_eager")
    losses = train(task, 3)
    assert losses[-1] < losses[0]
    assert set(task.get_task_state()["guidance"]) == set(timm_task().get_task_state()["guidance"])


def torchdistill_box(teacher: nn.Module, student: nn.Module):
    distillation = pytest.importorskip("torchdistill.core.distillation")
    import fastlg.integrations.torchdistill  # noqa: F401  registers the names

    stages = [f"teacher_model.stages.{k}" for k in range(3)]
    blocks = [f"student_model.blocks.{k}" for k in BLOCKS]
    images, targets = small_batch()
    dataset = [(image, int(target)) for image, target in zip(images, targets, strict=True)]
    cross_entropy = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
                "target": {"uses_label": True},
            },
        },
        "weight": 1.0,
    }
    guidance = {"student_paths": blocks, "teacher_paths": stages, "grids": [(6, 6)] * 3}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.SequentialSampler},
            "kwargs": {"batch_size": 8, "num_workers": 0},
        },
        "val_data_loader": {},
        "teacher": {
            "requires_grad": False,
            "auxiliary_model_wrapper": {"key": "LocalityGuidanceTeacher", "kwargs": {"size": 32}},
            "forward_hook": {"output": stages},
            "forward_proc": "forward_batch_only",
        },
        "student": {
            "auxiliary_model_wrapper": {
                "key": "LocalityGuidanceStudent",
                "kwargs": {"student_dims": [24] * 3, "teacher_dims": [16, 32, 64]},
            },
            "forward_hook": {"output": [*blocks, "guidance"]},
            "forward_proc": "forward_batch_only",
        },
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-2}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "ce": cross_entropy,
                    "guidance": {"criterion": {"key": "LocalityGuidanceLoss", "kwargs": guidance}, "weight": 2.5},
                }
            },
        },
    }
    cpu = torch.device("cpu")
    return distillation.get_distillation_box(teacher, student, {"train": dataset}, config, cpu, None, False, 1)


def test_torchdistill_trains_the_projections():
    torch.manual_seed(0)
    teacher, student = resnet20(5).eval(), small_vit()
    box = torchdistill_box(teacher, student)
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


def expected_first_loss(student, teacher, layers, images, targets) -> float:
    with torch.no_grad():
        final, tokens = student.forward_intermediates(images, indices=BLOCKS, output_fmt="NLC", norm=False)
        _, maps = teacher(F.interpolate(images, 32, mode="bilinear", align_corners=False))
        guidance = guidance_loss(tokens, maps, [p.weight for p in layers], [p.bias for p in layers])
        return (F.cross_entropy(student.forward_head(final), targets) + 2.5 * guidance).item()


def readme_examples() -> dict[str, str]:
    found = re.findall(r"^### ([^\n]+)\n.*?^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M)
    return {title.strip(): code for title, code in found}


def test_readme_examples_are_short():
    examples = readme_examples()
    assert {"Plain PyTorch", "timm", "torchdistill", "Kernel Hub"} <= set(examples)
    for title, code in examples.items():
        assert len([line for line in code.splitlines() if line.strip()]) <= 10, title


def test_readme_example_for_plain_pytorch_runs():
    student, teacher = small_vit(), resnet20(5).eval()
    images, targets = small_batch()
    scope = {"student": student, "teacher": teacher, "loader": [(images, targets)] * 3}
    scope |= {"torch": torch, "F": F, "GuidanceLoss": GuidanceLoss}
    exec(compile(readme_examples()["Plain PyTorch"], str(README), "exec"), scope)
    assert scope["guidance"].projections[0].weight.grad.abs().sum() > 0


def test_readme_example_for_timm_runs():
    images, targets = small_batch(224)
    student = timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, embed_dim=24, depth=12, num_heads=2, pretrained=False
    )
    scope = {"torch": torch, "student": student, "teacher": resnet20(5), "loader": [(images[:2], targets[:2])]}
    exec(compile(readme_examples()["timm"], str(README), "exec"), scope)
    assert scope["task"].trainable_module.guidance.projections[0].weight.grad.abs().sum() > 0
