"""What is printed of a user's names: on one line, obeyed by no terminal, and otherwise as the user wrote it."""

from __future__ import annotations

import pytest

from fastlg.errors import printable


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
