"""Runs told to Weights & Biases and to MLflow, both offline; to a stand-in where they are not installed."""

from __future__ import annotations

import json

import pytest

from fastlg.config import load_config
from fastlg.errors import RunError, UserError
from fastlg.integrations.mlflow_logger import MlflowLogger
from fastlg.integrations.wandb_logger import WandbLogger
from fastlg.train import train

ALONE = ["teacher=null", "optim.epochs=2"]


class Board:
    """Stands in for a run of wandb's."""

    def __init__(self):
        self.rows, self.summary, self.ended = {}, {}, []

    def log(self, values, step):
        assert not self.rows or step >= max(self.rows), "wandb drops what comes with an earlier step"
        self.rows.setdefault(step, {}).update(values)

    def finish(self, exit_code):
        self.ended.append(exit_code)


def record(project):
    lines = (project / "runs" / "student" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_board_gets_what_the_record_holds_and_is_left_open(project):
    board = Board()
    summary = train(load_config("student.yaml", ALONE), callbacks=[WandbLogger(board)])
    for row in record(project):
        told = board.rows[row["step"]]
        for name in ("loss", "top1"):
            assert told[f"{row['kind']}/{name}"] == row[name]
    assert sorted(board.rows) == [2, 4, 6, 8] and board.summary == summary and board.ended == []


def test_a_board_that_breaks_down_does_not_break_the_run(project, capfd):
    class Broken(Board):
        def log(self, values, step):
            raise ConnectionError("no route to host")

    train(load_config("student.yaml", ALONE), callbacks=[WandbLogger(Broken())])
    assert "WandbLogger.on_report failed: no route to host (ConnectionError)" in capfd.readouterr().out


@pytest.mark.parametrize("logger", [WandbLogger, MlflowLogger])
def test_a_missing_extra_is_one_line(logger, monkeypatch):
    extra = logger.__name__.lower().removesuffix("logger")
    monkeypatch.setitem(__import__("sys").modules, extra, None)
    with pytest.raises(UserError, match=rf"pip install 'fastlg\[{extra}\]'"):
        logger()


def test_wandb_keeps_the_run_offline(project, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(dir=str(project), project="mine", settings=wandb.Settings(console="off", silent=True))
    train(load_config("student.yaml", ALONE), callbacks=[logger])
    assert logger.run.name == "student" and logger.run.project == "mine"
    assert logger.run.config["optim"]["epochs"] == 2
    (file,) = project.glob("wandb/offline-run-*/*.wandb")
    kept = file.read_bytes()
    assert b"train/loss" in kept and b"eval/top1" in kept
    for row in record(project):
        assert repr(row["loss"]).encode() in kept


def test_mlflow_keeps_the_run_in_a_local_file(project):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{project / 'mlflow.db'}"

    class Breaks:
        def on_epoch_end(self, event):
            if event.epoch == 2:
                raise ValueError("late")

    logger = MlflowLogger("mine", tracking_uri=uri)
    train(load_config("student.yaml", ALONE), callbacks=[logger])
    client = mlflow.MlflowClient(uri)
    run = client.get_run(logger.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "student"
    assert run.data.params["optim.epochs"] == "2" and "summary.commit" in run.data.tags
    rows = record(project)
    for kind, name in (("train", "loss"), ("train", "lr"), ("eval", "top1")):
        history = client.get_metric_history(logger.run_id, f"{kind}/{name}")
        assert [(own.step, own.value) for own in history] == [(r["step"], r[name]) for r in rows if r["kind"] == kind]
    second = MlflowLogger("mine", tracking_uri=uri)
    with pytest.raises(RunError):
        train(load_config("student.yaml", [*ALONE, "run.name=b"]), callbacks=[second, Breaks()])
    failed = client.get_run(second.run_id)
    assert failed.info.status == "FAILED" and failed.info.experiment_id == run.info.experiment_id
