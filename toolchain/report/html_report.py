"""The report as one HTML file: what ships and the key results at the top, every section that has content below."""

from html import escape

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import html_page, key_results
from toolchain.report.section import load_sections


def render(report: RunReport) -> str:
    """Return the whole page."""
    sections = (html_page.section(section.TITLE, *section.render_html(report)) for section in load_sections())
    return html_page.render_page(key_results.title(report), (_head(report), *sections))


def _head(report: RunReport) -> str:
    """Return the outcome, the key results, and notes and warnings about them."""
    outcome_class = "ships" if run_report.shipped_name(report) else "fails"
    facts = (key_results.title(report), *(str(report[key]) for key in ("runtime", "domain") if report.get(key)))
    results = key_results.list_key_results(report)
    return (
        f'<p class="lead">{escape(" · ".join(facts))}</p>'
        f'<h1 class="{outcome_class}">{escape(run_report.describe_outcome(report))}</h1>'
        + html_page.render_key_results((r.name, r.value, r.details) for r in results)
        + html_page.notice(report.get("notes") or ())
        + html_page.notice((f"Warning: {text}" for text in report.get("warnings") or ()), warning=True)
    )
