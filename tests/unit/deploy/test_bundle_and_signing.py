"""What leaves the house: signatures that openssl takes too, refusals before anything is opened, papers that are valid."""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.deploy import sbom, signing, verify_bundle
from toolchain.edge import archive as archives
from toolchain.edge import manifest as manifests

KINDS = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "rsa": lambda: rsa.generate_private_key(65537, 3072),
}


def keys(folder: Path, made: Any, password: str = "") -> tuple[Path, Path]:
    hidden = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(made.private_bytes(pem, form, hidden))
    public.write_bytes(made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def manifest(**changed: Any) -> dict[str, Any]:
    span = {"estimate": 0.9, "low": 0.8, "high": 1.0, "samples": 24}
    model = {"files": ["model.onnx"], "sha256": {"model.onnx": hashlib.sha256(b"model").hexdigest()}, "size_bytes": 5}
    return {
        "schema": 1, "release": 3, "recipe": "digits", "target": "cpu", "variant": "pruned-int8", "precision": "int8",
        "precision_hint": "f32", "runtime": "onnxruntime", "runtime_version": {"onnxruntime": "1.32.0"}, "threads": 1,
        "isa": "avx2", "target_isa": "x86-64-vnni", "model": {**model, "macs": 10, "parameters": 4},
        "input": {"name": "input", "dtype": "float32", "layout": "NCHW", "shape": [1, 3, 8, 8]},
        "output": {"name": "logits", "dtype": "float32", "shape": [1, 2]},
        "preprocess": {"image_size": [8, 8], "mode": "rgb", "mean": [0.5] * 3, "std": [0.5] * 3, "resize": "", "scale": ""},
        "classes": ["ant", "bee"], "scheme": None, "placement": {"planned": []},
        "coverage": {"integer": 1, "planned": 1, "total": 1, "float_ops": []},
        "accuracy": {"accuracy": span, "balanced": None, "split": "test"}, "accuracy_drop": {"baseline": "dense", **span},
        "golden": {"file": "golden.npz", "step": 0.1, "tolerance_steps": 2.0},
        "provenance": {
            "model": {"name": "resnet18"}, "weights": "w.pth", "weights_sha256": "a" * 64, "data_digest": "d", "seed": 0,
            "calibration_digest": "c", "data_licence": "MIT", "versions": {"numpy": "2.3.0", "pillow": "12.0.0"},
        },
        **changed,
    }  # fmt: skip


def packed(folder: Path, **changed: Any) -> Path:
    made = folder / "bundle"
    made.mkdir(parents=True)
    files.write_json(made / "manifest.json", manifest(**changed))
    (made / "model.onnx").write_bytes(b"model")
    (made / "golden.npz").write_bytes(b"golden")
    archives.write_checksums(made)
    return archives.pack(made, folder / "bundle.tar")


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_signed_is_vouched_for(kind: str, tmp_path: Path) -> None:
    private, public = keys(tmp_path, KINDS[kind]())
    archive = packed(tmp_path)
    assert verify_bundle.sign(archive, private) == tmp_path / "bundle.tar.sig"
    found = verify_bundle.check(archive, public, 3)
    assert (found.file_count, found.manifest.classes) == (3, ("ant", "bee"))
    assert "sha256:" in found.key_fingerprint
    with pytest.raises(ToolchainError, match="altered or truncated since it was signed, or it was not signed"):
        verify_bundle.check(archive, keys(tmp_path / "other", KINDS[kind]())[1], 0)


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl here")
@pytest.mark.parametrize(("kind", "digest"), [("p256", "-sha256"), ("p384", "-sha384"), ("rsa", "-sha256")])
def test_a_board_with_openssl_alone_can_check(kind: str, digest: str, tmp_path: Path) -> None:
    private, public = keys(tmp_path, KINDS[kind]())
    archive = packed(tmp_path)
    verify_bundle.sign(archive, private)
    ask = ["openssl", "dgst", digest, "-verify", public, "-signature", tmp_path / "bundle.tar.sig", archive]
    assert "Verified OK" in subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    assert subprocess.run(ask, capture_output=True, check=False).returncode != 0


def test_what_openssl_signed_is_taken(tmp_path: Path) -> None:
    private, public = keys(tmp_path, KINDS["p256"]())
    archive = packed(tmp_path)
    ask = ["openssl", "dgst", "-sha256", "-sign", private, "-out", tmp_path / "bundle.tar.sig", archive]
    subprocess.run(ask, check=True)
    assert verify_bundle.check(archive, public, 0).key_fingerprint.startswith("EC secp256r1")


def test_any_altered_byte_or_lost_end_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = keys(tmp_path, KINDS["ed25519"]())
    archive = packed(tmp_path)
    verify_bundle.sign(archive, private)
    whole = archive.read_bytes()
    monkeypatch.setattr(archives, "unpack", lambda *_: pytest.fail("it was opened"))
    for body in (whole[:-512], whole[:100], b"", whole[:700] + bytes([whole[700] ^ 1]) + whole[701:], whole + b"\0"):
        archive.write_bytes(body)
        with pytest.raises(ToolchainError, match="altered or truncated"):
            verify_bundle.check(archive, public, 0)


def test_unsigned_is_refused_where_a_key_is_asked_for(tmp_path: Path) -> None:
    _, public = keys(tmp_path, KINDS["p256"]())
    archive = packed(tmp_path)
    with pytest.raises(ToolchainError, match="the archive is not signed"):
        verify_bundle.check(archive, public, 0)
    assert "signature not checked" in verify_bundle.check(archive, None, 0).summary
    with pytest.raises(ToolchainError, match=r"a signature covers the archive; give bundle\.tar"):
        verify_bundle.check(tmp_path / "bundle", public, 0)
    (tmp_path / "bundle.tar.sig").write_bytes(b"x" * 100_000)
    with pytest.raises(ToolchainError, match="too large for a signature"):
        verify_bundle.check(archive, public, 0)


def test_an_older_release_is_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path)
    assert verify_bundle.check(archive, None, 3).manifest.release == 3
    with pytest.raises(ToolchainError, match="digits for cpu is release 3, older than the required release 4"):
        verify_bundle.check(archive, None, 4)


