"""Students and teachers compute what timm and the reference compute, and hand out the right tokens."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from fastlg.config import ModelConfig
from fastlg.errors import UserError
from fastlg.models import CifarResNet, Student, build_model, guided_blocks, resnet20, resnet56, resnet110

DEIT = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
TINY = {
    "deit_tiny_patch16_224": (48, DEIT),
    "vit_small_patch14_reg4_dinov2": (42, {"embed_dim": 24, "depth": 3, "num_heads": 3}),
    "deit_tiny_distilled_patch16_224": (40, {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}),
    "life_vit": (48, {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}),
    "convit_tiny": (40, {"patch_size": 8, "embed_dim": 6, "depth": 4, "num_heads": 4, "local_up_to_layer": 2}),
    "pit_ti_224": (56, {"base_dims": [8, 8, 8], "depth": [2, 3, 1], "heads": [1, 2, 4]}),
    "pit_ti_distilled_224": (56, {"base_dims": [8, 8, 8], "depth": [1, 2, 1], "heads": [1, 2, 4]}),
    "pvt_v2_b0": (64, {"embed_dims": [8, 16, 40, 64]}),
    "pvt_v2_b2_li": (45, {"embed_dims": [8, 16, 40, 64], "depths": [1, 2, 1, 1]}),
    "poorvit": (
        32,
        {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_cls_token": 2, "depth_token_only": 1},
    ),
    "t2t_vit_7": (51, {"embed_dim": 24, "depth": 4, "num_heads": 3, "token_dim": 10}),
    "pvt_tiny": (64, {"embed_dims": [8, 16, 40, 64], "depths": [1, 2, 1, 1]}),
    "cvt_13": (45, {"embed_dims": [8, 12, 24], "depths": [1, 2, 2]}),
    "dhvt_tiny_cifar_patch4": (21, {"embed_dim": 24, "depth": 4, "num_heads": 3}),
    "sl_vit_patch4_32": (16, {"embed_dim": 24, "depth": 4, "num_heads": 3}),
    "vit_spt_lsa": (48, {**DEIT, "base": "vit_tiny_patch16_224", "spt": True, "lsa": True}),
    "dhvt_small_cifar_patch2": (12, {"embed_dim": 24, "depth": 4, "num_heads": 2}),
}
OWN = ["t2t_vit_7", "pvt_tiny", "cvt_13", "dhvt_tiny_cifar_patch4"]
ONE_EACH = ["deit_tiny_patch16_224", "convit_tiny", "pit_ti_224", "pvt_v2_b0", *OWN]
PUBLISHED = [  # name, parameters, guided blocks, grids, dims, Eq. 8: from the reference and the paper
    ("deit_tiny_patch16_224", 5_543_716, [0, 6, 11], [14, 14, 14], [192, 192, 192], [0, 5, 11]),
    ("life_vit", 5_617_444, [0, 6, 11], [14, 14, 14], [192, 192, 192], [0, 5, 11]),
    ("convit_tiny", 5_536_812, [0, 6, 11], [14, 14, 14], [192, 192, 192], [0, 5, 11]),
    ("pit_ti_224", 4_615_972, [0, 6, 11], [27, 14, 7], [64, 128, 256], [0, 5, 11]),
    ("pvt_v2_b0", 3_435_460, [0, 3, 7], [56, 28, 7], [32, 64, 256], [0, 3, 7]),
    ("t2t_vit_7", 4_024_394, [0, 3, 6], [14, 14, 14], [256, 256, 256], [0, 3, 6]),  # and 54,528 buffers
    ("t2t_vit_14", 21_119_306, [0, 7, 13], [14, 14, 14], [384, 384, 384], [0, 6, 13]),  # and 79,744 buffers
    ("pvt_tiny", 12_767_588, [0, 3, 7], [56, 28, 7], [64, 128, 512], [0, 3, 7]),
    ("cvt_13", 19_650_980, [0, 6, 11], [56, 14, 14], [64, 384, 384], [0, 6, 12]),
    ("dhvt_tiny_imagenet_patch16", 6_093_634, [0, 5, 11], [14, 14, 14], [192, 192, 192], [0, 5, 11]),
]


POOLING = ("vit_tiny_patch16_224", "convit_tiny", "pit_ti_224", "pvt_v2_b0", "t2t_vit_7", "dhvt_tiny_cifar_patch4")
LONE = {"class_token": False, "global_pool": "avg", "depth": 1}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Moves every parameter off its start, so that no zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def tiny(name: str, **more) -> Student:
    size, arguments = TINY[name]
    torch.manual_seed(1)
    return shaken(Student(name, num_classes=5, image_size=size, model_args=arguments, **more))


def images(size: int, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("name", "parameters", "blocks", "grids", "dims", "eq8"), PUBLISHED)
def test_full_size_students_have_the_published_shapes(name, parameters, blocks, grids, dims, eq8):
    student = Student(name, num_classes=100, image_size=224, blocks=blocks)
    assert sum(p.numel() for p in student.parameters()) == parameters
    assert student.grids == [(side, side) for side in grids]
    assert student.dims == dims
    assert guided_blocks(student.depth, 3) == eq8


@pytest.mark.parametrize(("make", "parameters"), [(resnet20, 278_324), (resnet56, 861_620), (resnet110, 1_736_564)])
def test_teachers_have_the_published_size(make, parameters):
    assert sum(p.numel() for p in make(100).parameters()) == parameters


@pytest.mark.parametrize("name", TINY)
def test_student_computes_what_timm_computes(name):
    student = tiny(name, init="timm", blocks=[0, 2]).eval()
    x = images(student.image_size)
    with torch.no_grad():
        torch.testing.assert_close(student(x)[0], student.bare(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_what_the_blocks_put_out(name):
    """A hook on timm's own forward is the truth here; the student itself needs none."""
    student = tiny(name).eval()
    student.guide(range(student.depth))
    seen = {}
    blocks = [m for n, m in student.bare.named_modules() if n.split(".")[-2:-1] == ["blocks"]]
    assert student.depth == len(blocks)
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda _m, _i, out, index=index: seen.__setitem__(index, out))
    x = images(student.image_size)
    with torch.no_grad():
        student.bare(x)
        expected = dict(seen)
        _, tokens = student(x)
    prefix = {"poorvit": 2, "distilled": 2, "reg4": 5, "pvt": 0, "cvt": 0}
    leading = next((count for part, count in prefix.items() if part in name), 1)
    joins = {"convit_tiny": (2, 1), "pvt_tiny": (4, 1), "cvt_13": (3, 1)}  # block at which the class token joins
    for block, grid, dim, got in zip(student.blocks, student.grids, student.dims, tokens, strict=True):
        torch.testing.assert_close(got, expected[block], rtol=1e-5, atol=1e-5)
        first, late = joins.get(name, (0, leading))
        late = late if block >= first else 0
        assert got.shape == (3, grid[0] * grid[1] + late, dim)


