"""What a run of the benchmarks leaves: rows as JSON, a markdown table, README's section, a comparison of two runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.harness.bench import ROW_FIELDS, Row

FORMAT = 1
ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
KEY = ("bench", "case", "provider", "batch", "device")  # with OWN, what makes two rows the same measurement
OWN = ("kind", "workers")  # of a row's extra
BEGIN, END = "<!-- {kind}: {path} -->", "<!-- /{kind} -->"


def results_name(row: dict) -> str:
    """DATE-DEVICE-COMMIT of a row's run: 2026-11-21-cpu-2e8bdcb5dce1."""
    device = row["device"].partition("(")[0].strip().lower()
    commit = (row["commit"] or "nocommit") + ("-dirty" if row["dirty"] else "")
    return f"{row['date'][:10]}-{re.sub('[^a-z0-9]+', '-', device)}-{commit}"


def save(path: Path, rows: list[Row], conditions: dict) -> dict:
    """Writes the results file and its markdown twin beside it; returns the file's content."""
    results = {"format": FORMAT, **conditions, "rows": [row.as_json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    return results


def load(path: Path) -> dict:
    """A results file that ``save`` wrote. Raises ValueError with one line when it is none."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        rows = results["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results file of fastlg bench ({type(error).__name__})") from None
    missing = {name for row in rows for name in ROW_FIELDS if name not in row}
    if results.get("format") != FORMAT or missing:
        raise ValueError(f"{path} is a results file of another version; measure again with fastlg bench")
    return results


def number(value: float | None, unit: float = 1.0) -> str:
    """Three significant digits, thousands grouped; '' for None."""
    if value is None:
        return ""
    value /= unit
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def conditions_line(row: dict) -> str:
    """Where and when a row was measured, in one sentence."""
    versions, driver = row["versions"], "" if row["driver"] == "none" else f", driver {row['driver']}"
    dirty = " with local changes" if row["dirty"] else ""
    others = "" if row["others"] is None else f"; other programs' running threads at the start: {row['others']:g}"
    return (
        f"{row['device']}{driver}; torch {versions['torch']}, timm {versions['timm']}, Python {versions['python']}; "
        f"commit {row['commit'] or 'unknown'}{dirty}; {row['date'][:10]}{others}"
    )


COLUMNS = {
    "case": lambda r: r["case"],
    "provider": lambda r: r["provider"],
    "batch": lambda r: "" if r["batch"] is None else str(r["batch"]),
    "ms": lambda r: number(r["median_ms"]),
    "±": lambda r: f"{r['spread']:.0%}",
    "images/s": lambda r: number(r["images_per_s"]),
    "speed against base": lambda r: f"{r['ratio']:.2f}x" if r["ratio"] else "",
    "peak MiB": lambda r: number(r["peak_mib"]),
    "MB": lambda r: number(r["bytes"], 1e6),
    "GFLOP": lambda r: number(r["flops"], 1e9),
    "loss, step by step": lambda r: ", ".join(f"{loss:.3g}" for loss in r["extra"].get("losses", [])),
    "of the bound": lambda r: f"{r['bound_share']:.0%}" if r["bound_share"] else "",
}


def table(rows: list[dict], columns: tuple[str, ...] = tuple(COLUMNS)) -> str:
    """A markdown table; columns that are empty in every row are left out."""
    cells = {name: [COLUMNS[name](row) for row in rows] for name in columns}
    cells = {name: values for name, values in cells.items() if any(values)}
    left = {"case", "provider"}
    lines = ["| " + " | ".join(cells) + " |", "|" + "|".join("---" if name in left else "---:" for name in cells) + "|"]
    lines += ["| " + " | ".join(values) + " |" for values in zip(*cells.values(), strict=True)]
    return "\n".join(lines)


def markdown(results: dict) -> str:
    """The whole report: conditions, ceilings, one table per benchmark, the breakdown, what was left out."""
    rows = results["rows"]
    if not rows:
        return "# fastlg bench\n\nNothing was measured.\n"
    ceilings = results["ceilings"]
    rates = ceilings["matmul_flops_per_s"].items()
    products = "".join(f"; matrix product {name} {number(rate, 1e12)} TFLOP/s" for name, rate in rates)
    copy = f"{number(ceilings['copy_bytes_per_s'], 1e9)} GB/s"
    parts = [
        f"# fastlg bench, {rows[0]['date'][:10]}",
        f"`{rows[0]['command']}` on {conditions_line(rows[0])}.",
        f"Ceilings measured in this run: copy {copy}{products}.",
        "± is the distance of the quartiles over the median. Speed is against the first row of a case. Bytes and FLOPs "
        "are those of matrix products, convolutions and attention; the bound is the slower of both at the ceilings.",
    ]
    for bench in dict.fromkeys(row["bench"] for row in rows):
        own = [row for row in rows if row["bench"] == bench]
        parts += [f"## {bench}", table(own)]
        split = [row for row in own if row["extra"].get("breakdown_ms")]
        if split:
            parts += ["Where a step's time goes, ms:", breakdown_table(split)]
    if trained := results.get("trained"):
        parts += ["## Trained", trained_table(trained)]
    if notes := results.get("notes"):
        parts += ["## Notes", "\n".join(f"* {note}" for note in notes)]
    if results["left_out"]:
        parts += ["## Left out", "\n".join(f"* {line}" for line in results["left_out"])]
    return "\n\n".join(parts) + "\n"


def trained_table(runs: list[dict]) -> str:
    """What was trained: its last evaluation and where that was, its rate, and whether it came to its end."""
    lines = ["| run | batch | images/s | epoch | of | top-1 % | complete |", "|---|---:|---:|---:|---:|---:|---|"]
    for run in runs:
        model, optim = run["config"]["model"]["name"], run["config"]["optim"]
        last = run["evaluations"][-1] if run["evaluations"] else {"epoch": 0, "top1": float("nan")}
        cells = (f"{model}, {optim['name']}", optim["global_batch_size"], f"{run['images_per_s']:,}", last["epoch"])
        cells += (optim["epochs"], f"{last['top1']:.2f}", "yes" if run["is_complete"] else "no")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def gpu_section(results: dict, path: str) -> str:
    """README's section on a GPU: epochs as ``fastlg train`` takes them, whether all forms agree, what was trained."""
    rows = results["rows"]
    kinds = {kind: [row for row in rows if row["extra"].get("kind") == kind] for kind in ("throughput", "agreement")}
    columns = ("case", "batch", "images/s", "±", "peak MiB", "of the bound")
    parts = ["Guided DeiT-Ti, everything included (images to updated weights):", table(kinds["throughput"], columns)]
    lines = ["| engine | ms | largest difference of a loss |", "|---|---:|---:|"]
    for row in kinds["agreement"]:
        lines.append(f"| {row['provider']} | {number(row['median_ms'])} | {row['extra']['off_by']:.1g} |")
    what = f"The first {len(kinds['agreement'][0]['extra']['losses'])} steps at batch {kinds['agreement'][0]['batch']}"
    parts += [f"{what}, in every form of the engine (ms of the last of them, one by one):", "\n".join(lines)]
    if results.get("trained"):
        parts += ["Trained on CIFAR-100, as far as the time went:", trained_table(results["trained"])]
    parts.append(f"Measured on {conditions_line(rows[0])}. All rows and what they leave out: [{path}]({path}).")
    return "\n\n".join(parts)


def breakdown_table(rows: list[dict]) -> str:
    """One line per row, one column per part, then the sum and the step it has to equal."""
    names = list(dict.fromkeys(name for row in rows for name in row["extra"]["breakdown_ms"]))
    head = ["case", "provider", *names, "sum", "step"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for row in rows:
        parts = row["extra"]["breakdown_ms"]
        cells = [number(parts.get(name)) for name in names]
        cells += [number(sum(parts.values())), number(row["median_ms"])]
        lines.append(f"| {row['case']} | {row['provider']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compare(old: list[dict], new: list[dict]) -> list[dict]:
    """Per measurement that both runs have: old and new median, the ratio of their speeds, and whether it moved.

    ``moved`` is "faster" or "slower" when the medians differ by more than half of both quartile distances together,
    which is when the two middle halves no longer overlap; else "".
    """

    def identity(row: dict) -> tuple:
        return (*(row[key] for key in KEY), *(row.get("extra", {}).get(key) for key in OWN))

    before = {identity(row): row for row in old}
    lines = []
    for row in new:
        if identity(row) not in before:
            continue
        was, now = before[identity(row)], row
        noise = (was["spread"] * was["median_ms"] + now["spread"] * now["median_ms"]) / 2
        difference = now["median_ms"] - was["median_ms"]
        moved = "" if abs(difference) <= noise else "faster" if difference < 0 else "slower"
        ratio = was["median_ms"] / now["median_ms"]
        line = {"old_ms": was["median_ms"], "new_ms": now["median_ms"], "ratio": ratio, "moved": moved}
        lines.append({**{key: row[key] for key in KEY}, **line})
    return lines


def comparison_text(lines: list[dict]) -> str:
    """One line per measurement, those that moved marked."""
    if not lines:
        return "no measurement is in both files (a row is known by benchmark, case, provider, batch and device)"
    out = []
    for line in lines:
        what = f"{line['bench']}: {line['case']}, {line['provider']}"
        batch = f", batch {line['batch']}" if line["batch"] else ""
        times = f"{number(line['old_ms']):>9} -> {number(line['new_ms']):>9} ms {line['ratio']:>6.2f}x"
        out.append(f"{times}  {line['moved'] or '=':<7} {what}{batch}")
    moved = sum(bool(line["moved"]) for line in lines)
    return "\n".join([*out, f"{moved} of {len(lines)} moved beyond the spread"])


def readme_section(results: dict, path: str) -> str:
    """README's benchmark section, from the training rows of a results file."""
    rows = [row for row in results["rows"] if row["bench"] == "training"]
    if not rows:
        raise ValueError(f"{path} holds no training rows; run fastlg bench training")
    parts = []
    own = [row for row in rows if row["extra"].get("kind") == "end to end"]
    if own:
        columns = ("case", "provider", "batch", "images/s", "±", "speed against base", "of the bound")
        parts += ["Training, all included (input, augmentation, teacher, student, loss, optimizer):"]
        parts += [table(own, columns)]
    rungs = [row for row in rows if row["extra"].get("kind") == "ladder"]
    if rungs:
        columns = ("provider", "images/s", "±", "speed against base")
        what = f"{rungs[0]['case']}, batch {rungs[0]['batch']}"
        parts += [f"From the reference style to fastlg, one change at a time ({what}):", table(rungs, columns)]
    parts.append(f"Measured by `{rows[0]['command']}` on {conditions_line(rows[0])}. All rows: [{path}]({path}).")
    return "\n\n".join(parts)


def quickstart_section(summary: dict, path: str) -> str:
    """README's quickstart table, from the summary that ``make train`` leaves."""
    names = {"teacher": "teacher: ResNet-20 at 32 px", "unguided": "ViT (0.2 M parameters) at 56 px, unguided"}
    minutes, seconds = divmod(round(sum(summary[key]["wall_s"] for key in ("teacher", "unguided", "guided"))), 60)
    run = summary["guided"]
    made = f"{run['device']}; torch {run['versions']['torch']}; seed {run['seed']}; commit {run['commit']}"
    lines = [f"It trains for {minutes} min {seconds} s in all ([the run's summary]({path}): {made}):", ""]
    lines += ["| run | epochs | top-1 % | images/s | wall s |", "|---|---:|---:|---:|---:|"]
    for key in ("teacher", "unguided", "guided"):
        run = summary[key]
        cells = (run["epochs"], f"{run['top1_last']:.1f}", f"{run['images_per_s']:.0f}", f"{run['wall_s']:.0f}")
        lines.append(f"| {names.get(key, 'the same, guided')} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def fill(text: str, kind: str, path: str, section: str) -> str:
    """``text`` with what lies between the markers of ``kind`` replaced. Raises ValueError without markers."""
    found = re.search(rf"<!-- {kind}: .*? -->\n.*?<!-- /{kind} -->", text, re.DOTALL)
    if not found:
        raise ValueError(f"README.md has no markers {BEGIN.format(kind=kind, path='FILE')} and {END.format(kind=kind)}")
    filled = f"{BEGIN.format(kind=kind, path=path)}\n\n{section}\n\n{END.format(kind=kind)}"
    return text[: found.start()] + filled + text[found.end() :]


def named_file(text: str, kind: str) -> str:
    """The results file that the markers of ``kind`` name."""
    found = re.search(rf"<!-- {kind}: (.*?) -->", text)
    if not found:
        raise ValueError(f"README.md names no file for {kind}")
    return found.group(1)


def write_readme(path: Path) -> Path:
    """Fills README's section from a results file of the benchmarks or of a GPU's stages (collect.py), or from the
    summary that ``make train`` leaves."""
    inside = path.resolve()
    if not inside.is_relative_to(ROOT):
        raise ValueError(f"{path} lies outside the repository; README can only name files in {ROOT}")
    name = inside.relative_to(ROOT).as_posix()
    text = README.read_text(encoding="utf-8")
    content = json.loads(inside.read_text(encoding="utf-8"))
    if "guided" in content:
        text = fill(text, "quickstart", name, quickstart_section(content, name))
    elif "trained" in content:
        text = fill(text, "gpu", name, gpu_section(content, name))
    else:
        text = fill(text, "benchmarks", name, readme_section(load(inside), name))
    README.write_text(text, encoding="utf-8")
    return README
