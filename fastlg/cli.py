"""The command line. Commands import what they need when they run, so that ``--help`` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastlg.commands.analyze import analyze
from fastlg.commands.hand_on import arguments as hand_on
from fastlg.commands.line import config_commands
from fastlg.commands.line.arguments import ConfigName, DryRun, Gpus, Overrides, Resume
from fastlg.commands.line.complete import complete_model
from fastlg.commands.line.ending import run_app, show_version
from fastlg.commands.line.start import start_ranks
from fastlg.commands.many import arguments as many
from fastlg.commands.report.arguments import report
from fastlg.commands.testing import arguments as testing

app = typer.Typer(
    name="fastlg",
    help="Train vision transformers on tiny datasets with locality guidance (arXiv 2207.10026).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


BESIDE = ("predict",)  # commands whose stdout is a result that programs read
TRAINING, OF_A_RUN, AROUND = "Train", "Use and examine a trained run", "Data, configs and this machine"  # of --help


@app.callback()
def of_all_commands(
    ctx: typer.Context,
    local_rank: Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True)] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The deepspeed launcher gives its option before the command; its environment says the same (ranks/place.py).

    Whatever a command is at, imports too, it does not fall silent for long.
    """
    from fastlg.ranks.pulse import Pulse

    name = ctx.invoked_subcommand
    ctx.with_resource(Pulse(lambda: f"at work  fastlg {name}", aside=name in BESIDE))


@app.command(rich_help_panel=TRAINING)
def train(
    config: ConfigName,
    overrides: Overrides = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    gpus: Gpus = None,
) -> None:
    """Train a student from a config, after its teacher if there is none yet.

    Most often set: data.source, run.name, run.seed, model.name, model.image_size, optim.epochs, optim.lr,
    optim.global_batch_size, guidance.weight, and teacher=null for no guidance.

    See also: `fastlg config --keys` explains every key, `fastlg config CONFIG` shows a config in full,
    `fastlg configs` lists the shipped ones.
    """
    from fastlg.commands.line.early import expect_run
    from fastlg.config import load_config

    loaded = load_config(config, overrides or [])
    expect_run(loaded, resume)
    start_ranks(gpus, loaded)

    from fastlg.ranks.say import say
    from fastlg.run.folder import told_score
    from fastlg.train import train as run

    summary = run(loaded, resume=resume, dry_run=dry_run)
    if not dry_run:
        chooser = "the validation split" if loaded.data.val else "the test split, as in the paper"
        say(
            f"done     {loaded.run_dir}: {told_score(summary)} "
            f"(best {summary['top1_best']:.2f} %, chosen on {chooser}), "
            f"{summary['images_per_s']:,.0f} images/s, {summary['wall_s']:,.0f} s"
        )


@app.command(rich_help_panel=TRAINING)
def pretrain(
    config: ConfigName,
    overrides: Overrides = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    gpus: Gpus = None,
) -> None:
    """Pretrain a config's student on its images without labels; model.weights=RUN then starts a run from it.

    Of a config without a pretrain section, only model, images, epochs and batch size are used; the rest is the recipe
    of Gani et al. 2022 (docs/systems.md).
    """
    from fastlg.commands.line.early import expect_run
    from fastlg.commands.pretrain import pretrain as run
    from fastlg.commands.pretrain import unlabelled

    loaded, told = unlabelled(config, overrides or [])
    expect_run(loaded, resume)
    start_ranks(gpus, loaded)

    from fastlg.ranks.say import say

    if told:
        say(told)
    run(loaded, resume=resume, dry_run=dry_run)


@app.command(rich_help_panel=TRAINING)
def compare(
    config: ConfigName,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    seeds: many.Seeds = None,
    jobs: many.Jobs = 1,
) -> None:
    """Train the same student without and with guidance and show the difference; with --seeds, as a table over seeds."""
    if seeds is not None or jobs != 1:
        from fastlg.commands.sweep import compare_seeds

        return compare_seeds(config, overrides or [], seeds, jobs=jobs, gpus=gpus, dry_run=dry_run)
    from fastlg.commands.line.early import expect_possible
    from fastlg.config import load_config

    loaded = load_config(config, overrides or [])
    expect_possible(loaded)
    start_ranks(gpus, loaded)

    from fastlg.commands.compare import compare as run

    run(loaded, overrides=overrides or [], dry_run=dry_run)


