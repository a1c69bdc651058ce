"""The error that a user is meant to see. Any other exception that reaches the command line is a bug, with a traceback."""


class ToolchainError(Exception):
    """A message that says what is wrong, what was given, what is accepted and what to do next.

    `exit_code` is the exit status of the process: 2, wrong input or environment.
    """

    exit_code = 2


def first_line(reason: BaseException) -> str:
    """Return the first line of another library's error message, or the exception's type if it has no message."""
    if isinstance(reason, KeyError):  # its message is the key alone
        return f"there is no {reason}"
    return next(iter(str(reason).strip().splitlines()), type(reason).__name__)


def last_line(text: str, otherwise: str) -> str:
    """Return the last line that is not empty of a process's output, or `otherwise` if there is none."""
    return next(reversed([line for line in text.splitlines() if line.strip()]), otherwise).strip()
