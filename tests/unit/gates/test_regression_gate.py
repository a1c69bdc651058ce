"""gate: bundles that are made here, compared; times are made up but for one test that runs the real thing."""

import dataclasses
import http.server
import itertools
import json
import re
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from toolchain.cli import main
from toolchain.config import read_config
from toolchain.config.dataset import Domain
from toolchain.config.recipe import ModelSpec, Recipe
from toolchain.core import files, statistics
from toolchain.core.errors import ToolchainError
from toolchain.edge import archive as archives
from toolchain.gates import baselines, gate_accuracy, gate_inputs, regression_gate, sequential_test
from toolchain.measure import machine, model_files, paired_timing
from toolchain.measure.paired_timing import Round
from toolchain.report.pages import gate as gate_report

SIZE = (12, 10)
CLASSES = ("ant", "bee", "cat")
RECIPE = Recipe(name="digits", domain="tiny", model=ModelSpec(name="m"))
TARGET = read_config.read_target("cpu")
VERBS = CliRunner()
NO_IMAGES = "no test images"


def network(path: Path, mistakes: int = 0, ballast: int = 0) -> None:
    """Matches each class's bright row; with mistakes, the first classes answer for one another."""
    weights = np.zeros((len(CLASSES), 3, *SIZE), np.float32)
    for index in range(len(CLASSES)):
        shown = (index + (1 if index < mistakes else 0)) % len(CLASSES)
        weights[index, :, 2 + 3 * shown : 4 + 3 * shown] = 1.0
    tensors = [
        numpy_helper.from_array(weights.reshape(len(CLASSES), -1), "w"),
        numpy_helper.from_array(np.ones(ballast, np.float32), "ballast"),
    ]
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, *SIZE))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, len(CLASSES)))], tensors if ballast else tensors[:1],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def seal(folder: Path) -> None:
    names = sorted(file.name for file in folder.iterdir() if file.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text("".join(f"{files.sha256_file(folder / n)}  {n}\n" for n in names))


def bundled(folder: Path, target: str = "cpu", mistakes: int = 0, ballast: int = 0, recipe: str = "digits") -> Path:
    folder.mkdir(parents=True)
    network(folder / "model.onnx", mistakes, ballast)
    manifest = {
        "schema": 1, "target": target, "runtime": "onnxruntime", "precision": "f32", "threads": 1,
        "model": {"files": ["model.onnx"]}, "input": {"shape": [1, 3, *SIZE], "dtype": "float32"},
        "preprocess": {"image_size": SIZE, "mode": "gray", "mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": CLASSES, "placement": {"planned": []}, "recipe": recipe,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "golden.npz").write_bytes(b"")
    seal(folder)
    return folder


def archived(folder: Path, path: Path) -> Path:
    return archives.pack(folder, path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of a user's with a finished run in it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out" / "digits" / "cpu"
    archived(bundled(folder / "bundle"), folder / "bundle.tar")
    monkeypatch.setattr(machine, "integer_isa", lambda device="": TARGET.isa)
    return tmp_path


def made_up(patch: pytest.MonkeyPatch, took: Callable[[int, str], list[float]]) -> list[int]:
    """Rounds in which a side's blocks take so many milliseconds; the seeds that were asked for are returned."""
    seeds: list[int] = []

    def rounds(
        sides: Sequence[paired_timing.TimedModel],
        count: int,
        seed: int,
        keep: Callable[[Round], None],
        *,
        skip: int,
        effort: object,
    ) -> None:
        for own in range(seed + skip, seed + count):
            seeds.append(own)
            blocks = {side.name: [[block] * 2 for block in took(own, side.name)] for side in sides}
            keep(Round(seed=own, blocks=blocks))

    patch.setattr(paired_timing, "time_rounds", rounds)
    alone = paired_timing.Footprint(load_ms=1.0, first_ms=1.0, peak_rss_bytes=10**7)
    patch.setattr(paired_timing, "measure_footprint", lambda side: alone)
    return seeds


@pytest.fixture
def slower(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[int]]:
    """Makes the candidate take so many times longer; returns the seeds that were asked for."""
    names = [regression_gate.CANDIDATE, regression_gate.BASELINE, regression_gate.CONTROL]

    def use(factor: float) -> list[int]:
        def took(seed: int, side: str) -> list[float]:
            noise = np.random.default_rng([seed, names.index(side)]).normal(0, 0.0005, 5)
            return [(factor if side == regression_gate.CANDIDATE else 1.0) * float(np.exp(one)) for one in noise]

        return made_up(monkeypatch, took)

    return use


@pytest.fixture
def pictures(tmp_path: Path) -> Domain:
    path = draw(tmp_path / "pictures", dict.fromkeys(CLASSES, 60), size=SIZE)
    return Domain(name="tiny", path=str(path), mode="gray", image_size=SIZE, test_share=0.5)


def verdicts(found: regression_gate.GateResult) -> dict[str, str]:
    return {verdict.check: verdict.outcome for verdict in found.verdicts}


def compared(home: Path, candidate: Path, reference: Path) -> gate_inputs.GatePair:
    return gate_inputs.load_pair(RECIPE, TARGET, home / "out", candidate=candidate, reference=reference, python="")


def shown(domain: Domain, pair: gate_inputs.GatePair) -> gate_inputs.GateImages:
    return gate_inputs.list_images(domain, Path("out/data"), pair)


# --- what is decided ----------------------------------------------------------------------------------------


def test_equal_bundles_pass_everything(home: Path, slower: Callable[[float], list[int]], pictures: Domain) -> None:
    seeds, own = slower(1.0), home / "out/digits/cpu"
    pair = compared(home, own / "bundle", own / "bundle.tar")
    found = regression_gate.compare_pair(pair, TARGET, shown(pictures, pair), 7)
    assert verdicts(found) == dict.fromkeys(("latency_growth", "accuracy_drop", "size_growth", "memory_growth"), "pass")
    assert found.candidate_accuracy is not None
    assert (found.candidate_accuracy.samples, found.candidate_accuracy.estimate) == (90, 1.0)
    assert seeds == list(range(7, 7 + sequential_test.FIRST_ROUNDS))
    assert regression_gate.exit_status([found]) == 0


def test_a_slower_model_is_a_regression_and_was_confirmed(home: Path, slower: Callable[[float], list[int]]) -> None:
    seeds, own = slower(1.06), home / "out/digits/cpu/bundle"
    found = regression_gate.compare_pair(compared(home, own, own), TARGET, NO_IMAGES, 0)
    assert verdicts(found)["latency_growth"] == "fail"
    assert verdicts(found)["accuracy_drop"] == "not_measured"
    assert (
        len(set(seeds))
        == len(seeds)
        == sequential_test.FIRST_ROUNDS + sequential_test.CONFIRMING_ROUNDS
        == len(found.rounds)
    )
    assert found.latency_test.candidate.slower.estimate == pytest.approx(1.06, abs=0.003)
    assert regression_gate.exit_status([found]) == 1


def test_a_model_that_answers_worse_fails_by_an_exact_test(
    home: Path, slower: Callable[[float], list[int]], pictures: Domain
) -> None:
    slower(1.0)
    worse = bundled(home / "worse", mistakes=2)
    pair = compared(home, worse, home / "out/digits/cpu/bundle")
    found = regression_gate.compare_pair(pair, TARGET, shown(pictures, pair), 0)
    verdict = next(v for v in found.verdicts if v.check == "accuracy_drop")
    assert verdict.outcome == "fail"
    assert verdict.measured is not None
    assert 0.5 < verdict.measured < 1.0  # two of three classes, and some of the third
    assert "McNemar" in verdict.why
    pair = compared(home, home / "out/digits/cpu/bundle", worse)
    better = regression_gate.compare_pair(pair, TARGET, shown(pictures, pair), 0)
    assert verdicts(better)["accuracy_drop"] == "pass"


@pytest.mark.parametrize(
    ("lost", "won", "outcome"), [(0, 0, "pass"), (2, 1, "cannot_tell"), (9, 1, "fail"), (1, 9, "pass")]
)
def test_a_loss_that_may_be_chance_is_no_alarm(lost: int, won: int, outcome: str) -> None:
    reference, candidate = np.ones(120, bool), np.ones(120, bool)
    candidate[:lost] = False
    reference[lost : lost + won] = False
    verdict = gate_accuracy.judge(
        gate_accuracy.CorrectPredictions(candidate=candidate, baseline=reference), TARGET.gate
    )
    assert verdict is not None
    assert verdict.outcome == outcome
    assert ("images would decide" in verdict.why) == (outcome == "cannot_tell")


def test_a_larger_file_and_more_memory_fail_exactly(
    home: Path, slower: Callable[[float], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    slower(1.0)
    sizes = {regression_gate.CANDIDATE: 12 * 10**6, regression_gate.BASELINE: 10**7}
    monkeypatch.setattr(
        paired_timing,
        "measure_footprint",
        lambda side: paired_timing.Footprint(load_ms=1.0, first_ms=1.0, peak_rss_bytes=sizes[side.name]),
    )
    large = bundled(home / "large", ballast=1000)
    found = regression_gate.compare_pair(compared(home, large, home / "out/digits/cpu/bundle"), TARGET, NO_IMAGES, 0)
    assert {name for name, outcome in verdicts(found).items() if outcome == "fail"} == {"size_growth", "memory_growth"}
    roomy = dataclasses.replace(TARGET, gate=dataclasses.replace(TARGET.gate, size_growth=0.9, memory_growth=None))
    found = regression_gate.compare_pair(compared(home, large, home / "out/digits/cpu/bundle"), roomy, NO_IMAGES, 0)
    assert verdicts(found)["size_growth"] == "pass"
    assert "memory_growth" not in verdicts(found)


def test_among_many_models_chance_is_shared_out(home: Path, slower: Callable[[float], list[int]]) -> None:
    slower(1.06)
    own = home / "out/digits/cpu/bundle"
    one = regression_gate.compare_pair(compared(home, own, own), TARGET, NO_IMAGES, 0, waive=["accuracy_drop"])
    likely = dataclasses.replace(one, latency_test=dataclasses.replace(one.latency_test, p_value=0.004))
    assert [verdicts(found)["latency_growth"] for found in regression_gate.adjust_for_several_recipes([likely])] == [
        "fail"
    ]
    assert [
        verdicts(found)["latency_growth"] for found in regression_gate.adjust_for_several_recipes([likely, likely])
    ] == ["cannot_tell"] * 2
    assert regression_gate.exit_status(regression_gate.adjust_for_several_recipes([likely, likely])) == 3
    assert [found.latency_test.outcome for found in regression_gate.adjust_for_several_recipes([likely, likely])] == [
        "cannot_tell"
    ] * 2
    lost = gate_accuracy.judge(
        gate_accuracy.CorrectPredictions(candidate=np.arange(120) >= 8, baseline=np.ones(120, bool)), TARGET.gate
    )
    assert lost is not None
    worse = dataclasses.replace(one, verdicts=(one.verdicts[0], lost), accuracy_p_value=0.03)
    assert [verdicts(found)["accuracy_drop"] for found in regression_gate.adjust_for_several_recipes([worse])] == [
        "fail"
    ]
    assert [
        verdicts(found)["accuracy_drop"] for found in regression_gate.adjust_for_several_recipes([worse, worse])
    ] == ["cannot_tell"] * 2


@pytest.mark.parametrize(("longer", "outcomes"), [(8, {"pass", "cannot_tell"}), (24, {"fail", "cannot_tell"})])
def test_real_times_of_one_file_raise_no_alarm_and_those_of_a_longer_one_do_not_pass(
    home: Path, longer: int, outcomes: set[str]
) -> None:
    for name, length in (("baseline", 8), ("candidate", longer)):
        chain(home / f"{name}.onnx", length)
    pair = gate_inputs.GatePair(
        recipe="chain",
        **{name: model_files.open_model(home / f"{name}.onnx", home) for name in ("candidate", "baseline")},
    )
    found = regression_gate.compare_pair(pair, TARGET, NO_IMAGES, 0)
    assert verdicts(found)["latency_growth"] in outcomes
    assert (found.latency_test.candidate.slower.estimate > 1.5) == (longer > 8)
    assert set(found.rounds[0].blocks) == {
        regression_gate.CANDIDATE,
        regression_gate.BASELINE,
        regression_gate.CONTROL,
    }


def chain(path: Path, length: int) -> None:
    """So many equal convolutions in a row."""
    names = ["input", *(f"c{i}" for i in range(1, length)), "logits"]
    nodes = [helper.make_node("Conv", [a, "w"], [b], pads=[1] * 4) for a, b in itertools.pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 16, 24, 24)) for name in ("input", "logits")]
    weights = numpy_helper.from_array(np.full((16, 16, 3, 3), 0.01, np.float32), "w")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def test_latency_is_tried_again_only_where_it_cannot_be_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def took(seed: int, side: str) -> list[float]:  # only the first attempt is noisy
        return [1.0 + 0.9 * (seed % 2) * (seed < 1000) * (side == regression_gate.CANDIDATE)] * 5

    asked = made_up(monkeypatch, took)
    own = home / "out/digits/cpu/bundle"
    assert (
        verdicts(regression_gate.compare_pair(compared(home, own, own), TARGET, NO_IMAGES, 0))["latency_growth"]
        == "cannot_tell"
    )
    asked.clear()
    found = regression_gate.compare_pair(compared(home, own, own), TARGET, NO_IMAGES, 0, attempts=3)
    assert verdicts(found)["latency_growth"] == "pass"
    assert len(found.rounds) == sequential_test.FIRST_ROUNDS  # those of the attempt that told
    assert max(asked) < 2000


# --- another interpreter ------------------------------------------------------------------------------------


def test_sides_of_two_interpreters_take_turns(home: Path) -> None:
    own = model_files.open_model(home / "out/digits/cpu/bundle", home)
    sides = [own.timed_model, own.renamed("other").with_python(sys.executable).timed_model]
    found: list[Round] = []
    paired_timing.time_rounds(sides, 1, 3, found.append)
    assert {name: np.shape(blocks) for name, blocks in found[0].blocks.items()} == {own.name: (25, 5), "other": (25, 5)}
    assert statistics.log_speedup(found[0].blocks[own.name], found[0].blocks["other"]) == pytest.approx(0.0, abs=1.0)
    assert paired_timing.versions(sides[1]) == paired_timing.versions(sides[0])


def test_an_interpreter_that_cannot_run_the_model_is_told(home: Path) -> None:
    own = model_files.open_model(home / "out/digits/cpu/bundle", home)
    broken = dataclasses.replace(
        own.renamed("other").with_python(sys.executable).timed_model, path=str(home / "nothing.onnx")
    )
    with pytest.raises(ToolchainError, match=r"a timing process failed: .*does not load"):
        paired_timing.time_rounds([own.timed_model, broken], 1, 3, lambda one: None)
    with pytest.raises(ToolchainError, match="has no Python"):
        gate_inputs.find_interpreter(home)
    assert gate_inputs.find_interpreter(Path(sys.prefix)) == str(Path(sys.prefix) / "bin" / "python")


def test_with_another_interpreter_the_artefact_is_compared_with_itself(home: Path) -> None:
    found = gate_inputs.load_pair(RECIPE, TARGET, home / "out", candidate=None, reference=None, python=sys.executable)
    assert found.candidate.artefact.sha256 == found.baseline.artefact.sha256
    assert (found.candidate.timed_model.python, found.baseline.timed_model.python) == ("", sys.executable)


# --- references ---------------------------------------------------------------------------------------------


def gated(*arguments: str) -> tuple[int, str]:
    result = VERBS.invoke(main.app, ["gate", *arguments])
    if isinstance(result.exception, ToolchainError):
        return result.exception.exit_code, str(result.exception)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.output


def accepted(*arguments: str) -> None:
    result = VERBS.invoke(main.app, ["accept", *arguments])
    assert result.exit_code == 0, result.exception


def test_a_first_run_says_what_to_do(home: Path) -> None:
    code, text = gated()
    assert code == 2
    assert "toolchain accept --target cpu --recipe digits" in text


def test_what_was_accepted_is_what_is_compared_with(home: Path, slower: Callable[[float], list[int]]) -> None:
    slower(1.0)
    accepted()
    record = files.read_json(home / "targets/baselines/cpu/digits.json")
    archive = home / "targets/baselines/cpu" / record["uri"]
    assert record["sha256"] == files.sha256_file(archive) == files.sha256_file(home / "out/digits/cpu/bundle.tar")
    assert (record["target"], record["isa"], record["manifest"]["classes"]) == ("cpu", TARGET.isa, list(CLASSES))
    assert str(home) not in json.dumps(record)
    code, text = gated()
    assert (code, "has no class 'eight', which the test images have; its classes: ant, bee, cat" in text) == (2, True)


def test_an_archive_may_lie_in_any_folder(home: Path) -> None:
    accepted("--uri", str(home / "shelf"))
    _, record = baselines.read_record(TARGET, "digits")
    assert Path(record.uri).parent == home / "shelf"
    assert baselines.fetch_archive(baselines.record_path("cpu", "digits"), record, home / "cache").is_file()
    Path(record.uri).unlink()
    with pytest.raises(ToolchainError, match="archive is not at"):
        baselines.fetch_archive(baselines.record_path("cpu", "digits"), record, home / "cache")


@pytest.fixture
def served(home: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(home / "shelf"))
    (home / "shelf").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_archive_is_fetched_once_and_checked_always(home: Path, served: str) -> None:
    accepted("--uri", served)
    record, found = baselines.read_record(TARGET, "digits")
    with pytest.raises(ToolchainError, match="cannot download the baseline"):
        baselines.fetch_archive(record, found, home / "cache")
    body = (home / "out/digits/cpu/bundle.tar").read_bytes()
    uploaded = home / "shelf" / Path(found.uri).name
    uploaded.write_bytes(body + b"x")
    with pytest.raises(ToolchainError, match="not the archive that was accepted"):
        baselines.fetch_archive(record, found, home / "cache")
    uploaded.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(ToolchainError, match="not the archive that was accepted"):
        baselines.fetch_archive(record, found, home / "cache")
    assert not list((home / "cache").iterdir())
    uploaded.write_bytes(body)
    kept = baselines.fetch_archive(record, found, home / "cache")
    uploaded.unlink()
    assert baselines.fetch_archive(record, found, home / "cache") == kept
    assert kept.read_bytes() == body
    kept.write_bytes(body + b"x")  # a cache may come from anywhere
    with pytest.raises(ToolchainError, match="cannot download"):
        baselines.fetch_archive(record, found, home / "cache")


def broken(home: Path, **changes: object) -> None:
    path = home / "targets/baselines/cpu/digits.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sha256": "0" * 64}, "is not the archive that was accepted"),
        ({"target": "openvino"}, "is the baseline of digits on openvino"),
        ({"recipe": "solar"}, "is the baseline of solar on cpu"),
        ({"isa": "arm64"}, "was accepted for arm64, but"),
        ({"schema": 9}, "not a baseline record that this version reads"),
        ({"more": 1}, "not a baseline record that this version reads"),
    ],
)
def test_a_reference_that_is_not_what_it_should_be_is_refused(
    home: Path, changes: dict[str, object], says: str
) -> None:
    accepted()
    broken(home, **changes)
    code, text = gated()
    assert (code, says in text) == (2, True), text


