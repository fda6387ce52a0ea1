"""Which files one guided training step enters: what a reader of a step has to open.

    python tests/step_files.py

A tiny guided student on the CPU: its second step, from the loader to the record, everything that is made once made.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # of this checkout, whatever is installed
    root = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(root), str(root / "tests" / "cases"), str(root / "kernels" / "torch-ext")]

from made_images import write_images
from tiny_project import write_project

import fastlg
import fastlg_kernels
from fastlg.assemble import assemble
from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.models.resnet_cifar import resnet20
from fastlg.ranks.stop import StopRequest
from fastlg.run.run import Run
from fastlg.train import batches

TEACHER_SIZE = 16  # px
PACKAGES = [Path(package.__file__).parent for package in (fastlg, fastlg_kernels)]


def files_of_a_step(folder: Path) -> list[str]:
    """Paths from "fastlg/" or "fastlg_kernels/" on, sorted. ``folder``: scratch space; FASTLG_CACHE is the caller's."""
    for split, seed in (("train", 0), ("test", 1)):
        write_images(folder / "images" / split, per_class=20, seed=seed)
    write_project(folder, folder / "images")
    run_here = f"run.root={folder / 'runs'}"
    config = load_config(folder / "student.yaml", [run_here, "engine.device=cpu", "log.every_steps=1000"])
    stores = open_stores(config.data)
    parts = assemble(config, stores, resnet20(len(stores.class_names)), TEACHER_SIZE)
    parts.unit.train()
    codes = set()
    with StopRequest() as stop:
        run = Run(parts, stop)
        steps = run.steps(batches(parts, 0))
        try:
            one_step(parts, run, steps)
            sys.setprofile(lambda frame, event, argument: codes.add(frame.f_code.co_filename))
            try:
                one_step(parts, run, steps)
            finally:
                sys.setprofile(None)
        finally:
            steps.close()
            run.close()
    names = {(Path(code), package) for code in codes for package in PACKAGES}
    return sorted(str(code.relative_to(package.parent)) for code, package in names if package in code.parents)


def one_step(parts, run: Run, steps) -> None:
    """As ``fastlg.train.fit`` takes it."""
    views, batch = next(steps)
    run.after_step(parts.engine.step(views, batch, parts.step_total(run.position.batch)))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTLG_CACHE"] = f"{folder}/cache"
        files = files_of_a_step(Path(folder))
    print("\n".join([*files, f"{len(files)} files"]))


if __name__ == "__main__":
    main()
