"""From a table to its runs: what they would cost, or all of them, and the table after each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from fastlg import ranks
from fastlg.assemble import check_buildable
from fastlg.commands.many import forms
from fastlg.commands.many.pool import Pool, slots_for
from fastlg.commands.many.rows import Single, expect_same_images, singles_of
from fastlg.commands.many.table import Table
from fastlg.config import Config, EngineConfig, dotted, load_config
from fastlg.engine.precision import uses_cuda
from fastlg.errors import RunError, UserError
from fastlg.ranks.place import place
from fastlg.ranks.say import dispensable, say
from fastlg.run.folder import finished
from fastlg.run.report import read_metrics


def run_table(
    table: Table,
    folder: Path,
    name: str,
    *,
    jobs: int = 1,
    dry_run: bool = False,
    judge: Callable[[Table], None] | None = None,
) -> dict:
    """Trains what is missing, ``jobs`` runs at once, and returns the table's content, which is written after each.

    ``judge`` adds to the table what follows from it, once all have ended.

    Leaves ``folder``/NAME.md, .tex, .csv and .json, and the runs below. Raises RunError when a run failed, after all
    the others, and errors.Stopped when a signal came, after the runs at work have saved.
    """
    if place().world_size > 1 or ranks.has_begun():
        raise UserError("many runs are started from one process; leave torchrun or srun out and give --jobs N")
    singles = singles_of(table.entries)
    slots = slots_for(jobs, singles[0].config.engine.device)
    if dry_run:
        list_costs(table, singles)
        return table.as_json()

    uses_cuda(singles[0].config.engine)
    expect_same_images(singles)
    expect_writable(table, folder, name)

    def keep() -> None:
        with dispensable(f"the table {folder / name}", "it is written again after the next run"):
            forms.write(table, folder, name)

    try:
        Pool(slots, folder / "logs").run(singles, keep)
        if judge is not None:
            judge(table)
    finally:
        forms.show(table)
        forms.write(table, folder, name)
        say(f"table    {folder / name}.md, .tex, .csv, .json")
    failed = [single for single in singles if single.state != "done"]
    if failed:
        first = failed[0]
        raise RunError(
            f"{len(failed)} of {len(singles)} runs {first.state}, first {first.label}, seed {first.seed}: {first.why}; "
            "the table says which; the same command tries them again"
        )
    return table.as_json()


def expect_writable(table: Table, folder: Path, name: str) -> None:
    """Writes the table as it is before the runs. Raises UserError for a folder that cannot hold it."""
    try:
        forms.write(table, folder, name)
    except RunError as error:
        raise UserError(f"{error} (or choose another run.root or run.name)") from None


def list_costs(table: Table, singles: list[Single]) -> None:
    """Every run with its epochs, the teachers they share, and what is left to train."""
    say(table.title)
    left, doomed, known, teachers = 0, 0, {}, {}
    for single in singles:
        epochs, is_teacher = single.config.optim.epochs, single.config.model.is_cnn and single.config.teacher is None
        if is_teacher:
            teachers.setdefault(_teacher_key(single.config, single.config), []).append(single)
            say(f"  {single.label}, seed {single.seed}: the teacher, see below")
            continue
        at, state = _progress(single.config)
        if state == "to train" and (why := obstacle(single.config, known)):
            doomed, state = doomed + 1, f"will fail: {why}"
        left += epochs - at
        say(f"  {single.label}, seed {single.seed}: {epochs:,} epochs, {state}; {single.config.run_dir}")
        if single.config.teacher is not None and single.config.teacher.weights is None:
            recipe = load_config(single.config.teacher.recipe).replace(dotted(single.config.teacher.overrides))
            teachers.setdefault(_teacher_key(recipe, single.config), []).append(recipe)
    for key, users in teachers.items():
        name, epochs, seed, _, images = json.loads(key)
        on = f"on {images['source']}, seed {seed}"
        say(f"  teacher {name} {on}: {epochs:,} epochs unless it is there; for {len(users)} of the runs")
    own = sum(json.loads(key)[1] for key in teachers)
    say(f"total    {len(singles)} runs, {left:,} epochs left; {len(teachers)} teachers, {own:,} epochs at most")
    if doomed:
        say(f"warning  {doomed} of the runs cannot be built, and will fail; see above")
    for line in (*table.header(), *(line for line in table.notes() if not line.startswith("not run"))):
        say(line)


BUILT_OF = ("augment", "model", "teacher", "guidance", "drloc", "pretrain", "optim")
CLASSES = [str(number) for number in range(10)]  # of images that nobody has looked at yet


def obstacle(config: Config, known: dict[str, str]) -> str:
    """Why the parts of a run cannot be built, whatever its images and wherever it will run, which may be elsewhere; ""
    where they can. ``known``: those seen before."""
    anywhere = {"engine": EngineConfig(device="cpu"), "guidance": config.guidance.model_copy(update={"impl": "auto"})}
    config = config.model_copy(update=anywhere)
    key = json.dumps(config.model_dump(mode="json", include=set(BUILT_OF)), sort_keys=True)
    if key not in known:
        known[key] = ""
        try:
            check_buildable(config, SimpleNamespace(class_names=CLASSES), begins=False)
        except UserError as error:
            known[key] = str(error)
    return known[key]


def _teacher_key(recipe: Config, of: Config) -> str:
    """Tells teachers apart as their folders do, but for the images, of which the source has to do."""
    shaping = recipe.model_dump(mode="json", include={"augment": True, "model": True, "optim": True})
    fields = {"source", "holdout", "val", "label_column", "image_column", "on_bad"}
    images = of.data.model_dump(mode="json", include=fields)
    return json.dumps([recipe.model.name, recipe.optim.epochs, of.run.seed, shaping, images], sort_keys=True)


def _progress(config: Config) -> tuple[int, str]:
    """(epochs done, a word about it) of a run."""
    try:
        is_done = finished(config.run_dir, config) is not None
    except UserError as error:
        return 0, f"will fail: {error}"
    at = config.optim.epochs if is_done else epochs_done(config.run_dir)
    return at, "done" if is_done else f"{at} done" if at else "to train"


def epochs_done(folder: Path) -> int:
    """By its record; a run that is killed loses what came after its last checkpoint."""
    return max((row["epoch"] for row in read_metrics(folder) if row.get("kind") == "eval"), default=0)
