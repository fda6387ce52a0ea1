"""One run on disk, from its first batch to its summary. The loop in train.py only says what happened."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from fastlg import ranks
from fastlg.batch import Batch, StepOutput, Views
from fastlg.callbacks import Callbacks, Ended, EpochEnd, Evaluated, Report, Started, StepEnd
from fastlg.config import save_config
from fastlg.engine.protocol import autocast
from fastlg.errors import RunError, Stopped, UserError, writing
from fastlg.files.atomic import write_whole
from fastlg.files.provenance import commit, device_name, versions
from fastlg.files.verify import Verification
from fastlg.ranks.place import place
from fastlg.ranks.say import say
from fastlg.ranks.stop import StopRequest
from fastlg.run.checkpoint import BEST, Saver, load_checkpoint
from fastlg.run.curves import plot_curves
from fastlg.run.evaluate import evaluate, measure
from fastlg.run.folder import resume_source
from fastlg.run.metrics import Accuracy, measured_by
from fastlg.run.parts import Parts
from fastlg.run.position import Position, refuse_non_finite_weights, restore, saved_state
from fastlg.run.report import Pulse, Record, read_metrics
from fastlg.run.trained import as_tested, load_trained


class Run:
    """Position and record of one training run, saved where that is due.

    Kill it anywhere: it goes on from its last checkpoint to the same bits, because data and augmentation are pure
    functions of (seed, epoch, sample), drop path one of (seed, step, rank), and every other state is saved. All ranks
    call every method; rank 0 alone writes.
    """

    def __init__(self, parts: Parts, stop: StopRequest, resume: str = "auto", callbacks: Callbacks | None = None):
        self.parts, self.stop, self.config = parts, stop, parts.config
        self.folder = self.config.run_dir
        self.position, self.record = Position(), Record(parts.device, measured_by(self.config))
        self._open(resume)
        self.callbacks = callbacks if callbacks is not None and ranks.is_first() else Callbacks()
        self.started = time.perf_counter()
        self.saver = Saver(self.folder / "checkpoints")
        self.record.open(self.folder, after_step=self.step, tensorboard=self.config.log.tensorboard)
        # Last of all, for what follows closes it; one rank per host, for each host may have files of its own.
        self.verification = Verification(parts.digested() if place().local_rank == 0 else ())

    def begin(self) -> None:
        """Tells the callbacks that the run starts, or goes on."""
        self.callbacks.tell("on_start", Started(self.folder, self.config.model_dump(mode="json"), self.step))

    @property
    def epochs(self) -> int:
        return self.config.optim.epochs

    @property
    def step(self) -> int:
        """Updates done so far."""
        return self.position.epoch * len(self.parts.train_loader) + self.position.batch

    def _open(self, resume: str) -> None:
        source = ranks.first_says(str(resume_source(self.folder, resume) or "") if ranks.is_first() else None)
        if source:
            more = restore(Path(source), self.parts, self.position, self.record.meter)
            say(f"resumed  {source}: epoch {self.position.epoch}, step {self.step}{more}")
        if not ranks.is_first():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(self.config.absolute(), self.folder / "config.yaml")
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}; choose another run.root") from None

    def steps(self, batches: Iterable[tuple[Views, Batch]]) -> Iterator[tuple[Views, Batch]]:
        """The rest of this epoch's batches, with the bar; torch's generator is seeded anew for each step."""
        position = self.position
        with self.record.epoch(position.epoch, self.epochs, len(self.parts.train_loader), position.batch):
            for pair in batches:
                torch.manual_seed(step_seed(self.config.run.seed, self.step, ranks.rank()))
                yield pair

    def after_step(self, out: StepOutput) -> None:
        """Counts one update; reports, saves and stops where that is due. Syncs only then."""
        position, log = self.position, self.config.log
        self.record.count(out, self.step, self.parts.step_total(position.batch))
        position.batch += 1
        if self.callbacks.on_step_end:
            self.callbacks.tell("on_step_end", StepEnd(position.epoch, self.step, self.parts.engine.learning_rate, out))
        last = position.batch == len(self.parts.train_loader)
        if position.batch % log.every_steps == 0 or last:
            self.verification.poll()
            self.saver.poll()
            lr, told = self.parts.engine.learning_rate, self.parts.told_losses
            seconds, images = self.record.report(position.epoch, self.step, lr=lr, told=told)
            position.train_seconds += seconds
            position.images += images
            self.callbacks.tell("on_report", Report(position.epoch, self.step, self.record.values))
        if not last and self.stop.poll():
            self.save()
            self._leave_if_asked()
        if log.checkpoint_steps and position.batch % log.checkpoint_steps == 0 and not last:
            self.save()

    def after_epoch(self) -> None:
        """Evaluates when due, saves, and moves to the next epoch. No epoch on damaged files is ever saved."""
        self.verification.wait(lambda: self.stop.signum is not None)
        position = self.position
        position.epoch, position.batch = position.epoch + 1, 0
        best = False
        if position.epoch % self.config.log.eval_epochs == 0 or position.epoch == self.epochs:
            best = self._test()
        self.record.meter.reset()
        self.save(best=best)
        if self.callbacks.having("on_epoch_end"):
            self.saver.wait()  # what is told there is of a saved epoch
            told = EpochEnd(position.epoch, self.epochs, self.step, self.record.epoch_values)
            self.callbacks.tell("on_epoch_end", told)
        if position.epoch < self.epochs:
            self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        """Raises Stopped, once the last checkpoint is on the disk."""
        try:
            self.stop.raise_if_set()
        except Stopped:
            self.saver.wait()
            raise

    def _test(self) -> bool:
        """Whether this epoch's top-1 is the best so far, on the test split, as in the paper, or on the validation split
        where there is one. Raises RunError for a loss without value."""
        position = self.position
        with Pulse(lambda: f"epoch {position.epoch}/{self.epochs}  testing"):
            found = evaluate(self.parts)
            if self.config.optim.ema:
                position.latest = evaluate(self.parts, latest=True).top1
        if not math.isfinite(found.loss):
            raise RunError(
                f"the {self.parts.chooser} loss after epoch {position.epoch} is {found.loss}: the weights have "
                "exploded; this epoch was not saved. Lower optim.lr in a run of another run.name"
            )
        best = found.top1 > position.top1_best
        position.last, position.top1_best = found, max(position.top1_best, found.top1)
        whole = (position.epoch, self.epochs, self.step)
        self.record.tested(*whole, found, position.top1_best, self.parts.chooser, position.latest)
        self.callbacks.tell("on_evaluate", Evaluated(position.epoch, self.step, *found, position.top1_best))
        return best

    def _final(self) -> tuple[Accuracy, float]:
        """(the last epoch's accuracy, the best epoch's top-1) on the test split, which a run with a validation split
        sees here and nowhere else."""
        position, parts = self.position, self.parts
        if parts.val_loader is None:
            return position.last, position.top1_best
        ranks.wait_for_all()  # until rank 0 has written the checkpoints
        with Pulse(lambda: f"epoch {self.epochs}/{self.epochs}  testing"):
            last = evaluate(parts, parts.test_loader)
            chosen = load_checkpoint(self.folder / "checkpoints" / BEST)
            if chosen["position"]["epoch"] == self.epochs:
                best = last
            elif parts.self_teaching is not None:  # nothing follows that needs the last epoch's
                parts.teacher.load_state_dict(chosen["teacher"])
                best = evaluate(parts, parts.test_loader)
            else:
                device, dtype = parts.device, parts.engine.dtype
                model = as_tested(load_trained(self.folder, "best")[1], self.config, device, dtype)
                with autocast(device, dtype):
                    best = measure(lambda images: model(images)[0], parts.test_loader, parts.views, device)
        chosen = f"of the epoch that the validation split chose {best.top1:.2f} %"
        say(f"test     top-1{self.record.by} {last.top1:.2f} %, {chosen}")
        return last, best.top1

    def _expect_folder(self) -> None:
        """Raises RunError when the folder is gone: what would be saved then is no run any more."""
        if ranks.is_first() and not (self.folder / "config.yaml").is_file():
            raise RunError(
                f"{self.folder} was deleted in the middle of the run (its config.yaml is gone); the same "
                "command starts anew"
            )

    def save(self, *, best: bool = False) -> None:
        """Writes last.pt (and best.pt) while training goes on. A non-finite loss raises first, so it never reaches a
        checkpoint."""
        self._expect_folder()
        self.verification.poll()
        self.record.meter.check()
        self._tick()
        state = saved_state(self.parts, self.position, self.record.meter)
        if ranks.is_first():
            refuse_non_finite_weights(state["unit"], self.step)
            self.saver.save(state, best=best)

    def finish(self) -> dict:
        """Writes summary.json and curves.png; returns the summary."""
        self._expect_folder()
        self._tick()
        self.saver.wait()
        position, (last, best) = self.position, self._final()
        chosen = {"best_chosen_on": self.parts.chooser}
        if self.parts.val_loader is not None:
            chosen |= {"val_top1_last": position.last.top1, "val_top1_best": position.top1_best}
        if by := measured_by(self.config):
            chosen["measured_by"] = by
        if position.latest is not None:
            chosen["top1_latest_weights"] = position.latest  # on the split that chooses, at the last epoch
        summary = {
            "top1_last": last.top1,
            "top1_best": best,
            "top5_last": last.top5,
            **chosen,
            "images_per_s": position.images / max(position.train_seconds, 1e-9),
            "wall_s": position.wall_seconds,
            "epochs": self.epochs,
            "seed": self.config.run.seed,
            "fingerprints": self.parts.stores.fingerprints,
            "device": device_name(self.parts.device),
            "ranks": ranks.world_size(),
            "commit": commit(),
            "versions": versions(),
        }
        if ranks.is_first():
            write_summary(self.folder, summary)
            rows = {self.folder.name: read_metrics(self.folder)}
            plot_curves(rows, self.folder / "curves.png", self.parts.chooser, by=measured_by(self.config))
        ranks.wait_for_all()  # whoever reads the folder next finds it complete
        return summary

    def end(self, summary: dict | None, error: BaseException | None = None) -> None:
        """Tells the callbacks how the run ended."""
        self.callbacks.tell("on_end", Ended(summary, error))

    def close(self) -> None:
        self.saver.close()
        self.verification.close()
        self.record.close()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.position.wall_seconds += now - self.started
        self.started = now


def write_summary(folder: Path, summary: dict) -> None:
    """summary.json, atomically. Raises RunError when the disk is full."""
    with writing(folder / "summary.json"):
        write_whole(folder / "summary.json", json.dumps(summary, indent=1) + "\n")


def step_seed(seed: int, step: int, rank: int) -> int:
    """What torch's generator starts each step from: drop path is drawn anew by every rank, and alike after a resume."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=7).digest(), "little")
