"""One run on disk: its folder, position, log and checkpoints. The loop in train.py only says what happened."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from fastlg import ranks
from fastlg.assemble import Parts
from fastlg.batch import Batch, StepOutput, Views
from fastlg.config import save_config
from fastlg.errors import RunError, UserError, writing
from fastlg.files.atomic import write_whole
from fastlg.files.provenance import commit, device_name, versions
from fastlg.files.verify import Verification
from fastlg.ranks.place import place
from fastlg.ranks.say import say
from fastlg.ranks.stop import StopRequest
from fastlg.run.checkpoint import save_checkpoint
from fastlg.run.curves import plot_curves
from fastlg.run.evaluate import evaluate
from fastlg.run.folder import read_resumable, resume_source
from fastlg.run.metrics import Accuracy, Meter
from fastlg.run.report import Bar, Log, Pulse, read_metrics


class Run:
    """Position and record of one training run.

    Kill it anywhere: it goes on from its last checkpoint to the same bits, because data and augmentation are pure
    functions of (seed, epoch, sample), drop path one of (seed, step, rank), and every other state is saved. All ranks
    call every method; rank 0 alone writes.
    """

    def __init__(self, parts: Parts, stop: StopRequest, resume: str = "auto"):
        self.parts, self.stop, self.config = parts, stop, parts.config
        self.folder = self.config.run_dir
        self.meter = Meter(parts.device)
        self.epoch, self.batch = 0, 0  # the next batch to train on
        self.top1_best, self.last = -1.0, None
        self.train_seconds, self.wall_seconds, self.images = 0.0, 0.0, 0  # images: those train_seconds were timed over
        self._open(resume)
        self.started = time.perf_counter()
        self.log = None
        if ranks.is_first():
            self.log = Log(self.folder, after_step=self.step, tensorboard=self.config.log.tensorboard)
        # Last of all, for what follows closes it; one rank per host, for each host may have files of its own.
        self.verification = Verification(parts.digested() if place().local_rank == 0 else ())

    @property
    def step(self) -> int:
        """Updates done so far."""
        return self.epoch * len(self.parts.train_loader) + self.batch

    def _open(self, resume: str) -> None:
        source = ranks.first_says(str(resume_source(self.folder, resume) or "") if ranks.is_first() else None)
        if source:
            self.load(Path(source))
        if not ranks.is_first():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(self.config.absolute(), self.folder / "config.yaml")
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}; choose another run.root") from None

    def steps(self, batches: Iterable[tuple[Views, Batch]]) -> Iterator[tuple[Views, Batch]]:
        """The rest of this epoch's batches, with the bar; torch's generator is seeded anew for each step."""
        title = f"epoch {self.epoch + 1}/{self.config.optim.epochs}"
        self.clock, self.seen = time.perf_counter(), 0
        with Bar(title, len(self.parts.train_loader), self.batch) as self.bar:
            for pair in batches:
                torch.manual_seed(step_seed(self.config.run.seed, self.step, ranks.rank()))
                yield pair

    def after_step(self, out: StepOutput) -> None:
        """Counts one update; reports, saves and stops where that is due. Syncs only then."""
        self.verification.poll()
        self.meter.update(out, self.step)
        self.seen += self.parts.step_total(self.batch)
        self.batch += 1
        self.bar.advance()
        log, last = self.config.log, self.batch == len(self.parts.train_loader)
        if self.batch % log.every_steps == 0 or last:
            self.report()
        if not last and self.stop.poll():
            self.save()
            self.stop.raise_if_set()
        if log.checkpoint_steps and self.batch % log.checkpoint_steps == 0 and not last:
            self.save()

    def report(self) -> None:
        since, _ = self.meter.read()
        now = time.perf_counter()
        rate = self.seen / (now - self.clock)
        self.train_seconds += now - self.clock
        self.images += self.seen
        self.clock, self.seen = now, 0
        values = {
            "loss": since.loss,
            "loss_cls": since.loss_cls,
            "loss_guidance": since.loss_guidance,
            "top1": since.top1,
            "lr": self.parts.engine.learning_rate,
            "images_per_s": rate,
        }
        if self.log is not None:
            self.log.write("train", self.step, epoch=self.epoch, **values)
        guidance = f" (cls {since.loss_cls:.3f}, guidance {since.loss_guidance:.3f})" if self.parts.teacher else ""
        self.bar.show(f"loss {since.loss:.3f}{guidance}  top-1 {since.top1:.1f} %  {rate:,.0f} images/s")

    def after_epoch(self) -> None:
        """Evaluates when due, saves, and moves to the next epoch. No epoch on damaged files is ever saved."""
        self.verification.wait(lambda: self.stop.signum is not None)
        self.epoch, self.batch = self.epoch + 1, 0
        best = False
        if self.epoch % self.config.log.eval_epochs == 0 or self.epoch == self.config.optim.epochs:
            with Pulse(lambda: f"epoch {self.epoch}/{self.config.optim.epochs}  testing"):
                self.last = evaluate(self.parts)
            if not math.isfinite(self.last.loss):
                raise RunError(
                    f"the test loss after epoch {self.epoch} is {self.last.loss}: the weights have exploded; this "
                    "epoch was not saved. Lower optim.lr in a run of another run.name"
                )
            best = self.last.top1 > self.top1_best
            self.top1_best = max(self.top1_best, self.last.top1)
            if self.log is not None:
                self.log.write("eval", self.step, epoch=self.epoch, **self.last._asdict())
            say(
                f"epoch {self.epoch}/{self.config.optim.epochs}  test top-1 {self.last.top1:.2f} %  "
                f"top-5 {self.last.top5:.2f} %  best {self.top1_best:.2f} %"
            )
        self.meter.reset()
        self.save(best=best)
        if self.epoch < self.config.optim.epochs:
            self.stop.raise_if_set()

    def _expect_folder(self) -> None:
        """Raises RunError when the folder is gone: what would be saved then is no run any more."""
        if ranks.is_first() and not (self.folder / "config.yaml").is_file():
            raise RunError(
                f"{self.folder} was deleted in the middle of the run (its config.yaml is gone); the same "
                "command starts anew"
            )

    def save(self, *, best: bool = False) -> None:
        """Writes last.pt (and best.pt). A non-finite loss raises first, so it never reaches a checkpoint."""
        self._expect_folder()
        self.meter.check()
        self._tick()
        parts = self.parts
        engine = parts.engine.state_dict()
        state = {
            "unit": engine.pop("unit"),
            "engine": engine,
            "teacher": parts.teacher.state_dict() if parts.teacher else {},
            "position": {
                "epoch": self.epoch,
                "batch": self.batch,
                "images": self.images,
                "top1_best": self.top1_best,
                "last": list(self.last) if self.last else None,
                "train_seconds": self.train_seconds,
                "wall_seconds": self.wall_seconds,
            },
            "meter": self.meter.state_dict(),
            "config": self.config.absolute().model_dump(mode="json"),
            "class_names": list(parts.stores.class_names),
            "data": parts.stores.fingerprints,
            "teacher_id": parts.teacher_id,
        }
        if ranks.is_first():
            refuse_non_finite_weights(state["unit"], self.step)
            save_checkpoint(self.folder / "checkpoints", state, best=best)

    def load(self, path: Path) -> None:
        """Takes over everything ``save`` wrote. Raises UserError for a checkpoint of another config or other data."""
        parts = self.parts
        state = read_resumable(path, self.config, parts.stores.fingerprints)
        if state["teacher_id"] != parts.teacher_id:
            raise UserError(
                f"checkpoint {path} was guided by another teacher than this run's; name the first one with "
                "teacher.weights=RUN, or start anew under another run.name"
            )
        parts.engine.load_state_dict({"unit": state["unit"], **state["engine"]})
        if parts.teacher:
            parts.teacher.load_state_dict(state["teacher"])
        self.meter.load_state_dict(state["meter"])
        position = state["position"]
        self.epoch, self.batch, self.images = position["epoch"], position["batch"], position["images"]
        self.top1_best = position["top1_best"]
        self.last = Accuracy(*position["last"]) if position["last"] else None
        self.train_seconds, self.wall_seconds = position["train_seconds"], position["wall_seconds"]
        say(f"resumed  {path}: epoch {self.epoch}, step {self.step}")

    def finish(self) -> dict:
        """Writes summary.json and curves.png; returns the summary."""
        self._expect_folder()
        self._tick()
        summary = {
            "top1_last": self.last.top1,
            "top1_best": self.top1_best,
            "top5_last": self.last.top5,
            "images_per_s": self.images / max(self.train_seconds, 1e-9),
            "wall_s": self.wall_seconds,
            "epochs": self.config.optim.epochs,
            "seed": self.config.run.seed,
            "device": device_name(self.parts.device),
            "ranks": ranks.world_size(),
            "commit": commit(),
            "versions": versions(),
        }
        if ranks.is_first():
            write_summary(self.folder, summary)
            plot_curves({self.folder.name: read_metrics(self.folder)}, self.folder / "curves.png")
        ranks.wait_for_all()  # whoever reads the folder next finds it complete
        return summary

    def close(self) -> None:
        self.verification.close()
        if self.log is not None:
            self.log.close()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.wall_seconds += now - self.started
        self.started = now


def write_summary(folder: Path, summary: dict) -> None:
    """summary.json, atomically. Raises RunError when the disk is full."""
    with writing(folder / "summary.json"):
        write_whole(folder / "summary.json", json.dumps(summary, indent=1) + "\n")


def step_seed(seed: int, step: int, rank: int) -> int:
    """What torch's generator starts each step from: drop path is drawn anew by every rank, and alike after a resume."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=7).digest(), "little")


def refuse_non_finite_weights(weights: dict[str, torch.Tensor], step: int) -> None:
    """Raises RunError when a weight is not finite; the last update's effect shows in no loss yet."""
    if not all(bool(torch.isfinite(value.sum())) for value in weights.values() if value.is_floating_point()):
        raise RunError(
            f"a weight is not finite after step {step}; nothing of it was saved. Lower optim.lr and run again"
        )
