"""Names by which folders and files say which split they are. The one place that knows them."""

from __future__ import annotations

import re
from typing import NamedTuple

# word -> (split, rank): of several kinds of test split the one of the lowest rank is used, the rest is left out
_WORDS = {
    "train": ("train", 0),
    "training": ("train", 0),
    "trn": ("train", 0),
    "test": ("test", 0),
    "testing": ("test", 0),
    "tst": ("test", 0),
    "eval": ("test", 1),
    "evaluation": ("test", 1),
    "val": ("test", 2),
    "valid": ("test", 2),
    "validation": ("test", 2),
    "dev": ("test", 3),
    "holdout": ("test", 3),
}
_FILLERS = frozenset(
    ("set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "picture", "pictures", "photos")
    + ("split", "splits", "folder", "dir", "seg", "part", "of")
)
_GLUED = re.compile(f"({'|'.join(sorted(_WORDS, key=len, reverse=True))})(set|data|dataset|images|imgs|split)")


class SplitName(NamedTuple):
    """``split``: train or test. ``rank``: 0 for the name itself, more for what stands in. ``word``: as it was written.
    ``is_plain``: says nothing else (training_set, Test, val2017), unlike bullet_train."""

    split: str
    rank: int
    word: str
    is_plain: bool


def split_of(name: str) -> SplitName | None:
    """The split that a folder or file ``name`` (without suffix) says it is, in any case and spelling: Training,
    test_set, seg_train, trainset, cifar_train-00001-of-00002; None where no word, or words of both splits, say one.
    """
    for pattern, text in ((r"[a-z]+", name.lower()), (r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)):  # last: cifarTrain
        words = []
        for word in re.findall(pattern, text):
            glued = _GLUED.fullmatch(word.lower())
            words += glued.groups() if glued else [word.lower()]
        found = {(*_WORDS[word], word) for word in words if word in _WORDS}
        if len({split for split, _, _ in found}) == 1:
            is_plain = all(word in _WORDS or word in _FILLERS or len(word) == 1 for word in words)
            return SplitName(*min(found), is_plain)
    return None
