"""`toolchain select`: which pretrained model suits the images and the target."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import Board, DataFolder, ImageSize, OnCorrupt, TargetName

PANEL = "Before training"


def select(
    domain: Annotated[str, typer.Option("--domain", "-d", help="Domain; `toolchain domains` lists them.")] = "image-folder",
    target: TargetName = "cpu",
    candidates: Annotated[
        str,
        typer.Option(
            "--candidates", "-c",
            help="With commas: a shortlist (a name or .toml file), recipe:<name>, zoo:<name>, timm:<name>, a torchvision model such as "
            "resnet18 or resnet18:IMAGENET1K_V1, or random:<model>.",
        ),
    ] = "small",
    data: DataFolder = "",
    image_size: ImageSize = "",
    layers: Annotated[bool, typer.Option("--layers", help="Also: how much of the first one is worth keeping, block by block.")] = False,
    on_corrupt: OnCorrupt = "",
    device: Board = "",
    out: Annotated[Path, typer.Option("--out", help="Folder; results are written to select/ in it.")] = Path("out"),
) -> None:  # fmt: skip
    """Rank pretrained models for a domain, beside their latency on the target, size, licence and origin; no training.

    Exit status: 0 done (rows say which candidates could not be had), 2 wrong input.
    """
    import dataclasses

    from toolchain.config import overrides, toml_files
    from toolchain.report import terminal
    from toolchain.report.pages import select as select_report
    from toolchain.report.sections import model_candidates, reuse_depths
    from toolchain.selection import candidates as nominated
    from toolchain.selection import select_model

    chosen = toml_files.read_domain(domain)
    chosen = overrides.override_images(chosen, data, on_corrupt)
    found = nominated.resolve([name.strip() for name in candidates.split(",") if name.strip()])
    size = overrides.parse_image_size(image_size) if image_size else None
    on = toml_files.read_target(target)
    on = dataclasses.replace(on, device=device or on.device)
    written = select_model.rank_candidates(chosen, on, found, size, out, layers=layers)
    select_report.write(written, out / "select")
    terminal.print_tables(
        [
            model_candidates.tabulate_ranking(written),
            *(content for _, content in select_report.list_further_tables(written)),
        ]
    )
    typer.echo(model_candidates.summarize(written))
    if written["advice"]:
        terminal.print_tables([reuse_depths.tabulate_depths(written["advice"])])
        typer.echo(reuse_depths.describe(written["advice"]))
    for warning in written["warnings"]:
        typer.echo(f"Warning: {warning}", err=True)
    stem = out / "select" / f"{chosen.name}.{on.name}"
    typer.echo(f"figures: {stem}.json, {stem.name}.md, {stem.name}.html")
