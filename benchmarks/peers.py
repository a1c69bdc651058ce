"""The post-training quantizers that our exports are measured against; each makes one file, in a process of its own.

    python benchmarks/peers.py PEER MODEL FOLDER    # FOLDER/../float.onnx -> FOLDER/model.onnx or FOLDER/model.xml

A process of its own because NNCF patches torch when it is imported, and because a peer that dies must not take the
table with it. Each gets what its documentation recommends for x86, and a few random images: neither the weights nor
the ranges change the latency. NNCF is no part of the toolchain: pip install 'edge-toolchain[peers]' brings it.

Our ONNX Runtime adapter opens files without the optimizer WeightBiasQuantization, which some peers need: without it
NNCF's ResNet-18 runs no convolution in integers and takes 48 ms, with it 10 ms. So beside every ONNX file lies
`optimized.onnx`, the graph as a session with the default settings leaves it; that one is what is timed in ONNX Runtime.
"""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from toolchain.config.recipe import ModelSpec
from toolchain.core.errors import first_line
from toolchain.export import to_onnx
from toolchain.models import build

SHAPE = (1, 3, 224, 224)
IMAGES = 3
INSTALL = "pip install 'edge-toolchain[peers]'"
LAYERS = ["Conv", "Add", "Gemm", "MatMul"]
SECONDS = 1800  # longest a peer may take


def network(name: str) -> nn.Module:
    """A torchvision model with random weights and the batch statistics that go with them.

    With the statistics of a fresh model activations would shrink layer by layer down to denormal numbers, which are
    slow in float and would flatter the integer side.
    """
    torch.manual_seed(0)
    return settled(build.build_untrained(ModelSpec(name=name), 1000), SHAPE)


def settled(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A model with the batch statistics that random images give, ready to answer."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain mean over all batches; here that is one
    with torch.no_grad():
        model.train()(torch.randn(8, *shape[1:]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def images(shape: tuple[int, ...] = SHAPE) -> list[np.ndarray]:
    """Random pictures, float32 [1, 3, height, width]."""
    return list(np.random.default_rng(0).standard_normal((IMAGES, *shape), dtype=np.float32))


def make(peer: str, name: str, folder: Path) -> None:
    """Writes one peer's file into an empty folder; a failure leaves its reason there as `fails.txt`."""
    command = [sys.executable, __file__, peer, name, str(folder)]
    environment = {**os.environ, "NNCF_CI": "1"}  # NNCF would report to its makers otherwise
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        (folder / "fails.txt").write_text(f"took more than {SECONDS} s")
        return
    if ended.returncode != 0:
        last = ended.stderr.strip().splitlines()[-1:] or [f"exit status {ended.returncode}"]
        (folder / "fails.txt").write_text(last[0])


def installed(peer: str) -> bool:
    """Whether what a peer needs beyond the toolchain's own dependencies is there."""
    return not peer.startswith("nncf") or find_spec("nncf") is not None


def static(source: Path, folder: Path, operations: list[str] | None, rows: Iterable[np.ndarray]) -> None:
    """ONNX Runtime's `quantize_static` as it documents it for x86: `folder/model.onnx`, calibrated on `rows`.

    Args:
        rows: inputs, float32 [1, 3, height, width] each.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        rest: Iterator[np.ndarray] = iter(rows)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {"input": image}

    quant_pre_process(str(source), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(folder / "prepared.onnx"), str(folder / "model.onnx"), Reader(), quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operations, per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def quantize_static_all(source: Path, name: str, folder: Path) -> None:
    """ONNX Runtime's own, every operation that it knows in integers."""
    static(source, folder, None, images())


def quantize_static_layers(source: Path, name: str, folder: Path) -> None:
    """ONNX Runtime's own, convolutions, matrix products and additions only."""
    static(source, folder, LAYERS, images())


def nncf_onnx(source: Path, name: str, folder: Path) -> None:
    """NNCF on the ONNX graph."""
    import nncf

    dataset = nncf.Dataset([{"input": image} for image in images()])
    made = nncf.quantize(
        onnx.load(source), dataset, subset_size=IMAGES,
        target_device=nncf.TargetDevice.CPU, preset=nncf.QuantizationPreset.PERFORMANCE,
    )  # fmt: skip
    onnx.save(made, folder / "model.onnx")


def nncf_openvino(source: Path, name: str, folder: Path) -> None:
    """NNCF on OpenVINO's own form of the graph."""
    import nncf
    import openvino

    made = nncf.quantize(
        openvino.convert_model(str(source)), nncf.Dataset(images()), subset_size=IMAGES,
        target_device=nncf.TargetDevice.CPU, preset=nncf.QuantizationPreset.PERFORMANCE,
    )  # fmt: skip
    openvino.save_model(made, str(folder / "model.xml"), compress_to_fp16=False)


def torchao(source: Path, name: str, folder: Path) -> None:
    """torchao's quantizer for x86, calibrated, converted and written by torch's exporter."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    pictures = [torch.from_numpy(image) for image in images()]
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    exported = torch.export.export(network(name), (pictures[0],)).module()
    with torch.no_grad():
        prepared = prepare_pt2e(exported, quantizer)
        for picture in pictures:
            prepared(picture)
        converted = convert_pt2e(prepared)
    program = torch.onnx.export(
        converted, (pictures[0],), dynamo=True, opset_version=to_onnx.OPSET, verbose=False,
        input_names=["input"], output_names=["logits"],
    )  # fmt: skip
    assert program is not None
    program.save(folder / "model.onnx")


MAKERS: Mapping[str, Callable[[Path, str, Path], None]] = {
    "quantize_static": quantize_static_all,
    "quantize_static, layers and additions": quantize_static_layers,
    "nncf onnx": nncf_onnx,
    "nncf openvino": nncf_openvino,
    "torchao": torchao,
}


def _optimize(path: Path) -> None:
    """The graph that a session with the default settings runs, as a file for this machine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main(peer: str, name: str, folder: Path) -> None:
    """One peer's file, or its reason as the last line."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        MAKERS[peer](folder.parent / "float.onnx", name, folder)
        if (folder / "model.onnx").exists():
            _optimize(folder / "model.onnx")
    except Exception as reason:  # five libraries, no common base class
        cause: BaseException = reason
        while cause.__cause__ is not None:
            cause = cause.__cause__  # the innermost names the operation
        sys.exit(f"{type(cause).__name__}: {first_line(cause)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
