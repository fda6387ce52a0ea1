"""Students of neighbouring systems: outputs, weights and names of the authors' code, taken from it by running it."""

from __future__ import annotations

import ast
import json
import math

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from fastlg.commands.export import export_student
from fastlg.config import Config
from fastlg.models import Student
from fastlg.models.param_groups import param_groups
from fastlg.models.student import use_fused_attention
from fastlg.models.systems.fcvit import GlobalContext
from fastlg.models.systems.spt_lsa import with_shifted_copies
from fastlg.models.weights import load_reference, reference_name
from fastlg.run.trained import load_export

FORWARD = {  # file -> (model.name, model.args, image size)
    "dhvt_small": ("dhvt_tiny_cifar_patch4", {"embed_dim": 48, "depth": 3, "num_heads": 4}, 32),
    **{
        f"{kind}_small": (
            "sl_vit_patch4_32",
            {"embed_dim": 24, "depth": 2, "num_heads": 3, "spt": "spt" in kind, "lsa": "lsa" in kind},
            16,
        )
        for kind in ("spt_lsa", "spt_only", "lsa_only")
    },
}


@pytest.fixture(scope="module")
def systems(shared):
    return shared / "systems" / "golden"


def weights_and(file) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    arrays = dict(np.load(file))
    return {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("sd/")}, arrays


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", FORWARD)
def test_students_repeat_the_authors_forward(systems, case, dtype):
    name, arguments, size = FORWARD[case]
    state, arrays = weights_and(systems / f"forward_{case}.npz")
    student = Student(name, num_classes=arrays["logits_f64"].shape[1], image_size=size, model_args=arguments)
    student.guide(range(student.depth))
    load_reference(student, state)
    student.to(dtype).eval()
    with torch.no_grad():
        logits, tokens = student(torch.from_numpy(arrays["input"]).to(dtype))
    near = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(logits.double(), torch.from_numpy(arrays["logits_f64"]), rtol=near, atol=near)
    for index, token in enumerate(tokens):
        torch.testing.assert_close(token.double(), torch.from_numpy(arrays[f"feature_{index}"]), rtol=near, atol=near)
    if "input_48" in arrays:  # of another size than the model's own
        with torch.no_grad():
            logits = student.bare(torch.from_numpy(arrays["input_48"]).to(dtype)).double()
        torch.testing.assert_close(logits, torch.from_numpy(arrays["logits_48_f64"]), rtol=near, atol=near)


def test_dhvt_has_the_authors_weights_under_their_names(systems):
    listed = json.loads((systems / "dhvt_names.json").read_text())
    for name, wanted in listed["published"].items():
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=wanted["num_classes"])
        assert sum(weight.numel() for weight in model.parameters()) == wanted["params"], name
        assert sum(buffer.numel() for buffer in model.buffers()) == wanted["buffers"], name
        own = {reference_name(model, key): list(value.shape) for key, value in model.state_dict().items()}
        if name in listed["state_dict"]:
            assert own == {key: shape for key, shape, _ in listed["state_dict"][name]}


def test_dhvt_starts_and_decays_as_the_authors_do():
    torch.manual_seed(0)
    bare = Student("dhvt_tiny_cifar_patch4", num_classes=100, image_size=32, model_args={"depth": 2}).bare
    for name, weight in bare.named_parameters():
        value, (owner, _, kind) = weight.detach(), name.rpartition(".")
        module = bare.get_submodule(owner)
        if kind in ("cls_token", "head_embed") or (isinstance(module, nn.Linear) and kind == "weight"):
            assert abs(value.std().item() - 0.02) < 8 * 0.02 / math.sqrt(2 * value.numel()), name
        elif isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(math.prod(module.weight.shape[1:]))
            assert 0.7 * bound < value.abs().max().item() <= bound, name
        else:
            assert value.unique().tolist() == [float(kind in ("weight", "alpha"))], name
    names = {id(weight): name for name, weight in bare.named_parameters()}
    spared = {names[id(own)] for group in param_groups(bare, 0.05)[:1] for own in group["params"]}
    assert {name for name in names.values() if name not in spared and not name.endswith("weight")} == {
        *(f"blocks.{block}.attn.head_embed" for block in range(2)),
        *(f"patch_embed.{side}_affine.{kind}" for side in ("pre", "post") for kind in ("alpha", "beta")),
    }
    assert "cls_token" in spared


def test_shifted_copies_are_the_authors(systems):
    arrays = np.load(systems / "spt_shift.npz")
    images = torch.from_numpy(arrays["input"])
    patch = int(arrays["patch_size"])
    assert torch.equal(with_shifted_copies(images, (patch, patch)), torch.from_numpy(arrays["output"]))
    assert torch.equal(with_shifted_copies(images, (2, 2)), torch.from_numpy(arrays["output_p2"]))


def test_sl_vit_has_the_authors_weights_under_their_names(systems):
    listed = json.loads((systems / "spt_lsa_params.json").read_text())
    for case, wanted in listed.items():
        images, classes, spt, lsa = case.split("_")
        name = {"cifar": "sl_vit_patch4_32", "tinyimagenet64": "sl_vit_patch8_64"}[images]
        with torch.device("meta"):
            parts = {"spt": spt == "SPT1", "lsa": lsa == "LSA1"}
            model = timm.create_model(name, num_classes=int(classes.removeprefix("ncls")), **parts)
        assert sum(weight.numel() for weight in model.parameters()) == wanted, case
    listed = json.loads((systems / "spt_lsa_state_dict.json").read_text())
    with torch.device("meta"):
        model = timm.create_model("sl_vit_patch4_32", num_classes=100)
    own = {reference_name(model, key): list(value.shape) for key, value in model.state_dict().items()}
    assert own == listed


