"""`toolchain domains`: which image domains there are."""

from toolchain.cli import results

PANEL = "Look things up"


def domains() -> None:
    """List image domains."""
    results.print_files("calibration", "domain")
