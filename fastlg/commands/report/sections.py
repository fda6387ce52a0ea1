"""The sections that a run and a comparison share: curves, classes, calibration, images, config, provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from fastlg.analysis.scores import Calibration, PerClass, confusion, most_confused, most_involved, per_class
from fastlg.analysis.subject import evenly
from fastlg.commands.report.charts import LABELLED, Line, chart, draw_confusion, draw_curves, draw_reliability, points
from fastlg.commands.report.facts import Facts, tried
from fastlg.commands.report.markup import Markup, bar, escaped, facts, image, join, note, paragraph, table, tag
from fastlg.commands.testing.answers import Answers
from fastlg.data.store.store import Store
from fastlg.files.reading import read_text

MOST_CLASSES = 40  # in the table of classes; of more, the worst and the best
WORST, BEST = 20, 10
PAIRS = 12  # of classes that are confused
MISTAKES = 12  # images
ROWS = 12  # of the table below the curves
_THUMB = 160  # px
MOST_CONFIG = 1 << 17  # bytes


def attempted(make: Callable[[], Markup]) -> Markup:
    """What ``make`` writes, or a note of why it cannot."""
    made = tried(make)
    return made.value if made else note(f"Not shown: {made.why}")


def curves(lines: Sequence[Line], split: str) -> Markup:
    """Top-1 and cross entropy on the training and the test (or validation) images, as pictures and as numbers."""
    if not any(line.rows for line in lines):
        return note("There are no curves: nothing has been written to metrics.jsonl yet.")
    who = " and ".join(dict.fromkeys(line.label for line in lines))
    alt = f"Curves of {who}: top-1 and cross entropy against the epoch, on {split} and on training images"
    drawn = chart(partial(draw_curves, lines, split), alt)
    return join((drawn, *(_numbers(line, split) for line in lines[:8])))


def _numbers(line: Line, split: str) -> Markup:
    tests = [row for row in line.rows if row.get("kind") == "eval"]
    chosen = [tests[place] for place in evenly(len(tests), ROWS)]
    if not chosen:
        return Markup("")
    cells = []
    for row in chosen:
        values = [points([row], key)[1] for key in ("top1", "top5", "loss")]
        cells.append([str(row.get("epoch", "?")), *(f"{own[0]:.3f}" if own else "-" for own in values)])
    part = f" ({len(chosen)} of {len(tests)} evaluations)" if len(chosen) < len(tests) else ""
    columns = ("epoch", f"{split} top-1 %", f"{split} top-5 %", f"{split} cross entropy")
    return tag("details", tag("summary", f"{line.label}: the numbers{part}"), table(columns, cells))


def classes(answers: Answers, names: Sequence[str]) -> Markup:
    """Confusion and accuracy per class of one run; bounded, and it says so."""
    matrix = confusion(answers.labels, answers.predicted, len(names))
    tables = tag("div", _confused(matrix, names), _accuracies(per_class(matrix), names), class_="beside")
    return join((confusion_picture(matrix, names), tables))


def confusion_picture(matrix: np.ndarray, names: Sequence[str], of: str = "") -> Markup:
    """All classes, or those in which most is confused."""
    chosen = most_involved(matrix, LABELLED)
    said = f"all {len(names):,} classes; numbers are images, colours shares of a row."
    if len(names) > LABELLED:
        said = f"the {LABELLED} of {len(names):,} classes in which most is confused; colours are shares among these."
    part = matrix[np.ix_(chosen, chosen)]
    alt = f"Confusion matrix{of and ' of '}{of}: true classes down, what they are taken for across"
    said = f"{of or 'Confusion matrix'}: {said}"
    return chart(partial(draw_confusion, part, [names[i] for i in chosen]), alt, said)


def _confused(matrix: np.ndarray, names: Sequence[str]) -> Markup:
    pairs = most_confused(matrix, PAIRS)
    if not pairs:
        return paragraph("No class is taken for another.")
    images = matrix.sum(axis=1)
    rows = [
        (names[true], names[other], f"{count:,}", f"{100 * count / images[true]:.1f}") for true, other, count in pairs
    ]
    total = int(np.count_nonzero(matrix) - np.count_nonzero(np.diag(matrix)))
    caption = f"Most confused: {len(rows)} of {total:,} pairs of classes"
    return table(("true class", "taken for", "images", "% of the class"), rows, caption=caption, texts=2)


def _accuracies(own: PerClass, names: Sequence[str]) -> Markup:
    there = np.flatnonzero(own.images)
    order = there[np.argsort(own.accuracy[there], kind="stable")]
    caption = f"Accuracy of the {len(order):,} classes that have test images, the worst first"
    if len(order) > MOST_CLASSES:
        caption = f"The {WORST} worst and the {BEST} best of {len(order):,} classes that have test images"
        order = np.concatenate([order[:WORST], order[-BEST:]])
    rows = [
        (names[i], bar(own.accuracy[i]), f"{100 * own.accuracy[i]:.1f}", share(own.precision[i]), f"{own.images[i]:,}")
        for i in order
    ]
    return table(("class", "", "accuracy %", "precision %", "images"), rows, caption=caption, texts=2)


def share(value: float) -> str:
    return f"{100 * value:.1f}" if value == value else "-"


def percent(share: float, digits: int = 1) -> str:
    """Of a share from 0 to 1; no line is broken before the sign."""
    return f"{100 * share:.{digits}f}\u00a0%"


def calibrated(sides: Sequence[tuple[str, Answers]]) -> Markup:
    """Reliability and expected calibration error of each side."""
    found = [(name, own.calibrated()) for name, own in sides]
    told = [name if len(sides) > 1 else "" for name, _ in sides]
    words = [_said(name, own, answers) for name, (_, own), (_, answers) in zip(told, found, sides, strict=True)]
    return join((reliability(found), *words))


def reliability(found: Sequence[tuple[str, Calibration]]) -> Markup:
    who = f" of {' and '.join(name for name, _ in found)}" if len(found) > 1 else ""
    return chart(
        partial(draw_reliability, found),
        f"Reliability{who}: accuracy against confidence, and how many images have it",
        "On the dotted line confidence is what is right; below it the network is too sure.",
    )


def _said(name: str, own: Calibration, answers: Answers) -> Markup:
    sure, right = float(answers.confidence.mean()), float(answers.right.mean())
    side = "too sure" if sure > right else "not sure enough"
    who = f"{name}: expected" if name else "Expected"
    return paragraph(
        f"{who} calibration error {percent(own.error, 2)} ({len(own.images)} bins; Guo et al. 2017). Mean confidence "
        f"{percent(sure)}, accuracy {percent(right)}: on the whole {side}. Negative log-likelihood {answers.nll:.3f}, "
        f"Brier score {answers.brier:.3f}."
    )


def mistakes(answers: Answers, names: Sequence[str], store: Store) -> Markup:
    """The wrong answers that were given with the most confidence."""
    wrong = np.flatnonzero(~answers.right)
    if not len(wrong):
        return paragraph(f"None of {len(answers.labels):,} test images is taken for another class.")
    order = wrong[np.argsort(-answers.confidence[wrong], kind="stable")][:MISTAKES]
    shown = []
    for row in order.tolist():
        true, found = names[answers.labels[row]], names[answers.predicted[row]]
        lines = (
            tag("p", "taken for ", tag("b", found), f", {percent(answers.confidence[row])}"),
            tag("p", "is ", tag("b", true), f", {percent(answers.of_true[row])}"),
        )
        shown.append(card(store, row, f"Test image {row}: {true}, taken for {found}", lines))
    said = f"{len(order)} of {len(wrong):,} wrong answers of {len(answers.labels):,} test images, the surest first."
    return join((paragraph(said), tag("ul", *shown, class_="cards")))


def card(store: Store, row: int, alt: str, lines: Sequence[Markup]) -> Markup:
    """A test image as it is stored, shrunk, with what is said of it."""
    return tag("li", image(thumbnail(store.images(row)), alt, side=_THUMB), *lines)


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(pixels)
    if max(picture.size) > _THUMB:
        picture.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def configuration(own: Facts) -> Markup:
    """The whole config, as the run folder has it."""
    text = tried(lambda: read_text(own.folder / "config.yaml", MOST_CONFIG))
    if not text:
        return note(f"config.yaml cannot be shown: {text.why}")
    lines = Markup("\n").join(escaped(line) for line in text.value.splitlines())  # a line break in a name is escaped
    return tag("pre", tag("code", Markup(lines)), tabindex="0", role="group", aria_label="config.yaml")


def provenance(own: Facts) -> Markup:
    """Which code, libraries, device, images and checkpoint this is."""
    summary, saved = own.summary or {}, own.saved.value or {}
    versions = summary.get("versions") if isinstance(summary.get("versions"), dict) else {}
    state = "complete" if own.is_complete else f"not complete: {own.epochs_done} of {own.config.optim.epochs} epochs"
    parts = [
        ("run folder", own.folder),
        ("state", state),
        ("seed", own.config.run.seed),
        ("checkpoint", f"{own.which}, epoch {saved['epoch']}, written {saved['time']}" if saved else own.saved.why),
        ("commit", summary.get("commit")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("device", summary.get("device")),
        ("ranks", summary.get("ranks")),
        ("training time", duration(summary.get("wall_s"))),
        ("images", own.config.data.source),
        ("teacher", _teacher(own)),
    ]
    return join((facts(parts), _images(own)))


def _teacher(own: Facts) -> str:
    teacher = own.config.teacher
    if teacher is None:
        return "none"
    return f"{teacher.recipe}, {'its weights found or trained' if teacher.weights is None else teacher.weights}"


def _images(own: Facts) -> Markup:
    """The splits with their fingerprints; a note where they are not those of the checkpoint."""
    trained = (own.saved.value or {}).get("data", [])
    if not own.stores:
        told = tag("p", "Fingerprints of the images it was trained on: ", tag("code", ", ".join(map(str, trained))))
        return join((note(f"The images cannot be read: {own.stores.why}"), told if trained else ""))
    stores = own.stores.value
    rows = [
        (store.split, f"{len(store):,}", f"{len(store.class_names):,}", tag("code", store.fingerprint))
        for store in stores.splits
    ]
    whole = table(("split", "images", "classes", "fingerprint (SHA-256)"), rows, caption="Images", texts=1)
    changed = "These are not the images that the run was trained on: their fingerprints differ."
    return join((note(changed) if trained and trained != stores.fingerprints else "", whole))


def duration(seconds: object) -> str:
    """'1 h 02 min', '3 min 05 s', '12 s'."""
    if type(seconds) not in (int, float) or not math.isfinite(seconds):
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def badges(values: Iterable[tuple[str, str]]) -> Markup:
    """The numbers that matter, above all else."""
    shown = [tag("li", tag("b", value), tag("span", name)) for name, value in values if value]
    return tag("ul", *shown, class_="badges")
