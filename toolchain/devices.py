"""Boards over ssh: the same processes that time models here are started there, and nothing of them stays behind.

The system's own `ssh` and `scp` do the talking, so a user's keys, agents and host aliases work. On the board only
Python, numpy and the runtime are needed. One connection is kept open all the while; a shell at its other end removes the
folder that everything was put in as soon as the connection ends, in order or not, and every process there ends with it.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain import discover, timed
from toolchain.errors import ToolchainError

WANTED = (3, 11)  # of Python on the board
CONNECT_SECONDS = 15
ANSWER_SECONDS = 600
QUIET = (
    "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR",
)  # fmt: skip
# the folder lives as long as the connection does
KEEP = 'd=$(mktemp -d "${TMPDIR:-/tmp}/toolchain.XXXXXXXX") && echo "$d" && cat > /dev/null; rm -rf "$d"'


@dataclass(frozen=True)
class Address:
    """Where a board is: `ssh:[user@]host[:port][#python]`."""

    host: str  # with its user
    port: str = ""
    python: str = "python3"


def address(device: str) -> Address:
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


def kit(folder: Path, runtimes: list[str]) -> None:
    """The few files of this package that time models, as a package of their own in `folder`."""
    for name in timed.files(runtimes):
        copy = folder / "toolchain" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(discover.PACKAGE / name, copy)


@functools.cache
def board(device: str) -> "Board":
    """The board, connected to once and until this process ends.

    Raises:
        ToolchainError: it is not there, or lacks Python or numpy.
    """
    found = Board(device, address(device))
    atexit.register(found.close)
    return found


class Board:
    """A connection, and the folder at its other end."""

    def __init__(self, device: str, at: Address) -> None:
        self.device, self._at = device, at
        self._scratch = tempfile.TemporaryDirectory(prefix="board-")
        self._put: dict[str, str] = {}
        self._shared = (
            "-o",
            "ControlMaster=auto",
            "-o",
            f"ControlPath={self._scratch.name}/%C",
            "-o",
            "ControlPersist=60",
        )
        self._connection: subprocess.Popen[str] | None = None
        try:
            self._connect()
            self._check()
            self.machine: Mapping[str, str | int] = self.answer("machine", {})
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        command = [*self._ssh(), self._at.host, KEEP]
        self._connection = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        assert self._connection.stdout is not None
        self.folder = self._connection.stdout.readline().strip()
        if not self.folder.startswith("/"):
            _, errors = self._connection.communicate()
            said = errors.strip().splitlines()[-1:] or ["no answer"]
            raise ToolchainError(
                f"cannot reach {self.device}: {said[0]}; `ssh {self._at.host}` must work without a question (a key, and a "
                "host that is known)"
            )
        packed = Path(self._scratch.name) / "kit"
        kit(packed, discover.modules("runtimes"))
        self._copy(packed / "toolchain", f"{self.folder}/toolchain")

    def _check(self) -> None:
        program = "import sys, json; import numpy; print(json.dumps([list(sys.version_info[:2]), numpy.__version__]))"
        ended = self._run(f"{shlex.quote(self._at.python)} -c {shlex.quote(program)}")
        if ended.returncode != 0:
            said = ended.stderr.strip().splitlines()[-1:] or [f"exit status {ended.returncode}"]
            raise ToolchainError(
                f"{self.device} cannot time models: {said[0]}; it needs Python {WANTED[0]}.{WANTED[1]}, numpy and the target's "
                "runtime, where they are in an environment of their own as in ssh:user@host#/opt/venv/bin/python"
            )
        version = tuple(json.loads(ended.stdout.splitlines()[-1])[0])
        if version < WANTED:
            raise ToolchainError(
                f"{self.device} has Python {version[0]}.{version[1]}; {WANTED[0]}.{WANTED[1]} is needed"
            )

    def answer(self, job: str, request: Mapping[str, Any]) -> Any:
        """What a timing process there answers.

        Raises:
            ToolchainError: the board went away, or the process failed.
        """
        told = dict(request)
        if "sides" in told:
            told["sides"] = [self._there(side) for side in told["sides"]]
        if "side" in told:
            told["side"] = self._there(told["side"])
        where = f"cd {shlex.quote(self.folder)} && PYTHONPATH=. exec {shlex.quote(self._at.python)} -m toolchain.timed"
        command = [*self._ssh(), self._at.host, f"{where} {job} --leash"]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(told) + "\n")
                child.stdin.flush()
            lines = [line for line in child.stdout if line.strip()]  # its input stays open: it is the leash
            status = child.wait(timeout=ANSWER_SECONDS)
            errors = child.stderr.read()
        finally:
            child.kill()
            child.communicate()
        if status == 255 or not self._alive():
            raise ToolchainError(
                f"{self.device} went away while it was timing ({(errors.strip().splitlines()[-1:] or ['no reason given'])[0]}); "
                "what it was doing has ended there; run the same command again once it is back"
            )
        if status != 0:
            said = errors.strip().splitlines()[-1:] or [f"exit status {status}"]
            raise ToolchainError(f"a timing process on {self.device} failed: {said[0]}")
        return json.loads(lines[-1])

    def _alive(self) -> bool:
        return self._connection is not None and self._connection.poll() is None

    def _there(self, side: Mapping[str, Any]) -> dict[str, Any]:
        """A side with its files on the board."""
        path = Path(side["path"])
        files = [path, *(other for other in (path.with_suffix(".bin"),) if path.suffix == ".xml" and other.is_file())]
        key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
        if key not in self._put:
            local = Path(self._scratch.name) / key
            local.mkdir()
            for file in files:
                shutil.copyfile(file, local / file.name)
            self._copy(local, f"{self.folder}/{key}")
            shutil.rmtree(local)
            self._put[key] = f"{self.folder}/{key}/{path.name}"
        return {**side, "path": self._put[key], "device": "", "python": ""}

    def _copy(self, source: Path, goal: str) -> None:
        port = ["-P", self._at.port] if self._at.port else []
        ended = subprocess.run(
            ["scp", "-q", "-r", *QUIET, *self._shared, *port, str(source), f"{self._at.host}:{goal}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ended.returncode != 0:
            said = ended.stderr.strip().splitlines()[-1:] or [f"exit status {ended.returncode}"]
            raise ToolchainError(f"cannot copy to {self.device}: {said[0]}; is there room on it?")

    def _run(self, command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self._ssh(), self._at.host, command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=ANSWER_SECONDS,
        )  # fmt: skip

    def _ssh(self) -> list[str]:
        return ["ssh", *QUIET, *self._shared, *(["-p", self._at.port] if self._at.port else [])]

    def close(self) -> None:
        """Ends the connection, and with it whatever is left on the board."""
        if self._connection is not None:
            with contextlib.suppress(subprocess.TimeoutExpired, ValueError, OSError):
                self._connection.communicate(timeout=CONNECT_SECONDS)
            self._connection.kill()
            self._connection = None
        with contextlib.suppress(OSError):
            command = [*self._ssh(), "-O", "exit", self._at.host]
            subprocess.run(command, capture_output=True, check=False)
        with contextlib.suppress(OSError):
            self._scratch.cleanup()
