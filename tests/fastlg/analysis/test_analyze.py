"""``fastlg analyze`` on runs, a comparison and an export: numbers, pictures, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from analysis_cases import images_for, small_student
from matplotlib.figure import Figure
from PIL import Image

from fastlg.analysis.measure import measure
from fastlg.analysis.pictures import draw_attention
from fastlg.analysis.subject import batches, evenly, load_subject, pictures
from fastlg.assemble import make_views
from fastlg.commands.export import export_student
from fastlg.config import Config, load_config
from fastlg.data.loaders.of_run import new_loader
from fastlg.data.stores import open_stores
from fastlg.models import Student
from fastlg.models.general.teaching import StageMaps
from fastlg.run.curves import _beside
from fastlg.run.trained import load_trained
from fastlg.train import train

PICTURES = ["attention.png", "curves.png", "distance.png", "rollout.png", "similarity.png"]
OF_BLOCK = {
    "block", "grid", "keys", "token_px", "distance_px", "distance", "heads_px", "heads", "uniform_px", "uniform",
    "prefix_share",
}  # fmt: skip
OF_MODEL = {
    "folder", "checkpoint", "model", "image_size", "guided_blocks", "distance_px", "distance", "blocks", "cka", "notes",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(shared_project, tmp_path_factory):
    """A folder with runs/pair/{unguided,guided}, as ``compare`` leaves them, and an export of the guided one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shared_project)
        patch.setenv("FASTLG_CACHE", str(shared_project / "cache"))
        config = load_config("student.yaml", ["optim.epochs=1", "run.root=runs/pair"])
        train(config.replace({"run.name": "guided"}))
        train(config.replace({"run.name": "unguided", "teacher": None}))
        trained, model, names = load_trained(shared_project / "runs/pair/guided")
        export_student(model, shared_project / "exported", class_names=names, config=trained)
    return shared_project


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy that a test may change; run.root and the teacher's place are those of ``made``."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    shutil.copytree(made / "exported", tmp_path / "exported")
    for name in ("student.yaml", "teacher.yaml"):
        shutil.copy(made / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTLG_CACHE", str(made / "cache"))
    return tmp_path


def report_of(folder) -> dict:
    return json.loads((folder / "analysis.json").read_text())


def test_a_run_leaves_its_numbers_and_pictures_and_is_still_a_run(here, fastlg):
    status, out, err = fastlg("analyze", "runs/pair/guided", "--images", "10")
    assert status == 0 and err == "", out
    folder = here / "runs/pair/guided/analysis"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*PICTURES, "analysis.json", "maps.json"])
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200
    report = report_of(folder)
    assert report["images"] == 10 and set(report) == {"version", "images", "source", "teacher", "models", "files"}
    assert sorted(report["files"]) == sorted([*PICTURES, "maps.json"])
    (own,) = report["models"].values()
    assert set(own) == OF_MODEL and list(report["models"]) == ["guided"] and own["guided_blocks"] == [0, 1, 2]
    assert [set(block) for block in own["blocks"]] == [OF_BLOCK] * 3
    assert own["distance"] == pytest.approx(sum(block["distance"] for block in own["blocks"]) / 3)
    assert [len(block["heads_px"]) for block in own["blocks"]] == [3] * 3
    assert all(0 < value <= 1 for row in own["cka"] for value in row) and len(own["cka"]) == len(own["cka"][0]) == 3
    maps = json.loads((folder / "maps.json").read_text())
    assert len(maps["sample_ids"]) == 4 and torch.tensor(maps["models"]["guided"]["rollout"]).shape == (4, 4, 4)
    dense = maps["models"]["guided"]["dense_rollout"]
    assert len(dense["classes"]) == 4 and torch.tensor(dense["soft"]).shape == torch.tensor(dense["hard"]).shape
    assert f"{own['distance']:.4f} on Table 5's scale" in out and "stage 2 is closest to block" in out
    assert (
        "nothing to do" in fastlg("train", "student.yaml", "optim.epochs=1", "run.root=runs/pair", "run.name=guided")[1]
    )


def test_two_runs_and_their_comparison_lie_side_by_side(here, fastlg):
    status, _, err = fastlg(
        "analyze",
        "runs/pair/unguided",
        "runs/pair/guided",
        "--images=9",
        "--out=both",
        "--blocks=2",
        "--image=20,3",
        "--class=green",
    )
    assert status == 0, err
    report = report_of(here / "both")
    assert list(report["models"]) == ["unguided", "guided"] and "resnet20" in report["teacher"]
    maps = json.loads((here / "both/maps.json").read_text())
    assert maps["sample_ids"] == [20, 3] and report["images"] == 9
    for own in maps["models"].values():
        assert own["dense_rollout"]["classes"] == ["green"] * 2
        assert torch.tensor(own["dense_rollout"]["soft"]).shape == (2, 4, 4)
    unguided, guided = report["models"].values()
    assert unguided["guided_blocks"] == [] and unguided["cka"] != guided["cka"], "one teacher for both"
    assert unguided["blocks"][0]["uniform_px"] == guided["blocks"][0]["uniform_px"]
    assert unguided["distance_px"] != guided["distance_px"]
    assert fastlg("analyze", "runs/pair", "--images=9")[0] == 0
    assert report_of(here / "runs/pair/analysis")["models"].keys() == report["models"].keys()