def test_a_model_that_was_changed_by_one_bit_is_refused_before_it_is_loaded(home: Path) -> None:
    accepted()
    model = home / "out/digits/cpu/bundle/model.onnx"
    body = bytearray(model.read_bytes())
    body[len(body) // 2] ^= 1
    model.write_bytes(body)
    code, text = gated()
    assert (code, "model.onnx is missing or was changed" in text) == (2, True)


def test_a_model_that_the_sums_do_not_vouch_for_is_refused(home: Path) -> None:
    folder = home / "out/digits/cpu/bundle"
    manifest = files.read_json(folder / "manifest.json")
    network(home / "out/digits/cpu/outside.onnx")
    for names in (["../outside.onnx"], [], [str(home / "out/digits/cpu/outside.onnx")]):
        (folder / "manifest.json").write_text(json.dumps({**manifest, "model": {"files": names}}))
        seal(folder)
        with pytest.raises(ToolchainError, match="SHA256SUMS does not list"):
            model_files.open_model(folder, home)


@pytest.mark.parametrize("missing", ["target", "classes", "placement", "runtime", "model"])
def test_a_manifest_that_lacks_something_is_one_message(home: Path, missing: str) -> None:
    accepted()
    folder = home / "out/digits/cpu/bundle"
    manifest = files.read_json(folder / "manifest.json")
    del manifest[missing]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seal(folder)
    code, text = gated()
    assert (code, "the manifest lacks" in text) == (2, True)


def test_what_an_earlier_gate_said_does_not_outlive_one_that_cannot_run(home: Path) -> None:
    folder = home / "out/gate/cpu"
    folder.mkdir(parents=True)
    for name in gate_report.FILE_NAMES:
        (folder / name).write_text("passed")
    assert gated()[0] == 2
    assert not list(folder.iterdir())


def test_only_an_archive_of_that_target_is_accepted(home: Path) -> None:
    other = archived(bundled(home / "b", target="openvino"), home / "b.tar")
    result = VERBS.invoke(main.app, ["accept", "--bundle", str(other)])
    assert "is 'digits' for 'openvino', not 'digits' for 'cpu'" in str(result.exception)
    result = VERBS.invoke(main.app, ["accept", "--uri", "s3://bucket/models"])
    assert "give a folder or an http address" in str(result.exception)
    result = VERBS.invoke(main.app, ["accept", "--recipe", "solar"])
    assert "is not there; run `toolchain export --target cpu --recipe solar`" in str(result.exception)
    assert not list((home / "targets").rglob("*.json"))


def test_a_machine_of_another_kind_refuses(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "integer_isa", lambda device="": "arm64")
    code, text = gated()
    assert (code, "so its latency is not the target's" in text) == (2, True)


# --- what pipelines read ------------------------------------------------------------------------------------


@pytest.fixture
def written(home: Path, slower: Callable[[float], list[int]], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, Path]:
    slower(1.2)
    accepted()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(home / "summary.md"))
    monkeypatch.setattr(gate_inputs, "list_images", lambda *_: gate_inputs.GateImages((), ()))
    correct = gate_accuracy.CorrectPredictions(candidate=np.ones(50, bool), baseline=np.ones(50, bool))
    monkeypatch.setattr(gate_accuracy, "classify", lambda *_: correct)
    code, text = gated()
    return code, text, home / "out/gate/cpu"


