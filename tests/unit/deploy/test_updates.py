"""Packages for update systems: their own tools take them and refuse them with one byte changed; boards switch last."""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import alone
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner
from unit.deploy.test_bundle_and_signing import keys, manifest

from toolchain.cli import main
from toolchain.core import files as records
from toolchain.core.errors import ToolchainError
from toolchain.deploy import update_package
from toolchain.edge import archive

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
    archive.write_checksums(made)
    return archive.pack(made, folder / f"{made.name}.tar")


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
    ended = CliRunner().invoke(main.app, [*given, *words])
    if isinstance(ended.exception, ToolchainError):
        raise ended.exception
    assert ended.exit_code == 0, ended.output
    return ended.output


def signed(bundle: Path, system: str, signer: dict[str, Path], out: Path | None = None) -> Path:
    certificate = [] if system == "mender" else ["--certificate", str(signer["certificate"])]
    package(bundle, system, "--key", str(signer["key"]), *certificate, out=out)
    return next(((out or bundle.parent) / "package" / system).glob(f"*{SYSTEMS[system]}"))


def accepts(system: str, path: Path, signer: dict[str, Path]) -> bool:
    """What the system's own tool says."""
    # a session and a folder of its own: SWUpdate forks, what it forks may outlive it and hold a pipe, and its sockets
    # cannot be had where a path is longer than 107 characters
    with (
        alone(system),
        tempfile.TemporaryDirectory(prefix="updates", dir="/tmp", ignore_cleanup_errors=True) as scratch,
        (said := path.parent / "said.txt").open("w") as out,
    ):
        words = {
            "swupdate": ["swupdate", "-c", "-i", path, "-k", signer["certificate"], "-H", "board:1.0"],
            "mender": ["mender-artifact", "validate", "-k", signer["public"], path],
            "rauc": ["rauc", f"--keyring={signer['certificate']}", "extract", path, f"{scratch}/extracted"],
        }[system]
        ended = subprocess.Popen(
            list(map(str, words)), stdout=out, stderr=out, cwd=path.parent, start_new_session=True,
            env={**os.environ, "TMPDIR": scratch},
        )  # fmt: skip
        try:
            ended.wait(60)
            for _ in range(50 if system == "swupdate" else 0):  # another of its processes prints, and may come later
                if verdict := re.search("SWUPDATE (successful|failed)", said.read_text()):
                    break
                time.sleep(0.1)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ended.pid, signal.SIGKILL)
            ended.wait()
    if system == "swupdate":  # its threads race when they end, so that its exit status is 1 now and then
        assert verdict, said.read_text()
        return verdict[1] == "successful"
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
    # cpio's own numbers (times, the last entry) are vouched for by nobody, what is in the files is
    if system == "swupdate":
        starts = [body.index(part) for part in (b"software =", bundle.read_bytes()[:512], b"#!/bin/sh")]
        spans = [
            range(starts[0], starts[0] + 300),
            range(starts[1], starts[2] - 128),
            range(starts[2], body.index(b"TRAILER!!!") - 128),
        ]
        used = [at for at in used if any(at in span for span in spans)]
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


NEEDED = "sh tar sha256sum cut rm mv ln mkdir basename readlink sed df tail sync printf expr cp flock"
COUNTING = """#!/bin/sh
echo >> "{counter}"
[ "$(wc -l < "{counter}")" -ne {fatal} ] || kill -9 $PPID
exec {tool} "$@"
"""


