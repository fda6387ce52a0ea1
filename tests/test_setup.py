"""The set-up installs the versions last proven, the newest where asked to, and goes on where a pin is not had."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from patience import HANG_S

ROOT = Path(__file__).resolve().parent.parent
# Stands in for python: makes itself the interpreter of the environment, and writes down what pip is told.
FAKE = """#!/usr/bin/env bash
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
if [ "$1 $2" = "-m pip" ]; then
    echo "$*" >>pip.log
    if [ -f no-pins ] && [[ "$*" == *--constraint* ]]; then echo "ERROR: no such version" >&2; exit 1; fi
fi
exit 0
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    (tmp_path / "python").write_text(FAKE)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def set_up(checkout: Path, **variables: str) -> tuple[str, list[str]]:
    environment = {**os.environ, "PYTHON": str(checkout / "python"), **variables}
    command = ["bash", str(checkout / "scripts" / "setup.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0 and (checkout / ".venv" / ".ready").exists(), done
    return done.stdout, (checkout / "pip.log").read_text().splitlines()


def test_the_versions_last_proven_are_installed(checkout):
    _, calls = set_up(checkout, LATEST="")
    assert len(calls) == 1 and "--constraint constraints.txt" in calls[0] and calls[0].endswith("-e .[dev]")


def test_latest_ignores_them(checkout):
    _, calls = set_up(checkout, LATEST="1")
    assert len(calls) == 1 and "--constraint" not in calls[0] and "--upgrade" in calls[0]


def test_a_pin_that_cannot_be_had_is_one_line_and_set_up_goes_on(checkout):
    (checkout / "no-pins").touch()
    out, calls = set_up(checkout, LATEST="")
    assert len([line for line in out.splitlines() if "constraints.txt cannot be met here" in line]) == 1
    assert "ERROR: no such version" in out and "--constraint" not in calls[-1]


def test_every_pin_is_of_a_package_that_the_project_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    known = {plain(need) for need in named} | {"torchvision"}  # timm brings it
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert pins and all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.+]*", pin) for pin in pins)
    assert {plain(pin) for pin in pins} <= known
    assert {"torch", "triton", "numpy", "timm", "pillow", "pytest", "deepspeed"} <= {plain(pin) for pin in pins}


def plain(need: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", need)[0].lower().replace("_", "-")
