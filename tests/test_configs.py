"""Every shipped config loads, names real things, and takes one whole training step through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from made_images import write_images

from fastlg.cli import main
from fastlg.config import load_config

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_there_are_configs():
    assert {"quickstart.yaml", "deit_tiny.yaml", "resnet56.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
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
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Expected top-1" in line for line in header), f"{path} does not say what to expect"
    config = load_config(str(path))
    assert config.run.seed == yaml.safe_load(path.read_text())["run"]["seed"], "a published run fixes its seed"
