"""Time models on boards over ssh, with the same processes that time models on this machine; nothing is left on the board.

The system's own `ssh` is used, so the user's keys, agents and host aliases work. The board needs only Python, numpy and the
runtime. All commands share one connection. A keeper process at its other end owns the folder that everything is put in, and
removes it when the connection ends or is silent for a minute; every timing process on the board ends in the same way.
"""

import atexit
import contextlib
import functools
import hashlib
import io
import json
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolchain.core import registry
from toolchain.core.errors import ToolchainError, last_line
from toolchain.edge import timing_process
from toolchain.measure import external_weights, remote_process
from toolchain.measure.board_address import Address, parse_address

MIN_PYTHON = (3, 11)  # on the board
CONNECT_SECONDS = 15
ANSWER_SECONDS = 600
MAX_MODELS_ON_BOARD = 8  # models that are on the board at once: its disk may be memory
SSH_OPTIONS = (
    "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR",
)  # fmt: skip
SSH_FAILED = 255  # exit status of ssh itself; any other is the command's
KEEPER_PROGRAM = f"""
import json, os, select, shutil, sys, tempfile
folder = tempfile.mkdtemp(prefix="toolchain.")
print(json.dumps([folder, list(sys.version_info[:2])]), flush=True)
try:
    import numpy
    print("ready", flush=True)
    while select.select([0], [], [], {timing_process.WATCHDOG_SECONDS})[0] and os.read(0, 4096):
        pass
finally:
    shutil.rmtree(folder, ignore_errors=True)
"""


class BoardUnreachable(ToolchainError):
    """The connection to a board broke after it was made."""


def pack_timing_process(folder: Path, runtimes: Sequence[str]) -> None:
    """Copy the few files of this package that time models into `folder`, as a package of their own."""
    for name in timing_process.list_required_files(runtimes):
        copy = folder / "toolchain" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(registry.PACKAGE_FOLDER / name, copy)


@functools.cache
def connect(device: str) -> "Board":
    """Return the connection to a board; it is made once and lasts until this process ends.

    Raises:
        ToolchainError: the board cannot be reached, or lacks Python or numpy.
    """
    board = Board(device, parse_address(device))
    atexit.register(board.close)
    return board


