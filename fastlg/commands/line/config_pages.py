"""``fastlg configs`` and ``fastlg config``: which configs there are, what they resolve to, what every key means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fastlg.config import Config, load_config, shipped_configs
from fastlg.config.reference import REQUIRED, Part, markdown, parts
from fastlg.config.yaml_text import write_yaml
from fastlg.errors import UserError, brief
from fastlg.ranks.say import say


def list_configs(text: str = "") -> None:
    """Shipped configs with ``text`` in their name or line. Raises UserError where there is none."""
    rows = [(name, expected(name), title(path)) for name, path in shipped_configs().items()]
    rows = [row for row in rows if text.casefold() in f"{row[0]} {row[2]}".casefold()]
    if not rows:
        raise UserError(f"no shipped config has {brief(text)} in its name or line; fastlg configs lists all")
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, number, line in rows:
        say(f"{name:{first}}  {number:>{second}}  {line}")
    say(f"{len(rows)} configs, with the published top-1; fastlg config NAME shows one, with --keys what its keys mean")


def title(path: Path) -> str:
    """The first line of a config's header."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def expected(name: str) -> str:
    """The published top-1 that a shipped config is to reach; "-" where none is."""
    published = [row.top1 for row in load_config(name).paper_rows if row.top1 is not None]
    header = re.search(r"^# Expected top-1[^:]*: ([0-9.]+) %", shipped_configs()[name].read_text("utf-8"), re.MULTILINE)
    number = published[0] if published else float(header[1]) if header else None
    return "-" if number is None else f"{number:.2f} %"


def show_config(name: str, overrides: Sequence[str]) -> None:
    """A config as YAML with all that it leaves to defaults; what is printed is a config itself."""
    for line in write_yaml(load_config(name, overrides).model_dump(mode="json")).splitlines():
        say(line)


def show_keys(name: str | None, overrides: Sequence[str]) -> None:
    """Every key with what it is in a config (without one: its default), what it takes and what it means."""
    config = load_config(name, overrides) if name is not None else None
    for part in parts():
        say("")
        say(f"{part.name}: {part.meaning}")
        for line in _lines(part, config):
            say(f"  {line}")


def _lines(part: Part, config: Config | None) -> list[str]:
    tree = config.model_dump(mode="json")[part.name] if config is not None else None
    lines = []
    for key in part.keys:
        value = f" = {_on_line(tree[key.name.partition('.')[2]])}" if isinstance(tree, dict) else ""
        default = key.default if key.default == REQUIRED else f"default {key.default}"
        lines.append(f"{key.name}{value} ({key.takes}; {default}) {key.meaning}")
    return lines


def _on_line(value: object) -> str:
    """As it can be given on the command line."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def show_page() -> None:
    """docs/configuration.md."""
    for line in markdown().splitlines():
        say(line)
