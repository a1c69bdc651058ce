"""The result of `toolchain parity` in words and tables: where each runtime deviates from torch, which layers run in float."""

from collections.abc import Mapping, Sequence

from toolchain.core.types import JsonObject
from toolchain.report import number_format
from toolchain.report.table import Table

MAX_LAYER_ROWS = 24  # on a terminal; parity.json has all layers
MIN_SHOWN_SHARE = 0.001  # of values that differ; a smaller share is only said to be below this


def tabulate(variant: JsonObject) -> tuple[Table, Table]:
    """Return the int8 coverage by runtime and the difference by layer."""
    return tabulate_coverage(variant), tabulate_layers(variant)


def tabulate_coverage(variant: JsonObject) -> Table:
    """Return a row per runtime: layers in int8, and the names of those that fell back to float."""
    covered = [
        (
            f"{variant['name']} in {runtime}",
            *(str(coverage[key]) for key in ("integer", "planned", "total")),
            ", ".join(coverage["fell_back"]) or "none",
            str(len(coverage["meant_as_float"])),
        )
        for runtime, coverage in variant["coverage"].items()
    ]
    missing = [
        (f"{variant['name']} in {runtime}", *[number_format.MISSING] * 3, _shorten_reason(why), number_format.MISSING)
        for runtime, why in variant["missing"].items()
        if "unoptimized" not in runtime
    ]
    columns = ("Runs", "In int8", "Planned", "Total", "Fell back to float", "Float as planned")
    return Table(columns=columns, rows=(*covered, *missing), text_columns=(0, 4))


def _shorten_reason(why: str) -> str:
    return "not installed" if "not installed" in why else why


def tabulate_layers(variant: JsonObject) -> Table:
    """Return the largest difference from torch, in steps, by layer and side, with the share of values that differ.

    Layers where a side first deviates come with those that differ most; the last row is the logits.
    """
    layers, sides = variant["layers"], variant["sides"]
    shown = _choose_layers(layers, {deviation["layer"] for deviation in _list_deviations(variant)})
    rows = [(layer["layer"], *(_format_side(layer["sides"], side, variant) for side in sides)) for layer in shown]
    logits = ("logits", *(_format_logits(variant, side) for side in sides))
    rest = len(layers) - len(shown)
    if rest:
        rows.append(
            (f"{rest} {'more, which differ less' if shown else 'layers, none of which differs'}", *[""] * len(sides))
        )
    return Table(columns=("Steps from torch", *sides), rows=(*rows, logits), text_columns=(0,))


def _list_deviations(variant: JsonObject) -> list[JsonObject]:
    return [deviation for key in ("parts", "spreads") for deviation in variant[key].values() if deviation]


def _choose_layers(layers: Sequence[JsonObject], named: set[str]) -> list[JsonObject]:
    """Return the named layers and those that differ most, at most MAX_LAYER_ROWS, in the order of the graph."""

    def rank(layer: JsonObject) -> tuple[bool, float, float]:
        sides = [side for side in layer["sides"].values() if side]
        share = max((side["differing"] for side in sides), default=0.0)
        steps = max((side["max_steps"] for side in sides), default=0.0) if share else 0.0
        return layer["layer"] in named, steps, share

    differing = [i for i in range(len(layers)) if any(rank(layers[i]))]
    return [layers[i] for i in sorted(sorted(differing, key=lambda i: rank(layers[i]), reverse=True)[:MAX_LAYER_ROWS])]


def _format_side(sides: Mapping[str, JsonObject | None], name: str, variant: JsonObject) -> str:
    if name in variant["missing"]:
        return _describe_missing(variant["missing"][name])
    difference = sides.get(name)
    return "fused" if difference is None else _format_difference(difference)


def _format_difference(difference: JsonObject) -> str:
    share = difference["differing"]
    text = "< 0.1 %" if share < MIN_SHOWN_SHARE else number_format.percent(share)
    return number_format.steps(difference["max_steps"]) + (f" ({text})" if share else "")


def _describe_missing(why: str) -> str:
    return "not installed" if "not installed" in why else "refused"


def _format_logits(variant: JsonObject, side: str) -> str:
    if side in variant["missing"]:
        return _describe_missing(variant["missing"][side])
    return _format_agreement(variant["logits"][side], ",")


def _format_agreement(logits: JsonObject, separator: str) -> str:
    steps, agreement = number_format.steps(logits["max_steps"]), number_format.percent(logits["top1_agreement"])
    return f"{steps}{separator} {agreement} same class"


def describe_differences(variant: JsonObject, result: JsonObject) -> list[str]:
    """Return a sentence per side: where it first deviates from torch, what it fuses; and one on the trained model."""
    sentences = []
    for side in variant["sides"]:
        if side in variant["missing"]:
            sentences.append(f"{variant['name']}, {side}: {_shorten_reason(variant['missing'][side])}")
            continue
        first, widespread = variant["parts"][side], variant["spreads"][side]
        where = f"within {result['threshold_steps']:g} steps of torch in every layer"
        if first:
            where = f"first deviates from torch in {first['layer']}, {_format_difference(first)}"
        if widespread:
            where += f"; differs in many values from {widespread['layer']} on, {_format_difference(widespread)}"
        sentences.append(f"{variant['name']}, {side}: {where}")
        if variant["fused"][side]:
            sentences.append(
                f"{variant['name']}, {side}: {len(variant['fused'][side])} results are fused into the operator that reads them, "
                "so they are never rounded on their own (parity.json names them)"
            )
    if variant["trained"]:
        agreement = _format_agreement(variant["trained"], " steps,")
        sentences.append(
            f"{variant['name']}: exported graph in torch's arithmetic against the trained model: {agreement}"
        )
    return sentences
