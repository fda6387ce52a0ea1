"""``fastlg models``: what can be a student or a teacher, how large it is, and which of its features can be guided."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import timm
import torch
from torch import nn

import fastlg.models  # noqa: F401  tells timm of the students that it lacks
from fastlg.commands.line.early import filter_of, own_names
from fastlg.config import load_config, shipped_configs
from fastlg.errors import UserError, brief, did_you_mean
from fastlg.models import Student
from fastlg.models.build import CNNS
from fastlg.models.families import family_of
from fastlg.models.general.own import is_own
from fastlg.ranks.pulse import Pulse
from fastlg.ranks.say import say

CLASSES = 100  # parameters are counted with; the paper's CIFAR-100
SIZE = 224  # px, as model.image_size is by itself
CIFAR_SIZE = 32  # of the CNNs that teach there
MOST = 20  # built for one answer, up to a second each; of more the names are listed


def list_models(pattern: str | None, image_size: int | None = None) -> None:
    """Prints the models whose name contains ``pattern``, or matches it where it has wildcards; without one those that
    the shipped configs train. Nothing takes memory but a user's own network. Raises UserError."""
    trained = _trained()
    names = sorted(trained, key=lambda name: (name in CNNS, name)) if pattern is None else matching(pattern)
    if len(names) > MOST and pattern is not None:
        say(f"{len(names)} models; a FILTER that leaves {MOST} of them tells their parameters and features")
        for name in names:
            say(f"  {name}")
        return
    names.sort(key=lambda name: name != pattern)  # the one that was asked for comes first, and is refused alone
    with Pulse(lambda: f"building {names[0]}"):
        first = described(names[0], image_size, is_asked=names[0] == pattern)
    say(f"parameters with {CLASSES} classes; features by index, for model.blocks and teacher.stages, as C x H x W")
    for place, name in enumerate(names):
        with Pulse(lambda own=name: f"building {own}"):
            line = described(name, image_size) if place else first
        say(f"  {name:<{max(map(len, names))}}  {line}")
        for line in trained.get(name, []):
            say(f"      {line}")
    if pattern is None:
        if others := sorted(own_names() - set(trained)):
            say(f"and ours, which no shipped config trains: {', '.join(others)}")
        say(f"and {len(timm.list_models())} models of timm, each a student or a teacher: fastlg models FILTER")


def matching(pattern: str) -> list[str]:
    """Names of timm and the CIFAR ResNets, or ``pattern`` itself where it is a user's ``module:function``."""
    if is_own(pattern):
        return [pattern]
    every = sorted({*timm.list_models(), *CNNS})
    names = list(filter(filter_of(pattern), every))
    if not names:
        hint = did_you_mean(pattern, every, "fastlg models vit lists some")
        raise UserError(f"no model's name contains {brief(pattern)}; {hint}")
    return names


def described(name: str, image_size: int | None = None, *, is_asked: bool = False) -> str:
    """'5,543,716   224 px   0-11: 192x14x14   walked block by block', or why it cannot be told; that is a UserError
    where this one model ``is_asked`` for."""
    sizes = [image_size] if image_size else [SIZE, _native(name)]
    for size in dict.fromkeys(sizes):
        try:
            return _line(name, size)
        except UserError as error:
            reason = str(error)
    if is_asked:
        raise UserError(reason)
    return reason


def _line(name: str, size: int) -> str:
    if name in CNNS:
        size = size if size != SIZE else CIFAR_SIZE
        with torch.device("meta"):
            model = CNNS[name](CLASSES)
            maps = model(torch.empty(1, 3, size, size))[1]
        shapes, how = [tuple(own.shape[1:]) for own in maps], "a CIFAR ResNet, the paper's kind of teacher"
    else:
        model = _student(name, size)
        model.guide(range(model.depth))
        shapes = [(dim, *grid) for dim, grid in zip(model.dims, model.grids, strict=True)]
        how = "walked block by block" if family_of(model.bare) else "as timm lists them"
        how = "your own" if is_own(name) else how
    return f"{_parameters(model):>12,}  {size:>3} px  {_ranges(shapes)}  ({how})"


def _student(name: str, size: int) -> Student:
    if is_own(name):  # their code may need numbers
        return Student(name, num_classes=CLASSES, image_size=size)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return Student(name, num_classes=CLASSES, image_size=size)


def _native(name: str) -> int:
    """Side of the images that timm's author trained it on."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return config.input_size[-1] if config is not None else SIZE


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _ranges(shapes: Sequence[tuple[int, int, int]]) -> str:
    """'0-11: 192x14x14', neighbours of one shape joined."""
    parts = []
    for shape, group in groupby(enumerate(shapes), key=lambda pair: pair[1]):
        indices = [index for index, _ in group]
        last = f"-{indices[-1]}" if len(indices) > 1 else ""
        parts.append(f"{indices[0]}{last}: {'x'.join(map(str, shape))}")
    return ", ".join(parts)


def _trained() -> dict[str, list[str]]:
    """Of every model that shipped configs train, the guided ones and those of teachers, and what the paper found."""
    found: dict[str, list[str]] = {name: [] for name in CNNS}
    for name in shipped_configs():
        config = load_config(name)
        lines = found.setdefault(config.model.name, [])
        if "/unguided/" in name or name.startswith("tables/") or (config.teacher is None and not config.model.is_cnn):
            continue
        published = next((row.top1 for row in config.paper_rows if row.top1 is not None), None)
        lines.append(f"{name}{f': {published:.2f} % published' if published is not None else ''}")
    return found
