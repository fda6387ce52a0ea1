"""HTML that cannot be broken by what it shows: every text is escaped, but what was made here. Needs no torch."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from fastlg.commands.report.style import STYLE
from fastlg.errors import printable

SMALL = 64  # px: images up to this side are kept exactly, as PNG
_VOID = ("img", "source", "meta")
# The page asks nobody for anything and runs nothing, whatever a name in it says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """Text that is HTML already."""


def escaped(content: object) -> Markup:
    """``content`` as it is where it is Markup, otherwise as text, on which no browser acts."""
    return content if isinstance(content, Markup) else Markup(html.escape(printable(content)))


def join(parts: Iterable[object], between: str = "") -> Markup:
    return Markup(between.join(escaped(part) for part in parts if part is not None and part != ""))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """``<name ...>children</name>``; an attribute's trailing _ is dropped, other _ become -, None leaves it out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{join(children)}</{name}>")


def paragraph(*children: object) -> Markup:
    return tag("p", *children)


def note(text: object) -> Markup:
    """What is left out, and why."""
    return tag("p", text, class_="note")


def section(title: str, *children: object, anchor: str) -> Markup:
    head = tag("h2", title, id=f"{anchor}-title")
    return tag("section", head, *children, id=anchor, aria_labelledby=f"{anchor}-title")


def figure(content: Markup, caption: object = "") -> Markup:
    return tag("figure", content, tag("figcaption", caption) if caption else "")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "", texts: int = 1, kind: str = ""
) -> Markup:
    """The first ``texts`` columns hold text, the others numbers; the first cell of a row is its heading."""
    head = tag("tr", *(tag("th", name, scope="col", class_=_align(i, texts)) for i, name in enumerate(columns)))
    body = []
    for cells in rows:
        first = tag("th", cells[0], scope="row")
        rest = (tag("td", cell, class_=_align(i, texts)) for i, cell in enumerate(cells[1:], 1))
        body.append(tag("tr", first, *rest))
    title = tag("caption", caption) if caption else ""
    whole = tag("table", title, tag("thead", head), tag("tbody", *body), class_=kind or None)
    return tag("div", whole, class_="wide", tabindex="0", role="group", aria_label=caption or columns[0])


def _align(column: int, texts: int) -> str | None:
    return "number" if column >= texts else None


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names and what they are; a pair without a value is left out."""
    rows = [join((tag("dt", name), tag("dd", value))) for name, value in pairs if value not in ("", None)]
    return tag("dl", *rows)


def bar(share: float) -> Markup:
    """A share from 0 to 1 as a bar beside its number, which says the same."""
    width = 0.0 if share != share else 100 * min(max(share, 0.0), 1.0)
    return tag("span", tag("span", style=f"width:{width:.1f}%"), class_="bar", aria_hidden="true")


def image(pixels: np.ndarray, alt: str, *, side: int | None = None) -> Markup:
    """uint8 [H, W, 3] inlined; ``side``: that of the square it is shown in, px."""
    height, width = pixels.shape[:2]
    small, buffer = max(height, width) <= SMALL, io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if small:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=88)
    source = inlined(buffer.getvalue(), "png" if small else "jpeg")
    shown = {} if side is None else {"width": side, "height": side}
    return tag("img", src=source, alt=alt, class_="pixels" if small else None, **shown)


def inlined(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def page(title: str, subtitle: object, badges: Markup, parts: Sequence[tuple[str, str, Markup]], foot: object) -> str:
    """The whole document. ``parts``: (anchor, title, content) of its sections."""
    links = tag("ul", *(tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name, _ in parts))
    head = join(
        (
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("title", title),
            tag("style", Markup(STYLE)),
        )
    )
    main = [section(name, content, anchor=anchor) for anchor, name, content in parts]
    body = join(
        (
            tag("header", tag("h1", title), tag("p", subtitle, class_="subtitle"), badges),
            tag("nav", links, aria_label="Contents"),
            tag("main", *main),
            tag("footer", foot),
        )
    )
    return f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"
