"""Who gave a bad value is who is named: the overrides that are to blame as they were typed, else the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fastlg.config import Config, load_config, parse_overrides
from fastlg.errors import UserError

FILE = {
    "data": {"source": "images"},
    "model": {"name": "resnet20", "image_size": 32},
    "optim": {"min_lr": 1e-3, "lr": 0.1},
    "augment": {"mixup": 0.2},
}
GUIDED = FILE | {"model": {"name": "deit_tiny_patch16_224"}, "teacher": {"recipe": "teacher"}}
CASES = [
    # (file, overrides, how the line begins)
    # a value that cannot be read
    (FILE, ["optim.lr=abc"], "override optim.lr=abc: optim.lr is 'abc'; it must be a number greater than 0"),
    (FILE, ["optim.lr=0x10"], "override optim.lr=0x10: optim.lr is 0x10, which is not decimal; write 16"),
    (FILE, ["optim={lr: 0x10}"], "override optim={lr: 0x10}: optim.lr is 0x10, which is not decimal"),
    (FILE, ["optim.betas=[0x1, 0]"], "override optim.betas=[0x1, 0]: optim.betas is 0x1, which is not decimal"),
    (FILE, ["model.args.x=[a"], "override model.args.x=[a: the value is not valid YAML"),
    (FILE, ["optim.lr"], "override optim.lr is not of the form section.key=value"),
    # of another type
    (FILE, ["optim=3"], "override optim=3: optim is '3'; it must be a section with"),
    (FILE, ["optim.lr.x=3"], "override optim.lr.x=3: optim.lr.x cannot be set: optim.lr is 0.1"),
    (FILE, ["data.download=maybe"], "override data.download=maybe: data.download is 'maybe'"),
    (FILE, ["run.seed=2.5"], "override run.seed=2.5: run.seed is 2.5; it must be an integer"),
    # out of range
    (FILE, ["optim.epochs = 0"], "override optim.epochs = 0: optim.epochs is 0; it must be an integer from 1"),
    (FILE, ["optim.lr=inf"], "override optim.lr=inf: optim.lr is inf; a number must be finite"),
    (FILE, ["run.seed=" + "9" * 60], "override run.seed=999"),
    (FILE, ["data.source="], "override data.source=: data.source is ''"),
    (FILE, ["run.name=" + "x" * 5000], "override run.name=xxx"),
    # a key that is not there
    (FILE, ["optim.epoch=3"], "override optim.epoch=3: unknown key optim.epoch; did you mean optim.epochs?"),
    (FILE, ["optim.epoch=010"], "override optim.epoch=010: unknown key optim.epoch"),
    (FILE, ["nonsense=3"], "override nonsense=3: unknown key nonsense"),
    (FILE, ["teacher.stages=[0]"], "override teacher.stages=[0]: teacher.recipe is missing"),
    # of one section together: the file gave the other half
    (FILE, ["optim.lr=1e-4"], "override optim.lr=1e-4: optim.min_lr is 0.001, above the lr of 0.0001"),
    (FILE, ["engine.kind=plain", "engine.zero_stage=1"], "overrides engine.kind=plain and engine.zero_stage=1: eng"),
    (FILE, ["augment.crop_scale=[1, 0.5]"], "override augment.crop_scale=[1, 0.5]: augment.crop_scale is [1.0, 0.5]"),
    (FILE, ["model.blocks=[1, 1]"], "override model.blocks=[1, 1]: model.blocks"),
    # of several sections
    (GUIDED, ["model.blocks=[1]"], "override model.blocks=[1]: model.blocks [1] and teacher.stages"),
    (GUIDED, ["teacher.stages=[1]", "model.blocks=[1, 2]"], "overrides teacher.stages=[1] and model.blocks=[1, 2]: m"),
    (GUIDED, ["teacher.mode=cache", "augment.rand_augment=null", "augment.erase=0"],
     "override teacher.mode=cache: augment.mixup is 0.2, which cached features cannot follow"),
    (FILE, ["optim.name=muon", "engine.zero_stage=2"], "overrides optim.name=muon and engine.zero_stage=2: optim.name"),
    # among others that are right, or wrong in their own way
    (FILE, ["run.seed=3", "optim.lr=abc", "run.name=x"], "override optim.lr=abc: optim.lr is 'abc'"),
    (FILE, ["optim.lr=3", "optim.lr=abc"], "override optim.lr=abc: optim.lr is 'abc'"),
    (FILE, ["optim.lr=abc", "optim.lr=3", "run.seed=-1"], "override run.seed=-1: run.seed is -1"),
    (FILE, ["optim.epochs=ten", "optim.lr=abc"], "override optim.lr=abc: optim.lr is 'abc'"),
    ({"model": FILE["model"]}, ["data.source=x", "optim.lr=abc"], "override optim.lr=abc: optim.lr is 'abc'"),
    ({"model": FILE["model"]}, ["data.source=x", "optim.lr=1e-9"], "override optim.lr=1e-9: optim.min_lr"),
    (FILE, ["teacher.recipe=x", "optim.lr=1e-4"], "override optim.lr=1e-4: optim.min_lr"),
    # the file's own
    (FILE | {"optim": {"lr": "abc"}}, ["run.seed=3"], "small.yaml: optim.lr is 'abc'"),
    (FILE | {"optim": {"lr": 1e-9}}, ["run.seed=3", "optim.epochs=3"], "small.yaml: optim.min_lr is 5e-06"),
    (FILE | {"optims": {}}, ["optim.lr=3"], "small.yaml: unknown key optims"),
    ({"model": FILE["model"]}, ["optim.lr=3"], "small.yaml: data.source is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "overrides", "begins"), CASES, ids=[" ".join(case[1])[:40] for case in CASES])
def test_the_line_begins_with_who_gave_the_value(tmp_path, monkeypatch, file, overrides, begins):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(file))
    with pytest.raises(UserError) as caught:
        load_config("small.yaml", overrides)
    line = str(caught.value)
    assert line.startswith(begins) and line.isprintable() and len(line) < 500, line


def test_an_override_of_a_saved_run_and_of_a_teachers_recipe_is_named_too():
    config = Config.model_validate(FILE)
    with pytest.raises(UserError, match=r"^override data\.workers=-1: data\.workers is -1"):
        config.replace(parse_overrides(["data.workers=-1"]))
    with pytest.raises(UserError, match=r"^override data\.download=true and|^override data\.workers=\[1\]: data\.work"):
        config.replace({"data.download": True, "data.workers": [1]})
    with pytest.raises(UserError, match=r"^teacher\.overrides optim\.lr=1e-09: optim\.min_lr is 0\.001"):
        config.replace({"optim.lr": 1e-9, "run.seed": 3}, "teacher.overrides")


def test_a_section_that_is_commented_out_in_the_file_can_be_overridden(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(
        yaml.safe_dump({k: FILE[k] for k in ("data", "model")}) + "optim:\n  # lr: 3\nteacher:\n"
    )
    config = load_config("own.yaml", ["optim.lr=3", "teacher.recipe=x", "model.args.depth=2"])
    assert (config.optim.lr, config.teacher.recipe, config.model.args) == (3.0, "x", {"depth": 2})
