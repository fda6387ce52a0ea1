"""What takes a file's place was on the disk before: a power cut leaves the old content or the new, never a torn file.

The calls themselves are recorded: every file below a renamed path was synced after it was last opened for writing.
"""

from __future__ import annotations

import builtins
import os
from pathlib import Path

import pytest
import torch
from cache_cases import PLAIN, built
from loader_cases import write_pictures
from reach import ALONE, config_of

from fastlg.data.store.beton_write import write_beton
from fastlg.data.store.make import open_store, prepare
from fastlg.run.checkpoint import save_checkpoint
from fastlg.train import train

HINTS = {"key", "fingerprint", "chunks.jsonl", "checked.json"}  # removed when whole, or made again where damaged


class Watch:
    """Files that were synced, by inode and the modification time they then had; what was renamed while it was not."""

    def __init__(self, monkeypatch):
        self.synced: dict[int, int] = {}
        self.torn: list[str] = []
        self.moved: list[str] = []
        sync, replace, rename = os.fsync, os.replace, os.rename

        def fsync(number):
            sync(number)
            status = os.fstat(number)
            self.synced[status.st_ino] = status.st_mtime_ns

        def moving(move):
            def moved(source, target, **options):
                self._look(Path(source), Path(target))
                return move(source, target, **options)

            return moved

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", moving(replace))
        monkeypatch.setattr(os, "rename", moving(rename))

    def _look(self, source: Path, target: Path) -> None:
        self.moved.append(target.name)
        for file in [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file()):
            status = file.stat()
            if file.name not in HINTS and self.synced.get(status.st_ino) != status.st_mtime_ns:
                self.torn.append(f"{target.name}: {file.name}")


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


def test_a_checkpoint_is_synced_before_it_replaces_the_last_one(tmp_path, watch):
    save_checkpoint(tmp_path, {"w": torch.zeros(3)}, best=True)
    assert watch.moved == ["best.pt", "last.pt"] and watch.torn == []


def test_a_checkpoint_that_is_copied_to_best_is_synced_too(tmp_path, watch, monkeypatch):
    def no_links(*_):
        raise OSError("this file system has no links")

    monkeypatch.setattr(os, "link", no_links)
    save_checkpoint(tmp_path, {"w": torch.zeros(3)}, best=True)
    assert watch.moved == ["best.pt", "last.pt"] and watch.torn == []


def test_a_store_is_synced_before_it_takes_its_place(tmp_path, watch):
    write_pictures(tmp_path / "raw")
    path = prepare(str(tmp_path / "raw"), tmp_path / "store", workers=1)
    assert "store" in watch.moved and watch.torn == []
    write_beton(open_store(path, "test"), tmp_path / "test.beton", mode="raw")
    assert "test.beton" in watch.moved and watch.torn == []


def test_a_feature_cache_is_synced_before_it_takes_its_place(project, watch):
    _, _, cache = built(*PLAIN, f"teacher.cache={project / 'features'}")
    assert "features" in watch.moved and cache.path == project / "features" and watch.torn == []


def test_every_file_of_a_run_that_takes_anothers_place_is_synced(project, watch):
    train(config_of(*ALONE, "optim.epochs=1", "optim.global_batch_size=78"))
    assert {"config.yaml", "last.pt", "best.pt", "summary.json"} <= set(watch.moved) and watch.torn == []


def test_the_watch_sees_a_file_that_was_not_synced(tmp_path, watch):
    for is_synced in (False, True):
        with builtins.open(tmp_path / "new", "w") as file:
            file.write("x")
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        os.replace(tmp_path / "new", tmp_path / "old")
    assert watch.torn == ["old: new"]