app.command(rich_help_panel=TRAINING)(many.sweep)
app.command(rich_help_panel=TRAINING)(many.reproduce)
app.command("eval", rich_help_panel=OF_A_RUN)(testing.evaluate)
app.command(rich_help_panel=OF_A_RUN)(hand_on.predict)
app.command(rich_help_panel=OF_A_RUN)(hand_on.export)
app.command(rich_help_panel=OF_A_RUN)(report)
app.command(rich_help_panel=OF_A_RUN)(analyze)
app.command(rich_help_panel=AROUND)(config_commands.configs)
app.command(rich_help_panel=AROUND)(config_commands.config)


@app.command(rich_help_panel=AROUND)
def prepare(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Whatever data.source accepts (docs/data.md).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the store.")],
    on_bad: Annotated[
        str, typer.Option(help="fail: stop at images that cannot be used. skip: leave them out.")
    ] = "fail",
    short_side: Annotated[int | None, typer.Option(help="Shrink images to this short side, px.")] = None,
    max_side: Annotated[int | None, typer.Option(help="Shrink images to this long side, px.")] = None,
    holdout: Annotated[float, typer.Option(help="Fraction of the training images to hold out for testing.")] = 0.0,
    val: Annotated[
        str, typer.Option(help="Validation images, as data.val: a fraction of the training images, or split.")
    ] = "0",
    label_column: Annotated[str | None, typer.Option(help="Column with the labels, for a parquet source.")] = None,
    download: Annotated[bool, typer.Option(help="Download a torchvision: or hf:// source if needed.")] = True,
    beton: Annotated[str | None, typer.Option(help="Also write .beton files, with raw or jpeg images.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Write a PNG of what a model would be shown.")] = None,
) -> None:
    """Decode and check every image once and write the store that training reads."""
    from fastlg.commands.line.early import expect_source

    expect_source(source)
    from fastlg.commands.prepare import check_preview, preview_store, val_of
    from fastlg.commands.prepare import prepare as run

    if preview is not None:
        check_preview(preview)
    of_source = {"holdout": holdout, "val": val_of(val), "label_column": label_column, "download": download}
    path = run(source, out, on_bad=on_bad, short_side=short_side, max_side=max_side, beton=beton, **of_source)
    if preview is not None:
        preview_store(path, preview)


@app.command(rich_help_panel=AROUND)
def cache(config: ConfigName, overrides: Overrides = None) -> None:
    """Run a config's teacher once over the training images and store its features, for teacher.mode=cache."""
    from fastlg.commands.line.early import expect_possible
    from fastlg.config import load_config

    loaded = load_config(config, overrides or [])
    expect_possible(loaded)
    from fastlg.commands.cache import make_cache

    make_cache(loaded)


@app.command(rich_help_panel=AROUND)
def models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILTER]", help="Part of a name, or a pattern such as swin*tiny*.", autocompletion=complete_model
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="PX", min=8, max=4096, help="Size of the images, px.")
    ] = None,
) -> None:
    """List students and teachers with their parameter counts and the features that can be guided."""
    from fastlg.commands.line.early import expect_listed

    expect_listed(pattern)
    from fastlg.commands.models import list_models

    list_models(pattern, image_size)


@app.command(rich_help_panel=AROUND)
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benchmarks to run; default: all.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases and repetitions: under a minute.")] = False,
    compare: Annotated[
        Path | None, typer.Option(metavar="OLD.json", help="Also print ratios to earlier results.")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also write torch.profiler traces.")] = False,
    readme: Annotated[
        Path | None, typer.Option(metavar="RESULTS.json", help="Only fill README's section from a results file.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override for every config that is measured."),
    ] = None,
) -> None:
    """Run the benchmarks on this machine; needs a source checkout."""
    from fastlg.commands.bench import run_benchmarks

    flags = {"--quick": quick, "--profile": profile}
    paths = {flag: path for flag, path in {"--compare": compare, "--readme": readme}.items() if path is not None}
    arguments = [*(names or []), *(flag for flag, given in flags.items() if given)]
    arguments += [f"{flag}={path}" for flag, path in paths.items()]
    arguments += [f"--set={setting}" for setting in settings or []]
    raise typer.Exit(run_benchmarks(arguments, *paths.values()))


@app.command(rich_help_panel=AROUND)
def doctor() -> None:
    """Report what this machine offers, what is missing and how to install it."""
    from fastlg.commands.doctor import report

    report()


def main() -> None:
    """Entry point."""
    run_app(app)
