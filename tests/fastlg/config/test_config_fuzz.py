"""Whatever is written into a config or after an equals sign: a config that means the same again, or one line."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlg.config import Config, dotted, load_config, save_config
from fastlg.config.refusals import dotted_names
from fastlg.errors import UserError, printable

SMALL = {"data": {"source": "images"}, "model": {"name": "resnet20", "image_size": 32}}
KEYS = st.sampled_from([*dotted_names(Config), "model.args.depth", "model.args.a.b", "teacher.overrides.optim.lr", "x"])
SPELLINGS = r"""
null ~ no yes on off true false auto none 0 1 -1 1.0 .5 1e-1 1e999 -.inf .nan nan 0x10 0o17 010 1_000 2024-05-01 1:30
<< *a &a !!int '' 'no' "1 [ ] { } [1 [0.5,1] [[[[ {a:1} {a:1,a:2} {1:2} # a#b - --- ... ? | > % @ ` \
"""
WORDS = st.sampled_from(SPELLINGS.split())
TEXTS = WORDS | st.text(max_size=30) | st.text(alphabet="[]{}:,'\"#&*!|>-? \n\t\\~01e.x", max_size=30)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.dates() | st.binary(max_size=5)
    | st.sampled_from([10**30, -(10**400), "x" * 5000, "9" * 5000])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.integers(), inner, max_size=4)
)
FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path


def loaded(*arguments) -> Config | None:
    """None where it is refused as it should be; anything but a UserError fails the test."""
    try:
        return load_config(*arguments)
    except UserError as error:
        line = str(error)
        assert len(line) < 1000 and printable(line) == line, ascii(line)
        assert "pydantic" not in line and "Traceback" not in line, line
        return None


def means_the_same_again(config: Config | None, folder) -> bool:
    """Whether there was anything to compare."""
    if config is None:
        return False
    save_config(config, folder / "saved.yaml")
    again = load_config("saved.yaml")
    assert again == config
    assert again.model_dump(mode="json") == config.model_dump(mode="json")
    assert yaml.safe_load((folder / "saved.yaml").read_text()) == config.model_dump(mode="json")
    numbers = [value for value in dotted(config.model_dump()).values() if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    return True


@FUZZ
@given(key=KEYS, text=TEXTS | st.text())
def test_any_override(folder, key, text):
    means_the_same_again(loaded("small.yaml", [f"{key}={text}"]), folder)


@FUZZ
@given(key=KEYS, value=VALUES)
def test_any_value_in_a_file(folder, key, value):
    tree = {section: dict(own) for section, own in SMALL.items()}
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    (folder / "fuzzed.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
    means_the_same_again(loaded("fuzzed.yaml"), folder)


@FUZZ
@given(data=st.binary(max_size=200) | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_file(folder, data):
    (folder / "fuzzed.yaml").write_bytes(b"data: {source: x}\nmodel: {name: resnet20}\n" + data)
    means_the_same_again(loaded("fuzzed.yaml"), folder)
    (folder / "fuzzed.yaml").write_bytes(data)
    means_the_same_again(loaded("fuzzed.yaml"), folder)


@FUZZ
@given(override=st.text() | TEXTS)
def test_any_text_as_an_override(folder, override):
    means_the_same_again(loaded("small.yaml", [override]), folder)
