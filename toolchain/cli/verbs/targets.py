"""`toolchain targets`: list the deployment targets."""

from toolchain.cli import results

PANEL = "Look things up"


def targets() -> None:
    """List deployment targets: runtime, instruction set and precisions."""
    results.print_files("targets", "target")