def test_damaged_archives_are_not_signed(tmp_path: Path) -> None:
    private, _ = keys(tmp_path, KINDS["p256"]())
    archive = packed(tmp_path)
    archive.write_bytes(archive.read_bytes().replace(b"golden", b"gelden", 2))
    with pytest.raises(ToolchainError):
        verify_bundle.sign(archive, private)
    assert not (tmp_path / "bundle.tar.sig").exists()
    with pytest.raises(ToolchainError, match="is a folder; give the archive"):
        verify_bundle.sign(tmp_path / "bundle", private)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: x25519.X25519PrivateKey.generate(), "not supported.*X25519"),
        (lambda: dsa.generate_private_key(2048), "not supported.*DSA"),
        (lambda: rsa.generate_private_key(65537, 2048), "not supported.*RSA of 2048 bits"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), "not supported.*EC on secp256k1"),
    ],
)
def test_keys_of_another_kind_are_refused(made: Any, said: str, tmp_path: Path) -> None:
    private, public = keys(tmp_path, made())
    archive = packed(tmp_path)
    with pytest.raises(ToolchainError, match=said):
        verify_bundle.sign(archive, private)
    (tmp_path / "bundle.tar.sig").write_bytes(b"x")
    with pytest.raises(ToolchainError, match=said):
        verify_bundle.check(archive, public, 0)


