"""A config is refused in one line that names key, value and fix; a good one survives a round trip."""

from __future__ import annotations

import os

import pytest
import yaml

from fastlg.config import config_folders, dotted, find_config, load_config, parse_overrides, save_config, saved_config
from fastlg.errors import UserError

SMALL = {"data": {"source": "images"}, "model": {"name": "resnet20", "image_size": 32}}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return str(path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.epoch=3"], ["optim.epoch", "did you mean optim.epochs"]),
        (["lr=0.1"], ["lr", "did you mean optim.lr"]),
        (["optim.lr=-1"], ["optim.lr", "-1", "greater than 0"]),
        (["optim.epochs=many"], ["optim.epochs", "'many'", "integer"]),
        (["data.loader=fast"], ["data.loader", "'fast'", "resident"]),
        (["model.blocks=[0, -1, 3]"], ["model.blocks", "-1"]),
        (["model.blocks=[0, 3]", "teacher.recipe=x"], ["[0, 3]", "[0, 1, 2]", "length"]),
        (["augment.crop_scale=[1.0, 0.5]"], ["crop_scale", "[1.0, 0.5]"]),
        (["optim=3"], ["optim", "3"]),
        (["optim.name=muon", "engine.zero_stage=1"], ["muon", "engine.zero_stage 1", "engine.zero_stage=0"]),
        (["optim.lr"], ["optim.lr", "section.key=value"]),
        (["optim.lr=[1"], ["optim.lr=[1", "YAML"]),
    ],
)
def test_bad_values_are_one_line_with_key_value_and_fix(small, overrides, words):
    with pytest.raises(UserError) as caught:
        load_config(small, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_missing_required_key_says_how_to_give_it(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {name: resnet20}")
    with pytest.raises(UserError, match=r"data.source is missing.*data.source=VALUE"):
        load_config(str(path))


def test_unreadable_yaml_and_non_mapping_are_refused(tmp_path):
    bad, scalar = tmp_path / "bad.yaml", tmp_path / "scalar.yaml"
    bad.write_text("a: [1")
    scalar.write_text("just words")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(bad))
    with pytest.raises(UserError, match="mapping"):
        load_config(str(scalar))


def test_a_config_file_gives_the_run_its_name_and_survives_a_round_trip(small, tmp_path):
    config = load_config(small, ["optim.lr=5e-4", "model.args.depth=3", "augment.rand_augment=null"])
    assert config.run.name == "small"
    assert config.optim.lr == 5e-4
    assert config.model.args == {"depth": 3}
    assert config.augment.rand_augment is None
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(str(tmp_path / "saved.yaml")) == config


@pytest.mark.parametrize("source", ["torchvision:CIFAR100", "hf://owner/name/config", "demo:mnist5k"])
def test_names_stay_as_they_are_where_paths_become_absolute(small, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    config = load_config(small, [f"data.source={source}", "teacher.recipe=cifar100/resnet56", "model.blocks=auto"])
    assert config.absolute() == config.replace({"run.root": str(tmp_path / "runs")})


def test_every_path_of_a_config_means_the_same_from_any_working_folder(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("")
    paths = {
        "run.root": "../r",
        "data.store": "s",
        "teacher.weights": "w.pt",
        "teacher.cache": "c",
        "engine.deepspeed_config": "d.json",
        "teacher.recipe": "own.yaml",
        "data.source": "demo",  # a folder: nothing but a colon makes it a name
    }
    given = [f"{key}={value}" for key, value in paths.items()]
    config = load_config(small, [*given, "model.blocks=auto"])
    absolute = dotted(config.absolute().model_dump(mode="json"))
    assert {key: absolute[key] for key in paths} == {
        **{key: str(tmp_path / value) for key, value in paths.items()},
        "run.root": str(tmp_path.parent / "r"),
    }
    assert load_config(small, ["data.source=~/x"]).absolute().data.source == os.path.expanduser("~/x")
    given = ["data.source=./~/x", "run.root=./~/x", "data.store=./~nouser"]
    loaded, here = load_config(small, given), os.getcwd()
    for config in (loaded, loaded.absolute()):  # folders that are called so, here
        assert os.path.abspath(config.data.source) == os.path.join(here, "~/x")
        assert (str(config.run.root), str(config.data.store)) == (f"{here}/~/x", f"{here}/~nouser")


def test_teacher_overrides_keep_their_dotted_keys(small):
    config = load_config(small, ["teacher.recipe=r", "teacher.overrides.optim.epochs=2", "model.blocks=auto"])
    assert config.teacher.overrides == {"optim.epochs": 2}


def test_shipped_configs_are_found_by_every_form_of_their_name():
    shipped = config_folders()[0] / "cifar100" / "deit_tiny.yaml"
    for name in ("cifar100/deit_tiny", "cifar100/deit_tiny.yaml", "configs/cifar100/deit_tiny.yaml"):
        assert find_config(name).resolve() == shipped.resolve()
    with pytest.raises(UserError, match="did you mean cifar100/deit_tiny"):
        find_config("cifar100/deit_tny")


def test_override_values_are_yaml():
    assert parse_overrides(["a.b=[1, 2]", "c=null", "d=x=y"]) == {"a.b": [1, 2], "c": None, "d": "x=y"}


def test_a_run_that_was_saved_before_a_field_existed_means_what_it_trained_by():
    for optim, meant in (({"name": "muon"}, []), ({"name": "muon", "muon_also": ["head"]}, ["head"]), ({}, ["stem"])):
        assert saved_config({**SMALL, "optim": optim}, "it").optim.muon_also == meant
