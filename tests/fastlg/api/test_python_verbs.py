"""fastlg in Python: the runs of the command line, from objects, found again by both."""

from __future__ import annotations

import copy
import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import timm
import torch
import yaml
from refusals import refused
from torchvision.datasets import ImageFolder

import fastlg as package
from fastlg.api import verbs
from fastlg.api.given import as_command, as_file, config_of, text_of
from fastlg.config import Config, load_config
from fastlg.errors import Silenced, Stopped, UserError
from fastlg.models import Student

ALONE = {"teacher": None, "optim.epochs": 1}
BOTH = {"optim.epochs": 1, "run.name": "both", "log.every_steps": 1}
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


@pytest.fixture
def splits(image_folder):
    return ImageFolder(image_folder / "train"), ImageFolder(image_folder / "test")


def network(num_classes=3):
    torch.manual_seed(5)
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **TINY)


def losses(folder) -> list[tuple]:
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row.get("loss"), row["top1"]) for row in rows]


def test_importing_the_package_imports_nothing_heavy_and_the_verb_stays_the_verb():
    code = (
        "import sys, fastlg\n"
        "assert not {'torch', 'timm', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "verbs = {'train', 'compare', 'evaluate', 'sweep', 'predict', 'open_run'}\n"
        "assert verbs <= set(fastlg.__all__) <= set(dir(fastlg))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package.train = importlib.import_module("fastlg.train")  # as Python does when it first imports the module
    assert package.train.__module__ == "fastlg.api.verbs" and package.UserError is UserError
    assert not hasattr(package, "fit")


def test_a_dataset_trains_as_its_folder_does_and_the_command_line_finds_the_run(project, fastlg, splits):
    run = package.train("student.yaml", data=splits, **{"optim.epochs": 2, "run.name": "objects"})
    assert fastlg("train", "student.yaml", "optim.epochs=2", "run.name=folder")[0] == 0
    assert losses(run.folder) == losses("runs/folder")
    assert len(list((project / "runs" / "teachers").iterdir())) == 1, "one teacher for the same images"
    status, out, err = fastlg("eval", "runs/objects")
    assert status == 0 and f"top-1 {run.summary['top1_last']:.2f} %" in out, err
    status, out, err = fastlg("train", "runs/objects/config.yaml")
    assert status == 0 and "is complete" in out, err
    assert package.evaluate("runs/folder", splits[1]) == run.evaluate() == run.evaluate(str(run.config.data.source))


def test_the_result_is_asked_for_numbers_images_and_weights(project, splits):
    run = package.train("student.yaml", data=splits, **ALONE)
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    table = pandas.DataFrame(run.metrics)
    assert table.equals(run.metrics.to_pandas()) and list(table["kind"]) == ["train", "train", "eval"]
    assert run.metrics.to_dict()["top5"] == [None, None, run.summary["top5_last"]]
    rows = run.predict([splits[1][row][0] for row in range(len(splits[1]))], top_k=9)
    assert all(abs(sum(value for _, value in row["top"]) - 1) < 1e-5 for row in rows)
    right = [row["class"] == splits[1].classes[label] for row, label in zip(rows, splits[1].targets, strict=True)]
    assert 100 * sum(right) / 33 == pytest.approx(run.summary["top1_last"])
    assert not run.model.training and run.model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    exported = run.export("out")
    again = package.predict(exported, splits[1][0][0])[0]
    assert again["class"] == rows[0]["class"]
    assert again["probability"] == pytest.approx(rows[0]["probability"], abs=1e-5)
    found = package.open_run("runs/student")
    assert found.summary == run.summary and found.class_names == ["blue", "green", "red"] and "top-1" in repr(found)


def test_the_same_call_goes_on_where_a_run_was_broken_off(project, splits):
    class Breaks:
        def on_epoch_end(self, event):
            if event.epoch == 1:
                raise RuntimeError("enough")

    arguments = {"data": splits, "teacher": None, "optim.epochs": 2}
    whole = package.train("student.yaml", **arguments, **{"run.name": "whole"})
    with pytest.raises(package.RunError, match=r"Breaks.on_epoch_end failed: enough \(RuntimeError\)"):
        package.train("student.yaml", **arguments, callbacks=[Breaks()])
    assert package.open_run("runs/student").summary is None
    run = package.train("student.yaml", **arguments)
    assert losses(run.folder) == losses(whole.folder)


def test_other_images_are_not_taken_for_those_of_a_finished_run(project, splits):
    package.train("student.yaml", data=splits, **ALONE)
    with pytest.raises(UserError, match="was trained on other images"):
        package.train("student.yaml", data=splits[::-1], **ALONE)


def test_a_network_is_trained_from_its_weights_and_left_as_it_was(project, fastlg, splits):
    model = network()
    before = copy.deepcopy(model.state_dict())
    still = {**ALONE, "optim.lr": 1e-9, "optim.warmup_epochs": 0, "optim.min_lr": 0.0}
    run = package.train("student.yaml", data=splits, model=model, **still)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    after = run.model.state_dict()
    assert after.keys() == before.keys() and any(not torch.equal(after[key], before[key]) for key in before)
    assert all(torch.allclose(after[key], before[key], atol=1e-6) for key in before), "it began from other weights"
    assert package.evaluate("runs/student", model=model).top1 == run.summary["top1_last"] == run.evaluate().top1
    assert package.train("student.yaml", data=splits, model=network(), **still).summary == run.summary
    again = ("train", "runs/student/config.yaml", "run.name=b")
    for command in (("eval", "runs/student"), again, ("export", "runs/student", "o")):
        refused(fastlg(*command), "model VisionTransformer", "was a Python object", "model=...")
    with pytest.raises(UserError, match="was a Python object"):
        package.evaluate("runs/student")
    with pytest.raises(UserError, match="timm cannot build by a name alone.*state_dict"):
        run.export("out")


def test_a_network_of_timms_own_build_is_exported(project, splits):
    torch.manual_seed(5)
    model = timm.create_model("pit_ti_224", num_classes=3)  # not trained here: what is exported is what was built
    from fastlg.commands.export import _in_timm
    from fastlg.models import Student
    from fastlg.models.general.instances import name_of, offered

    with offered(model=model):
        student = Student(name_of(model), num_classes=3, image_size=224)
    assert _in_timm(student) == ("pit_ti_224", {})


def test_a_teacher_in_hand_guides_as_the_one_in_its_folder(project, fastlg, splits):
    run = package.train("student.yaml", data=splits, **{"optim.epochs": 1})
    (folder,) = Path("runs/teachers").iterdir()
    teacher = package.open_run(folder).model
    given = package.train("student.yaml", data=splits, teacher=teacher, **{"optim.epochs": 1, "run.name": "given"})
    assert losses(given.folder) == losses(run.folder)
    again = fastlg("train", "runs/given/config.yaml", "run.name=again")
    refused(again, "teacher CifarResNet", "was a Python object", "teacher=...")
    with pytest.raises(UserError, match=r"gives no \(logits, stage maps\)"):
        package.train("student.yaml", data=splits, teacher=torch.nn.Flatten(), **{"run.name": "none"})


def test_both_sides_of_a_comparison_begin_from_the_network_given(project, splits):
    found = package.compare("student.yaml", data=splits, model=network(), **BOTH)
    assert [row["run"] for row in found.table] == ["teacher", "unguided", "guided"]
    assert found.gain == found.guided.summary["top1_last"] - found.unguided.summary["top1_last"]
    first = [own.metrics[0]["loss_cls"] for own in (found.unguided, found.guided)]
    assert first[0] == first[1], "the same weights, images and labels"
    assert found.guided.evaluate().top1 == found.guided.summary["top1_last"]


def test_a_sweep_lists_its_runs_from_values_and_images_in_hand(project, splits, capfd):
    settings = {"optim.lr": [1e-3, 0.01], "augment.interpolation": ["bilinear", "bicubic"], "run.seed": [0, 1]}
    rows = package.sweep("student.yaml", settings, data=splits, dry_run=True, **ALONE)
    assert rows.to_dict()["optim.lr"] == ["0.001", "0.001", "0.01", "0.01"]
    assert all(len(row["runs"]) == 2 and row["top1_last"] is None for row in rows)
    assert "8 runs, 8 epochs left" in capfd.readouterr().out
    read = config_of("student.yaml", ALONE, data=splits)
    assert load_config(str(as_file(read))).data == read.data


def test_processes_are_told_what_the_command_line_is_told(project, splits):
    overrides = {"optim.epochs": 1, "run.name": "named", "teacher": None, "model.args": {"depth": 3}}
    for config in ("student.yaml", load_config("student.yaml"), yaml.safe_load(Path("student.yaml").read_text())):
        for data in (None, splits):
            name, texts = as_command(config, overrides, data)
            assert {"optim.epochs=1", "run.name=named", "teacher=null"} <= set(texts)
            want = config_of(config, overrides, data=data).model_dump(exclude={"paper"})
            assert load_config(name, texts).absolute().model_dump(exclude={"paper"}) == (
                config_of(config, overrides, data=data).absolute().model_dump(exclude={"paper"})
            ), want


def test_a_comparison_over_seeds_without_a_teacher_is_refused(project):
    with pytest.raises(package.UserError, match="no teacher section"):
        package.compare("student.yaml", teacher=None, seeds=2)


def test_images_in_hand_have_no_validation_split_of_their_own(project, splits):
    with pytest.raises(package.UserError, match="as data.val=0.1"):
        package.train("student.yaml", data=splits, teacher=None, **{"data.val": "split"})


def test_without_a_teacher_blocks_need_not_fit_its_stages(project, splits):
    read = config_of("student.yaml", {"model.blocks": [0, 1]}, data=splits, teacher=None)
    assert read.teacher is None and read.model.blocks == [0, 1]


def test_a_teacher_in_hand_may_know_its_own_channels(project, splits):
    teacher = Student("resnet10t", num_classes=3, image_size=32, blocks=[1, 2, 3], init="timm")
    own = {"optim.epochs": 1, "teacher.overrides.model.image_size": 32, "teacher.stages": [0, 1, 2]}
    run = package.train("student.yaml", data=splits, teacher=teacher, **own)
    assert run.metrics[0]["loss_guidance"] > 0


def test_nothing_of_the_configs_own_network_is_left_beside_one_in_hand(project):
    read = load_config("student.yaml", ["model.weights=runs/earlier", "model.image_size=64", "model.blocks=[0,2,1]"])
    found = config_of(read, {}, model=network()).model
    assert (found.weights, found.args, found.init, found.image_size) == (None, {}, "timm", 32)
    assert found.blocks == [0, 2, 1] and found.name.startswith("instance::VisionTransformer_")
    assert config_of(read, {}, model=torch.nn.Linear(2, 2)).model.image_size == 64, (
        "it says no size: the config's stays"
    )
    assert config_of(read, {"model.image_size": 48}, model=network()).model.image_size == 48


def test_a_student_and_a_teacher_of_one_build_are_told_apart():
    from fastlg.models.general.instances import name_of, offered, taken

    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    with offered(model=one, teacher=other):
        for field, network in (("model", one), ("teacher", other)):
            found = taken(name_of(network), field)
            assert torch.equal(found.weight, network.weight) and found is not network
    with pytest.raises(UserError, match=r"teacher Linear_\w+ was a Python object.*teacher=\.\.\."):
        taken(name_of(other), "teacher")


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (Stopped(signal.SIGINT), KeyboardInterrupt("the run is saved, the same call goes on")),
        (Stopped(signal.SIGTERM), SystemExit(143)),
        (Silenced(2), SystemExit(2)),
    ],
    ids=str,
)
def test_a_stopped_run_ends_a_script_as_python_has_it(raised, seen, project, monkeypatch):
    def stops(*_, **__):
        raise raised

    monkeypatch.setattr(verbs, "train_one", stops)
    with pytest.raises(type(seen)) as ended:
        package.train("student.yaml")
    assert ended.value.args == seen.args


