"""Compare the graphs that were read from a foreign ONNX file with the file itself, run by ONNX Runtime on random images."""

from pathlib import Path

import numpy as np

from toolchain.core.errors import ToolchainError
from toolchain.export.onnx_file import RUNTIME
from toolchain.export.onnx_interface import ImageInput
from toolchain.export.runtime import load_runtime

IMAGES = 2
MAX_ERROR = 1e-3  # of the range of the outputs, in float32
MAX_WIDENED_ERROR = 2e-2  # where the file computes in 16-bit floats


def check(path: Path, image: ImageInput, size: tuple[int, int], folder: Path, *, softmax: str, widened: bool) -> None:
    """Run the file, the reference and the float graph in `folder` on random images.

    Args:
        path: the file.
        image: what it takes.
        size: height and width that the graphs take.
        folder: holds `reference.onnx` and `float.onnx`.
        softmax: the last operation of the file, which the graphs leave out; "" for none.
        widened: whether the file computes in 16-bit floats.

    Raises:
        ToolchainError: ONNX Runtime does not run one of them, or their outputs differ.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, *size)).astype(np.float32)
    pixels = np.repeat(pixels[:, :1], 3, axis=1) if image.channels == 1 else pixels
    images = pixels if image.dtype == "uint8" else pixels / 64 - 2
    expected = _run(path, _as_file_takes(images, image))
    for name in ("reference", "float"):
        outputs = _run(folder / f"{name}.onnx", [one[None] for one in images])
        outputs = _apply(softmax, outputs)
        error = float(np.abs(outputs - expected).max()) / max(float(np.ptp(expected)), 1e-6)
        if not error <= (MAX_WIDENED_ERROR if widened else MAX_ERROR):  # NaN is no small error
            raise ToolchainError(
                f"{path} was read wrongly: the outputs of its {name} graph differ by {error:.1%} of their range from the file's "
                "on random images. It may hold a fixed batch size, or NaN; export it with batch 1, or give its module: --model "
                "net.py:build"
            )


def _run(path: Path, images: list[np.ndarray]) -> np.ndarray:
    """Return the outputs [images, classes] of a file, each image's first row."""
    session = load_runtime(RUNTIME).open(path, threads=1, precision="f32", optimized=False)
    try:
        rows = [np.asarray(session.run(image), np.float32)[0].reshape(-1) for image in images]
    except Exception as reason:  # the runtime's exceptions share no base class
        raise ToolchainError(
            f"ONNX Runtime does not run {path.name} on an image {list(images[0].shape)}: {str(reason).strip()[:300]}. Give the "
            "size that it takes with --image-size, or export it again with that size"
        ) from reason
    return np.stack(rows)


def _as_file_takes(images: np.ndarray, image: ImageInput) -> list[np.ndarray]:
    """Return images [n, 3, height, width] one by one as the file takes them: layout, channels, type and batch."""
    images = images[:, : image.channels]
    images = images.transpose(0, 2, 3, 1) if image.layout == "NHWC" else images
    images = np.ascontiguousarray(images).astype(np.dtype(image.dtype))
    return [np.repeat(one[None], image.batch or 1, axis=0) for one in images]


def _apply(softmax: str, logits: np.ndarray) -> np.ndarray:
    if not softmax:
        return logits
    shifted = logits - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    outputs: np.ndarray = np.exp(log_softmax) if softmax == "Softmax" else log_softmax
    return outputs
