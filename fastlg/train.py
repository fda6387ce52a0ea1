"""``fastlg train``: the whole recipe. Finds or trains the teacher, trains the student, leaves the run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from fastlg import ranks
from fastlg.assemble import assemble, check_buildable
from fastlg.batch import Batch, Views
from fastlg.callbacks import Callbacks
from fastlg.config import Config
from fastlg.data.stores import Stores, open_stores, what_changed
from fastlg.derived import derived
from fastlg.engine.build import stand_in
from fastlg.engine.precision import pick_device, uses_cuda
from fastlg.engine.prefetch import prefetched
from fastlg.engine.schedule import guidance_share, schedule_of
from fastlg.errors import RunError
from fastlg.features import expect_features, find_features
from fastlg.models.build import new_model
from fastlg.models.general.teaching import as_teacher
from fastlg.ranks.say import say
from fastlg.ranks.stop import StopRequest
from fastlg.run.folder import finished, refuse_unusable, resume_source, seen_images, told_score
from fastlg.run.lock import run_lock
from fastlg.run.metrics import Meter
from fastlg.run.parts import Parts
from fastlg.run.plan import say_plan
from fastlg.run.report import Pulse
from fastlg.run.run import Run
from fastlg.run.trained import load_teacher
from fastlg.teacher.recipe import teacher_config


def train(
    config: Config,
    *,
    resume: str = "auto",
    dry_run: bool = False,
    waits: bool = False,
    callbacks: Sequence[object] = (),
    is_teacher: bool = False,
) -> dict:
    """Trains to the end (or from the last checkpoint to the end) and returns summary.json's content.

    ``dry_run`` builds every part and takes one step on the first two training images, but trains and writes nothing.
    While another process trains in the run folder, this one is refused, or waits and takes its result (``waits``).
    ``callbacks`` are told what happens (callbacks.py), of this run and not of its teacher's. ``is_teacher``: of another
    run, whose config is the one to mend. Every rank of a run calls it alike. Raises UserError, RunError, or
    errors.Stopped after it saved.
    """
    told = Callbacks(callbacks)
    own = ranks.joined(cuda=uses_cuda(config.engine), timeout_s=config.engine.timeout_s)
    with own, Pulse(lambda: f"starting {config.run_dir}"):
        config = derived(config)
        done = _finished(config, resume, is_teacher=is_teacher)
        if done is not None:
            return done
        if dry_run:
            return rehearse(_parts(config, resume, dry_run=True, is_teacher=is_teacher))
        with run_lock(config.run_dir, waits=waits):
            done = _finished(config, resume, is_teacher=is_teacher)
            return done or _train(config, resume, told, is_teacher=is_teacher)


def _finished(config: Config, resume: str, *, is_teacher: bool) -> dict | None:
    """Summary of a run that is complete already; None for one to train. All ranks learn it from rank 0.

    Other images than it saw are told: a teacher's folder is named by its own.
    """
    done = ranks.first_says(finished(config.run_dir, config) if ranks.is_first() else None)
    if done is None or resume != "auto":
        return None
    seen = seen_images(config.run_dir) if ranks.is_first() and not is_teacher else None
    changed = what_changed(config.data, seen) if seen else ""
    say(f"finished {config.run_dir} is complete ({told_score(done)}); nothing to do")
    if changed:
        say(f"warning  since it was trained {changed}; another run.name trains on what is there")
    return done


def _parts(config: Config, resume: str, *, dry_run: bool, is_teacher: bool) -> Parts:
    """Of the run, its teacher found or trained before."""
    stores = open_stores(config.data)
    expect_trainable(config, stores, resume)
    teacher, size, features = None, None, None
    if config.teacher is not None:
        teacher, size = find_or_train_teacher(config, stores, dry_run=dry_run)
        features = find_features(config, stores, teacher, size, dry_run=dry_run)
    parts = assemble(config, stores, teacher, size, features, begins=_begins(config, resume))
    say_plan(parts, is_teacher=is_teacher)
    return parts


def expect_trainable(config: Config, stores: Stores, resume: str = "auto", *, is_later: bool = False) -> None:
    """Raises UserError for whatever would be refused later on, before anything is trained for the run.

    Where a teacher is to be trained first, all parts are built with an untrained one, and dropped. ``is_later``: other
    runs come first, so that this is done with a trained teacher too.
    """
    begins = _begins(config, resume)
    check_buildable(config, stores, begins=begins)
    if ranks.is_first():
        refuse_unusable(config, resume, stores.fingerprints)
    if config.teacher is None:
        return
    is_trained = config.teacher.weights is not None or has_teacher(config, stores)
    if is_trained and not is_later:
        return
    if is_trained:
        teacher, size = find_or_train_teacher(config, stores, dry_run=True)
    else:
        teacher, size = untrained_teacher(config, stores)
    expect_features(config, stores, teacher, size, is_trained=is_trained)
    alone = config.replace(stand_in(config.engine, pick_device(config.engine)))
    assemble(alone, stores, teacher, size, begins=False)


def _begins(config: Config, resume: str) -> bool:
    """Whether a run begins anew; else a checkpoint holds its weights. All ranks learn it from rank 0."""
    return ranks.first_says(resume_source(config.run_dir, resume) is None if ranks.is_first() else None)


def has_teacher(config: Config, stores: Stores) -> bool:
    """Whether the teacher that a config's recipe makes is complete. Raises UserError where it cannot be made."""
    recipe = teacher_config(config, stores.fingerprints)
    return ranks.first_says(finished(recipe.run_dir, recipe) is not None if ranks.is_first() else None)


