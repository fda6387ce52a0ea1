"""YAML text to a tree whose plain scalars are as they were typed, and back; nothing in a text can run away with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from fastlg.config.values import Plain, guessed
from fastlg.errors import brief, printable

LONGEST = 1 << 16  # bytes of a config file; the published ones have below 2,000
DEEPEST = 20  # levels
MOST = 10_000  # values, those that an alias repeats included
_TAGS = ("!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")


def read_yaml(text: str) -> Any:
    """Mappings, lists, ``str`` where it was quoted and ``Plain`` where it was not; None for an empty text.

    Raises ValueError, in one line: no YAML, two documents, a key twice, a tag, an alias to itself, or more than
    DEEPEST levels or MOST values.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters, where a config has {LONGEST:,} at most")
    try:
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{printable(error.problem or error.context)}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(brief(" ".join(str(error).split()), 120)) from None


def write_yaml(tree: Any) -> str:
    """YAML that ``read_yaml`` and any other reader takes back as it is: a text is quoted where it could be misread."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted_where_needed(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        is_plain = isinstance(guessed(text), str)
    except ValueError:
        is_plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else "'")


_Dumper.add_representer(str, _quoted_where_needed)


@dataclass
class _Reader:
    """From the parser's events, which come one by one, so that the first excess ends it."""

    events: Iterator[yaml.Event]
    anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)  # name -> (value, how many values are in it)
    count: int = 0

    def document(self) -> Any:
        tree, documents = None, 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise ValueError(f"a second document begins{_place(event)}; keep one")
                tree = self.value(next(self.events), 0)
        return tree

    def value(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, AliasEvent):
            return self.alias(event)
        before = self.count
        self.add(1, event)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels inside one another{_place(event)}")
        if event.tag and event.tag not in _TAGS:
            raise ValueError(f"the tag {brief(event.tag)}{_place(event)} is not for configs; remove it")
        if isinstance(event, ScalarEvent):
            value = Plain(event.value) if event.style is None and event.tag is None else event.value
        elif isinstance(event, SequenceStartEvent):
            value = []
            while not isinstance(own := next(self.events), SequenceEndEvent):
                value.append(self.value(own, depth + 1))
        else:
            value = self.mapping(depth)
        if event.anchor:
            self.anchors[event.anchor] = value, self.count - before
        return value

    def mapping(self, depth: int) -> dict:
        own, merged = {}, {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self.value(event, depth + 1)
            if not isinstance(key, str):
                raise ValueError(f"a key{_place(event)} is a {type(key).__name__}; keys are words")
            value = self.value(next(self.events), depth + 1)
            if key == "<<" and isinstance(key, Plain):
                for base in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(base, dict):
                        raise ValueError(f"<<{_place(event)} takes mappings alone")
                    merged |= base
            elif key in own:
                raise ValueError(f"{brief(key)} is given twice, again{_place(event)}; keep one")
            else:
                own[str(key)] = value
        return merged | own

    def alias(self, event: AliasEvent) -> Any:
        if event.anchor not in self.anchors:  # not there at all, or still open: it would hold itself
            raise ValueError(f"*{brief(event.anchor)}{_place(event)} names nothing that is complete before it")
        value, count = self.anchors[event.anchor]
        self.add(count, event)
        return copy.deepcopy(value)

    def add(self, count: int, event: yaml.Event) -> None:
        self.count += count
        if self.count > MOST:
            raise ValueError(f"more than {MOST:,} values, counting what aliases repeat{_place(event)}")


def _place(event: yaml.Event) -> str:
    return f" in line {event.start_mark.line + 1}"
