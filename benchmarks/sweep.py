"""Every classification model of torchvision: pruned, replayed from its plan's file, exported, compared with torch.

    python benchmarks/sweep.py [--models resnet18,vit_b_16] [--ratio 0.4] [--largest 150] [--out out/sweep]

Random weights. A plan that removes 40 % of the multiply-accumulates, in multiples of 16 channels, is made on one model
and written as JSON; it is read back and applied to a second one, built from the same seed, which is run forward, exported to
ONNX and run by ONNX Runtime. "pruned" is a row whose answers agree with torch: every logit within a thousandth of their
range and the same class. "refused" is a `ToolchainError`, with its message; anything else fails. "as masked" compares the
pruned model with the whole one, in which the weights that read a removed channel are zero: a plan that takes other
channels in one layer than in the next would differ. Layer norms change with what is removed: there it says nothing.
Models of more than 150 million parameters are left out unless --largest says otherwise.

Each model runs in a process of its own. Rows are kept in --out, so a killed run goes on where it was.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import peers
import torch
import typer
from torch import Tensor, nn

from toolchain.config.recipe import ModelSpec, PruneSpec
from toolchain.core import files, progress
from toolchain.core.errors import ToolchainError, first_line
from toolchain.export import to_onnx
from toolchain.models import build, profile
from toolchain.models.sources.torchvision_import import import_torchvision
from toolchain.pruning import search_space, surgery
from toolchain.pruning.criteria import magnitude
from toolchain.pruning.surgery import Surgery

ALIGNMENT = 16
IMAGES = 4
TOLERANCE = 1e-3  # of the range of the logits
SECONDS = 1200  # longest a model may take


def main(
    models: Annotated[str, typer.Option(help="with commas; all where none is named")] = "",
    ratio: Annotated[float, typer.Option(help="share of the multiply-accumulates to remove")] = 0.4,
    largest: Annotated[float, typer.Option(help="million parameters that a model may have")] = 150.0,
    out: Annotated[Path, typer.Option(help="folder that keeps rows")] = Path("out/sweep"),
    one: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Writes the rows that are missing, then prints all of them."""
    library = import_torchvision().models
    names = models.split(",") if models else library.list_models(module=library)
    if one:
        files.write_json(out / f"{names[0]}.json", tried(names[0], ratio, largest, out))
        return
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (out / f"{name}.json").exists():
            continue
        asked = ("--models", name, "--ratio", str(ratio), "--largest", str(largest), "--out", str(out), "--one")
        with contextlib.suppress(subprocess.TimeoutExpired), (out / f"{name}.log").open("w") as log:
            subprocess.run([sys.executable, __file__, *asked], stdout=log, stderr=log, timeout=SECONDS, check=False)
        row = out / f"{name}.json"
        progress.log(line(files.read_json(row)) if row.exists() else f"{name}: failed, see {row.with_suffix('.log')}")
    rows = [files.read_json(path) for path in sorted(out.glob("*.json"))]
    print("\n".join([HEAD, *map(line, rows)]))
    results = [row["result"] for row in rows]
    counts = {result: results.count(result) for result in ("pruned", "refused", "disagrees", "left out")}
    print(json.dumps({**counts, "failed": len(names) - len(rows)}))


def tried(name: str, ratio: float, largest: float, out: Path) -> dict[str, Any]:
    """One row."""
    started = time.monotonic()
    image = torch.zeros(shape(name))
    first = network(name)
    parameters = sum(parameter.numel() for parameter in first.parameters()) / 1e6
    row: dict[str, Any] = {"model": name, "parameters": parameters, "result": "left out", "why": ""}
    if parameters > largest:
        return row
    try:
        before = profile.measure_layers(first, image)
        plan = search_space.plan_for_ratio(
            first, image, head=build.find_head(first, 1000), spec=PruneSpec(ratio=ratio), alignment=ALIGNMENT,
            criterion=magnitude.score,
        )  # fmt: skip
        path = out / "plans" / f"{name}.json"
        files.write_json(path, plan)
        pruned = surgery.apply(network(name), surgery.read(path)).eval()
        after = profile.measure_layers(pruned, image)
        row |= {
            "left": profile.total_macs(after) / profile.total_macs(before),
            "masked": masked(first, pruned, plan, image),
        }
        row |= agreement(pruned, image, out / f"{name}.onnx")
        row["result"] = "pruned" if row["difference"] < TOLERANCE and row["same_class"] == IMAGES else "disagrees"
    except ToolchainError as reason:
        row |= {"result": "refused", "why": first_line(reason)}
    return row | {"seconds": time.monotonic() - started}


def shape(name: str) -> tuple[int, ...]:
    """Of the input: 224x224, but what Inception's auxiliary head can take."""
    return (1, 3, 299, 299) if name == "inception_v3" else peers.SHAPE


def network(name: str) -> nn.Module:
    """A model with random weights, also in its head, which some leave at zero."""
    torch.manual_seed(0)
    model = peers.settled(build.build_untrained(ModelSpec(name=name), 1000), shape(name))
    head = model.get_submodule(build.find_head(model, 1000))
    assert isinstance(head.weight, Tensor)
    if not head.weight.any():
        nn.init.normal_(head.weight, std=0.02)
    return model


def masked(whole: nn.Module, pruned: nn.Module, plan: Surgery, image: Tensor) -> float | None:
    """Largest difference to the whole model without the weights that read what is gone; None with a layer norm."""
    modules = dict(whole.named_modules())
    touched = {modules[name.rpartition(".")[0]] for name in plan.keep}
    if any(isinstance(module, nn.LayerNorm | nn.GroupNorm) for module in touched):
        return None
    with torch.no_grad():
        for name, kept in plan.keep.items():
            if 1 in kept:
                weight = whole.get_parameter(name)
                gone = torch.ones(weight.shape[1], dtype=torch.bool)
                gone[list(kept[1])] = False
                weight[:, gone] = 0
        pictures = torch.from_numpy(peers.images(tuple(image.shape))[0])
        wanted = whole(pictures)
        return float((pruned(pictures) - wanted).abs().max() / (wanted.max() - wanted.min()))


def agreement(model: nn.Module, image: Tensor, path: Path) -> dict[str, float]:
    """How ONNX Runtime's answers differ from torch's."""
    pictures = np.random.default_rng(0).standard_normal((IMAGES, *image.shape), dtype=np.float32)
    to_onnx.export_file(model, image, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    path.unlink()
    with torch.no_grad():
        own = np.concatenate([model(torch.from_numpy(picture)).numpy() for picture in pictures])
    served = np.concatenate([session.run(None, {"input": picture})[0] for picture in pictures])
    return {
        "difference": float(np.abs(own - served).max() / np.ptp(own)),
        "same_class": int((own.argmax(1) == served.argmax(1)).sum()),
    }


HEAD = """\
| model | parameters, M | result | MACs left | difference to ONNX Runtime | as masked | s |
|---|--:|---|--:|--:|--:|--:|"""


def line(row: Mapping[str, Any]) -> str:
    """A row in Markdown."""
    figures = ["", "", ""]
    if "left" in row:
        same = row["masked"]
        figures = [f"{row['left']:.2f}", f"{row['difference']:.0e}", "" if same is None else f"{same:.0e}"]
    result = f"{row['result']}: {row['why']}" if row["why"] else row["result"]
    cells = (row["model"], f"{row['parameters']:.1f}", result, *figures, f"{row.get('seconds', 0):.0f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    typer.run(main)
