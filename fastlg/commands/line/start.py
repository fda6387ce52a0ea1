"""``--gpus``: one command as several ranks. Needs no torch, so that errors are instant."""

from __future__ import annotations

import os
import sys


def start_ranks(gpus: int | None, config) -> None:
    """With ``--gpus`` this process only starts the ranks, which run this command again, and leaves as they do."""
    from fastlg.ranks.place import drop_shell, expect_no_tasks, ignored, place

    if os.environ.get("FASTLG_LAUNCHER"):
        return
    if note := ignored():
        from fastlg.ranks.say import say

        say(f"ignored  {note}")
    if gpus is None:
        return
    drop_shell()
    expect_no_tasks()
    if place().world_size > 1:
        return
    from fastlg.ranks.launch import check_count, launch
    from fastlg.ranks.pulse import Pulse

    check_count(gpus, config.engine.device)
    with Pulse(lambda: ""):  # rank 0 says what it is at
        status = launch(gpus, sys.argv[1:])
    sys.exit(status)
