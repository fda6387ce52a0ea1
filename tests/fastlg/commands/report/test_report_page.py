"""What a report says is what the run did, saw and answered; and nobody is asked for anything to show it."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from html_tree import read
from PIL import Image

from fastlg.commands.hand_on.images import readable
from fastlg.commands.hand_on.predict import predictor_of
from fastlg.commands.report.facts import facts_of

SECTIONS = ["curves", "views", "attention", "classes", "calibration", "mistakes", "config", "provenance"]


@pytest.fixture(scope="module")
def pages(reported):
    return {name: read(path) for name, path in reported.pages.items()}


def pixels(image) -> np.ndarray:
    kind, _, content = image.attributes["src"].partition(";base64,")
    assert kind.startswith("data:image/")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("name", ["both", "guided"])
def test_the_page_stands_alone_and_can_be_read_by_everyone(name, pages):
    page = pages[name]
    ids = [node.attributes["id"] for node in page if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    assert [node.attributes["id"] for node in page.all("section")][-len(SECTIONS) :] == SECTIONS
    for node in page:
        assert node.name not in ("script", "link", "iframe", "object", "embed", "base", "form", "svg")
        assert not any(key.startswith("on") for key in node.attributes)
        for key in ("src", "srcset"):
            assert node.attributes.get(key, "data:image/").startswith("data:image/")
        assert node.attributes.get("href", "#")[1:] in ["", *ids] and node.attributes.get("href", "#")[0] == "#"
    assert all(len(image.attributes["alt"]) > 8 for image in page.all("img")) and len(page.all("img")) > 20
    assert all(cell.attributes["scope"] in ("row", "col") for cell in page.all("th"))
    levels = [int(node.name[1]) for node in page if node.name in ("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert page.all("html")[0].attributes["lang"] == "en"
    (policy,) = [node for node in page.all("meta") if node.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy.attributes["content"]
    assert "url(" not in page.all("style")[0].text and "@import" not in page.all("style")[0].text


def test_names_are_shown_as_they_are_and_never_obeyed(pages, reported):
    for name in ("both", "guided"):
        headings = {cell.text for cell in pages[name].by_id("classes").all("th")}
        assert set(reported.names) <= headings
        assert any("<script>alert(1)" in image.attributes["alt"] for image in pages[name].all("img"))
        assert "<script" not in reported.pages[name].read_text()


def test_answers_are_those_of_the_files_through_pillow_and_numbers_those_of_the_run(here, reported, pages, image_files):
    facts = facts_of(here / "runs/both/guided")
    found, names = facts.answers.value, reported.names
    given = predictor_of(here / "runs/both/guided")([*readable(image_files, [])], top_k=3)
    for row, own in enumerate(given):
        chances = dict(own.top)
        true = own.image.split("/")[-2]
        assert names[found.labels[row]] == true and names[found.predicted[row]] == own.top[0][0]
        assert found.confidence[row] == pytest.approx(own.top[0][1], abs=1e-5)
        assert found.of_true[row] == pytest.approx(chances[true], abs=1e-5)
        assert found.rank[row] == [name for name, _ in own.top].index(true)
    summary = json.loads((here / "runs/both/guided/summary.json").read_text())
    assert found.top1 == pytest.approx(summary["top1_last"]) and found.top(3) == 100
    badges = {own.all("span")[0].text: own.all("b")[0].text for own in pages["guided"].all("header")[0].all("li")}
    assert badges["top-1 on the test split"] == f"{summary['top1_last']:.2f} %"
    last = [json.loads(line) for line in (here / "runs/both/guided/metrics.jsonl").read_text().splitlines()][-1]
    assert badges["cross entropy"] == f"{last['loss']:.3f}"

    rows = [[cell.text for cell in row.content] for row in pages["guided"].by_id("classes").all("tr")]
    of_class = {cells[0]: cells for cells in rows if len(cells) == 5}
    for label, name in enumerate(names):
        mine = found.predicted[found.labels == label]
        assert of_class[name][2] == f"{100 * np.mean(mine == label):.1f}" and of_class[name][4] == "11"

    cards = pages["guided"].by_id("mistakes").all("li")
    wrong = [row for row in np.argsort(-found.confidence) if found.predicted[row] != found.labels[row]]
    assert len(cards) == min(12, len(wrong)) > 0
    for card, row in zip(cards, wrong, strict=False):
        said = [node.text for node in card.all("b")]
        assert said == [names[found.predicted[row]], names[found.labels[row]]]
        assert f"{100 * found.confidence[row]:.1f}\u00a0%" in card.text
        assert (pixels(card.all("img")[0]) == np.asarray(Image.open(image_files[row]))).all()


@pytest.fixture(scope="module")
def image_files(reported):
    return sorted((reported.folder / "images/test").glob("*/*.png"))


def test_views_are_what_training_saw(reported, pages):
    views, batch = reported.seen["guided"]
    std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    rows = pages["guided"].by_id("views").all("tr")[1:]
    assert len(rows) == 6
    for number, row in enumerate(rows):
        _, crop, student, teacher = row.all("img")
        assert (pixels(crop) == batch.images[number].numpy()).all()
        for image, seen in ((student, views.student), (teacher, views.teacher)):
            want = 255 * (seen[number].permute(1, 2, 0) * std + mean)
            np.testing.assert_allclose(pixels(image), want.clamp(0, 255).numpy(), atol=0.51)
        assert row.all("th")[0].text == reported.names[batch.labels[number]]
    said = pages["guided"].by_id("views").text
    assert "student, 32 px" in said and "teacher, 16 px" in said


def test_a_comparison_gives_the_verdict_of_compare_and_what_changed(here, reported, pages):
    page = pages["both"]
    (finding,) = json.loads((here / "runs/both/compare.json").read_text())["findings"]
    (said,) = [node.text for node in page if node.attributes.get("class") == "verdict"]
    assert said == finding
    before, after = (facts_of(here / "runs/both" / part).answers.value for part in ("unguided", "guided"))
    rows = [[cell.text for cell in row.content] for row in page.by_id("verdict").all("tr")[1:]]
    assert [(cells[0], cells[2]) for cells in rows] == [
        ("unguided", f"{before.top1:.2f}"),
        ("guided", f"{after.top1:.2f}"),
    ]
    mended, broken = (after.right & ~before.right).sum(), (before.right & ~after.right).sum()
    changed = page.by_id("mistakes").text
    assert f"{mended} of 33 test images" in changed and f"{broken} of 33 test images" in changed
    assert len(page.by_id("mistakes").all("li")) == min(6, mended) + min(6, broken)
    differing = {row.content[0].text for row in page.by_id("config").all("tr")[1:]}
    assert "teacher" in " ".join(differing) and not any(key.startswith(("optim", "data")) for key in differing)


def test_config_and_provenance_are_whole(here, pages):
    page, folder = pages["guided"], here / "runs/both/guided"
    assert page.by_id("config").all("code")[0].text.splitlines() == (folder / "config.yaml").read_text().splitlines()
    said, summary = page.by_id("provenance").text, json.loads((folder / "summary.json").read_text())
    state = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    for fact in (*state["data"], summary["device"], summary["commit"], summary["versions"]["torch"], "complete"):
        assert fact in said, fact
