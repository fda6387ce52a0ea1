"""The processes that share a run; in a lone one ``ranks.rank()``, ``ranks.total(values)`` and all answer at once.

torch is imported with the first name that needs it: a command that only has to say a line, or why it cannot begin,
does so at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastlg.ranks.contact import is_broken_contact
    from fastlg.ranks.group import (
        Agreement,
        first_says,
        gather_into,
        gathered,
        has_begun,
        is_first,
        joined,
        rank,
        total,
        wait_for_all,
        world_size,
    )

__all__ = [
    "Agreement",
    "first_says",
    "gather_into",
    "gathered",
    "has_begun",
    "is_broken_contact",
    "is_first",
    "joined",
    "rank",
    "total",
    "wait_for_all",
    "world_size",
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    home = "contact" if name == "is_broken_contact" else "group"
    return globals().setdefault(name, getattr(importlib.import_module(f"{__name__}.{home}"), name))
