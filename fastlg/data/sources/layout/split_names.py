"""Names by which folders and files say which split, or which fold, they are. The one place that knows them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
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
_FOLDS = frozenset(("fold", "folds", "kfold", "kfolds", "cv", "crossval", "crossvalidation", "xval"))
_LIKE_FOLDS = frozenset(("split", "splits", "subset", "subsets", "partition", "partitions"))  # parts as well as folds
_BESIDE_FOLDS = frozenset(("k", "of", "cross", "st", "nd", "rd", "th", "no", "nr", "num", "number"))
_GLUED = re.compile(f"({'|'.join(sorted(_WORDS, key=len, reverse=True))})(set|data|dataset|images|imgs|split)")


class SplitName(NamedTuple):
    """``split``: train or test. ``rank``: 0 for the name itself, more for what stands in. ``word``: as it was written.
    ``is_plain``: says nothing else (training_set, Test, val2017), unlike bullet_train."""

    split: str
    rank: int
    word: str
    is_plain: bool

    @property
    def is_validation(self) -> bool:
        """Whether it stands in for a test split only where there is none."""
        return self.word.lower() in ("val", "valid", "validation", "dev")


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


class FoldName(NamedTuple):
    """``number``: which fold, as it was written; "" for a folder of folds. ``is_said``: by the word fold itself.
    ``is_plain``: by nothing else."""

    number: str
    is_said: bool
    is_plain: bool


def fold_of(name: str) -> FoldName | None:
    """The fold of a cross-validation that a folder or file ``name`` (without suffix) says it is: fold1, Fold_02,
    k-fold-3, 5fold_cv_1, fold_a, train_fold2, less plainly cats_fold1; split1 and subset1 may be folds, or parts. None
    where no word says so."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)]
    told = [index for index, word in enumerate(words) if word in _FOLDS or word in _LIKE_FOLDS]
    if not told:
        return None
    numbers = [index for index, word in enumerate(words) if word.isdigit()]
    numbers = [index for index in numbers if words[index + 1 : index + 2] == ["of"]] or numbers  # 1 of fold1of5
    letters = [i for i, word in enumerate(words) if len(word) == 1 and word.isalpha() and i - 1 in told]
    at = (numbers or letters)[-1:]
    rest = [word for index, word in enumerate(words) if index not in (*numbers, *at) and not word.isdigit()]
    is_said = any(word in _FOLDS for word in rest)
    known = _FOLDS | _LIKE_FOLDS | _BESIDE_FOLDS | _FILLERS | _WORDS.keys()
    return FoldName(words[at[0]] if at else "", is_said, is_said and all(word in known for word in rest))


def folds_among(paths: Iterable[Path]) -> dict[str, Path]:
    """{number: first path} of the folds that relative ``paths`` say they are, in their own name or a folder's."""
    found: dict[str, Path] = {}
    for path in paths:
        for text in path.with_suffix("").parts:
            if (name := fold_of(text)) and name.number and name.is_said:
                found.setdefault(name.number, path)
    return found
