"""Students of neighbouring systems: outputs, weights and names of the authors' code, taken from it by running it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from fastlg.models import Student
from fastlg.models.param_groups import param_groups
from fastlg.models.weights import load_reference, reference_name

FORWARD = {  # file -> (model.name, model.args, image size)
    "dhvt_small": ("dhvt_tiny_cifar_patch4", {"embed_dim": 48, "depth": 3, "num_heads": 4}, 32),
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
