"""The report as Markdown, for a merge request or a CI summary, and the tables of every other page in Markdown."""

from collections.abc import Iterable

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import key_results
from toolchain.report.section import MarkdownSection, Section, load_sections
from toolchain.report.table import Table


def render(report: RunReport) -> str:
    """Return the whole report: the outcome, the key results, notes and warnings, then every section that has content."""
    results = tuple((r.name, r.value, "; ".join(r.details)) for r in key_results.list_key_results(report))
    sentences = [*(report.get("notes") or ()), *(f"Warning: {w}" for w in report.get("warnings") or ())]
    parts = [
        f"# {escape(key_results.title(report))}",
        f"**{escape(run_report.describe_outcome(report))}**",
        format_table(Table(columns=("", "", ""), rows=results, text_columns=(0, 1, 2))),
        "\n".join(f"- {escape(sentence)}" for sentence in sentences),
        *(_render_section(section, report) for section in load_sections()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _render_section(section: Section, report: RunReport) -> str:
    if isinstance(section, MarkdownSection):
        return section.render_markdown(report)
    return format_section(section.TITLE, section.tabulate(report))


def format_section(title: str, table: Table) -> str:
    """Return a heading with a table; "" where the table has no rows."""
    return f"## {title}\n\n{format_table(table)}" if table.rows else ""


def format_table(table: Table) -> str:
    """Return a Markdown table; the row that ships is bold."""
    rule = ("---" if i in table.text_columns else "---:" for i in range(len(table.columns)))
    lines = [_line(table.columns), _line(rule)]
    for number, row in enumerate(table.rows):
        first = f"**{escape(row[0])}** (ships)" if number == table.shipping_row else escape(row[0])
        lines.append(_line((first, *(escape(cell) for cell in row[1:]))))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: object) -> str:
    """Return the text on one line, with everything escaped that Markdown or HTML would read as markup."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + c if c in "\\`*|" else c for c in line)
