"""engine.residual=bf16: tokens between blocks, and what guidance reads, are bf16; fp32 leaves them as they were."""

from __future__ import annotations

import pytest
import torch
from reach import ALONE, config_of, first_batch

from fastlg.assemble import check_buildable
from fastlg.data.stores import open_stores
from fastlg.engine.precision import residual_dtype
from fastlg.errors import UserError
from fastlg.models import Student
from fastlg.models.general.recompute import BLOCK
from fastlg.models.general.residual import round_residual
from fastlg.run.folder import refuse_other

TINY = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
FAMILIES = {  # name -> (image size, arguments, guided blocks)
    "vit_tiny_patch16_224": (32, TINY, [0, 2]),
    "deit3_small_patch16_224": (32, TINY, [0, 2]),  # layer scale, which is float32
    "convit_tiny": (32, {"patch_size": 8, "depth": 3, "local_up_to_layer": 2}, [0, 2]),
    "pit_ti_224": (64, {}, [0, 5, 11]),
    "pvt_v2_b0": (32, {}, [0, 7]),
    "pvt_tiny": (32, {"embed_dims": [16, 16, 40, 32], "depths": [1, 1, 1, 1]}, [0, 3]),
    "t2t_vit_7": (32, {"depth": 2}, [0, 1]),
    "cvt_13": (32, {"embed_dims": [8, 12, 24], "depths": [1, 2, 2]}, [0, 4]),
    "dhvt_tiny_cifar_patch4": (16, {"embed_dim": 24, "depth": 2, "num_heads": 3}, [0, 1]),
}


def seen_types(student: Student, images: torch.Tensor) -> tuple[set, set, torch.Tensor]:
    """(dtypes that enter blocks, those of guided tokens, the logits) of a step in bf16, with its backward."""
    entered = set()
    for name, block in student.bare.named_modules():
        if BLOCK.search(name):
            block.register_forward_pre_hook(lambda _, inputs: entered.add(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits, tokens = student(images)
        loss = logits.float().square().sum() + sum(own.float().square().mean() for own in tokens)
    loss.backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in student.parameters() if p.grad is not None
    )
    return entered, {own.dtype for own in tokens}, logits.float()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_lies_between_the_blocks_of_every_family_is_bf16(name):
    size, args, blocks = FAMILIES[name]
    logits = {}
    for is_rounded in (True, False):
        torch.manual_seed(1)
        own = {"num_classes": 3, "image_size": size, "blocks": blocks, "drop_path": 0.0, "init": "timm"}
        student, images = Student(name, **own, model_args=args), torch.randn(2, 3, size, size)
        if is_rounded:
            round_residual(student.bare, name, torch.bfloat16)
            round_residual(student.bare, name, torch.bfloat16)
            assert len(student.bare.get_submodule(block_of(student))._forward_hooks) == 1, "twice is once"
        entered, tokens, logits[is_rounded] = seen_types(student, images)
        if is_rounded:
            assert entered == tokens == {torch.bfloat16}
        else:
            assert torch.float32 in entered or name == "pvt_v2_b0", "whose stream a CPU has in bf16 anyway"
    torch.testing.assert_close(logits[True], logits[False], rtol=0.05, atol=0.05)


def block_of(student: Student) -> str:
    return next(name for name, _ in student.bare.named_modules() if BLOCK.search(name))


def test_a_guided_run_hands_bf16_tokens_to_guidance_and_goes_on_only_as_it_began(project):
    seen, losses = {}, {}
    for residual in ("bf16", "fp32"):
        parts, batch, views = first_batch("engine.device=cpu", "engine.precision=bf16", f"engine.residual={residual}")
        parts.unit.guidance.register_forward_pre_hook(
            lambda _, inputs, name=residual: seen.update({name: {own.dtype for own in inputs[0]}})
        )
        torch.manual_seed(4)
        losses[residual] = parts.engine.step(views, batch, 16).loss.item()
    assert seen == {"bf16": {torch.bfloat16}, "fp32": {torch.float32}}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2) and losses["bf16"] != losses["fp32"]
    with pytest.raises(UserError, match="engine.residual 'fp32' -> 'bf16'"):
        refuse_other(config_of(*ALONE), config_of(*ALONE, "engine.residual=bf16"), "runs/x")


def test_networks_and_precisions_without_such_a_stream_are_refused_in_a_line(project):
    for overrides, words in (
        (("model.name=resnet10t", "model.blocks=[0,1,2]"), "the blocks of resnet10t are not known here"),
        (("engine.precision=fp32",), "engine.residual is bf16, but the run is in float32"),
    ):
        config = config_of("model.args={}", "engine.precision=bf16", "engine.residual=bf16", *overrides)
        with pytest.raises(UserError, match=words) as refused:
            check_buildable(config, open_stores(config.data))
        assert "\n" not in str(refused.value)
    assert residual_dtype(config_of().engine, torch.float32) is None
