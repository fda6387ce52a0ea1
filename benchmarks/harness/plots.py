"""Plots of a results file, as PNG beside it. Nothing is drawn that is not in the file."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.harness.report import number

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"  # Okabe-Ito
PARTS = {
    "input wait": "#E69F00",
    "views": "#56B4E9",
    "teacher": "#009E73",
    "student forward": "#0072B2",
    "backward": "#D55E00",
    "optimizer": "#CC79A7",
    "other": "#999999",
}


def draw(results: dict, stem: Path) -> list[Path]:
    """Draws what the rows allow: throughput, ladder, breakdown, loaders, batch sizes. Returns the files."""
    rows = results["rows"]
    kinds = {
        kind: [r for r in rows if r["extra"].get("kind") == kind] for kind in ("end to end", "ladder", "batch size")
    }
    split = [r for r in rows if r["extra"].get("breakdown_ms")]
    loaders = [r for r in rows if r["bench"] == "loaders"]
    jobs = {
        "throughput": (throughput, kinds["end to end"]),
        "ladder": (ladder, kinds["ladder"]),
        "batch": (batch_sizes, kinds["batch size"]),
        "breakdown": (breakdown, split),
        "loaders": (loader_bars, loaders),
    }
    files = []
    for name, (plot, own) in jobs.items():
        if own:
            path = stem.with_name(f"{stem.name}-{name}.png")
            figure = plot(own)
            height = figure.get_size_inches()[1]
            figure.get_layout_engine().set(rect=(0, 0.2 / height, 1, 1 - 0.2 / height))
            figure.text(0.99, 0.05 / height, footer(own[0]), ha="right", va="bottom", fontsize=7, color=GREY)
            figure.savefig(path, dpi=130)
            files.append(path)
    return files


def footer(row: dict) -> str:
    dirty = "-dirty" if row["dirty"] else ""
    return (
        f"{row['device']}, torch {row['versions']['torch']}, commit {row['commit'] or '?'}{dirty}, {row['date'][:10]}"
    )


def bars(rows: list[dict], labels: list[str], colours: list[str], title: str, label: str) -> Figure:
    """Horizontal bars of images/s with their spread, the number written behind each, the bound as a black tick."""
    figure = Figure(figsize=(9, 1.5 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    rates = [row["images_per_s"] for row in rows]
    places = range(len(rows))
    axes.barh(places, rates, color=colours, height=0.7)
    bounds = [1e3 * rate_of(row) / row["bound_ms"] if row["bound_ms"] else None for row in rows]
    reach = max([*rates, *(bound for bound in bounds if bound)])
    for place, row, rate, bound in zip(places, rows, rates, bounds, strict=True):
        half = row["spread"] / 2 * rate
        axes.plot([rate - half, rate + half], [place, place], color="black", lw=1.2, alpha=0.6)
        text = number(rate) + (f"   {row['ratio']:.2f}x" if row["ratio"] else "")
        end = rate + half
        if bound:
            axes.plot([bound, bound], [place - 0.42, place + 0.42], color="black", lw=2)
            if rate < bound < end + 0.17 * reach:  # the number would be written across the tick
                end = bound
        axes.text(end + 0.012 * reach, place, text, va="center", fontsize=8.5)
    axes.plot([], [], color="black", lw=1.2, alpha=0.6, label="spread of the turns (quartiles)")
    if any(bounds):
        axes.plot([], [], color="black", lw=2, label="bound: device ceilings for the counted bytes and FLOPs")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    axes.set_yticks(places, labels, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, reach * 1.23)
    return finish(figure, axes, title, label)


def finish(figure: Figure, axes, title: str, label: str) -> Figure:
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def rate_of(row: dict) -> float:
    """Images per call."""
    return row["images_per_s"] * row["median_ms"] / 1e3


def colour(row: dict) -> str:
    name = row["provider"]
    if name.startswith("reference"):
        return GREY
    return next((c for key, c in (("unguided", GREEN), ("cached", PINK), ("synthetic", ORANGE)) if key in name), BLUE)


def throughput(rows: list[dict]) -> Figure:
    labels = [f"{row['case']}, batch {row['batch']}: {row['provider']}" for row in rows]
    title = "Training, all included (× against the reference style of the same case)"
    return bars(rows, labels, [colour(row) for row in rows], title, "images/s")


def ladder(rows: list[dict]) -> Figure:
    title = f"From the reference style to fastlg, one change at a time ({rows[0]['case']}, batch {rows[0]['batch']})"
    return bars(rows, [row["provider"] for row in rows], [GREY] + [BLUE] * (len(rows) - 1), title, "images/s")


def loader_bars(rows: list[dict]) -> Figure:
    labels = [f"{row['case']}: {row['provider']}" for row in rows]
    views = [ORANGE if row["extra"].get("augment") == "views" else BLUE for row in rows]
    figure = bars(rows, labels, views, "Loaders (orange: with augmentation)", "images/s")
    return figure


def breakdown(rows: list[dict]) -> Figure:
    """Stacked parts of a step; a mark where the step itself ends."""
    figure = Figure(figsize=(9, 1.5 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    reach = max(row["median_ms"] for row in rows)
    for place, row in enumerate(rows):
        start = 0.0
        for name, value in row["extra"]["breakdown_ms"].items():
            first = place == 0
            axes.barh(place, value, left=start, color=PARTS.get(name, GREY), height=0.6, label=name if first else None)
            if value > 0.06 * reach:
                axes.text(start + value / 2, place, number(value), ha="center", va="center", color="white", fontsize=8)
            start += value
        axes.plot([row["median_ms"]] * 2, [place - 0.4, place + 0.4], color="black", lw=2)
        axes.text(row["median_ms"] + 0.012 * reach, place, f"{number(row['median_ms'])} ms", va="center", fontsize=8.5)
    labels = [f"{row['case']}, batch {row['batch']}: {row['provider']}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, reach * 1.14)
    axes.plot([], [], color="black", lw=2, label="the step")
    axes.legend(
        frameon=False,
        fontsize=8,
        ncols=8,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        handlelength=1,
        columnspacing=1,
    )
    return finish(figure, axes, "Where a training step's time goes", "ms")


def batch_sizes(rows: list[dict]) -> Figure:
    """Time of a step against batch size, one line per provider; dashed: the bound."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for provider in dict.fromkeys(row["provider"] for row in rows):
        own = sorted((row for row in rows if row["provider"] == provider), key=lambda row: row["batch"])
        tint = GREY if provider.startswith("reference") else BLUE
        axes.plot(
            [r["batch"] for r in own], [r["median_ms"] for r in own], marker="o", ms=4, color=tint, label=provider
        )
        if all(r["bound_ms"] for r in own) and not provider.startswith("reference"):
            bound = [r["bound_ms"] for r in own]
            axes.plot([r["batch"] for r in own], bound, color="black", ls="--", lw=1, label="bound: device ceilings")
    sizes = sorted({row["batch"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    ticks = [t for e in range(-3, 7) for t in (10.0**e, 2 * 10.0**e, 5 * 10.0**e)]
    low, high = axes.get_ylim()
    ticks = [t for t in ticks if low <= t <= high]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_ylabel("ms per step")
    axes.legend(frameon=False, fontsize=8.5)
    figure = finish(figure, axes, f"Time of a step against batch size ({rows[0]['case']})", "batch size")
    axes.grid(axis="y", alpha=0.3)
    return figure


def recipe(rows: list[dict], path: Path) -> None:
    """Of a recipe's ladder: last top-1 against the rate at seed 0; and top-1 over the epochs at the rate of most seeds,
    their mean in the band from the least to the most."""
    sides = [("muon", True, BLUE), ("muon", False, GREEN), ("adamw", True, ORANGE), ("adamw", False, PINK)]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_rate, by_epoch = figure.subplots(1, 2)
    rates = set()
    for optimizer, is_guided, own_colour in sides:
        own = [row for row in rows if (row["cell"]["optimizer"], row["cell"]["guided"]) == (optimizer, is_guided)]
        plain = [row for row in own if not row["cell"]["lever"]]
        tried = sorted((row["cell"]["lr"], row["top1_last"]) for row in plain if row["cell"]["seed"] == 0)
        if not tried:
            continue
        curves = {lr: [row["curve"] for row in plain if row["cell"]["lr"] == lr] for lr, _ in tried}
        best, _ = max(tried, key=lambda pair: (len(curves[pair[0]]), pair[1]))
        label = f"{optimizer}, {'guided' if is_guided else 'unguided'}"
        by_rate.plot(*zip(*tried, strict=True), "o-", color=own_colour, label=label)
        rates |= {lr for lr, _ in tried}
        by_seed = list(zip(*([top1 for _, top1 in curve] for curve in curves[best]), strict=True))
        mean, least, most = ([f(values) for values in by_seed] for f in (statistics.fmean, min, max))
        epochs = [epoch for epoch, _ in curves[best][0]]
        by_epoch.plot(epochs, mean, color=own_colour, label=f"{label}, {best:g}, seeds: {len(curves[best])}")
        by_epoch.fill_between(epochs, least, most, color=own_colour, alpha=0.2)
    by_rate.set(xscale="log", xlabel="learning rate", ylabel="top-1 of the last epoch, %", title="One seed, every rate")
    by_rate.set_xticks(sorted(rates), [f"{rate:g}" for rate in sorted(rates)])
    by_rate.minorticks_off()
    by_epoch.set(xlabel="epoch", ylabel="top-1, %", title="Each side at its best rate")
    for axes in (by_rate, by_epoch):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def levers(rows: list[dict], path: Path) -> None:
    """Of a recipe's ladder: what each lever makes of Muon at its best rate, guided and unguided: mean, least and most
    of the last top-1 over the seeds; and the same against the processor time of a training."""
    groups: dict[tuple[str, bool], list[dict]] = {}
    for row in rows:
        cell = row["cell"]
        groups.setdefault((name_of(cell), cell["guided"]), []).append(row)
    names = list(dict.fromkeys(name for name, _ in groups))
    figure = Figure(figsize=(12, 1.6 + 0.3 * len(names)), layout="constrained")
    by_lever, by_time = figure.subplots(1, 2)
    for (name, is_guided), own in groups.items():
        top1 = [row["top1_last"] for row in own]
        mean, seconds = statistics.fmean(top1), statistics.median(row["processor_s"] for row in own)
        whisker = [[mean - min(top1)], [max(top1) - mean]]
        colour = BLUE if is_guided else GREEN
        by_lever.errorbar(mean, names.index(name) + 0.12 * is_guided, xerr=whisker, fmt="o", color=colour, capsize=3)
        by_time.errorbar(seconds, mean, yerr=whisker, fmt="o", color=colour, capsize=3)
        by_time.annotate(names.index(name) + 1, (seconds, mean), (4, 2), textcoords="offset points", fontsize=8)
    labels = [f"{name}  {number}" for number, name in enumerate(names, start=1)]
    by_lever.set_yticks(range(len(names)), labels, fontsize=8)
    by_lever.invert_yaxis()
    by_lever.set(xlabel="top-1 of the last epoch, %", title="blue: guided, green: unguided; whiskers: all seeds")
    by_time.set(xlabel="processor seconds of a training", ylabel="top-1 of the last epoch, %", title="What it costs")
    for axes in (by_lever, by_time):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def name_of(cell: dict) -> str:
    """Of a row of the ladder, in a plot."""
    if "system" in cell:
        return cell["system"]
    if cell["optimizer"] == "muon":
        return cell["lever"] or "Muon alone"
    return f"AdamW {cell['lr']:g}{', ' if cell['lever'] else ''}{cell['lever']}"
