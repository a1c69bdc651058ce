"""`toolchain recipes`: list the recipes."""

from toolchain.cli import results

PANEL = "Look things up"


def recipes() -> None:
    """List recipes: which model, which dataset, how to train, prune and quantize."""
    results.print_files("recipes", "recipe")