@pytest.mark.parametrize("value", ["bicubic", "rand-m9-mstd0.5-inc1", "a,b", "it's", "", 1e-9, 3, True, None, [1, [2]]])
def test_a_value_is_read_back_as_it_was(value):
    from fastlg.commands.sweep import split_values
    from fastlg.config import parse_overrides

    (text,) = split_values(text_of(value))
    assert parse_overrides([f"model.args.some={text}"])["model.args.some"] == value


@pytest.mark.parametrize("form", ["name", "path", "mapping", "dotted", "object"])
def test_a_config_is_taken_in_every_form(form, project):
    want = load_config("student.yaml").replace({"run.name": "x"})
    tree = want.model_dump(mode="json")
    forms = {
        "name": "student",
        "path": Path("student.yaml"),
        "mapping": tree,
        "dotted": {**tree, "optim": {}, **{f"optim.{key}": value for key, value in tree["optim"].items()}},
        "object": Config.model_validate(tree),
    }
    if form == "name":
        assert config_of("quickstart", {"run.name": "x"}) == load_config("quickstart", ["run.name=x"])
    else:
        assert config_of(forms[form], {"run.name": "x"}) == want


REFUSED = {
    "an unknown key": ({"optim.epoch": 3}, "optim.epoch"),
    "a bare key": ({"epochs": 3}, "epochs"),
    "a value out of range": ({"optim.epochs": 0}, "argument optim.epochs=0"),
    "a model's name as the model": ({"model": "deit_tiny_patch16_224"}, "model is a str.*model.name"),
    "arguments beside an object": ({"model": network(), "model.args": {"depth": 2}}, "exclude each other"),
    "a teacher for nobody": ({"teacher": network(), "config": {"model": {"name": "x"}}}, "no teacher section"),
    "another number of classes": ({"model": network(7)}, "has 7 classes, the images have 3.*reset_classifier"),
    "callbacks that are none": ({"callbacks": [3]}, "callback int has none of the methods on_start"),
    "one callback alone": ({"callbacks": print}, "give a list"),
    "no config": ({"config": 3}, "config is a int"),
    "a mix of splits": ({"data": ("images", [1])}, "mixes paths and datasets"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_callers_mistake_is_one_line(case, project, image_folder):
    arguments, words = REFUSED[case]
    arguments = {"config": "student.yaml", "data": str(image_folder), **arguments}
    with pytest.raises(UserError, match=words) as refusal:
        package.train(arguments.pop("config"), **arguments)
    assert "\n" not in str(refusal.value) and not Path("runs").exists()
