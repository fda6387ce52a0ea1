"""Time to the paper's accuracy: from a prepared store to DeiT-Ti at 77.29 % on CIFAR-100, everything after it counted.

    python benchmarks/speedrun.py paper|fast|CONFIG [--slice-s 540] [--out benchmarks/results] [section.key=value ...]

Trains the teacher, then the guided student of configs/cifar100/deit_tiny_{paper,fast}.yaml, and writes, when both are
done, speedrun-NAME.json beside the other results, with the full log of both (.jsonl) and the curve (.png). NAME holds
recipe, norm_stats and seed. A job that may be cut short gives --slice-s: after so many seconds the run saves itself and
leaves with status 143, and the same command goes on. Repeat until it ends with status 0:

    until python benchmarks/speedrun.py fast --slice-s 540; do [ $? -eq 143 ] || break; done

Seconds are listed apart: teacher, student's training steps, student's evaluations and saves, and start-up (imports,
parts, compiling) of all slices. Preparing the store is not counted. top1_last is what a claim is made of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.harness.bench import Stamp
from benchmarks.harness.report import ROOT
from fastlg.config import Config, load_config
from fastlg.data.stores import open_stores
from fastlg.engine.precision import pick_device
from fastlg.errors import RunError, UserError
from fastlg.ranks.say import say
from fastlg.ranks.stop import Stopped
from fastlg.run.checkpoint import LAST, load_checkpoint
from fastlg.run.report import read_metrics
from fastlg.teacher.recipe import teacher_config
from fastlg.train import train

TARGET = 77.29  # % top-1 of guided DeiT-Ti after 100 epochs, in the paper


def age_s() -> float:
    """Seconds since this process was started, imports included."""
    started = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def main() -> int:
    options = arguments()
    config = configured(options)
    if options.slice_s:
        stop_after(options.slice_s)
    slices = config.run_dir.with_name(f"{config.run.name}.slices.json")
    earlier = json.loads(slices.read_text(encoding="utf-8")) if slices.is_file() else []
    record = {"prepare_s": 0.0, "seconds": 0.0, "end": "stopped"}
    try:
        start = time.monotonic()
        stores = open_stores(config.data)
        record["prepare_s"] = time.monotonic() - start
        teacher = teacher_config(config, stores.fingerprints) if config.teacher.weights is None else None
        if teacher is not None:
            train(teacher)
        train(config)
        record["end"] = "done"
    finally:
        record["seconds"] = age_s()
        earlier.append(record)
        slices.parent.mkdir(parents=True, exist_ok=True)
        slices.write_text(json.dumps(earlier, indent=1) + "\n", encoding="utf-8")
    path = write_result(config, teacher, earlier, options)
    result = json.loads(path.read_text(encoding="utf-8"))
    say(f"speedrun {result['top1_last']:.2f} % (target {TARGET}) in {result['seconds']['student, all']:,.0f} s: {path}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="speedrun.py", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="paper, fast, or any config with a teacher")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--slice-s", type=float, default=0.0, help="save and leave after so many seconds; 0: never")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_intermixed_args()


def configured(options: argparse.Namespace) -> Config:
    """The recipe's config; the run's name holds what tells speed runs apart. Raises UserError."""
    known = options.recipe in ("paper", "fast")
    config = load_config(f"cifar100/deit_tiny_{options.recipe}" if known else options.recipe, options.overrides)
    if config.teacher is None:
        raise UserError(f"{options.recipe} has no teacher section; a speed run is a guided one")
    name = f"{config.run.name}-{config.teacher.norm_stats}-seed{config.run.seed}"
    return config.replace({"run.name": name, "run.root": str(config.run.root / "speedrun")})


def stop_after(seconds: float) -> None:
    """SIGTERM to this very process once its time is over; outside the training loop it ends the slice at once."""

    def leave(signum: int, frame) -> None:
        raise Stopped(signum)

    signal.signal(signal.SIGTERM, leave)
    timer = threading.Timer(max(0.0, seconds - age_s()), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


def write_result(config: Config, teacher: Config | None, slices: list[dict], options: argparse.Namespace) -> Path:
    """The result, the logs of student and teacher, and the curve, all beside each other."""
    stem = options.out / f"speedrun-{config.run.name}"
    options.out.mkdir(parents=True, exist_ok=True)
    summary, spent = finished(config)
    guide = finished(teacher) if teacher is not None else None
    counted = sum(each["seconds"] - each["prepare_s"] for each in slices)
    seconds = {
        "teacher, all": guide[0]["wall_s"] if guide else None,
        "student, training steps": spent["train_seconds"],
        "student, evaluations and saves": summary["wall_s"] - spent["train_seconds"],
        "student, all": summary["wall_s"],
        "start-up of all slices": counted - summary["wall_s"] - (guide[0]["wall_s"] if guide else 0.0),
        "everything": counted,
        "preparing the store, not counted": sum(each["prepare_s"] for each in slices),
    }
    log = [{"run": "student", **row} for row in read_metrics(config.run_dir)]
    log += [{"run": "teacher", **row} for row in (read_metrics(teacher.run_dir) if teacher is not None else [])]
    reached = [
        row["epoch"] for row in log if row["run"] == "student" and row["kind"] == "eval" and row["top1"] >= TARGET
    ]
    result = {
        "target": TARGET,
        "reached": summary["top1_last"] >= TARGET,
        "first_epoch_at_target": min(reached, default=None),
        **{name: summary[name] for name in ("top1_last", "top1_best", "images_per_s", "epochs", "seed")},
        "teacher": guide[0] if guide else str(config.teacher.weights),
        "seconds": {name: value if value is None else round(value, 2) for name, value in seconds.items()},
        "slices": len(slices),
        "config": config.model_dump(mode="json"),
        **asdict(Stamp.of(pick_device(config.engine), " ".join(["python benchmarks/speedrun.py", *sys.argv[1:]]))),
    }
    Path(f"{stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
    Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if (config.run_dir / "curves.png").is_file():
        shutil.copyfile(config.run_dir / "curves.png", Path(f"{stem}.png"))
    return Path(f"{stem}.json")


def finished(config: Config) -> tuple[dict, dict]:
    """(summary, position of the last checkpoint) of a completed run."""
    summary = json.loads((config.run_dir / "summary.json").read_text(encoding="utf-8"))
    return summary, load_checkpoint(config.run_dir / "checkpoints" / LAST)["position"]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"speedrun.py: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"speedrun.py: {error}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stopped:
        print("speedrun.py: the slice is over; the run is saved, the same command goes on", file=sys.stderr)
        sys.exit(stopped.status)
