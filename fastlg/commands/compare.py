"""``fastlg compare``: does guidance help on my data? The same budget without and with it, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rich.table import Table as Drawn

from fastlg import ranks
from fastlg.commands.many import forms
from fastlg.commands.many.judge import try_to_judge
from fastlg.commands.many.rows import Row, Single
from fastlg.commands.many.table import Table
from fastlg.config import Config
from fastlg.data.stores import open_stores
from fastlg.derived import derived
from fastlg.engine.precision import uses_cuda
from fastlg.errors import UserError
from fastlg.ranks.say import console, dispensable, say
from fastlg.run.curves import plot_curves
from fastlg.run.folder import expect_compare_folder, finished, read_summary, refuse_unusable
from fastlg.run.lock import run_lock
from fastlg.run.report import Pulse, read_metrics
from fastlg.run.run import write_summary
from fastlg.teacher.recipe import teacher_config
from fastlg.train import expect_trainable, train

COLUMNS = {"top1_last": "top-1 %", "top1_best": "best %", "images_per_s": "images/s", "wall_s": "wall s"}


def compare(config: Config, *, overrides: Sequence[str] = (), dry_run: bool = False) -> dict:
    """Trains teacher, unguided and guided student of one config; returns {teacher, unguided, guided: summary}.

    Both students share seed, initial weights, images, augmentation and schedule. Leaves summary.json, curves.png and
    compare.md, .tex, .csv and .json with the verdict in the run folder, and the two runs below it. ``overrides``: what
    the config was given, for the table's header. Every rank of a run calls it alike.
    """
    own = ranks.joined(cuda=uses_cuda(config.engine), timeout_s=config.engine.timeout_s)
    with own, Pulse(lambda: f"at work  {config.run_dir}"):
        return _compare(config, overrides, dry_run)


def _compare(config: Config, overrides: Sequence[str], dry_run: bool) -> dict:
    if config.teacher is None:
        raise UserError(f"{config.run.name} has no teacher section; compare needs one to guide with")
    folder = config.run_dir
    if ranks.is_first():
        expect_compare_folder(folder)
    with contextlib.nullcontext() if dry_run else run_lock(folder):
        return _train_all(config, overrides, dry_run)


def _train_all(config: Config, overrides: Sequence[str], dry_run: bool) -> dict:
    folder = config.run_dir
    stores = open_stores(config.data)
    unguided = config.replace({"run.root": str(folder), "run.name": "unguided", "teacher": None})
    config, unguided = derived(config, stores), derived(unguided, stores)
    teacher = teacher_config(config, stores.fingerprints) if config.teacher.weights is None else None
    guided = config.replace({"run.root": str(folder), "run.name": "guided"})
    if teacher is not None:  # both students and later comparisons share the teacher of the outer root
        guided = guided.replace({"teacher.weights": str(teacher.run_dir)})
    done = {}
    if ranks.is_first():
        done = {part.run_dir.name: finished(part.run_dir, part) is not None for part in (unguided, guided)}
        for part in (unguided, guided):  # both sides see the same images, or nothing is compared
            if done[part.run_dir.name]:
                refuse_unusable(part, "auto", stores.fingerprints)
    for part in (unguided, config.replace({"run.root": str(folder), "run.name": "guided"})):
        if not ranks.first_says(done).get(part.run_dir.name):
            expect_trainable(part, stores, is_later=True)
    summaries = {}
    if teacher is not None:
        say("")
        say("1/3 teacher")
        summaries["teacher"] = train(teacher, dry_run=dry_run, waits=True, is_teacher=True)
    elif known := read_summary(config.teacher.weights):
        summaries["teacher"] = known
    say("")
    say("2/3 unguided")
    summaries["unguided"] = train(unguided, dry_run=dry_run)
    say("")
    say("3/3 guided")
    summaries["guided"] = train(config if dry_run else guided, dry_run=dry_run)
    if dry_run:
        return summaries
    table = _table(config, summaries, overrides)
    try_to_judge(table)
    if not ranks.is_first():
        return summaries
    write_summary(folder, summaries)
    is_drawn = plot_curves(
        {name: read_metrics(folder / name) for name in ("unguided", "guided")},
        folder / "curves.png",
        "validation" if config.data.val else "test",
    )
    with dispensable("the table", f"{folder}/summary.json holds what it would show"):
        show(summaries)
        for line in table.findings:
            say(line)
    forms.write(table, folder, "compare")
    say(f"{'curves, ' if is_drawn else ''}summary and compare.md, .tex, .csv and .json in {folder}")
    return summaries


def _table(config: Config, summaries: dict[str, dict], overrides: Sequence[str]) -> Table:
    """Both students as rows, for the files and the verdict; both were trained for as many epochs."""
    entries = []
    for name in ("unguided", "guided"):
        own = config.replace({"run.root": str(config.run_dir), "run.name": name})
        single = Single(name, own, (), state="done", summary=summaries[name])
        entries.append((Row({"row": name}, config.run.name, (), own, name), [single]))
    epochs = summaries["guided"]["epochs"]
    title = f"{config.run.name}: without and with guidance, {epochs} epoch{'s' * (epochs != 1)}"
    return Table(title, entries, [config.run.seed], list(overrides))


def show(summaries: dict[str, dict]) -> None:
    """The closing table."""
    table = Drawn(title=None, show_edge=False)
    table.add_column("run")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for name, summary in summaries.items():
        table.add_row(name, *(f"{summary[key]:,.1f}" for key in COLUMNS))
    console.print()
    console.print(table)