def test_every_form_says_the_same(written: tuple[int, str, Path], home: Path) -> None:
    code, text, folder = written
    assert code == 1
    found = files.read_json(folder / "gate.json")
    assert (found["outcome"], found["exit_status"]) == ("fail", 1)
    assert found["gates"][0]["latency"]["candidate"]["slower"]["estimate"] == pytest.approx(1.2, abs=0.01)
    assert len(found["gates"][0]["rounds"]) == sequential_test.FIRST_ROUNDS + sequential_test.CONFIRMING_ROUNDS  # raw
    assert "cpu: regression (digits latency growth)" in text
    suite = ElementTree.parse(folder / "gate.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")
    failure = suite.find("testcase[@name='latency_growth']/failure")
    assert failure is not None
    assert "+20.0 %" in str(failure.get("message"))
    lines = [line for line in text.splitlines() if line.startswith("::")]
    assert len(lines) == 1
    assert re.match(r"::error title=digits on cpu%3A latency growth::digits: latency growth \+20\.\d %25", lines[0])
    entries = files.read_json(folder / "gate.codequality.json")
    assert [(one["check_name"], one["severity"]) for one in entries] == [("latency_growth", "critical")]
    assert (home / "summary.md").read_text() == (folder / "gate.md").read_text()
    assert "| digits | latency growth | fail |" in (folder / "gate.md").read_text()


def test_what_cannot_be_told_is_an_error_to_junit_and_a_warning_to_github(written: tuple[int, str, Path]) -> None:
    found = files.read_json(written[2] / "gate.json")
    found["gates"][0]["verdicts"][0]["outcome"] = "cannot_tell"
    assert "<error " in gate_report.render_junit(found)
    assert gate_report.render_annotations(found)[0].startswith("::warning ")
    assert gate_report.build_code_quality(found)[0]["severity"] == "minor"
