"""A run that was stopped leaves the record of one that was not, whatever it resumes must be its own, and every step is
drawn anew."""

from __future__ import annotations

import json

import pytest
import torch
from made_images import write_images
from rank_processes import train_in_turn
from reach import ALONE, config_of, parts_of

import fastlg.run.run as run_module
from fastlg.data.stores import open_stores
from fastlg.errors import UserError
from fastlg.ranks.stop import StopRequest
from fastlg.run.checkpoint import load_checkpoint
from fastlg.run.metrics import Accuracy
from fastlg.run.report import read_metrics
from fastlg.run.run import Run, step_seed
from fastlg.teacher.recipe import teacher_config
from fastlg.train import fit, train

TIMES = {"images_per_s", "wall_s"}
SMALL = (*ALONE, "model.init=timm", "model.drop_path=0.3", "optim.epochs=3", "optim.lr=0.003", "log.every_steps=3")


def record(folder) -> tuple:
    """(summary, rows of metrics.jsonl) without what a clock measured."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return tuple([{k: v for k, v in row.items() if k not in TIMES} for row in part] for part in ([summary], rows))


def test_a_stopped_and_resumed_run_leaves_the_same_summary_metrics_and_best_checkpoint(project):
    whole, cut = (["teacher=null", *SMALL, f"run.name={name}"] for name in ("whole", "cut"))
    train_in_turn([(whole, None), (cut, 2), (cut, 4), (cut, None)])  # stopped within its first and its second epoch
    one, other = (project / "runs" / name for name in ("whole", "cut"))
    assert record(one) == record(other)
    summary, rows = record(one)
    tested = [row["top1"] for row in rows if row["kind"] == "eval"]
    assert len(tested) == 3 and summary[0]["top1_best"] == max(tested) and summary[0]["top1_last"] == tested[-1]
    for name in ("last.pt", "best.pt"):
        saved, resumed = (load_checkpoint(folder / "checkpoints" / name) for folder in (one, other))
        assert all(torch.equal(value, resumed["unit"][key]) for key, value in saved["unit"].items()), name
        timed = {"train_seconds", "wall_seconds", "images"}  # the last: those whose seconds were counted
        kept = [{k: v for k, v in each["position"].items() if k not in timed} for each in (saved, resumed)]
        assert kept[0] == kept[1], name
    best = load_checkpoint(one / "checkpoints" / "best.pt")["position"]["epoch"]
    assert best == 1 + tested.index(max(tested)), "the first of equals"


@pytest.mark.parametrize(
    ("scores", "best"), [([50, 60, 55], 2), ([60, 60, 60], 1), ([50, 40, 50], 1), ([10, 20, 30], 3), ([0, 0, 0], 1)]
)
def test_best_is_replaced_by_what_is_better_and_kept_by_what_is_equal(project, monkeypatch, scores, best):
    scripted = iter(scores)
    monkeypatch.setattr(run_module, "evaluate", lambda parts: Accuracy(next(scripted), 100.0, 1.0, 33))
    summary = train(config_of(*SMALL, "model.args.depth=1", "model.blocks=[0]", "optim.global_batch_size=78"))
    saved = load_checkpoint(project / "runs" / "student" / "checkpoints" / "best.pt")
    assert saved["position"]["epoch"] == best and summary["top1_best"] == max(scores)


def test_best_is_remembered_over_a_resume(project, monkeypatch):
    options = [*SMALL, "optim.global_batch_size=78"]
    scripted = iter([70, 60, 65])
    monkeypatch.setattr(run_module, "evaluate", lambda parts: Accuracy(next(scripted), 100.0, 1.0, 33))
    with StopRequest() as stop:
        run = Run(parts_of(*options), stop)
        run.after_step = _once(run.after_step, 1)
        with pytest.raises(StopIteration):
            fit(run.parts, run)
        run.close()
    summary = train(config_of(*options))
    saved = load_checkpoint(project / "runs" / "student" / "checkpoints" / "best.pt")
    assert saved["position"]["epoch"] == 1 and summary["top1_best"] == 70 and summary["top1_last"] == 65


def _once(after_step, count: int):
    """``after_step``, which ends the loop as a kill would before its call number ``count + 1``."""
    done = []

    def called(out):
        if len(done) == count:
            raise StopIteration
        done.append(1)
        after_step(out)

    return called


def test_a_checkpoint_of_other_images_is_refused(project, tmp_path):
    train(config_of(*SMALL, "optim.epochs=1"))
    for split in ("train", "test"):
        write_images(tmp_path / "other" / split, per_class=26 if split == "train" else 11, seed=77)
    (project / "runs" / "student" / "summary.json").unlink()
    with pytest.raises(UserError, match="was trained on other images"):
        train(config_of(*SMALL, "optim.epochs=1", f"data.source={tmp_path / 'other'}"))


def test_a_teacher_is_never_found_again_for_other_images_another_seed_or_recipe(project, tmp_path):
    write_images(tmp_path / "other" / "train", per_class=5, seed=77)
    write_images(tmp_path / "other" / "test", per_class=5, seed=78)
    write_images(tmp_path / "half" / "train", per_class=5, seed=77)  # the same to train on, others to test on
    write_images(tmp_path / "half" / "test", per_class=5, seed=79)
    cases = {
        "as it is": (),
        "other images": (f"data.source={tmp_path / 'other'}",),
        "other test images": (f"data.source={tmp_path / 'half'}",),
        "another seed": ("run.seed=4",),
        "another size": ("teacher.overrides.model.image_size=24",),
        "another rate": ("teacher.overrides.optim.lr=0.06",),
        "another augmentation": ("teacher.overrides.augment.flip=0",),
        "another precision": ("engine.precision=bf16",),
    }
    folders = {}
    for name, overrides in cases.items():
        config = config_of(*overrides)
        folders[name] = teacher_config(config, open_stores(config.data).fingerprints).run_dir
    assert len(set(folders.values())) == len(cases), folders
    again = config_of("data.workers=1", "guidance.weight=1", "optim.lr=1", "log.every_steps=9", "run.name=x")
    found = teacher_config(again, open_stores(again.data).fingerprints).run_dir
    assert found == folders["as it is"], "what does not shape it finds it"


def test_the_seed_of_a_step_depends_on_run_step_and_rank_and_drop_path_follows_it(project, monkeypatch):
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(30) for rank in range(4)}
    assert len(seeds) == 3 * 30 * 4
    drawn = []
    with StopRequest() as stop:
        for rank in (0, 1):
            run = Run(parts_of(*SMALL, f"run.name=rank{rank}"), stop)
            monkeypatch.setattr(run_module.ranks, "rank", lambda rank=rank: rank)
            pairs = [(None, None)] * 3
            for _ in run.steps(pairs):
                drawn.append(torch.rand(4).tolist())
                run.position.batch += 1
            run.close()
            monkeypatch.undo()
            monkeypatch.chdir(project)
    assert len({tuple(own) for own in drawn}) == 6, "every step and rank draws its own"
    torch.manual_seed(step_seed(3, 1, 0))
    assert torch.rand(4).tolist() == drawn[1], "from the run's seed, the step and the rank alone"


def test_rows_that_are_no_rows_are_left_out(tmp_path):
    good = {"kind": "train", "step": 3, "loss": 1.0}
    odd = [
        "",
        "{",
        "[]",
        "1",
        '"step"',
        "{}",
        '{"step": "x"}',
        '{"step": null}',
        '{"step": 1e999}',
        "[" * 9999,
        "9" * 9999,
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*odd, json.dumps(good), '{"kind": "tr']))
    assert read_metrics(tmp_path) == [good]
