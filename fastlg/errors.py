"""The two ways a command fails on purpose; cli.py turns them into one line and an exit status."""

from contextlib import contextmanager


class UserError(Exception):
    """A mistake the user can mend: one line that says what, where and the fix. Exit status 2."""


class RunError(Exception):
    """A run that cannot go on (non-finite loss, full disk): one line, exit status 1."""


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


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type when it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
