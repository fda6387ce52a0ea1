"""The page of a comparison: without and with guidance side by side, and what that proves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlg.analysis.scores import confusion, per_class
from fastlg.commands.many.evidence import Evidence, verdict, weigh
from fastlg.commands.many.table import figures, spread
from fastlg.commands.report.charts import Line
from fastlg.commands.report.facts import Facts, Had, facts_of
from fastlg.commands.report.looks import attention_of, views_of
from fastlg.commands.report.markup import Markup, join, note, page, paragraph, table, tag
from fastlg.commands.report.places import Pair
from fastlg.commands.report.sections import (
    attempted,
    badges,
    calibrated,
    card,
    configuration,
    confusion_picture,
    curves,
    duration,
    percent,
    provenance,
)
from fastlg.commands.testing.answers import Answers
from fastlg.config import dotted
from fastlg.run.folder import PARTS_OF_COMPARE

CHANGED = 6  # images of either kind
MOST_CLASSES = 30  # in the table of classes; of more, those that change most either way
MOST_SEEDS = 20  # whose provenance is shown


@dataclass
class Pairing:
    """The two runs of one seed; None where there is none."""

    name: str
    unguided: Facts | None
    guided: Facts | None

    @classmethod
    def read(cls, name: str, folders: Pair, which: str, overrides: dict[str, Any] | None) -> Pairing:
        return cls(name, *(None if folder is None else facts_of(folder, which, overrides) for folder in folders))

    @property
    def sides(self) -> dict[str, Facts]:
        both = zip(PARTS_OF_COMPARE, (self.unguided, self.guided), strict=True)
        return {part: own for part, own in both if own is not None}

    @property
    def missing(self) -> str:
        """Why this pair says nothing about guidance; "" where it does."""
        for part, own in zip(PARTS_OF_COMPARE, (self.unguided, self.guided), strict=True):
            who = f"{part} {self.name}".strip()
            if own is None:
                return f"there is no {who} run"
            if not own.is_complete:
                return f"the {who} run is not complete ({own.epochs_done} of {own.config.optim.epochs} epochs)"
            if not own.answers:
                return f"the {who} run cannot be tested: {own.answers.why}"
        return ""

    @property
    def answers(self) -> tuple[Answers, Answers]:
        return self.unguided.answers.value, self.guided.answers.value


def compare_page(folder: Path, pairs: list[Pairing], foot: str) -> str:
    """The HTML of a comparison's report. Raises no error for runs that are missing, unfinished or without images."""
    whole = [pair for pair in pairs if not pair.missing]
    first = (whole or pairs)[0]
    found = weighed(pairs)
    lines = [
        Line(part, own.rows, number)
        for number, part in enumerate(PARTS_OF_COMPARE)
        for pair in pairs
        if (own := pair.sides.get(part)) is not None
    ]
    any_of = next(iter(first.sides.values()))
    parts = [
        ("verdict", "Verdict", join((said(found), _runs(pairs)))),
        ("curves", "Curves", attempted(lambda: curves(lines, any_of.chooser))),
        ("views", "What the networks see", views_of(first.sides.get("guided", any_of))),
        ("attention", "Attention", join((_of(first, pairs), attempted(lambda: attention_of(first.sides))))),
        *_answered(first, whole),
        ("config", "Configuration", join((_differences(first), configuration(first.sides.get("guided", any_of))))),
        ("provenance", "Provenance", attempted(lambda: join(_provenance(pairs)))),
    ]
    subtitle = f"{any_of.config.model.name} at {any_of.config.model.image_size} px, without and with guidance"
    subtitle += f", {len(pairs)} seeds" * (len(pairs) > 1) + f"; checkpoint {any_of.which}"
    return page(f"Comparison {folder.resolve().name}", subtitle, badges(_numbers(whole, found)), parts, foot)


def weighed(pairs: list[Pairing]) -> Had:
    """The evidence of all pairs (commands/many/evidence.py), or why there is none."""
    missing = [pair.missing for pair in pairs if pair.missing]
    if missing:
        return Had(None, f"no verdict, for {len(missing)} of {len(pairs)} pairs of runs are missing: {missing[0]}")
    sides = [[pair.answers[side].right for pair in pairs] for side in (0, 1)]
    labels = pairs[0].answers[0].labels
    if any(not np.array_equal(own.labels, labels) for pair in pairs for own in pair.answers):
        return Had(None, "no verdict, for the runs were tested on different images")
    return Had(weigh(*map(np.stack, sides)))


def said(found: Had) -> Markup:
    return tag("p", verdict(found.value, "guidance"), class_="verdict") if found else note(f"guidance: {found.why}")


def _numbers(whole: list[Pairing], found: Had) -> list[tuple[str, str]]:
    if not whole:
        return []
    told = [
        (f"top-1 {part}", f"{spread(figures([pair.answers[side].top1 for pair in whole]))} %")
        for side, part in enumerate(PARTS_OF_COMPARE)
    ]
    if not found:
        return told
    own: Evidence = found.value
    change = f"{own.mean:+.2f}" + ("" if own.std is None else f" ± {own.std:.2f}")
    return [*told, ("points of top-1 by guidance", change), ("test images", f"{own.images:,}")]


