"""The model in every form that a target may ask for: each answers as the canonical one does, and says where it does not."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Run
from onnx import TensorProto, helper

from toolchain import pipeline
from toolchain.config import read_config
from toolchain.config.job import make_job
from toolchain.config.packaging import PackageSpec
from toolchain.config.target import Target
from toolchain.core import files, registry
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.deploy import c_array
from toolchain.edge import archive, served_pixels
from toolchain.edge import run as runner
from toolchain.export.passes import camera_input
from toolchain.measure import latency, machine

SEES = Preprocessing(image_size=(24, 40), mode="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def asking(run: Run, **how: object) -> Target:
    return dataclasses.replace(run.target, package=PackageSpec(**how))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def packed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with all forms for a camera of another size, built from the stages of the plain one."""
    folder = tmp_path_factory.mktemp("forms")
    target = asking(run, forms=("ort", "c-array"), input="uint8", frame=(48, 40))
    shutil.copytree(run.out / "work", folder / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 3)
        assert pipeline.export(make_job(run.recipe, target, run.domain, folder))["shipped"]
    return folder / "tiny" / "cpu" / "bundle"


def self_test(folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "run.py", "--self-test"]
    clean = {"PATH": os.environ["PATH"]}
    return subprocess.run(words, cwd=folder, env=clean, capture_output=True, text=True, check=False)


def test_every_form_stands_in_the_manifest_with_its_agreement(packed: Path) -> None:
    forms = {form["form"]: form for form in files.read_json(packed / "manifest.json")["forms"]}
    assert list(forms) == ["frames", "ort", "c-array"]
    assert forms["frames"]["input"] == {"name": "frame", "dtype": "uint8", "shape": [1, 48, 40, 1], "layout": "NHWC"}
    assert all(form["top1_agreement"] >= 0.95 and form["images"] == 24 for form in forms.values())
    assert (forms["frames"]["deterministic"], forms["ort"]["deterministic"]) == (True, False)
    assert forms["ort"]["bound_to"] == {"onnxruntime": onnxruntime.__version__}
    assert {name for form in forms.values() for name in form["files"]} == {
        "frames.onnx", "frames.ort", "required_operators.config", "model_data.c", "model_data.h"
    }  # fmt: skip
    archive.read_verified_manifest(packed)


def test_a_frame_through_the_graph_is_a_frame_through_the_runner(packed: Path) -> None:
    made = files.read_json(packed / "manifest.json")
    model = runner.open_model(packed, made, archive.list_checksummed_files(packed))
    folded = runner.open_model(packed, made, archive.list_checksummed_files(packed), "frames.ort")
    frame = np.random.default_rng(0).integers(0, 256, (48, 40), dtype=np.uint8)
    sees = made["preprocess"]
    small = runner.normalise(runner.fit_size(frame, sees["image_size"]), sees["mean"], sees["std"])[None]
    assert np.abs(folded(frame[None, :, :, None]) - model(small)).max() <= 3 * made["golden"]["step"]


def test_the_self_test_asks_every_form(packed: Path, tmp_path: Path) -> None:
    ended = self_test(packed)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "also passed: frames.onnx, frames.ort; not run: model_data.c (to be linked)" in ended.stdout
    broken = tmp_path / "broken"
    shutil.copytree(packed, broken)
    model = onnx.load(broken / "frames.onnx")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "half"))
    model.graph.node[0].output[0] = "whole"
    model.graph.node.insert(1, helper.make_node("Mul", ["whole", "half"], ["frame_float"]))  # half as bright
    onnx.save(model, broken / "frames.onnx")
    archive.write_checksums(broken)
    ended = self_test(broken)
    assert ended.returncode == 1
    assert "frames.onnx: golden outputs differ" in ended.stdout


def test_a_minimal_build_needs_these_operators(packed: Path) -> None:
    needs = (packed / "required_operators.config").read_text()
    assert str(Path.cwd()) not in needs
    assert "#" not in needs
    assert needs.startswith("ai.onnx;")
    assert "Gather" in needs  # of the frames' resizing
    assert "Conv" in needs
    assert "nchwc" not in needs  # laid out for the registers of this machine


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
def test_the_c_array_links_and_holds_the_model(packed: Path, tmp_path: Path) -> None:
    main = '#include <stdio.h>\n#include "model_data.h"\nint main(void) { return fwrite(model_data, 1, model_data_size, stdout) != model_data_size; }\n'
    (tmp_path / "main.c").write_text(main)
    build = ["cc", "-std=c99", "-Wall", "-Werror", f"-I{packed}", "main.c", str(packed / "model_data.c"), "-o", "main"]
    subprocess.run(build, cwd=tmp_path, check=True)
    body = subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout
    assert body == (packed / "frames.ort").read_bytes()


def test_a_form_that_answers_otherwise_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 3)
    folder = tmp_path / "out"
    shutil.copytree(run.out / "work", folder / "work")
    fold = camera_input.fold_preprocessing
    inverted = dataclasses.replace
    monkeypatch.setattr(
        camera_input,
        "fold_preprocessing",
        lambda source, sees, *rest: fold(source, inverted(sees, mean=(5.0,) * 3), *rest),
    )
    with pytest.raises(ToolchainError, match="the form 'frames', predicts the canonical model's class for only"):
        pipeline.export(make_job(run.recipe, asking(run, input="uint8"), run.domain, folder))
    assert not (folder / "tiny" / "cpu" / "bundle").exists()


