"""Corruption errors of one run against another's: Hendrycks and Dietterich 2019 (arXiv 1903.12261), section 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Relative(NamedTuple):
    """In percent, 100 where both are alike and below where the first is sturdier; None where nothing can be divided by.

    of             corruption -> CE: the sum of its errors over the severities, as a share of the other's
    relative_of    corruption -> relative CE: likewise, of how far they exceed each run's error on clean images
    mce            mean of ``of``
    relative_mce   mean of ``relative_of``
    """

    of: dict[str, float | None]
    relative_of: dict[str, float | None]
    mce: float | None
    relative_mce: float | None


def relative_to(
    errors: Mapping[str, Sequence[float]],
    clean: float,
    other: Mapping[str, Sequence[float]],
    other_clean: float,
) -> Relative:
    """errors, other: corruption -> top-1 errors at the same severities. clean, other_clean: on clean images."""
    of = {name: _share(sum(own), sum(other[name])) for name, own in errors.items()}
    beyond = {
        name: _share(sum(value - clean for value in own), sum(value - other_clean for value in other[name]))
        for name, own in errors.items()
    }
    return Relative(of, beyond, _mean(of), _mean(beyond))


def _share(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole > 1e-9 else None


def _mean(of: Mapping[str, float | None]) -> float | None:
    """None where one is missing: a mean over fewer corruptions would be another number."""
    values = list(of.values())
    return None if not values or None in values else sum(values) / len(values)
