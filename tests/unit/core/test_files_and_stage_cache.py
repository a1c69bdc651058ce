"""Files on disk: whole or not there at all; one writer; nothing done twice."""

import dataclasses
import errno
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from toolchain.core import files, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.core.types import ADDED_LATER


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    files.write_text(tmp_path / "x", "old")
    with (
        pytest.raises(ToolchainError, match="cannot write.*No space left.*free some disk space"),
        files.open_atomic(tmp_path / "x") as out,
    ):
        out.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_is_one_clear_message() -> None:
    with pytest.raises(ToolchainError, match="cannot write /dev/full"), Path("/dev/full").open("wb") as full:
        try:
            full.write(b"x" * 100_000)
            full.flush()
        except OSError as reason:
            raise files.disk_error(Path("/dev/full"), reason) from reason


def test_numpys_short_write_is_taken_for_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full, pytest.raises(OSError, match="requested") as short:
        np.zeros(100_000).tofile(full)
    assert "free some disk space" in str(files.disk_error(Path("x.npy"), short.value))


def test_a_second_writer_is_refused_and_a_dead_one_forgotten(tmp_path: Path) -> None:
    hold = "import sys,time\nfrom pathlib import Path\nfrom toolchain.core import files\n"
    hold += "with files.lock_folder(Path(sys.argv[1]), wait=False):\n print('held', flush=True)\n time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ToolchainError, match="another run is writing"), files.lock_folder(tmp_path, wait=False):
            pass
        other.kill()
        other.wait()
    with files.lock_folder(tmp_path, wait=False):
        pass


def test_a_stage_is_done_only_when_its_record_stands(tmp_path: Path) -> None:
    with stage_cache.open_stage(tmp_path, "adapt", "k") as stage:
        assert stage.record is None
        (stage.folder / ".half.tmp").write_text("left by a kill")
    with stage_cache.open_stage(tmp_path, "adapt", "k") as stage:
        assert stage.record is None
        assert not (stage.folder / ".half.tmp").exists()
        stage_cache.finish(stage, time.monotonic(), {"accuracy": 0.5})
    with stage_cache.open_stage(tmp_path, "adapt", "k") as stage:
        assert stage.record == {"accuracy": 0.5}


def test_digests_see_every_difference_and_no_order() -> None:
    assert files.digest({"a": 1, "b": (1, 2)}) == files.digest({"b": [1, 2], "a": 1})
    assert files.digest(1, 2) != files.digest([1, 2])
    assert files.digest({"a": 1}) != files.digest({"a": 1.5})


@dataclasses.dataclass(frozen=True)
class Earlier:
    epochs: int = 1


@dataclasses.dataclass(frozen=True)
class Now:
    epochs: int = 1
    order: str = dataclasses.field(default="rgb", metadata=ADDED_LATER)


def test_a_setting_added_later_changes_a_cache_key_only_where_it_is_used() -> None:
    assert files.digest(Now()) == files.digest(Earlier())
    assert files.digest(Now(order="bgr")) != files.digest(Earlier())
    assert files.to_jsonable(Now()) == {"epochs": 1, "order": "rgb"}


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ToolchainError, match=r"x\.json is not valid JSON"):
        files.read_json(tmp_path / "x.json")
