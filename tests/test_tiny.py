"""The whole pipeline in seconds: a real model, real runtimes, a made-up set; every later test of a bundle uses its result."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, Run
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from PIL import Image
from safetensors.torch import load_file

from toolchain import pipeline
from toolchain.config import read_config
from toolchain.config.job import make_job
from toolchain.config.recipe import Budget, ModelSpec
from toolchain.core import files as records
from toolchain.core.errors import ToolchainError
from toolchain.deploy import sbom
from toolchain.edge import archive as archives
from toolchain.edge import manifest as manifests
from toolchain.edge import run as runner
from toolchain.gates import data_source
from toolchain.measure import latency, machine, paired_timing, peak_throughput
from toolchain.models import build, profile
from toolchain.pruning import search_space, surgery
from toolchain.quantization.placement_result import PlacementResult
from toolchain.search import budget_planner, lock_file, place
from toolchain.training import finetune, loop

STAGES = ("adapt", "fit", "sensitivity", "recover", "quantize", "export", "verify", "bench")


def variant(run: Run, name: str) -> dict:
    return next(one for one in run.report["variants"] if one["name"] == name)


def test_all_variants_stand_in_the_report(run: Run) -> None:
    assert [one["name"] for one in run.report["variants"]] == ["dense-fp32", "dense-int8", "pruned-fp32", "pruned-int8"]
    assert json.loads((run.folder / "report.json").read_text()) == run.report
    assert (run.folder / "report.html").stat().st_size > 10_000
    assert (run.folder / "report.md").read_text().startswith("#")


def test_it_has_learnt_and_stayed_small(run: Run) -> None:
    assert variant(run, "dense-fp32")["accuracy"] >= 0.9
    assert variant(run, "pruned-int8")["accuracy"] >= 0.8
    assert variant(run, "pruned-int8")["macs"] <= 0.6 * variant(run, "dense-fp32")["macs"]
    assert variant(run, "pruned-int8")["size_bytes"] < 0.3 * variant(run, "dense-fp32")["size_bytes"]


def test_every_group_that_is_cut_has_its_share_on_its_curve(run: Run) -> None:
    left = {layer["name"]: layer["after"] / layer["before"] for layer in run.report["layers"]}
    rows = run.report["sensitivity"]
    assert len(rows) == 25
    for row in rows:
        assert row["cut"] == pytest.approx(1 - left[row["name"]])
        assert row["cut"] in row["shares"] or not row["shares"]
        assert len(row["shares"]) == len(row["accuracies"]) == len(row["low"]) == len(row["high"]) == len(row["drops"])
        assert (row["images"], row["split"]) == (run.report["data"]["images"]["val"], "val")
    assert any(row["cut"] for row in rows)
    assert "sensitivity" in run.report["seconds"]


def test_all_planned_layers_run_in_integers_and_answers_agree(run: Run) -> None:
    own = variant(run, "pruned-int8")
    assert own["integer_coverage"]["integer"] == own["integer_coverage"]["planned"] == 26
    assert own["parity"]["top1_agreement"] >= 22 / 24
    assert variant(run, "pruned-fp32")["parity"]["top1_agreement"] == 1.0


def test_raw_samples_stay_beside_the_archive_and_not_inside(run: Run) -> None:
    kept = records.read_json(run.folder / "measurements.json")
    source = data_source.read_from_run(run.folder)
    assert source == data_source.describe(run.domain, run.out / "data")  # what `accept` reads and `gate` finds again
    assert source.images == sum(run.report["data"]["images"].values())
    assert len(kept["variants"]["pruned-int8"]["latencies_ms"]) == variant(run, "pruned-int8")["latency_ms"]["samples"]
    with tarfile.open(run.folder / "bundle.tar") as tar:
        assert "bundle/measurements.json" not in tar.getnames()


def test_a_second_run_does_nothing_twice_and_gives_the_same_bytes(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = (run.folder / "bundle.tar").read_bytes()
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(paired_timing, "time_rounds", lambda *_, **__: pytest.fail("timed again"))
    monkeypatch.setattr(latency, "ROUNDS", 3)
    pipeline.export(make_job(run.recipe, run.target, run.domain, run.out))
    assert (run.folder / "bundle.tar").read_bytes() == archive
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    titles = pipeline.STEPS.values()
    assert steps == [f"step {number} of {len(titles)}: {title}" for number, title in enumerate(titles, 1)]


def test_a_lock_gives_the_same_archive_without_a_search(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(
        run.out / "work",
        tmp_path / "out" / "work",
        ignore=lambda folder, _: ["fit", "place"] if folder.endswith("work") else [],
    )
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(search_space, "plan_for_ratio", lambda *_, **__: pytest.fail("planned again"))
    monkeypatch.setattr(place, "find_placement", lambda *_, **__: pytest.fail("searched again"))
    monkeypatch.setattr(
        place, "time_placement", lambda model, image, target, chosen, work: PlacementResult(chosen, "", (), 0.0)
    )
    lock = run.folder / "tiny.cpu.lock.json"
    pipeline.export(make_job(run.recipe, run.target, run.domain, tmp_path / "out", lock_file=lock))
    assert (tmp_path / "out" / "tiny" / "cpu" / "bundle.tar").read_bytes() == (run.folder / "bundle.tar").read_bytes()
    assert (tmp_path / "out" / "tiny" / "cpu" / lock.name).read_bytes() == lock.read_bytes()


def test_a_changed_recipe_redoes_only_what_depends_on_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    class Enough(Exception):
        pass

    def train(_: object, job: loop.TrainingJob, **__: object) -> None:
        trained.append(job.label)
        raise Enough

    monkeypatch.setattr(loop, "train", train)
    changed = dataclasses.replace(run.recipe, recover=dataclasses.replace(run.recipe.recover, learning_rate=1.1e-3))
    with pytest.raises(Enough):
        pipeline.export(make_job(changed, run.target, run.domain, run.out))
    assert trained == ["recover"]


def test_a_second_target_shares_data_training_and_widths(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage: len(list((run.out / "work" / stage).iterdir())) for stage in STAGES}
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(latency, "ROUNDS", 3)
    monkeypatch.setattr(peak_throughput, "ROUNDS", 1)
    other = dataclasses.replace(run.target, name="openvino", runtime="openvino", precisions=("f32", "bf16", "int8"))
    written = pipeline.export(make_job(run.recipe, other, run.domain, run.out))
    assert {one["precision"] for one in written["variants"]} == {"f32", "bf16", "int8"}
    own = next(one for one in written["variants"] if one["name"] == "pruned-int8")
    assert own["integer_coverage"]["integer"] == own["integer_coverage"]["planned"] == 26
    after = {stage: len(list((run.out / "work" / stage).iterdir())) for stage in STAGES}
    assert {stage for stage in STAGES if after[stage] > before[stage]} == {"export", "verify", "bench"}
    folder = run.out / "tiny" / "openvino" / "bundle"
    assert subprocess.run([sys.executable, "run.py", "--self-test"], cwd=folder, check=False).returncode == 0


def test_a_target_whose_instructions_this_machine_lacks_is_exported_without_latency(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "integer_isa", lambda device="": "x86-64-vnni")
    other = dataclasses.replace(
        read_config.read_target("arm64"), alignment=run.target.alignment, budget=run.target.budget
    )
    written = pipeline.export(make_job(run.recipe, other, run.domain, run.out))
    assert written["shipped"] == "pruned-int8"  # the smallest, where none is known to be the fastest
    own = next(one for one in written["variants"] if one["name"] == "pruned-int8")
    assert own["latency_ms"] is own["integer_coverage"] is own["peak_share"] is None
    assert own["accuracy"] >= 0.8
    assert [v["check"] for v in written["verdicts"] if v["outcome"] == "not_measured"] == ["integer_coverage"]
    assert any("latency was not measured" in warning for warning in written["warnings"])
    folder = run.out / "tiny" / "arm64"
    for name in ("report.html", "report.md"):
        assert "nan" not in (folder / name).read_text()
    manifest = records.read_json(folder / "bundle" / "manifest.json")
    assert (manifest["target_isa"], manifest["scheme"]["activations"]) == ("arm64", "int8")
    ended = subprocess.run([sys.executable, "run.py", "--self-test"], cwd=folder / "bundle", check=False)
    assert ended.returncode == 0


def test_a_missed_budget_writes_the_report_and_takes_the_bundle_away(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 3)
    hard = dataclasses.replace(run.target, budget=dataclasses.replace(run.target.budget, speedup=1000.0), name="hard")
    (run.out / "tiny" / "hard" / "bundle").mkdir(parents=True)
    written = pipeline.export(make_job(run.recipe, hard, run.domain, run.out))
    assert written["shipped"] is None
    folder = run.out / "tiny" / "hard"
    assert not (folder / "bundle").exists()
    assert (folder / "report.html").exists()
    manifest = archives.read_verified_manifest(folder / "best")
    assert (manifest["variant"], manifest["accepted"]) == (written["candidate"], False)
    assert device(folder / "best", "--self-test").returncode == 1
    assert device(folder / "best", "--not-accepted", "--self-test").stdout.startswith("PASS")
    assert "speedup" in [verdict["check"] for verdict in written["verdicts"] if verdict["outcome"] == "fail"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prune": {"protect": ("nothing*",)}}, "protect = 'nothing\\*' matches no layer"),
        ({"budget": {"latency": "0.5x"}}, "prune.ratio = 0.4 and budget.latency both say how far"),
        ({"prune": {"resolution": 0.5}}, "prune.resolution = 0.5 needs a budget to search for"),
        (
            {"prune": {"ratio": None}, "budget": {"latency": "0.5x"}},
            "budget.latency = '0.5x' needs candidates to be timed",
        ),
        ({"model": {"name": "vit_b_16", "weights": ""}}, "vit_b_16 does not accept images of 32x32"),
    ],
)
def test_what_cannot_be_done_is_said_before_training(
    run: Run, change: dict[str, dict[str, Any]], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "run", None)
    parts = {name: dataclasses.replace(getattr(run.recipe, name), **values) for name, values in change.items()}
    with pytest.raises(ToolchainError, match=said):
        pipeline.export(make_job(dataclasses.replace(run.recipe, **parts), run.target, run.domain, tmp_path / "out"))


def test_a_lock_for_another_model_is_said_before_training(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "run", None)
    other = dataclasses.replace(run.recipe, model=ModelSpec(name="mobilenet_v2"))
    lock = run.folder / lock_file.file_name(run.recipe, run.target)
    with pytest.raises(ToolchainError, match="the lock has a layer features.0 where this model has features.0.0"):
        pipeline.export(make_job(other, run.target, run.domain, tmp_path / "out", lock_file=lock))


def test_rounds_and_sparse_training_go_through_the_whole_job(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 3)
    monkeypatch.setattr(peak_throughput, "ROUNDS", 1)
    out = tmp_path / "out"  # the dense model is kept: only what comes after it is trained
    shutil.copytree(run.out, out, ignore=shutil.ignore_patterns("recover", "tiny"))
    asked = dataclasses.replace(run.recipe.prune, rounds=3, sparsity=1e-3, sparse_epochs=2)
    recipe = dataclasses.replace(run.recipe, prune=asked)
    written = pipeline.export(make_job(recipe, dataclasses.replace(run.target, precisions=("f32",)), run.domain, out))
    assert next(one for one in written["variants"] if one["name"] == "pruned-fp32")["accuracy"] >= 0.8
    assert {name: len(epochs) for name, epochs in written["training"].items()} == {
        "adapt": 8, "sparsify": 2, "prune": 4, "recover": 4,
    }  # fmt: skip
    assert {"sparsify", "prune"} < written["seconds"].keys()
    folder = out / "tiny" / run.target.name
    assert all(f">{word}<" in (folder / "report.html").read_text() for word in ("sparsify", "prune", "recover"))
    # the one plan that is shipped makes the network that was trained out of a fresh dense one
    small = surgery.apply(build.build_untrained(recipe.model, 3), surgery.read(folder / "bundle" / "surgery.json"))
    small.load_state_dict(load_file(next((out / "work" / "recover").glob("*/weights.safetensors"))))
    widths = [layer.outputs for layer in profile.measure_layers(small, torch.zeros(1, 3, 32, 32))]
    assert widths == [layer["after"] for layer in written["layers"]]


def test_the_float_variant_is_the_recovered_model_and_not_the_one_quantized_from_it(run: Run) -> None:
    recovered = load_file(next((run.out / "work" / "recover").glob("*/weights.safetensors")))
    shipped = [onnx.load(path) for path in (run.out / "work" / "export").glob("*/exported.onnx")]
    kernels = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for model in shipped
        for tensor in model.graph.initializer
        if tensor.name in recovered and tuple(tensor.dims) == recovered[tensor.name].shape
    }
    pruned = {name for name in kernels if np.array_equal(kernels[name], recovered[name].numpy())}
    dense = load_file(next((run.out / "work" / "adapt").glob("*/weights.safetensors")))
    changed = {name for name, tensor in recovered.items() if tensor.shape != dense[name].shape}
    assert changed & kernels.keys()
    assert changed & kernels.keys() <= pruned


def test_an_output_folder_in_use_is_refused(run: Run) -> None:
    with records.lock_folder(run.folder, wait=False), pytest.raises(ToolchainError, match="another run is writing"):
        pipeline.export(make_job(run.recipe, run.target, run.domain, run.out))


# --- the bundle on its own ----------------------------------------------------------------------------------


def device(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the bundle's runner as a device would: in its folder, the toolchain nowhere on the path."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "run.py", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def flashed(run: Run, tmp_path: Path) -> Path:
    with tarfile.open(run.folder / "bundle.tar") as tar:
        for member in tar:
            assert member.isfile()
            assert (member.uid, member.gid, member.mtime, member.mode) == (0, 0, 0, 0o644)
            body = tar.extractfile(member)
            assert body is not None
            (tmp_path / Path(member.name).name).write_bytes(body.read())
    return tmp_path


def test_the_self_test_passes_on_what_was_unpacked(flashed: Path) -> None:
    files = set(flashed.iterdir())
    ended = device(flashed, "--self-test")
    assert (ended.returncode, ended.stdout.split(":")[0]) == (0, "PASS")
    assert set(flashed.iterdir()) == files  # no runtime left the number there under which it would report


def test_pictures_and_arrays_are_classified(run: Run, flashed: Path) -> None:
    from PIL import Image

    files = sorted(Path(run.domain.path).rglob("*.png"))[::15]
    np.save(flashed / "frame.npy", np.asarray(Image.open(files[0]).resize((32, 32), Image.Resampling.BILINEAR)))
    ended = device(flashed, *map(str, files), "frame.npy")
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0
    right = [answer["class"] == Path(answer["file"]).parent.name for answer in answers[:-1]]
    assert sum(right) >= len(right) - 1
    assert answers[-1]["class"] == answers[0]["class"]


def test_arrays_need_no_pillow(flashed: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    (blocked / "PIL").mkdir(parents=True)
    (blocked / "PIL" / "__init__.py").write_text("raise ImportError('no Pillow on this board')")
    np.save(flashed / "frame.npy", np.zeros((32, 32), np.uint8))
    assert device(flashed, "--self-test", "frame.npy", path=str(blocked)).returncode == 0
    (flashed / "x.png").write_bytes(b"")
    refused = device(flashed, "x.png", path=str(blocked))
    assert refused.returncode == 2
    assert "need Pillow" in refused.stderr


def test_what_lies_beside_the_runner_passes_for_no_library(flashed: Path) -> None:
    for name in ("numpy", "json", "watch_more"):
        (flashed / f"{name}.py").write_text("raise SystemExit('somebody else ran')")
    ended = device(flashed, "--self-test")
    assert (ended.returncode, ended.stdout.split(":")[0]) == (0, "PASS"), ended.stdout + ended.stderr


def test_nobody_reads_what_it_prints(flashed: Path) -> None:
    np.save(flashed / "good.npy", np.zeros((32, 32), np.uint8))
    command = f"{sys.executable} run.py {'good.npy ' * 200} | head -n 1"
    ended = subprocess.run(["sh", "-c", command], cwd=flashed, capture_output=True, text=True, check=False)
    assert len(ended.stdout.splitlines()) == 1
    assert ended.stderr == ""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([sys.executable, "run.py", "good.npy"], cwd=flashed, stdout=full, stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == "error: cannot write the results: No space left on device\n"


@pytest.mark.parametrize("counts", ["", "."])
def test_counters_go_into_a_file(counts: str, flashed: Path) -> None:
    np.save(flashed / "good.npy", np.zeros((32, 32), np.uint8))
    ended = device(flashed, "--watch", counts, "good.npy")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "give a file, such as counts.json" in ended.stderr


def test_what_cannot_be_read_is_no_failure_to_write(flashed: Path, tmp_path: Path) -> None:
    (flashed / "loop.png").symlink_to("loop.png")
    np.save(flashed / "good.npy", np.zeros((32, 32), np.uint8))
    ended = device(flashed, "loop.png", "x" * 300 + ".png", "good.npy")
    assert ended.returncode == 2
    assert ended.stderr.count("error:") == 2
    assert "cannot write" not in ended.stderr
    assert len(ended.stdout.splitlines()) == 1


def test_floating_point_pictures_are_refused(flashed: Path) -> None:
    from PIL import Image

    Image.fromarray(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)).save(flashed / "float.tiff")
    ended = device(flashed, "float.tiff")
    assert ended.returncode == 2
    assert "floating-point numbers" in ended.stderr


def test_wrong_inputs_are_refused_one_by_one(flashed: Path) -> None:
    np.save(flashed / "wide.npy", np.zeros((32, 32, 4), np.uint8))
    np.save(flashed / "good.npy", np.zeros((32, 32), np.uint8))
    (flashed / "bad.png").write_bytes(b"nothing")
    (flashed / "bad.npy").write_bytes(b"nothing")
    np.savez(flashed / "zip", np.zeros(3))
    (flashed / "zip.npz").rename(flashed / "zip.npy")
    (flashed / "torn.npy").write_bytes(b"PK\3\4junk")
    huge = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"
    (flashed / "huge.npy").write_bytes(b"\x93NUMPY\1\0" + len(huge).to_bytes(2, "little") + huge)
    np.save(flashed / "nan.npy", np.full((1, 3, 32, 32), np.nan, np.float32))
    np.save(flashed / "empty.npy", np.zeros((0, 64), np.uint8))
    (flashed / "none").mkdir()
    odd = [
        "gone.png",
        "bad.png",
        "bad.npy",
        "wide.npy",
        "zip.npy",
        "torn.npy",
        "huge.npy",
        "nan.npy",
        "empty.npy",
        "none",
    ]
    ended = device(flashed, *odd, "good.npy")
    assert ended.returncode == 2
    assert ended.stderr.count("error:") == len(odd)
    assert "Traceback" not in ended.stderr
    assert len(ended.stdout.splitlines()) == 1


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "run.py", "SHA256SUMS"])
def test_one_flipped_bit_anywhere_is_refused_by_name(flashed: Path, name: str) -> None:
    body = bytearray((flashed / name).read_bytes())
    place = body.index(b"Needs numpy") if name == "run.py" else len(body) // 2
    body[place] ^= 1
    (flashed / name).write_bytes(body)
    ended = device(flashed, "--self-test")
    assert ended.returncode == 1
    assert ended.stdout.startswith("FAIL")
    assert "Traceback" not in ended.stderr


def test_changed_golden_outputs_fail_even_with_new_hashes(flashed: Path) -> None:
    golden = dict(np.load(flashed / "golden.npz"))
    golden["logits"] = golden["logits"] + 1
    np.savez(flashed / "golden.npz", **golden)
    (flashed / "SHA256SUMS").unlink()
    archives.write_checksums(flashed)
    ended = device(flashed, "--self-test")
    assert ended.returncode == 1
    assert "quantization steps" in ended.stdout


@pytest.mark.parametrize("arguments", [["good.npy"], ["--self-test"]])
def test_a_model_that_missed_a_budget_runs_only_on_request(arguments: list[str], flashed: Path) -> None:
    np.save(flashed.parent / "good.npy", np.zeros((32, 32), np.uint8))
    arguments = [str(flashed.parent / word) if word.endswith(".npy") else word for word in arguments]
    accepted = device(flashed, *arguments)
    manifest = records.read_json(flashed / "manifest.json")
    assert "accepted" not in manifest
    records.write_json(flashed / "manifest.json", {**manifest, "accepted": False})
    archives.write_checksums(flashed)
    refused = device(flashed, *arguments)
    assert refused.returncode == 1
    assert (refused.stdout + refused.stderr).startswith("FAIL: this model missed a budget and was not accepted; --not-")
    ended = device(flashed, "--not-accepted", *arguments)
    assert (ended.returncode, ended.stdout) == (0, accepted.stdout)


def test_random_flips_and_cuts_of_any_file_are_refused_by_name(flashed: Path) -> None:
    order, files = np.random.default_rng(0), sorted(flashed.iterdir())
    assert len(runner.check_files(flashed)) == len(files) - 1
    for number in range(500):
        path = files[number % len(files)]
        whole = path.read_bytes()
        if number % 2:
            path.write_bytes(whole[: order.integers(len(whole))])
        else:
            bits = np.unpackbits(np.frombuffer(whole, np.uint8))
            bits[order.integers(len(bits))] ^= 1
            path.write_bytes(np.packbits(bits).tobytes())
        with pytest.raises(runner.Refused) as said:
            runner.check_files(flashed)
        assert path.name in str(said.value) or path.name == "SHA256SUMS"
        path.write_bytes(whole)
    runner.check_files(flashed)


def test_a_board_counts_and_drift_reads_it(flashed: Path, run: Run, tmp_path: Path) -> None:
    seen = flashed / "seen"
    shutil.copytree(run.domain.path, seen)
    for path in list(seen.rglob("*.png")):  # as dark as no picture it was tested on
        Image.fromarray(np.asarray(Image.open(path)) // 3).save(path)
    ended = device(flashed, "--watch", "counts.json", "seen")
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 120), ended.stderr
    words = [sys.executable, "-m", "toolchain", "drift", run.bundle, flashed / "counts.json", "--out", tmp_path / "o"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stderr
    assert "brightness" in found.stdout
    assert "RETRAIN" in found.stdout or "RECALIBRATE" in found.stdout
    (flashed / "counts.json").write_text((flashed / "counts.json").read_text()[:100])
    for ended in (device(flashed, "--watch", "counts.json", "seen"), subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)):  # fmt: skip
        assert ended.returncode == 2
        assert "truncated or damaged" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_the_bundle_names_no_path_of_this_machine(run: Run) -> None:
    words = [str(ROOT).encode(), str(run.out).encode(), str(Path.home()).encode() + b"/", str(run.domain.path).encode()]
    for path in run.bundle.iterdir():
        assert not [word for word in words if word in path.read_bytes()], path.name


def test_the_manifest_says_what_was_made_of_what(run: Run) -> None:
    manifest = records.read_json(run.bundle / "manifest.json")
    manifests.parse(manifest, run.bundle)
    bill = (run.bundle / sbom.FILE_NAME).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    assert manifest["release"] == 0
    assert manifest["classes"] == ["ant", "bee", "cat"]
    assert manifest["input"]["shape"] == [1, 3, 32, 32]
    assert manifest["accuracy"]["accuracy"]["samples"] == 24
    assert len(manifest["provenance"]["weights_sha256"]) == 64
    assert manifest["model"]["sha256"]["model.onnx"] == records.sha256_file(run.bundle / "model.onnx")


def test_rebuilding_elsewhere_gives_the_same_archive(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 3)
    shutil.copytree(
        run.out / "work",
        tmp_path / "out" / "work",
        ignore=lambda folder, _: ["export", "verify"] if folder.endswith("work") else [],
    )
    os.umask(old := os.umask(0o077))
    os.umask(0o077)
    try:
        pipeline.export(make_job(run.recipe, run.target, run.domain, tmp_path / "out"))
    finally:
        os.umask(old)
    assert (tmp_path / "out" / "tiny" / "cpu" / "bundle.tar").read_bytes() == (run.folder / "bundle.tar").read_bytes()


def test_what_is_corrected_goes_with_the_ranges_that_were_best(run: Run) -> None:
    for tried in run.report["calibration"].values():
        plain = {one["method"]: one["divergence"] for one in tried if one["correction"] == "none"}
        corrected = [one for one in tried if one["correction"] != "none"]
        assert len(plain) == 3
        assert {one["correction"] for one in corrected} == {"bias", "norm"}
        assert {one["method"] for one in corrected} == {min(plain, key=lambda method: plain[method])}
        assert [one["divergence"] for one in tried] == sorted(one["divergence"] for one in tried)


def test_smaller_pictures_go_through_the_whole_job_and_into_the_bundle(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 3)
    monkeypatch.setattr(peak_throughput, "ROUNDS", 1)
    turns = itertools.count()  # the last size is taken for the best
    monkeypatch.setattr(finetune, "validation_objective", lambda figures, balance: float(next(turns)))
    out = tmp_path / "out"
    shutil.copytree(run.out, out, ignore=shutil.ignore_patterns("recover", "tiny", "fit"))
    asked = dataclasses.replace(run.recipe.prune, ratio=None, resolution=0.7)
    recipe = dataclasses.replace(run.recipe, prune=asked, budget=Budget(macs="0.6x"))
    target = dataclasses.replace(run.target, precisions=("f32",))
    written = pipeline.export(make_job(recipe, target, run.domain, out))
    own, dense = written["variants"][-1], written["variants"][0]
    assert (own["name"], own["image_size"], dense["image_size"]) == ("pruned-fp32", [24, 24], [32, 32])
    assert [trial["size"] for trial in written["image_sizes"]] == [[32, 32], [24, 24]]
    assert own["parity"]["top1_agreement"] == 1.0
    assert own["accuracy"] >= 0.8
    folder = out / "tiny" / target.name
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    assert manifest["input"]["shape"] == [1, 3, 24, 24]
    assert manifest["preprocess"]["image_size"] == [24, 24]
    command = [sys.executable, str(folder / "bundle" / "run.py")]
    assert subprocess.run([*command, "--self-test"], capture_output=True, check=False).returncode == 0
    picture = next((Path(run.domain.path) / "bee").iterdir())
    answered = subprocess.run([*command, str(picture)], capture_output=True, text=True, check=True)
    assert "bee" in answered.stdout
    assert "24×24" in (folder / "report.md").read_text()
    lock = folder / "tiny.cpu.lock.json"
    monkeypatch.setattr(budget_planner.PruningPlanner, "plan_for_budget", None)
    again = pipeline.export(make_job(recipe, target, run.domain, tmp_path / "again", lock_file=lock))
    assert again["variants"][-1]["image_size"] == [24, 24]
    assert [row["after"] for row in again["layers"]] == [row["after"] for row in written["layers"]]
