"""Which configs there are, what one resolves to, what every key means: shown, written down, completed by a shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused

from fastlg import __version__
from fastlg.config import Config, load_config, parse_overrides, shipped_configs
from fastlg.config.reference import REQUIRED, keys, parts
from fastlg.config.refusals import dotted_names
from fastlg.config.whole import laid_over

ROOT = Path(__file__).resolve().parents[4]
PAGE = ROOT / "docs" / "configuration.md"
HANG_S = 600


def test_every_key_of_a_config_is_told_with_a_meaning_and_the_default_that_it_has():
    sections = {name for name in dotted_names(Config) if "." not in name}
    assert [key.name for key in keys()] == [name for name in dotted_names(Config) if name not in sections]
    assert {part.name for part in parts()} == sections and all(part.meaning for part in parts())
    assert [key.name for key in keys() if not key.meaning] == [], "a comment behind the field says what it is"
    least = {"data.source": "x", "model.name": "x", "teacher.recipe": "x", "paper.table": 1, "paper.row": "x"}
    assert {key.name for key in keys() if key.default == REQUIRED} == set(least)
    base = load_config("quickstart", [f"{name}={value}" for name, value in least.items()])
    for key in keys():
        if key.default != REQUIRED:  # what is shown can be typed, and is what a field that is left out has
            section, _, field = key.name.partition(".")
            given = parse_overrides([f"{key.name}={key.default}", *(["teacher=null"] * (section == "pretrain"))])
            read = getattr(laid_over(base.model_dump(mode="json"), given, "a test"), section)
            assert getattr(read, field) == type(read).model_fields[field].default


def test_words_among_what_a_key_takes_are_those_of_its_type():
    known = {key.name: key for key in keys()}
    assert known["optim.name"].choices == ("adamw", "sgd", "muon")
    assert known["data.download"].choices == ("true", "false") and known["data.store"].choices == ("null",)
    assert known["engine.compile"].choices == ("true", "false", "auto") and known["optim.min_lr"].choices == ()
    assert known["model.blocks"].choices == known["optim.lr"].choices == ("auto",)
    assert known["engine.zero_stage"].choices == ("0", "1", "2", "3")


def test_the_page_of_all_keys_is_current(fastlg):
    status, out, _ = fastlg("config", "--keys", "--markdown")
    assert status == 0
    assert PAGE.read_text("utf-8") == out, f"fastlg config --keys --markdown > {PAGE.relative_to(ROOT)}"


def test_what_a_config_resolves_to_is_a_config_that_means_the_same(fastlg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = fastlg("config", "cifar100/deit_tiny_cached", "optim.epochs=7", "model.args.x='0x10'")
    assert status == 0, err
    Path("own.yaml").write_text(out)
    whole = load_config("cifar100/deit_tiny_cached", ["optim.epochs=7", "model.args.x='0x10'"])
    assert load_config("own.yaml") == whole and "epochs: 7" in out


def test_the_keys_of_a_config_are_shown_with_what_they_are_there(fastlg):
    status, out, err = fastlg("config", "quickstart", "--keys", "optim.lr=0.25")
    assert status == 0, err
    told = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert told.keys() == {key.name for key in keys()}
    assert "optim.lr = 0.25 (a number greater than 0 or auto; default 0.0005)" in told["optim.lr"]
    assert "model.args = {" in told["model.args"] and "data.source = demo:mnist5k" in told["data.source"]
    assert " = " not in told["paper.table"], "the quickstart repeats no row"


def test_all_shipped_configs_are_listed_with_a_line_and_the_number_they_expect(fastlg):
    status, out, err = fastlg("configs")
    assert status == 0, err
    lines = {line.split()[0]: line for line in out.splitlines()[:-1]}
    assert lines.keys() == shipped_configs().keys()
    for name, path in shipped_configs().items():
        assert path.read_text().splitlines()[0].lstrip("# ") in lines[name]
    assert " 78.15 %  DeiT-Ti" in lines["cifar100/deit_tiny"] and re.search(r"^quickstart +-  ", lines["quickstart"])
    status, out, _ = fastlg("configs", "CHAOYANG")
    assert status == 0 and all("chaoyang" in line.lower() for line in out.splitlines()[:-1]) and "14 configs" in out


def test_the_version_is_one_line_and_imports_nothing(fastlg):
    assert fastlg("--version") == (0, f"fastlg {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("config",), ["name of one", "fastlg configs"]),
        (("config", "nosuch"), ["config 'nosuch'", "shipped configs"]),
        (("config", "quickstart", "optim.epoch=3"), ["did you mean optim.epochs?"]),
        (("config", "quickstart", "--markdown"), ["fastlg config --keys --markdown"]),
        (("configs", "zzz"), ["no shipped config has zzz"]),
    ],
)
def test_a_config_that_cannot_be_shown_is_one_line(fastlg, arguments, words):
    refused(fastlg(*arguments), *words)


def test_the_help_of_train_names_keys_that_exist_and_where_the_others_are(fastlg):
    status, out, _ = fastlg("train", "--help")
    assert status == 0
    text = " ".join(out.split())
    named = set(re.findall(r"\b([a-z]+\.[a-z_]+)\b", text)) & set(dotted_names(Config))
    assert len(named) >= 5 and "fastlg config --keys" in text and "fastlg configs" in text


COMPLETED = {
    # words on the line, the last of them unfinished: what bash is handed
    "fastlg tra": ["train"],
    "fastlg train cifar100/deit_tiny_": [f"cifar100/deit_tiny_{word}" for word in ("cached", "fast", "paper")],
    "fastlg config quick": ["quickstart", "quickstart_teacher"],
    "fastlg train quickstart gu": [f"{key.name}=" for key in keys() if key.name.startswith("guidance.")],
    "fastlg train quickstart run.seed=1 optim.e": ["optim.epochs=", "optim.ema="],
    "fastlg compare quickstart optim.epo": ["optim.epochs=", "optim.epochs=auto"],
    "fastlg train quickstart optim.na": ["optim.name=adamw", "optim.name=sgd", "optim.name=muon"],
    "fastlg train quickstart optim.name=s": ["sgd"],  # bash parts words at the sign
    "fastlg train quickstart data.download=": ["true", "false"],
    "fastlg models sl_vit": ["sl_vit_patch4_32", "sl_vit_patch8_64"],
    "fastlg train quickstart model.name=deit_tiny_d": ["deit_tiny_distilled_patch16_224"],
    "fastlg train quickstart nosuch.k": [],
    "fastlg train ./own": [],  # so that the shell completes files
    "fastlg train quickstart --dry": ["--dry-run"],
}  # fmt: skip


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """Every line in one bash that has sourced what ``--show-completion`` prints: line -> COMPREPLY."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    folder = tmp_path_factory.mktemp("bin")
    (folder / "fastlg").write_text(f"#!{sys.executable}\nfrom fastlg.cli import main\nmain()\n")
    (folder / "fastlg").chmod(0o755)
    script = [
        'source <(_FASTLG_COMPLETE=source_bash fastlg)',
        "complete -p fastlg >&2 || exit 1",
        "ask() { shift; COMPREPLY=(); _fastlg_completion fastlg; printf '%s|' \"${COMPREPLY[@]}\"; echo; }",
    ]  # fmt: skip
    for line in COMPLETED:
        words = re.findall(r"=|[^\s=]+", line)  # as COMP_WORDBREAKS parts them
        quoted = " ".join(f"'{word}'" for word in words)
        script.append(f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; ask x")
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [bash, "--norc", "-c", "\n".join(script)], capture_output=True, text=True, env=environment, timeout=HANG_S
    )
    assert result.returncode == 0, result.stderr
    replies = [[word for word in line.split("|") if word] for line in result.stdout.splitlines()]
    return dict(zip(COMPLETED, replies, strict=True))


@pytest.mark.parametrize("line", COMPLETED)
def test_bash_completes_commands_configs_keys_and_their_words(line, completed):
    assert completed[line] == COMPLETED[line]
