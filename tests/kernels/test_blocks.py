"""fuse(model): the same network on fused parts, step for step, and back; what it cannot take is refused in a line."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from benchmarks.cases.kernels.block_bytes import Bytes
from fastlg_kernels import add_layer_norm, add_mlp, fuse, short_attention, unfuse
from fastlg_kernels.blocks import FusedBlock, FusedMlpBlock, drawn_keep

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_classes": 5}


def network(num_heads: int = 2, seed: int = 0, **options) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.models.VisionTransformer(**SIZES | {"num_heads": num_heads} | options)


def trained(model: torch.nn.Module, steps: int, dtype: torch.dtype | None = None) -> tuple[list[float], dict]:
    """Losses of some AdamW steps on drawn images, and the weights they lead to."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    losses = []
    for _ in range(steps):
        images, labels = torch.randn(6, 3, 32, 32, generator=generator), torch.randint(5, (6,), generator=generator)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-4), (torch.bfloat16, 2e-2)])
def test_twenty_steps_are_those_of_the_unfused_network(dtype, tolerance):
    plain, fused = trained(network(), 20, dtype), trained(fuse(network()), 20, dtype)
    assert fused[0] == pytest.approx(plain[0], rel=tolerance)
    assert list(fused[1]) == list(plain[1])
    if dtype is None:
        for name, value in fused[1].items():
            assert (value - plain[1][name]).norm() <= 1e-2 * plain[1][name].norm() + 1e-4, name


def test_it_is_undone_at_any_time_and_done_twice_it_is_done_once():
    model = network(drop_path_rate=0.2).eval()
    kinds = [type(module) for module in model.modules()]
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    assert fuse(fuse(model)) is model
    fused = [module for module in model.modules() if isinstance(module, FusedMlpBlock)]
    assert len(fused) == 2 and [type(block) for block in fused] != kinds
    torch.testing.assert_close(copy.deepcopy(model)(images), expected)
    with pytest.raises(ValueError, match=r"takes no attention mask; call fastlg_kernels.unfuse\(model\)"):
        fused[0](torch.zeros(1, 17, 64), is_causal=True)
    assert unfuse(unfuse(model)) is model and [type(module) for module in model.modules()] == kinds
    assert torch.equal(model(images), expected)


def test_stochastic_depth_drops_samples_in_training_alone():
    blocks = fuse(network(drop_path_rate=0.5)).blocks
    assert drawn_keep(blocks[0].drop_path1, torch.zeros(4, 2)) is None  # its rate is 0
    keep = drawn_keep(blocks[1].drop_path1, torch.zeros(4000, 2, dtype=torch.bfloat16))
    assert keep.dtype == torch.float32 and set(keep.tolist()) == {0.0, 2.0}
    assert keep.mean().item() == pytest.approx(1.0, abs=0.1)
    assert drawn_keep(blocks.eval()[1].drop_path1, torch.zeros(4, 2)) is None


def test_hooks_and_compilation_see_the_blocks_they_saw():
    model, seen = network(), []
    model.blocks[1].register_forward_hook(lambda _, __, out: seen.append(out))
    images = torch.randn(2, 3, 32, 32)
    expected = torch.compile(fuse(model).blocks, fullgraph=True, backend="aot_eager")
    tokens = torch.randn(2, 17, 64)
    torch.testing.assert_close(expected(tokens), model.blocks(tokens))
    model(images)
    assert len(seen) >= 2


