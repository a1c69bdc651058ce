"""The report is read by people and by CI: it must be complete, safe to open, and the same bytes every time."""

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from toolchain.core import run_report
from toolchain.report import html_report, key_results, markdown, terminal, write
from toolchain.report.label_placement import Box, overlap, place_label
from toolchain.report.sections import layer_widths, sensitivity_curves, variants

HOSTILE = "<script>x</script>"


def figure(estimate: float, low: float, high: float, baseline: str = "dense-fp32") -> dict[str, Any]:
    return {"baseline": baseline, "estimate": estimate, "low": low, "high": high, "samples": 30}


def variant(name: str, accuracy: float, p50: float, size_bytes: int, method: str = "") -> dict[str, Any]:
    dense, integer = "dense" in name, 20 * ("int8" in name)
    return {
        "name": name,
        "shipped": name == "pruned-int8",
        "precision": "int8" if integer else "f32",
        "method": method,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.012,
        "accuracy_high": accuracy + 0.012,
        "balanced_accuracy": accuracy - 0.03,
        "balanced_low": accuracy - 0.045,
        "balanced_high": accuracy - 0.015,
        "drop": {"estimate": 0.84 - accuracy, "low": 0.834 - accuracy, "high": 0.846 - accuracy, "samples": 2624},
        "images": 2624,
        "split": "test",
        "latency_ms": {
            "p50": p50,
            "low": 0.99 * p50,
            "high": 1.01 * p50,
            "p90": 1.08 * p50,
            "p99": 1.3 * p50,
            "samples": 3750,
        },
        "threads": 1,
        "size_bytes": size_bytes,
        "peak_rss_bytes": 71_300_000,
        "load_ms": 24.1,
        "first_ms": 5.3,
        "macs": 40_600_000 if dense else 20_100_000,
        "parameters": 272_000 if dense else 139_000,
        "integer_coverage": {"integer": integer, "planned": integer, "total": 21, "float_ops": ["fc"]},
        "peak_share": 0.31,
        "parity": {"top1_agreement": 0.9985, "max_steps": 1.0, "images": 512, "accuracy_gap": -0.0004},
    }


def curve(epochs: int, start: float, end: float) -> list[dict[str, Any]]:
    steps = [1 - 0.75**epoch for epoch in range(1, epochs + 1)]
    return [{"epoch": i + 1, "loss": 1.2 - s, "accuracy": start + (end - start) * s} for i, s in enumerate(steps)]


