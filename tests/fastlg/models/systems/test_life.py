"""LIFE equals its authors' numbers in a ViT and in Swin's windows, and takes any number of prefix tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from refusals import refused
from timm.layers import trunc_normal_
from torch import Tensor, nn

from fastlg.models import Student
from fastlg.models.param_groups import param_groups
from fastlg.models.systems.life import LifeQkv
from fastlg.models.weights import load_reference, reference_name

SMALL = {"patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3}
SWIN = {"patch_size": 1, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 2.0}
CIFAR = {"deit_tiny_patch4_32_ms": "tiny", "deit_small_patch4_32_ms": "small", "deit_base_patch4_32_ms": "base"}
WHOLE_SWIN = {"window_size": 8, "patch_size": 1}
PUBLISHED = {  # name in the source -> (timm's model, px, classes, model.args)
    **{name: (f"deit_{size}_patch16_224", 32, 100, {"patch_size": 4}) for name, size in CIFAR.items()},
    "deit_tiny_patch2_32_ms": ("deit_tiny_patch16_224", 32, 100, {"patch_size": 2}),
    "deit_tiny_patch4_64_ms": ("deit_tiny_patch16_224", 64, 200, {"patch_size": 4}),
    "deit_small_patch4_64_ms": ("deit_small_patch16_224", 64, 200, {"patch_size": 4}),
    "deit_tiny_patch16_224_ms": ("deit_tiny_patch16_224", 224, 100, {}),
    "deit_small_patch16_224_ms": ("deit_small_patch16_224", 224, 100, {}),
    "deit_base_patch16_224_ms": ("deit_base_patch16_224", 224, 100, {}),
    "deit_tiny_patch4_32_ms+qkv_norm": (
        "deit_tiny_patch16_224",
        32,
        100,
        {"patch_size": 4, "life": {"qkv_norm": True}},
    ),
    "swinv2_tiny_window8_32_patch1_ms": ("swinv2_tiny_window8_256", 32, 100, WHOLE_SWIN),
    "swinv2_tiny_window8_64_patch1_ms": ("swinv2_tiny_window8_256", 64, 200, WHOLE_SWIN),
    "swinv2_tiny_window8_256_ms": ("swinv2_tiny_window8_256", 256, 100, {}),
}


@pytest.fixture
def systems(shared):
    return shared / "systems" / "golden"


def read(path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    arrays = {key: torch.from_numpy(value) for key, value in np.load(path).items() if value.dtype.kind in "fi"}
    return {key[3:]: value.float() for key, value in arrays.items() if key.startswith("sd/")}, arrays


def loaded(state: dict[str, Tensor], name: str, size: int, classes: int, **arguments) -> Student:
    student = Student(name, num_classes=classes, image_size=size, model_args={"life": True, **arguments})
    student.guide(range(student.depth))
    load_reference(student, state)
    return student.eval()


def published(name: str) -> nn.Module:
    base, size, classes, arguments = PUBLISHED[name]
    with torch.device("meta"):
        own = {"life": True, **arguments}
        return Student(base, num_classes=classes, image_size=size, model_args=own).bare


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_vit_with_life_computes_what_the_authors_code_does(dtype, near, systems):
    state, arrays = read(systems / "forward_life_small.npz")
    images = arrays["input"].to(dtype)
    for own_key, suffix in ((False, ""), (True, "_kfix")):
        student = loaded(state, "deit_tiny_patch16_224", 32, 10, **SMALL, life={"own_key": own_key}).to(dtype)
        with torch.no_grad():
            logits, tokens = student(images)
        pairs = [(logits, f"logits{suffix}_f64"), (tokens[2], f"feature_last{suffix}" if own_key else "feature_2")]
        pairs += [] if own_key else [(tokens[0], "feature_0"), (tokens[1], "feature_1")]
        for got, want in pairs:
            torch.testing.assert_close(got, arrays[want].to(dtype), rtol=near, atol=near, msg=want)
    qkv = loaded(state, "deit_tiny_patch16_224", 32, 10, **SMALL).to(dtype).bare.blocks[0].attn.qkv
    alone = LifeQkv(48, grid=(8, 8)).to(dtype)
    alone.load_state_dict(qkv.state_dict())
    got = alone(arrays["nocls_in"].to(dtype))
    torch.testing.assert_close(got, arrays["nocls_qkv"].to(dtype), rtol=near, atol=near)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_swins_windows_with_life_compute_what_the_authors_code_does(dtype, near, systems):
    state, arrays = read(systems / "extra_forward_life_swin.npz")
    student = loaded(state, "swinv2_tiny_window8_256", 16, 5, **SWIN).to(dtype)
    blocks = [block for stage in student.bare.layers for block in stage.blocks]
    seen = {}
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda _m, _i, out, index=index: seen.__setitem__(index, out.flatten(1, 2)))
    with torch.no_grad():
        logits, _ = student(arrays["input"].to(dtype))
    for got, want in ((logits, "logits_f64"), *((seen[index], f"feature_{index}") for index in range(4))):
        torch.testing.assert_close(got, arrays[want].to(dtype), rtol=near, atol=near, msg=want)
    assert {name for name in student.state_dict() if name.endswith("_bias")} >= {
        f"bare.layers.{stage}.blocks.{block}.attn.{kind}_bias" for stage in (0, 1) for block in (0, 1) for kind in "qv"
    }
    assert not any(name.endswith(("q_bias", "v_bias")) for name, _ in student.named_parameters()), "never used"
    if dtype == torch.float32:
        compiled = torch.compile(student, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(arrays["input"])[0], logits, rtol=near, atol=near)


def test_parameters_and_names_are_the_published(systems):
    listed = json.loads((systems / "life_names.json").read_text())
    for name, about in listed["published"].items():
        if name not in PUBLISHED:
            assert "_ms" not in name, "a plain model"
            continue
        model = published(name)
        unused = [value for key, value in model.state_dict().items() if key.endswith((".q_bias", ".v_bias"))]
        assert sum(own.numel() for own in (*model.parameters(), *unused)) == about["params"], name
    for name, entries in listed["state_dict"].items():
        model = published(name)
        ours = {reference_name(model, key): list(value.shape) for key, value in model.state_dict().items()}
        assert ours == {key: shape for key, shape, _ in entries if not key.endswith(".attn_mask")}, name


@pytest.mark.parametrize("switches", [{}, {"own_key": True}, {"own_key": True, "qkv_norm": True}])
def test_every_prefix_token_is_treated_as_a_single_one(switches):
    """Two equal ones get equal rows, each the one-token result; and unequal ones do not see each other."""
    torch.manual_seed(0)
    one, two = (LifeQkv(12, grid=(3, 4), prefix=count, **switches).double() for count in (1, 2))
    for parameter in one.parameters():
        trunc_normal_(parameter.data, std=0.5)
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 13, 12, dtype=torch.float64)
    other = torch.randn(2, 1, 12, dtype=torch.float64)
    alone = one(x)
    twice = two(torch.cat((x[:, :1], x), dim=1))
    torch.testing.assert_close(twice, torch.cat((alone[:, :1], alone), dim=1))
    torch.testing.assert_close(two(torch.cat((other, x), dim=1))[:, 1:], alone)


def test_distilled_and_registered_vits_take_it_and_train_every_weight():
    for name, prefix in (("deit_tiny_distilled_patch16_224", 2), ("vit_small_patch14_reg4_dinov2", 5)):
        arguments = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "life": {"qkv_norm": True}}
        student = Student(name, num_classes=3, image_size=40, model_args=arguments, blocks=[1])
        assert student.bare.blocks[0].attn.qkv.prefix == prefix
        logits, tokens = student(torch.randn(2, 3, 40, 40))
        (logits.square().sum() + tokens[0].mean()).backward()
        for key, parameter in student.named_parameters():
            assert parameter.grad is not None or key.startswith("bare.mask"), key


def test_it_begins_as_its_authors_do_and_only_its_matrices_decay():
    torch.manual_seed(0)
    student = Student(
        "deit_tiny_patch16_224", num_classes=100, image_size=32, model_args={"patch_size": 4, "life": True}
    )
    qkv = student.bare.blocks[3].attn.qkv
    for weight in (qkv.scale1.weight, student.bare.head.weight, student.bare.cls_token):
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not qkv.scale1.bias.any()
    for conv, bound in (
        (qkv.scale2.depthwise, 1 / 3),
        (qkv.scale3.depthwise, 1 / 5),
        (qkv.scale2.pointwise, 192**-0.5),
    ):
        assert 0.95 * bound < conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    spared, decayed = ({id(own) for own in group["params"]} for group in param_groups(student, 0.05))
    assert {id(qkv.scale2.depthwise.weight), id(qkv.scale3.pointwise.weight), id(qkv.scale1.weight)} <= decayed
    assert {id(qkv.scale1.bias), id(student.bare.cls_token)} <= spared
    matrices = {id(own) for own in param_groups(student, 0.05, muon=True)[2]["params"]}
    assert {id(qkv.scale1.weight), id(qkv.scale2.pointwise.weight)} <= matrices
    assert id(qkv.scale2.depthwise.weight) not in matrices


def test_smaller_images_and_timms_own_call_take_the_same_weights():
    arguments = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    student = Student(
        "vit_tiny_patch16_224", num_classes=3, image_size=32, model_args={**arguments, "life": True}
    ).eval()
    made = timm.create_model("life_vit", base="vit_tiny_patch16_224", num_classes=3, img_size=32, **arguments).eval()
    made.load_state_dict(student.bare.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(made(images), student(images)[0])
    again = Student(student.name, num_classes=3, image_size=32, model_args=student.model_args).bare.state_dict()
    assert {key: value.shape for key, value in again.items()} == {
        key: value.shape for key, value in made.state_dict().items()
    }
    assert Student("life_vit", num_classes=3, image_size=32, model_args={"depth": 1}).model_args["base"]
    student.take_size(16)
    assert student(images[..., :16, :16])[0].shape == (2, 3)


def test_where_it_cannot_go_it_is_refused_in_one_line(project, fastlg):
    table = (
        (("model.name=pvt_v2_b0", "model.args={life: true}"), "pvt_v2_b0 is no plain ViT nor a Swin V2"),
        (("model.name=beit_base_patch16_224", "model.args={life: true}", "model.image_size=224"), "is no plain ViT"),
        (("model.args.life=true", "model.args.embed_dim=40", "model.args.num_heads=2"), "40 wide"),
        (("model.args.life=3",), "model.args.life is 3"),
        (("model.args.life=true", "model.args.lsa=true"), "life and lsa, parts of two systems; give one"),
        (("model.args.life={own_keys: true}",), "own_keys is no switch"),
        (("model.args.life={own_key: 2}",), "each true or false"),
        (("model.args.life=true", "model.init=mimetic"), "another way than a plain ViT"),
        (("model.name=life_vit", "model.args={base: nothing}"), "no model of timm"),
        (
            ("model.name=swinv2_tiny_window8_256", "model.args={life: {own_key: true}}", "model.image_size=256"),
            "switches",
        ),
    )
    for overrides, says in table:
        refused(fastlg("train", "student.yaml", *overrides), "model.", says)
    assert not (project / "runs").exists()
