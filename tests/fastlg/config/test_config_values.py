"""What was typed means what its field takes: a text as it is written, a number as a number, a switch as on or off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
import yaml

from fastlg.config import Config, load_config, parse_overrides, save_config
from fastlg.config.refusals import allowed, dotted_names
from fastlg.config.values import hint_of, kinds_of, section_of
from fastlg.errors import UserError

SMALL = {"data": {"source": "images"}, "model": {"name": "resnet20", "image_size": 32}}
RIGHT = [
    # (key, as typed, value): the same on the command line and in a file
    ("run.name", "2024", "2024"),
    ("run.name", "2024-05-01", "2024-05-01"),
    ("run.name", "2024-13-45", "2024-13-45"),
    ("run.name", "1e3", "1e3"),
    ("run.name", "no", "no"),
    ("run.name", "null", "null"),
    ("run.name", "0x10", "0x10"),
    ("run.name", "sweep/seed-3", "sweep/seed-3"),
    ("run.name", "007", "007"),
    ("run.name", "1_000", "1_000"),
    ("run.name", ".inf", ".inf"),
    ("run.name", "a#b", "a#b"),
    ("data.source", "~", "~"),
    ("data.source", "null", "null"),
    ("data.image_column", "1.50", "1.50"),
    ("teacher.recipe", "1e3", "1e3"),
    ("run.root", "on", Path("on")),
    ("run.root", "2024", Path("2024")),
    ("data.source", "1", "1"),
    ("data.label_column", "no", "no"),
    ("data.label_column", "y", "y"),
    ("data.label_column", "1.0", "1.0"),
    ("data.label_column", "null", None),
    ("data.label_column", "~", None),
    ("data.label_column", "", None),
    ("data.label_column", "'null'", "null"),
    ("data.label_column", '"no"', "no"),
    ("data.store", "null", None),
    ("data.store", "1", Path("1")),
    ("data.download", "no", False),
    ("data.download", "Off", False),
    ("data.download", "yes", True),
    ("data.download", "ON", True),
    ("data.download", "false", False),
    ("engine.compile", "auto", "auto"),
    ("engine.compile", "off", False),
    ("engine.compile", "True", True),
    ("engine.zero_stage", "2", 2),
    ("engine.micro_batch_size", "null", None),
    ("engine.micro_batch_size", "16", 16),
    ("guidance.logits", "none", "none"),
    ("optim.lr", "1e-1", 0.1),
    ("optim.lr", "1E-1", 0.1),
    ("optim.lr", ".5", 0.5),
    ("optim.lr", "5.", 5.0),
    ("optim.lr", "+2", 2.0),
    ("optim.epochs", "1e3", 1000),
    ("optim.epochs", "16.0", 16),
    ("optim.epochs", "'3'", 3),
    ("optim.betas", "[.5, 9e-1]", (0.5, 0.9)),
    ("augment.rand_augment", "null", None),
    ("augment.rand_augment", "no", "no"),
    ("model.blocks", "[0, 2]", [0, 2]),
    ("model.blocks", "auto", "auto"),
    ("model.args.attn_drop_rate", "1e-1", 0.1),
    ("model.args.depth", "3", 3),
    ("model.args.qkv_bias", "no", False),
    ("model.args.act_layer", "gelu", "gelu"),
    ("model.args.act_layer", "2024-05-01", "2024-05-01"),
    ("model.args.act_layer", "'1e-1'", "1e-1"),
    ("model.args.act_layer", "null", None),
    ("model.args.depths", "[2, 2]", [2, 2]),
]
TYPED_ALONE = [  # YAML's own signs, which on the command line are letters like others
    ("data.source", "dir #2", "dir #2"),
    ("data.source", "a: b", "a: b"),
    ("data.source", "- x", "- x"),
    ("data.source", "[train]", "[train]"),
    ("data.source", "{x}", "{x}"),
    ("data.source", "*", "*"),
    ("data.source", "&a", "&a"),
    ("data.source", "!x", "!x"),
    ("data.source", "%x", "%x"),
    ("data.source", "'it' and 'that'", "'it' and 'that'"),
    ("data.source", "it's", "it's"),
    ("data.source", '"', '"'),
    ("data.source", " x ", " x "),
    ("data.source", "x=y", "x=y"),
    ("data.source", "a\nb\x1b", "a\nb\x1b"),
    ("data.source", "größe/猫", "größe/猫"),
    ("run.name", "run: #1", "run: #1"),
    ("model.args.act_layer", "a: b #c", "a: b #c"),
    ("model.args.act_layer", "*gelu", "*gelu"),
]


def value_of(config: Config, key: str):
    section, name, *rest = key.split(".", 2)
    value = getattr(getattr(config, section), name)
    return value[rest[0]] if rest else value


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    return "small.yaml"


def same(value, wanted) -> bool:
    return value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(("key", "text", "wanted"), RIGHT + TYPED_ALONE)
def test_an_override_means_what_was_typed(small, key, text, wanted):
    config = load_config(small, [f"{key}={text}"])
    assert same(value_of(config, key), float(wanted) if key == "optim.lr" else wanted)
    save_config(config, Path("saved.yaml"))
    assert load_config("saved.yaml") == config


@pytest.mark.parametrize(("key", "text", "wanted"), RIGHT)
def test_a_file_means_the_same_as_an_override(small, key, text, wanted):
    """The type of the field decides; there is no Norway problem."""
    section, name, *rest = key.split(".", 2)
    tree = {own: {k: json.dumps(v) for k, v in values.items()} for own, values in SMALL.items()}
    tree.setdefault(section, {})[name] = f"{{{rest[0]}: {text}}}" if rest else text
    lines = [f"{own}:\n" + "".join(f"  {k}: {v}\n" for k, v in values.items()) for own, values in tree.items()]
    Path("own.yaml").write_text("".join(lines))
    assert same(value_of(load_config("own.yaml"), key), wanted)


def test_overrides_of_whole_sections_and_of_the_teachers_recipe_are_typed_too(small):
    given = ["data={source: 2024, label_column: no, download: no}", "teacher={recipe: 1, overrides: {run.name: no}}"]
    config = load_config(small, [*given, "teacher.overrides.data.label_column=1e3", "teacher.overrides.optim.lr=1e3"])
    assert (config.data.source, config.data.label_column, config.data.download) == ("2024", "no", False)
    assert config.teacher.recipe == "1"
    assert config.teacher.overrides == {"run.name": "no", "data.label_column": "1e3", "optim.lr": 1000.0}
    assert load_config(small, ["teacher.recipe=x", "teacher=null"]).teacher is None
    assert load_config(small, ["run.name = x", "optim.lr = 3"]).run.name == "x", "spaces around = are no part of it"


def test_a_section_whose_lines_are_commented_out_is_the_default(small):
    Path("own.yaml").write_text(Path(small).read_text() + "optim:\n  # lr: 3\nteacher:\nlog:\n")
    assert load_config("own.yaml") == load_config(small, ["run.name=own"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.epochs=010", ["override optim.epochs=010: optim.epochs is 010", "octal or not", "write 10"]),
        ("model.args.depth=010", ["model.args.depth=010", "octal or not", "quotes"]),
        ("model.args.depth=[010]", ["model.args.depth=[010]", "octal or not"]),
        ("optim.epochs=ten", ["optim.epochs is 'ten'", "an integer from 1 to 100,000"]),
        ("optim.epochs=2.5", ["optim.epochs is 2.5", "an integer"]),
        ("optim.epochs=1:30", ["optim.epochs is '1:30'", "an integer"]),
        ("optim.epochs=٣", ["optim.epochs", "an integer"]),
        ("optim.epochs=null", ["optim.epochs", "an integer"]),
        ("optim.epochs=true", ["optim.epochs", "an integer"]),
        ("optim.epochs=" + "9" * 5000, ["optim.epochs", "characters"]),
        ("optim.epochs=[3]", ["optim.epochs", "an integer"]),
        ("optim.lr=1e-1x", ["optim.lr is '1e-1x'", "a number greater than 0"]),
        ("optim.lr=1,5", ["optim.lr is '1,5'", "a number"]),
        ("optim.lr=1/10", ["optim.lr is '1/10'", "a number"]),
        ("optim.lr=", ["optim.lr is ''", "a number"]),
        ("optim.betas=0.1,0.5", ["optim.betas", "a list of 2"]),
        ("optim.lr=1 # one", ["optim.lr is '1 # one'", "a number"]),
        ("data.download=maybe", ["data.download is 'maybe'", "true or false"]),
        ("engine.compile=maybe", ["engine.compile is 'maybe'", "true or false or auto"]),
        ("engine.zero_stage=4", ["engine.zero_stage is 4", "one of 0, 1, 2, 3"]),
        ("data.on_bad=no", ["data.on_bad is 'no'", "one of fail, skip"]),
        ("model.args.x=[a", ["model.args.x=[a", "quote it", "'model.args.x=\"[a\"'"]),
        ("model.args.x={a: b", ["quote it", "'model.args.x=\"{a: b\"'"]),
        ("model.args.x='a' b'", ["quote it"]),
        ("model.args={a: 1, a: 2}", ["twice"]),
        ("model.args=" + "[" * 3000, ["20 levels"]),
        ("model.args.x=" + "x" * 70_000, ["too long"]),
        ("model.args.x=" + "x" * 5_000, ["model.args.x", "4,096"]),
        ("model.args.x\x1b[31m=[", ["model.args.x\\x1b[31m"]),
        ("optim=3", ["optim is '3'", "a section with"]),
        ("data.source=", ["data.source is ''", "a text"]),
        ("=3", ["section.key=value"]),
        ("optim.lr", ["section.key=value"]),
        ("optim.lr.x=3", ["optim.lr", "number"]),
        ("data.sauce=x", ["unknown key data.sauce", "did you mean data.source"]),
        ("x" * 5000 + "=1", ["unknown key xxx", "(5,000 characters)"]),
    ],
    ids=lambda value: ascii(value[:40]) if isinstance(value, str) else "",
)
def test_what_cannot_be_read_says_what_to_write(small, override, words):
    with pytest.raises(UserError) as caught:
        load_config(small, [override])
    line = str(caught.value)
    assert line.isprintable() and len(line) < 700, line
    for word in words:
        assert word in line, line


def test_parsed_overrides_of_keys_that_are_not_known_are_guessed():
    parsed = parse_overrides(["a.b=[1, 2]", "c=null", "d=x=y", "e=no", "f=1e-1", "g=0x1"])
    assert parsed == {"a.b": [1, 2], "c": None, "d": "x=y", "e": False, "f": 0.1, "g": "0x1"}


# ---- ranges, by the model itself: no field can be forgotten


def numeric_fields() -> list[str]:
    return [name for name in dotted_names(Config) if _numbers(hint_of(Config, name))]


def _numbers(annotation) -> list:
    """The number types in an annotation, each with its constraints."""
    if annotation in (int, float):
        return [annotation]
    if get_origin(annotation) is Annotated and kinds_of(annotation)[0] in (int, float):
        return [annotation]
    if section_of(annotation) is not None:
        return []
    return [number for own in get_args(annotation) for number in _numbers(own)]


def _base(annotation):
    return kinds_of(annotation)[0]


def _spelled(key: str, number: str) -> str:
    """The override that puts a number where a field, or the list that it is, takes one."""
    kinds = [get_origin(kind) for kind in kinds_of(hint_of(Config, key))]
    if list in kinds or tuple in kinds:
        length = next((len(get_args(kind)) for kind in kinds_of(hint_of(Config, key)) if get_origin(kind) is tuple), 1)
        return f"{key}=[{', '.join([number] * length)}]"
    return f"{key}={number}"


def test_there_are_numeric_fields():
    assert {"optim.lr", "data.workers", "engine.timeout_s", "augment.mean", "model.blocks"} <= set(numeric_fields())
    assert len(numeric_fields()) > 30


@pytest.mark.parametrize("number", [".nan", "nan", ".inf", "-.inf", "inf", "1e999", "-1e999", "'nan'", "'inf'"])
@pytest.mark.parametrize("key", [*numeric_fields(), "model.args.x", "teacher.overrides.optim.lr"])
def test_no_field_takes_a_number_that_is_not_finite(small, key, number):
    if key not in numeric_fields() and number.startswith("'"):
        return  # a text, where texts may be
    with pytest.raises(UserError, match=rf"^override {key}=.*: {key}"):
        load_config(small, ["teacher.recipe=x", _spelled(key, number)])


@pytest.mark.parametrize("key", [key for key in numeric_fields() if int in map(_base, _numbers(hint_of(Config, key)))])
@pytest.mark.parametrize("number", ["1e9", "1000000001", "-1", str(2**63), str(-(2**63)), "9" * 400])
def test_every_integer_has_a_range_that_its_refusal_names(small, key, number):
    if key == "run.seed" and number.startswith("1"):
        return
    if key.startswith("log.") and "steps" in key and number == "1e9":
        return
    with pytest.raises(UserError, match=rf"^override {key}=.*: {key}") as caught:
        load_config(small, ["teacher.recipe=x", _spelled(key, number)])
    assert len(number) > 18 or allowed(hint_of(Config, key)) in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["augment.crop_scale=[0.5, 1.5]"], ["augment.crop_scale is [0.5, 1.5]", "at most 1"]),
        (["augment.crop_scale=[1, 0.5]"], ["augment.crop_scale", "the smaller number comes first"]),
        (["augment.crop_ratio=[2, 0.5]"], ["augment.crop_ratio", "the smaller number comes first"]),
        (["augment.crop_ratio=[1e-300, 1]"], ["augment.crop_ratio", "from 0.01 to 100"]),
        (["augment.crop_scale=[0.5]"], ["augment.crop_scale", "a list of 2"]),
        (["augment.std=[1e-300, 1, 1]"], ["augment.std", "from 0.001 to 1"]),
        (["augment.mean=[120, 120, 120]"], ["augment.mean", "from 0 to 1"]),
        (["engine.timeout_s=1e30"], ["engine.timeout_s is 1e+30", "from 1 to 86,400"]),
        (["engine.timeout_s=1e-9"], ["engine.timeout_s", "from 1 to 86,400"]),
        (["model.blocks=[1, 1]"], ["model.blocks is [1, 1]", "once"]),
        (["model.blocks=[0]", "teacher.recipe=x", "teacher.stages=[]"], ["teacher.stages", "[]"]),
        (["optim.lr=1e-6"], ["optim.min_lr is 5e-06", "optim.min_lr=0"]),
        (["engine.kind=plain", "engine.zero_stage=1"], ["engine.zero_stage", "engine.kind=deepspeed"]),
        (["engine.kind=plain", "engine.deepspeed_config=x"], ["engine.deepspeed_config", "engine.kind=deepspeed"]),
        (["guidance.impl=triton", "guidance.transform=attention"], ["guidance.impl", "attention", "auto"]),
        (
            ["teacher.recipe=x", "teacher.mode=cache", "teacher.cache_augment=all", "teacher.cache_form=compact"]
            + ["guidance.transform=attention"],
            ["guidance.transform attention", "teacher.cache_form=maps"],
        ),
        (["run.name=../x"], ["run.name is '../x'", "run.root"]),
        (["run.name=a/../../x"], ["run.name", "run.root"]),
        (["run.name=/etc"], ["run.name", "run.root"]),
        (["run.name=a/"], ["run.name", "run.root"]),
        (["run.name=a//b"], ["run.name", "run.root"]),
        (["run.name=."], ["run.name", "run.root"]),
        (["run.name=" + "x" * 256], ["run.name", "(256", "255 bytes"]),
        (["run.name=" + "é" * 128], ["run.name", "255 bytes"]),
        (["run.name=a\0b"], ["run.name is a\\x00b", "NUL"]),
        (["run.root="], ["run.root is ''", "."]),
        (["run.root=~nouser/x"], ["run.root", "~nouser"]),
        (["run.root=" + "x" * 256], ["run.root", "255 bytes"]),
        (["run.root=" + "x/" * 2040], ["run.root", "4,000 bytes"]),
        (["run.root=" + "x/" * 3000], ["run.root", "4,096 characters"]),
        (["run.root=a\0b"], ["run.root", "NUL"]),
        (["run.root=a\udce9b"], ["run.root", "UTF-8"]),
        (["data.source=a\udce9b"], ["data.source is a\\udce9b", "UTF-8"]),
        (["data.source=~nouser/x"], ["data.source", "~nouser"]),
        (["teacher.recipe=~nouser/x"], ["teacher.recipe", "~nouser"]),
        (["data.store=~nouser"], ["data.store", "~nouser"]),
    ],
    ids=lambda value: ascii(" ".join(value))[:50],
)
def test_what_no_run_can_have_is_refused_with_its_range(small, overrides, words):
    with pytest.raises(UserError) as caught:
        load_config(small, overrides)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 500, ascii(line)
    for word in words:
        assert word in line, line


def test_python_values_go_the_same_way(small):
    config = load_config(small)
    for value in (math.nan, math.inf, 10**400, {1, 2}, b"x", object(), {"a": math.nan}, [[[math.inf]]], {1: 2}):
        with pytest.raises(UserError, match=r"model\.args"):
            config.replace({"model.args": {"x": value}})
    endless: list = []
    endless.append(endless)
    with pytest.raises(UserError, match="20 levels"):
        config.replace({"model.args": {"x": endless}})


def test_the_home_folder_is_meant_by_a_tilde(small, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    config = load_config(small, ["run.root=~/runs", "data.store=~/s", "run.name=~x"])
    assert (config.run.root, config.data.store) == (Path("/home/of/somebody/runs"), Path("/home/of/somebody/s"))
    assert config.run_dir == Path("/home/of/somebody/runs/~x")


@pytest.mark.parametrize("name", ["my set #2", "a: b", "2024", "no", "1e3", "[x]", "~", "null", " led by a space"])
def test_the_folder_that_is_named_is_read_and_not_another(project, fastlg, image_folder, name):
    for place in (name, "my set", "a", "x"):  # what a part of the name would lead to
        (project / place).symlink_to(image_folder)
    status, out, err = fastlg("train", "student.yaml", f"data.source=./{name}", "teacher=null", "--dry-run")
    assert status == 0 and f"data     ./{name}: 78 train, 33 test, 3 classes" in out, (out, err)
    (project / name).unlink()
    status, _, err = fastlg("train", "student.yaml", f"data.source=./{name}", "teacher=null", "--dry-run")
    assert status == 2 and f"data.source=./{name}: no such file or folder" in err and len(err.splitlines()) == 1, err
