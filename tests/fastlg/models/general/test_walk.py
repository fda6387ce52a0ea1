"""Whatever timm can open up is a student: it computes what timm computes, and hands out what timm lists."""

from __future__ import annotations

import pytest
import timm
import torch
from any_students import FAMILIES, any_student, noise
from torch import nn

from fastlg.config import DrlocConfig, GuidanceConfig, ModelConfig, TeacherConfig
from fastlg.errors import UserError
from fastlg.models import Student, guided_blocks
from fastlg.models.build import new_model
from fastlg.models.general.walk import on_meta
from fastlg.models.param_groups import param_groups
from fastlg.models.start import start_from
from fastlg.objective import GuidedStudent
from fastlg.teacher.online import Guide

LIKE_OTHERS = {  # of whose gradients another one of their kind tells enough
    *("swinv2_tiny_window8_256", "davit_tiny", "twins_svt_small", "visformer_tiny", "tnt_s_patch16_224"),
    *("efficientformer_l1", "mambaout_femto", "test_byobnet", "vit_relpos_small_patch16_224"),
}
IN_PLACE = {"beit_base_patch16_224", "eva02_tiny_patch14_224", "hiera_tiny_224", "mambaout_femto"}


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_features_are_those_of_timm(name):
    student = any_student(name).eval()
    student.guide(range(student.depth))
    images = noise(student)
    with torch.no_grad():
        logits, features = student(images)
        truth = student.bare.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
        plain = student.bare(images)
        assert torch.equal(logits, plain)
        student.guide([0])
        assert torch.equal(student(images)[0], plain), "however few are guided"
    student.guide(range(student.depth))
    assert len(features) == len(truth) == student.depth >= 3
    for own, other, grid, dim in zip(features, truth, student.grids, student.dims, strict=True):
        assert other.shape == (3, dim, *grid)
        tokens = own if own.dim() == 3 else own.flatten(2).transpose(1, 2)
        assert torch.equal(tokens, other.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in LIKE_OTHERS])
def test_guidance_reaches_every_weight_before_the_guided_blocks_and_no_other(name):
    student = any_student(name, drop_path=0.0)
    student.guide(guided_blocks(student.depth, 3)[:2])
    unit = GuidedStudent(student, [5, 6], GuidanceConfig())
    maps = tuple(torch.randn(3, dim, side, side) for dim, side in ((5, 9), (6, 4)))
    images = noise(student)
    out = unit(images, torch.tensor([0, 4, 1]), Guide(maps, torch.zeros(3, 5)))
    assert out.loss.isfinite() and out.loss_guidance > 0
    torch.testing.assert_close(out.loss.detach(), out.loss_cls + 2.5 * out.loss_guidance)
    names, weights = zip(*student.named_parameters(), strict=True)
    unit.zero_grad()
    _, features = student(images)
    sum(feature.square().mean() for feature in features).backward(retain_graph=True)
    fed = {key for key, weight in zip(names, weights, strict=True) if weight.grad is not None}
    unit.zero_grad()
    (unit._guidance_loss(features, maps)).backward()
    assert fed and fed == {key for key, own in zip(names, weights, strict=True) if own.grad is not None}
    assert all(projection.weight.grad.abs().sum() > 0 for projection in unit.guidance.projections)
    unguided = any_student(name)
    assert {key: value.shape for key, value in unguided.state_dict().items()} == {
        key: value.shape for key, value in student.state_dict().items()
    }