@pytest.mark.parametrize("name", ["pit_ti_224", "pvt_v2_b0", *OWN])
def test_tokens_are_handed_on_without_a_copy(name):
    """The guided block's output and what follows share memory: channels innermost, nothing permuted into NCHW."""
    student = tiny(name, blocks=[1, 3])
    for token in student(images(student.image_size))[1]:
        assert token.stride(-1) == 1
        assert token.is_contiguous()


def test_blocks_keep_their_order_and_can_be_chosen_anew():
    student = tiny("pit_ti_224", blocks=[5, 0]).eval()
    with torch.no_grad():
        last, first = student(images(57))[1]
        assert student.dims == [32, 8]
        assert (last.shape[-1], first.shape[-1]) == (32, 8)
        student.guide([0])
        torch.testing.assert_close(student(images(57))[1][0], first)


@pytest.mark.parametrize("name", TINY)
def test_unguided_student_is_the_plain_model_with_the_same_weights(name):
    guided, plain = tiny(name, blocks=[1, 2]), tiny(name)
    for key, value in guided.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key])
    logits, tokens = plain.eval()(images(plain.image_size))
    assert tokens == [] and plain.grids == [] and plain.dims == []
    assert torch.equal(logits, guided.eval()(images(plain.image_size))[0])


def test_bare_state_dict_is_timms():
    student = tiny("pvt_v2_b0", blocks=[0])
    plain = timm.create_model("pvt_v2_b0", num_classes=5, **TINY["pvt_v2_b0"][1])
    plain.load_state_dict(student.bare.state_dict(), strict=True)
    assert {f"bare.{name}" for name in plain.state_dict()} == set(student.state_dict())


