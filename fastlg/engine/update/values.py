"""Values that are handed on to timm's optimizers and schedules: of the right kind, or one line that names the key."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from fastlg.errors import UserError, brief, first_line


def check_kinds(args: Mapping[str, Any], known: Mapping[str, inspect.Parameter], key: str, who: str) -> None:
    """Raises UserError for a value that is not of the kind of its default. What timm makes of it, it says itself.

    key  of ``args`` in a config; known: the parameters of ``who``, which takes them
    """
    for name, value in args.items():
        if wanted := _unlike(value, known[name]):
            raise UserError(f"{key}.{name} is {brief(value)}; {who} takes {wanted}")


def refused(
    args: Mapping[str, Any], attempt: Callable[[dict], object], error: Exception, key: str, who: str
) -> UserError:
    """The UserError for what ``attempt(args)`` raised, which names the one value without which it goes well."""
    why = first_line(error) or type(error).__name__
    for name in args:
        try:
            attempt({other: value for other, value in args.items() if other != name})
        except Exception:  # timm's own code, with a user's other values
            continue
        return UserError(f"{key}.{name} is {brief(args[name])}, which {who} refuses: {why}")
    return UserError(f"{key} {brief(dict(args))} do not fit {who}: {why}")


def _unlike(value: Any, parameter: inspect.Parameter) -> str:
    """What a value should be; "" where it is that, or where a default of None and no annotation say too little."""
    default, kinds = parameter.default, str(parameter.annotation)
    may_be = {"None": default is None or "None" in kinds or "Optional" in kinds, "List": "List" in kinds}
    if value is None and may_be["None"]:
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        is_whole = parameter.annotation in (int, "int")
        is_fit = _is_number(value) and (value == int(value) or not is_whole)
        return "" if is_fit else f"a {'whole ' * is_whole}number, as {default}"
    if isinstance(default, (tuple, list)):
        is_fit = _are_numbers(value) and (may_be["List"] or len(value) == len(default))
        count = "a list of" if may_be["List"] else len(default)
        return "" if is_fit else f"{count} numbers, as {list(default)}"
    if isinstance(default, str):
        return "" if isinstance(value, str) or "Union" in kinds else f"a word, as {default}"
    if default is None and "float" in kinds and "str" not in kinds:
        is_fit = _is_number(value) or ((may_be["List"] or "Tuple" in kinds) and _are_numbers(value))
        return "" if is_fit else "numbers" if "Tuple" in kinds else f"a number{' or a list of them' * may_be['List']}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(_is_number, value))
