"""The ladder of recipes keeps a row per training, trains none twice, and gives a lever each side's own best rate."""

from __future__ import annotations

import json
import statistics
import sys

import pytest
import yaml
from made_images import write_images
from tiny_project import STUDENT, TEACHER

from benchmarks import recipe
from benchmarks.harness import ladder as cells_of

TOP1 = {("muon", True, 1e-3): [50.0, 60.0], ("muon", True, 2e-3): [56.0, 57.0], ("muon", True, 4e-3): [90.0]}
TOP1 |= {("muon", False, 1e-3): [41.0, 30.0], ("muon", False, 2e-3): [40.0, 40.0]}


@pytest.fixture
def ladder(tmp_path, monkeypatch):
    """recipe.py told what("rates" | ...) of a setting of tiny images; some rates lie in its book already."""
    for split in ("train", "test"):
        write_images(tmp_path / "own" / split, per_class=8, seed=2)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    model = {**STUDENT["model"], "args": {**STUDENT["model"]["args"], "depth": 3}}
    tiny = {"data": {"source": "own", "workers": 0}, "model": model, "optim": {"epochs": 1, "global_batch_size": 8}}
    tiny["teacher"] = {"recipe": str(tmp_path / "teacher.yaml")}
    monkeypatch.setattr(cells_of, "SETTINGS", {"tiny": tiny})
    monkeypatch.setattr(cells_of, "LEVERS", {"both": {"optim.ema": 0.5}, "one": {"guidance.until": 0.5}})
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))
    book = cells_of.Book(tmp_path / "out.jsonl")
    for (optimizer, guided, lr), scores in TOP1.items():
        for seed, top1 in enumerate(scores):
            cell = cells_of.Cell("tiny", optimizer, lr, guided, "", seed)
            book.add({"cell": cell._asdict(), "top1_last": top1, "processor_s": 3.0, "curve": [[1, top1]]})
    (tmp_path / "out").mkdir()
    (tmp_path / "out.jsonl").rename(tmp_path / "out" / "tiny.jsonl")

    def run(*what: str) -> list[dict]:
        own = ["recipe.py", "tiny", *what, "--images", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "1"]
        monkeypatch.setattr(sys, "argv", own)
        assert recipe.main() == 0
        return [json.loads(line) for line in (tmp_path / "out" / "tiny.jsonl").read_text().splitlines()]

    return run


def test_levers_are_trained_once_at_the_best_rate_of_their_side(ladder, tmp_path, monkeypatch, capsys):
    made = ladder("levers")[sum(map(len, TOP1.values())) :]
    cells = [(row["cell"]["lever"], row["cell"]["guided"], row["cell"]["lr"]) for row in made]
    assert cells == [("both", True, 4e-3), ("both", False, 1e-3), ("one", True, 4e-3)], "the best of seed 0"
    for row in made:
        assert row["curve"] == [[1, row["top1_last"]]] and row["commit"] and row["processor_s"] > 0
        assert (row["teacher_top1"] is not None) is row["cell"]["guided"]
        assert row["overrides"]["optim.lr"] == 100 * row["overrides"]["optim.min_lr"] == row["cell"]["lr"]
    assert sorted(path.name for path in (tmp_path / "out" / "work").iterdir()) == ["teachers"], "no run is left"
    monkeypatch.setattr(recipe, "measure", None)
    assert len(ladder("levers", "--results", str(tmp_path))) == len(made) + sum(map(len, TOP1.values()))
    for plot in ("recipe-tiny.png", "recipe-tiny-levers.png"):
        assert (tmp_path / plot).stat().st_size > 10_000
    saved = json.loads((tmp_path / "recipe-tiny.json").read_text())
    assert saved["rows"][-1] == made[-1] and saved["setting"]["optim"]["epochs"] == 1
    lines = capsys.readouterr().out.splitlines()
    for (optimizer, guided, lr), scores in TOP1.items():
        side, mean = "guided" if guided else "unguided", statistics.fmean(scores)
        spread = f"{min(scores):.1f} - {max(scores):.1f}"
        assert f"| none | {side} | {optimizer} | {lr:g} | {len(scores)} | {mean:.1f} | {spread} | 3 |" in lines


