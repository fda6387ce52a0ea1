"""What a user typed becomes a value by the type of the field it is for.

YAML alone guesses: ``no`` is false, ``2024`` a number, ``1e-1`` a word, ``dir #2`` is cut off. Here a plain scalar
stays as it was typed (``Plain``) until its field is known. A text field takes it as written, a number field reads it
as a number, a switch as on or off. Only where a field takes anything (model.args) is it guessed.

Numbers are decimal. What YAML's versions, Python and people read differently (010, 0x10, 0o17, 0b11, 1_000) is refused
with the decimal to write.
"""

from __future__ import annotations

import re
import types
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from fastlg.errors import brief

NULLS = ("null", "Null", "NULL", "~", "")
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
LONGEST_NUMBER = 64  # characters
LARGEST = 2**63 - 1
BY_KEY = "values by the config's own keys"  # marks a mapping of dotted keys, each typed as the config's field

_NOT_FINITE = re.compile(r"[+-]?\.?(inf|infinity|nan)", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_GROUPED = re.compile(r"[+-]?[0-9][0-9_]*(\.[0-9_]*)?([eE][+-]?[0-9_]+)?")  # and decimals, which are asked for first
_WITH_BASE = re.compile(r"[+-]?0([xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)")
_LEADING_ZERO = re.compile(r"[+-]?0[0-9]+")


class Plain(str):
    """A scalar as it was typed, without quotes."""


class Unreadable(ValueError):
    """Why a scalar is no value, and below which key."""

    def __init__(self, reason: str, *keys: str):
        self.reason, self.keys = reason, keys
        super().__init__(f"{'.'.join(keys)} is {reason}" if keys else reason)


def typed(value: Any, annotation: Any, root: type[BaseModel]) -> Any:
    """``value`` with every Plain in it read by the field's ``annotation``; what cannot be stays text, to be refused.

    ``root``: the whole config, for mappings of its dotted keys. Raises Unreadable for numbers as ``number`` does.
    """
    kinds = kinds_of(annotation)
    if isinstance(value, str):
        return _scalar(value, kinds) if isinstance(value, Plain) else _quoted(value, kinds)
    if isinstance(value, dict):
        section, is_by_key = _section(kinds), BY_KEY in _marks(annotation)
        of_key = hints(section) if section is not None else {}
        known = {key: hint_of(root, str(key)) if is_by_key else of_key.get(key, Any) for key in value}
        return {str(key): _within(key, own, known[key], root) for key, own in value.items()}
    if isinstance(value, list):
        return [typed(own, _element(kinds, index), root) for index, own in enumerate(value)]
    return value


def _within(key: Any, value: Any, annotation: Any, root: type[BaseModel]) -> Any:
    try:
        return typed(value, annotation, root)
    except Unreadable as error:
        raise Unreadable(error.reason, str(key), *error.keys) from None


def number(text: str) -> int | float | None:
    """The number that a text is, or None. Raises Unreadable for one that is not decimal, or too long."""
    text = text.strip()
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    if _LEADING_ZERO.fullmatch(text):
        raise Unreadable(f"{brief(text)}, octal or not; write {_decimal(text)}")
    if _DECIMAL.fullmatch(text):
        if len(text) > LONGEST_NUMBER:
            raise Unreadable(f"a number of {len(text):,} characters; give at most {LONGEST_NUMBER}")
        return int(text) if _INTEGER.fullmatch(text) else float(text)
    if _GROUPED.fullmatch(text) or _WITH_BASE.fullmatch(text):
        raise Unreadable(f"{brief(text)}, which is not decimal; write {_decimal(text)}")
    return None


def _decimal(text: str) -> str:
    """What to write for a number in another notation."""
    bare = text.replace("_", "")
    if len(bare) > LONGEST_NUMBER:
        return "a shorter one"
    sign = "-" if bare[0] == "-" else ""
    if _WITH_BASE.fullmatch(bare):
        return str(int(bare, 0))
    return sign + (bare.lstrip("+-0") or "0") if _INTEGER.fullmatch(bare) else bare


def guessed(text: str) -> Any:
    """What a plain scalar means where anything is allowed: null, a switch, a number, else the text itself. Raises
    Unreadable for numbers as ``number`` does."""
    if text in NULLS:
        return None
    if text.lower() in SWITCHES:
        return SWITCHES[text.lower()]
    try:
        found = number(text)
    except Unreadable as error:
        raise Unreadable(f"{error.reason}, or put it in quotes if it is a text") from None
    return str(text) if found is None else found


def hint_of(section: type[BaseModel], key: str) -> Any:
    """The annotation of a dotted key; Any where there is no such key."""
    name, _, rest = key.partition(".")
    annotation = hints(section).get(name, Any)
    if not rest:
        return annotation
    child = section_of(annotation)
    return hint_of(child, rest) if child is not None else Any


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    return _section(kinds_of(annotation))


@lru_cache
def hints(section: type[BaseModel]) -> dict[str, Any]:
    """Field -> annotation with its constraints."""
    known = get_type_hints(section, include_extras=True)
    return {name: known[name] for name in section.model_fields}


def _section(kinds: list) -> type[BaseModel] | None:
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _scalar(text: Plain, kinds: list) -> Any:
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if types.NoneType in kinds and text in NULLS:
        return None
    if str in kinds or Path in kinds or text in choices:
        return str(text)
    if bool in kinds and text.lower() in SWITCHES:
        return SWITCHES[text.lower()]
    if Any in kinds:
        return guessed(text)
    if int in kinds or float in kinds or any(isinstance(choice, int) for choice in choices):
        found = number(text)
        return str(text) if found is None else found
    if text == "" and _section(kinds) is not None:  # all of its lines are commented out
        return {}
    return None if text in NULLS else str(text)


def _quoted(text: str, kinds: list) -> Any:
    """A number field takes '3' as 3, by the same rules."""
    if {int, float} & set(kinds) and not {str, Path, Any} & set(kinds):
        found = number(text)
        return text if found is None else found
    return text


def kinds_of(annotation: Any) -> list:
    """The types that a field takes, without their constraints."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for option in get_args(annotation) for kind in kinds_of(option)]
    return [annotation]


def _marks(annotation: Any) -> tuple:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def _element(kinds: list, index: int) -> Any:
    for kind in kinds:
        own = get_args(kind)
        if get_origin(kind) is list:
            return own[0]
        if get_origin(kind) is tuple:
            return own[min(index, len(own) - 1)]
    return Any
