"""docs/python.md: every block runs, in order, and the tables say what the code has."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from fastlg import callbacks

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
EVENTS = {
    "on_start": callbacks.Started,
    "on_step_end": callbacks.StepEnd,
    "on_report": callbacks.Report,
    "on_evaluate": callbacks.Evaluated,
    "on_epoch_end": callbacks.EpochEnd,
    "on_end": callbacks.Ended,
}


def test_every_block_runs_in_order(project, image_folder):
    (project / "images").symlink_to(image_folder)
    names: dict = {}
    said = []
    for number, block in enumerate(BLOCKS, 1):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
        said.append(out.getvalue())
    assert len(BLOCKS) >= 8
    assert "<fastlg run runs/mine, top-1" in said[0]
    assert names["rows"].columns[0] == "guidance.weight" and len(names["rows"]) == 2
    assert len(names["watch"].losses) == 2 and names["watch"].best > 0  # 78 images, batch 32
    assert "no test split; give data=(train, test)" in said[-1]
    assert (project / "exported" / "README.md").is_file()
    assert "<h1>Run mine</h1>" in (project / "runs" / "mine" / "report.html").read_text(encoding="utf-8")


def test_the_table_of_callbacks_is_the_protocol():
    rows = re.findall(r"^\| `(on_\w+)` \| .* \| (.*) \|$", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == list(callbacks.HOOKS) == list(EVENTS)
    for name, event in rows:
        fields = [word.partition(":")[0] for word in event.split(", ")]
        assert fields == list(EVENTS[name]._fields), name
