"""The command lines of ``configs`` and ``config``; cli.py registers them."""

from __future__ import annotations

from typing import Annotated

import typer

from fastlg.commands.line.arguments import Overrides
from fastlg.commands.line.complete import complete_config


def configs(
    text: Annotated[
        str, typer.Argument(metavar="[TEXT]", help="Only configs with this text in their name or description.")
    ] = "",
) -> None:
    """List the shipped configs with their published accuracy."""
    from fastlg.commands.line.config_pages import list_configs

    list_configs(text)


def config(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="A YAML file or a shipped config.", autocompletion=complete_config),
    ] = None,
    overrides: Overrides = None,
    keys: Annotated[bool, typer.Option("--keys", help="Explain every key: its values, default and meaning.")] = False,
    page: Annotated[bool, typer.Option("--markdown", help="With --keys: as the page docs/configuration.md.")] = False,
) -> None:
    """Show a config in full, with all defaults, or explain every key (--keys)."""
    from fastlg.commands.line.config_pages import show_config, show_keys, show_page
    from fastlg.errors import UserError

    if page and (not keys or name is not None):
        raise UserError("--markdown writes the page of all keys: fastlg config --keys --markdown")
    if page:
        show_page()
    elif keys:
        show_keys(name, overrides or [])
    elif name is None:
        raise UserError("config needs the name of one (fastlg configs lists them), or --keys")
    else:
        show_config(name, overrides or [])
