"""Checkpoints of the reference code land in our models, tensor by tensor, and give the reference's numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastlg.errors import UserError
from fastlg.models import CifarResNet, Student, resnet20, resnet56, resnet110
from fastlg.models.weights import load_reference

STUDENTS = {
    "DeiT-Ti": "deit_tiny_patch16_224",
    "ConViT-Ti": "convit_tiny",
    "PiT-Ti": "pit_ti_224",
    "PVTv2-B0": "pvt_v2_b0",
    "T2T-ViT-7": "t2t_vit_7",
    "T2T-ViT-14": "t2t_vit_14",
    "PVT-Ti": "pvt_tiny",
    "CvT-13": "cvt_13",
}
TEACHERS = {"ResNet-20": resnet20, "ResNet-56": resnet56, "ResNet-110": resnet110}
# Where a few of the reference's tensors must lie in ours: written out by hand, beside the patterns under test.
LANDMARKS = {
    "DeiT-Ti": {
        "layers.7.attn.qkv_transform.weight": "blocks.7.attn.qkv.weight",
        "layers.11.attn.projection.bias": "blocks.11.attn.proj.bias",
        "patch_embed.projection.weight": "patch_embed.proj.weight",
        "layers.0.norm1.weight": "blocks.0.norm1.weight",
        "pos_embed": "pos_embed",
        "head.weight": "head.weight",
    },
    "ConViT-Ti": {"blocks.3.attn.gating_param": "blocks.3.attn.gating_param", "cls_token": "cls_token"},
    "PiT-Ti": {
        "pools.0.conv.weight": "transformers.1.pool.conv.weight",
        "pools.1.fc.bias": "transformers.2.pool.fc.bias",
        "transformers.1.blocks.4.attn.projection.weight": "transformers.1.blocks.4.attn.proj.weight",
        "transformers.1.blocks.4.norm2.weight": "transformers.1.blocks.4.norm2.weight",
    },
    "PVTv2-B0": {
        "patch_embed1.proj.weight": "patch_embed.proj.weight",
        "patch_embed1.norm.weight": "patch_embed.norm.weight",
        "patch_embed2.norm.bias": "stages.1.downsample.norm.bias",
        "patch_embed4.proj.weight": "stages.3.downsample.proj.weight",
        "block1.1.mlp.dwconv.dwconv.weight": "stages.0.blocks.1.mlp.dwconv.weight",
        "block3.0.attn.sr.bias": "stages.2.blocks.0.attn.sr.bias",
        "block3.0.norm1.bias": "stages.2.blocks.0.norm1.bias",
        "norm1.weight": "stages.0.norm.weight",
        "norm4.weight": "stages.3.norm.weight",
    },
    "T2T-ViT-7": {
        "t2t_module.attention.1.attn.w": "patch_embed.performers.1.attn.features",
        "t2t_module.attention.0.attn.qkv_transform.weight": "patch_embed.performers.0.attn.kqv.weight",
        "t2t_module.attention.1.attn.projection.bias": "patch_embed.performers.1.attn.proj.bias",
        "t2t_module.projection.weight": "patch_embed.proj.weight",
        "layers.6.attn.qkv_transform.weight": "blocks.6.attn.qkv.weight",
        "pos_embed": "pos_embed",
    },
    "PVT-Ti": {
        "pos_embed1": "stages.0.pos_embed",
        "pos_embed4": "stages.3.pos_embed",
        "patch_embed1.proj.weight": "patch_embed.proj.weight",
        "patch_embed3.norm.bias": "stages.2.downsample.norm.bias",
        "block2.1.attn.sr.weight": "stages.1.blocks.1.attn.sr.weight",
        "cls_token": "cls_token",
    },
    "CvT-13": {
        "stage0.patch_embed.proj.weight": "patch_embed.proj.weight",
        "stage2.patch_embed.norm.weight": "stages.2.downsample.norm.weight",
        "stage1.blocks.1.attn.conv_proj_k.bn.running_var": "stages.1.blocks.1.attn.conv_proj_k.bn.running_var",
        "stage2.cls_token": "stages.2.cls_token",
    },
    "ResNet-20": {
        "stem.bn.running_var": "stem.bn.running_var",
        "s1.b3.f.a.weight": "stages.0.2.conv1.weight",
        "s2.b1.proj.weight": "stages.1.0.shortcut.0.weight",
        "s2.b1.bn.running_mean": "stages.1.0.shortcut.1.running_mean",
        "s3.b2.f.b_bn.weight": "stages.2.1.bn2.weight",
        "head.fc.bias": "head.bias",
    },
}


def build(name: str) -> CifarResNet | Student:
    if name in TEACHERS:
        return TEACHERS[name](100)
    return Student(STUDENTS[name], num_classes=100, image_size=224)


def made_checkpoint(entries: list) -> dict[str, torch.Tensor]:
    """A state dict of the given names and shapes in which no two tensors agree."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for index, (name, shape) in enumerate(entries):
        counter = name.endswith("num_batches_tracked")
        state[name] = torch.tensor(index) if counter else torch.randn(shape, generator=generator)
    return state


