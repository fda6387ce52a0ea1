"""Configs on disk: found by path or name, read, and written whole."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastlg.config.keys import assign
from fastlg.config.overrides import parse_overrides
from fastlg.config.sections import scheme_of
from fastlg.config.whole import Config, laid_over, validated
from fastlg.config.yaml_text import LONGEST, read_yaml, write_yaml
from fastlg.errors import UserError, brief
from fastlg.files.atomic import write_whole
from fastlg.files.kinds import refused_as
from fastlg.files.reading import is_file, read_text, what_is

EXTENDS = "extends"  # the key that names a base
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
    if (found := _shipped(path)) is not None:
        return found
    known = list(shipped_configs())
    try:
        kind = what_is(path)
    except OSError as error:
        raise UserError(f"config '{brief(name, PATH)}' cannot be read: {error.strerror}; give a YAML file") from None
    if kind:
        raise UserError(f"config '{brief(name, PATH)}' is {kind}; {_instead_of(path, kind)}")
    if scheme_of(name):
        raise UserError(f"config '{brief(name, PATH)}' is a source of images; {_beside_a_config(name)}")
    there = _configs_beside(path)
    near = difflib.get_close_matches(str(_stem(path))[:200].removesuffix(".yaml"), known, n=1, cutoff=0.4)
    near = difflib.get_close_matches(f"{path.with_suffix('')}.yaml"[:200], there, n=1, cutoff=0.7) or near
    beside = f"; files there: {', '.join(there[:5])}{' ...' if len(there) > 5 else ''}" if there else ""
    hint = f"did you mean {near[0]}?" if near else f"shipped configs: {_listed(known)}{beside}"
    raise UserError(f"config '{brief(name, PATH)}' is neither a file nor a shipped config; {hint}")


def shipped_configs() -> dict[str, Path]:
    """Name -> file of every shipped config."""
    found = {}
    for folder in reversed(config_folders()):
        found |= {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*.yaml"))}
    return found


def _stem(path: Path) -> Path:
    return Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path


def _shipped(path: Path) -> Path | None:
    candidates = (folder / name for folder in config_folders() for name in (_stem(path), f"{_stem(path)}.yaml"))
    return next((candidate for candidate in candidates if is_file(candidate)), None)


def _listed(known: Sequence[str]) -> str:
    """Shipped configs by folder: the upper ones by name, how many are in each of the others."""
    folders: dict[str, list[str]] = {}
    for name in known:
        folder, _, own = name.rpartition("/")
        folders.setdefault(folder, []).append(own)
    upper, lower = [], []
    for folder, own in sorted(folders.items(), key=lambda pair: (pair[0].count("/"), pair[0] != "")):
        if "/" in folder:
            lower.append(f"{folder}/ ({len(own)})")
        else:
            upper.append(
                ", ".join(f"{folder}/{name}" if folder else name for name in own[:6]) + " ..." * (len(own) > 6)
            )
    return ", ".join([*upper, *lower]) or "none"


def _configs_beside(path: Path) -> list[str]:
    """The YAML files in the folder where ``path`` was looked for."""
    try:
        return sorted(str(own) for own in path.parent.iterdir() if own.suffix in (".yaml", ".yml"))
    except (OSError, ValueError):
        return []


def _instead_of(path: Path, kind: str) -> str:
    """What to give instead of a path that is no file."""
    if is_file(path / "config.yaml"):
        return f"give the config of the run that it holds, {brief(path / 'config.yaml', PATH)}"
    beside = f"; {_beside_a_config(path)}" if kind == "a folder" and path.name else ""
    return f"give a YAML file or a shipped config's name{beside}"


def _beside_a_config(images: object) -> str:
    """How images are given, for who gave them as the config."""
    return f"images go beside a config: fastlg train CONFIG data.source={brief(images, PATH)}"


def load_config(
    name: str, overrides: Sequence[str] = (), *, recipe: Mapping[str, Any] | None = None, of: str = ""
) -> Config:
    """Reads a YAML config, applies ``section.key=value`` overrides, validates. Raises UserError, one line.

    recipe  dotted keys in the place of what the file states; the overrides win
    of      what messages call it: they blame the overrides, or the file and this
    """
    path = find_config(name)
    tree, where = _whole_tree(path)
    for key, value in (recipe or {}).items():
        assign(tree, key, value)
    where = f"{where} by {of}" if of else where
    texts = {key: override for override in overrides for key in parse_overrides([override])}
    config = laid_over(tree, parse_overrides(overrides), where, texts=texts)
    if not config.run.name:
        config = config.replace({"run.name": path.stem})
    return config


def _whole_tree(path: Path) -> tuple[dict, str]:
    """(what the file states, laid over what the config that it ``extends`` states; where that is, for messages)."""
    tree, where = _tree(path)
    if EXTENDS not in tree:
        return tree, where
    base = _base_of(path, tree.pop(EXTENDS))
    below, _ = _tree(base)
    if EXTENDS in below:
        again = _base_of(base, below[EXTENDS])
        reason = f"{brief(below[EXTENDS])}, which extends it" if _is_one_file(again, path) else "another one"
        fix = "a base states everything, and one level is enough"
        raise UserError(f"{where} extends {brief(base, PATH)}, which itself extends {reason}; {fix}")
    if isinstance(below.get("run"), dict):
        below["run"].pop("name", None)  # a run of its own
    below.pop("paper", None)  # whose numbers are its own
    return merged(below, tree), f"{where} (on {brief(base, PATH)})"


def merged(below: dict, tree: dict) -> dict:
    """``tree`` over ``below``, section by section; a list, a text or null replaces what was there."""
    laid = dict(below)
    for key, value in tree.items():
        both = isinstance(value, dict) and isinstance(laid.get(key), dict)
        laid[key] = merged(laid[key], value) if both else value
    return laid


def _base_of(path: Path, base: Any) -> Path:
    """The file that ``extends: BASE`` in ``path`` means: one beside it, else a shipped config."""
    where = f"{brief(path, PATH)}: {EXTENDS} is {brief(base)}"
    if not isinstance(base, str) or not base.strip():
        raise UserError(f"{where}; give the path of one YAML file, from this one's folder, or a shipped config's name")
    beside = path.parent / base
    found = beside if is_file(beside) else Path(f"{beside}.yaml")
    found = found if is_file(found) else _shipped(Path(base))
    if found is None:
        near = difflib.get_close_matches(base[:200].removesuffix(".yaml"), list(shipped_configs()), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{where}, which is neither a file in {brief(path.parent, PATH)} nor a shipped config{hint}")
    if _is_one_file(found, path):
        raise UserError(f"{where}, which is this file itself; name another one")
    return found


def _is_one_file(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _tree(path: Path) -> tuple[dict, str]:
    """(what one file states; the file, for messages)."""
    read = _read(path)
    tree = {} if read is None else read  # a file of comments alone, and overrides
    _refuse_other_than_mapping(tree, brief(path, PATH), path)
    return tree, f"{brief(path, PATH)}{' is empty' if read is None else ''}"


def read_tree(path: Path) -> dict:
    """What a file of sections states, its scalars as they were typed. Raises UserError, one line."""
    if not is_file(path):
        raise UserError(f"{brief(path, PATH)} is no file; give a YAML file of sections, as a config has them")
    return _tree(path)[0]


def save_config(config: Config, path: Path) -> None:
    """Atomically, and only when it changed: a kill or a full disk leaves the old file or the new one."""
    text = write_yaml(config.model_dump(mode="json"))
    if path.is_file() and path.read_bytes() == text.encode():
        return
    write_whole(path, text)


def read_saved_config(path: Path) -> Config:
    """A run's own config.yaml, as ``saved_config``. Raises UserError."""
    return saved_config(_read(path), brief(path, PATH))


