"""Report section: the candidates that a recipe with an open model chose among, best first, and those left out."""

from typing import TYPE_CHECKING

from toolchain.core.run_report import RunReport
from toolchain.core.types import JsonObject
from toolchain.report import html_page, markdown, number_format
from toolchain.report.table import Table
from toolchain.selection.ranking import pick_best

TITLE = "Model candidates"
LEFT_OUT_TITLE = "Candidates left out"
ORDER = 40
SCORE_TITLES = {  # others by their file's name
    "levels": "Levels",
    "probe": "Probe",
    "logme": "LogME",
    "hscore": "H-score",
    "leep": "LEEP",
}
MAY_SHIP_TEXT = {"yes": "yes", "no": "no", "unknown": "not known"}
RUNTIME_LIBRARIES = ("onnxruntime", "openvino")


def tabulate(report: RunReport) -> Table:
    """Return a row per candidate; none where the recipe names its model."""
    return tabulate_ranking(report.get("selected"))


def render_markdown(report: RunReport) -> str:
    """Return the candidates, and those left out under a heading of their own."""
    left_out = markdown.format_section(LEFT_OUT_TITLE, tabulate_left_out(report.get("selected")))
    parts = (markdown.format_section(TITLE, tabulate(report)), left_out)
    return "\n\n".join(part for part in parts if part)


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the candidates, what was measured to rank them, and those that were left out."""
    ranking = report.get("selected")
    if not ranking:
        return ()
    return (
        html_page.render_table(tabulate_ranking(ranking)),
        html_page.hint(f"{summarize(ranking)}."),
        html_page.render_table(tabulate_left_out(ranking)),
    )


def tabulate_ranking(ranking: JsonObject | None) -> Table:
    """Return a row per candidate, best first; a star marks the Pareto front of score against latency."""
    if ranking is None:
        return Table(columns=(), rows=())
    names = list_score_names(ranking)
    rows = tuple(
        (
            candidate["name"] + (" *" if candidate["front"] else ""),
            *(_format_score(name, candidate) for name in names), _format_latency(candidate),
            number_format.count(candidate["macs"]), _format_size(candidate),
            MAY_SHIP_TEXT[candidate["may_ship"]],
        )
        for candidate in ranking["candidates"]
        if not candidate["error"]
    )  # fmt: skip
    titles = (SCORE_TITLES.get(name, name) for name in names)
    columns = ("Candidate", *titles, "Latency, ms", "MACs", "Size", "May ship")
    optional_columns = (*range(2, 1 + len(names)), len(names) + 2, len(names) + 3)
    return Table(columns=columns, rows=rows, optional_columns=optional_columns)


def list_score_names(ranking: JsonObject) -> list[str]:
    """Return the names of all scores, the one that decides the ranking first."""
    names = {name for candidate in ranking["candidates"] for name in candidate["scores"]}
    return sorted(names, key=lambda name: (name != ranking["score"], name))


def _format_score(name: str, candidate: JsonObject) -> str:
    value, bounds = candidate["scores"].get(name), candidate["bounds"].get(name)
    if value is None:
        return number_format.MISSING
    if bounds:
        interval = number_format.interval(bounds["low"], bounds["high"], number_format.percent)
        return number_format.percent(value) + interval
    return number_format.significant(value)


def _format_latency(candidate: JsonObject) -> str:
    precision = candidate["fastest"]
    if not precision:
        return number_format.MISSING
    return f"{number_format.with_interval(candidate['latency_ms'][precision])} {precision}"


def _format_size(candidate: JsonObject) -> str:
    if candidate["fastest"]:
        return number_format.byte_size(candidate["size_bytes"][candidate["fastest"]])
    return f"{number_format.byte_size(candidate['size_bytes'].get('f32'))} f32"


def tabulate_left_out(ranking: JsonObject | None) -> Table:
    """Return a row per candidate that could not be loaded or measured, with the reason."""
    candidates = ranking["candidates"] if ranking else ()
    rows = tuple((candidate["name"], candidate["error"]) for candidate in candidates if candidate["error"])
    return Table(columns=("Left out", "Why"), rows=rows, text_columns=(0, 1))


def summarize(ranking: JsonObject) -> str:
    """Return the first candidate with the reason, and the images and the target behind the ranking, in one line."""
    best, why = pick_best(ranking)
    name, why = (ranking["chosen"], ranking["why"]) if "chosen" in ranking else (best["name"], why)
    versions = ", ".join(
        f"{library} {version}" for library, version in ranking["versions"].items() if library in RUNTIME_LIBRARIES
    )
    timed = any(candidate["fastest"] for candidate in ranking["candidates"])
    costs = (
        f"latency and size of untrained copies on {ranking['target']} ({versions}), in float or int8, whichever is faster. "
        "* marks the Pareto front of score against latency"
        if timed
        else "nothing was timed"
    )
    return (
        f"First: {name} ({why}). Scores on {ranking['images']['train']:,} training and {ranking['images']['val']:,} "
        f"validation images of {ranking['domain']} at {number_format.image_size(ranking['image_size'])}; {costs}"
    )


if TYPE_CHECKING:
    from toolchain.report.section import MarkdownSection
    from toolchain.report.sections import model_candidates as _this_module

    _: MarkdownSection = _this_module  # mypy compares this module with the protocol
