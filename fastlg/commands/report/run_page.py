"""The page of one run."""

from __future__ import annotations

from pathlib import Path

from fastlg.commands.report.charts import Line
from fastlg.commands.report.facts import Facts
from fastlg.commands.report.looks import attention_of, views_of
from fastlg.commands.report.markup import Markup, join, note, page
from fastlg.commands.report.sections import (
    attempted,
    badges,
    calibrated,
    classes,
    configuration,
    curves,
    duration,
    mistakes,
    provenance,
)
from fastlg.run.metrics import measured_by


def run_page(own: Facts, foot: str) -> str:
    """The HTML of one run's report."""
    name, config = own.config.run.name or own.folder.name, own.config
    guided = "without a teacher" if config.teacher is None else f"guided by {Path(config.teacher.recipe).stem}"
    subtitle = f"{config.model.name} at {config.model.image_size} px, {guided}; checkpoint {own.which}"
    parts = [
        ("curves", "Curves", join((*_notes(own), attempted(lambda: curves([Line(name, own.rows)], own.chooser))))),
        ("views", "What the networks see", views_of(own)),
        ("attention", "Attention", attempted(lambda: attention_of({name: own}))),
        *_answered(own),
        ("config", "Configuration", configuration(own)),
        ("provenance", "Provenance", attempted(lambda: provenance(own))),
    ]
    return page(f"Run {name}", subtitle, badges(_numbers(own)), parts, foot)


def _notes(own: Facts) -> list[Markup]:
    notes = []
    if not own.is_complete:
        notes.append(f"This run is not complete: {own.epochs_done} of {own.config.optim.epochs} epochs are done.")
    if by := measured_by(own.config):
        notes.append(
            f"This run had no labels: on {own.chooser} images top-1 is by {by}, on training images it says how often "
            "both networks name the same output."
        )
    return [note(text) for text in notes]


def _answered(own: Facts) -> list[tuple[str, str, Markup]]:
    """The sections that need what the network says of the test images."""
    titles = {"classes": "Classes", "calibration": "Calibration", "mistakes": "Worst mistakes"}
    if not own.answers:
        why = note(f"Not shown, for the test images cannot be classified: {own.answers.why}")
        return [(anchor, title, why) for anchor, title in titles.items()]
    answers, store = own.answers.value, own.stores.value.test
    content = {
        "classes": lambda: classes(answers, own.class_names),
        "calibration": lambda: calibrated([("", answers)]),
        "mistakes": lambda: mistakes(answers, own.class_names, store),
    }
    return [(anchor, title, attempted(content[anchor])) for anchor, title in titles.items()]


def _numbers(own: Facts) -> list[tuple[str, str]]:
    summary = own.summary or {}
    told: list[tuple[str, str]] = []
    if own.answers:
        answers = own.answers.value
        error = answers.calibrated().error
        told += [
            ("top-1 on the test split", f"{answers.top1:.2f} %"),
            ("top-5", f"{answers.top(5):.2f} %"),
            ("cross entropy", f"{float(answers.loss.mean()):.3f}"),
            ("calibration error", f"{100 * error:.1f} %"),
        ]
    elif summary:
        by = f" by {summary['measured_by']}" if summary.get("measured_by") else ""
        told.append((f"top-1{by}, as the run told it", f"{summary['top1_last']:.2f} %"))
    if summary:
        chosen = summary.get("best_chosen_on", "test")
        told += [
            (f"best epoch, chosen on {chosen}", f"{summary['top1_best']:.2f} %"),
            ("images/s", f"{summary['images_per_s']:,.0f}"),
            ("training time", duration(summary["wall_s"])),
        ]
    return told
