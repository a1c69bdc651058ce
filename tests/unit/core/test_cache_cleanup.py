"""What is removed and what stays: the longest unused first, never what a run's results or a running process need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from toolchain.cli.main import app
from toolchain.core import cache_cleanup, files, stage_cache
from toolchain.core.errors import ToolchainError

KB = 1000


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Four stages of 10 kB and an array of images of 20 kB, used on consecutive days; a run needs the second stage."""
    out = tmp_path / "out"
    for day, key in enumerate(("a", "b", "c", "d")):
        with stage_cache.open_stage(out / "work", "adapt", key) as stage:
            (stage.folder / "weights.safetensors").write_bytes(b"x" * 10 * KB)
        os.utime(stage.folder / files.LOCK_FILE, (day * 86400, day * 86400))
    with files.lock_folder(out / "data" / "pixels" / "e", wait=True):
        (out / "data" / "pixels" / "e" / "train.npy").write_bytes(b"x" * 20 * KB)
    run = out / "digits" / "cpu"
    with (
        files.lock_folder(run, wait=False),
        cache_cleanup.note_run(out, run),
        stage_cache.open_stage(out / "work", "adapt", "b"),
    ):
        pass
    os.utime(out / "work" / "adapt" / "b" / files.LOCK_FILE, (86400, 86400))
    return out


def names(entries: list[cache_cleanup.CacheEntry]) -> list[str]:
    return [entry.folder.name for entry in entries]


def test_entries_are_listed_by_last_use_with_their_size_and_the_run_that_needs_them(out: Path) -> None:
    entries = cache_cleanup.list_entries(out)
    assert names(entries) == ["a", "b", "c", "d", "e"]
    assert [entry.size_bytes for entry in entries] == [10 * KB, 10 * KB, 10 * KB, 10 * KB, 20 * KB]
    assert [entry.kept_for for entry in entries] == ["", "digits/cpu", "", "", ""]


def test_using_a_stage_again_makes_it_the_last(out: Path) -> None:
    with stage_cache.open_stage(out / "work", "adapt", "a"):
        pass
    assert names(cache_cleanup.list_entries(out))[-1] == "a"


@pytest.mark.parametrize(
    ("keep_kb", "include_runs", "chosen"),
    [(0, False, "acde"), (0, True, "abcde"), (60, False, ""), (59, False, "a"), (45, False, "ac"), (45, True, "ab")],
)
def test_the_longest_unused_go_first_until_enough_is_free(
    out: Path, keep_kb: int, include_runs: bool, chosen: str
) -> None:
    entries = cache_cleanup.list_entries(out)
    assert "".join(names(cache_cleanup.choose(entries, keep_kb * KB, include_runs=include_runs))) == chosen


def test_a_run_that_fails_is_noted_too_because_it_may_be_resumed(out: Path) -> None:
    run = out / "solar" / "cpu"
    with pytest.raises(ToolchainError), files.lock_folder(run, wait=False), cache_cleanup.note_run(out, run):
        with stage_cache.open_stage(out / "work", "adapt", "c"):
            pass
        raise ToolchainError("diverged")
    assert [entry.kept_for for entry in cache_cleanup.list_entries(out) if entry.folder.name == "c"] == ["solar/cpu"]


def test_a_run_that_ends_early_keeps_what_the_results_of_the_one_before_need(out: Path) -> None:
    run = out / "digits" / "cpu"
    with pytest.raises(ToolchainError), files.lock_folder(run, wait=False), cache_cleanup.note_run(out, run):
        with stage_cache.open_stage(out / "work", "adapt", "c"):
            pass
        raise ToolchainError("diverged")
    assert {entry.folder.name for entry in cache_cleanup.list_entries(out) if entry.kept_for} == {"b", "c"}
    with (
        files.lock_folder(run, wait=False),
        cache_cleanup.note_run(out, run),
        stage_cache.open_stage(out / "work", "adapt", "d"),
    ):
        pass
    assert {entry.folder.name for entry in cache_cleanup.list_entries(out) if entry.kept_for} == {"d"}


def test_what_a_running_process_uses_stays(out: Path) -> None:
    code = "import sys, pathlib; from toolchain.core import files\n"
    code += "with files.lock_folder(pathlib.Path(sys.argv[1]), wait=False): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(out / "work" / "adapt" / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        result = CliRunner().invoke(app, ["clean", "--out", str(out), "--yes"])
        assert "1 in use by a running process stay" in result.output
        assert (out / "work" / "adapt" / "a" / "weights.safetensors").exists()
        holder.communicate()
    assert not (out / "work" / "adapt" / "c" / "weights.safetensors").exists()


def test_without_yes_nothing_is_removed_and_it_is_said_what_would_be(out: Path) -> None:
    before = sorted(out.rglob("*"))
    result = CliRunner().invoke(app, ["clean", "--out", str(out)])
    assert result.exit_code == 0
    assert "4 (50.0 kB) would be removed; do it with --yes" in result.output
    assert "kept for the runs digits/cpu" in result.output
    assert "earlier version" not in result.output
    assert sorted(out.rglob("*")) == before
    assert all(len(line) <= 80 for line in result.output.splitlines())


def test_a_run_of_an_earlier_version_is_named_because_what_it_used_is_not_known(out: Path) -> None:
    files.write_json(out / "solar" / "cpu" / "report.json", {})
    files.write_json(out / "solar" / "cpu" / "solar.cpu.lock.json", {})
    files.write_json(out / "check-data" / "solar" / "report.json", {})  # of another verb, which has no lock
    result = CliRunner().invoke(app, ["clean", "--out", str(out)])
    assert "an earlier version, which did not note what it used: solar/cpu\n" in result.output


def test_a_removed_stage_is_made_again(out: Path) -> None:
    assert CliRunner().invoke(app, ["clean", "--out", str(out), "--yes", "--all"]).exit_code == 0
    assert cache_cleanup.list_entries(out) == []
    assert "nothing to remove" in CliRunner().invoke(app, ["clean", "--out", str(out)]).output
    with stage_cache.open_stage(out / "work", "adapt", "b") as stage:
        assert stage.record is None


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="there is no folder .*nowhere; give the folder of the runs with --out"):
        CliRunner().invoke(app, ["clean", "--out", str(tmp_path / "nowhere")], catch_exceptions=False)