class Board:
    """The connection to a board, and the folder on it."""

    def __init__(self, device: str, address: Address) -> None:
        """Connect to a board.

        Args:
            device: its name in messages, as the user gave it.
            address: parsed from `device`.

        Raises:
            ToolchainError: as for `connect`.
        """
        self.device, self._address = device, address
        self._scratch = tempfile.TemporaryDirectory(prefix="board-")
        self._models_on_board: dict[str, str] = {}  # path on the board by hash of the model's files, last used last
        self._exit = contextlib.ExitStack()
        try:
            self._connect()
            self.machine: Mapping[str, str | int] = self.ask("machine", {})
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        """Start the keeper, over the connection that all later commands share, and send the timing process."""
        errors = self._exit.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115  it is one
        program = f"exec {shlex.quote(self._address.python)} -c {shlex.quote(KEEPER_PROGRAM)}"
        self._keeper = remote_process.start(self._build_command(program, first=True), errors)
        self._exit.callback(remote_process.stop, self._keeper, CONNECT_SECONDS)
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        if not line:
            self._keeper.wait()
            output = last_line(remote_process.read_text(errors), "no answer")
            raise self._explain_failure(output, self._keeper.returncode)
        self.folder, version = json.loads(line)
        if tuple(version) < MIN_PYTHON:
            raise ToolchainError(
                f"{self.device} has Python {version[0]}.{version[1]}, which is too old. It needs {MIN_PYTHON[0]}.{MIN_PYTHON[1]} "
                "or later; name another one as in ssh:user@host#/opt/venv/bin/python"
            )
        if not self._keeper.stdout.readline():
            self._keeper.wait()
            raise self._explain_failure(last_line(remote_process.read_text(errors), "no answer"), 1)
        self._exit.enter_context(remote_process.send_heartbeats(self._keeper))
        with tempfile.TemporaryDirectory() as packed:
            pack_timing_process(Path(packed), registry.list_modules("runtimes"))
            self._send([Path(packed) / "toolchain"], self.folder)

    def _explain_failure(self, output: str, status: int) -> ToolchainError:
        """Return the error of a keeper that did not start.

        Args:
            output: last line of its standard error.
            status: its exit status.
        """
        if status == SSH_FAILED:
            return ToolchainError(
                f"cannot reach {self.device}: {output}. `ssh {self._address.host}` must work without a prompt: set up a key, and "
                "accept the host key once"
            )
        return ToolchainError(
            f"{self.device} cannot time models: {output}. It needs Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]}, numpy and the target's "
            "runtime; where they are in a virtual environment, name its Python as in ssh:user@host#/opt/venv/bin/python"
        )

    def ask(self, job: str, request: Mapping[str, Any]) -> Any:
        """Run a job of the timing process on the board, and return its result.

        Args:
            job: "round", "footprint", "versions", "available" or "machine".
            request: of that job; the model files that it names are sent to the board.

        Raises:
            BoardUnreachable: the connection broke.
            ToolchainError: the process failed, or gave no result in time.
        """
        sent_request = dict(request)
        if "sides" in sent_request:
            sent_request["sides"] = self._send_models(sent_request["sides"])
        if "side" in sent_request:
            sent_request["side"] = self._send_models([sent_request["side"]])[0]
        python = shlex.quote(self._address.python)
        command = f"cd {shlex.quote(self.folder)} && PYTHONPATH=. exec {python} -m toolchain.edge.timing_process {job} --leash"
        with tempfile.TemporaryFile("w+") as errors:
            child = remote_process.start(self._build_command(command), errors)
            timeout = threading.Timer(ANSWER_SECONDS, child.kill)
            timeout.start()
            try:
                assert child.stdin is not None
                assert child.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write(json.dumps(sent_request) + "\n")
                    child.stdin.flush()
                with remote_process.send_heartbeats(child):
                    # its input stays open meanwhile: the timing process ends when it closes
                    lines = [line for line in child.stdout if line.strip()]
                status = child.wait()
            finally:
                in_time = timeout.is_alive()
                timeout.cancel()
                remote_process.stop(child, CONNECT_SECONDS)
            output = last_line(remote_process.read_text(errors), f"exit status {status}")
        if not in_time:
            raise self._report_timeout()
        if self._is_disconnected(status):
            raise BoardUnreachable(
                f"the connection to {self.device} broke while it was timing: {output}. Its processes end by themselves; run the "
                "same command again once the board can be reached"
            )
        if status != 0 or not lines:
            raise ToolchainError(f"a timing process on {self.device} failed: {output}")
        return json.loads(lines[-1])

    def _is_disconnected(self, status: int) -> bool:
        """Return whether the connection is broken; `status` is the exit status of a command that went over it."""
        return status == SSH_FAILED or self._keeper.poll() is not None

    def _report_timeout(self) -> ToolchainError:
        return ToolchainError(f"{self.device} gave no result in {ANSWER_SECONDS} s; is it busy with other work?")

    def _send_models(self, models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Send the files of models that the board lacks, and remove those that were not used for longest.

        Args:
            models: `TimedModel`s as plain data.

        Returns:
            The models with their paths on the board.
        """
        keys = [self._send_model(Path(model["path"])) for model in models]
        for key in keys:
            self._models_on_board[key] = self._models_on_board.pop(key)
        for key in list(self._models_on_board)[: -max(MAX_MODELS_ON_BOARD, len(set(keys)))]:
            del self._models_on_board[key]
            self._run(f"rm -rf {shlex.quote(f'{self.folder}/{key}')}")
        return [
            {**model, "path": self._models_on_board[key], "device": "", "python": ""}
            for model, key in zip(models, keys, strict=True)
        ]

    def _send_model(self, path: Path) -> str:
        """Send a model's files where the board lacks them; return their key in `_models_on_board`."""
        files = [path, *external_weights.list_companion_files(path)]
        key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
        if key not in self._models_on_board:
            self._send(files, f"{self.folder}/{key}")
            self._models_on_board[key] = f"{self.folder}/{key}/{path.name}"
        return key

    def _send(self, paths: Sequence[Path], folder: str) -> None:
        """Copy files and folders, under their own names, into a folder of the board; by tar, as some boards have no scp."""
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w") as tar:
            for path in paths:
                tar.add(path, path.name)
        quoted = shlex.quote(folder)
        self._run(f"mkdir -p {quoted} && tar -C {quoted} -xf -", body.getvalue())

    def _run(self, command: str, standard_input: bytes = b"") -> None:
        """Run a shell command that copies or removes files on the board.

        Raises:
            BoardUnreachable: the connection broke.
            ToolchainError: the command failed or took too long.
        """
        try:
            completed = subprocess.run(
                self._build_command(command), input=standard_input, capture_output=True, check=False,
                timeout=ANSWER_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired as reason:
            raise self._report_timeout() from reason
        output = last_line(completed.stderr.decode(errors="replace"), f"exit status {completed.returncode}")
        if self._is_disconnected(completed.returncode):
            raise BoardUnreachable(
                f"the connection to {self.device} broke: {output}. Run the same command again once the board can be reached"
            )
        if completed.returncode != 0:
            raise ToolchainError(
                f"cannot copy to {self.device}: {output}. Check that there is space on it, and that tar is installed"
            )

    def _build_command(self, command: str, *, first: bool = False) -> list[str]:
        """Return the `ssh` command line that runs a shell command on the board; all share the connection of the first."""
        shared = ("-o", f"ControlMaster={'yes' if first else 'no'}", "-o", f"ControlPath={self._scratch.name}/%C")
        port = ("-p", self._address.port) if self._address.port else ()
        return ["ssh", *SSH_OPTIONS, *shared, *port, self._address.host, command]

    def close(self) -> None:
        """End the connection; the keeper then removes everything on the board."""
        self._exit.close()
        with contextlib.suppress(OSError):
            self._scratch.cleanup()
