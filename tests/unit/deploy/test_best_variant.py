"""What a run leaves where nothing ships: best/, a whole bundle that only its maker looks at."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import job_of, tiny_recipe
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper

from toolchain.config.job import Job
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.deploy import bundle, update_package, verify_bundle
from toolchain.edge import archive
from toolchain.edge import run as board_runner
from toolchain.export.export_variants import Variant
from toolchain.gates import baselines
from toolchain.measure.torch_parity import Predictions
from toolchain.pruning.surgery import Surgery

REFUSED = (
    "missed a budget and was not accepted, so it is not signed, packaged, gated or made a baseline; loosen the budget"
)
SPAN = {"estimate": 0.9, "low": 0.8, "high": 1.0, "samples": 24}
FACTS = {
    "variant": "dense-fp32", "release": 3, "recipe": "tiny", "target": "cpu", "runtime": "onnxruntime",
    "runtime_version": {"onnxruntime": onnxruntime.__version__}, "threads": 1, "scheme": None, "placement": {"planned": []},
    "coverage": {"integer": 0, "planned": 0, "total": 1, "float_ops": []}, "isa": "avx2", "target_isa": "x86-64-vnni",
    "accuracy": {"accuracy": SPAN, "balanced": None, "split": "test"}, "accuracy_drop": {"baseline": "dense-fp32", **SPAN},
    "provenance": {
        "model": {"name": "gemm"}, "weights": "w.pth", "weights_sha256": "a" * 64, "weights_licence": "MIT",
        "data_digest": "d", "calibration_digest": "c", "data_licence": "MIT", "seed": 0, "versions": {"numpy": "2.3.0"},
    },
}  # fmt: skip


def make_model(path: Path) -> Path:
    """A linear layer over 8x8 images: dark or bright."""
    weights = np.repeat(np.array([[-1], [1]], np.float32) / 192, 192, axis=1)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights"], ["logits"], transB=1),
        ],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor("weights", TensorProto.FLOAT, [2, 192], weights.ravel())],
    )
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def make_dataset() -> Dataset:
    draws = np.random.default_rng(0)
    labels = np.arange(24) % 2
    pixels = draws.integers(0, 100, (24, 8, 8)) + 150 * labels[:, None, None]
    images = Images(
        torch.tensor(pixels, dtype=torch.uint8),
        torch.tensor(labels),
        tuple(Path(f"{index}.png") for index in range(24)),
        torch.ones(24),
    )
    preprocess = Preprocessing(image_size=(8, 8), mode="gray", mean=(0.5,) * 3, std=(0.5,) * 3)
    return Dataset(("dark", "bright"), {"val": images, "test": images}, preprocess, "d", (), "c")


@pytest.fixture
def shipment(tmp_path: Path) -> bundle.Shipment:
    path, data = make_model(tmp_path / "exported.onnx"), make_dataset()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = board_runner.normalise(data.splits["test"].pixels.numpy(), data.preprocess.mean, data.preprocess.std)
    logits = np.concatenate([session.run(None, {"input": image[None]})[0] for image in inputs])
    predictions = Predictions(logits, logits, None)
    variant = Variant(
        name="dense-fp32", network="dense", precision="f32", method="", artefact=files.make_artefact(path), onnx_path=path,
        planned_layers=(), image_size=(8, 8), output_step=None, macs=384, parameters=384,
    )  # fmt: skip
    return bundle.Shipment(
        variant=variant,
        predictions={"val": predictions, "test": predictions},
        data=data,
        surgery=Surgery(),
        facts=FACTS,
    )


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr("toolchain.search.lock_file.record_shipped_precision", lambda *_: None)  # no run wrote a lock
    return job_of(tiny_recipe(), out=tmp_path / "out")


def not_accepted(shipment: bundle.Shipment) -> bundle.Shipment:
    return dataclasses.replace(shipment, accepted=False)


@pytest.fixture
def best(job: Job, shipment: bundle.Shipment) -> Path:
    bundle.run(job, not_accepted(shipment))
    return job.folder / bundle.BEST


@pytest.fixture
def best_archive(best: Path, tmp_path: Path) -> Path:
    return archive.pack(best, tmp_path / "best.tar")


def run_on_board(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    np.save(folder.parent / "bright.npy", np.full((8, 8), 240, np.uint8))
    command = [sys.executable, str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)


def test_best_has_every_file_of_a_bundle_and_no_archive(best: Path, job: Job, shipment: bundle.Shipment) -> None:
    assert [path.name for path in job.folder.iterdir()] == ["best"]
    names = {path.name for path in best.iterdir()}
    assert archive.list_checksummed_files(best) == names - {"SHA256SUMS"}
    content = archive.read_verified_manifest(best)
    assert content["accepted"] is False
    bundle.run(job, shipment)
    assert {path.name for path in (job.folder / "bundle").iterdir()} == names
    ordinary = archive.read_verified_manifest(job.folder / "bundle")
    assert "accepted" not in ordinary
    assert ordinary == {key: value for key, value in content.items() if key != "accepted"}


def test_an_older_bundle_goes_when_nothing_ships(job: Job, shipment: bundle.Shipment) -> None:
    bundle.run(job, shipment)
    (job.folder / "bundle.tar.sig").write_bytes(b"signature")
    bundle.run(job, not_accepted(shipment))
    assert [path.name for path in job.folder.iterdir()] == ["best"]


def test_best_goes_when_something_ships(best: Path, job: Job, shipment: bundle.Shipment) -> None:
    bundle.run(job, shipment)
    assert sorted(path.name for path in job.folder.iterdir()) == ["bundle", "bundle.tar"]
    assert not best.exists()
    assert verify_bundle.read_archive(job.folder / "bundle.tar")[1].accepted


def test_a_later_best_replaces_the_one_before(best: Path, job: Job, shipment: bundle.Shipment) -> None:
    (best / "leftover").write_text("of an older run")
    changed = dataclasses.replace(shipment, facts={**FACTS, "release": 4}, accepted=False)
    bundle.run(job, changed)
    assert not (best / "leftover").exists()
    assert archive.read_verified_manifest(best)["release"] == 4
    assert [path.name for path in job.folder.iterdir()] == ["best"]  # no temporary folder either


@pytest.mark.parametrize("arguments", [["bright.npy"], ["--self-test"]])
def test_run_py_refuses_it_until_it_is_asked_twice(arguments: list[str], best: Path) -> None:
    refused = run_on_board(best, *arguments)
    assert refused.returncode == 1
    message = "FAIL: this model missed a budget and was not accepted; --not-accepted runs it all the same\n"
    assert (refused.stdout + refused.stderr) == message
    ended = run_on_board(best, "--not-accepted", *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    if arguments == ["--self-test"]:
        assert ended.stdout.startswith("PASS: 10 files intact, 16 golden images within 0.00 quantization steps")
    else:
        assert json.loads(ended.stdout)["class"] == "bright"


def test_damage_is_said_before_and_in_spite_of_not_accepted(best: Path) -> None:
    (best / "labels.txt").write_text("bright\ndark\n")
    for arguments in (["bright.npy"], ["--not-accepted", "bright.npy"]):
        ended = run_on_board(best, *arguments)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "labels.txt is missing or was changed since the bundle was built" in ended.stderr


def write_key(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "private.pem").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return folder / "private.pem"


@pytest.mark.parametrize("given", ["archive", "folder"])
def test_sign_package_and_accept_refuse_it_with_one_message(
    given: str, best: Path, best_archive: Path, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, key = (best if given == "folder" else best_archive), write_key(tmp_path)
    messages = []
    for ship in (
        lambda: verify_bundle.sign(path, key),
        lambda: update_package.prepare(path, "swupdate", "board", "/var/lib/edge-models", ""),
        lambda: baselines.accept(path, job.target, "tiny", ""),
    ):
        with pytest.raises(ToolchainError) as refused:
            ship()
        messages.append(str(refused.value))
    assert len(set(messages)) == 1
    assert messages[0].startswith(f"{path} {REFUSED}")
    assert not list(tmp_path.rglob("*.sig"))
    assert not (tmp_path / "targets").exists()


def test_a_folder_that_may_ship_is_asked_for_as_an_archive(job: Job, shipment: bundle.Shipment, tmp_path: Path) -> None:
    bundle.run(job, shipment)
    folder, key = job.folder / "bundle", write_key(tmp_path)
    for ship in (lambda: verify_bundle.sign(folder, key), lambda: baselines.accept(folder, job.target, "tiny", "")):
        with pytest.raises(ToolchainError, match=r"bundle is a folder; give the archive, .*bundle\.tar"):
            ship()
    assert verify_bundle.sign(job.folder / "bundle.tar", key).is_file()


def test_verify_says_that_it_was_not_accepted(
    best: Path, best_archive: Path, job: Job, shipment: bundle.Shipment
) -> None:
    for path in (best, best_archive):
        summary = verify_bundle.check(path, None, 0).summary
        assert "10 files intact, not accepted (missed a budget), signature not checked" in summary
    bundle.run(job, shipment)
    assert "accepted" not in verify_bundle.check(job.folder / "bundle.tar", None, 0).summary
