"""The command lines of ``predict`` and ``export``; cli.py registers them. Imports nothing heavy before they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastlg.commands.line.arguments import RunFolder, Which


def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN|EXPORT", help="A run folder or an export.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Files, folders or 'patterns/**/*.jpg'.")],
    top_k: Annotated[int, typer.Option(metavar="K", help="How many classes to show for each image.")] = 5,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: a row per image and class.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one list.")] = False,
    which: Annotated[str, typer.Option(help="Checkpoint of a run to use: last or best.")] = "last",
) -> None:
    """Classify images with a trained run or an export: classes and probabilities.

    A file that cannot be read is reported on stderr and left out; the exit status is then 1.
    """
    from fastlg.commands.hand_on.images import image_files
    from fastlg.commands.line.early import expect_trained, expect_which
    from fastlg.errors import UserError

    if as_csv and as_json:
        raise UserError("--csv and --json exclude each other; give one")
    expect_which(which)
    expect_trained(folder)
    paths = image_files(images)

    from fastlg.commands.hand_on.predict import predict as run

    form = "csv" if as_csv else "json" if as_json else "text"
    raise typer.Exit(run(folder, paths, top_k=top_k, form=form, which=which))


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; new or empty.")],
    which: Which = "last",
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx, for any batch size.")] = False,
    backbone: Annotated[
        bool, typer.Option("--backbone", help="Export a feature network, for detectors and segmenters.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload to the Hugging Face Hub; a new repository is private."),
    ] = None,
) -> None:
    """Export the student without its teacher, as safetensors that plain timm loads, with a model card."""
    from fastlg.commands.line.early import expect_empty, expect_exporting, expect_which
    from fastlg.ranks.say import say
    from fastlg.run.folder import expect_run

    expect_which(which)
    expect_run(run)
    expect_empty(out)
    expect_exporting(onnx, push_to_hub, backbone)
    from fastlg.commands.export import export_student
    from fastlg.commands.hand_on.backbone import told
    from fastlg.commands.hand_on.card import how_to_load, measured_of
    from fastlg.commands.hand_on.hub import push
    from fastlg.ranks.pulse import Pulse
    from fastlg.run.trained import load_trained

    with Pulse(lambda: f"export   {run}"):
        config, model, names = load_trained(run, which)
        own = {"measured": measured_of(run, which), "onnx": onnx, "backbone": backbone}
        maps = export_student(model, out, class_names=names, config=config, **own)
    say(f"exported {run} ({which}) to {out}; load it with {how_to_load(model, out)}")
    if backbone:
        say(f"maps     {told(maps, config.model.image_size)}")
    if push_to_hub is not None:
        with Pulse(lambda: f"pushing  {out} to {push_to_hub}"):
            address = push(out, push_to_hub)
        say(f"pushed   {out} to {address}")
