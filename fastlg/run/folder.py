"""What a run folder may hold, and what is refused about one before anything is trained for it."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastlg.config import Config, dotted, load_config, read_saved_config, saved_config
from fastlg.config.auto import AUTO, KEYS
from fastlg.errors import UserError, brief
from fastlg.files.atomic import PARTIAL
from fastlg.files.reading import is_file, read_regular, what_is
from fastlg.run.checkpoint import LAST, load_checkpoint
from fastlg.run.lock import LOCK

# What may differ between a checkpoint and the run that resumes it: where things lie, what is logged and which engine
# computes, and which published row it repeats. Images and teacher are compared by content; another device or number of
# ranks continues the run, though not to the same bits.
FREE_ON_RESUME = ("run.root", "run.name", "data", "log", "engine", "teacher.weights", "teacher.cache", "paper")
NEVER_FREE = ("engine.precision", "engine.residual", "data.val")

REPORT = "report.html"  # what fastlg report wrote
# What fastlg itself leaves in a folder. Without a config.yaml it is what a kill, a full disk or a deleted folder left
# of a run, and never makes the folder foreign.
OF_RUN = (LOCK, "config.yaml", "metrics.jsonl", "summary.json", "curves.png", "views.png", "predictions.npz", REPORT)
ANALYSIS = "analysis"  # what fastlg analyze found
EVALUATION = "evaluation"  # what fastlg eval found
FOLDERS_OF_RUN = ("checkpoints", "tensorboard", ANALYSIS, EVALUATION)
SHOWN = ("top1_last", "top1_best", "images_per_s", "wall_s", "epochs")  # numbers of a summary that are told
MAX_SUMMARY = 1 << 20  # bytes
MOST_LOOKED_INTO = 100  # folders, for runs that may be meant
OF_COMPARE = (LOCK, "summary.json", "curves.png", "compare.md", "compare.tex", "compare.csv", "compare.json", REPORT)
WEIGHTS = {  # what may be given as them
    "model.weights": "a run folder or a checkpoint file",
    "teacher.weights": "a teacher's run folder or a checkpoint file",
}
PARTS_OF_COMPARE = ("unguided", "guided")
# Left by file systems and file managers: an open file that was removed on NFS, and the like.
OF_NOBODY = re.compile(r"\.nfs\w+|\.DS_Store|\._.*|\.directory|Thumbs\.db|desktop\.ini")


def finished(folder: Path, config: Config, *, is_derived: bool = True) -> dict | None:
    """Summary of a completed run of this very config, or None. Raises UserError when another run lies there.

    ``is_derived`` False: nothing of the config is made of the images yet (derived.py), so that this is left alone.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        if is_compare(folder):
            raise UserError(f"{folder} holds a comparison; choose another run.name")
        if strange := _strangers(folder, OF_RUN, FOLDERS_OF_RUN):
            raise UserError(f"{folder} holds {strange}, which is no part of a run; choose another run.name or empty it")
        return None
    refuse_other(read_saved_config(saved), config, str(folder), left=() if is_derived else KEYS)
    return read_summary(folder)


def read_summary(folder: Path) -> dict | None:
    """summary.json of a run; None where it is missing, cut short or altered: the run goes on to write it."""
    try:
        summary = json.loads(read_regular(folder / "summary.json", MAX_SUMMARY))
    except (OSError, ValueError, RecursionError):
        return None
    is_whole = isinstance(summary, dict) and all(type(summary.get(key)) in (int, float) for key in SHOWN)
    return summary if is_whole else None


def told_score(summary: Mapping[str, Any], key: str = "top1_last") -> str:
    """``top-1 76.37 %`` of a summary, and by what it was measured where that is not the network's own head."""
    by = f" by {summary['measured_by']}" if summary.get("measured_by") else ""
    return f"top-1 {summary[key]:.2f} %{by}"


def is_compare(folder: Path) -> bool:
    """Whether ``fastlg compare`` trained in this folder."""
    return any(is_file(folder / part / "config.yaml") for part in PARTS_OF_COMPARE)


