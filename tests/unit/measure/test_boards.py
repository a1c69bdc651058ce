"""Boards: a real sshd on loopback plays one, and nothing may be left on it, however a measurement ends."""

import contextlib
import dataclasses
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner
from unit.gates.test_regression_gate import bundled

from toolchain.cli import main
from toolchain.config import read_config
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.edge import processor
from toolchain.edge.timing_process import TimingEffort
from toolchain.measure import boards, latency, machine, model_files, paired_timing, remote_process
from toolchain.measure.board_address import Address, parse_address

SSHD = shutil.which("sshd") or next((path for path in ("/usr/sbin/sshd",) if Path(path).exists()), None)
needs_sshd = pytest.mark.skipif(
    SSHD is None or not all(map(shutil.which, ("ssh", "ssh-keygen", "tar"))),
    reason="no sshd here (Debian: apt-get install openssh-server openssh-client)",
)


@dataclasses.dataclass(frozen=True)
class Loopback:
    device: str
    server: "subprocess.Popen[bytes]"
    temporary: Path  # where the board makes its folders

    def is_clean(self) -> bool:
        """Return whether nothing is left on the board: no folder, no process."""
        return not list_timing_processes() and not list(self.temporary.glob("toolchain.*"))


def list_timing_processes() -> list[psutil.Process]:
    """Return the timing processes that a board runs."""
    return [p for p in psutil.process_iter(["cmdline"]) if "--leash" in (p.info["cmdline"] or ())]