@pytest.mark.parametrize(
    "name", [*ONE_EACH[:4], "vit_spt_lsa"]
)  # those of our own: test_models_own.py, with their backward pass
def test_student_compiles_as_one_graph(name):
    student = tiny(name, blocks=[0, 2, 3]).eval()
    x = images(student.image_size)
    compiled = torch.compile(student, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), student(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ONE_EACH)
def test_guidance_and_class_gradients_reach_every_parameter_before_them(name):
    student = tiny(name, blocks=[1, 3])
    logits, tokens = student(images(student.image_size))
    (logits.square().sum() * 0.37 + sum(t.square().mean() for t in tokens)).backward()
    for key, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


def test_resnet_takes_channels_last_and_any_even_size():
    torch.manual_seed(0)
    model = shaken(resnet20(7)).double().eval()
    x = images(20).double()
    logits, maps = model(x)
    fast_logits, fast_maps = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(fast_logits, logits)
    for plain, fast, shape in zip(maps, fast_maps, [(16, 20, 20), (32, 10, 10), (64, 5, 5)], strict=True):
        assert plain.shape == (3, *shape)
        assert fast.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(fast, plain)
    assert model.dims == (16, 32, 64)


def test_resnet_compiles_as_one_graph():
    model = resnet20(3).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images(16))[0], model(images(16))[0])


@pytest.mark.parametrize(
    ("depth", "stages", "fraction", "blocks"),
    [
        (12, 3, 0.25, [0, 1, 2]),
        (12, 3, 0.5, [0, 2, 5]),
        (12, 3, 0.75, [0, 4, 8]),
        (12, 3, 1.0, [0, 5, 11]),
        (7, 3, 1.0, [0, 3, 6]),
        (14, 3, 1.0, [0, 6, 13]),
        (13, 3, 1.0, [0, 6, 12]),
        (10, 2, 0.7, [0, 6]),
        (12, 1, 1.0, [0]),
    ],
)
def test_eq8_places_the_guided_blocks(depth, stages, fraction, blocks):
    assert guided_blocks(depth, stages, fraction) == blocks


@pytest.mark.parametrize("fraction", [0.2, 0.0, 1.5])
def test_fraction_that_leaves_too_few_blocks_is_refused(fraction):
    with pytest.raises(UserError, match="fraction"):
        guided_blocks(12, 3, fraction)


