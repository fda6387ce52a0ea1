"""What a shell completes: names of shipped configs, keys, and the words that a key takes.

bash parts words at ``=``: there a value is a word of its own, behind the key and the sign.
"""

from __future__ import annotations

import contextlib

import typer

MODEL = "model.name"
Words = list[tuple[str, str]]  # (what may be meant, a line about it, which zsh and fish show)


def complete_config(incomplete: str) -> Words:
    """Shipped configs. Nothing where none begins like this: then the shell completes files."""
    from fastlg.commands.line.config_pages import title
    from fastlg.config import shipped_configs

    found: Words = []
    for name, path in shipped_configs().items():
        if name.startswith(incomplete):
            with contextlib.suppress(OSError):
                found.append((name, title(path)))
    return found


def complete_model(incomplete: str) -> Words:
    """Models of timm, and ours."""
    from fastlg.commands.line.early import model_names

    return [(name, "") for name in sorted(model_names()) if name.startswith(incomplete)]


def complete_override(ctx: typer.Context, incomplete: str) -> Words:
    """``section.key=value``: keys, and of a single key its words, or else its default as what it looks like."""
    from fastlg.config.reference import REQUIRED, keys

    known = {key.name: key for key in keys()}
    given = [word for words in ctx.params.values() if isinstance(words, (list, tuple)) for word in words]
    key = next((known[word] for word in reversed(given[-2:]) if word in known), None)
    if key is not None and given[-1] in ("=", key.name):  # bash; right behind the sign typer leaves it out
        if key.name == MODEL:
            return complete_model(incomplete)
        return [(word, key.meaning) for word in key.choices if word.startswith(incomplete)]
    near = [key for name, key in known.items() if f"{name}=".startswith(incomplete.partition("=")[0])]
    if "=" in incomplete:
        near = [key for key in near if incomplete.startswith(f"{key.name}=")]
    elif len(near) > 1 and len({key.name.partition(".")[0] for key in near}) > 1 and "." not in incomplete:
        return [(f"{name}.", "") for name in dict.fromkeys(key.name.partition(".")[0] for key in near)]
    if len(near) != 1:
        return [(f"{key.name}=", key.meaning) for key in near]
    (key,) = near
    if key.name == MODEL and "=" in incomplete:
        return [(f"{key.name}={name}", "") for name, _ in complete_model(incomplete.partition("=")[2])]
    words = key.choices or (() if key.default == REQUIRED else (key.default,))
    values = [(f"{key.name}={word}", key.meaning) for word in words]
    return [*([] if len(values) > 1 else [(f"{key.name}=", key.meaning)]), *values]
