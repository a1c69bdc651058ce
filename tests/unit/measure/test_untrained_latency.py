"""Latency of untrained networks: each is timed once, and one that does not run does not stop the others."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from toolchain.config import read_config
from toolchain.measure import machine, paired_rounds, paired_timing, untrained_latency, worker_processes
from toolchain.measure.untrained_latency import UntrainedNetwork

IMAGE = torch.zeros(1, 3, 16, 16)


class ValueDependent(nn.Module):
    """Cannot be exported: its control flow depends on values."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))


def net(width: int) -> nn.Module:
    layers = nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 2)).eval()


def test_networks_are_timed_once_and_the_larger_one_is_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {
        "small": UntrainedNetwork(net(8), IMAGE),
        "unexportable": UntrainedNetwork(ValueDependent(), IMAGE),
        "large": UntrainedNetwork(net(128), IMAGE),
    }
    monkeypatch.setattr(untrained_latency, "ROUNDS", 1)
    latencies, refused = untrained_latency.time_networks(networks, read_config.read_target("cpu"), tmp_path)
    assert set(refused) == {"unexportable"}
    assert set(latencies) == {"small", "large"}
    assert latencies["small"].latencies["f32"].estimate < latencies["large"].latencies["f32"].estimate
    assert latencies["small"].macs < latencies["large"].macs
    assert latencies["small"].sizes["int8"] < latencies["large"].sizes["f32"]
    assert latencies["large"].sizes["int8"] < 0.5 * latencies["large"].sizes["f32"]
    assert latencies["large"].fastest in {"f32", "int8"}
    assert not [path for path in (tmp_path / "clock").glob("*/*") if path.is_dir()]  # compiled networks are removed
    monkeypatch.setattr(untrained_latency, "_compile_and_time", None)
    assert untrained_latency.time_networks(networks, read_config.read_target("cpu"), tmp_path)[0] == latencies


@pytest.mark.parametrize("device", ["", "ssh:board"])
def test_rounds_open_what_was_compiled_here_and_a_board_compiles_for_itself(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[paired_timing.TimedModel] = []

    def measure(models: list[paired_timing.TimedModel], *_: object) -> list[paired_timing.Round]:
        timed.extend(models)
        return []

    monkeypatch.setattr(paired_rounds, "measure", measure)
    monkeypatch.setattr(machine, "integer_isa", lambda device="": "x86-64-vnni")
    monkeypatch.setattr(machine, "runtime_version", lambda target: {})
    monkeypatch.setattr(machine, "describe", lambda device="": {})
    target = dataclasses.replace(read_config.read_target("openvino"), device=device)
    latencies, _ = untrained_latency.time_networks({"small": UntrainedNetwork(net(8), IMAGE)}, target, tmp_path)
    assert {model.precision: Path(model.path).suffix for model in timed} == dict.fromkeys(
        target.precisions, ".xml" if device else ".blob"
    )
    assert len({model.path for model in timed}) == (
        2 if device else 3
    )  # one blob per precision; f32 and bf16 share an IR
    assert latencies["small"].sizes["f32"] == latencies["small"].sizes["bf16"]


def test_a_network_that_the_runtime_does_not_run_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, target = (
        {"broken": UntrainedNetwork(net(12), IMAGE), "small": UntrainedNetwork(net(8), IMAGE)},
        read_config.read_target("cpu"),
    )
    monkeypatch.setattr(untrained_latency, "ROUNDS", 1)
    _, path = untrained_latency._export_graph("broken", networks["broken"], target.scheme, tmp_path)
    graph = onnx.load(path)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 20  # another height than that of the images it gets
    onnx.save(graph, path)
    latencies, refused = untrained_latency.time_networks(networks, target, tmp_path)
    assert set(latencies) == {"small"}
    assert set(refused) == {"broken"}
    assert refused["broken"].startswith("onnxruntime does not run it as f32: ")


def test_a_network_whose_process_ended_is_compiled_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, target = (
        {"small": UntrainedNetwork(net(8), IMAGE), "large": UntrainedNetwork(net(16), IMAGE)},
        read_config.read_target("cpu"),
    )
    monkeypatch.setattr(untrained_latency, "ROUNDS", 1)
    share_work = worker_processes.share_work

    def share_and_fail(*arguments: Any) -> Iterator[tuple[str, Any]]:
        for name, answer in share_work(*arguments):
            yield name, worker_processes.describe_failure("a process", "no memory", -9) if name == "large" else answer

    monkeypatch.setattr(worker_processes, "share_work", share_and_fail)
    latencies, refused = untrained_latency.time_networks(networks, target, tmp_path)
    assert (set(latencies), refused) == ({"small"}, {"large": "a process failed: no memory"})
    monkeypatch.setattr(worker_processes, "share_work", share_work)
    latencies, refused = untrained_latency.time_networks(networks, target, tmp_path)
    assert (set(latencies), refused) == ({"small", "large"}, {})


def test_networks_with_the_same_graph_are_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrained_latency, "ROUNDS", 1)
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)  # files there are not imported as libraries
    networks = {name: UntrainedNetwork(net(width), IMAGE) for name, width in {"one": 8, "other": 16, "twin": 8}.items()}
    latencies, _ = untrained_latency.time_networks(networks, read_config.read_target("cpu"), tmp_path)
    assert latencies["one"] == latencies["twin"] != latencies["other"]
    rounds = json.loads(next(tmp_path.glob("clock/*/rounds.json")).read_text())
    assert {name.split()[0] for name in rounds[0]["blocks"]} == {"one", "other"}
