"""`toolchain package`: wrap a bundle for the update system of a board."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import BundleArchive

PANEL = "Ship and watch"


def package(
    bundle: BundleArchive,
    system: Annotated[str, typer.Option("--for", metavar="SYSTEM", help="Update system: swupdate, mender or rauc.")],
    device_type: Annotated[str, typer.Option(help="Device type of the board, as its update system knows it.")],
    key: Annotated[
        Path | None,
        typer.Option(help="Private key to sign with (PEM; password in TOOLCHAIN_KEY_PASSWORD). Default: unsigned."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="X.509 certificate of the key; required for RAUC, gives CMS for SWUpdate.")
    ] = None,
    folder: Annotated[
        str, typer.Option(help="Folder on the board in which bundles are kept.")
    ] = "/var/lib/edge-models",
    templates: Annotated[
        str, typer.Option(help="Folder with your own templates, or the name of one that ships: rauc-artifact.")
    ] = "",
    out: Annotated[
        Path, typer.Option("--out", help="The package is written to package/<system>/ in this folder.")
    ] = Path("out"),
) -> None:
    """Wrap a bundle's archive for the update system of a board: SWUpdate, Mender or RAUC.

    Exit status: 0 done, 2 wrong input.
    """
    from toolchain.core import registry
    from toolchain.core.errors import ToolchainError
    from toolchain.deploy import update_package
    from toolchain.deploy.signing import Signer

    update_system = registry.load_module("updates", system)
    if certificate and not key:
        raise ToolchainError("--certificate needs --key: give the private key that belongs to the certificate")
    update = update_package.prepare(bundle, system, device_type, folder, templates)
    signer = Signer(key=key, certificate=certificate) if key else None
    for description, path in update_system.build(update, out / "package" / system, signer).items():
        typer.echo(f"{description}: {path}")
    if not signer:
        typer.echo("Warning: the package is not signed; sign it with --key", err=True)
