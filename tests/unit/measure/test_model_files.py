"""Model files: bare files are opened, or refused with a message that says why, and their names are made unique."""

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from toolchain.core.errors import ToolchainError
from toolchain.measure import model_files


def model(path: Path, *shapes: tuple[object, ...], dtype: int = TensorProto.FLOAT) -> Path:
    inputs = [helper.make_tensor_value_info(f"i{number}", dtype, shape) for number, shape in enumerate(shapes)]
    output = helper.make_tensor_value_info("o", dtype, None)
    graph = helper.make_graph([helper.make_node("Identity", ["i0"], ["o"])], "g", inputs, [output])
    path.write_bytes(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    )
    return path


def test_a_bare_file_is_timed_with_one_image(tmp_path: Path) -> None:
    opened = model_files.open_model(model(tmp_path / "a.onnx", ("n", 3, 8, 9)), tmp_path)
    assert (opened.timed_model.shape, opened.timed_model.dtype, opened.timed_model.runtime) == (
        (1, 3, 8, 9),
        "float32",
        "onnxruntime",
    )
    assert (opened.name, opened.timed_model.precision, opened.manifest) == ("a", "f32", None)
    assert opened.artefact.size_bytes == (tmp_path / "a.onnx").stat().st_size
    frames = model_files.open_model(
        model(tmp_path / "b.onnx", (4, 8, 9, 3), dtype=TensorProto.UINT8), tmp_path, threads=2
    )
    assert (frames.timed_model.shape, frames.timed_model.dtype, frames.timed_model.threads) == (
        (4, 8, 9, 3),
        "uint8",
        2,
    )


def test_an_onnx_file_can_be_timed_in_openvino(tmp_path: Path) -> None:
    opened = model_files.open_model(
        model(tmp_path / "a.onnx", (1, 3, 8, 8)), tmp_path, runtime="openvino", precision="bf16"
    )
    assert (opened.timed_model.runtime, opened.timed_model.precision) == ("openvino", "bf16")


def test_a_file_that_cannot_be_timed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"the input shape \[1, 3, \?, \?\] is dynamic"):
        model_files.open_model(model(tmp_path / "a.onnx", (1, 3, "h", "w")), tmp_path)
    with pytest.raises(ToolchainError, match="has 2 inputs"):
        model_files.open_model(model(tmp_path / "b.onnx", (1, 3), (1, 3)), tmp_path)
    with pytest.raises(ToolchainError, match="does not exist"):
        model_files.open_model(tmp_path / "c.onnx", tmp_path)
    (tmp_path / "d.onnx").write_bytes(b"no model")
    with pytest.raises(ToolchainError, match="not a readable ONNX file"):
        model_files.open_model(tmp_path / "d.onnx", tmp_path)
    (tmp_path / "e.tflite").write_bytes(b"")
    with pytest.raises(ToolchainError, match=r"no file format that can be timed\. Accepted: \.tar, \.onnx, \.xml"):
        model_files.open_model(tmp_path / "e.tflite", tmp_path)
    with pytest.raises(ToolchainError, match="onnxruntime has no precision 'bf16'"):
        model_files.open_model(model(tmp_path / "f.onnx", (1, 3, 8, 8)), tmp_path, precision="bf16")


def test_names_are_made_unique(tmp_path: Path) -> None:
    opened = model_files.open_model(model(tmp_path / "a.onnx", (1, 3, 8, 8)), tmp_path)
    assert [model.name for model in model_files.make_names_unique([opened, opened.renamed("b"), opened])] == [
        "a (1)",
        "b",
        "a (3)",
    ]
