"""The charts of a report, drawn once on light and once on dark ground. matplotlib's part of it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fastlg.analysis.scores import Calibration
from fastlg.commands.report.markup import Markup, figure, inlined, note, tag
from fastlg.errors import first_line, printable
from fastlg.run.curves import AS_WRITTEN, COLOURS

DPI = 130
LABELLED = 30  # classes whose names stand at a matrix
NUMBERED = 12  # whose counts stand in it
_DARK = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "#e4e7eb"),
    "axes.edgecolor": "#8b949e",
    "grid.color": "#8b949e",
}
_GROUND = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none")


def chart(draw: Callable, alt: str, caption: object = "") -> Markup:
    """``draw(matplotlib's Figure) -> figure`` as a picture for either ground; a note where it cannot be drawn."""
    try:
        light, dark = _drawn(draw, {}), _drawn(draw, _DARK)
    except Exception as error:  # a picture never fails a report
        return note(f"The picture ({alt}) could not be drawn: {first_line(error)} ({type(error).__name__}).")
    query = "screen and (prefers-color-scheme: dark)"
    whole = tag(
        "picture",
        tag("source", media=query, srcset=inlined(dark[0], "png")),
        tag("img", src=inlined(light[0], "png"), alt=alt, width=light[1], height=light[2]),
    )
    return figure(whole, caption)


def _drawn(draw: Callable, colours: dict[str, str]) -> tuple[bytes, int, int]:
    """(PNG, width, height in CSS px)."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({**AS_WRITTEN, **_GROUND, **colours}):
        warnings.simplefilter("ignore")  # letters that the font lacks
        drawn = draw(Figure)
        drawn.savefig(buffer, dpi=DPI, format="png")
    width, height = (round(96 * side) for side in drawn.get_size_inches())
    return buffer.getvalue(), width, height


class Line(NamedTuple):
    """A run in the curves: its rows of metrics.jsonl, and which of COLOURS is its own."""

    label: str
    rows: list[dict]
    colour: int = 0


def draw_curves(lines: Sequence[Line], split: str, new_figure):
    """Top-1 and cross entropy against the epoch: on ``split`` solid, on the augmented training images dashed."""
    drawn = new_figure(figsize=(9.2, 3.7), layout="constrained")
    panels = drawn.subplots(1, 2)
    for axes, key, trained, title in zip(
        panels, ("top1", "loss"), ("top1", "loss_cls"), ("top-1 (%)", "cross entropy"), strict=True
    ):
        named: dict[str, object] = {}
        for line in lines:
            colour = COLOURS[line.colour % len(COLOURS)]
            tests = points([row for row in line.rows if row.get("kind") == "eval"], key)
            within = means_by_epoch([row for row in line.rows if row.get("kind") == "train"], trained)
            shown = axes.plot(*tests, color=colour, marker="o", ms=2.5, lw=1.4)[0]
            axes.plot(*within, color=colour, ls="--", lw=1)
            named.setdefault(line.label, shown)
        axes.set(xlabel="epoch", title=title)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(named) > 1:
            _legend(axes, named)
    drawn.suptitle(f"solid: {split} images, dashed: augmented training images", fontsize=9)
    return drawn


def _legend(axes, named: dict[str, object]) -> None:
    """As run/curves.py: a legend leaves out labels that begin with "_"."""
    legend = axes.legend(list(named.values()), [str(number) for number in range(len(named))], frameon=False)
    for text, label in zip(legend.get_texts(), named, strict=True):
        text.set_text(printable(label))


def points(rows: Sequence[dict], key: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of the rows that have both as numbers."""
    known = [row for row in rows if _is_number(row.get("epoch")) and _is_number(row.get(key))]
    return [row["epoch"] for row in known], [row[key] for row in known]


def means_by_epoch(rows: Sequence[dict], key: str) -> tuple[list[float], list[float]]:
    """(middles of the epochs, means of the reports within each)."""
    within: dict[float, list[float]] = {}
    for epoch, value in zip(*points(rows, key), strict=True):
        within.setdefault(epoch, []).append(value)
    return [epoch + 0.5 for epoch in within], [sum(own) / len(own) for own in within.values()]


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def draw_confusion(matrix: np.ndarray, names: Sequence[str], new_figure):
    """``matrix``: int64 [K, K] of ``confusion``; each row as shares of its class."""
    count = len(matrix)
    side = min(8.6, 2.6 + 0.36 * count)
    drawn = new_figure(figsize=(side, side * 0.86), layout="constrained")
    axes = drawn.subplots()
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, vmin=0, vmax=100, cmap="viridis")
    if count <= LABELLED:
        texts = [_short(name) for name in names]
        axes.set_xticks(range(count), texts, rotation=90, fontsize=8)
        axes.set_yticks(range(count), texts, fontsize=8)
    if count <= NUMBERED:
        for row, column in np.argwhere(matrix):
            colour = "black" if shares[row, column] > 60 else "white"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="taken for", ylabel="true class")
    drawn.colorbar(shown, ax=axes, label="% of the class", shrink=0.8)
    return drawn


def _short(name: str, most: int = 18) -> str:
    text = printable(name)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def draw_reliability(sides: Sequence[tuple[str, Calibration]], new_figure):
    """Accuracy against confidence, and below it how many images have it; a line per side."""
    drawn = new_figure(figsize=(5.2, 4.6), layout="constrained")
    above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 100], [0, 100], color="#888888", ls=":", lw=1.2)
    named: dict[str, object] = {}
    for number, (label, own) in enumerate(sides):
        colour, middles = COLOURS[number % len(COLOURS)], 50 * (own.edges[:-1] + own.edges[1:])
        there = own.images > 0
        named[label] = above.plot(
            100 * own.confidence[there], 100 * own.accuracy[there], color=colour, marker="o", ms=4, lw=1.2
        )[0]
        width = 100 / len(own.images) / len(sides)
        shift = width * (number - (len(sides) - 1) / 2)
        below.bar(middles + shift, 100 * own.images / max(own.images.sum(), 1), 0.9 * width, color=colour)
    above.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 102))
    below.set(xlabel="confidence (%)", ylabel="images (%)")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if len(named) > 1:
        _legend(above, named)
    return drawn
