"""The one error a user is meant to see. Everything else that escapes is a bug and keeps its traceback."""


class ToolchainError(Exception):
    """Says what is wrong, what was given, what is accepted and what to do next, in one message.

    `exit_code` is what the process ends with: 2, a wrong input or environment.
    """

    exit_code = 2


def first_line(reason: BaseException) -> str:
    """The first line of what another library complains about, or at least the kind of complaint."""
    if isinstance(reason, KeyError):  # whose text is the key alone
        return f"there is no {reason}"
    return next(iter(str(reason).strip().splitlines()), type(reason).__name__)


def last_line(text: str, otherwise: str) -> str:
    """What another process said last before it ended."""
    return next(reversed([line for line in text.splitlines() if line.strip()]), otherwise).strip()