def test_an_export_says_what_its_run_does(here, fastlg, image_folder):
    status, _, err = fastlg("analyze", "exported", f"data.source={image_folder}", "--images=10")
    assert status == 0, err
    exported = report_of(here / "exported/analysis")
    assert exported["teacher"] is None and not (here / "exported/analysis/similarity.png").exists()
    teacher = next((here / "runs/pair/teachers").iterdir())
    status, _, err = fastlg(
        "analyze", "runs/pair/guided", "exported", "--images=10", f"--teacher={teacher}", "--out", "two"
    )
    assert status == 0, err
    run, export = report_of(here / "two")["models"].values()
    for one, other, alone in zip(
        run["blocks"], export["blocks"], exported["models"]["exported"]["blocks"], strict=True
    ):
        assert one["heads_px"] == pytest.approx(other["heads_px"], rel=1e-5)
        assert one["heads_px"] == pytest.approx(alone["heads_px"], rel=1e-5)
    assert export["checkpoint"] is None
    torch.testing.assert_close(torch.tensor(run["cka"]), torch.tensor(export["cka"]), rtol=1e-4, atol=1e-6)


def test_an_export_is_read_with_the_eps_that_its_weights_expect(tmp_path):
    """Of PVTv2's norms, which the reference code has otherwise than timm: small maps tell them apart."""
    torch.manual_seed(1)
    student = Student("pvt_v2_b0", num_classes=2, image_size=64, model_args={"embed_dims": [8, 16, 40, 64]}).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for module in student.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.mul_(0.02)
    config = Config(run={"name": "r"}, data={"source": "x"}, model={"name": "pvt_v2_b0"})
    export_student(student, tmp_path / "out", class_names=["a", "b"], config=config)
    subject = load_subject(tmp_path / "out", "last", {}, "images")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(subject.student(x)[0], student(x)[0], rtol=1e-4, atol=1e-5)
    assert subject.class_names == ["a", "b"] and subject.config.data.source == "images" and subject.trained is None


def test_the_cross_lies_on_the_token_whose_attention_is_drawn():
    student = small_student("pvt")
    found = {"one": measure(student, [(images_for(student, 1), torch.empty(1))], shown=1)}
    figure = draw_attention(found, np.zeros((1, 64, 64, 3), dtype=np.uint8), [0, 3], Figure)
    places = [axes.lines[0].get_xydata()[0].tolist() for axes in figure.axes if axes.lines]
    assert places == [[8.5 * 4, 8.5 * 4], [1.5 * 32, 1.5 * 32]]  # middles of token 8 of 16 and of token 1 of 2


@pytest.mark.parametrize(
    ("end", "ends", "stands"),
    [(5, [5], "center"), (5, [5, 5], "center"), (6, [5, 6], "bottom"), (5, [5, 6], "top"), (5, [4, 5, 6], "center")],
)
def test_labels_of_curves_that_end_close_together_stand_apart(end, ends, stands):
    assert _beside(end, ends) == stands


def test_images_are_spread_over_the_split_and_seen_as_evaluation_sees_them(here):
    assert evenly(500, 4) == [0, 166, 333, 499] and evenly(3, 10) == [0, 1, 2] and evenly(7, 1) == [0]
    subject = load_subject(here / "runs/pair/guided", "last", {})
    store = open_stores(subject.config.data).test
    (batch,) = [
        *new_loader(subject.config.replace({"log.eval_batch_size": 33}), store, torch.device("cpu"), train=False).epoch(
            0
        )
    ]
    want = make_views(subject.config, 16)(batch, 0, train=False)
    rows = [30, 2, 17]
    (found,) = batches(subject, store, rows, 16, torch.device("cpu"))
    assert torch.equal(found[0], want.student[rows]) and torch.equal(found[1], want.teacher[rows])
    assert (pictures(store, rows, 32) == batch.images[rows].numpy()).all()


def test_the_best_checkpoint_is_another_subject(here, fastlg):
    for which in ("last", "best"):
        assert fastlg("analyze", "runs/pair/unguided", f"--which={which}", "--images=2", f"--out={which}")[0] == 0
        assert report_of(here / which)["models"]["unguided"]["checkpoint"] == which
    assert fastlg("analyze", "runs/pair/unguided", "--images=999", "--out=all")[1].count("33, which is all") == 1


