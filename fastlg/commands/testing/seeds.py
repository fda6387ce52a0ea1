"""``fastlg eval`` of a comparison over seeds: each guided run against the unguided one of its seed, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastlg.commands.many.evidence import Evidence, verdict, weigh
from fastlg.commands.many.table import Figures, figures
from fastlg.commands.testing.choice import Chosen, Pair
from fastlg.commands.testing.drawings import draw
from fastlg.commands.testing.files import PAGE, keep
from fastlg.commands.testing.go import expect_place, lines_of, measured
from fastlg.commands.testing.outcome import Evaluation
from fastlg.commands.testing.sheets import SCORES, Sheet, as_csv, markdown, show, texts_of
from fastlg.errors import UserError
from fastlg.ranks.say import say

SIDES = ("guided", "unguided")
BEYOND = {  # key -> (title, digits), where corrupted images were measured
    "mean_error": ("error under corruption %", 2),
    "mce": ("mCE %", 2),
    "relative_mce": ("relative mCE %", 2),
}


class Seed(NamedTuple):
    """One pair of runs; ``scores`` and ``right`` of the sides in the order of SIDES, ``ratios``: mce and relative_mce,
    None where they are undefined or were not measured."""

    name: str
    scores: list[dict[str, float]]
    right: list[np.ndarray]
    ratios: dict[str, float | None]

    @classmethod
    def of(cls, name: str, found: Evaluation) -> Seed:
        scores = [dict(side.scores) for side in found.sides]
        for side, own in zip(found.sides, scores, strict=True):
            if found.names:
                own["mean_error"] = found.mean_error(side)
        ratios = {"mce": found.mce, "relative_mce": found.relative_mce}
        return cls(name, scores, [side.answers.right for side in found.sides], ratios)


def evaluate_seeds(
    folder: Path,
    pairs: list[Pair],
    which: str,
    overrides: dict[str, Any],
    *,
    corruptions: Chosen | None = None,
    out: Path,
    notes: Sequence[str] = (),
) -> Evidence:
    """Tests all pairs, tells each in its lines and the mean of all as a table, and ``notes``; the files of each pair go
    to a folder of its own in ``out``. Other arguments as in ``go.measured``. Raises UserError, RunError."""
    seeds, notes = [], list(notes)
    for pair in pairs:
        expect_place(out / pair.name)
        found = measured(pair.guided, which, overrides, against=pair.unguided, corruptions=corruptions)
        say("")
        for line in lines_of(found):
            say(line)
        keep(out / pair.name, texts_of(found, lines_of(found)), found.as_json(), partial(draw, found))
        seeds.append(Seed.of(pair.name, found))
        notes += found.notes
    if len({len(own.right[0]) for own in seeds}) > 1:
        raise UserError(f"{folder}: its seeds were tested on different images; give data.source=..., for all")
    evidence = weigh(*(np.stack([own.right[side] for own in seeds]) for side in (1, 0)))
    said = verdict(evidence, " against ".join(SIDES), "other seeds were not trained")
    notes = list(dict.fromkeys(notes))
    lines = [said, *(f"note     {note}" for note in notes)]
    sheet = _sheet(seeds)
    show(sheet)
    for line in lines:
        say(line)
    whole = {"seeds": [_told(own) for own in seeds], "evidence": {**evidence._asdict(), "holds": evidence.holds}}
    texts = {PAGE: markdown(str(folder), [sheet], lines), "seeds.csv": as_csv(*sheet.numbers)}
    keep(out, texts, {**whole, "notes": notes})
    return evidence


def _told(seed: Seed) -> dict[str, Any]:
    return {"seed": seed.name, **dict(zip(SIDES, seed.scores, strict=True)), **seed.ratios}


def _sheet(seeds: list[Seed]) -> Sheet:
    rows = []
    for key, (title, digits) in {**SCORES, **BEYOND}.items():
        if all(key in own.scores[0] for own in seeds):
            sides = [[own.scores[side][key] for own in seeds] for side in (0, 1)]
            gains = [first - second for first, second in zip(*sides, strict=True)]
            cells = [_spread(figures(values), digits) for values in sides]
            rows.append([title, *cells, _spread(figures(gains), digits, sign="+")])
        elif all(own.ratios.get(key) is not None for own in seeds):
            rows.append([title, _spread(figures([own.ratios[key] for own in seeds]), digits), "100", ""])
    count = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    title = f"{count}, {len(seeds[0].right[0]):,} test images; mean ± sample standard deviation (n - 1)"
    keys = list(dict.fromkeys(key for own in seeds for scores in own.scores for key in scores))
    numbers = [
        [own.name, side, *(scores.get(key) for key in keys)]
        for own in seeds
        for side, scores in zip(SIDES, own.scores, strict=True)
    ]
    return Sheet("seeds", title, ["", *SIDES, "difference"], rows, (["seed", "run", *keys], numbers))


def _spread(found: Figures, digits: int, sign: str = "") -> str:
    mean = f"{found.mean:{sign}.{digits}f}"
    return mean if found.std is None else f"{mean} ± {found.std:.{digits}f}"