def test_teachers_are_trained_by_their_own_recipe_with_other_epochs_and_rates(ladder, monkeypatch, capsys):
    monkeypatch.setattr(cells_of, "TEACHERS", {("sgd", 1): (0.05, 0.1), ("muon", 2): (1e-3,)})
    made = ladder("teachers")[-3:]
    found = [(row["cell"]["lever"], row["cell"]["optimizer"], row["cell"]["lr"], row["epochs"]) for row in made]
    one, two = "teacher, 1 epochs", "teacher, 2 epochs"
    assert found == [(one, "sgd", 0.05, 1), (one, "sgd", 0.1, 1), (two, "muon", 1e-3, 2)]
    assert all(row["teacher_top1"] is None for row in made)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("model    resnet20") for line in lines) == 4, "the one that guides, and these"
    assert any(line.startswith("| teacher, 2 epochs | teacher | muon | 0.001 | 1 |") for line in lines)


def test_every_side_and_optimizer_gets_as_many_rates_once_and_its_best_of_them_again(tmp_path):
    book = cells_of.Book(tmp_path / "mini.jsonl")
    cells = list(cells_of.rate_cells("mini", 0, book))
    rates = {}
    for cell in cells:
        rates.setdefault((cell.optimizer, cell.guided), []).append(cell.lr)
    assert len(rates) == 4 and len({len(own) for own in rates.values()}) == 1
    few = [cell.lr for cell in cells_of.rate_cells("slice", 0, book)]
    assert few == [cell.lr for cell in cells][: len(few)] and len(few) == 4 * cells_of.FEWER_RATES["slice"]
    assert all(len(set(own)) == len(own) for own in rates.values()) and {cell.seed for cell in cells} == {0}
    best = [2e-3, 5e-4, 4e-3, 8e-3]
    for cell in cells:
        wanted = cell.lr == dict(zip(rates, best, strict=True))[cell.optimizer, cell.guided]
        book.add({"cell": cell._asdict(), "top1_last": 60.0 if wanted else 50.0})
    again = list(cells_of.rate_cells("mini", 2, book))
    assert [cell.lr for cell in again] == best and {cell.seed for cell in again} == {2}


def test_several_at_once_give_the_rows_of_one_after_the_other(ladder, tmp_path):
    alone = ladder("levers", "--only", "both")[-2:]
    book = tmp_path / "out" / "tiny.jsonl"
    book.write_text("".join(f"{line}\n" for line in book.read_text().splitlines()[:-2]))
    beside = ladder("levers", "--only", "both", "--jobs", "2")[-2:]
    what = ("cell", "overrides", "curve", "teacher_top1")
    one, other = ({row["cell"]["guided"]: [row[key] for key in what] for row in rows} for rows in (alone, beside))
    assert one == other and one.keys() == {True, False}


def test_a_lever_gets_muons_rates_too_and_counts_at_its_own_best(tmp_path):
    book = cells_of.Book(tmp_path / "quickstart.jsonl")
    cells = list(cells_of.rate_cells("quickstart", 0, book, "linear"))
    plain = [cell for cell in cells_of.rate_cells("quickstart", 0, book) if cell.optimizer == "muon"]
    assert [cell._replace(lever="") for cell in cells] == plain and {cell.lever for cell in cells} == {"linear"}
    for cell in (*plain, *cells):
        best = 2e-3 if cell.lever else 4e-3
        book.add({"cell": cell._asdict(), "top1_last": 60.0 if cell.lr == best else 50.0})
    kept = {(row["cell"]["lever"], row["cell"]["guided"], row["cell"]["lr"]) for row in cells_of.rungs(book)}
    assert kept == {(lever, side, lr) for lever, lr in (("", 4e-3), ("linear", 2e-3)) for side in (True, False)}
    again = list(cells_of.rate_cells("quickstart", 1, book, "linear"))
    assert {(cell.lr, cell.lever, cell.seed) for cell in again} == {(2e-3, "linear", 1)} and len(again) == 2