def test_a_teacher_sees_the_images_normalised_as_it_was_trained_whoever_names_it(here, fastlg):
    own = ["optim.epochs=1", "run.name=other", "teacher.overrides.model.name=resnet10t", "teacher.stages=[1,2,3]"]
    own += ["teacher.overrides.model.image_size=32", "teacher.overrides.augment.mean=[0.1,0.2,0.3]"]
    status, _, err = fastlg("train", "student.yaml", *own)
    assert status == 0, err
    assert fastlg("analyze", "runs/other", "--images", "9")[0] == 0
    cka = next(iter(report_of(here / "runs/other/analysis")["models"].values()))["cka"]
    recipe = next(path for path in (here / "runs/teachers").iterdir() if "resnet10t" in path.name)
    assert fastlg("analyze", "runs/other", "--images", "9", "--teacher", recipe, "--out", "again")[0] == 0
    assert next(iter(report_of(here / "again")["models"].values()))["cka"] == cka
    subject = load_subject(here / "runs/other", "last", {})
    trained, teacher, _ = load_trained(recipe)
    store = open_stores(subject.config.data).test
    (seen,) = batches(subject, store, evenly(len(store), 9), 32, torch.device("cpu"))
    columns = [torch.tensor(side).view(3, 1, 1) for side in (*mean_and_std(subject.config), *mean_and_std(trained))]
    pixels = seen[1] * columns[1] + columns[0]
    found = measure(subject.student, [(seen[0], (pixels - columns[2]) / columns[3])], teacher=StageMaps(teacher))
    for row, other in zip(cka, found.cka, strict=True):
        assert row == pytest.approx(other, rel=1e-3)


def mean_and_std(config):
    return config.augment.mean, config.augment.std


def test_pictures_that_fail_are_lines_and_the_numbers_are_there(here, fastlg, monkeypatch):
    folder = here / "runs/pair/guided/analysis"
    folder.mkdir()
    for name in (*PICTURES, "analysis.json", "notes.txt"):
        (folder / name).write_text("of an earlier call")
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: (_ for _ in ()).throw(ValueError("no\nink")))
    status, out, err = fastlg("analyze", "runs/pair/guided", "--images=3")
    assert status == 0 and err == ""
    assert sum(line.startswith("warning  the picture") for line in out.splitlines()) == len(PICTURES)
    assert sorted(path.name for path in folder.iterdir()) == ["analysis.json", "maps.json", "notes.txt"]
    assert report_of(folder)["files"] == ["maps.json"]


def test_a_run_whose_teacher_is_gone_is_analysed_without_it_and_says_so(here, made, fastlg):
    saved = here / "runs/pair/guided/config.yaml"
    saved.write_text(saved.read_text().replace(str(made / "runs"), str(here / "runs")))
    shutil.rmtree(here / "runs/pair/teachers")
    status, out, err = fastlg("analyze", "runs/pair/guided", "--images=3")
    assert status == 0 and err == "" and "--teacher RUN names it" in out
    assert report_of(here / "runs/pair/guided/analysis")["models"]["guided"]["cka"] is None


REFUSED = [
    (["nowhere"], "there is no run nowhere"),
    (["runs/pair/guided", "runs/pair/guided/"], "are the same"),
    (["runs/pair/guided", "exported", "third"], "third is a third"),
    (["runs/pair/guided", "runs"], "no run folder"),
    (["runs/pair/guided", "model.name=x"], "model.name"),
    (["runs/pair/guided", "data.source=nowhere"], "nowhere"),
    (["runs/pair/guided", "data.source="], "data.source"),
    (["exported"], "data.source=IMAGES"),
    (["runs/pair/guided", "--blocks=7"], "its blocks are 0 to 2"),
    (["runs/pair/guided", "--blocks=1,,x"], "0,6,11"),
    (["runs/pair/guided", "--image=1,x"], "3,17"),
    (["runs/pair/guided", "--image=33"], "there is no image 33; they are 0 to 32"),
    (["runs/pair/guided", "--class=nobody"], "--class nobody"),
    (["runs/pair/guided", "--images=0"], "--images"),
    (["runs/pair/guided", "--images=some"], "--images"),
    (["runs/pair/guided", "--which=first"], "last or best"),
    (["runs/pair/guided", "--teacher=runs/none"], "there is no run runs/none"),
    (["runs/pair/guided", "--out=student.yaml"], "student.yaml is a file"),
    (["TEACHER"], "no attention"),
    (["broken", "data.source=IMAGES"], "not what fastlg export writes"),
    (["emptied", "data.source=IMAGES"], "does not fit its config.json"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=lambda value: " ".join(value)[:50])
def test_what_cannot_be_is_one_line_and_nothing_is_written(here, fastlg, image_folder, arguments, said):
    for name, file, content in (("broken", "config.json", "[]"), ("emptied", "model.safetensors", "")):
        shutil.copytree(here / "exported", here / name)
        (here / name / file).write_text(content)
    teacher = str(next((here / "runs/pair/teachers").iterdir()).relative_to(here))
    arguments = [text.replace("TEACHER", teacher).replace("IMAGES", str(image_folder)) for text in arguments]
    status, _, err = fastlg("analyze", *arguments)
    assert status == 2 and err.startswith("fastlg: ") and err.count("\n") == 1 and said in err, err
    assert not list(here.rglob("analysis"))
