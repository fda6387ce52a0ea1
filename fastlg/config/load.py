"""Configs on disk: found by path or name, read, and written whole."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastlg.config.overrides import parse_overrides
from fastlg.config.whole import Config, laid_over, validated
from fastlg.config.yaml_text import LONGEST, read_yaml, write_yaml
from fastlg.errors import UserError, brief
from fastlg.files.atomic import write_whole
from fastlg.files.reading import is_file, read_text, what_is

PATH = 200  # characters of a path that a message shows


def config_folders() -> list[Path]:
    """Where configs are looked for by name: inside an installed wheel, or beside the sources."""
    package = Path(__file__).resolve().parent.parent
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def find_config(name: str) -> Path:
    """The file a user means by ``name``: a path, or a shipped config with or without ``configs/`` and ``.yaml``."""
    path = Path(name)
    if is_file(path):
        return path
    stem = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    known = []
    for folder in config_folders():
        for candidate in (folder / stem, folder / f"{stem}.yaml"):
            if is_file(candidate):
                return candidate
        known += [str(p.relative_to(folder).with_suffix("")) for p in sorted(folder.rglob("*.yaml"))]
    try:
        kind = what_is(path)
    except OSError as error:
        raise UserError(f"config '{brief(name, PATH)}' cannot be read: {error.strerror}; give a YAML file") from None
    if kind:
        raise UserError(f"config '{brief(name, PATH)}' is {kind}; give a YAML file or a shipped config's name")
    near = difflib.get_close_matches(str(stem)[:200].removesuffix(".yaml"), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"shipped configs: {', '.join(known) or 'none'}"
    raise UserError(f"config '{brief(name, PATH)}' is neither a file nor a shipped config; {hint}")


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML config, applies ``section.key=value`` overrides, validates. Raises UserError, one line."""
    path = find_config(name)
    tree = _read(path) or {}  # a file of comments alone
    _refuse_other_than_mapping(tree, brief(path, PATH))
    texts = {key: override for override in overrides for key in parse_overrides([override])}
    config = laid_over(tree, parse_overrides(overrides), brief(path, PATH), texts=texts)
    if not config.run.name:
        config = config.replace({"run.name": path.stem})
    return config


def save_config(config: Config, path: Path) -> None:
    """Atomically, and only when it changed: a kill or a full disk leaves the old file or the new one."""
    text = write_yaml(config.model_dump(mode="json"))
    if path.is_file() and path.read_bytes() == text.encode():
        return
    write_whole(path, text)


def read_saved_config(path: Path) -> Config:
    """A run's own config.yaml; fields that are newer than it take their defaults. Raises UserError."""
    return config_from(_read(path), brief(path, PATH))


def config_from(tree: Any, where: str) -> Config:
    """Validates a mapping of sections. Raises UserError that begins with ``where``."""
    _refuse_other_than_mapping(tree, where)
    return validated(tree, where)


def _read(path: Path) -> Any:
    try:
        text = read_text(path, LONGEST)
    except ValueError as error:
        raise UserError(f"config {brief(path, PATH)} cannot be read: {error}") from None
    try:
        return read_yaml(text)
    except ValueError as error:
        raise UserError(f"{brief(path, PATH)} is not valid YAML: {error}") from None


def _refuse_other_than_mapping(tree: Any, where: str) -> None:
    if not isinstance(tree, dict):
        kind = "text" if isinstance(tree, str) and tree else "nothing" if not tree else type(tree).__name__
        raise UserError(f"{where} holds a {kind}; a config is a mapping of sections")
