"""Our int8 export against ONNX Runtime's own `quantize_static` of the same float model, static batch 1 at 224x224.

    python benchmarks/against_quantize_static.py [resnet18 mobilenet_v2 ...]

Random weights: latency does not depend on them. Peers get what they document as best for x86: uint8 activations,
int8 weights, per channel. Both files are timed against each other and against float in the same paired rounds.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from toolchain.config.recipe import ModelSpec
from toolchain.config.target import QuantScheme
from toolchain.core import statistics
from toolchain.export import to_onnx
from toolchain.export.runtime import load_runtime
from toolchain.measure import latency, paired_timing
from toolchain.models import build
from toolchain.quantization import pt2e
from toolchain.quantization.placement import Placement

SHAPE = (1, 3, 224, 224)


class Random(CalibrationDataReader):
    def __init__(self) -> None:
        self.images = iter(np.random.default_rng(0).standard_normal((8, *SHAPE), dtype=np.float32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"input": image}


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            compare(name, Path(scratch))


def compare(name: str, folder: Path) -> None:
    model = build.build_untrained(ModelSpec(name=name), 1000)
    with torch.no_grad():
        model.train()(torch.randn(8, *SHAPE[1:]))  # plausible batch norm statistics
    model.eval()
    image = torch.zeros(SHAPE)
    to_onnx.export_file(model, image, folder / "float.onnx")
    quant_pre_process(str(folder / "float.onnx"), str(folder / "prepared.onnx"))
    quantize_static(
        str(folder / "prepared.onnx"), str(folder / "peer.onnx"), Random(), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    graph, planned = pt2e.prepare(model, image, Placement(), QuantScheme())
    with torch.no_grad():
        graph(torch.randn(8, *SHAPE[1:]))
    to_onnx.export_file(pt2e.convert(graph, image), image, folder / "ours.onnx")
    runtime = load_runtime("onnxruntime")
    sides = [
        paired_timing.TimedModel(
            name=n, runtime="onnxruntime", path=str(folder / f"{n}.onnx"), precision="int8", threads=1, shape=SHAPE
        )
        for n in ("float", "peer", "ours")
    ]
    rounds: list[paired_timing.Round] = []
    paired_timing.time_rounds(sides, latency.ROUNDS, 0, rounds.append)
    p50 = {
        n: np.median([s for one in rounds for block in one.blocks[n] for s in block]) for n in ("float", "peer", "ours")
    }
    slower = statistics.speedup([statistics.log_speedup(one.blocks["ours"], one.blocks["peer"]) for one in rounds])
    covered = [runtime.coverage(folder / f"{n}.onnx", precision="int8") for n in ("peer", "ours")]
    print(
        f"{name}: float {p50['float']:.2f} ms, quantize_static {p50['peer']:.2f} ms ({covered[0].integer} layers in integers), "
        f"ours {p50['ours']:.2f} ms ({covered[1].integer} of {len(planned)} planned); "
        f"ours / quantize_static {slower.estimate:.3f} [{slower.low:.3f}, {slower.high:.3f}]",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet18", "mobilenet_v2"])
