"""Untrained networks on the clock: timed against one another once, and one that does not run stops no other."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from toolchain.config import toml_files
from toolchain.measure import machine, paired_rounds, paired_timing, untrained_latency, worker_processes
from toolchain.measure.untrained_latency import UntrainedNetwork

IMAGE = torch.zeros(1, 3, 16, 16)


class Odd(nn.Module):
    """Cannot be exported: what it does depends on values."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))


def net(width: int) -> nn.Module:
    layers = nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 2)).eval()


def test_networks_are_timed_once_and_the_larger_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {
        "small": UntrainedNetwork(net(8), IMAGE),
        "odd": UntrainedNetwork(Odd(), IMAGE),
        "large": UntrainedNetwork(net(128), IMAGE),
    }
    monkeypatch.setattr(untrained_latency, "ROUNDS", 1)
    found, refused = untrained_latency.time_networks(networks, toml_files.read_target("cpu"), tmp_path)
    assert set(refused) == {"odd"}
    assert set(found) == {"small", "large"}
    assert found["small"].latencies["f32"].estimate < found["large"].latencies["f32"].estimate
    assert found["small"].macs < found["large"].macs
    assert found["small"].sizes["int8"] < found["large"].sizes["f32"]
    assert found["large"].sizes["int8"] < 0.5 * found["large"].sizes["f32"]
    assert found["large"].fastest in {"f32", "int8"}
    assert not [path for path in (tmp_path / "clock").glob("*/*") if path.is_dir()]  # candidates are cleared away
    monkeypatch.setattr(untrained_latency, "_timed", None)
    assert untrained_latency.time_networks(networks, toml_files.read_target("cpu"), tmp_path)[0] == found


@pytest.mark.parametrize("device", ["", "ssh:board"])
def test_rounds_open_what_was_compiled_here_and_a_board_compiles_for_itself(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[paired_timing.TimedModel] = []

    def run(sides: list[paired_timing.TimedModel], *_: object) -> list[paired_timing.Round]:
        timed.extend(sides)
        return []

    monkeypatch.setattr(paired_rounds, "measure", run)
    monkeypatch.setattr(machine, "integer_isa", lambda device="": "x86-64-vnni")
    monkeypatch.setattr(machine, "runtime_version", lambda target: {})
    monkeypatch.setattr(machine, "describe", lambda device="": {})
    target = dataclasses.replace(toml_files.read_target("openvino"), device=device)
    found, _ = untrained_latency.time_networks({"small": UntrainedNetwork(net(8), IMAGE)}, target, tmp_path)
    assert {side.precision: Path(side.path).suffix for side in timed} == dict.fromkeys(
        target.precisions, ".xml" if device else ".blob"
    )
    assert len({side.path for side in timed}) == (
        2 if device else 3
    )  # one blob a precision; float and bf16 share an IR
    assert found["small"].sizes["f32"] == found["small"].sizes["bf16"]


def test_one_that_the_runtime_does_not_run_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks, target = (
        {"broken": UntrainedNetwork(net(12), IMAGE), "small": UntrainedNetwork(net(8), IMAGE)},
        toml_files.read_target("cpu"),
    )
    monkeypatch.setattr(untrained_latency, "ROUNDS", 1)
    _, path = untrained_latency._graph("broken", networks["broken"], target.scheme, tmp_path)
    graph = onnx.load(path)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 20  # not the pictures that it gets
    onnx.save(graph, path)
    found, refused = untrained_latency.time_networks(networks, target, tmp_path)
    assert set(found) == {"small"}
    assert set(refused) == {"broken"}
    assert refused["broken"].startswith("onnxruntime does not run it as f32: ")


def test_one_whose_process_ended_is_tried_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, target = (
        {"small": UntrainedNetwork(net(8), IMAGE), "large": UntrainedNetwork(net(16), IMAGE)},
        toml_files.read_target("cpu"),
    )
    monkeypatch.setattr(untrained_latency, "ROUNDS", 1)
    real = worker_processes.share_work

    def shared(*given: Any) -> Iterator[tuple[str, Any]]:
        for name, answer in real(*given):
            yield name, worker_processes.describe_failure("a process", "no memory", -9) if name == "large" else answer

    monkeypatch.setattr(worker_processes, "share_work", shared)
    found, refused = untrained_latency.time_networks(networks, target, tmp_path)
    assert (set(found), refused) == ({"small"}, {"large": "a process failed: no memory"})
    monkeypatch.setattr(worker_processes, "share_work", real)
    found, refused = untrained_latency.time_networks(networks, target, tmp_path)
    assert (set(found), refused) == ({"small", "large"}, {})


def test_of_networks_that_are_built_alike_one_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrained_latency, "ROUNDS", 1)
    (tmp_path / "json.py").write_text("raise SystemExit('somebody else ran')")
    monkeypatch.chdir(tmp_path)  # what lies there passes for no library
    networks = {name: UntrainedNetwork(net(width), IMAGE) for name, width in {"one": 8, "other": 16, "twin": 8}.items()}
    found, _ = untrained_latency.time_networks(networks, toml_files.read_target("cpu"), tmp_path)
    assert found["one"] == found["twin"] != found["other"]
    rounds = json.loads(next(tmp_path.glob("clock/*/rounds.json")).read_text())
    assert {name.split()[0] for name in rounds[0]["blocks"]} == {"one", "other"}