def layer(index: int, layers: int) -> dict[str, Any]:
    width = 16 * (1 + index * 4 // layers)
    after = width if index % 3 == 0 else width // 2 + 8
    macs = {"macs_before": 2_000_000, "macs_after": 2_000_000 * after // width}
    return {"name": f"layer{1 + index // 8}.{index % 8}.conv1", "before": width, "after": after, **macs}


def sensitivity_row(index: int, kind: str = "channels", cut: float = 0.5) -> dict[str, Any]:
    """A row of the sensitivity; the first one loses most accuracy."""
    shares = [0.0, 1.0] if kind == "block" else [0.0, 0.25, 0.5, 0.75]
    accuracies = [0.84 - 0.5 * share / (1 + index) for share in shares]
    return {
        "name": f"{kind}{index}.conv1",
        "kind": kind,
        "channels": 0 if kind == "block" else 64,
        "layers": ["a", "b"],
        "shares": shares,
        "accuracies": accuracies,
        "low": [a - 0.03 for a in accuracies],
        "high": [a + 0.03 for a in accuracies],
        "drops": [{"estimate": 0.84 - a, "low": 0.83 - a, "high": 0.85 - a, "samples": 500} for a in accuracies],
        "cut": cut,
        "why": None,
        "images": 500,
        "split": "val",
    }


UNMEASURED = {
    **sensitivity_row(99, cut=0.0),
    "name": "stem",
    **{key: [] for key in ("shares", "accuracies", "low", "high", "drops")},
    "why": "protected",
}


def verdict(check: str, outcome: str, measured: float | None, limit: float | None, why: str) -> dict[str, Any]:
    return {"check": check, "outcome": outcome, "measured": measured, "limit": limit, "why": why}


def sample(layers: int = 20) -> dict[str, Any]:
    return {
        "schema": 1,
        "recipe": "solar",
        "target": "cpu",
        "runtime": "onnxruntime",
        "domain": "solar-modules",
        "seed": 0,
        "machine": {"cpu": "Intel Xeon Platinum 8481C", "cores": 2, "isa": ["avx2", "avx512_vnni"], "governor": None},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "onnxruntime": "1.24.1", "toolchain": "0.1.0"},
        "shipped": "pruned-int8",
        "candidate": "pruned-int8",
        "variants": [
            variant("dense-fp32", 0.84, 3.21, 1_120_000),
            variant("dense-int8", 0.838, 2.05, 322_000, "qat"),
            variant("pruned-fp32", 0.837, 1.94, 578_000),
            variant("pruned-int8", 0.836, 1.42, 171_000, "qat"),
            variant("pruned-int8-ptq", 0.821, 1.41, 171_000, "ptq"),
        ],
        "speedup": figure(2.26, 2.21, 2.31),
        "speedup_as_shipped": figure(1.44, 1.41, 1.47, "dense-int8"),
        "ratios": [
            {"variant": "dense-int8", **figure(1.57, 1.53, 1.61)},
            {"variant": "pruned-int8", **figure(1.44, 1.41, 1.47, "dense-int8")},
            {"variant": "pruned-int8", **figure(2.26, 2.21, 2.31)},
        ],
        "accuracy_drop": figure(0.004, -0.002, 0.010),
        "balanced_drop": figure(0.006, -0.004, 0.016),
        "seconds": {
            "data": 4.1,
            "adapt": 512.0,
            "prune": 3.4,
            "recover": 731.2,
            "quantize": 402.0,
            "export": 27.3,
            "verify": 9.1,
            "bench": 188.0,
        },
        "verdicts": [
            verdict("accuracy_drop", "pass", 0.004, 0.01, "95 % interval -0.002 to 0.01"),
            verdict("balanced_drop", "cannot_tell", 0.006, 0.01, "95 % interval -0.004 to 0.016; it crosses the limit"),
            verdict("speedup", "pass", 2.26, 2.0, "30 paired rounds"),
            verdict("size_bytes", "fail", 171_000, 150_000, "bytes of model files"),
            verdict("accuracy_gap", "pass", -0.0004, 0.003, "artefact minus torch model"),
            verdict("peak_memory", "not_measured", None, None, "no budget was given"),
        ],
        "layers": [layer(i, layers) for i in range(layers)],
        "sensitivity": [
            *(sensitivity_row(i, cut=0.5 * (i % 2)) for i in range(26)),
            *(sensitivity_row(i, "block", 0.0) for i in range(3)),
            UNMEASURED,
        ],
        "training": {
            "adapt": curve(20, 0.5, 0.845),
            "recover": curve(20, 0.7, 0.84),
            "quantize": curve(3, 0.82, 0.838),
        },
        "data": {
            "digest": "9f2c1e7ab0d34c55",
            "images": {"train": 10_000, "val": 2_000, "test": 2_624},
            "classes": ["No-Anomaly", "Hot-Spot", HOSTILE, "a | b"],
            "skipped": ["broken/17.png: truncated"],
        },
        "warnings": ["the clock of the core changed by 9 % between rounds"],
        "notes": ["The classifier stays in float: in int8 it costs 0.8 points and saves 0.01 ms."],
    }


def without_values(value: Any) -> Any:
    """The same report with every figure gone, as when nothing could be measured."""
    if isinstance(value, dict):
        return {k: without_values(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_values(v) for v in value]
    return value if isinstance(value, str | bool) else None


def without_figures() -> dict[str, Any]:
    hollow: dict[str, Any] = without_values(sample())
    return {**hollow, "schema": 1, "seed": 0, "layers": [], "shipped": None, "candidate": None}


def print_to_text(content: dict[str, Any], width: int, **settings: Any) -> str:
    stream = io.StringIO()
    terminal.print_report(content, Console(file=stream, width=width, **settings))
    return stream.getvalue()


def test_all_three_files_are_written_and_the_json_is_the_report(tmp_path: Path) -> None:
    write.write_files(sample(), tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads((tmp_path / "report.json").read_text()) == sample()


def test_the_same_report_gives_the_same_bytes_even_when_read_back_from_its_json(tmp_path: Path) -> None:
    write.write_files(sample(), tmp_path / "one")
    write.write_files(json.loads((tmp_path / "one" / "report.json").read_text()), tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_page_fetches_nothing_runs_nothing_and_escapes_names(tmp_path: Path) -> None:
    hostile = sample()
    hostile["variants"][0]["name"] = hostile["layers"][0]["name"] = HOSTILE
    hostile["variants"][0]["integer_coverage"] = {"integer": 0, "planned": 0, "total": 1, "float_ops": [HOSTILE]}
    hostile |= {"recipe": HOSTILE, "notes": [HOSTILE], "warnings": [HOSTILE], "seconds": {HOSTILE: 1.0}}
    hostile["verdicts"][0] |= {"check": HOSTILE, "why": HOSTILE}
    hostile["training"] = {HOSTILE: curve(3, 0.5, 0.6)}
    write.write_files(hostile, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert not re.search("https?://|<script", text)
    assert "&lt;script&gt;x&lt;/script&gt;" in text
    assert "<script" not in (tmp_path / "report.md").read_text()


def test_ids_in_the_page_are_unique_and_every_reference_is_met() -> None:
    text = html_report.render(sample(110))
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:"|url\()#([^")]*)', text)) <= set(ids)


@pytest.mark.parametrize("content", [without_figures(), {}, {"variants": [], "verdicts": [], "layers": []}])
def test_missing_figures_are_dashes_and_never_a_crash(content: dict[str, Any], tmp_path: Path) -> None:
    write.write_files(content, tmp_path)
    assert "–" in (tmp_path / "report.html").read_text()
    assert "Nothing ships" in (tmp_path / "report.md").read_text()
    assert "None" not in print_to_text(content, 80) + (tmp_path / "report.html").read_text() + markdown.render(content)


def test_each_figure_alone_may_be_missing(tmp_path: Path) -> None:
    for key in ("accuracy", "accuracy_low", "balanced_low", "latency_ms", "size_bytes", "integer_coverage", "parity"):
        partial = sample()
        for row in partial["variants"]:
            row[key] = None
        write.write_files(partial, tmp_path)
    for key in ("speedup", "speedup_as_shipped", "accuracy_drop", "balanced_drop"):
        write.write_files({**sample(), "ratios": [], key: None}, tmp_path)


def test_figures_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    diverged = sample()
    diverged["training"]["adapt"][0]["loss"] = float("nan")
    diverged["training"]["adapt"][0]["accuracy"] = float("inf")
    write.write_files(diverged, tmp_path)
    kept = json.loads((tmp_path / "report.json").read_text())
    assert kept["training"]["adapt"][0] == {"epoch": 1, "loss": None, "accuracy": None}


def test_a_class_named_in_bytes_that_are_no_text_is_still_written(tmp_path: Path) -> None:
    content = sample()
    content["data"]["classes"] = ["caf\udce9"]
    write.write_files(content, tmp_path)
    assert "caf?" in (tmp_path / "report.md").read_text()


def test_the_variant_that_ships_is_marked_everywhere() -> None:
    content = sample()
    text = html_report.render(content)
    assert '<th scope="row" class="prose">pruned-int8<span class="badge">ships</span></th>' in text
    assert ">pruned-int8 ships<" in text  # in the plot
    assert "**pruned-int8** (ships)" in markdown.render(content)
    assert "pruned-int8 (ships)" in print_to_text(content, 80)


def test_the_key_results_are_accuracy_speedup_size_and_checks() -> None:
    results = {r.name: (r.value, *r.details) for r in key_results.list_key_results(sample())}
    assert results["Accuracy"][:2] == ("83.6 % [82.4, 84.8]", "−0.4 pt [−1.0, +0.2] against dense-fp32")
    assert results["Speed-up"][:2] == ("2.26× [2.21, 2.31]", "median latency 3.21 ms → 1.42 ms, against dense-fp32")
    assert results["Size"][:2] == ("1.12 MB → 171 kB", "6.5× smaller")
    assert results["Checks"][0].startswith("3 of 6 checks pass, ")


def test_a_missed_budget_names_the_check_and_still_shows_the_candidate() -> None:
    missed = {**sample(), "shipped": None, "candidate": "pruned-int8"}
    assert run_report.describe_outcome(missed) == "Nothing ships: pruned-int8 misses size"
    assert key_results.list_key_results(missed)[0].value == "83.6 % [82.4, 84.8]"
    assert variants.tabulate(missed).shipping_row is None


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_summary_fits_its_width_and_has_no_colour_codes_when_piped(width: int) -> None:
    text = print_to_text(sample(), width)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    for name in ("dense-fp32", "pruned-int8-ptq", "83.6 % [82.4, 84.8]", "cannot tell", "171 kB"):
        assert name in text
    header = next(line for line in text.splitlines() if line.lstrip().startswith("Variant "))
    assert ("Speed-up" in header) == ("Change" in header) == (width == 160)


def test_the_terminal_has_colours_where_somebody_sees_them_and_never_reads_names_as_markup() -> None:
    content = sample()
    content["notes"] = ["[red]not markup[/red] [/]"]
    text = print_to_text(content, 80, force_terminal=True, color_system="standard")
    assert "\x1b[32mpass" in text
    assert "[red]not markup[/red] [/]" in text


def test_a_column_that_does_not_fit_is_named_and_the_outcome_comes_last() -> None:
    stream = io.StringIO()
    terminal.print_report(sample(), Console(file=stream, width=80))
    text = stream.getvalue()
    assert "not shown at this width: " in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.rindex("checks pass") > text.rindex("Warning: ") > text.rindex("Outcome")
    wide = io.StringIO()
    terminal.print_report(sample(), Console(file=wide, width=400))
    assert "not shown" not in wide.getvalue()


def test_a_terminal_without_unicode_gets_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal.print_report(sample(), Console(file=stream, width=80))
    stream.seek(0)
    assert "-0.4 pt [-1.0, +0.2]" in stream.read()


@pytest.mark.parametrize(("layers", "columns"), [(4, 1), (20, 2), (110, 4)])
def test_layers_are_split_into_columns_that_stay_legible(layers: int, columns: int) -> None:
    plots = layer_widths.plot_widths(sample(layers))
    assert len(plots) == columns
    assert sum(plot.count(".conv1<") for plot in plots) == layers


def test_labels_of_a_crowded_plot_do_not_cover_each_other() -> None:
    placed: list[Box] = []
    for i in range(8):
        placed.append(place_label((300.0 + 10 * i, 200.0), (80.0, 14.0), placed, (0, 0, 700, 400)))
    boxes = list(enumerate(placed))
    assert all(overlap(a, b) == 0 for i, a in boxes for j, b in boxes if i < j)


def test_the_sample_is_left_as_it_was(tmp_path: Path) -> None:
    content = sample()
    before = copy.deepcopy(content)
    write.write_files(content, tmp_path)
    assert content == before


def test_the_most_sensitive_groups_are_drawn_and_the_rest_stands_in_the_table() -> None:
    content = sample()
    plot = sensitivity_curves.plot_groups(content)
    assert [f">channels{i}.conv1<" in plot for i in range(26)] == [True] * 24 + [False] * 2
    assert plot.count("plan cuts 50 % of 64") == 12
    page = html_report.render(content)
    assert "The other 2 are in the table" in page
    assert "at most ± 3.0 points" in page
    assert all(f"channels{i}.conv1" in page for i in range(26))


def test_the_short_table_has_both_ends_and_the_long_one_what_was_not_measured() -> None:
    short, whole = sensitivity_curves.tabulate(sample()), sensitivity_curves.tabulate_all(sample())
    assert [row[0].split(".")[0] for row in short.rows] == [
        "channels0", "channels1", "channels2", "…", "block0", "block1", "block2",
    ]  # fmt: skip
    assert short.rows[1] == ("channels1.conv1", "64", "77.8 %", "71.5 %", "65.2 %", "–", "50 %", "−12.5 pt")
    assert whole.rows[26][1:] == ("block", "–", "–", "–", "34.0 %", "nothing", "–")
    assert whole.rows[-1][:3] == ("stem", "64", "protected")


def test_a_share_that_is_not_the_usual_one_is_named() -> None:
    row = {**sensitivity_row(1), "shares": [0.0, 1 / 3, 2 / 3, 0.9375]}
    assert sensitivity_curves.tabulate_all({"sensitivity": [row]}).rows[0][2:5] == (
        "77.8 % at 33 %",
        "–",
        "71.5 % at 67 %",
    )


def test_without_sensitivity_there_is_no_section() -> None:
    assert sensitivity_curves.TITLE not in html_report.render({**sample(), "sensitivity": []})
    assert sensitivity_curves.TITLE not in markdown.render({**sample(), "sensitivity": []})
