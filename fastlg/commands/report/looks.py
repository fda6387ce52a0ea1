"""What student and teacher see, and what the student attends to, of a run's own images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from fastlg.analysis import pictures
from fastlg.analysis.go import COLUMNS, SHOWN
from fastlg.analysis.measure import Findings, measure
from fastlg.analysis.subject import Subject, batches, evenly
from fastlg.analysis.subject import pictures as whole_images
from fastlg.assemble import make_views
from fastlg.commands.prepare import teacher_size_of
from fastlg.commands.report.charts import chart
from fastlg.commands.report.facts import Facts, Had, tried
from fastlg.commands.report.markup import Markup, image, join, note, paragraph, table, tag
from fastlg.data.loaders.of_run import new_loader
from fastlg.data.stores import Stores
from fastlg.data.views.sheet import tiles
from fastlg.engine.precision import pick_device
from fastlg.models.student import Student

SAMPLES = 6  # whose views are shown
LOOKED_AT = 64  # images whose attention is measured
_TILE = 112  # px
_TITLES = {"stored, crop in red": "stored image, its crop in red"}


def views_of(facts: Facts) -> Markup:
    """The first training images of epoch 1 through the run's own loader and augmentation."""
    if (own := facts.config.pretrain) is not None:
        small = f" and {own.local_crops} small" if own.local_crops else ""
        return note(
            f"Not shown: without labels the networks see 2 large{small} crops of an image, each changed by itself."
        )
    if not facts.stores:
        return note(f"Not shown, for the images cannot be read: {facts.stores.why}")
    made = tried(lambda: _views(facts, facts.stores.value))
    return made.value if made else note(f"The views could not be made: {made.why}")


def _views(facts: Facts, stores: Stores) -> Markup:
    config, size = facts.config, teacher_size_of(facts.config)
    loader = new_loader(config, stores.train, pick_device(config.engine), train=True)
    batch = next(iter(loader.epoch(0)))
    maker = make_views(config, size, len(stores.class_names))
    if not maker.mixer.active:  # otherwise who is mixed with whom depends on the whole batch
        batch = batch._replace(**{name: value[:SAMPLES] for name, value in batch._asdict().items()})
    views = maker(batch, 0)
    shown = tiles(stores.train, batch, views, mean=config.augment.mean, std=config.augment.std, count=SAMPLES)
    rows = []
    for number, label in enumerate(batch.labels[:SAMPLES].tolist()):
        name = stores.class_names[label]
        seen = [
            image(of_kind[number], f"{kind}: {name}, sample {number + 1}", side=_TILE)
            for kind, of_kind in shown.items()
        ]
        rows.append([_target(views.targets[number], stores.class_names), *seen])
    columns = ["class", *(_title(kind, of_kind) for kind, of_kind in shown.items())]
    said = [f"The first {len(rows)} training images of epoch 1, by the run's own loader, crops and augmentation."]
    if facts.saved and facts.saved.value["data"] != stores.fingerprints:
        said.append(f"{config.data.source} holds other images now than the run was trained on, and these are of them.")
    if maker.mixer.active:
        said.append("Images are mixed with each other: the class says how much is left of each.")
    if config.teacher is not None and config.teacher.mode != "online":
        said.append(
            f"teacher.mode is {config.teacher.mode}: the teacher may have been read from its features on disk, which "
            "follow crops and flips alone."
        )
    if config.teacher is None:
        said.append("This run has no teacher.")
    return join((paragraph(" ".join(said)), table(columns, rows, texts=len(columns), kind="views")))


def _title(kind: str, seen: Sequence) -> str:
    side = f", {seen[0].shape[0]} px" if kind != "stored, crop in red" else ""
    return f"{_TITLES.get(kind, kind)}{side}"


def _target(target: torch.Tensor, names: Sequence[str]) -> str:
    """A class's name; of a mixed image all that are in it."""
    if target.dim() == 0:
        return names[int(target)]
    present = [(share, label) for label, share in enumerate(target.tolist()) if share > 0.005]
    shares = sorted(present, reverse=True)
    return " + ".join(f"{names[label]} {100 * share:.0f} %" for share, label in shares)


def attention_of(sides: dict[str, Facts]) -> Markup:
    """Maps, rollout and distance of one student or two, each by its name; why there is nothing, where there is not."""
    found: dict[str, Findings] = {}
    said, images = [], None
    for name, facts in sides.items():
        seen = _looked_at(name, facts)
        prefix = f"{name}: " if len(sides) > 1 else ""
        if not seen:
            said.append(note(f"{prefix}{seen.why}"))
            continue
        found[name], images = seen.value
        said += [note(f"{prefix}{line}") for line in found[name].notes]
    return join((*said, *_maps(found, images)))


def _maps(found: dict[str, Findings], images) -> list[Markup]:
    who = " and ".join(found)
    drawn, beside = [], []
    if any(own.middle for own in found.values()):
        chosen = evenly(min(len(own.middle) for own in found.values() if own.middle), COLUMNS)
        alt = f"Attention maps of {who}: what the token in the middle of each of {len(images)} test images attends to"
        alt += f" in blocks {', '.join(map(str, chosen))}"
        drawn.append(chart(partial(pictures.draw_attention, found, images, chosen), alt))
    if any(own.rollouts is not None for own in found.values()):
        alt = f"Attention rollout of {who} over {len(images)} test images: where the answer comes from"
        beside.append(chart(partial(pictures.draw_rollouts, found, images), alt))
    if any(own.blocks for own in found.values()):
        alt = f"Attention distance of every head of {who}, block by block, in pixels"
        caption = f"The mean over {max(own.images for own in found.values())} test images."
        beside.append(chart(partial(pictures.draw_distances, found), alt, caption))
    return [*drawn, *([tag("div", *beside, class_="beside")] if beside else [])]


def _looked_at(name: str, facts: Facts) -> Had:
    """(Findings, uint8 images [N, S, S, 3] that its maps are of)."""
    if not (facts.network and facts.stores):
        return Had(None, f"attention is left out: {facts.network.why or facts.stores.why}")
    student, names = facts.network.value
    if not isinstance(student, Student):
        return Had(None, f"{facts.config.model.name} is a CNN, which has no attention")
    subject = Subject(name, Path(facts.folder), student, facts.config, names, facts.config)
    made = tried(lambda: _measured(subject, facts.stores.value))
    return made if made else Had(None, f"attention is left out: {made.why}")


def _measured(subject: Subject, stores: Stores) -> tuple[Findings, object]:
    store, device = stores.test, pick_device(subject.config.engine)
    rows = evenly(len(store), LOOKED_AT)
    first = [rows[place] for place in evenly(len(rows), SHOWN)]
    rows = [*first, *(row for row in rows if row not in first)]
    pairs = batches(subject, store, rows, None, device)
    found = measure(subject.student.to(device), pairs, shown=len(first))
    subject.student.cpu()
    return found, whole_images(store, first, subject.config.model.image_size)
