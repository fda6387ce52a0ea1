"""Any network teaches by maps of what it lists, and sees views as it was trained to."""

from __future__ import annotations

import pytest
import timm
import torch
from any_students import FAMILIES, any_student, noise

from fastlg.config import AugmentConfig
from fastlg.models import Student, resnet20
from fastlg.models.general.teaching import StageMaps, as_teacher
from fastlg.teacher.cache.format import weights_digest
from fastlg.teacher.online import OnlineTeacher

SAME = AugmentConfig()


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "test_efficientnet"])
def test_maps_of_a_cnn_are_those_of_timms_features_only(name):
    student = any_student(name).eval()
    size, arguments = FAMILIES[name]
    pyramid = timm.create_model(name, features_only=True, out_indices=range(student.depth), **arguments).eval()
    weights = student.bare.state_dict()
    pyramid.load_state_dict({own: weights[theirs] for own, theirs in named_alike(pyramid, student.bare)})
    teacher = OnlineTeacher(as_teacher(student, SAME, SAME), stages=list(range(student.depth)), norm_stats="running")
    images = noise(student)
    with torch.no_grad():
        truth = pyramid(images)
    assert teacher.dims == pyramid.feature_info.channels()
    for own, other in zip(teacher(images).maps, truth, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def named_alike(pyramid, model):
    """timm joins the first parts of some names by _, and leaves the classifier out."""
    theirs = {name.replace(".", "_"): name for name in model.state_dict()}
    return [(own, theirs[own.replace(".", "_")]) for own in pyramid.state_dict()]


@pytest.mark.parametrize("name", ["cait_xxs24_224", "vit_relpos_small_patch16_224", "hiera_tiny_224"])
def test_transformers_teach_by_the_maps_of_their_tokens(name):
    student = any_student(name).eval()
    teacher = as_teacher(student, SAME, SAME)
    images = noise(student)
    with torch.no_grad():
        logits, maps = teacher(images)
        truth = student.bare.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
        assert torch.equal(logits, student.bare(images))
    assert all(torch.equal(own, other) for own, other in zip(maps, truth, strict=True))


def test_the_maps_of_a_vit_are_its_patch_tokens_without_those_in_front_of_them():
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    student = Student("deit_tiny_distilled_patch16_224", num_classes=3, image_size=32, model_args=arguments).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        _, maps = as_teacher(student, SAME, SAME)(images)
        truth = student.bare.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    assert len(maps) == 2
    for own, other in zip(maps, truth, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("name", ["resnet18", "cifar"])
def test_a_teacher_of_another_normalisation_sees_the_images_it_was_trained_on(name):
    own = AugmentConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    seen = AugmentConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    torch.manual_seed(0)
    network = resnet20(5).eval() if name == "cifar" else any_student(name).eval()
    pixels = torch.rand(2, 3, 40, 40)

    def normalised(side):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (side.mean, side.std))
        return (pixels - mean) / std

    plain, behind = as_teacher(network, own, own), as_teacher(network, own, seen)
    with torch.no_grad():
        (logits, maps), (truth, expected) = behind(normalised(seen)), plain(normalised(own))
    torch.testing.assert_close(logits, truth, rtol=1e-4, atol=1e-5)
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert behind.dims == plain.dims and weights_digest(behind) != weights_digest(plain)
    assert (plain is network) == (name == "cifar")


def test_networks_of_equal_weights_that_are_built_otherwise_are_told_apart():
    one, other = any_student("resnet18"), any_student("resnet18")
    other.model_args["output_stride"] = 8
    assert weights_digest(StageMaps(one)) == weights_digest(StageMaps(any_student("resnet18")))
    assert weights_digest(StageMaps(one)) != weights_digest(StageMaps(other))


@pytest.mark.parametrize("norm_stats", ["batch", "running"])
def test_a_teacher_with_drop_path_drops_nothing_and_its_statistics_stay(norm_stats):
    student = any_student("test_efficientnet", drop_path=0.5)
    before = {key: value.clone() for key, value in student.state_dict().items() if "num_batches" not in key}
    teacher = OnlineTeacher(as_teacher(student, SAME, SAME), stages=[1, 4], norm_stats=norm_stats)
    images = noise(student, 4)
    one, two = teacher(images), teacher(images)
    assert all(torch.equal(a, b) for a, b in zip((*one.maps, one.logits), (*two.maps, two.logits), strict=True))
    alone = teacher(images[:2]).maps[1]
    assert torch.allclose(alone, one.maps[1][:2], rtol=1e-3, atol=1e-4) == (norm_stats == "running")
    assert all(torch.equal(student.state_dict()[key], value) for key, value in before.items())
