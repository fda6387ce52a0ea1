"""Lays the documentation out as a site's source and builds it: ``make docs``, or ``python scripts/site.py [FOLDER]``.

The pages are the files that a reader of the repository sees: README.md is the first one. Their links are rewritten
here: to a page where one is meant, else to a copy of the file below files/. A link that leads nowhere ends it, as does
whatever the builder calls wrong (mkdocs.yml: strict). Writes FOLDER/source and FOLDER/site; default: build/docs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from os.path import relpath
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {  # pages outside docs/ -> their name on the site
    "README.md": "index.md",
    "kernels/README.md": "kernels.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")  # [text](target), ![alt](target)
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
BUILDERS = (("zensical", ["build", "--strict", "--clean"]), ("mkdocs", ["build", "--strict", "--quiet"]))


def pages() -> dict[Path, str]:
    """File in the repository -> name on the site, of every page."""
    found = {ROOT / path: name for path, name in ELSEWHERE.items()}
    return found | {path: path.name for path in sorted((ROOT / "docs").glob("*.md"))}


def links(text: str) -> Iterator[re.Match]:
    """Of a page, but of no code on it."""
    blank = FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    blank = re.sub(r"(`+)[^`].*?\1", lambda found: re.sub(r"[^\n]", " ", found[0]), blank, flags=re.DOTALL)
    return LINK.finditer(blank)


def is_local(target: str) -> bool:
    return not re.match(r"[a-z][a-z0-9+.-]*:|#", target)


def on_site(page: Path, text: str, source: Path) -> str:
    """``text`` with links as the site has them; files that are linked are copied to it. Raises FileNotFoundError."""
    parts, end, names = [], 0, pages()
    for found in links(text):
        address, mark, anchor = found[0].partition("#")
        if not is_local(found[0]):
            continue
        target = (page.parent / address).resolve()
        if not target.is_file() or ROOT not in target.parents:
            raise FileNotFoundError(f"{page.relative_to(ROOT)}: the link to {found[0]} leads to no file")
        if target not in names:
            copy = source / "files" / target.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, copy)
        name = names.get(target, f"files/{target.relative_to(ROOT)}")
        parts += [text[end : found.start()], name, mark, anchor]
        end = found.end()
    return "".join([*parts, text[end:]])


def navigation(entries: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    """``entries`` of mkdocs.yml without those whose page is not there, and all pages that none of them names."""
    left = set(names)

    def kept(entry: dict[str, Any]) -> dict[str, Any] | None:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            inner = [own for own in map(kept, target) if own is not None]
            return {title: inner} if inner else None
        left.discard(target)
        return entry if target in names else None

    found = [own for own in map(kept, entries) if own is not None]
    return [*found, {"More": sorted(left)}] if left else found


def lay_out(folder: Path) -> Path:
    """Writes folder/source and folder/mkdocs.yml, which is returned. Raises FileNotFoundError for a dead link."""
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for page, name in pages().items():
        (source / name).write_text(on_site(page, page.read_text(encoding="utf-8"), source), encoding="utf-8")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    config |= {"docs_dir": "source", "site_dir": "site", "nav": navigation(config["nav"], set(pages().values()))}
    python = next(own["mkdocstrings"] for own in config["plugins"] if isinstance(own, dict))["handlers"]["python"]
    python["paths"] = [relpath(ROOT / path, folder) for path in python["paths"]]
    path = folder / "mkdocs.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "docs").resolve()
    builder = next(((name, words) for name, words in BUILDERS if find_spec(name) is not None), None)
    if builder is None:
        print("the site is built by Zensical: pip install 'fastlg[docs]'", file=sys.stderr)
        return 2
    try:
        config = lay_out(folder)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    name, words = builder
    status = subprocess.run([sys.executable, "-m", name, *words, "-f", config.name], cwd=folder).returncode
    if not status:
        print(f"open {folder / 'site' / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
