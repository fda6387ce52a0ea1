"""Fused blocks are taken where they were seen to compute what the blocks do, and skip the paths that were drawn."""

from __future__ import annotations

import pytest
import torch

from fastlg.models import Student
from fastlg.models.general.fused import disagreement, obstacle_of, use_fused_blocks
from fastlg.models.general.paths import draw_at_once
from fastlg_kernels import blocks

CPU = torch.device("cpu")
TINY = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def student(size: int = 16, **own) -> Student:
    torch.manual_seed(3)
    own = {"num_classes": 3, "image_size": size, "blocks": [1], "drop_path": 0.0, "init": "timm"} | own
    return Student("vit_tiny_patch16_224", **own, model_args=TINY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_that_agree_are_taken_and_nothing_is_left_of_the_look(dtype):
    model = student()
    kinds, state = [type(own) for own in model.modules()], torch.get_rng_state()
    assert disagreement(model, CPU, dtype) == "" and obstacle_of(model) == ""
    assert [type(own) for own in model.modules()] == kinds and torch.equal(torch.get_rng_state(), state)
    assert all(own.grad is None for own in model.parameters())


def failing(_):
    raise RuntimeError("no kernel image\nis available")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda out: out * 1.5, "the output of a block strays by "),
        (lambda out: out * float("nan"), "the output of a block strays by nan"),
        (lambda out: 0.5 * out.detach() + 0.5 * out, "the gradient of "),
        (failing, "a block fails on them: no kernel image"),
    ],
)
def test_parts_that_stray_or_fail_are_left_with_the_reason(monkeypatch, change, told):
    right = blocks.short_attention
    monkeypatch.setattr(blocks, "short_attention", lambda qkv, **own: change(right(qkv, **own)))
    model = student()
    assert disagreement(model, CPU, torch.float32).startswith(told)


def test_a_part_that_strays_where_paths_are_skipped_is_left(monkeypatch):
    right = blocks.add_layer_norm
    monkeypatch.setattr(blocks, "add_layer_norm", lambda *own, keep, **more: right(*own, keep=None, **more))
    assert disagreement(student(), CPU, torch.float32).startswith("the output of a block strays by ")


def test_a_network_of_blocks_alone_is_looked_at_too():
    inner = student().bare.blocks
    assert obstacle_of(inner) == "" and disagreement(inner, CPU, torch.bfloat16, torch.bfloat16) == ""


def test_images_of_more_tokens_than_the_parts_take_are_told():
    assert "257 tokens are more than 256" in obstacle_of(student(size=128))


def test_a_fused_block_skips_the_paths_that_were_drawn_for_it():
    outs = []
    for is_fused in (False, True):
        model = student(drop_path=0.5).train()
        model.draws = draw_at_once(model, CPU, torch.float32)
        if is_fused:
            use_fused_blocks(model)
        torch.manual_seed(5)
        outs.append(model(torch.randn(16, 3, 16, 16))[0])
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-5)
