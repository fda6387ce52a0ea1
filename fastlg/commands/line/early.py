"""What can be refused before torch and timm are imported: a path, a name, an extra that is not there.

Importing them takes seconds, and far more from a cold disk. Everything here is looked at again, and closer, by the part
that it belongs to; what is doubtful passes.
"""

from __future__ import annotations

import difflib
import re
import sys
from functools import cache
from importlib import metadata, util
from pathlib import Path

from fastlg.config import Config, find_config
from fastlg.config.keys import is_object
from fastlg.config.sections import scheme_of
from fastlg.data.sources.layout.paths import existing_path
from fastlg.errors import UserError, brief
from fastlg.ranks.place import place
from fastlg.run import folder as run_folder
from fastlg.run.checkpoint import load_checkpoint
from fastlg.run.folder import expect_there, finished

OWN_MODELS = Path(__file__).resolve().parents[2] / "models"
_REGISTERED = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)", re.MULTILINE)
_DEPRECATED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)\}\)", re.MULTILINE | re.DOTALL)


def expect_run(config: Config, resume: str) -> None:
    """Raises UserError for a run that cannot be, or not in its folder, as far as that is seen without torch."""
    if place().world_size > 1:
        return
    finished(config.run_dir, config)
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
    if config.model.weights is not None and not config.run_dir.exists():  # a run that goes on needs them no more
        expect_there(config.model.weights, "model.weights")
    if config.teacher is not None and config.teacher.recipe:
        find_config(config.teacher.recipe)
    if config.teacher is not None and (weights := config.teacher.weights) and not is_object(weights.name):
        expect_there(weights, "teacher.weights")
    expect_extras(config)


def expect_trained(*folders: Path) -> None:
    """Raises UserError for a folder that holds no run, comparison or export, as far as that is seen without torch."""
    for folder in folders:
        if not (folder / "model.safetensors").is_file() and not run_folder.is_compare(folder):
            run_folder.expect_run(folder)


def expect_empty(out_dir: Path) -> None:
    """Raises UserError for a folder that cannot take an export."""
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} exists and is not an empty folder; choose a new one")


def expect_source(source: str | None) -> None:
    """Raises UserError for a ``data.source`` that is a path to nothing."""
    if source and not scheme_of(source):
        existing_path(source)


def expect_known(name: str) -> None:
    """Raises UserError for a ``model.name`` that is neither ours nor timm's; an ``address:name`` is left alone."""
    stem = name.partition(".")[0]
    known = model_names()
    timm = sys.modules.get("timm")
    if ":" in name or "/" in name or not known or stem in known or (timm is not None and timm.is_model(stem)):
        return
    near = difflib.get_close_matches(stem[:200], sorted(known), n=1)
    hint = f"did you mean {near[0]}?" if near else "try deit_tiny_patch16_224"
    raise UserError(f"model.name {brief(name)} is no model of timm {metadata.version('timm')}; {hint}")


@cache
def model_names() -> frozenset[str]:
    """Names that timm takes, ours among them, read from the sources that register them; none where timm is missing."""
    found = util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return frozenset()
    theirs = Path(found.submodule_search_locations[0]) / "models"
    names = {"resnet20", "resnet56", "resnet110"}
    for path in (*theirs.rglob("*.py"), *OWN_MODELS.rglob("*.py")):
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


def is_installed(module: str) -> bool:
    """Whether it could be imported, as far as that is seen without doing it."""
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False
