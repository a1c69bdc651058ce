"""Every drop-in that is found keeps its room's contract; no names are listed here."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.pruning import gradients, groups


@pytest.fixture(scope="module")
def group() -> groups.PruningGroup:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 3), torch.nn.BatchNorm2d(24), torch.nn.Conv2d(24, 8, 1))
    net.append(torch.nn.AdaptiveAvgPool2d(1)).append(torch.nn.Flatten())
    collected = gradients.collect(net, [(torch.randn(4, 3, 8, 8), torch.arange(4))])
    found = groups.find(net, torch.zeros(1, 3, 8, 8), "2", collected)
    return next(one for one in found if one.channels == 24)


@pytest.mark.parametrize("name", registry.list_modules("criteria"))
def test_criteria_give_one_finite_number_a_channel(name: str, group: groups.PruningGroup) -> None:
    room = registry.load_module("criteria", name)
    score = room.score(group)
    assert score.shape == (24,)
    assert score.isfinite().all()
    assert isinstance(room.NEEDS, tuple)
    assert set(room.NEEDS) <= set(get_args(groups.Need))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, 4, 4)) for name in ("input", "logits")]
    body = helper.make_graph([helper.make_node("Relu", ["input"], ["logits"])], "g", ends[:1], ends[1:])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "relu.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "relu.onnx"


@pytest.mark.parametrize("name", registry.list_modules("runtimes"))
def test_runtimes_compile_open_and_run(name: str, graph: Path, tmp_path: Path) -> None:
    room = registry.load_module("runtimes", name)
    made = room.compile(graph, tmp_path / "made")
    assert made.size_bytes == sum(file.stat().st_size for file in made.files)
    image = np.random.default_rng(0).standard_normal((1, 3, 4, 4), dtype=np.float32)
    for precision in room.PRECISIONS:
        session = room.open(made.path, threads=1, precision=precision)
        first = session.run(image)
        np.testing.assert_allclose(first, np.maximum(image, 0), rtol=0.01, atol=1e-3)
        session.run(-image)  # an answer must not change when the session runs again
        np.testing.assert_allclose(first, np.maximum(image, 0), rtol=0.01, atol=1e-3)
    assert all(isinstance(version, str) for version in room.fingerprint().values())
    least = [int(part) for part in room.least_version(made.path).split(".")]
    assert least < [int(part) for part in room.library().__version__.split("-")[0].split(".")]


@pytest.mark.parametrize("name", registry.list_modules("runtimes"))
def test_runtimes_compile_to_the_same_bytes_every_time(name: str, graph: Path, tmp_path: Path) -> None:
    room = registry.load_module("runtimes", name)
    assert room.compile(graph, tmp_path / "a").sha256 == room.compile(graph, tmp_path / "b").sha256


QUIET = """
import sys
from pathlib import Path
said = []
sys.addaudithook(lambda event, _: said.append(event) if event.split(".")[0] in {"socket", "urllib"} or "fork" in event else None)
from toolchain.core import registry
room = registry.load_module("runtimes", sys.argv[1])
made = room.compile(Path(sys.argv[2]), Path(sys.argv[3]))
room.open(made.path, threads=1, precision="f32")
print(said)
"""


@pytest.mark.parametrize("name", registry.list_modules("runtimes"))
def test_runtimes_tell_nobody_what_they_compile(
    name: str, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home := tmp_path / "home").mkdir()
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)  # what tests that ran before have set
    ended = subprocess.run(
        [sys.executable, "-c", QUIET, name, str(graph), str(tmp_path / "made")], capture_output=True, text=True, check=True,
        env={**os.environ, "HOME": str(home)},
    )  # fmt: skip
    assert ended.stdout == "[]\n"
    assert not list(home.iterdir())  # an identity to tell it under


@pytest.mark.parametrize("name", registry.list_modules("runtimes"))
def test_runtimes_refuse_what_is_no_model_in_one_message(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(ToolchainError, match=r"x\.onnx"):
        registry.load_module("runtimes", name).open(tmp_path / "x.onnx", threads=1, precision="f32")


@pytest.mark.parametrize("name", registry.list_modules("runtimes"))
def test_a_runtime_that_is_not_installed_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ToolchainError, match="pip install"):
        registry.load_module("runtimes", name).fingerprint()


@pytest.mark.parametrize("name", registry.list_modules("formats"))
def test_formats_recognise_only_their_own_and_are_asked_in_one_order(name: str, tmp_path: Path) -> None:
    room = registry.load_module("formats", name)
    orders = [registry.load_module("formats", other).ORDER for other in registry.list_modules("formats")]
    assert orders.count(room.ORDER) == 1
    assert room.EXPECTED
    (tmp_path / "x.zip").write_bytes(b"PK")
    (tmp_path / "y.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert not any(room.recognise(tmp_path / other) for other in ("x.zip", "y.json"))
    assert room.recognise(tmp_path / "empty") == (max(orders) == room.ORDER)  # class folders are asked last


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.list_modules("sources"))
def test_bundled_sources_write_class_folders(name: str, tmp_path: Path) -> None:
    importlib.import_module(f"toolchain.data.sources.{name}").write(tmp_path)
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) >= 10
    for folder in folders:
        files = list(folder.iterdir())
        assert len(files) >= 100
        with Image.open(files[0]) as picture:
            assert picture.mode == "L"
