"""History: entries are appended as whole lines, a broken line is skipped, and every target is plotted."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from toolchain.cli import main
from toolchain.core.errors import ToolchainError
from toolchain.measure import history
from toolchain.report.pages import history as history_report


def entry(day: int, target: str = "cpu", **changes: object) -> dict[str, object]:
    interval = {"estimate": 0.3, "low": 0.29, "high": 0.31, "samples": 1250}
    return {
        "schema": 1, "at": f"2026-11-{day:02d}T10:00:00+00:00", "kind": "export", "machine": "cpu, 2 cores", "version": "1.0",
        "recipe": "digits", "target": target, "runtime": "onnxruntime", "name": "pruned-int8", "precision": "int8",
        "threads": 1, "sha256": "ab" * 32, "size_bytes": 1000, "outcome": "pass", "p50_ms": interval,
        "accuracy": {"estimate": 0.9, "low": 0.88, "high": 0.92, "samples": 450}, **changes,
    }  # fmt: skip


def test_entries_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    history.append(tmp_path / "a" / "h.jsonl", [entry(2)])
    history.append(tmp_path / "a" / "h.jsonl", [entry(3), entry(1)])
    entries, skipped = history.read(tmp_path / "a" / "h.jsonl")
    assert ([line["at"][8:10] for line in entries], skipped) == (["01", "02", "03"], [])


@pytest.mark.parametrize("broken", ['{"schema": 1, "at": "2026', "{}", "[]", '{"schema": 7, "at": "x"}', "\xff\xfe"])
def test_a_broken_last_line_is_skipped_and_the_next_one_is_whole(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "h.jsonl"
    history.append(path, [entry(1)])
    with path.open("a") as file:
        file.write(broken)
    entries, skipped = history.read(path)
    assert (len(entries), skipped) == (1, [2])
    history.append(path, [entry(2)])
    entries, skipped = history.read(path)
    assert ([line["at"][8:10] for line in entries], skipped) == (["01", "02"], [2])


def test_a_file_without_any_measurement_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="cannot read"):
        history.read(tmp_path / "h.jsonl")
    (tmp_path / "h.jsonl").write_text("{}\n")
    with pytest.raises(ToolchainError, match="holds no measurement"):
        history.read(tmp_path / "h.jsonl")


def test_every_target_is_plotted_with_its_latency_and_accuracy(tmp_path: Path) -> None:
    entries = [entry(1), entry(2), entry(3, "openvino", accuracy=None), entry(4, "arm64", p50_ms=None)]
    history.append(tmp_path / "history.jsonl", entries)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write("cut")
    result = CliRunner().invoke(main.app, ["report", "--history", str(tmp_path)])
    assert result.exit_code == 0, result.exception
    assert "line 5 of the history" in result.output
    page = (tmp_path / "history.html").read_text()
    assert page.count("<svg") == 4
    assert [page.index(f"<h2>{name}</h2>") for name in ("arm64", "cpu", "openvino")] == sorted(
        page.index(f"<h2>{name}</h2>") for name in ("arm64", "cpu", "openvino")
    )
    assert history_report.tabulate("cpu", entries[:2]).rows[0][:5] == (
        "2026-11-01 10:00",
        "export",
        "digits",
        "0.3 [0.29, 0.31]",
        "90 [88, 92]",
    )


def test_a_report_needs_a_run_or_the_history() -> None:
    result = CliRunner().invoke(main.app, ["report"])
    assert "give the folder of a run" in str(result.exception)


def test_an_export_adds_an_entry(tmp_path: Path) -> None:
    report = {
        "recipe": "r", "target": "cpu", "runtime": "onnxruntime", "machine": {"cpu": "c", "cores": 2}, "shipped": None,
        "versions": {"onnxruntime": "1.0"}, "candidate": "b", "variants": [{"name": "a"}, {
            "name": "b", "precision": "int8", "threads": 1, "size_bytes": 5, "latency_ms": None, "accuracy": 0.5,
            "accuracy_low": 0.4, "accuracy_high": 0.6, "images": 10}],
    }  # fmt: skip
    history.append(tmp_path / "h", history.from_export(report, ""))
    line = json.loads((tmp_path / "h").read_text())
    assert (line["name"], line["p50_ms"], line["accuracy"]["samples"], line["outcome"]) == ("b", None, 10, "fail")
