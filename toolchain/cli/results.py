"""What several verbs print at the end: where a run's results are, and the files of one kind."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from toolchain.core.errors import ToolchainError

if TYPE_CHECKING:
    from toolchain.core.registry import ConfigKind


def print_paths(folder: Path, written: Mapping[str, Any], context: typer.Context | None = None) -> None:
    """Print where a run's report and bundle are; if nothing ships, why, and the command (of `context`) that would."""
    typer.echo(f"report: {folder / 'report.html'}")
    if written["shipped"]:
        typer.echo(
            f"bundle: {folder / 'bundle'}  (archive: {folder / 'bundle.tar'}, self-test: python run.py --self-test)"
        )
    else:
        _print_way_out(folder, written, context)


def _print_way_out(folder: Path, written: Mapping[str, Any], context: typer.Context | None) -> None:
    """Print why nothing ships, where the best variant lies, and the command that would ship."""
    from toolchain.core import run_report

    missed = ", ".join(map(run_report.humanize, run_report.list_missed(written)))
    typer.echo(f"no bundle: {written['candidate']} misses {missed}", err=True)
    if (folder / "best").is_dir():
        runner = shlex.quote(str(folder / "best" / "run.py"))
        typer.echo(f"best variant, to look at: python {runner} --not-accepted IMAGE", err=True)
    for nearest in (written.get("nearest") or ())[:1]:
        typer.echo(f"{nearest['variant']} would ship with:", err=True)
        typer.echo(f"  {_repeat_command(context, nearest['flags'])}", err=True)


def _repeat_command(context: typer.Context | None, flags: Sequence[str]) -> str:
    """Return the command line of `context` with further flags; a flag that they replace is left out."""
    if context is None:
        return " ".join(["toolchain export ...", *flags])
    settings = {flag.partition("=")[0] for flag in flags}  # "--budget speedup", or a whole "--latency 0.73x"
    replaced = set[str]()
    if any(flag.startswith("--latency") for flag in flags):
        replaced, settings = {"--ratio", "--latency"}, settings | {"--budget latency"}  # which would win over --latency
    words = ["toolchain", str(context.info_name)]
    for parameter in context.command.params:
        name, value = parameter.opts[-1], context.params.get(str(parameter.name))
        option = next((text for text in parameter.opts if text.startswith("--")), name)
        if option in replaced or value in (None, parameter.default) or parameter.param_type_name != "option":
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            if f"{option} {item}".partition("=")[0] not in settings:
                words += [option, shlex.quote(str(item))]
    return " ".join([*words, *flags])


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
