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
FAKE = r"""#!/usr/bin/env bash
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
if [ "$1 $2" = "-m pip" ]; then
    echo "$*" >>pip.log
    if [ "$3" = index ]; then
        pin=$(grep "^$5==" constraints.txt || true)
        if [ -f missing ] && [ "$pin" = "$(cat missing)" ]; then pin=other==0.1; fi
        echo "Available versions: 9999.1, ${pin#*==}, 0.0.1"
    elif [[ "$*" =~ --constraint\ ([^ ]+) ]]; then
        if [ -f no-pins ] || { [ -f missing ] && grep -qxFf missing "${BASH_REMATCH[1]}"; }; then
            echo "ERROR: no such version" >&2; exit 1
        fi
    fi
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
    stamp = ".ready-latest" if variables.get("LATEST") else ".ready"
    assert done.returncode == 0 and [path.name for path in (checkout / ".venv").glob(".ready*")] == [stamp], done
    calls = [line for line in (checkout / "pip.log").read_text().splitlines() if "pip index" not in line]
    return done.stdout + done.stderr, calls


def test_the_versions_last_proven_are_installed(checkout):
    _, calls = set_up(checkout, LATEST="")
    assert len(calls) == 1 and "--constraint constraints.txt" in calls[0] and calls[0].endswith("-e .[dev]")


def test_latest_ignores_them(checkout):
    _, calls = set_up(checkout, LATEST="1")
    assert len(calls) == 1 and "--constraint" not in calls[0] and "--upgrade" in calls[0]


@pytest.mark.parametrize("name", ["torch", "build", "typer"])
def test_a_pin_that_cannot_be_had_is_one_line_and_the_others_hold(checkout, name):
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    (pin,) = (pin for pin in pins if pin.startswith(f"{name}=="))
    (checkout / "missing").write_text(f"{pin}\n")
    out, calls = set_up(checkout, LATEST="")
    lines = [line for line in out.splitlines() if "constraints.txt" in line]
    assert lines == [f"constraints.txt: {pin} cannot be had here; going on without it"]
    assert "--constraint .venv/constraints.txt" in calls[-1]
    assert (checkout / ".venv" / "constraints.txt").read_text().splitlines() == [each for each in pins if each != pin]


def test_pins_that_contradict_what_pip_is_held_to_are_one_line_and_set_up_goes_on(checkout):
    (checkout / "no-pins").touch()
    out, calls = set_up(checkout, LATEST="")
    assert len([line for line in out.splitlines() if "constraints.txt cannot be met here" in line]) == 1
    assert "ERROR: no such version" in out and "--constraint" not in calls[-1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_changes_what_was_set_up_the_other_way(checkout):
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, checkout)
    python = f"PYTHON={checkout / 'python'}"

    def sets_up(*variables: str) -> bool:
        command = ["make", "-n", "train", python, "LATEST=", *variables]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done
        return "setup.sh" in done.stdout

    assert sets_up() and sets_up("LATEST=1")
    set_up(checkout, LATEST="")
    assert not sets_up() and sets_up("LATEST=1")
    set_up(checkout, LATEST="1")
    assert sets_up() and not sets_up("LATEST=1")


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
