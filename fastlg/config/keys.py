"""Dotted keys: what a config is written and compared by."""

from __future__ import annotations

from typing import Any

from fastlg.config.values import NULLS, Plain
from fastlg.errors import UserError, brief

LITERAL = (
    "teacher.overrides.",
    "model.args.",
    "optim.args.",
    "optim.schedule_args.",
)  # behind these the rest is one key, whatever dots it has


def split(key: str) -> list[str]:
    """The path of a dotted key: ["optim", "epochs"], but ["teacher", "overrides", "optim.epochs"]."""
    for literal in LITERAL:
        if key.startswith(literal):
            return [*literal.rstrip(".").split("."), key.removeprefix(literal)]
    return key.split(".")


def assign(tree: dict, key: str, value: Any) -> None:
    """Sets a dotted key. Raises UserError where something on its way is no section."""
    *parents, last = split(key)
    for depth, part in enumerate(parents):
        if tree.get(part) is None or (isinstance(tree[part], Plain) and tree[part] in NULLS):  # lines commented out
            tree[part] = {}
        if not isinstance(tree[part], dict):
            above = ".".join(parents[: depth + 1])
            raise UserError(f"{brief(key)} cannot be set: {above} is {brief(tree[part])}, which is no section")
        tree = tree[part]
    tree[last] = value


def dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{optim: {epochs: 1}} and {optim.epochs: 1} alike as {"optim.epochs": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


OBJECT = "instance::"  # begins the name of a network that a Python session hands in; module:function has one colon


def is_object(name: str) -> bool:
    """Whether a ``model.name``, or the name of a ``teacher.weights``, is that of a Python object."""
    return name.startswith(OBJECT)
