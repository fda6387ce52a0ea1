"""``fastlg predict``: the run's own transform and class names, as ``fastlg eval`` counts and as Pillow does by hand."""

from __future__ import annotations

import csv
import io
import json
import os

import numpy as np
import pytest
import torch
from made_images import write_images
from PIL import Image
from refusals import refused
from tiny_project import write_project

from fastlg.config import load_config
from fastlg.run.trained import load_trained
from fastlg.train import train

NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images/, a run and its export, of odd mean and std."""
    folder = tmp_path_factory.mktemp("predict")
    for split, count in (("train", 26), ("test", 7)):
        write_images(folder / "images" / split, per_class=count, seed=len(split))
    write_project(folder, folder / "images")
    changed = ("teacher=null", "optim.epochs=2", "augment.mean=[0.2,0.3,0.1]", "augment.std=[0.3,0.2,0.4]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTLG_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        train(load_config("student.yaml", [*changed, f"run.root={folder / 'runs'}", "engine.device=cpu"]))
        from fastlg.commands.export import export_student

        config, model, names = load_trained(folder / "runs" / "student")
        export_student(model, folder / "out", class_names=names, config=config)
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.setenv("FASTLG_CACHE", str(trained / "cache"))
    monkeypatch.chdir(trained)
    return trained


def by_hand(path, folder) -> np.ndarray:
    """Probabilities [3] by Pillow and numpy alone: squashed to 32 px, bilinear, normalised, through the bare model."""
    image = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = (np.asarray(image).astype(np.float64) / 255 - [0.2, 0.3, 0.1]) / [0.3, 0.2, 0.4]
    _, model, names = load_trained(folder / "runs" / "student")
    assert names == NAMES
    with torch.no_grad():
        logits = model.bare(torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32))[0].double().numpy()
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


@pytest.mark.parametrize("source", ["runs/student", "out"])
def test_probabilities_are_those_of_a_transform_by_hand(source, here, fastlg):
    status, out, err = fastlg("predict", source, "images/test", "--json")
    assert status == 0 and err == "", err
    found = json.loads(out)
    want = [f"images/test/{name}/{index:03d}.png" for name in NAMES for index in range(7)]
    assert [own["image"] for own in found] == want
    for own in found[::4]:
        want = by_hand(own["image"], here)
        given = {entry["class"]: entry["probability"] for entry in own["top"]}
        assert [given[name] for name in NAMES] == pytest.approx(want.tolist(), abs=2e-6)
        assert [entry["class"] for entry in own["top"]] == [NAMES[label] for label in np.argsort(-want)]


def test_as_many_are_right_as_eval_counts(here, fastlg):
    status, out, err = fastlg("predict", "runs/student", "images/test", "--csv", "--top-k", "1")
    assert status == 0, err
    rows = list(csv.DictReader(io.StringIO(out)))
    right = sum(row["class"] == row["image"].split("/")[2] for row in rows)
    assert {row["rank"] for row in rows} == {"1"} and len(rows) == 21
    status, out, _ = fastlg("eval", "runs/student")
    assert f"top-1 {100 * right / 21:.2f} %" in out and right > 0


def test_files_folders_and_patterns_are_each_predicted_once(here, fastlg):
    first = "images/test/blue/000.png"
    status, out, err = fastlg("predict", "out", first, "images/test/blue", "images/**/00[01].png", "--top-k", "9")
    assert status == 0, err
    lines = out.splitlines()
    assert len(lines) == 7 + 2 * 5 and lines[0].startswith(f"{first}: ") and lines[0].count(" %") == 3
    assert len({line.partition(": ")[0] for line in lines}) == len(lines)


def test_an_image_is_read_as_it_is_meant(here, fastlg, tmp_path):
    """Whatever a file is called, upright, grey or with alpha: as prepared images are."""
    turned = Image.open("images/test/red/001.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it back
    turned.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "turned.png").rename(tmp_path / "no suffix")
    Image.open("images/test/red/001.png").convert("RGBA").save(tmp_path / "alpha.png")
    paths = [tmp_path / "no suffix", tmp_path / "alpha.png", "images/test/red/001.png"]
    found = json.loads(fastlg("predict", "out", *paths, "--json")[1])
    assert found[0]["top"] == found[1]["top"] == found[2]["top"]


def test_what_cannot_be_read_is_told_and_left_out(here, fastlg, tmp_path):
    good = (here / "images/test/green/002.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "notes.txt").write_text("not an image by its name: not looked at")
    (tmp_path / ".hidden.png").write_bytes(good)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "good.png").write_bytes(good)
    status, out, err = fastlg("predict", "out", tmp_path, "--json")
    assert status == 1 and [own["image"] for own in json.loads(out)] == [str(tmp_path / "good.png")]
    lines = err.splitlines()
    assert len(lines) == 4 and all(line.startswith("fastlg: left out ") for line in lines)
    for name, why in (("cut.png", "damaged"), ("empty.jpg", "empty"), ("text.png", "not an image"), ("gone.png", "")):
        assert any(f"{name}: " in line and why in line for line in lines), name
    (tmp_path / "good.png").unlink()
    status, out, err = fastlg("predict", "out", tmp_path, "--json")
    assert status == 2 and json.loads(out) == [] and "none of the 4 images can be read" in err.splitlines()[-1]


def test_a_name_with_marks_stays_one_row(here, fastlg, tmp_path):
    odd = tmp_path / 'a, "b"\nc[1].png'
    odd.write_bytes((here / "images/test/green/002.png").read_bytes())
    assert list(csv.DictReader(io.StringIO(fastlg("predict", "out", odd, "--csv")[1])))[0]["image"] == str(odd)
    assert json.loads(fastlg("predict", "out", odd, "--json")[1])[0]["image"] == str(odd)
    assert len(fastlg("predict", "out", odd)[1].splitlines()) == 1


REFUSED = {
    ("predict", "out", "nothing.png"): "nothing.png does not exist",
    ("predict", "out", "images/*.gif"): "matches no file",
    ("predict", "out", "cache/stores"): "holds no images",
    ("predict", "nowhere", "images"): "there is no run nowhere",
    ("predict", "images", "images"): "is no run folder",
    ("predict", "out", "images", "--top-k", "0"): "--top-k is 0",
    ("predict", "out", "images", "--csv", "--json"): "exclude each other",
    ("predict", "runs/student", "images", "--which", "worst"): "--which is worst",
    ("predict", "broken", "images"): "is not what fastlg export writes",
}


@pytest.mark.parametrize("command", REFUSED, ids=" ".join)
def test_a_mistake_is_one_line_before_anything_is_printed(command, here, fastlg):
    os.makedirs("broken", exist_ok=True)
    for name, text in (("config.json", "{}"), ("model.safetensors", "")):
        with open(f"broken/{name}", "w") as file:
            file.write(text)
    result = fastlg(*command)
    refused(result, REFUSED[command])
    assert result[1] == ""
