"""How the processes of a run meet, and what they say to each other when one of them has to leave or is gone.

Beside the process group there is a store that all reach: rank 0 serves it, or torchrun's agent. Collectives cannot
carry bad news, because whoever waits in one hears nothing else; so each rank has a thread that waits for news in the
store.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist

from fastlg.errors import RunError, Silenced, brief, exit_status, first_line
from fastlg.ranks.place import Place

PATIENCE_S = 5.0  # so long does a rank wait for the others' signs of life once contact is broken
SERVES_S = 30.0  # so long does rank 0 wait for ranks that live and leave, too, before it takes the store with it
NOTICE_S = 2.0  # so long may a rank take to leave by itself once another one has said why the run ends
SAYS_S = 10.0  # between two words of a rank 0 that waits for the others
FAILURES = (dist.DistError, RuntimeError)  # of the store, when whoever serves it is gone


class Contact:
    """The process group, its store and the watch. ``control``: a gloo group for small exchanges between hosts.

    ``timeout_s`` bounds the rendezvous and every collective. Raises RunError for a rendezvous that fails (Silenced in
    all but one process of a host).
    """

    meetings = 0  # of this process so far; a later one finds no news of an earlier one
    base: dist.Store | None = None  # served until the process ends, so that a later meeting finds it

    def __init__(self, own: Place, *, backend: str, timeout_s: float):
        self.own, self.timeout = own, timedelta(seconds=timeout_s)
        has_server = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.serves = own.rank == 0 and not has_server
        self.host, _, port = own.address.rpartition(":")
        self.port, self._place = int(port), brief(own.address)
        Contact.meetings += 1
        self.prefix = f"fastlg/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{Contact.meetings}"
        try:
            if self.serves:
                self.host = "localhost"  # whatever the others call it; torch's own client fills the screen as it fails
            else:
                _find(self.host, self.port, timeout_s)  # torch would retry too, but fill the screen meanwhile
            if Contact.base is None:
                with _saying(
                    f"waiting  for the {own.world_size} ranks that WORLD_SIZE or srun names, at {self._place}"
                ):
                    Contact.base = _in_time(self._open_base, timeout_s + PATIENCE_S)
            self.store = dist.PrefixStore(self.prefix, Contact.base)
            # NCCL's own watchdog ends a process without a word: gloo's shorter clock lets the ranks speak first.
            longer = self.timeout + timedelta(seconds=6 * PATIENCE_S) if backend == "nccl" else self.timeout
            dist.init_process_group(backend, store=self.store, rank=own.rank, world_size=own.world_size, timeout=longer)
            self.control = dist.new_group(backend="gloo", timeout=self.timeout)
            self.watch = Watch(self.another_store(), own)
        except (*FAILURES, ValueError, OSError) as error:
            if not _speaks_for_host(own):
                raise Silenced(1) from None
            raise RunError(
                f"rank {own.rank} of {own.world_size} met nobody at {self._place} within {timeout_s:.0f} s "
                f"({first_line(error)}); check MASTER_ADDR, MASTER_PORT and that all ranks were started, or raise "
                "engine.timeout_s"
            ) from None

    def _open_base(self) -> dist.Store:
        return dist.TCPStore(self.host, self.port, self.own.world_size, self.serves, timeout=self.timeout)

    def another_store(self) -> dist.Store:
        """A connection of its own: a store serves one caller at a time, and the watch calls all the time."""
        store = dist.TCPStore(self.host, self.port, is_master=False, wait_for_workers=False, timeout=self.timeout)
        return dist.PrefixStore(self.prefix, store)

    def end(self) -> None:
        """All is well."""
        self.watch.end(self.store)
        dist.destroy_process_group()

    def farewell(self, error: Exception) -> Exception:
        """What this rank raises after ``error``: Silenced where another one says why the run ends.

        Speaks: the first rank with an error of its own; if there is none, the first that lost contact.
        """
        self.watch.is_over.set()
        _ignore_further_requests()
        is_broken = is_broken_contact(error)
        limit_s = SERVES_S + PATIENCE_S if self.serves and not is_broken else 2 * PATIENCE_S
        agreed = _bounded(lambda: self._agree(error, is_broken), limit_s)
        _bounded(_destroy_gloo, NOTICE_S)
        if agreed is not None or not is_broken:
            return agreed or error
        served_by = "rank 0" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" else "torchrun's first agent"
        # Without a store nobody can be asked: one voice per host, and that of rank 1 beside a dead rank 0.
        is_voice = self.own.local_rank == 0 or self.own.rank == 1
        return RunError(self._line(f"{served_by} no longer answers")) if is_voice else Silenced(1)

    def _agree(self, error: Exception, is_broken: bool) -> Exception:
        self.store.set(f"alive/{self.own.rank}", "1")
        self.store.add("left", 1)
        if is_broken:
            if self.store.check(["over"]):
                return Silenced(int(self.store.get("over")))
            if self.store.add("mourners", 1) > 1:
                return Silenced(1)
            self._announce()
            missing = self._silent_ranks()
            if self.store.check(["over"]):
                return Silenced(int(self.store.get("over")))
            error = RunError(self._line(_who(missing) or f"contact between the ranks was lost ({first_line(error)})"))
        else:
            missing = []
            if self.store.add("speakers", 1) > 1:
                return Silenced(exit_status(error))
        self.store.set("over", str(exit_status(error)))
        if not is_broken:
            self._announce()
        deadline = time.monotonic() + (PATIENCE_S if is_broken else SERVES_S)
        while self.serves and time.monotonic() < deadline:  # the others still have to read it
            if self.store.add("left", 0) >= self.own.world_size - len(missing):
                break
            time.sleep(0.02)
        return error

    def _announce(self) -> None:
        for rank in range(self.own.world_size):
            self.store.set(f"news/{rank}", "bad")

    def _silent_ranks(self) -> list[int]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            missing = [rank for rank in range(self.own.world_size) if not self.store.check([f"alive/{rank}"])]
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.05)

    def _line(self, what: str) -> str:
        return (
            f"{what}, so rank {self.own.rank} of {self.own.world_size} stops; the last checkpoint is whole and the "
            "same command goes on from it"
        )


class Watch(threading.Thread):
    """Waits for news. On bad ones it gives a sign of life, and ends this process once another rank has said why the run
    ends: the main thread may be in a collective that nobody will complete. Checkpoints are whole at any moment."""

    LONG = timedelta(days=20)  # the store counts milliseconds in 32 bits

    def __init__(self, store: dist.Store, own: Place):
        super().__init__(name="fastlg-watch", daemon=True)
        self.store, self.own = store, own
        self.is_over = threading.Event()  # the main thread knows, and leaves by itself
        self.start()

    def run(self) -> None:
        try:
            if self._await(f"news/{self.own.rank}") == b"end":
                return
            self.store.set(f"alive/{self.own.rank}", "1")
            status = int(self._await("over"))
            if self.is_over.wait(NOTICE_S):
                return
            self.store.add("left", 1)
        except FAILURES:
            return  # the store is gone; the main thread notices by its collectives
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def end(self, store: dist.Store) -> None:
        """``store``: another connection, this thread waits on its own."""
        self.is_over.set()
        with contextlib.suppress(*FAILURES):
            store.set(f"news/{self.own.rank}", "end")
            self.join(PATIENCE_S)

    def _await(self, key: str) -> bytes:
        self.store.wait([key], self.LONG)
        return self.store.get(key)


def is_broken_contact(error: BaseException) -> bool:
    """Whether a collective failed because of another rank. gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|Connection (closed|reset)", str(error)) is not None
    )


