"""`toolchain package`: a bundle for the update system of a board."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import BundleArchive

PANEL = "Ship and watch"


def package(
    bundle: BundleArchive,
    system: Annotated[str, typer.Option("--for", metavar="SYSTEM", help="swupdate, mender or rauc.")],
    device_type: Annotated[str, typer.Option(help="The board's type, as its update system knows it.")],
    key: Annotated[
        Path | None, typer.Option(help="PEM file of the private key (TOOLCHAIN_KEY_PASSWORD); unsigned without one.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Its X.509 certificate: RAUC's signature, and CMS for SWUpdate.")
    ] = None,
    folder: Annotated[str, typer.Option(help="On the board, in which bundles are kept.")] = "/var/lib/edge-models",
    templates: Annotated[
        str, typer.Option(help="Folder of your own templates, or one that ships: rauc-artifact.")
    ] = "",
    out: Annotated[Path, typer.Option("--out", help="Folder; package/<system>/ is written in it.")] = Path("out"),
) -> None:
    """Wrap a bundle's archive for the update system of a board: SWUpdate, Mender or RAUC.

    Exit status: 0 done, 2 wrong input.
    """
    from toolchain.core import registry
    from toolchain.core.errors import ToolchainError
    from toolchain.deploy import update_package
    from toolchain.deploy.signing import Signer

    room = registry.load_module("updates", system)
    if certificate and not key:
        raise ToolchainError("--certificate without --key: the private key signs, the certificate says whose it is")
    load = update_package.prepare(bundle, system, device_type, folder, templates)
    signer = Signer(key=key, certificate=certificate) if key else None
    for what, path in room.build(load, out / "package" / system, signer).items():
        typer.echo(f"{what}: {path}")
    if not signer:
        typer.echo("warning: not signed (--key)", err=True)