def saved_config(tree: Any, where: str) -> Config:
    """What a run has written; fields that are newer than it mean what it trained by. Raises UserError."""
    optim = tree.get("optim") if isinstance(tree, dict) else None
    if isinstance(optim, dict) and optim.get("name") == "muon":
        tree = {**tree, "optim": {"muon_also": [], **optim}}
    return config_from(tree, where)


def config_from(tree: Any, where: str) -> Config:
    """Validates a mapping of sections. Raises UserError that begins with ``where``."""
    _refuse_other_than_mapping(tree, where)
    return validated(tree, where)


def _read(path: Path) -> Any:
    """Raises UserError, which names what is no text to be mended: images, an archive, a table, ..."""
    try:
        text = read_text(path, LONGEST)
    except ValueError as error:
        raise UserError(_foreign(path) or f"config {brief(path, PATH)} cannot be read: {error}") from None
    try:
        return read_yaml(text)
    except ValueError as error:
        raise UserError(_foreign(path) or f"{brief(path, PATH)} is not valid YAML: {error}") from None


def _refuse_other_than_mapping(tree: Any, where: str, path: Path | None = None) -> None:
    if not isinstance(tree, dict):
        kind = "text" if isinstance(tree, str) and tree else "nothing" if not tree else type(tree).__name__
        foreign = path and _foreign(path)
        raise UserError(
            foreign or f"{where} holds a {kind}; a config is a mapping of sections: data, model, optim, ..."
        )


def _foreign(path: Path) -> str:
    """The line about a file that is no config but something else that is known; "" for any other file."""
    line = refused_as(path, "a config") if is_file(path) else ""
    images = path if path.suffix.lower() in (".parquet", ".beton") else "FOLDER"
    return f"{line}; give a YAML file or a shipped config's name; {_beside_a_config(images)}" if line else ""
