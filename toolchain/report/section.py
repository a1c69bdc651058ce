"""What a file in `sections/` gives: one section of the report, for the terminal, Markdown and HTML.

The folder is the only list of sections: a file that lies there is shown, in the order that it names itself. Each says at
its end to mypy which protocol it keeps, so that a missing or changed name is found before it runs.
"""

from typing import Protocol, cast, runtime_checkable

from toolchain.core import registry
from toolchain.core.run_report import RunReport
from toolchain.report.table import Table


class Section(Protocol):
    """One file in `sections/`."""

    TITLE: str  # the heading
    ORDER: int  # of the section in Markdown and HTML, lowest first

    def tabulate(self, report: RunReport) -> Table:
        """Return the section's table for Markdown and the terminal; without rows the section is left out."""
        ...

    def render_html(self, report: RunReport) -> tuple[str, ...]:
        """Return the HTML below the heading, in parts; the section is left out where the first one is empty."""
        ...


@runtime_checkable
class TerminalSection(Section, Protocol):
    """A section whose table is also printed at the end of a run."""

    TERMINAL_ORDER: int  # among the sections on the terminal, lowest first


@runtime_checkable
class MarkdownSection(Section, Protocol):
    """A section that needs more in Markdown than its heading and its table."""

    def render_markdown(self, report: RunReport) -> str:
        """Return the whole section with its heading; "" leaves it out."""
        ...


def load_sections() -> list[Section]:
    """Import all sections, in the order of the document."""
    sections = [cast(Section, registry.load_module("sections", name)) for name in registry.list_modules("sections")]
    return sorted(sections, key=lambda section: section.ORDER)
