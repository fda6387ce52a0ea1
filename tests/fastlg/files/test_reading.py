"""Paths and files that users name: one set of rules, whoever reads them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fastlg.errors import UserError
from fastlg.files.reading import expanded, read_regular, read_text, usable_path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a\0b", "NUL"),
        ("x" * 256, "255 bytes"),
        ("é" * 128, "255 bytes"),
        ("d/" * 2001, "4,000 bytes"),
        ("~nobody-of-this-name/x", "no user 'nobody-of-this-name' on this machine; write ./~nobody-of-this-name"),
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_what_no_file_system_holds_is_refused_and_the_setting_is_named(path, reason):
    with pytest.raises(ValueError, match=reason):
        usable_path(Path(path))
    with pytest.raises(UserError, match=f"^a.setting=.*{reason}") as caught:
        expanded(path, "a.setting")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_home_folders_are_found_and_the_longest_names_are_taken(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert usable_path(Path("~/x")) == expanded("~/x", "s") == Path("/home/of/somebody/x")
    assert usable_path(Path("x" * 255)) == Path("x" * 255)
    assert usable_path(Path("a/~b")) == Path("a/~b")


@pytest.mark.parametrize(
    ("make", "code", "reason"),
    [
        (lambda path: os.mkfifo(path), errno.EINVAL, r"a pipe \(FIFO\), not a file; give a file"),
        (lambda path: os.mkdir(path), errno.EINVAL, "a folder, not a file; give a file"),
        (lambda path: os.symlink("/dev/zero", path), errno.EINVAL, "a device, not a file; give a file"),
        (lambda path: os.symlink("/proc/self/mem", path), errno.EIO, "make it readable"),
        (lambda path: os.symlink("/proc/self/maps", path), errno.EFBIG, "more than 10 bytes; give the right file"),
        (lambda path: os.symlink("nothing", path), errno.ENOENT, "No such file"),
        (lambda path: os.symlink(path, path), errno.ELOOP, "symbolic links"),
        (lambda path: Path(path).write_bytes(b"x" * 11), errno.EFBIG, "more than 10 bytes; give the right file"),
    ],
    ids=["fifo", "folder", "device", "memory", "no size told", "nothing", "loop", "too large"],
)
def test_what_is_no_small_file_is_refused_without_reading_it(tmp_path, make, code, reason):
    path = tmp_path / "it"
    make(path)
    with pytest.raises(OSError) as caught:
        read_regular(path, 10)
    assert caught.value.errno == code
    with pytest.raises(ValueError, match=reason):
        read_text(path, 10)


def test_the_limit_itself_is_allowed_and_a_byte_order_mark_is_no_letter(tmp_path):
    path = tmp_path / "it"
    path.write_bytes(b"\xef\xbb\xbf" + b"1234567")
    assert read_text(path, 10) == "1234567"
    assert read_regular(path, 10) == read_regular(path) == path.read_bytes()
    path.write_bytes(b"ab\xe9")
    with pytest.raises(ValueError, match="byte 2 is not UTF-8"):
        read_text(path, 10)
    path.write_bytes(b"")
    assert read_regular(path, 0) == b""
