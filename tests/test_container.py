"""The Dockerfile, read: it copies and runs what is there, as no root, and leaves out what no image needs."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from page_commands import read

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
STEPS = [tuple(line.split(maxsplit=1)) for line in LINES if line.strip()]
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def argument(instruction: str, number: int = -1) -> str:
    return [rest for name, rest in STEPS if name == instruction][number]


def is_ignored(path: str) -> bool:
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    return any(
        fnmatch.fnmatch(own, rule) or (rule.startswith("**/") and fnmatch.fnmatch(own.rpartition("/")[2], rule[3:]))
        for own in above
        for rule in IGNORED
    )


def test_it_begins_from_a_python_that_the_project_takes_and_ends_in_the_readmes_command():
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", argument("FROM"))[1]
    assert f"(Python {version})" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    read(json.loads(argument("CMD")))
    read(argument("RUN").partition(" && ")[0].split())
    assert json.loads(argument("CMD")) == ["make", "train"] and argument("USER") == "1000"
    assert [name for name, _ in STEPS].index("USER") < [name for name, _ in STEPS].index("COPY")


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no git checkout")
def test_no_file_of_the_project_is_left_out_and_nothing_else_comes_in():
    command = ["git", "-C", str(ROOT), "ls-files"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert [path for path in listed if path and is_ignored(path)] == []
    git_ignores = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line]
    assert [name for name in git_ignores if not is_ignored(name.replace("*", "x"))] == []
    assert is_ignored(".git") and is_ignored("fastlg/api/__pycache__/x.pyc")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_the_linter_finds_nothing():
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