def test_keys_that_are_missing_mistaken_or_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = keys(tmp_path, KINDS["p256"](), password="hidden")
    archive = packed(tmp_path)
    wrong = {
        tmp_path / "none.pem": "cannot read .*none.pem: No such file",
        tmp_path: "cannot read .*; give a private key",
        public: "is a public key; signing needs the private key",
        archive: "not a readable private key",
        private: f"is encrypted; set its password in {signing.PASSWORD_VARIABLE}",
    }
    for key, said in wrong.items():
        with pytest.raises(ToolchainError, match=said):
            verify_bundle.sign(archive, key)
    monkeypatch.setenv(signing.PASSWORD_VARIABLE, "guessed")
    with pytest.raises(ToolchainError, match=f"or {signing.PASSWORD_VARIABLE} is wrong"):
        verify_bundle.sign(archive, private)
    monkeypatch.setenv(signing.PASSWORD_VARIABLE, "hidden")
    verify_bundle.sign(archive, private)
    verify_bundle.check(archive, public, 0)
    with pytest.raises(ToolchainError, match="is a private key; verifying needs the public key: openssl pkey"):
        verify_bundle.check(archive, private, 0)
    with pytest.raises(ToolchainError, match="is not encrypted; unset"):
        verify_bundle.sign(archive, keys(tmp_path / "open", KINDS["p256"]())[0])


def test_a_newer_schema_says_what_to_do(tmp_path: Path) -> None:
    archive = packed(tmp_path, schema=3)
    with pytest.raises(
        ToolchainError,
        match=r"bundle\S*\.tar.*manifest schema 3; this version reads 1 to 2; a newer toolchain wrote it",
    ):
        verify_bundle.check(archive, None, 0)


def test_a_manifest_is_checked_key_by_key(tmp_path: Path) -> None:
    manifests.parse(manifest(), tmp_path)
    with pytest.raises(ToolchainError, match="golden"):
        manifests.parse({k: v for k, v in manifest().items() if k != "golden"}, tmp_path)
    with pytest.raises(ToolchainError, match="speed"):
        manifests.parse(manifest(speed=1), tmp_path)


def test_the_bill_of_materials_is_valid_and_has_no_day(tmp_path: Path) -> None:
    bill = sbom.build(manifests.parse(manifest(), tmp_path))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    assert not {"serialNumber", "timestamp"} & {*bill, *bill["metadata"]}
    named = {part["name"]: part for part in bill["components"]}
    assert named["onnxruntime"]["purl"] == "pkg:pypi/onnxruntime@1.32.0"
    assert named["numpy"]["licenses"]
    assert named["w.pth"]["hashes"][0]["content"] == "a" * 64


def test_the_verbs_never_load_torch(tmp_path: Path) -> None:
    private, public = keys(tmp_path, KINDS["p256"]())
    archive = packed(tmp_path)
    ask = (
        "import sys; from toolchain.cli import main as cli\ntry:\n cli.main()\n"
        "finally:\n print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )

    def said(verb: str, key: Path) -> list[str]:
        words = [sys.executable, "-c", ask, verb, str(archive), "--key", str(key)]
        return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False).stdout.splitlines()

    assert said("sign", private) == [f"signature: {tmp_path / 'bundle.tar.sig'}", "[]"]
    by = verify_bundle.check(archive, public, 0).key_fingerprint
    assert said("verify", public) == [f"OK: digits for cpu, release 3: 3 files intact, signed with {by}", "[]"]


def test_the_same_files_give_the_same_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = packed(tmp_path / "a"), packed(tmp_path / "b" / "c")
    (tmp_path / "b" / "c" / "bundle" / "model.onnx").chmod(0o600)
    archives.pack(tmp_path / "b" / "c" / "bundle", second)
    assert first.read_bytes() == second.read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    archives.pack(tmp_path / "a" / "bundle", first)
    with tarfile.open(first) as tar:
        assert {member.mtime for member in tar} == {1700000000}
    for wrong in ("yesterday", "-1", "1e9", str(8**11)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(ToolchainError, match="seconds since 1970"):
            archives.pack(tmp_path / "a" / "bundle", first)


def test_a_signature_stays_only_over_the_same_bytes(tmp_path: Path) -> None:
    from toolchain.deploy import bundle

    private, public = keys(tmp_path, KINDS["p256"]())
    archive = packed(tmp_path)
    verify_bundle.sign(archive, private)
    bundle._pack(tmp_path / "bundle", archive)
    verify_bundle.check(archive, public, 0)
    (tmp_path / "bundle" / "labels.txt").write_text("ant\nbee\n")
    archives.write_checksums(tmp_path / "bundle")
    bundle._pack(tmp_path / "bundle", archive)
    assert not signing.signature_path(archive).exists()
