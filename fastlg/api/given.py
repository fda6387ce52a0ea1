"""What a Python caller hands in, config, images and networks, as the config of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from fastlg.commands.hand_on.images import image_files
from fastlg.config import Config, config_from, load_config, save_config
from fastlg.config.keys import assign
from fastlg.config.whole import laid_over
from fastlg.data.sources.objects import pixels_of
from fastlg.data.sources.parquet import IMAGE_COLUMNS
from fastlg.data.store.decode import decode_image
from fastlg.data.store.store import read_manifest
from fastlg.data.stores import store_of_objects, store_of_paths
from fastlg.errors import UserError, brief, writing
from fastlg.files.places import cache_root
from fastlg.files.reading import read_regular
from fastlg.models import Student
from fastlg.models.general.instances import name_of

AS_CONFIGURED = "as configured"
PLACEHOLDER = "python"  # stands for data.source until the images are stored


def config_of(
    config: str | PathLike | Mapping | Config,
    overrides: Mapping[str, Any],
    *,
    data: Any = None,
    model: nn.Module | None = None,
    teacher: nn.Module | str | None = AS_CONFIGURED,
) -> Config:
    """The config of a run.

    config     a YAML file, a shipped config's name, a mapping (nested, or of dotted keys), or a Config
    overrides  dotted keys
    data       None: as the config says; a path or name: in the place of its ``data.source``; else images as objects
               (data/sources/objects.py), or a pair or mapping of paths, which are stored, known by their content
    model      in the place of the config's ``model``, of which blocks and fraction stay
    teacher    None: no guidance; a network: in the place of the teacher that its recipe would train

    Raises UserError.
    """
    source = _source_of(data)
    first: dict[str, Any] = {"data.source": source} if source is not None else {}
    if teacher is None:
        first["teacher"] = None
    read = _read(config, first).replace(dict(overrides), "argument")
    if data is not None and source == PLACEHOLDER:
        read = read.replace(at_store(_store(data, read)))
    if not read.run.name:
        read = read.replace({"run.name": "python"})
    if model is not None:
        read = read.replace(_as_model(model, overrides), "model")
    if teacher is not None and teacher != AS_CONFIGURED:
        if read.teacher is None:
            raise UserError("a teacher is given, but the config has no teacher section; take a guided config")
        read = read.replace({"teacher.weights": name_of(_network(teacher, "teacher"))}, "teacher")
    return read


def network_of(model: nn.Module | None) -> nn.Module | None:
    """The plain network of what was given: a fastlg Student's own, without its guided blocks."""
    return model.bare if isinstance(model, Student) else model


def at_store(path: Path) -> dict[str, Any]:
    """Overrides under which a config reads a store, whose splits and labels are decided."""
    decided = {"data.holdout": 0.0, "data.label_column": None, "data.image_column": None}
    val = "split" if "val" in read_manifest(path)["splits"] else 0.0
    return {"data.source": str(path), "data.val": val, **decided}


def stored(data: Any, config: Config, class_names: list[str]) -> dict[str, Any]:
    """Overrides under which ``fastlg eval`` measures ``data`` on a model of these classes."""
    if data is None:
        return {}
    if (source := _source_of(data)) != PLACEHOLDER:
        return {"data.source": source}
    clean = config.replace({"data.holdout": 0.0, "data.val": 0.0, "data.label_column": None, "data.image_column": None})
    return at_store(store_of_objects(data, clean.data, class_names))


def as_command(
    config: Any, overrides: Mapping[str, Any], data: Any, teacher: str | None = AS_CONFIGURED
) -> tuple[str, list[str]]:
    """(config, overrides) by which the command line trains what ``config_of`` gives, in processes of its own.

    Raises UserError.
    """
    read = config_of(config, overrides, data=data, teacher=teacher)
    given = dict(overrides) | ({"teacher": None} if teacher is None else {})
    if _source_of(data) == PLACEHOLDER:
        given |= at_store(Path(read.data.source))
    elif data is not None:
        given["data.source"] = read.data.source
    if isinstance(config, (str, PathLike)):
        return fspath(config), [f"{key}={text_of(value)}" for key, value in given.items()]
    base = config_of(config, {}, data=None if data is None else read.data.source)  # images in hand are stored by now
    return str(as_file(base)), [f"{key}={text_of(value)}" for key, value in given.items()]


