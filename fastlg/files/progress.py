"""Progress of a long pass over the images: a bar on a terminal, a log line per tenth or 10 s elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

SILENCE_S = 10.0  # the longest without a line while images are done


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(count)``; the bar shows images done, rate and time left."""
    if not sys.stderr.isatty():
        yield _Lines(title, total)
        return
    from rich import progress as bars  # late: only terminals need it
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TaskProgressColumn(show_speed=True),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


class _Lines:
    def __init__(self, title: str, total: int):
        self.title, self.total, self.done, self.tenth = title, total, 0, 0
        self.said = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        tenth = 10 * self.done // max(self.total, 1)
        if tenth > self.tenth or time.monotonic() - self.said >= SILENCE_S:
            self.tenth, self.said = tenth, time.monotonic()
            log.info("%s: %d of %d images", self.title, self.done, self.total)