def wait_until(condition: object) -> bool:
    """Wait up to ten seconds for a condition, and return whether it became true."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    assert SSHD is not None
    home, temporary = tmp_path / "ssh", tmp_path / "board"
    for folder in (home, temporary):
        folder.mkdir(mode=0o700)
    with contextlib.suppress(OSError):
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs it when it is started by root
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    shutil.copyfile(home / "user.pub", home / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "server").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home / 'host'}\nAuthorizedKeysFile {home / 'authorized'}\n"
        f"PidFile none\nStrictModes no\nPasswordAuthentication no\nSetEnv TMPDIR={temporary}\n"
        f"Subsystem sftp internal-sftp\n"
    )
    kind, key = (home / "host.pub").read_text().split()[:2]
    (home / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (home / "client").write_text(
        f"IdentityFile {home / 'user'}\nUserKnownHostsFile {home / 'known'}\nIdentitiesOnly yes\n"
    )
    for tool in ("ssh", "scp"):  # so that the user's ~/.ssh is neither read nor changed
        real = shutil.which(tool)
        (home / tool).write_text(f'#!/bin/sh\nexec {real} -F {home / "client"} "$@"\n')
        (home / tool).chmod(0o700)
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(home / "server")], stderr=subprocess.DEVNULL)
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.05)
    yield Loopback(f"ssh:{getpass.getuser()}@127.0.0.1:{port}#{sys.executable}", server, temporary)
    server.terminate()
    server.wait()


@pytest.fixture
def board(loopback: Loopback) -> Iterator[boards.Board]:
    connected = boards.Board(loopback.device, parse_address(loopback.device))
    yield connected
    connected.close()


@pytest.fixture
def model(tmp_path: Path) -> paired_timing.TimedModel:
    return model_files.open_model(bundled(tmp_path / "bundle"), tmp_path).renamed("bundle").timed_model


def request(*models: paired_timing.TimedModel, effort: TimingEffort = TimingEffort()) -> dict[str, object]:  # noqa: B008  frozen
    return paired_timing._build_request(models, 1, effort)


# --- addresses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh:pi@board", Address("pi@board")),
        ("ssh:board:2222", Address("board", "2222")),
        ("ssh:pi@board:22#/opt/v/bin/python", Address("pi@board", "22", "/opt/v/bin/python")),
    ],
)
def test_an_address_is_parsed(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "board", "adb:board", "ssh:", "ssh:pi@", "ssh:board:x", "ssh:-oProxyCommand=x", "ssh:a@-x"]
)
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ToolchainError, match="is not a board's address. Give ssh:user@host"):
        parse_address(text)


def test_all_models_must_be_on_one_board(model: paired_timing.TimedModel) -> None:
    other = dataclasses.replace(model, name="other", device="ssh:board")
    with pytest.raises(ToolchainError, match="on one board"):
        paired_timing.time_rounds([model, other], 1, 0, lambda timed: None)


def test_an_export_times_its_variants_on_the_board() -> None:
    target = dataclasses.replace(read_config.read_target("cpu"), device="ssh:board")
    assert latency._make_timed_model("x", Path("model.onnx"), "f32", target, (1, 3, 8, 8)).device == "ssh:board"


# --- on a board ---------------------------------------------------------------------------------------------


@needs_sshd
def test_a_board_times_models_and_keeps_nothing(
    board: boards.Board, model: paired_timing.TimedModel, loopback: Loopback
) -> None:
    assert board.machine == processor.describe()
    blocks_by_name = board.ask("round", request(model, dataclasses.replace(model, name="again")))
    assert {name: (len(blocks), len(blocks[0])) for name, blocks in blocks_by_name.items()} == {
        "bundle": (25, 5),
        "again": (25, 5),
    }
    assert board.ask("footprint", {"side": dataclasses.asdict(model)})["load_ms"] > 0
    assert len(board._models_on_board) == 1  # a file is sent once
    assert not loopback.is_clean()
    board.close()
    assert wait_until(loopback.is_clean)


@needs_sshd
def test_a_model_that_does_not_load_on_the_board_is_reported(
    board: boards.Board, model: paired_timing.TimedModel, tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")  # an ONNX file without a graph
    with pytest.raises(ToolchainError, match=r"a timing process on ssh:.* failed: .*does not load"):
        board.ask("round", request(dataclasses.replace(model, path=str(tmp_path / "x.onnx"))))


@needs_sshd
@pytest.mark.parametrize("killed", ["connection", "server"])
def test_a_broken_connection_is_reported_and_the_board_left_clean(
    killed: str, board: boards.Board, model: paired_timing.TimedModel, loopback: Loopback
) -> None:
    endless = TimingEffort(seconds=600.0, fewest_blocks=10**6)  # until it is killed

    def cut() -> None:
        assert wait_until(
            lambda: any(sum(p.cpu_times()[:2]) > 1.5 for p in list_timing_processes())
        )  # the round has begun, so the request was read
        server = psutil.Process(loopback.server.pid)
        for process in server.children(recursive=True):
            if "sshd" in process.name():
                process.send_signal(signal.SIGKILL)
        if killed == "server":
            loopback.server.kill()

    thread = threading.Thread(target=cut)
    thread.start()
    with pytest.raises(ToolchainError, match="the connection to ssh:.* broke while it was timing"):
        board.ask("round", request(model, effort=endless))
    thread.join()
    assert wait_until(loopback.is_clean)


def test_a_process_that_does_not_stop_is_killed() -> None:
    with tempfile.TemporaryFile("w+") as errors:
        child = remote_process.start([sys.executable, "-c", "import time; time.sleep(60)"], errors)
        remote_process.stop(child, 0.2)
    assert child.returncode == -signal.SIGKILL


@needs_sshd
def test_a_board_without_python_or_ssh_is_reported_before_anything_is_timed(loopback: Loopback) -> None:
    for python, message in (
        ("/nowhere/python", "cannot time models"),
        ("/bin/false", "It needs Python 3.11, numpy and"),
    ):
        device = f"{loopback.device.partition('#')[0]}#{python}"
        with pytest.raises(ToolchainError, match=message):
            boards.Board(device, parse_address(device))
        assert wait_until(loopback.is_clean)
    loopback.server.kill()
    with pytest.raises(ToolchainError, match="must work without a prompt"):
        boards.Board(loopback.device, parse_address(loopback.device))


@needs_sshd
def test_bench_and_gate_run_on_a_board(loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        bundle = str(bundled(tmp_path / "out/digits/cpu/bundle"))
        result = CliRunner().invoke(main.app, ["bench", bundle, "--rounds", "3", "--device", loopback.device])
        assert result.exit_code == 0, result.exception
        report = files.read_json(tmp_path / "out/bench/bench.json")
        assert (report["device"], report["machine"]) == (loopback.device, processor.describe())
        target = machine.integer_isa()
        if target == "x86-64-vnni":
            arguments = ["gate", "--reference", bundle, "--device", loopback.device, "--waive", "accuracy"]
            monkeypatch.setattr("toolchain.gates.gate_inputs.find_images", lambda *_: "no test images")
            result = CliRunner().invoke(main.app, arguments)
            assert result.exit_code in {0, 3}, result.exception
            assert files.read_json(tmp_path / "out/gate/cpu/gate.json")["device"] == loopback.device
    finally:
        boards.connect(loopback.device).close()
        boards.connect.cache_clear()
    assert wait_until(loopback.is_clean)
