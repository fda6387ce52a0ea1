"""A file of overrides for many rows: of all of them, and of those with one student."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastlg.config import dotted, read_tree
from fastlg.errors import UserError, brief

BY_MODEL = "by_model"
PATH = 200  # characters of a path that a message shows


class Overlay(NamedTuple):
    """Overrides as the command line has them, ``section.key=value``; what is given there comes after them and wins."""

    of_all: tuple[str, ...] = ()
    by_model: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (model.name, in which * is any text, its overrides)
    path: Path | None = None

    def of(self, model: str) -> list[str]:
        """Those of a row that trains ``model``."""
        return [*self.of_all, *(text for _, own in self.matching([model]) for text in own)]

    def told_of(self, error: UserError, model: str) -> UserError:
        """``error`` of a row that trains ``model``, beginning with the file where an override of that is to blame."""
        who, _, what = str(error).partition(": ")
        if self.path is None or not any(brief(text) in who for text in self.of(model)):
            return error
        return UserError(f"{brief(self.path, PATH)}: {what} (of {model})")

    def matching(self, models: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
        """What is given by model, of these models alone."""
        return [(name, own) for name, own in self.by_model if fnmatch.filter(models, name)]

    def told(self, models: Sequence[str]) -> list[str]:
        """All of it that rows of ``models`` take, for the header of their table."""
        return [*self.of_all, *(f"[{name}] {text}" for name, own in self.matching(models) for text in own)]

    def as_dict(self) -> dict[str, str]:
        """Every override by a key of its own, that of another student's too: the same file, the same folder."""
        named = [("", self.of_all), *((f"[{name}] ", own) for name, own in self.by_model)]
        parts = [(prefix, *text.partition("=")[::2]) for prefix, own in named for text in own]
        return {f"{prefix}{key}": value for prefix, key, value in parts}


NOTHING = Overlay()


def read_overlay(path: Path, known: Sequence[str]) -> Overlay:
    """Reads a file of sections as a config has them and, below ``by_model``, of sections by the row's model.name.

    known  the models that rows have. Raises UserError for no such file, a name that is none of theirs, and a run.name,
           which is one for all rows.
    """
    tree = read_tree(path)
    if not dotted(tree):
        raise UserError(f"{brief(path, PATH)} holds nothing; give sections as a config has them, or leave --with out")
    for key, why in (("paper", "is which row a config is"), ("extends", "is for configs")):
        if key in tree:
            raise UserError(f"{brief(path, PATH)} states {key}, which {why}; leave it out")
    by_model = tree.pop(BY_MODEL, {})
    if not isinstance(by_model, dict) or not all(isinstance(own, dict) for own in by_model.values()):
        raise UserError(
            f"{brief(path, PATH)}: {BY_MODEL} holds sections by model.name, as in {BY_MODEL}: {{pit_*: {{...}}}}"
        )
    for name in by_model:
        if not fnmatch.filter(known, name):
            raise UserError(
                f"{brief(path, PATH)}: {BY_MODEL} names {brief(name)}, which no row trains; rows train "
                f"{', '.join(sorted(set(known)))}"
            )
    found = Overlay(_texts(tree), tuple((name, _texts(own)) for name, own in by_model.items()), path)
    if any(key.removeprefix(f"[{name}] ") == "run.name" for name in ("", *by_model) for key in found.as_dict()):
        raise UserError(f"{brief(path, PATH)} states run.name, the folder of all rows; give it on the command line")
    return found


def _texts(tree: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={_text(value)}" for key, value in dotted(tree).items())


def _text(value: Any) -> str:
    """A value as it would be typed on the command line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(own)}' for key, own in value.items())}}}"
    if value is None:
        return "null"
    is_plain = type(value) is not str  # else it was quoted
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)
