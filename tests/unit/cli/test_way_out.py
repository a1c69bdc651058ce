"""The last lines of an export in which nothing ships: why, where to look, and the command that would ship."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from toolchain.cli import main as cli
from toolchain.cli import results

GROUP = typer.main.get_command(cli.app)


def context_of(*arguments: str) -> typer.Context:
    """The context of `toolchain export ...`, read as at the command line, and not run."""
    command = GROUP.commands["export"]  # type: ignore[attr-defined]
    context: typer.Context = command.make_context("export", list(arguments))
    return context


def missed(*flags: str, variant: str = "dense-int8") -> dict[str, Any]:
    """The report of a run in which nothing ships, as far as it is read here."""
    nearest = [{"variant": variant, "flags": list(flags)}, {"variant": "other", "flags": ["--latency 9x"]}]
    return {
        "shipped": None, "candidate": "pruned-int8", "missed": ["accuracy_drop", "latency"], "verdicts": [],
        "nearest": nearest if flags else [],
    }  # fmt: skip


def command_line(capsys: pytest.CaptureFixture[str], flags: list[str], *arguments: str) -> list[str]:
    """The words of the command that is printed for a run with these arguments."""
    results.print_paths(Path("out"), missed(*flags), context_of(*arguments))
    return shlex.split(capsys.readouterr().err.splitlines()[-1])


def test_the_reason_the_best_variant_and_the_command_come_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my out" / "best").mkdir(parents=True)
    folder = tmp_path / "my out"
    results.print_paths(folder, missed("--budget accuracy_drop=0.012"), context_of("--target", "openvino"))
    printed = capsys.readouterr()
    assert printed.out == f"report: {folder / 'report.html'}\n"
    assert printed.err.splitlines() == [
        "no bundle: pruned-int8 misses accuracy drop, latency",
        f"best variant, to look at: python '{folder / 'best' / 'run.py'}' --not-accepted IMAGE",
        "dense-int8 would ship with:",
        "  toolchain export --target openvino --budget accuracy_drop=0.012",
    ]


def test_without_a_way_out_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.print_paths(tmp_path, missed(), context_of())
    assert capsys.readouterr().err == "no bundle: pruned-int8 misses accuracy drop, latency\n"
    old = {"shipped": None, "candidate": "pruned-int8", "verdicts": [{"check": "size_bytes", "outcome": "fail"}]}
    results.print_paths(tmp_path, old)  # of schema 1
    assert capsys.readouterr().err == "no bundle: pruned-int8 misses size\n"


def test_a_run_that_ships_names_its_bundle_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.print_paths(tmp_path, {**missed("--latency 0.9x"), "shipped": "pruned-int8"}, context_of())
    printed = capsys.readouterr()
    assert printed.err == ""
    assert str(tmp_path / "bundle.tar") in printed.out


def test_a_report_that_is_shown_again_knows_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.print_paths(tmp_path, missed("--latency 0.73x", "--budget size=12kB"))
    assert capsys.readouterr().err.splitlines()[-1] == "  toolchain export ... --latency 0.73x --budget size=12kB"


def test_every_flag_that_was_given_is_repeated_and_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "-t", "openvino", "-r", "my recipe.toml", "--data", "a b/it's", "--weights", "w.pth", "--ratio", "0", "--seed", "0",
        "--lock", "l 1.json", "--budget", "size=1.2 MB", "--budget", "accuracy_drop=0.02", "--out", "o",
    ]  # fmt: skip
    words = command_line(capsys, ["--budget speedup=1.78"], *given)
    expected = [
        "--target", "openvino", "--recipe", "my recipe.toml", "--data", "a b/it's", "--weights", "w.pth", "--seed", "0",
        "--ratio", "0.0", "--lock", "l 1.json", "--budget", "size=1.2 MB", "--budget", "accuracy_drop=0.02", "--out", "o",
        "--budget", "speedup=1.78",
    ]  # fmt: skip
    assert words[:2] == ["toolchain", "export"]
    assert pairs(words[2:]) == pairs(expected)
    assert words[-2:] == ["--budget", "speedup=1.78"]
    assert context_of(*words[2:]).params == context_of(*given, "--budget", "speedup=1.78").params


def pairs(words: list[str]) -> list[tuple[str, str]]:
    return sorted(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("given", [["--latency", "0.5 ms"], ["--ratio", "0.5"], ["--budget", "latency=0.5x"]])
def test_a_latency_takes_the_place_of_what_else_said_how_far_to_prune(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = command_line(capsys, ["--latency 0.73x"], *given, "--budget", "speedup=2")
    assert words[2:] == ["--budget", "speedup=2", "--latency", "0.73x"]
    kept = command_line(capsys, ["--budget accuracy_drop=0.012"], *given)
    assert context_of(*kept[2:-2]).params == context_of(*given).params


def test_a_budget_takes_the_place_of_the_same_one(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--budget", "accuracy_drop=0.01", "--budget", "size=0.5x"]
    words = command_line(capsys, ["--budget accuracy_drop=0.012"], *given)
    assert words[2:] == ["--budget", "size=0.5x", "--budget", "accuracy_drop=0.012"]
