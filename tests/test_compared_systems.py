"""systems.py trains each system once per seed, alone and guided, from the same images, and says what guidance adds."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from made_images import write_images
from tiny_project import STUDENT, TEACHER

from benchmarks import systems
from fastlg.config import load_config
from fastlg.models import new_model


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """systems.py told what("train" | "table", ...), of tiny images and two systems."""
    for split in ("train", "test"):
        write_images(tmp_path / "own" / split, per_class=8, seed=2)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    model = {**STUDENT["model"], "args": {**STUDENT["model"]["args"], "depth": 3}}
    tiny = {"data": {"source": "own", "workers": 0}, "model": model, "optim": {"epochs": 1, "global_batch_size": 8}}
    tiny["teacher"] = {"recipe": str(tmp_path / "teacher.yaml")}
    (tmp_path / "systems.yaml").write_text(yaml.safe_dump(tiny))
    monkeypatch.setattr(systems, "CONFIG", tmp_path / "systems.yaml")
    monkeypatch.setattr(systems, "CLASSES", 2)
    monkeypatch.setattr(systems, "SYSTEMS", {"LSA": {"model.args.lsa": True}, systems.LABEL_FREE: {}})
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))

    def run(*what: str) -> list[dict]:
        out = ["--images", str(tmp_path), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["systems.py", *what, *out])
        assert systems.main() == 0
        return [json.loads(line) for line in (tmp_path / "out" / "systems.jsonl").read_text().splitlines()]

    return run


def test_each_side_is_trained_once_and_the_start_without_labels_is_shared(compare, tmp_path, monkeypatch, capsys):
    rows = compare("train", "--seeds", "1")
    own = systems.LABEL_FREE
    expected = [("LSA", False), ("LSA", True), (systems.START, False), (own, False), (own, True)]
    assert [(row["cell"]["system"], row["cell"]["guided"]) for row in rows] == expected
    capsys.readouterr()
    monkeypatch.setattr(systems, "measure", None)
    assert compare("train", "--seeds", "1", "--results", str(tmp_path)) == rows, "none is trained again"
    lines = capsys.readouterr().out.splitlines()
    start, alone, guided = rows[2:]
    gain = guided["top1_last"] - alone["top1_last"]
    wanted = (
        f"| {own} | {alone['parameters']:.2f} | {alone['top1_last']:.1f} ({alone['top1_last']:.1f} - "
        f"{alone['top1_last']:.1f}) | {guided['top1_last']:.1f} ({guided['top1_last']:.1f} - "
        f"{guided['top1_last']:.1f}) | {gain:+.1f} | 1 | {start['processor_s'] + alone['processor_s']:.0f} | "
        f"{start['processor_s'] + guided['processor_s']:.0f} |"
    )
    assert wanted in lines
    assert json.loads((tmp_path / "systems-mini.json").read_text())["rows"] == rows
    assert (tmp_path / "systems-mini.png").stat().st_size > 10_000


@pytest.mark.parametrize("system", systems.SYSTEMS)
def test_what_is_compared_is_of_one_size(system):
    """Parameters within a fifth of the plain network's, guided or alone."""
    config = load_config(str(systems.CONFIG))
    plain, own = (
        sum(weight.numel() for weight in new_model(changed.model, changed.teacher, systems.CLASSES).parameters())
        for changed in (config, config.replace(systems.Cell(system, True, 0).overrides()))
    )
    assert own == pytest.approx(plain, rel=0.2)
