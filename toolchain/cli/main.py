"""Verbs to functions; the only place that catches ToolchainError. Heavy imports stay inside the verbs."""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from toolchain.cli import bench, bundle, drift, gate, select
from toolchain.cli.select import Data, ImageSize, OnCorrupt
from toolchain.core.errors import ToolchainError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a pretrained image model and a small labelled set to a verified, timed bundle for a named device.",
)
KEPT = "finished stages and epochs are kept, the same command goes on from there"
WRITING_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
Recipe = Annotated[str, typer.Option("--recipe", "-r", help="Recipe by name, or path to a .toml file.")]
DomainName = Annotated[str, typer.Option(help="Domain instead of the recipe's: classes, splits, gray or rgb.")]
Model = Annotated[
    str,
    typer.Option(
        help="Model instead of the recipe's: of torchvision, such as resnet18, timm:<name>, or auto (export)."
    ),
]
Weights = Annotated[str, typer.Option(help="Checkpoint file, torchvision weights such as DEFAULT, or zoo:<name>.")]
Epochs = Annotated[int, typer.Option(help="Epochs of every training stage; 0 keeps the recipe's.", min=0)]
Seed = Annotated[int, typer.Option(help="Seed of every random choice; -1 keeps the recipe's.", min=-1)]
Seeds = Annotated[int, typer.Option(help="Repeat fine-tuning with so many seeds; 0 keeps the recipe's.", min=0)]
Balance = Annotated[float, typer.Option(help="Aim: 0 accuracy to 1 balanced accuracy; -1 keeps the recipe's.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for results and for the cache that lets runs resume.")]


@app.callback()
def _verbs() -> None:
    """Keeps the verbs named even where there is only one."""


@app.command()
def export(
    target: Annotated[
        str, typer.Option("--target", "-t", help="Deployment target; `toolchain targets` lists them.")
    ] = "cpu",
    recipe: Recipe = "digits",
    data: Data = "",
    domain: DomainName = "",
    model: Model = "",
    weights: Weights = "",
    image_size: ImageSize = "",
    epochs: Epochs = 0,
    seed: Seed = -1,
    seeds: Seeds = 0,
    balance: Balance = -1.0,
    ratio: Annotated[float, typer.Option(help="Share of multiply-accumulates to prune; -1 keeps the recipe's.")] = -1.0,
    latency: Annotated[
        str, typer.Option(help='Prune down to it: "0.5x" of the dense model as shipped, or "1.2 ms".')
    ] = "",
    resolution: Annotated[
        float, typer.Option(help="Least share of each side that pictures may shrink to for it; -1 keeps the recipe's.")
    ] = -1.0,
    lock: Annotated[
        Path | None, typer.Option(help="Lock of an earlier run: the same architecture without a search.")
    ] = None,
    release: Annotated[int, typer.Option(help="Number of this release in the manifest; -1 keeps the recipe's.")] = -1,
    device: gate.Device = "",
    on_corrupt: OnCorrupt = "",
    out: Out = Path("out"),
) -> None:
    """Fine-tune, prune, quantize, export, verify and time a model; write bundle and report.

    Exit status: 0 done, 1 a budget was missed (the report says which), 2 wrong input or environment.
    """
    from toolchain.config import overrides

    chosen = overrides.apply(
        recipe, target,
        overrides.Flags(
            data=data, domain=domain, model=model, weights=weights, image_size=image_size, epochs=epochs, seed=seed,
            seeds=seeds, balance=balance, ratio=ratio, latency=latency, resolution=resolution,
            on_corrupt=on_corrupt, release=release, device=device,
        ),
    )  # fmt: skip
    from toolchain import pipeline
    from toolchain.core import files, registry
    from toolchain.measure import history
    from toolchain.report import write

    beside = registry.find("recipes", recipe).parent
    written = pipeline.build(*chosen, out, lock=lock, beside=beside)
    write.terminal(written)
    folder = out / written["recipe"] / written["target"]
    archive = files.sha256_file(folder / "bundle.tar") if written["shipped"] else ""
    history.append(out / history.FILE, history.of_export(written, archive))
    _where(folder, written)
    if written["shipped"] is None:
        raise typer.Exit(1)