def _runs(pairs: list[Pairing]) -> Markup:
    """A row per run."""
    rows = []
    for pair in pairs:
        for part, own in pair.sides.items():
            summary = own.summary or {}
            cells = [f"{part} {pair.name}".strip(), f"{own.epochs_done} of {own.config.optim.epochs}"]
            if own.answers:
                answers = own.answers.value
                error = answers.calibrated().error
                cells += [f"{answers.top1:.2f}", f"{answers.top(5):.2f}", f"{100 * error:.1f}"]
            else:
                cells += ["-", "-", "-"]
            best = summary.get("top1_best")
            cells.append("-" if best is None else f"{best:.2f}")
            cells += [f"{summary['images_per_s']:,.0f}" if summary else "-", duration(summary.get("wall_s")) or "-"]
            rows.append(cells)
    columns = ("run", "epochs", "top-1 %", "top-5 %", "calibration error %", "best epoch %", "images/s", "time")
    return table(columns, rows, caption="The runs")


def _of(first: Pairing, pairs: list[Pairing]) -> Markup | str:
    return paragraph(f"Of the runs of {first.name}.") if len(pairs) > 1 else ""


def _answered(first: Pairing, whole: list[Pairing]) -> list[tuple[str, str, Markup]]:
    titles = {"classes": "Classes", "calibration": "Calibration", "mistakes": "What guidance changes"}
    if not whole:
        why = note(f"Not shown, for there is no whole pair of runs: {first.missing}")
        return [(anchor, title, why) for anchor, title in titles.items()]
    sides = [(part, pooled([pair.answers[side] for pair in whole])) for side, part in enumerate(PARTS_OF_COMPARE)]
    names = first.guided.class_names
    pools = paragraph(f"Over the test images of {len(whole)} seeds, taken together.") if len(whole) > 1 else ""
    content = {
        "classes": lambda: join((pools, _classes(sides, names))),
        "calibration": lambda: join((pools, calibrated(sides))),
        "mistakes": lambda: join((_of(first, whole), _changed(first))),
    }
    return [(anchor, title, attempted(content[anchor])) for anchor, title in titles.items()]


def pooled(several: list[Answers]) -> Answers:
    """The answers of several runs one after another."""
    return Answers(*map(np.concatenate, zip(*several, strict=True)))


def _classes(sides: list[tuple[str, Answers]], names: list[str]) -> Markup:
    matrices = [confusion(own.labels, own.predicted, len(names)) for _, own in sides]
    drawn = [confusion_picture(own, names, part) for (part, _), own in zip(sides, matrices, strict=True)]
    unguided, guided = (per_class(own) for own in matrices)
    there = np.flatnonzero(unguided.images)
    gain = 100 * (guided.accuracy[there] - unguided.accuracy[there])
    order = there[np.argsort(-gain, kind="stable")]
    caption = f"Accuracy of the {len(order):,} classes that have test images, by what guidance changes"
    if len(order) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
        caption = f"The {half} classes that gain most and the {half} that gain least, of {len(there):,}"
    rows = []
    for i in order:
        before, after = 100 * unguided.accuracy[i], 100 * guided.accuracy[i]
        rows.append((names[i], f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}", f"{unguided.images[i]:,}"))
    whole = table(("class", "unguided %", "guided %", "difference", "images"), rows, caption=caption)
    return join((tag("div", *drawn, class_="beside"), whole))


def _changed(first: Pairing) -> Markup:
    """Test images that guidance mends, and those that it breaks, by what the true class gains or loses."""
    before, after = first.answers
    if not np.array_equal(before.labels, after.labels):
        return note("Not shown, for the two runs were tested on different images.")
    gain, parts = after.of_true - before.of_true, []
    for title, chosen, order in (
        ("Mended: wrong without guidance, right with it", after.right & ~before.right, -gain),
        ("Broken: right without guidance, wrong with it", before.right & ~after.right, gain),
    ):
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(order[rows], kind="stable")]
        parts.append(tag("h3", title))
        part = "" if len(rows) <= CHANGED else f"; {CHANGED} are shown"
        parts.append(paragraph(f"{len(rows):,} of {len(gain):,} test images{part}."))
        parts.append(tag("ul", *(_card(first, int(row)) for row in rows[:CHANGED]), class_="cards"))
    return join(parts)


def _card(first: Pairing, row: int) -> Markup:
    names, lines = first.guided.class_names, []
    for part, own in zip(PARTS_OF_COMPARE, first.answers, strict=True):
        lines.append(tag("p", f"{part}: ", tag("b", names[own.predicted[row]]), f", {percent(own.confidence[row])}"))
    true = names[first.answers[0].labels[row]]
    lines.append(tag("p", "is ", tag("b", true)))
    return card(first.guided.stores.value.test, row, f"Test image {row}: {true}", lines)


def _differences(first: Pairing) -> Markup | str:
    """In which fields the two configs differ."""
    if len(first.sides) < 2:
        return ""
    before, after = (dotted(own.config.model_dump(mode="json")) for own in first.sides.values())
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    rows = [(key, _value(before, key), _value(after, key)) for key in keys if key not in ("run.name", "run.root")]
    differing = table(("field", *PARTS_OF_COMPARE), rows, caption="Where the two differ", texts=3)
    return join((differing, tag("h3", "Guided")))


def _value(tree: dict, key: str) -> str:
    return str(tree[key]) if key in tree else "-"


def _provenance(pairs: list[Pairing]) -> list[Markup]:
    parts = []
    for pair in pairs[:MOST_SEEDS]:
        for part, own in pair.sides.items():
            parts += [tag("h3", f"{part} {pair.name}".strip()), provenance(own)]
    if len(pairs) > MOST_SEEDS:
        parts.append(note(f"{MOST_SEEDS} of {len(pairs):,} seeds are shown."))
    return parts
