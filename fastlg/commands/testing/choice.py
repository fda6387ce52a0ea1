"""What ``fastlg eval`` is asked for, checked before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from fastlg.data.corruptions.photographs import photograph_files
from fastlg.data.corruptions.strengths import NAMES, SEVERITIES
from fastlg.errors import UserError, brief, did_you_mean
from fastlg.files.reading import is_file, what_is
from fastlg.run.folder import EVALUATION, PARTS_OF_COMPARE, expect_run, is_compare, read_summary, runs_of


class Chosen(NamedTuple):
    """Corruptions in the published order, and severities."""

    names: list[str]
    severities: list[int]


def chosen_corruptions(
    is_asked: bool, only: str | None = None, without: str | None = None, severities: str | None = None
) -> Chosen | None:
    """None where --corruptions is not asked for. Raises UserError for what cannot be, or is not installed."""
    given = {"--only": only, "--without": without, "--severities": severities}
    if not is_asked:
        if stray := [option for option, text in given.items() if text is not None]:
            raise UserError(f"{stray[0]} says which corruptions; give --corruptions too")
        return None
    chosen = Chosen(_names(only, without), _severities(severities))
    if "frost" in chosen.names:
        photograph_files()
    return chosen


def _names(only: str | None, without: str | None) -> list[str]:
    """Corruptions that --only and --without leave, in the published order. Raises UserError for unknown ones."""
    lists = {}
    for option, text in (("--only", only), ("--without", without)):
        lists[option] = [part.strip() for part in (text or "").split(",") if part.strip()]
        for name in lists[option]:
            if name not in NAMES:
                raise UserError(
                    f"{option} names {brief(name)}, which is no corruption; "
                    + did_you_mean(name, NAMES, f"they are {', '.join(NAMES)}")
                )
        if text is not None and not lists[option]:
            raise UserError(f"{option} is empty; give corruptions with commas between, as fog,frost")
    names = [name for name in NAMES if (only is None or name in lists["--only"]) and name not in lists["--without"]]
    if not names:
        raise UserError("--only and --without leave no corruption")
    return names


def _severities(text: str | None) -> list[int]:
    """Raises UserError for what is no list of severities."""
    if text is None:
        return list(SEVERITIES)
    parts = [part.strip() for part in text.split(",")]
    if not all(part in {str(own) for own in SEVERITIES} for part in parts):
        raise UserError(f"--severities is {brief(text)}; give some of 1 to 5 with commas between, as 1,3,5")
    return sorted({int(part) for part in parts})


def pair_of(run: Path, against: Path | None) -> tuple[Path, Path | None]:
    """(run, the one it is held against or None); of a comparison's folder the guided and the unguided one.

    Raises UserError for what holds no run.
    """
    run = run.expanduser()
    if is_compare(run) and not is_file(run / "config.yaml"):
        if against is not None:
            raise UserError(f"{run} holds a comparison, whose two runs are compared; drop --against, or name one run")
        against, run = (run / part for part in PARTS_OF_COMPARE)
    expect_run(run)
    if against is not None:
        against = against.expanduser()
        expect_run(against)
        if os.path.realpath(run) == os.path.realpath(against):
            raise UserError(f"--against {against} is the run itself; give another one")
    return run, against


class Pair(NamedTuple):
    """The runs of one seed of a comparison over seeds, both complete."""

    name: str
    guided: Path
    unguided: Path


def pairs_of_seeds(run: Path, against: Path | None) -> tuple[list[Pair], list[str]]:
    """(the complete pairs of a comparison over seeds, what of it is left out); ([], []) of anything else.

    Raises UserError for a comparison without a complete pair, and where ``against`` is given beside one.
    """
    run = run.expanduser()
    if is_file(run / "config.yaml") or is_compare(run):
        return [], []
    sides = [{own.name: own for own in runs_of(run / part)} for part in PARTS_OF_COMPARE]
    names = sorted({*sides[0], *sides[1]}, key=lambda name: (len(name), name))
    if not names:
        return [], []
    if against is not None:
        raise UserError(f"{run} holds a comparison, whose runs are compared; drop --against, or name one run")
    pairs, left = [], []
    for name in names:
        lacking = [part for part, own in zip(PARTS_OF_COMPARE, sides, strict=True) if not _is_complete(own.get(name))]
        if lacking:
            left.append(f"left out: {name}, whose {' and '.join(lacking)} run is not complete")
        else:
            pairs.append(Pair(name, sides[1][name], sides[0][name]))
    if not pairs:
        raise UserError(f"{run} holds a comparison without a complete pair of runs; train it on, or name one run")
    return pairs, left


def _is_complete(run: Path | None) -> bool:
    return run is not None and read_summary(run) is not None


def out_folder(out: Path | None, run: Path, is_kept: bool) -> Path | None:
    """Where files go: ``out``, else, where something is to be kept, a folder in the run's. Raises UserError."""
    if out is None:
        return run / EVALUATION if is_kept else None
    out = out.expanduser()
    try:
        kind = what_is(out)
    except OSError as error:
        raise UserError(f"--out {brief(out, 200)}: {error.strerror}; give another folder") from None
    if kind not in ("", "a folder"):
        raise UserError(f"--out {out} is {kind}; give a folder")
    return out
