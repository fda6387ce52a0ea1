"""``section.key=value`` from the command line: a text as it is typed, anything else by the type of its field."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastlg.config.keys import LITERAL, split
from fastlg.config.values import Plain, Unreadable, hint_of, kinds_of, typed
from fastlg.config.whole import Config
from fastlg.config.yaml_text import read_yaml
from fastlg.errors import UserError, brief

LONGEST = 1 << 16  # characters


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """{dotted key: value}. Raises UserError, which says how to quote a value that cannot be read."""
    parsed = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override {brief(override)} is not of the form section.key=value")
        if len(override) > LONGEST:
            raise UserError(f"override {brief(override)} is too long; give at most {LONGEST:,} characters")
        if key != key.rstrip():  # spaces around the equals sign
            text = text.strip()
        key = key.strip()
        try:
            parsed[key] = _value(key, text)
        except Unreadable as error:
            if _hint(key) is Any and not key.startswith(LITERAL):
                parsed[key] = text  # of no field, which is what has to be said
                continue
            raise UserError(f"override {brief(override)}: {Unreadable(error.reason, key, *error.keys)}") from None
        except ValueError as error:
            quoted = shlex.quote(f"{key}={json.dumps(text, ensure_ascii=False)}")
            raise UserError(
                f"override {brief(override)}: the value is not valid YAML ({error}); to give it as a text, quote it: "
                f"{brief(quoted, 120)}"
            ) from None
    return parsed


def _value(key: str, text: str) -> Any:
    hint, bare = _hint(key), text.strip()
    is_text = bool({str, Path} & set(kinds_of(hint)))
    is_quoted = len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\""
    if is_text and is_quoted:
        with contextlib.suppress(ValueError):  # 'a' and 'b': not one quoted text, so it stays as it is
            return read_yaml(bare)
    if is_text:
        return typed(Plain(text), hint, Config)
    return typed(read_yaml(bare) if is_quoted or bare[:1] in ("[", "{") else Plain(bare), hint, Config)


def _hint(key: str) -> Any:
    parts = split(key)
    if parts[:2] == ["teacher", "overrides"] and len(parts) > 2:
        return hint_of(Config, parts[2])
    return Any if parts[:2] == ["model", "args"] and len(parts) > 2 else hint_of(Config, key)
