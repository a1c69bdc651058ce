"""Write the finished report as report.json, report.md and report.html.

The report is a plain dict, and report.json is that dict: an interface that CI and dashboards read. Markdown and HTML only
lay it out.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolchain.config.job import Job
from toolchain.core import files
from toolchain.core.run_report import RunReport
from toolchain.report import assemble, html_report, markdown
from toolchain.report.run_results import RunResults


def run(job: Job, results: RunResults) -> dict[str, Any]:
    """Write the run's report and its raw measurements into the job's folder; return the report."""
    report = assemble.report(results)
    files.write_json(job.folder / "measurements.json", assemble.measurements(results))
    write_files(report, job.folder)
    return report


def write_files(report: RunReport, folder: Path) -> None:
    """Write report.json, report.md and report.html, each whole or not at all; equal reports give equal bytes.

    Raises:
        ToolchainError: the folder cannot be written.
    """
    written = _replace_non_finite(files.to_jsonable(report))
    files.write_json(folder / "report.json", written)
    files.write_text(folder / "report.md", _make_encodable(markdown.render(written)))
    files.write_text(folder / "report.html", _make_encodable(html_report.render(written)))


def _replace_non_finite(value: Any) -> Any:
    """Return the value with null for NaN and infinity, which JSON has not: a diverged loss would break every reader."""
    if isinstance(value, Mapping):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _make_encodable(text: str) -> str:
    """Return the text as UTF-8 can hold it: classes are folders, and a folder's name on disk may be any bytes."""
    return text.encode("utf-8", "replace").decode()
