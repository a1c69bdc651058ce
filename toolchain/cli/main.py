"""The command line: every file in `verbs/` is a verb. The only place that catches ToolchainError.

A verb's file holds a function of the file's name, whose docstring and annotations are its help, and PANEL, the heading
under which `--help` lists it. Whatever is slow to import is imported inside the function.
"""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import typer

from toolchain.core import registry
from toolchain.core.errors import ToolchainError

RESUME_NOTE = "finished stages and epochs are kept, the same command goes on from there"
WRITE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
BLOCKED_PATH_ERRNOS = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
PANELS = ("Build a model", "Before training", "Measure and gate", "Ship and watch", "Look things up")  # in this order


def make_app() -> typer.Typer:
    """Return the command line with every verb that lies in `verbs/`."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="From a pretrained image model and a small labelled set to a verified, timed bundle for a named device.",
    )
    verbs = [(name, registry.load_module("verbs", name)) for name in registry.list_modules("verbs")]
    for name, module in sorted(verbs, key=lambda verb: (*PANELS, verb[1].PANEL).index(verb[1].PANEL)):
        app.command(name.replace("_", "-"), rich_help_panel=module.PANEL)(getattr(module, name))
    return app


app = make_app()


@contextlib.contextmanager
def _polite() -> Iterator[None]:
    """Ends in order on SIGTERM and Ctrl-C, whatever library is running, and says what is kept."""

    def stop(*_: object) -> None:
        print(f"interrupted; {RESUME_NOTE}", file=sys.stderr)
        sys.exit(130)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    yield


def _bug() -> NoReturn:
    """Ends with a traceback, and with a status that no pipeline takes for the answer of a check."""
    traceback.print_exc()
    print(
        "error: this is a bug of the toolchain and not of your input; please report it with the lines above",
        file=sys.stderr,
    )
    sys.exit(os.EX_SOFTWARE)


def main() -> None:
    """Runs a verb; every expected error is one message and an exit status."""
    try:
        with _polite():
            app()
    except ToolchainError as reason:
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(reason.exit_code)
    except OSError as reason:
        if reason.errno in BLOCKED_PATH_ERRNOS:
            print(f"error: cannot write {reason.filename}: {reason.strerror}; name another folder", file=sys.stderr)
            sys.exit(ToolchainError.exit_code)
        if reason.errno not in WRITE_ERRNOS:
            _bug()
        print(f"error: cannot write {reason.filename or 'results'}: {reason.strerror}; {RESUME_NOTE}", file=sys.stderr)
        sys.exit(ToolchainError.exit_code)
    except Exception:
        _bug()
