"""Placement: one decision, the same Q/DQ pairs through torch and on the ONNX graph."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from toolchain.config.target import QuantScheme
from toolchain.core.errors import ToolchainError
from toolchain.export import insert_qdq, onnx_graph, to_onnx
from toolchain.measure import boards, machine, paired_timing
from toolchain.measure.boards import BoardUnreachable
from toolchain.quantization import fx_graph, placement, pt2e
from toolchain.quantization.placement import GraphOperation, Placement
from toolchain.search import placement_changes, placement_search

IMAGE = torch.zeros(1, 3, 16, 16)


class Gated(nn.Module):
    """Residual, depthwise, squeeze-excite, concatenation, pooling and three kinds of activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.SiLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))
        self.back = nn.Conv2d(16, 16, 1)
        self.side = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 8, 1), nn.ReLU6())
        self.other = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(16, 8, 1))
        self.mix = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.deep(x)
        x = torch.relu(x + self.back(y * torch.sigmoid(self.gate(y))))
        x = torch.cat([self.side(x), self.other(x)], 1)
        return self.head(self.mix(x).mean((2, 3)))


PLACEMENTS = {
    **placement_search.START_PLACEMENTS,
    "one block in float": Placement(float_modules=("gate",)),
    "two blocks in float": Placement(float_modules=("stem", "side"), float_operations=()),
    "all in float": Placement(float_modules=("",)),
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    net = Gated()
    net(torch.randn(16, 3, 16, 16))
    return net.eval()


def trained(model: nn.Module, chosen: Placement):
    graph, planned = pt2e.prepare(model, IMAGE, chosen, QuantScheme())
    pt2e.configure_fake_quantize(graph, ranges=True, rounding=False)
    with torch.no_grad():
        graph(torch.randn(16, 3, 16, 16))
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
    return graph, planned


def pairs(proto: onnx.ModelProto) -> list[tuple[str, tuple[bool, ...], tuple[bool, ...]]]:
    """Of every operation: which inputs come rounded, and whether each reader of its result rounds it."""
    made = {output: node.op_type for node in proto.graph.node for output in node.output}
    readers: dict[str, list[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    return [
        (
            node.op_type,
            tuple(made.get(name) == "DequantizeLinear" for name in node.input[:2]),
            tuple(sorted(kind == "QuantizeLinear" for kind in readers.get(node.output[0], []))),
        )
        for node in proto.graph.node
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear", "Reshape", "Flatten"}
    ]


def roundings(path: Path) -> tuple[int, int]:
    """How many there are, and how many different scales they have: the rest share one."""
    graph = onnx.load(path).graph
    numbers = {
        tensor.name: float(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer if not tensor.dims
    }
    scales = [numbers[node.input[1]] for node in graph.node if node.op_type == "QuantizeLinear"]
    return len(scales), len(set(scales))


@pytest.mark.parametrize("label", PLACEMENTS)
def test_torch_and_a_candidate_place_the_same_pairs(model: nn.Module, label: str, tmp_path: Path) -> None:
    chosen, scheme = PLACEMENTS[label], QuantScheme()
    graph, planned = trained(model, chosen)
    to_onnx.export_file(pt2e.convert(graph, IMAGE), IMAGE, tmp_path / "trained.onnx")
    plain, _ = pt2e.prepare(model, IMAGE, None, scheme)
    made, layers = insert_qdq.build_candidate(to_onnx.export_graph(plain, IMAGE), chosen, scheme)
    onnx_graph.save_model(made, tmp_path / "candidate.onnx")
    onnx.checker.check_model(str(tmp_path / "candidate.onnx"), full_check=True)
    wanted, given = (pairs(onnx.load(tmp_path / name)) for name in ("trained.onnx", "candidate.onnx"))
    assert sorted(given) == sorted(wanted)
    assert layers == planned
    count, others = (roundings(tmp_path / name) for name in ("trained.onnx", "candidate.onnx"))
    assert count == others
    assert (count == (0, 0)) == (label == "all in float")


@pytest.mark.parametrize("block", ["gate", "deep", "stem", "head"])
def test_a_graph_with_less_rounding_is_the_one_that_would_have_been_prepared(model: nn.Module, block: str) -> None:
    chosen = Placement(float_modules=(block,))
    graph, _ = trained(model, Placement())
    less, fresh = fx_graph.restrict_to_placement(graph, chosen), trained(model, chosen)[0]
    assert _rounded_edges(less) == _rounded_edges(fresh) < _rounded_edges(graph)
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(pt2e.convert(less, IMAGE)(x), less(x), atol=1e-5, rtol=1e-5)


def _rounded_edges(graph: torch.fx.GraphModule) -> set[tuple[str, str]]:
    return {
        (fx_graph.find_float_source(graph, node).name, user.name)
        for node in graph.graph.nodes
        if fx_graph.is_fake_quantize(graph, node)
        for user in node.users
    }


def chain(*kinds: str) -> list[GraphOperation]:
    """A straight line of operations."""
    return [
        GraphOperation(name=f"n{i}", kind=kind, module=f"m{i}", inputs=(f"n{i - 1}" if i else "x",), output=f"n{i}")
        for i, kind in enumerate(kinds)
    ]


def test_a_layer_and_its_rectifier_are_one_unit() -> None:
    found = placement.resolve(chain("layer", "rectifier", "layer"), Placement())
    assert (found["n0"].inputs, found["n0"].output) == (("x",), False)
    assert found["n1"].output
    assert not found["n1"].inputs


def test_results_can_be_left_to_whoever_reads_them() -> None:
    found = placement.resolve(chain("layer", "other", "layer"), Placement(results=False))
    assert not found["n0"].output
    assert found["n2"].inputs == ("n1",)


def test_reshaping_keeps_its_inputs_scale_and_is_left_alone_between_floats() -> None:
    inside = placement.resolve(chain("layer", "keep", "layer"), Placement())
    assert inside["n1"].shared_scale
    outside = placement.resolve(chain("layer", "keep", "other"), Placement(float_modules=("m0",)))
    assert outside == {}


@pytest.mark.parametrize("most", [1, 4, 7, 20])
def test_blocks_divide_the_layers_along_the_models_structure(most: int) -> None:
    modules = [f"features.{i}.conv.{j}" for i in range(6) for j in range(3)] + ["classifier"]
    found = placement.split_into_blocks(modules, most)
    assert len(found) <= max(most, 2)
    for module in modules:
        assert sum(module == block or module.startswith(block + ".") for block in found) == 1


# --- the search, with clocks that are made up ---------------------------------------------------------------


class Clock:
    """Stands in for the timing processes: milliseconds by what is in the file."""

    def __init__(self, cost: Mapping[str, float]) -> None:
        self.cost, self.calls = cost, 0

    def __call__(self, sides: list, count: int, seed: int, keep, **_: object) -> None:
        self.calls += 1
        blocks = {side.name: [[self.milliseconds(side)] * 5] * 4 for side in sides}
        keep(paired_timing.Round(seed=seed, blocks=blocks))

    def milliseconds(self, side) -> float:
        if "broken" in self.cost and side.precision == "int8":
            raise ToolchainError("the runtime does not load it")
        nodes = onnx.load(side.path).graph.node
        made = {output: node.op_type for node in nodes for output in node.output}
        took = 0.0
        for node in nodes:
            integer = any(made.get(name) == "DequantizeLinear" for name in node.input)
            took += self.cost.get(f"{node.op_type} {'int8' if integer else 'f32'}", 0.01)
        return took


@pytest.fixture
def searching(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    from toolchain.config import read_config
    from toolchain.search import place

    target = read_config.read_target("cpu")
    monkeypatch.setattr(machine, "integer_isa", lambda device="": target.isa)

    def run(clock: Clock, seconds: float = 100.0, device: str = ""):
        monkeypatch.setattr(paired_timing, "time_rounds", clock)
        return place.find_placement(model, IMAGE, dataclasses.replace(target, device=device), (), seconds, tmp_path)

    return run


def test_the_fastest_placement_is_found_and_kept(searching) -> None:
    clock = Clock(
        {"Conv f32": 1.0, "Conv int8": 0.3, "Mul int8": 2.0, "Mul f32": 0.1, "Gemm f32": 0.1, "Gemm int8": 0.4}
    )
    found = searching(clock)
    assert "multiply" in found.placement.float_operations
    assert "head" in found.placement.float_modules
    assert not found.float_wins
    assert found.fastest_int8.speedup > 1.5
    before = clock.calls
    again = searching(clock)
    assert (again.placement, clock.calls) == (found.placement, before)


class Board:
    """Stands in for one over ssh."""

    def __init__(self, name: str) -> None:
        self.machine = {"cpu": name, "isa": "avx2 avx512_vnni", "cores": 1, "system": "Linux x86_64"}

    def ask(self, job: str, request: Mapping[str, str]) -> object:
        return {"versions": {request["runtime"]: "1.0"}, "available": True}[job]


COSTS = {"Conv f32": 1.0, "Conv int8": 0.3}


def test_what_one_machine_measured_is_not_taken_for_another(searching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "connect", Board)
    clock, seen = Clock(COSTS), []
    took = clock.milliseconds
    monkeypatch.setattr(clock, "milliseconds", lambda side: seen.append(side.device) or took(side))
    for device in ("", "ssh:a", "ssh:b"):
        seen.clear()
        searching(clock, device=device)
        assert set(seen) == {device}
    seen.clear()
    searching(clock, device="ssh:a")
    assert seen == []


def test_a_board_that_goes_away_ends_the_search_and_is_no_answer(searching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "connect", Board)

    class Leaving(Clock):
        def milliseconds(self, side) -> float:
            if self.calls > 1:
                raise BoardUnreachable("ssh:a went away")
            return super().milliseconds(side)

    with pytest.raises(BoardUnreachable):
        searching(Leaving(COSTS), device="ssh:a")
    clock = Clock(COSTS)
    assert searching(clock, device="ssh:a").timed_placements
    assert clock.calls > 1


class Neighbours(Clock):
    """A stem in float helps, and what reads it in float helps only then."""

    def milliseconds(self, side) -> float:
        model = onnx.load(side.path)
        made = {output: node.op_type for node in model.graph.node for output in node.output}
        convs = [node for node in model.graph.node if node.op_type == "Conv"]
        floats = [
            onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == node.input[1])).shape
            for node in convs
            if made.get(node.input[1]) != "DequantizeLinear"
        ]
        stem, deep = (16, 3, 3, 3) in floats, (16, 1, 3, 3) in floats
        return 2.0 if len(floats) == len(convs) else 1.0 - 0.1 * stem + (-0.2 if stem and deep else 0.2 * deep)


def test_a_placement_that_is_known_is_timed_and_not_searched(searching, model: nn.Module, tmp_path: Path) -> None:
    from toolchain.config import read_config
    from toolchain.search import place

    cost = {"Conv f32": 1.0, "Conv int8": 0.5, "Gemm f32": 0.1, "Gemm int8": 0.1}
    searching(clock := Clock(cost), seconds=0)
    target, chosen = read_config.read_target("cpu"), Placement(float_modules=("stem",))
    placed = place.time_placement(model, IMAGE, target, chosen, tmp_path)
    assert placed.placement == chosen
    assert 1 < placed.int8_speedup < 2
    assert {one.precision for one in placed.timed_placements} == {"f32", "int8"}
    assert place.measure_speedup(model, IMAGE, target, chosen, tmp_path) == placed.int8_speedup
    calls = clock.calls
    assert place.time_placement(model, IMAGE, target, chosen, tmp_path) == placed
    assert clock.calls == calls
    assert not list((tmp_path / "place").glob("*/candidate*"))


def test_small_changes_go_on_from_what_was_found(searching) -> None:
    found = searching(Neighbours({}))
    assert {"stem", "deep"} <= {name.partition(".")[0] for name in found.placement.float_modules}
    assert found.fastest_int8.speedup == pytest.approx(2 / 0.7)


def test_changes_nearby_come_first_and_each_is_one() -> None:
    layers = ["a.0", "a.1", "b.0", "b.1", "c"]
    now = Placement(float_modules=("b.0", "forced"))
    found = list(placement_changes.propose(now, layers, ["a", "b", "c"], seed=0))
    labels = [label for label, _ in found]
    first = labels[: labels.index("a and b in float")]
    assert {"a in float", "a.1 in float", "b.1 in float", "b.0 in int8"} <= set(first)
    assert "a.0 in float" not in first
    for label, change in found:
        changed = change(now)
        assert "forced" in changed.float_modules, label
        assert changed != now or "+" in label, label
    assert [label for label, _ in placement_changes.propose(now, layers, ["a", "b", "c"], seed=0)] == labels


def test_float_wins_where_integers_are_slower(searching) -> None:
    found = searching(Clock({"Conv f32": 0.2, "Conv int8": 1.0, "Gemm f32": 0.1, "Gemm int8": 0.5}))
    assert found.float_wins
    assert found.fastest_int8.precision == "int8"  # the best of those that have any
    assert found.fastest_int8.speedup < 1


def test_a_runtime_that_takes_no_integers_is_said(searching) -> None:
    with pytest.raises(ToolchainError, match="runs no int8 form"):
        searching(Clock({"broken": 1.0}))


def test_no_time_means_the_usual_placement_untimed(searching) -> None:
    clock = Clock({})
    found = searching(clock, seconds=0)
    assert (found.placement, found.timed_placements, clock.calls) == (Placement(), (), 0)


def test_a_killed_search_does_not_time_again_what_it_has(searching) -> None:
    class Killed(Exception):
        pass

    class Mortal(Clock):
        def __call__(self, sides: list, count: int, seed: int, keep, **_: object) -> None:
            if self.calls == 2:
                raise Killed
            super().__call__(sides, count, seed, keep)

    cost = {"Conv f32": 1.0, "Conv int8": 0.3}
    with pytest.raises(Killed):
        searching(Mortal(cost))
    whole, rest = Clock(cost), Clock(cost)
    resumed = searching(rest)
    assert resumed.fastest_int8.speedup > 1
    assert rest.calls > 0
    assert whole.calls == 0
