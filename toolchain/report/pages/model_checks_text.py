"""The result of `toolchain check-model` in words and tables, and all of it on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from toolchain.quantization import placement
from toolchain.report import number_format
from toolchain.report.table import Table
from toolchain.report.terminal import make_text, print_tables
from toolchain.selection.check_model.finding import CheckedLayer, Finding, ModelCheck, Status, describe_abilities

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid

STATUS_COLOURS: Mapping[Status, str] = {
    "pass": "green",
    "warning": "yellow",
    "blocks": "bold red",
    "not_measured": "dim",
}
TERMINAL_BLOCKS = 20
BAR_WIDTH = 16  # characters of the largest block's bar
Ability = Literal["prunable, int8", "int8 only", "prunable only", "neither", "not known"]
ABILITIES: tuple[Ability, ...] = ("prunable, int8", "int8 only", "prunable only", "neither", "not known")


@dataclass(frozen=True)
class BlockOfLayers:
    """The layers of one block of the model's own structure."""

    name: str
    layers: tuple[CheckedLayer, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        return sum(layer.macs for layer in self.layers)

    def share(self, field: Literal["prunable", "int8"]) -> float | None:
        """Return the share of the multiply-accumulates in prunable or int8 layers; None where that is not known."""
        if any(getattr(layer, field) is None for layer in self.layers):
            return None
        return sum(layer.macs for layer in self.layers if getattr(layer, field)) / max(self.macs, 1)

    def macs_by_ability(self) -> dict[Ability, int]:
        """Return the multiply-accumulates by what can be done with the layers."""
        return {ability: sum(l.macs for l in self.layers if ability_of(l) == ability) for ability in ABILITIES}  # noqa: E741


def ability_of(layer: CheckedLayer) -> Ability:
    """Return what can be done with a layer."""
    if layer.prunable is None or layer.int8 is None:
        return "not known"
    if layer.prunable:
        return "prunable, int8" if layer.int8 else "prunable only"
    return "int8 only" if layer.int8 else "neither"


def divide_into_blocks(check: ModelCheck, limit: int) -> list[BlockOfLayers]:
    """Return the layers in at most `limit` blocks along the model's own structure, in running order."""
    if not check.layers:
        return []
    names = placement.split_into_blocks([layer.name for layer in check.layers], limit)
    blocks = []
    for name in names:
        layers = tuple(layer for layer in check.layers if layer.name == name or layer.name.startswith(f"{name}."))
        blocks.append(BlockOfLayers(name, layers))
    return [block for block in blocks if block.layers]


def title(check: ModelCheck) -> str:
    """Return the model, the image size, the target and where the weights come from."""
    size = number_format.image_size(check.image_size)
    return f"{check.name} · {size} · {check.target} ({check.runtime}) · {check.weights} · {number_format.duration(check.seconds)}"


def describe_outcome(check: ModelCheck) -> str:
    """Return what the pipeline can do, and how many warnings there are."""
    warnings = sum(finding.status == "warning" for finding in check.findings)
    counted = {0: "", 1: ", 1 warning"}.get(warnings, f", {warnings} warnings")
    return f"{describe_abilities(check)}{counted}"


def tabulate_forms(check: ModelCheck) -> Table:
    """Return a row per form that was compiled: multiply-accumulates, size, latency, speed-up over float32."""
    rows = []
    for form in check.forms:
        latency, speedup = form.latency_ms, form.speedup
        rows.append((
            form.name, number_format.count(form.macs), number_format.byte_size(form.size_bytes),
            number_format.MISSING if latency is None else number_format.milliseconds(latency.estimate)
            + number_format.interval(latency.low, latency.high, number_format.significant),
            number_format.MISSING if speedup is None else number_format.speedup(vars(speedup)),
        ))  # fmt: skip
    return Table(columns=("Form", "MACs", "Size", "Latency", "Speed-up over f32"), rows=tuple(rows))


def tabulate_blocks(check: ModelCheck, limit: int) -> Table:
    """Return a row per block: its share of the multiply-accumulates, with a bar, and how much is prunable and int8."""
    blocks = divide_into_blocks(check, limit)
    largest = max((block.macs for block in blocks), default=1)
    rows = tuple(
        (
            number_format.shorten_name(block.name), "█" * max(1, round(BAR_WIDTH * block.macs / max(largest, 1))),
            number_format.percent(block.macs / max(check.macs, 1)), number_format.whole_percent(block.share("prunable")),
            number_format.whole_percent(block.share("int8")),
        )
        for block in blocks
    )  # fmt: skip
    return Table(columns=("Block", "MACs", "", "Prunable", "int8"), rows=rows, text_columns=(0, 1))


def tabulate_kept_layers(check: ModelCheck) -> Table:
    """Return a row per layer that keeps all its output channels or runs in float, and why."""
    rows = tuple(
        (layer.name, number_format.percent(layer.macs / max(check.macs, 1)), _yes(layer.prunable), _yes(layer.int8), layer.obstacle)
        for layer in check.layers
        if layer.obstacle or not layer.prunable or not layer.int8
    )  # fmt: skip
    columns = ("Layer", "MACs", "Prunable", "int8", "Why its output channels stay")
    return Table(columns=columns, rows=rows, text_columns=(0, 4))


def _yes(value: bool | None) -> str:
    return number_format.MISSING if value is None else "yes" if value else "no"


def humanize(status: Status) -> str:
    """Return a status in words."""
    return status.replace("_", " ")


def print_results(check: ModelCheck, console: "Console | None" = None) -> None:
    """Print blocks, forms, the outcome and every finding; without colours where the output is no terminal."""
    from rich.console import Console

    out = console or Console(highlight=False)
    print_tables([tabulate_blocks(check, TERMINAL_BLOCKS), tabulate_forms(check)], out)
    out.print()
    out.print(make_text(out, title(check), "dim"))
    out.print(make_text(out, describe_outcome(check), "bold red" if check.blocking else "bold"))
    out.print(_lay_out_findings(out, check.findings))


def _lay_out_findings(out: "Console", findings: Sequence[Finding]) -> "Grid":
    """Lay out status and check on the left, and the sentences on the right: meaning, the code's line, what to do."""
    from rich.table import Table as Grid

    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column()
    for finding in findings:
        text = make_text(out, finding.text)
        if finding.line:
            text.append("\n").append_text(make_text(out, finding.line, "cyan"))
        if finding.action:
            text.append("\n").append_text(make_text(out, f"→ {finding.action}", "bold"))
        status = make_text(out, humanize(finding.status), STATUS_COLOURS[finding.status])
        grid.add_row(status, make_text(out, finding.check.replace("_", " "), "dim"), text)
    return grid
