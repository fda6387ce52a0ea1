"""``fastlg analyze``: one student or two side by side, as pictures and as numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fastlg import __version__
from fastlg.analysis import pictures
from fastlg.analysis.measure import Findings, measure
from fastlg.analysis.subject import BATCH, Subject, batches, evenly, find_teacher, images_of, load_subject
from fastlg.analysis.subject import pictures as whole_images
from fastlg.config import parse_overrides
from fastlg.engine.precision import pick_device
from fastlg.errors import UserError, brief, writing
from fastlg.files.atomic import write_whole
from fastlg.files.reading import what_is
from fastlg.files.together import together
from fastlg.ranks.say import say
from fastlg.run.curves import plot_curves, save_picture
from fastlg.run.folder import ANALYSIS, PARTS_OF_COMPARE, is_compare
from fastlg.run.report import Pulse
from fastlg.run.trained import is_export

SHOWN = 4  # images whose maps are drawn
COLUMNS = 4  # blocks whose maps are drawn, where none are chosen
PICTURES = ("distance.png", "attention.png", "rollout.png", "similarity.png", "curves.png")
NAMES = ("analysis.json", "maps.json", *PICTURES)  # of all files that may be left
FIXED = "analyze cannot change {}: it is part of the trained run; data.* and engine.device may differ"


def analyze(
    run: Path,
    more: Sequence[str],
    *,
    images: int,
    blocks: str | None = None,
    image: str | None = None,
    of_class: str | None = None,
    which: str = "last",
    teacher: Path | None = None,
    out: Path | None = None,
) -> dict:
    """Analyses a run folder, a comparison (its two runs) or an export, and a second one where ``more`` names it.

    more    at most one other run or export; dotted overrides of data.* and engine.device
    blocks  numbers of the blocks whose attention is drawn, with commas between; None: four of them, evenly
    image   numbers of the test images whose maps are drawn; None: four of them, evenly
    of_class  the class that dense maps are about; None: the one that each image is taken for
    out     None: the folder ``analysis`` in ``run``

    Writes analysis.json, maps.json and the pictures, in the place of what an earlier call left in the folder
    (files/together.py), and returns what the first holds. Raises UserError before anything is measured.
    """
    others = [text for text in more if "=" not in text]
    overrides = parse_overrides([text for text in more if "=" in text])
    if foreign := [key for key in overrides if not key.startswith("data.") and key != "engine.device"]:
        raise UserError(FIXED.format(foreign[0]))
    if len(others) > 1:
        raise UserError(f"analyze takes two runs at most; {brief(others[1], 200)} is a third")
    out = _usable(out or run / ANALYSIS)
    subjects = _subjects(run, [Path(text) for text in others], which, overrides)
    chosen = _chosen_blocks(blocks, subjects)
    _expect_class(of_class, subjects)
    source = next((own for own in subjects if own.trained is not None), subjects[0])
    store = images_of(source, "data.source" in overrides)
    rows = evenly(len(store), images)
    if len(rows) < images:
        say(f"images   {len(rows)}, which is all that {store.path} has to test on")
    first = [rows[place] for place in evenly(len(rows), SHOWN)] if image is None else _chosen_images(image, len(store))
    rows = [*first, *(row for row in rows if row not in set(first))][: max(len(rows), len(first))]
    guide = find_teacher(subjects, teacher)
    device = pick_device(source.config.engine)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Findings] = {}
    for subject in subjects:
        with Pulse(lambda own=subject: f"looking at {own.folder}"):
            pairs = batches(subject, store, rows, guide.size if guide else None, device)
            network = guide.for_views_of(subject).to(device) if guide else None
            student = subject.student.to(device)
            about = {"class_names": subject.class_names, "of_class": of_class}
            found[subject.name] = measure(student, pairs, teacher=network, shown=min(len(first), BATCH), **about)
        for note in found[subject.name].notes:
            say(f"note     {subject.name}: {note}")
    report = _report(subjects, found, which, len(rows), f"{store.path} ({store.split})", guide and guide.what)
    view = max(subject.config.model.image_size for subject in subjects)
    shown = whole_images(store, first, view)
    with writing(out), together(out, NAMES) as work:
        report["files"] = ["maps.json", *_draw(work, subjects, found, shown, chosen)]
        write_whole(work / "analysis.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
        write_whole(work / "maps.json", json.dumps(_maps(found, first), allow_nan=False) + "\n")
    _tell(report, out)
    return report


def _subjects(run: Path, others: list[Path], which: str, overrides: dict) -> list[Subject]:
    """The runs that are meant, named so that they can be told apart. A comparison stands for its two runs."""
    folders = [run, *others]
    if is_compare(run) and not others and not (run / "config.yaml").is_file():
        folders = [run / part for part in PARTS_OF_COMPARE]
    if len(folders) > 1 and os.path.realpath(folders[0]) == os.path.realpath(folders[1]):
        raise UserError(f"{folders[0]} and {folders[1]} are the same; give another run beside it")
    runs = {folder: load_subject(folder, which, overrides) for folder in folders if not is_export(folder)}
    source = next((own.config.data.source for own in runs.values()), None)
    found = [runs.get(folder) or load_subject(folder, which, overrides, source) for folder in folders]
    names = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    for subject, name, folder in zip(found, names, folders, strict=True):
        subject.name = name if names.count(name) == 1 else str(folder)
    return found


def _usable(out: Path) -> Path:
    try:
        kind = what_is(out)
    except OSError as error:
        raise UserError(f"--out {brief(out, 200)}: {error.strerror}; give another folder") from None
    if kind not in ("", "a folder"):
        raise UserError(f"--out {out} is {kind}; give a folder")
    return out


def _chosen_blocks(text: str | None, subjects: list[Subject]) -> list[int]:
    """Numbers of blocks. Raises UserError for one that a student does not have."""
    least = min(subject.student.depth for subject in subjects)
    if text is None:
        return evenly(least, COLUMNS)
    chosen = _numbers(text, "--blocks", "0,6,11")
    for subject in subjects:
        if max(chosen) >= subject.student.depth:
            known = f"its blocks are 0 to {subject.student.depth - 1}"
            raise UserError(f"--blocks {brief(text)}: {subject.folder} has no block {max(chosen)}; {known}")
    return chosen


def _chosen_images(text: str, count: int) -> list[int]:
    """Numbers of test images. Raises UserError for more than a batch of them, and for one that is not there."""
    chosen = _numbers(text, "--image", "3,17")
    if len(chosen) > BATCH:
        raise UserError(f"--image names {len(chosen)} images; give at most {BATCH}")
    if max(chosen) >= count:
        raise UserError(f"--image {brief(text)}: there is no image {max(chosen)}; they are 0 to {count - 1}")
    return chosen


def _expect_class(of_class: str | None, subjects: list[Subject]) -> None:
    for subject in subjects if of_class is not None else ():
        if of_class not in subject.class_names:
            names = ", ".join(subject.class_names[:5]) + (", ..." if len(subject.class_names) > 5 else "")
            raise UserError(f"--class {brief(of_class)}: {subject.folder} tells no such class apart; it has {names}")


def _numbers(text: str, option: str, example: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UserError(f"{option} {brief(text)} are no numbers with commas between, like {example}")
    return list(dict.fromkeys(map(int, parts)))


def _report(
    subjects: list[Subject], found: dict[str, Findings], which: str, count: int, source: str, teacher: str | None
) -> dict:
    """What analysis.json holds; docs/analyze.md says what each number is."""
    models = {}
    for subject in subjects:
        own = found[subject.name]
        blocks = len(own.blocks)
        models[subject.name] = {
            "folder": str(subject.folder),
            "checkpoint": None if subject.trained is None else which,
            "model": subject.student.name,
            "image_size": subject.student.image_size,
            "guided_blocks": list(subject.student.blocks),
            "distance_px": sum(block["distance_px"] for block in own.blocks) / blocks if blocks else None,
            "distance": sum(block["distance"] for block in own.blocks) / blocks if blocks else None,
            "blocks": own.blocks,
            "cka": own.cka,
            "notes": own.notes,
        }
    return {"version": __version__, "images": count, "source": source, "teacher": teacher, "models": models}


def _maps(found: dict[str, Findings], rows: list[int]) -> dict:
    """What maps.json holds: the images that are drawn and, per student, rollouts and the middle token's attention."""
    models = {}
    for name, own in found.items():
        models[name] = {
            "rollout": None if own.rollouts is None else _short(own.rollouts),
            "middle_attention": [_short(maps) for maps in own.middle],
        }
        if own.dense is not None:
            soft, hard = _short(own.dense.soft), _short(own.dense.hard)
            models[name]["dense_rollout"] = {"classes": own.dense.labels, "soft": soft, "hard": hard}
    return {"sample_ids": rows, "models": models}


