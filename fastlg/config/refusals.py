"""Why a config is refused, in one line: key, value, what is allowed."""

from __future__ import annotations

import difflib
import math
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fastlg.config.fields import Form
from fastlg.config.keys import LITERAL
from fastlg.config.values import LARGEST, Plain, hints, section_of
from fastlg.config.yaml_text import DEEPEST, MOST
from fastlg.errors import brief

MISSING = " is missing; "
LONGEST_TEXT = 4096  # characters
_BOUNDS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
_NAMES = {int: "an integer", float: "a number", str: "a text", Path: "a path", bool: "true or false", dict: "a mapping"}


def refuse_monsters(tree: Any) -> None:
    """What no field of a config can be, wherever it stands, also in model.args: numbers that are not finite or beyond
    64 bits, texts that no path or name can hold, levels and values without end. Raises ValueError."""
    waiting, count = [("", tree, 0)], 0
    while waiting:
        key, value, depth = waiting.pop()
        count += 1
        if depth > DEEPEST or count > MOST:
            limit = f"{DEEPEST} levels" if depth > DEEPEST else f"{MOST:,} values"
            raise ValueError(f"{brief(key) or 'it'} holds more than {limit}; a config has less")
        prefix = f"{key}." if key else ""
        if isinstance(value, dict):
            waiting += [(f"{prefix}{_word(name, prefix)}"[:500], own, depth + 1) for name, own in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{prefix}{index}"[:500], own, depth + 1) for index, own in enumerate(value)]
        else:
            _refuse_monster(brief(key), value)


def _refuse_monster(key: str, value: Any) -> None:
    if value is None or isinstance(value, (bool, BaseModel)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            text = ", or in quotes if it is a text" if key.startswith(LITERAL) else ""
            raise ValueError(f"{key} is {value}; a number must be finite{text}")
    elif isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError(f"{key} is {brief(value)}; an integer has at most 63 bits")
    elif isinstance(value, (str, Path)):
        text = str(value)
        if len(text) > LONGEST_TEXT and not isinstance(value, Plain):  # which may be a number, and is seen again
            raise ValueError(f"{key} is {brief(text)}; a text has at most {LONGEST_TEXT:,} characters")
        if "\0" in text:
            raise ValueError(f"{key} is {brief(text)}; a text has no NUL character")
        if re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{key} is {brief(text)}; it has bytes that are not UTF-8: rename what it names")
    else:
        raise ValueError(f"{key} is a {type(value).__name__}; use numbers, texts, true, false, null, lists or mappings")


def _word(name: Any, prefix: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{prefix}{brief(name)} is a {type(name).__name__} as a key; keys are words")
    _refuse_monster(f"{prefix}{brief(name)}", name)
    return name


def refuse_unknown(tree: Any, root: type[BaseModel], section: Any = None, prefix: str = "") -> None:
    """Unknown keys are named with the nearest real one, before pydantic sees them. Raises ValueError."""
    section = section or root
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        if key not in section.model_fields:
            full = f"{prefix}{key}"
            is_config = bool(prefix) or not tree.keys().isdisjoint(section.model_fields)
            near = _near(full, key, root, is_config=is_config)
            known = "known here:" if is_config else "is it a config? Its sections are"
            hint = f"did you mean {near[0]}?" if near else f"{known} {', '.join(section.model_fields)}"
            raise ValueError(f"unknown key {brief(full)}; {hint}")
        child = section_of(hints(section)[key])
        if child is not None:
            refuse_unknown(value, root, child, f"{prefix}{key}.")


def _near(full: str, key: str, root: type[BaseModel], *, is_config: bool) -> list[str]:
    """Real keys that ``full`` may mean; in a file without any section of a config, only those that are it but for a
    letter."""
    names = dotted_names(root)
    same = [name for name in names if name.rsplit(".", 1)[-1] == key]
    if not is_config:
        return same or difflib.get_close_matches(full[:200], root.model_fields, n=1, cutoff=0.75)
    return difflib.get_close_matches(full[:200], names, n=1, cutoff=0.5) or same


def problems(error: ValidationError, root: type[BaseModel], tree: dict) -> list[str]:
    """One line for each: key, offending value, what is allowed."""
    return [_problem(single, root, tree) for single in error.errors()]


def _problem(error: Any, root: type[BaseModel], tree: Any) -> str:
    section, annotation, names, forms = root, root, [], 0
    for part in error["loc"]:
        if section is not None and part == section.__name__:  # of a field that may also be a list of such sections
            forms += 1
            continue
        if section is None or part not in section.model_fields:
            break  # inside a field: an element, or which form of it pydantic tried
        names.append(part)
        annotation = hints(section)[part]
        section = section_of(annotation)
        tree = tree.get(part) if isinstance(tree, dict) else None
    key, reason = ".".join(names), error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing" and len(names) + forms == len(error["loc"]):
        if section is not None:  # a section cannot be given as a value: what it needs can
            key += next((f".{name}" for name, own in section.model_fields.items() if own.is_required()), "")
        return f"{key}{MISSING}give it in the file or as {key}=VALUE"
    if error["type"] == "value_error" and section is not None:  # of the fields of a section together
        return f"{key}.{reason}" if names else reason
    what = f"{key} is {shown(tree)}"
    if error["type"] == "value_error":
        return f"{what}: {reason}"
    fix = ""
    if section is not None and isinstance(tree, str):
        fix = "".join(f" ({key}.{name}=...?)" for name, own in section.model_fields.items() if own.is_required())
    return f"{what}; it must be {allowed(annotation)}{fix}"


def shown(value: Any) -> str:
    """A value as a message shows it: texts in quotes, lists as YAML has them."""
    if isinstance(value, str) and len(value) > 60:
        return brief(value)
    return brief("null" if value is None else repr(value) if isinstance(value, (str, list, dict)) else value)


def allowed(annotation: Any) -> str:
    """What a field takes: 'an integer from 1 to 4096', 'one of a, b', 'a list of 2, each a number from 0 to 1'."""
    origin, own = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        form = next((mark for mark in own[1:] if isinstance(mark, Form)), None)
        return str(form) if form else f"{allowed(own[0])}{_range(own[1:])}"
    if origin is Literal:
        return f"one of {', '.join(map(str, own))}" if len(own) > 1 else str(own[0])
    if origin in (Union, types.UnionType):
        return " or ".join(allowed(option) for option in own)
    if origin is list:
        return f"a list, each {allowed(own[0])}"
    if origin is tuple:
        return f"a list of {len(own)}, each {allowed(own[0])}"
    if annotation in (None, types.NoneType):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section with {', '.join(annotation.model_fields)}"
    return _NAMES.get(origin or annotation, "a value")


def _range(marks: tuple) -> str:
    limits = {}
    for mark in marks:
        for single in mark.metadata if isinstance(mark, FieldInfo) else [mark]:
            limits |= {name: getattr(single, name) for name in _BOUNDS if getattr(single, name, None) is not None}
    if limits.keys() == {"ge", "le"}:
        return f" from {_figure(limits['ge'])} to {_figure(limits['le'])}"
    return "".join(
        f"{' and' if index else ''} {'of ' if name == 'ge' and not index else ''}{_BOUNDS[name]} {_figure(limit)}"
        for index, (name, limit) in enumerate(limits.items())
    )


def _figure(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def dotted_names(section: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for key, annotation in hints(section).items():
        child = section_of(annotation)
        names += [f"{prefix}{key}"] if child is None else [f"{prefix}{key}", *dotted_names(child, f"{prefix}{key}.")]
    return names