@pytest.fixture(scope="module")
def listed(golden):
    return json.loads((golden / "models.json").read_text())


@pytest.mark.parametrize("name", [*STUDENTS, *TEACHERS])
def test_every_tensor_of_a_full_checkpoint_lands_once(name, listed):
    state = made_checkpoint(listed[name]["state_dict"])
    model = build(name)
    load_reference(model, {"epoch": 3, "cfg": "text", "model_state": state})
    ours = getattr(model, "bare", model).state_dict()
    for theirs, place in LANDMARKS.get(name, {}).items():
        assert torch.equal(ours[place], state[theirs]), theirs
    fingerprints = {key: value.double().sum().item() for key, value in state.items()}
    assert len(ours) == len(state)
    assert sorted(v.double().sum().item() for v in ours.values()) == sorted(fingerprints.values())


def weights_and(file) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    arrays = dict(np.load(file))
    state = {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("sd/")}
    return state, arrays


def assert_same(got: torch.Tensor, want: np.ndarray) -> None:
    torch.testing.assert_close(got, torch.from_numpy(want).to(got.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_resnet20_repeats_the_references_forward(golden, mode, dtype):
    state, arrays = weights_and(golden / "forward_resnet20.npz")
    model = resnet20(100)
    load_reference(model, state)
    model.to(dtype).train(mode == "train")
    with torch.no_grad():
        logits, maps = model(torch.from_numpy(arrays["input"]).to(dtype))
    prefix = "train_mode_" if mode == "train" else ""
    assert_same(logits, arrays[f"{prefix}logits_f64"])
    for index, stage in enumerate(maps):
        assert_same(stage, arrays[f"{prefix}feature_{index}"])
    if mode == "train":
        for name in ("running_mean", "running_var"):
            assert_same(getattr(model.stem.bn, name), arrays[f"after_train_forward/stem.bn.{name}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("case", "name", "arguments"),
    [
        ("deit_small", "deit_tiny_patch16_224", {"embed_dim": 96, "depth": 3, "num_heads": 3}),
        ("convit_small", "convit_tiny", {"embed_dim": 24, "depth": 3, "num_heads": 4, "local_up_to_layer": 2}),
        ("t2t7_small", "t2t_vit_7", {"embed_dim": 128, "depth": 3, "num_heads": 4}),
        ("pvt_small", "pvt_tiny", {"embed_dims": [16, 32, 40, 64], "depths": [2, 1, 2, 1]}),
        ("cvt_small", "cvt_13", {"embed_dims": [32, 48, 96], "depths": [1, 2, 2]}),
    ],
)
def test_students_repeat_the_references_forward(golden, case, name, arguments, dtype):
    state, arrays = weights_and(golden / f"forward_{case}.npz")
    student = Student(name, num_classes=10, image_size=96, model_args=arguments)
    student.guide(range(student.depth))
    load_reference(student, state)
    student.to(dtype).eval()
    with torch.no_grad():
        logits, tokens = student(torch.from_numpy(arrays["input"]).to(dtype))
    near = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(logits, torch.from_numpy(arrays["logits_f64"]).to(dtype), rtol=near, atol=near)
    assert sum(name.startswith("feature_") for name in arrays) == student.depth
    for index, (token, (height, width)) in enumerate(zip(tokens, student.grids, strict=True)):
        patches = token[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
        assert_same(patches, arrays[f"feature_{index}"])


def test_every_mismatch_is_named_and_nothing_is_loaded():
    model = resnet20(10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    donor = resnet20(10).state_dict()
    state = {
        "stem.conv.weight": torch.zeros(16, 3, 5, 5),
        "stem.bn.weight": "text",
        "s9.b1.f.a.weight": donor["stages.0.0.conv1.weight"],
    }
    with pytest.raises(UserError) as caught:
        load_reference(model, state)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "stem.conv.weight is [16, 3, 5, 5], not [16, 3, 3, 3]",
        "stem.bn.weight is no tensor",
        "unexpected s9.b1.f.a.weight",
        "missing s3.b3.f.b_bn.running_var",
        "missing head.fc.bias",
    ):
        assert part in message
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("state", [[1, 2], "text", None])
def test_what_is_no_checkpoint_is_refused(state):
    with pytest.raises(UserError, match="dict of tensors"):
        load_reference(resnet20(10), state)


def test_models_the_reference_has_not_are_refused():
    with pytest.raises(UserError, match="no reference checkpoints"):
        load_reference(torch.nn.Linear(2, 2), {})