def _short(values) -> list:
    """Nested lists of five digits: for a picture, not for sums."""
    flat = [float(f"{value:.5g}") for value in values.flatten().tolist()]
    return np.array(flat).reshape(values.shape).tolist()


def _draw(
    out: Path, subjects: list[Subject], found: dict[str, Findings], images: np.ndarray, chosen: list[int]
) -> list[str]:
    """Names of the pictures that were written; one that fails is a line."""
    instead, whole = "analysis.json holds its numbers", {}
    if any(own.blocks for own in found.values()):
        whole["distance.png"] = partial(pictures.draw_distances, found)
        whole["attention.png"] = partial(pictures.draw_attention, found, images, chosen)
    if any(own.rollouts is not None for own in found.values()):
        whole["rollout.png"] = partial(pictures.draw_rollouts, found, images)
    if any(own.cka is not None for own in found.values()):
        whole["similarity.png"] = partial(pictures.draw_similarity, found, {own.name: _pairs(own) for own in subjects})
    drawn = [name for name, draw in whole.items() if save_picture(out / name, draw, instead)]
    rows = {subject.name: subject.rows for subject in subjects if subject.rows}
    chooser = "validation" if any(own.trained.data.val for own in subjects if own.trained is not None) else "test"
    if rows and plot_curves(rows, out / "curves.png", chooser, with_training=True):
        drawn.append("curves.png")
    return drawn


def _pairs(subject: Subject) -> list[tuple[int, int]]:
    """(block, stage) that guided a run."""
    if subject.trained is None or subject.trained.teacher is None:
        return []
    return list(zip(subject.student.blocks, subject.trained.teacher.stages, strict=False))


def _tell(report: dict, out: Path) -> None:
    for name, own in report["models"].items():
        if own["distance"] is not None:
            say(
                f"distance {name}: {own['distance_px']:.1f} px, {own['distance']:.4f} on Table 5's scale "
                f"(mean over {len(own['blocks'])} blocks)"
            )
        for block, stage, value in _closest(own["cka"]):
            say(f"teacher  {name}: stage {stage} is closest to block {block}, CKA {value:.2f}")
    say(f"analysis of {report['images']} images in {out}: {', '.join(['analysis.json', *report['files']])}")


def _closest(cka: list[list[float | None]] | None) -> list[tuple[int, int, float]]:
    """(block, stage, CKA) of each stage's most similar block."""
    found = []
    for stage in range(len(cka[0]) if cka else 0):
        value, block = max((row[stage] if row[stage] is not None else -1.0, -number) for number, row in enumerate(cka))
        found += [(-block, stage, value)] if value >= 0 else []
    return found
