"""Every key of a config with what it takes, its default and its meaning, read from the sections themselves: a meaning
is the comment behind the field, a section's is its docstring."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from fastlg.config.refusals import allowed, shown
from fastlg.config.values import hints, section_of
from fastlg.config.whole import Config

REQUIRED = "required"


class Key(NamedTuple):
    """One field; ``default`` as YAML has it, or REQUIRED."""

    name: str  # dotted
    takes: str
    default: str
    meaning: str
    choices: tuple[str, ...]  # the words among what it takes: of a Literal, true and false, null


class Part(NamedTuple):
    """One section and its keys."""

    name: str
    meaning: str
    keys: tuple[Key, ...]


@functools.cache
def parts() -> tuple[Part, ...]:
    """All sections of a config, in the order in which it is written."""
    found = []
    for name, annotation in hints(Config).items():
        section = section_of(annotation)
        meaning = " ".join(inspect.cleandoc(section.__doc__ or "").split())
        found.append(Part(name, meaning, tuple(_keys(section, f"{name}."))))
    return tuple(found)


def keys() -> list[Key]:
    """The keys of all sections."""
    return [key for part in parts() for key in part.keys]


def markdown() -> str:
    """The page docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Written by `fastlg config --keys --markdown` from the sections themselves (`fastlg/config/sections.py`).",
        "Every key is given in a YAML file, below its section, or on the command line as `section.key=value`.",
        "`fastlg config NAME` shows a config with all that it leaves to defaults, `fastlg configs` which there are.",
    ]
    for part in parts():
        lines += [
            "",
            f"## {part.name}",
            "",
            part.meaning.replace("``", "`"),
            "",
            "| key | takes | default | meaning |",
            "|---|---|---|---|",
        ]
        for key in part.keys:
            takes, default, meaning = (text.replace("|", r"\|") for text in (key.takes, key.default, key.meaning))
            default = default if default == REQUIRED else f"`{default}`"
            lines.append(f"| `{key.name}` | {takes} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _keys(section: type[BaseModel], prefix: str) -> Iterator[Key]:
    comments = _comments(section)
    for name, annotation in hints(section).items():
        field = section.model_fields[name]
        default = REQUIRED if field.default is PydanticUndefined else _as_yaml(field.default)
        yield Key(
            f"{prefix}{name}",
            allowed(annotation),
            default,
            re.sub(r"\bNone\b", "null", comments.get(name, "")),
            tuple(_words(annotation)),
        )


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path) or (isinstance(value, str) and value):
        return str(value)
    return shown(list(value) if isinstance(value, tuple) else value)


def _words(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif annotation in (None, type(None)):
        yield "null"
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) not in (list, tuple, dict):
        for own in get_args(annotation):
            yield from _words(own)


def _comments(section: type[BaseModel]) -> dict[str, str]:
    """Field -> the comment behind it."""
    source = inspect.getsource(inspect.getmodule(section))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    (own,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == section.__name__
    )
    fields = [node for node in own.body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: by_line[node.end_lineno] for node in fields if node.end_lineno in by_line}
