"""Curves of one or several runs as one PNG."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from fastlg.errors import printable
from fastlg.files.atomic import whole
from fastlg.ranks.say import dispensable, say

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe-Ito, told apart by colour-blind readers
AS_WRITTEN = {"text.parse_math": False, "text.usetex": False}  # a $ in a run's name is a $


def plot_curves(
    runs: dict[str, list[dict]], path: Path, split: str = "test", *, with_training: bool = False, by: str = ""
) -> bool:
    """Top-1 on ``split`` (left) and training loss (right) against the epoch, one line per run; see ``save_picture``.

    runs: label -> rows of metrics.jsonl. ``with_training`` adds the top-1 on the augmented training images, dashed.
    ``by``: what says the classes, where that is not the network's own head.
    """
    runs = {printable(label): rows for label, rows in runs.items()}
    instead = "metrics.jsonl holds what it would show"
    return save_picture(path, lambda figure: _curves(runs, figure, split, with_training, by), instead)


def save_picture(path: Path, draw: Callable, otherwise: str) -> bool:
    """Writes what ``draw(matplotlib's Figure) -> figure`` draws as a PNG; ``otherwise`` says what is there instead.

    Returns False, with one line said, when it cannot be drawn or written, or matplotlib is not installed; it never
    raises.
    """
    with dispensable(f"the picture {path}", otherwise):
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError:
            say(f"matplotlib is not installed; {path.name} is left out (pip install 'fastlg[plots]')")
            return False
        with warnings.catch_warnings(), matplotlib.rc_context(AS_WRITTEN):
            warnings.simplefilter("ignore")  # letters that the font lacks
            figure = draw(Figure)
            with whole(path) as partial:
                figure.savefig(partial, dpi=120, format="png")
        return True
    return False


def _curves(runs: dict[str, list[dict]], new_figure, split: str, with_training: bool, by: str):
    figure = new_figure(figsize=(10, 4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    ends = [own[-1]["top1"] for rows in runs.values() if (own := [row for row in rows if row["kind"] == "eval"])]
    for (label, rows), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
        tests = [row for row in rows if row["kind"] == "eval"]
        steps = [row for row in rows if row["kind"] == "train"]
        if tests:
            accuracy.plot([r["epoch"] for r in tests], [r["top1"] for r in tests], marker="o", ms=3, color=colour)
            accuracy.annotate(
                f"{label} {tests[-1]['top1']:.1f}",
                (tests[-1]["epoch"], tests[-1]["top1"]),
                color=colour,
                xytext=(6, 0),
                textcoords="offset points",
                va=_beside(tests[-1]["top1"], ends),
                annotation_clip=False,
            )
        if steps:
            epochs_per_step = tests[-1]["epoch"] / tests[-1]["step"] if tests else 1.0
            places, values = [r["step"] * epochs_per_step for r in steps], [r["loss_cls"] for r in steps]
            loss.plot(places, values, color=colour, gid=label)
            if with_training:
                accuracy.plot(*_by_epoch(steps), color=colour, ls="--", lw=1)
    title = f"Accuracy on the {split} split{by and ', by '}{by}"
    accuracy.set(xlabel="epoch", ylabel=f"{split} top-1 (%)", title=title)
    if with_training:
        accuracy.set(
            ylabel="top-1 (%)", title=f"{split.capitalize()} images (solid), augmented training images (dashed)"
        )
    loss.set(
        xlabel="epoch" if any(runs.values()) else "step",
        ylabel="cross entropy",
        title="Training loss, classification part",
    )
    accuracy.margins(x=0.25)
    if any(runs.values()):
        accuracy.set_xlim(left=0)
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if any(runs.values()):
        legend = loss.legend([str(number) for number in range(len(loss.lines))], frameon=False)
        for text, line in zip(legend.get_texts(), loss.lines, strict=True):
            text.set_text(line.get_gid())  # the legend itself leaves out labels that begin with "_"
    return figure


def _beside(end: float, ends: list[float]) -> str:
    """Where a line's label stands to its end, so that two lines that end close together can be read."""
    if len(set(ends)) < 2 or min(ends) < end < max(ends):
        return "center"
    return "bottom" if end == max(ends) else "top"


def _by_epoch(rows: list[dict]) -> tuple[list[float], list[float]]:
    """(middles of the epochs, mean top-1 of the reports within each)."""
    within: dict[float, list[float]] = {}
    for row in rows:
        within.setdefault(row["epoch"], []).append(row["top1"])
    return [epoch + 0.5 for epoch in within], [sum(own) / len(own) for own in within.values()]
