"""Every command that a page shows, and how each program's own parser reads it.

A command is a line of a code block without a language (or of ``bash``), a line of an indented block, or code in a
sentence that begins with a program's name. Blocks that hold no commands say which language they are (``text``).
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "kernels" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
STANDS_FOR = {  # words of the pages that a reader replaces
    "CONFIG": "quickstart",
    "NAME": "quickstart",
    "RUN": "runs/mine",
    "OUT": "out",
    "FOLDER": "folder",
    "COPY": "copy",
    "TABLE": "table7",
    "OLD.json": "old.json",
    "N": "1",
    "NODE0": "node0",
    "NODE0:29400": "node0:29400",
}


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command on a page, in its order, without comments; what words stand for put in."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = [(at.start(), line) for at in FENCE.finditer(text) if at[1] in ("", "bash") for line in _lines(at[2])]
    prose = FENCE.sub(lambda at: re.sub(r"[^\n]", " ", at[0]), text)
    found += [(at.start(), at[1]) for at in re.finditer(r"(?<=\n\n) {4}(\S.*(?:\n {4}.*)*)", prose)]
    spans = ((at.start(), at[1].split()) for at in SPAN.finditer(prose))
    found += [(start, " ".join(words)) for start, words in spans if words and _is_command(words)]
    for _, line in sorted(found, key=lambda own: own[0]):
        for part in line.splitlines():
            if words := shlex.split(part, comments=True):
                yield [STANDS_FOR.get(word, word) for word in words if word != "..."]


def _is_command(words: list[str]) -> bool:
    program = _program(words[0])
    return words[0].endswith(".sh") if program == "scripts" else program in PARSERS and len(words) > 1


def _lines(block: str) -> list[str]:
    return re.sub(r" *\\\n *", " ", block).splitlines()


def _program(word: str) -> str:
    return "scripts" if word.startswith("scripts/") else word.removeprefix(".venv/bin/")


class Read(Exception):
    """An argparse parser has read its command line, and the script goes no further."""


def read(words: Sequence[str]) -> None:
    """Raises (AssertionError, SystemExit, a parser's own error) for a command that its program would not read."""
    program, arguments = _program(words[0]), list(words[1:])
    assert program in PARSERS, f"{words[0]} is a program that no test knows how to read"
    if program == "scripts":
        arguments = list(words)
    PARSERS[program](arguments)


def read_fastlg(arguments: list[str]) -> None:
    from fastlg.cli import app

    group = typer.main.get_command(app)
    if arguments[0].startswith("--"):
        options = group.get_params(typer.Context(group))  # with --help
        assert any(arguments[0] in option.opts for option in options), arguments
        return
    assert arguments[0] in group.commands, f"fastlg has no command {arguments[0]}"
    if arguments[1:]:
        read_config(group.commands[arguments[0]].make_context(arguments[0], arguments[1:]).params)


def read_config(given: dict) -> None:
    """The config that a command names, with its overrides, where it is shipped."""
    from fastlg.config import load_config, parse_overrides, shipped_configs

    config, overrides = given.get("config"), given.get("overrides") or []
    if config is None or config.endswith(".yaml"):
        parse_overrides(overrides)
    elif "settings" in given:  # of a sweep: a key has several values
        assert config in shipped_configs(), config
    else:
        load_config(config, overrides)


def read_make(arguments: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, is_variable, _ = word.partition("=")
        wanted = rf"\$\({name}\)|\$\(if \$\({name}\)" if is_variable else rf"^{re.escape(name)}:"
        assert name == ".venv/.ready" or re.search(wanted, text, re.MULTILINE), f"the Makefile has no {word}"


def read_pip(arguments: list[str]) -> None:
    from pip._internal.commands import create_command

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    _, named = create_command(arguments[0]).parse_args(arguments[1:])
    for what in named:
        own = re.fullmatch(r"(?:fastlg|\.)\[(.*)\]", what)
        assert not own or set(own[1].split(",")) <= set(extras), f"there is no extra {own[1]}"
        assert not what.startswith("./") or (ROOT / what / "pyproject.toml").is_file(), what


def read_python(arguments: list[str]) -> None:
    """A script of ours: its own argparse parser, as the script makes it; one without takes no arguments."""
    if arguments[:2] == ["-m", "fastlg"]:
        return read_fastlg(arguments[2:])
    path = ROOT / arguments[0]
    assert path.is_file(), f"{arguments[0]} is not there"
    if "argparse" not in path.read_text(encoding="utf-8"):
        assert arguments[1:] == [], f"{arguments[0]} takes no arguments"
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", [str(path), *arguments[1:]])
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, _and_no_further(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(Read):
            runpy.run_path(str(path), run_name="__main__")


def _and_no_further(parse: Callable) -> Callable:
    def reading(parser: argparse.ArgumentParser, *given) -> None:
        parse(parser, *given)
        raise Read

    return reading


def read_scripts(arguments: list[str]) -> None:
    path = ROOT / arguments[0]
    assert path.stat().st_mode & 0o100, f"{path} cannot be run"
    subprocess.run(["bash", "-n", str(path)], check=True)
    if path.name == "gpu.sh":
        read_python(["benchmarks/gpu_stages.py", *arguments[1:]])
    elif path.name == "slurm.sbatch":
        read_fastlg(["train", *arguments[1:]])
    else:
        assert arguments[1:] == [], f"{arguments[0]} takes no arguments"


def read_sbatch(arguments: list[str]) -> None:
    script = next(index for index, word in enumerate(arguments) if not word.startswith("-"))
    assert (ROOT / arguments[script]).is_file(), arguments[script]
    if arguments[script] == "scripts/slurm.sbatch":
        read_fastlg(["train", *arguments[script + 1 :]])


def read_torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    found = get_args_parser().parse_args(arguments)
    read_python([*(["-m"] if found.module else []), found.training_script, *found.training_script_args])


def read_deepspeed(arguments: list[str]) -> None:
    runner = pytest.importorskip("deepspeed.launcher.runner", reason="DeepSpeed is not installed")
    found = runner.parse_args(arguments + ([] if "fastlg" in arguments else ["--module", "fastlg", "doctor"]))
    read_python([*(["-m"] if found.module else []), found.user_script, *found.user_args])


DOCKER = {  # subcommand -> option -> whether a value follows it
    "build": {"-t": True, "--build-arg": True},
    "run": {"--rm": False, "--gpus": True, "--ipc": True, "-v": True, "--shm-size": True, "--user": True},
    "stop": {"--time": True},
}


def read_docker(arguments: list[str]) -> None:
    known, rest = DOCKER[arguments[0]], arguments[1:]
    file = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        assert option in known, f"docker {arguments[0]} has no {option}"
        value = rest.pop(0) if known[option] else ""
        if option == "--build-arg":
            assert f"ARG {value.partition('=')[0]}" in file, value
    if arguments[0] == "run" and rest[1:]:
        read(rest[1:])


def read_jupyter(arguments: list[str]) -> None:
    options = {"lab": [], "nbconvert": ["--clear-output", "--inplace"]}[arguments[0]]
    assert arguments[1:-1] == options and (ROOT / arguments[-1]).is_file(), arguments


PARSERS: dict[str, Callable[[list[str]], None]] = {
    "fastlg": read_fastlg,
    "make": read_make,
    "pip": read_pip,
    "python": read_python,
    "scripts": read_scripts,
    "sbatch": read_sbatch,
    "torchrun": read_torchrun,
    "deepspeed": read_deepspeed,
    "docker": read_docker,
    "jupyter": read_jupyter,
}
