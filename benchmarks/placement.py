"""Our int8 export, placed by measured latency, against the post-training quantizers that others ship.

    python benchmarks/placement.py [--models resnet18,mobilenet_v2] [--runtimes onnxruntime] [--out out/placement]

Random weights, 224x224, static batch 1, one thread. A row is one model in one runtime: our export is searched, made
and compiled as a user's would be, and timed against all peers in the same paired rounds (`timing.rounds`); the ratio
is to the peer that turned out the fastest. Where the search says that float is faster, the float file is ours. In
OpenVINO every peer is also timed with OpenVINO's default for what stays in float, bf16 where the core has it.

Artefacts, rounds and rows are kept in --out, so a killed run goes on where it was; remove a model's folder there to
do it again. NNCF comes with pip install 'edge-toolchain[peers]'; without it its columns say so.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from toolchain.export.runtime import load_runtime

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the searches and their rounds are single-threaded

import numpy as np
import peers
import torch
import typer
from torch import nn

from toolchain.config import read_config
from toolchain.config.target import Target
from toolchain.core import files, progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Precision
from toolchain.export import to_onnx
from toolchain.measure import paired_timing
from toolchain.quantization import placement_result, pt2e
from toolchain.search import place

MODELS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0",
    "squeezenet1_1", "shufflenet_v2_x1_0", "regnet_y_400mf", "convnext_tiny",
)  # fmt: skip
TARGETS: Mapping[str, str] = {"onnxruntime": "cpu", "openvino": "openvino"}
RIVALS: Mapping[str, Sequence[str]] = {
    "onnxruntime": ("quantize_static", "quantize_static, layers and additions", "nncf onnx", "torchao"),
    "openvino": ("quantize_static", "nncf openvino", "torchao"),
}
IMAGE = torch.zeros(peers.SHAPE)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the table."""

    model: str
    target: Target
    seconds: float
    rounds: int
    folder: Path  # of the model
    image: torch.Tensor = IMAGE

    @property
    def row(self) -> Path:
        """The file that holds the row when it is finished."""
        return self.folder / f"{self.target.runtime}.json"


def main(
    models: Annotated[str, typer.Option(help="torchvision names, with commas")] = ",".join(MODELS),
    runtimes: Annotated[str, typer.Option(help="with commas")] = ",".join(TARGETS),
    seconds: Annotated[float, typer.Option(help="longest search for a placement")] = 90.0,
    rounds: Annotated[int, typer.Option(help="processes that time all sides against one another")] = 6,
    out: Annotated[Path, typer.Option(help="folder that keeps artefacts and rows")] = Path("out/placement"),
) -> None:
    """Writes the rows that are missing, then prints the table of all that are there."""
    torch.set_num_threads(1)
    for name in models.split(","):
        for runtime in runtimes.split(","):
            job = Job(
                model=name,
                target=read_config.read_target(TARGETS[runtime]),
                seconds=seconds,
                rounds=rounds,
                folder=out / name,
            )
            if finished(job.row):
                continue
            progress.log(f"== {name}, {runtime}")
            try:
                files.write_json(job.row, compared(job))
            except ToolchainError as reason:  # the other rows are still worth having
                progress.log(f"{name}, {runtime}: {reason}")
            else:
                progress.log(line(files.read_json(job.row)))
    order = {name: index for index, name in enumerate(MODELS)}
    rows = [files.read_json(path) for path in out.glob("*/*.json") if path.stem in TARGETS]
    rows.sort(key=lambda row: (list(TARGETS).index(row["runtime"]), order.get(row["model"], len(order)), row["model"]))
    print("\n".join([HEAD, *(line(row) for row in rows), "", *notes(rows)]))


def finished(path: Path) -> bool:
    """Whether a row is there and no peer that it lacks has been installed since."""
    missing = files.read_json(path)["missing"] if path.exists() else []
    return path.exists() and not any(peers.installed(peer) for peer in missing)


def compared(job: Job) -> dict[str, Any]:
    """Makes all sides of one row and times them."""
    model = peers.network(job.model)
    source = job.folder / "float.onnx"
    if not source.exists():
        to_onnx.export_file(model, IMAGE, source)
    placed = place.find_placement(model, IMAGE, job.target, (), job.seconds, job.folder.parent / "search")
    own, label = ours(model, placed, job)
    sides, fails, missing = rivals(job)
    measured = timed([own, *sides], job)
    ms = {side.name: median_ms(measured, side.name) for side in (own, *sides)}
    ratios = {
        side.name: statistics.speedup([statistics.log_speedup(one["blocks"]["ours"], one["blocks"][side.name]) for one in measured])
        for side in sides
    }  # fmt: skip
    best = max(ratios, key=lambda name: ratios[name].estimate)  # in pairs: on a busy machine medians mislead
    covered = load_runtime(job.target.runtime).coverage(Path(own.path), precision=own.precision)
    return {
        "model": job.model, "runtime": job.target.runtime, "ours": label, "ours_ms": ms.pop("ours"), "best": best,
        "ratio": ratios[best], "peers_ms": ms, "fails": fails, "missing": missing, "integer": covered.integer,
        "layers": covered.total, "search_seconds": placed.search_seconds, "candidates": len(placed.timed_placements),
    }  # fmt: skip


