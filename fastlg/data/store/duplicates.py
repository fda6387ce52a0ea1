"""Images of a dataset that are equal pixel for pixel, within a split and across train and test."""

from __future__ import annotations

from collections import defaultdict

from fastlg.data.sources.base import Source

_EXAMPLES = 20  # groups named in the report


def duplicate_report(sources: dict[str, Source], parts: dict[str, list[dict]]) -> dict:
    """Groups of equal images: how many per split, across splits and with two labels, and the first of them by name.

    Args:
        parts: what ``write_split`` returned for each split.
    """
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, split_parts in parts.items():
        for part in split_parts:
            for row, digest in zip(part["kept"], part["digests"], strict=True):
                found[digest].append((split, row))
    groups = [group for group in found.values() if len(group) > 1]
    counts: dict[str, int] = defaultdict(int)
    two_labels = 0
    for group in groups:
        splits = {split for split, _ in group}
        counts[f"{splits.pop()} only" if len(splits) == 1 else " and ".join(s for s in parts if s in splits)] += 1
        two_labels += len({int(sources[split].labels[row]) for split, row in group}) > 1

    def describe(split: str, row: int) -> str:
        source = sources[split]
        return f"{split}: {source.name(row)}, {source.class_names[source.labels[row]]}"

    examples = [[describe(*member) for member in group] for group in groups[:_EXAMPLES]]
    return {"groups": len(groups), **counts, "with two labels": two_labels, "examples": examples}
