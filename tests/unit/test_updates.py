"""Packages for update systems: their own tools take them and refuse them with one byte changed; boards switch last."""

import datetime
import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from test_ship import keys, manifest
from typer.testing import CliRunner

from toolchain import archives, cargo, cli, records
from toolchain.errors import ToolchainError

SYSTEMS = {"swupdate": ".swu", "mender": ".mender", "rauc": ".raucb"}
TOOLS = {"swupdate": "swupdate", "mender": "mender-artifact", "rauc": "rauc"}
FLIPS = 25


def bundled(folder: Path, **changed: object) -> Path:
    """An archive that is whole, of a model that nobody opens."""
    made = folder / f"made{len(list(folder.iterdir()))}"
    made.mkdir()
    (made / "model.onnx").write_bytes(b"model")
    (made / "golden.npz").write_bytes(random.Random(1).randbytes(30_000))
    records.write_json(made / "manifest.json", manifest(**changed))
    archives.seal(made)
    return archives.pack(made, folder / f"{made.name}.tar")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundled(tmp_path)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, key = tmp_path_factory.mktemp("keys"), rsa.generate_private_key(65537, 3072)
    private, public = keys(folder, key)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "certificate.pem").write_bytes(made.public_bytes(Encoding.PEM))
    return {"key": private, "public": public, "certificate": folder / "certificate.pem"}


def package(bundle: Path, system: str, *words: str, out: Path | None = None) -> str:
    given = ["package", str(bundle), "--for", system, "--device-type", "board", "--out", str(out or bundle.parent)]
    ended = CliRunner().invoke(cli.app, [*given, *words])
    if isinstance(ended.exception, ToolchainError):
        raise ended.exception
    assert ended.exit_code == 0, ended.output
    return ended.output


def signed(bundle: Path, system: str, signer: dict[str, Path], out: Path | None = None) -> Path:
    words = ["--key", str(signer["key"])]
    package(bundle, system, *words, "--certificate", str(signer["certificate"]), out=out)
    return next(((out or bundle.parent) / "package" / system).glob(f"*{SYSTEMS[system]}"))


def accepts(system: str, path: Path, signer: dict[str, Path]) -> bool:
    """What the system's own tool says."""
    certificate, scratch = signer["certificate"], path.parent / "extracted"
    shutil.rmtree(scratch, ignore_errors=True)
    words = {
        "swupdate": ["swupdate", "-c", "-i", path, "-k", certificate, "-H", "board:1.0"],
        "mender": ["mender-artifact", "validate", "-k", signer["public"], path],
        "rauc": ["rauc", f"--keyring={certificate}", "extract", path, scratch],
    }[system]
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, cwd=path.parent)
    if system == "swupdate":  # its threads race when they end, so that its exit status is 1 now and then
        return "SWUPDATE successful" in ended.stdout
    return ended.returncode == 0


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_systems_own_tool_takes_the_package_and_refuses_it_with_one_bit_changed(
    system: str, bundle: Path, signer: dict[str, Path], tmp_path: Path
) -> None:
    if shutil.which(TOOLS[system]) is None or (system == "rauc" and shutil.which("mksquashfs") is None):
        pytest.skip(f"{TOOLS[system]} is not installed")
    path = signed(bundle, system, signer)
    assert accepts(system, path, signer)
    body, moments, changed = path.read_bytes(), random.Random(3), tmp_path / f"changed{path.suffix}"
    squashed = range(int.from_bytes(body[40:48], "little"))
    used = list(squashed) if system == "rauc" else [at for at, byte in enumerate(body) if byte]  # zeros fill blocks
    for at in moments.sample(used, FLIPS):
        changed.write_bytes(body[:at] + bytes([body[at] ^ 1 << moments.randrange(8)]) + body[at + 1 :])
        assert not accepts(system, changed, signer), at


@pytest.mark.skipif(shutil.which("mender-artifact") is None, reason="mender-artifact is not installed")
def test_mender_takes_a_curve_too(bundle: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path / "p256", ec.generate_private_key(ec.SECP256R1()))
    package(bundle, "mender", "--key", str(private))
    path = next((tmp_path / "package/mender").glob("*.mender"))
    assert accepts("mender", path, {"public": public, "certificate": public})
    other = keys(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))[1]
    assert not accepts("mender", path, {"public": other, "certificate": other})


