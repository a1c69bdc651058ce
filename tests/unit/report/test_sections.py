"""Every report section that is found keeps its contract, and each appears in the document only with its own content."""

from typing import Any

import pytest
from test_report import sample

from toolchain.core import registry
from toolchain.report import html_report, markdown
from toolchain.report.section import MarkdownSection, Section, TerminalSection, load_sections
from toolchain.report.table import Table

NAMES = registry.list_modules("sections")


def interval(estimate: float) -> dict[str, Any]:
    return {"estimate": estimate, "low": estimate - 0.02, "high": estimate + 0.02, "samples": 200}


def candidate(name: str, error: str = "") -> dict[str, Any]:
    return {
        "name": name, "error": error, "front": not error, "scores": {"levels": 0.4}, "bounds": {}, "fastest": "int8",
        "latency_ms": {"int8": {"estimate": 1.2, "low": 1.1, "high": 1.3}}, "macs": 1_000_000, "may_ship": "yes",
        "size_bytes": {"f32": 400, "int8": 100}, "licence": "",
    }  # fmt: skip


def full() -> dict[str, Any]:
    """A report in which every section has content."""
    depths = [
        {
            "block": f"features.{i}", "macs": 1000, "levels": 0.1 * i, "untrained_levels": 0.05 * i,
            "accuracy": interval(0.6), "untrained": interval(0.5), "gain": interval(0.1),
        }
        for i in range(4)
    ]  # fmt: skip
    advice = {
        "model": "net", "reuse": {"keep": "features.2", "fresh": "", "freeze": ""}, "speedup": 1.5, "why": ["reasons"],
        "depths": depths,
    }  # fmt: skip
    seeds = [
        {"seed": i, "validation": 0.8, "validation_balanced": 0.79, "epoch": 3, "chosen": i == 1} for i in range(3)
    ]
    joined = {
        "name": "more", "images": 300, "weight": 0.5, "gain": interval(0.01), "balanced_gain": interval(0.005), "kept": True,
        "left_out": ["x"], "leaked": 3, "corrupt": 1,
    }  # fmt: skip
    placements = [
        {"label": "all", "precision": "int8", "latency_ms": 0.27, "speedup": 1.8},
        {"label": "float, f32", "precision": "f32", "latency_ms": 0.46, "speedup": 1.0},
    ]
    return {
        **sample(),
        "selected": {
            "candidates": [candidate("net"), candidate("gone", "weights file gone.safetensors is not there")],
            "score": "levels", "target": "cpu", "domain": "solar-modules", "image_size": [32, 32],
            "images": {"train": 81, "val": 15}, "versions": {}, "chosen": "net", "why": "highest score",
        },
        "reuse": {"used": {}, "advice": advice},
        "image_sizes": [{"size": [size, size], "latency": 0.4, "reached": 0.7, "images": 500} for size in (24, 32)],
        "adapt": {"seeds": seeds, "joined": [joined]},
        "placement": {"dense": {"label": "all", "float_wins": False, "tried": placements, "seconds": 4.3}},
        "calibration": {"dense": [{"method": "minmax", "correction": "bias", "divergence": 0.01, "accuracy": 0.83}]},
        "control": {
            "ranking": [{"block": "layer1", "accuracy": 0.84, "divergence": 0.01, "slowdown": 1.1, "returned": True}]
        },
        "onnx_file": {
            "file": "net.onnx", "sha256": "0" * 64, "producer": "pytorch", "opset": 17, "input": "x, float32 [any, 3, 8, 8]",
            "classes": 2, "changes": ["any batch size: fixed to 1"], "warnings": [],
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("report", [full(), {}], ids=["full", "empty"])
def test_a_section_keeps_its_contract(name: str, report: dict[str, Any]) -> None:
    section = registry.load_module("sections", name)
    assert section.TITLE
    assert isinstance(section.ORDER, int)
    table = section.tabulate(report)
    assert isinstance(table, Table)
    assert {len(row) for row in table.rows} <= {len(table.columns)}
    assert {*table.text_columns, *table.optional_columns} <= set(range(len(table.columns))) or not table.rows
    parts = section.render_html(report)
    assert isinstance(parts, tuple)
    assert all(isinstance(part, str) for part in parts)


@pytest.mark.parametrize("section", load_sections(), ids=lambda section: section.__name__.rpartition(".")[2])
def test_a_section_is_shown_under_its_title_in_markdown_and_html(section: Section) -> None:
    report = full()
    assert f"## {section.TITLE}\n\n" in markdown.render(report)
    assert f"<h2>{section.TITLE}</h2>" in html_report.render(report)


def test_sections_stand_in_their_order() -> None:
    sections = load_sections()
    assert len({section.ORDER for section in sections}) == len(sections) == len(NAMES)
    text, page = markdown.render(full()), html_report.render(full())
    places = [(text.index(f"## {s.TITLE}\n"), page.index(f"<h2>{s.TITLE}</h2>")) for s in sections]
    assert places == sorted(places)
    assert [place[1] for place in places] == sorted(place[1] for place in places)


def test_sections_say_where_they_differ_from_a_table_under_a_heading() -> None:
    sections = {section.__name__.rpartition(".")[2]: section for section in load_sections()}  # type: ignore[attr-defined]
    in_terminal = [name for name, section in sections.items() if isinstance(section, TerminalSection)]
    in_terminal.sort(key=lambda name: sections[name].TERMINAL_ORDER)  # type: ignore[attr-defined]
    assert in_terminal == ["sensitivity_curves", "variants", "verdicts"]
    assert {n for n, s in sections.items() if isinstance(s, MarkdownSection)} == {"model_candidates", "reuse_depths"}


@pytest.mark.parametrize("key", full())
def test_a_report_that_lacks_a_key_is_still_written(key: str) -> None:
    report = {name: value for name, value in full().items() if name != key}
    assert markdown.render(report).startswith("# ")
    assert html_report.render(report).endswith("</html>\n")


def test_candidates_left_out_have_a_heading_in_markdown_and_a_table_in_html() -> None:
    assert "\n\n## Candidates left out\n\n" in markdown.render(full())
    assert "gone.safetensors" in html_report.render(full())
    assert "<h2>Candidates left out" not in html_report.render(full())


def test_training_without_any_accuracy_is_a_table_in_markdown_alone() -> None:
    report = {**full(), "training": {"adapt": [{"epoch": 1, "loss": 0.3, "accuracy": None}]}}
    assert "## Training\n" in markdown.render(report)
    assert "<h2>Training</h2>" not in html_report.render(report)
