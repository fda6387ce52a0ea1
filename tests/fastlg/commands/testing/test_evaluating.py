"""``fastlg eval``: calibration, classes, corrupted images, and one run against another, each against formulas written
out here."""

from __future__ import annotations

import csv
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusals import refused

import fastlg as package
from fastlg.batch import Batch
from fastlg.commands.evaluate import Pass, digest_of, to_test
from fastlg.commands.many.evidence import verdict, weigh
from fastlg.commands.testing import corrupted, go
from fastlg.commands.testing.answers import Answers, look
from fastlg.commands.testing.relative import relative_to
from fastlg.config import load_config
from fastlg.data.corruptions.apply import corrupt
from fastlg.data.corruptions.loader import corrupted_side
from fastlg.data.corruptions.strengths import NAMES
from fastlg.data.loaders.torch import crop_and_resize
from fastlg.run.metrics import Accuracy

SHORT = ("--corruptions", "--only", "gaussian_noise,contrast", "--severities", "1,5")


@pytest.fixture(scope="module")
def both(shared_project):
    """A comparison's folder: two students of one epoch, and the teacher beside it."""
    from fastlg.commands.compare import compare

    own = ["optim.epochs=1", f"run.root={shared_project / 'runs'}", f"data.store={shared_project / 'stores'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shared_project)
        config = load_config("student.yaml", own)
        compare(config)
    return config.run_dir


def test_nll_brier_and_calibration_are_their_formulas():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 2, (211, 7)), generator.integers(0, 7, 211)
    order = generator.permutation(211)

    def batches(epoch):
        for rows in np.array_split(order, 5):
            ids = torch.from_numpy(rows)
            yield Batch(torch.from_numpy(logits[rows]), torch.from_numpy(labels[rows]), ids, ids, ids)

    loader = SimpleNamespace(epoch=batches)
    views = lambda batch, epoch, train: SimpleNamespace(student=batch.images)  # noqa: E731
    found, accuracy = look(lambda images: images, loader, views, torch.device("cpu"), 211)
    columns = found.numpy()
    own = Answers(labels, columns[:, 0].astype(int), columns[:, 1], columns[:, 2], columns[:, 3], *columns[:, 4:].T)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert own.nll == pytest.approx(-np.mean([math.log(chances[i, labels[i]]) for i in range(211)]), rel=1e-12)
    assert own.brier == pytest.approx(((chances - np.eye(7)[labels]) ** 2).sum(axis=1).mean(), rel=1e-12)
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    error = 0.0
    for low in range(15):
        inside = (sure > low / 15) & (sure <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert own.calibrated().error == pytest.approx(error, rel=1e-12)
    assert accuracy.top1 == pytest.approx(100 * right.mean()) and accuracy.loss == pytest.approx(own.nll, rel=1e-5)


def test_of_two_runs_nothing_is_said_of_seeds_that_are_not_there():
    right = np.arange(60)[None] % 2 == 0
    said = verdict(weigh(right & (np.arange(60) > 40), right), "a against b", "no other seeds")
    assert said.startswith("a against b: +35.0 points") and said.endswith("; no other seeds") and "--seeds" not in said


def test_corruption_errors_are_shares_of_the_other_runs():
    errors, other = {"fog": [10.0, 30.0], "snow": [20.0, 20.0]}, {"fog": [20.0, 60.0], "snow": [20.0, 30.0]}
    found = relative_to(errors, 5.0, other, 10.0)
    assert found.of == {"fog": pytest.approx(100 * 40 / 80), "snow": pytest.approx(100 * 40 / 50)}
    assert found.relative_of == {"fog": pytest.approx(100 * 30 / 60), "snow": pytest.approx(100 * 30 / 30)}
    assert (found.mce, found.relative_mce) == (pytest.approx(65.0), pytest.approx(75.0))
    none = relative_to({"fog": [10.0], "snow": [3.0]}, 5.0, {"fog": [0.0], "snow": [4.0]}, 0.0)
    assert none.of["fog"] is None and none.mce is None and none.relative_of["snow"] == pytest.approx(-50.0)


def test_a_comparison_is_its_guided_run_against_the_unguided_one(both, fastlg):
    status, out, err = fastlg("eval", both, *SHORT)
    assert status == 0, err
    found = json.loads((both / "evaluation" / "evaluation.json").read_text())
    assert [run["name"] for run in found["runs"]] == ["guided", "unguided"]
    summary = json.loads((both / "summary.json").read_text())
    for run in found["runs"]:
        assert run["top1"] == pytest.approx(summary[run["name"]]["top1_last"]) and run["images"] == 33
        assert sum(run["bins"]["images"]) == 33
    evidence = json.loads((both / "compare.json").read_text())["evidence"]
    assert found["evidence"]["differences"] == pytest.approx(evidence["differences"])
    assert found["evidence"]["p_images"] == pytest.approx(evidence["p_images"])
    rows = found["corruptions"]["rows"]
    assert [(row["corruption"], row["severity"]) for row in rows] == [
        (name, severity) for name in ("gaussian_noise", "contrast") for severity in (1, 5)
    ]
    errors, other = ([row[key] for row in rows] for key in ("error", "error_against"))
    ce = [100 * sum(errors[i : i + 2]) / sum(other[i : i + 2]) for i in (0, 2)]
    assert found["corruptions"]["mce"] == pytest.approx(np.mean(ce))
    for row in found["classes"]:
        assert row["difference"] == pytest.approx(row["accuracy"] - row["against"])
    for name in ("scores.csv", "classes.csv", "corruptions.csv", "confusion.csv", "confusion_against.csv"):
        grid = list(csv.reader((both / "evaluation" / name).open()))
        assert len(grid) > 2 and len({len(row) for row in grid}) == 1, name
    page = (both / "evaluation" / "evaluation.md").read_text()
    assert "| mean |" in page and f"mCE {found['corruptions']['mce']:.1f} %" in page and "2 of 15 corruptions" in page
    for name in ("reliability.png", "confusion.png", "corruptions.png"):
        assert (both / "evaluation" / name).read_bytes().startswith(b"\x89PNG")
    assert "guided against unguided: " in out and "points of top-1" in out
    assert package.evaluate(both / "guided", against=both / "unguided").mce == pytest.approx(np.mean(ce))  # kept


def test_images_too_small_for_it_are_told_before_anything_is_measured(both, fastlg, monkeypatch):
    monkeypatch.setattr(corrupted, "corrupted_side", lambda store, size: 15)
    monkeypatch.setattr(go, "answers_of", None)
    refused(fastlg("eval", both, *SHORT), "are 15 px when they are corrupted", "16 px and more", "leave out")


def test_what_was_measured_is_shown_at_the_severities_that_most_have(both, monkeypatch):
    """Of fog and snow at 1 and 5 and contrast at 3 the two are shown, and contrast is named."""
    cells = {(name, severity): Accuracy(50.0, 90.0, 1.0, 33) for name in ("fog", "snow") for severity in (1, 5)}
    cells["contrast", 3] = Accuracy(40.0, 90.0, 1.0, 33)
    monkeypatch.setattr(go, "known_corrupted", lambda tested: corrupted.Corrupted(32, "CIFAR-10-C", dict(cells)))
    found = go.evaluate(both / "guided", "last", {})
    assert (sorted(found.names), found.severities) == (["fog", "snow"], [1, 5])
    assert any(note == "left out, measured at other severities: contrast" for note in found.notes)


def test_another_residual_stream_is_measured_anew_and_left_where_the_device_is_in_float32(both):
    keys = [
        corrupted._Kept(to_test(both / "guided", "last", {"engine.residual": residual}), 32).key
        for residual in ("fp32", "bf16")
    ]
    assert keys[0] != keys[1]
    own = to_test(both / "guided", "last", {"engine.residual": "bf16", "engine.precision": "fp32"})
    assert (
        corrupted.measure_corrupted(own, ["contrast"], [5]).found
        == corrupted.measure_corrupted(to_test(both / "guided", "last", {}), ["contrast"], [5]).found
    )


def test_what_is_measured_of_corrupted_images_is_what_the_network_makes_of_them(both):
    own = to_test(both / "guided", "last", {})
    found = corrupted.measure_corrupted(own, ["contrast"], [5]).found["contrast", 5]
    assert corrupted_side(own.store, 32) == 32  # images of several sizes are corrupted as they are seen
    whole = [crop_and_resize(own.store.images(i), [0, 0, *own.store.sizes[i]], 32, "bilinear") for i in range(33)]
    pixels = corrupt(torch.from_numpy(np.stack(whole)), torch.arange(33), "contrast", 5).numpy() / 255.0
    views = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        logits = own.network(torch.from_numpy(views).permute(0, 3, 1, 2).float())[0].numpy()
    assert found.top1 == pytest.approx(100 * (logits.argmax(axis=1) == own.store.labels).mean())


def test_an_interrupted_measurement_goes_on(both, fastlg, monkeypatch):
    run, call, calls = both / "unguided", Pass.__call__, []

    def counted(self, what, change=None):
        if change is not None:
            calls.append(change.keywords["name"])
            if len(calls) == 3:
                raise KeyboardInterrupt
        return call(self, what, change)

    monkeypatch.setattr(Pass, "__call__", counted)
    command = (
        "eval",
        run,
        "--corruptions",
        "--only",
        "brightness,pixelate",
        "--severities",
        "2,3",
        "--out",
        both / "o",
    )
    assert fastlg(*command)[0] == 130
    assert fastlg(*command)[0] == 0 and calls == ["brightness", "brightness", "pixelate", "pixelate", "pixelate"]
    status, out, _ = fastlg(*command)
    assert status == 0 and len(calls) == 5 and "4 measured before" in out
    kept = run / "evaluation" / corrupted.KEPT
    kept.write_text(kept.read_text()[:-40])  # cut short by whatever
    assert fastlg(*command)[0] == 0 and len(calls) == 9
    shutil.rmtree(both / "o")


def test_two_evaluations_at_once_keep_what_both_measure(both, tmp_path):
    """Each began before the other had written; and weights that are trained on meanwhile have entries of their own."""
    own = to_test(both / "guided", "last", {})._replace(folder=tmp_path)
    one, other = corrupted._Kept(own, 32), corrupted._Kept(own, 32)
    later = corrupted._Kept(own._replace(weights="others"), 32)
    for kept, name in ((one, "fog"), (later, "fog"), (other, "snow"), (one, "frost"), (later, "contrast")):
        kept.add(name, 1, Accuracy(50.0, 90.0, 1.0, 33))
    assert {name for name, _ in corrupted._Kept(own, 32).found} == {"fog", "snow", "frost"}
    assert {name for name, _ in corrupted._Kept(own._replace(weights="others"), 32).found} == {"fog", "contrast"}
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {corrupted.KEPT}


def test_what_is_measured_is_of_the_weights_that_were_read(both):
    """Not of the file, which a run that goes on replaces."""
    guided, unguided = (to_test(both / part, "last", {}) for part in ("guided", "unguided"))
    again = to_test(both / "guided", "last", {"engine.residual": "bf16", "data.workers": 1})
    assert again.weights == guided.weights != unguided.weights
    changed = guided.config.replace({"model.args.norm_layer": "layernorm2d"})
    assert digest_of(changed, guided.network) != guided.weights
    with torch.no_grad():
        again.network.bare.norm.bias[0] += 1e-3
    assert digest_of(again.config, again.network) != guided.weights


def files_below(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_folder_holds_the_files_of_one_call(both, fastlg, monkeypatch):
    monkeypatch.setattr(go, "known_corrupted", lambda tested: None)
    out = both.parent / "kept"
    out.mkdir()
    (out / "corruptions.csv").write_text("my own")
    assert fastlg("eval", both / "guided", "--out", out)[0] == 0
    assert (out / "corruptions.csv").read_text() == "my own", "nobody's evaluation lay there"
    assert fastlg("eval", both, *SHORT, "--out", out)[0] == 0
    whole = files_below(out)
    assert set(whole) == {"evaluation.json", *json.loads(whole["evaluation.json"])["files"]}
    assert {"corruptions.csv", "corruptions.png", "confusion_against.csv"} < set(whole)

    def full(found, folder):
        (folder / "reliability.png").write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(go, "draw", full)
        refused(fastlg("eval", both / "unguided", "--out", out), "cannot write", "No space left", status=1)
    assert files_below(out) == whole, "the earlier call's, as they were"
    (out / "notes.txt").write_text("mine")
    assert fastlg("eval", both / "unguided", "--out", out)[0] == 0
    now = files_below(out)
    found = json.loads(now["evaluation.json"])
    assert set(now) == {"evaluation.json", "notes.txt", *found["files"]}
    assert "corruptions.csv" not in now and "confusion_against.csv" not in now
    assert [run["weights"] for run in found["runs"]] == [to_test(both / "unguided", "last", {}).weights]


def test_a_comparison_over_seeds_is_evaluated_pair_by_pair(both, fastlg):
    """Of the second seed both sides are changed about, so that the mean difference is none."""
    folder = both.parent / "seeds"
    for name, sides in (("seed0", ("unguided", "guided")), ("seed10", ("guided", "unguided"))):
        for part, own in zip(("unguided", "guided"), sides, strict=True):
            shutil.copytree(both / own, folder / part / name)
    shutil.copytree(both / "unguided", folder / "unguided" / "seed9")
    status, out, err = fastlg("eval", folder, *SHORT)
    assert status == 0, err
    assert "left out: seed9, whose guided run is not complete" in out
    first, second = (
        json.loads((both / "summary.json").read_text()),
        json.loads((folder / "evaluation/evaluation.json").read_text()),
    )
    gain = first["guided"]["top1_last"] - first["unguided"]["top1_last"]
    assert second["notes"][0].startswith("left out: seed9") and second["seeds"][1]["seed"] == "seed10"
    assert second["evidence"]["differences"] == pytest.approx([gain, -gain])
    assert second["evidence"]["mean"] == pytest.approx(0) and not second["evidence"]["holds"]
    rows = list(csv.DictReader((folder / "evaluation" / "seeds.csv").open()))
    assert [(row["seed"], row["run"]) for row in rows] == [
        (seed, side) for seed in ("seed0", "seed10") for side in ("guided", "unguided")
    ]
    assert [float(row["top1"]) for row in rows] == pytest.approx(
        [first[side]["top1_last"] for side in ("guided", "unguided", "unguided", "guided")]
    )
    mean, spread = np.mean([first[side]["top1_last"] for side in ("guided", "unguided")]), abs(gain) / math.sqrt(2)
    assert f"{mean:.2f} ± {spread:.2f}" in out and "guided/seed10 against unguided/seed10" in out
    for name in ("seed0", "seed10"):
        assert (folder / "evaluation" / name / "corruptions.csv").exists()
    refused(fastlg("eval", folder, "--against", both / "guided"), "holds a comparison", "drop --against")
    shutil.rmtree(folder / "guided" / "seed0")
    (folder / "guided" / "seed10" / "summary.json").unlink()
    refused(fastlg("eval", folder), "without a complete pair", "train it on")


def test_of_python_an_evaluation_can_be_asked(both):
    run = package.open_run(both / "guided")
    plain, found = run.evaluate(), run.evaluate(details=True)
    assert found.accuracy == plain and found.scores["top1"] == plain.top1 and found.mce is None
    assert found.confusion.sum() == 33 and [row["images"] for row in found.classes] == [11, 11, 11]
    assert [row["accuracy"] for row in found.classes] == pytest.approx(100 * np.diag(found.confusion) / 11)
    noisy = package.evaluate(run, corruptions=["gaussian_noise"], severities=[5])
    assert [(row["corruption"], row["severity"]) for row in noisy.corruptions] == [("gaussian_noise", 5)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("{guided}", "--against", "{guided}"), ("is the run itself",)),
        (("{guided}", "--against", "nowhere"), ("there is no run nowhere",)),
        (("{both}", "--against", "{guided}"), ("drop --against",)),
        (("{guided}", "--only", "fog"), ("--only says which", "--corruptions")),
        (("{guided}", "--corruptions", "--only", "fogg"), ("--only names fogg", "did you mean fog?")),
        (("{guided}", "--corruptions", "--without", ",".join(NAMES)), ("leave no corruption",)),
        (("{guided}", "--corruptions", "--without", "frost", "--severities", "0,6"), ("--severities is 0,6",)),
        (("{guided}", "--out", "{guided}/config.yaml"), ("is a file", "give a folder")),
        (
            ("{guided}", "--out", "{guided}/config.yaml/x"),
            ("cannot write to", "config.yaml/x", "another folder (--out)"),
        ),
        (("{guided}", "--against", "{moved}"), ("different images", "data.source=")),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(both, image_folder, fastlg, given, words):
    places = {"both": both, "guided": both / "guided", "moved": both.parent / "moved"}
    if "{moved}" in given and not places["moved"].exists():
        fewer = both.parent / "fewer"
        shutil.copytree(image_folder, fewer)
        next((fewer / "test").rglob("*.png")).unlink()
        shutil.copytree(both / "unguided", places["moved"])
        saved = places["moved"] / "config.yaml"
        saved.write_text(saved.read_text().replace(str(image_folder), str(fewer)))
    refused(fastlg("eval", *(word.format(**places) for word in given)), *words)
