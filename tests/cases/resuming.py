"""Runs that are stopped and go on: waiting for them, and comparing them with one that never stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from patience import HANG_S, wait_until

from fastlg.engine.plain import PlainEngine
from fastlg.run.checkpoint import load_checkpoint

TIMES = {"images_per_s", "wall_s"}


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=HANG_S)
    return process.returncode, out, err


def rows(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def wait_for_rows(folder, count: int, process) -> None:
    path = folder / "metrics.jsonl"
    wait_until(lambda: path.is_file() and path.read_text().count("\n") >= count, lambda: process.poll() is None)


def assert_same_run(one, other) -> None:
    assert rows(one) == rows(other)
    first, second = (load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (one, other))
    assert first["unit"].keys() == second["unit"].keys()
    for name, value in first["unit"].items():
        assert torch.equal(value, second["unit"][name]), name
    assert first["engine"].keys() == second["engine"].keys()
    for name, value in first["engine"].get("average", {"weights": {}})["weights"].items():
        assert torch.equal(value, second["engine"]["average"]["weights"][name]), name
    for name, moments in first["engine"]["optimizer"].items():
        assert same(moments, second["engine"]["optimizer"][name]), name
    groups = [state["engine"].get("optimizer_groups", []) for state in (first, second)]
    assert len(groups[0]) == len(groups[1]) and all(map(same, *groups))


def same(one: dict, other: dict) -> bool:
    """Whether two dicts of tensors and plain numbers hold the same bits of the same types."""
    return one.keys() == other.keys() and all(
        type(value) is type(other[key])
        and (torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key])
        for key, value in one.items()
    )


@contextmanager
def cut_before_step(monkeypatch, number: int) -> Iterator[None]:
    """Inside, a run of this process ends before its step ``number``, counted from 1, as a second Ctrl-C does."""
    plain, taken = PlainEngine.step, []

    def step(self, *arguments):
        taken.append(1)
        if len(taken) == number:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PlainEngine, "step", step)
        yield
    assert len(taken) == number
