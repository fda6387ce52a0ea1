"""Curves of one or several runs as one PNG."""

from __future__ import annotations

from pathlib import Path

from fastlg.report import say

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe-Ito, told apart by colour-blind readers


def plot_curves(runs: dict[str, list[dict]], path: Path) -> bool:
    """Test top-1 (left) and training loss (right) against the epoch, one line per run.

    runs: label -> rows of metrics.jsonl. Returns False, with one line said, when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say(f"matplotlib is not installed; {path.name} is left out (pip install 'fastlg[plots]')")
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
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
            loss.plot(
                [r["step"] * epochs_per_step for r in steps], [r["loss_cls"] for r in steps], color=colour, label=label
            )
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
        loss.legend(frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        say(f"cannot write {path}: {error.strerror}; metrics.jsonl holds what it would show")
        return False
    return True
