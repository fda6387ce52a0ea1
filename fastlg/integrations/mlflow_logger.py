"""A callback that tells a run to MLflow: ``fastlg.train(..., callbacks=[MlflowLogger(experiment="mine")])``."""

from __future__ import annotations

import time
from typing import Any

from fastlg.callbacks import Ended, Evaluated, Report, Started
from fastlg.config import dotted
from fastlg.data.sources.base import import_extra
from fastlg.errors import Stopped

LONGEST = 500  # characters of a parameter, of which older servers take no more
MOST = 100  # parameters that a server takes at once


class MlflowLogger:
    """Losses, rates and accuracies by step as metrics (``train/loss``, ``eval/top1``), the config as parameters, the
    summary as tags.

    experiment    its name; it is made where there is none
    run_name      None: the run folder's
    tracking_uri  None: as MLflow itself finds it (MLFLOW_TRACKING_URI)

    MLflow's active run is neither used nor changed. It never fails a run (``may_fail``). A resumed training is another
    run of MLflow's. Raises UserError where MLflow is not installed.
    """

    may_fail = True

    def __init__(
        self, experiment: str = "fastlg", *, run_name: str | None = None, tracking_uri: str | None = None
    ) -> None:
        self.experiment, self.run_name, self.tracking_uri = experiment, run_name, tracking_uri
        self.mlflow = import_extra("mlflow", "mlflow", "MlflowLogger")
        self.client: Any = None
        self.run_id = ""

    def on_start(self, event: Started) -> None:
        self.client = self.mlflow.MlflowClient(self.tracking_uri)
        known = self.client.get_experiment_by_name(self.experiment)
        number = known.experiment_id if known is not None else self.client.create_experiment(self.experiment)
        self.run_id = self.client.create_run(number, run_name=self.run_name or event.folder.name).info.run_id
        texts = {key: str(value)[:LONGEST] for key, value in dotted(event.config).items()}
        params = [self.mlflow.entities.Param(key, value) for key, value in texts.items()]
        for start in range(0, len(params), MOST):
            self.client.log_batch(self.run_id, params=params[start : start + MOST])

    def on_report(self, event: Report) -> None:
        self._log({f"train/{name}": value for name, value in event.values.items()}, event.step)

    def on_evaluate(self, event: Evaluated) -> None:
        self._log({f"eval/{name}": getattr(event, name) for name in ("top1", "top5", "loss", "best")}, event.step)

    def on_end(self, event: Ended) -> None:
        if not self.run_id:  # it failed before it started
            return
        for name, value in (event.summary or {}).items():
            self.client.set_tag(self.run_id, f"summary.{name}", str(value))
        failed = "KILLED" if isinstance(event.error, (KeyboardInterrupt, Stopped)) else "FAILED"
        self.client.set_terminated(self.run_id, "FINISHED" if event.error is None else failed)

    def _log(self, values: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self.mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)
