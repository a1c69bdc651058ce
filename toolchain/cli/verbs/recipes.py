"""`toolchain recipes`: which recipes there are."""

from toolchain.cli import results

PANEL = "Look things up"


def recipes() -> None:
    """List recipes and what each does."""
    results.print_files("recipes", "recipe")
