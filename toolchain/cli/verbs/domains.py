"""`toolchain domains`: list the dataset descriptions."""

from toolchain.cli import results

PANEL = "Look things up"


def domains() -> None:
    """List dataset descriptions (domains): classes, splits and where the images come from."""
    results.print_files("calibration", "domain")
