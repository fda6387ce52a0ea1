"""What neighbouring systems meet at their edges: grey images, rising sizes, parts that are missing, weights that mean
something else."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from fastlg.commands.export import export_student
from fastlg.config import ModelConfig, load_config
from fastlg.errors import UserError
from fastlg.models import Student
from fastlg.models.build import build_model
from fastlg.models.start import start_from
from fastlg.run.trained.begin import changed_meaning

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}
PATCHES = {**TINY, "patch_size": 8}
DEIT, DHVT, SL = "deit_tiny_patch16_224", "dhvt_tiny_cifar_patch4", "sl_vit_patch4_32"


@pytest.mark.parametrize(
    ("name", "args", "first"),
    [
        (SL, TINY, None),
        (SL, {**TINY, "spt": False}, None),
        (DEIT, {**PATCHES, "spt": True}, None),
        (DEIT, {**PATCHES, "lsa": True}, "patch_embed.proj"),
        (DHVT, TINY, "patch_embed.proj.0.0"),
    ],
)
def test_an_export_sees_grey_images_as_three_equal_channels_or_says_that_it_cannot(name, args, first, tmp_path):
    torch.manual_seed(0)
    student = Student(name, num_classes=3, image_size=32, model_args=args).eval()
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.3 * torch.rand_like(weight))  # norms and biases, too
    config = load_config("quickstart", ["teacher=null"])
    export_student(student, tmp_path / "out", class_names=["a", "b", "c"], config=config)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["first_conv"] == first
    where = {"model_name": f"local-dir:{tmp_path / 'out'}", "pretrained": True, "in_chans": 1}
    if name == DHVT:
        with pytest.raises(ValueError, match="3 channels do not fit in_chans=1.*repeat the channel"):
            timm.create_model(**where)
        return
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        grey, wanted = timm.create_model(**where).eval()(images), student(images.expand(-1, 3, -1, -1))[0]
    torch.testing.assert_close(grey, wanted, rtol=1e-4, atol=1e-5)


def settings(name, sizes, **args):
    return ModelConfig(name=name, image_size=sizes[-1][1], resolution=sizes, args=args)


def test_rising_sizes_are_taken_by_all_that_has_no_positions_or_one_set_of_them():
    for name, args in ((DHVT, TINY), (SL, {**TINY, "img_size": 32})):
        student = build_model(settings(name, [(0.0, 16), (0.5, 32)], **args), num_classes=3, guided=False).eval()
        student.guide([1])
        for size in (16, 32):
            student.take_size(size)
            with torch.no_grad():
                logits, (tokens,) = student(torch.zeros(1, 3, size, size))
            assert student.grids == [(size // 4, size // 4)]
            assert tokens.shape == (1, 1 + (size // 4) ** 2, 24) and logits.shape == (1, 3)


def test_a_lone_token_that_sees_nothing_is_refused_at_every_size():
    alone = {**PATCHES, "lsa": True, "class_token": False, "global_pool": "avg"}
    with pytest.raises(UserError, match="model.resolution: .* has one token at 8 px"):
        build_model(settings(DEIT, [(0.0, 8), (0.5, 32)], **alone), num_classes=3, guided=False)
    student = build_model(settings(DEIT, [(0.0, 16), (0.5, 32)], **alone), num_classes=3, guided=False)
    student.take_size(16)
    assert student(torch.zeros(1, 3, 16, 16))[0].isfinite().all()
    with_class_token = {**PATCHES, "lsa": True}
    student = build_model(settings(DEIT, [(0.0, 8), (0.5, 32)], **with_class_token), num_classes=3, guided=False)
    student.take_size(8)
    assert student(torch.zeros(1, 3, 8, 8))[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("life_vit", {"life": False}, "set model.args.life=true, or model.name=deit_tiny_patch16_224"),
        ("vit_spt_lsa", {}, "model.args.spt=true or model.args.lsa=true"),
        (
            "vit_spt_lsa",
            {"spt": False, "lsa": False, "base": "vit_tiny_patch16_224"},
            "model.name=vit_tiny_patch16_224",
        ),
        ("life_vit", {"base": "nosuch"}, "model.args.base nosuch is no model of timm"),
    ],
)
def test_a_name_that_stands_for_parts_wants_them(name, args, words):
    with pytest.raises(UserError, match=words):
        Student(name, num_classes=3, image_size=32, model_args={**PATCHES, **args})


def test_weights_that_fit_and_mean_something_else_are_told():
    def told(theirs, own):
        return changed_meaning({"name": DEIT, "args": theirs}, ModelConfig(name=DEIT, args=own))

    assert told({"num_heads": 3}, {"num_heads": 3}) == told({}, {"proj_drop_rate": 0.1}) == []
    assert told({"img_size": 32}, {"img_size": 48}) == [] and changed_meaning({}, ModelConfig(name=DEIT)) == []
    (line,) = told({"num_heads": 3}, {"num_heads": 4})
    assert line == "model.args.num_heads was 3 and is 4: the same weights may compute something else"
    (line,) = told({"life": True}, {"life": {"own_key": True}})
    assert "model.args.life was True and is {'own_key': True}" in line
    exported = {"name": "life_vit", "args": {"base": DEIT, "life": True}}
    assert changed_meaning(exported, ModelConfig(name=DEIT, args={"life": True})) == []
    assert "they are of life_vit" not in changed_meaning(exported, ModelConfig(name="vit_tiny_patch16_224"))[0]


def test_a_table_of_positions_that_stays_the_models_own_is_told():
    donor, model = (
        Student("poorvit", num_classes=3, image_size=32, model_args={**PATCHES, "sin_pos": table})
        for table in (False, True)
    )
    before = model.bare.pos_embed.clone()
    said = start_from(model, donor.bare.state_dict(), "there")
    assert "pos_embed stays the model's own table, another one than there" in said and "resized" not in said
    assert torch.equal(model.bare.pos_embed, before)
    same = Student("poorvit", num_classes=3, image_size=32, model_args={**PATCHES, "sin_pos": True})
    assert "pos_embed" not in start_from(model, same.bare.state_dict(), "there")
    larger = Student("poorvit", num_classes=3, image_size=48, model_args={**PATCHES, "sin_pos": True})
    assert "own table" in start_from(model, larger.bare.state_dict(), "there")
