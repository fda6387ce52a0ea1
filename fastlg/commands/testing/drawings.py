"""An evaluation as pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fastlg.analysis.scores import most_involved
from fastlg.commands.report.charts import LABELLED, draw_confusion, draw_reliability
from fastlg.commands.testing.outcome import Evaluation
from fastlg.errors import printable
from fastlg.run.curves import COLOURS, save_picture


def draw(found: Evaluation, out: Path) -> list[str]:
    """Writes the pictures and returns the names of those that came out."""
    chosen = most_involved(found.confusion, LABELLED)
    part, names = found.confusion[chosen][:, chosen], [found.own.tested.class_names[i] for i in chosen]
    pictures = {
        "reliability.png": partial(draw_reliability, [(side.name, side.calibration) for side in found.sides]),
        "confusion.png": partial(draw_confusion, part, names),
    }
    if found.names:
        pictures["corruptions.png"] = partial(draw_corruptions, found)
    instead = "evaluation.json holds what it would show"
    return [name for name, picture in pictures.items() if save_picture(out / name, picture, instead)]


def draw_corruptions(found: Evaluation, new_figure):
    """Left: top-1 of each corruption, the mean over the severities. Right: by severity, the mean over the corruptions;
    severity 0 is the clean images."""
    drawn = new_figure(figsize=(11, 4.6), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(2, 1))
    count, width = len(found.names), 0.8 / len(found.sides)
    for number, side in enumerate(found.sides):
        colour, errors = COLOURS[number], [side.corrupted.errors(name, found.severities) for name in found.names]
        places = [place + width * (number - (len(found.sides) - 1) / 2) for place in range(count)]
        left.bar(places, [100 - sum(own) / len(own) for own in errors], 0.92 * width, color=colour)
        left.axhline(side.accuracy.top1, color=colour, ls="--", lw=1)
        by_severity = [100 - sum(column) / count for column in zip(*errors, strict=True)]
        right.plot([0, *found.severities], [side.accuracy.top1, *by_severity], color=colour, marker="o", ms=4, lw=1.4)
    left.set_xticks(range(count), [name.replace("_", " ") for name in found.names], rotation=45, ha="right")
    left.set(ylabel="top-1 (%)", title="Mean over the severities; dashed: clean images")
    right.set(xlabel="severity (0: clean)", ylabel="top-1 (%)", title="Mean over the corruptions")
    right.set_xticks([0, *found.severities])
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    if len(found.sides) > 1:
        legend = right.legend(right.get_lines(), [str(number) for number in range(len(found.sides))], frameon=False)
        for text, side in zip(legend.get_texts(), found.sides, strict=True):
            text.set_text(printable(side.name))
    return drawn