def test_what_it_cannot_fuse_is_refused_by_name_and_left_as_it_was():
    for model, words in (
        (torch.nn.Linear(2, 2), "Linear has no block of timm.models.vision_transformer.Block"),
        (network(init_values=0.1), "blocks.0 cannot be fused: it has layer scale"),
        (network(num_heads=4), "blocks.0 cannot be fused: its heads have 16 channels"),
        (network(qk_norm=True), "blocks.0 cannot be fused: its attention has q_norm, a LayerNorm"),
        (network(attn_drop_rate=0.1), "blocks.0 cannot be fused: its attention has dropout of 0.1"),
        (network(img_size=256, patch_size=8), "blocks.0 cannot be fused: 1025 tokens are more than 256"),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            fuse(model)
        assert "\n" not in str(raised.value)
        assert not any(isinstance(module, FusedBlock) for module in model.modules())
    last = network()
    last.blocks[1].ls1 = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="blocks.1"):
        fuse(last)
    assert not any(isinstance(module, FusedBlock) for module in last.modules())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"proj_drop_rate": 0.1}, "it has dropout of 0.1"),
        ({"act_layer": "gelu_tanh"}, r"its activation is GELU\w*\("),
        ({"scale_mlp_norm": True}, "it has norm, a LayerNorm"),
        ({"proj_bias": False}, "its layers have no biases"),
        ({"embed_dim": 256, "num_heads": 4}, "256 channels are more than 192"),
        ({"mlp_layer": timm.layers.SwiGLU}, "it is a SwiGLU"),
    ],
)
def test_an_mlp_that_is_not_known_is_left_as_it_is_and_named(options, reason):
    model = network(**options)
    with pytest.warns(UserWarning, match=f"^blocks.0.mlp, blocks.1.mlp: not fused, the rest is: {reason}"):
        fuse(model)
    assert all(isinstance(block, FusedBlock) and not isinstance(block, FusedMlpBlock) for block in model.blocks)
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_a_wide_student_has_its_mlps_named_in_one_line():
    """DeiT-S: attention and norms are fused, of its channels add_mlp takes none."""
    model = timm.create_model("deit_small_patch16_224", depth=5)
    with pytest.warns(UserWarning) as told:
        fuse(model)
    assert [str(warning.message) for warning in told] == [
        "blocks.0.mlp to blocks.4.mlp, 5 of them: not fused, the rest is: 384 channels are more than 192"
    ]
    with torch.autocast("cpu", torch.bfloat16), Bytes() as counted:
        model.blocks[0](torch.zeros(1, 5, 384))
    assert {"attention_forward", "add_norm_forward", "gelu"} <= set(counted.names)


def test_the_mlp_is_fused_where_products_are_half_precision():
    block, tokens = fuse(network()).blocks[0], torch.randn(2, 17, 64)
    for cast, dtype, expected in ((True, None, True), (False, None, False), (False, torch.bfloat16, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast), Bytes() as counted:
            block.to(dtype or torch.float32)(tokens.to(dtype or torch.float32))
        assert ("add_mlp_forward" in counted.names) == expected == ("add_norm_forward" not in counted.names)


def test_bytes_are_counted_once_read_and_once_written():
    qkv = torch.zeros(2, 9, 3, 2, 32, requires_grad=True)
    with Bytes() as counted:
        short_attention(qkv).sum().backward()
    assert counted.parts["attention"] == (4 + 7) * 2 * 9 * 64 * 4  # qkv, out; their gradients and qkv
    x, branch = (torch.zeros(2, 9, 64, requires_grad=True) for _ in range(2))
    weight, bias = torch.ones(64, requires_grad=True), torch.zeros(64, requires_grad=True)
    with Bytes() as counted:
        add_layer_norm(x, branch, weight, bias)[1].view(-1).sum().backward()
    tokens, channels, statistics = 2 * 9 * 64 * 4, 64 * 4, 2 * 2 * 9 * 4
    # x, branch, total, normed; of backward the gradient of normed, total, and one gradient for both
    assert counted.parts["layer norm"] == (4 + 3) * tokens + (2 + 3) * channels + 2 * statistics
    with Bytes() as counted:
        layers = [torch.zeros(*shape, requires_grad=True) for shape in ((64, 64), (64,), (64, 64), (64,))]
        add_mlp(x, branch, (weight, bias), layers[:2], layers[2:]).view(-1).sum().backward()
    # x, branch, result; of backward its gradient, x, branch, one gradient for both, and what its kernels leave: norm
    # and gradient for the weights' kernel, and one tile's sums for three vectors, two layers and a bias
    sums = 3 * 64 + 2 * 64 * 64 + 64
    passed = 7 * tokens + 2 * (2 * 64 + 4) * channels + (2 * 64 + 4) * channels
    assert counted.parts["mlp"] == passed + 2 * (2 * tokens + 4 * sums)
