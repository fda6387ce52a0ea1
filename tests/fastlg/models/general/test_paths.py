"""Stochastic depth drawn once a step drops what timm's drops, and nothing but the generator decides it."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from dispatched import Dispatched
from timm.layers import DropPath

from fastlg.models import Student
from fastlg.models.general.paths import draw_at_once
from fastlg.models.general.recompute import recompute_blocks

CPU, RATE, DEPTH = torch.device("cpu"), 0.5, 6
TINY = {"patch_size": 8, "embed_dim": 16, "depth": DEPTH, "num_heads": 2}


def student(**options) -> Student:
    torch.manual_seed(1)
    own = {"num_classes": 3, "image_size": 16, "blocks": [DEPTH - 1], "drop_path": RATE, "model_args": TINY}
    return Student("vit_tiny_patch16_224", **{**own, **options}).train()


def drawn(dtype: torch.dtype = torch.float32, **options) -> Student:
    own = student()
    own.draws = draw_at_once(own, CPU, dtype, **options)
    return own


def outputs(own: Student, images: torch.Tensor, seed: int = 5) -> torch.Tensor:
    torch.manual_seed(seed)
    return own(images)[1][0]


def test_all_paths_of_a_step_are_one_draw():
    images, counts = torch.randn(4, 3, 16, 16), []
    for own in (student(), drawn()):
        with Dispatched() as seen:
            own(images)
        counts.append(seen.counts["bernoulli_"] + seen.counts["bernoulli"])
    paths = sum(type(module) is DropPath for module in student().modules())
    assert counts == [2 * (DEPTH - 1), 1] and paths >= counts[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_block_drops_at_its_rate_and_the_rest_is_scaled_as_timm_scales_it(dtype):
    own, x = drawn(dtype), torch.ones(20_000, 1, dtype=dtype)
    own.draws.begin(len(x))
    drops = [module for module in own.modules() if isinstance(module, DropPath) and module.drop_prob]
    assert len(drops) == 2 * (DEPTH - 1)
    kept = []
    for path in drops:
        found, timms = path(x), DropPath(path.drop_prob).train()(x)
        assert set(found.unique().tolist()) == set(timms.unique().tolist()) and found.dtype == dtype
        kept.append((found != 0).squeeze(1))
        assert kept[-1].float().mean().item() == pytest.approx(1 - path.drop_prob, abs=0.02)
    together = (kept[0] & kept[1]).float().mean().item()
    assert together == pytest.approx((1 - drops[0].drop_prob) * (1 - drops[1].drop_prob), abs=0.02), "independent"


def test_the_generator_alone_decides():
    own, images = drawn(), torch.randn(8, 3, 16, 16)
    first, other, again = outputs(own, images), outputs(own, images, seed=6), outputs(own, images)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(outputs(copy.deepcopy(own), images), first)
    assert torch.equal(outputs(own.eval(), images), outputs(student().eval(), images)), "nothing is dropped"
    assert list(own.state_dict()) == list(student().state_dict())


def test_outside_of_the_students_forward_pass_and_at_other_rates_paths_draw_for_themselves():
    own, images = drawn(), torch.randn(64, 3, 16, 16)
    own(images)
    assert own.draws.factors is None, "no pass reads another's draws"
    path = own.bare.blocks[-1].drop_path1
    for begun, changed, samples in ((False, RATE, 64), (True, 0.9, 64), (True, RATE, 32)):
        path.drop_prob = changed
        if begun:
            own.draws.begin(64)
        with Dispatched() as seen:
            path(torch.ones(samples, 1))
        assert seen.counts["bernoulli_"] == 1
        own.draws.end()


def test_backward_that_computes_blocks_again_drops_the_same():
    gradients = []
    for is_again in (True, False):
        own, images = drawn(is_kept=is_again), torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        if is_again:
            recompute_blocks(own.bare, "vit")
        outputs(own, images).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in own.named_parameters()})
    assert all(torch.equal(gradients[1][name], own) for name, own in gradients[0].items() if own is not None)


def test_a_network_that_drops_nothing_draws_nothing():
    assert draw_at_once(student(drop_path=0.0), CPU, torch.float32) is None
    assert draw_at_once(timm.create_model("resnet10t", num_classes=2), CPU, torch.float32) is None


@pytest.mark.parametrize("name", ["convit_tiny", "deit_tiny_patch16_224"])
def test_branches_of_a_block_are_dropped_independently(name):
    """A block of ConViT asks one path for both of its branches."""
    torch.manual_seed(1)
    own = Student(name, num_classes=3, image_size=32, blocks=[1], drop_path=0.5, model_args={"depth": 2}).train()
    own.draws = draw_at_once(own, CPU, torch.float32)
    torch.manual_seed(2)
    seen = []
    last = own.bare.blocks[-1]
    for path in {last.drop_path} if name.startswith("convit") else {last.drop_path1, last.drop_path2}:
        path.register_forward_hook(lambda _, inputs, out: seen.append((out != 0).flatten(1).any(1)))
    own(torch.randn(64, 3, 32, 32))
    assert len(seen) == 2 and not torch.equal(*seen)
