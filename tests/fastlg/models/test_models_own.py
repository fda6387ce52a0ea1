"""The students that timm lacks: their parts against brute force, gradients against differences, and timm's methods."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import group_parameters
from torch import nn

from fastlg.commands.export import export_student
from fastlg.commands.hand_on.card import how_to_load
from fastlg.config import Config
from fastlg.models import Student
from fastlg.models.student import use_fused_attention
from fastlg.models.vits.pvt import ReducedAttention
from fastlg.models.vits.t2t import RandomFeatureAttention, soft_split

TINY = {
    "t2t_vit_7": (48, {"embed_dim": 24, "depth": 3, "num_heads": 3, "token_dim": 10}),
    "pvt_tiny": (64, {"embed_dims": [8, 16, 40, 64], "depths": [1, 2, 1, 1]}),
    "cvt_13": (48, {"embed_dims": [8, 12, 24], "depths": [1, 2, 2]}),
    "dhvt_tiny_cifar_patch4": (16, {"embed_dim": 24, "depth": 3, "num_heads": 3}),
    "poorvit": (
        32,
        {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "latent_mode": "kq", "latent_dim": 8},
    ),
}
EVERY = {  # also what timm has a class of, and more of what a model can be
    **TINY,
    "life_vit": (32, {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}),
    "poorvit": (32, {**TINY["poorvit"][1], "num_cls_token": 2, "depth_token_only": 1}),
}
COLUMNAR = ["t2t_vit_7", "poorvit", "life_vit", "dhvt_tiny_cifar_patch4"]
ANY_SIZE = ["cvt_13", "dhvt_tiny_cifar_patch4"]
SHALLOW = {
    **dict.fromkeys(COLUMNAR, {"depth": 1}),
    "pvt_tiny": {"depths": [1, 1, 1, 1]},
    "cvt_13": {"depths": [1, 1, 1]},
}


def tiny(name: str, seed: int = 1, fewer: dict | None = None, table: dict = EVERY, **more) -> Student:
    size, arguments = table[name]
    arguments = arguments | (fewer or {})
    torch.manual_seed(seed)
    student = Student(name, num_classes=5, image_size=size, model_args=arguments, **more)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return student


def images(size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=dtype)


def scalar(student: Student, x: torch.Tensor) -> torch.Tensor:
    """Of logits and tokens alike, with unequal weights."""
    logits, tokens = student(x)
    return sum((out * torch.linspace(0.3, 1.1, out.numel(), dtype=out.dtype).view_as(out)).sum() / out.numel() ** 0.5
               for out in (logits, *tokens))  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_of_differences(name):
    """Every parameter, along a random direction, in float64; batch statistics are part of the function."""
    student = tiny(name, blocks=[0, 2], drop_path=0.0).double().train()
    x = images(student.image_size, dtype=torch.float64)
    parameters = dict(student.named_parameters())
    gradients = torch.autograd.grad(scalar(student, x), list(parameters.values()))
    generator = torch.Generator().manual_seed(3)
    step = 1e-5
    with torch.no_grad():
        for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            way /= way.norm()
            values = []
            for sign in (1, -2):
                parameter.add_(way, alpha=sign * step)
                values.append(scalar(student, x))
            parameter.add_(way, alpha=step)
            slope = (values[0] - values[1]).item() / (2 * step)
            assert (gradient * way).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize("name", EVERY)
def test_single_precision_gradients_are_those_of_double(name):
    student = tiny(name, blocks=[1, 2], drop_path=0.0).train()
    found = torch.autograd.grad(scalar(student, images(student.image_size)), list(student.parameters()))
    truth = student.double()
    expected = torch.autograd.grad(scalar(truth, images(student.image_size).double()), list(truth.parameters()))
    whole = math.sqrt(sum(gradient.square().sum().item() for gradient in expected))
    for own, true in zip(found, expected, strict=True):
        assert (own.double() - true).norm() <= 1e-5 * max(true.norm().item(), 0.01 * whole)


@pytest.mark.parametrize("name", EVERY)
def test_fused_attention_and_its_steps_agree(name):
    student = tiny(name, blocks=[0, 2]).eval()
    x = images(student.image_size)
    use_fused_attention(student, True)
    fused = student(x)
    use_fused_attention(student, False)
    torch.testing.assert_close(student(x), fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_guided_step_in_half_precision_compiles_as_one_graph(name):
    """Forward and backward under autocast, in training mode, against the eager step."""
    student = tiny(name, fewer=SHALLOW[name], blocks=[0], drop_path=0.0)
    x, steps = images(student.image_size, batch=4), []
    for run in (student, torch.compile(student, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", torch.bfloat16):
            value = scalar(run, x)
        steps.append((value, *torch.autograd.grad(value, list(student.parameters()))))
    for eager, compiled in zip(*steps, strict=True):
        assert eager.isfinite().all()
        assert (eager - compiled).norm() <= 0.02 * eager.norm() + 0.02


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 4, 2), (3, 2, 1)])
@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_soft_split_is_unfold(kernel, stride, padding, size):
    maps = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    expected = nn.Unfold(kernel, padding=padding, stride=stride)(maps).transpose(1, 2)
    tokens = soft_split(maps, kernel, stride, padding)
    assert torch.equal(tokens, expected) and tokens.is_contiguous()
    upstream = torch.randn_like(tokens)
    ours, truth = (torch.autograd.grad(out, maps, upstream)[0] for out in (tokens, expected))
    torch.testing.assert_close(ours, truth)


def test_random_features_mix_as_their_matrix_would():
    """The performer never makes the matrix of weights; here it is made, pair by pair."""
    torch.manual_seed(0)
    attention = RandomFeatureAttention(6, 8, 4).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    key, query, value = attention.kqv(x).chunk(3, dim=-1)
    expected = torch.zeros_like(value)
    for n in range(2):
        for i in range(5):
            weights = []
            for j in range(5):
                terms = [
                    math.exp((w @ query[n, i]).item() - query[n, i].square().sum().item() / 2)
                    * math.exp((w @ key[n, j]).item() - key[n, j].square().sum().item() / 2)
                    for w in attention.features
                ]
                weights.append(sum(terms) / 4)
            for j in range(5):
                expected[n, i] += weights[j] / (sum(weights) + 1e-8) * value[n, j]
    torch.testing.assert_close(attention(x), value + attention.proj(expected))


def test_random_features_approach_softmax_attention():
    """Their product estimates exp(q k): with very many features the performer is softmax attention without a scale."""
    torch.manual_seed(0)
    attention = RandomFeatureAttention(4, 4, 4).double()
    attention.register_buffer("features", torch.randn(400_000, 4, dtype=torch.float64))
    query, key, value = 0.5 * torch.randn(3, 1, 6, 4, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    torch.testing.assert_close(attention.mix(query, key, value), expected, rtol=0.02, atol=0.005)


def test_random_features_are_orthogonal_seeded_state_that_is_never_trained():
    def features(student):
        return [performer.attn.features for performer in student.bare.patch_embed.performers]

    one, same, other = tiny("t2t_vit_7", 1), tiny("t2t_vit_7", 1), tiny("t2t_vit_7", 2)
    for mine, equal, different in zip(features(one), features(same), features(other), strict=True):
        torch.testing.assert_close(mine @ mine.mT, 5.0 * torch.eye(5))  # 5 rows of length sqrt(5)
        assert torch.equal(mine, equal) and not torch.equal(mine, different)
    assert not torch.equal(*(own @ own.mT.new_ones(10) for own in features(one)))
    trained = {id(parameter) for parameter in one.parameters()}
    assert not trained & {id(buffer) for buffer in one.buffers()}
    other.load_state_dict(one.state_dict())
    x = images(48)
    assert torch.equal(one.eval()(x)[0], other.eval()(x)[0])


def test_performers_sum_exponentials_in_single_precision_under_autocast(monkeypatch):
    seen = []
    plain = RandomFeatureAttention.mix
    monkeypatch.setattr(RandomFeatureAttention, "mix", lambda self, *qkv: seen.append(qkv) or plain(self, *qkv))
    student = tiny("t2t_vit_7")
    with torch.autocast("cpu", torch.bfloat16):
        student(images(48))
    assert {tensor.dtype for qkv in seen for tensor in qkv} == {torch.float32} and len(seen) == 2


def test_positions_of_t2t_are_the_sinusoids_of_the_formula():
    table = tiny("t2t_vit_7").bare.pos_embed[0].numpy()
    assert table.shape == (1 + 9, 24)
    for position in range(10):
        for channel in range(24):
            angle = position / 10_000 ** (2 * (channel // 2) / 24)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel] == np.float32(expected)


def test_attention_without_reduction_is_torchs():
    torch.manual_seed(0)
    ours = ReducedAttention(12, 3, 1, 0.0, 0.0).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    theirs.in_proj_weight.data = torch.cat((ours.q.weight, ours.kv.weight))
    theirs.in_proj_bias.data = torch.cat((ours.q.bias, ours.kv.bias))
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x, (2, 3)), theirs(x, x, x)[0])


@pytest.mark.parametrize("name", TINY)
def test_intermediates_are_the_blocks_that_end_a_level(name):
    student = tiny(name, table=TINY).eval()
    ends = {"pvt_tiny": [0, 2, 3, 4], "cvt_13": [0, 2, 4]}.get(name, [0, 1, 2])
    student.guide(ends)
    x, model = images(student.image_size), student.bare
    with torch.no_grad():
        tokens = student(x)[1]
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        for own, (high, wide), dim, info, token in zip(
            maps, student.grids, student.dims, model.feature_info, tokens, strict=True
        ):
            assert own.shape == (2, dim, high, wide) and info["num_chs"] == dim
            assert info["reduction"] * high == student.image_size
            assert torch.equal(own.flatten(2).transpose(1, 2), token[:, -high * wide :])
        flat = model.forward_intermediates(x, 1, output_fmt="NLC", norm=True, intermediates_only=True)
        torch.testing.assert_close(flat, [final[:, 1:]])
        early = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
        assert len(early) == 1 and torch.equal(early[0], maps[0])
        ran = []
        last = {"pvt_tiny": "stages.3.blocks.0", "cvt_13": "stages.2.blocks.1"}.get(name, "blocks.2")
        model.get_submodule(last).register_forward_hook(lambda *_: ran.append(1))
        model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
        assert not ran
    with pytest.raises(ValueError, match="NCHW or NLC"):
        model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.parametrize("name", TINY)
def test_timm_makes_it_and_uses_its_methods(name):
    size, arguments = TINY[name]
    own = arguments if name in ANY_SIZE else {**arguments, "img_size": size}
    assert timm.is_model(name)
    model = timm.create_model(name, num_classes=7, drop_path_rate=0.1, **own)
    assert model.get_classifier().out_features == model.num_classes == 7
    x = images(size)
    model.reset_classifier(3, "avg")
    torch.testing.assert_close(model.eval()(x), model.head(model.forward_features(x)[:, 1:].mean(1)))
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, model.num_features)
    spared = {n for n, _ in model.named_parameters() if n.rpartition(".")[2] in ("cls_token", "pos_embed")}
    assert model.no_weight_decay() == spared and spared
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert {layer for key, layer in layers.items() if key.startswith("patch_embed.")} == {0}
    assert layers["head.weight"] == max(layers.values()) > 2
    bare = timm.create_model(name, num_classes=0, global_pool="", **own).eval()
    assert bare(x).ndim == 3 and isinstance(bare.get_classifier(), nn.Identity)
    pyramid = timm.create_model(name, features_only=True, out_indices=(0, -1), **own).eval()
    assert [m.shape[1] for m in pyramid(x)] == pyramid.feature_info.channels()
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(3, "max")


@pytest.mark.parametrize("name", ["t2t_vit_7", "pvt_tiny"])
def test_images_of_another_size_than_built_for_are_refused(name):
    with pytest.raises(ValueError, match=r"images of \(96, 96\) px"):
        tiny(name).bare(images(96))


@pytest.mark.parametrize("name", TINY)
def test_an_export_is_read_at_another_image_size(name, tmp_path):
    student = tiny(name, table=TINY)
    config = Config(data={"source": "x"}, model={"name": name})
    export_student(student, tmp_path / "out", class_names=list("abcde"), config=config)
    assert how_to_load(student, tmp_path / "out").startswith("import fastlg.models; timm.create_model(")
    larger = {} if name in ANY_SIZE else {"img_size": 96}
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, **larger).eval()
    assert loaded(images(96)).shape == (2, 5)
    state, moved = student.bare.state_dict(), loaded.state_dict()
    resized = {key for key, value in moved.items() if not torch.equal(value, state[key])} if name in ANY_SIZE else {
        key for key, value in moved.items() if value.shape != state[key].shape
    }  # fmt: skip
    expected = {"pvt_tiny": {f"stages.{n}.pos_embed" for n in range(4)}, **dict.fromkeys(ANY_SIZE, set())}
    assert resized == expected.get(name, {"pos_embed"})
    assert all(torch.equal(value, state[key]) for key, value in moved.items() if key not in resized)
    if name == "t2t_vit_7":
        fresh = Student(name, num_classes=5, image_size=96, model_args=TINY[name][1])
        assert torch.equal(moved["pos_embed"], fresh.bare.pos_embed)
    if name == "pvt_tiny":
        last = resample_abs_pos_embed(state["stages.3.pos_embed"], [3, 3], [2, 2], num_prefix_tokens=1)
        torch.testing.assert_close(moved["stages.3.pos_embed"], last)
        assert torch.equal(moved["stages.3.pos_embed"][:, 0], state["stages.3.pos_embed"][:, 0])
