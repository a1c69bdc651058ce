"""bench: real models timed briefly, and the warnings about invented latencies."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner
from unit.gates.test_regression_gate import archived, bundled

from toolchain.cli import main
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.export import count_macs
from toolchain.measure import benchmark, history, peak_throughput, timing_conditions
from toolchain.measure.paired_timing import Round
from toolchain.report.pages import bench

RUNNER = CliRunner()


def convolution(path: Path, channels: int, batch: int | str = 1, reshape: int = 1) -> Path:
    """A convolution and a linear layer behind a reshape to `reshape` rows."""
    tensors = [
        numpy_helper.from_array(np.ones((channels, 3, 3, 3), np.float32), "w"),
        numpy_helper.from_array(np.ones((channels * 36, 5), np.float32), "v"),
        numpy_helper.from_array(np.array([reshape, channels * 36]), "rows"),
    ]
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "v"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, (batch, 3, 8, 8)),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, 5)),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "FOOTPRINT_PROCESSES", 1)
    monkeypatch.setattr(benchmark, "ROUNDS_PER_SETTING", 1)
    monkeypatch.setattr(peak_throughput, "ROUNDS", 1)
    return tmp_path


def run_bench(*arguments: object) -> str:
    result = RUNNER.invoke(main.app, ["bench", *map(str, arguments)])
    assert result.exit_code == 0, result.exception
    return result.output


def test_everything_a_latency_needs_is_in_the_report(quick: Path) -> None:
    archive = archived(bundled(quick / "b"), quick / "b.tar")
    output = run_bench(convolution(quick / "a.onnx", 64), archive, "--rounds", 3, "--pin", 0)
    report = files.read_json(quick / "out/bench/bench.json")
    model, other = report["subjects"]
    assert (model["name"], other["name"]) == ("a", "b")
    assert (
        model["latency_ms"]["p50"]["samples"]
        == 3 * 25 * 5
        == sum(len(b) for r in report["rounds"] for b in r["blocks"]["a"])
    )
    assert (
        model["latency_ms"]["p50"]["low"]
        <= model["latency_ms"]["p50"]["estimate"]
        <= model["latency_ms"]["p90"]["estimate"]
    )
    assert model["latency_ms"]["p99"] is None  # 375 samples are too few for it
    assert "few samples" in {warning["kind"] for warning in report["warnings"]}
    assert model["macs"] == 64 * 36 * 27 + 64 * 36 * 5
    assert 0 < model["peak_share"] < 1.2
    assert min(model["load_ms"], model["first_ms"]) > 0
    assert 1e7 < model["peak_rss_bytes"] < 5e8
    assert model["size_bytes"] == (quick / "a.onnx").stat().st_size
    product = np.prod([row["estimate"] for row in report["ratios"]])
    assert product == pytest.approx(1.0)
    assert model["throughput"] == []
    assert "Images per second" not in output
    lines, skipped = history.read(quick / "out/history.jsonl")
    assert ([line["name"] for line in lines], skipped) == (["a", "b"], [])
    page = (quick / "out/bench/bench.html").read_text()
    assert page.count("<svg") == 1
    assert re.search(r"\| a \| onnxruntime f32, 1 thread \| 0\.", (quick / "out/bench/bench.md").read_text())


def test_batches_and_threads_give_images_per_second(quick: Path) -> None:
    output = run_bench(
        convolution(quick / "a.onnx", 8), convolution(quick / "b.onnx", 8, batch="n", reshape=-1), "--rounds", 3,
        "--batch", "4", "--threads", "1,2",
    )  # fmt: skip
    report = files.read_json(quick / "out/bench/bench.json")
    for model in report["subjects"]:
        assert model["shape"][0] == 1
        assert [(row["batch"], row["threads"]) for row in model["throughput"]] == [(1, 1), (1, 2), (4, 1), (4, 2)]
        for row in model["throughput"]:
            assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"])
    assert "Images per second" in output


def test_a_graph_with_a_fixed_batch_size_says_why_it_was_not_timed(quick: Path) -> None:
    path = convolution(quick / "a.onnx", 8)
    model = onnx.load(path)
    shape = next(tensor for tensor in model.graph.initializer if tensor.name == "rows")
    model.graph.initializer.remove(shape)  # `batched` edits shapes in initializers, not in Constant nodes
    model.graph.node.insert(0, helper.make_node("Constant", [], ["rows"], value=shape))
    onnx.save(model, path)
    output = run_bench(path, "--rounds", 3, "--batch", "4")
    rows = files.read_json(quick / "out/bench/bench.json")["subjects"][0]["throughput"]
    assert [(row["batch"], row["images_per_second"] is None) for row in rows] == [(1, False), (4, True)]
    assert rows[1]["why"] == "the graph does not run with batch size 4"
    assert "Why not" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.onnx"], "nothing.onnx does not exist"),
        (["a.onnx", "--batch", "0"], "--batch '0': give whole numbers from 1 up"),
        (["a.onnx", "--threads", "two"], "--threads 'two': give whole numbers"),
        (["a.onnx", "--precision", "int4"], "has no precision 'int4'"),
    ],
)
def test_wrong_input_is_one_message(quick: Path, arguments: list[str], message: str) -> None:
    convolution(quick / "a.onnx", 8)
    result = RUNNER.invoke(main.app, ["bench", *arguments])
    assert isinstance(result.exception, ToolchainError)
    assert message in str(result.exception)


# --- warnings about latencies -------------------------------------------------------------------------------


def make_rounds(*rounds: Sequence[float], name: str = "a") -> list[Round]:
    return [Round(seed=i, blocks={name: [list(values)]}) for i, values in enumerate(rounds)]


def test_a_percentile_needs_enough_samples_and_its_interval_covers_differences_between_rounds() -> None:
    random = np.random.default_rng(0)
    steady = make_rounds(*(list(random.normal(1.0, 0.01, 300)) for _ in range(10)))
    p90 = benchmark.percentile(steady, "a", 90)
    assert p90 is not None
    assert p90.low <= p90.estimate <= p90.high
    assert p90.estimate == pytest.approx(1.0128, abs=0.002)
    assert benchmark.percentile(steady, "a", 99) is not None
    assert benchmark.percentile(make_rounds(*([1.0] * 60 for _ in range(10))), "a", 99) is None
    uneven = make_rounds(*(list(random.normal(1.0 + 0.2 * i, 0.01, 300)) for i in range(10)))
    wide = benchmark.percentile(uneven, "a", 90)
    assert wide is not None
    assert wide.high - wide.low > 10 * (p90.high - p90.low)


def test_drift_and_noise_are_warned_of() -> None:
    slowing = make_rounds(*([1.0 + 0.05 * i] * 1000 for i in range(9)))
    assert [
        (condition.kind, round(condition.figure or 0, 2))
        for condition in timing_conditions.check_steadiness(slowing, ["a"])
    ] == [("drift", 0.29)]
    both = [
        Round(seed=i, blocks={"a": [[1.0] * 1000], "b": [[1.0 + 0.2 * (i % 2)] * 1000]}) for i in range(9)
    ]  # fmt: skip
    assert [condition.kind for condition in timing_conditions.check_steadiness(both, ["a", "b"])] == ["noise"]
    assert timing_conditions.check_steadiness(make_rounds(*([1.0] * 1000 for _ in range(9))), ["a"]) == []


def test_other_load_heat_and_clock_frequency_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def moment(**changes: float) -> timing_conditions._Counters:
        return timing_conditions._Counters(
            **{
                "wall_seconds": 0.0,
                "busy_seconds": 0.0,
                "stolen_seconds": 0.0,
                "own_seconds": 0.0,
                "throttle_events": 0,
                "frequency_mhz": 3000.0,
                **changes,
            }
        )  # type: ignore[arg-type]

    moments = iter(
        [
            moment(),
            moment(
                wall_seconds=10.0,
                busy_seconds=25.0,
                own_seconds=9.0,
                stolen_seconds=1.0,
                throttle_events=3,
                frequency_mhz=2000.0,
            ),
        ]
    )
    monkeypatch.setattr(timing_conditions, "_read_counters", lambda: next(moments))
    monkeypatch.setattr(timing_conditions, "_check_governor", list)
    conditions = {condition.kind: condition.figure for condition in timing_conditions.ConditionMonitor().conditions()}
    assert conditions == {
        "other load": pytest.approx(1.6),
        "stolen time": 0.1,
        "throttled": 3,
        "frequency": pytest.approx(-1 / 3),
    }
    moments = iter([moment(), moment(wall_seconds=10.0, busy_seconds=10.0, own_seconds=9.9)])
    assert timing_conditions.ConditionMonitor().conditions() == []


def test_missing_cores_are_a_warning_and_not_an_error() -> None:
    with timing_conditions.pin_to_cores([4096]) as conditions:
        pass
    assert [condition.kind for condition in conditions] == ["not pinned"]
    with timing_conditions.pin_to_cores([]) as conditions:
        assert conditions == []


def test_counted_macs_agree_with_the_formula(tmp_path: Path) -> None:
    assert count_macs.count(convolution(tmp_path / "a.onnx", 16)) == 16 * 36 * 27 + 16 * 36 * 5
    (tmp_path / "b.onnx").write_bytes(b"no model")
    assert count_macs.count(tmp_path / "b.onnx") is None


def test_the_written_report_renders_the_same(quick: Path) -> None:
    run_bench(convolution(quick / "a.onnx", 8), "--rounds", 3)
    report = json.loads((quick / "out/bench/bench.json").read_text())
    assert bench.render_markdown(report) == (quick / "out/bench/bench.md").read_text()
