"""What recipe.py trains: settings, rates, levers, the cells made of them, and what their rows say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.harness import trainings

WEAK = {"rand_augment": None, "erase": 0.0}  # crop and flip alone
VIT = {"name": "vit_tiny_patch16_224", "image_size": 48, "blocks": [0, 2, 3], "drop_path": 0.0}
SMALL = {**VIT, "args": {"patch_size": 8, "depth": 4}}
BUDGET = {"warmup_epochs": 1, "warmup_factor": 0.2, "global_batch_size": 32}
TEACHER = {"augment.crop_scale": [0.5, 1.0], "augment.flip": 0.5, "optim.epochs": 6, "optim.global_batch_size": 32}
SETTINGS = {  # data.source is FOLDER/NAME; or a shipped config with overrides
    "quickstart": {"config": "quickstart", "optim.epochs": 4},
    "mini": {  # 10 classes, 1,500 images; a DeiT of 4 blocks and 36 tokens
        "data": {"source": "cifar100-mini", "label_column": "label", "workers": 0},
        "augment": WEAK,
        "model": SMALL,
        "teacher": {"recipe": "quickstart_teacher", "overrides": TEACHER},
        "optim": {**BUDGET, "epochs": 10},
    },
    "slice": {  # of CIFAR-100: all 100 classes, 5,000 training and 2,000 test images; 25 tokens
        "data": {"source": "cifar100", "label_column": "fine_label", "workers": 0},
        "augment": WEAK,
        "model": {**SMALL, "image_size": 40},
        "teacher": {"recipe": "quickstart_teacher", "overrides": {**TEACHER, "optim.epochs": 20}},
        "optim": {**BUDGET, "epochs": 5},
        "engine": {"precision": "bf16"},
    },
    "flowers17": {  # 17 classes, 680 training and 340 test images; every class is one kind of flower
        "data": {"source": "flowers17", "label_column": "label", "workers": 0},
        "augment": WEAK,
        "model": SMALL,
        "teacher": {"recipe": "quickstart_teacher", "overrides": {**TEACHER, "optim.epochs": 12}},
        "optim": {**BUDGET, "epochs": 15},
        "engine": {"precision": "bf16"},
    },
}
SLICES = {"slice": (50, 20)}  # training and test images of each class
FEWER_RATES = {"slice": 3, "flowers17": 3}  # of RATES, the first
RATES = {  # as many for each optimizer and side, likely bests first; a setting may try the first of them alone
    ("adamw", True): (2e-3, 1e-3, 4e-3, 5e-4, 8e-3, 2.5e-4),
    ("adamw", False): (5e-4, 1e-3, 2.5e-4, 2e-3, 4e-3, 8e-3),
    ("muon", True): (8e-3, 4e-3, 1.6e-2, 2e-3, 1e-3, 5e-4),
    ("muon", False): (4e-3, 8e-3, 2e-3, 1.6e-2, 1e-3, 5e-4),
}
WIDER_RATES = {  # one more of each, where the best of an optimizer lay at an edge
    "mini": {"adamw": 1.25e-4, "muon": 3.2e-2},
    "quickstart": {"adamw": 1.6e-2, "muon": 3.2e-2},
}
TIMES = "rate times"  # of a lever that changes the rate by a factor
OWN_TEACHER = {"teacher.weights": None}  # of a lever: not the setting's teacher, but one by teacher.overrides
LEVERS: dict[str, dict] = {
    "alternating flips": {"augment.flip": "alternating"},
    "linear": {"optim.schedule": "linear"},
    "flat, then linear": {"optim.schedule": "linear", "optim.flat": 0.5},
    "smoothed labels": {"optim.label_smoothing": 0.1},
    "EMA 0.99": {"optim.ema": 0.99},
    "flat, EMA 0.99": {"optim.ema": 0.99, "optim.flat": 0.9},
    "guidance ends at 0.5": {"guidance.until": 0.5},
    "guidance fades": {"guidance.schedule": "cosine"},
    "24, 32, 48 px": {"model.resolution": [[0.0, 24], [0.3, 32], [0.6, 48]]},
    "24, 32, 40 px": {"model.resolution": [[0.0, 24], [0.3, 32], [0.6, 40]]},
    "5 epochs": {"optim.epochs": 5},
    "batch 64": {"optim.global_batch_size": 64},
    "batch 64, rate x 1.4": {"optim.global_batch_size": 64, TIMES: 1.4},
    "Muon steps the head too": {"optim.muon_also": ["head"]},
    "Muon steps the patches too": {"optim.muon_also": ["stem"]},
    "Muon steps patches and head too": {"optim.muon_also": ["stem", "head"]},
    "patches, 24, 32, 48 px": {
        "optim.muon_also": ["stem"],
        "model.resolution": [[0.0, 24], [0.3, 32], [0.6, 48]],
    },
    "teacher of 2 epochs": {**OWN_TEACHER, "teacher.overrides.optim.epochs": 2},
    "teacher of 2 epochs, Muon": {
        **OWN_TEACHER,
        "teacher.overrides.optim.epochs": 2,
        "teacher.overrides.optim.name": "muon",
        "teacher.overrides.optim.lr": 4e-3,
        "teacher.overrides.optim.min_lr": 4e-5,
    },
    "RandAugment, erasing": {"augment.rand_augment": "rand-m9-mstd0.5-inc1", "augment.erase": 0.25},
}
LONG = {"30 epochs": {"optim.epochs": 30}}  # of AdamW, at the paper's rate and at its best one
PAPER_RATE = 5e-4
TEACHERS = {  # optimizer and epochs -> rates
    ("sgd", 20): (0.0125, 0.025, 0.05),
    ("sgd", 6): (0.0125, 0.025, 0.05, 0.1, 0.2),
    ("sgd", 2): (0.0125, 0.025, 0.05, 0.1, 0.2),
    ("muon", 6): (1e-3, 2e-3, 4e-3),
    ("muon", 2): (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
}
TEACHER_LEVER = "teacher, "
AT_48_PX = ("mini", "flowers17")
SETTINGS_OF = {  # of a lever that not all can take
    "24, 32, 48 px": AT_48_PX,
    "patches, 24, 32, 48 px": AT_48_PX,
    "24, 32, 40 px": ("slice",),
}
GUIDED_ONLY = ("guidance.", "teacher.")  # levers of such keys have no unguided side


class Cell(NamedTuple):
    """One training: ``lever`` names an entry of LEVERS, or "teacher, N epochs"; "" is a student without any."""

    setting: str
    optimizer: str
    lr: float
    guided: bool
    lever: str
    seed: int

    def overrides(self) -> dict:
        lever = dict(LEVERS.get(self.lever) or LONG.get(self.lever) or {})
        rate = self.lr * lever.pop(TIMES, 1)
        own = {"optim.name": self.optimizer, "optim.lr": rate, "optim.min_lr": rate / 100, "run.seed": self.seed}
        own["optim.muon_also"] = []
        if self.epochs:
            return {**own, "optim.epochs": self.epochs}
        return {**own, **({} if self.guided else {"teacher": None}), **lever}

    @property
    def epochs(self) -> int:
        """Of a teacher's training; 0 of a student's."""
        return int(self.lever.split()[1]) if self.lever.startswith(TEACHER_LEVER) else 0


class Book(trainings.Book):
    """The rows of one setting."""

    def best_rate(self, optimizer: str, guided: bool, lever: str = "") -> float:
        """The one with the highest top-1 at seed 0, which tries them all."""
        found = self.tried(optimizer, guided, lever)
        if not found:
            raise SystemExit(f"{self.path} has no rates of {optimizer} yet; run rates first")
        return max(found, key=found.get)

    def tried(self, optimizer: str, guided: bool, lever: str = "") -> dict[float, float]:
        """Rate -> top-1 of the last epoch, at seed 0."""
        own = {"optimizer": optimizer, "guided": guided, "lever": lever, "seed": 0}
        return {row["cell"]["lr"]: row["top1_last"] for row in self.rows if own.items() <= row["cell"].items()}


def rate_cells(setting: str, seed: int, book: Book, lever: str = "") -> Iterator[Cell]:
    """Seed 0 tries every rate; the others are trained at the best of them. With a lever those of Muon with it."""
    sides = [side for side in RATES if not lever or side[0] == "muon"]
    tried = list(zip(*(RATES[side] for side in sides), strict=True))[: FEWER_RATES.get(setting)]
    if more := WIDER_RATES.get(setting):
        tried.append(tuple(more[optimizer] for optimizer, _ in sides))
    for rates in [[book.best_rate(*side, lever) for side in sides]] if seed else tried:
        for (optimizer, guided), lr in zip(sides, rates, strict=True):
            yield Cell(setting, optimizer, lr, guided, lever, seed)


def teacher_cells(setting: str, seed: int, book: Book) -> Iterator[Cell]:
    for (optimizer, epochs), rates in TEACHERS.items():
        lever = f"{TEACHER_LEVER}{epochs} epochs"
        for lr in [book.best_rate(optimizer, False, lever)] if seed else rates:
            yield Cell(setting, optimizer, lr, False, lever, seed)


def lever_cells(setting: str, seed: int, book: Book) -> Iterator[Cell]:
    for lever, overrides in LEVERS.items():
        if setting not in SETTINGS_OF.get(lever, SETTINGS):
            continue
        for guided in (True, False):
            if guided or not any(key.startswith(GUIDED_ONLY) for key in overrides):
                yield Cell(setting, "muon", book.best_rate("muon", guided), guided, lever, seed)


def long_cells(setting: str, seed: int, book: Book) -> Iterator[Cell]:
    for lever in LONG:
        for guided in (True, False):
            for lr in sorted({PAPER_RATE, book.best_rate("adamw", guided)}):
                yield Cell(setting, "adamw", lr, guided, lever, seed)


def rungs(book: Book) -> Iterator[dict]:
    """The rows that answer to one another: each side of each optimizer at its best rate, and every lever on them, at
    the best of its own rates where several were tried."""
    for row in book.rows:
        cell = row["cell"]
        tried = book.tried(cell["optimizer"], cell["guided"], cell["lever"])
        is_best = not tried or cell["lr"] == max(tried, key=tried.get)
        is_long = cell["lever"] in LONG  # at the paper's rate, too
        if (is_best or is_long) and not cell["lever"].startswith(TEACHER_LEVER):
            yield row
