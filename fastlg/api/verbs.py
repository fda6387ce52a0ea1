"""train, compare, evaluate, predict and sweep: what the command line does, for Python objects."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from fastlg.api.given import AS_CONFIGURED, as_command, config_of, network_of, text_of
from fastlg.api.results import Comparison, Rows, TrainedRun, open_run, predicted, table_of
from fastlg.commands.compare import compare as train_both
from fastlg.commands.hand_on.predict import predictor_of
from fastlg.commands.sweep import compare_seeds
from fastlg.commands.sweep import sweep as train_all
from fastlg.commands.testing.outcome import Evaluation
from fastlg.config import Config
from fastlg.data.stores import open_stores
from fastlg.derived import derived
from fastlg.errors import Silenced, Stopped, UserError
from fastlg.models.general.instances import offered
from fastlg.ranks.say import say
from fastlg.run.folder import refuse_unusable
from fastlg.run.metrics import Accuracy
from fastlg.train import train as train_one

AnyConfig = str | PathLike | Mapping | Config


def _verb(function: Callable) -> Callable:
    """Around each verb: what parts log is said, Ctrl-C (or a kernel's stop) ends it as Python's own."""

    @wraps(function)
    def told(*arguments: Any, **more: Any) -> Any:
        try:
            with _heard():
                return function(*arguments, **more)
        except Stopped as stopped:
            if stopped.status == 128 + signal.SIGINT:
                raise KeyboardInterrupt("the run is saved, the same call goes on") from None
            raise SystemExit(stopped.status) from None
        except Silenced as silenced:  # another rank says why
            raise SystemExit(silenced.status) from None

    return told


@_verb
def train(
    config: AnyConfig,
    *,
    data: Any = None,
    model: nn.Module | None = None,
    teacher: nn.Module | str | None = AS_CONFIGURED,
    callbacks: Sequence[object] = (),
    resume: str = "auto",
    **overrides: Any,
) -> TrainedRun:
    """Trains a run to its end, after its teacher if there is none yet, or continues it where it stopped.

    config     a YAML file, a shipped config's name ("cifar100/deit_tiny"), a mapping, or a fastlg.config.Config
    data       a path or name as in ``data.source``; a dataset of (image, label), with PIL images or uint8 tensors
               [C, H, W]; a Hugging Face dataset; or a pair (train, test) or dict of these or of paths
    model      a timm model, fastlg.models.Student or network with the same interface: a copy of it is trained, starting
               from its weights
    teacher    None: no guidance; a network that returns (logits [N, K], stage maps [N, C, H, W]), which is frozen;
               otherwise as the config says
    callbacks  objects that are notified of events (fastlg/callbacks.py)
    resume     auto, never, or a checkpoint, as ``--resume``
    overrides  dotted keys: ``**{"optim.epochs": 3}``

    The same call finds the same run again and continues it, or returns at once if it is complete. Raises UserError for
    a mistake in the arguments, RunError for a run that cannot continue.
    """
    with offered(model=network_of(model), teacher=teacher):
        read = config_of(config, overrides, data=data, model=model, teacher=teacher)
        if data is not None:
            stores = open_stores(read.data)
            refuse_unusable(derived(read, stores, is_told=False), resume, stores.fingerprints)
        summary = train_one(read, resume=resume, callbacks=callbacks)
    return TrainedRun(read.run_dir, summary, model)


@_verb
def compare(
    config: AnyConfig,
    *,
    data: Any = None,
    model: nn.Module | None = None,
    teacher: nn.Module | str | None = AS_CONFIGURED,
    seeds: int | Sequence[int] | None = None,
    jobs: int = 1,
    **overrides: Any,
) -> Comparison | Rows:
    """Trains the same student without and with guidance, on one budget; other arguments as in ``train``.

    seeds  number of seeds, or which ones: both sides are trained with each, in processes of their own, and the rows of
           a table (mean and spread) are returned
    jobs   how many runs train at once

    Raises UserError, also for network objects together with ``seeds``, and RunError.
    """
    if seeds is None and jobs == 1:
        with offered(model=network_of(model), teacher=teacher):
            read = config_of(config, overrides, data=data, model=model, teacher=teacher)
            return Comparison(read.run_dir, train_both(read), model)
    if any(isinstance(network, nn.Module) for network in (model, teacher)):
        raise UserError(
            "compare with seeds trains in processes of their own, which no object reaches; give model.name (or "
            "module:function) and teacher.weights instead"
        )
    chosen = None if seeds is None else str(seeds) if isinstance(seeds, int) else ",".join(map(str, seeds)) + ","
    name, texts = as_command(config, overrides, data, teacher=teacher)
    return table_of(compare_seeds(name, texts, chosen, jobs=jobs))


@_verb
def sweep(
    config: AnyConfig,
    settings: Mapping[str, Sequence[Any]],
    *,
    data: Any = None,
    jobs: int = 1,
    dry_run: bool = False,
    **overrides: Any,
) -> Rows:
    """Trains every combination of the given values: ``{"guidance.weight": [0, 1, 2.5], "run.seed": [0, 1]}``.

    settings  key -> list of values
    data      as in ``train``
    jobs      how many runs train at once, each in a process of its own
    dry_run   only list the runs

    Finished runs are not trained again. Returns the rows of a table, averaged over ``run.seed``: the values, mean and
    standard deviation of top1_last and top1_best in percent, and the run folders. Raises UserError, RunError.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"settings is a {type(settings).__name__}; give a mapping of keys to lists of values")
    for key, values in settings.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(f"settings[{key!r}] is {values!r}; give a list of values")
    name, texts = as_command(config, overrides, data)
    texts += [f"{key}={','.join(map(text_of, values))}" for key, values in settings.items()]
    return table_of(train_all(name, texts, jobs=jobs, dry_run=dry_run))


@_verb
def evaluate(
    run: TrainedRun | str | PathLike,
    data: Any = None,
    *,
    model: nn.Module | None = None,
    **more: Any,
) -> Accuracy | Evaluation:
    """Evaluates a run on its test split, or on ``data``, whose classes are matched by name.

    run    a TrainedRun or a run folder
    data   as in ``train``
    model  the network object that was passed to ``train``, if one was
    more   which, details, against, corruptions, severities, out and dotted keys, as in ``TrainedRun.evaluate``

    Returns an ``Accuracy`` (top1 and top5 in percent, loss in nats, count), or an ``Evaluation`` with any option that
    asks for more. Raises UserError.
    """
    own = run if isinstance(run, TrainedRun) else open_run(run, model)
    return own.evaluate(data, **more)


@_verb
def predict(run: TrainedRun | str | PathLike, images: Any, top_k: int = 5) -> Rows:
    """Classifies images with a TrainedRun, a run folder or an export; see ``TrainedRun.predict``. Raises UserError."""
    if isinstance(run, TrainedRun):
        return run.predict(images, top_k)
    return predicted(predictor_of(Path(run).expanduser()), images, top_k)


class _Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextmanager
def _heard() -> Iterator[None]:
    """Says what parts log of their choices, unless somebody listens already."""
    logger = logging.getLogger("fastlg")
    if logger.hasHandlers():
        yield
        return
    handler, level = _Saying(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
