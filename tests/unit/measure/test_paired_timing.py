"""Paired timing: a process per round, models that take turns, raw samples kept, and failures reported."""

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


def timed_model(folder: Path, name: str, channels: int) -> paired_timing.TimedModel:
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


def test_a_round_keeps_every_sample_of_every_model(tmp_path: Path) -> None:
    models = [timed_model(tmp_path, "small", 8), timed_model(tmp_path, "large", 512)]
    rounds: list[paired_timing.Round] = []
    paired_timing.time_rounds(models, 2, 7, rounds.append)
    assert [measured.seed for measured in rounds] == [7, 8]
    for measured in rounds:
        assert {name: np.shape(blocks) for name, blocks in measured.blocks.items()} == {
            "small": (timing_process.BLOCKS_PER_ROUND, timing_process.RUNS_PER_BLOCK),
            "large": (timing_process.BLOCKS_PER_ROUND, timing_process.RUNS_PER_BLOCK),
        }
        assert statistics.log_speedup(measured.blocks["large"], measured.blocks["small"]) > 0.5


@pytest.mark.parametrize("python", ["", sys.executable])
def test_files_in_the_working_directory_are_not_imported_as_libraries(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    model = dataclasses.replace(timed_model(tmp_path, "a", 8), python=python)
    assert paired_timing.measure_footprint(model).first_ms > 0
    rounds: list[paired_timing.Round] = []
    paired_timing.time_rounds([model], 1, 0, rounds.append)
    assert len(rounds) == 1


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    rounds: list[paired_timing.Round] = []
    paired_timing.time_rounds([timed_model(tmp_path, "a", 8)], 3, 5, rounds.append, skip=2)
    assert [measured.seed for measured in rounds] == [7]


def test_blocks_take_turns_in_random_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing_process, "_load_model", lambda model: lambda: order.append(model["name"]))
    request = {
        "sides": [{"name": "a"}, {"name": "b"}],
        "seed": 1,
        "effort": dataclasses.asdict(paired_timing.FULL_EFFORT),
    }
    timing_process._run_round(request)
    turn = timing_process.RUNS_PER_BLOCK + 1  # one untimed run, which fills the caches again, and the timed ones
    timed = order[-2 * timing_process.BLOCKS_PER_ROUND * turn :]  # the runs before are the warm-up
    turns = ["".join(timed[i : i + turn]) for i in range(0, len(timed), turn)]
    assert set(turns) == {"aaaaaa", "bbbbbb"}
    assert {turns[i] + turns[i + 1] for i in range(0, len(turns), 2)} == {"aaaaaabbbbbb", "bbbbbbaaaaaa"}


def test_memory_is_that_of_the_timing_process_alone(tmp_path: Path) -> None:
    ballast = np.ones(60_000_000)  # half a gigabyte in the parent
    footprint = paired_timing.measure_footprint(timed_model(tmp_path, "a", 8))
    assert ballast.nbytes > 4e8
    assert 1e7 < footprint.peak_rss_bytes < 3e8
    assert footprint.load_ms > 0 < footprint.first_ms


def test_a_file_that_does_not_load_is_reported_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    broken = paired_timing.TimedModel(
        name="x", runtime="onnxruntime", path=str(tmp_path / "x.onnx"), precision="f32", threads=1, shape=SHAPE
    )
    with pytest.raises(ToolchainError, match="a timing process failed: .*does not load"):
        paired_timing.measure_footprint(broken)


@pytest.mark.parametrize(
    ("seconds_per_turn", "effort", "planned"),
    [
        (0.001, timing_process.TimingEffort(), (25, 5)),
        (0.1, timing_process.TimingEffort(), (8, 5)),
        (3.0, timing_process.TimingEffort(), (5, 5)),  # reported latencies always get the fewest blocks
        (0.1, timing_process.TimingEffort(seconds=2.5, fewest_blocks=7, most_seconds=10), (7, 5)),
        (0.5, timing_process.TimingEffort(seconds=2.5, fewest_blocks=7, most_seconds=10), (7, 1)),
        (1.0, timing_process.TimingEffort(seconds=2.5, fewest_blocks=7, most_seconds=10), (5, 1)),
        (4.0, timing_process.TimingEffort(seconds=2.5, fewest_blocks=7, most_seconds=10), (3, 1)),
    ],
)
def test_a_search_spends_little_on_slow_models(
    seconds_per_turn: float, effort: timing_process.TimingEffort, planned: tuple[int, int]
) -> None:
    assert timing_process.plan_round(seconds_per_turn, effort) == planned


def test_the_files_for_another_interpreter_import_nothing_more_of_the_package() -> None:
    required = timing_process.list_required_files(registry.list_modules("runtimes"))
    for name in required:
        tree = ast.parse((registry.PACKAGE_FOLDER / name).read_text())
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in imports:  # imports inside functions are for exporting, which happens on the host
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            names = [alias.name for alias in node.names]
            for module in modules:
                if (
                    module.startswith("toolchain")
                    and module.count(".") == 1
                    and module.replace(".", "/").removeprefix("toolchain/") in {"core", "config", "edge"}
                ):
                    assert {f"{module.split('.')[1]}/{imported}.py" for imported in names} <= set(required), name
                elif module.startswith("toolchain."):
                    assert f"{module.removeprefix('toolchain.').replace('.', '/')}.py" in required, name
                else:
                    assert module.partition(".")[0] in {*sys.stdlib_module_names, "numpy"}, (name, module)
