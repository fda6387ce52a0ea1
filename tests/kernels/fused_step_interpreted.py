"""A guided student on fused blocks and AdamW in one launch, under Triton's interpreter, learns what it learns without.

Run by test_interpreted.py in a process of its own.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastlg.batch import Batch, Views
from fastlg.config import EngineConfig, GuidanceConfig, OptimConfig
from fastlg.engine.plain import PlainEngine
from fastlg.engine.precision import build_optimizer
from fastlg.models import Student
from fastlg.models.general.fused import use_fused_blocks, why_unfused
from fastlg.models.general.paths import draw_at_once
from fastlg.models.param_groups import param_groups
from fastlg.objective import GuidedStudent
from fastlg.teacher.online import Guide
from fastlg_kernels import blocks

CPU, STEPS = torch.device("cpu"), 20
TINY = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
LOSSES, WEIGHTS = 1e-5, 1e-4  # relative; absolute: the steps are of 1e-3


def stepped(is_fused: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(losses of the steps, the weights after them)."""
    torch.manual_seed(3)
    own = {"num_classes": 3, "image_size": 16, "blocks": [0, 1], "drop_path": 0.0, "init": "timm"}
    student = Student("vit_tiny_patch16_224", **own, model_args=TINY)
    student.draws = draw_at_once(student, CPU, torch.float32)
    if is_fused:
        use_fused_blocks(student)
    unit = GuidedStudent(student, [4, 6], GuidanceConfig()).train()
    optimizer = build_optimizer(param_groups(unit, 0.05), OptimConfig(lr=1e-3), in_one_launch=is_fused)
    if is_fused:
        optimizer.impl = "triton"
    generator = torch.Generator().manual_seed(4)
    maps = tuple(torch.randn(3, channels, 4, 4, generator=generator) for channels in (4, 6))
    engine = PlainEngine(unit, lambda *_: Guide(maps, torch.zeros(3, 3)), optimizer, device=CPU, dtype=torch.float32)
    images, ids = torch.randn(3, 3, 16, 16, generator=generator), torch.arange(3)
    views = Views(images, images, ids, torch.zeros(3, 4), ids.bool(), ids[:0], torch.zeros(0))
    batch = Batch(torch.zeros(3, 16, 16, 3, dtype=torch.uint8), ids, ids, torch.zeros(3, 4), ids.bool())
    losses = [engine.step(views, batch, 3).loss.item() for _ in range(STEPS)]
    return losses, unit.state_dict()


def test_twenty_guided_steps_are_those_of_the_unfused_student(monkeypatch):
    for name in ("short_attention", "add_layer_norm"):
        monkeypatch.setattr(blocks, name, partial(getattr(blocks, name), impl="triton"))
    (found, weights), (truth, wanted) = stepped(True), stepped(False)
    assert found == pytest.approx(truth, rel=LOSSES) and truth[0] > truth[-1]
    assert list(weights) == list(wanted)
    for name, value in wanted.items():
        if not name.endswith("qkv.bias"):  # softmax cancels the keys' bias: its gradient is rounding, scaled up by Adam
            torch.testing.assert_close(weights[name], value, rtol=0, atol=WEIGHTS, msg=f"{name}: {{}}".format)


def test_elsewhere_nothing_keeps_a_student_from_it():
    assert why_unfused(torch.nn.Linear(2, 2), CPU, torch.float32, EngineConfig()) == "", (
        "for there it is off whatever it is"
    )
