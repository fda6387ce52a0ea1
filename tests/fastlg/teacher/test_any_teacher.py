"""Teachers that are no CIFAR ResNet: trained by a recipe or read from a file, by any stages, online and cached."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from any_students import FAMILIES, any_student, noise
from cache_cases import FIXED, PLAIN, RUNNING
from refusals import refused
from safetensors.torch import save_file

from fastlg.assemble import assemble
from fastlg.config import AugmentConfig, load_config
from fastlg.data.stores import open_stores
from fastlg.features import build_cache, plan_cache
from fastlg.models.general.teaching import as_teacher
from fastlg.teacher.cache.read import open_cache
from fastlg.train import find_or_train_teacher

SIZE, ARGUMENTS = FAMILIES["resnet18"]
RESNET = (
    "teacher.overrides.model.name=resnet18",
    f"teacher.overrides.model.image_size={SIZE}",
    f"teacher.overrides.model.args={json.dumps(ARGUMENTS)}",
)
FOUR = ("model.args.depth=4", "model.blocks=auto", "teacher.stages=[1,2,3,4]")


def test_a_recipe_trains_it_on_the_runs_images_and_four_of_its_stages_guide(project, fastlg):
    other = "teacher.overrides.augment.mean=[0.3,0.4,0.5]"
    status, out, err = fastlg("train", "student.yaml", *RESNET, *FOUR, other, "optim.epochs=1")
    assert status == 0, err
    assert "block 0 ~ stage 1, block 1 ~ stage 2, block 2 ~ stage 3, block 3 ~ stage 4" in out
    (folder,) = (project / "runs" / "teachers").iterdir()
    assert folder.name.startswith("resnet18-") and (folder / "summary.json").is_file()
    assert f"resnet18 at {SIZE} px from" in out
    config = load_config("student.yaml", [*RESNET, *FOUR, other])
    teacher, size = find_or_train_teacher(config, open_stores(config.data), dry_run=False)
    assert size == SIZE and teacher.dims == [64, 8, 16, 24, 32]
    shift = (torch.tensor([0.485, 0.456, 0.406]) - torch.tensor([0.3, 0.4, 0.5])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(teacher.shift.flatten(), shift)


@pytest.fixture
def donor(project):
    """Weights of a network of seven other classes, by timm's names."""
    model = any_student("resnet18", classes=7, seed=5).bare
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, project / "it.safetensors")
    torch.save({"state_dict": model.state_dict(), "epoch": 9}, project / "it.pth.tar")
    return model.eval()


@pytest.mark.parametrize("file", ["it.safetensors", "it.pth.tar"])
def test_a_local_file_of_timms_names_guides_but_answers_for_no_classes_it_does_not_know(project, fastlg, donor, file):
    named = (*RESNET, f"teacher.weights={file}", "teacher.stages=[3]", "model.blocks=[1]")
    status, out, err = fastlg("train", "student.yaml", *named, "--dry-run")
    assert status == 0, err
    assert "its fc tells other classes apart" in out and "block 1 ~ stage 3" in out
    refused(fastlg("train", "student.yaml", *named, "guidance.logits=soft"), "its fc tells other classes apart", "none")
    config = load_config("student.yaml", list(named))
    teacher, _ = find_or_train_teacher(config, open_stores(config.data), dry_run=False)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        truth = donor.forward_intermediates(images, intermediates_only=True)
        assert all(torch.equal(own, other) for own, other in zip(teacher.eval()(images)[1], truth, strict=True))
    assert not list((project / "runs").glob("*"))


def test_what_does_not_fit_is_one_line_before_anything_is_trained(project, fastlg, donor):
    weights = timm.create_model("test_resnet", num_classes=7).state_dict()
    torch.save(weights, project / "other.pth")
    lines = {
        ("teacher.weights=other.pth",): ("teacher.weights other.pth does not fit the model", "same model.name"),
        ("teacher.stages=[0,1,5]",): ("teacher.stages [0, 1, 5]", "no stage 5", "0 to 4"),
        ("teacher.overrides.model.name=resnet19",): ("resnet19 is no model of timm", "did you mean"),
        ("teacher.overrides.model.name=efficientformer_l1", "teacher.overrides.model.args={}"): (
            "images of 40 px",
            "224",
        ),
    }
    for overrides, says in lines.items():
        refused(fastlg("train", "student.yaml", *RESNET, *overrides), *says)
    (project / "guided.yaml").write_text((project / "student.yaml").read_text())
    refused(fastlg("train", "student.yaml", "teacher.recipe=guided.yaml"), "has a teacher itself", "teacher=null")
    assert not (project / "runs").exists()


def parts_of(overrides, norm: AugmentConfig, *, cached: bool, size: int = SIZE):
    """Parts guided by a ResNet-18 whose statistics are those of noise."""
    config = load_config("student.yaml", [*overrides, *FOUR])
    stores = open_stores(config.data)
    student = any_student("resnet18", classes=3, seed=4)
    with torch.no_grad():
        student.train()(noise(student, 12))
    model, features = as_teacher(student.eval(), norm, config.augment), None
    if cached:
        job = plan_cache(config, stores, model, size)
        build_cache(job, config, stores)
        features = open_cache(job.path, job.fingerprint)
    parts = assemble(config, stores, model, size, features)
    parts.unit.train()
    return parts


def step(parts, batch):
    views = parts.views(batch, 0)
    torch.manual_seed(5)  # drop path
    return parts.unit(views.student, batch.labels, parts.engine.guide(views, batch))


@pytest.mark.parametrize("form", ["maps", "compact"])
def test_its_cached_maps_guide_as_it_does_itself(project, form):
    """Fixed crops with flips; the online teacher's statistics are folded; the views are normalised by other numbers."""
    overrides = [*FIXED, *RUNNING, f"teacher.cache_form={form}"]
    norm = AugmentConfig(mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
    cached = parts_of(overrides, norm, cached=True)
    online = parts_of([*overrides, "teacher.mode=online", "engine.fold_norms=true"], norm, cached=False)
    assert cached.teacher.dims == online.teacher.dims == [8, 16, 24, 32]
    batch = next(iter(online.train_loader.epoch(0)))
    assert 0 < batch.flip.sum() < len(batch.flip)
    one, two = step(cached, batch), step(online, batch)
    assert two.loss_guidance > 0
    torch.testing.assert_close(one.loss, two.loss, rtol=1e-5, atol=0)


def test_batch_statistics_of_maps_of_one_pixel_are_planned_and_cached(project):
    parts = parts_of([*PLAIN, "teacher.norm_stats=batch"], AugmentConfig(), cached=True, size=32)
    assert parts.teacher.cache.map_sizes[-1] == (1, 1)
    batch = next(iter(parts.train_loader.epoch(0)))
    assert step(parts, batch).loss_guidance.isfinite()
