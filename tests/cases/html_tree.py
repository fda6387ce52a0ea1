"""An HTML page as a tree, read by the standard library's parser; what is not closed as it was opened fails."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

VOID = {"img", "source", "meta"}


class Node:
    def __init__(self, name: str, attributes: dict[str, str]):
        self.name, self.attributes = name, attributes
        self.content: list[Node | str] = []

    def __iter__(self) -> Iterator[Node]:
        """Itself and all below it, in the order of the page."""
        yield self
        for child in self.content:
            if isinstance(child, Node):
                yield from child

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.content)

    def all(self, name: str) -> list[Node]:
        return [node for node in self if node.name == name]

    def by_id(self, name: str) -> Node:
        (found,) = [node for node in self if node.attributes.get("id") == name]
        return found


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = [Node("", {})]

    def handle_starttag(self, name, attributes):
        node = Node(name, dict(attributes))
        assert len(node.attributes) == len(attributes), f"an attribute of {name} is given twice"
        self.open[-1].content.append(node)
        if name not in VOID:
            self.open.append(node)

    def handle_endtag(self, name):
        assert self.open.pop().name == name, f"</{name}> closes another"

    def handle_data(self, data):
        self.open[-1].content.append(data)


def read(path: Path | str) -> Node:
    """Of a file, or of a text."""
    reader = _Reader()
    reader.feed(path if isinstance(path, str) else path.read_text(encoding="utf-8"))
    reader.close()
    assert len(reader.open) == 1, [node.name for node in reader.open]
    return reader.open[0]
