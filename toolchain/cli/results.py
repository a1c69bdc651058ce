"""What several verbs print at the end: where a run's results are, and the files of one kind."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from toolchain.core.errors import ToolchainError

if TYPE_CHECKING:
    from toolchain.core.registry import ConfigKind


def print_paths(folder: Path, written: Mapping[str, Any]) -> None:
    """Print where a run's report and bundle are, or which budgets it missed."""
    typer.echo(f"report: {folder / 'report.html'}")
    if written["shipped"]:
        typer.echo(
            f"bundle: {folder / 'bundle'}  (archive: {folder / 'bundle.tar'}, self-test: python run.py --self-test)"
        )
    else:
        missed = ", ".join(v["check"] for v in written["verdicts"] if v["outcome"] == "fail")
        typer.echo(f"no bundle: {written['candidate']} misses {missed}", err=True)


def print_files(kind: "ConfigKind", title: str) -> None:
    """Print the names, descriptions and paths of all files of one kind."""
    from rich.console import Console
    from rich.table import Table

    from toolchain.config import read_config
    from toolchain.core import registry

    readers: dict[str, Any] = {
        "targets": read_config.read_target,
        "recipes": read_config.read_recipe,
        "calibration": read_config.read_domain,
    }
    table = Table(title, "description", "file", box=None, header_style="bold")
    for name in registry.list_names(kind):
        try:
            description = readers[kind](name).description
        except ToolchainError as reason:
            description = f"(invalid: {reason})"
        table.add_row(name, description, os.path.relpath(registry.find_file(kind, name)))
    Console().print(table)
