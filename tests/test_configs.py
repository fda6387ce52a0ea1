"""Every shipped config loads, says what to expect, and dry-runs through the command line, or trains as one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_images import write_images

from fastlg.cli import main
from fastlg.config import load_config

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_there_are_configs():
    assert {"quickstart.yaml", "deit_tiny.yaml", "resnet56.yaml"} <= {path.name for path in CONFIGS}


def step_of(path: Path) -> str:
    """All that the first step of a config depends on, given other images and the same few numbers."""
    tree = load_config(str(path)).model_dump(mode="json", exclude={"run", "data", "paper"})
    tree["model"]["fraction"] = tree["guidance"]["weight"] = 0
    del tree["augment"]["mean"], tree["augment"]["std"]
    return json.dumps({**tree, "optim": tree["optim"]["name"]}, sort_keys=True)


def different_steps() -> list[Path]:
    """One config for each step that is not the same as another's, or as another's without its teacher."""
    bases_last = sorted(CONFIGS, key=lambda path: "\nextends:" not in path.read_text())
    found = {step_of(path): path for path in bases_last}
    guided = {model_of(step) for step in found if json.loads(step)["teacher"]}
    return sorted(path for step, path in found.items() if json.loads(step)["teacher"] or model_of(step) not in guided)


def model_of(step: str) -> str:
    return json.dumps(json.loads(step)["model"], sort_keys=True)


@pytest.mark.parametrize("path", different_steps(), ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_config_dry_runs_on_small_images(path, tmp_path, monkeypatch, capsys):
    for split, seed in (("train", 0), ("test", 1)):
        write_images(tmp_path / "images" / split, per_class=2, seed=seed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))
    arguments = ["fastlg", "train", str(path), f"data.source={tmp_path / 'images'}", "data.workers=0", "--dry-run"]
    monkeypatch.setattr("sys.argv", [*arguments, "engine.device=cpu"])
    try:
        main()
    except SystemExit as leave:
        assert not leave.code, capsys.readouterr().err
    assert "dry run" in capsys.readouterr().out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_published_runs_state_the_number_they_expect(path):
    if path.parent.name == "configs":
        return
    config, header = load_config(str(path)), [line for line in path.read_text().splitlines() if line.startswith("#")]
    states = [row.top1 is not None for row in config.paper_rows] + ["Expected top-1" in line for line in header]
    assert header and any(states), f"{path} does not say what to expect"
    assert "seed" in config.model_dump(exclude_unset=True)["run"], "a published run fixes its seed"
