"""Verbs for what leaves the house: signing a bundle, checking one, and looking after it in the field."""

from pathlib import Path
from typing import Annotated

import typer

Archive = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's archive, such as out/digits/cpu/bundle.tar.")
]


def sign(
    bundle: Archive,
    key: Annotated[
        Path, typer.Option(help="PEM file of the private key; TOOLCHAIN_KEY_PASSWORD where it is encrypted.")
    ],
) -> None:
    """Write a detached signature beside an archive, which `toolchain verify` and openssl check.

    Exit status: 0 done, 2 wrong input.
    """
    from toolchain import vouched

    typer.echo(f"signature: {vouched.sign(bundle, key)}")


def verify(
    bundle: Archive,
    key: Annotated[Path | None, typer.Option(help="PEM file of the public key; unsigned is refused then.")] = None,
    min_release: Annotated[int, typer.Option(help="Older releases are refused.", min=0)] = 0,
) -> None:
    """Check an archive's signature, its hashes and its release, before anything reads the model.

    Exit status: 0 all in order, 2 refused; the message says what.
    """
    from toolchain import vouched

    typer.echo(f"OK: {vouched.check(bundle, key, min_release).sentence}")


def package(
    bundle: Archive,
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
    from toolchain import cargo, discover
    from toolchain.errors import ToolchainError
    from toolchain.signing import Signer

    room = discover.module("updates", system)
    if certificate and not key:
        raise ToolchainError("--certificate without --key: the private key signs, the certificate says whose it is")
    load = cargo.load(bundle, system, device_type, folder, templates)
    signer = Signer(key=key, certificate=certificate) if key else None
    for what, path in room.build(load, out / "package" / system, signer).items():
        typer.echo(f"{what}: {path}")
    if not signer:
        typer.echo("warning: not signed (--key)", err=True)


def drift(
    bundle: Annotated[Path, typer.Argument(help="The bundle that counted: its folder or archive.")],
    counts: Annotated[list[Path], typer.Argument(help="Files that `run.py --watch` wrote, one or of many boards.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder; drift/drift.html and drift.json are written in it.")
    ] = Path("out"),
) -> None:
    """Has the world moved away from what the model was tested on? fine, recalibrate or retrain, and what moved.

    Exit status: 0 fine, 1 something moved, 2 wrong input, 3 too few pictures to tell.
    """
    from toolchain import drift as drifts
    from toolchain import drift_report, report, watched

    own = watched.bundle(bundle)
    files = drifts.counters(counts, own.identity, own.reference.sizes(len(own.classes)))
    found = drifts.run(own.name, own.reference, len(own.classes), files)
    drift_report.write(found, own, out / "drift")
    report.show(drift_report.tables(found))
    typer.echo(drift_report.sentence(found))
    typer.echo(f"plots: {out / 'drift' / 'drift.html'}")
    if found.verdict != "fine":
        raise typer.Exit(3 if found.verdict == "cannot_tell" else 1)
