"""The result of a gate in the formats that CI reads: JSON, Markdown, JUnit XML, annotations of GitHub and GitLab.

All are made from one plain dict, so that they cannot disagree.
"""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolchain.config.target import Target
from toolchain.core import files, run_report
from toolchain.core.types import JsonObject
from toolchain.gates import outcomes, regression_gate
from toolchain.gates.regression_gate import BASELINE, CANDIDATE, GateResult
from toolchain.measure import machine, paired_rounds, paired_timing
from toolchain.report import markdown, number_format
from toolchain.report.table import Table

SCHEMA = 1
WAIVED = "waived"  # the shown outcome of a check that was not measured and that the user waived
OUTCOME_TEXT = {
    "pass": "no regression",
    "fail": "regression",
    "not_measured": "incomplete: a check was not measured",
    "cannot_tell": "cannot tell: the measurements show neither a regression nor its absence",
}
GITHUB_SEVERITY = {
    "fail": "error",
    "not_measured": "error",
    "cannot_tell": "warning",
    WAIVED: "warning",
}  # the levels that GitHub knows

JUNIT_ELEMENTS = {  # outcome: the element in a test case, and the attribute that counts it
    "fail": ("failure", "failures"),
    "not_measured": ("failure", "failures"),
    "cannot_tell": ("error", "errors"),
    WAIVED: ("skipped", "skipped"),
}


def build_result(gated: Sequence[GateResult], target: Target) -> dict[str, Any]:
    """Return the whole result as plain data: what gate.json holds."""
    pair = gated[0].pair
    outcome = outcomes.worst("gate", [outcome for gate in gated for outcome in gate.outcomes])
    device = pair.candidate.timed_model.device
    return {
        "schema": SCHEMA,
        "target": target.name,
        "outcome": outcome,
        "exit_status": regression_gate.exit_status(gated),
        "device": device,
        "machine": dict(machine.describe(device)),
        "versions": {
            name: dict(paired_timing.versions(model.timed_model))
            for name, model in ((CANDIDATE, pair.candidate), (BASELINE, pair.baseline))
        },
        "threads": target.threads,
        "allowed": files.to_jsonable(target.gate),
        "gates": [_describe_gate(gate) for gate in gated],
    }


def _describe_gate(gate: GateResult) -> dict[str, Any]:
    models = {CANDIDATE: gate.pair.candidate, BASELINE: gate.pair.baseline}
    identities = {
        name: {
            "sha256": model.artefact.sha256,
            "size_bytes": model.artefact.size_bytes,
            "precision": model.timed_model.precision,
        }
        for name, model in models.items()
    }
    return {
        "recipe": gate.pair.recipe,
        **identities,
        "outcome": outcomes.worst("gate", gate.outcomes),
        "waived": list(gate.waived),
        "accuracy": files.to_jsonable(gate.candidate_accuracy),
        "verdicts": files.to_jsonable(gate.verdicts),
        "latency": files.to_jsonable(gate.latency_test),
        "p50_ms": {name: files.to_jsonable(paired_rounds.p50(gate.rounds, name)) for name in models},
        "rounds": files.to_jsonable(gate.rounds),
    }


FILE_NAMES = ("gate.json", "gate.md", "gate.xml", "gate.codequality.json")


def remove_files(folder: Path) -> None:
    """Remove the files of an earlier gate, so that they are not read as the result of one that could not run."""
    for name in FILE_NAMES:
        (folder / name).unlink(missing_ok=True)


def write(result: JsonObject, folder: Path) -> None:
    """Write gate.json, gate.md, gate.xml (JUnit) and gate.codequality.json (GitLab)."""
    files.write_json(folder / "gate.json", result)
    files.write_text(folder / "gate.md", render_markdown(result))
    files.write_text(folder / "gate.xml", render_junit(result))
    files.write_json(folder / "gate.codequality.json", build_code_quality(result))


def describe_outcome(result: JsonObject) -> str:
    """Return the outcome in one line: the checks that decide it, and how many of all checks pass."""
    verdicts = _verdicts(result)
    deciding = [
        f"{row['recipe']} {run_report.humanize(v['check'])}"
        for row, v in verdicts
        if _outcome(row, v) == result["outcome"] != "pass"
    ]
    waived = [f"{row['recipe']} {run_report.humanize(v['check'])}" for row, v in verdicts if _outcome(row, v) == WAIVED]
    return (
        f"{result['target']}: {OUTCOME_TEXT[result['outcome']]}"
        + (f" ({', '.join(deciding)})" if deciding else "")
        + f"; {outcomes.summarize(v['outcome'] for _, v in verdicts)}"
        + (f"; waived: {', '.join(waived)}" if waived else "")
    )


def _outcome(row: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    """Return the outcome as it is shown: a waived check says so."""
    return WAIVED if verdict["check"] in row.get("waived", ()) else str(verdict["outcome"])


def _verdicts(result: JsonObject) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(row, verdict) for row in result["gates"] for verdict in row["verdicts"]]


def tabulate_checks(result: JsonObject) -> Table:
    """Return a row per check of every recipe."""
    rows = tuple(
        (
            row["recipe"], run_report.humanize(v["check"]), _describe_verdict(row, v),
            number_format.verdict_value(v["check"], v["measured"]), number_format.verdict_value(v["check"], v["limit"], limit=True), v["why"],
        )
        for row, v in _verdicts(result)
    )  # fmt: skip
    return Table(
        columns=("Recipe", "Check", "Outcome", "Measured", "Allowed", "Why"),
        rows=rows,
        text_columns=(0, 1, 2, 5),
        optional_columns=(5,),
    )


