"""The ways a command ends on purpose; cli.py turns them into one line and an exit status. Needs no torch."""

import difflib
import errno
import re
import signal
from collections.abc import Iterable
from contextlib import contextmanager
from os.path import commonprefix

# What a terminal would obey or a line would break at: C0 and C1 controls, line and paragraph separators, marks that
# turn the direction of the text around them; and lone surrogates (bytes of a file name that are no text), which no
# encoding can print.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,  # a file is in the way
    errno.ENOENT,  # below /proc, or in a working folder that was deleted
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


class _OneLine(Exception):
    def __str__(self) -> str:
        return printable(super().__str__())


class UserError(_OneLine):
    """A mistake that the user can fix: one line that says what is wrong, where, and how to fix it. Exit status 2."""


class RunError(_OneLine):
    """A run that cannot continue (a loss that is not finite, a full disk): one line, exit status 1."""


class Stopped(Exception):
    """The run saved and leaves because of a signal. ``status`` is the shell's: 128 + signal number.

    ``ASKS`` are the signals that ask for it: a scheduler's, Ctrl-C, SLURM's before it preempts a job (SIGUSR1, which
    leaves as SIGTERM does), and that of a terminal or connection that is gone.
    """

    ASKS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self, signum: int):
        signum = signal.SIGTERM if signum == signal.SIGUSR1 else signum
        self.status = 128 + signum
        super().__init__(signal.Signals(signum).name)

    @classmethod
    def heard(cls) -> tuple[signal.Signals, ...]:
        """ASKS, without SIGHUP below nohup, which has it ignored so that the run outlives its terminal."""
        return tuple(one for one in cls.ASKS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN)


class Silenced(Exception):
    """This rank leaves with ``status`` and another one says why."""

    def __init__(self, status: int):
        self.status = status
        super().__init__(status)


def exit_status(error: BaseException) -> int:
    """Of the command that an error ends: its own ``status``, 2 for a user's mistake, else 1."""
    return getattr(error, "status", 2 if isinstance(error, UserError) else 1)


@contextmanager
def writing(path: object):
    """Turns a failed write of ``path`` (full disk, read-only folder) into one RunError line."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; make room or mend it, then run again"
        ) from None


def is_unwritable(error: BaseException) -> bool:
    """Whether a write failed because of where it went, not because of how much it was."""
    return getattr(error, "errno", None) in UNWRITABLE


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type when it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def printable(text: object) -> str:
    """``str(text)`` on one line that no terminal obeys: controls and lone surrogates as Python writes them (``\\x1b``).

    Any other character, of whatever script, stays. What was escaped once stays as it is.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def shortened(line: str, limit: int = 2000) -> str:
    """``line`` without its middle where it is longer than ``limit`` characters; the fix is named at its end."""
    return line if len(line) <= limit else f"{line[: limit - 600]} ... {line[-500:]}"


def machine_fault(error: BaseException) -> str:
    """One line for an error that the machine's state explains (disk, permissions, memory); "" for any other one."""
    if "DataLoader worker" in str(error):  # torch raises it wherever the main thread is when a worker dies
        return (
            "a data worker was killed (out of memory? fewer data.workers need less); the same command goes on from the "
            "last checkpoint"
        )
    if isinstance(error, OSError):
        return f"cannot go on: {error}; mend that, then run again"
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, for CUDA
    if is_memory or "allocate memory" in str(error):  # torch's RuntimeError on a CPU
        return (
            f"memory ran out ({first_line(error)}); a smaller engine.micro_batch_size, optim.global_batch_size or "
            "data.workers needs less"
        )
    return ""


def brief(value: object, most: int = 60) -> str:
    """A value as a message shows it: printable, at most about ``most`` characters and how long it was."""
    if isinstance(value, int) and abs(value) >= 1 << 256:  # Python writes out no integer of more than 4,300 digits
        return f"an integer of {value.bit_length():,} bits"
    text = printable(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def alike(asked: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Names of ``known`` that ``asked`` may stand for, likeliest first: one that differs by a letter, else those that
    begin with its first word and have the others in their order, one that is spelled nearly so, those with its words
    anywhere, or one that begins like it."""
    asked, known = asked[:200].lower(), sorted(known, key=lambda name: (len(name), name))
    if near := difflib.get_close_matches(asked, known, n=1, cutoff=0.85):
        return near
    words = re.findall(r"[a-z]+|[0-9]+", asked)
    in_order = re.compile(".*".join(words))
    found = [name for name in known if words and in_order.search(name.lower())]
    if begin := [name for name in found if name.lower().startswith(words[0])]:
        return begin[:most]
    if near := difflib.get_close_matches(asked, known, n=1, cutoff=0.5 if not found else 0.7):
        return near
    begins = max((commonprefix([asked, name.lower()]) for name in known), key=len, default="")
    return found[:most] or [name for name in known if len(begins) >= 3 and name.lower().startswith(begins)][:1]


def did_you_mean(asked: str, known: Iterable[str], otherwise: str) -> str:
    """'did you mean a, b or c?', or ``otherwise`` where nothing is like it."""
    *others, last = alike(asked, known) or [""]
    if not last:
        return otherwise
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"
