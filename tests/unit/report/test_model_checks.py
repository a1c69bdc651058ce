"""A model's check on the terminal and as a page: what blocks comes first, with its line, and nothing is wider than 80."""

import io
from dataclasses import replace

from rich.console import Console

from toolchain.core.types import Interval
from toolchain.report.pages import model_checks, model_checks_text
from toolchain.selection.check_model.finding import CheckedLayer, Finding, ModelCheck, TimedForm


def interval(value: float) -> Interval:
    return Interval(estimate=value, low=0.9 * value, high=1.1 * value, samples=3)


def layer(
    name: str, macs: int, *, prunable: bool | None = True, int8: bool | None = True, obstacle: str = ""
) -> CheckedLayer:
    return CheckedLayer(
        name=name, kind="spatial", macs=macs, parameters=10, prunable=prunable, int8=int8, obstacle=obstacle
    )


CHECK = ModelCheck(
    name="net.py:build", target="cpu", runtime="onnxruntime", weights="<random>", image_size=(96, 64), classes=5,
    parameters=1000, macs=1000, most_prunable=0.62,
    findings=(
        Finding(check="runs", status="pass", text="It runs on images of 96×64."),
        Finding(check="batch", status="blocks", text="It does not run on two images at once.", line="net.py, line 7: x.view(1, 2)",
                action="Keep the first dimension."),
        Finding(check="softmax", status="warning", text="The model ends with <softmax>.", action="Return the logits."),
    ),
    layers=(
        layer("stem", 100, prunable=False, obstacle="it meets a grouped convolution"),
        layer("blocks.0.conv", 500), layer("blocks.1.conv", 300, int8=False), layer("head", 100, prunable=False, int8=False),
    ),
    forms=(
        TimedForm(name="f32", precision="f32", macs=1000, size_bytes=4000, latency_ms=interval(2.0)),
        TimedForm(name="int8", precision="int8", macs=1000, size_bytes=1000, latency_ms=interval(1.0), speedup=interval(2.0)),
        TimedForm(name="pruned int8", precision="int8", macs=500, size_bytes=600, latency_ms=interval(0.5), speedup=interval(4.0)),
    ),
)  # fmt: skip
CLEAN = replace(CHECK, findings=CHECK.findings[:1])


def printed(check: ModelCheck, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    model_checks_text.print_results(check, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_shows_outcome_line_and_action_within_eighty_columns() -> None:
    text = printed(CHECK)
    assert max(map(len, text.splitlines())) <= 80
    assert "Blocked: batch, 1 warning" in text
    assert "net.py, line 7: x.view(1, 2)" in text
    assert "→ Keep the first dimension." in text
    assert "4.00× [3.60, 4.40]" in text


def test_what_is_possible_is_said_in_words() -> None:
    assert model_checks_text.describe_outcome(CLEAN) == "Can be pruned and quantized"
    kept = tuple(replace(entry, prunable=False) for entry in CHECK.layers)
    assert model_checks_text.describe_outcome(replace(CLEAN, layers=kept)).startswith("Quantize only")
    floating = tuple(replace(entry, int8=False) for entry in CHECK.layers)
    assert model_checks_text.describe_outcome(replace(CLEAN, layers=floating)).startswith("Prune only")
    unknown = tuple(replace(entry, int8=None) for entry in CHECK.layers)
    assert "int8 is not known" in model_checks_text.describe_outcome(replace(CLEAN, layers=unknown))


def test_blocks_follow_the_models_structure_and_are_divided_by_what_can_be_done() -> None:
    blocks = {block.name: block for block in model_checks_text.divide_into_blocks(CHECK, 4)}
    assert list(blocks) == ["stem", "blocks.0", "blocks.1", "head"]
    assert blocks["stem"].macs_by_ability()["int8 only"] == 100
    assert blocks["blocks.1"].macs_by_ability()["prunable only"] == 300
    assert blocks["head"].share("prunable") == 0


def test_the_page_leads_with_what_to_do_and_escapes_what_it_shows() -> None:
    page = model_checks.render_html(CHECK)
    assert page.index("What to do") < page.index("The network, block by block") < page.index("What passes")
    assert "&lt;softmax&gt;" in page
    assert "<softmax>" not in page
    assert "&lt;random&gt;" in page
    assert page.count("<svg") == 2
    assert "runs in int8, cannot be pruned" in page  # the legend names the colours that occur
    assert "it meets a grouped convolution" in page
    assert "<script" not in page


def test_a_page_without_layers_and_latency_is_a_page() -> None:
    page = model_checks.render_html(replace(CHECK, layers=(), forms=(), most_prunable=None))
    assert "What to do" in page
    assert "<svg" not in page
    untimed = tuple(replace(form, latency_ms=None, speedup=None) for form in CHECK.forms)
    assert model_checks.render_html(replace(CHECK, forms=untimed)).count("<svg") == 1