@dataclasses.dataclass(frozen=True)
class Board:
    """A folder with what a board without a runner has: POSIX shell, tar, sha256sum and their kind."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def kept(self) -> Path:
        return self.store / "digits"

    @property
    def release(self) -> int | None:
        """What runs, if it is whole."""
        if not (self.kept / "current").exists():
            return None
        archive.read_verified_manifest(self.kept / "current")
        found: int = records.read_json(self.kept / "current" / "manifest.json")["release"]
        return found

    def run(
        self, bundle: Path, word: str = "", limit: str = "unlimited", fatal: int = 0, tar: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs the package's install.sh; `fatal` kills it when it starts so many tools."""
        text = update_package.prepare(bundle, "swupdate", "board", str(self.store), "").fill_template("install.sh")
        (script := self.folder / "install.sh").write_bytes(text)
        (tools := self.folder / "tools").mkdir(exist_ok=True)
        (counter := self.folder / "counter").write_text("")
        for name in NEEDED.split():
            real = tar if tar and name == "tar" else shutil.which(name) or "/bin/false"
            (tools / name).write_text(
                COUNTING.format(counter=counter, fatal=fatal, tool=real).replace("wc", shutil.which("wc") or "")
            )
            (tools / name).chmod(0o755)
        command = f'ulimit -f {limit}; exec /bin/sh "{script}" {word or bundle}'
        return subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, text=True, check=False, env={"PATH": str(tools)}
        )

    @property
    def steps(self) -> int:
        return len((self.folder / "counter").read_text().splitlines())


@pytest.fixture
def board(tmp_path: Path) -> Board:
    (tmp_path / "board").mkdir()
    return Board(tmp_path / "board")


def test_a_board_switches_last_keeps_one_to_go_back_to_and_never_goes_to_an_older_release(
    board: Board, tmp_path: Path
) -> None:
    releases = {number: bundled(tmp_path, release=number) for number in (9, 10, 11)}
    for number, bundle in releases.items():
        ended = board.run(bundle)
        assert ended.returncode == 0, ended.stderr
        assert board.release == number
    assert len([p for p in board.kept.iterdir() if p.is_dir() and not p.is_symlink()]) == 2  # this and the one before
    ended = board.run(releases[9])
    assert (ended.returncode, board.release) == (1, 11)
    assert "release 9 is older than release 11" in ended.stderr
    assert board.run(releases[11]).stdout.endswith("is already running\n")
    for _ in range(2):  # the second time it does not run any more
        assert board.run(releases[11], "--rollback").returncode == 0
        assert board.release == 10
    assert board.run(releases[11]).returncode == 0
    script = board.kept / "install.sh"  # for those whose update system leaves none
    subprocess.run(["/bin/sh", script, "--rollback"], check=True, env={"PATH": str(board.folder / "tools")})
    assert board.release == 10


def test_what_was_never_switched_to_is_not_taken_back(board: Board, tmp_path: Path) -> None:
    """Mender asks for a rollback after every failure, also where the installation itself failed."""
    first, second, third = (bundled(tmp_path, release=number) for number in (1, 2, 3))
    assert board.run(third, "--rollback").returncode == 0
    assert board.run(third, limit="20").returncode == 1
    assert board.run(third, "--rollback").returncode == 0
    assert board.release is None
    board.run(first)
    board.run(second)
    assert board.run(third, limit="20").returncode == 1
    assert board.run(third, "--rollback").returncode == 0
    assert board.release == 2


def test_a_bundle_that_was_damaged_where_it_lies_is_repaired_by_flashing_it_again(board: Board, tmp_path: Path) -> None:
    first, second = (bundled(tmp_path, release=number) for number in (1, 2))
    for bundle in (first, second):
        board.run(bundle)
    for name in ("model.onnx", "manifest.json", "SHA256SUMS"):
        (board.kept / "current" / name).write_bytes(b"damaged")
        ended = board.run(second)
        assert (ended.returncode, board.release) == (0, 2), ended.stderr
        assert board.run(second, "--rollback").returncode == 0
        assert board.release == 1
        board.run(second)


