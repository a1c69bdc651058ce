"""The one error a user is meant to see. Everything else that escapes is a bug and keeps its traceback."""


class ToolchainError(Exception):
    """Says what is wrong, what was given, what is accepted and what to do next, in one message.

    `exit_code` is what the process ends with: 2 for a wrong input or environment, 1 when a check says no,
    3 when the machine cannot tell.
    """

    exit_code = 2


class CheckFailed(ToolchainError):
    """A budget, a verification or a gate said no; the report is written all the same."""

    exit_code = 1


def brief(reason: BaseException) -> str:
    """The first line of what another library complains about, or at least the kind of complaint."""
    return next(iter(str(reason).strip().splitlines()), type(reason).__name__)
