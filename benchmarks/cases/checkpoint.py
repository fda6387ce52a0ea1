"""Seconds that a checkpoint costs: what training waits for one, until it is on the disk, and starting again from it."""

from __future__ import annotations

from benchmarks.harness.bench import Bench, wall
from benchmarks.harness.ours import Ours, config_of
from fastlg.ranks.stop import StopRequest
from fastlg.run.position import restore
from fastlg.run.run import Run


def rows(bench: Bench) -> None:
    """A guided DeiT-Ti with its projections, moments, meter and position, to the disk and back."""
    if not bench.fits("save and load", 1):
        return
    config = config_of(bench, "deit_tiny", 8, "run.name=checkpoint", "log.tensorboard=false")
    ours = Ours(config)
    ours.open()
    ours.step()
    ours.close()
    run = Run(ours.parts, StopRequest())
    last = run.folder / "checkpoints" / "last.pt"
    turns = 3 if bench.quick else 7
    try:
        times = {"save, training waits": [], "save, on the disk": [], "load": []}
        for _ in range(turns + 1):
            waits = wall(run.save, bench.device)
            times["save, training waits"].append(waits)
            times["save, on the disk"].append(waits + wall(run.saver.wait, bench.device))
            times["load"].append(wall(lambda: restore(last, run.parts, run.position, run.record.meter), bench.device))
    finally:
        run.close()
    for name, taken in times.items():
        bench.add("guided DeiT-Ti", name, taken[1:], file_mib=round(last.stat().st_size / 2**20, 1))
