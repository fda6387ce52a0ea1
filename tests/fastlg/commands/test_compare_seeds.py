"""``compare --seeds``: a verdict from what every run makes of every test image; what does not fit is refused first."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from refusals import refused

from fastlg.config import load_config, save_config
from fastlg.data.stores import open_stores
from fastlg.run.folder import SHOWN
from fastlg.run.trained import load_trained

SHORT = ("optim.epochs=1", "optim.global_batch_size=39")
COMPARE = ("compare", "student.yaml", "--seeds", "2", "run.name=both", *SHORT)


def top1(folder) -> float:
    return json.loads((folder / "summary.json").read_text())["top1_last"]


def test_a_comparison_over_seeds_gives_a_verdict_from_the_images_themselves(project, fastlg, forked_runs):
    status, out, err = fastlg(*COMPARE)
    assert status == 0, (out, err)
    both = project / "runs" / "both"
    written = json.loads((both / "compare.json").read_text())
    gains = [top1(both / "guided" / seed) - top1(both / "unguided" / seed) for seed in ("seed3", "seed4")]
    evidence = written["evidence"]
    assert evidence["differences"] == pytest.approx(gains) and evidence["images"] == 33
    assert evidence["mean"] == pytest.approx(np.mean(gains)) and evidence["std"] == pytest.approx(np.std(gains, ddof=1))
    (line,) = written["findings"]
    assert line.startswith("guidance: ") and line in out and "±" in line
    assert ("no difference beyond the noise" in line) is not evidence["holds"]
    row = [text for text in (both / "compare.md").read_text().splitlines() if text.startswith("| guided - unguided")]
    assert f"| {np.mean(gains):+.2f} ± {np.std(gains, ddof=1):.2f} |" in row[0]
    assert "guided - unguided & " in (both / "compare.tex").read_text()

    run = both / "guided" / "seed3"
    kept = dict(np.load(run / "predictions.npz"))
    assert 100 * np.mean(kept["labels"] == kept["predicted"]) == pytest.approx(top1(run))
    assert kept["labels"].tolist() == open_stores(load_trained(run)[0].data).test.labels.tolist()

    # Once more: nothing is trained, and only what was damaged or is of another checkpoint is classified again.
    trained = {path: path.stat().st_mtime_ns for path in both.rglob("*.pt")}
    whole = both / "unguided" / "seed3" / "predictions.npz"
    classified = whole.stat().st_mtime_ns
    (both / "unguided" / "seed4" / "predictions.npz").write_bytes(b"PK no archive")
    np.savez(run / "predictions.npz", **{**kept, "predicted": 1 - kept["labels"], "checkpoint": "another"})
    status, out, err = fastlg(*COMPARE)
    assert status == 0 and line in out and "epoch 1/1" not in out, (out, err)
    assert trained == {path: path.stat().st_mtime_ns for path in both.rglob("*.pt")}
    assert json.loads((both / "compare.json").read_text())["evidence"] == evidence
    assert np.load(run / "predictions.npz")["predicted"].tolist() == kept["predicted"].tolist()
    assert whole.stat().st_mtime_ns == classified

    refused(fastlg("export", both, "out"), "holds a comparison over seeds", "runs/both/guided/seed3")
    refused(fastlg("compare", "student.yaml", "run.name=both"), "runs/both", "choose another run.name")


def other_seed(project) -> None:
    config = load_config("student.yaml", [*SHORT, "optim.lr=0.5", "run.seed=4", "run.name=both/guided/seed4"])
    config.run_dir.mkdir(parents=True)
    save_config(config, config.run_dir / "config.yaml")


def foreign_seed(project) -> None:
    (project / "runs" / "both" / "unguided" / "seed4").mkdir(parents=True)
    (project / "runs" / "both" / "unguided" / "seed4" / "thesis.tex").touch()


def damaged_seed(project) -> None:
    config = load_config("student.yaml", [*SHORT, "run.seed=4", "run.name=both/guided/seed4"])
    (config.run_dir / "checkpoints").mkdir(parents=True)
    save_config(config, config.run_dir / "config.yaml")
    (config.run_dir / "checkpoints" / "last.pt").write_bytes(b"PK")


def complete(config, fingerprints) -> None:
    config.run_dir.mkdir(parents=True)
    save_config(config, config.run_dir / "config.yaml")
    summary = dict.fromkeys(SHOWN, 1.0) | ({"fingerprints": fingerprints} if fingerprints else {})
    (config.run_dir / "summary.json").write_text(json.dumps(summary))


def of_other_images(project) -> None:
    complete(load_config("student.yaml", [*SHORT, "run.seed=4", "run.name=both/guided/seed4"]), ["others"])


def single_run(project) -> None:
    (project / "runs" / "both").mkdir(parents=True)
    shutil.copy(project / "student.yaml", project / "runs" / "both" / "config.yaml")


def of_one_seed(project) -> None:
    for part in ("unguided", "guided"):
        (project / "runs" / "both" / part).mkdir(parents=True)
        shutil.copy(project / "student.yaml", project / "runs" / "both" / part / "config.yaml")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_seed, ["both/guided/seed4 belongs to another config", "optim.lr"]),
        (foreign_seed, ["both/unguided/seed4 holds thesis.tex"]),
        (damaged_seed, ["seed4/checkpoints/last.pt cannot be read"]),
        (of_other_images, ["both/guided/seed4 was trained on other images than", "now holds", "run.name"]),
        (single_run, ["both holds a single run", "run.name"]),
        (of_one_seed, ["both holds a comparison of one seed", "run.name"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(project, fastlg, make, words):
    make(project)
    before = sorted((project / "runs").rglob("*"))
    refused(fastlg(*COMPARE), *words)
    assert sorted((project / "runs").rglob("*")) == before


def test_no_table_mixes_runs_that_saw_different_images(project, fastlg, image_folder):
    own = ("student.yaml", "teacher=null", *SHORT, "optim.lr=1e-3")
    now = open_stores(load_config("student.yaml").data).fingerprints
    for seed, seen in {3: now, 4: ["others"], 5: None}.items():  # of the last nobody noted it
        config = load_config(*own[:1], [*own[1:], f"run.seed={seed}", f"run.name=group/optim.lr=1e-3/seed{seed}"])
        complete(config, seen)
    before = sorted((project / "runs").rglob("*"))
    sweep = ("sweep", *own[:-1], "optim.lr=1e-3,2e-3", "run.name=group", "run.seed=3,4,5")
    refused(fastlg(*sweep), "seed4 was trained on other images than", "now holds", "choose another run.name")
    assert sorted((project / "runs").rglob("*")) == before
