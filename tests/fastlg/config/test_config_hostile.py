"""A config that is damaged, hostile or no file at all is refused in one line, at once and in little memory."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
import yaml
from refusals import refused

from fastlg.config.yaml_text import read_yaml

GOOD = "data: {source: images}\nmodel: {name: resnet20, image_size: 32}\n"
ARGS = b"data: {source: x}\nmodel: {name: x, args: {a: "
BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))])
SECONDS, BYTES = 30, 2 << 30  # that a refusal may take; guards against one that runs away, not clocks


@contextlib.contextmanager
def little_memory():
    """Inside, this process's memory grows by less than BYTES, at its peak."""
    before = _reset_peak()
    yield
    assert _peak() - before < BYTES


def _reset_peak() -> int:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


FILES = {
    "empty": (b"", ["is empty: data.source is missing", "data.source=VALUE"]),
    "over-long": (b"# " + b"x" * (1 << 17) + b"\n" + GOOD.encode(), ["65,536 bytes"]),
    "a number of 5,000 digits": (GOOD.encode() + b"optim: {epochs: " + b"9" * 5000 + b"}", ["a number of 5,000"]),
    "a free number of 5,000 digits": (ARGS + b"0x" + b"9" * 5000 + b"}}", ["model.args.a", "not decimal"]),
    "a text of 5,000 digits": (GOOD.encode() + b"run: {name: " + b"9" * 5000 + b"}", ["run.name", "4,096"]),
    "a number of 60 digits": (ARGS + b"9" * 60 + b"}}", ["model.args.a", "63 bits"]),
    "3,000 levels of lists": (b"data: " + b"[" * 3000 + b"]" * 3000, ["20 levels", "line 1"]),
    "3,000 levels of mappings": (b"data: " + b"{a: " * 3000 + b"1" + b"}" * 3000, ["20 levels"]),
    "3,000 open lists": (b"[" * 3000, ["20 levels"]),
    "an alias bomb": (BOMB.encode(), ["10,000 values"]),
    "an alias to itself": (b"data: &a {source: *a}", ["*a", "line 1"]),
    "a merge with itself": (b"data: &a\n  <<: *a\n  source: x", ["*a", "line 2"]),
    "an alias to nothing": (b"data: *nobody", ["*nobody"]),
    "a merge of a number": (b"data: {<<: 3}", ["<<"]),
    "many values": (b"data: [" + b"1," * 20_000 + b"]", ["10,000 values"]),
    "no UTF-8": (GOOD.encode() + b"# caf\xe9", ["byte 68", "UTF-8"]),
    "UTF-16": (GOOD.encode("utf-16"), ["UTF-8"]),
    "binary": (bytes(range(256)), ["UTF-8"]),
    "controls": (b"data: {source: \x1b[31mred}", ["YAML"]),
    "a tag": (b"data: !!python/object/apply:os.system ['echo hacked']", ["tag", "python", "remove it"]),
    "a local tag": (b"data: {source: !env HOME}", ["tag !env"]),
    "two documents": (GOOD.encode() + b"---\n" + GOOD.encode(), ["second document", "line 3"]),
    "a key twice": (GOOD.encode() + b"optim: {lr: 1, epochs: 2, lr: 3}", ["lr", "twice", "line 3"]),
    "a section twice": (GOOD.encode() + b"data: {source: y}", ["data", "twice", "line 3"]),
    "a list as a key": (b"? [a, b]\n: 1", ["key", "list"]),
    "tabs": (b"data:\n\tsource: x", ["line 2"]),
    "a list": (b"[1, 2]", ["list", "mapping of sections"]),
    "a word": (b"just words", ["text", "mapping of sections"]),
    "no key of a config": (b"version: 3\nservices: {web: {}}", ["unknown key version", "is it a config? Its"]),
    "keys without their section": (b"epochs: 3", ["unknown key epochs", "did you mean optim.epochs"]),
    "a text as a section": (b"data: images\nmodel: {name: x}", ["data is 'images'", "data.source=..."]),
    "a base that is not there": (b"extends: me.yaml\n" + GOOD.encode(), ["extends is me.yaml", "shipped config"]),
    "controls in a key": (b'"\\e[31mred\\n": 1', ["unknown key \\x1b[31mred\\n"]),
}  # fmt: skip


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("case", FILES)
def test_a_config_file_that_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch, fastlg, case):
    monkeypatch.chdir(tmp_path)
    data, words = FILES[case]
    (tmp_path / "own.yaml").write_bytes(data)
    with little_memory():
        refused(fastlg("train", "own.yaml", "--dry-run"), "own.yaml", *words)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/dev/zero", ["device"]),
        ("fifo.yaml", ["FIFO"]),
        ("folder.yaml", ["folder"]),
        ("link.yaml", ["link.yaml", "neither a file"]),
        ("loop.yaml", ["loop.yaml", "cannot be read"]),
        ("own.yaml/x", ["neither a file"]),
        ("x" * 300, ["(300 characters)", "name too long"]),
        ("/".join(["x" * 200] * 30), ["characters)", "name too long"]),
        ("", ["folder"]),
        ("no\x1b[31mred\n", ["no\\x1b[31mred\\n", "neither a file"]),
        ("~nouser/x.yaml", ["~nouser", "neither a file"]),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, str) else "",
)
def test_what_is_no_config_file_is_named(tmp_path, monkeypatch, fastlg, name, words):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.yaml")
    os.mkdir("folder.yaml")
    os.symlink("nowhere", "link.yaml")
    os.symlink("loop.yaml", "loop.yaml")
    Path("own.yaml").write_text(GOOD)
    with little_memory():
        refused(fastlg("train", name, "--dry-run"), *words)


@pytest.mark.parametrize("hidden", ["file", "folder"])
def test_a_config_that_may_not_be_read_says_so(monkeypatch, fastlg, hidden):
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        path = Path(made, "folder", "own.yaml")
        path.parent.mkdir()
        path.write_text(GOOD)
        os.chmod(path if hidden == "file" else path.parent, 0)
        with _as_nobody():
            result = fastlg("train", str(path), "--dry-run")
        os.chmod(path.parent, 0o755)
        refused(result, "own.yaml", "cannot be read", "Permission denied")


@contextlib.contextmanager
def _as_nobody():
    """Root may read everything; inside, root is nobody."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_aliases_and_merges_mean_what_yaml_says():
    text = "a: &a {x: 1, y: [2, 3]}\nb: {<<: *a, x: 4}\nc: [*a, *a]\nd: {<<: [{x: 5}, *a]}\n'<<': z"
    wanted = yaml.safe_load(text.replace("'<<': z", ""))
    read = read_yaml(text)
    assert read.pop("<<") == "z"
    assert _numbered(read) == wanted
    read["c"][0]["y"].append("5")
    assert "5" not in read["a"]["y"], "an alias shares nothing that an override might change"


def _numbered(value):
    if isinstance(value, dict):
        return {key: _numbered(own) for key, own in value.items()}
    return [_numbered(own) for own in value] if isinstance(value, list) else int(value)


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path, monkeypatch, fastlg, image_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTLG_CACHE", "cache")
    text = GOOD.replace("images", str(image_folder)).replace("\n", "\r\n")
    (tmp_path / "own.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    status, out, err = fastlg("train", "own.yaml", "--dry-run", "optim.warmup_epochs=0")
    assert status == 0 and "dry run" in out, err