def _describe_verdict(row: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    waived = _outcome(row, verdict) == WAIVED
    return run_report.humanize(verdict["outcome"]) + (", waived" if waived else "")


def tabulate_latencies(result: JsonObject) -> Table:
    """Return a row per recipe with both latencies; milliseconds are for scale, never compared with another job's."""
    rows = tuple(
        (
            row["recipe"], *(number_format.with_interval(row["p50_ms"][name]) for name in (CANDIDATE, BASELINE)),
            _ratio(row["latency"]["candidate"]["slower"]), _ratio(row["latency"]["control"]["slower"]),
            str(len(row["rounds"])), number_format.relative_change(row["latency"]["candidate"]["detectable"]),
        )
        for row in result["gates"]
    )  # fmt: skip
    columns = (
        "Recipe",
        "Candidate, ms",
        "Baseline, ms",
        "Candidate / baseline",
        "Baseline / itself",
        "Rounds",
        "Detectable",
    )
    return Table(columns=columns, rows=rows, optional_columns=(1, 2, 5, 4))


def _ratio(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def render_markdown(result: JsonObject) -> str:
    """Return a summary for the page of a CI job."""
    machine_facts, versions = result["machine"], result["versions"]
    runtimes = dict.fromkeys(" ".join(f"{k} {v}" for k, v in versions[name].items()) for name in (CANDIDATE, BASELINE))
    where = (
        f"{machine_facts['cpu']} ({machine_facts['isa']}), {result['threads']} thread(s), {' against '.join(runtimes)}"
    )
    parts = [
        f"# Gate: {markdown.escape(describe_outcome(result))}",
        markdown.format_table(tabulate_checks(result)),
        markdown.format_table(tabulate_latencies(result)),
        "Candidate and baseline took turns in the same processes. Milliseconds (p50) are for scale and are not compared with "
        "those of any other job. Detectable: the smallest slowdown that these rounds could have shown. "
        f"{markdown.escape(where)}.",
    ]
    return "\n\n".join(parts) + "\n"


def render_junit(result: JsonObject) -> str:
    """Return JUnit XML, which Jenkins, GitLab and GitHub Actions show: a test suite per recipe, a test case per check."""
    suites = ElementTree.Element("testsuites", name=f"gate {result['target']}")
    for row in result["gates"]:
        verdicts = row["verdicts"]
        suite = ElementTree.SubElement(suites, "testsuite", name=f"{row['recipe']} on {result['target']}")
        counts = {"tests": len(verdicts), "failures": 0, "errors": 0, "skipped": 0}
        for verdict in verdicts:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"gate.{result['target']}.{row['recipe']}", name=verdict["check"]
            )
            outcome = _outcome(row, verdict)
            if outcome in JUNIT_ELEMENTS:
                element, counter = JUNIT_ELEMENTS[outcome]
                counts[counter] += 1
                attributes = {"message": _message(row, verdict), **({} if element == "skipped" else {"type": outcome})}
                ElementTree.SubElement(case, element, attributes).text = verdict["why"]
        for name, count in counts.items():
            suite.set(name, str(count))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _message(row: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    check = verdict["check"]
    measured, limit = (
        number_format.verdict_value(check, verdict["measured"]),
        number_format.verdict_value(check, verdict["limit"], limit=True),
    )
    waived = ", waived" if _outcome(row, verdict) == WAIVED else ""
    return f"{row['recipe']}: {run_report.humanize(check)} {measured}, allowed {limit}{waived}"


def render_annotations(result: JsonObject) -> list[str]:
    """Return GitHub workflow commands: a line for each check that failed or cannot be decided."""
    lines = []
    for row, verdict in _verdicts(result):
        if (outcome := _outcome(row, verdict)) in GITHUB_SEVERITY:
            title = f"{row['recipe']} on {result['target']}: {run_report.humanize(verdict['check'])}"
            text = f"{_message(row, verdict)}; {verdict['why']}"
            lines.append(f"::{GITHUB_SEVERITY[outcome]} title={_escape(title, ',:')}::{_escape(text)}")
    return lines


def _escape(text: str, more: str = "") -> str:
    """Escape text as GitHub's toolkit escapes data; with `more`, the characters that properties escape too."""
    for character in f"%\r\n{more}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def build_code_quality(result: JsonObject) -> list[dict[str, Any]]:
    """Return GitLab's code quality report, which a merge request shows."""
    entries = []
    for row, verdict in _verdicts(result):
        if (outcome := _outcome(row, verdict)) in GITHUB_SEVERITY:
            name = f"{result['target']}/{row['recipe']}/{verdict['check']}"
            entries.append({
                "description": f"{_message(row, verdict)}; {verdict['why']}",
                "check_name": verdict["check"],
                "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
                "severity": {"error": "critical", "warning": "minor"}[GITHUB_SEVERITY[outcome]],
                "location": {"path": f"targets/baselines/{result['target']}/{row['recipe']}.json", "lines": {"begin": 1}},
            })  # fmt: skip
    return entries
