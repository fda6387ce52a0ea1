"""``fastlg eval``: a run on its test images, corrupted too where that is asked for, and against another run."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from fastlg.commands.evaluate import Tested, to_test
from fastlg.commands.many.evidence import verdict, weigh
from fastlg.commands.testing.answers import answers_of
from fastlg.commands.testing.choice import Chosen
from fastlg.commands.testing.corrupted import expect_corruptible, known_corrupted, measure_corrupted
from fastlg.commands.testing.drawings import draw
from fastlg.commands.testing.files import keep
from fastlg.commands.testing.outcome import Evaluation, Side
from fastlg.commands.testing.sheets import ends, sheets_of, show, texts_of
from fastlg.data.corruptions.strengths import NAMES, SEVERITIES
from fastlg.errors import UserError, is_unwritable, writing
from fastlg.ranks.say import say
from fastlg.run.report import Pulse


def evaluate(run: Path, which: str, overrides: dict[str, Any], *, out: Path | None = None, **more: Any) -> Evaluation:
    """``measured``, told, and written to the folder ``out`` as tables and pictures; None: nothing is written."""
    if out is not None:
        expect_place(out)
    found = measured(run, which, overrides, **more)
    _tell(found)
    if out is not None:
        keep(out, texts_of(found, lines_of(found)), found.as_json(), partial(draw, found))
    return found


def expect_place(out: Path) -> None:
    """Makes the folder before anything takes long. Raises UserError where none can be, RunError on a full disk."""
    with writing(out):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not is_unwritable(error):
                raise
            raise UserError(f"cannot write to {out}: {error.strerror}; give another folder (--out)") from None


def measured(
    run: Path,
    which: str,
    overrides: dict[str, Any],
    *,
    against: Path | None = None,
    corruptions: Chosen | None = None,
) -> Evaluation:
    """Tests a run, and ``against`` on the same images; what is measured on corrupted ones is kept beside each run.

    overrides    dotted keys of data and engine, for both
    corruptions  which are measured; None: where both were measured before, that is told

    Raises UserError for what holds no run, or where the runs are not tested on the same images.
    """
    with Pulse(lambda: f"testing  {run}"):
        tested = [to_test(folder, which, overrides) for folder in (run, against) if folder is not None]
        _expect_alike(tested)
        for own in tested if corruptions is not None else ():
            expect_corruptible(own)
        names = _named([own.folder for own in tested])
        sides = [
            Side(name, own, *answers_of(own.config, own.network, own.store))
            for name, own in zip(names, tested, strict=True)
        ]
    found = Evaluation(*sides)
    if found.against is not None:
        found.evidence = weigh(found.against.answers.right[None], found.own.answers.right[None])
    _corrupt(found, corruptions)
    return found


def _expect_alike(tested: list[Tested]) -> None:
    """Raises UserError for two runs that are not tested on the same images of the same classes."""
    one, *others = tested
    for other in others:
        if one.class_names != other.class_names:
            raise UserError(f"{one.folder} and {other.folder} tell other classes apart; compare runs of the same ones")
        if one.store.fingerprint != other.store.fingerprint:
            counts = f"{len(one.store):,} and {len(other.store):,}"
            raise UserError(
                f"{one.folder} and {other.folder} are tested on different images ({counts}); give data.source=..., on "
                "which both are tested then, or a run of the same images"
            )


def _named(folders: list[Path]) -> list[str]:
    """By as many of their last parts as tell them apart."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = [os.path.join(*own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return names


def _corrupt(found: Evaluation, chosen: Chosen | None) -> None:
    """Measures what is chosen, or finds what was measured before of every side."""
    for side in found.sides:
        if chosen is not None:
            side.corrupted = measure_corrupted(side.tested, *chosen)
        else:
            side.corrupted = known_corrupted(side.tested)
        side.tested.network.cpu()
    if missing := [side for side in found.sides if side.corrupted is None]:
        if len(missing) < len(found.sides):
            found.notes.append(
                f"{missing[0].tested.folder} was not measured on corrupted images; --corruptions does it"
            )
        return
    if len({side.corrupted.side for side in found.sides}) > 1:
        sizes = " and ".join(f"{side.corrupted.side} px" for side in found.sides)
        found.notes.append(f"no mean corruption error: the runs see images at {sizes}, and were corrupted there")
        return
    known = [side.corrupted.found.keys() for side in found.sides]
    both = set.intersection(*map(set, known))
    if not both:
        return
    held = [tuple(own for own in SEVERITIES if (name, own) in both) for name in NAMES]
    found.severities = list(max(filter(None, held), key=lambda own: (len(own) * held.count(own), len(own))))
    found.names = [name for name in NAMES if all((name, own) in both for own in found.severities)]
    if others := [name for name, own in zip(NAMES, held, strict=True) if own and name not in found.names]:
        found.notes.append(f"left out, measured at other severities: {', '.join(others)}")
    if len(found.names) < len(NAMES) or len(found.severities) < len(SEVERITIES):
        part = f"{len(found.names)} of {len(NAMES)} corruptions, severities {', '.join(map(str, found.severities))}"
        found.notes.append(f"the means are over {part}; published ones are over all")


def lines_of(found: Evaluation) -> list[str]:
    """What is found, a line each."""
    lines = []
    for side in found.sides:
        scores, own = side.scores, side.accuracy
        lines.append(
            f"{side.tested.folder} ({side.tested.which}): top-1 {own.top1:.2f} %  top-5 {own.top5:.2f} %  "
            f"cross entropy {own.loss:.4f}  over {own.count:,} images"
        )
        lines.append(
            f"calibration error {scores['calibration_error']:.2f} % ({len(side.calibration.images)} bins of equal "
            f"width)  NLL {scores['nll']:.4f}  Brier {scores['brier']:.4f}"
        )
    if found.evidence is not None:
        what = f"{found.own.name} against {found.against.name}"
        lines.append(verdict(found.evidence, what, "whether other seeds agree is not known"))
    if found.names:
        told = f"mean error under corruption {found.mean_error(found.own):.1f} %"
        if found.against is not None:
            told += f", {found.against.name} {found.mean_error(found.against):.1f} %"
            told += f"; mCE {_percent(found.mce)}, relative mCE {_percent(found.relative_mce)}, where 100 % is alike"
        lines.append(told)
    return [*lines, *(f"note     {note}" for note in found.notes)]


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1f} %"


def _tell(found: Evaluation) -> None:
    for line in lines_of(found):
        say(line)
    for sheet in sheets_of(found):
        if sheet.name == "classes" and found.against is None:
            _tell_classes(found)
        elif sheet.name != "scores" or found.against is not None:
            show(sheet, ends(sheet.rows) if sheet.name == "classes" else None)


def _tell_classes(found: Evaluation) -> None:
    rows = sorted((row for row in found.classes if row["images"]), key=lambda row: row["accuracy"])
    worst = ", ".join(f"{row['class']} {row['accuracy']:.1f} %" for row in rows[:3])
    pairs = ", ".join(f"{row['class']} for {row['taken_for']} ({row['images']:,})" for row in found.confused[:3])
    say(f"worst classes: {worst}{f'; most often taken: {pairs}' if pairs else ''}")
