"""A small file states what differs from its base; what cannot be a base is refused in a line."""

from __future__ import annotations

import pytest
import yaml

from fastlg.config import load_config, save_config, shipped_configs
from fastlg.errors import UserError

BASE = {
    "run": {"name": "mine", "seed": 7},
    "paper": {"table": 1, "row": "base", "top1": 50.0},
    "data": {"source": "images"},
    "augment": {"crop_scale": [0.5, 1.0], "flip": 0.25},
    "model": {"name": "vit_tiny_patch16_224", "blocks": [0, 1, 2], "args": {"depth": 3, "num_heads": 3}},
    "teacher": {"recipe": "cifar100/resnet56", "overrides": {"optim.epochs": 3}},
    "optim": {"epochs": 5},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Configs in ``configs``, and another working folder."""
    (tmp_path / "own").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(tmp_path / "own" / "base.yaml", BASE)
    return tmp_path / "own"


def write(path, tree) -> str:
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_what_is_stated_is_laid_over_the_base_section_by_section(folder):
    own = {"extends": "base.yaml", "model": {"args": {"depth": 6}}, "augment": {"crop_scale": [0.1, 0.2]}}
    config = load_config(write(folder / "row.yaml", own), ["optim.lr=0.1"])
    assert config.model.args == {"depth": 6, "num_heads": 3} and config.model.blocks == [0, 1, 2]
    assert config.augment.crop_scale == (0.1, 0.2) and config.augment.flip == 0.25
    assert (config.run.seed, config.optim.epochs, config.optim.lr) == (7, 5, 0.1)


def test_name_and_published_number_are_the_rows_own(folder):
    config = load_config(write(folder / "row.yaml", {"extends": "base"}))
    assert config.run.name == "row" and config.paper is None
    named = load_config(write(folder / "row.yaml", {"extends": "base", "run": {"name": "called"}}))
    assert named.run.name == "called" and named.run.seed == 7


def test_null_takes_a_section_away_and_lets_it_be_set_anew(folder):
    unguided = write(folder / "row.yaml", {"extends": "base", "teacher": None})
    assert load_config(unguided).teacher is None
    assert load_config(unguided, ["teacher.recipe=quickstart_teacher"]).teacher.overrides == {}


def test_a_base_is_found_beside_the_file_first_and_then_among_the_shipped(folder):
    (folder / "sub").mkdir()
    assert load_config(write(folder / "sub" / "row.yaml", {"extends": "../base.yaml"})).run.seed == 7
    shipped = load_config(write(folder / "row.yaml", {"extends": "cifar100/deit_tiny", "optim": {"epochs": 9}}))
    truth = load_config("cifar100/deit_tiny", ["run.name=row", "optim.epochs=9", "paper=null"])
    assert shipped == truth
    (folder / "quickstart.yaml").write_text((folder / "base.yaml").read_text())
    assert load_config(write(folder / "row.yaml", {"extends": "quickstart"})).run.seed == 7


def test_a_saved_config_needs_its_base_no_more(folder):
    config = load_config(write(folder / "row.yaml", {"extends": "base", "optim": {"epochs": 6}}))
    save_config(config, folder / "saved.yaml")
    (folder / "base.yaml").unlink()
    assert load_config(str(folder / "saved.yaml")) == config and "extends" not in (folder / "saved.yaml").read_text()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"row": {"extends": "bas"}}, ["row.yaml", "extends is bas", "neither"]),
        ({"row": {"extends": "cifar100/deit_tinny"}}, ["did you mean cifar100/deit_tiny"]),
        ({"row": {"extends": "row"}}, ["row.yaml", "this file itself"]),
        ({"row": {"extends": "b"}, "b": {"extends": "row.yaml"}}, ["b.yaml", "itself extends row.yaml", "extends it"]),
        ({"row": {"extends": "b"}, "b": {"extends": "base"}}, ["b.yaml", "itself extends another", "one level"]),
        ({"row": {"extends": "b"}, "b": {"extends": "nothing"}}, ["b.yaml", "nothing", "neither"]),
        ({"row": {"extends": ["base", "b"]}}, ["extends is", "path of one"]),
        ({"row": {"extends": None}}, ["extends is null", "neither"]),
        ({"row": {"extends": "base", "optim": {"epoch": 3}}}, ["row.yaml (on ", "base.yaml)", "optim.epochs"]),
        ({"row": {"extends": "b"}, "b": "just words"}, ["b.yaml", "mapping"]),
        ({"row": {"extends": "base", "paper": {"table": 77, "row": "x"}}}, ["paper.table is '77'", "from 1 to 9"]),
        ({"row": {"extends": "base", "paper": {"table": 7, "rows": "x"}}}, ["paper.rows", "paper.row"]),
    ],
)
def test_what_cannot_be_is_one_line(folder, files, words):
    for name, tree in files.items():
        write(folder / f"{name}.yaml", tree)
    with pytest.raises(UserError) as caught:
        load_config(str(folder / "row.yaml"))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_extends_is_no_override(folder):
    with pytest.raises(UserError, match="extends"):
        load_config(str(folder / "base.yaml"), ["extends=quickstart"])


def test_no_two_shipped_configs_train_in_one_folder():
    names = [load_config(name).run.name for name in shipped_configs()]
    assert len(names) > 60 and len(set(names)) == len(names)