def ours(model: nn.Module, placed: placement_result.PlacementResult, job: Job) -> tuple[paired_timing.TimedModel, str]:
    """Our artefact and what it is: the placement that was found, or the float form that beats it."""
    best, floating = placed.fastest_int8, placed.fastest_float
    if best is None or floating is None:
        raise ToolchainError(f"nothing was searched: this machine cannot measure the target {job.target.name}")
    runtime = load_runtime(job.target.runtime)

    def export(folder: Path) -> None:
        source = job.folder / "float.onnx"
        if not placed.float_wins:
            source = folder / "exported.onnx"
            graph, _ = pt2e.prepare(model, job.image, placed.placement, job.target.scheme)
            pt2e.configure_fake_quantize(graph, ranges=True, rounding=False)
            with torch.no_grad():
                graph(torch.from_numpy(np.concatenate(peers.images(tuple(job.image.shape)))))
            pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
            to_onnx.export_file(pt2e.convert(graph, job.image), job.image, source)
        runtime.compile(source, folder)

    folder = once(job.folder / f"ours-{job.target.runtime}-{placed.key}", export)
    precision, label = (
        (floating.precision, f"float, {floating.precision}") if placed.float_wins else ("int8", best.label)
    )
    return _side("ours", folder / runtime.FILE_NAMES[0], precision, job), label


def rivals(job: Job) -> tuple[list[paired_timing.TimedModel], dict[str, str], list[str]]:
    """The peers that load, why others do not, and which are not installed."""
    name = job.target.runtime
    runtime = load_runtime(name)
    floats: tuple[Precision, ...] = ("f32", "bf16")
    in_float = [one for one in floats if runtime.available(one)]
    sides = [_side(f"float, {one}", job.folder / "float.onnx", one, job) for one in in_float]
    fails, missing = {}, []
    for peer in RIVALS[name]:
        if not peers.installed(peer):
            missing.append(peer)
            continue
        progress.log(f"{job.model}: {peer}")
        folder = once(job.folder / peer, partial(peers.make, peer, job.model))
        if (folder / "fails.txt").exists():
            fails[peer] = (folder / "fails.txt").read_text()
            continue
        file = "model.xml" if "openvino" in peer else "optimized.onnx" if name == "onnxruntime" else "model.onnx"
        made = [_side(peer, folder / file, "int8", job)]
        if "bf16" in in_float:  # the hint decides what the layers outside of the integers run in
            made.append(_side(f"{peer}, rest in bf16", folder / file, "bf16", job))
        try:
            paired_timing.measure_footprint(made[0])
        except ToolchainError as reason:
            fails[peer] = str(reason)
        else:
            sides += made
    return sides, fails, missing


def _side(name: str, path: Path, precision: Precision, job: Job) -> paired_timing.TimedModel:
    return paired_timing.TimedModel(
        name=name,
        runtime=job.target.runtime,
        path=str(path),
        precision=precision,
        threads=1,
        shape=tuple(job.image.shape),
    )


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is there only when `make` has filled it."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


def timed(sides: Sequence[paired_timing.TimedModel], job: Job) -> list[dict[str, Any]]:
    """The rounds of all sides; those that an earlier run measured with the same files are not repeated."""
    path = job.folder / "rounds" / f"{job.target.runtime}.json"
    asked = files.digest([(side, files.sha256_file(Path(side.path))) for side in sides])
    kept = files.read_json(path) if path.exists() else {}
    rounds: list[dict[str, Any]] = kept["rounds"] if kept.get("asked") == asked else []

    def keep(one: paired_timing.Round) -> None:
        rounds.append({"blocks": one.blocks})
        files.write_json(path, {"asked": asked, "rounds": rounds})
        progress.log(f"{job.model}: round {len(rounds)} of {job.rounds}")

    paired_timing.time_rounds(sides, job.rounds, 0, keep, skip=len(rounds))
    return rounds[: job.rounds]


def median_ms(rounds: Sequence[Mapping[str, Any]], name: str) -> float:
    """Over all inferences of one side."""
    return float(np.median([ms for one in rounds for block in one["blocks"][name] for ms in block]))


HEAD = """\
| model | runtime | ours | ms | integer layers | best peer | ms | ours / best peer | search, s | other peers, ms |
|---|---|---|--:|--:|---|--:|--:|--:|---|"""


def line(row: Mapping[str, Any]) -> str:
    """A row in Markdown."""
    ratio, best = row["ratio"], row["best"]
    others = [f"{name} {ms:.2f}" for name, ms in row["peers_ms"].items() if name != best]
    others += [f"{name} fails" for name in row["fails"]] + [f"{name} not installed" for name in row["missing"]]
    cells = (
        row["model"], row["runtime"], row["ours"], f"{row['ours_ms']:.2f}", f"{row['integer']} of {row['layers']}",
        best, f"{row['peers_ms'][best]:.2f}", f"{ratio['estimate']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]",
        f"{row['search_seconds']:.0f}", "; ".join(others),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why peers are left out, a line each."""
    found = [f"- {row['model']}, {name}: fails: {reason}" for row in rows for name, reason in row["fails"].items()]
    if any(row["missing"] for row in rows):
        found.append(f"- not installed: {peers.INSTALL}")
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    typer.run(main)
