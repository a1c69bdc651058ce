"""Subjects: bare files are understood or refused in words, and names tell them apart."""

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from toolchain.core.errors import ToolchainError
from toolchain.measure import model_files


def model(path: Path, *shapes: tuple[object, ...], kind: int = TensorProto.FLOAT) -> Path:
    inputs = [helper.make_tensor_value_info(f"i{n}", kind, shape) for n, shape in enumerate(shapes)]
    output = helper.make_tensor_value_info("o", kind, None)
    graph = helper.make_graph([helper.make_node("Identity", ["i0"], ["o"])], "g", inputs, [output])
    path.write_bytes(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    )
    return path


def test_a_bare_file_is_timed_as_one_picture(tmp_path: Path) -> None:
    found = model_files.open_model(model(tmp_path / "a.onnx", ("n", 3, 8, 9)), tmp_path)
    assert (found.timed_model.shape, found.timed_model.dtype, found.timed_model.runtime) == (
        (1, 3, 8, 9),
        "float32",
        "onnxruntime",
    )
    assert (found.name, found.timed_model.precision, found.manifest) == ("a", "f32", None)
    assert found.artefact.size_bytes == (tmp_path / "a.onnx").stat().st_size
    frames = model_files.open_model(
        model(tmp_path / "b.onnx", (4, 8, 9, 3), kind=TensorProto.UINT8), tmp_path, threads=2
    )
    assert (frames.timed_model.shape, frames.timed_model.dtype, frames.timed_model.threads) == (
        (4, 8, 9, 3),
        "uint8",
        2,
    )


def test_an_onnx_file_may_be_for_openvino(tmp_path: Path) -> None:
    found = model_files.open_model(
        model(tmp_path / "a.onnx", (1, 3, 8, 8)), tmp_path, runtime="openvino", precision="bf16"
    )
    assert (found.timed_model.runtime, found.timed_model.precision) == ("openvino", "bf16")


def test_what_cannot_be_timed_is_said(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="is open; export it with a fixed height and width"):
        model_files.open_model(model(tmp_path / "a.onnx", (1, 3, "h", "w")), tmp_path)
    with pytest.raises(ToolchainError, match="has 2 inputs"):
        model_files.open_model(model(tmp_path / "b.onnx", (1, 3), (1, 3)), tmp_path)
    with pytest.raises(ToolchainError, match="is not there"):
        model_files.open_model(tmp_path / "c.onnx", tmp_path)
    (tmp_path / "d.onnx").write_bytes(b"no model")
    with pytest.raises(ToolchainError, match="not a readable ONNX file"):
        model_files.open_model(tmp_path / "d.onnx", tmp_path)
    (tmp_path / "e.tflite").write_bytes(b"")
    with pytest.raises(ToolchainError, match=r"of no kind that can be timed; there are \.tar, \.onnx, \.xml"):
        model_files.open_model(tmp_path / "e.tflite", tmp_path)
    with pytest.raises(ToolchainError, match="onnxruntime has no 'bf16'"):
        model_files.open_model(model(tmp_path / "f.onnx", (1, 3, 8, 8)), tmp_path, precision="bf16")


def test_names_differ(tmp_path: Path) -> None:
    one = model_files.open_model(model(tmp_path / "a.onnx", (1, 3, 8, 8)), tmp_path)
    assert [s.name for s in model_files.make_names_unique([one, one.renamed("b"), one])] == ["a (1)", "b", "a (3)"]
