"""Timing: rounds in processes of their own, sides interleaved, raw samples kept, failures told."""

import ast
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolchain.core import registry, statistics
from toolchain.core.errors import ToolchainError
from toolchain.edge import timing_process
from toolchain.measure import paired_timing

SHAPE = (1, 3, 16, 16)


def side(folder: Path, name: str, channels: int) -> paired_timing.TimedModel:
    kernel = np.ones((channels, 3, 3, 3), np.float32)
    node = helper.make_node("Conv", ["input", "w"], ["logits"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, channels, 14, 14))],
        [numpy_helper.from_array(kernel, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return paired_timing.TimedModel(
        name=name, runtime="onnxruntime", path=str(folder / f"{name}.onnx"), precision="f32", threads=1, shape=SHAPE
    )


def test_a_round_keeps_every_sample_of_every_side(tmp_path: Path) -> None:
    sides = [side(tmp_path, "small", 8), side(tmp_path, "large", 512)]
    found: list[paired_timing.Round] = []
    paired_timing.time_rounds(sides, 2, 7, found.append)
    assert [one.seed for one in found] == [7, 8]
    for one in found:
        assert {name: np.shape(blocks) for name, blocks in one.blocks.items()} == {
            "small": (timing_process.BLOCKS_PER_ROUND, timing_process.RUNS_PER_BLOCK),
            "large": (timing_process.BLOCKS_PER_ROUND, timing_process.RUNS_PER_BLOCK),
        }
        assert statistics.log_speedup(one.blocks["large"], one.blocks["small"]) > 0.5


@pytest.mark.parametrize("python", ["", sys.executable])
def test_what_lies_in_the_working_directory_passes_for_no_library(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('somebody else ran')")
    monkeypatch.chdir(tmp_path)
    one = dataclasses.replace(side(tmp_path, "a", 8), python=python)
    assert paired_timing.measure_footprint(one).first_ms > 0
    found: list[paired_timing.Round] = []
    paired_timing.time_rounds([one], 1, 0, found.append)
    assert len(found) == 1


def test_an_interrupted_series_goes_on_where_it_stopped(tmp_path: Path) -> None:
    found: list[paired_timing.Round] = []
    paired_timing.time_rounds([side(tmp_path, "a", 8)], 3, 5, found.append, skip=2)
    assert [one.seed for one in found] == [7]


def test_blocks_take_turns_in_random_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing_process, "_load_model", lambda s: lambda: order.append(s["name"]))
    request = {
        "sides": [{"name": "a"}, {"name": "b"}],
        "seed": 1,
        "effort": dataclasses.asdict(paired_timing.FULL_EFFORT),
    }
    timing_process._run_round(request)
    turn = timing_process.RUNS_PER_BLOCK + 1  # one run that warms the side up again, and those that count
    counted = order[-2 * timing_process.BLOCKS_PER_ROUND * turn :]  # what comes before is warm-up
    turns = ["".join(counted[i : i + turn]) for i in range(0, len(counted), turn)]
    assert set(turns) == {"aaaaaa", "bbbbbb"}
    assert {turns[i] + turns[i + 1] for i in range(0, len(turns), 2)} == {"aaaaaabbbbbb", "bbbbbbaaaaaa"}


def test_memory_is_that_of_the_child_alone(tmp_path: Path) -> None:
    ballast = np.ones(60_000_000)  # half a gigabyte in the parent
    found = paired_timing.measure_footprint(side(tmp_path, "a", 8))
    assert ballast.nbytes > 4e8
    assert 1e7 < found.peak_rss_bytes < 3e8
    assert found.load_ms > 0 < found.first_ms


def test_a_file_that_does_not_load_is_told_not_traced(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    broken = paired_timing.TimedModel(
        name="x", runtime="onnxruntime", path=str(tmp_path / "x.onnx"), precision="f32", threads=1, shape=SHAPE
    )
    with pytest.raises(ToolchainError, match="a timing process failed: .*does not load"):
        paired_timing.measure_footprint(broken)


@pytest.mark.parametrize(
    ("once", "effort", "wanted"),
    [
        (0.001, timing_process.TimingEffort(), (25, 5)),
        (0.1, timing_process.TimingEffort(), (8, 5)),
        (3.0, timing_process.TimingEffort(), (5, 5)),  # what is reported is never cut short
        (0.1, timing_process.TimingEffort(seconds=2.5, fewest_blocks=7, most_seconds=10), (7, 5)),
        (0.5, timing_process.TimingEffort(seconds=2.5, fewest_blocks=7, most_seconds=10), (7, 1)),
        (1.0, timing_process.TimingEffort(seconds=2.5, fewest_blocks=7, most_seconds=10), (5, 1)),
        (4.0, timing_process.TimingEffort(seconds=2.5, fewest_blocks=7, most_seconds=10), (3, 1)),
    ],
)
def test_a_search_spends_little_on_slow_models(
    once: float, effort: timing_process.TimingEffort, wanted: tuple[int, int]
) -> None:
    assert timing_process.plan_round(once, effort) == wanted


def test_what_another_interpreter_gets_needs_nothing_more_of_the_package() -> None:
    given = timing_process.list_required_files(registry.list_modules("runtimes"))
    for name in given:
        tree = ast.parse((registry.PACKAGE_FOLDER / name).read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in top:  # what a function imports is for exporting, which happens here
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            names = [alias.name for alias in node.names]
            for module in modules:
                if (
                    module.startswith("toolchain")
                    and module.count(".") == 1
                    and module.replace(".", "/").removeprefix("toolchain/") in {"core", "config", "edge"}
                ):
                    assert {f"{module.split('.')[1]}/{one}.py" for one in names} <= set(given), name
                elif module.startswith("toolchain."):
                    assert f"{module.removeprefix('toolchain.').replace('.', '/')}.py" in given, name
                else:
                    assert module.partition(".")[0] in {*sys.stdlib_module_names, "numpy"}, (name, module)