def _where(folder: Path, written: Mapping[str, Any]) -> None:
    typer.echo(f"report: {folder / 'report.html'}")
    if written["shipped"]:
        typer.echo(
            f"bundle: {folder / 'bundle'}  (archive: {folder / 'bundle.tar'}, self-test: python run.py --self-test)"
        )
    else:
        missed = ", ".join(v["check"] for v in written["verdicts"] if v["outcome"] == "fail")
        typer.echo(f"no bundle: {written['candidate']} misses {missed}", err=True)


@app.command()
def adapt(
    recipe: Recipe = "digits",
    data: Data = "",
    domain: DomainName = "",
    model: Model = "",
    weights: Weights = "",
    image_size: ImageSize = "",
    epochs: Epochs = 0,
    seed: Seed = -1,
    seeds: Seeds = 0,
    balance: Balance = -1.0,
    on_corrupt: OnCorrupt = "",
    out: Out = Path("out"),
) -> None:
    """Fine-tune only, with one or several seeds; show accuracy on test, its intervals and the gain over a linear probe.

    `export` with the same settings goes on from here without training again.
    """
    from toolchain.config import overrides

    flags = overrides.Flags(
        data=data, domain=domain, model=model, weights=weights, image_size=image_size, epochs=epochs, seed=seed,
        seeds=seeds, balance=balance, on_corrupt=on_corrupt,
    )  # fmt: skip
    chosen, images = overrides.job(recipe, flags)
    from toolchain.cli import adapt as dense
    from toolchain.report import write

    written = dense.run(chosen, images, out)
    write.show(dense.tables_of(written))
    for note in written["notes"]:
        typer.echo(f"Warning: {note}", err=True)
    typer.echo(f"figures: {out / written['recipe'] / 'adapt.json'}")


@app.command("check-data")
def check_data(
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Recipe whose domain, budget and model are meant, or a .toml file.")
    ] = "digits",
    data: Data = "",
    domain: DomainName = "",
    model: Model = "",
    weights: Weights = "",
    image_size: ImageSize = "",
    source: Annotated[
        str, typer.Option(help="Domain to measure the distance from: what the model was trained on.")
    ] = "",
    out: Out = Path("out"),
) -> None:
    """Examine a set before training: corrupt files, copies across splits, wrong labels, imbalance, what it can show.

    Exit status: 0 nothing severe, 1 something that should be put right before training, 2 wrong input.
    """
    from toolchain.config import overrides, reader

    flags = overrides.Flags(data=data, domain=domain, model=model, weights=weights, image_size=image_size)
    chosen, images = overrides.job(recipe, flags)
    from toolchain.cli import check_data as checkup
    from toolchain.report.pages import data_checks_text

    found, shift, folder = checkup.run(chosen, images, reader.domain(source) if source else None, out)
    data_checks_text.terminal(found, shift)
    typer.echo(f"report: {folder / 'report.html'}")
    if found.severe:
        raise typer.Exit(1)


@app.command()
def targets() -> None:
    """List deployment targets and what each is for."""
    _table("targets", "target")


@app.command()
def recipes() -> None:
    """List recipes and what each does."""
    _table("recipes", "recipe")


@app.command()
def domains() -> None:
    """List image domains."""
    _table("calibration", "domain")


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="recipes, targets, calibration, shortlists or manifest")],
) -> None:
    """Print the JSON schema of one kind of file, for editors."""
    import json

    from toolchain.config import reader
    from toolchain.core import registry
    from toolchain.edge import manifest

    shapes: dict[str, type] = {**{str(k): v for k, v in reader.SHAPES.items()}, "manifest": manifest.Manifest}
    if kind not in shapes:
        raise ToolchainError(f"there is no kind {kind!r}; {registry.nearest(kind, list(shapes))}")
    typer.echo(json.dumps(reader.json_schema(shapes[kind]), indent=1))