def _find(host: str, port: int, timeout_s: float) -> None:
    """Returns once somebody listens there. Raises the last OSError when nobody does in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except UnicodeError:
            raise OSError("no host has such a name") from None
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def _saying(line: str) -> Iterator[None]:
    """Says ``line`` every SAYS_S, for rank 0 alone; a place left over in the environment keeps it here until its
    timeout."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(SAYS_S):
            logging.getLogger("fastlg").info(line)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _in_time(make: Callable[[], dist.Store], seconds: float) -> dist.Store:
    """What ``make`` returns or raises. Raises OSError where it is not back in time: torch waits for ever for the answer
    of a server that is none of its own."""
    made: list[dist.Store] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            made.append(make())
        except Exception as error:  # handed on below
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not made:
        raise OSError("somebody else's server answers there, or nobody does")
    return made[0]


def _speaks_for_host(own: Place) -> bool:
    """Whether this process says why nobody was met: the first of its host, or one that finds no other that says it (a
    name in the kernel, as long as this process lives)."""
    if own.local_rank == 0:
        return True
    time.sleep(NOTICE_S)
    try:
        _voice.bind(f"\0fastlg {own.address}")
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


_voice = socket.socket(socket.AF_UNIX)


def _bounded(ask: Callable[[], Exception | None], seconds: float) -> Exception | None:
    """What ``ask`` returns, or None where the store is gone or does not answer in time."""
    answers: list[Exception | None] = []

    def run() -> None:
        with contextlib.suppress(*FAILURES):
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def _destroy_gloo() -> None:
    """Closes the sockets that nothing else holds. NCCL would wait for ranks that do not come."""
    if dist.get_backend() == "gloo":
        dist.destroy_process_group()


def _ignore_further_requests() -> None:
    """This process leaves in seconds; torchrun asks it to while it still finds out whom to name."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def _who(missing: list[int]) -> str:
    if not missing:
        return ""
    names = ", ".join(map(str, missing))
    return f"ranks {names} no longer answer" if len(missing) > 1 else f"rank {names} no longer answers"
