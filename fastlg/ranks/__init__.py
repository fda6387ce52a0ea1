"""The processes that share a run; in a lone one ``ranks.rank()``, ``ranks.total(values)`` and all answer at once."""

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