@app.command()
def report(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run, such as out/digits/cpu; with --history the folder of all.")
    ] = None,
    history: Annotated[bool, typer.Option(help="Latency and accuracy over time instead, from history.jsonl.")] = False,
) -> None:
    """Show a finished run's report again and rewrite its HTML and Markdown; or how a target has moved over time."""
    from toolchain.core import files
    from toolchain.measure import history as histories
    from toolchain.report import write

    if history:
        from toolchain.report.pages import history as history_report

        folder = run or Path("out")
        entries, odd = histories.read(folder / histories.FILE)
        history_report.write(entries, odd, folder / "history.html")
        write.show([history_report.table(name, own) for name, own in history_report.targets(entries).items()])
        if odd:
            typer.echo(f"Warning: {history_report.skipped(odd)}", err=True)
        typer.echo(f"plots: {folder / 'history.html'}")
        return
    if run is None:
        raise ToolchainError("name the folder of a run, such as out/digits/cpu, or ask for --history")
    written = files.read_json(run / "report.json")
    write.write(written, run)
    write.terminal(written)
    _where(run, written)


@app.command()
def parity(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as out/digits/cpu.")],
    images: Annotated[int, typer.Option(help="How many of the bundle's golden inputs to run.", min=1)] = 8,
    threshold: Annotated[float, typer.Option(help="Quantization steps beyond which two sides part ways.", min=0)] = 1.5,
) -> None:
    """Name the layer in which torch, ONNX Runtime and OpenVINO part ways, and each that fell back to float.

    Exit status: 0 all answer alike, 1 they name different classes, 2 wrong input.
    """
    from toolchain.measure.parity import compare
    from toolchain.report import write
    from toolchain.report.pages import parity as agreement

    written = compare.run(run, images, threshold)
    for one in written["variants"]:
        write.show(agreement.tables(one))
        for sentence in agreement.sentences(one, written):
            typer.echo(sentence)
    typer.echo(f"figures: {run / compare.FILE}")
    if not written["agree"]:
        raise typer.Exit(1)


app.command()(select.select)
app.command()(bench.bench)
app.command()(gate.gate)
app.command()(gate.accept)
app.command()(bundle.sign)
app.command()(bundle.verify)
app.command()(bundle.package)
app.command()(drift.drift)


def _table(kind: Any, what: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from toolchain.config import reader
    from toolchain.core import registry

    readers: dict[str, Any] = {"targets": reader.target, "recipes": reader.recipe, "calibration": reader.domain}
    table = Table(what, "what for", "file", box=None, header_style="bold")
    for name in registry.names(kind):
        try:
            description = readers[kind](name).description
        except ToolchainError as reason:
            description = f"(cannot be used: {reason})"
        table.add_row(name, description, os.path.relpath(registry.find(kind, name)))
    Console().print(table)


@contextlib.contextmanager
def _polite() -> Iterator[None]:
    """Ends in order on SIGTERM and Ctrl-C, whatever library is running, and says what is kept."""

    def stop(*_: object) -> None:
        print(f"interrupted; {KEPT}", file=sys.stderr)
        sys.exit(130)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    yield


def _bug() -> NoReturn:
    """Ends with a traceback, and with a status that no pipeline takes for the answer of a check."""
    traceback.print_exc()
    print(
        "error: this is a bug of the toolchain and not of your input; please report it with the lines above",
        file=sys.stderr,
    )
    sys.exit(os.EX_SOFTWARE)


def main() -> None:
    """Runs a verb; every expected error is one message and an exit status."""
    try:
        with _polite():
            app()
    except ToolchainError as reason:
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(reason.exit_code)
    except OSError as reason:
        if reason.errno in IN_THE_WAY:
            print(f"error: cannot write {reason.filename}: {reason.strerror}; name another folder", file=sys.stderr)
            sys.exit(ToolchainError.exit_code)
        if reason.errno not in WRITING_FAILED:
            _bug()
        print(f"error: cannot write {reason.filename or 'results'}: {reason.strerror}; {KEPT}", file=sys.stderr)
        sys.exit(ToolchainError.exit_code)
    except Exception:
        _bug()
