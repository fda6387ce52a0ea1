"""How the command line ends: a line and an exit status for every way, in this process or in one rank of many."""

from __future__ import annotations

import logging
import os
import sys

import typer


def run_app(app: typer.Typer) -> None:
    """A user's mistake is one line and status 2, a failed run one line and 1, a stopped run 143 or 130."""
    from fastlg.errors import RunError, Silenced, Stopped, UserError, machine_fault

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # our lines say what torch's would, without stack frames
    logger = logging.getLogger("fastlg")  # choices that parts made for the user, such as a label column
    logger.setLevel(logging.INFO)
    logger.handlers = [_Say()]
    try:
        status = app(standalone_mode=False)  # which would print an error in a box, once for every rank
        if status == 130:  # typer's newer versions return it for a KeyboardInterrupt, and say nothing
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except UserError as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(str(error), 1)
    except Stopped as stopped:
        _fail(f"stopped by {stopped}; the run is saved, the same command goes on", stopped.status)
    except KeyboardInterrupt:
        _fail("stopped by SIGINT", 130)
    except Silenced as silenced:
        _leave(silenced.status)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's, of a command line that it cannot read
            _fail_usage(error)
        if not (line := machine_fault(error)):
            raise
        _fail(line, 1)


def show_version(is_asked: bool) -> None:
    """``--version``: the version alone, and the end."""
    if is_asked:
        from fastlg import __version__

        print(f"fastlg {__version__}")
        raise typer.Exit()


class _Say(logging.Handler):
    """Log records of the package as plain lines among the others; one marked ``once`` is not repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        from fastlg.ranks.say import say

        line = record.getMessage()
        if getattr(record, "once", False):
            if line in self.said:
                return
            self.said.add(line)
        say(line)


def _fail(line: str, status: int) -> None:
    """Before the ranks meet, all fail alike and rank 0 speaks; then ``joined`` lets through what is to be said."""
    from fastlg.errors import printable, shortened
    from fastlg.ranks.place import is_first_by_environment

    if _is_in_group() or is_first_by_environment():
        print(f"fastlg: {shortened(printable(line))}", file=sys.stderr)
    _leave(status)


def _fail_usage(error) -> None:
    """``error``: typer's. Without any command it has shown the help already, and has no message."""
    message = error.format_message()
    if not message:
        _leave(error.exit_code)
    _fail(f"{message} (fastlg --help, fastlg COMMAND --help)", error.exit_code)


def _leave(status: int) -> None:
    """sys.exit; a rank that leaves its group in the middle does not wait for threads that wait for the others."""
    if not _is_in_group():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_in_group() -> bool:
    group = sys.modules.get("fastlg.ranks.group")  # not imported yet: no ranks have met, no need of torch to say so
    return group is not None and group.has_begun()
