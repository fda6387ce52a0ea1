"""Weights trained elsewhere begin a network: each tensor in its place, positions resized, other heads left as drawn."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from fastlg.errors import UserError
from fastlg.models import Student, resnet20
from fastlg.models.start import start_from
from fastlg.models.weights import reference_name

SMALL = {  # name -> (model.args, image sizes of a donor and of the network)
    "deit_tiny_patch16_224": ({"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}, 48, 32),
    "deit_tiny_distilled_patch16_224": ({"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}, 48, 32),
    "life_vit": ({"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}, 48, 32),
    "poorvit": ({"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_cls_token": 2}, 48, 32),
    "convit_tiny": ({"embed_dim": 24, "depth": 2, "num_heads": 2, "local_up_to_layer": 1}, 64, 48),
    "pit_ti_224": ({"base_dims": [8, 8, 8], "depth": [1, 1, 1], "heads": [1, 2, 2]}, 64, 96),
    "pvt_v2_b0": ({"embed_dims": [8, 16, 20, 32], "depths": [1, 1, 1, 1]}, 96, 64),
    "pvt_tiny": ({"embed_dims": [8, 16, 20, 32], "depths": [1, 1, 1, 1]}, 96, 64),
    "t2t_vit_7": ({"embed_dim": 24, "depth": 2, "num_heads": 2, "token_dim": 12}, 64, 48),
    "cvt_13": ({"embed_dims": [8, 12, 24], "depths": [1, 1, 1]}, 64, 48),
    "sl_vit_patch4_32": ({"embed_dim": 24, "depth": 2, "num_heads": 2}, 24, 16),
    "dhvt_tiny_cifar_patch4": ({"embed_dim": 24, "depth": 2, "num_heads": 2}, 24, 16),
}
RESIZED = {  # prefix tokens
    "deit_tiny_patch16_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "life_vit": 1,
    "poorvit": 2,
    "convit_tiny": 0,
}


def student(name: str, size: int, classes: int = 5, *, seed: int) -> Student:
    """No two of its tensors agree, nor with those of another seed, but for T2T-ViT's table of positions."""
    torch.manual_seed(seed)
    made = Student(name, num_classes=classes, image_size=size, model_args=SMALL[name][0])
    with torch.no_grad():
        for key, tensor in made.bare.state_dict().items():
            if tensor.is_floating_point() and (name, key) != ("t2t_vit_7", "pos_embed"):
                tensor.add_(torch.rand_like(tensor))
    return made


def own_names(model: Student) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.bare.state_dict().items()}


@pytest.mark.parametrize("form", ["timm", "parallel", "reference", "run"])
@pytest.mark.parametrize("name", SMALL)
def test_every_tensor_of_the_same_network_lands(name, form):
    _, size, _ = SMALL[name]
    donor, model = student(name, size, seed=1), student(name, size, seed=2)
    given = own_names(donor)
    whole = {
        "timm": given,
        "parallel": {"state_dict": {f"module.{key}": value for key, value in given.items()}, "epoch": 3},
        "reference": {"model_state": {reference_name(donor.bare, key): value for key, value in given.items()}},
        "run": {
            "unit": {f"student.bare.{key}": value for key, value in given.items()}
            | {"guidance.projections.0.weight": torch.zeros(3), "drloc.heads.0.bias": torch.zeros(2)},
            "format": 2,
        },
    }[form]
    said = start_from(model, whole, "it")
    assert said == f"{len(given)} tensors from it"
    for key, value in model.bare.state_dict().items():
        assert torch.equal(value, given[key]), key
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images)[0], donor.eval()(images)[0])


@pytest.mark.parametrize("name", SMALL)
def test_another_image_size_and_other_classes_leave_all_else_as_it_was_given(name):
    _, theirs, ours = SMALL[name]
    donor, model = student(name, theirs, 1000, seed=1), student(name, ours, seed=2)
    given, drawn = own_names(donor), own_names(model)
    said = start_from(model, given, "it")
    assert "\n" not in said and "its head tells other classes apart" in said
    positions = {key for key in given if key.endswith("pos_embed")}
    assert ("pos_embed" in said) == bool(positions)
    for key, value in own_names(model).items():
        if key.startswith("head"):
            assert torch.equal(value, drawn[key]), key
        elif key not in positions:
            assert torch.equal(value, given[key]), key
    if name in RESIZED:
        grid, prefix = model._shapes[0].grid, RESIZED[name]
        wanted = resample_abs_pos_embed(given["pos_embed"], list(grid), num_prefix_tokens=prefix)
        torch.testing.assert_close(model.bare.pos_embed, wanted)
    if name == "t2t_vit_7":
        assert torch.equal(model.bare.pos_embed, drawn["pos_embed"]), "a table"
    for value in model.bare.state_dict().values():
        assert bool(torch.isfinite(value).all())
    model(torch.randn(2, 3, ours, ours))