@pytest.mark.parametrize("name", sorted(IN_PLACE))
def test_tokens_and_maps_with_channels_innermost_are_read_where_they_lie(name):
    student = any_student(name)
    student.guide(range(student.depth - 1))
    for feature in student(noise(student))[1]:
        assert feature.stride(2 if feature.dim() == 3 else 1) == 1
        assert feature._base is not None, "a copy"


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "levit_128s"])
def test_it_compiles_as_one_graph_with_its_backward_pass(name):
    student = any_student(name, drop_path=0.0)
    student.guide([0, 2])
    images = noise(student)
    compiled = torch.compile(student, fullgraph=True, backend="eager")
    grads = []
    for run in (student, compiled):
        student.zero_grad()
        logits, features = run(images)
        (logits.square().sum() + sum(feature.square().sum() for feature in features)).backward()
        grads.append([weight.grad.clone() for weight in student.parameters()])
    for own, other in zip(*grads, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3 * float(own.abs().max() + 1))


def test_eq8_places_the_stages_of_a_teacher_over_what_a_student_lists():
    size, arguments = FAMILIES["swin_tiny_patch4_window7_224"]
    section = ModelConfig(name="swin_tiny_patch4_window7_224", image_size=size, args=arguments)
    assert new_model(section, TeacherConfig(recipe="x"), 3).blocks == [0, 1, 3]
    assert new_model(section, TeacherConfig(recipe="x", stages=[2]), 3).blocks == [3]
    assert new_model(section, TeacherConfig(recipe="x", stages=[1, 2, 3, 4]), 3).blocks == [0, 1, 2, 3]
    assert new_model(section, TeacherConfig(recipe="x", stages=[4, 2]), 3).blocks == [3, 0]
    with pytest.raises(UserError, match="5 stages guide, but the student has 4 blocks; name 4 of"):
        new_model(section, TeacherConfig(recipe="x", stages=[0, 1, 2, 3, 4]), 3)


def test_a_second_head_answers_to_the_teacher_while_training():
    student = any_student("levit_128s", blocks=[1])
    student.distil()
    unit = GuidedStudent(student, [6], GuidanceConfig(logits="soft", logits_token="distillation"))
    maps = (torch.randn(3, 6, 4, 4),)
    unit(noise(student), torch.tensor([0, 4, 1]), Guide(maps, torch.randn(3, 5))).loss.backward()
    bare = student.bare
    assert all(head.linear.weight.grad.abs().sum() > 0 for head in (bare.head, bare.head_dist))
    student.eval()
    with torch.no_grad():
        assert torch.equal(student(noise(student))[0], bare(noise(student)))


def test_drawing_the_shapes_draws_no_number_and_takes_no_memory():
    torch.manual_seed(3)
    plain = nn.Linear(2, 2).weight.detach().clone()
    student = any_student("swin_tiny_patch4_window7_224", seed=3)
    ghost = on_meta(student.bare)
    assert all(weight.is_meta for weight in (*ghost.parameters(), *ghost.buffers()))
    assert not any(weight.is_meta for weight in student.parameters())
    size, arguments = FAMILIES["swin_tiny_patch4_window7_224"]
    torch.manual_seed(3)
    assert torch.equal(nn.Linear(2, 2).weight, plain)
    torch.manual_seed(4)
    truth = timm.create_model(student.name, num_classes=5, drop_path_rate=0.1, img_size=size, **arguments)
    torch.manual_seed(4)
    own = Student(student.name, num_classes=5, image_size=size, model_args=arguments).bare
    assert all(torch.equal(a, b) for a, b in zip(truth.parameters(), own.parameters(), strict=True))


