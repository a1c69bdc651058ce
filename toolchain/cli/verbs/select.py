"""`toolchain select`: rank pretrained models for a dataset and a target."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import Board, DataFolder, ImageSize, OnCorrupt, TargetName

PANEL = "Before training"


def select(
    domain: Annotated[str, typer.Option("--domain", "-d", help="Dataset description; `toolchain domains` lists them.")] = "image-folder",
    target: TargetName = "cpu",
    candidates: Annotated[
        str,
        typer.Option(
            "--candidates", "-c",
            help="Models to rank, comma-separated: a shortlist (a name or a .toml file), recipe:<name>, zoo:<name>, timm:<name>, "
            "a torchvision model such as resnet18 or resnet18:IMAGENET1K_V1, or random:<model>.",
        ),
    ] = "small",
    data: DataFolder = "",
    image_size: ImageSize = "",
    layers: Annotated[bool, typer.Option("--layers", help="Also advise how many blocks of the best model to keep.")] = False,
    on_corrupt: OnCorrupt = "",
    device: Board = "",
    out: Annotated[Path, typer.Option("--out", help="Results are written to select/ in this folder.")] = Path("out"),
) -> None:  # fmt: skip
    """Rank pretrained models for a dataset by transferability, with latency on the target, size and licence; no training.

    Exit status: 0 done (the table says which candidates are unavailable), 2 wrong input.
    """
    import dataclasses

    from toolchain.config import overrides, read_config
    from toolchain.data import dataset_format

    dataset = overrides.override_images(read_config.read_domain(domain), data, on_corrupt)
    size = overrides.parse_image_size(image_size) if image_size else None
    dataset_format.check(dataset, out / "data")  # before the imports below, which take seconds
    from toolchain.report import terminal
    from toolchain.report.pages import select as select_report
    from toolchain.report.sections import model_candidates, reuse_depths
    from toolchain.selection import candidates as candidate_models
    from toolchain.selection import select_model

    models = candidate_models.resolve([name.strip() for name in candidates.split(",") if name.strip()])
    deployment = read_config.read_target(target)
    deployment = dataclasses.replace(deployment, device=device or deployment.device)
    written = select_model.rank_candidates(dataset, deployment, models, size, out, layers=layers)
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
    stem = out / "select" / f"{dataset.name}.{deployment.name}"
    typer.echo(f"figures: {stem}.json, {stem.name}.md, {stem.name}.html")
