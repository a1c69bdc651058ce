"""What a gate says, in the forms that pipelines read: JSON, Markdown, JUnit XML, GitHub's and GitLab's annotations.

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
from toolchain.gates import regression_gate
from toolchain.gates.regression_gate import CANDIDATE, REFERENCE, GateResult
from toolchain.measure import machine, paired_rounds, paired_timing
from toolchain.report import markdown, number_format
from toolchain.report.table import Table

SCHEMA = 1
OUTCOME_BY_EXIT_STATUS = {0: "pass", 1: "fail", 3: "cannot_tell"}
OUTCOME_TEXT = {
    "pass": "no regression",
    "fail": "regression",
    "cannot_tell": "cannot tell: neither a regression nor the absence of one is certain",
}
GITHUB_SEVERITY = {"fail": "error", "cannot_tell": "warning"}  # GitHub's words


def build_result(gated: Sequence[GateResult], target: Target) -> dict[str, Any]:
    """The whole result as plain data: what `gate.json` holds."""
    status, pair = regression_gate.exit_status(gated), gated[0].pair
    device = pair.candidate.timed.device
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "target": target.name,
        "outcome": OUTCOME_BY_EXIT_STATUS[status],
        "exit_status": status,
        "device": device,
        "machine": dict(machine.describe(device)),
        "versions": {
            name: dict(paired_timing.versions(one.timed))
            for name, one in ((CANDIDATE, pair.candidate), (REFERENCE, pair.reference))
        },
        "threads": target.threads,
        "allowed": files.to_jsonable(target.gate),
        "gates": [_row(one) for one in gated],
    }
    return found


def _row(one: GateResult) -> dict[str, Any]:
    sides = {CANDIDATE: one.pair.candidate, REFERENCE: one.pair.reference}
    identities = {
        name: {"sha256": s.artefact.sha256, "size_bytes": s.artefact.size_bytes, "precision": s.timed.precision}
        for name, s in sides.items()
    }
    return {
        "recipe": one.pair.recipe,
        **identities,
        "outcome": OUTCOME_BY_EXIT_STATUS[regression_gate.exit_status([one])],
        "accuracy": files.to_jsonable(one.accuracy),
        "verdicts": files.to_jsonable(one.verdicts),
        "latency": files.to_jsonable(one.latency),
        "p50_ms": {name: files.to_jsonable(paired_rounds.p50(one.rounds, name)) for name in sides},
        "rounds": files.to_jsonable(one.rounds),
    }


FILE_NAMES = ("gate.json", "gate.md", "gate.xml", "gate.codequality.json")


def remove_files(folder: Path) -> None:
    """Takes away what an earlier gate said, so that it is not read as the answer of one that could not be run."""
    for name in FILE_NAMES:
        (folder / name).unlink(missing_ok=True)


def write(found: JsonObject, folder: Path) -> None:
    """Writes gate.json, gate.md, gate.xml (JUnit) and gate.codequality.json (GitLab)."""
    files.write_json(folder / "gate.json", found)
    files.write_text(folder / "gate.md", render_markdown(found))
    files.write_text(folder / "gate.xml", render_junit(found))
    files.write_json(folder / "gate.codequality.json", build_code_quality(found))


def describe_outcome(found: JsonObject) -> str:
    """The result in one line."""
    failed = [
        f"{row['recipe']} {run_report.humanize(v['check'])}" for row, v in _verdicts(found) if v["outcome"] == "fail"
    ]
    return f"{found['target']}: {OUTCOME_TEXT[found['outcome']]}" + (f" ({', '.join(failed)})" if failed else "")


def _verdicts(found: JsonObject) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(row, verdict) for row in found["gates"] for verdict in row["verdicts"]]


def tabulate_checks(found: JsonObject) -> Table:
    """Every check of every recipe."""
    rows = tuple(
        (
            row["recipe"], run_report.humanize(v["check"]), run_report.humanize(v["outcome"]),
            number_format.verdict_value(v["check"], v["measured"]), number_format.verdict_value(v["check"], v["limit"], limit=True), v["why"],
        )
        for row, v in _verdicts(found)
    )  # fmt: skip
    return Table(
        columns=("Recipe", "Check", "Outcome", "Measured", "Allowed", "Why"),
        rows=rows,
        text_columns=(0, 1, 2, 5),
        optional_columns=(5,),
    )


def tabulate_latencies(found: JsonObject) -> Table:
    """What both take; shown for scale, never compared with another job's."""
    rows = tuple(
        (
            row["recipe"], *(number_format.with_interval(row["p50_ms"][name]) for name in (CANDIDATE, REFERENCE)),
            _ratio(row["latency"]["candidate"]["slower"]), _ratio(row["latency"]["control"]["slower"]),
            str(len(row["rounds"])), number_format.relative_change(row["latency"]["candidate"]["detectable"]),
        )
        for row in found["gates"]
    )  # fmt: skip
    columns = (
        "Recipe",
        "Candidate, ms",
        "Reference, ms",
        "Candidate / reference",
        "Reference / itself",
        "Rounds",
        "Would find",
    )
    return Table(columns=columns, rows=rows, optional_columns=(1, 2, 5, 4))


