"""bench: real files timed in short, and what is said of times that are made up."""

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

VERBS = CliRunner()


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


def benched(*arguments: object) -> str:
    result = VERBS.invoke(main.app, ["bench", *map(str, arguments)])
    assert result.exit_code == 0, result.exception
    return result.output


def test_everything_a_latency_needs_is_in_the_report(quick: Path) -> None:
    archive = archived(bundled(quick / "b"), quick / "b.tar")
    output = benched(convolution(quick / "a.onnx", 64), archive, "--rounds", 3, "--pin", 0)
    found = files.read_json(quick / "out/bench/bench.json")
    one, other = found["subjects"]
    assert (one["name"], other["name"]) == ("a", "b")
    assert (
        one["latency_ms"]["p50"]["samples"]
        == 3 * 25 * 5
        == sum(len(b) for r in found["rounds"] for b in r["blocks"]["a"])
    )
    assert (
        one["latency_ms"]["p50"]["low"] <= one["latency_ms"]["p50"]["estimate"] <= one["latency_ms"]["p90"]["estimate"]
    )
    assert one["latency_ms"]["p99"] is None  # 375 samples do not carry it
    assert "few samples" in {warning["kind"] for warning in found["warnings"]}
    assert one["macs"] == 64 * 36 * 27 + 64 * 36 * 5
    assert 0 < one["peak_share"] < 1.2
    assert min(one["load_ms"], one["first_ms"]) > 0
    assert 1e7 < one["peak_rss_bytes"] < 5e8
    assert one["size_bytes"] == (quick / "a.onnx").stat().st_size
    product = np.prod([row["estimate"] for row in found["ratios"]])
    assert product == pytest.approx(1.0)
    assert one["throughput"] == []
    assert "Images per second" not in output
    lines, odd = history.read(quick / "out/history.jsonl")
    assert ([line["name"] for line in lines], odd) == (["a", "b"], [])
    page = (quick / "out/bench/bench.html").read_text()
    assert page.count("<svg") == 1
    assert re.search(r"\| a \| onnxruntime f32, 1 thread \| 0\.", (quick / "out/bench/bench.md").read_text())


def test_batches_and_threads_give_pictures_a_second(quick: Path) -> None:
    output = benched(
        convolution(quick / "a.onnx", 8), convolution(quick / "b.onnx", 8, batch="n", reshape=-1), "--rounds", 3,
        "--batch", "4", "--threads", "1,2",
    )  # fmt: skip
    found = files.read_json(quick / "out/bench/bench.json")
    for one in found["subjects"]:
        assert one["shape"][0] == 1
        assert [(row["batch"], row["threads"]) for row in one["throughput"]] == [(1, 1), (1, 2), (4, 1), (4, 2)]
        for row in one["throughput"]:
            assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"])
    assert "Images per second" in output


def test_a_graph_that_is_fixed_to_one_picture_says_so(quick: Path) -> None:
    path = convolution(quick / "a.onnx", 8)
    model = onnx.load(path)
    rows = next(one for one in model.graph.initializer if one.name == "rows")
    model.graph.initializer.remove(rows)  # what a node gives is not looked into
    model.graph.node.insert(0, helper.make_node("Constant", [], ["rows"], value=rows))
    onnx.save(model, path)
    output = benched(path, "--rounds", 3, "--batch", "4")
    found = files.read_json(quick / "out/bench/bench.json")["subjects"][0]["throughput"]
    assert [(row["batch"], row["images_per_second"] is None) for row in found] == [(1, False), (4, True)]
    assert found[1]["why"] == "the graph does not run with batch size 4"
    assert "Why not" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.onnx"], "nothing.onnx does not exist"),
        (["a.onnx", "--batch", "0"], "--batch '0': give whole numbers from 1 up"),
        (["a.onnx", "--threads", "two"], "--threads 'two': give whole numbers"),
        (["a.onnx", "--precision", "int4"], "has no precision 'int4'"),
    ],
)
def test_wrong_input_is_one_message(quick: Path, arguments: list[str], says: str) -> None:
    convolution(quick / "a.onnx", 8)
    result = VERBS.invoke(main.app, ["bench", *arguments])
    assert isinstance(result.exception, ToolchainError)
    assert says in str(result.exception)


# --- what is said of times ----------------------------------------------------------------------------------


def made(*rounds: Sequence[float], name: str = "a") -> list[Round]:
    return [Round(seed=i, blocks={name: [list(values)]}) for i, values in enumerate(rounds)]


def test_a_percentile_is_given_only_where_the_samples_carry_it_and_with_the_doubt_of_rounds() -> None:
    random = np.random.default_rng(0)
    steady = made(*(list(random.normal(1.0, 0.01, 300)) for _ in range(10)))
    p90 = benchmark.percentile(steady, "a", 90)
    assert p90 is not None
    assert p90.low <= p90.estimate <= p90.high
    assert p90.estimate == pytest.approx(1.0128, abs=0.002)
    assert benchmark.percentile(steady, "a", 99) is not None
    assert benchmark.percentile(made(*([1.0] * 60 for _ in range(10))), "a", 99) is None
    uneven = made(*(list(random.normal(1.0 + 0.2 * i, 0.01, 300)) for i in range(10)))
    wide = benchmark.percentile(uneven, "a", 90)
    assert wide is not None
    assert wide.high - wide.low > 10 * (p90.high - p90.low)


def test_drift_and_noise_are_named() -> None:
    slowing = made(*([1.0 + 0.05 * i] * 1000 for i in range(9)))
    assert [(c.kind, round(c.figure or 0, 2)) for c in timing_conditions.check_steadiness(slowing, ["a"])] == [
        ("drift", 0.29)
    ]
    both = [
        Round(seed=i, blocks={"a": [[1.0] * 1000], "b": [[1.0 + 0.2 * (i % 2)] * 1000]}) for i in range(9)
    ]  # fmt: skip
    assert [c.kind for c in timing_conditions.check_steadiness(both, ["a", "b"])] == ["noise"]
    assert timing_conditions.check_steadiness(made(*([1.0] * 1000 for _ in range(9))), ["a"]) == []


def test_load_by_others_heat_and_the_clock_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
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
    found = {c.kind: c.figure for c in timing_conditions.ConditionMonitor().conditions()}
    assert found == {
        "other load": pytest.approx(1.6),
        "stolen time": 0.1,
        "throttled": 3,
        "frequency": pytest.approx(-1 / 3),
    }
    moments = iter([moment(), moment(wall_seconds=10.0, busy_seconds=10.0, own_seconds=9.9)])
    assert timing_conditions.ConditionMonitor().conditions() == []


def test_cores_that_are_not_there_are_a_warning_and_no_error() -> None:
    with timing_conditions.pin_to_cores([4096]) as found:
        pass
    assert [c.kind for c in found] == ["not pinned"]
    with timing_conditions.pin_to_cores([]) as found:
        assert found == []


def test_counted_products_agree_with_what_is_known(tmp_path: Path) -> None:
    assert count_macs.count(convolution(tmp_path / "a.onnx", 16)) == 16 * 36 * 27 + 16 * 36 * 5
    (tmp_path / "b.onnx").write_bytes(b"no model")
    assert count_macs.count(tmp_path / "b.onnx") is None


def test_the_report_reads_back_the_same(quick: Path) -> None:
    benched(convolution(quick / "a.onnx", 8), "--rounds", 3)
    found = json.loads((quick / "out/bench/bench.json").read_text())
    assert bench.render_markdown(found) == (quick / "out/bench/bench.md").read_text()
