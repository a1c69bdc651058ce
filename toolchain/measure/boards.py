"""Boards over ssh: the same processes that time models here are started there, and nothing of them stays behind.

The system's own `ssh` does the talking, so a user's keys, agents and host aliases work. On the board only Python, numpy
and the runtime are needed. One connection carries everything; a keeper at its other end removes the folder that all was
put in when the connection ends, or when nothing is heard for a minute, and every process there ends the same way.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from toolchain.core import registry
from toolchain.core.errors import ToolchainError, last_line
from toolchain.edge import timing_process
from toolchain.measure import external_weights

MIN_PYTHON = (3, 11)  # of Python on the board
CONNECT_SECONDS = 15
ANSWER_SECONDS = 600
HEARTBEAT_SECONDS = 10.0
MAX_MODELS_ON_BOARD = 8  # models that lie on the board at once: its disk may be memory
SSH_OPTIONS = (
    "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR",
)  # fmt: skip
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
    """The board went away."""


@dataclass(frozen=True)
class Address:
    """Where a board is: `ssh:[user@]host[:port][#python]`."""

    host: str  # with its user
    port: str = ""
    python: str = "python3"


def parse_address(device: str) -> Address:
    """Reads a device.

    Raises:
        ToolchainError: it is none.
    """
    kind, _, rest = device.partition(":")
    place, _, python = rest.partition("#")
    host, _, port = place.partition(":")
    bare = host.rpartition("@")[2]
    if kind != "ssh" or not bare or host.startswith("-") or bare.startswith("-") or (port and not port.isdigit()):
        raise ToolchainError(
            f"--device {device!r}: ssh:user@host is wanted, where needed with a port and a Python of its own, as in "
            "ssh:pi@board:2222#/opt/venv/bin/python"
        )
    return Address(host, port, python or "python3")


def pack_timing_process(folder: Path, runtimes: Sequence[str]) -> None:
    """The few files of this package that time models, as a package of their own in `folder`."""
    for name in timing_process.list_required_files(runtimes):
        copy = folder / "toolchain" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(registry.PACKAGE_FOLDER / name, copy)


@functools.cache
def connect(device: str) -> "Board":
    """The board, connected to once and until this process ends.

    Raises:
        ToolchainError: it is not there, or lacks Python or numpy.
    """
    found = Board(device, parse_address(device))
    atexit.register(found.close)
    return found


class Board:
    """A connection, and the folder at its other end."""

    def __init__(self, device: str, at: Address) -> None:
        self.device, self._at = device, at
        self._scratch = tempfile.TemporaryDirectory(prefix="board-")
        self._there: dict[str, str] = {}  # path on the board by what it holds, the latest used last
        self._end = contextlib.ExitStack()
        try:
            self._connect()
            self.machine: Mapping[str, str | int] = self.ask("machine", {})
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        """Starts the keeper, over the connection that all others share, and sends it the kit."""
        errors = self._end.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115  it is one
        command = self._ssh(f"exec {shlex.quote(self._at.python)} -c {shlex.quote(KEEPER_PROGRAM)}", first=True)
        self._keeper = _started(command, errors)
        self._end.callback(_stopped, self._keeper)
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        if not line:
            self._keeper.wait()
            raise self._unreachable(last_line(_text(errors), "no answer"), self._keeper.returncode)
        self.folder, version = json.loads(line)
        if tuple(version) < MIN_PYTHON:
            raise ToolchainError(
                f"{self.device} has Python {version[0]}.{version[1]}; {MIN_PYTHON[0]}.{MIN_PYTHON[1]} is needed"
            )
        if not self._keeper.stdout.readline():
            self._keeper.wait()
            raise self._unreachable(last_line(_text(errors), "no answer"), 1)
        self._end.enter_context(_beating(self._keeper))
        with tempfile.TemporaryDirectory() as packed:
            pack_timing_process(Path(packed), registry.list_modules("runtimes"))
            self._send([Path(packed) / "toolchain"], self.folder)

    def _unreachable(self, said: str, status: int) -> ToolchainError:
        if status == 255:  # ssh's own
            return ToolchainError(
                f"cannot reach {self.device}: {said}; `ssh {self._at.host}` must work without a question (a key, and a host "
                "that is known)"
            )
        return ToolchainError(
            f"{self.device} cannot time models: {said}; it needs Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]}, numpy and the target's "
            "runtime, where they are in an environment of their own as in ssh:user@host#/opt/venv/bin/python"
        )

    def ask(self, job: str, request: Mapping[str, Any]) -> Any:
        """What a timing process there answers.

        Raises:
            Gone: the board went away.
            ToolchainError: the process failed, or gave no answer in time.
        """
        told = dict(request)
        if "sides" in told:
            told["sides"] = self._moved(told["sides"])
        if "side" in told:
            told["side"] = self._moved([told["side"]])[0]
        where = f"cd {shlex.quote(self.folder)} && PYTHONPATH=. exec {shlex.quote(self._at.python)} -m toolchain.edge.timing_process"
        with tempfile.TemporaryFile("w+") as errors:
            child = _started(self._ssh(f"{where} {job} --leash"), errors)
            late = threading.Timer(ANSWER_SECONDS, child.kill)
            late.start()
            try:
                assert child.stdin is not None
                assert child.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write(json.dumps(told) + "\n")
                    child.stdin.flush()
                with _beating(child):
                    lines = [line for line in child.stdout if line.strip()]  # its input stays open: it is the leash
                status = child.wait()
            finally:
                timely = late.is_alive()
                late.cancel()
                _stopped(child)
            said = last_line(_text(errors), f"exit status {status}")
        if not timely:
            raise ToolchainError(f"{self.device} gave no answer in {ANSWER_SECONDS} s")
        if status == 255 or self._keeper.poll() is not None:
            raise BoardUnreachable(
                f"{self.device} went away while it was timing ({said}); what it was doing ends there; run the same command "
                "again once it is back"
            )
        if status != 0 or not lines:
            raise ToolchainError(f"a timing process on {self.device} failed: {said}")
        return json.loads(lines[-1])

    def _moved(self, sides: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Sides with their files on the board; what has not been used for long goes."""
        keys = [self._sent(Path(side["path"])) for side in sides]
        for key in keys:
            self._there[key] = self._there.pop(key)
        for key in list(self._there)[: -max(MAX_MODELS_ON_BOARD, len(set(keys)))]:
            del self._there[key]
            self._run(f"rm -rf {shlex.quote(f'{self.folder}/{key}')}")
        return [
            {**side, "path": self._there[key], "device": "", "python": ""}
            for side, key in zip(sides, keys, strict=True)
        ]

    def _sent(self, path: Path) -> str:
        """What a model's files are known by on the board, where they lie from now on."""
        files = [path, *external_weights.list_companion_files(path)]
        key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
        if key not in self._there:
            self._send(files, f"{self.folder}/{key}")
            self._there[key] = f"{self.folder}/{key}/{path.name}"
        return key

    def _send(self, paths: Sequence[Path], goal: str) -> None:
        """Files and folders, by their own names into a folder there; `tar` is on boards that have no scp."""
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w") as tar:
            for path in paths:
                tar.add(path, path.name)
        where = shlex.quote(goal)
        self._run(f"mkdir -p {where} && tar -C {where} -xf -", body.getvalue())

    def _run(self, command: str, given: bytes = b"") -> None:
        try:
            ended = subprocess.run(
                self._ssh(command), input=given, capture_output=True, check=False, timeout=ANSWER_SECONDS
            )
        except subprocess.TimeoutExpired as reason:
            raise ToolchainError(f"{self.device} gave no answer in {ANSWER_SECONDS} s") from reason
        said = last_line(ended.stderr.decode(errors="replace"), f"exit status {ended.returncode}")
        if ended.returncode == 255 or self._keeper.poll() is not None:
            raise BoardUnreachable(f"{self.device} went away ({said}); run the same command again once it is back")
        if ended.returncode != 0:
            raise ToolchainError(f"cannot copy to {self.device}: {said}; is there room on it?")

    def _ssh(self, command: str, *, first: bool = False) -> list[str]:
        """A command line; all share the connection of the first."""
        shared = ("-o", f"ControlMaster={'yes' if first else 'no'}", "-o", f"ControlPath={self._scratch.name}/%C")
        port = ("-p", self._at.port) if self._at.port else ()
        return ["ssh", *SSH_OPTIONS, *shared, *port, self._at.host, command]

    def close(self) -> None:
        """Ends the connection, and with it whatever is left on the board."""
        self._end.close()
        with contextlib.suppress(OSError):
            self._scratch.cleanup()


def _started(command: Sequence[str], errors: IO[str]) -> "subprocess.Popen[str]":
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    except FileNotFoundError as reason:
        raise ToolchainError("--device needs the system's own ssh, which is not installed here") from reason


def _stopped(child: "subprocess.Popen[str]") -> None:
    """Closes its input, which is its sign to stop, and waits; it is killed where it does not."""
    try:
        with contextlib.suppress(BrokenPipeError, ValueError):
            child.communicate(timeout=CONNECT_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


@contextlib.contextmanager
def _beating(child: "subprocess.Popen[str]") -> Iterator[None]:
    """Tells the other end every few seconds that somebody still waits for it."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError, ValueError):
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