def _ratio(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def render_markdown(found: JsonObject) -> str:
    """A summary for a job's page."""
    computer, versions = found["machine"], found["versions"]
    runtimes = dict.fromkeys(" ".join(f"{k} {v}" for k, v in versions[name].items()) for name in (CANDIDATE, REFERENCE))
    where = f"{computer['cpu']} ({computer['isa']}), {found['threads']} thread(s), {' against '.join(runtimes)}"
    parts = [
        f"# Gate: {markdown.escape(describe_outcome(found))}",
        markdown.format_table(tabulate_checks(found)),
        markdown.format_table(tabulate_latencies(found)),
        "Candidate and reference took turns in the same processes; milliseconds (p50) are for scale and are not compared "
        f'with those of any other job. "Would find": the least slowdown that these rounds would have shown. {markdown.escape(where)}.',
    ]
    return "\n\n".join(parts) + "\n"


def render_junit(found: JsonObject) -> str:
    """A test suite a recipe, a test case a check: what Jenkins, GitLab and GitHub's actions show."""
    suites = ElementTree.Element("testsuites", name=f"gate {found['target']}")
    for row in found["gates"]:
        verdicts = row["verdicts"]
        suite = ElementTree.SubElement(suites, "testsuite", name=f"{row['recipe']} on {found['target']}")
        counts = {"tests": len(verdicts), "failures": 0, "errors": 0, "skipped": 0}
        for verdict in verdicts:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"gate.{found['target']}.{row['recipe']}", name=verdict["check"]
            )
            kind = {"fail": "failure", "cannot_tell": "error", "not_measured": "skipped"}.get(verdict["outcome"])
            if kind:
                counts[{"failure": "failures", "error": "errors", "skipped": "skipped"}[kind]] += 1
                ElementTree.SubElement(case, kind, message=_message(row, verdict)).text = verdict["why"]
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
    return f"{row['recipe']}: {run_report.humanize(check)} {measured}, allowed {limit}"


def render_annotations(found: JsonObject) -> list[str]:
    """GitHub's workflow commands: one line for each check that is not passed."""
    lines = []
    for row, verdict in _verdicts(found):
        if verdict["outcome"] in GITHUB_SEVERITY:
            title = f"{row['recipe']} on {found['target']}: {run_report.humanize(verdict['check'])}"
            text = f"{_message(row, verdict)}; {verdict['why']}"
            lines.append(f"::{GITHUB_SEVERITY[verdict['outcome']]} title={_escaped(title, ',:')}::{_escaped(text)}")
    return lines


def _escaped(text: str, more: str = "") -> str:
    """As GitHub's toolkit escapes data and, with `more`, properties."""
    for character in f"%\r\n{more}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def build_code_quality(found: JsonObject) -> list[dict[str, Any]]:
    """GitLab's code quality report, which it shows on a merge request."""
    entries = []
    for row, verdict in _verdicts(found):
        if verdict["outcome"] in GITHUB_SEVERITY:
            name = f"{found['target']}/{row['recipe']}/{verdict['check']}"
            entries.append({
                "description": f"{_message(row, verdict)}; {verdict['why']}",
                "check_name": verdict["check"],
                "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
                "severity": {"error": "critical", "warning": "minor"}[GITHUB_SEVERITY[verdict["outcome"]]],
                "location": {"path": f"targets/baselines/{found['target']}/{row['recipe']}.json", "lines": {"begin": 1}},
            })  # fmt: skip
    return entries
