"""`toolchain clean`: remove what runs keep for later runs and no result needs."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolchain.cli.options import OutFolder

if TYPE_CHECKING:
    from toolchain.core.cache_cleanup import CacheEntry

PANEL = "Look things up"
UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
SECONDS_A_DAY = 86400.0


def clean(
    out: OutFolder = Path("out"),
    keep_gb: Annotated[
        float, typer.Option(min=0.0, metavar="GB", help="Remove only as much as it takes to stay below this.")
    ] = 0.0,
    all_runs: Annotated[
        bool,
        typer.Option("--all", help="Also what the runs in the folder used; they start from nothing the next time."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it. Without this flag, only say what would be removed.")
    ] = False,
) -> None:
    """Remove cached stages and decoded images that no result in the folder needs, the longest unused first.

    Bundles, reports and locks stay, and so does what a running process uses.

    Exit status: 0 done, 2 wrong input.
    """
    from toolchain.core import cache_cleanup
    from toolchain.core.errors import ToolchainError

    if not out.is_dir():
        raise ToolchainError(f"there is no folder {out}; give the folder of the runs with --out")
    entries = cache_cleanup.list_entries(out)
    chosen = cache_cleanup.choose(entries, round(keep_gb * UNITS["GB"]), include_runs=all_runs)
    _print_groups(out, entries, chosen)
    if unknown := cache_cleanup.list_runs_without_note(out):
        typer.echo(f"made by an earlier version, which did not note what it used: {', '.join(unknown)}")
    if not chosen:
        typer.echo("nothing to remove")
    elif not yes:
        typer.echo(f"{_describe(chosen)} would be removed; do it with --yes")
    else:
        removed = [entry for entry in chosen if cache_cleanup.remove(entry)]
        busy = f"; {len(chosen) - len(removed)} in use by a running process stay" if len(removed) < len(chosen) else ""
        typer.echo(f"{_describe(removed)} removed{busy}")


def _print_groups(out: Path, entries: Sequence["CacheEntry"], chosen: Sequence["CacheEntry"]) -> None:
    """Print a line for each step: what there is, what would go, and how long it has not been used."""
    groups = defaultdict[str, list["CacheEntry"]](list)
    for entry in entries:
        groups[entry.folder.parent.relative_to(out).as_posix()].append(entry)
    going = set(chosen)
    for name, group in sorted(groups.items()):
        leaving = [entry for entry in group if entry in going]
        days = (time.time() - min(entry.last_used for entry in group)) / SECONDS_A_DAY
        sizes = f"{_describe(group):>14}   to remove {_describe(leaving):>14}"
        typer.echo(f"{name:<16} {sizes}   unused ≤ {days:.0f} days")
    kept = sorted({entry.kept_for for entry in entries if entry.kept_for and entry not in going})
    if kept:
        typer.echo(f"kept for the runs {', '.join(kept)}")


def _describe(entries: Sequence["CacheEntry"]) -> str:
    size = sum(entry.size_bytes for entry in entries)
    unit, divisor = next((unit, value) for unit, value in UNITS.items() if size >= value or unit == "kB")
    return f"{len(entries)} ({size / divisor:.1f} {unit})"
