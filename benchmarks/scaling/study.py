"""How training scales: weak scaling of 1 and 2 processes measured here, bytes counted, 8 to 1,024 GPUs modelled.

    python benchmarks/scaling/study.py [--measure] [--results FILE] [--docs FOLDER] [--FIELD VALUE ...]

Writes benchmarks/results/scaling-cpu.json, docs/scaling.md and docs/scaling.png. Without --measure the measured rows of
the results file stay and the model is computed anew; --FIELD is any of ``model.Assumptions`` (--help lists
them). The kernel's own count of bytes is of this run alone in a network namespace of its own:

    unshare -n sh -c "ip link set lo up; python benchmarks/scaling/study.py --measure"

Each process has half of the cores as threads and the same batch whatever the number of processes; the rivals of all
cases take turns, step by step. Where two GPUs are at hand they are used, one per process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from benchmarks.harness.bench import Bench, Stamp, take_turns
from benchmarks.harness.ours import config_of, store_of
from benchmarks.harness.report import FORMAT, ROOT
from benchmarks.scaling.model import Assumptions, all_rows
from benchmarks.scaling.ranks import HALF, WHAT, Job, counted, on_paper, sent
from fastlg.ranks.say import console

RESULTS = ROOT / "benchmarks" / "results" / "scaling-cpu.json"
RANKS = 2
ALONE = "plain, running statistics, nothing exchanged"


def cases_for(bench: Bench, batch: int, count: int) -> dict[str, dict]:
    """For a Job of ``count`` processes, ``batch`` images each."""

    def case(overrides: tuple[str, ...], *, alone: bool = False) -> dict:
        half = bench.folder / "half.json"
        half.write_text(json.dumps(HALF), encoding="utf-8")
        overrides = (*(text.replace("=HALF", f"={half}") for text in overrides), "engine.compile=false")
        config = config_of(bench, "deit_tiny", batch if alone else batch * count, *overrides)
        whole = config.model_dump(mode="json", exclude_defaults=True)
        return {"overrides": flat(whole), "alone": alone}

    cases = {name: case(overrides) for name, (overrides, *_) in WHAT.items()}
    return cases if count == 1 else {ALONE: case(WHAT["plain, running statistics"][0], alone=True), **cases}


def flat(tree: dict, prefix: str = "") -> list[str]:
    """{"optim": {"lr": 1}} as ["optim.lr=1"]."""
    pairs = []
    for key, value in tree.items():
        nested = isinstance(value, dict)
        pairs += flat(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}={json.dumps(value)}"]
    return pairs


def rows(bench: Bench, *, batch: int = 4, turns: int = 15, seconds: float = 60) -> None:
    """Weak scaling: images/s of two processes against one, each with ``batch`` images; bytes of the step counted.

    ``ratio`` is the efficiency: the time of one process over the time of two with twice the images. ``seconds`` are for
    the turns; starting the processes comes on top.
    """
    if not bench.fits("three processes of five trainings", 30):
        return
    if bench.gpu and torch.cuda.device_count() < RANKS:
        bench.left_out.append(f"{bench.name}: {RANKS} processes need {RANKS} GPUs")
        return
    threads = max(1, (os.cpu_count() or 1) // RANKS)
    with ExitStack() as stack:
        jobs = {n: stack.enter_context(Job(cases_for(bench, batch, n), n, threads=threads)) for n in (1, RANKS)}
        names = {n: [*WHAT] if n == 1 else [ALONE, *WHAT] for n in jobs}
        counts = {}
        for count, job in jobs.items():
            for name in names[count]:
                job.order(case=name, steps=2)
                if count > 1:
                    counts[name] = job.order(case=name, steps=3, counted=True)[0]
        bench.notice("measuring")
        runs = {
            (name, count): partial(job.order, case=name, steps=1)
            for name in [ALONE, *WHAT]
            for count, job in jobs.items()
            if name in names[count]
        }
        for run in runs.values():
            run()
        bench.stamp = Stamp.of(bench.device, bench.stamp.command)  # starting took a while
        times = take_turns(runs, torch.device("cpu"), turns=turns, seconds=min(seconds, bench.left()), warm=0)
    for name, count in runs:
        base = times[name if name in WHAT else "plain, running statistics", 1]
        extra = {} if count == 1 else exchanged(counts[name], name, count)
        bench.add(
            f"DeiT-Ti, guided: {name}",
            "1 process" if count == 1 else f"{count} processes",
            times[name, count],
            batch=batch,
            images=batch * count,
            base=base,
            processes=count,
            threads_per_process=threads,
            **extra,
        )


def exchanged(answer: dict, name: str, count: int) -> dict:
    """What a row says of its step's traffic, in bytes per rank."""
    found = counted(answer["step"])
    paper = on_paper(answer, *WHAT[name][1:], count) if name in WHAT else {}
    return {
        "parameters": answer["parameters"],
        "synced_norms": len(answer["norms"]),
        "norm_channels": sum(answer["norms"]),
        "collectives": len(answer["step"]),
        "buckets": [size for kind, _, size in answer["step"] if kind == "allreduce" and size > 10**5],
        "paper_bytes": paper,
        "counted_bytes": found,
        "sent_bytes": round(sent(found, count)),
        "loopback_bytes": round(answer["loopback"] / 3 / count),  # with headers, of three steps and all ranks
        "report_bytes": sum(size for *_, size in answer["report"]) // count,
    }