def untrained_teacher(config: Config, stores: Stores) -> tuple[nn.Module, int]:
    """(teacher, its image size in px) of a config's recipe, its weights drawn."""
    recipe = teacher_config(config, stores.fingerprints)
    drawn = new_model(recipe.model, None, len(stores.class_names))
    return as_teacher(drawn, recipe.augment, config.augment), recipe.model.image_size


def _train(config: Config, resume: str, callbacks: Callbacks, *, is_teacher: bool) -> dict:
    parts = _parts(config, resume, dry_run=False, is_teacher=is_teacher)
    with StopRequest() as stop, Pulse(lambda: f"at work  {config.run_dir}"):
        run = Run(parts, stop, resume, callbacks)
        try:
            run.begin()
            fit(parts, run)
            summary = run.finish()
        except BaseException as error:
            with contextlib.suppress(RunError):  # of a callback that fails here, too: the first error is the reason
                run.end(None, error)
            raise
        finally:
            run.close()
        run.end(summary)
        stop.raise_if_set()  # a signal during the last evaluation: this run is complete, whatever follows it is not
        return summary


def fit(parts: Parts, run: Run) -> None:
    """The training loop."""
    optim = parts.config.optim
    learning_rate = schedule_of(optim)
    parts.unit.train()
    for epoch in range(run.position.epoch, optim.epochs):
        parts.engine.set_learning_rate(learning_rate(epoch))
        begin_epoch(parts, epoch)
        for views, batch in run.steps(batches(parts, epoch, run.position.batch)):
            run.after_step(parts.engine.step(views, batch, parts.step_total(run.position.batch)))
        run.after_epoch()


def begin_epoch(parts: Parts, epoch: int) -> None:
    """Sets the student to the size of the epoch's images, and what is left of the guidance; at 0 the teacher rests.

    Of a run without labels, what its own schedules say.
    """
    if parts.self_teaching is not None:
        return parts.self_teaching.begin_epoch(parts.engine, epoch)
    if parts.views.student_size is not None:
        parts.unit.take_size(parts.views.student_size(epoch))
    guidance, epochs = parts.config.guidance, parts.config.optim.epochs
    if parts.teacher is not None and guidance.fades:
        share = guidance_share(epoch, schedule=guidance.schedule, until=guidance.until, epochs=epochs)
        parts.unit.set_share(share)
        parts.engine.ask_teacher(share > 0)


def batches(parts: Parts, epoch: int, start: int = 0) -> Iterator[tuple[Views, Batch]]:
    """(views, batch) of an epoch from batch ``start`` on, on the device."""

    def make_views(batch: Batch) -> Views:
        return parts.views(batch, epoch)

    loader = parts.train_loader.epoch(epoch, start)
    if parts.switches.prefetch:
        return prefetched(loader, make_views, parts.device)
    return ((make_views(batch), batch) for batch in loader)


def rehearse(parts: Parts) -> dict:
    """One update on each rank's first two training images: every shape of the run is tried.

    Raises RunError when the loss is not finite.
    """
    with Pulse(lambda: "dry run  the first step"):
        return _rehearse(parts)


def _rehearse(parts: Parts) -> dict:
    batch = next(iter(parts.train_loader.epoch(0)))
    batch = batch._replace(**{name: value[:2] for name, value in batch._asdict().items()})
    begin_epoch(parts, 0)
    views = parts.views(batch, 0)
    total = int(ranks.total(torch.tensor(len(batch.labels), device=parts.device)))
    out = parts.engine.step(views, batch, total)
    meter = Meter(parts.device)
    meter.update(out, 0)
    meter.check()
    say(f"dry run  one step on {len(batch.labels)} images: loss {out.loss.item():.4f}; nothing was written")
    return {"loss": out.loss.item()}


def find_or_train_teacher(config: Config, stores: Stores, *, dry_run: bool) -> tuple[nn.Module, int]:
    """(teacher, its image size in px): from ``teacher.weights``, or trained once by its recipe on the run's data."""
    recipe = teacher_config(config, stores.fingerprints)
    wanted = {"views": config.augment, "is_asked": config.guidance.logits != "none"}
    if config.teacher.weights is not None:
        return load_teacher(config.teacher.weights, recipe, stores, **wanted)
    if dry_run and not has_teacher(config, stores):
        say(f"teacher  {recipe.model.name} would be trained first, in {recipe.run_dir}; untrained here")
        return untrained_teacher(config, stores)
    train(recipe, waits=True, is_teacher=True)
    return load_teacher(recipe.run_dir, recipe, stores, **wanted)