def test_a_disk_that_loses_bytes_is_noticed_before_anything_is_switched(board: Board, tmp_path: Path) -> None:
    first, second = (bundled(tmp_path, release=number) for number in (1, 2))
    board.run(first)
    (own := tmp_path / "tar").write_text(f'#!/bin/sh\n{shutil.which("tar")} "$@"\n: > "$4/bundle/model.onnx"\n')
    own.chmod(0o755)
    ended = board.run(second, tar=str(own))
    assert (ended.returncode, board.release) == (1, 1)
    assert "a file of the bundle is damaged" in ended.stderr


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock here")
def test_two_runs_at_once_do_not_mix(board: Board, tmp_path: Path) -> None:
    first, second = (bundled(tmp_path, release=number) for number in (1, 2))
    board.run(first)
    with (board.kept / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = board.run(second)
    assert (ended.returncode, board.release) == (1, 1)
    assert "another installation is running" in ended.stderr
    assert board.run(second).returncode == 0


def test_the_kept_script_is_that_of_what_runs_also_after_a_cut(board: Board, tmp_path: Path) -> None:
    first, second = (bundled(tmp_path, release=number) for number in (1, 2))
    board.run(first)
    board.run(second)
    (board.kept / "install.sh").write_text("")  # as if cut
    assert board.run(second).stdout.endswith("is already running\n")
    assert "release='2'" in (board.kept / "install.sh").read_text()


def test_a_folder_in_the_place_of_the_link_is_named(board: Board, tmp_path: Path) -> None:
    (board.kept / "current").mkdir(parents=True)
    ended = board.run(bundled(tmp_path))
    assert ended.returncode == 1
    assert "is not a link" in ended.stderr
    assert sorted(path.name for path in board.kept.iterdir()) == [".lock", "current"]


def test_a_damaged_one_is_not_gone_back_to(board: Board, tmp_path: Path) -> None:
    first, second = (bundled(tmp_path, release=number) for number in (1, 2))
    for bundle in (first, second):
        board.run(bundle)
    (board.kept / "previous" / "model.onnx").write_bytes(b"")
    ended = board.run(second, "--rollback")
    assert (ended.returncode, board.release) == (1, 2)
    assert "the previous bundle" in ended.stderr and "is damaged" in ended.stderr


def test_nothing_else_in_the_folder_is_touched(board: Board, tmp_path: Path) -> None:
    (board.kept / "counts").mkdir(parents=True)
    (board.kept / "counts/board.json").write_text("{}")
    (board.kept / ".0123456789abcdef.tmp").mkdir()  # of a run that was cut
    for number in (1, 2, 3):
        board.run(bundled(tmp_path, release=number))
    assert (board.kept / "counts/board.json").read_text() == "{}"
    assert [path.name for path in board.kept.glob(".*")] == [".lock"]


@pytest.mark.parametrize("word", ["", "--rollback"])
def test_power_may_be_lost_at_any_step(word: str, board: Board, tmp_path: Path) -> None:
    first, second, third = (bundled(tmp_path, release=number) for number in (1, 2, 3))

    def fresh() -> None:
        shutil.rmtree(board.store, ignore_errors=True)
        for bundle in (first, second, third)[: 3 if word else 2]:
            assert board.run(bundle).returncode == 0

    fresh()
    assert board.run(third, word).returncode == 0
    wanted, steps = board.release, board.steps
    assert steps > 5
    for step in range(1, steps + 1):
        fresh()
        board.run(third, word, fatal=step)
        assert board.release in {2, 3}
        ended = board.run(third, word)
        assert (ended.returncode, board.release) == (0, wanted), (step, ended.stderr)
        if not word:
            assert board.run(third, "--rollback").returncode == 0
            assert board.release == 2


@pytest.mark.parametrize("how", ["altered", "no room", "self-test"])
def test_what_runs_is_untouched_where_the_new_one_cannot_be_installed(how: str, board: Board, tmp_path: Path) -> None:
    first, second = (bundled(tmp_path, release=number) for number in (1, 2))
    assert board.run(first).returncode == 0
    before = {p: p.read_bytes() for p in board.kept.rglob("*") if p.is_file()}
    (board.kept / "incoming.tar").write_bytes(b"where SWUpdate lays it")
    if how == "altered":
        ended = board.run(second, str(first))
    elif how == "no room":
        ended = board.run(second, limit="20")  # blocks of 512 bytes
    else:
        (board.folder / "tools").mkdir(exist_ok=True)
        (runner := board.folder / "tools/edge-runner").write_text("#!/bin/sh\nexit 1\n")
        runner.chmod(0o755)
        ended = board.run(second)
    said = {
        "altered": "is not the one that was packed",
        "no room": "is the disk full?",
        "self-test": "the self-test failed",
    }
    assert ended.returncode == 1
    assert said[how] in ended.stderr
    assert "the running bundle is unchanged" in ended.stderr
    assert {p: p.read_bytes() for p in board.kept.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device-type", "a board; rm -rf"], "is not allowed in a package"),
        (["--folder", "relative/path"], "is not allowed in a package"),
        (["--templates", "rauk-artifact"], "did you mean 'rauc-artifact'"),
        (
            ["--templates", "rauc-artifact"],
            "holds no template of mender; it needs at least one of edge-model, install.sh",
        ),
        (["--key", "k.pem", "--certificate", "c.pem"], "Mender checks keys, not certificates"),
        (["--certificate", "c.pem"], "--certificate needs --key"),
        (["--key", "missing.pem"], "missing.pem"),
    ],
)
def test_what_is_asked_wrongly_is_said(words: list[str], message: str, bundle: Path) -> None:
    with pytest.raises(ToolchainError, match=message):
        package(bundle, "mender", *words)
    assert not list(bundle.parent.rglob("*.mender"))