def expect_run(folder: Path) -> None:
    """Raises UserError for what is no run folder, with the runs that there are near it."""
    if is_file(folder / "config.yaml"):
        return
    if is_compare(folder):
        parts = " or ".join(str(folder / part) for part in PARTS_OF_COMPARE)
        raise UserError(f"{folder} holds a comparison; name one of its runs: {parts}")
    if seeds := [run for part in PARTS_OF_COMPARE for run in runs_of(folder / part)]:
        named = ", ".join(map(str, seeds[:8]))
        more = " ..." if len(seeds) > 8 else ""
        raise UserError(f"{folder} holds a comparison over seeds; name one of its runs: {named}{more}")
    inside = next((parent for parent in folder.parents if is_file(parent / "config.yaml")), None)
    if inside is not None:
        raise UserError(f"{folder} is not a run folder but inside of one; give {inside}")
    try:
        kind = what_is(folder)
    except OSError as error:
        raise UserError(f"run {brief(folder, 200)}: {error.strerror}; {runs_near(folder)}") from None
    if not kind:
        raise UserError(f"there is no run {folder}; {runs_near(folder)}")
    why = "it holds no config.yaml" if kind == "a folder" else f"it is {kind}"
    raise UserError(f"{folder} is no run folder: {why}; {runs_near(folder)}")


def runs_of(folder: Path) -> list[Path]:
    """The runs right below a folder."""
    return [run for run in folders_of(folder) if is_file(run / "config.yaml")]


def folders_of(folder: Path) -> list[Path]:
    """The folders right below a folder; [] of one that cannot be read."""
    try:
        with os.scandir(folder) as entries:  # which knows folders without a look at each of a million images
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except (OSError, ValueError):
        return []


def expect_there(path: Path, field: str) -> None:
    """Raises UserError where a config's ``field``, one of WEIGHTS, names neither a file nor a folder."""
    if not (is_file(path) or path.is_dir()):
        why = f"is {kind}" if (kind := what_is(path)) else "does not exist"
        raise UserError(f"{field} {path} {why}; give {WEIGHTS[field]}; {runs_near(path)}")


def runs_near(path: Path) -> str:
    """Which run folder may be meant by ``path``, which is none: those in it, in folders in it (of a table), beside it
    and in runs/."""
    runs = runs_of(path) or [run for folder in folders_of(path)[:MOST_LOOKED_INTO] for run in runs_of(folder)]
    for place in dict.fromkeys((path.parent, Path("runs"), Path("runs", "teachers"))):
        runs += [run for run in runs_of(place) if run not in runs]
    if not runs:
        return "no runs here; fastlg train CONFIG makes one in runs/ (see run.root)"
    near = difflib.get_close_matches(path.name[:200], [run.name for run in runs], n=1, cutoff=0.6)
    if near:
        return f"did you mean {next(run for run in runs if run.name == near[0])}?"
    return f"runs there: {', '.join(map(str, runs[:5]))}{' ...' if len(runs) > 5 else ''}"


def expect_compare_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds a single run, or anything else than a comparison."""
    if (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds a single run; choose another run.name for the comparison")
    if strange := _strangers(folder, OF_COMPARE, (*PARTS_OF_COMPARE, ANALYSIS, EVALUATION)):
        raise UserError(
            f"{folder} holds {strange}, which is no part of a comparison; choose another run.name or empty it"
        )


def resume_source(folder: Path, resume: str) -> Path | None:
    """The checkpoint that ``--resume`` means: the folder's last one, a file of the user's, or None for a new run.

    Raises UserError for a run where there shall be none.
    """
    if resume == "never" and (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds a run and --resume is never; choose another run.name or remove it")
    if resume not in ("auto", "never"):
        return Path(resume)
    last = folder / "checkpoints" / LAST
    return last if last.is_file() else None


def read_resumable(path: Path, config: Config, fingerprints: list[str]) -> dict:
    """The state that a run saved in ``path``. Raises UserError for one of another config or other images."""
    state = load_checkpoint(path)
    refuse_other(saved_config(state.get("config"), str(path)), config, str(path))
    if state.get("data") != fingerprints:
        raise _on_other_images(f"checkpoint {path}", config)
    return state


def seen_images(folder: Path) -> list[str] | None:
    """What the images of a run's splits hash to (Stores.fingerprints), by its record; None where that does not say."""
    found = (read_summary(folder) or {}).get("fingerprints")
    if found is None and is_file(last := folder / "checkpoints" / LAST):
        with contextlib.suppress(UserError):  # whoever needs its weights says what is wrong with it
            found = load_checkpoint(last).get("data")
    return found if isinstance(found, list) and all(isinstance(own, str) for own in found) else None


