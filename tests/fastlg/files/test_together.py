"""What a call leaves in a folder is whole and of that call: after an earlier one, a failure, a kill, or two at once."""

from __future__ import annotations

import os
import threading

import pytest

from fastlg.files import together as module
from fastlg.files.together import together

NAMES = ("whole.json", "page.md", "a.csv", "b.csv", "c.png")


def leave(out, text, *names):
    with together(out, NAMES) as work:
        for name in names:
            (work / name).write_text(text)


def files_of(out):
    return {path.name: path.read_text() for path in out.iterdir()}


def test_a_later_call_replaces_all_that_an_earlier_one_left_and_nothing_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    leave(tmp_path, "1", "whole.json", "page.md", "a.csv", "c.png")
    leave(tmp_path, "2", "whole.json", "page.md", "b.csv")
    assert files_of(tmp_path) == {"notes.txt": "mine", **dict.fromkeys(("whole.json", "page.md", "b.csv"), "2")}


def test_in_a_folder_of_nobodys_files_of_these_names_stay(tmp_path):
    (tmp_path / "a.csv").write_text("mine")
    leave(tmp_path, "1", "whole.json", "page.md", "b.csv")
    assert files_of(tmp_path)["a.csv"] == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_one_that_fails_leaves_the_earlier_files(tmp_path, error):
    leave(tmp_path, "1", "whole.json", "page.md", "a.csv")
    before = files_of(tmp_path)
    with pytest.raises(type(error)), together(tmp_path, NAMES) as work:
        (work / "a.csv").write_text("2")
        raise error
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("moved", range(3))
def test_one_that_is_killed_while_its_files_move_is_never_whole_and_the_next_one_is(tmp_path, monkeypatch, moved):
    """Dead after so many moves: nothing says that the files belong together, and no file of the dead one outlives."""
    leave(tmp_path, "1", *NAMES)

    class Killed(BaseException):
        pass

    def replace(source, target, count=[moved]):  # noqa: B006
        if count[0] == 0:
            raise Killed
        count[0] -= 1
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", replace)
        patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # nor does a dead process tidy up
        with pytest.raises(Killed):
            leave(tmp_path, "2", "whole.json", "page.md", "a.csv")
    assert "whole.json" not in {path.name for path in tmp_path.iterdir()}
    leave(tmp_path, "3", "whole.json", "page.md", "b.csv")
    assert files_of(tmp_path) == dict.fromkeys(("whole.json", "page.md", "b.csv"), "3")


def test_of_two_at_once_one_waits_for_the_other(tmp_path):
    inside, order = threading.Event(), []

    def second():
        with together(tmp_path, NAMES) as work:
            order.append("second")
            (work / "whole.json").write_text("2")

    thread = threading.Thread(target=second)
    with together(tmp_path, NAMES) as work:
        thread.start()
        inside.wait(0.05)  # long enough to be wrong, were there no lock
        (work / "whole.json").write_text("1")
        (work / "a.csv").write_text("1")
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"] and files_of(tmp_path) == {"whole.json": "2"}