def as_file(config: Config) -> Path:
    """A config in a file of its own, named by its content: what runs in processes of their own are told."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    path = cache_root() / "configs" / f"{config.run.name.replace('/', '_')[:100]}-{digest}.yaml"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_config(config.absolute().replace({"run.root": str(config.run.root)}), path)
    return path


def named_pixels(images: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8 [H, W, 3]) of one image or several: files, folders or patterns, PIL images, uint8 tensors or arrays,
    encoded bytes; or of a dataset of (image, label). Raises UserError (BadImage), which names the one that cannot be
    read."""
    if _is_one(images):
        return _named(images, "images[0]")
    is_numbered = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    is_none = isinstance(images, Mapping) or getattr(images, "ndim", None) == 0
    if is_none or not (is_numbered or hasattr(images, "__iter__")):
        kind = "None" if images is None else f"of type {type(images).__name__}"
        raise UserError(
            f"images is {kind}; give a path, a PIL image, a uint8 tensor or array, or a list or batch of them"
        )
    several = _by_number(images) if is_numbered else images
    return (pair for row, image in enumerate(several) for pair in _named(image, f"images[{row}]"))


def _is_one(images: Any) -> bool:
    """Whether it is one image, or one sample of a dataset, and not several."""
    if isinstance(images, tuple) and len(images) == 2 and isinstance(images[1], (int, np.integer)):
        return True
    is_sample = isinstance(images, Mapping) and set(images) & set(IMAGE_COLUMNS)
    is_array = getattr(images, "ndim", 0) in (2, 3)
    return bool(is_sample) or is_array or isinstance(images, (str, bytes, PathLike, Image.Image))


def _by_number(images: Any) -> Iterator[Any]:
    return (images[row] for row in range(len(images)))


def _named(image: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Of one element, which is several images where it is a folder or a pattern."""
    if isinstance(image, (tuple, list)) and len(image) == 2:
        image = image[0]
    if isinstance(image, Mapping):
        image = next((value for key, value in image.items() if key in IMAGE_COLUMNS), image)
    if not isinstance(image, (str, PathLike)):
        yield name, decode_image(image, name) if isinstance(image, bytes) else pixels_of(image, name)
        return
    for path in image_files([fspath(image)]):
        try:
            pixels = decode_image(read_regular(path), str(path))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}; give an image file") from None
        yield str(path), pixels


def _source_of(data: Any) -> str | None:
    if data is None:
        return None
    return fspath(data) if isinstance(data, (str, PathLike)) else PLACEHOLDER


def _read(config: Any, first: dict[str, Any]) -> Config:
    if isinstance(config, Config):
        return config.replace(first)
    if isinstance(config, Mapping):
        tree: dict[str, Any] = {}
        for key, value in config.items():
            assign(tree, str(key), dict(value) if isinstance(value, Mapping) else value)
        return laid_over(tree, first, "config") if first else config_from(tree, "config")
    if isinstance(config, (str, PathLike)):
        return load_config(fspath(config), [f"{key}={json.dumps(value)}" for key, value in first.items()])
    raise UserError(f"config is a {type(config).__name__}; give a name, a path, a mapping or a fastlg.config.Config")


def _store(data: Any, config: Config) -> Path:
    splits = dict(zip(("train", "test"), data, strict=True)) if isinstance(data, tuple) and len(data) == 2 else data
    paths = [isinstance(own, (str, PathLike)) for own in splits.values()] if isinstance(splits, Mapping) else []
    if paths and all(paths):
        return store_of_paths({str(name): fspath(own) for name, own in splits.items()}, config.data)
    if any(paths):
        raise UserError("data mixes paths and datasets; give both splits in one way")
    return store_of_objects(data, config.data)


def _network(network: Any, what: str) -> nn.Module:
    if not isinstance(network, nn.Module):
        hint = "; a name goes into the config: **{'model.name': ...}" if isinstance(network, str) else ""
        raise UserError(f"{what} is a {type(network).__name__}; give a torch.nn.Module{hint}")
    return network


def _as_model(model: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of a network that is handed in: nothing of it is built, drawn or loaded."""
    plain = network_of(_network(model, "model"))
    own: dict[str, Any] = {"name": name_of(plain), "args": {}, "init": "timm", "weights": None}
    if (size := _size_of(model)) is not None:
        own["image_size"] = size
    given = {key.removeprefix("model.") for key in overrides if key.startswith("model.")}
    fixed = sorted(given & {"name", "args", "init", "weights", "drop_path"})
    if fixed:
        raise UserError(f"argument model.{fixed[0]} and a model as an object exclude each other; set it on the object")
    return {f"model.{key}": value for key, value in own.items() if key not in given}


def _size_of(model: nn.Module) -> int | None:
    """Side in px of the images that a network takes; None where it does not say: the config's stays."""
    embed = getattr(model, "patch_embed", None)
    own = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (None,))
    for size in (getattr(model, "image_size", None), getattr(embed, "img_size", None), own[-1]):
        size = size[0] if isinstance(size, Sequence) and size else size
        if isinstance(size, int):
            return size
    return None


def text_of(value: Any) -> str:
    """A value as an override of the command line has it."""
    if isinstance(value, str):
        return value if value and not set(value) & set(",'\"[]{}()") else json.dumps(value)
    try:
        return json.dumps(value)
    except TypeError:
        raise UserError(f"a value is {brief(value)}, a {type(value).__name__}; give numbers, texts or lists") from None
