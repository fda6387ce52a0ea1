"""From what the stages on a GPU left to one results file that is committed.

    python benchmarks/harness/collect.py OUT [OUT ...] [--note TEXT ...] [--to benchmarks/results]

Each OUT holds rows.jsonl, and runs.tar where something was trained (gpu_stages.py). The file has the rows as they were
written, the ceilings that were measured beside them, every stage that was not done, and under ``trained`` each run:
its config, its evaluations, its rate and, where it came to its end, its summary. Nothing is computed but medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tarfile
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import yaml

from benchmarks.harness.report import FORMAT, ROOT, markdown, results_name


def main() -> int:
    parser = argparse.ArgumentParser(prog="collect.py", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUT")
    parser.add_argument("--note", action="append", default=[], help="a sentence on the conditions")
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    results = collected(options.folders, options.note)
    path = options.to / f"{results_name(results['rows'][0])}-gpu.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    print(path)
    return 0


def collected(folders: list[Path], notes: list[str]) -> dict:
    """The results file's content. Raises ValueError where no row was measured."""
    rows, ceilings, left_out, trained = [], {}, [], []
    for folder in folders:
        for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "bench" in row:
                rows.append(row)
            elif "ceilings" in row:
                ceilings = row["ceilings"]
            elif row["status"] != "done":
                left_out.append(f"{row['stage']}: {row['status']} after {row['seconds']:.0f} s")
        if (folder / "runs.tar").is_file():
            trained += runs_of(folder / "runs.tar")
    if not rows:
        raise ValueError(f"no row was measured in {', '.join(map(str, folders))}")
    ceilings = ceilings or ceilings_of(rows)
    found = {"format": FORMAT, "ceilings": ceilings, "notes": notes, "left_out": left_out, "trained": trained}
    return {**found, "rows": rows}


def ceilings_of(rows: list[dict]) -> dict:
    """What the rows' own bounds say of the copy rate, where nothing but bytes decided them."""
    rates = [row["bytes"] / row["bound_ms"] * 1e3 for row in rows if row["bytes"] and not row["flops"]]
    return {"copy_bytes_per_s": statistics.median(rates) if rates else None, "matmul_flops_per_s": {}}


def runs_of(archive: Path) -> list[dict]:
    """Every run in runs.tar, teachers first."""
    found = []
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member).read().decode() for member in tar if member.isfile()
                 and not member.name.endswith(".png")}  # fmt: skip
    for name in sorted(files, key=lambda name: ("teachers" not in name, name)):
        if name.endswith("/config.yaml"):
            folder = name.removesuffix("config.yaml")
            rows = [json.loads(line) for line in files.get(f"{folder}metrics.jsonl", "").splitlines()]
            summary = json.loads(files[f"{folder}summary.json"]) if f"{folder}summary.json" in files else None
            found.append(run_of(folder.rstrip("/"), yaml.safe_load(files[name]), rows, summary))
    return found


def run_of(folder: str, config: dict, rows: list[dict], summary: dict | None) -> dict:
    rates = [row["images_per_s"] for row in rows if row["kind"] == "train"]
    return {
        "run": folder,
        "is_complete": summary is not None,
        "images_per_s": round(statistics.median(rates)) if rates else None,
        "evaluations": [{key: row[key] for key in ("epoch", "step", "top1", "top5")} for row in rows if "top5" in row],
        "summary": summary,
        "config": config,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"collect.py: {error}", file=sys.stderr)
        sys.exit(2)