def test_build_follows_the_config():
    section = ModelConfig(name="pvt_v2_b0", image_size=64, args=TINY["pvt_v2_b0"][1], blocks="auto")
    assert build_model(section, num_classes=4, guided=True).blocks == [0, 3, 7]
    assert build_model(section, num_classes=4, guided=True, stages=[1, 2]).blocks == [3, 7]
    assert build_model(section, num_classes=4, guided=False).blocks == []
    named = section.model_copy(update={"blocks": [6, 7]})
    assert build_model(named, num_classes=4, guided=True).blocks == [6, 7]
    cnn = build_model(ModelConfig(name="resnet20", image_size=32), num_classes=4, guided=False)
    assert isinstance(cnn, CifarResNet)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("deit_tiny_patch16_24", {}, "did you mean deit_tiny_patch16_224"),
        ("local-dir:somewhere", {}, "no model of timm"),
        ("crossvit_tiny_240", {}, "cannot be run on images of 64 px: .*; try model.image_size=240"),
        ("vit_tiny_patch16_224", {"model_args": {"depht": 2}}, "model.args.depht is no argument"),
        ("vit_tiny_patch16_224", {"model_args": {"num_classes": 2}}, "follows from the data"),
        ("vit_tiny_patch16_224", {"model_args": {"pretrained": True}}, "a start is set by model.weights"),
        ("vit_tiny_patch16_224", {"model_args": {"img_size": 96}}, "model.image_size"),
        ("vit_tiny_patch16_224", {"model_args": {"depth": 1, "num_heads": 5}}, "timm cannot build"),
        ("vit_tiny_patch16_224", {"model_args": {"depth": 2}, "blocks": [0, 2]}, "no block 2; its blocks are 0 to 1"),
        ("vit_tiny_patch16_224", {"model_args": {"depth": 2}, "blocks": [-1]}, "no block -1"),
        ("vit_tiny_patch16_224", {"model_args": {"depth": 0}}, "without blocks; .*model.args.depth=1"),
        ("vit_tiny_patch16_224", {"model_args": {"embed_dim": 0}}, "embed_dim is 0; give a whole number, at least 1"),
        ("pvt_v2_b0", {"model_args": {"num_heads": [1, 2, 0, 8]}}, "num_heads is .*, at least 1"),
        ("vit_tiny_patch16_224", {"model_args": {"patch_size": True}}, "patch_size is True; give a whole number"),
        ("t2t_vit_7", {"model_args": {"depth": 0}}, "without blocks"),
        ("convit_tiny", {"model_args": {"patch_size": [8, 32]}}, "grid of 8 x 2, but ConViT's .*; use square patches"),
        *((name, {"model_args": {"global_pool": ""}}, "every token's class") for name in POOLING),
        ("vit_tiny_patch16_224", {"model_args": {"depth": 1}, "image_size": 8}, "too small"),
        ("pit_ti_224", {"image_size": 15}, "too small"),
        ("pvt_v2_b0", {"image_size": 24}, "too small"),
        ("pvt_tiny", {"image_size": 28}, "too small"),
        ("t2t_vit_7", {"image_size": 2}, "too small"),
        ("cvt_13", {"image_size": 2}, "too small"),
        ("pvt_tiny", {"model_args": {"depths": [1, 1, 1]}}, "one entry for each of 4 stages"),
        ("pvt_tiny", {"model_args": {"num_heads": [1, 2, 3, 4]}}, "width 320 is no multiple of 3 heads"),
        ("pvt_tiny", {"blocks": [0, 8]}, "no block 8; its blocks are 0 to 7"),
        ("t2t_vit_7", {"blocks": [0, 7]}, "no block 7; its blocks are 0 to 6"),
        ("t2t_vit_7", {"model_args": {"depht": 2}}, "model.args.depht is no argument"),
        ("t2t_vit_7", {"model_args": {"global_pool": "max"}}, "global_pool 'max'"),
        ("t2t_vit_15", {}, "did you mean t2t_vit_14"),
        ("dhvt_tiny_cifar_patch4", {"model_args": {"patch_size": 8}}, r"patch_size 8: one of \(2, 4, 16\)"),
        ("dhvt_tiny_cifar_patch4", {"model_args": {"num_heads": 5}}, "width 192 is no multiple of 5 heads"),
        ("dhvt_tiny_cifar_patch4", {"blocks": [12]}, "no block 12; its blocks are 0 to 11"),
        ("vit_tiny_patch16_224", {"model_args": {"lsa": 1}}, "model.args.lsa is 1; it is true or false"),
        ("convit_tiny", {"model_args": {"lsa": True}}, "model.args.lsa: convit_tiny is no plain ViT"),
        ("sl_vit_patch4_32", {"model_args": {"lsa": 3}}, "model.args.lsa is 3; it is true or false"),
        ("dhvt_tiny_cifar_patch4", {"model_args": {"spt": True}}, "model.args.spt: dhvt_tiny_cifar_patch4 is no plain"),
        ("vit_tiny_r_s16_p8_224", {"model_args": {"spt": True, "depth": 1}}, "makes its tokens in a way of its own"),
        ("vit_tiny_patch16_224", {"model_args": {"lsa": True, "attn_layer": "diff", "depth": 1}}, "of its own kind"),
        ("vit_tiny_patch16_224", {"image_size": 16, "model_args": {**LONE, "lsa": True}}, "one token at this image"),
        ("sl_vit_patch4_32", {"image_size": 30}, "image_size 30 px does not fit .* set model.image_size=28 or 32"),
        ("cvt_13", {"blocks": [13]}, "no block 13; its blocks are 0 to 12"),
        ("cvt_13", {"model_args": {"depths": [1, 2]}}, "one entry for each of 3 stages"),
    ],
)
def test_what_cannot_be_built_is_one_clear_line(name, arguments, says):
    with pytest.raises(UserError, match=says) as caught:
        Student(name, **{"num_classes": 3, "image_size": 64, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "guided", "says"),
    [
        ({"name": "resnet20"}, True, "cannot be guided"),
        ({"name": "resnet20", "args": {"depth": 3}}, False, "takes none"),
    ],
)
def test_cnn_students_with_teachers_or_arguments_are_refused(section, guided, says):
    with pytest.raises(UserError, match=says):
        build_model(ModelConfig(**section), num_classes=3, guided=guided)


@pytest.mark.parametrize("depth", [18, 19, 2])
def test_resnet_depths_that_do_not_exist_are_refused(depth):
    with pytest.raises(UserError, match="6n"):
        CifarResNet(depth, 10)
