"""reproduce --with FILE: overrides of all rows, and of those with one student."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from fastlg.commands.many.overlay import Overlay, read_overlay
from fastlg.commands.reproduce import rows_of, students
from fastlg.config import load_config
from fastlg.models.build import new_model

REDUCED = Path(__file__).resolve().parents[3] / "benchmarks" / "reduced.yaml"
FILE = """
optim: {epochs: 4, lr: 1e-3}
data: {source: "here, there"}
teacher.overrides: {optim.epochs: 2}
by_model:
  deit_*: {model: {blocks: [0, 1, 2], args: {depth: 3, num_heads: 2}}}
  pit_ti_224: {optim: {epochs: 7}, augment: {rand_augment: null}}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "small.yaml").write_text(FILE)
    return tmp_path / "small.yaml"


def test_a_file_reaches_the_rows_that_it_is_for_and_the_command_line_wins(file):
    overlay = read_overlay(file, students())
    found = {row.label: row.config for row in rows_of(2, ["optim.lr=5e-3"], None, overlay)}
    deit, plain, pit = (found[f"CIFAR-100: {name}"] for name in ("DeiT-Ti, guided", "DeiT-Ti", "PiT-Ti, guided"))
    assert deit.model.blocks == [0, 1, 2] and deit.model.args == plain.model.args == {"depth": 3, "num_heads": 2}
    assert pit.model == load_config("cifar100/pit_tiny").model and pit.augment.rand_augment is None
    assert (deit.optim.epochs, plain.optim.epochs, pit.optim.epochs) == (4, 4, 7)
    assert found["CIFAR-100: ResNet-56 at 32 px"].optim.epochs == 2 and plain.teacher is None
    assert {(own.optim.lr, own.data.source) for own in (deit, plain, pit)} == {(5e-3, "here, there")}


def test_the_table_tells_what_of_the_file_its_rows_took_and_no_more(file, project, fastlg):
    status, out, err = fastlg("reproduce", "table7", "--with", file, "data.source=.", "--rows", "beta 0.5", "--dry-run")
    assert status == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("overrides: ")]
    assert 'data.source="here, there"' in line and "[deit_*] model.args.depth=3" in line and "pit_ti" not in line
    assert "beta 0.5, seed 1: 4 epochs" in out and "what the paper trained is without them" in line


def test_a_table_tells_of_rows_that_train_another_student(tmp_path, project, fastlg):
    (tmp_path / "other.yaml").write_text("by_model: {deit*: {model: {name: pit_ti_224}}}")
    status, out, err = fastlg("reproduce", "table7", "--with", tmp_path / "other.yaml", "data.source=.", "--dry-run")
    assert status == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("overrides: ")]
    assert "[deit*] model.name=" in line and "pit_ti_224" in line


def test_another_students_part_of_the_file_changes_the_folder_as_any_override_does(file):
    whole = read_overlay(file, students())
    other = Overlay(whole.of_all, (whole.by_model[0], ("pit_ti_224", ("optim.epochs=8",))))
    assert whole.told(["deit_tiny_patch16_224"]) == other.told(["deit_tiny_patch16_224"])
    assert whole.as_dict() != other.as_dict() and len(whole.as_dict()) == 9


def test_the_file_of_the_reduced_tables_fits_every_student_of_tables_2_4_and_7():
    overlay, built = read_overlay(REDUCED, students()), set()
    for number in (2, 4, 7):
        for row in rows_of(number, ["data.source=x"], None, overlay):
            config = row.config
            if config.model.name in built or config.teacher is None:
                continue
            built.add(config.model.name)
            student = new_model(config.model, config.teacher, 10)
            assert len(student.dims) == 3 and sum(own.numel() for own in student.parameters()) < 1e6, row.label
    assert len(built) == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["small.yaml", "no file"]),
        ("optim: {epoch: 3}", ["optim.epoch", "optim.epochs"]),
        ("by_model: [1]", ["by_model", "pit_*"]),
        ("by_model: {deit_tiny: {optim: {epochs: 1}}}", ["by_model names deit_tiny,", "no row", "t2t_vit_14"]),
        ("by_model: {pit_*: 3}", ["by_model"]),
        ("by_model: {pit_*: {optim: {lr: fast}}}", ["small.yaml: optim.lr", "(of pit_ti_224)"]),
        ("run: {name: mine}", ["run.name", "command line"]),
        ("by_model: {pit_*: {run: {name: mine}}}", ["run.name", "command line"]),
        ("", ["small.yaml holds nothing", "leave --with out"]),
        ("by_model: {pit_*: {}}", ["small.yaml holds nothing"]),
        ("paper: {table: 3, row: x}", ["small.yaml states paper", "leave it out"]),
        ("extends: quickstart", ["small.yaml states extends"]),
        ("optim: {epochs: -3}", ["small.yaml: optim.epochs is -3", "from 1 to"]),
        ("- 1", ["list", "mapping"]),
        ("a: [", ["not valid YAML"]),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_is_one_line(text, words, tmp_path, fastlg, project):
    path = tmp_path / "small.yaml"
    if text is not None:
        path.write_text(text)
    refused(fastlg("reproduce", "table2", "--with", path, "--dry-run"), *words)
