"""What `parity` found in words and tables: who parts from torch where, and which layers fell back to float."""

from collections.abc import Mapping, Sequence

from toolchain.core.types import JsonObject
from toolchain.report import number_format
from toolchain.report.table import Table

MAX_LAYER_ROWS = 24  # rows of layers on a terminal; all of them stand in parity.json
MIN_SHOWN_SHARE = 0.001  # share of values below which no figure says more than that there are few


def tabulate(variant: JsonObject) -> tuple[Table, Table]:
    """Integer coverage by runtime, and difference by layer."""
    return tabulate_coverage(variant), tabulate_layers(variant)


def tabulate_coverage(variant: JsonObject) -> Table:
    """Integer kernels of each runtime; the names of layers that fell back."""
    rows = [
        (
            f"{variant['name']} in {name}",
            *(str(found[key]) for key in ("integer", "planned", "total")),
            ", ".join(found["fell_back"]) or "none",
            str(len(found["meant_as_float"])),
        )
        for name, found in variant["coverage"].items()
    ]
    absent = [
        (f"{variant['name']} in {n}", *[number_format.MISSING] * 3, _absent(why), number_format.MISSING)
        for n, why in _gone(variant)
    ]
    columns = ("Runs", "In integers", "Planned", "In all", "Fell back to float", "Float as planned")
    return Table(columns=columns, rows=(*rows, *absent), text_columns=(0, 4))


def _gone(variant: JsonObject) -> list[tuple[str, str]]:
    return [(name, why) for name, why in variant["missing"].items() if "unoptimized" not in name]


def _absent(why: str) -> str:
    return "not installed" if "not installed" in why else why


def tabulate_layers(variant: JsonObject) -> Table:
    """Largest difference from torch in steps, with the share of values that differ: the first, the worst, the logits."""
    every, sides = variant["layers"], variant["sides"]
    shown = _shown(every, {place["layer"] for place in _places(variant)})
    rows = [(one["layer"], *(_cell(one["sides"], side, variant) for side in sides)) for one in shown]
    answers = ("answers", *(_answer(variant, side) for side in sides))
    left = len(every) - len(shown)
    more = [(f"{left} {'more, which differ less' if shown else 'layers, none of which differs'}", *[""] * len(sides))]
    return Table(
        columns=("Steps from torch", *sides), rows=(*rows, *(more if left else ()), answers), text_columns=(0,)
    )


def _places(variant: JsonObject) -> list[JsonObject]:
    return [place for key in ("parts", "spreads") for place in variant[key].values() if place]


def _shown(every: Sequence[JsonObject], named: set[str]) -> list[JsonObject]:
    """In the order of the graph: those where sides part ways, then the worst, as many as there is room for."""

    def worst(one: JsonObject) -> tuple[bool, float, float]:
        found = [side for side in one["sides"].values() if side]
        share = max((side["differing"] for side in found), default=0.0)
        return one["layer"] in named, max((side["max_steps"] for side in found), default=0.0) if share else 0.0, share

    differing = [i for i in range(len(every)) if any(worst(every[i]))]
    return [every[i] for i in sorted(sorted(differing, key=lambda i: worst(every[i]), reverse=True)[:MAX_LAYER_ROWS])]


def _cell(found: Mapping[str, JsonObject | None], side: str, variant: JsonObject) -> str:
    if side in variant["missing"]:
        return _short(variant["missing"][side])
    one = found.get(side)
    return "fused" if one is None else _figure(one)


def _figure(one: JsonObject) -> str:
    share = "< 0.1 %" if one["differing"] < MIN_SHOWN_SHARE else number_format.percent(one["differing"])
    return number_format.steps(one["max_steps"]) + (f" ({share})" if one["differing"] else "")


def _short(why: str) -> str:
    return "not installed" if "not installed" in why else "refused"


def _answer(variant: JsonObject, side: str) -> str:
    if side in variant["missing"]:
        return _short(variant["missing"][side])
    one = variant["logits"][side]
    return f"{number_format.steps(one['max_steps'])}, {number_format.percent(one['top1_agreement'])} same class"


def describe_differences(variant: JsonObject, written: JsonObject) -> list[str]:
    """Where each side parts from torch, what a runtime fused away, and how far the trained model is."""
    said = []
    for side in variant["sides"]:
        if side in variant["missing"]:
            said.append(f"{variant['name']}, {side}: {_absent(variant['missing'][side])}")
            continue
        parts, spreads = variant["parts"][side], variant["spreads"][side]
        within = f"within {written['threshold_steps']:g} steps of torch in every layer"
        where = f"parts from torch first in {parts['layer']}, {_figure(parts)}" if parts else within
        wide = f"; differs in many values from {spreads['layer']} on, {_figure(spreads)}" if spreads else ""
        said.append(f"{variant['name']}, {side}: {where}{wide}")
        if variant["fused"][side]:
            said.append(
                f"{variant['name']}, {side}: {len(variant['fused'][side])} results are never rounded on their own "
                "(fused into what reads them; parity.json names them)"
            )
    if variant["trained"]:
        one = variant["trained"]
        said.append(
            f"{variant['name']}: exported graph with torch's arithmetic against the trained model: "
            f"{number_format.steps(one['max_steps'])} steps, {number_format.percent(one['top1_agreement'])} same class"
        )
    return said