@pytest.mark.parametrize("init", ["reference", "timm"])
def test_sl_vit_starts_and_drops_paths_as_the_authors_do(init):
    torch.manual_seed(0)
    bare = Student("sl_vit_patch4_32", num_classes=100, image_size=32, drop_path=0.1, init=init).bare
    for name, weight in bare.named_parameters():
        value, kind = weight.detach(), name.rpartition(".")[2]
        if kind in ("cls_token", "pos_embed") or value.ndim == 2:
            std = 1.0 if value.ndim == 3 else math.sqrt(2 / sum(value.shape))
            assert abs(value.std().item() - std) < 8 * std / math.sqrt(2 * value.numel()), name
        else:
            constant = 16**-0.5 if kind == "temperature" else float(kind == "weight")
            assert value.unique().tolist() == [constant], name
    rates = [path.drop_prob for block in bare.blocks for path in (block.drop_path1, block.drop_path2)]
    assert rates == [0.1] * 18


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_fused", [True, False])
def test_no_token_sees_itself_in_half_precision(dtype, is_fused):
    """Neither where it is most like itself, nor where all products are near the lowest number there is: what remains
    is seen alike. Tokens are their own numbers, so that the output shows the weights."""
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "lsa": True}
    student = Student("vit_tiny_patch16_224", num_classes=3, image_size=24, model_args=arguments)
    use_fused_attention(student, is_fused)
    layer = student.bare.blocks[0].attn.to(dtype)
    x = torch.eye(8, dtype=dtype).repeat(1, 3)[None]
    others = (1 - torch.eye(8)) / 7
    same, low = 200 * torch.eye(24), torch.full((24, 24), 80.0)
    for query, key, factors in ((same, same, [1.0, 0.3, -1.0]), (low, -low / 8, [1.0, 0.5, 1e-3])):
        with torch.no_grad():
            layer.qkv.weight.copy_(torch.cat([query, key, torch.eye(24)]))
            layer.qkv.bias.zero_()
            layer.proj.weight.copy_(torch.eye(24))
            layer.temperature.copy_(torch.tensor(factors))
        found = layer(x)
        for seen in found[0].float().split(8, dim=1):
            torch.testing.assert_close(seen, others, rtol=0.01, atol=1e-3)
            assert not seen.diagonal().any()
        gradients = torch.autograd.grad(found.float().square().sum(), list(layer.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_parts_of_a_plain_vit_are_rebuilt_from_an_export_and_see_smaller_images(tmp_path):
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "spt": True, "lsa": True}
    torch.manual_seed(0)
    student = Student("deit_tiny_patch16_224", num_classes=3, image_size=32, model_args=arguments)
    config = Config(data={"source": "x"}, model={"name": "deit_tiny_patch16_224"})
    export_student(student, tmp_path / "out", class_names=list("abc"), config=config)
    _, again, _ = load_export(tmp_path / "out")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(images)[0], student.eval()(images)[0])
    student.take_size(16)
    student.guide([1])
    assert student.grids == [(2, 2)] and student(images[..., :16, :16])[1][0].shape == (2, 5, 24)


def test_fcvit_has_the_authors_counts_and_maps(systems):
    listed = json.loads((systems / "fcvit_params.json").read_text())
    with torch.device("meta"):
        for name in ("fcvit_tiny", "fcvit_b12", "fcvit_b24", "fcvit_b48"):
            model = timm.create_model(name)
            for classes in (1000, 100):
                model.reset_classifier(classes)
                assert sum(weight.numel() for weight in model.parameters()) == listed[f"{name}_{classes}"], name
        tiny = timm.create_model("fcvit_tiny", num_classes=7).eval()
        for size in (224, 64, 32):
            shapes = ast.literal_eval(listed[f"tiny_shapes_{size}"])  # of stages and of the convolutions between them
            final, maps = tiny.forward_intermediates(torch.empty(1, 3, size, size))
            assert [tuple(own.shape) for own in maps] == [shapes[index] for index in (0, 2, 4, 6)]
            assert tiny.forward_head(final).shape == (1, 7)


def test_the_global_context_is_that_of_its_formula():
    torch.manual_seed(0)
    layer = GlobalContext(16).double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn_like(weight))
    maps = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    for image, found in zip(maps, layer(maps), strict=True):
        mean = image.mean((1, 2))
        like = torch.zeros(8, 3, 5, dtype=torch.float64)
        for group in range(8):
            for channel in (2 * group, 2 * group + 1):
                like[group] += image[channel] * mean[channel] / math.sqrt(2)
        like = (like - like.mean()) / (like.std() + 1e-5)
        narrow = torch.maximum(*layer.squeeze(mean).split(2))
        context = layer.excite(narrow)
        for channel in range(16):
            gate = like[channel // 2] * layer.weight[channel // 2] + layer.bias[channel // 2]
            torch.testing.assert_close(found[channel], image[channel] + gate * context[channel])