def test_a_resized_map_of_positions_is_the_same_picture():
    """PiT's map has no token form, so timm gives no truth: a plane stays that plane at the new places' centres."""
    donor, model = student("pit_ti_224", 128, seed=1), student("pit_ti_224", 96, seed=2)
    given = own_names(donor)
    theirs, ours = (m.bare.pos_embed.shape[2] for m in (donor, model))
    rows = (np.arange(theirs) + 0.5) / theirs
    given["pos_embed"][:] = torch.from_numpy(rows[:, None] + 2 * rows[None, :]).float()
    start_from(model, given, "it")
    rows = (np.arange(ours) + 0.5) / ours
    wanted = torch.from_numpy(rows[:, None] + 2 * rows[None, :]).float()
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(
        model.bare.pos_embed[inner].detach(), wanted.expand(model.bare.pos_embed.shape)[inner], atol=0.01, rtol=0
    )


def test_patches_of_another_size_and_half_precision_are_taken_as_timm_takes_them():
    donor = student("deit_tiny_patch16_224", 48, seed=1)
    given = {key: value.half() for key, value in own_names(donor).items()}
    arguments = {**SMALL["deit_tiny_patch16_224"][0], "patch_size": 4}
    model = Student("deit_tiny_patch16_224", num_classes=5, image_size=24, model_args=arguments)
    assert "patch_embed.proj.weight resized from [24, 3, 8, 8] to [24, 3, 4, 4]" in start_from(model, given, "it")
    truth = timm.create_model("deit_tiny_patch16_224", num_classes=5, img_size=24, **arguments)
    truth.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(given, truth))
    for key, value in truth.state_dict().items():
        torch.testing.assert_close(model.bare.state_dict()[key], value, msg=key)


def test_a_head_of_as_many_but_other_classes_and_one_that_is_not_there_start_as_drawn():
    donor = resnet20(10).state_dict()
    for given, other, says in (
        (donor, True, "its head tells other classes apart, so that a new one begins"),
        ({k: v for k, v in donor.items() if not k.startswith("head")}, False, "its head is not there"),
    ):
        model = resnet20(10)
        drawn = model.head.weight.clone()
        assert says in start_from(model, given, "it", is_other_classes=other)
        assert torch.equal(model.head.weight, drawn) and torch.equal(model.stem.conv.weight, donor["stem.conv.weight"])


def changed(given: dict, **changes) -> dict:
    return {key: value for key, value in (given | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda given: changed(given, **{"norm.weight": None}), "no norm.weight"),
        (lambda given: changed(given, extra=torch.zeros(2)), "extra is not in the model"),
        (lambda given: changed(given, **{"norm.bias": torch.zeros(7)}), r"norm.bias is \[7\], not \[24\]"),
        (lambda given: changed(given, **{"norm.bias": torch.full((24,), torch.nan)}), "norm.bias is not finite"),
        (lambda given: changed(given, pos_embed=torch.zeros(3)), r"pos_embed is \[3\], not \[1, 37, 24\]"),
        (
            lambda given: own_names(student("pvt_tiny", 96, seed=1)),
            r"no pos_embed and \d+ more; .* is not in the model and \d+ more",
        ),
        (lambda given: own_names(student("deit_tiny_distilled_patch16_224", 48, seed=1)), "is not in the model"),
        (lambda given: [1, 2], "holds a list, not a dict of tensors"),
        (lambda given: {"epoch": 3}, "holds no tensors"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line_and_nothing_is_loaded(change, says):
    model = student("deit_tiny_patch16_224", 48, seed=2)
    before = own_names(model)
    with pytest.raises(UserError, match=says) as caught:
        start_from(model, change(own_names(student("deit_tiny_patch16_224", 48, seed=1))), "model.weights x.pth")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model.weights x.pth")
    assert all(torch.equal(value, before[key]) for key, value in own_names(model).items())