def measured(command: str, seconds: float) -> list[dict]:
    """The rows of a run of their own, without benchmarks/run.py."""
    device = torch.device("cuda" if torch.cuda.device_count() >= RANKS else "cpu")
    console.quiet = True
    with tempfile.TemporaryDirectory(prefix="fastlg-scaling-") as scratch:
        os.environ["FASTLG_CACHE"] = f"{scratch}/cache"
        stamp = Stamp.of(device, command)
        bench = Bench(device, quick=False, folder=Path(scratch), ceilings=None, stamp=stamp, profile=None)
        store_of(bench)
        bench.begin("scaling", float("inf"))
        bench.notice = lambda what: print(what, file=sys.stderr, flush=True)
        rows(bench, seconds=seconds)
    return [row.as_json() for row in bench.rows]


def main() -> None:
    options = arguments()
    assumptions = Assumptions(**{f.name: getattr(options, f.name) for f in fields(Assumptions)})
    command = " ".join(["python benchmarks/scaling/study.py", *sys.argv[1:]])
    old = None if options.measure else json.loads(options.results.read_text(encoding="utf-8"))["rows"]
    own = measured(command, options.seconds) if old is None else old
    stamp = Stamp.of(torch.device("cpu"), command)
    results = {
        "format": FORMAT,
        "rows": own,
        "modelled": {
            "kind": "modelled, not measured",
            "commit": stamp.commit + ("-dirty" if stamp.dirty else ""),
            "date": stamp.date,
            "command": stamp.command,
            "assumptions": asdict(assumptions),
        },
    }
    text = json.dumps(results, indent=1).removesuffix("\n }\n}")
    lines = ",\n".join(f"   {json.dumps(row)}" for row in all_rows(assumptions))  # one line each, to be read
    options.results.write_text(f'{text},\n  "rows": [\n{lines}\n  ]\n }}\n}}\n', encoding="utf-8")
    from benchmarks.scaling.page import draw, page

    results = json.loads(options.results.read_text(encoding="utf-8"))
    options.docs.mkdir(parents=True, exist_ok=True)
    (options.docs / "scaling.md").write_text(page(results), encoding="utf-8")
    draw(results, options.docs / "scaling.png")
    print(f"wrote {options.results}, {options.docs / 'scaling.md'} and its plot")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure anew; else the results file's rows stay")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the measured turns")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    model = parser.add_argument_group("assumptions of the model")
    for field in fields(Assumptions):
        name = f"--{field.name.replace('_', '-')}"
        model.add_argument(name, type=type(field.default), default=field.default, help=f"default {field.default}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