def test_a_boards_type_is_a_name_in_the_systems_own_language(bundle: Path) -> None:
    package(bundle, "mender", "--device-type", "qemux86-64, rev. 2")
    with pytest.raises(ToolchainError, match="SWUpdate accepts a letter, followed"):
        package(bundle, "swupdate", "--device-type", "qemux86-64, rev. 2")


@pytest.mark.skipif(shutil.which("rauc") is None or shutil.which("mksquashfs") is None, reason="rauc is not installed")
def test_rauc_takes_an_encrypted_key_and_keeps_the_last_package_where_it_fails(
    bundle: Path, signer: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = serialization.load_pem_private_key(signer["key"].read_bytes(), None)
    hidden, _ = keys(tmp_path / "hidden", secret, "a word")
    words = ["--key", str(hidden), "--certificate", str(signer["certificate"])]
    monkeypatch.setenv("TOOLCHAIN_KEY_PASSWORD", "a word")
    package(bundle, "rauc", *words)
    made = next((tmp_path / "package/rauc").glob("*.raucb"))
    before = made.read_bytes()
    monkeypatch.setenv("TOOLCHAIN_KEY_PASSWORD", "another")
    with pytest.raises(ToolchainError, match="rauc refuses"):
        package(bundle, "rauc", *words)
    assert made.read_bytes() == before
    with pytest.raises(ToolchainError, match="RAUC checks certificates"):
        package(bundle, "rauc", "--key", str(hidden))


def test_a_file_where_the_folder_should_be_is_named(bundle: Path) -> None:
    (bundle.parent / "file").write_text("")
    command = ["package", str(bundle), "--for", "mender", "--device-type", "b", "--out", str(bundle.parent / "file")]
    ended = subprocess.run([sys.executable, "-m", "toolchain", *command], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: cannot write")
    assert "Not a directory; choose another folder" in ended.stderr


def test_names_that_a_shell_would_read_otherwise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="recipe name"):
        package(bundled(tmp_path, recipe="$(reboot)"), "rauc")


def test_keys_of_a_kind_that_the_system_cannot_check_are_refused(
    bundle: Path, signer: dict[str, Path], tmp_path: Path
) -> None:
    for number, (made, system) in enumerate(
        [(ed25519.Ed25519PrivateKey.generate(), "mender"), (ec.generate_private_key(ec.SECP384R1()), "mender"),
         (ec.generate_private_key(ec.SECP256R1()), "swupdate")]
    ):  # fmt: skip
        with pytest.raises(ToolchainError, match="the update system cannot check signatures of"):
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
