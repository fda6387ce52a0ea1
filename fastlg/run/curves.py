"""Curves of one or several runs as one PNG."""

from __future__ import annotations

import warnings
from pathlib import Path

from fastlg.errors import printable
from fastlg.files.atomic import whole
from fastlg.ranks.say import dispensable, say

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe-Ito, told apart by colour-blind readers
AS_WRITTEN = {"text.parse_math": False, "text.usetex": False}  # a $ in a run's name is a $


def plot_curves(runs: dict[str, list[dict]], path: Path) -> bool:
    """Test top-1 (left) and training loss (right) against the epoch, one line per run.

    runs: label -> rows of metrics.jsonl. Returns False, with one line said, when it cannot be drawn or written, or
    matplotlib is not installed; it never raises.
    """
    with dispensable(f"the picture {path}", "metrics.jsonl holds what it would show"):
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError:
            say(f"matplotlib is not installed; {path.name} is left out (pip install 'fastlg[plots]')")
            return False
        with warnings.catch_warnings(), matplotlib.rc_context(AS_WRITTEN):
            warnings.simplefilter("ignore")  # letters that the font lacks
            figure = _curves({printable(label): rows for label, rows in runs.items()}, Figure)
            with whole(path) as partial:
                figure.savefig(partial, dpi=120, format="png")
        return True
    return False


def _curves(runs: dict[str, list[dict]], new_figure):
    figure = new_figure(figsize=(10, 4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
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
                va="center",
                annotation_clip=False,
            )
        if steps:
            epochs_per_step = tests[-1]["epoch"] / tests[-1]["step"] if tests else 1.0
            places, values = [r["step"] * epochs_per_step for r in steps], [r["loss_cls"] for r in steps]
            loss.plot(places, values, color=colour, gid=label)
    accuracy.set(xlabel="epoch", ylabel="test top-1 (%)", title="Accuracy on the test split")
    loss.set(
        xlabel="epoch" if any(runs.values()) else "step",
        ylabel="cross entropy",
        title="Training loss, classification part",
    )
    accuracy.margins(x=0.25)
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if any(runs.values()):
        legend = loss.legend([str(number) for number in range(len(loss.lines))], frameon=False)
        for text, line in zip(legend.get_texts(), loss.lines, strict=True):
            text.set_text(line.get_gid())  # the legend itself leaves out labels that begin with "_"
    return figure