def test_the_same_bundle_gives_the_same_package(bundle: Path, signer: dict[str, Path], tmp_path: Path) -> None:
    made = [
        [path.read_bytes() for path in (tmp_path / name).rglob("*") if path.suffix in {".swu", ".mender"}]
        for name in ("one", "two")
        for _ in [package(bundle, "swupdate", out=tmp_path / name), package(bundle, "mender", out=tmp_path / name)][:1]
    ]
    assert made[0] == made[1]
    assert len(made[0]) == 2


def test_swupdates_description_comes_first_and_vouches_for_every_image(bundle: Path, signer: dict[str, Path]) -> None:
    body = signed(bundle, "swupdate", signer).read_bytes()
    names, at, files = [], 0, {}
    while not names or names[-1] != "TRAILER!!!":  # cpio, as its man page describes it
        fields = [int(body[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, length, checksum = fields[6], fields[11], fields[12]
        names.append(body[at + 110 : at + 110 + length - 1].decode())
        start = at + 110 + length + -(110 + length) % 4
        files[names[-1]] = body[start : start + size]
        assert sum(files[names[-1]]) & 0xFFFFFFFF == checksum
        at = start + size + -size % 4
    assert names == ["sw-description", "sw-description.sig", "bundle.tar", "install.sh", "TRAILER!!!"]
    for name in ("bundle.tar", "install.sh"):
        assert hashlib.sha256(files[name]).hexdigest() in files["sw-description"].decode()


def installed(bundle: Path, store: Path, limit: str = "unlimited", **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a package's install.sh as a board without a runner would: POSIX shell, tar and sha256sum."""
    text = cargo.load(bundle, "swupdate", "board", str(store), "").text("install.sh")
    (script := bundle.parent / "install.sh").write_bytes(text)
    (tools := bundle.parent / "tools").mkdir(exist_ok=True)
    needed = "sh tar sha256sum cut rm mv ln mkdir basename readlink sed df tail sync printf"
    for name in needed.split():
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(shutil.which(name) or "/bin/false")
    return subprocess.run(
        ["/bin/sh", "-c", f'ulimit -f {limit}; /bin/sh "{script}" "{bundle}"'],
        capture_output=True, text=True, check=False, env={"PATH": str(tools), **env},
    )  # fmt: skip


def test_a_board_switches_last_keeps_one_to_go_back_to_and_never_goes_to_an_older_release(tmp_path: Path) -> None:
    store, current = tmp_path / "store", tmp_path / "store/digits/current"
    releases = {number: bundled(tmp_path, release=number) for number in (3, 4, 5)}
    for number in releases:
        ended = installed(releases[number], store)
        assert ended.returncode == 0, ended.stderr
        assert records.read_json(current / "manifest.json")["release"] == number
    assert len([p for p in (store / "digits").iterdir() if not p.is_symlink()]) == 2  # this one and the one before
    ended = installed(releases[3], store)
    assert ended.returncode == 1
    assert "release 3 is older than release 5" in ended.stderr
    assert installed(releases[5], store).returncode == 0  # once more: nothing changes
    back = ["/bin/sh", str(tmp_path / "install.sh"), "--rollback"]
    subprocess.run(back, check=True, env={"PATH": str(tmp_path / "tools")})
    assert records.read_json(current / "manifest.json")["release"] == 4
    assert subprocess.run(back, check=False, env={"PATH": str(tmp_path / "tools")}).returncode == 1
    assert records.read_json(current / "manifest.json")["release"] == 4


@pytest.mark.parametrize("how", ["altered", "no room", "self-test"])
def test_what_runs_is_untouched_where_the_new_one_cannot_be_installed(how: str, tmp_path: Path) -> None:
    store, first, second = tmp_path / "store", bundled(tmp_path), bundled(tmp_path, release=4)
    assert installed(first, store).returncode == 0
    before = {p: p.read_bytes() for p in (store / "digits").rglob("*") if p.is_file()}
    if how == "altered":
        installed(second, store)  # writes the script
        shutil.rmtree(store)
        assert installed(first, store).returncode == 0
        second.write_bytes(second.read_bytes().replace(b"modelmodel"[:5], b"MODEL", 1))
        script = (tmp_path / "install.sh").read_bytes()
        script = script.replace(hashlib.sha256(first.read_bytes()).hexdigest().encode(), b"0" * 64)
        (tmp_path / "install.sh").write_bytes(script)
        ended = subprocess.run(
            ["/bin/sh", tmp_path / "install.sh", second],
            capture_output=True, text=True, check=False, env={"PATH": str(tmp_path / "tools")},
        )  # fmt: skip
    elif how == "no room":
        ended = installed(second, store, limit="20")  # blocks of 512 bytes
    else:
        (runner := tmp_path / "tools/edge-runner").write_text("#!/bin/sh\nexit 1\n")
        runner.chmod(0o755)
        ended = installed(second, store)
    assert ended.returncode == 1
    assert {"altered": "not the one that was packed", "no room": "is there room?", "self-test": "the self-test failed"}[how] in ended.stderr  # fmt: skip
    assert "the model that runs is untouched" in ended.stderr
    assert {p: p.read_bytes() for p in (store / "digits").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device-type", "a board; rm -rf"], "cannot stand in a package"),
        (["--folder", "relative/path"], "cannot stand in a package"),
        (["--templates", "rauk-artifact"], "did you mean 'rauc-artifact'"),
        (["--certificate", "c.pem"], "--certificate without --key"),
        (["--key", "missing.pem"], "missing.pem"),
    ],
)
def test_what_is_asked_wrongly_is_said(words: list[str], message: str, bundle: Path) -> None:
    with pytest.raises(ToolchainError, match=message):
        package(bundle, "mender", *words)
    assert not list(bundle.parent.rglob("*.mender"))


def test_names_that_a_shell_would_read_otherwise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="the recipe's name"):
        package(bundled(tmp_path, recipe="$(reboot)"), "rauc")


def test_keys_of_a_kind_that_the_system_cannot_check_are_refused(
    bundle: Path, signer: dict[str, Path], tmp_path: Path
) -> None:
    for number, (made, system) in enumerate(
        [(ed25519.Ed25519PrivateKey.generate(), "mender"), (ec.generate_private_key(ec.SECP384R1()), "mender"),
         (ec.generate_private_key(ec.SECP256R1()), "swupdate")]
    ):  # fmt: skip
        with pytest.raises(ToolchainError, match="of a kind that the update system cannot check"):
            package(bundle, system, "--key", str(keys(tmp_path / str(number), made)[0]))
    other = keys(tmp_path / "other", rsa.generate_private_key(65537, 3072))[0]
    with pytest.raises(ToolchainError, match="is not the certificate of"):
        package(bundle, "swupdate", "--key", str(other), "--certificate", str(signer["certificate"]))


def test_a_damaged_archive_is_refused(bundle: Path) -> None:
    bundle.write_bytes(bundle.read_bytes().replace(b"model", b"MODEL", 1))
    with pytest.raises(ToolchainError):
        package(bundle, "swupdate")


def test_a_teams_own_template_comes_first_and_a_word_that_is_not_known_is_named(bundle: Path, tmp_path: Path) -> None:
    (own := tmp_path / "own").mkdir()
    (own / "manifest.raucm").write_text("[update]\ncompatible=@device@\nversion=@release@-mine\n")
    package(bundle, "rauc", "--templates", str(own))
    folder = next((tmp_path / "package/rauc").glob("*.rauc"))
    assert "version=3-mine" in (folder / "manifest.raucm").read_text()
    assert not (folder / "install.sh").exists()  # this manifest names none
    (own / "manifest.raucm").write_text("[update]\ncompatible=@devise@\n")
    with pytest.raises(ToolchainError, match="did you mean 'device'"):
        package(bundle, "rauc", "--templates", str(own))


def test_without_rauc_the_folder_is_handed_on_with_the_command(
    bundle: Path, signer: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real: Callable[..., str | None] = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *more: None if name == "rauc" else real(name, *more))
    text = package(bundle, "rauc", "--key", str(signer["key"]), "--certificate", str(signer["certificate"]))
    assert "input of `rauc bundle`" in text
    assert os.access(next((bundle.parent / "package/rauc").glob("*.rauc")) / "install.sh", os.X_OK)