def test_what_an_author_spares_from_decay_is_spared_and_muon_steps_no_first_or_last_layer():
    swin = any_student("swin_tiny_patch4_window7_224")
    spared = {id(weight) for weight in param_groups(swin, 0.05)[0]["params"]}
    tables = [weight for key, weight in swin.named_parameters() if "relative_position_bias_table" in key]
    assert tables and all(id(table) in spared for table in tables)
    resnet = any_student("resnet18")
    matrices = {id(weight) for weight in param_groups(resnet, 0.05, muon=True)[-1]["params"]}
    assert id(resnet.bare.layer1[0].conv1.weight) in matrices
    assert not {id(resnet.bare.conv1.weight), id(resnet.bare.fc.weight)} & matrices
    for also, own in (("stem", resnet.bare.conv1.weight), ("head", resnet.bare.fc.weight)):
        more = {id(weight) for weight in param_groups(resnet, 0.05, muon=True, also=[also])[-1]["params"]}
        assert more - matrices == {id(own)}


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet18", "levit_128s"])
def test_weights_of_other_classes_begin_it_all_but_its_head(name):
    donor, model = any_student(name, classes=7, seed=1), any_student(name, classes=5, seed=2)
    said = start_from(model, {"state_dict": donor.bare.state_dict()}, "it")
    sized = {key for key, value in donor.bare.state_dict().items() if value.shape != model.bare.state_dict()[key].shape}
    heads = {key.rpartition(".")[0] for key in sized}
    assert heads and all("tells other classes apart" in said and f"its {head} " in said for head in heads)
    for key, value in model.bare.state_dict().items():
        assert key in sized or torch.equal(value, donor.bare.state_dict()[key]), key
    with pytest.raises(UserError, match="does not fit the model"):
        start_from(model, {"strange.weight": torch.zeros(2)}, "it")


def test_a_localisation_loss_looks_at_maps_as_at_tokens():
    student = any_student("swin_tiny_patch4_window7_224")
    unit = GuidedStudent(student, [], GuidanceConfig(), DrlocConfig(weight=0.5, sample_size=4, hidden=8))
    tokens = student(noise(student))[1][-1]
    pairs = torch.randint(0, 2, (3, 2, 4, 2), generator=torch.Generator().manual_seed(0))
    as_tokens = tokens.permute(0, 2, 3, 1).reshape(3, 4, -1)
    assert tokens.dim() == 4 and torch.equal(unit.drloc(tokens, pairs), unit.drloc(as_tokens, pairs))


@pytest.mark.parametrize("name", ["fastvit_t8", "tf_mobilenetv3_small_minimal_100"])
def test_a_stem_that_pads_by_itself_or_has_a_second_branch_sees_every_pixel(name):
    """Of RepVGG's stem the 1 x 1 branch alone would leave a border; "same" convolutions say that they pad nothing."""
    student = Student(name, num_classes=3, image_size=64)
    images = noise(student, 1).requires_grad_()
    student.guide([0])
    student.eval()(images)[1][0].square().sum().backward()
    assert bool((images.grad.abs().sum((0, 1)) > 0).all())


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("inception_v3", {"image_size": 96}, "which would leave out .* set model.image_size=95 or 97"),
        ("swin_tiny_patch4_window7_224", {"blocks": [0, 4]}, "no block 4; its blocks are 0 to 3"),
        ("swin_tiny_patch4_window7_224", {"model_args": {"depht": 2}}, "model.args.depht is no argument"),
        ("swin_tiny_patch4_window7_224", {"image_size": 30}, "set model.image_size=28 or 32"),
        (
            "poolformer_s12",
            {"model_args": {"depths": [1, 1, 1, 1]}},
            "model.args.depths cannot be set: it is what makes",
        ),
        ("efficientformer_l1", {}, "cannot be run on images of 64 px.*try model.image_size=224"),
        ("convnext_atto", {"model_args": {"dims": [100_000, 1, 1, 1]}}, "give at most 65,536"),
        ("resnet18", {"model_args": {"channels": [60_000, 60_000, 60_000, 60_000]}}, "weights; give at most"),
        ("resnet18", {"model_args": {"layers": [1, 1, 1, 60_000]}}, "model.args.layers is .*give at most 1,000"),
        ("hf-hub:timm/resnet18", {}, "no model of timm"),
    ],
)
def test_what_cannot_be_guided_is_one_clear_line(name, more, says):
    with pytest.raises(UserError, match=says) as caught:
        Student(name, **{"num_classes": 3, "image_size": 64, **more})
    assert "\n" not in str(caught.value)
