"""Numbers are decimal, in files and overrides alike; another notation is refused with the decimal to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlg.config import load_config
from fastlg.config.values import number
from fastlg.errors import UserError

SMALL = "data: {source: images}\nmodel:\n  name: resnet20\n  image_size: 32\n"
KEYS = ["optim.lr", "optim.epochs", "engine.zero_stage", "engine.micro_batch_size", "model.args.x"]
NOT_DECIMAL = [
    # (as typed, what to write)
    ("0x10", "16"),
    ("0X1F", "31"),
    ("-0x10", "-16"),
    ("0o17", "15"),
    ("0b101", "5"),
    ("1_000", "1000"),
    ("+1_0", "10"),
    ("1_000.5", "1000.5"),
    ("1e1_0", "1e10"),
    ("0x_f_f", "255"),
    ("010", "10"),
    ("-007", "-7"),
    ("00", "0"),
    ("0_8", "8"),
    ("9" * 5000, "at most 64"),
    ("0." + "1" * 70, "at most 64"),
    ("1_" + "0" * 5000, "a shorter one"),
    ("0x" + "f" * 4000, "a shorter one"),
]


@pytest.mark.parametrize(("text", "write"), NOT_DECIMAL, ids=[text[:10] for text, _ in NOT_DECIMAL])
@pytest.mark.parametrize("form", ["{}", "'{}'"], ids=["plain", "quoted"])
@pytest.mark.parametrize(
    "key", ["optim.lr", "optim.epochs", "engine.zero_stage", "engine.micro_batch_size", "model.args.x"]
)
def test_a_number_that_is_not_decimal_is_refused_with_what_to_write(tmp_path, monkeypatch, key, form, text, write):
    monkeypatch.chdir(tmp_path)
    typed, small = form.format(text), "small.yaml"
    Path(small).write_text(SMALL)
    section, name, *rest = key.split(".", 2)
    tree = Path(small).read_text() + f"{section}:\n  {name}: {typed}\n"
    if rest:
        tree = Path(small).read_text().replace("model:", f"model:\n  args: {{x: {typed}}}")
    Path("own.yaml").write_text(tree)
    if form != "{}" and (key in ("model.args.x", "engine.zero_stage") or len(text) > 4000):
        return  # in quotes it is a text there
    for config, overrides, begins in (("own.yaml", [], "own.yaml: "), (small, [f"{key}={typed}"], f"override {key}=")):
        with pytest.raises(UserError) as caught:
            load_config(config, overrides)
        line = str(caught.value)
        assert line.startswith(begins) and f"{key} is " in line and write in line, line
        assert "text" not in line.replace("quotes if it is a text", "") and len(line) < 300, line


def test_every_decimal_is_a_number_and_what_is_none_stays_a_text():
    right = {"0": 0, "-0": 0, "0.5": 0.5, "00.5": 0.5, "1e05": 1e5, ".5e-1": 0.05, "5.": 5.0, " 7 ": 7}
    right |= {"9" * 18: 10**18 - 1}
    for text, value in right.items():
        assert number(text) == value and type(number(text)) is type(value), text
    for text in [
        "",
        "+",
        ".",
        "e3",
        "0x",
        "0b12",
        "0o8",
        "_1",
        "1,000",
        "1:30",
        "٣",
        "ınf",
        "1e",
        "--1",
        "1 2",
        "0x1.8",
        "1e3.5",
        "१",
    ]:
        assert number(text) is None, text
