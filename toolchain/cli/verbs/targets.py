"""`toolchain targets`: which deployment targets there are."""

from toolchain.cli import results

PANEL = "Look things up"


def targets() -> None:
    """List deployment targets and what each is for."""
    results.print_files("targets", "target")
