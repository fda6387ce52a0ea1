"""docs/troubleshooting.md has every error class, with the status that it ends with, and lines that the code says."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import signal
from functools import cache
from pathlib import Path

import pytest

from fastlg.errors import Silenced, Stopped, exit_status

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "fastlg").rglob("*.py"))}
CLASSES = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
LINES = [line for line in re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE) if line not in CLASSES]
SAID = [
    node.value
    for tree in SOURCES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
]
INNER = {"Unreadable": 2}  # caught and told as another one, which ends so


@cache
def error_classes() -> dict[str, Path]:
    """Name -> file of every public class of the package that can be raised."""
    bases = {
        node.name: ({ast.unparse(base) for base in node.bases}, path)
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def is_error(name: str) -> bool:
        own = getattr(builtins, name, None)
        if isinstance(own, type) and issubclass(own, BaseException):
            return True
        return name in bases and any(map(is_error, bases[name][0]))

    return {name: path for name, (_, path) in bases.items() if is_error(name) and not name.startswith("_")}


def test_no_error_class_is_missing_and_none_is_told_of_that_is_gone():
    assert set(error_classes()) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_status_is_the_one_that_a_command_ends_with(name):
    module = ".".join(error_classes()[name].relative_to(ROOT).with_suffix("").parts)
    kind = getattr(importlib.import_module(module), name)
    if kind is Stopped:
        asked = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
        assert set(asked) == set(Stopped.ASKS)
        statuses = {str(exit_status(Stopped(number))) for number in asked}
        assert statuses == set(re.findall(r"\d+", CLASSES[name]))
    elif kind is Silenced:
        assert exit_status(Silenced(7)) == 7 and CLASSES[name] == "that of the other rank"
    else:
        made = kind("x", "y") if name == "BadImage" else kind("x")
        assert CLASSES[name] == str(INNER.get(name, exit_status(made)))


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_the_page_explains_is_one_that_the_code_says(line):
    for part in filter(None, (part.strip() for part in line.split("..."))):
        assert any(part in text for text in SAID), f"no message has {part!r}"


def test_lines_are_explained():
    assert len(LINES) > 20
