"""A checkpoint is whole or absent: full disks, truncation and foreign files are refused, the last good one survives."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap

import pytest
import torch
from patience import HANG_S

from fastlg.errors import UserError
from fastlg.files import atomic as files
from fastlg.run.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint

STATE = {"weights": {"w": torch.arange(6.0).view(2, 3)}, "position": {"epoch": 3, "last": None}, "names": ["a", "b"]}


def test_a_saved_state_comes_back_equal_and_leaves_no_other_file(tmp_path):
    save_checkpoint(tmp_path, STATE, best=True)
    for name in (LAST, BEST):
        state = load_checkpoint(tmp_path / name)
        assert torch.equal(state["weights"]["w"], STATE["weights"]["w"])
        assert state["position"] == STATE["position"] and state["names"] == STATE["names"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [BEST, LAST]


def test_best_stays_when_last_moves_on(tmp_path):
    save_checkpoint(tmp_path, {"epoch": 1}, best=True)
    save_checkpoint(tmp_path, {"epoch": 2})
    assert load_checkpoint(tmp_path / BEST)["epoch"] == 1
    assert load_checkpoint(tmp_path / LAST)["epoch"] == 2


def test_a_kill_between_last_and_best_leaves_no_epoch_that_is_called_best_and_is_not_there(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, {"epoch": 1, "top1_best": 20.0}, best=True)
    moved = files.os.replace

    def killed(source, target):
        raise KeyboardInterrupt

    for moves in (0, 1):
        left = [moved] * moves

        def some(source, target, left=left):
            (left.pop() if left else killed)(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(files.os, "replace", some)
            save_checkpoint(tmp_path, {"epoch": 2, "top1_best": 30.0}, best=True)
        assert load_checkpoint(tmp_path / LAST)["epoch"] == 1
        assert load_checkpoint(tmp_path / BEST)["epoch"] == 1 + moves


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_named_and_refused(tmp_path, share):
    path = save_checkpoint(tmp_path, STATE)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"last\.pt cannot be read.*--resume"):
        load_checkpoint(path)


def test_one_flipped_bit_is_found(tmp_path):
    path = save_checkpoint(tmp_path, {"w": torch.zeros(5000)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be read.*checksum"):
        load_checkpoint(path)


def test_a_foreign_file_and_a_missing_one_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="format list"):
        load_checkpoint(tmp_path / "list.pt")
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.pt")


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "proof"), "w"))

    torch.save({"format": 1, "x": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "proof").exists()


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    save_checkpoint(tmp_path, {"epoch": 1})
    code = textwrap.dedent(
        f"""
        import resource, torch
        from pathlib import Path
        from fastlg.run.checkpoint import save_checkpoint
        from fastlg.errors import RunError
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            save_checkpoint(Path({str(tmp_path)!r}), {{"epoch": 2, "w": torch.zeros(100_000)}}, best=True)
        except RunError as error:
            print("RunError:", error)
        """
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S)
    assert "RunError: cannot save the checkpoint" in result.stdout and "last good one is kept" in result.stdout, result
    assert load_checkpoint(tmp_path / LAST)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [LAST]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000  # the limit held in the child alone
