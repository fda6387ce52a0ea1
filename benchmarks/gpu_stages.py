"""What a short time on a GPU is spent on, in order, each stage within its own limit; called by scripts/gpu.sh.

    python benchmarks/gpu_stages.py first [--out OUT] [--total-s 350]
    python benchmarks/gpu_stages.py second --source CIFAR100 [--out OUT] [--total-s 400] [section.key=value ...]

first   Does it train, at what rate (first_light); the tests that need a GPU, eight at a time; where a step's time goes,
        fused blocks, guidance, augmentation, teacher and optimizer alone.
second  Real CIFAR-100: teacher, then guided student, evaluated as it goes (speedrun.py, which goes on where an earlier
        slice stopped); then first_light again, the ladder from the reference style, and compute-sanitizer.

OUT gets rows.jsonl (a row the moment it is measured, and one per stage: status, seconds), stages.log (all that was
printed), tests.xml, and runs.tar: metrics, summaries and curves of what ``second`` trains, as they grow. A stage that
runs past its limit is ended, the next one begins; no stage starts in the last seconds of ``--total-s``. The exit status
is 1 if a stage failed or was cut short. ``--tiny`` rehearses everything on a CPU in the smallest sizes,
each stage with all the time that is left.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCH = "benchmarks/run.py"
MIRRORED = (".json", ".jsonl", ".yaml", ".png")
SLICE_OVER = 143  # speedrun.py saved itself when its slice was over
SMALLEST = 8  # seconds below which no stage is begun
GPU_TESTS = (
    "tests/fastlg/engine/test_engines_gpu.py",
    "tests/fastlg/test_drloc.py",
    "tests/kernels/guidance/test_guidance_gpu.py",
    "tests/kernels/test_block_gpu.py",
    "tests/kernels/augment/test_augment_gpu.py",
    "tests/fastlg/data/loaders/test_loader_resident.py",
)
PARTS = ("guidance", "blocks", "augment", "step", "teacher")
TINY_MODEL = (
    "model.name=vit_tiny_patch16_224",
    "model.image_size=56",
    "model.args={patch_size: 8, embed_dim: 24, depth: 3, num_heads: 2}",
    "model.blocks=[0,1,2]",
)


@dataclass(frozen=True)
class Stage:
    """``command`` runs at most ``limit_s`` seconds; ``mirrored``: neighbouring folders whose small files are copied to
    OUT while it runs."""

    name: str
    limit_s: float
    command: list[str]
    mirrored: tuple[Path, ...] = ()


def main() -> int:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    ends, failed = time.monotonic() + options.total_s, []
    stages = first(options) if options.call == "first" else second(options)
    for stage in stages:
        left = ends - time.monotonic()
        if left < SMALLEST:
            record(options.out, stage, "not begun: out of time", 0.0)
            failed.append(stage.name)
            continue
        status, seconds = run(stage, left if options.tiny else min(stage.limit_s, left), options.out)
        record(options.out, stage, status, seconds)
        if status != "done":
            failed.append(stage.name)
    missing = f"; not done: {', '.join(failed)}" if failed else ""
    print(f"gpu_stages: {len(stages) - len(failed)} of {len(stages)} stages done{missing}")
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_stages.py", description=__doc__.splitlines()[0])
    parser.add_argument("call", choices=("first", "second"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the student that second trains")
    parser.add_argument("--source", default="torchvision:CIFAR100", help="data.source of second")
    parser.add_argument("--recipe", default="fast", help="what second trains: paper, fast or a config")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--work", type=Path, default=Path("/tmp/fastlg-gpu"), help="scratch space; runs lie there")
    parser.add_argument("--total-s", type=float, default=350.0)
    parser.add_argument("--only", default="", help="stages to run, by name, separated by commas; default: all")
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU")
    options = parser.parse_intermixed_args()
    options.out = options.out.resolve()
    return options


def bench(options: argparse.Namespace, *names: str) -> list[str]:
    """A run of benchmarks whose rows go to rows.jsonl."""
    made = [sys.executable, BENCH, *names, "--rows", str(options.out / "rows.jsonl")]
    made += ["--folder", str(options.work / "bench"), "--out", str(options.work / "results")]
    tiny = ["--quick", "--device=cpu", *(f"--set={override}" for override in TINY_MODEL)]
    return made + tiny if options.tiny else made


def tests(options: argparse.Namespace) -> list[str]:
    files = ("tests/kernels/guidance/test_compact.py",) if options.tiny else GPU_TESTS
    marked = [] if options.tiny else ["-m", "gpu"]
    return [
        sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *marked, "-n",
        "1" if options.tiny else "8", f"--junitxml={options.out / 'tests.xml'}", *files,
    ]  # fmt: skip


def chosen(stages: list[Stage], options: argparse.Namespace) -> list[Stage]:
    names = [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in {stage.name for stage in stages}]:
        raise SystemExit(f"--only: no stage {unknown[0]}; there are {', '.join(stage.name for stage in stages)}")
    return [stage for stage in stages if not names or stage.name in names]


def first(options: argparse.Namespace) -> list[Stage]:
    stages = [
        Stage("first_light", 195, bench(options, "first_light")),
        Stage("tests", 100, tests(options)),
        Stage("parts", 110, bench(options, "optimizer", *(() if options.tiny else PARTS))),
    ]
    return chosen(stages, options)


def second(options: argparse.Namespace) -> list[Stage]:
    limit = max(SMALLEST, options.total_s - 5)
    runs = options.work / "runs"
    train = [
        sys.executable, "benchmarks/speedrun.py", options.recipe, f"--slice-s={limit - 10:.0f}",
        f"--out={options.work / 'speedrun'}", f"run.root={runs}", f"data.source={options.source}", *options.overrides,
    ]  # fmt: skip
    stages = [
        Stage("real", limit, train, (runs, options.work / "speedrun")),
        Stage("first_light", 120, bench(options, "first_light")),
        Stage("ladder", 120, bench(options, "training")),
        Stage("sanitize", 120, ["bash", "scripts/sanitize.sh"]),
    ]
    if options.tiny:
        stages = stages[:1]
    return chosen(stages, options)


def run(stage: Stage, limit_s: float, out: Path) -> tuple[str, float]:
    """("done", "status N" or "cut short", seconds). Output goes to the terminal and to stages.log."""
    print(f"== {stage.name} (at most {limit_s:.0f} s): {' '.join(stage.command)}", flush=True)
    paths = [str(ROOT), str(ROOT / "kernels" / "torch-ext"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "PYTHON": sys.executable,
    }
    start, cut = time.monotonic(), False
    with open(out / "stages.log", "ab") as log:
        log.write(f"== {stage.name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None:
            if time.monotonic() - start > limit_s and not cut:
                cut = True
                end(process)
            mirror(stage, out)
            time.sleep(0.5)
    mirror(stage, out)
    seconds = time.monotonic() - start
    if cut or process.returncode == SLICE_OVER:
        return "cut short", seconds
    return f"status {process.returncode}" if process.returncode else "done", seconds


def end(process: subprocess.Popen) -> None:
    """The stage and all that it started: a word first, then by force."""
    for signum, patience_s in ((signal.SIGINT, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            return
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue


def mirror(stage: Stage, out: Path) -> None:
    """Metrics, summaries and curves below the mirrored folders into OUT/runs.tar, whenever one of them has changed."""
    found = [path for folder in stage.mirrored for path in folder.rglob("*") if path.suffix in MIRRORED]
    archive = out / "runs.tar"
    if not found or (archive.exists() and archive.stat().st_mtime > max(path.stat().st_mtime for path in found)):
        return
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for path in sorted(found):
            tar.add(path, str(path.relative_to(stage.mirrored[0].parent)))
    partial.replace(archive)


def record(out: Path, stage: Stage, status: str, seconds: float) -> None:
    row = {"stage": stage.name, "status": status, "seconds": round(seconds, 1), "command": " ".join(stage.command)}
    with open(out / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"== {stage.name}: {status} after {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
