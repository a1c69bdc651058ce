"""The command line: every file in `verbs/` is a verb. Only this module turns a ToolchainError into an exit status.

A verb's file holds a function with the file's name, whose docstring and annotations are its help, and PANEL, the heading
under which `--help` lists it. Modules that are slow to import are imported inside the function.
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

RESUME_NOTE = "finished stages and epochs are kept; run the same command again to resume"
WRITE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
BLOCKED_PATH_ERRNOS = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
PANELS = ("Build a model", "Before training", "Measure and gate", "Ship and watch", "Look things up")  # in this order


def make_app() -> typer.Typer:
    """Return the command line with every verb in `verbs/`."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Fine-tune, prune and quantize a pretrained image model on a small labelled dataset, and export it as a "
        "verified and timed bundle for an edge target.",
    )
    verbs = [(name, registry.load_module("verbs", name)) for name in registry.list_modules("verbs")]
    for name, module in sorted(verbs, key=lambda verb: (*PANELS, verb[1].PANEL).index(verb[1].PANEL)):
        app.command(name.replace("_", "-"), rich_help_panel=module.PANEL)(getattr(module, name))
    return app


app = make_app()


@contextlib.contextmanager
def _handle_interrupts() -> Iterator[None]:
    """End with status 130 on SIGTERM and Ctrl-C, whatever library is running, and say how to resume."""

    def stop(*_: object) -> None:
        print(f"interrupted; {RESUME_NOTE}", file=sys.stderr)
        sys.exit(130)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    yield


def _report_bug() -> NoReturn:
    """End with a traceback and a status that cannot be mistaken for the result of a check or gate."""
    traceback.print_exc()
    print(
        "error: this is a bug in the toolchain, not in your input; please report it with the lines above",
        file=sys.stderr,
    )
    sys.exit(os.EX_SOFTWARE)


def main() -> None:
    """Run a verb. Every expected error ends with one message and an exit status."""
    try:
        with _handle_interrupts():
            app()
    except ToolchainError as reason:
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(reason.exit_code)
    except OSError as reason:
        if reason.errno in BLOCKED_PATH_ERRNOS:
            print(f"error: cannot write {reason.filename}: {reason.strerror}; choose another folder", file=sys.stderr)
            sys.exit(ToolchainError.exit_code)
        if reason.errno not in WRITE_ERRNOS:
            _report_bug()
        print(f"error: cannot write {reason.filename or 'results'}: {reason.strerror}; {RESUME_NOTE}", file=sys.stderr)
        sys.exit(ToolchainError.exit_code)
    except Exception:
        _report_bug()
