"""What is printed of a user's names: on one line, obeyed by no terminal, and otherwise as the user wrote it."""

from __future__ import annotations

import io

import pytest

from fastlg.errors import printable
from fastlg.ranks import say as saying
from fastlg.run.report import Bar


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain name_1.png", "plain name_1.png"),
        ("Grüße 犬 Ω й ع שלום é", "Grüße 犬 Ω й ع שלום é"),
        ("family 👨‍👩‍👧", "family 👨‍👩‍👧"),
        (r"back\slash", r"back\slash"),
        ("red\x1b[31m", r"red\x1b[31m"),
        ("two\nlines\rand\ttabs", r"two\nlines\rand\ttabs"),
        ("nul\x00 del\x7f csi\x9b31m nel\x85", r"nul\x00 del\x7f csi\x9b31m nel\x85"),
        ("sep\u2028par\u2029", r"sep\u2028par\u2029"),
        ("gpj\u202eexe \u2066iso\u2069", r"gpj\u202eexe \u2066iso\u2069"),
        (b"caf\xe9.png".decode("utf-8", "surrogateescape"), r"caf\udce9.png"),
    ],
)
def test_a_printed_name_is_one_line_that_no_terminal_obeys(text, printed):
    assert printable(text) == printed
    assert printable(printed) == printed
    printable(text).encode("utf-8")


def test_every_control_is_escaped():
    controls = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000))]
    assert all(printable(control).isascii() and printable(control).startswith("\\") for control in controls)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "gbk"])
@pytest.mark.parametrize(
    "line",
    [
        "run 犬 [bold] ü",
        "red\x1b[31m",
        "runs/a:b: c:smile:d",
        b"caf\xe9".decode("utf-8", "surrogateescape"),
        "a\nb",
        "",
    ],
)
def test_every_terminal_gets_one_line_whatever_it_can_show(monkeypatch, encoding, line):
    written = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(saying, "console", saying._Console(file=written))
    saying.say(line)
    written.flush()
    text = written.buffer.getvalue().decode(encoding)
    assert text.endswith("\n") and text.count("\n") == 1 and "\x1b" not in text
    if encoding == "utf-8":
        assert text == printable(line) + "\n"
    with Bar("epoch 1/2", 3) as bar:
        bar.advance()
        bar.show("loss 1 — ½")


@pytest.mark.parametrize(
    ("override", "printed"),
    [
        ("run.name=a\x1b[2J", r"a\x1b[2J"),
        ('run.name="a\\x1b[2J"', r"a\x1b[2J"),
        ("optim.lr\n\x07=1", r"optim.lr\n\x07"),
        ("optim.lr=" + "x" * 9000, "xxx... (9,000 characters)"),
        (b"run.seed=\xff".decode("utf-8", "surrogateescape"), r"\udcff"),
    ],
)
def test_what_the_command_line_holds_is_printed_escaped_and_in_bounds(project, fastlg, override, printed):
    _, out, err = fastlg("train", "student.yaml", "teacher=null", "--dry-run", override)
    assert printed in out + err and "\x1b" not in out + err and "\x07" not in out + err
    assert err.count("\n") <= 1 and len(err) < 2200 and "Traceback" not in err