def write_operation(path: Path, operation: str, size: tuple[int, int]) -> Path:
    """Write a model of one operation on an input of this size."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, *size)) for name in ("input", "logits")]
    body = helper.make_graph([helper.make_node(operation, ["input"], ["logits"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def run_folded(
    runtime: str, operation: str, sees: Preprocessing, frame: tuple[int, int], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame of random pixels, and what a model of one operation that takes such frames makes of it."""
    plain = write_operation(folder / "m.onnx", operation, sees.image_size)
    camera_input.fold_preprocessing(plain, sees, frame, folder / "folded.onnx")
    onnx.checker.check_model(onnx.load(folder / "folded.onnx"), full_check=True)
    room = registry.load_module("runtimes", runtime)
    session = room.open(room.compile(folder / "folded.onnx", folder / "made").path, threads=1, precision="f32")
    shape = (*frame, 3) if sees.mode == "rgb" else frame
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return pixels, session.run(pixels.reshape(1, *frame, -1))[0]


def assert_same_pixels(given: np.ndarray, wanted: np.ndarray, sees: Preprocessing) -> None:
    off = np.abs(given - wanted) * np.array(sees.std)[:, None, None] * 255  # in grey levels
    assert off.max() < 1.01
    assert (off > 0.01).mean() < 0.05


@pytest.mark.parametrize("mode", ["rgb", "gray"])
@pytest.mark.parametrize("frame", [(24, 40), (48, 80), (33, 47), (20, 30)])
@pytest.mark.parametrize("runtime", registry.list_modules("runtimes"))
def test_resizing_in_the_graph_is_pillows(runtime: str, frame: tuple[int, int], mode: str, tmp_path: Path) -> None:
    sees = dataclasses.replace(SEES, mode=mode)
    pixels, given = run_folded(runtime, "Relu", sees, frame, tmp_path)
    wanted = np.maximum(0, runner.normalise(runner.fit_size(pixels, sees.image_size), sees.mean, sees.std))
    assert_same_pixels(given, wanted, sees)


@pytest.mark.parametrize("frame", [(24, 40), (48, 80), (33, 47), (20, 30), (90, 40), (24, 60)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"order": "bgr"},
        {"fit": "crop", "crop_share": 0.875, "interpolation": "bicubic"},
        {"fit": "letterbox", "fill": (9, 80, 250), "order": "bgr"},
        {"interpolation": "area"},
        {"antialias": False},
        {"fit": "letterbox", "antialias": False, "interpolation": "bicubic", "mode": "gray"},
        {"mean": (103.9 / 255, 0.4, 0.5), "std": (1 / 255,) * 3},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize("runtime", registry.list_modules("runtimes"))
def test_a_frame_in_the_graph_becomes_what_run_py_makes_of_it(
    runtime: str, settings: dict[str, Any], frame: tuple[int, int], tmp_path: Path
) -> None:
    sees = dataclasses.replace(SEES, **settings)
    pixels, given = run_folded(runtime, "Abs", sees, frame, tmp_path)
    assert_same_pixels(given, np.abs(runner.normalise(served_pixels.fit(pixels, sees), sees.mean, sees.std)), sees)


def test_a_blob_comes_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('somebody else ran')")
    monkeypatch.chdir(tmp_path)  # what lies there passes for no library
    room = registry.load_module("runtimes", "openvino")
    made = room.compile(write_operation(tmp_path / "m.onnx", "Relu", (4, 4)), tmp_path / "ir").path
    packed = [room.pack(made, tmp_path / name, threads=1, precision="f32", native=True) for name in ("first", "second")]
    assert packed[0].files[0].read_bytes() == packed[1].files[0].read_bytes()
    assert packed[0].bound_to == {**room.fingerprint(), "isa": machine.vector_extensions()}
    image = np.random.default_rng(0).standard_normal((1, 3, 4, 4), dtype=np.float32)
    session = room.open(packed[0].files[0], threads=1, precision="f32")
    assert np.array_equal(session.run(image), np.maximum(image, 0))
    with pytest.raises(ToolchainError, match="a blob is compiled for the machine that writes it"):
        room.pack(made, tmp_path / "third", threads=1, precision="f32", native=False)


@pytest.mark.parametrize(
    ("runtime", "table", "said"),
    [
        ("onnxruntime", {"forms": ["blob"]}, "onnxruntime has no 'blob'.*Accepted: ort, c-array"),
        ("openvino", {"forms": ["c-array"]}, "openvino has no 'c-array'.*Accepted: blob"),
        ("onnxruntime", {"forms": ["ort", "ort"]}, "one is given twice"),
        ("onnxruntime", {"frame": [480, 640]}, 'needs input = "uint8"'),
        ("onnxruntime", {"frame": [4, 640], "input": "uint8"}, "each between 8 and 4096"),
        ("onnxruntime", {"input": "float16"}, "package.input = 'float16'"),
        ("onnxruntime", {"form": ["ort"]}, "unknown key package.form"),
    ],
)
def test_what_a_runtime_lacks_is_refused_with_the_file(runtime: str, table: dict[str, object], said: str) -> None:
    with pytest.raises(ToolchainError, match=said):
        read_config.validate("targets", {"name": "mine", "runtime": runtime, "package": table}, "targets/mine.toml")


def test_an_array_of_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(bytes(range(256)))
    source, header = c_array.write(tmp_path / "m.bin", tmp_path / "made")
    rows = source.read_text().partition("{\n")[2].partition("}")[0]
    assert bytes(json.loads(f"[{rows.strip().rstrip(',')}]")) == bytes(range(256))
    assert "256 bytes" in header.read_text()
