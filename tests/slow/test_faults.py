"""Cut or out of room at any write: no bundle that is not whole, earlier results intact, and the same archive afterwards."""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, draw
from test_kill import RECIPE

from toolchain import pipeline
from toolchain.config.job import make_job
from toolchain.config.packaging import PackageSpec
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.edge import archive
from toolchain.measure import latency

LONG = pytest.mark.skipif(not os.environ.get("FAULTS"), reason="takes ten minutes; FAULTS=1 runs it")
PLACES = int(os.environ.get("PLACES", "6"))  # writes that fail, spread over all; more for the long experiment


class Cut(BaseException):
    """The process is gone: nothing may catch it."""


@contextmanager
def failing(at: int, reason: Callable[[], BaseException]) -> Iterator[list[int]]:
    """The `at`-th write to the disk fails, counted over files that are synced, copied or renamed."""
    count, real = [0], {}

    def counted(name: str) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            count[0] += 1
            if count[0] == at:
                raise reason()
            return real[name](*given, **named)

        return call

    places = {"fsync": os, "copyfile": shutil, "rename": os, "replace": os}
    with pytest.MonkeyPatch.context() as patch:
        for name, room in places.items():
            real[name] = getattr(room, name)
            patch.setattr(room, name, counted(name))
        yield count


def again(run: Run, out: Path) -> bytes:
    target = dataclasses.replace(run.target, package=PackageSpec(input="uint8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 3)
        assert pipeline.export(make_job(run.recipe, target, run.domain, out))["shipped"]
    return (out / "tiny" / "cpu" / "bundle.tar").read_bytes()


def ending(job: Callable[[], object]) -> BaseException | None:
    """What a job ended with."""
    try:
        job()
    except BaseException as reason:  # a cut is one
        return reason
    return None


def whole(folder: Path) -> None:
    """A bundle or archive that stands there is one."""
    if (folder / "bundle").exists():
        archive.read_verified_manifest(folder / "bundle")
    if (folder / "bundle.tar").exists():
        shutil.rmtree(scratch := folder / "unpacked", ignore_errors=True)
        archive.unpack(folder / "bundle.tar", scratch)
        shutil.rmtree(scratch)


@LONG
@pytest.mark.slow
@pytest.mark.parametrize("reason", ["full", "cut"])
def test_any_write_may_fail(reason: str, run: Run, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        shutil.rmtree(out := tmp_path / name, ignore_errors=True)
        shutil.copytree(run.out / "work", out / "work", ignore=shutil.ignore_patterns("export", "package"))
        return out

    first = fresh("first")  # its copies are no writes of the job
    with failing(0, Cut) as count:
        wanted = again(run, first)
    assert count[0] > 20
    for at in np.linspace(1, count[0], PLACES).astype(int):
        out = fresh("out")
        kept = {p: p.read_bytes() for p in (out / "work").rglob("*") if p.is_file()}
        error = (lambda: OSError(errno.ENOSPC, "No space left on device")) if reason == "full" else Cut
        with failing(at, error):
            ended = ending(lambda: again(run, out))  # noqa: B023  called at once
        full = isinstance(ended, ToolchainError) and "No space left on device" in str(ended)
        bare = isinstance(ended, OSError) and ended.errno == errno.ENOSPC  # the command line words it
        assert full or bare or isinstance(ended, Cut), (at, ended)
        whole(out / "tiny" / "cpu")
        assert {p: p.read_bytes() for p in kept} == kept
        assert again(run, out) == wanted
        assert not list(out.rglob("*.tmp"))


@LONG
@pytest.mark.slow
def test_rebuilds_from_nothing_are_the_same_bytes(tmp_path: Path) -> None:
    lock, made = "", []
    for number, (zone, locale, mask) in enumerate(
        [("UTC", "C", 0o022), ("Asia/Tokyo", "C.UTF-8", 0o077), ("UTC+9", "POSIX", 0o002)]
    ):
        home = tmp_path / "somewhere" / ("x" * 30 * number) / "home"
        home.mkdir(parents=True)
        draw(home / "pictures", {"ant": 40, "bee": 40, "cat": 40})
        (home / "own.toml").write_text(RECIPE.replace("epochs = 6", "epochs = 2"))
        command = [sys.executable, "-m", "toolchain", "export", "--recipe", "own.toml", "--data", "pictures"]
        if lock:
            command += ["--lock", lock]
        environment = {**os.environ, "TZ": zone, "LC_ALL": locale, "PYTHONHASHSEED": str(number + 1)}
        ended = subprocess.run(
            command, cwd=home, env=environment, umask=mask, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        folder = home / "out" / "own" / "cpu"
        lock = lock or str(shutil.copy(folder / "own.cpu.lock.json", tmp_path))
        made.append(folder / "bundle.tar")
    sums = [(path.parent / "bundle" / archive.CHECKSUM_FILE).read_text() for path in made]
    assert sums[1] == sums[0]  # the difference names the files
    assert sums[2] == sums[0]
    assert len({files.sha256_file(path) for path in made}) == 1