def refuse_other_images(config: Config, fingerprints: Sequence[str], *, left: Sequence[str] = ()) -> None:
    """Raises UserError for a run of this config, complete or not, that saw other images than ``fingerprints`` are of.

    left  keys that follow from the images; a run whose config differs in any other is another one, and refused as that
    """
    saved = config.run_dir / "config.yaml"
    if not is_file(saved) or _differing(read_saved_config(saved), config).keys() - set(left):
        return
    seen = seen_images(config.run_dir)
    if seen is not None and seen != list(fingerprints):
        raise _on_other_images(str(config.run_dir), config)


def _on_other_images(where: str, config: Config) -> UserError:
    return UserError(
        f"{where} was trained on other images than {config.data.source} now holds; choose another run.name, or give it "
        "the images that it had"
    )


def refuse_unusable(config: Config, resume: str, fingerprints: list[str]) -> None:
    """Raises UserError for a run that cannot begin or go on in its folder, whatever its teacher will be."""
    if (source := resume_source(config.run_dir, resume)) is not None:
        read_resumable(source, config, fingerprints)


def _strangers(folder: Path, files: tuple[str, ...], folders: tuple[str, ...]) -> str:
    """The first entry of a folder that fastlg did not leave there; "" where there is none."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = entry.name.removesuffix(PARTIAL)
        if OF_NOBODY.fullmatch(name):
            continue
        if not ((name in files and entry.is_file()) or (entry.name in folders and entry.is_dir())):
            return entry.name
    return ""


def refuse_other(
    saved: Config, config: Config, where: str, *, fix: str = "choose another run.name", left: Sequence[str] = ()
) -> None:
    """Raises UserError that names the differences between the config of a run and the one it shall go on with.

    left  keys that may differ where ``config`` has ``auto``, or nothing in ``teacher.overrides``
    """
    differing, taught = _differing(saved, config), [f"teacher.overrides.{key}" for key in left]
    differing = {key: own for key, own in differing.items() if not (key in left and own[1] == AUTO)}
    differing = {key: own for key, own in differing.items() if not (key in taught and own[1] is None)}
    if differing:
        changes = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in list(differing.items())[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(f"{where} belongs to another config ({changes}{more}); {fix}")


def _differing(saved: Config, config: Config) -> dict[str, tuple]:
    """Dotted key -> its value in each, where a run cannot go on with another one."""
    old, new = (dotted(each.model_dump(mode="json")) for each in (saved, config))
    both = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if not may_differ(key)}
    return {key: own for key, own in both.items() if own[0] != own[1] and not (key in SAME and SAME[key](*own))}


def may_differ(key: str) -> bool:
    """Whether a run may go on with another value of a dotted key than it began with."""
    return key not in NEVER_FREE and (key in FREE_ON_RESUME or key.partition(".")[0] in FREE_ON_RESUME)


def _is_same_recipe(old: str | None, new: str | None) -> bool:
    """Whether two paths lead to one config; where one is gone, its name has to do. The weights are compared anyway."""
    if old is None or new is None:
        return False
    try:
        return load_config(old).replace({"paper": None}) == load_config(new).replace({"paper": None})
    except UserError:
        return Path(old).name == Path(new).name


def _is_same_path(old: str | None, new: str | None) -> bool:
    return None not in (old, new) and len({os.path.abspath(os.path.expanduser(path)) for path in (old, new)}) == 1


SAME = {  # of what is written differently; which images a validation split has is in their fingerprints
    "teacher.recipe": _is_same_recipe,
    "model.weights": _is_same_path,
    "data.val": lambda old, new: bool(old) == bool(new),
}
